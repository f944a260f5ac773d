/* A table added to rows, over and over. */
#include <heddle/diffusion.h>

#include "core/error.h"
#include "ops/ops.h"

static hd_status add_rows_shape(hd_program *program, const hd_op *op)
{
    const int64_t any[] = {-1, -1};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "x", HD_DTYPE_NONE, 2, any));
    const hd_tensor_info *x = op->in_info[0];
    const int64_t wanted[] = {-1, x->dims[1]};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "table", x->dtype, 2, wanted));
    if (op->in_info[1]->dims[0] < 1)
        return hdi_error(HD_ERROR_ARGUMENT, "the table has no rows, want one");
    hd_op_output(program, x->dtype, 2, x->dims);
    return HD_OK;
}

static void add_rows_cost(const hd_op *op, hd_cost *out)
{
    out->flops = (double)op->out_info[0]->elements;
    out->bytes = hdi_tensor_bytes(op);
}

static hd_status add_rows_run(const hd_run *run)
{
    const hd_tensor_info *x = run->op->in_info[0];
    return run->backend->add_rows(run->stream,
                                  &(hdi_add_rows_args){.dtype = x->dtype,
                                                       .rows = x->dims[0],
                                                       .columns = x->dims[1],
                                                       .period = run->op->in_info[1]->dims[0],
                                                       .x = run->in[0],
                                                       .table = run->in[1],
                                                       .out = run->out[0]});
}

/* in: gradient [rows, columns]. out: that of the table. */
typedef struct table_options {
    int64_t period;
} table_options;

static hd_status table_shape(hd_program *program, const hd_op *op)
{
    const table_options *options = op->options;
    const int64_t dims[] = {options->period, op->in_info[0]->dims[1]};
    hd_op_output(program, op->in_info[0]->dtype, 2, dims);
    return HD_OK;
}

static void table_cost(const hd_op *op, hd_cost *out)
{
    out->flops = (double)op->in_info[0]->elements;
    out->bytes = hdi_tensor_bytes(op);
}

static hd_status table_run(const hd_run *run)
{
    const table_options *options = run->op->options;
    const hd_tensor_info *gradient = run->op->in_info[0], *out = run->op->out_info[0];
    const bool is_weight = out->role == HD_ROLE_GRADIENT;
    return run->backend->add_rows_gradient(
        run->stream, &(hdi_add_rows_gradient_args){.dtype = gradient->dtype,
                                                   .out_dtype = out->dtype,
                                                   .rows = gradient->dims[0],
                                                   .columns = gradient->dims[1],
                                                   .period = options->period,
                                                   .gradient = run->in[0],
                                                   .table_gradient = run->out[0],
                                                   .accumulate = is_weight && run->accumulate});
}

static const hd_op_kind table_gradient = {
    .name = "add_rows_gradient",
    .options_bytes = sizeof(table_options),
    .shape = table_shape,
    .cost = table_cost,
    .run = table_run,
};

static const hd_op_kind table_weight_gradient = {
    .name = "add_rows_weight_gradient",
    .options_bytes = sizeof(table_options),
    .flags = HD_OP_WEIGHT_GRADIENT,
    .shape = hdi_no_outputs,
    .cost = table_cost,
    .run = table_run,
};

static void add_rows_backward(hd_backward *context, const hd_op *op)
{
    hd_program *program = hd_backward_program(context);
    const hd_tensor gradient = hd_backward_output_gradient(context, 0);
    hd_backward_give(context, 0, gradient);
    if (!hd_backward_wants(context, 1)) return;
    const table_options options = {op->in_info[1]->dims[0]};
    if (op->in_info[1]->role == HD_ROLE_PARAMETER)
        hd_backward_weight(context, 1, &table_weight_gradient, &options, 1, &gradient);
    else
        hd_backward_give(context, 1,
                         hd_custom_op(program, &table_gradient, &options, 1, &gradient));
}

static const hd_op_kind add_rows = {
    .name = "add_rows",
    .shape = add_rows_shape,
    .backward = add_rows_backward,
    .cost = add_rows_cost,
    .in_place = 1,
    .run = add_rows_run,
};

hd_tensor hd_add_rows(hd_program *program, hd_tensor x, hd_tensor table)
{
    const hd_tensor in[] = {x, table};
    return hd_custom_op(program, &add_rows, NULL, 2, in);
}
