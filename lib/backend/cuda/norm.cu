/* Layer norm and RMS norm, forward and backward. A row is held in registers by one warp, or by one
 * block if it is wide, so that each tensor is read once. Sums are fp32 in an order that the shape
 * fixes. */
#include "backend/cuda/row.cuh"

namespace
{

/* A thread holds kVectors vectors of 16 bytes of a row. */
constexpr int kWarpRows = 4;      /* warps of a block, where a row is a warp's */
constexpr int kWidestBlock = 512; /* threads of a row that is a block's */
constexpr int kMostVectors = 4;
constexpr int kWarpColumns = 8 * kMostVectors * kWarp; /* most columns of a row that is a warp's */

template <bool kWarpRow> __device__ inline float row_sum(float x)
{
    return kWarpRow ? warp_sum(x) : block_sum(x);
}

template <typename T, int kVectors, bool kWarpRow, bool kAligned>
__global__ void __launch_bounds__(kWarpRow ? kWarp *kWarpRows : kWidestBlock)
    norm_row(hdi_norm_args a)
{
    constexpr int L = kLanes<T>;
    const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= a.rows) return; /* a whole warp or block leaves: sums stay complete */
    const bool centred = a.kind == HDI_LAYER_NORM;
    uint4 x_bits[kVectors], residual_bits[kVectors];
    stream_row<T, kVectors, kAligned>(a.x, row * a.columns, a.columns, x_bits);
    if (a.residual)
        stream_row<T, kVectors, kAligned>(a.residual, row * a.columns, a.columns, residual_bits);
    float s[kVectors][L];
    float total = 0;
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
        const int64_t column = column_of<T>(v), offset = row * a.columns + column;
        const int64_t left = a.columns - column;
        unpack<T>(x_bits[v], s[v]);
        if (a.residual) {
            float residual[L];
            unpack<T>(residual_bits[v], residual);
#pragma unroll
            for (int i = 0; i < L; i++)
                s[v][i] = rounded<T>(s[v][i] + residual[i]); /* as the backward will read it */
        }
        if (a.sum && left > 0) store_part((T *)a.sum + offset, kAligned ? L : left, kAligned, s[v]);
#pragma unroll
        for (int i = 0; i < L; i++)
            total += s[v][i];
    }
    const float mean = centred ? row_sum<kWarpRow>(total) / (float)a.columns : 0.0f;
    float squares = 0;
#pragma unroll
    for (int v = 0; v < kVectors; v++)
#pragma unroll
        for (int i = 0; i < L; i++) {
            const float x = s[v][i] - mean;
            squares += column_of<T>(v) + i < a.columns ? x * x : 0.0f;
        }
    const float variance = row_sum<kWarpRow>(squares) / (float)a.columns;
    const float rstd = 1.0f / sqrtf(variance + a.epsilon);
    if (threadIdx.x == 0) {
        if (a.mean && centred) a.mean[row] = mean;
        if (a.rstd) a.rstd[row] = rstd;
    }
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
        const int64_t column = column_of<T>(v);
        if (column >= a.columns) continue;
        const int64_t left = kAligned ? L : a.columns - column;
        float weight[L], bias[L];
        if (a.weight) load_part((const T *)a.weight + column, left, kAligned, weight);
        if (a.bias) load_part((const T *)a.bias + column, left, kAligned, bias);
#pragma unroll
        for (int i = 0; i < L; i++) {
            const float x = (s[v][i] - mean) * rstd;
            s[v][i] = (a.weight ? x * weight[i] : x) + (a.bias ? bias[i] : 0.0f);
        }
        store_part((T *)a.out + row * a.columns + column, left, kAligned, s[v]);
    }
}

/* The block's partial sums, where each thread has its own columns. */
template <typename T, int kVectors>
__device__ void store_partials(const float (&weight)[kVectors][kLanes<T>],
                               const float (&bias)[kVectors][kLanes<T>], int64_t columns,
                               float *out)
{
#pragma unroll
    for (int v = 0; v < kVectors; v++)
#pragma unroll
        for (int i = 0; i < kLanes<T>; i++) {
            const int64_t column = column_of<T>(v) + i;
            if (column >= columns) continue;
            out[column] = weight[v][i];
            out[columns + column] = bias[v][i];
        }
}

