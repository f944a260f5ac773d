/* Linear maps: x [rows, inputs] by W [outputs, inputs], transposed, plus bias. The gradients of the
 * data, the weight and the bias are ops of their own. */
#include "core/error.h"
#include "ops/ops.h"

hd_status hdi_linear_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "x", HD_DTYPE_NONE));
    const hd_tensor_info *x = op->in_info[0];
    const int64_t weight_dims[] = {-1, hdi_columns(x)};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "weight", x->dtype, 2, weight_dims));
    const int64_t outputs = op->in_info[1]->dims[0];
    if (op->in_info[2]) HD_RETURN_IF_ERROR(hdi_check_dims(op, 2, "bias", x->dtype, 1, &outputs));
    hdi_output_like(program, x, outputs);
    return HD_OK;
}

static void gemm_cost(const hd_op *op, const hd_tensor_info *x, const hd_tensor_info *y,
                      hd_cost *out)
{
    out->flops = 2.0 * (double)x->elements * (double)hdi_columns(y);
    out->bytes = hdi_tensor_bytes(op);
}

void hdi_linear_cost(const hd_op *op, hd_cost *out)
{
    gemm_cost(op, op->in_info[0], op->out_info[0], out);
}

hdi_gemm_args hdi_linear_args(const hd_run *run)
{
    const hd_tensor_info *x = run->op->in_info[0], *out = run->op->out_info[0];
    const int64_t inputs = hdi_columns(x), outputs = hdi_columns(out);
    return (hdi_gemm_args){.dtype = x->dtype,
                           .out_dtype = out->dtype,
                           .rows = hdi_rows(x),
                           .columns = outputs,
                           .inner = inputs,
                           .a = run->in[0],
                           .b = run->in[1],
                           .a_stride = inputs,
                           .b_stride = inputs,
                           .out_stride = outputs,
                           .transpose_b = true,
                           .bias = run->in[2],
                           .out = run->out[0]};
}

hd_status hdi_linear_run(const hd_run *run)
{
    const hdi_gemm_args args = hdi_linear_args(run);
    return run->backend->gemm(run->stream, &args);
}

/* in: gradient [rows, outputs], weight [outputs, inputs]. */
hd_status hdi_linear_gradient_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "gradient", HD_DTYPE_NONE));
    const hd_tensor_info *gradient = op->in_info[0];
    const int64_t dims[] = {hdi_columns(gradient), -1};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "weight", gradient->dtype, 2, dims));
    hdi_output_like(program, gradient, op->in_info[1]->dims[1]);
    return HD_OK;
}

hdi_gemm_args hdi_linear_gradient_args(const hd_run *run)
{
    const hd_tensor_info *gradient = run->op->in_info[0], *out = run->op->out_info[0];
    const int64_t inputs = hdi_columns(out), outputs = hdi_columns(gradient);
    return (hdi_gemm_args){.dtype = gradient->dtype,
                           .out_dtype = out->dtype,
                           .rows = hdi_rows(gradient),
                           .columns = inputs,
                           .inner = outputs,
                           .a = run->in[0],
                           .b = run->in[1],
                           .a_stride = outputs,
                           .b_stride = inputs,
                           .out_stride = inputs,
                           .out = run->out[0]};
}

static hd_status data_gradient_run(const hd_run *run)
{
    const hdi_gemm_args args = hdi_linear_gradient_args(run);
    return run->backend->gemm(run->stream, &args);
}

static const hd_op_kind data_gradient = {
    .name = "linear_gradient",
    .shape = hdi_linear_gradient_shape,
    .cost = hdi_linear_cost,
    .by_rows = 1,
    .run = data_gradient_run,
};

/* in: gradient [rows, outputs], x [rows, inputs]. */
static void weight_gradient_cost(const hd_op *op, hd_cost *out)
{
    gemm_cost(op, op->in_info[0], op->in_info[1], out);
}

static hd_status weight_gradient_run(const hd_run *run)
{
    const hd_tensor_info *gradient = run->op->in_info[0], *x = run->op->in_info[1];
    const int64_t inputs = hdi_columns(x), outputs = hdi_columns(gradient);
    return run->backend->gemm(run->stream,
                              &(hdi_gemm_args){.dtype = x->dtype,
                                               .out_dtype = run->op->out_info[0]->dtype,
                                               .rows = outputs,
                                               .columns = inputs,
                                               .inner = hdi_rows(x),
                                               .a = run->in[0],
                                               .b = run->in[1],
                                               .a_stride = outputs,
                                               .b_stride = inputs,
                                               .out_stride = inputs,
                                               .transpose_a = true,
                                               .accumulate = run->accumulate,
                                               .out = run->out[0]});
}

static const hd_op_kind weight_gradient = {
    .name = "linear_weight_gradient",
    .flags = HD_OP_WEIGHT_GRADIENT | HD_OP_ROUNDS,
    .shape = hdi_no_outputs,
    .cost = weight_gradient_cost,
    .run = weight_gradient_run,
};

/* in: gradient [rows, outputs]. */
static size_t bias_gradient_workspace(const hd_op *op)
{
    const hd_tensor_info *gradient = op->in_info[0];
    return hdi_op_backend(op)->column_sum_workspace(hdi_rows(gradient), hdi_columns(gradient));
}

