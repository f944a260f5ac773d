/* Attention of new tokens against a cache of keys and values. A few tokens: blocks share the keys of
 * one query in runs of 256 and a second kernel joins them. Many: the tile kernel. */
#include "backend/cuda/attention.h"
#include "backend/cuda/attention_tile.cuh"

namespace
{

constexpr int kThreads = 128;
constexpr int kRun = 256; /* keys */
constexpr int kFewTokens = 8;

attention_problem problem_of(const hdi_attention_cached_args *args)
{
    attention_problem problem = {};
    problem.tokens = args->tokens;
    problem.kv_tokens = args->capacity;
    problem.heads = args->heads;
    problem.kv_heads = args->kv_heads;
    problem.head_dim = args->head_dim;
    problem.interleave = 1;
    problem.q_stride = args->q_stride;
    problem.k_stride = args->kv_heads * args->head_dim;
    problem.v_stride = problem.k_stride;
    problem.out_stride = args->out_stride;
    problem.scale = args->scale;
    problem.causal = true;
    problem.position = args->position;
    problem.count = args->count;
    problem.q = args->q;
    problem.k = args->k_cache;
    problem.v = args->v_cache;
    problem.out = args->out;
    return problem;
}

int64_t run_count(int64_t keys)
{
    return hdi_ceil_div(keys, kRun);
}

/* Keys and values of the new tokens to their places. */
template <typename T>
__global__ void append_row(hdi_attention_cached_args a, attention_problem problem,
                           hdi_cuda_fault *fault)
{
    const attention_extent extent = extent_of(problem, 0);
    const int64_t token = blockIdx.x, columns = a.kv_heads * a.head_dim;
    if (token == 0 && threadIdx.x == 0 && !cache_holds(problem))
        report_fault(fault, HDI_FAULT_CACHE, *a.count, *a.position, a.capacity);
    if (token >= extent.queries) return;
    T *k = (T *)a.k_cache + (extent.offset + token) * columns;
    T *v = (T *)a.v_cache + (extent.offset + token) * columns;
    for (int64_t c = threadIdx.x; c < columns; c += kThreads) {
        k[c] = ((const T *)a.k)[token * a.k_stride + c];
        v[c] = ((const T *)a.v)[token * a.v_stride + c];
    }
}

/* Where run `run` of a query leaves its maximum, its sum and its unscaled output. */
__device__ float *run_result(const attention_problem &a, float *results, int64_t runs,
                             int64_t token, int64_t head, int64_t run)
{
    return results + ((token * a.heads + head) * runs + run) * (a.head_dim + 2);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    attend_run(attention_problem a, int64_t runs, float *results)
{
    extern __shared__ float query[]; /* [head_dim], scaled */
    __shared__ float weights[kRun];
    const attention_extent extent = extent_of(a, 0);
    const int64_t run = blockIdx.x, head = blockIdx.y, token = blockIdx.z;
    const int64_t kv_head = head * a.kv_heads / a.heads, begin = run * kRun;
    const int64_t visible = extent.visible(token);
    if (token >= extent.queries || begin >= visible) return;
    const int keys = (int)(visible - begin < kRun ? visible - begin : kRun);
    const int lane = (int)threadIdx.x % kWarp, warp = (int)threadIdx.x / kWarp;
    const T *q = (const T *)a.q + token * a.q_stride + head * a.head_dim;
    const T *k = (const T *)a.k + begin * a.k_stride + kv_head * a.head_dim;
    const T *v = (const T *)a.v + begin * a.v_stride + kv_head * a.head_dim;
    for (int64_t c = threadIdx.x; c < a.head_dim; c += kThreads)
        query[c] = to_float(q[c]) * a.scale;
    __syncthreads();

    float max = -FLT_MAX;
#pragma unroll 4
    for (int key = warp; key < keys; key += kThreads / kWarp) {
        float score = 0;
        for (int64_t c = lane; c < a.head_dim; c += kWarp)
            score += query[c] * to_float(k[key * a.k_stride + c]);
        score = warp_sum(score);
        if (lane == 0) weights[key] = score;
        max = fmaxf(max, score);
    }
    max = block_max(max); /* its barriers also make the weights visible */
    float sum = 0;
    for (int key = (int)threadIdx.x; key < keys; key += kThreads) {
        weights[key] = exponential<T>(weights[key] - max);
        sum += weights[key];
    }
    sum = block_sum(sum);

    float *result = run_result(a, results, runs, token, head, run);
    if (threadIdx.x == 0) {
        result[0] = max;
        result[1] = sum;
    }
    for (int64_t c = threadIdx.x; c < a.head_dim; c += kThreads) {
        float value = 0;
#pragma unroll 8
        for (int key = 0; key < keys; key++)
            value += weights[key] * to_float(v[key * a.v_stride + c]);
        result[2 + c] = value;
    }
}

template <typename T> __global__ void join_runs(attention_problem a, int64_t runs, float *results)
{
    const attention_extent extent = extent_of(a, 0);
    const int64_t head = blockIdx.x, token = blockIdx.y;
    if (token >= extent.queries) return;
    const int64_t used = (extent.visible(token) + kRun - 1) / kRun;
    const float *first = run_result(a, results, runs, token, head, 0);
    const int64_t step = a.head_dim + 2;
    float max = -FLT_MAX, sum = 0;
    for (int64_t run = 0; run < used; run++)
        max = fmaxf(max, first[run * step]);
    for (int64_t run = 0; run < used; run++)
        sum += first[run * step + 1] * expf(first[run * step] - max);
    T *out = (T *)a.out + token * a.out_stride + head * a.head_dim;
    for (int64_t c = threadIdx.x; c < a.head_dim; c += kThreads) {
        float value = 0;
        for (int64_t run = 0; run < used; run++)
            value += first[run * step + 2 + c] * expf(first[run * step] - max);
        out[c] = from_float<T>(value / sum);
    }
}

} // namespace

extern "C" size_t hdi_cuda_attention_cached_workspace(const hdi_attention_cached_args *args)
{
    if (args->tokens > kFewTokens) return 0;
    return (size_t)(args->tokens * args->heads * run_count(args->capacity) * (args->head_dim + 2)) *
           sizeof(float);
}

extern "C" hd_status hdi_cuda_attention_cached(hd_stream *stream,
                                               const hdi_attention_cached_args *args)
{
    if (args->tokens <= 0 || args->head_dim <= 0) return HD_OK;
    const attention_problem problem = problem_of(args);
    const int64_t runs = run_count(args->capacity);
    const unsigned tokens = (unsigned)args->tokens, heads = (unsigned)args->heads;
    HD_RETURN_IF_ERROR(with_type(args->dtype, "cached attention", [&](auto tag) {
        using T = typename decltype(tag)::type;
        append_row<T>
            <<<tokens, kThreads, 0, stream->handle>>>(*args, problem, stream->device->fault);
        return launched("cached attention: append");
    }));
    if (args->tokens > kFewTokens) return hdi_cuda_attend_tiles(stream, args->dtype, 1, problem);
    return with_type(args->dtype, "cached attention", [&](auto tag) {
        using T = typename decltype(tag)::type;
        float *results = (float *)args->workspace;
        const size_t shared = (size_t)args->head_dim * sizeof(float);
        attend_run<T><<<dim3((unsigned)runs, heads, tokens), kThreads, shared, stream->handle>>>(
            problem, runs, results);
        join_runs<T><<<dim3(heads, tokens), kThreads, 0, stream->handle>>>(problem, runs, results);
        return launched("cached attention");
    });
}
