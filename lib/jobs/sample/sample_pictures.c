/* Pictures of sampled videos. */
#include "jobs/sample/sample_pictures.h"

#include "core/error.h"
#include "core/memory.h"
#include "report/gif.h"
#include "report/png.h"

#include <inttypes.h>
#include <math.h>

/* Small clips are enlarged to about this many pixels. */
enum { WANTED_SIDE = 96 };

typedef struct pictures {
    hdi_frames *clips; /* [count] their pixels are owned */
    char **labels;     /* [count] owned */
    int count, scale;
} pictures;

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "sample: out of host memory for pictures");
}

static hd_status read_clip(const char *path, const hdi_sample_file *file, hdi_frames *out)
{
    const hd_video_shape *shape = &file->settings->shape;
    const size_t elements = (size_t)(3 * shape->frames * shape->height * shape->width);
    float *latents = hdi_alloc_array(elements, sizeof *latents);
    float *pixels = hdi_alloc_array(elements, sizeof *pixels);
    *out = (hdi_frames){pixels, shape->frames, shape->height, shape->width};
    hd_status status = latents && pixels ? HD_OK : out_of_memory();
    const char *why;
    if (status == HD_OK && hdi_sample_file_read(path, file, latents, &why) != file->steps)
        status = hdi_error(HD_ERROR_FORMAT, "%s %s", path, why ? why : "is not there");
    if (status == HD_OK)
        hdi_frames_from_latents(latents, shape->frames, shape->height, shape->width, pixels);
    hdi_free(latents);
    return status;
}

static hd_status write_gif(const char *directory, const char *name, const hdi_frames *clips,
                           int count, int columns, int scale, double rate)
{
    char *path = hdi_format("%s/%s.gif", directory, name);
    const hd_status status =
        path ? hdi_gif_write(path, clips, count, columns, scale, rate) : out_of_memory();
    hdi_free(path);
    return status;
}

static hd_status draw_clips(const pictures *all, const char *directory, double rate)
{
    const int columns = (int)ceil(sqrt(all->count));
    for (int v = 0; v < all->count && hdi_gif_is_there(); v++)
        HD_RETURN_IF_ERROR(
            write_gif(directory, all->labels[v], &all->clips[v], 1, 1, all->scale, rate));
    if (hdi_gif_is_there())
        HD_RETURN_IF_ERROR(
            write_gif(directory, "samples", all->clips, all->count, columns, all->scale, rate));
    char *path = hdi_format("%s/samples.png", directory);
    const hd_status status =
        path ? hdi_png_write_sheet(path, all->clips, all->count, (const char *const *)all->labels,
                                   8, all->scale)
             : out_of_memory();
    hdi_free(path);
    return status;
}

hd_status hdi_sample_draw(const char *directory, char *const *paths, const hdi_sample_file *files,
                          int count, double frames_per_second)
{
    const hd_video_model *model = files[0].settings->model;
    const hd_video_shape *shape = &files[0].settings->shape;
    if (model->channels != 3 || model->compression[0] != 1 || model->compression[1] != 1 ||
        model->compression[2] != 1)
        return HD_OK;
    const int64_t side = shape->height > shape->width ? shape->height : shape->width;
    pictures all = {.clips = hdi_alloc_array((size_t)count, sizeof *all.clips),
                    .labels = hdi_alloc_array((size_t)count, sizeof *all.labels),
                    .count = count,
                    .scale = side < WANTED_SIDE ? (int)((WANTED_SIDE + side - 1) / side) : 1};
    hd_status status = all.clips && all.labels ? HD_OK : out_of_memory();
    for (int v = 0; v < count && status == HD_OK; v++) {
        all.labels[v] = hdi_format("%s-seed-%" PRIu64, files[v].name, files[v].seed);
        status = all.labels[v] ? read_clip(paths[v], &files[v], &all.clips[v]) : out_of_memory();
    }
    if (status == HD_OK) status = draw_clips(&all, directory, frames_per_second);
    for (int v = 0; v < count && all.clips && all.labels; v++) {
        hdi_free((void *)(uintptr_t)all.clips[v].pixels);
        hdi_free(all.labels[v]);
    }
    hdi_free(all.clips);
    hdi_free(all.labels);
    return status;
}
