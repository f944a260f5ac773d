/* A linear map, GELU (tanh form) and a second linear map, for training: the first product and GELU are
 * one op, and so are the second map's data gradient and GELU's, where the device can. What GELU took
 * is an input of the second map, since its gradient is made there. */
#include "core/error.h"
#include "ops/ops.h"

hd_status hdi_linear_run_gelu(const hd_run *run, hdi_gemm_args args, hdi_gemm_gelu gelu, void *pre)
{
    args.gelu = gelu;
    args.pre = pre;
    return run->backend->gemm_gelu ? run->backend->gemm_gelu(run->stream, &args)
                                   : hdi_gemm_then_gelu(run->backend, run->stream, &args);
}

/* in: x, weight, bias. out: activated, pre. */
static hd_status linear_gelu_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_linear_shape(program, op));
    hdi_output_like(program, op->in_info[0], op->in_info[1]->dims[0]);
    return HD_OK;
}

static hd_status linear_gelu_run(const hd_run *run)
{
    return hdi_linear_run_gelu(run, hdi_linear_args(run), HDI_GEMM_GELU, run->out[1]);
}

static void linear_gelu_backward(hd_backward *context, const hd_op *op)
{
    const hd_tensor gradient = hd_backward_output_gradient(context, 1);
    hdi_linear_data_gradient(context, op, gradient);
    hdi_linear_weight_gradients(context, op, gradient);
}

static const hd_op_kind linear_gelu = {
    .name = "linear_gelu",
    .shape = linear_gelu_shape,
    .backward = linear_gelu_backward,
    .cost = hdi_linear_cost,
    .by_rows = 1,
    .run = linear_gelu_run,
};

hd_tensor hdi_linear_gelu(hd_program *program, hd_tensor x, hd_tensor weight, hd_tensor bias,
                          hd_tensor *pre)
{
    const hd_tensor in[] = {x, weight, bias};
    const hd_tensor activated = hd_custom_op(program, &linear_gelu, NULL, 3, in);
    *pre = activated.id ? hd_op_result(program, 1) : (hd_tensor){0};
    return activated;
}

/* in: gradient, weight, pre. out: gradient of pre. */
static hd_status pre_gradient_run(const hd_run *run)
{
    return hdi_linear_run_gelu(run, hdi_linear_gradient_args(run), HDI_GEMM_GELU_GRADIENT,
                               hdi_updated(run->in[2]));
}

static const hd_op_kind pre_gradient = {
    .name = "linear_gelu_gradient",
    .shape = hdi_linear_gradient_shape,
    .cost = hdi_linear_cost,
    .by_rows = 1 | 1 << 2,
    .run = pre_gradient_run,
};

/* in: activated, weight, bias, pre. */
static hd_status after_gelu_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_linear_shape(program, op));
    const hd_tensor_info *x = op->in_info[0];
    return hdi_check_dims(op, 3, "pre", x->dtype, x->rank, x->dims);
}

hd_tensor hdi_linear_gelu_gradient(hd_program *program, hd_tensor gradient, hd_tensor weight,
                                   hd_tensor pre)
{
    const hd_tensor in[] = {gradient, weight, pre};
    return hd_custom_op(program, &pre_gradient, NULL, 3, in);
}

static void after_gelu_backward(hd_backward *context, const hd_op *op)
{
    const hd_tensor gradient = hd_backward_output_gradient(context, 0);
    const bool weights_first = hdi_linear_weights_first(context, op);
    if (weights_first) hdi_linear_weight_gradients(context, op, gradient);
    if (hd_backward_wants(context, 3))
        hd_backward_give(
            context, 3,
            hdi_linear_gelu_gradient(hd_backward_program(context), gradient, op->in[1], op->in[3]));
    if (!weights_first) hdi_linear_weight_gradients(context, op, gradient);
}

static const hd_op_kind after_gelu = {
    .name = "linear_after_gelu",
    .shape = after_gelu_shape,
    .backward = after_gelu_backward,
    .cost = hdi_linear_cost,
    .by_rows = 1 | 1 << 3,
    .run = hdi_linear_run,
};

hd_tensor hdi_linear_after_gelu(hd_program *program, hd_tensor activated, hd_tensor pre,
                                hd_tensor weight, hd_tensor bias)
{
    const hd_tensor in[] = {activated, weight, bias, pre};
    return hd_custom_op(program, &after_gelu, NULL, 4, in);
}
