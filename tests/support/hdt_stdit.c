/* The golden runs of STDiT3 as programs in memory of their own. */
#include "tests/support/hdt_stdit.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static void *take(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)count + 1, bytes);
    ck_assert_ptr_nonnull(memory);
    return memory;
}

static hdt_stdit open_file(const char *name)
{
    hdt_stdit g = {0};
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path(name), &g.file));
    json_t *config = json_loads(hdi_safetensors_metadata(g.file, "config"), 0, NULL);
    ck_assert_ptr_nonnull(config);
    json_object_set_new(config, "model_type", json_string("stdit3"));
    char *text = json_dumps(config, 0);
    hdt_assert_ok(hd_model_create_json(text, &g.model));
    free(text);
    json_decref(config);
    g.weights = hdt_extract(g.file, "weights.", "");
    g.gradients = hdt_extract(g.file, "grad.", "");
    return g;
}

hdt_stdit hdt_stdit_open(void)
{
    return open_file("stdit3_tiny.safetensors");
}

hdt_stdit hdt_stdit_open_v13(void)
{
    return open_file("stdit3_v13_tiny.safetensors");
}

void hdt_stdit_close(hdt_stdit *g)
{
    hd_model_destroy(g->model);
    hdi_safetensors_close(g->file);
    hdi_weights_close(g->weights);
    hdi_weights_close(g->gradients);
}

const hdt_stdit_scene hdt_stdit_scenes[] = {
    {"x", "in.x", "in.height", "in.width", 2, {3, 6, 8}, true, true, 0},
    {"x_no_xmask", "in.x", "in.height", "in.width", 2, {3, 6, 8}, false, true, 0},
    {"x_no_textmask", "in.x", "in.height", "in.width", 2, {3, 6, 8}, false, false, 0},
    {"x_odd", "in.x_odd", "in.height_odd", "in.width_odd", 1, {2, 7, 9}, false, true, 0},
};

/* Windows of 3 x 2 places: both sides are cut in a grid of 5 x 5, one side in one of 4 x 5, and one of
 * 2 x 1 is smaller than a window. */
const hdt_stdit_scene hdt_stdit_v13_scenes[] = {
    {"x", "in.x", "in.height", "in.width", 2, {3, 10, 10}, true, true, 5},
    {"x_none", "in.x", "in.height", "in.width", 2, {3, 10, 10}, true, true, 0},
    {"x_t2v", "in.x", "in.height", "in.width", 2, {3, 10, 10}, false, true, 0},
    {"x_odd", "in.x_odd", "in.height", "in.width", 1, {2, 7, 9}, false, true, 0},
    {"x_small", "in.x_small", "in.height", "in.width", 1, {2, 4, 2}, false, true, 0},
};

hd_stage hdt_stdit_stage(const hdt_stdit *g, const hdt_stdit_scene *s, hd_purpose purpose)
{
    double *height = hdt_values(g->file, s->height, NULL),
           *width = hdt_values(g->file, s->width, NULL);
    const hd_stage stage = {.purpose = purpose,
                            .layers = HDT_STDIT_LAYERS,
                            .first = true,
                            .last = true,
                            .sequences = s->sequences,
                            .video = {.frames = s->dims[0],
                                      .height = s->dims[1],
                                      .width = s->dims[2],
                                      .text = HDT_STDIT_TEXT,
                                      .text_counts = s->text_masked,
                                      .masked_frames = s->frames_masked,
                                      .pixel_height = (int64_t)height[0],
                                      .pixel_width = (int64_t)width[0]}};
    free(height);
    free(width);
    return stage;
}

static void load(const hdt_stdit *g, const hd_program *program, hdt_machine *machine)
{
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u];
        const int64_t elements = hd_tensor_get(program, use->tensor)->elements;
        float *values = take(elements, sizeof *values);
        hdt_assert_ok(hdi_model_read_parameter(g->weights, &use->options, 0, elements, values));
        for (int64_t i = 0; i < elements; i++)
            hdt_machine_set(machine, use->tensor, i, (double)values[i]);
        free(values);
    }
}

hdt_stdit_trial hdt_stdit_start(const hdt_stdit *g, const hd_stage *stage, bool wide,
                                int64_t x_rows)
{
    hdt_stdit_trial t = {0};
    const bool training = stage->purpose == HD_PURPOSE_TRAIN;
    const int64_t dims[] = {x_rows, hd_model_hidden(g->model)};
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){.name = "trial", .training = training, .exact = training},
        &t.program));
    if (!stage->first) t.x = hd_input(t.program, "x", HD_DTYPE_F32, 2, dims);
    if (!stage->first && training) hd_input_needs_gradient(t.program, t.x);
    t.result = hd_model_build(g->model, t.program, stage, t.x);
    if (training && !stage->last) {
        const hd_tensor_info *info = hd_tensor_get(t.program, t.result);
        if (info) t.seed = hd_input(t.program, "seed", HD_DTYPE_F32, 2, info->dims);
    }
    if (training) hd_program_backward(t.program, t.result, t.seed);
    hdt_assert_ok(hd_program_finish(t.program));
    t.machine = hdt_machine_create(t.program, wide);
    load(g, t.program, t.machine);
    return t;
}

