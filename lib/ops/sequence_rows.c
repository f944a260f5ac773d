/* Rows of tokens that change places within a rank, and sums of what all ranks have sent. */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/sequence_parts.h"

#include <inttypes.h>

static void moved_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = 2 * (double)op->out_info[0]->bytes;
}

hd_status hdi_sequence_copy_rows(const hd_run *run, int64_t columns, int rank, int64_t first,
                                 bool back)
{
    const hdi_sequence_options *o = run->op->options;
    const hdi_sequence_cut cut = hdi_sequence_options_cut(o);
    hdi_token_run runs[HDI_SEQUENCE_RUNS];
    hdi_sequence_runs(&cut, o->tokens, rank, runs);
    const int64_t width = (runs[0].count + runs[1].count) * columns;
    for (int i = 0; i < HDI_SEQUENCE_RUNS; i++) {
        const hdi_rectangle part = {.rows = o->sequences,
                                    .columns = runs[i].count * columns,
                                    .x_width = o->tokens * columns,
                                    .out_width = width,
                                    .x_first = runs[i].first * columns,
                                    .out_first = first + (i ? runs[0].count * columns : 0)};
        if (runs[i].count) HD_RETURN_IF_ERROR(hdi_sequence_copy(run, &part, 0, back));
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
