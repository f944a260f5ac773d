/* What the 16-bit calls of the CPU backend share: scratch of the device, widening and rounding. For
 * half*.c only. */
#ifndef HDI_BACKEND_CPU_HALF_CALL_H
#define HDI_BACKEND_CPU_HALF_CALL_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/widen.h"
#include "core/error.h"
#include "core/memory.h"

/* One 16-bit call: which scratch is taken, and whether there was enough. */
typedef struct call {
    hdi_device *device;
    int taken;
    bool failed;
} call;

static inline hd_status begin(call *c, hd_stream *stream, const char *what, hd_dtype dtype)
{
    *c = (call){0};
    if (!hdi_is_half(dtype)) return hdi_cpu_check_dtype(what, dtype);
    if (!stream) return hdi_error(HD_ERROR_ARGUMENT, "%s: 16 bits want a device's stream", what);
    c->device = stream->device;
    return HD_OK;
}

static inline hd_status ready(const call *c)
{
    return c->failed ? hdi_error(HD_ERROR_MEMORY, "cpu: out of host memory for 16-bit scratch")
                     : HD_OK;
}

static inline float *take(call *c, int64_t elements)
{
    const int index = c->taken++;
    hdi_device *device = c->device;
    if (elements > device->scratch_elements[index]) {
        hdi_free(device->scratch[index]);
        device->scratch[index] = hdi_alloc_array((size_t)elements, sizeof(float));
        device->scratch_elements[index] = device->scratch[index] ? elements : 0;
    }
    c->failed = c->failed || (elements > 0 && !device->scratch[index]);
    return device->scratch[index];
}

/* Elements from the first to the last of a matrix. */
static inline int64_t span(int64_t rows, int64_t columns, int64_t stride)
{
    return rows > 0 ? (rows - 1) * stride + columns : 0;
}

/* x as F32: itself if it is, NULL if it is. */
static inline const float *widen(call *c, hd_dtype dtype, const void *x, int64_t elements)
{
    if (!x || dtype == HD_DTYPE_F32) return x;
    float *out = take(c, elements);
    if (!c->failed) hdi_cpu_widen(dtype, x, elements, out);
    return out;
}

/* Where an output is computed. */
static inline float *target(call *c, hd_dtype dtype, void *out, int64_t elements)
{
    return !out || dtype == HD_DTYPE_F32 ? out : take(c, elements);
}

/* Round an output to where it belongs; both have this stride, what lies between is left alone. */
static inline void narrow(hd_dtype dtype, const float *x, int64_t rows, int64_t columns,
                          int64_t stride, void *out)
{
    if (!out || dtype == HD_DTYPE_F32) return;
    for (int64_t r = 0; r < rows; r++)
        hdi_cpu_round(dtype, x + r * stride, columns, (uint16_t *)out + r * stride);
}

#endif