void hdt_stdit_stop(hdt_stdit_trial *t)
{
    hdt_machine_destroy(t->machine);
    hd_program_destroy(t->program);
}

void hdt_stdit_set(const hdt_stdit_trial *t, const char *name, const double *values, int64_t count)
{
    const hd_tensor input = hd_tensor_find(t->program, name);
    if (!input.id) return;
    ck_assert_int_eq(hd_tensor_get(t->program, input)->elements, count);
    for (int64_t i = 0; i < count; i++) {
        if (hd_tensor_get(t->program, input)->dtype == HD_DTYPE_I32)
            ((int32_t *)hdt_machine_data(t->machine, input))[i] = (int32_t)values[i];
        else
            hdt_machine_set(t->machine, input, i, values[i]);
    }
}

/* Valid rows of the sequences' texts one below another, and where each begins. */
static void feed_text(const hdt_stdit_trial *t, const hdt_stdit *g, const hdt_stdit_scene *s,
                      int64_t first, int64_t sequences)
{
    double *text = hdt_values(g->file, "in.y", NULL), *mask = hdt_values(g->file, "in.mask", NULL);
    double *packed = take(sequences * HDT_STDIT_TEXT * HDT_STDIT_COLUMNS, sizeof *packed),
           *places = take(sequences * HDT_STDIT_TEXT, sizeof *places), offsets[3] = {0};
    int64_t rows = 0;
    for (int64_t i = 0; i < sequences; i++) {
        for (int64_t r = (first + i) * HDT_STDIT_TEXT; r < (first + i + 1) * HDT_STDIT_TEXT; r++)
            if (!s->text_masked || mask[r] != 0) {
                places[rows] = (double)(r % HDT_STDIT_TEXT);
                memcpy(packed + rows++ * HDT_STDIT_COLUMNS, text + r * HDT_STDIT_COLUMNS,
                       HDT_STDIT_COLUMNS * sizeof *text);
            }
        offsets[i + 1] = (double)rows;
    }
    const hd_tensor input = hd_tensor_find(t->program, "text");
    if (input.id) hdt_stdit_set(t, "text", packed, hd_tensor_get(t->program, input)->elements);
    hdt_stdit_set(t, "text_offsets", offsets, sequences + 1);
    hdt_stdit_set(t, "text_places", places, sequences * HDT_STDIT_TEXT);
    free(places);
    free(text);
    free(mask);
    free(packed);
}

/* 1.2's frames that are given by time 0. */
static void feed_times(const hdt_stdit_trial *t, const hdt_stdit *g, const hdt_stdit_scene *s,
                       int64_t first, int64_t sequences)
{
    double *given = hdt_values(g->file, "in.x_mask", NULL), entries[6];
    for (int64_t i = 0; i < sequences * s->dims[0]; i++) {
        const int64_t sequence = i / s->dims[0];
        entries[i] = (double)(given[first * s->dims[0] + i] != 0 ? sequence : sequences + sequence);
    }
    hdt_stdit_set(t, "frame_entries", entries, sequences * s->dims[0]);
    free(given);
}

/* 1.3's, beside the latents: a mask for each channel, then latents that it leaves. */
static void feed_condition(const hdt_stdit_trial *t, const hdt_stdit *g, const hdt_stdit_scene *s,
                           int64_t first, int64_t sequences)
{
    if (!s->frames_masked) return;
    const int64_t frames = s->dims[0], plane = s->dims[1] * s->dims[2],
                  size = HDT_STDIT_CHANNELS * frames * plane;
    double *given = hdt_values(g->file, "in.cond", NULL), entries[6],
           *condition = take(2 * sequences * size, sizeof *condition);
    for (int64_t i = 0; i < sequences * size; i++) {
        const bool is = s->given >> (i / plane % frames) & 1;
        double *out = condition + i / size * 2 * size + i % size;
        out[0] = is ? 1 : 0;
        out[size] = is ? given[first * size + i] : 0;
    }
    for (int64_t i = 0; i < sequences * frames; i++)
        entries[i] = (double)(i / frames + (s->given >> i % frames & 1 ? sequences : 0));
    hdt_stdit_set(t, "condition", condition, 2 * sequences * size);
    hdt_stdit_set(t, "frame_entries", entries, sequences * frames);
    free(given);
    free(condition);
}

