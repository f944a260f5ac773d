/* Rows added to rows over and over, and blocks of rows copied. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

#include <string.h>

static void add_rows_chunk(void *context, int64_t index, int lane)
{
    const hdi_add_rows_args *args = context;
    (void)lane;
    const int64_t columns = args->columns, chunk = hdi_cpu_chunk_rows(columns);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->rows);
    for (int64_t r = index * chunk; r < end; r++) {
        const float *x = (const float *)args->x + r * columns;
        const float *table = (const float *)args->table + r % args->period * columns;
        float *out = (float *)args->out + r * columns;
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            out[c] = x[c] + table[c];
    }
}

hd_status hdi_cpu_add_rows(hd_stream *stream, const hdi_add_rows_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("add_rows", args->dtype));
    hdi_add_rows_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->columns)), add_rows_chunk,
                     &work);
    return HD_OK;
}

/* Columns of a table row that one item sums. */
enum { COLUMNS = 256 };

static void add_rows_gradient_strip(void *context, int64_t index, int lane)
{
    const hdi_add_rows_gradient_args *args = context;
    (void)lane;
    const int64_t strips = hdi_ceil_div(args->columns, COLUMNS), row = index / strips;
    const int64_t first = index % strips * COLUMNS;
    const int64_t columns = hdi_cpu_min(COLUMNS, args->columns - first);
    float sum[COLUMNS] = {0};
    for (int64_t r = row; r < args->rows; r += args->period) {
        const float *gradient = (const float *)args->gradient + r * args->columns + first;
        for (int64_t c = 0; c < columns; c++)
            sum[c] += gradient[c];
    }
    float *out = (float *)args->table_gradient + row * args->columns + first;
    for (int64_t c = 0; c < columns; c++)
        out[c] = args->accumulate ? out[c] + sum[c] : sum[c];
}

hd_status hdi_cpu_add_rows_gradient(hd_stream *stream, const hdi_add_rows_gradient_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("add_rows gradient", args->dtype));
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("add_rows gradient", args->out_dtype));
    hdi_add_rows_gradient_args work = *args;
    hdi_cpu_parallel(args->period * hdi_ceil_div(args->columns, COLUMNS), add_rows_gradient_strip,
                     &work);
    return HD_OK;
}

/* Bytes that one item copies. */
enum { COPY_BYTES = 1 << 17 };

static void copy_piece(void *context, int64_t index, int lane)
{
    const hdi_copy_blocks_args *args = context;
    (void)lane;
    const size_t pieces = (args->block_bytes + COPY_BYTES - 1) / COPY_BYTES;
    const size_t block = (size_t)index / pieces, first = (size_t)index % pieces * COPY_BYTES;
    const size_t left = args->block_bytes - first;
    memcpy((char *)args->out + block * args->out_stride + first,
           (const char *)args->x + block * args->x_stride + first,
           left < COPY_BYTES ? left : COPY_BYTES);
}

hd_status hdi_cpu_copy_blocks(hd_stream *stream, const hdi_copy_blocks_args *args)
{
    (void)stream;
    hdi_copy_blocks_args work = *args;
    hdi_cpu_parallel(args->blocks * (int64_t)((args->block_bytes + COPY_BYTES - 1) / COPY_BYTES),
                     copy_piece, &work);
    return HD_OK;
}

typedef struct grid_copy {
    const hdi_copy_grid_args *args;
    int64_t blocks, chunk; /* of an item */
} grid_copy;

static void copy_grid_chunk(void *context, int64_t index, int lane)
{
    const grid_copy *copy = context;
    const hdi_copy_grid_args *args = copy->args;
    (void)lane;
    const int64_t end = hdi_cpu_min((index + 1) * copy->chunk, copy->blocks);
    for (int64_t b = index * copy->chunk; b < end; b++) {
        const char *x = args->x;
        char *out = args->out;
        int64_t left = b;
        for (int d = HDI_GRID_DIMS - 1; d >= 0; d--) {
            const size_t at = (size_t)(left % args->count[d]);
            left /= args->count[d];
            x += at * args->x_stride[d];
            out += at * args->out_stride[d];
        }
        memcpy(out, x, args->block_bytes);
    }
}

hd_status hdi_cpu_copy_grid(hd_stream *stream, const hdi_copy_grid_args *args)
{
    (void)stream;
    grid_copy copy = {.args = args, .blocks = 1, .chunk = 1};
    for (int d = 0; d < HDI_GRID_DIMS; d++)
        copy.blocks *= args->count[d];
    if (args->block_bytes < COPY_BYTES)
        copy.chunk = 1 + (int64_t)(COPY_BYTES / (args->block_bytes + 1));
    hdi_cpu_parallel(hdi_ceil_div(copy.blocks, copy.chunk), copy_grid_chunk, &copy);
    return HD_OK;
}
