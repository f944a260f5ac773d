/* Query, key and value rows into a joint matrix: RMS norm of each query and key head, rotation on up
 * to three axes. Memory is F32; args->dtype says what is rounded to between the steps. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/half.h"

#include <string.h>

static void round_to(hd_dtype dtype, int64_t count, float *x)
{
    if (dtype == HD_DTYPE_F32) return;
    for (int64_t c = 0; c < count; c++)
        x[c] = hdi_half_to_float(dtype, hdi_half_from_float(dtype, x[c]));
}

/* `pairs` pairs (first[i * step], second[i * step]), by the table's angles, or back by sign -1. In
 * place allowed. */
static inline void rotate(const float *first, const float *second, int64_t step, const float *table,
                          float sign, int64_t pairs, float *first_out, float *second_out)
{
    HDI_INDEPENDENT
    for (int64_t i = 0; i < pairs; i++) {
        const float cosine = table[2 * i], sine = sign * table[2 * i + 1];
        const float a = first[i * step], b = second[i * step];
        first_out[i * step] = a * cosine - b * sine;
        second_out[i * step] = b * cosine + a * sine;
    }
}

/* Where each axis's angles of a token are in the table; NULL if it does not turn. */
static void angles_of(const hdi_rope_axes *rope, int64_t token, const float *angles[3])
{
    const float *table = rope->table;
    token -= rope->first;
    if (rope->count && (token < 0 || token >= rope->count)) return;
    token += rope->start;
    for (int a = 0; a < rope->axes; a++) {
        angles[a] = table + token / rope->stride[a] % rope->length[a] * rope->dims[a];
        table += rope->length[a] * rope->dims[a];
    }
}

static void rotate_head(const hdi_rope_axes *rope, const float *const angles[3], float sign,
                        int64_t head_dim, const float *x, float *out)
{
    const int64_t half = head_dim / 2;
    for (int64_t a = 0, pair = 0; a < rope->axes; pair += rope->dims[a++] / 2) {
        const int64_t pairs = rope->dims[a] / 2;
        if (rope->halves)
            rotate(x + pair, x + half + pair, 1, angles[a], sign, pairs, out + pair,
                   out + half + pair);
        else
            rotate(x + 2 * pair, x + 2 * pair + 1, 2, angles[a], sign, pairs, out + 2 * pair,
                   out + 2 * pair + 1);
    }
}

static float inverse_deviation(const float *x, int64_t columns, float epsilon)
{
    return 1.0f / sqrtf(hdi_sum_of_squares(x, 0.0f, columns) / (float)columns + epsilon);
}

static void make_head(const hdi_joint_qkv_args *args, const float *x, const float *weight,
                      const float *const angles[3], float *out)
{
    const int64_t columns = args->head_dim;
    if (weight) {
        const float rstd = inverse_deviation(x, columns, args->epsilon);
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            out[c] = x[c] * rstd;
        round_to(args->dtype, columns, out);
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            out[c] *= weight[c];
        round_to(args->dtype, columns, out);
        x = out;
    }
    if (angles[0])
        rotate_head(&args->rope, angles, 1.0f, columns, x, out);
    else if (out != x)
        memcpy(out, x, (size_t)columns * sizeof *x);
}

/* The row of the joint matrix that a row of the stream goes to. */
static int64_t joint_row(const hdi_joint_qkv_args *args, int64_t row)
{
    return row / args->tokens * args->out_tokens + args->first + row % args->tokens;
}

static void make_rows(void *context, int64_t index, int lane)
{
    const hdi_joint_qkv_args *args = context;
    (void)lane;
    const int64_t part = args->heads * args->head_dim, columns = 3 * part;
    const int64_t chunk = hdi_cpu_chunk_rows(columns);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->sequences * args->tokens);
    for (int64_t r = index * chunk; r < end; r++) {
        const float *x = (const float *)args->qkv + r * columns, *angles[3] = {0};
        float *out = (float *)args->out + joint_row(args, r) * columns;
        angles_of(&args->rope, r % args->tokens, angles);
        for (int64_t c = 0; c < 2 * part; c += args->head_dim)
            make_head(args, x + c, c < part ? args->query_norm : args->key_norm, angles, out + c);
        if (out != x) memcpy(out + 2 * part, x + 2 * part, (size_t)part * sizeof *x);
    }
}

