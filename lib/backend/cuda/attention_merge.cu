/* Attention of the same queries to several runs of keys, joined: a warp takes one head of a token. And
 * sums of blocks in fp32. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kWarps = 8;
constexpr int kThreads = 256;

template <typename T> __global__ void merge_head_per_warp(hdi_merge_attention_args a, int64_t total)
{
    const int64_t index = (int64_t)blockIdx.x * kWarps + threadIdx.y;
    if (index >= total) return;
    const int64_t head = index % a.heads, row = index / a.heads;
    const int64_t sequence = row / a.count, t = row - sequence * a.count, token = a.first + t;
    const bool valid = !a.counts || token < a.counts[sequence];
    float *lse = a.lse + (sequence * a.heads + head) * a.tokens + token;
    float *out = a.out + ((sequence * a.tokens + token) * a.heads + head) * a.head_dim;
    const T *x = (const T *)a.x + index * a.head_dim;
    const float before = a.begins || !valid ? -INFINITY : *lse;
    const float next = valid ? a.x_lse[(sequence * a.heads + head) * a.count + t] : -INFINITY;
    const float max = fmaxf(before, next);
    const bool any = max > -INFINITY;
    const float kept = any ? expf(before - max) : 0.0f, added = any ? expf(next - max) : 0.0f;
    const float inverse = any ? 1.0f / (kept + added) : 0.0f;
    /* Shares of 0 leave out what may not be a number. */
    for (int64_t c = threadIdx.x; c < a.head_dim; c += kWarp) {
        float sum = kept > 0.0f ? kept * inverse * out[c] : 0.0f;
        if (added > 0.0f) sum += added * inverse * to_float(x[c]);
        out[c] = sum;
    }
    __syncwarp(); /* every lane has read the old lse */
    if (threadIdx.x == 0) *lse = any ? max + logf(kept + added) : valid ? -INFINITY : INFINITY;
}

template <typename T> __global__ void add_block_part(hdi_add_blocks_args a, bool aligned)
{
    constexpr int L = kLanes<T>;
    const int64_t parts = (a.elements + L - 1) / L;
    const int64_t index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (index >= a.blocks * parts) return;
    const int64_t block = index / parts, first = (index - block * parts) * L;
    const int64_t left = a.elements - first;
    float x[L];
    stream_part((const T *)a.x + block * a.elements + first, left, aligned, x);
    float *out = a.out + block * a.stride + first;
#pragma unroll
    for (int i = 0; i < L; i++)
        if (i < left) out[i] += x[i];
}

} // namespace

extern "C" hd_status hdi_cuda_merge_attention(hd_stream *stream,
                                              const hdi_merge_attention_args *args)
{
    const int64_t total = args->sequences * args->count * args->heads;
    if (total <= 0) return HD_OK;
    return with_type(args->dtype, "merge_attention", [&](auto tag) {
        using T = typename decltype(tag)::type;
        merge_head_per_warp<T>
            <<<block_count(total, kWarps), dim3(kWarp, kWarps), 0, stream->handle>>>(*args, total);
        return launched("merge_attention");
    });
}

extern "C" hd_status hdi_cuda_add_blocks(hd_stream *stream, const hdi_add_blocks_args *args)
{
    if (args->blocks <= 0 || args->elements <= 0) return HD_OK;
    return with_type(args->dtype, "add_blocks", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned = are_aligned(args->x) && args->elements % kLanes<T> == 0;
        const int64_t parts = args->blocks * hdi_ceil_div(args->elements, kLanes<T>);
        add_block_part<T>
            <<<block_count(parts, kThreads), kThreads, 0, stream->handle>>>(*args, aligned);
        return launched("add_blocks");
    });
}
