/* Attention by kernels of our own, backward. Two kernels without atomics: a block owns 64 keys and
 * goes over the queries in order (gradients of keys and values), or owns 64 queries and goes over
 * the keys (gradient of queries). Both compute the scores again. */
#include "backend/cuda/attention.h"
#include "backend/cuda/attention_tile.cuh"

namespace
{

constexpr int kCenterWarps = 8;

template <typename T> struct head_pointers {
    matrix<T> q, k, v, out_gradient;
    const float *lse, *center;
};

template <typename T>
__device__ head_pointers<T> pointers_of(const attention_problem &a, const attention_extent &extent,
                                        int64_t sequence, int64_t head)
{
    const int64_t kv_head = head * a.kv_heads / a.heads;
    const int64_t statistics = (sequence * a.heads + head) * a.tokens;
    const row_run rows = query_rows(a, sequence), kv_rows = key_rows(a, sequence);
    return {head_rows<T>(a.q, rows, head, a.q_stride, extent.seeing, a.head_dim),
            head_rows<T>(a.k, kv_rows, kv_head, a.k_stride, extent.keys, a.head_dim),
            head_rows<T>(a.v, kv_rows, kv_head, a.v_stride, extent.keys, a.head_dim),
            head_rows<T>(a.out_gradient, rows, head, a.out_stride, extent.seeing, a.head_dim),
            a.lse + statistics,
            a.center + statistics};
}

/* out times its gradient, summed over the head: one warp each. */
template <typename T> __global__ void center_per_warp(attention_problem a, int64_t total)
{
    const int64_t index = (int64_t)blockIdx.x * kCenterWarps + threadIdx.y;
    if (index >= total) return;
    const int64_t token = index % a.tokens, head = index / a.tokens % a.heads;
    const row_run rows = query_rows(a, index / (a.tokens * a.heads));
    const int64_t offset = (rows.first + token * rows.step) * a.out_stride + head * a.head_dim;
    float sum = 0;
    for (int64_t c = threadIdx.x; c < a.head_dim; c += kWarp)
        sum += to_float(((const T *)a.out)[offset + c]) *
               to_float(((const T *)a.out_gradient)[offset + c]);
    sum = warp_sum(sum);
    if (threadIdx.x == 0) a.center[index] = sum;
}

/* probabilities and slopes (gradients of the scores) of a tile, both 0 where nothing is seen. */
template <typename T>
__device__ void differentiate(const attention_problem &a, const attention_extent &extent,
                              const head_pointers<T> &head, int64_t query, int64_t key,
                              panels &shared, float (&probabilities)[4][4], float (&slopes)[4][4])
{
    multiply_rows(head.q, query, head.k, key, shared, probabilities);
    multiply_rows(head.out_gradient, query, head.v, key, shared, slopes);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int64_t row = query + tile_row() + i;
        const bool there = row < extent.seeing;
        const int64_t visible = extent.visible(row);
        const float lse = there ? head.lse[row] : 0.0f, center = there ? head.center[row] : 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const bool seen = key + tile_column() + j < visible;
            const float score = probabilities[i][j] * a.scale;
            const float p = seen ? exponential<T>(score - lse) : 0.0f;
            probabilities[i][j] = p;
            slopes[i][j] = seen ? p * (slopes[i][j] - center) * a.scale : 0.0f;
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads) key_gradient_tile(attention_problem a)
{
    __shared__ panels shared;
    __shared__ tile probability_tile, slope_tile; /* [query][key] */
    const tile_place place = place_of(a.kv_tokens);
    const int64_t key = place.tile * kTile, sequence = place.sequence;
    const attention_extent extent = extent_of(a, sequence);
    if (key >= extent.key_rows) return;
    const int64_t kv_head = blockIdx.y / a.chunks, column = blockIdx.y % a.chunks * kTile;
    /* The first query that sees the tile's first key. */
    const int64_t seen_from = a.causal ? key - extent.offset : 0;
    const int64_t begin = seen_from > 0 ? seen_from / kTile * kTile : 0;
    float k_gradient[4][4] = {}, v_gradient[4][4] = {};
    for (int64_t head = 0; head < a.heads; head++) {
        if (head * a.kv_heads / a.heads != kv_head) continue;
        const head_pointers<T> pointers = pointers_of<T>(a, extent, sequence, head);
        for (int64_t query = begin; query < extent.seeing; query += kTile) {
            float probabilities[4][4], slopes[4][4];
            differentiate(a, extent, pointers, query, key, shared, probabilities, slopes);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    probability_tile.at[tile_row() + i][tile_column() + j] = probabilities[i][j];
                    slope_tile.at[tile_row() + i][tile_column() + j] = slopes[i][j];
                }
            add_weighted_rows(probability_tile, pointers.out_gradient, query, column, shared,
                              v_gradient);
            add_weighted_rows(slope_tile, pointers.q, query, column, shared, k_gradient);
        }
    }
    const float ones[4] = {1, 1, 1, 1};
    const row_run rows = key_rows(a, sequence);
    const int64_t offset = kv_head * a.head_dim;
    store_tile((T *)a.k_gradient + rows.first * a.k_stride + offset, rows.step * a.k_stride, key,
               extent.key_rows, column, a.head_dim, k_gradient, ones);
    store_tile((T *)a.v_gradient + rows.first * a.v_stride + offset, rows.step * a.v_stride, key,
               extent.key_rows, column, a.head_dim, v_gradient, ones);
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads) query_gradient_tile(attention_problem a)
{
    __shared__ panels shared;
    __shared__ tile slope_tile; /* [key][query] */
    const tile_place place = place_of(a.tokens);
    const int64_t query = (place.tiles - 1 - place.tile) * kTile, sequence = place.sequence;
    const attention_extent extent = extent_of(a, sequence);
    const int64_t head = blockIdx.y / a.chunks, column = blockIdx.y % a.chunks * kTile;
    const head_pointers<T> pointers = pointers_of<T>(a, extent, sequence, head);
    const int64_t keys = extent.visible_of_tile(query);
    float q_gradient[4][4] = {};
    for (int64_t key = 0; key < keys; key += kTile) {
        float probabilities[4][4], slopes[4][4];
        differentiate(a, extent, pointers, query, key, shared, probabilities, slopes);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                slope_tile.at[tile_column() + j][tile_row() + i] = slopes[i][j];
        add_weighted_rows(slope_tile, pointers.k, key, column, shared, q_gradient);
    }
    const float ones[4] = {1, 1, 1, 1};
    const row_run rows = query_rows(a, sequence);
    T *base = (T *)a.q_gradient + rows.first * a.q_stride + head * a.head_dim;
    store_tile(base, rows.step * a.q_stride, query, a.tokens, column, a.head_dim, q_gradient, ones);
}

} // namespace

