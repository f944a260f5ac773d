/* Attention forward: a block of queries of one head at a time, through two small GEMMs. Blocks do
 * not depend on each other, so threads share them in any order. */
#include "backend/cpu/attention.h"

#include <stdatomic.h>
#include <string.h>

#include "backend/cpu/blas.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

/* scores[0:visible] = exp(scores - max), the rest 0. Returns their sum, *max is 0 if none. */
static float exponentials(float *scores, int64_t visible, int64_t keys, float *max)
{
    *max = visible > 0 ? hdi_max(scores, visible) : 0.0f;
    const float shift = *max;
    HDI_INDEPENDENT
    for (int64_t c = 0; c < visible; c++)
        scores[c] = hdi_exp(scores[c] - shift);
    for (int64_t c = visible; c < keys; c++)
        scores[c] = 0.0f;
    return hdi_sum(scores, visible);
}

bool hdi_cpu_attend_block(const hdi_cpu_attention_block *block)
{
    float inverse[HDI_CPU_QUERIES];
    bool done = hdi_cpu_sgemm(false, true, block->queries, block->keys, block->head_dim,
                              block->scale, block->q, block->q_stride, block->k, block->k_stride,
                              false, block->scores, block->keys);
    for (int64_t q = 0; q < block->queries; q++) {
        int64_t visible = block->causal ? block->visible + q : block->keys;
        visible = visible < 0 ? 0 : hdi_cpu_min(visible, block->keys);
        float max;
        const float sum = exponentials(block->scores + q * block->keys, visible, block->keys, &max);
        inverse[q] = visible > 0 ? 1.0f / sum : 0.0f;
        if (block->lse) block->lse[q] = visible > 0 ? max + logf(sum) : -INFINITY;
    }
    done = done && hdi_cpu_sgemm(false, false, block->queries, block->head_dim, block->keys, 1.0f,
                                 block->scores, block->keys, block->v, block->v_stride, false,
                                 block->out, block->out_stride);
    for (int64_t q = 0; q < block->queries; q++) {
        float *out = block->out + q * block->out_stride;
        HDI_INDEPENDENT
        for (int64_t c = 0; c < block->head_dim; c++)
            out[c] *= inverse[q];
    }
    return done;
}

static const float *move(const void *x, int64_t elements)
{
    return x ? (const float *)x + elements : NULL;
}

static int64_t counted(int32_t count, int64_t most)
{
    return count < 0 ? 0 : hdi_cpu_min(count, most);
}

hdi_cpu_sequence hdi_cpu_attention_sequence(const hdi_attention_args *args, int64_t batch)
{
    const int64_t between = args->interleave > 1 ? args->interleave : 1;
    const int64_t group = batch / between, lane = batch % between;
    const int64_t row = group * args->tokens * between + lane;
    const int64_t key_row = group * args->kv_tokens * between + lane;
    hdi_cpu_sequence one = {.args = *args,
                            .places = args->tokens,
                            .key_places = args->kv_tokens,
                            .lse_stride = args->tokens};
    hdi_attention_args *own = &one.args;
    own->batch = own->interleave = 1;
    own->counts = own->kv_counts = NULL;
    if (args->counts) own->tokens = counted(args->counts[batch], args->tokens);
    if (args->counts)
        own->kv_tokens =
            args->kv_counts ? counted(args->kv_counts[batch], args->kv_tokens) : own->tokens;
    const int64_t q = row * args->q_stride, out = row * args->out_stride;
    const int64_t k = key_row * args->k_stride, v = key_row * args->v_stride;
    own->q = move(args->q, q);
    own->k = move(args->k, k);
    own->v = move(args->v, v);
    own->out = args->out ? (float *)args->out + out : NULL;
    own->lse = args->lse ? args->lse + batch * args->heads * args->tokens : NULL;
    own->out_gradient = move(args->out_gradient, out);
    own->q_gradient = args->q_gradient ? (float *)args->q_gradient + q : NULL;
    own->k_gradient = args->k_gradient ? (float *)args->k_gradient + k : NULL;
    own->v_gradient = args->v_gradient ? (float *)args->v_gradient + v : NULL;
    own->q_stride *= between;
    own->k_stride *= between;
    own->v_stride *= between;
    own->out_stride *= between;
    return one;
}

