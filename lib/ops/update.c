/* Sums of squares and AdamW over pieces. */
#include "ops/update.h"

#include "backend/backend.h"
#include "core/error.h"
#include "ops/ops.h"

static hd_status squares_shape(hd_program *program, const hd_op *op)
{
    (void)program;
    return hdi_error(HD_ERROR_INTERNAL, "%s: appended without outputs", op->kind->name);
}

static hd_status run_squares(const hd_run *run)
{
    const hdi_squares_options *o = run->op->options;
    const char *gradients = run->in[0];
    const hd_dtype dtype = run->op->in_info[0]->dtype;
    double *out = run->out[0];
    if (!o->adds)
        HD_RETURN_IF_ERROR(run->backend->zero(run->stream, out, run->op->out_info[0]->bytes));
    for (int i = 0; i < o->count; i++)
        HD_RETURN_IF_ERROR(run->backend->sum_of_squares(
            run->stream, dtype,
            gradients + (size_t)(o->pieces[i].first - o->first) * hd_dtype_bytes(dtype),
            o->pieces[i].elements, out + o->pieces[i].block));
    return HD_OK;
}

static hd_status run_adamw(const hd_run *run)
{
    const hdi_adamw_options *o = run->op->options;
    hd_dtype dtype = run->op->out_info[0]->dtype;
    const hd_dtype gradient_dtype = run->op->in_info[0]->dtype;
    size_t weight_bytes = hd_dtype_bytes(dtype), gradient_bytes = hd_dtype_bytes(gradient_dtype);
    const hd_dtype kept = run->op->outputs > 3 ? run->op->out_info[3]->dtype : HD_DTYPE_NONE;
    float *master = kept == HD_DTYPE_F32 ? run->out[3] : NULL;
    int16_t *remainder = kept == HD_DTYPE_I16 ? run->out[3] : NULL;
    for (int i = 0; i < o->count; i++) {
        const hdi_piece *piece = &o->pieces[i];
        int64_t at = piece->first - o->first, state_at = piece->state_first - o->state_first;
        HD_RETURN_IF_ERROR(run->backend->adamw(
            run->stream,
            &(hdi_adamw_args){.dtype = dtype,
                              .elements = piece->elements,
                              .weights = (char *)run->out[0] + (size_t)at * weight_bytes,
                              .master = master ? master + state_at : NULL,
                              .remainder = remainder ? remainder + state_at : NULL,
                              .m = (float *)run->out[1] + state_at,
                              .v = (float *)run->out[2] + state_at,
                              .gradient_dtype = gradient_dtype,
                              .gradient = (const char *)run->in[0] + (size_t)at * gradient_bytes,
                              .scalars = run->in[1],
                              .beta1 = o->beta1,
                              .beta2 = o->beta2,
                              .epsilon = o->epsilon,
                              .weight_decay = piece->weight_decay}));
    }
    return HD_OK;
}

const hd_op_kind hdi_op_squares = {.name = "squares",
                                   .options_bytes = sizeof(hdi_squares_options),
                                   .shape = squares_shape,
                                   .run = run_squares};

static hd_status run_collect(const hd_run *run)
{
    return run->backend->copy(run->stream, run->out[0], run->in[0], run->op->out_info[0]->bytes);
}

const hd_op_kind hdi_op_collect_squares = {
    .name = "collect_squares", .shape = squares_shape, .run = run_collect};

/* What is updated is read, too, but for weights that an fp32 master rounds to. */
static void update_cost(const hd_op *op, hd_cost *out)
{
    const bool has_master = op->outputs > 3 && op->out_info[3]->dtype == HD_DTYPE_F32;
    out->bytes = hdi_tensor_bytes(op);
    for (int i = has_master ? 1 : 0; i < op->outputs; i++)
        out->bytes += (double)op->out_info[i]->bytes;
}

const hd_op_kind hdi_op_adamw = {.name = "adamw",
                                 .options_bytes = sizeof(hdi_adamw_options),
                                 .flags = HD_OP_UPDATES,
                                 .shape = squares_shape,
                                 .cost = update_cost,
                                 .run = run_adamw};

static hd_status run_average(const hd_run *run)
{
    const bool joins = run->op->inputs == 3;
    const hdi_average_options *o = run->op->options;
    return run->backend->average(run->stream,
                                 &(hdi_average_args){.elements = o->elements,
                                                     .values = joins ? NULL : run->in[1],
                                                     .weights = joins ? run->in[1] : NULL,
                                                     .remainder = joins ? run->in[2] : NULL,
                                                     .share = run->in[0],
                                                     .average = run->out[0]});
}

const hd_op_kind hdi_op_average = {.name = "average",
                                   .options_bytes = sizeof(hdi_average_options),
                                   .flags = HD_OP_UPDATES,
                                   .shape = squares_shape,
                                   .cost = update_cost,
                                   .run = run_average};
