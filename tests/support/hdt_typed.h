/* For tests of backend calls on several dtypes: values of a dtype, arrays of it, and a CPU device that
 * 16-bit calls need. */
#ifndef HDT_TYPED_H
#define HDT_TYPED_H

#include "core/half.h"
#include "tests/support/hdt_backend.h"

static const hd_dtype hdt_dtypes[] = {HD_DTYPE_F32, HD_DTYPE_F16, HD_DTYPE_BF16};

static hdi_device *hdt_typed_device;

/* A checked fixture. */
static inline void hdt_open_typed(void)
{
    hdt_assert_ok(hdi_backend_cpu.open(0, &hdt_typed_device));
}

static inline void hdt_close_typed(void)
{
    hdi_backend_cpu.close(hdt_typed_device);
    hdt_free_held();
}

static inline hd_stream *hdt_stream(void)
{
    return hdi_backend_cpu.stream(hdt_typed_device);
}

/* The values rounded to the dtype, in place, and a copy of them in that dtype. */
static inline void *hdt_typed(hd_dtype dtype, float *values, int64_t count)
{
    if (dtype == HD_DTYPE_F32) return values;
    uint16_t *out = hdt_take((size_t)count * sizeof *out);
    for (int64_t i = 0; i < count; i++) {
        out[i] = hdi_half_from_float(dtype, values[i]);
        values[i] = hdi_half_to_float(dtype, out[i]);
    }
    return out;
}

static inline double hdt_value(hd_dtype dtype, const void *data, int64_t i)
{
    return dtype == HD_DTYPE_F32 ? (double)((const float *)data)[i]
                                 : (double)hdi_half_to_float(dtype, ((const uint16_t *)data)[i]);
}

static inline const char *hdt_at(hd_dtype dtype, const void *data, int64_t element)
{
    return (const char *)data + (size_t)element * hd_dtype_bytes(dtype);
}

static inline void *hdt_room(hd_dtype dtype, int64_t count)
{
    return hdt_take((size_t)count * hd_dtype_bytes(dtype));
}

static inline void hdt_within(const char *what, int64_t i, double seen, double wanted, double bound)
{
    if (!(fabs(seen - wanted) <= bound))
        ck_abort_msg("%s[%lld] is %.9g, want %.9g within %.3g", what, (long long)i, seen, wanted,
                     bound);
}

#endif