/* Queries that see nothing. */
static void attend_nothing(const hdi_cpu_sequence *one, int64_t head, int64_t first, int64_t end)
{
    const hdi_attention_args *args = &one->args;
    for (int64_t t = first; t < end; t++) {
        memset((float *)args->out + t * args->out_stride + head * args->head_dim, 0,
               (size_t)args->head_dim * sizeof(float));
        if (args->lse) args->lse[head * one->lse_stride + t] = -INFINITY;
    }
}

bool hdi_cpu_attend(const hdi_cpu_sequence *one, int64_t head, int64_t block, float *scores)
{
    const hdi_attention_args *args = &one->args;
    const int64_t kv_head = head * args->kv_heads / args->heads;
    const int64_t first = block * HDI_CPU_QUERIES;
    const int64_t last = hdi_cpu_min(first + HDI_CPU_QUERIES, one->places);
    const int64_t end = args->kv_tokens > 0 ? hdi_cpu_min(last, args->tokens) : first;
    attend_nothing(one, head, end > first ? end : first, last);
    if (end <= first) return true;
    return hdi_cpu_attend_block(&(hdi_cpu_attention_block){
        .queries = end - first,
        .keys = hdi_cpu_visible(args, end - 1),
        .head_dim = args->head_dim,
        .visible = first + args->kv_tokens - args->tokens + 1,
        .q_stride = args->q_stride,
        .k_stride = args->k_stride,
        .v_stride = args->v_stride,
        .out_stride = args->out_stride,
        .scale = args->scale,
        .causal = args->causal,
        .q = (const float *)args->q + first * args->q_stride + head * args->head_dim,
        .k = (const float *)args->k + kv_head * args->head_dim,
        .v = (const float *)args->v + kv_head * args->head_dim,
        .out = (float *)args->out + first * args->out_stride + head * args->head_dim,
        .scores = scores,
        .lse = args->lse ? args->lse + head * one->lse_stride + first : NULL,
    });
}

typedef struct forward_work {
    const hdi_attention_args *args;
    int64_t blocks; /* of queries in a sequence */
    atomic_bool failed;
} forward_work;

static void attend(void *context, int64_t index, int lane)
{
    forward_work *work = context;
    const hdi_attention_args *args = work->args;
    /* Late blocks see the most keys: they go first, so that no thread is left with one at the end. */
    const int64_t block = work->blocks - 1 - index / (args->batch * args->heads);
    const int64_t head = index % args->heads, batch = index / args->heads % args->batch;
    const hdi_cpu_sequence one = hdi_cpu_attention_sequence(args, batch);
    float *scores =
        (float *)args->workspace + lane * hdi_cpu_score_floats(args->tokens, args->kv_tokens);
    if (!hdi_cpu_attend(&one, head, block, scores)) atomic_store(&work->failed, true);
}

hd_status hdi_cpu_attention(hd_stream *stream, const hdi_attention_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("attention", args->dtype));
    forward_work work = {.args = args, .blocks = hdi_ceil_div(args->tokens, HDI_CPU_QUERIES)};
    const int saved = hdi_cpu_blas_enter();
    hdi_cpu_parallel(work.blocks * args->batch * args->heads, attend, &work);
    hdi_cpu_blas_leave(saved);
    if (atomic_load(&work.failed))
        return hdi_error(HD_ERROR_DEVICE, "attention: the BLAS refused a product");
    return HD_OK;
}

size_t hdi_cpu_attention_workspace(const hdi_attention_args *args)
{
    return (size_t)hdi_cpu_lanes() * sizeof(float) *
           (size_t)hdi_cpu_score_floats(args->tokens, args->kv_tokens);
}
