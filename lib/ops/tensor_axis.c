/* The tensor axis: rows that come together before a layer and part after it. What travels is one chunk
 * of rows for each rank, all sequences' one after another. */
#include "ops/tensor_axis.h"

#include "core/error.h"
#include "ops/ops.h"
#include "ops/sequence_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

int hdi_tensor_ranks(const hd_program *program)
{
    return hd_mesh_size(program->mesh, HD_AXIS_TENSOR);
}

static int rank_of(const hd_program *program)
{
    return hd_mesh_index(program->mesh, HD_AXIS_TENSOR);
}

/* Of the ranks of the sequence axis the one with the fewest tokens, how many it has. */
static int64_t fewest_tokens(const hd_program *program, int64_t tokens)
{
    const hdi_sequence_cut cut = hdi_sequence_cut_of(program);
    int64_t fewest = tokens;
    for (int r = 0; r < cut.ranks; r++) {
        const int64_t own = hdi_sequence_tokens_of(&cut, tokens, r);
        if (own < fewest) fewest = own;
    }
    return fewest;
}

bool hdi_tensor_begin(hd_program *program, int64_t tokens, int64_t kv_heads)
{
    const int ranks = hdi_tensor_ranks(program), sequence = hdi_sequence_ranks(program);
    const int sharing = hdi_sequence_sharing(program);
    const int64_t heads = kv_heads / sharing, fewest = fewest_tokens(program, tokens);
    char heads_of[48] = "", tokens_of[48] = "";
    program->splits_layers = true;
    if (ranks == 1 ||
        (ranks <= heads && (tokens == 0 || ranks <= fewest) && ranks <= HDI_SEQUENCE_RANKS))
        return true;
    if (sharing > 1)
        snprintf(heads_of, sizeof heads_of, ", for each of %d sequence ranks", sharing);
    if (sequence > 1)
        snprintf(tokens_of, sizeof tokens_of, ", for each of %d sequence ranks", sequence);
    hd_program_fail(program, HD_ERROR_UNSUPPORTED,
                    "layout.tensor is %d, want at most %" PRId64 " (key and value heads, which "
                    "ranks do not share%s), %" PRId64 " (tokens of a sequence%s) and %d; take more "
                    "data or pipeline ranks",
                    ranks, heads, heads_of, fewest, tokens_of, (int)HDI_SEQUENCE_RANKS);
    return false;
}

hd_shard_run hdi_tensor_deal(const hd_program *program, int64_t columns, int64_t groups)
{
    const int ranks = hdi_tensor_ranks(program), rank = rank_of(program);
    const int64_t unit = columns / groups, first = hdi_sequence_first_group(groups, ranks, rank);
    const int64_t next = hdi_sequence_first_group(groups, ranks, rank + 1);
    return (hd_shard_run){first * unit, (next - first) * unit};
}

hdi_sequence_shape hdi_tensor_own_heads(const hd_program *program, hdi_sequence_shape whole)
{
    const int64_t groups = whole.kv_heads;
    whole.heads = hdi_tensor_deal(program, whole.heads, groups).count;
    whole.kv_heads = hdi_tensor_deal(program, groups, groups).count;
    return whole;
}

int64_t hdi_tensor_own_tokens(const hd_program *program, int64_t tokens)
{
    const int ranks = hdi_tensor_ranks(program), rank = rank_of(program);
    return hdi_sequence_first(tokens, ranks, rank + 1) - hdi_sequence_first(tokens, ranks, rank);
}

static hd_comm *comm_of(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    return hd_mesh_device_comm(run->mesh, o->collective.axis);
}

/* A rank's own rows stay where they are. */
static void sent_cost(const hd_op *op, hd_cost *out)
{
    const hdi_sequence_options *o = op->options;
    const double columns = (double)op->in_info[0]->dims[1];
    const double own = (double)hdi_sequence_rows_of(o, o->rank) * columns *
                       (double)hd_dtype_bytes(op->in_info[0]->dtype);
    out->flops = 0;
    out->bytes = (double)op->out_info[0]->bytes - own;
}

/* Elements of each rank's chunk of rows of `columns`. */
typedef struct chunks {
    int64_t count[HDI_SEQUENCE_RANKS], offset[HDI_SEQUENCE_RANKS];
} chunks;

static void fill_chunks(const hdi_sequence_options *o, int64_t columns, chunks *out)
{
    int64_t offset = 0;
    for (int r = 0; r < o->ranks; r++) {
        out->count[r] = hdi_sequence_rows_of(o, r) * columns;
        out->offset[r] = offset;
        offset += out->count[r];
    }
}

static hd_tensor sum_chunks(hd_program *program, hd_tensor x, const hdi_sequence_options *o);

