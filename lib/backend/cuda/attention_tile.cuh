/* Products of 64 x 64 tiles by 256 threads, 4 x 4 results each, through panels in shared memory. All
 * in fp32, for any head size. */
#ifndef HDI_BACKEND_CUDA_ATTENTION_TILE_CUH
#define HDI_BACKEND_CUDA_ATTENTION_TILE_CUH

#include "backend/cuda/common.cuh"

constexpr int kTile = 64;         /* queries or keys of a tile, and columns of its result */
constexpr int kDepth = 16;        /* of a panel */
constexpr int kPitch = kTile + 4; /* keeps rows at multiples of 16 bytes */
constexpr int kTileThreads = 256; /* as a square of 16 x 16 */
constexpr int kSquare = 16;

/* At multiples of 16 bytes, for accesses of that width. */
struct panel {
    alignas(16) float at[kDepth][kPitch];
};
struct tile {
    alignas(16) float at[kTile][kPitch];
};
struct panels {
    panel left, right;
};

/* Rows of one head. What lies outside reads as 0. */
template <typename T> struct matrix {
    const T *base;
    int64_t stride, rows, columns;

    __device__ float at(int64_t row, int64_t column) const
    {
        return row < rows && column < columns ? to_float(base[row * stride + column]) : 0.0f;
    }
};

__device__ inline int tile_row()
{
    return (int)threadIdx.x / kSquare * 4;
}

__device__ inline int tile_column()
{
    return (int)threadIdx.x % kSquare * 4;
}

/* out.at[k][r] = m[row + r, column + k]. */
template <typename T>
__device__ void stage_transposed(panel &out, const matrix<T> &m, int64_t row, int64_t column)
{
    const int k = (int)threadIdx.x % kDepth, first = (int)threadIdx.x / kDepth;
#pragma unroll
    for (int r = first; r < kTile; r += kTileThreads / kDepth)
        out.at[k][r] = m.at(row + r, column + k);
}

/* out.at[k][c] = m[row + k, column + c]. */
template <typename T>
__device__ void stage(panel &out, const matrix<T> &m, int64_t row, int64_t column)
{
    const int c = (int)threadIdx.x % kTile, first = (int)threadIdx.x / kTile;
#pragma unroll
    for (int k = first; k < kDepth; k += kTileThreads / kTile)
        out.at[k][c] = m.at(row + k, column + c);
}

/* sum[i][j] += sum over k of left[k][row + i] * right[k][column + j]. */
__device__ inline void multiply_panels(const float (*left)[kPitch], const float (*right)[kPitch],
                                       float (&sum)[4][4])
{
    const int row = tile_row(), column = tile_column();
#pragma unroll
    for (int k = 0; k < kDepth; k++) {
        const float4 l = *reinterpret_cast<const float4 *>(&left[k][row]);
        const float4 r = *reinterpret_cast<const float4 *>(&right[k][column]);
        const float ls[4] = {l.x, l.y, l.z, l.w}, rs[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                sum[i][j] += ls[i] * rs[j];
    }
}

/* out[i][j] = row (a_row + i) of a times row (b_row + j) of b. Begins with a barrier. */
template <typename T>
__device__ void multiply_rows(const matrix<T> &a, int64_t a_row, const matrix<T> &b, int64_t b_row,
                              panels &shared, float (&out)[4][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            out[i][j] = 0;
    for (int64_t column = 0; column < a.columns; column += kDepth) {
        __syncthreads();
        stage_transposed(shared.left, a, a_row, column);
        stage_transposed(shared.right, b, b_row, column);
        __syncthreads();
        multiply_panels(shared.left.at, shared.right.at, out);
    }
}

/* sum[i][j] += sum over k of weights.at[k][row + i] * b[b_row + k, b_column + column + j]. Begins with
 * a barrier, behind which the weights of all threads are there. */
template <typename T>
__device__ void add_weighted_rows(const tile &weights, const matrix<T> &b, int64_t b_row,
                                  int64_t b_column, panels &shared, float (&sum)[4][4])
{
    for (int k = 0; k < kTile; k += kDepth) {
        __syncthreads();
        stage(shared.right, b, b_row + k, b_column);
        __syncthreads();
        multiply_panels(weights.at + k, shared.right.at, sum);
    }
}

/* Write scale[i] * x[i][j] to the part of the tile that exists. */
template <typename T>
__device__ void store_tile(T *base, int64_t stride, int64_t row, int64_t rows, int64_t column,
                           int64_t columns, const float (&x)[4][4], const float (&scale)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int64_t r = row + tile_row() + i, c = column + tile_column() + j;
            if (r < rows && c < columns) base[r * stride + c] = from_float<T>(x[i][j] * scale[i]);
        }
}

/* The 16 threads that share rows of a tile. */
__device__ inline float row_max(float x)
{
#pragma unroll
    for (int lane = kSquare / 2; lane > 0; lane /= 2)
        x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lane));
    return x;
}

