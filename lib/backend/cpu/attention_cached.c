/* Attention of new tokens against a cache of keys and values. */
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#include "backend/cpu/attention.h"
#include "backend/cpu/blas.h"
#include "backend/cpu/threads.h"
#include "core/error.h"

typedef struct cached_work {
    const hdi_attention_cached_args *args;
    int64_t position, count;
    atomic_bool failed;
} cached_work;

static void append(const hdi_attention_cached_args *args, const void *x, int64_t stride,
                   int64_t position, int64_t count, void *cache)
{
    const int64_t columns = args->kv_heads * args->head_dim;
    for (int64_t t = 0; t < count; t++)
        memcpy((float *)cache + (position + t) * columns, (const float *)x + t * stride,
               (size_t)columns * sizeof(float));
}

static void attend_cached(void *context, int64_t index, int lane)
{
    cached_work *work = context;
    const hdi_attention_cached_args *args = work->args;
    const int64_t head = index % args->heads, first = index / args->heads * HDI_CPU_QUERIES;
    const int64_t kv_head = head * args->kv_heads / args->heads;
    const int64_t queries = hdi_cpu_min(HDI_CPU_QUERIES, work->count - first);
    const int64_t stride = args->kv_heads * args->head_dim;
    const hdi_cpu_attention_block one = {
        .queries = queries,
        .keys = work->position + first + queries,
        .head_dim = args->head_dim,
        .visible = work->position + first + 1,
        .q_stride = args->q_stride,
        .k_stride = stride,
        .v_stride = stride,
        .out_stride = args->out_stride,
        .scale = args->scale,
        .causal = true,
        .q = (const float *)args->q + first * args->q_stride + head * args->head_dim,
        .k = (const float *)args->k_cache + kv_head * args->head_dim,
        .v = (const float *)args->v_cache + kv_head * args->head_dim,
        .out = (float *)args->out + first * args->out_stride + head * args->head_dim,
        .scores =
            (float *)args->workspace + lane * hdi_cpu_score_floats(args->tokens, args->capacity),
    };
    if (!hdi_cpu_attend_block(&one)) atomic_store(&work->failed, true);
}

hd_status hdi_cpu_attention_cached(hd_stream *stream, const hdi_attention_cached_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("cached attention", args->dtype));
    cached_work work = {.args = args, .position = *args->position, .count = *args->count};
    if (work.position < 0 || work.count < 0 || work.count > args->tokens ||
        work.position + work.count > args->capacity)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "cached attention: %" PRId64 " tokens at position %" PRId64
                         ", want at most %" PRId64 " tokens within a capacity of %" PRId64,
                         work.count, work.position, args->tokens, args->capacity);
    append(args, args->k, args->k_stride, work.position, work.count, args->k_cache);
    append(args, args->v, args->v_stride, work.position, work.count, args->v_cache);
    const int saved = hdi_cpu_blas_enter();
    hdi_cpu_parallel(hdi_ceil_div(work.count, HDI_CPU_QUERIES) * args->heads, attend_cached, &work);
    hdi_cpu_blas_leave(saved);
    if (atomic_load(&work.failed))
        return hdi_error(HD_ERROR_DEVICE, "cached attention: the BLAS refused a product");
    return HD_OK;
}

size_t hdi_cpu_attention_cached_workspace(const hdi_attention_cached_args *args)
{
    return (size_t)hdi_cpu_lanes() * sizeof(float) *
           (size_t)hdi_cpu_score_floats(args->tokens, args->capacity);
}
