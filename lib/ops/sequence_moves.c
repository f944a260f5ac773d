/* Heads that change places within a rank, before or after they travel: all turns' at once, or, in
 * slices, one turn's as they are made and as they come back. */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/sequence.h"
#include "ops/sequence_parts.h"

#include <inttypes.h>

static void moved_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = 2 * (double)op->out_info[0]->bytes;
}

hd_status hdi_sequence_copy(const hd_run *run, const hdi_rectangle *r, int which, bool back)
{
    const size_t element = hd_dtype_bytes(run->op->out_info[0]->dtype);
    const int64_t x_first = back ? r->out_first : r->x_first;
    const int64_t out_first = back ? r->x_first : r->out_first;
    return run->backend->copy_blocks(
        run->stream, &(hdi_copy_blocks_args){
                         .blocks = r->rows,
                         .block_bytes = (size_t)r->columns * element,
                         .x_stride = (size_t)(back ? r->out_width : r->x_width) * element,
                         .out_stride = (size_t)(back ? r->x_width : r->out_width) * element,
                         .x = (const char *)run->in[back ? which : 0] + (size_t)x_first * element,
                         .out = (char *)run->out[back ? 0 : which] + (size_t)out_first * element});
}

/* Where this rank's rows, and those that all ranks have, stand in each sequence. */
typedef struct rows_at {
    int64_t first, count;
} rows_at;

static int64_t own_tokens(const hdi_sequence_options *o)
{
    return hdi_sequence_rows_of(o, o->rank) / o->sequences;
}

static int64_t rows_of_sequence(const hdi_sequence_options *o)
{
    return o->before + own_tokens(o) + o->after;
}

/* The heads of `rank` in o's turn out of rows of all heads, which are in[0] or out[0], to (back: from)
 * the `which`-th tensor from element *packed on, one row below another. Moves *packed on. */
static hd_status move_heads(const hd_run *run, hdi_rectangle_fn move, const hdi_sequence_options *o,
                            int which, int rank, rows_at at, int64_t *packed)
{
    const bool joined = at.count == rows_of_sequence(o); /* one sequence goes on in the next */
    const int64_t own = hdi_sequence_groups_of(o, rank),
                  before = hdi_sequence_groups_before(o, rank);
    const int64_t width = own * hdi_sequence_group_columns(o);
    for (int64_t s = 0; s < (joined ? 1 : o->sequences); s++) {
        hdi_rectangle part = {.rows = joined ? o->sequences * at.count : at.count,
                              .x_width = o->groups * hdi_sequence_group_columns(o),
                              .out_width = width,
                              .out_first = *packed};
        int64_t all = (s * rows_of_sequence(o) + at.first) * part.x_width;
        for (int p = 0; p < o->parts; p++) {
            part.columns = own * o->unit[p];
            part.x_first = all + before * o->unit[p];
            HD_RETURN_IF_ERROR(move(run, &part, which, o->back));
            all += o->groups * o->unit[p];
            part.out_first += part.columns;
        }
        *packed += part.rows * width;
    }
    return HD_OK;
}

static hd_status move_own(const hd_run *run, hdi_rectangle_fn move, const hdi_sequence_options *o,
                          int which)
{
    int64_t packed = 0;
    for (int r = 0; r < o->ranks; r++)
        HD_RETURN_IF_ERROR(
            move_heads(run, move, o, which, r, (rows_at){o->before, own_tokens(o)}, &packed));
    return HD_OK;
}

static hd_status move_alike(const hd_run *run, hdi_rectangle_fn move, const hdi_sequence_options *o,
                            int which)
{
    const rows_at at[] = {{0, o->before}, {o->before + own_tokens(o), o->after}};
    int64_t packed = 0;
    for (int r = 0; r < o->ranks; r++)
        for (int i = 0; i < 2; i++)
            if (at[i].count && (o->all_ranks || r == o->rank))
                HD_RETURN_IF_ERROR(move_heads(run, move, o, which, r, at[i], &packed));
    return HD_OK;
}

static int turns_of(const hdi_sequence_options *o)
{
    return o->single ? 1 : o->turns;
}

static int tensors_of(const hdi_sequence_options *o)
{
    return turns_of(o) * ((o->tokens > 0) + (o->before + o->after > 0));
}

/* The `which`-th tensor's: own rows come first. */
static bool is_own(const hdi_sequence_options *o, int which)
{
    return o->tokens > 0 && which < turns_of(o);
}

