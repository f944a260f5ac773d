/* Arithmetic on sizes that come from files and configurations: false on overflow. */
#ifndef HDI_CORE_CHECKED_H
#define HDI_CORE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool hdi_add_i64(int64_t a, int64_t b, int64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool hdi_mul_i64(int64_t a, int64_t b, int64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline int64_t hdi_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t hdi_round_up(int64_t value, int64_t multiple)
{
    return hdi_ceil_div(value, multiple) * multiple;
}

#endif
