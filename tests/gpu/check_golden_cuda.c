/* The golden models on the device of HEDDLE_DEVICE: prediction, loss and stored gradients against the
 * references' own runs, in fp32 within the tolerances of their notes, in bf16 within those of rounding. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/hdt_device.h"
#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_planned.h"
#include "tests/support/hdt_safetensors.h"
#include "tests/support/hdt_stdit.h"

static const hd_dtype dtypes[] = {HD_DTYPE_F32, HD_DTYPE_BF16};

/* A golden run as the device is held against it. */
typedef struct golden {
    const char *name;
    double *prediction; /* in the program's order; owned */
    int64_t count;
    double loss, divisor; /* the program's loss and gradients are sums of so many */
    double tolerance, loss_tolerance, gradient_tolerance; /* fp32 */
    const hdi_weights *gradients;
} golden;

/* What bf16 may add to a number of magnitude 1 that `depth` ops make one after another: each rounds
 * by 2^-9 on average, at random, so that deviations add up as a root; the largest of the ten
 * thousands of elements compared lies four deviations out. One more op stands for the loading of
 * weights. */
static double bf16_tolerance(int depth)
{
    return 4 * ldexp(1, -9) * sqrt(depth + 1);
}

static double tolerance_of(const hdt_planned *p, hd_tensor tensor, double fp32, double magnitude)
{
    if (p->program->dtype == HD_DTYPE_F32) return fp32;
    return magnitude * bf16_tolerance(hdt_planned_depth(p, tensor));
}

static void compare(const char *what, const float *seen, const float *wanted, int64_t count,
                    double scale, double (*bound)(const void *, double), const void *user);

typedef struct distance {
    double worst, largest;
} distance;

/* Written so that NaN stays. */
static distance distance_of(const float *seen, const float *wanted, int64_t count, double divisor)
{
    distance d = {0};
    for (int64_t i = 0; i < count; i++) {
        const double off = fabs((double)seen[i] / divisor - (double)wanted[i]);
        if (!(off <= d.worst)) d.worst = off;
        d.largest = fmax(d.largest, fabs((double)wanted[i]));
    }
    return d;
}