/* The same where each warp has a sum of all columns: they add theirs in turn. */
template <typename T, int kVectors>
__device__ void join_partials(const float (&weight)[kVectors][kLanes<T>],
                              const float (&bias)[kVectors][kLanes<T>], int64_t columns, float *out)
{
    constexpr int L = kLanes<T>;
    __shared__ float sums[2 * kWarpColumns];
    for (unsigned warp = 0; warp < blockDim.y; warp++) {
        if (threadIdx.y == warp) {
#pragma unroll
            for (int v = 0; v < kVectors; v++)
#pragma unroll
                for (int i = 0; i < L; i++) {
                    const int column = (int)column_of<T>(v) + i;
                    const float before = warp ? sums[column] : 0.0f;
                    const float bias_before = warp ? sums[kWarpColumns + column] : 0.0f;
                    sums[column] = before + weight[v][i];
                    sums[kWarpColumns + column] = bias_before + bias[v][i];
                }
        }
        __syncthreads();
    }
    for (int64_t c = (int64_t)threadIdx.y * kWarp + threadIdx.x; c < columns;
         c += (int64_t)blockDim.y * kWarp) {
        out[c] = sums[c];
        out[columns + c] = sums[kWarpColumns + c];
    }
}

/* Block p does rows [p * chunk, (p + 1) * chunk). */
template <typename T, int kVectors, bool kWarpRow, bool kAligned>
__global__ void __launch_bounds__(kWarpRow ? kWarp *kWarpRows : kWidestBlock,
                                  kWarpRow ? (kVectors < 4 ? 4 : 2) : 1)
    norm_gradient_rows(hdi_norm_gradient_args a, int64_t chunk)
{
    constexpr int L = kLanes<T>;
    const bool centred = a.kind == HDI_LAYER_NORM;
    const int64_t begin = (int64_t)blockIdx.x * chunk;
    const int64_t end = begin + chunk < a.rows ? begin + chunk : a.rows;
    float weight_sum[kVectors][L] = {}, bias_sum[kVectors][L] = {};
    for (int64_t row = begin + threadIdx.y; row < end; row += blockDim.y) {
        uint4 g_bits[kVectors], x_bits[kVectors], carry_bits[kVectors];
        stream_row<T, kVectors, kAligned>(a.gradient, row * a.columns, a.columns, g_bits);
        stream_row<T, kVectors, kAligned>(a.x, row * a.columns, a.columns, x_bits);
        if (a.carry)
            stream_row<T, kVectors, kAligned>(a.carry, row * a.columns, a.columns, carry_bits);
        const float mean = centred ? a.mean[row] : 0.0f, rstd = a.rstd[row];
        float sum = 0, product = 0;
#pragma unroll
        for (int v = 0; v < kVectors; v++) {
            const int64_t column = column_of<T>(v);
            if (column >= a.columns) continue;
            const int64_t left = kAligned ? L : a.columns - column;
            float g[L], x[L], weight[L];
            unpack<T>(g_bits[v], g);
            unpack<T>(x_bits[v], x);
            if (a.weight) load_part((const T *)a.weight + column, left, kAligned, weight);
#pragma unroll
            for (int i = 0; i < L; i++) {
                const float normed = (x[i] - mean) * rstd;
                const float through = a.weight ? g[i] * weight[i] : g[i];
                weight_sum[v][i] += g[i] * normed;
                bias_sum[v][i] += g[i];
                sum += through;
                product += through * normed;
            }
            forget(g_bits[v]);
            forget(x_bits[v]);
        }
        const float center = centred ? row_sum<kWarpRow>(sum) / (float)a.columns : 0.0f;
        const float slope = row_sum<kWarpRow>(product) / (float)a.columns;
#pragma unroll
        for (int v = 0; v < kVectors; v++) {
            const int64_t column = column_of<T>(v), offset = row * a.columns + column;
            if (column >= a.columns) continue;
            const int64_t left = kAligned ? L : a.columns - column;
            float g[L], x[L], weight[L], carry[L];
            unpack<T>(g_bits[v], g);
            unpack<T>(x_bits[v], x);
            if (a.weight) load_part((const T *)a.weight + column, left, kAligned, weight);
            if (a.carry) unpack<T>(carry_bits[v], carry);
#pragma unroll
            for (int i = 0; i < L; i++) {
                const float normed = (x[i] - mean) * rstd;
                if (a.weight) g[i] *= weight[i];
                const float through = rstd * (g[i] - center - normed * slope);
                /* As an add of the two would see it: rounded, and not fused with the product. */
                g[i] = a.carry ? __fadd_rn(rounded<T>(through), carry[i]) : through;
            }
            store_part((T *)a.x_gradient + offset, left, kAligned, g);
        }
    }
    if (!a.partials) return;
    float *partials = a.partials + (int64_t)blockIdx.x * 2 * a.columns;
    if constexpr (kWarpRow)
        join_partials<T, kVectors>(weight_sum, bias_sum, a.columns, partials);
    else
        store_partials<T, kVectors>(weight_sum, bias_sum, a.columns, partials);
}

