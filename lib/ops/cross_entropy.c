/* Cross-entropy with ignored targets. In training one pass over the logits makes the loss and, in
 * their place, their gradient: the loss is the end of a program, its own gradient is 1. */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/tensor_axis.h"

#include <string.h>

typedef struct cross_entropy_options {
    bool gradient;
    bool by_rows; /* the losses of rows are wanted, not their sum */
    int parts;
    int64_t first, limit; /* of the own classes, and all; 0: these are all */
} cross_entropy_options;

enum { STATISTICS = 3 }; /* of a row, for each part */

/* in: logits, targets, loss scale (may be absent), statistics of all parts [parts * rows, 3] (if there
 * are several).
 * out: gradient of the logits (training only); F64 [2], sum of losses and count of targets, or, by rows,
 * F32 [rows]. */
static hd_status cross_entropy_shape(hd_program *program, const hd_op *op)
{
    const cross_entropy_options *options = op->options;
    const int64_t any[] = {-1, -1};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "logits", HD_DTYPE_NONE, 2, any));
    const hd_tensor_info *logits = op->in_info[0];
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "targets", HD_DTYPE_I32, 1, logits->dims));
    const int64_t one = 1, two = 2;
    if (op->in_info[2])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 2, "loss scale", HD_DTYPE_F32, 1, &one));
    const int64_t all[] = {options->parts * logits->dims[0], STATISTICS};
    if (op->in_info[3])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 3, "statistics", HD_DTYPE_F32, 2, all));
    if (options->gradient) hd_op_output(program, logits->dtype, 2, logits->dims);
    if (options->by_rows)
        hd_op_output(program, HD_DTYPE_F32, 1, logits->dims);
    else
        hd_op_output(program, HD_DTYPE_F64, 1, &two);
    return HD_OK;
}

static void cross_entropy_backward(hd_backward *context, const hd_op *op)
{
    const cross_entropy_options *options = op->options;
    if (options->gradient) hd_backward_give(context, 0, op->out[0]);
}

static void cross_entropy_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 4.0 * (double)op->in_info[0]->elements;
    out->bytes = hdi_tensor_bytes(op);
}

/* The loss of each row. */
static size_t cross_entropy_workspace(const hd_op *op)
{
    const cross_entropy_options *options = op->options;
    return options->by_rows ? 0 : (size_t)op->in_info[0]->dims[0] * sizeof(float);
}

static hd_status cross_entropy_run(const hd_run *run)
{
    const cross_entropy_options *options = run->op->options;
    const hd_tensor_info *logits = run->op->in_info[0];
    void *loss = run->out[options->gradient ? 1 : 0];
    HD_RETURN_IF_ERROR(run->backend->cross_entropy(
        run->stream,
        &(hdi_cross_entropy_args){.dtype = logits->dtype,
                                  .rows = logits->dims[0],
                                  .classes = logits->dims[1],
                                  .logits_stride = logits->dims[1],
                                  .first = options->first,
                                  .limit = options->limit,
                                  .parts = options->parts,
                                  .statistics = hdi_updated(run->in[3]),
                                  .logits = run->in[0],
                                  .targets = run->in[1],
                                  .scale = run->in[2],
                                  .loss = options->by_rows ? loss : run->workspace,
                                  .gradient = options->gradient ? run->out[0] : NULL}));
    if (options->by_rows) return HD_OK;
    return run->backend->loss_sum(run->stream, run->workspace, run->in[1], logits->dims[0], loss);
}

/* Without a gradient, out[0] is the loss, which cannot take the place of the logits. */
const hd_op_kind hdi_op_cross_entropy = {
    .name = "cross_entropy",
    .options_bytes = sizeof(cross_entropy_options),
    .shape = cross_entropy_shape,
    .backward = cross_entropy_backward,
    .cost = cross_entropy_cost,
    .workspace = cross_entropy_workspace,
    .in_place = 1,
    .run = cross_entropy_run,
};

/* in: logits, targets. */
static hd_status part_shape(hd_program *program, const hd_op *op)
{
    const int64_t any[] = {-1, -1};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "logits", HD_DTYPE_NONE, 2, any));
    const hd_tensor_info *logits = op->in_info[0];
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "targets", HD_DTYPE_I32, 1, logits->dims));
    const int64_t dims[] = {logits->dims[0], STATISTICS};
    hd_op_output(program, HD_DTYPE_F32, 2, dims);
    return HD_OK;
}

