/* Activations of 8 bits, for as long as nobody computes with them. Appended by passes. */
#ifndef HDI_OPS_QUANTIZE_H
#define HDI_OPS_QUANTIZE_H

#include "backend/backend.h"
#include "core/checked.h"
#include "program/program.h"

/* in: x; out: I8 codes, F32 scales (hdi_quantize_args). */
extern const hd_op_kind hdi_op_quantize;

/* in: codes, scales; out: x, of its dtype. */
extern const hd_op_kind hdi_op_dequantize;

/* Scales of so many elements. */
static inline int64_t hdi_quantize_scales(int64_t elements)
{
    return hdi_ceil_div(elements, HDI_QUANTIZE_ELEMENTS);
}

#endif
