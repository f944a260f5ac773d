/* Weighted squared error (rectified flow, arXiv 2209.03003). As with cross-entropy, training makes
 * the loss and, in the prediction's place, its gradient in one pass. */
#include <heddle/diffusion.h>

#include "core/error.h"
#include "ops/ops.h"

typedef struct squared_error_options {
    bool gradient;
} squared_error_options;

/* in: prediction, target, weight of each row (may be absent), loss scale (may be absent).
 * out: gradient of the prediction (training only); F64 [2], sums of weight * error^2 and weight. */
static hd_status squared_error_shape(hd_program *program, const hd_op *op)
{
    const squared_error_options *options = op->options;
    const int64_t any[] = {-1, -1}, one = 1, two = 2;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "prediction", HD_DTYPE_NONE, 2, any));
    const hd_tensor_info *prediction = op->in_info[0];
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "target", HD_DTYPE_F32, 2, prediction->dims));
    if (op->in_info[2])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 2, "weight", HD_DTYPE_F32, 1, prediction->dims));
    if (op->in_info[3])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 3, "loss scale", HD_DTYPE_F32, 1, &one));
    if (options->gradient) hd_op_output(program, prediction->dtype, 2, prediction->dims);
    hd_op_output(program, HD_DTYPE_F64, 1, &two);
    return HD_OK;
}

static void squared_error_backward(hd_backward *context, const hd_op *op)
{
    const squared_error_options *options = op->options;
    if (options->gradient) hd_backward_give(context, 0, op->out[0]);
}

static void squared_error_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 5.0 * (double)op->in_info[0]->elements;
    out->bytes = hdi_tensor_bytes(op);
}

static size_t squared_error_workspace(const hd_op *op)
{
    const hd_tensor_info *prediction = op->in_info[0];
    return hdi_op_backend(op)->squared_error_workspace(prediction->dims[0], prediction->dims[1]);
}

static hd_status squared_error_run(const hd_run *run)
{
    const squared_error_options *options = run->op->options;
    const hd_tensor_info *prediction = run->op->in_info[0];
    return run->backend->squared_error(
        run->stream, &(hdi_squared_error_args){.dtype = prediction->dtype,
                                               .rows = prediction->dims[0],
                                               .columns = prediction->dims[1],
                                               .prediction = run->in[0],
                                               .target = run->in[1],
                                               .weight = run->in[2],
                                               .scale = run->in[3],
                                               .loss = run->out[options->gradient ? 1 : 0],
                                               .gradient = options->gradient ? run->out[0] : NULL,
                                               .workspace = run->workspace});
}

/* Without a gradient, out[0] is the loss, which cannot take the place of the prediction. */
static const hd_op_kind squared_error = {
    .name = "squared_error",
    .options_bytes = sizeof(squared_error_options),
    .shape = squared_error_shape,
    .backward = squared_error_backward,
    .cost = squared_error_cost,
    .workspace = squared_error_workspace,
    .in_place = 1,
    .run = squared_error_run,
};

hd_tensor hd_squared_error(hd_program *program, hd_tensor prediction, hd_tensor target,
                           hd_tensor weight)
{
    const squared_error_options options = {.gradient = program->training};
    const hd_tensor_info *info = hd_tensor_get(program, prediction);
    const int64_t one = 1;
    hd_tensor scale = {0};
    if (program->training && info && info->dtype == HD_DTYPE_F16) {
        scale = hd_tensor_find(program, HDI_LOSS_SCALE);
        if (!scale.id) scale = hd_input(program, HDI_LOSS_SCALE, HD_DTYPE_F32, 1, &one);
    }
    const hd_tensor in[] = {prediction, target, weight, scale};
    if (!hd_custom_op(program, &squared_error, &options, 4, in).id) return (hd_tensor){0};
    return hd_output(program, hd_op_result(program, options.gradient ? 1 : 0), "loss");
}
