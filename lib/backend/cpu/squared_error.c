/* Weighted squared error and its gradient; sums in fp64, chunk by chunk of rows. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

/* Loss and weight of each chunk of rows. */
size_t hdi_cpu_squared_error_workspace(int64_t rows, int64_t columns)
{
    return (size_t)hdi_ceil_div(rows, hdi_cpu_chunk_rows(columns)) * 2 * sizeof(double);
}

/* Sum of (x - y)^2: eight sums in fp64. */
static double sum_of_differences(const float *x, const float *y, int64_t count)
{
    double lanes[HDI_LANES] = {0};
    int64_t i = 0;
    for (; i + HDI_LANES <= count; i += HDI_LANES)
        for (int l = 0; l < HDI_LANES; l++) {
            const double error = (double)(x[i + l] - y[i + l]);
            lanes[l] += error * error;
        }
    for (int l = 0; i < count; i++, l++) {
        const double error = (double)(x[i] - y[i]);
        lanes[l] += error * error;
    }
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
           ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

static void squared_error_rows(void *context, int64_t index, int lane)
{
    const hdi_squared_error_args *args = context;
    (void)lane;
    const int64_t columns = args->columns, chunk = hdi_cpu_chunk_rows(columns);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->rows);
    double loss = 0, weights = 0;
    for (int64_t r = index * chunk; r < end; r++) {
        const float *prediction = (const float *)args->prediction + r * columns;
        const float *target = args->target + r * columns;
        const float weight = args->weight ? args->weight[r] : 1.0f;
        if (args->loss) {
            loss += (double)weight * sum_of_differences(prediction, target, columns);
            weights += (double)weight * (double)columns;
        }
        if (!args->gradient) continue;
        const float factor = 2.0f * weight * (args->scale ? *args->scale : 1.0f);
        float *gradient = (float *)args->gradient + r * columns;
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            gradient[c] = factor * (prediction[c] - target[c]);
    }
    if (!args->loss) return;
    double *part = (double *)args->workspace + 2 * index;
    part[0] = loss;
    part[1] = weights;
}

hd_status hdi_cpu_squared_error(hd_stream *stream, const hdi_squared_error_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("squared_error", args->dtype));
    hdi_squared_error_args work = *args;
    const int64_t chunks = hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->columns));
    hdi_cpu_parallel(chunks, squared_error_rows, &work);
    if (!args->loss) return HD_OK;
    const double *parts = args->workspace;
    args->loss[0] = args->loss[1] = 0;
    for (int64_t i = 0; i < chunks; i++) {
        args->loss[0] += parts[2 * i];
        args->loss[1] += parts[2 * i + 1];
    }
    return HD_OK;
}
