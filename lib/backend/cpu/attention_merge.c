/* Attention of the same queries to several runs of keys, joined; and sums of blocks in fp32. */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "core/half.h"

static float element_of(hd_dtype dtype, const void *x, int64_t index)
{
    return dtype == HD_DTYPE_F32 ? ((const float *)x)[index]
                                 : hdi_half_to_float(dtype, ((const uint16_t *)x)[index]);
}

/* Shares of what is there and of what comes; both 0 where neither has seen a key. */
static void weigh(float *lse, float x_lse, float *old, float *new)
{
    const float max = fmaxf(*lse, x_lse);
    *old = *new = 0.0f;
    if (max == -INFINITY) {
        *lse = max;
        return;
    }
    const float a = expf(*lse - max), b = expf(x_lse - max);
    *old = a / (a + b);
    *new = b / (a + b);
    *lse = max + logf(a + b);
}

/* One token's heads. */
static void merge_token(void *context, int64_t index, int lane)
{
    const hdi_merge_attention_args *args = context;
    (void)lane;
    const int64_t s = index / args->count, t = index % args->count, token = args->first + t;
    const bool valid = !args->counts || token < args->counts[s];
    for (int64_t h = 0; h < args->heads; h++) {
        float *lse = args->lse + (s * args->heads + h) * args->tokens + token;
        float *out = args->out + ((s * args->tokens + token) * args->heads + h) * args->head_dim;
        const int64_t x = (index * args->heads + h) * args->head_dim;
        if (!valid) {
            *lse = INFINITY;
            memset(out, 0, (size_t)args->head_dim * sizeof *out);
            continue;
        }
        float old, new;
        if (args->begins) *lse = -INFINITY;
        weigh(lse, args->x_lse[(s * args->heads + h) * args->count + t], &old, &new);
        for (int64_t c = 0; c < args->head_dim; c++) {
            const float kept = old > 0.0f ? old * out[c] : 0.0f;
            out[c] = kept + (new > 0.0f ? new *element_of(args->dtype, args->x, x + c) : 0.0f);
        }
    }
}

hd_status hdi_cpu_merge_attention(hd_stream *stream, const hdi_merge_attention_args *args)
{
    (void)stream;
    hdi_merge_attention_args work = *args;
    hdi_cpu_parallel(args->sequences * args->count, merge_token, &work);
    return HD_OK;
}

static void add_block(void *context, int64_t index, int lane)
{
    const hdi_add_blocks_args *args = context;
    (void)lane;
    float *out = args->out + index * args->stride;
    for (int64_t i = 0; i < args->elements; i++)
        out[i] += element_of(args->dtype, args->x, index * args->elements + i);
}

hd_status hdi_cpu_add_blocks(hd_stream *stream, const hdi_add_blocks_args *args)
{
    (void)stream;
    hdi_add_blocks_args work = *args;
    hdi_cpu_parallel(args->blocks, add_block, &work);
    return HD_OK;
}
