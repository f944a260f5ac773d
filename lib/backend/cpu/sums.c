/* Sums: columns of a matrix, squares by block, losses. Each has one order, whatever the threads. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "backend/cpu/widen.h"
#include "core/error.h"

enum { COLUMNS = 64, ROWS = 32 };

size_t hdi_cpu_column_sum_workspace(int64_t rows, int64_t columns)
{
    (void)rows;
    (void)columns;
    return 0;
}

/* One strip of columns; sums of 32 rows are summed, which keeps the error of tall sums small. */
static void sum_strip(void *context, int64_t index, int lane)
{
    const hdi_column_sum_args *args = context;
    (void)lane;
    const int64_t first = index * COLUMNS;
    const int64_t columns = hdi_cpu_min(COLUMNS, args->columns - first);
    const float *x = (const float *)args->x + first;
    float *out = (float *)args->out + first;
    float total[COLUMNS] = {0};
    for (int64_t block = 0; block < args->rows; block += ROWS) {
        const int64_t end = hdi_cpu_min(block + ROWS, args->rows);
        float part[COLUMNS] = {0};
        for (int64_t r = block; r < end; r++) {
            const float *row = x + r * args->x_stride;
            if (columns == COLUMNS) {
                for (int c = 0; c < COLUMNS; c++)
                    part[c] += row[c];
            } else {
                for (int64_t c = 0; c < columns; c++)
                    part[c] += row[c];
            }
        }
        for (int c = 0; c < COLUMNS; c++)
            total[c] += part[c];
    }
    for (int64_t c = 0; c < columns; c++)
        out[c] = args->accumulate ? out[c] + total[c] : total[c];
}

hd_status hdi_cpu_column_sum(hd_stream *stream, const hdi_column_sum_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("column_sum", args->dtype));
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("column_sum", args->out_dtype));
    hdi_column_sum_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->columns, COLUMNS), sum_strip, &work);
    return HD_OK;
}

typedef struct squares_work {
    hd_dtype dtype;
    const char *x;
    int64_t elements;
    double *out;
} squares_work;

static void sum_squares_of_block(void *context, int64_t index, int lane)
{
    enum { PART = 1024 }; /* summed in fp32, the parts in fp64 */
    const squares_work *work = context;
    (void)lane;
    const int64_t end = hdi_cpu_min((index + 1) * HDI_BLOCK_ELEMENTS, work->elements);
    double sum = 0;
    float wide[PART];
    for (int64_t i = index * HDI_BLOCK_ELEMENTS; i < end; i += PART) {
        const int64_t count = hdi_cpu_min(PART, end - i);
        hdi_cpu_widen(work->dtype, work->x + (size_t)i * hd_dtype_bytes(work->dtype), count, wide);
        sum += (double)hdi_sum_of_squares(wide, 0.0f, count);
    }
    work->out[index] = sum;
}

hd_status hdi_cpu_sum_of_squares(hd_stream *stream, hd_dtype dtype, const void *x, int64_t elements,
                                 double *out)
{
    (void)stream;
    squares_work work = {dtype, x, elements, out};
    hdi_cpu_parallel(hdi_ceil_div(elements, HDI_BLOCK_ELEMENTS), sum_squares_of_block, &work);
    return HD_OK;
}

hd_status hdi_cpu_loss_sum(hd_stream *stream, const float *loss, const int32_t *targets,
                           int64_t rows, double out[2])
{
    (void)stream;
    double sum = 0, count = 0;
    for (int64_t r = 0; r < rows; r++) {
        sum += (double)loss[r];
        count += targets[r] >= 0;
    }
    out[0] = sum;
    out[1] = count;
    return HD_OK;
}
