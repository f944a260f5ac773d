/* Patches of videos to rows and back, a run along the width at a time. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "core/error.h"

#include <string.h>

/* Where a row's patch begins, and how an element within it is found. */
typedef struct patch_place {
    int64_t sequence, first[3];
} patch_place;

static patch_place place_of(const hdi_patch_args *args, int64_t row)
{
    const int64_t down = hdi_ceil_div(args->height, args->patch[1]);
    const int64_t across = hdi_ceil_div(args->width, args->patch[2]);
    const int64_t deep = hdi_ceil_div(args->frames, args->patch[0]);
    return (patch_place){row / (across * down * deep),
                         {row / (across * down) % deep * args->patch[0],
                          row / across % down * args->patch[1], row % across * args->patch[2]}};
}

static int64_t patch_rows(const hdi_patch_args *args)
{
    return args->sequences * hdi_ceil_div(args->frames, args->patch[0]) *
           hdi_ceil_div(args->height, args->patch[1]) * hdi_ceil_div(args->width, args->patch[2]);
}

/* Copies a run of a patch along the width, of one channel, frame and y: `count` elements that lie
 * one after another in the video and `step` apart in the row. */
typedef void (*patch_run)(const hdi_patch_args *args, int64_t video, int64_t row, int64_t count,
                          int64_t step);

static void patch_runs(const hdi_patch_args *args, int64_t row, patch_run run)
{
    const patch_place place = place_of(args, row);
    const int64_t *patch = args->patch, *first = place.first;
    const int64_t volume = patch[0] * patch[1] * patch[2];
    const int64_t step = args->channels_last ? args->row_columns / volume : 1;
    const int64_t frames = hdi_cpu_min(patch[0], args->frames - first[0]);
    const int64_t height = hdi_cpu_min(patch[1], args->height - first[1]);
    const int64_t width = hdi_cpu_min(patch[2], args->width - first[2]);
    for (int64_t c = 0; c < args->channels; c++)
        for (int64_t f = 0; f < frames; f++)
            for (int64_t y = 0; y < height; y++) {
                const int64_t within = (f * patch[1] + y) * patch[2];
                const int64_t column =
                    args->channels_last ? within * step + c : c * volume + within;
                const int64_t video =
                    (((place.sequence * args->channels + c) * args->frames + first[0] + f) *
                         args->height +
                     first[1] + y) *
                        args->width +
                    first[2];
                run(args, video, row * args->row_columns + column, width, step);
            }
}

static void run_to_row(const hdi_patch_args *args, int64_t video, int64_t row, int64_t count,
                       int64_t step)
{
    const float *x = (const float *)args->x + video;
    float *out = (float *)args->out + row;
    for (int64_t i = 0; i < count; i++)
        out[i * step] = x[i];
}

static void run_to_video(const hdi_patch_args *args, int64_t video, int64_t row, int64_t count,
                         int64_t step)
{
    const float *x = (const float *)args->x + row;
    float *out = (float *)args->out + video;
    for (int64_t i = 0; i < count; i++)
        out[i] = x[i * step];
}

static void patchify_rows(void *context, int64_t index, int lane)
{
    const hdi_patch_args *args = context;
    (void)lane;
    const int64_t chunk = hdi_cpu_chunk_rows(args->row_columns);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, patch_rows(args));
    for (int64_t r = index * chunk; r < end; r++) {
        memset((float *)args->out + r * args->row_columns, 0,
               (size_t)args->row_columns * sizeof(float));
        patch_runs(args, r, run_to_row);
    }
}

static void unpatchify_rows(void *context, int64_t index, int lane)
{
    const hdi_patch_args *args = context;
    (void)lane;
    const int64_t chunk = hdi_cpu_chunk_rows(args->row_columns);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, patch_rows(args));
    for (int64_t r = index * chunk; r < end; r++)
        patch_runs(args, r, run_to_video);
}

static hd_status patches(const hdi_patch_args *args, hdi_cpu_work rows)
{
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("patches", args->dtype));
    hdi_patch_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(patch_rows(args), hdi_cpu_chunk_rows(args->row_columns)), rows,
                     &work);
    return HD_OK;
}

hd_status hdi_cpu_patchify(hd_stream *stream, const hdi_patch_args *args)
{
    (void)stream;
    return patches(args, patchify_rows);
}

hd_status hdi_cpu_unpatchify(hd_stream *stream, const hdi_patch_args *args)
{
    (void)stream;
    return patches(args, unpatchify_rows);
}