__device__ inline float row_sum(float x)
{
#pragma unroll
    for (int lane = kSquare / 2; lane > 0; lane /= 2)
        x += __shfl_xor_sync(kAllLanes, x, lane);
    return x;
}

/* Attention as the tile kernels see it. What lengths are not known on the host lie on the device:
 * those of a cache, of counted sequences, or of packed keys. */
struct attention_problem {
    int64_t tokens, kv_tokens, heads, kv_heads, head_dim, chunks;
    int64_t interleave; /* sequences that lie token by token between one another, at least 1 */
    int64_t q_stride, k_stride, v_stride, out_stride;
    float scale;
    bool causal;
    const int32_t *position, *count; /* of a cache, else NULL */
    const int32_t *counts;           /* of tokens of each sequence, else NULL */
    const int32_t *kv_counts;        /* beside counts: those of the keys, if they are others */
    const int32_t *offsets;          /* of the keys of each sequence, among kv_tokens; else NULL */
    int64_t most_keys;               /* of a sequence, with offsets */
    hdi_cuda_fault *fault;           /* for offsets */
    const void *q, *k, *v;
    void *out;
    float *lse;
    const void *out_gradient;
    float *center; /* [batch, heads, tokens] out times its gradient */
    void *q_gradient, *k_gradient, *v_gradient;
};

/* What of a sequence is there: query t, if it is below `seeing`, sees keys below t + offset + 1 and
 * `keys`. Gradients are written for `key_rows` keys. */
struct attention_extent {
    int64_t queries, seeing, keys, key_rows, offset;
    bool causal;

    __device__ int64_t visible(int64_t query) const
    {
        if (query >= seeing) return 0;
        if (!causal) return keys;
        const int64_t seen = query + offset + 1;
        return seen < 0 ? 0 : seen < keys ? seen : keys;
    }

    /* What the queries of a tile see together. */
    __device__ int64_t visible_of_tile(int64_t first) const
    {
        const int64_t last = first + kTile < seeing ? first + kTile - 1 : seeing - 1;
        return last < first ? 0 : visible(last);
    }
};

/* Whether a cache has room for the new tokens. */
__device__ inline bool cache_holds(const attention_problem &a)
{
    const int64_t position = *a.position, count = *a.count;
    return position >= 0 && count >= 0 && count <= a.tokens && position + count <= a.kv_tokens;
}

/* Whatever the offset says, a row of the keys or the one behind them. */
__device__ inline int64_t key_offset(const attention_problem &a, int64_t sequence)
{
    const int32_t offset = a.offsets[sequence];
    if (offset >= 0 && offset <= a.kv_tokens) return offset;
    report_fault(a.fault, HDI_FAULT_OFFSET, offset, sequence, a.kv_tokens + 1);
    return offset < 0 ? 0 : a.kv_tokens;
}

__device__ inline int64_t counted(int64_t count, int64_t most)
{
    return count < 0 ? 0 : count < most ? count : most;
}

