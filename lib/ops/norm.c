/* Layer norm and RMS norm, of one tensor or of the sum of two (a residual and what is added to it).
 *
 * in: x, delta (may be absent), weight (may be absent), bias (may be absent).
 * out: normed; the sum if there is a delta; 1 / deviation and, for layer norm, the mean of each
 * row if a backward will follow. */
#include "core/error.h"
#include "ops/ops.h"

#include <string.h>

static int deviation_index(const hdi_norm_options *options)
{
    return options->residual ? 2 : 1;
}

static hd_status norm_shape(hd_program *program, const hd_op *op)
{
    const hdi_norm_options *options = op->options;
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "x", HD_DTYPE_NONE));
    const hd_tensor_info *x = op->in_info[0];
    if (options->residual)
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "delta", x->dtype, x->rank, x->dims));
    const int64_t columns = hdi_columns(x), rows = hdi_rows(x);
    if (op->in_info[2]) HD_RETURN_IF_ERROR(hdi_check_dims(op, 2, "weight", x->dtype, 1, &columns));
    if (op->in_info[3]) HD_RETURN_IF_ERROR(hdi_check_dims(op, 3, "bias", x->dtype, 1, &columns));
    if (columns < 1 || !(options->epsilon > 0))
        return hdi_error(HD_ERROR_ARGUMENT, "epsilon is %g, want > 0 and at least one column",
                         (double)options->epsilon);
    hd_op_output(program, x->dtype, x->rank, x->dims);
    if (options->residual) hd_op_output(program, x->dtype, x->rank, x->dims);
    if (options->saves) hd_op_output(program, HD_DTYPE_F32, 1, &rows);
    if (options->saves && options->kind == HDI_LAYER_NORM)
        hd_op_output(program, HD_DTYPE_F32, 1, &rows);
    return HD_OK;
}

static hd_status norm_run(const hd_run *run)
{
    const hdi_norm_options *options = run->op->options;
    const hd_tensor_info *x = run->op->in_info[0];
    const int deviation = deviation_index(options);
    return run->backend->norm(run->stream,
                              &(hdi_norm_args){
                                  .kind = options->kind,
                                  .dtype = x->dtype,
                                  .rows = hdi_rows(x),
                                  .columns = hdi_columns(x),
                                  .epsilon = options->epsilon,
                                  .x = run->in[0],
                                  .residual = run->in[1],
                                  .weight = run->in[2],
                                  .bias = run->in[3],
                                  .sum = options->residual ? run->out[1] : NULL,
                                  .out = run->out[0],
                                  .rstd = options->saves ? run->out[deviation] : NULL,
                                  .mean = options->saves && options->kind == HDI_LAYER_NORM
                                              ? run->out[deviation + 1]
                                              : NULL,
                              });
}

/* in: gradient of normed, what was normed, weight (may be absent), 1 / deviation, mean (may be
 * absent), carry: a gradient to be added (may be absent). out: gradient of what was normed, and
 * partial sums [partial rows, 2 * columns] for weight and bias. */
static hd_status gradient_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_check_input(op, 1, "x", HD_DTYPE_NONE));
    const hd_tensor_info *x = op->in_info[1];
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "gradient", x->dtype, x->rank, x->dims));
    if (op->in_info[5])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 5, "carry", x->dtype, x->rank, x->dims));
    hd_op_output(program, x->dtype, x->rank, x->dims);
    const int64_t rows = hdi_rows(x);
    const int64_t dims[] = {hdi_partial_rows(rows), 2 * hdi_columns(x)};
    if (op->in_info[2]) hd_op_output(program, HD_DTYPE_F32, 2, dims);
    return HD_OK;
}

static hd_status gradient_run(const hd_run *run)
{
    const hdi_norm_options *options = run->op->options;
    const hd_op *op = run->op;
    return run->backend->norm_gradient(
        run->stream, &(hdi_norm_gradient_args){
                         .kind = options->kind,
                         .dtype = op->in_info[1]->dtype,
                         .rows = hdi_rows(op->in_info[1]),
                         .columns = hdi_columns(op->in_info[1]),
                         .partial_rows = op->outputs > 1 ? op->out_info[1]->dims[0] : 0,
                         .gradient = run->in[0],
                         .x = run->in[1],
                         .weight = run->in[2],
                         .carry = run->in[5],
                         .rstd = run->in[3],
                         .mean = run->in[4],
                         .x_gradient = run->out[0],
                         .partials = op->outputs > 1 ? run->out[1] : NULL,
                     });
}

