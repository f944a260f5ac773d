/* GELU and SiLU, alone and as gates, forward and backward. The functions have no branches, so that
 * their loops become vector code. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

/* `yes` where condition holds, else `no`. Through bits: the compiler may not turn it into a branch
 * around the computation of either, which would end vectorisation. */
static inline float pick(bool condition, float yes, float no)
{
    uint32_t mask = 0u - (uint32_t)condition, a, b;
    memcpy(&a, &yes, sizeof a);
    memcpy(&b, &no, sizeof b);
    a = (a & mask) | (b & ~mask);
    float out;
    memcpy(&out, &a, sizeof out);
    return out;
}

/* The normal distribution function of x, and *tail = exp(-x^2 / 2). Near 0 by erf, elsewhere by
 * erfc(z) = t * P(t) * exp(-z^2), t = 1 / (z + 1.5): both minimax, below 2e-8 relative. */
static inline float normal_cdf(float x, float *tail)
{
    const float z = fabsf(x) * 0.707106781f, square = x * x * 0.5f;
    *tail = hdi_exp(-square);
    float p = 7.8538577e-5f;
    p = hdi_multiply_add(p, square, -8.0101926e-4f);
    p = hdi_multiply_add(p, square, 5.1883276e-3f);
    p = hdi_multiply_add(p, square, -2.6853812e-2f);
    p = hdi_multiply_add(p, square, 0.112835853f);
    p = hdi_multiply_add(p, square, -0.376126258f);
    p = hdi_multiply_add(p, square, 1.12837917f);
    const float t = 1.0f / (z + 1.5f);
    float q = -4.87097613f;
    q = hdi_multiply_add(q, t, 11.0045862f);
    q = hdi_multiply_add(q, t, -8.27768765f);
    q = hdi_multiply_add(q, t, 1.11449616f);
    q = hdi_multiply_add(q, t, 0.374552377f);
    q = hdi_multiply_add(q, t, 1.01190079f);
    q = hdi_multiply_add(q, t, 0.845010838f);
    q = hdi_multiply_add(q, t, 0.564217383f);
    const float half_erfc = 0.5f * t * q * *tail;
    const float near = hdi_multiply_add(p * x, 0.353553391f, 0.5f); /* x / sqrt(2) / 2 */
    const float far = pick(x > 0.0f, 1.0f - half_erfc, half_erfc);
    return pick(z < 1.0f, near, far);
}

static inline float gelu_erf(float x)
{
    float tail;
    return x * normal_cdf(x, &tail);
}

static inline float gelu_erf_slope(float x)
{
    float tail;
    const float cdf = normal_cdf(x, &tail);
    return hdi_multiply_add(x * 0.398942280f, tail, cdf); /* 1 / sqrt(2 pi) */
}

/* 0.5 * (1 + tanh(u)) = sigmoid(2u): no cancellation for negative x. */
static inline float gelu_tanh(float x)
{
    const float twice = x * hdi_multiply_add(0.0713548163f * x, x, 1.59576912f);
    return x * hdi_sigmoid(twice);
}

static inline float gelu_tanh_slope(float x)
{
    const float twice = x * hdi_multiply_add(0.0713548163f * x, x, 1.59576912f);
    const float slope = hdi_multiply_add(0.214064449f * x, x, 1.59576912f);
    const float e = hdi_exp(-twice), s = 1.0f / (1.0f + e);
    return hdi_multiply_add(x * slope * s, e * s, s); /* e * s = 1 - s */
}

static inline float silu(float x)
{
    return x * hdi_sigmoid(x);
}

static inline float silu_slope(float x)
{
    const float e = hdi_exp(-x), s = 1.0f / (1.0f + e);
    return hdi_multiply_add(x * s, e * s, s);
}

/* `expression` for c in [0, count) into target[c]; one loop per kind, with the kind outside. */
#define EACH_KIND(kind, count, target, on_erf, on_tanh, on_silu) \
    switch (kind) {                                              \
    case HDI_GELU_ERF: LOOP(count, target, on_erf) break;        \
    case HDI_GELU_TANH: LOOP(count, target, on_tanh) break;      \
    case HDI_SILU: LOOP(count, target, on_silu) break;           \
    }
