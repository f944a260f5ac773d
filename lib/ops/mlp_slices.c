/* A linear map, an activation and a second linear map, a slice of rows at a time. Nothing of what lies between
 * is kept for a backward, which makes it again, slice by slice, with the gradients of each. */
#include "ops/slices.h"

#include "core/checked.h"
#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>
#include <string.h>

typedef struct mlp_options {
    hdi_mlp_kind kind;
    int slices;
    bool trains; /* the first product and GELU are one pass, as they are in training at once */
} mlp_options;

enum { X, UP, UP_BIAS, DOWN, DOWN_BIAS, INPUTS };

static int64_t longest_slice(const hd_op *op)
{
    const int slices = ((const mlp_options *)op->options)->slices;
    const int64_t all = hdi_rows(op->in_info[X]);
    int64_t longest = 0;
    for (int i = 0; i < slices; i++) {
        const int64_t rows = hdi_slice_begin(all, slices, i + 1) - hdi_slice_begin(all, slices, i);
        if (rows > longest) longest = rows;
    }
    return longest;
}

static hd_status mlp_shape(hd_program *program, const hd_op *op)
{
    const mlp_options *options = op->options;
    HD_RETURN_IF_ERROR(hdi_check_input(op, X, "x", HD_DTYPE_NONE));
    const hd_tensor_info *x = op->in_info[X];
    const int64_t up[] = {-1, hdi_columns(x)};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, UP, "weight", x->dtype, 2, up));
    const int64_t made = op->in_info[UP]->dims[0];
    if (options->kind == HDI_MLP_SWIGLU && made % 2)
        return hdi_error(HD_ERROR_ARGUMENT, "weight has %" PRId64 " outputs, want an even number",
                         made);
    const int64_t down[] = {-1, options->kind == HDI_MLP_SWIGLU ? made / 2 : made};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, DOWN, "second weight", x->dtype, 2, down));
    const int64_t outputs = op->in_info[DOWN]->dims[0];
    if (op->in_info[UP_BIAS])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, UP_BIAS, "bias", x->dtype, 1, &made));
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

/* Of the longest slice what is activated lies first, and behind it what it is made of, where that has bytes of
 * its own. */
static size_t activated_bytes(const hd_op *op)
{
    enum { ALIGNMENT = 256 };
    return (size_t)hdi_round_up(longest_slice(op) * op->in_info[DOWN]->dims[1] *
                                    (int64_t)hd_dtype_bytes(op->in_info[X]->dtype),
                                ALIGNMENT);
}

static bool is_in_place(const mlp_options *options)
{
    return options->kind != HDI_MLP_SWIGLU &&
           !(options->kind == HDI_MLP_GELU_TANH && options->trains);
}

