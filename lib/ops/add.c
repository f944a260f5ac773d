/* Addition of two tensors of one shape: residuals, and the sum of two gradients of one tensor. */
#include "core/error.h"
#include "ops/ops.h"

static hd_status add_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "x", HD_DTYPE_NONE));
    const hd_tensor_info *x = op->in_info[0];
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "y", x->dtype, x->rank, x->dims));
    hd_op_output(program, x->dtype, x->rank, x->dims);
    return HD_OK;
}

static void add_backward(hd_backward *context, const hd_op *op)
{
    (void)op;
    const hd_tensor gradient = hd_backward_output_gradient(context, 0);
    hd_backward_give(context, 0, gradient);
    hd_backward_give(context, 1, gradient);
}

static void add_cost(const hd_op *op, hd_cost *out)
{
    out->flops = (double)op->out_info[0]->elements;
    out->bytes = hdi_tensor_bytes(op);
}

static hd_status add_run(const hd_run *run)
{
    const hd_tensor_info *out = run->op->out_info[0];
    return run->backend->add(run->stream, out->dtype, out->elements, run->in[0], run->in[1],
                             run->out[0]);
}

const hd_op_kind hdi_op_add = {
    .name = "add",
    .shape = add_shape,
    .backward = add_backward,
    .cost = add_cost,
    .in_place = 1 | 2,
    .by_rows = 1 | 2,
    .run = add_run,
};

hd_tensor hd_add(hd_program *program, hd_tensor x, hd_tensor y)
{
    const hd_tensor in[] = {x, y};
    return hd_custom_op(program, &hdi_op_add, NULL, 2, in);
}