/* Threads of a row and vectors that each holds: a warp where that suffices, else a block. */
typedef struct row_split {
    unsigned threads;
    int vectors;
} row_split;

template <typename T> hd_status split_row(const char *what, int64_t columns, row_split *out)
{
    const int64_t vectors = hdi_ceil_div(columns, kLanes<T>);
    const int64_t pairs = hdi_round_up(hdi_ceil_div(vectors, 2), kWarp);
    if (vectors <= kMostVectors * kWarp)
        *out = {kWarp, vectors <= 3 * kWarp ? 3 : 4};
    else if (pairs <= kWidestBlock)
        *out = {(unsigned)pairs, 2};
    else
        *out = {kWidestBlock, 4};
    if (vectors <= (int64_t)out->threads * out->vectors) return HD_OK;
    return hdi_error(HD_ERROR_UNSUPPORTED, "%s: rows have %lld columns, want at most %d", what,
                     (long long)columns, kWidestBlock * kMostVectors * kLanes<T>);
}

template <typename T, int kVectors, bool kWarpRow, bool kAligned>
hd_status run_norm(hd_stream *stream, const hdi_norm_args *args, unsigned threads)
{
    const int rows = kWarpRow ? kWarpRows : 1;
    norm_row<T, kVectors, kWarpRow, kAligned>
        <<<block_count(args->rows, rows), dim3(threads, (unsigned)rows), 0, stream->handle>>>(
            *args);
    return launched("norm");
}

template <typename T, int kVectors, bool kWarpRow, bool kAligned>
hd_status run_gradient(hd_stream *stream, const hdi_norm_gradient_args *args, unsigned threads)
{
    const int rows = kWarpRow ? kWarpRows : 1;
    const int64_t parts = args->partials ? args->partial_rows : hdi_ceil_div(args->rows, rows);
    norm_gradient_rows<T, kVectors, kWarpRow, kAligned>
        <<<block_count(parts, 1), dim3(threads, (unsigned)rows), 0, stream->handle>>>(
            *args, hdi_ceil_div(args->rows, parts));
    return launched("norm gradient");
}

/* Alignment changes how rows are read, never the order of a sum. */
template <typename T, bool kAligned>
hd_status run_shape(hd_stream *stream, const hdi_norm_args *args, row_split row)
{
    if (row.vectors == 2) return run_norm<T, 2, false, kAligned>(stream, args, row.threads);
    if (row.threads != kWarp) return run_norm<T, 4, false, kAligned>(stream, args, row.threads);
    if (row.vectors == 3) return run_norm<T, 3, true, kAligned>(stream, args, row.threads);
    return run_norm<T, 4, true, kAligned>(stream, args, row.threads);
}

template <typename T, bool kAligned>
hd_status run_shape(hd_stream *stream, const hdi_norm_gradient_args *args, row_split row)
{
    if (row.vectors == 2) return run_gradient<T, 2, false, kAligned>(stream, args, row.threads);
    if (row.threads != kWarp) return run_gradient<T, 4, false, kAligned>(stream, args, row.threads);
    if (row.vectors == 3) return run_gradient<T, 3, true, kAligned>(stream, args, row.threads);
    return run_gradient<T, 4, true, kAligned>(stream, args, row.threads);
}

} // namespace

extern "C" hd_status hdi_cuda_norm(hd_stream *stream, const hdi_norm_args *args)
{
    if (args->rows <= 0 || args->columns <= 0) return HD_OK;
    return with_type(args->dtype, "norm", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned =
            args->columns % kLanes<T> == 0 &&
            are_aligned(args->x, args->residual, args->weight, args->bias, args->sum, args->out);
        row_split row;
        HD_RETURN_IF_ERROR(split_row<T>("norm", args->columns, &row));
        return aligned ? run_shape<T, true>(stream, args, row)
                       : run_shape<T, false>(stream, args, row);
    });
}

extern "C" hd_status hdi_cuda_norm_gradient(hd_stream *stream, const hdi_norm_gradient_args *args)
{
    if (args->columns <= 0 || (args->rows <= 0 && !args->partials)) return HD_OK;
    return with_type(args->dtype, "norm gradient", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned =
            args->columns % kLanes<T> == 0 &&
            are_aligned(args->gradient, args->x, args->weight, args->carry, args->x_gradient);
        row_split row;
        HD_RETURN_IF_ERROR(split_row<T>("norm gradient", args->columns, &row));
        return aligned ? run_shape<T, true>(stream, args, row)
                       : run_shape<T, false>(stream, args, row);
    });
}
