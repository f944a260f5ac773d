/* Sinusoids of numbers, a table added to runs of rows and its gradient, blocks copied. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kThreads = 256;

template <typename T> __global__ void sinusoid_element(hdi_sinusoid_args a)
{
    const int64_t half = a.columns / 2, index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    const int64_t row = index / half, i = index - row * half;
    if (row >= a.rows) return;
    const double frequency = pow(a.period, -2.0 * (double)i / (double)a.columns);
    const double angle = a.scale * (double)a.x[row] * frequency;
    T *out = (T *)a.out + row * a.columns + i;
    out[0] = from_float<T>((float)cos(angle));
    out[half] = from_float<T>((float)sin(angle));
}

/* A thread adds 16 bytes of a row, or what there is of them. */
template <typename T> __global__ void add_row_part(hdi_add_rows_args a, int64_t parts, bool aligned)
{
    constexpr int L = kLanes<T>;
    const int64_t index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    const int64_t row = index / parts, column = (index - row * parts) * L;
    if (row >= a.rows) return;
    const int64_t left = a.columns - column;
    float x[L], table[L];
    stream_part((const T *)a.x + row * a.columns + column, left, aligned, x);
    load_part((const T *)a.table + row % a.period * a.columns + column, left, aligned, table);
#pragma unroll
    for (int i = 0; i < L; i++)
        x[i] += table[i];
    store_part((T *)a.out + row * a.columns + column, left, aligned, x);
}

/* A thread sums 16 bytes of columns of a table row's rows, in their order. */
template <typename T, typename Out>
__global__ void sum_row_part(hdi_add_rows_gradient_args a, int64_t parts, bool aligned)
{
    constexpr int L = kLanes<T>;
    const int64_t index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    const int64_t row = index / parts, column = (index - row * parts) * L;
    if (row >= a.period) return;
    const int64_t left = a.columns - column;
    float sum[L] = {};
    const auto part = [&](int64_t r) { return (const T *)a.gradient + r * a.columns + column; };
    if (aligned && left >= L)
        add_parts<T, true>(row, a.rows, a.period, left, part, sum);
    else
        add_parts<T, false>(row, a.rows, a.period, left, part, sum);
    Out *out = (Out *)a.table_gradient + row * a.columns + column;
#pragma unroll
    for (int i = 0; i < L; i++)
        if (i < left) out[i] = from_float<Out>(a.accumulate ? to_float(out[i]) + sum[i] : sum[i]);
}

/* Units of a size that divides blocks, strides and addresses. */
template <typename Unit, typename Index> __global__ void copy_unit(hdi_copy_blocks_args a)
{
    const Index per_block = (Index)(a.block_bytes / sizeof(Unit));
    const Index index = (Index)blockIdx.x * kThreads + threadIdx.x, block = index / per_block;
    if (block >= (Index)a.blocks) return;
    const size_t at = (size_t)(index - block * per_block) * sizeof(Unit);
    const char *x = (const char *)a.x + (size_t)block * a.x_stride + at;
    char *out = (char *)a.out + (size_t)block * a.out_stride + at;
    *reinterpret_cast<Unit *>(out) = __ldcs(reinterpret_cast<const Unit *>(x));
}

template <typename Unit> hd_status copy_units(hd_stream *stream, const hdi_copy_blocks_args *args)
{
    const int64_t units = args->blocks * (int64_t)(args->block_bytes / sizeof(Unit));
    if (units < INT32_MAX)
        copy_unit<Unit, uint32_t>
            <<<block_count(units, kThreads), kThreads, 0, stream->handle>>>(*args);
    else
        copy_unit<Unit, uint64_t>
            <<<block_count(units, kThreads), kThreads, 0, stream->handle>>>(*args);
    return launched("copy_blocks");
}

/* The same on a grid of blocks. */
template <typename Unit, typename Index> __global__ void copy_grid_unit(hdi_copy_grid_args a)
{
    const Index per_block = (Index)(a.block_bytes / sizeof(Unit));
    const Index index = (Index)blockIdx.x * kThreads + threadIdx.x;
    Index left = index / per_block;
    size_t x_at = (size_t)(index - left * per_block) * sizeof(Unit), out_at = x_at;
#pragma unroll
    for (int d = HDI_GRID_DIMS - 1; d >= 0; d--) {
        const Index count = (Index)a.count[d], at = left % count;
        left /= count;
        x_at += (size_t)at * a.x_stride[d];
        out_at += (size_t)at * a.out_stride[d];
    }
    if (left == 0)
        *reinterpret_cast<Unit *>((char *)a.out + out_at) =
            __ldcs(reinterpret_cast<const Unit *>((const char *)a.x + x_at));
}

