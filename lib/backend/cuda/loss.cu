/* Cross-entropy of rows of logits with its gradient, and the sum of the losses. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kWidest = 1024;

/* The block's threads go over a row with a running maximum and a sum of exponentials relative to it. */
template <typename T>
__device__ void row_statistics(const T *logits, int64_t classes, bool aligned, float *row_max,
                               float *row_sum)
{
    constexpr int L = kLanes<T>;
    const int64_t step = (int64_t)blockDim.x * L;
    float max = -FLT_MAX, sum = 0;
    for (int64_t c = threadIdx.x * L; c < classes; c += step) {
        float x[L];
        load_part(logits + c, classes - c, aligned, x);
        float largest = max;
#pragma unroll
        for (int i = 0; i < L; i++)
            if (c + i < classes) largest = fmaxf(largest, x[i]);
        sum *= exponential<T>(max - largest);
        max = largest;
#pragma unroll
        for (int i = 0; i < L; i++)
            if (c + i < classes) sum += exponential<T>(x[i] - max);
    }
    *row_max = block_max(max);
    *row_sum = block_sum(sum * exponential<T>(max - *row_max));
}

/* One block per row of a part of the classes. */
template <typename T>
__global__ void __launch_bounds__(kWidest)
    cross_entropy_part_row(hdi_cross_entropy_args a, bool aligned, hdi_cuda_fault *fault)
{
    const int64_t row = blockIdx.x;
    const T *logits = (const T *)a.logits + row * a.logits_stride;
    float row_max, row_sum;
    row_statistics(logits, a.classes, aligned, &row_max, &row_sum);
    if (threadIdx.x != 0) return;
    const int32_t target = a.targets[row];
    const int64_t own = target - a.first;
    if (target >= a.limit) report_fault(fault, HDI_FAULT_TARGET, target, row, a.limit);
    float *out = a.statistics + 3 * row;
    out[0] = row_max;
    out[1] = row_sum;
    out[2] = target >= 0 && own >= 0 && own < a.classes ? to_float(logits[own]) : 0.0f;
}

/* All parts' statistics of a row, in their order. */
__device__ inline void join_parts(const hdi_cross_entropy_args &a, int64_t row, float *max,
                                  float *sum, float *right)
{
    *max = -FLT_MAX;
    *sum = *right = 0;
    for (int p = 0; p < a.parts; p++)
        *max = fmaxf(*max, a.statistics[3 * (p * a.rows + row)]);
    for (int p = 0; p < a.parts; p++) {
        const float *part = a.statistics + 3 * (p * a.rows + row);
        *sum += part[1] * expf(part[0] - *max);
        *right += part[2];
    }
}

/* One block per row. The first pass finds the row's statistics, unless they are there; the second writes
 * the gradient, which may be the memory of the logits: what it reads again comes from the cache. */
template <typename T>
__global__ void __launch_bounds__(kWidest)
    cross_entropy_row(hdi_cross_entropy_args a, bool aligned, hdi_cuda_fault *fault)
{
    constexpr int L = kLanes<T>;
    const int64_t row = blockIdx.x, step = (int64_t)blockDim.x * L;
    const T *logits = (const T *)a.logits + row * a.logits_stride;
    T *gradient = a.gradient ? (T *)a.gradient + row * a.logits_stride : NULL;
    int32_t target = a.targets[row];
    const int64_t limit = a.limit ? a.limit : a.classes;
    if (target >= limit) {
        if (threadIdx.x == 0) report_fault(fault, HDI_FAULT_TARGET, target, row, limit);
        target = -1;
    }
    if (target < 0) {
        const float zeros[L] = {};
        if (threadIdx.x == 0) a.loss[row] = 0;
        if (!gradient) return;
        for (int64_t c = threadIdx.x * L; c < a.classes; c += step)
            store_part(gradient + c, a.classes - c, aligned, zeros);
        return;
    }

    float right, row_max, row_sum;
    if (a.limit) {
        join_parts(a, row, &row_max, &row_sum, &right);
    } else {
        right = to_float(logits[target]); /* before the gradient overwrites it */
        row_statistics(logits, a.classes, aligned, &row_max, &row_sum);
    }
    if (threadIdx.x == 0) a.loss[row] = logf(row_sum) + (row_max - right);
    if (!gradient) return;

    const float scale = a.scale ? *a.scale : 1.0f, factor = scale / row_sum;
    for (int64_t c = threadIdx.x * L; c < a.classes; c += step) {
        float x[L];
        load_part(logits + c, a.classes - c, aligned, x);
#pragma unroll
        for (int i = 0; i < L; i++) {
            x[i] = exponential<T>(x[i] - row_max) * factor;
            if (c + i == target - a.first) x[i] -= scale;
        }
        store_part(gradient + c, a.classes - c, aligned, x);
    }
}

template <typename T> unsigned row_threads(int64_t classes)
{
    const int64_t wanted = hdi_round_up(hdi_ceil_div(classes, kLanes<T>), kWarp);
    return (unsigned)(wanted < kWidest ? wanted : kWidest);
}

/* One block: each thread sums every 1024th row, then the threads' sums as a tree. */
__global__ void sum_losses(const float *loss, const int32_t *targets, int64_t rows, double *out)
{
    double sum = 0, count = 0;
    for (int64_t r = threadIdx.x; r < rows; r += kWidest) {
        sum += (double)loss[r];
        count += targets[r] >= 0 ? 1.0 : 0.0;
    }
    sum = block_sum(sum);
    count = block_sum(count);
    if (threadIdx.x != 0) return;
    out[0] = sum;
    out[1] = count;
}

} // namespace

extern "C" hd_status hdi_cuda_cross_entropy_part(hd_stream *stream,
                                                 const hdi_cross_entropy_args *args)
{
    if (args->rows <= 0) return HD_OK;
    return with_type(args->dtype, "cross_entropy_part", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned = are_aligned(args->logits) && args->logits_stride % kLanes<T> == 0;
        cross_entropy_part_row<T>
            <<<block_count(args->rows, 1), row_threads<T>(args->classes), 0, stream->handle>>>(
                *args, aligned, stream->device->fault);
        return launched("cross_entropy_part");
    });
}

extern "C" hd_status hdi_cuda_cross_entropy(hd_stream *stream, const hdi_cross_entropy_args *args)
{
    if (args->rows <= 0) return HD_OK;
    return with_type(args->dtype, "cross_entropy", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned =
            are_aligned(args->logits, args->gradient) && args->logits_stride % kLanes<T> == 0;
        const unsigned threads = row_threads<T>(args->classes);
        cross_entropy_row<T><<<block_count(args->rows, 1), threads, 0, stream->handle>>>(
            *args, aligned, stream->device->fault);
        return launched("cross_entropy");
    });
}

extern "C" hd_status hdi_cuda_loss_sum(hd_stream *stream, const float *loss, const int32_t *targets,
                                       int64_t rows, double out[2])
{
    sum_losses<<<1, kWidest, 0, stream->handle>>>(loss, targets, rows, out);
    return launched("loss_sum");
}
