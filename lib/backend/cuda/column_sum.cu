/* Sums over the rows of a matrix in two stages: strips of rows into the workspace, then the strips'
 * sums. The cut depends on the shape alone. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kWarps = 8;          /* of a block of the first stage: rows at a time */
constexpr int kAcross = 256;       /* columns of a block for 16-bit types */
constexpr int kBlocks = 1024;      /* about as many as all devices can use */
constexpr int kShortestStrip = 64; /* rows */
constexpr int kFewRows = 1024;     /* that one stage sums */
constexpr int kSide = 32;          /* of the square block of the last stage */

int64_t strip_count(int64_t rows, int64_t columns)
{
    if (rows <= kFewRows) return 0;
    const int64_t wanted = hdi_ceil_div(kBlocks, hdi_ceil_div(columns, kAcross));
    const int64_t most = hdi_ceil_div(rows, kShortestStrip);
    return wanted < most ? wanted : most;
}

/* A lane owns 16 bytes of columns, a warp every eighth row of the block's strip. */
template <typename T>
__global__ void __launch_bounds__(kWarp *kWarps, 4)
    sum_strip(const T *x, int64_t stride, int64_t rows, int64_t columns, int64_t strip_rows,
              bool aligned, float *out)
{
    constexpr int L = kLanes<T>;
    __shared__ float parts[kWarps][kWarp * L];
    const int64_t column = ((int64_t)blockIdx.x * kWarp + threadIdx.x) * L;
    const int64_t left = columns - column;
    const int64_t begin = (int64_t)blockIdx.y * strip_rows;
    const int64_t end = begin + strip_rows < rows ? begin + strip_rows : rows;
    float sum[L] = {};
    const auto part = [&](int64_t row) { return x + row * stride + column; };
    if (aligned && left >= L)
        add_parts<T, true>(begin + threadIdx.y, end, kWarps, left, part, sum);
    else if (left > 0)
        add_parts<T, false>(begin + threadIdx.y, end, kWarps, left, part, sum);
#pragma unroll
    for (int i = 0; i < L; i++)
        parts[threadIdx.y][threadIdx.x * L + i] = sum[i];
    __syncthreads();
    for (int c = (int)(threadIdx.y * kWarp + threadIdx.x); c < kWarp * L; c += kWarps * kWarp) {
        const int64_t target = (int64_t)blockIdx.x * kWarp * L + c;
        if (target >= columns) break;
        float total = 0;
        for (int warp = 0; warp < kWarps; warp++)
            total += parts[warp][c];
        out[blockIdx.y * columns + target] = total;
    }
}

template <typename Out> __device__ void put(void *out, int64_t column, float value, bool accumulate)
{
    Out *target = (Out *)out + column;
    *target = from_float<Out>(accumulate ? to_float(*target) + value : value);
}

/* Column threadIdx.x of the block, rows threadIdx.y, threadIdx.y + 32, ...; then those 32 sums. */
template <typename T>
__global__ void sum_rows(const T *x, int64_t stride, int64_t rows, int64_t columns, hd_dtype dtype,
                         void *out, bool accumulate)
{
    __shared__ float parts[kSide][kSide + 1];
    const int64_t column = (int64_t)blockIdx.x * kSide + threadIdx.x;
    float sum = 0;
    if (column < columns) {
#pragma unroll 4
        for (int64_t row = threadIdx.y; row < rows; row += kSide)
            sum += to_float(x[row * stride + column]);
    }
    parts[threadIdx.x][threadIdx.y] = sum;
    __syncthreads();
    const float total = warp_sum(parts[threadIdx.y][threadIdx.x]); /* of column threadIdx.y */
    const int64_t target = (int64_t)blockIdx.x * kSide + threadIdx.y;
    if (threadIdx.x != 0 || target >= columns) return;
    switch (dtype) {
    case HD_DTYPE_F16: put<hdi_half>(out, target, total, accumulate); break;
    case HD_DTYPE_BF16: put<hdi_bfloat>(out, target, total, accumulate); break;
    default: put<float>(out, target, total, accumulate);
    }
}

template <typename T>
hd_status sum_at_once(hd_stream *stream, const hdi_column_sum_args *args, const T *x,
                      int64_t stride, int64_t rows)
{
    sum_rows<T><<<block_count(args->columns, kSide), dim3(kSide, kSide), 0, stream->handle>>>(
        x, stride, rows, args->columns, args->out_dtype, args->out, args->accumulate);
    return launched("column_sum");
}

} // namespace

extern "C" size_t hdi_cuda_column_sum_workspace(int64_t rows, int64_t columns)
{
    return (size_t)(strip_count(rows, columns) * columns) * sizeof(float);
}

extern "C" hd_status hdi_cuda_column_sum(hd_stream *stream, const hdi_column_sum_args *args)
{
    if (args->columns <= 0) return HD_OK;
    HD_RETURN_IF_ERROR(with_type(args->out_dtype, "column_sum into", [](auto) { return HD_OK; }));
    return with_type(args->dtype, "column_sum", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const T *x = (const T *)args->x;
        const int64_t strips = strip_count(args->rows, args->columns);
        if (strips == 0) return sum_at_once(stream, args, x, args->x_stride, args->rows);
        const int64_t strip_rows = hdi_ceil_div(args->rows, strips);
        const bool aligned = is_aligned(x) && args->x_stride % kLanes<T> == 0;
        float *sums = (float *)args->workspace;
        const dim3 grid(block_count(args->columns, kWarp * kLanes<T>), (unsigned)strips);
        sum_strip<T><<<grid, dim3(kWarp, kWarps), 0, stream->handle>>>(
            x, args->x_stride, args->rows, args->columns, strip_rows, aligned, sums);
        HD_RETURN_IF_ERROR(launched("column_sum"));
        return sum_at_once(stream, args, (const float *)sums, args->columns, strips);
    });
}
