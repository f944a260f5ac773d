/* The forward ops in fp64, written from their definitions. */
#include "tests/support/hdt_interpret.h"
#include "tests/support/hdt_reference_attention.h"
#include "tests/support/hdt_reference_diffusion.h"

#include <math.h>
#include <string.h>

static hd_status gemm(hd_stream *stream, const hdi_gemm_args *args)
{
    (void)stream;
    const double *a = args->a, *b = args->b, *bias = args->bias;
    double *out = args->out;
    for (int64_t r = 0; r < args->rows; r++) {
        for (int64_t c = 0; c < args->columns; c++) {
            double sum =
                (bias ? bias[c] : 0) + (args->accumulate ? out[r * args->out_stride + c] : 0);
            for (int64_t i = 0; i < args->inner; i++)
                sum += a[args->transpose_a ? i * args->a_stride + r : r * args->a_stride + i] *
                       b[args->transpose_b ? c * args->b_stride + i : i * args->b_stride + c];
            out[r * args->out_stride + c] = sum;
        }
    }
    return HD_OK;
}

static hd_status embedding(hd_stream *stream, const hdi_embedding_args *args)
{
    (void)stream;
    for (int64_t r = 0; r < args->rows; r++)
        memcpy((double *)args->out + r * args->columns,
               (const double *)args->table + args->ids[r] * args->columns,
               (size_t)args->columns * sizeof(double));
    return HD_OK;
}

static hd_status positions(hd_stream *stream, const hdi_positions_args *args)
{
    (void)stream;
    for (int64_t r = 0; r < args->rows; r++) {
        const int64_t position = (args->first ? *args->first : 0) + r % args->period;
        args->out[r] = (int32_t)(position < args->limit ? position : args->limit - 1);
    }
    return HD_OK;
}

static hd_status norm(hd_stream *stream, const hdi_norm_args *args)
{
    (void)stream;
    const double *weight = args->weight, *bias = args->bias, *residual = args->residual;
    for (int64_t r = 0; r < args->rows; r++) {
        const double *x = (const double *)args->x + r * args->columns;
        double *out = (double *)args->out + r * args->columns, mean = 0, square = 0;
        for (int64_t c = 0; c < args->columns; c++) {
            out[c] = x[c] + (residual ? residual[r * args->columns + c] : 0);
            if (args->sum) ((double *)args->sum)[r * args->columns + c] = out[c];
            mean += out[c] / (double)args->columns;
        }
        if (args->kind == HDI_RMS_NORM) mean = 0;
        for (int64_t c = 0; c < args->columns; c++)
            square += (out[c] - mean) * (out[c] - mean) / (double)args->columns;
        for (int64_t c = 0; c < args->columns; c++)
            out[c] =
                (out[c] - mean) / sqrt(square + (double)args->epsilon) * (weight ? weight[c] : 1) +
                (bias ? bias[c] : 0);
    }
    return HD_OK;
}

static double activate(hdi_activation kind, double x)
{
    switch (kind) {
    case HDI_GELU_ERF: return x * 0.5 * (1 + erf(x / sqrt(2)));
    case HDI_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case HDI_SILU: return x / (1 + exp(-x));
    }
    return NAN;
}

static hd_status activation(hd_stream *stream, const hdi_activation_args *args)
{
    (void)stream;
    for (int64_t i = 0; i < args->elements; i++)
        ((double *)args->out)[i] = activate(args->kind, ((const double *)args->x)[i]);
    return HD_OK;
}

static hd_status gated(hd_stream *stream, const hdi_gated_args *args)
{
    (void)stream;
    for (int64_t r = 0; r < args->rows; r++) {
        const double *gate = (const double *)args->x + 2 * r * args->columns;
        for (int64_t c = 0; c < args->columns; c++)
            ((double *)args->out)[r * args->columns + c] =
                activate(args->kind, gate[c]) * gate[args->columns + c];
    }
    return HD_OK;
}