static hdi_sequence_options turn_of(const hdi_sequence_options *o, int which)
{
    hdi_sequence_options turn = *o;
    if (!o->single) turn.turn = which % o->turns;
    return turn;
}

/* All that is there, the first tensor being the `first`-th input or output. */
static hd_status move_turns(const hd_run *run, hdi_rectangle_fn move, int first)
{
    const hdi_sequence_options *o = run->op->options;
    for (int k = 0; k < tensors_of(o); k++) {
        const hdi_sequence_options turn = turn_of(o, k);
        if (o->back && !run->in[first + k]) continue;
        HD_RETURN_IF_ERROR(is_own(o, k) ? move_own(run, move, &turn, first + k)
                                        : move_alike(run, move, &turn, first + k));
    }
    return HD_OK;
}

static hd_status move_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    bool all = true;
    for (int k = 0; k < tensors_of(o); k++)
        all = all && (!o->back || run->in[k]);
    const bool has_others = !is_own(o, tensors_of(o) - 1) && !o->all_ranks;
    if (o->back && (has_others || !all))
        HD_RETURN_IF_ERROR(
            run->backend->zero(run->stream, run->out[0], run->op->out_info[0]->bytes));
    return move_turns(run, hdi_sequence_copy, 0);
}

/* Dims of the `which`-th tensor of a turn's heads. */
static void dims_of(const hdi_sequence_options *o, int which, int64_t dims[2])
{
    const hdi_sequence_options turn = turn_of(o, which);
    const bool own = is_own(o, which);
    dims[0] = own ? hdi_sequence_rows_of(o, o->rank) : o->sequences * (o->before + o->after);
    dims[1] = own || o->all_ranks
                  ? hdi_sequence_turn_columns(&turn)
                  : hdi_sequence_groups_of(&turn, o->rank) * hdi_sequence_group_columns(o);
}

static hd_status declare_turns(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    for (int k = 0; k < tensors_of(o); k++) {
        int64_t dims[2];
        dims_of(o, k, dims);
        hd_op_output(program, op->in_info[0]->dtype, 2, dims);
    }
    return HD_OK;
}

static hd_status part_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->sequences * rows_of_sequence(o),
                                          o->groups * hdi_sequence_group_columns(o)));
    return declare_turns(program, op);
}

static hd_status join_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    hd_dtype dtype = HD_DTYPE_NONE;
    for (int k = 0; k < op->inputs; k++) {
        int64_t dims[2];
        dims_of(o, k, dims);
        if (!op->in_info[k]) continue;
        HD_RETURN_IF_ERROR(hdi_check_dims(op, k, "heads", dtype, 2, dims));
        dtype = op->in_info[k]->dtype;
    }
    if (dtype == HD_DTYPE_NONE)
        return hdi_error(HD_ERROR_ARGUMENT, "no tensor of heads is valid, want one");
    const int64_t dims[] = {o->sequences * rows_of_sequence(o),
                            o->groups * hdi_sequence_group_columns(o)};
    hd_op_output(program, dtype, 2, dims);
    return HD_OK;
}

static void part_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = 2 * (double)op->in_info[0]->bytes;
}

static void part_backward(hd_backward *context, const hd_op *op)
{
    hdi_sequence_options options = *(const hdi_sequence_options *)op->options;
    hd_tensor gradients[HD_OP_OUTPUTS];
    for (int k = 0; k < op->outputs; k++)
        gradients[k] = hd_backward_output_gradient(context, k);
    options.back = true;
    hd_backward_give(context, 0,
                     hd_custom_op(hd_backward_program(context), &hdi_op_sequence_join, &options,
                                  op->outputs, gradients));
}

static void join_backward(hd_backward *context, const hd_op *op)
{
    hd_program *program = hd_backward_program(context);
    hdi_sequence_options options = *(const hdi_sequence_options *)op->options;
    hd_tensor gradient = hd_backward_output_gradient(context, 0), heads[HD_OP_INPUTS];
    options.back = false;
    if (!hd_custom_op(program, &hdi_op_sequence_part, &options, 1, &gradient).id) return;
    for (int k = 0; k < op->inputs; k++)
        heads[k] = hd_op_result(program, k);
    for (int k = 0; k < op->inputs; k++)
        hd_backward_give(context, k, heads[k]);
}

const hd_op_kind hdi_op_sequence_part = {
    .name = "sequence_part",
    .options_bytes = sizeof(hdi_sequence_options),
    .shape = part_shape,
    .backward = part_backward,
    .cost = part_cost,
    .run = move_run,
};

