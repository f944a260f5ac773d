/* Embedding: rows of a table by id; and the ids that are the positions of rows. */
#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>

static hd_status embedding_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "ids", HD_DTYPE_I32));
    const int64_t table_dims[] = {-1, -1};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "table", HD_DTYPE_NONE, 2, table_dims));
    const hd_tensor_info *ids = op->in_info[0], *table = op->in_info[1];
    if (ids->rank == HD_MAX_DIMS)
        return hdi_error(HD_ERROR_ARGUMENT, "ids have rank %d, want less than %d", ids->rank,
                         HD_MAX_DIMS);
    int64_t dims[HD_MAX_DIMS];
    for (int i = 0; i < ids->rank; i++)
        dims[i] = ids->dims[i];
    dims[ids->rank] = table->dims[1];
    hd_op_output(program, table->dtype, ids->rank + 1, dims);
    return HD_OK;
}

/* Only the rows that are looked up are read. */
static void embedding_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = (double)op->in_info[0]->bytes + 2 * (double)op->out_info[0]->bytes;
}

/* A table's part: entries from `first` on of `limit`; zeros: all of it. */
typedef struct part_options {
    int64_t first, limit;
} part_options;

static hd_status embedding_run(const hd_run *run)
{
    const part_options *part = run->op->options;
    const hd_tensor_info *ids = run->op->in_info[0], *table = run->op->in_info[1];
    return run->backend->embedding(run->stream, &(hdi_embedding_args){.dtype = table->dtype,
                                                                      .rows = ids->elements,
                                                                      .columns = table->dims[1],
                                                                      .entries = table->dims[0],
                                                                      .first = part->first,
                                                                      .limit = part->limit,
                                                                      .ids = run->in[0],
                                                                      .table = run->in[1],
                                                                      .out = run->out[0]});
}

/* in: ids, gradient [rows, columns]. */
typedef struct gradient_options {
    int64_t period; /* ids are row numbers modulo this; 0: they may be any */
    part_options part;
} gradient_options;

static size_t gradient_workspace(const hd_op *op)
{
    const gradient_options *options = op->options;
    if (options->period) return 0;
    return hdi_op_backend(op)->embedding_gradient_workspace(op->in_info[0]->elements,
                                                            op->out_info[0]->dims[0]);
}

static hd_status gradient_run(const hd_run *run)
{
    const gradient_options *options = run->op->options;
    const hd_tensor_info *gradient = run->op->in_info[1], *out = run->op->out_info[0];
    return run->backend->embedding_gradient(
        run->stream, &(hdi_embedding_gradient_args){.dtype = gradient->dtype,
                                                    .rows = run->op->in_info[0]->elements,
                                                    .columns = out->dims[1],
                                                    .entries = out->dims[0],
                                                    .period = options->period,
                                                    .first = options->part.first,
                                                    .limit = options->part.limit,
                                                    .ids = run->in[0],
                                                    .gradient = run->in[1],
                                                    .table_gradient = run->out[0],
                                                    .accumulate = run->accumulate,
                                                    .workspace = run->workspace});
}

static const hd_op_kind table_gradient = {
    .name = "embedding_gradient",
    .options_bytes = sizeof(gradient_options),
    .flags = HD_OP_WEIGHT_GRADIENT,
    .shape = hdi_no_outputs,
    .workspace = gradient_workspace,
    .run = gradient_run,
};

typedef struct positions_options {
    int64_t rows, period, limit;
} positions_options;

/* Of ids that are the positions of whole sequences, each one's first at 0; else 0. */
static int64_t period_of(const hd_program *program, hd_tensor ids, int64_t entries)
{
    const hdi_tensor *tensor = hdi_tensor_of(program, ids);
    const hd_op *op = tensor && tensor->producer >= 0 ? &program->ops[tensor->producer]->op : NULL;
    if (!op || op->kind != &hdi_op_positions || op->in[0].id) return 0;
    const positions_options *options = op->options;
    return options->period <= entries ? options->period : 0;
}

static void embedding_backward(hd_backward *context, const hd_op *op)
{
    const hd_tensor in[] = {op->in[0], hd_backward_output_gradient(context, 0)};
    const part_options *part = op->options;
    const gradient_options options = {
        part->limit ? 0
                    : period_of(hd_backward_program(context), op->in[0], op->in_info[1]->dims[0]),
        *part};
    if (hd_backward_wants(context, 1))
        hd_backward_weight(context, 1, &table_gradient, &options, 2, in);
}

const hd_op_kind hdi_op_embedding = {
    .name = "embedding",
    .options_bytes = sizeof(part_options),
    .shape = embedding_shape,
    .backward = embedding_backward,
    .cost = embedding_cost,
    .run = embedding_run,
};

hd_tensor hdi_embedding_part(hd_program *program, hd_tensor ids, hd_tensor table, int64_t first,
                             int64_t limit)
{
    const hd_tensor in[] = {ids, table};
    return hd_custom_op(program, &hdi_op_embedding, &(part_options){first, limit}, 2, in);
}

hd_tensor hd_embedding_op(hd_program *program, hd_tensor ids, hd_tensor table)
{
    return hdi_embedding_part(program, ids, table, 0, 0);
}

static hd_status positions_shape(hd_program *program, const hd_op *op)
{
    const positions_options *options = op->options;
    const int64_t one = 1;
    if (op->in_info[0])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "the first position", HD_DTYPE_I32, 1, &one));
    if (options->rows < 1 || options->period < 1 || options->limit < 1 ||
        options->limit > INT32_MAX || (!op->in_info[0] && options->period > options->limit))
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%" PRId64 " rows of sequences of %" PRId64
                         " tokens, want positions below %" PRId64,
                         options->rows, options->period, options->limit);
    hd_op_output(program, HD_DTYPE_I32, 1, &options->rows);
    return HD_OK;
}

static hd_status positions_run(const hd_run *run)
{
    const positions_options *options = run->op->options;
    return run->backend->positions(run->stream, &(hdi_positions_args){.rows = options->rows,
                                                                      .period = options->period,
                                                                      .limit = options->limit,
                                                                      .first = run->in[0],
                                                                      .out = run->out[0]});
}

const hd_op_kind hdi_op_positions = {
    .name = "positions",
    .options_bytes = sizeof(positions_options),
    .shape = positions_shape,
    .run = positions_run,
};

hd_tensor hd_positions(hd_program *program, hd_tensor first, int64_t rows, int64_t period,
                       int64_t limit)
{
    const positions_options options = {rows, period, limit};
    return hd_custom_op(program, &hdi_op_positions, &options, 1, &first);
}
