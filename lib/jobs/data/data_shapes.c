/* Generated clips: one coloured shape on a plain ground, moving in a loop. Clip i is a function of
 * (seed, i): its class is i modulo their number; size, place and phase are random. */
#include "jobs/data/data.h"

#include <math.h>

#include "core/error.h"
#include "core/memory.h"
#include "core/random.h"

enum { SHAPES = 3, COLOURS = 3, MOTIONS = 3, CLASSES = SHAPES * COLOURS * MOTIONS };

static const char *const shapes[SHAPES] = {"circle", "square", "triangle"};
static const char *const motions[MOTIONS] = {"sideways", "updown", "around"};
static const struct {
    const char *name;
    float red, green, blue;
} colours[COLOURS] = {
    {"red", 0.87f, 0.20f, 0.18f}, {"green", 0.18f, 0.62f, 0.25f}, {"blue", 0.17f, 0.36f, 0.85f}};
static const float ground[3] = {0.95f, 0.94f, 0.90f};

/* Distance of (x, y), y downwards, from the shape of that radius around 0; negative inside. */
static double distance(int shape, double x, double y, double radius)
{
    if (shape == 0) return hypot(x, y) - radius;
    if (shape == 1) return fmax(fabs(x), fabs(y)) - 0.88 * radius;
    /* An equilateral triangle on its base. */
    const double side = 0.866025403784438647 * fabs(x) - 0.5 * y;
    return fmax(side, y) - 0.62 * radius;
}

static void draw(const hd_data_options *options, int class_index, int64_t clip, float *out)
{
    const int shape = class_index % SHAPES, colour = class_index / SHAPES % COLOURS;
    const int motion = class_index / (SHAPES * COLOURS);
    const int64_t frames = options->frames, height = options->height, width = options->width;
    const uint64_t stream = hdi_random_stream("shapes"), seed = options->seed;
    double random[4];
    for (int i = 0; i < 4; i++)
        random[i] = hdi_random_uniform(seed, stream, (uint64_t)(4 * clip + i));
    const double side = (double)(height < width ? height : width);
    const double radius = side * (0.22 + 0.02 * random[0]), reach = 0.23;
    const double middle_x = (double)width * (0.5 + 0.04 * (random[1] - 0.5));
    const double middle_y = (double)height * (0.5 + 0.04 * (random[2] - 0.5));
    const float paint[3] = {colours[colour].red, colours[colour].green, colours[colour].blue};
    for (int64_t t = 0; t < frames; t++) {
        const double angle = 6.28318530717958648 * ((double)t / (double)frames + random[3]);
        double x = middle_x, y = middle_y;
        if (motion != 1) x += reach * (double)width * cos(angle);
        if (motion != 0) y += reach * (double)height * sin(angle);
        if (shape == 2) y += 0.25 * radius; /* its middle */
        for (int64_t p = 0; p < height * width; p++) {
            const double away = distance(shape, (double)(p % width) + 0.5 - x,
                                         (double)(p / width) + 0.5 - y, radius);
            const float cover = (float)fmin(fmax(0.5 - away, 0), 1);
            for (int64_t c = 0; c < 3; c++)
                out[(c * frames + t) * height * width + p] =
                    2 * (cover * paint[c] + (1 - cover) * ground[c]) - 1;
        }
    }
}

static hd_status name_classes(hdi_data_job *job)
{
    for (int i = 0; i < CLASSES; i++) {
        char *name = hdi_format("%s %s %s", colours[i / SHAPES % COLOURS].name, shapes[i % SHAPES],
                                motions[i / (SHAPES * COLOURS)]);
        if (!name || !HDI_GROW(job->classes.names, job->classes.count, job->classes.capacity)) {
            hdi_free(name);
            return hdi_error(HD_ERROR_MEMORY, "data: no memory for the names of classes");
        }
        job->classes.names[job->classes.count++] = name;
    }
    return HD_OK;
}

hd_status hdi_data_shapes(hdi_data_job *job)
{
    const hd_data_options *options = job->options;
    if (options->input_count)
        return hdi_error(HD_ERROR_ARGUMENT, "data shapes: takes no input, is given %s",
                         options->inputs[0]);
    HD_RETURN_IF_ERROR(name_classes(job));
    HD_RETURN_IF_ERROR(hdi_data_begin_pixels(job));
    const size_t pixels = (size_t)(options->frames * options->height * options->width);
    float *clip = hdi_alloc_array(pixels, 3 * sizeof *clip);
    if (!clip) return hdi_error(HD_ERROR_MEMORY, "data: no memory for a clip");
    hd_status status = HD_OK;
    for (int64_t i = 0; i < options->samples && status == HD_OK; i++) {
        const int class_index = (int)(i % CLASSES);
        draw(options, class_index, i, clip);
        status = hdi_data_append(job, options->frames, options->height, options->width, class_index,
                                 options->fps, clip);
    }
    hdi_free(clip);
    return status;
}
