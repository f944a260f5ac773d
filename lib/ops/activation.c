/* Elementwise activations, and SwiGLU, which gates one half of its columns by the other. */
#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>

static hd_status activation_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "x", HD_DTYPE_NONE));
    const hd_tensor_info *x = op->in_info[0];
    hd_op_output(program, x->dtype, x->rank, x->dims);
    return HD_OK;
}

static hd_status activation_run(const hd_run *run)
{
    const hdi_activation_options *options = run->op->options;
    const hd_tensor_info *x = run->op->in_info[0];
    return run->backend->activation(run->stream, &(hdi_activation_args){.kind = options->kind,
                                                                        .dtype = x->dtype,
                                                                        .elements = x->elements,
                                                                        .x = run->in[0],
                                                                        .out = run->out[0]});
}

/* in: x, gradient, of any activation: equal shapes. */
static hd_status activation_gradient_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(activation_shape(program, op));
    const hd_tensor_info *x = op->in_info[0];
    return hdi_check_dims(op, 1, "gradient", x->dtype, x->rank, x->dims);
}

static hd_status activation_gradient_run(const hd_run *run)
{
    const hdi_activation_options *options = run->op->options;
    const hd_tensor_info *x = run->op->in_info[0];
    return run->backend->activation_gradient(run->stream,
                                             &(hdi_activation_args){.kind = options->kind,
                                                                    .dtype = x->dtype,
                                                                    .elements = x->elements,
                                                                    .x = run->in[0],
                                                                    .gradient = run->in[1],
                                                                    .out = run->out[0]});
}

static const hd_op_kind activation_gradient = {
    .name = "activation_gradient",
    .options_bytes = sizeof(hdi_activation_options),
    .shape = activation_gradient_shape,
    .in_place = 1 | 2,
    .run = activation_gradient_run,
};

hd_tensor hdi_activation_gradient(hd_program *program, hdi_activation kind, hd_tensor x,
                                  hd_tensor gradient)
{
    const hd_tensor in[] = {x, gradient};
    return hd_custom_op(program, &activation_gradient, &(hdi_activation_options){kind}, 2, in);
}

static void activation_backward(hd_backward *context, const hd_op *op)
{
    if (!hd_backward_wants(context, 0)) return;
    const hdi_activation_options *options = op->options;
    hd_backward_give(context, 0,
                     hdi_activation_gradient(hd_backward_program(context), options->kind, op->in[0],
                                             hd_backward_output_gradient(context, 0)));
}

const hd_op_kind hdi_op_activation = {
    .name = "activation",
    .options_bytes = sizeof(hdi_activation_options),
    .shape = activation_shape,
    .backward = activation_backward,
    .in_place = 1,
    .by_rows = 1,
    .run = activation_run,
};

static hd_tensor activate(hd_program *program, hd_tensor x, hdi_activation kind)
{
    const hdi_activation_options options = {kind};
    return hd_custom_op(program, &hdi_op_activation, &options, 1, &x);
}

hd_tensor hd_gelu(hd_program *program, hd_tensor x)
{
    return activate(program, x, HDI_GELU_ERF);
}

hd_tensor hd_gelu_tanh(hd_program *program, hd_tensor x)
{
    return activate(program, x, HDI_GELU_TANH);
}

hd_tensor hd_silu(hd_program *program, hd_tensor x)
{
    return activate(program, x, HDI_SILU);
}

static hd_status swiglu_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "x", HD_DTYPE_NONE));
    const int64_t columns = hdi_columns(op->in_info[0]);
    if (columns % 2)
        return hdi_error(HD_ERROR_ARGUMENT, "x has %" PRId64 " columns, want an even number",
                         columns);
    hdi_output_like(program, op->in_info[0], columns / 2);
    return HD_OK;
}

static hd_status swiglu_run(const hd_run *run)
{
    const hd_tensor_info *out = run->op->out_info[0];
    return run->backend->gated(run->stream, &(hdi_gated_args){.kind = HDI_SILU,
                                                              .dtype = out->dtype,
                                                              .rows = hdi_rows(out),
                                                              .columns = hdi_columns(out),
                                                              .x = run->in[0],
                                                              .out = run->out[0]});
}

/* in: x [rows, 2 * columns], gradient [rows, columns]. */
static hd_status swiglu_gradient_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "x", HD_DTYPE_NONE));
    HD_RETURN_IF_ERROR(hdi_check_input(op, 1, "gradient", op->in_info[0]->dtype));
    const hd_tensor_info *x = op->in_info[0], *gradient = op->in_info[1];
    char seen[HDI_SHAPE_TEXT], wanted[HDI_SHAPE_TEXT];
    if (gradient->elements * 2 != x->elements || hdi_columns(gradient) * 2 != hdi_columns(x))
        return hdi_error(HD_ERROR_ARGUMENT, "gradient is %s, want half the columns of %s",
                         hdi_shape_text(gradient, seen), hdi_shape_text(x, wanted));
    hd_op_output(program, x->dtype, x->rank, x->dims);
    return HD_OK;
}

static hd_status swiglu_gradient_run(const hd_run *run)
{
    const hd_tensor_info *gradient = run->op->in_info[1];
    return run->backend->gated_gradient(run->stream,
                                        &(hdi_gated_args){.kind = HDI_SILU,
                                                          .dtype = gradient->dtype,
                                                          .rows = hdi_rows(gradient),
                                                          .columns = hdi_columns(gradient),
                                                          .x = run->in[0],
                                                          .gradient = run->in[1],
                                                          .x_gradient = run->out[0]});
}

static const hd_op_kind swiglu_gradient = {
    .name = "swiglu_gradient",
    .shape = swiglu_gradient_shape,
    .run = swiglu_gradient_run,
};

hd_tensor hdi_swiglu_gradient(hd_program *program, hd_tensor x, hd_tensor gradient)
{
    const hd_tensor in[] = {x, gradient};
    return hd_custom_op(program, &swiglu_gradient, NULL, 2, in);
}

static void swiglu_backward(hd_backward *context, const hd_op *op)
{
    if (!hd_backward_wants(context, 0)) return;
    hd_backward_give(context, 0,
                     hdi_swiglu_gradient(hd_backward_program(context), op->in[0],
                                         hd_backward_output_gradient(context, 0)));
}

const hd_op_kind hdi_op_swiglu = {
    .name = "swiglu",
    .shape = swiglu_shape,
    .backward = swiglu_backward,
    .by_rows = 1,
    .run = swiglu_run,
};

hd_tensor hd_swiglu(hd_program *program, hd_tensor x)
{
    return hd_custom_op(program, &hdi_op_swiglu, NULL, 1, &x);
}
