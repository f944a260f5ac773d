/* Cross-entropy of rows of logits, with its gradient in the same pass. */
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

enum { SEGMENT = 512 };

/* Sum of exp(x - max); the terms go to `terms` if given, which may be x. Segments are summed in
 * fp32, rows in fp64. */
static double sum_of_exponentials(const float *x, float max, int64_t count, float *terms)
{
    float segment[SEGMENT];
    double sum = 0;
    for (int64_t first = 0; first < count; first += SEGMENT) {
        const int64_t length = hdi_cpu_min(SEGMENT, count - first);
        for (int64_t c = 0; c < length; c++)
            segment[c] = hdi_exp(x[first + c] - max);
        sum += (double)hdi_sum(segment, length);
        if (terms) memcpy(terms + first, segment, (size_t)length * sizeof *segment);
    }
    return sum;
}

/* Of a row over all classes: the largest logit, the sum of exp(logit - largest), the target's logit. */
typedef struct row_sums {
    float max;
    double sum, right;
} row_sums;

static row_sums join_parts(const hdi_cross_entropy_args *args, int64_t row)
{
    row_sums out = {.max = -FLT_MAX};
    for (int p = 0; p < args->parts; p++)
        out.max = fmaxf(out.max, args->statistics[3 * (p * args->rows + row)]);
    for (int p = 0; p < args->parts; p++) {
        const float *part = args->statistics + 3 * (p * args->rows + row);
        out.sum += (double)part[1] * exp((double)part[0] - (double)out.max);
        out.right += (double)part[2];
    }
    return out;
}

static void cross_entropy_rows(void *context, int64_t index, int lane)
{
    const hdi_cross_entropy_args *args = context;
    (void)lane;
    const int64_t classes = args->classes, chunk = hdi_cpu_chunk_rows(classes);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->rows);
    const float scale = args->scale ? *args->scale : 1.0f;
    for (int64_t r = index * chunk; r < end; r++) {
        const float *logits = (const float *)args->logits + r * args->logits_stride;
        float *gradient = args->gradient ? (float *)args->gradient + r * args->logits_stride : NULL;
        const int32_t target = args->targets[r];
        if (target < 0) {
            args->loss[r] = 0;
            if (gradient) memset(gradient, 0, (size_t)classes * sizeof *gradient);
            continue;
        }
        const int64_t own_target = target - args->first;
        row_sums row;
        if (args->limit) {
            row = join_parts(args, r);
            if (gradient) sum_of_exponentials(logits, row.max, classes, gradient);
        } else {
            row.max = hdi_max(logits, classes);
            row.right = (double)logits[target]; /* before the gradient overwrites it */
            row.sum = sum_of_exponentials(logits, row.max, classes, gradient);
        }
        args->loss[r] = (float)(log(row.sum) + (double)row.max - row.right);
        if (!gradient) continue;
        const float factor = (float)((double)scale / row.sum);
        HDI_INDEPENDENT
        for (int64_t c = 0; c < classes; c++)
            gradient[c] *= factor;
        if (own_target >= 0 && own_target < classes) gradient[own_target] -= scale;
    }
}

static hd_status check_targets(const hdi_cross_entropy_args *args)
{
    const int64_t limit = args->limit ? args->limit : args->classes;
    for (int64_t r = 0; r < args->rows; r++)
        if (args->targets[r] >= limit)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "cross_entropy: target %" PRId32 " in row %" PRId64
                             ", want below %" PRId64 " (negative: ignored)",
                             args->targets[r], r, limit);
    return HD_OK;
}

static void part_rows(void *context, int64_t index, int lane)
{
    const hdi_cross_entropy_args *args = context;
    (void)lane;
    const int64_t classes = args->classes, chunk = hdi_cpu_chunk_rows(classes);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->rows);
    for (int64_t r = index * chunk; r < end; r++) {
        const float *logits = (const float *)args->logits + r * args->logits_stride;
        const int64_t target = args->targets[r] - args->first;
        float *out = args->statistics + 3 * r;
        out[0] = hdi_max(logits, classes);
        out[1] = (float)sum_of_exponentials(logits, out[0], classes, NULL);
        out[2] = args->targets[r] >= 0 && target >= 0 && target < classes ? logits[target] : 0;
    }
}

hd_status hdi_cpu_cross_entropy_part(hd_stream *stream, const hdi_cross_entropy_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("cross_entropy_part", args->dtype));
    HD_RETURN_IF_ERROR(check_targets(args));
    hdi_cross_entropy_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->classes)), part_rows, &work);
    return HD_OK;
}

hd_status hdi_cpu_cross_entropy(hd_stream *stream, const hdi_cross_entropy_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("cross_entropy", args->dtype));
    HD_RETURN_IF_ERROR(check_targets(args));
    hdi_cross_entropy_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->classes)),
                     cross_entropy_rows, &work);
    return HD_OK;
}
