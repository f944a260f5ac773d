/* Attention of queries to packed keys: each sequence is one of attention.c, with keys of its own
 * number. */
#include "backend/cpu/attention.h"
#include "backend/cpu/blas.h"
#include "backend/cpu/threads.h"
#include "core/error.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

typedef struct cross_work {
    const hdi_cross_attention_args *args;
    int64_t blocks; /* of queries in a sequence */
    atomic_bool failed;
} cross_work;

/* Rows [*first, *end) of the keys: whatever the offsets say, inside of them. */
static void keys_of(const hdi_cross_attention_args *args, int64_t sequence, int64_t *first,
                    int64_t *end)
{
    const int64_t each = args->kv_rows / args->sequences;
    const int64_t from = args->offsets ? args->offsets[sequence] : sequence * each;
    const int64_t to = args->offsets ? args->offsets[sequence + 1] : from + each;
    *first = hdi_cpu_min(from > 0 ? from : 0, args->kv_rows);
    *end = hdi_cpu_min(to > *first ? to : *first, args->kv_rows);
}

static hd_status check_keys(const hdi_cross_attention_args *args)
{
    int64_t first, end;
    for (int64_t s = 0; s < args->sequences && args->offsets && args->most_keys > 0; s++) {
        keys_of(args, s, &first, &end);
        if (end - first > args->most_keys)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "cross attention: %" PRId64 " keys of sequence %" PRId64
                             ", want at most %" PRId64,
                             end - first, s, args->most_keys);
    }
    return HD_OK;
}

static hdi_cpu_sequence sequence_of(const hdi_cross_attention_args *args, int64_t sequence)
{
    int64_t first, end;
    keys_of(args, sequence, &first, &end);
    const int64_t row = sequence * args->tokens;
    const int64_t q = row * args->q_stride, out = row * args->out_stride;
    const int64_t k = first * args->k_stride, v = first * args->v_stride;
    return (hdi_cpu_sequence){
        .args = {.dtype = HD_DTYPE_F32,
                 .batch = 1,
                 .tokens = args->tokens,
                 .kv_tokens = end - first,
                 .heads = args->heads,
                 .kv_heads = args->heads,
                 .head_dim = args->head_dim,
                 .q_stride = args->q_stride,
                 .k_stride = args->k_stride,
                 .v_stride = args->v_stride,
                 .out_stride = args->out_stride,
                 .scale = args->scale,
                 .q = (const float *)args->q + q,
                 .k = (const float *)args->k + k,
                 .v = (const float *)args->v + v,
                 .out = (float *)args->out + out,
                 .lse = args->lse ? args->lse + row * args->heads : NULL,
                 .out_gradient =
                     args->out_gradient ? (const float *)args->out_gradient + out : NULL,
                 .q_gradient = args->q_gradient ? (float *)args->q_gradient + q : NULL,
                 .k_gradient = args->k_gradient ? (float *)args->k_gradient + k : NULL,
                 .v_gradient = args->v_gradient ? (float *)args->v_gradient + v : NULL},
        .places = args->tokens,
        .lse_stride = args->tokens,
    };
}

static void attend(void *context, int64_t index, int lane)
{
    cross_work *work = context;
    const hdi_cross_attention_args *args = work->args;
    const hdi_cpu_sequence one = sequence_of(args, index / (args->heads * work->blocks));
    float *scores =
        (float *)args->workspace + lane * hdi_cpu_score_floats(args->tokens, args->kv_rows);
    if (!hdi_cpu_attend(&one, index / work->blocks % args->heads, index % work->blocks, scores))
        atomic_store(&work->failed, true);
}

static void attend_back(void *context, int64_t index, int lane)
{
    cross_work *work = context;
    const hdi_cross_attention_args *args = work->args;
    const hdi_cpu_sequence one = sequence_of(args, index / args->heads);
    const int64_t floats = hdi_cpu_score_floats(args->tokens, args->kv_rows);
    float *scores = (float *)args->workspace + 2 * lane * floats;
    if (!hdi_cpu_attend_back(&one, index % args->heads, scores, scores + floats))
        atomic_store(&work->failed, true);
}

static hd_status work_on(cross_work *work, int64_t items, hdi_cpu_work item)
{
    const int saved = hdi_cpu_blas_enter();
    hdi_cpu_parallel(items, item, work);
    hdi_cpu_blas_leave(saved);
    if (atomic_load(&work->failed))
        return hdi_error(HD_ERROR_DEVICE, "cross attention: the BLAS refused a product");
    return HD_OK;
}

hd_status hdi_cpu_cross_attention(hd_stream *stream, const hdi_cross_attention_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("cross attention", args->dtype));
    HD_RETURN_IF_ERROR(check_keys(args));
    cross_work work = {.args = args, .blocks = hdi_ceil_div(args->tokens, HDI_CPU_QUERIES)};
    return work_on(&work, args->sequences * args->heads * work.blocks, attend);
}

static void zero_keys(const hdi_cross_attention_args *args, int64_t first, int64_t end)
{
    const size_t bytes = (size_t)(args->heads * args->head_dim) * sizeof(float);
    for (int64_t r = first; r < end; r++) {
        memset((float *)args->k_gradient + r * args->k_stride, 0, bytes);
        memset((float *)args->v_gradient + r * args->v_stride, 0, bytes);
    }
}

hd_status hdi_cpu_cross_attention_gradient(hd_stream *stream, const hdi_cross_attention_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("cross attention gradient", args->dtype));
    HD_RETURN_IF_ERROR(check_keys(args));
    int64_t read = 0, first, end;
    for (int64_t s = 0; s < args->sequences; s++, read = end) {
        keys_of(args, s, &first, &end);
        zero_keys(args, read, first);
    }
    zero_keys(args, read, args->kv_rows);
    cross_work work = {.args = args};
    return work_on(&work, args->sequences * args->heads, attend_back);
}

size_t hdi_cpu_cross_attention_workspace(const hdi_cross_attention_args *args)
{
    return (size_t)hdi_cpu_lanes() * sizeof(float) *
           (size_t)hdi_cpu_score_floats(args->tokens, args->kv_rows);
}

size_t hdi_cpu_cross_attention_gradient_workspace(const hdi_cross_attention_args *args)
{
    return 2 * hdi_cpu_cross_attention_workspace(args);
}