/* Every rank's rows to all ranks, chunk by chunk. */
static hd_status gather_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, hdi_sequence_rows_of(o, o->rank), -1));
    return hdi_sequence_declare(program, op, o->sequences * o->tokens, op->in_info[0]->dims[1]);
}

static hd_status gather_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    const hd_tensor_info *x = run->op->in_info[0];
    chunks all;
    fill_chunks(o, x->dims[1], &all);
    char *own = (char *)run->out[0] + (size_t)all.offset[o->rank] * hd_dtype_bytes(x->dtype);
    HD_RETURN_IF_ERROR(run->backend->copy(run->stream, own, run->in[0], x->bytes));
    *run->posted_on = comm_of(run);
    return hd_comm_all_gather(*run->posted_on, run->out[0], all.count, all.offset, x->dtype,
                              run->request);
}

static void gather_backward(hd_backward *context, const hd_op *op)
{
    hd_backward_give(context, 0,
                     sum_chunks(hd_backward_program(context),
                                hd_backward_output_gradient(context, 0), op->options));
}

const hd_op_kind hdi_op_tensor_gather = {
    .name = "tensor_gather",
    .options_bytes = sizeof(hdi_sequence_options),
    .flags = HD_OP_COMMUNICATES,
    .shape = gather_shape,
    .backward = gather_backward,
    .cost = sent_cost,
    .run = gather_run,
};

/* Each rank's chunk of x to that rank: this rank's rows as all ranks have them, one's below another's. */
static hd_status exchange_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->sequences * o->tokens, -1));
    return hdi_sequence_declare(program, op, o->ranks * hdi_sequence_rows_of(o, o->rank),
                                op->in_info[0]->dims[1]);
}

static hd_status exchange_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    const hd_tensor_info *x = run->op->in_info[0];
    chunks send, receive;
    fill_chunks(o, x->dims[1], &send);
    for (int r = 0; r < o->ranks; r++) {
        receive.count[r] = send.count[o->rank];
        receive.offset[r] = r * send.count[o->rank];
    }
    *run->posted_on = comm_of(run);
    return hd_comm_all_to_all(*run->posted_on, run->in[0], send.count, send.offset, run->out[0],
                              receive.count, receive.offset, x->dtype, run->request);
}

const hd_op_kind hdi_op_tensor_exchange = {
    .name = "tensor_exchange",
    .options_bytes = sizeof(hdi_sequence_options),
    .flags = HD_OP_COMMUNICATES,
    .shape = exchange_shape,
    .cost = sent_cost,
    .run = exchange_run,
};

typedef struct sum_options {
    hdi_sequence_options rows;
    bool alike; /* all ranks have the sum of all rows */
} sum_options;

static hd_status sum_shape(hd_program *program, const hd_op *op)
{
    const sum_options *o = op->options;
    const int64_t rows = hdi_sequence_rows_of(&o->rows, o->rows.rank);
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->rows.ranks * rows, -1));
    return hdi_sequence_declare(program, op, rows, op->in_info[0]->dims[1]);
}

static hd_status sum_run(const hd_run *run)
{
    const sum_options *o = run->op->options;
    const hd_tensor_info *out = run->op->out_info[0];
    return run->backend->tree_sum(run->stream, out->dtype, run->in[0], out->elements, o->rows.ranks,
                                  out->elements, run->out[0]);
}

static void sum_backward(hd_backward *context, const hd_op *op)
{
    const sum_options *o = op->options;
    hd_program *program = hd_backward_program(context);
    const hd_tensor gradient = hd_backward_output_gradient(context, 0);
    hd_backward_give(context, 1,
                     o->alike
                         ? hdi_tensor_sum_alike(program, gradient)
                         : hd_custom_op(program, &hdi_op_tensor_gather, &o->rows, 1, &gradient));
}

const hd_op_kind hdi_op_tensor_sum = {
    .name = "tensor_sum",
    .options_bytes = sizeof(sum_options),
    .shape = sum_shape,
    .backward = sum_backward,
    .run = sum_run,
};

/* Options start as zeros, padding too: programs are compared. */
static hdi_sequence_options start(const hd_program *program, hd_tensor x, int64_t sequences,
                                  int64_t tokens, const char *what)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    hdi_sequence_options o;
    memset(&o, 0, sizeof o);
    o.ranks = hdi_tensor_ranks(program);
    o.rank = rank_of(program);
    o.sequences = sequences;
    o.tokens = tokens;
    o.turns = o.ring = 1;
    o.collective.axis = HD_AXIS_TENSOR;
    o.collective.what = what;
    if (info && info->rank == 2) o.collective.elements = sequences * tokens * info->dims[1];
    return o;
}

