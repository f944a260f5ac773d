/* Loops that compilers turn into vector code: reductions with a fixed shape (so that their bits do
 * not depend on alignment) and elementary functions without branches. */
#ifndef HDI_BACKEND_CPU_VECTOR_H
#define HDI_BACKEND_CPU_VECTOR_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Before a loop whose iterations touch only their own element: in-place calls stay vectorised. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* a loop left as it is (low OPT) is no fault */
#define HDI_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define HDI_INDEPENDENT _Pragma("GCC ivdep")
#endif

static inline float hdi_multiply_add(float a, float b, float c)
{
#ifdef __FMA__
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* Eight lanes, four of them at a time: enough independent sums to hide the latency of an add. */
typedef float hdi_lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t hdi_lane_bits __attribute__((vector_size(32)));
enum { HDI_LANES = 8, HDI_STRIDE = 4 * HDI_LANES };

/* The `part`-th eight floats from address `x`. */
#define HDI_AT(x, part) (((const hdi_lanes *)(x))[part])

/* sum = the sum of the lanes of four vectors. A macro: vectors as arguments would need AVX. */
#define HDI_FOLD(sum, a, b, c, d)                             \
    do {                                                      \
        const hdi_lanes all_ = ((a) + (b)) + ((c) + (d));     \
        (sum) = ((all_[0] + all_[4]) + (all_[1] + all_[5])) + \
                ((all_[2] + all_[6]) + (all_[3] + all_[7]));  \
    } while (0)

/* largest = x in the lanes where x is larger. */
#define HDI_KEEP_LARGER(largest, x)                                                             \
    do {                                                                                        \
        const hdi_lanes x_ = (x);                                                               \
        const hdi_lane_bits larger_ = x_ > (largest);                                           \
        (largest) =                                                                             \
            (hdi_lanes)(((hdi_lane_bits)x_ & larger_) | ((hdi_lane_bits)(largest) & ~larger_)); \
    } while (0)

static inline float hdi_sum(const float *x, int64_t count)
{
    hdi_lanes a = {0}, b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + HDI_STRIDE <= count; i += HDI_STRIDE) {
        a += HDI_AT(x + i, 0);
        b += HDI_AT(x + i, 1);
        c += HDI_AT(x + i, 2);
        d += HDI_AT(x + i, 3);
    }
    float sum;
    HDI_FOLD(sum, a, b, c, d);
    for (; i < count; i++)
        sum += x[i];
    return sum;
}

static inline float hdi_dot(const float *x, const float *y, int64_t count)
{
    hdi_lanes a = {0}, b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + HDI_STRIDE <= count; i += HDI_STRIDE) {
        a += HDI_AT(x + i, 0) * HDI_AT(y + i, 0);
        b += HDI_AT(x + i, 1) * HDI_AT(y + i, 1);
        c += HDI_AT(x + i, 2) * HDI_AT(y + i, 2);
        d += HDI_AT(x + i, 3) * HDI_AT(y + i, 3);
    }
    float sum;
    HDI_FOLD(sum, a, b, c, d);
    for (; i < count; i++)
        sum += x[i] * y[i];
    return sum;
}

/* Sum of (x - center)^2. */
static inline float hdi_sum_of_squares(const float *x, float center, int64_t count)
{
    hdi_lanes a = {0}, b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + HDI_STRIDE <= count; i += HDI_STRIDE) {
        const hdi_lanes p = HDI_AT(x + i, 0) - center, q = HDI_AT(x + i, 1) - center;
        const hdi_lanes r = HDI_AT(x + i, 2) - center, s = HDI_AT(x + i, 3) - center;
        a += p * p;
        b += q * q;
        c += r * r;
        d += s * s;
    }
    float sum;
    HDI_FOLD(sum, a, b, c, d);
    for (; i < count; i++)
        sum += (x[i] - center) * (x[i] - center);
    return sum;
}

/* The largest element, -FLT_MAX if there is none. NaN is passed over: who exponentiates the
 * elements meets it again. */
static inline float hdi_max(const float *x, int64_t count)
{
    hdi_lanes a = (hdi_lanes){0} - FLT_MAX, b = a;
    int64_t i = 0;
    for (; i + 2 * HDI_LANES <= count; i += 2 * HDI_LANES) {
        HDI_KEEP_LARGER(a, HDI_AT(x + i, 0));
        HDI_KEEP_LARGER(b, HDI_AT(x + i, 1));
    }
    HDI_KEEP_LARGER(a, b);
    float max = a[0];
    for (int l = 1; l < HDI_LANES; l++)
        max = a[l] > max ? a[l] : max;
    for (; i < count; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

/* exp within 2 ulp for x <= 88; 0 below -87.3 (no subnormal results), NaN for NaN. Larger x are
 * taken as 88. */
static inline float hdi_exp(float x)
{
    const float shifter = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float clamped = x > 88.0f ? 88.0f : x;
    clamped = clamped < -87.3f ? -87.3f : clamped;
    const float shifted = hdi_multiply_add(clamped, 1.44269504f, shifter);
    const float power = shifted - shifter;
    float r = hdi_multiply_add(power, -0.693145752f, clamped); /* ln 2, high and low part */
    r = hdi_multiply_add(power, -1.42860677e-6f, r);
    float p = 0.0013836834f; /* minimax on |r| <= ln(2) / 2 */
    p = hdi_multiply_add(p, r, 0.0083748221f);
    p = hdi_multiply_add(p, r, 0.0416682261f);
    p = hdi_multiply_add(p, r, 0.166664201f);
    p = hdi_multiply_add(p, r, 0.4999999208f);
    p = hdi_multiply_add(p, r, 1.0f);
    p = hdi_multiply_add(p, r, 1.0f);
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23; /* the low bits of `shifted` are the exponent */
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < -87.3f ? 0.0f : p * scale;
}

/* 1 / (1 + exp(-x)). */
static inline float hdi_sigmoid(float x)
{
    return 1.0f / (1.0f + hdi_exp(-x));
}

#endif
