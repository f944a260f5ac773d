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
__device__ head_pointers<T> pointers_of(const attention_problem &a, int64_t sequence, int64_t head)
{
    const int64_t kv_head = head * a.kv_heads / a.heads;
    const int64_t statistics = (sequence * a.heads + head) * a.tokens;
    return {
        head_rows<T>(a.q, sequence, head, a.q_stride, a.tokens, a.tokens, a.head_dim),
        head_rows<T>(a.k, sequence, kv_head, a.k_stride, a.kv_tokens, a.kv_tokens, a.head_dim),
        head_rows<T>(a.v, sequence, kv_head, a.v_stride, a.kv_tokens, a.kv_tokens, a.head_dim),
        head_rows<T>(a.out_gradient, sequence, head, a.out_stride, a.tokens, a.tokens, a.head_dim),
        a.lse + statistics,
        a.center + statistics};
}

/* out times its gradient, summed over the head: one warp each. */
template <typename T>
__global__ void center_per_warp(attention_problem a, const T *out, int64_t total, float *center)
{
    const int64_t index = (int64_t)blockIdx.x * kCenterWarps + threadIdx.y;
    if (index >= total) return;
    const int64_t token = index % a.tokens, head = index / a.tokens % a.heads;
    const int64_t row = index / (a.tokens * a.heads) * a.tokens + token;
    const int64_t offset = row * a.out_stride + head * a.head_dim;
    float sum = 0;
    for (int64_t c = threadIdx.x; c < a.head_dim; c += kWarp)
        sum += to_float(out[offset + c]) * to_float(((const T *)a.out_gradient)[offset + c]);
    sum = warp_sum(sum);
    if (threadIdx.x == 0) center[index] = sum;
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
        const bool there = row < extent.queries;
        const int64_t visible = there ? extent.visible(row) : 0;
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
    const attention_extent extent = extent_of(a);
    const int64_t key = (int64_t)blockIdx.x * kTile, sequence = blockIdx.z;
    const int64_t kv_head = blockIdx.y / a.chunks, column = blockIdx.y % a.chunks * kTile;
    /* The first query that sees the tile's first key. */
    const int64_t seen_from = a.causal ? key - extent.offset : 0;
    const int64_t begin = seen_from > 0 ? seen_from / kTile * kTile : 0;
    float k_gradient[4][4] = {}, v_gradient[4][4] = {};
    for (int64_t head = 0; head < a.heads; head++) {
        if (head * a.kv_heads / a.heads != kv_head) continue;
        const head_pointers<T> pointers = pointers_of<T>(a, sequence, head);
        for (int64_t query = begin; query < extent.queries; query += kTile) {
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
    const int64_t row = sequence * a.kv_tokens, offset = kv_head * a.head_dim;
    store_tile((T *)a.k_gradient + row * a.k_stride + offset, a.k_stride, key, a.kv_tokens, column,
               a.head_dim, k_gradient, ones);
    store_tile((T *)a.v_gradient + row * a.v_stride + offset, a.v_stride, key, a.kv_tokens, column,
               a.head_dim, v_gradient, ones);
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads) query_gradient_tile(attention_problem a)
{
    __shared__ panels shared;
    __shared__ tile slope_tile; /* [key][query] */
    const attention_extent extent = extent_of(a);
    const int64_t last = (a.tokens - 1) / kTile;
    const int64_t query = (last - blockIdx.x) * kTile, sequence = blockIdx.z;
    const int64_t head = blockIdx.y / a.chunks, column = blockIdx.y % a.chunks * kTile;
    const head_pointers<T> pointers = pointers_of<T>(a, sequence, head);
    const int64_t keys = extent.visible(query + kTile - 1);
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
    T *base = (T *)a.q_gradient + sequence * a.tokens * a.q_stride + head * a.head_dim;
    store_tile(base, a.q_stride, query, a.tokens, column, a.head_dim, q_gradient, ones);
}

} // namespace

extern "C" size_t hdi_cuda_tiled_attention_gradient_workspace(const hdi_attention_args *args)
{
    return (size_t)(args->batch * args->heads * args->tokens) * sizeof(float);
}

extern "C" hd_status hdi_cuda_tiled_attention_gradient(hd_stream *stream,
                                                       const hdi_attention_args *args)
{
    if (args->batch <= 0 || args->head_dim <= 0 || args->tokens <= 0 || args->kv_tokens <= 0)
        return HD_OK;
    const attention_problem problem = problem_of(args);
    const int64_t total = args->batch * args->heads * args->tokens;
    const unsigned batch = (unsigned)args->batch;
    return with_type(args->dtype, "attention gradient", [&](auto tag) {
        using T = typename decltype(tag)::type;
        center_per_warp<T>
            <<<block_count(total, kCenterWarps), dim3(kWarp, kCenterWarps), 0, stream->handle>>>(
                problem, (const T *)args->out, total, (float *)args->workspace);
        const dim3 keys(block_count(args->kv_tokens, kTile),
                        (unsigned)(args->kv_heads * problem.chunks), batch);
        key_gradient_tile<T><<<keys, kTileThreads, 0, stream->handle>>>(problem);
        const dim3 queries(block_count(args->tokens, kTile),
                           (unsigned)(args->heads * problem.chunks), batch);
        query_gradient_tile<T><<<queries, kTileThreads, 0, stream->handle>>>(problem);
        return launched("attention gradient");
    });
}