template <typename Unit>
hd_status copy_grid_units(hd_stream *stream, const hdi_copy_grid_args *args, int64_t blocks)
{
    const int64_t units = blocks * (int64_t)(args->block_bytes / sizeof(Unit));
    if (units < INT32_MAX)
        copy_grid_unit<Unit, uint32_t>
            <<<block_count(units, kThreads), kThreads, 0, stream->handle>>>(*args);
    else
        copy_grid_unit<Unit, uint64_t>
            <<<block_count(units, kThreads), kThreads, 0, stream->handle>>>(*args);
    return launched("copy_grid");
}

} // namespace

extern "C" hd_status hdi_cuda_sinusoid(hd_stream *stream, const hdi_sinusoid_args *args)
{
    const int64_t elements = args->rows * (args->columns / 2);
    if (elements <= 0) return HD_OK;
    return with_type(args->dtype, "sinusoid", [&](auto tag) {
        using T = typename decltype(tag)::type;
        sinusoid_element<T>
            <<<block_count(elements, kThreads), kThreads, 0, stream->handle>>>(*args);
        return launched("sinusoid");
    });
}

extern "C" hd_status hdi_cuda_add_rows(hd_stream *stream, const hdi_add_rows_args *args)
{
    if (args->rows <= 0 || args->columns <= 0) return HD_OK;
    return with_type(args->dtype, "add_rows", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const int64_t parts = hdi_ceil_div(args->columns, kLanes<T>);
        const bool aligned =
            args->columns % kLanes<T> == 0 && are_aligned(args->x, args->table, args->out);
        add_row_part<T><<<block_count(args->rows * parts, kThreads), kThreads, 0, stream->handle>>>(
            *args, parts, aligned);
        return launched("add_rows");
    });
}

extern "C" hd_status hdi_cuda_add_rows_gradient(hd_stream *stream,
                                                const hdi_add_rows_gradient_args *args)
{
    if (args->period <= 0 || args->columns <= 0) return HD_OK;
    return with_type(args->dtype, "add_rows gradient", [&](auto tag) {
        using T = typename decltype(tag)::type;
        return with_type(args->out_dtype, "add_rows gradient into", [&](auto out_tag) {
            using Out = typename decltype(out_tag)::type;
            const int64_t parts = hdi_ceil_div(args->columns, kLanes<T>);
            const bool aligned = args->columns % kLanes<T> == 0 && is_aligned(args->gradient);
            sum_row_part<T, Out>
                <<<block_count(args->period * parts, kThreads), kThreads, 0, stream->handle>>>(
                    *args, parts, aligned);
            return launched("add_rows gradient");
        });
    });
}

extern "C" hd_status hdi_cuda_copy_blocks(hd_stream *stream, const hdi_copy_blocks_args *args)
{
    if (args->blocks <= 0 || args->block_bytes == 0) return HD_OK;
    if (args->blocks == 1) return hdi_cuda_copy(stream, args->out, args->x, args->block_bytes);
    const uintptr_t all = (uintptr_t)args->x | (uintptr_t)args->out | args->block_bytes |
                          args->x_stride | args->out_stride;
    if (all % 16 == 0) return copy_units<uint4>(stream, args);
    if (all % 4 == 0) return copy_units<uint32_t>(stream, args);
    return copy_units<unsigned char>(stream, args);
}

extern "C" hd_status hdi_cuda_copy_grid(hd_stream *stream, const hdi_copy_grid_args *args)
{
    uintptr_t all = (uintptr_t)args->x | (uintptr_t)args->out | args->block_bytes;
    int64_t blocks = 1;
    for (int d = 0; d < HDI_GRID_DIMS; d++) {
        blocks *= args->count[d];
        if (args->count[d] > 1) all |= args->x_stride[d] | args->out_stride[d];
    }
    if (blocks <= 0 || args->block_bytes == 0) return HD_OK;
    if (all % 16 == 0) return copy_grid_units<uint4>(stream, args, blocks);
    if (all % 4 == 0) return copy_grid_units<uint32_t>(stream, args, blocks);
    return copy_grid_units<unsigned char>(stream, args, blocks);
}
