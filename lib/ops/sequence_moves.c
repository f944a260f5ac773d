/* Rows and heads that change places within a rank, before or after they travel. */
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

/* `rows` rows of `columns` elements between matrices of these widths. */
typedef struct rectangle {
    int64_t rows, columns, x_width, out_width, x_first, out_first;
} rectangle;

static hd_status copy(const hd_run *run, const rectangle *r, int which, bool back)
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
static hd_status move_heads(const hd_run *run, const hdi_sequence_options *o, int which, int rank,
                            rows_at at, int64_t *packed)
{
    const bool joined = at.count == rows_of_sequence(o); /* one sequence goes on in the next */
    const int64_t own = hdi_sequence_groups_of(o, rank),
                  before = hdi_sequence_groups_before(o, rank);
    const int64_t width = own * hdi_sequence_group_columns(o);
    for (int64_t s = 0; s < (joined ? 1 : o->sequences); s++) {
        rectangle part = {.rows = joined ? o->sequences * at.count : at.count,
                          .x_width = o->groups * hdi_sequence_group_columns(o),
                          .out_width = width,
                          .out_first = *packed};
        int64_t all = (s * rows_of_sequence(o) + at.first) * part.x_width;
        for (int p = 0; p < o->parts; p++) {
            part.columns = own * o->unit[p];
            part.x_first = all + before * o->unit[p];
            HD_RETURN_IF_ERROR(copy(run, &part, which, o->back));
            all += o->groups * o->unit[p];
            part.out_first += part.columns;
        }
        *packed += part.rows * width;
    }
    return HD_OK;
}

static hd_status move_own(const hd_run *run, const hdi_sequence_options *o, int which)
{
    int64_t packed = 0;
    for (int r = 0; r < o->ranks; r++)
        HD_RETURN_IF_ERROR(
            move_heads(run, o, which, r, (rows_at){o->before, own_tokens(o)}, &packed));
    return HD_OK;
}

static hd_status move_alike(const hd_run *run, const hdi_sequence_options *o, int which)
{
    const rows_at at[] = {{0, o->before}, {o->before + own_tokens(o), o->after}};
    int64_t packed = 0;
    for (int r = 0; r < o->ranks; r++)
        for (int i = 0; i < 2; i++)
            if (at[i].count && (o->all_ranks || r == o->rank))
                HD_RETURN_IF_ERROR(move_heads(run, o, which, r, at[i], &packed));
    return HD_OK;
}

static int tensors_of(const hdi_sequence_options *o)
{
    return o->turns * ((o->tokens > 0) + (o->before + o->after > 0));
}

static hd_status move_run(const hd_run *run)
{
    hdi_sequence_options o = *(const hdi_sequence_options *)run->op->options;
    const int own = o.tokens > 0 ? o.turns : 0;
    bool present[HD_OP_INPUTS], all = true;
    for (int k = 0; k < tensors_of(&o); k++) {
        present[k] = !o.back || run->in[k];
        all = all && present[k];
    }
    const bool has_others = tensors_of(&o) > own && !o.all_ranks;
    if (o.back && (has_others || !all))
        HD_RETURN_IF_ERROR(
            run->backend->zero(run->stream, run->out[0], run->op->out_info[0]->bytes));
    for (int k = 0; k < tensors_of(&o); k++) {
        o.turn = k % o.turns;
        if (present[k]) HD_RETURN_IF_ERROR(k < own ? move_own(run, &o, k) : move_alike(run, &o, k));
    }
    return HD_OK;
}

/* Dims of the `which`-th tensor of a turn's heads. */
static void dims_of(const hdi_sequence_options *o, int which, int64_t dims[2])
{
    hdi_sequence_options turn = *o;
    turn.turn = which % o->turns;
    const bool is_own = o->tokens > 0 && which < o->turns;
    dims[0] = is_own ? hdi_sequence_rows_of(o, o->rank) : o->sequences * (o->before + o->after);
    dims[1] = is_own || o->all_ranks
                  ? hdi_sequence_turn_columns(&turn)
                  : hdi_sequence_groups_of(&turn, o->rank) * hdi_sequence_group_columns(o);
}

static hd_status part_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->sequences * rows_of_sequence(o),
                                          o->groups * hdi_sequence_group_columns(o)));
    for (int k = 0; k < tensors_of(o); k++) {
        int64_t dims[2];
        dims_of(o, k, dims);
        hd_op_output(program, op->in_info[0]->dtype, 2, dims);
    }
    return HD_OK;
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

hd_status hdi_sequence_copy_rows(const hd_run *run, int64_t columns, int rank, int64_t first,
                                 bool back)
{
    const hdi_sequence_options *o = run->op->options;
    const hdi_sequence_cut cut = hdi_sequence_options_cut(o);
    hdi_token_run runs[HDI_SEQUENCE_RUNS];
    hdi_sequence_runs(&cut, o->tokens, rank, runs);
    const int64_t width = (runs[0].count + runs[1].count) * columns;
    for (int i = 0; i < HDI_SEQUENCE_RUNS; i++) {
        const rectangle part = {.rows = o->sequences,
                                .columns = runs[i].count * columns,
                                .x_width = o->tokens * columns,
                                .out_width = width,
                                .x_first = runs[i].first * columns,
                                .out_first = first + (i ? runs[0].count * columns : 0)};
        if (runs[i].count) HD_RETURN_IF_ERROR(copy(run, &part, 0, back));
    }
    return HD_OK;
}

