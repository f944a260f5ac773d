/* AdamW and averages on fp32 values: F32 weights, or what 16-bit weights are rounded from. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "backend/cpu/widen.h"
#include "core/error.h"

enum { PIECE = 1024 }; /* values that exist at a time where only 16 bits of them are kept */

static void update_by(const hdi_adamw_args *args, const float *gradient, int64_t first,
                      int64_t count, float *values)
{
    float *m = args->m + first, *v = args->v + first;
    const float rate = args->scalars[0], gradient_scale = args->scalars[1];
    const float kept = 1.0f - rate * args->weight_decay;
    const float beta1 = args->beta1, beta2 = args->beta2, epsilon = args->epsilon;
    const float step = rate / args->scalars[2];
    const float root_scale = 1.0f / sqrtf(args->scalars[3]);
    HDI_INDEPENDENT
    for (int64_t i = 0; i < count; i++) {
        const float g = gradient[i] * gradient_scale;
        const float mean = m[i] + (g - m[i]) * (1.0f - beta1);
        const float square = v[i] * beta2 + g * g * (1.0f - beta2);
        const float root = sqrtf(square) * root_scale + epsilon;
        m[i] = mean;
        v[i] = square;
        values[i] = values[i] * kept - step * mean / root;
    }
}

static void update(const hdi_adamw_args *args, int64_t first, int64_t count, float *values)
{
    if (args->gradient_dtype != HD_DTYPE_BF16) {
        update_by(args, (const float *)args->gradient + first, first, count, values);
        return;
    }
    float gradient[PIECE];
    for (int64_t done = 0; done < count; done += PIECE) {
        const int64_t piece = hdi_cpu_min(PIECE, count - done);
        hdi_cpu_widen(HD_DTYPE_BF16, (const uint16_t *)args->gradient + first + done, piece,
                      gradient);
        update_by(args, gradient, first + done, piece, values + done);
    }
}

static void split(hd_dtype dtype, const float *values, int64_t count, uint16_t *weights,
                  int16_t *remainder)
{
    for (int64_t i = 0; i < count; i++)
        weights[i] = hdi_half_weight(dtype, values[i]);
    for (int64_t i = 0; i < count && remainder; i++)
        remainder[i] = hdi_bf16_remainder(values[i]);
}

static void join(const uint16_t *weights, const int16_t *remainder, int64_t count, float *values)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = hdi_bf16_join(weights[i], remainder[i]);
}

static void update_chunk(void *context, int64_t index, int lane)
{
    const hdi_adamw_args *args = context;
    (void)lane;
    const int64_t first = index * HDI_CPU_CHUNK;
    const int64_t count = hdi_cpu_min(HDI_CPU_CHUNK, args->elements - first);
    if (args->dtype == HD_DTYPE_F32) {
        float *own = (float *)args->weights + first;
        float *values = args->master ? args->master + first : own;
        update(args, first, count, values);
        if (values != own) memcpy(own, values, (size_t)count * sizeof *own);
        return;
    }
    uint16_t *weights = args->weights;
    if (args->master) {
        update(args, first, count, args->master + first);
        split(args->dtype, args->master + first, count, weights + first, NULL);
        return;
    }
    float values[PIECE];
    for (int64_t at = first; at < first + count; at += PIECE) {
        const int64_t piece = hdi_cpu_min(PIECE, first + count - at);
        join(weights + at, args->remainder + at, piece, values);
        update(args, at, piece, values);
        split(args->dtype, values, piece, weights + at, args->remainder + at);
    }
}

hd_status hdi_cpu_adamw(hd_stream *stream, const hdi_adamw_args *args)
{
    (void)stream;
    if (!hdi_is_half(args->dtype)) HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("adamw", args->dtype));
    const bool kept = args->master || (args->remainder && args->dtype == HD_DTYPE_BF16);
    if (hdi_is_half(args->dtype) && !kept)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "adamw: weights are %s, want an fp32 master or, for BF16, remainders",
                         hd_dtype_name(args->dtype));
    if (args->scalars[4] == 0.0f) return HD_OK;
    hdi_adamw_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->elements, HDI_CPU_CHUNK), update_chunk, &work);
    return HD_OK;
}

static void average_chunk(void *context, int64_t index, int lane)
{
    const hdi_average_args *args = context;
    (void)lane;
    const int64_t first = index * HDI_CPU_CHUNK;
    const int64_t end = first + hdi_cpu_min(HDI_CPU_CHUNK, args->elements - first);
    const float share = args->share[0];
    const uint16_t *weights = args->weights;
    float *average = args->average;
    if (args->values)
        for (int64_t i = first; i < end; i++)
            average[i] += share * (args->values[i] - average[i]);
    else
        for (int64_t i = first; i < end; i++)
            average[i] += share * (hdi_bf16_join(weights[i], args->remainder[i]) - average[i]);
}

hd_status hdi_cpu_average(hd_stream *stream, const hdi_average_args *args)
{
    (void)stream;
    hdi_average_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->elements, HDI_CPU_CHUNK), average_chunk, &work);
    return HD_OK;
}

hd_status hdi_cpu_split_weights(hd_stream *stream, hd_dtype dtype, int64_t elements,
                                const float *values, void *weights, int16_t *remainder)
{
    (void)stream;
    split(dtype, values, elements, weights, remainder);
    return HD_OK;
}

hd_status hdi_cpu_join_weights(hd_stream *stream, int64_t elements, const void *weights,
                               const int16_t *remainder, float *values)
{
    (void)stream;
    join(weights, remainder, elements, values);
    return HD_OK;
}
