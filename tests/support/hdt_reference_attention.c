/* Attention and what makes its input, in fp64, written from the definitions. Pointers are to doubles. */
#include "tests/support/hdt_reference_attention.h"

#include <math.h>
#include <string.h>

/* One query and its keys, `stride` doubles apart; no keys give zeros. */
static void attend(const double *q, const double *keys, int64_t k_stride, const double *values,
                   int64_t v_stride, int64_t count, int64_t dim, double scale, double *out)
{
    double scores[256], max = -INFINITY, sum = 0;
    for (int64_t k = 0; k < count; k++) {
        scores[k] = 0;
        for (int64_t d = 0; d < dim; d++)
            scores[k] += q[d] * keys[k * k_stride + d] * scale;
        max = fmax(max, scores[k]);
    }
    for (int64_t k = 0; k < count; k++)
        sum += scores[k] = exp(scores[k] - max);
    for (int64_t d = 0; d < dim; d++) {
        out[d] = 0;
        for (int64_t k = 0; k < count; k++)
            out[d] += scores[k] / sum * values[k * v_stride + d];
    }
}

/* Heads are found by fp32 offsets in one packed matrix, which takes twice the room here. */
static const double *moved(const void *packed, const void *part)
{
    return (const double *)packed + ((const float *)part - (const float *)packed);
}

hd_status hdt_reference_attention(hd_stream *stream, const hdi_attention_args *args)
{
    (void)stream;
    const double *keys = moved(args->q, args->k), *values = moved(args->q, args->v);
    const int64_t dim = args->head_dim, between = args->interleave > 1 ? args->interleave : 1;
    for (int64_t i = 0; i < args->batch * args->tokens * args->heads; i++) {
        const int64_t head = i % args->heads, token = i / args->heads % args->tokens;
        const int64_t batch = i / args->heads / args->tokens;
        const int64_t kv_column = head * args->kv_heads / args->heads * dim;
        const int64_t group = batch / between * between, lane = batch % between;
        const int64_t row = group * args->tokens + token * between + lane;
        const int64_t key_row = group * args->kv_tokens + lane;
        const int64_t count = args->counts ? args->counts[batch] : args->kv_tokens;
        int64_t visible = args->causal ? token + 1 + args->kv_tokens - args->tokens : count;
        if (args->counts && token >= count) visible = 0;
        attend((const double *)args->q + row * args->q_stride + head * dim,
               keys + key_row * args->k_stride + kv_column, between * args->k_stride,
               values + key_row * args->v_stride + kv_column, between * args->v_stride, visible,
               dim, (double)args->scale, (double *)args->out + row * args->out_stride + head * dim);
    }
    return HD_OK;
}

hd_status hdt_reference_cross_attention(hd_stream *stream, const hdi_cross_attention_args *args)
{
    (void)stream;
    const double *keys = args->k, *values = moved(args->k, args->v);
    const int64_t dim = args->head_dim, each = args->kv_rows / args->sequences;
    for (int64_t i = 0; i < args->sequences * args->tokens * args->heads; i++) {
        const int64_t row = i / args->heads, column = i % args->heads * dim;
        const int64_t s = row / args->tokens;
        const int64_t first = args->offsets ? args->offsets[s] : s * each;
        const int64_t end = args->offsets ? args->offsets[s + 1] : first + each;
        attend((const double *)args->q + row * args->q_stride + column,
               keys + first * args->k_stride + column, args->k_stride,
               values + first * args->v_stride + column, args->v_stride, end - first, dim,
               (double)args->scale, (double *)args->out + row * args->out_stride + column);
    }
    return HD_OK;
}

static void rotate(const hdi_rope_axes *rope, int64_t token, int64_t head_dim, double *x)
{
    const double *table = (const double *)(const void *)rope->table;
    int64_t pair = 0;
    token -= rope->first;
    if (rope->count && (token < 0 || token >= rope->count)) return;
    token += rope->start;
    for (int a = 0; a < rope->axes; a++) {
        const int64_t position = token / rope->stride[a] % rope->length[a];
        const int64_t pairs = rope->dims[a] / 2;
        for (int64_t i = 0; i < pairs; i++, pair++) {
            const double c = table[2 * (position * pairs + i)];
            const double s = table[2 * (position * pairs + i) + 1];
            const int64_t first = rope->halves ? pair : 2 * pair;
            const int64_t second = rope->halves ? pair + head_dim / 2 : 2 * pair + 1;
            const double u = x[first], v = x[second];
            x[first] = u * c - v * s;
            x[second] = v * c + u * s;
        }
        table += rope->length[a] * rope->dims[a];
    }
}

hd_status hdt_reference_joint_qkv(hd_stream *stream, const hdi_joint_qkv_args *args)
{
    (void)stream;
    const int64_t dim = args->head_dim, part = args->heads * dim;
    for (int64_t r = 0; r < args->sequences * args->tokens; r++) {
        const int64_t token = r % args->tokens;
        const int64_t joint = r / args->tokens * args->out_tokens + args->first + token;
        double *out = (double *)args->out + joint * 3 * part;
        memcpy(out, (const double *)args->qkv + r * 3 * part, (size_t)(3 * part) * sizeof *out);
        for (int64_t c = 0; c < 2 * part; c += dim) {
            const double *weight = c < part ? args->query_norm : args->key_norm;
            double square = 0;
            for (int64_t d = 0; d < dim; d++)
                square += out[c + d] * out[c + d] / (double)dim;
            for (int64_t d = 0; d < dim && weight; d++)
                out[c + d] *= weight[d] / sqrt(square + (double)args->epsilon);
            rotate(&args->rope, token, dim, out + c);
        }
    }
    return HD_OK;
}
