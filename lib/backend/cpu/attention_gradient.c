/* Attention backward: scores of a block of queries are computed again, then five small GEMMs. One
 * key head is one item of work, its queries in a fixed order, so gradients of keys need no partial
 * sums and are always exact. */
#include <stdatomic.h>
#include <string.h>

#include "backend/cpu/attention.h"
#include "backend/cpu/blas.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

/* probabilities[0:visible] = exp(scores - lse) in place; slopes = probabilities * (slopes - center)
 * * scale; both 0 from visible on. */
static void slopes_of_row(float *scores, float *slopes, int64_t visible, int64_t keys, float lse,
                          float center, float scale)
{
    HDI_INDEPENDENT
    for (int64_t c = 0; c < visible; c++) {
        const float probability = hdi_exp(scores[c] - lse);
        scores[c] = probability;
        slopes[c] = probability * (slopes[c] - center) * scale;
    }
    for (int64_t c = visible; c < keys; c++)
        scores[c] = slopes[c] = 0.0f;
}

/* Block `block` of queries of `head`: writes its q_gradient; adds to the gradients of its keys, or
 * writes them. */
static bool block_gradient(const hdi_cpu_sequence *one, int64_t head, int64_t block,
                           bool accumulate, float *scores, float *slopes)
{
    const hdi_attention_args *args = &one->args;
    const int64_t head_dim = args->head_dim, kv_head = head * args->kv_heads / args->heads;
    const int64_t first = block * HDI_CPU_QUERIES;
    const int64_t queries = hdi_cpu_min(HDI_CPU_QUERIES, args->tokens - first);
    const int64_t keys = hdi_cpu_visible(args, first + queries - 1);
    const int64_t q_offset = first * args->q_stride + head * head_dim;
    const int64_t key_offset = kv_head * head_dim;
    const int64_t out_offset = first * args->out_stride + head * head_dim;
    const float *q = (const float *)args->q + q_offset, *k = (const float *)args->k + key_offset;
    const float *v = (const float *)args->v + key_offset;
    const float *out = (const float *)args->out + out_offset;
    const float *gradient = (const float *)args->out_gradient + out_offset;
    const float *lse = args->lse + head * one->lse_stride + first;

    bool done = hdi_cpu_sgemm(false, true, queries, keys, head_dim, args->scale, q, args->q_stride,
                              k, args->k_stride, false, scores, keys) &&
                hdi_cpu_sgemm(false, true, queries, keys, head_dim, 1.0f, gradient,
                              args->out_stride, v, args->v_stride, false, slopes, keys);
    for (int64_t i = 0; i < queries; i++) {
        /* The sum of probability times slope over the keys, from the output. */
        const float center =
            hdi_dot(gradient + i * args->out_stride, out + i * args->out_stride, head_dim);
        slopes_of_row(scores + i * keys, slopes + i * keys, hdi_cpu_visible(args, first + i), keys,
                      lse[i], center, args->scale);
    }
    return done &&
           hdi_cpu_sgemm(true, false, keys, head_dim, queries, 1.0f, scores, keys, gradient,
                         args->out_stride, accumulate, (float *)args->v_gradient + key_offset,
                         args->v_stride) &&
           hdi_cpu_sgemm(true, false, keys, head_dim, queries, 1.0f, slopes, keys, q,
                         args->q_stride, accumulate, (float *)args->k_gradient + key_offset,
                         args->k_stride) &&
           hdi_cpu_sgemm(false, false, queries, head_dim, keys, 1.0f, slopes, keys, k,
                         args->k_stride, false, (float *)args->q_gradient + q_offset,
                         args->q_stride);
}

static void zero_rows(void *x, int64_t stride, int64_t column, int64_t columns, int64_t first,
                      int64_t end)
{
    for (int64_t r = first; r < end; r++)
        memset((float *)x + r * stride + column, 0, (size_t)columns * sizeof(float));
}

bool hdi_cpu_attend_back(const hdi_cpu_sequence *one, int64_t kv_head, float *scores, float *slopes)
{
    const hdi_attention_args *args = &one->args;
    const int64_t head_dim = args->head_dim, column = kv_head * head_dim;
    const int64_t tokens = args->kv_tokens > 0 ? args->tokens : 0;
    const int64_t blocks = hdi_ceil_div(tokens, HDI_CPU_QUERIES);
    bool accumulate = false, done = true;
    for (int64_t head = 0; head < args->heads; head++) {
        if (head * args->kv_heads / args->heads != kv_head) continue;
        /* The last block sees every key, so it writes where the others add. */
        for (int64_t block = blocks - 1; block >= 0; block--, accumulate = true)
            done = block_gradient(one, head, block, accumulate, scores, slopes) && done;
        zero_rows(args->q_gradient, args->q_stride, head * head_dim, head_dim, tokens, one->places);
    }
    /* Places without a token, as keys; and keys that nobody sees. */
    const int64_t seen = accumulate ? args->kv_tokens : 0;
    zero_rows(args->k_gradient, args->k_stride, column, head_dim, seen, one->key_places);
    zero_rows(args->v_gradient, args->v_stride, column, head_dim, seen, one->key_places);
    return done;
}

typedef struct backward_work {
    const hdi_attention_args *args;
    atomic_bool failed;
} backward_work;

static void attend_back(void *context, int64_t index, int lane)
{
    backward_work *work = context;
    const hdi_attention_args *args = work->args;
    const int64_t floats = hdi_cpu_score_floats(args->tokens, args->kv_tokens);
    float *scores = (float *)args->workspace + 2 * lane * floats;
    const hdi_cpu_sequence one = hdi_cpu_attention_sequence(args, index / args->kv_heads);
    if (!hdi_cpu_attend_back(&one, index % args->kv_heads, scores, scores + floats))
        atomic_store(&work->failed, true);
}

hd_status hdi_cpu_attention_gradient(hd_stream *stream, const hdi_attention_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("attention gradient", args->dtype));
    backward_work work = {.args = args};
    const int saved = hdi_cpu_blas_enter();
    hdi_cpu_parallel(args->batch * args->kv_heads, attend_back, &work);
    hdi_cpu_blas_leave(saved);
    if (atomic_load(&work.failed))
        return hdi_error(HD_ERROR_DEVICE, "attention gradient: the BLAS refused a product");
    return HD_OK;
}

size_t hdi_cpu_attention_gradient_workspace(const hdi_attention_args *args)
{
    return 2 * (size_t)hdi_cpu_lanes() * sizeof(float) *
           (size_t)hdi_cpu_score_floats(args->tokens, args->kv_tokens);
}
