/* Modulation, rows, patches and squared error in fp64, written from the definitions. Pointers are to
 * doubles. */
#include "tests/support/hdt_reference_diffusion.h"

#include <math.h>
#include <string.h>

#include "tests/support/hdt_interpret.h"

/* A window was found by an fp32 offset within a tensor, which takes twice the room here. */
static double *moved(const void *window)
{
    const uintptr_t address = (uintptr_t)window, base = address - address % HDT_MACHINE_ALIGNMENT;
    return window ? (double *)base + (address - base) / sizeof(float) : NULL;
}

hd_status hdt_reference_sinusoid(hd_stream *stream, const hdi_sinusoid_args *args)
{
    (void)stream;
    const double *x = (const double *)(const void *)args->x;
    for (int64_t i = 0; i < args->rows * args->columns; i++) {
        const int64_t row = i / args->columns, c = i % args->columns, half = args->columns / 2;
        const double angle = args->scale * x[row] *
                             pow(args->period, -2.0 * (double)(c % half) / (double)(2 * half));
        ((double *)args->out)[i] = c < half ? cos(angle) : sin(angle);
    }
    return HD_OK;
}

static double entry_of(const void *table, int64_t stride, const int32_t *index, int64_t group,
                       int64_t c)
{
    return table ? moved(table)[(index ? index[group] : group) * stride + c] : 0;
}

hd_status hdt_reference_modulate(hd_stream *stream, const hdi_modulate_args *args)
{
    (void)stream;
    const int64_t columns = args->columns;
    for (int64_t r = 0; r < args->rows; r++) {
        double *out = (double *)(args->out ? args->out : args->sum) + r * columns;
        double mean = 0, square = 0;
        for (int64_t c = 0; c < columns; c++) {
            out[c] = ((const double *)args->x)[r * columns + c];
            if (args->delta)
                out[c] += entry_of(args->gate, args->gate_stride, args->gate_index,
                                   r / args->gate_rows_per_group, c) *
                          ((const double *)args->delta)[r * columns + c];
            if (args->sum) ((double *)args->sum)[r * columns + c] = out[c];
            mean += out[c] / (double)columns;
        }
        if (!args->out) continue;
        for (int64_t c = 0; c < columns; c++)
            square += (out[c] - mean) * (out[c] - mean) / (double)columns;
        const int64_t group = r / args->rows_per_group;
        for (int64_t c = 0; c < columns; c++)
            out[c] = (out[c] - mean) / sqrt(square + (double)args->epsilon) *
                         (1 + entry_of(args->scale, args->stride, args->index, group, c)) +
                     entry_of(args->shift, args->stride, args->index, group, c);
    }
    return HD_OK;
}

hd_status hdt_reference_add_rows(hd_stream *stream, const hdi_add_rows_args *args)
{
    (void)stream;
    for (int64_t i = 0; i < args->rows * args->columns; i++)
        ((double *)args->out)[i] =
            ((const double *)args->x)[i] +
            ((const double *)args->table)[i % (args->period * args->columns)];
    return HD_OK;
}

hd_status hdt_reference_copy_blocks(hd_stream *stream, const hdi_copy_blocks_args *args)
{
    (void)stream;
    const char *x = (const char *)moved(args->x);
    char *out = (char *)moved(args->out);
    for (int64_t b = 0; b < args->blocks; b++)
        memcpy(out + 2 * (size_t)b * args->out_stride, x + 2 * (size_t)b * args->x_stride,
               2 * args->block_bytes);
    return HD_OK;
}