static hd_status part_run(const hd_run *run)
{
    const cross_entropy_options *options = run->op->options;
    const hd_tensor_info *logits = run->op->in_info[0];
    return run->backend->cross_entropy_part(
        run->stream, &(hdi_cross_entropy_args){.dtype = logits->dtype,
                                               .rows = logits->dims[0],
                                               .classes = logits->dims[1],
                                               .logits_stride = logits->dims[1],
                                               .first = options->first,
                                               .limit = options->limit,
                                               .logits = run->in[0],
                                               .targets = run->in[1],
                                               .statistics = run->out[0]});
}

static const hd_op_kind part_statistics = {
    .name = "cross_entropy_part",
    .options_bytes = sizeof(cross_entropy_options),
    .shape = part_shape,
    .cost = cross_entropy_cost,
    .run = part_run,
};

/* in: losses of rows, targets. */
static hd_status loss_sum_shape(hd_program *program, const hd_op *op)
{
    const int64_t any = -1, two = 2;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "losses", HD_DTYPE_F32, 1, &any));
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "targets", HD_DTYPE_I32, 1, op->in_info[0]->dims));
    hd_op_output(program, HD_DTYPE_F64, 1, &two);
    return HD_OK;
}

static hd_status loss_sum_run(const hd_run *run)
{
    return run->backend->loss_sum(run->stream, run->in[0], run->in[1], run->op->in_info[0]->dims[0],
                                  run->out[0]);
}

const hd_op_kind hdi_op_loss_sum = {
    .name = "loss_sum",
    .shape = loss_sum_shape,
    .run = loss_sum_run,
};

hd_tensor hdi_loss_scale(hd_program *program, hd_dtype logits)
{
    const int64_t one = 1;
    if (!program->training || logits != HD_DTYPE_F16) return (hd_tensor){0};
    const hd_tensor scale = hd_tensor_find(program, HDI_LOSS_SCALE);
    return scale.id ? scale : hd_input(program, HDI_LOSS_SCALE, HD_DTYPE_F32, 1, &one);
}

/* Options start as zeros, padding too: programs are compared. */
static hd_tensor cross_entropy(hd_program *program, const hdi_logits *of, bool gradient,
                               bool by_rows)
{
    cross_entropy_options options;
    memset(&options, 0, sizeof options);
    options.gradient = gradient;
    options.by_rows = by_rows;
    options.first = of->first;
    options.limit = of->limit;
    hd_tensor in[] = {of->logits, of->targets, of->scale, {0}};
    if (of->limit) {
        options.parts = hdi_tensor_ranks(program);
        in[3] =
            hdi_tensor_collect(program, hd_custom_op(program, &part_statistics, &options, 2, in));
    }
    return hd_custom_op(program, &hdi_op_cross_entropy, &options, 4, in);
}

static hd_tensor loss_of(hd_program *program, hdi_logits of)
{
    const hd_tensor_info *info = hd_tensor_get(program, of.logits);
    if (info) of.scale = hdi_loss_scale(program, info->dtype);
    if (!cross_entropy(program, &of, program->training, false).id) return (hd_tensor){0};
    return hd_output(program, hd_op_result(program, program->training ? 1 : 0), "loss");
}

hd_tensor hd_cross_entropy(hd_program *program, hd_tensor logits, hd_tensor targets)
{
    return loss_of(program, (hdi_logits){.logits = logits, .targets = targets});
}

hd_tensor hdi_cross_entropy_part(hd_program *program, hd_tensor logits, hd_tensor targets,
                                 int64_t first, int64_t limit)
{
    return loss_of(
        program,
        (hdi_logits){.logits = logits, .targets = targets, .first = first, .limit = limit});
}

hd_tensor hdi_cross_entropy_rows(hd_program *program, const hdi_logits *of, hd_tensor *gradient)
{
    const hd_tensor made = cross_entropy(program, of, gradient != NULL, true);
    if (!gradient || !made.id) return made;
    *gradient = made;
    return hd_op_result(program, 1);
}