static hd_status rope(hd_stream *stream, const hdi_rope_args *args)
{
    (void)stream;
    const double *table = (const double *)(const void *)args->table;
    const int64_t half = args->head_dim / 2;
    for (int64_t r = 0; r < args->rows; r++) {
        const int64_t position = args->positions ? args->positions[r] : r % args->period;
        for (int64_t h = 0; h < args->heads; h++) {
            const double *x = (const double *)args->x + r * args->x_stride + h * args->head_dim;
            double *out = (double *)args->out + r * args->x_stride + h * args->head_dim;
            for (int64_t i = 0; i < half; i++) {
                const bool halves = args->pairing == HDI_ROPE_HALVES;
                const int64_t a = halves ? i : 2 * i, b = halves ? i + half : 2 * i + 1;
                const double c = table[2 * (position * half + i)];
                const double s = table[2 * (position * half + i) + 1] * (args->inverse ? -1 : 1);
                const double first = x[a], second = x[b];
                out[a] = first * c - second * s;
                out[b] = second * c + first * s;
            }
        }
    }
    return HD_OK;
}

static hd_status cross_entropy(hd_stream *stream, const hdi_cross_entropy_args *args)
{
    (void)stream;
    for (int64_t r = 0; r < args->rows; r++) {
        const double *x = (const double *)args->logits + r * args->logits_stride;
        double sum = 0;
        for (int64_t c = 0; c < args->classes; c++)
            sum += exp(x[c]);
        ((double *)(void *)args->loss)[r] =
            args->targets[r] < 0 ? 0 : log(sum) - x[args->targets[r]];
    }
    return HD_OK;
}

static hd_status loss_sum(hd_stream *stream, const float *loss, const int32_t *targets,
                          int64_t rows, double out[2])
{
    (void)stream;
    out[0] = out[1] = 0;
    for (int64_t r = 0; r < rows; r++) {
        out[0] += ((const double *)(const void *)loss)[r];
        out[1] += targets[r] >= 0;
    }
    return HD_OK;
}

static hd_status add(hd_stream *stream, hd_dtype dtype, int64_t elements, const void *x,
                     const void *y, void *out)
{
    (void)stream, (void)dtype;
    for (int64_t i = 0; i < elements; i++)
        ((double *)out)[i] = ((const double *)x)[i] + ((const double *)y)[i];
    return HD_OK;
}

static hd_status raise_counts(hd_stream *stream, const hdi_raise_counts_args *args)
{
    (void)stream;
    for (int64_t i = 0; i < args->elements; i++)
        args->out[i] = args->counts[i] + (int32_t)args->more;
    return HD_OK;
}

/* `bytes` counts fp32 elements, which take twice the room here. */
static hd_status copy(hd_stream *stream, void *out, const void *x, size_t bytes)
{
    (void)stream;
    memcpy(out, x, 2 * bytes);
    return HD_OK;
}

const hd_backend hdt_reference = {
    .name = "reference",
    .copy = copy,
    .gemm = gemm,
    .embedding = embedding,
    .positions = positions,
    .norm = norm,
    .activation = activation,
    .gated = gated,
    .rope = rope,
    .attention = hdt_reference_attention,
    .joint_qkv = hdt_reference_joint_qkv,
    .cross_attention = hdt_reference_cross_attention,
    .sinusoid = hdt_reference_sinusoid,
    .modulate = hdt_reference_modulate,
    .add_rows = hdt_reference_add_rows,
    .copy_blocks = hdt_reference_copy_blocks,
    .copy_grid = hdt_reference_copy_grid,
    .patchify = hdt_reference_patchify,
    .unpatchify = hdt_reference_unpatchify,
    .squared_error = hdt_reference_squared_error,
    .mean_rows = hdt_reference_mean_rows,
    .raise_counts = raise_counts,
    .cross_entropy = cross_entropy,
    .add = add,
    .loss_sum = loss_sum,
};
