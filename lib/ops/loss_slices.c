/* The loss of a linear map's rows, a slice of them at a time. Where a backward follows, an op stands for the
 * loss until its rule appends the slices, each with all that is made of its logits. */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/slices.h"

#include <string.h>

typedef struct loss_options {
    int64_t first, limit;
    int slices;
} loss_options;

enum { X, WEIGHT, TARGETS, SCALE, INPUTS };

typedef struct work {
    hd_program *program;
    hd_backward *context; /* NULL: no gradients */
    const loss_options *options;
    const hd_tensor *in;
    hd_tensor losses, x_gradient; /* of all rows */
} work;

static hd_tensor whole(hd_program *program, hd_dtype dtype, int rank, const int64_t *dims)
{
    return hdi_tensor_add(program, NULL, dtype, HD_ROLE_ACTIVATION, rank, dims);
}

static void append_slice(const work *w, int64_t first, int64_t rows)
{
    hd_program *program = w->program;
    const hd_tensor x = hdi_tensor_rows(program, w->in[X], first, rows);
    const hd_tensor weight = w->in[WEIGHT];
    const hdi_logits of = {.logits = hd_linear_op(program, x, weight, (hd_tensor){0}),
                           .targets = hdi_tensor_view(program, w->in[TARGETS], first, rows),
                           .scale = w->in[SCALE],
                           .first = w->options->first,
                           .limit = w->options->limit};
    hd_tensor gradient;
    const hd_tensor losses = hdi_cross_entropy_rows(program, &of, w->context ? &gradient : NULL);
    hdi_tensor_put(program, losses, w->losses, first);
    if (!w->context || program->status != HD_OK) return;
    if (w->x_gradient.id)
        hdi_tensor_put(program, hdi_linear_gradient(program, gradient, weight), w->x_gradient,
                       first * hd_tensor_get(program, x)->dims[1]);
    hdi_linear_weight_gradient(w->context, WEIGHT, gradient, x);
}

static void append_slices(work *w)
{
    const hd_tensor_info *x = hd_tensor_get(w->program, w->in[X]);
    const int slices = w->options->slices;
    const int64_t rows = x->dims[0];
    w->losses = whole(w->program, HD_DTYPE_F32, 1, &rows);
    if (w->context && hd_backward_wants(w->context, X))
        w->x_gradient = whole(w->program, x->dtype, 2, x->dims);
    for (int i = 0; i < slices && w->program->status == HD_OK; i++) {
        const int64_t first = hdi_slice_begin(rows, slices, i);
        const int64_t next = hdi_slice_begin(rows, slices, i + 1);
        if (next > first) append_slice(w, first, next - first);
    }
}

static hd_status sliced_loss_shape(hd_program *program, const hd_op *op)
{
    const int64_t any[] = {-1, -1}, two = 2;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, X, "x", HD_DTYPE_NONE, 2, any));
    const hd_tensor_info *x = op->in_info[X];
    const int64_t weight[] = {-1, x->dims[1]};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, WEIGHT, "weight", x->dtype, 2, weight));
    HD_RETURN_IF_ERROR(hdi_check_dims(op, TARGETS, "targets", HD_DTYPE_I32, 1, x->dims));
    hd_op_output(program, HD_DTYPE_F64, 1, &two);
    return HD_OK;
}

static void sliced_loss_backward(hd_backward *context, const hd_op *op)
{
    hd_program *program = hd_backward_program(context);
    work w = {.program = program, .context = context, .options = op->options, .in = op->in};
    append_slices(&w);
    const hd_tensor in[] = {w.losses, op->in[TARGETS]};
    hdi_op_append(program, &hdi_op_loss_sum, NULL, 2, in, 1, &op->out[0]);
    if (w.x_gradient.id) hd_backward_give(context, X, w.x_gradient);
}

static hd_status sliced_loss_run(const hd_run *run)
{
    (void)run;
    return hdi_error(HD_ERROR_INTERNAL,
                     "a loss in slices of a program for training that has no backward");
}

static const hd_op_kind sliced_loss = {
    .name = "sliced_loss",
    .options_bytes = sizeof(loss_options),
    .shape = sliced_loss_shape,
    .backward = sliced_loss_backward,
    .run = sliced_loss_run,
};

/* The op leaves as ops do that run again and that nobody reads: what the backward appends has its output. */
static hd_tensor stand_in(hd_program *program, const loss_options *options, const hd_tensor *in)
{
    program->appending_recomputed = true;
    const hd_tensor loss = hd_custom_op(program, &sliced_loss, options, INPUTS, in);
    program->appending_recomputed = false;
    return loss;
}

hd_tensor hdi_loss_slices(hd_program *program, hd_tensor x, hd_tensor weight, hd_tensor targets,
                          int64_t first, int64_t limit, int slices)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    loss_options options;
    memset(&options, 0, sizeof options); /* padding too: programs are compared */
    options.first = first;
    options.limit = limit;
    options.slices = slices > 1 ? slices : 1;
    if (!info || info->rank != 2)
        return hd_program_fail(program, HD_ERROR_ARGUMENT,
                               "loss in slices: x has rank %d, want [rows, inputs]",
                               info ? info->rank : 0);
    const hd_tensor in[INPUTS] = {x, weight, targets, hdi_loss_scale(program, info->dtype)};
    if (program->training) return hd_output(program, stand_in(program, &options, in), "loss");
    work w = {.program = program, .options = &options, .in = in};
    append_slices(&w);
    const hd_tensor sum[] = {w.losses, targets};
    return hd_output(program, hd_custom_op(program, &hdi_op_loss_sum, NULL, 2, sum), "loss");
}
