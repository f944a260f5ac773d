/* 16-bit floating point: conversions that round to the nearest, and weights whose lost bits are kept.
 * 16-bit values travel as uint16_t. */
#ifndef HDI_CORE_HALF_H
#define HDI_CORE_HALF_H

#include <heddle/dtype.h>

#include <string.h>

static inline uint32_t hdi_float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float hdi_float_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float hdi_bf16_to_float(uint16_t x)
{
    return hdi_float_from_bits((uint32_t)x << 16);
}

/* Ties to even; NaN stays a (quiet) NaN. */
static inline uint16_t hdi_bf16_from_float(float x)
{
    const uint32_t bits = hdi_float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline float hdi_f16_to_float(uint16_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000u) << 16, magnitude = x & 0x7fffu;
    if (magnitude >= 0x7c00u) return hdi_float_from_bits(sign | 0x7f800000u | magnitude << 13);
    if (magnitude >= 0x0400u) return hdi_float_from_bits(sign | ((magnitude << 13) + 0x38000000u));
    const float subnormal = (float)magnitude * 0x1p-24f; /* exact in fp32 */
    return sign ? -subnormal : subnormal;
}

/* Ties to even; 65520 and above become infinite; NaN stays a NaN. */
static inline uint16_t hdi_f16_from_float(float x)
{
    const uint32_t bits = hdi_float_bits(x), sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u)
        half = 0x7e00u;
    else if (magnitude >= 0x477ff000u)
        half = 0x7c00u;
    else if (magnitude < 0x38800000u) /* one unit of the sum's last bit is the least subnormal */
        half = hdi_float_bits(hdi_float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    else
        half = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
    return (uint16_t)(sign | half);
}

/* A bf16 weight of an fp32 value is the nearest, ties away from zero. With ties to even, an even
 * weight would stand for 65537 values, one more than the 16 bits of a remainder tell apart. NaN
 * becomes one NaN. */
static inline uint16_t hdi_bf16_weight(float x)
{
    const uint32_t bits = hdi_float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
    return (uint16_t)((bits + 0x8000u) >> 16);
}

/* What the weight leaves of the value, in units of the value's last bit. */
static inline int16_t hdi_bf16_remainder(float x)
{
    const uint32_t bits = hdi_float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
    const uint16_t low = (uint16_t)bits;
    int16_t remainder;
    memcpy(&remainder, &low, sizeof remainder);
    return remainder;
}

/* The value again, bit for bit (NaN: a NaN). */
static inline float hdi_bf16_join(uint16_t weight, int16_t remainder)
{
    return hdi_float_from_bits(((uint32_t)weight << 16) + (uint32_t)(int32_t)remainder);
}

/* A weight of dtype BF16 or F16 of an fp32 value: what training and loading store. */
static inline uint16_t hdi_half_weight(hd_dtype dtype, float x)
{
    return dtype == HD_DTYPE_BF16 ? hdi_bf16_weight(x) : hdi_f16_from_float(x);
}

/* An activation of dtype BF16 or F16. */
static inline uint16_t hdi_half_from_float(hd_dtype dtype, float x)
{
    return dtype == HD_DTYPE_BF16 ? hdi_bf16_from_float(x) : hdi_f16_from_float(x);
}

static inline float hdi_half_to_float(hd_dtype dtype, uint16_t x)
{
    return dtype == HD_DTYPE_BF16 ? hdi_bf16_to_float(x) : hdi_f16_to_float(x);
}

static inline bool hdi_is_half(hd_dtype dtype)
{
    return dtype == HD_DTYPE_BF16 || dtype == HD_DTYPE_F16;
}

#endif