void hdt_stdit_feed(const hdt_stdit_trial *t, const hdt_stdit *g, const hdt_stdit_scene *s,
                    int64_t first, int64_t sequences)
{
    int64_t count;
    const int64_t size = HDT_STDIT_CHANNELS * s->dims[0] * s->dims[1] * s->dims[2];
    double *values = hdt_values(g->file, s->video, NULL);
    hdt_stdit_set(t, "latents", values + first * size, sequences * size);
    free(values);
    values = hdt_values(g->file, "in.target", &count);
    if (count >= (first + sequences) * size)
        hdt_stdit_set(t, "target", values + first * size, sequences * size);
    free(values);
    values = hdt_values(g->file, "in.fps", NULL);
    hdt_stdit_set(t, "fps", values + first, sequences);
    free(values);
    values = hdt_values(g->file, "in.timestep", NULL);
    for (int i = 0; i < 2; i++)
        values[i] /= 1000;
    const hd_tensor time = hd_tensor_find(t->program, "time");
    if (time.id && hd_tensor_get(t->program, time)->elements == sequences)
        hdt_stdit_set(t, "time", values + first, sequences);
    free(values);
    const double ones[6] = {1, 1, 1, 1, 1, 1};
    hdt_stdit_set(t, "loss_weight", ones, sequences * s->dims[0]);
    if (hdi_safetensors_find(g->file, "in.cond"))
        feed_condition(t, g, s, first, sequences);
    else
        feed_times(t, g, s, first, sequences);
    feed_text(t, g, s, first, sequences);
}

void hdt_stdit_run(const hdt_stdit_trial *t, hdi_phase phase)
{
    hdt_assert_ok(hdt_machine_run(t->machine, phase, false));
}

enum { PREDICTED = 2 * HDT_STDIT_CHANNELS };

/* What the final layer makes, in patches: the tensor that becomes frames. */
static hd_tensor prediction_of(const hd_program *program)
{
    for (int i = 0; i < program->op_count; i++)
        if (strcmp(program->ops[i]->op.kind->name, "patches_to_frames") == 0)
            return program->ops[i]->op.in[0];
    return (hd_tensor){0};
}

/* Largest distance of a prediction from the golden one, all PREDICTED channels, read through the
 * patches' order: frame, y, x; in a patch y, x, channel. */
double hdt_stdit_distance(const hdt_stdit_trial *t, const hdt_stdit *g, const hdt_stdit_scene *s)
{
    char name[64];
    snprintf(name, sizeof name, "out64.%s", s->out);
    double *wanted = hdt_values(g->file, name, NULL), worst = 0;
    const hd_tensor prediction = prediction_of(t->program);
    const int64_t frames = s->dims[0], height = s->dims[1], width = s->dims[2];
    const int64_t across = (width + 1) / 2, places = (height + 1) / 2 * across;
    const double *next = wanted;
    for (int64_t b = 0; b < s->sequences; b++) {
        for (int64_t c = 0; c < PREDICTED; c++) {
            for (int64_t i = 0; i < frames * height * width; i++) {
                const int64_t f = i / (height * width), y = i / width % height, x = i % width;
                const int64_t row = (b * frames + f) * places + y / 2 * across + x / 2;
                const int64_t at = (row * 4 + y % 2 * 2 + x % 2) * PREDICTED + c;
                const double seen = hdt_machine_get(t->machine, prediction, at);
                ck_assert(isfinite(seen));
                worst = fmax(worst, fabs(seen - *next++));
            }
        }
    }
    free(wanted);
    return worst;
}

void hdt_stdit_compare_gradients(const hdt_stdit_trial *t, const hdt_stdit *g, double count,
                                 double tolerance)
{
    int compared = 0;
    for (int u = 0; u < t->program->use_count; u++) {
        const hdi_use *use = &t->program->uses[u];
        hdi_safetensors *file;
        if (!hdi_weights_find(g->gradients, use->name, &file)) continue;
        const int64_t elements = hd_tensor_get(t->program, use->tensor)->elements;
        float *wanted = take(elements, sizeof *wanted);
        double largest = 0, worst = 0;
        hdt_assert_ok(hdi_model_read_parameter(g->gradients, &use->options, 0, elements, wanted));
        for (int64_t i = 0; i < elements; i++) {
            const double seen = hdt_machine_get(t->machine, use->gradient, i) / count;
            ck_assert(isfinite(seen));
            largest = fmax(largest, fabs((double)wanted[i]));
            worst = fmax(worst, fabs(seen - (double)wanted[i]));
        }
        ck_assert_msg(worst <= tolerance * largest, "gradient of %s is off by %g of %g", use->name,
                      worst, largest);
        free(wanted);
        compared++;
    }
    ck_assert_int_eq(compared, hdi_weights_count(g->gradients));
}