static hd_status bias_gradient_run(const hd_run *run)
{
    const hd_tensor_info *gradient = run->op->in_info[0];
    const int64_t outputs = hdi_columns(gradient);
    return run->backend->column_sum(run->stream,
                                    &(hdi_column_sum_args){.dtype = gradient->dtype,
                                                           .out_dtype = HD_DTYPE_F32,
                                                           .rows = hdi_rows(gradient),
                                                           .columns = outputs,
                                                           .x_stride = outputs,
                                                           .x = run->in[0],
                                                           .out = run->out[0],
                                                           .accumulate = run->accumulate,
                                                           .workspace = run->workspace});
}

static const hd_op_kind bias_gradient = {
    .name = "linear_bias_gradient",
    .flags = HD_OP_WEIGHT_GRADIENT,
    .shape = hdi_no_outputs,
    .workspace = bias_gradient_workspace,
    .run = bias_gradient_run,
};

void hdi_linear_weight_gradient(hd_backward *context, int input, hd_tensor gradient, hd_tensor x)
{
    const hd_tensor in[] = {gradient, x};
    if (hd_backward_wants(context, input))
        hd_backward_weight(context, input, &weight_gradient, NULL, 2, in);
}

void hdi_linear_bias_gradient(hd_backward *context, int input, hd_tensor gradient)
{
    if (hd_backward_wants(context, input))
        hd_backward_weight(context, input, &bias_gradient, NULL, 1, &gradient);
}

void hdi_linear_weight_gradients(hd_backward *context, const hd_op *op, hd_tensor gradient)
{
    hdi_linear_weight_gradient(context, 1, gradient, op->in[0]);
    hdi_linear_bias_gradient(context, 2, gradient);
}

hd_tensor hdi_linear_gradient(hd_program *program, hd_tensor gradient, hd_tensor weight)
{
    const hd_tensor in[] = {gradient, weight};
    return hd_custom_op(program, &data_gradient, NULL, 2, in);
}

void hdi_linear_data_gradient(hd_backward *context, const hd_op *op, hd_tensor gradient)
{
    if (!hd_backward_wants(context, 0)) return;
    hd_backward_give(context, 0,
                     hdi_linear_gradient(hd_backward_program(context), gradient, op->in[1]));
}

bool hdi_linear_weights_first(hd_backward *context, const hd_op *op)
{
    const hd_mesh *mesh = hd_backward_program(context)->mesh;
    return hd_mesh_size(mesh, HD_AXIS_TENSOR) == 1 &&
           hdi_columns(op->in_info[0]) > hdi_columns(op->out_info[0]);
}

static void linear_backward(hd_backward *context, const hd_op *op)
{
    const hd_tensor gradient = hd_backward_output_gradient(context, 0);
    const bool weights_first = hdi_linear_weights_first(context, op);
    if (weights_first) hdi_linear_weight_gradients(context, op, gradient);
    hdi_linear_data_gradient(context, op, gradient);
    if (!weights_first) hdi_linear_weight_gradients(context, op, gradient);
}

const hd_op_kind hdi_op_linear = {
    .name = "linear",
    .shape = hdi_linear_shape,
    .backward = linear_backward,
    .cost = hdi_linear_cost,
    .by_rows = 1,
    .run = hdi_linear_run,
};

hd_tensor hd_linear_op(hd_program *program, hd_tensor x, hd_tensor weight, hd_tensor bias)
{
    const hd_tensor in[] = {x, weight, bias};
    return hd_custom_op(program, &hdi_op_linear, NULL, 3, in);
}

/* in: x, weight, bias, add. The sum is in place where nobody else needs what is added to. */
static hd_status linear_add_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_linear_shape(program, op));
    const hd_tensor_info *x = op->in_info[0];
    int64_t dims[HD_MAX_DIMS];
    for (int i = 0; i < x->rank - 1; i++)
        dims[i] = x->dims[i];
    dims[x->rank - 1] = op->in_info[1]->dims[0];
    return hdi_check_dims(op, 3, "what is added to", x->dtype, x->rank, dims);
}

static hd_status linear_add_run(const hd_run *run)
{
    hdi_gemm_args args = hdi_linear_args(run);
    args.accumulate = true;
    if (run->out[0] != run->in[3])
        HD_RETURN_IF_ERROR(
            run->backend->copy(run->stream, run->out[0], run->in[3], run->op->out_info[0]->bytes));
    return run->backend->gemm(run->stream, &args);
}

static void linear_add_backward(hd_backward *context, const hd_op *op)
{
    hd_backward_give(context, 3, hd_backward_output_gradient(context, 0));
    linear_backward(context, op);
}

static const hd_op_kind linear_add = {
    .name = "linear_add",
    .shape = linear_add_shape,
    .backward = linear_add_backward,
    .cost = hdi_linear_cost,
    .in_place = 1 << 3,
    .by_rows = 1 | 1 << 3,
    .run = linear_add_run,
};

hd_tensor hdi_linear_add(hd_program *program, hd_tensor x, hd_tensor weight, hd_tensor bias,
                         hd_tensor add)
{
    const hd_tensor in[] = {x, weight, bias, add};
    return hd_custom_op(program, &linear_add, NULL, 4, in);
}
