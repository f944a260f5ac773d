/* A linear map, GELU (tanh form) and a second linear map, a slice of rows at a time. */
#include "ops/slices.h"

#include "core/error.h"
#include "ops/ops.h"

typedef struct mlp_options {
    int slices;
} mlp_options;

enum { X, UP, UP_BIAS, DOWN, DOWN_BIAS, INPUTS };

static int64_t slice_begin(const hd_op *op, int slice)
{
    const mlp_options *options = op->options;
    return hdi_slice_begin(hdi_rows(op->in_info[X]), options->slices, slice);
}

static int64_t longest_slice(const hd_op *op)
{
    int64_t longest = 0;
    for (int i = 0; i < ((const mlp_options *)op->options)->slices; i++) {
        const int64_t rows = slice_begin(op, i + 1) - slice_begin(op, i);
        if (rows > longest) longest = rows;
    }
    return longest;
}

static hd_status mlp_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_check_input(op, X, "x", HD_DTYPE_NONE));
    const hd_tensor_info *x = op->in_info[X];
    const int64_t up[] = {-1, hdi_columns(x)};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, UP, "weight", x->dtype, 2, up));
    const int64_t inner = op->in_info[UP]->dims[0], down[] = {-1, inner};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, DOWN, "second weight", x->dtype, 2, down));
    const int64_t outputs = op->in_info[DOWN]->dims[0];
    if (op->in_info[UP_BIAS])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, UP_BIAS, "bias", x->dtype, 1, &inner));
    if (op->in_info[DOWN_BIAS])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, DOWN_BIAS, "second bias", x->dtype, 1, &outputs));
    hdi_output_like(program, x, outputs);
    return HD_OK;
}

static void mlp_cost(const hd_op *op, hd_cost *out)
{
    const double rows = (double)hdi_rows(op->in_info[X]);
    out->flops = 2.0 * rows * (double)(op->in_info[UP]->elements + op->in_info[DOWN]->elements);
    out->bytes = hdi_tensor_bytes(op);
}

static size_t mlp_workspace(const hd_op *op)
{
    return (size_t)(longest_slice(op) * op->in_info[UP]->dims[0]) *
           hd_dtype_bytes(op->in_info[X]->dtype);
}

static hdi_gemm_args product(const hd_tensor_info *weight, int64_t rows)
{
    return (hdi_gemm_args){.dtype = weight->dtype,
                           .out_dtype = weight->dtype,
                           .rows = rows,
                           .columns = weight->dims[0],
                           .inner = weight->dims[1],
                           .a_stride = weight->dims[1],
                           .b_stride = weight->dims[1],
                           .out_stride = weight->dims[0],
                           .transpose_b = true};
}

/* The slice of x is read before its place may be written. */
static hd_status run_slice(const hd_run *run, int64_t first, int64_t rows)
{
    const hd_op *op = run->op;
    const size_t bytes = hd_dtype_bytes(op->in_info[X]->dtype);
    if (rows == 0) return HD_OK;
    hdi_gemm_args up = product(op->in_info[UP], rows), down = product(op->in_info[DOWN], rows);
    up.a = (const char *)run->in[X] + (size_t)(first * up.inner) * bytes;
    up.b = run->in[UP];
    up.bias = run->in[UP_BIAS];
    up.out = run->workspace;
    down.a = run->workspace;
    down.b = run->in[DOWN];
    down.bias = run->in[DOWN_BIAS];
    down.out = (char *)run->out[0] + (size_t)(first * down.columns) * bytes;
    HD_RETURN_IF_ERROR(run->backend->gemm(run->stream, &up));
    HD_RETURN_IF_ERROR(
        run->backend->activation(run->stream, &(hdi_activation_args){.kind = HDI_GELU_TANH,
                                                                     .dtype = up.dtype,
                                                                     .elements = rows * up.columns,
                                                                     .x = run->workspace,
                                                                     .out = run->workspace}));
    return run->backend->gemm(run->stream, &down);
}

static hd_status mlp_run(const hd_run *run)
{
    for (int i = 0; i < ((const mlp_options *)run->op->options)->slices; i++) {
        const int64_t first = slice_begin(run->op, i);
        HD_RETURN_IF_ERROR(run_slice(run, first, slice_begin(run->op, i + 1) - first));
    }
    return HD_OK;
}

static const hd_op_kind mlp_slices = {
    .name = "mlp_slices",
    .options_bytes = sizeof(mlp_options),
    .shape = mlp_shape,
    .cost = mlp_cost,
    .workspace = mlp_workspace,
    .in_place = 1 << X,
    .by_rows = 1 << X,
    .run = mlp_run,
};

hd_tensor hdi_mlp_slices(hd_program *program, hd_tensor x, const hdi_linear_map *up,
                         const hdi_linear_map *down, int slices)
{
    const hd_tensor in[INPUTS] = {x, up->weight, up->bias, down->weight, down->bias};
    const mlp_options options = {.slices = slices > 1 ? slices : 1};
    return hd_custom_op(program, &mlp_slices, &options, INPUTS, in);
}