hd_status hdi_cpu_joint_qkv(hd_stream *stream, const hdi_joint_qkv_args *args)
{
    (void)stream;
    hdi_joint_qkv_args work = *args;
    const int64_t chunk = hdi_cpu_chunk_rows(3 * args->heads * args->head_dim);
    hdi_cpu_parallel(hdi_ceil_div(args->sequences * args->tokens, chunk), make_rows, &work);
    return HD_OK;
}

/* gradient is that of the normed head, and becomes that of x; the weight's is added up. */
static void norm_back(const float *x, const float *weight, float epsilon, int64_t columns,
                      float *gradient, float *weight_gradient)
{
    const float rstd = inverse_deviation(x, columns, epsilon);
    if (weight_gradient) {
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            weight_gradient[c] += gradient[c] * (x[c] * rstd);
    }
    HDI_INDEPENDENT
    for (int64_t c = 0; c < columns; c++)
        gradient[c] *= weight[c];
    const float slope = hdi_dot(gradient, x, columns) * rstd / (float)columns;
    HDI_INDEPENDENT
    for (int64_t c = 0; c < columns; c++)
        gradient[c] = rstd * (gradient[c] - x[c] * rstd * slope);
}

static void gradient_of_row(const hdi_joint_qkv_gradient_args *args, int64_t r, float *partials)
{
    const hdi_joint_qkv_args *forward = &args->forward;
    const int64_t head_dim = forward->head_dim, part = forward->heads * head_dim;
    const float *x = (const float *)forward->qkv + r * 3 * part, *angles[3] = {0};
    const float *gradient = (const float *)args->gradient + joint_row(forward, r) * 3 * part;
    float *out = (float *)args->qkv_gradient + r * 3 * part;
    angles_of(&forward->rope, r % forward->tokens, angles);
    for (int64_t c = 0; c < 2 * part; c += head_dim) {
        const bool is_query = c < part;
        const float *weight = is_query ? forward->query_norm : forward->key_norm;
        if (angles[0])
            rotate_head(&forward->rope, angles, -1.0f, head_dim, gradient + c, out + c);
        else if (out != gradient)
            memcpy(out + c, gradient + c, (size_t)head_dim * sizeof *out);
        if (weight)
            norm_back(x + c, weight, forward->epsilon, head_dim, out + c,
                      partials ? partials + (is_query ? 0 : head_dim) : NULL);
    }
    if (out != gradient) memcpy(out + 2 * part, gradient + 2 * part, (size_t)part * sizeof *out);
}

static void gradient_of_part(void *context, int64_t index, int lane)
{
    const hdi_joint_qkv_gradient_args *args = context;
    (void)lane;
    const int64_t rows = args->forward.sequences * args->forward.tokens;
    const int64_t chunk = hdi_ceil_div(rows, args->partial_rows);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, rows);
    const int64_t columns = 2 * args->forward.head_dim;
    float *partials = args->partials ? args->partials + index * columns : NULL;
    if (partials) memset(partials, 0, (size_t)columns * sizeof *partials);
    for (int64_t r = index * chunk; r < end; r++)
        gradient_of_row(args, r, partials);
}

hd_status hdi_cpu_joint_qkv_gradient(hd_stream *stream, const hdi_joint_qkv_gradient_args *args)
{
    (void)stream;
    hdi_joint_qkv_gradient_args work = *args;
    const hdi_joint_qkv_args *forward = &args->forward;
    if (!args->partials)
        work.partial_rows =
            hdi_ceil_div(forward->sequences * forward->tokens,
                         hdi_cpu_chunk_rows(3 * forward->heads * forward->head_dim));
    hdi_cpu_parallel(work.partial_rows, gradient_of_part, &work);
    return HD_OK;
}