static const hd_op_kind norm_gradient = {
    .name = "norm_gradient",
    .options_bytes = sizeof(hdi_norm_options),
    .shape = gradient_shape,
    .in_place = 1 << 5,
    .run = gradient_run,
};

/* in: partial sums [partial rows, 2 * columns]; the options say which half is summed. */
typedef struct partials_options {
    int64_t first, columns;
} partials_options;

static size_t partials_workspace(const hd_op *op)
{
    const partials_options *options = op->options;
    return hdi_op_backend(op)->column_sum_workspace(op->in_info[0]->dims[0], options->columns);
}

static void partials_cost(const hd_op *op, hd_cost *out)
{
    out->flops = (double)op->in_info[0]->elements / 2;
    out->bytes = (double)op->in_info[0]->bytes / 2 + (double)op->out_info[0]->bytes;
}

static hd_status partials_run(const hd_run *run)
{
    const partials_options *options = run->op->options;
    return run->backend->column_sum(
        run->stream, &(hdi_column_sum_args){.dtype = HD_DTYPE_F32,
                                            .out_dtype = HD_DTYPE_F32,
                                            .rows = run->op->in_info[0]->dims[0],
                                            .columns = options->columns,
                                            .x_stride = 2 * options->columns,
                                            .x = (const float *)run->in[0] + options->first,
                                            .out = run->out[0],
                                            .accumulate = run->accumulate,
                                            .workspace = run->workspace});
}

static const hd_op_kind partials_sum = {
    .name = "norm_weight_gradient",
    .options_bytes = sizeof(partials_options),
    .flags = HD_OP_WEIGHT_GRADIENT,
    .shape = hdi_no_outputs,
    .cost = partials_cost,
    .workspace = partials_workspace,
    .run = partials_run,
};

void hdi_norm_weight_gradient(hd_backward *context, int input, hd_tensor partials, int64_t first,
                              int64_t columns)
{
    if (hd_backward_wants(context, input))
        hd_backward_weight(context, input, &partials_sum, &(partials_options){first, columns}, 1,
                           &partials);
}

static void norm_backward(hd_backward *context, const hd_op *op)
{
    const hdi_norm_options *options = op->options;
    hd_program *program = hd_backward_program(context);
    const hd_tensor none = {0}, gradient = hd_backward_output_gradient(context, 0);
    const hd_tensor carry = options->residual ? hd_backward_output_gradient(context, 1) : none;
    if (!gradient.id) { /* only the sum was used */
        hd_backward_give(context, 0, carry);
        hd_backward_give(context, 1, carry);
        return;
    }
    const int deviation = deviation_index(options);
    const hd_tensor in[] = {
        gradient,
        options->residual ? op->out[1] : op->in[0],
        op->in[2],
        op->out[deviation],
        options->kind == HDI_LAYER_NORM ? op->out[deviation + 1] : none,
        carry,
    };
    const hd_tensor sum_gradient = hd_custom_op(program, &norm_gradient, options, 6, in);
    if (!sum_gradient.id) return;
    if (op->in[2].id) {
        const hd_tensor partials = hd_op_result(program, 1);
        const int64_t columns = options->columns;
        hdi_norm_weight_gradient(context, 2, partials, 0, columns);
        hdi_norm_weight_gradient(context, 3, partials, columns, columns);
    }
    hd_backward_give(context, 0, sum_gradient);
    if (options->residual) hd_backward_give(context, 1, sum_gradient);
}

const hd_op_kind hdi_op_norm = {
    .name = "norm",
    .options_bytes = sizeof(hdi_norm_options),
    .shape = norm_shape,
    .backward = norm_backward,
    .run = norm_run,
};

hd_tensor hdi_norm(hd_program *program, hdi_norm_kind kind, float epsilon, hd_tensor x,
                   hd_tensor delta, hd_tensor weight, hd_tensor bias, hd_tensor *sum)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    hdi_norm_options options;
    memset(&options, 0, sizeof options);
    options.kind = kind;
    options.epsilon = epsilon;
    options.columns = info ? hdi_columns(info) : 0;
    options.residual = delta.id != 0;
    options.saves = program->training;
    const hd_tensor in[] = {x, delta, weight, bias};
    const hd_tensor normed = hd_custom_op(program, &hdi_op_norm, &options, 4, in);
    if (sum) *sum = options.residual && normed.id ? hd_op_result(program, 1) : x;
    return normed;
}