/* Rows of all sequences to one chunk for each rank's tokens. */
static hd_status rows_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->sequences * o->tokens, -1));
    return hdi_sequence_declare(program, op, o->sequences * o->tokens, op->in_info[0]->dims[1]);
}

static hd_status rows_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    const int64_t columns = run->op->in_info[0]->dims[1];
    int64_t first = 0;
    for (int r = 0; r < o->ranks; r++) {
        HD_RETURN_IF_ERROR(hdi_sequence_copy_rows(run, columns, r, first, o->back));
        first += hdi_sequence_rows_of(o, r) * columns;
    }
    return HD_OK;
}

const hd_op_kind hdi_op_sequence_rows = {
    .name = "sequence_rows",
    .options_bytes = sizeof(hdi_sequence_options),
    .shape = rows_shape,
    .backward = hdi_sequence_move_back,
    .cost = moved_cost,
    .run = rows_run,
};

/* This rank's rows: of each sequence, or, back, one chunk of all ranks'. */
static hd_status own_rows_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    const hd_tensor_info *x = op->in_info[0];
    if (!x || x->rank < 1 || x->rank > 2 || x->dims[0] != o->sequences * o->tokens)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "x has %" PRId64 " rows, want %" PRId64 " sequences of %" PRId64 " tokens",
                         x ? x->dims[0] : 0, o->sequences, o->tokens);
    const int64_t dims[] = {hdi_sequence_rows_of(o, o->rank), x->dims[1]};
    hd_op_output(program, x->dtype, x->rank, dims);
    return HD_OK;
}

static hd_status own_rows_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    const int64_t columns = run->op->in_info[0]->elements / (o->sequences * o->tokens);
    if (!o->back) return hdi_sequence_copy_rows(run, columns, o->rank, 0, false);
    int64_t before = 0;
    for (int r = 0; r < o->rank; r++)
        before += hdi_sequence_rows_of(o, r) * columns;
    const char *x = run->in[0];
    return run->backend->copy(run->stream, run->out[0],
                              x + (size_t)before * hd_dtype_bytes(run->op->in_info[0]->dtype),
                              run->op->out_info[0]->bytes);
}

const hd_op_kind hdi_op_sequence_own_rows = {
    .name = "sequence_own_rows",
    .options_bytes = sizeof(hdi_sequence_options),
    .shape = own_rows_shape,
    .cost = moved_cost,
    .run = own_rows_run,
};

/* The sum of what the ranks have sent, in their order. */
static hd_status sum_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->ranks * o->sequences, -1));
    return hdi_sequence_declare(program, op, o->sequences, op->in_info[0]->dims[1]);
}

static hd_status sum_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    const hd_tensor_info *out = run->op->out_info[0];
    const char *x = run->in[0];
    const void *sum = x;
    for (int r = 1; r < o->ranks; r++) {
        HD_RETURN_IF_ERROR(run->backend->add(run->stream, out->dtype, out->elements, sum,
                                             x + (size_t)r * out->bytes, run->out[0]));
        sum = run->out[0];
    }
    return HD_OK;
}

const hd_op_kind hdi_op_sequence_sum = {
    .name = "sequence_sum",
    .options_bytes = sizeof(hdi_sequence_options),
    .shape = sum_shape,
    .run = sum_run,
};

/* Each element over and over. */
typedef struct repeat_options {
    int64_t times;
} repeat_options;

static hd_status repeat_shape(hd_program *program, const hd_op *op)
{
    const repeat_options *o = op->options;
    const int64_t any = -1;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "x", HD_DTYPE_I32, 1, &any));
    const int64_t elements = op->in_info[0]->elements * o->times;
    hd_op_output(program, HD_DTYPE_I32, 1, &elements);
    return HD_OK;
}

static hd_status repeat_run(const hd_run *run)
{
    const repeat_options *o = run->op->options;
    const size_t element = sizeof(int32_t);
    const hdi_copy_grid_args args = {.count = {1, 1, 1, run->op->in_info[0]->elements, o->times},
                                     .x_stride = {0, 0, 0, element, 0},
                                     .out_stride = {0, 0, 0, (size_t)o->times * element, element},
                                     .block_bytes = element,
                                     .x = run->in[0],
                                     .out = run->out[0]};
    return run->backend->copy_grid(run->stream, &args);
}

static const hd_op_kind repeat = {
    .name = "sequence_repeat",
    .options_bytes = sizeof(repeat_options),
    .shape = repeat_shape,
    .cost = moved_cost,
    .run = repeat_run,
};

hd_tensor hdi_sequence_each_row(hd_program *program, hd_tensor entries, int64_t rows_per_group)
{
    const repeat_options options = {rows_per_group};
    return hd_custom_op(program, &repeat, &options, 1, &entries);
}
