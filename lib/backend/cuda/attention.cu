/* Attention by kernels of our own, forward: a block owns 64 queries and 64 columns of the output of
 * one head and goes over the keys in tiles with a running maximum and sum (Dao et al., arXiv
 * 2205.14135). Wider heads are several blocks, each of which computes the scores again. */
#include "backend/cuda/attention.h"
#include "backend/cuda/attention_tile.cuh"

namespace
{

template <typename T>
__global__ void __launch_bounds__(kTileThreads) attend_tile(attention_problem a)
{
    __shared__ panels shared;
    __shared__ tile weights; /* [key][query] */
    const tile_place place = place_of(a.tokens);
    const int64_t sequence = place.sequence;
    const attention_extent extent = extent_of(a, sequence);
    const int64_t first = (place.tiles - 1 - place.tile) * kTile; /* those that see most go first */
    const int64_t head = blockIdx.y / a.chunks, column = blockIdx.y % a.chunks * kTile;
    const int64_t kv_head = head * a.kv_heads / a.heads;
    if (first >= extent.queries) return;
    const row_run rows = query_rows(a, sequence), kv_rows = key_rows(a, sequence);
    const matrix<T> q = head_rows<T>(a.q, rows, head, a.q_stride, extent.queries, a.head_dim);
    const matrix<T> k = head_rows<T>(a.k, kv_rows, kv_head, a.k_stride, extent.keys, a.head_dim);
    const matrix<T> v = head_rows<T>(a.v, kv_rows, kv_head, a.v_stride, extent.keys, a.head_dim);
    const int64_t keys = extent.visible_of_tile(first);
    float out[4][4] = {}, sum[4] = {}, max[4] = {-FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX};
    for (int64_t key = 0; key < keys; key += kTile) {
        float scores[4][4];
        multiply_rows(q, first, k, key, shared, scores);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t visible = extent.visible(first + tile_row() + i);
            float largest = max[i], part = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const bool seen = key + tile_column() + j < visible;
                scores[i][j] = seen ? scores[i][j] * a.scale : -INFINITY;
                largest = fmaxf(largest, scores[i][j]);
            }
            largest = row_max(largest);
            const float correction = exponential<T>(max[i] - largest);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float p = exponential<T>(scores[i][j] - largest);
                weights.at[tile_column() + j][tile_row() + i] = p;
                part += p;
                out[i][j] *= correction;
            }
            sum[i] = sum[i] * correction + row_sum(part);
            max[i] = largest;
        }
        add_weighted_rows(weights, v, key, column, shared, out);
    }

    float inverse[4];
    float *lse = a.lse ? a.lse + (sequence * a.heads + head) * a.tokens : NULL;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int64_t query = first + tile_row() + i;
        const bool any = extent.visible(query) > 0;
        inverse[i] = any ? 1.0f / sum[i] : 0.0f;
        if (lse && column == 0 && tile_column() == 0 && query < extent.queries)
            lse[query] = any ? max[i] + logf(sum[i]) : -INFINITY;
    }
    T *base = (T *)a.out + rows.first * a.out_stride + head * a.head_dim;
    store_tile(base, rows.step * a.out_stride, first, extent.queries, column, a.head_dim, out,
               inverse);
}

} // namespace

hd_status hdi_cuda_attend_tiles(hd_stream *stream, hd_dtype dtype, int64_t batch,
                                attention_problem problem)
{
    problem.chunks = hdi_ceil_div(problem.head_dim, kTile);
    const dim3 grid((unsigned)(batch * hdi_ceil_div(problem.tokens, kTile)),
                    (unsigned)(problem.heads * problem.chunks));
    return with_type(dtype, "attention", [&](auto tag) {
        using T = typename decltype(tag)::type;
        attend_tile<T><<<grid, kTileThreads, 0, stream->handle>>>(problem);
        return launched("attention");
    });
}

extern "C" hd_status hdi_cuda_tiled_attention(hd_stream *stream, const hdi_attention_args *args)
{
    if (args->batch <= 0 || args->tokens <= 0 || args->head_dim <= 0) return HD_OK;
    return hdi_cuda_attend_tiles(stream, args->dtype, args->batch, problem_of(args));
}