hd_status hdt_reference_copy_grid(hd_stream *stream, const hdi_copy_grid_args *args)
{
    (void)stream;
    int64_t blocks = 1;
    for (int d = 0; d < HDI_GRID_DIMS; d++)
        blocks *= args->count[d];
    for (int64_t b = 0; b < blocks; b++) {
        size_t x = 0, out = 0;
        int64_t left = b;
        for (int d = HDI_GRID_DIMS - 1; d >= 0; d--) {
            x += (size_t)(left % args->count[d]) * args->x_stride[d];
            out += (size_t)(left % args->count[d]) * args->out_stride[d];
            left /= args->count[d];
        }
        memcpy((char *)moved(args->out) + 2 * out, (const char *)moved(args->x) + 2 * x,
               2 * args->block_bytes);
    }
    return HD_OK;
}

static int64_t patches(int64_t size, int64_t patch)
{
    return (size + patch - 1) / patch;
}

/* The element of the video that element `column` of row `row` stands for; -1: none. */
static int64_t video_of(const hdi_patch_args *args, int64_t row, int64_t column)
{
    const int64_t *patch = args->patch, volume = patch[0] * patch[1] * patch[2];
    const int64_t given = args->row_columns / volume;
    const int64_t channel = args->channels_last ? column % given : column / volume;
    const int64_t within = args->channels_last ? column / given : column % volume;
    const int64_t across = patches(args->width, patch[2]), down = patches(args->height, patch[1]);
    const int64_t deep = patches(args->frames, patch[0]);
    const int64_t x = row % across * patch[2] + within % patch[2];
    const int64_t y = row / across % down * patch[1] + within / patch[2] % patch[1];
    const int64_t frame = row / (across * down) % deep * patch[0] + within / (patch[2] * patch[1]);
    const int64_t sequence = row / (across * down * deep);
    if (channel >= args->channels || x >= args->width || y >= args->height || frame >= args->frames)
        return -1;
    return (((sequence * args->channels + channel) * args->frames + frame) * args->height + y) *
               args->width +
           x;
}

static void each_element(const hdi_patch_args *args, bool to_rows)
{
    const double *x = args->x;
    double *out = args->out;
    const int64_t rows = args->sequences * patches(args->frames, args->patch[0]) *
                         patches(args->height, args->patch[1]) *
                         patches(args->width, args->patch[2]);
    for (int64_t i = 0; i < rows * args->row_columns; i++) {
        const int64_t video = video_of(args, i / args->row_columns, i % args->row_columns);
        if (to_rows)
            out[i] = video < 0 ? 0 : x[video];
        else if (video >= 0)
            out[video] = x[i];
    }
}

hd_status hdt_reference_patchify(hd_stream *stream, const hdi_patch_args *args)
{
    (void)stream;
    each_element(args, true);
    return HD_OK;
}

hd_status hdt_reference_unpatchify(hd_stream *stream, const hdi_patch_args *args)
{
    (void)stream;
    each_element(args, false);
    return HD_OK;
}

hd_status hdt_reference_squared_error(hd_stream *stream, const hdi_squared_error_args *args)
{
    (void)stream;
    const double *prediction = args->prediction;
    const double *target = (const double *)(const void *)args->target;
    const double *weight = (const double *)(const void *)args->weight;
    args->loss[0] = args->loss[1] = 0;
    for (int64_t i = 0; i < args->rows * args->columns; i++) {
        const double factor = weight ? weight[i / args->columns] : 1;
        args->loss[0] += factor * (prediction[i] - target[i]) * (prediction[i] - target[i]);
        args->loss[1] += factor;
    }
    return HD_OK;
}

hd_status hdt_reference_mean_rows(hd_stream *stream, const hdi_mean_rows_args *args)
{
    (void)stream;
    const double *x = (const double *)(const void *)args->x;
    double *out = (double *)(void *)args->out;
    for (int64_t i = 0; i < args->sequences * args->columns; i++) {
        const int64_t s = i / args->columns, c = i % args->columns;
        const int64_t count = args->counts ? args->counts[s] : args->tokens;
        out[i] = 0;
        for (int64_t r = 0; r < count; r++)
            out[i] += x[(s * args->tokens + r) * args->columns + c] / (double)count;
    }
    return HD_OK;
}
