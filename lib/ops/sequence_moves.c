/* Rows and heads that change places within a rank, before or after they travel. */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/sequence_parts.h"

#include <inttypes.h>

static void moved_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = 2 * (double)op->out_info[0]->bytes;
}

/* `blocks` rows of `columns` elements between matrices of these widths. */
typedef struct rectangle {
    int64_t rows, columns, x_width, out_width, x_first, out_first;
} rectangle;

static hd_status copy(const hd_run *run, const rectangle *r, bool back)
{
    const size_t element = hd_dtype_bytes(run->op->in_info[0]->dtype);
    const int64_t x_first = back ? r->out_first : r->x_first;
    const int64_t out_first = back ? r->x_first : r->out_first;
    return run->backend->copy_blocks(
        run->stream,
        &(hdi_copy_blocks_args){.blocks = r->rows,
                                .block_bytes = (size_t)r->columns * element,
                                .x_stride = (size_t)(back ? r->out_width : r->x_width) * element,
                                .out_stride = (size_t)(back ? r->x_width : r->out_width) * element,
                                .x = (const char *)run->in[0] + (size_t)x_first * element,
                                .out = (char *)run->out[0] + (size_t)out_first * element});
}

/* The columns of `rank` out of rows of all columns, to (back: from) `first` on, one row below another. */
static hd_status copy_columns(const hd_run *run, int64_t rows, int rank, int64_t first)
{
    const hdi_sequence_options *o = run->op->options;
    const int64_t own = hdi_sequence_groups_of(o, rank),
                  before = hdi_sequence_first_group(o->groups, o->ranks, rank);
    int64_t all = 0, packed = 0;
    for (int p = 0; p < o->parts; p++) {
        const rectangle part = {.rows = rows,
                                .columns = own * o->unit[p],
                                .x_width = o->groups * hdi_sequence_group_columns(o),
                                .out_width = own * hdi_sequence_group_columns(o),
                                .x_first = all + before * o->unit[p],
                                .out_first = first + packed};
        HD_RETURN_IF_ERROR(copy(run, &part, o->back));
        all += o->groups * o->unit[p];
        packed += own * o->unit[p];
    }
    return HD_OK;
}

/* Rows of all columns to one chunk for each rank's columns. */
static hd_status columns_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, -1, o->groups * hdi_sequence_group_columns(o)));
    return hdi_sequence_declare(program, op, op->in_info[0]->dims[0],
                                o->groups * hdi_sequence_group_columns(o));
}

static hd_status columns_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    const int64_t rows = run->op->in_info[0]->dims[0];
    int64_t first = 0;
    for (int r = 0; r < o->ranks; r++) {
        HD_RETURN_IF_ERROR(copy_columns(run, rows, r, first));
        first += rows * hdi_sequence_groups_of(o, r) * hdi_sequence_group_columns(o);
    }
    return HD_OK;
}

const hd_op_kind hdi_op_sequence_columns = {
    .name = "sequence_columns",
    .options_bytes = sizeof(hdi_sequence_options),
    .shape = columns_shape,
    .backward = hdi_sequence_move_back,
    .cost = moved_cost,
    .run = columns_run,
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
        if (runs[i].count) HD_RETURN_IF_ERROR(copy(run, &part, back));
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

/* Own columns of rows that all ranks have; back: with zeros for the others. */
static hd_status own_columns_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    const int64_t all = o->groups * hdi_sequence_group_columns(o),
                  own = hdi_sequence_groups_of(o, o->rank) * hdi_sequence_group_columns(o);
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, -1, o->back ? own : all));
    return hdi_sequence_declare(program, op, op->in_info[0]->dims[0], o->back ? all : own);
}

static hd_status own_columns_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    if (o->back)
        HD_RETURN_IF_ERROR(
            run->backend->zero(run->stream, run->out[0], run->op->out_info[0]->bytes));
    return copy_columns(run, run->op->in_info[0]->dims[0], o->rank, 0);
}

const hd_op_kind hdi_op_sequence_own_columns = {
    .name = "sequence_own_columns",
    .options_bytes = sizeof(hdi_sequence_options),
    .shape = own_columns_shape,
    .backward = hdi_sequence_move_back,
    .cost = moved_cost,
    .run = own_columns_run,
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