static hd_tensor sum_of(hd_program *program, hd_tensor received, hd_tensor sent,
                        const hdi_sequence_options *rows, bool alike)
{
    sum_options o;
    memset(&o, 0, sizeof o);
    o.rows = *rows;
    o.alike = alike;
    const hd_tensor in[] = {received, sent};
    return hd_custom_op(program, &hdi_op_tensor_sum, &o, 2, in);
}

static hd_tensor sum_chunks(hd_program *program, hd_tensor x, const hdi_sequence_options *o)
{
    return sum_of(program, hd_custom_op(program, &hdi_op_tensor_exchange, o, 1, &x), x, o, false);
}

/* One sequence's rows are chunks as they are. */
static hd_tensor rearrange(hd_program *program, hd_tensor x, hdi_sequence_options o, bool back)
{
    o.back = back;
    return o.sequences == 1 ? x : hd_custom_op(program, &hdi_op_sequence_rows, &o, 1, &x);
}

hd_tensor hdi_tensor_own_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens)
{
    if (hdi_tensor_ranks(program) == 1) return x;
    const hdi_sequence_options o = start(program, x, sequences, tokens, "rows");
    return hd_custom_op(program, &hdi_op_sequence_own_rows, &o, 1, &x);
}

hd_tensor hdi_tensor_gather_rows(hd_program *program, hd_tensor x, int64_t sequences,
                                 int64_t tokens)
{
    if (hdi_tensor_ranks(program) == 1) return x;
    const hdi_sequence_options o = start(program, x, sequences, tokens, "rows of a layer");
    return hd_custom_op(program, &hdi_op_tensor_gather, &o, 1, &x);
}

hd_tensor hdi_tensor_exchange_rows(hd_program *program, hd_tensor x, int64_t sequences,
                                   int64_t tokens)
{
    if (hdi_tensor_ranks(program) == 1) return x;
    const hdi_sequence_options o =
        start(program, x, sequences, tokens, "parts of a layer's result");
    return sum_chunks(program, x, &o);
}

hd_tensor hdi_tensor_by_sequence(hd_program *program, hd_tensor x, int64_t sequences,
                                 int64_t tokens, bool back)
{
    if (hdi_tensor_ranks(program) == 1) return x;
    return rearrange(program, x, start(program, x, sequences, tokens, "rows"), !back);
}

hd_tensor hdi_tensor_all_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens)
{
    x = hdi_tensor_gather_rows(program, x, sequences, tokens);
    return hdi_tensor_by_sequence(program, x, sequences, tokens, false);
}

hd_tensor hdi_tensor_sum_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens)
{
    x = hdi_tensor_by_sequence(program, x, sequences, tokens, true);
    return hdi_tensor_exchange_rows(program, x, sequences, tokens);
}

/* Each rank's copy is one token of each sequence, as if the ranks had a token each. */
static hdi_sequence_options start_alike(const hd_program *program, hd_tensor x, const char *what)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    return start(program, x, info ? info->dims[0] : 1, hdi_tensor_ranks(program), what);
}

hd_tensor hdi_tensor_collect(hd_program *program, hd_tensor x)
{
    const hdi_sequence_options o = start_alike(program, x, "all ranks' rows");
    return hd_custom_op(program, &hdi_op_tensor_gather, &o, 1, &x);
}

hd_tensor hdi_tensor_sum_alike(hd_program *program, hd_tensor x)
{
    if (hdi_tensor_ranks(program) == 1) return x;
    const hdi_sequence_options o = start_alike(program, x, "parts of a layer's result");
    return sum_of(program, hdi_tensor_collect(program, x), x, &o, true);
}

hd_tensor hdi_tensor_whole_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens)
{
    if (hdi_tensor_ranks(program) == 1) return x;
    const hdi_sequence_options o = start(program, x, sequences, tokens, "rows");
    return rearrange(program, hd_custom_op(program, &hdi_op_sequence_share, &o, 1, &x), o, true);
}

hd_tensor hdi_tensor_all_columns(hd_program *program, hd_tensor x, int64_t groups, int64_t unit)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    if (hdi_tensor_ranks(program) == 1) return x;
    hdi_sequence_options o = start(program, x, info ? info->dims[0] : 1, 0, "columns");
    o.before = 1; /* the rows are sequences of one that all ranks have */
    o.all_ranks = true;
    o.groups = groups;
    o.parts = 1;
    o.unit[0] = unit;
    o.collective.elements = o.sequences * groups * unit;
    x = hd_custom_op(program, &hdi_op_sequence_share, &o, 1, &x);
    o.back = true;
    return hd_custom_op(program, &hdi_op_sequence_join, &o, 1, &x);
}
