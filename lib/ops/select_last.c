/* The last valid row of a matrix: what generation needs logits for. */
#include "core/error.h"
#include "ops/ops.h"

static hd_status select_last_shape(hd_program *program, const hd_op *op)
{
    const int64_t any[] = {-1, -1}, one = 1;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "x", HD_DTYPE_NONE, 2, any));
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "count", HD_DTYPE_I32, 1, &one));
    const int64_t dims[] = {1, op->in_info[0]->dims[1]};
    if (op->in_info[0]->dims[0] < 1) return hdi_error(HD_ERROR_ARGUMENT, "x has no rows, want one");
    hd_op_output(program, op->in_info[0]->dtype, 2, dims);
    return HD_OK;
}

static void select_last_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = 2 * (double)op->out_info[0]->bytes;
}

static hd_status select_last_run(const hd_run *run)
{
    const hd_tensor_info *x = run->op->in_info[0];
    return run->backend->select_row(run->stream, &(hdi_select_row_args){.dtype = x->dtype,
                                                                        .rows = x->dims[0],
                                                                        .columns = x->dims[1],
                                                                        .x = run->in[0],
                                                                        .count = run->in[1],
                                                                        .out = run->out[0]});
}

const hd_op_kind hdi_op_select_last = {
    .name = "select_last",
    .shape = select_last_shape,
    .cost = select_last_cost,
    .run = select_last_run,
};

hd_tensor hd_select_last(hd_program *program, hd_tensor x, hd_tensor count)
{
    const hd_tensor in[] = {x, count};
    return hd_custom_op(program, &hdi_op_select_last, NULL, 2, in);
}
