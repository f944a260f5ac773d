/* Runs of values of any float dtype to fp32 and back. */
#ifndef HDI_BACKEND_CPU_WIDEN_H
#define HDI_BACKEND_CPU_WIDEN_H

#include "core/half.h"

static inline void hdi_cpu_widen(hd_dtype dtype, const void *x, int64_t elements, float *out)
{
    const uint16_t *half = x;
    if (dtype == HD_DTYPE_F32)
        memcpy(out, x, (size_t)elements * sizeof *out);
    else
        for (int64_t i = 0; i < elements; i++)
            out[i] = hdi_half_to_float(dtype, half[i]);
}

static inline void hdi_cpu_round(hd_dtype dtype, const float *x, int64_t elements, void *out)
{
    uint16_t *half = out;
    if (dtype == HD_DTYPE_F32)
        memcpy(out, x, (size_t)elements * sizeof *x);
    else
        for (int64_t i = 0; i < elements; i++)
            half[i] = hdi_half_from_float(dtype, x[i]);
}

#endif