const hd_op_kind hdi_op_sequence_join = {
    .name = "sequence_join",
    .options_bytes = sizeof(hdi_sequence_options),
    .shape = join_shape,
    .backward = join_backward,
    .cost = moved_cost,
    .run = move_run,
};

enum { MAKE_ROWS, MAKE_WEIGHT, MAKE_BIAS };

static hd_status make_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    const int64_t outputs = o->groups * hdi_sequence_group_columns(o);
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->sequences * rows_of_sequence(o), -1));
    const hd_tensor_info *rows = op->in_info[MAKE_ROWS];
    const int64_t weight[] = {outputs, rows->dims[1]};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, MAKE_WEIGHT, "weight", rows->dtype, 2, weight));
    if (op->in_info[MAKE_BIAS])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, MAKE_BIAS, "bias", rows->dtype, 1, &outputs));
    return declare_turns(program, op);
}

static void make_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    for (int k = 0; k < op->outputs; k++)
        out->flops +=
            2.0 * (double)op->out_info[k]->elements * (double)op->in_info[MAKE_ROWS]->dims[1];
    out->bytes = hdi_tensor_bytes(op);
}

/* A rectangle of what nobody has as a whole: some rows' results of the map for some of its outputs. */
static hd_status multiply(const hd_run *run, const hdi_rectangle *r, int which, bool back)
{
    const hd_tensor_info *rows = run->op->in_info[MAKE_ROWS];
    const size_t element = hd_dtype_bytes(rows->dtype);
    const int64_t inputs = rows->dims[1], row = r->x_first / r->x_width,
                  output = r->x_first % r->x_width;
    const char *x = run->in[MAKE_ROWS], *weight = run->in[MAKE_WEIGHT], *bias = run->in[MAKE_BIAS];
    (void)back;
    return run->backend->gemm(
        run->stream,
        &(hdi_gemm_args){.dtype = rows->dtype,
                         .out_dtype = rows->dtype,
                         .rows = r->rows,
                         .columns = r->columns,
                         .inner = inputs,
                         .a = x + (size_t)(row * inputs) * element,
                         .b = weight + (size_t)(output * inputs) * element,
                         .a_stride = inputs,
                         .b_stride = inputs,
                         .out_stride = r->out_width,
                         .transpose_b = true,
                         .bias = bias ? bias + (size_t)output * element : NULL,
                         .out = (char *)run->out[which] + (size_t)r->out_first * element});
}

static hd_status make_run(const hd_run *run)
{
    return move_turns(run, multiply, 0);
}

const hd_op_kind hdi_op_sequence_make = {
    .name = "sequence_make",
    .options_bytes = sizeof(hdi_sequence_options),
    .shape = make_shape,
    .cost = make_cost,
    .run = make_run,
};

enum { FILL_WHOLE, FILL_TURN };

static hd_status fill_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    const int64_t whole[] = {o->sequences * rows_of_sequence(o),
                             o->groups * hdi_sequence_group_columns(o)};
    hd_dtype dtype = HD_DTYPE_NONE;
    for (int k = 0; k < tensors_of(o); k++) {
        int64_t dims[2];
        dims_of(o, k, dims);
        HD_RETURN_IF_ERROR(hdi_check_dims(op, FILL_TURN + k, "heads", dtype, 2, dims));
        dtype = op->in_info[FILL_TURN + k]->dtype;
    }
    if (op->in_info[FILL_WHOLE])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, FILL_WHOLE, "whole", dtype, 2, whole));
    hd_op_output(program, dtype, 2, whole);
    return HD_OK;
}

static void fill_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = 0;
    for (int k = FILL_TURN; k < op->inputs; k++)
        out->bytes += 2 * (double)op->in_info[k]->bytes;
}

static hd_status fill_run(const hd_run *run)
{
    const void *whole = run->in[FILL_WHOLE];
    if (whole && whole != run->out[0])
        HD_RETURN_IF_ERROR(
            run->backend->copy(run->stream, run->out[0], whole, run->op->out_info[0]->bytes));
    return move_turns(run, hdi_sequence_copy, FILL_TURN);
}

const hd_op_kind hdi_op_sequence_fill = {
    .name = "sequence_fill",
    .options_bytes = sizeof(hdi_sequence_options),
    .shape = fill_shape,
    .cost = fill_cost,
    .in_place = 1 << FILL_WHOLE,
    .run = fill_run,
};