#define LOOP(count, target, expression)     \
    HDI_INDEPENDENT                         \
    for (int64_t c = 0; c < (count); c++) { \
        (target)[c] = (expression);         \
    }

static void apply(hdi_activation kind, const float *x, int64_t count, float *out)
{
    EACH_KIND(kind, count, out, gelu_erf(x[c]), gelu_tanh(x[c]), silu(x[c]))
}

/* out = gradient * f'(x). */
static void apply_slope(hdi_activation kind, const float *x, const float *gradient, int64_t count,
                        float *out)
{
    EACH_KIND(kind, count, out, gradient[c] * gelu_erf_slope(x[c]),
              gradient[c] * gelu_tanh_slope(x[c]), gradient[c] * silu_slope(x[c]))
}

static void activate_chunk(void *context, int64_t index, int lane)
{
    const hdi_activation_args *args = context;
    (void)lane;
    const int64_t first = index * HDI_CPU_CHUNK;
    const int64_t count = hdi_cpu_min(HDI_CPU_CHUNK, args->elements - first);
    const float *x = (const float *)args->x + first;
    float *out = (float *)args->out + first;
    if (args->gradient)
        apply_slope(args->kind, x, (const float *)args->gradient + first, count, out);
    else
        apply(args->kind, x, count, out);
}

hd_status hdi_cpu_activation(hd_stream *stream, const hdi_activation_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("activation", args->dtype));
    hdi_activation_args work = *args;
    work.gradient = NULL;
    hdi_cpu_parallel(hdi_ceil_div(args->elements, HDI_CPU_CHUNK), activate_chunk, &work);
    return HD_OK;
}

hd_status hdi_cpu_activation_gradient(hd_stream *stream, const hdi_activation_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("activation gradient", args->dtype));
    hdi_activation_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->elements, HDI_CPU_CHUNK), activate_chunk, &work);
    return HD_OK;
}

enum { SEGMENT = 1024 }; /* columns of a gated row that are done through the stack */

/* Through the stack, so that outputs may lie on inputs. */
static void gate_rows(void *context, int64_t index, int lane)
{
    const hdi_gated_args *args = context;
    (void)lane;
    const int64_t columns = args->columns, chunk = hdi_cpu_chunk_rows(columns);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->rows);
    float value[SEGMENT], slope[SEGMENT];
    for (int64_t r = index * chunk; r < end; r++) {
        for (int64_t first = 0; first < columns; first += SEGMENT) {
            const int64_t count = hdi_cpu_min(SEGMENT, columns - first);
            const float *gate = (const float *)args->x + 2 * r * columns + first;
            const float *up = gate + columns;
            apply(args->kind, gate, count, value);
            if (!args->gradient) {
                float *out = (float *)args->out + r * columns + first;
                LOOP(count, out, value[c] * up[c])
                continue;
            }
            const float *gradient = (const float *)args->gradient + r * columns + first;
            float *gate_gradient = (float *)args->x_gradient + 2 * r * columns + first;
            float *up_gradient = gate_gradient + columns;
            apply_slope(args->kind, gate, gradient, count, slope);
            HDI_INDEPENDENT
            for (int64_t c = 0; c < count; c++) {
                gate_gradient[c] = slope[c] * up[c];
                up_gradient[c] = gradient[c] * value[c];
            }
        }
    }
}

hd_status hdi_cpu_gated(hd_stream *stream, const hdi_gated_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("gated activation", args->dtype));
    hdi_gated_args work = *args;
    work.gradient = NULL;
    hdi_cpu_parallel(hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->columns)), gate_rows, &work);
    return HD_OK;
}

hd_status hdi_cpu_gated_gradient(hd_stream *stream, const hdi_gated_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("gated activation gradient", args->dtype));
    hdi_gated_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->columns)), gate_rows, &work);
    return HD_OK;
}