static size_t mlp_workspace(const hd_op *op)
{
    const size_t made = (size_t)(longest_slice(op) * op->in_info[UP]->dims[0]) *
                        hd_dtype_bytes(op->in_info[X]->dtype);
    return is_in_place(op->options) ? made : activated_bytes(op) + made;
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

static hd_status run_up(const hd_run *run, hdi_gemm_args up)
{
    const mlp_options *options = run->op->options;
    const int64_t columns = run->op->in_info[DOWN]->dims[1];
    void *activated = run->workspace, *before = activated;
    if (!is_in_place(options)) before = (char *)activated + activated_bytes(run->op);
    up.out = before;
    if (options->kind == HDI_MLP_GELU_TANH && options->trains) {
        up.out = activated;
        return hdi_linear_run_gelu(run, up, HDI_GEMM_GELU, before);
    }
    HD_RETURN_IF_ERROR(run->backend->gemm(run->stream, &up));
    if (options->kind == HDI_MLP_SWIGLU)
        return run->backend->gated(run->stream, &(hdi_gated_args){.kind = HDI_SILU,
                                                                  .dtype = up.dtype,
                                                                  .rows = up.rows,
                                                                  .columns = columns,
                                                                  .x = before,
                                                                  .out = activated});
    return run->backend->activation(
        run->stream, &(hdi_activation_args){
                         .kind = options->kind == HDI_MLP_GELU_ERF ? HDI_GELU_ERF : HDI_GELU_TANH,
                         .dtype = up.dtype,
                         .elements = up.rows * columns,
                         .x = before,
                         .out = activated});
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
    down.a = run->workspace;
    down.b = run->in[DOWN];
    down.bias = run->in[DOWN_BIAS];
    down.out = (char *)run->out[0] + (size_t)(first * down.columns) * bytes;
    HD_RETURN_IF_ERROR(run_up(run, up));
    return run->backend->gemm(run->stream, &down);
}

static hd_status mlp_run(const hd_run *run)
{
    const int slices = ((const mlp_options *)run->op->options)->slices;
    const int64_t rows = hdi_rows(run->op->in_info[X]);
    for (int i = 0; i < slices; i++) {
        const int64_t first = hdi_slice_begin(rows, slices, i);
        HD_RETURN_IF_ERROR(run_slice(run, first, hdi_slice_begin(rows, slices, i + 1) - first));
    }
    return HD_OK;
}

/* What is activated, and *before, what that is of. */
static hd_tensor make_again(hd_program *program, const hd_op *op, hd_tensor x, hd_tensor *before)
{
    const hdi_mlp_kind kind = ((const mlp_options *)op->options)->kind;
    if (kind == HDI_MLP_GELU_TANH)
        return hdi_linear_gelu(program, x, op->in[UP], op->in[UP_BIAS], before);
    *before = hd_linear_op(program, x, op->in[UP], op->in[UP_BIAS]);
    return kind == HDI_MLP_SWIGLU ? hd_swiglu(program, *before) : hd_gelu(program, *before);
}

static hd_tensor gradient_before(hd_program *program, const hd_op *op, hd_tensor gradient,
                                 hd_tensor before)
{
    const hdi_mlp_kind kind = ((const mlp_options *)op->options)->kind;
    if (kind == HDI_MLP_GELU_TANH)
        return hdi_linear_gelu_gradient(program, gradient, op->in[DOWN], before);
    const hd_tensor activated = hdi_linear_gradient(program, gradient, op->in[DOWN]);
    return kind == HDI_MLP_SWIGLU
               ? hdi_swiglu_gradient(program, before, activated)
               : hdi_activation_gradient(program, HDI_GELU_ERF, before, activated);
}

/* What is activated is free before its gradient is made. */
static void append_slice(hd_backward *context, const hd_op *op, hd_tensor x_gradient, int64_t first,
                         int64_t rows)
{
    hd_program *program = hd_backward_program(context);
    const hd_tensor x = hdi_tensor_rows(program, op->in[X], first, rows);
    const hd_tensor gradient =
        hdi_tensor_rows(program, hd_backward_output_gradient(context, 0), first, rows);
    hd_tensor before;
    const hd_tensor activated = make_again(program, op, x, &before);
    hdi_linear_weight_gradient(context, DOWN, gradient, activated);
    hdi_linear_bias_gradient(context, DOWN_BIAS, gradient);
    const hd_tensor made = gradient_before(program, op, gradient, before);
    if (x_gradient.id)
        hdi_tensor_put(program, hdi_linear_gradient(program, made, op->in[UP]), x_gradient,
                       first * op->in_info[X]->dims[1]);
    hdi_linear_weight_gradient(context, UP, made, x);
    hdi_linear_bias_gradient(context, UP_BIAS, made);
}

static void mlp_backward(hd_backward *context, const hd_op *op)
{
    hd_program *program = hd_backward_program(context);
    const int slices = ((const mlp_options *)op->options)->slices;
    const hd_tensor_info *x = op->in_info[X];
    const int64_t rows = x->dims[0];
    hd_tensor x_gradient = {0};
    if (hd_backward_wants(context, X))
        x_gradient = hdi_tensor_add(program, NULL, x->dtype, HD_ROLE_ACTIVATION, x->rank, x->dims);
    for (int i = 0; i < slices && program->status == HD_OK; i++) {
        const int64_t first = hdi_slice_begin(rows, slices, i);
        const int64_t next = hdi_slice_begin(rows, slices, i + 1);
        if (next > first) append_slice(context, op, x_gradient, first, next - first);
    }
    if (x_gradient.id) hd_backward_give(context, X, x_gradient);
}

static const hd_op_kind mlp_slices = {
    .name = "mlp_slices",
    .options_bytes = sizeof(mlp_options),
    .shape = mlp_shape,
    .backward = mlp_backward,
    .cost = mlp_cost,
    .workspace = mlp_workspace,
    .in_place = 1 << X,
    .by_rows = 1 << X,
    .run = mlp_run,
};

hd_tensor hdi_mlp_slices(hd_program *program, hdi_mlp_kind kind, hd_tensor x,
                         const hdi_linear_map *up, const hdi_linear_map *down, int slices)
{
    const hd_tensor in[INPUTS] = {x, up->weight, up->bias, down->weight, down->bias};
    const hd_tensor_info *info = hd_tensor_get(program, x);
    mlp_options options;
    memset(&options, 0, sizeof options); /* padding too: programs are compared */
    options.kind = kind;
    options.slices = slices > 1 ? slices : 1;
    options.trains = program->training;
    if (program->training && info && info->rank != 2)
        return hd_program_fail(program, HD_ERROR_ARGUMENT,
                               "MLP in slices: x has rank %d, want [rows, inputs]", info->rank);
    return hd_custom_op(program, &mlp_slices, &options, INPUTS, in);
}
