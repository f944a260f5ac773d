/* For tests of one backend call at a time: arrays that are freed after the test, comparison with an
 * fp64 reference, and runs on several numbers of threads that must agree to the bit. */
#ifndef HDT_BACKEND_H
#define HDT_BACKEND_H

#include <math.h>
#include <stdlib.h>

#include "backend/backend.h"
#include "tests/support/hdt.h"

static void *hdt_held[256];
static int hdt_held_count;

/* A checked fixture's teardown. */
static inline void hdt_free_held(void)
{
    while (hdt_held_count > 0)
        free(hdt_held[--hdt_held_count]);
}

static inline void *hdt_take(size_t bytes)
{
    ck_assert(hdt_held_count < 256);
    void *memory = calloc(1, bytes ? bytes : 1);
    ck_assert_ptr_nonnull(memory);
    hdt_held[hdt_held_count++] = memory;
    return memory;
}

static inline float *hdt_floats(int64_t count, uint64_t seed)
{
    float *data = hdt_take((size_t)count * sizeof *data);
    hdt_fill(data, count, seed);
    return data;
}

static inline int32_t *hdt_ids(int64_t count, int32_t entries, uint64_t seed)
{
    float *draws = hdt_floats(count, seed);
    int32_t *ids = hdt_take((size_t)count * sizeof *ids);
    for (int64_t i = 0; i < count; i++)
        ids[i] = (int32_t)((draws[i] + 1) / 2 * (float)entries) % entries;
    return ids;
}

/* `magnitude` bounds the sum of the absolute values of the `terms` products behind `want`. */
static inline void hdt_near(const char *what, int64_t index, float got, double want,
                            double magnitude, int64_t terms)
{
    const double bound = hdt_tolerance(HD_DTYPE_F32, terms) * magnitude;
    if (!(fabs((double)got - want) <= bound))
        ck_abort_msg("%s[%lld] is %.9g, want %.12g within %.3g", what, (long long)index,
                     (double)got, want, bound);
}

static inline void hdt_restore(void *out, const void *before, size_t bytes)
{
    if (before) memcpy(out, before, bytes);
}

/* Do `call` on 1, 2 and 3 threads; the `count` floats at `out`, refilled before each from `before`
 * if given, must come out with the same bits. The last result stays. */
#define hdt_same_on_threads(call, out, before, count)                             \
    do {                                                                          \
        const size_t hdt_bytes_ = (size_t)(count) * sizeof(float);                \
        float *hdt_first_ = hdt_take(hdt_bytes_);                                 \
        for (int hdt_threads_ = 1; hdt_threads_ <= 3; hdt_threads_++) {           \
            hdi_cpu_set_threads(hdt_threads_);                                    \
            hdt_restore((out), (before), hdt_bytes_);                             \
            hdt_assert_ok(call);                                                  \
            if (hdt_threads_ == 1) memcpy(hdt_first_, (out), hdt_bytes_);         \
            ck_assert_msg(memcmp(hdt_first_, (out), hdt_bytes_) == 0,             \
                          "%s: %d threads change the bits", #call, hdt_threads_); \
        }                                                                         \
    } while (0)

#endif
