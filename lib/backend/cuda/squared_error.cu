/* Squared error and its gradient in one pass: blocks sum strips of rows in fp64, then one block sums
 * theirs. The cut depends on the shape alone. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kThreads = 256;
constexpr int kMostStrips = 1024;

int64_t strip_count(int64_t rows)
{
    return rows < kMostStrips ? rows : kMostStrips;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    compare_strip(hdi_squared_error_args a, int64_t strip_rows, bool aligned, double *sums)
{
    constexpr int L = kLanes<T>;
    const int64_t begin = blockIdx.x * strip_rows;
    const int64_t end = begin + strip_rows < a.rows ? begin + strip_rows : a.rows;
    const int64_t parts = (a.columns + L - 1) / L;
    const float scale = a.scale ? *a.scale : 1.0f;
    double loss = 0, weights = 0;
    for (int64_t index = threadIdx.x; index < (end - begin) * parts; index += kThreads) {
        const int64_t row = begin + index / parts, column = index % parts * L;
        const int64_t left = a.columns - column, offset = row * a.columns + column;
        const float weight = a.weight ? a.weight[row] : 1.0f, factor = 2.0f * weight * scale;
        float x[L];
        stream_part((const T *)a.prediction + offset, left, aligned, x);
#pragma unroll
        for (int first = 0; first < L; first += 4) {
            float target[4];
            stream_part(a.target + offset + first, left - first, aligned, target);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float error = first + i < left ? x[first + i] - target[i] : 0.0f;
                loss += (double)weight * ((double)error * (double)error);
                x[first + i] = factor * error;
            }
        }
        if (column == 0) weights += (double)weight * (double)a.columns;
        if (a.gradient) store_part((T *)a.gradient + offset, left, aligned, x);
    }
    if (!a.loss) return;
    loss = block_sum(loss);
    weights = block_sum(weights);
    if (threadIdx.x != 0) return;
    sums[2 * blockIdx.x] = loss;
    sums[2 * blockIdx.x + 1] = weights;
}

__global__ void add_sums(const double *sums, int64_t strips, double *out)
{
    double loss = 0, weights = 0;
    for (int64_t s = threadIdx.x; s < strips; s += kThreads) {
        loss += sums[2 * s];
        weights += sums[2 * s + 1];
    }
    loss = block_sum(loss);
    weights = block_sum(weights);
    if (threadIdx.x != 0) return;
    out[0] = loss;
    out[1] = weights;
}

} // namespace

extern "C" size_t hdi_cuda_squared_error_workspace(int64_t rows, int64_t columns)
{
    (void)columns;
    return (size_t)(2 * strip_count(rows)) * sizeof(double);
}

extern "C" hd_status hdi_cuda_squared_error(hd_stream *stream, const hdi_squared_error_args *args)
{
    if (args->rows <= 0 || args->columns <= 0) return HD_OK;
    const int64_t strips = strip_count(args->rows), strip_rows = hdi_ceil_div(args->rows, strips);
    double *sums = (double *)args->workspace;
    HD_RETURN_IF_ERROR(with_type(args->dtype, "squared_error", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned = args->columns % kLanes<T> == 0 &&
                             are_aligned(args->prediction, args->target, args->gradient);
        compare_strip<T>
            <<<(unsigned)strips, kThreads, 0, stream->handle>>>(*args, strip_rows, aligned, sums);
        return launched("squared_error");
    }));
    if (!args->loss) return HD_OK;
    add_sums<<<1, kThreads, 0, stream->handle>>>(sums, strips, args->loss);
    return launched("squared_error: sum");
}