/* Nothing, if the cache has no room. */
__device__ inline attention_extent extent_of(const attention_problem &a, int64_t sequence)
{
    if (a.position) {
        if (!cache_holds(a)) return {0, 0, 0, 0, 0, true};
        const int64_t position = *a.position, count = *a.count;
        return {count, count, position + count, 0, position, true};
    }
    if (a.counts) {
        const int64_t count = counted(a.counts[sequence], a.tokens);
        const int64_t keys = a.kv_counts ? counted(a.kv_counts[sequence], a.kv_tokens) : count;
        return {a.tokens, count, keys, a.kv_tokens, 0, a.causal};
    }
    if (a.offsets) {
        const int64_t first = key_offset(a, sequence), end = key_offset(a, sequence + 1);
        int64_t keys = end > first ? end - first : 0;
        if (keys > a.most_keys) {
            report_fault(a.fault, HDI_FAULT_KEYS, (int32_t)keys, sequence, a.most_keys + 1);
            keys = a.most_keys;
        }
        return {a.tokens, a.tokens, keys, keys, 0, false};
    }
    return {a.tokens, a.tokens, a.kv_tokens, a.kv_tokens, a.kv_tokens - a.tokens, a.causal};
}

/* The rows of a sequence: the first, and from one to the next. */
struct row_run {
    int64_t first, step;
};

__device__ inline row_run rows_of(const attention_problem &a, int64_t sequence, int64_t tokens)
{
    const int64_t group = sequence / a.interleave;
    return {(group * tokens - group) * a.interleave + sequence, a.interleave};
}

__device__ inline row_run query_rows(const attention_problem &a, int64_t sequence)
{
    return rows_of(a, sequence, a.tokens);
}

__device__ inline row_run key_rows(const attention_problem &a, int64_t sequence)
{
    if (a.offsets) return {key_offset(a, sequence), 1};
    return rows_of(a, sequence, a.kv_tokens);
}

inline attention_problem problem_of(const hdi_attention_args *args)
{
    attention_problem problem = {};
    problem.tokens = args->tokens;
    problem.kv_tokens = args->kv_tokens;
    problem.heads = args->heads;
    problem.kv_heads = args->kv_heads;
    problem.head_dim = args->head_dim;
    problem.interleave = args->interleave > 1 ? args->interleave : 1;
    problem.counts = args->counts;
    problem.kv_counts = args->kv_counts;
    problem.q_stride = args->q_stride;
    problem.k_stride = args->k_stride;
    problem.v_stride = args->v_stride;
    problem.out_stride = args->out_stride;
    problem.scale = args->scale;
    problem.causal = args->causal;
    problem.q = args->q;
    problem.k = args->k;
    problem.v = args->v;
    problem.out = args->out;
    problem.lse = args->lse;
    problem.out_gradient = args->out_gradient;
    problem.center = (float *)args->workspace;
    problem.q_gradient = args->q_gradient;
    problem.k_gradient = args->k_gradient;
    problem.v_gradient = args->v_gradient;
    return problem;
}

/* One head's rows of one sequence, of which `rows` are there. */
template <typename T>
__device__ matrix<T> head_rows(const void *base, row_run run, int64_t head, int64_t stride,
                               int64_t rows, int64_t head_dim)
{
    return {(const T *)base + run.first * stride + head * head_dim, run.step * stride, rows,
            head_dim};
}

/* A block's sequence and tile: sequences come one after another in x, the only long axis of a grid. */
struct tile_place {
    int64_t sequence, tile, tiles;
};

__device__ inline tile_place place_of(int64_t tokens)
{
    const int64_t tiles = (tokens + kTile - 1) / kTile, sequence = blockIdx.x / tiles;
    return {sequence, blockIdx.x - sequence * tiles, tiles};
}

/* Both passes of `batch` sequences. The gradient takes `out` and writes center, which it also reads. */
hd_status hdi_cuda_attend_tiles(hd_stream *stream, hd_dtype dtype, int64_t batch,
                                attention_problem problem);
hd_status hdi_cuda_attend_tiles_back(hd_stream *stream, hd_dtype dtype, int64_t batch,
                                     attention_problem problem);

#endif
