/* Layer norm and RMS norm, forward and backward, a row at a time. Sums are fp32 in eight lanes. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

#include <string.h>

static inline const float *row_of(const void *matrix, int64_t row, int64_t columns)
{
    return (const float *)matrix + row * columns;
}

/* out = (x - mean) * rstd * weight + bias. */
static void scale_row(const float *x, const float *weight, const float *bias, float mean,
                      float rstd, int64_t columns, float *out)
{
    if (weight && bias) {
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            out[c] = hdi_multiply_add((x[c] - mean) * rstd, weight[c], bias[c]);
    } else if (weight) {
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            out[c] = (x[c] - mean) * rstd * weight[c];
    } else if (bias) {
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            out[c] = (x[c] - mean) * rstd + bias[c];
    } else {
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            out[c] = (x[c] - mean) * rstd;
    }
}

static void norm_rows(void *context, int64_t index, int lane)
{
    const hdi_norm_args *args = context;
    (void)lane;
    const int64_t columns = args->columns, chunk = hdi_cpu_chunk_rows(columns);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->rows);
    for (int64_t r = index * chunk; r < end; r++) {
        const float *x = row_of(args->x, r, columns);
        float *out = (float *)args->out + r * columns;
        if (args->residual) {
            /* Without a place for the sum, out holds it until it is scaled in place. */
            float *sum = args->sum ? (float *)args->sum + r * columns : out;
            const float *residual = row_of(args->residual, r, columns);
            HDI_INDEPENDENT
            for (int64_t c = 0; c < columns; c++)
                sum[c] = x[c] + residual[c];
            x = sum;
        } else if (args->sum && args->sum != args->x) {
            memcpy((float *)args->sum + r * columns, x, (size_t)columns * sizeof *x);
        }
        const bool centred = args->kind == HDI_LAYER_NORM;
        const float mean = centred ? hdi_sum(x, columns) / (float)columns : 0.0f;
        const float variance = hdi_sum_of_squares(x, mean, columns) / (float)columns;
        const float rstd = 1.0f / sqrtf(variance + args->epsilon);
        if (args->mean && centred) args->mean[r] = mean;
        if (args->rstd) args->rstd[r] = rstd;
        scale_row(x, args->weight, args->bias, mean, rstd, columns, out);
    }
}

hd_status hdi_cpu_norm(hd_stream *stream, const hdi_norm_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("norm", args->dtype));
    hdi_norm_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->columns)), norm_rows, &work);
    return HD_OK;
}

void hdi_cpu_norm_sums(const float *gradient, const float *x, const float *weight, float more,
                       float mean, float rstd, int64_t columns, float out[2])
{
    hdi_lanes sum_a = {0}, sum_b = sum_a, product_a = sum_a, product_b = sum_a;
    int64_t c = 0;
    for (; c + 2 * HDI_LANES <= columns; c += 2 * HDI_LANES) {
        hdi_lanes a = HDI_AT(gradient + c, 0), b = HDI_AT(gradient + c, 1);
        if (weight) {
            a *= more + HDI_AT(weight + c, 0);
            b *= more + HDI_AT(weight + c, 1);
        }
        sum_a += a;
        sum_b += b;
        product_a += a * (HDI_AT(x + c, 0) - mean);
        product_b += b * (HDI_AT(x + c, 1) - mean);
    }
    const hdi_lanes none = {0};
    float sum, product;
    HDI_FOLD(sum, sum_a, sum_b, none, none);
    HDI_FOLD(product, product_a, product_b, none, none);
    for (; c < columns; c++) {
        const float weighted = weight ? gradient[c] * (more + weight[c]) : gradient[c];
        sum += weighted;
        product += weighted * (x[c] - mean);
    }
    out[0] = sum;
    out[1] = product * rstd;
}

static void gradient_of_row(const hdi_norm_gradient_args *args, int64_t r)
{
    const int64_t columns = args->columns;
    const bool centred = args->kind == HDI_LAYER_NORM;
    const float mean = centred ? args->mean[r] : 0.0f, rstd = args->rstd[r];
    const float *gradient = row_of(args->gradient, r, columns), *x = row_of(args->x, r, columns);
    const float *weight = args->weight;
    float sums[2];
    hdi_cpu_norm_sums(gradient, x, weight, 0, mean, rstd, columns, sums);
    const float center = centred ? sums[0] / (float)columns : 0.0f;
    const float slope = sums[1] / (float)columns;
    const float *carry = args->carry ? row_of(args->carry, r, columns) : NULL;
    float *out = (float *)args->x_gradient + r * columns;
    /* A statement of its own: the carry must not be fused into it, as a later add would not be. */
    if (weight && carry) {
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++) {
            const float through =
                rstd * (gradient[c] * weight[c] - center - (x[c] - mean) * rstd * slope);
            out[c] = through + carry[c];
        }
    } else {
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++) {
            const float through = rstd * (gradient[c] * (weight ? weight[c] : 1.0f) - center -
                                          (x[c] - mean) * rstd * slope);
            out[c] = carry ? through + carry[c] : through;
        }
    }
}

/* Partial sums of one row for the gradients of weight and bias. */
static void add_partials(const hdi_norm_gradient_args *args, int64_t r, float *partials)
{
    const int64_t columns = args->columns;
    const float mean = args->kind == HDI_LAYER_NORM ? args->mean[r] : 0.0f, rstd = args->rstd[r];
    const float *gradient = row_of(args->gradient, r, columns), *x = row_of(args->x, r, columns);
    float *weight_part = partials, *bias_part = partials + columns;
    HDI_INDEPENDENT
    for (int64_t c = 0; c < columns; c++) {
        weight_part[c] += gradient[c] * ((x[c] - mean) * rstd);
        bias_part[c] += gradient[c];
    }
}

static void gradient_of_part(void *context, int64_t index, int lane)
{
    const hdi_norm_gradient_args *args = context;
    (void)lane;
    const int64_t chunk = hdi_ceil_div(args->rows, args->partial_rows);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->rows);
    float *partials = args->partials ? args->partials + index * 2 * args->columns : NULL;
    if (partials) memset(partials, 0, 2 * (size_t)args->columns * sizeof *partials);
    for (int64_t r = index * chunk; r < end; r++) {
        /* First: x_gradient may be the memory of gradient. */
        if (partials) add_partials(args, r, partials);
        gradient_of_row(args, r);
    }
}

hd_status hdi_cpu_norm_gradient(hd_stream *stream, const hdi_norm_gradient_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("norm gradient", args->dtype));
    if (args->rows <= 0 && !args->partials) return HD_OK;
    hdi_norm_gradient_args work = *args;
    if (!args->partials)
        work.partial_rows = hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->columns));
    hdi_cpu_parallel(work.partial_rows, gradient_of_part, &work);
    return HD_OK;
}