hd_status hdi_cuda_attend_tiles_back(hd_stream *stream, hd_dtype dtype, int64_t batch,
                                     attention_problem problem)
{
    problem.chunks = hdi_ceil_div(problem.head_dim, kTile);
    const int64_t total = batch * problem.heads * problem.tokens;
    return with_type(dtype, "attention gradient", [&](auto tag) {
        using T = typename decltype(tag)::type;
        center_per_warp<T>
            <<<block_count(total, kCenterWarps), dim3(kWarp, kCenterWarps), 0, stream->handle>>>(
                problem, total);
        const dim3 keys((unsigned)(batch * hdi_ceil_div(problem.kv_tokens, kTile)),
                        (unsigned)(problem.kv_heads * problem.chunks));
        if (keys.x > 0) key_gradient_tile<T><<<keys, kTileThreads, 0, stream->handle>>>(problem);
        const dim3 queries((unsigned)(batch * hdi_ceil_div(problem.tokens, kTile)),
                           (unsigned)(problem.heads * problem.chunks));
        query_gradient_tile<T><<<queries, kTileThreads, 0, stream->handle>>>(problem);
        return launched("attention gradient");
    });
}

extern "C" size_t hdi_cuda_tiled_attention_gradient_workspace(const hdi_attention_args *args)
{
    return (size_t)(args->batch * args->heads * args->tokens) * sizeof(float);
}

extern "C" hd_status hdi_cuda_tiled_attention_gradient(hd_stream *stream,
                                                       const hdi_attention_args *args)
{
    if (args->batch <= 0 || args->head_dim <= 0 || args->tokens <= 0) return HD_OK;
    return hdi_cuda_attend_tiles_back(stream, args->dtype, args->batch, problem_of(args));
}
