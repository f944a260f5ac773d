/* For tests of one backend call on two sides: side 0 is the CPU backend in fp32, the reference; side
 * 1 is the GPU in the dtype of the test. Both start from the same numbers, rounded to the dtype. */
#ifndef HDT_GPU_H
#define HDT_GPU_H

#include <math.h>
#include <stdint.h>

#include "backend/backend.h"
#include "backend/cuda/cuda.h"
#include "tests/support/hdt.h"

enum { HDT_SIDES = 2, HDT_ARENA = 1 << 30 };

extern const hd_backend *hdt_sides[HDT_SIDES];
extern hd_stream *hdt_streams[HDT_SIDES];

/* The dtypes that tests loop over: F32, F16, BF16. */
extern const hd_dtype hdt_dtypes[3];

/* The same numbers on both sides. `host` holds floats whatever the dtype. */
typedef struct hdt_pair {
    hd_dtype dtype;
    int64_t count;
    float *host;
    void *device;
} hdt_pair;

/* Open the GPU, and run a test case on it in this process, since a CUDA context does not survive a fork;
 * without one, say so. The value is main's. */
int hdt_main_gpu(const char *name, TCase *tests);

/* Give back all arrays: each test begins with it. */
void hdt_gpu_reset(void);

/* Uniform in [-1, 1), times `scale`. `offset` elements are left before the device's copy, which breaks
 * its alignment. */
hdt_pair hdt_pair_make(hd_dtype dtype, int64_t count, uint64_t seed, float scale, int offset);
hdt_pair hdt_pair_zero(hd_dtype dtype, int64_t count);
hdt_pair hdt_pair_ids(int64_t count, int32_t entries, uint64_t seed); /* I32 on both sides */
hdt_pair hdt_pair_ints(int64_t count, const int32_t *values);

/* The pointer, or the dtype, that a side's call is given. */
static inline void *hdt_at(hdt_pair pair, int side)
{
    return side ? pair.device : (void *)pair.host;
}

static inline void *hdt_element(hdt_pair pair, int side, int64_t index)
{
    const size_t bytes = side ? hd_dtype_bytes(pair.dtype) : sizeof(float);
    return (char *)hdt_at(pair, side) + index * (int64_t)bytes;
}

static inline hd_dtype hdt_side_dtype(hd_dtype dtype, int side)
{
    return side ? dtype : HD_DTYPE_F32;
}

/* Zeroed memory of a side; NULL for 0 bytes. */
void *hdt_scratch(int side, size_t bytes);

/* The device's numbers as floats, each time in memory of their own. */
float *hdt_fetch(hdt_pair pair);

/* The device's numbers are those of the host within `magnitude` times what `roundings` to the dtype
 * and two fp32 sums of `terms` terms may add. A magnitude of 0 stands for the largest |host|. */
void hdt_pair_check(const char *what, hdt_pair pair, double magnitude, int roundings,
                    int64_t terms);

/* The same with a magnitude for each number. */
void hdt_pair_check_each(const char *what, hdt_pair pair, const float *magnitudes, int roundings,
                         int64_t terms);

/* Attention or its gradient: the library's way, or on the GPU by the own kernels. */
void hdt_run_attention(int side, hdi_attention_args *args, bool gradient, bool tiled);

#define HDT_CALL(side, op, ...) hdt_assert_ok(hdt_sides[side]->op(hdt_streams[side], __VA_ARGS__))

#endif
