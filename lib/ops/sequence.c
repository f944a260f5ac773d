/* The sequence axis: rows and heads that change places between ranks. What travels is cut into one
 * chunk for each rank: of own rows that rank's columns, or of own columns that rank's rows. */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/sequence_parts.h"

#include <inttypes.h>
#include <string.h>

int64_t hdi_sequence_first(int64_t tokens, int ranks, int rank)
{
    return rank * tokens / ranks;
}

int64_t hdi_sequence_first_group(int64_t groups, int ranks, int rank)
{
    const int64_t more = groups % ranks;
    return rank * (groups / ranks) + (rank < more ? rank : more);
}

static int ranks_of(const hd_program *program)
{
    return hd_mesh_size(program->mesh, HD_AXIS_SEQUENCE);
}

int64_t hdi_sequence_own_tokens(const hd_program *program, int64_t tokens)
{
    const int ranks = ranks_of(program), rank = hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE);
    return hdi_sequence_first(tokens, ranks, rank + 1) - hdi_sequence_first(tokens, ranks, rank);
}

int64_t hdi_sequence_own_heads(const hd_program *program, int64_t heads, int64_t kv_heads)
{
    const int ranks = ranks_of(program), rank = hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE);
    return (hdi_sequence_first_group(kv_heads, ranks, rank + 1) -
            hdi_sequence_first_group(kv_heads, ranks, rank)) *
           (heads / kv_heads);
}

bool hdi_sequence_begin(hd_program *program, int64_t tokens, int64_t kv_heads, bool whole_loss)
{
    const int ranks = ranks_of(program);
    program->splits_sequences = true;
    program->whole_loss = whole_loss;
    if (ranks <= tokens && ranks <= kv_heads && ranks <= HDI_SEQUENCE_RANKS) return true;
    hd_program_fail(program, HD_ERROR_UNSUPPORTED,
                    "layout: sequence is %d, want at most %" PRId64 " (key and value heads, which "
                    "ranks do not share), %" PRId64 " (tokens of a sequence) and %d; take more "
                    "data or pipeline ranks",
                    ranks, kv_heads, tokens, (int)HDI_SEQUENCE_RANKS);
    return false;
}

int64_t hdi_sequence_rows_of(const hdi_sequence_options *o, int rank)
{
    return o->sequences * (hdi_sequence_first(o->tokens, o->ranks, rank + 1) -
                           hdi_sequence_first(o->tokens, o->ranks, rank));
}

int64_t hdi_sequence_groups_of(const hdi_sequence_options *o, int rank)
{
    return hdi_sequence_first_group(o->groups, o->ranks, rank + 1) -
           hdi_sequence_first_group(o->groups, o->ranks, rank);
}

int64_t hdi_sequence_group_columns(const hdi_sequence_options *o)
{
    int64_t columns = 0;
    for (int p = 0; p < o->parts; p++)
        columns += o->unit[p];
    return columns;
}

hd_status hdi_sequence_check(const hd_op *op, int64_t rows, int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    return hdi_check_dims(op, 0, "x", HD_DTYPE_NONE, 2, dims);
}

hd_status hdi_sequence_declare(hd_program *program, const hd_op *op, int64_t rows, int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    hd_op_output(program, op->in_info[0]->dtype, 2, dims);
    return HD_OK;
}

void hdi_sequence_move_back(hd_backward *context, const hd_op *op)
{
    hdi_sequence_options options = *(const hdi_sequence_options *)op->options;
    options.back = !options.back;
    const hd_tensor gradient = hd_backward_output_gradient(context, 0);
    hd_backward_give(context, 0,
                     hd_custom_op(hd_backward_program(context), op->kind, &options, 1, &gradient));
}

static void sent_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = (double)op->out_info[0]->bytes;
}

/* One run of elements for each rank. */
typedef struct chunks {
    int64_t count[HDI_SEQUENCE_RANKS], offset[HDI_SEQUENCE_RANKS];
} chunks;

static void fill_chunks(const hdi_sequence_options *o, chunks *out,
                        int64_t (*count)(const hdi_sequence_options *o, int rank, int64_t each),
                        int64_t each)
{
    int64_t offset = 0;
    for (int r = 0; r < o->ranks; r++) {
        out->count[r] = count(o, r, each);
        out->offset[r] = offset;
        offset += out->count[r];
    }
}

static int64_t count_rows(const hdi_sequence_options *o, int rank, int64_t each)
{
    return hdi_sequence_rows_of(o, rank) * each;
}

static int64_t count_groups(const hdi_sequence_options *o, int rank, int64_t each)
{
    return hdi_sequence_groups_of(o, rank) * each;
}

static int64_t count_alike(const hdi_sequence_options *o, int rank, int64_t each)
{
    (void)o, (void)rank;
    return each;
}

static hd_status post_all_to_all(const hd_run *run, const chunks *send, const chunks *recv)
{
    const hdi_sequence_options *o = run->op->options;
    *run->posted_on = hd_mesh_device_comm(run->mesh, o->collective.axis);
    return hd_comm_all_to_all(*run->posted_on, run->in[0], send->count, send->offset, run->out[0],
                              recv->count, recv->offset, run->op->in_info[0]->dtype, run->request);
}

/* Chunks of own rows to chunks of own columns. */
static hd_status exchange_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    const int64_t own_rows = hdi_sequence_rows_of(o, o->rank), all_rows = o->sequences * o->tokens;
    const int64_t all = o->groups * hdi_sequence_group_columns(o),
                  own = hdi_sequence_groups_of(o, o->rank) * hdi_sequence_group_columns(o);
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->back ? all_rows : own_rows, o->back ? own : all));
    return hdi_sequence_declare(program, op, o->back ? own_rows : all_rows, o->back ? all : own);
}

static hd_status exchange_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    chunks of_tokens, of_heads;
    fill_chunks(o, &of_tokens, count_groups,
                hdi_sequence_rows_of(o, o->rank) * hdi_sequence_group_columns(o));
    fill_chunks(o, &of_heads, count_rows,
                hdi_sequence_groups_of(o, o->rank) * hdi_sequence_group_columns(o));
    return o->back ? post_all_to_all(run, &of_heads, &of_tokens)
                   : post_all_to_all(run, &of_tokens, &of_heads);
}

const hd_op_kind hdi_op_sequence_exchange = {
    .name = "sequence_exchange",
    .options_bytes = sizeof(hdi_sequence_options),
    .flags = HD_OP_COMMUNICATES,
    .shape = exchange_shape,
    .backward = hdi_sequence_move_back,
    .cost = sent_cost,
    .run = exchange_run,
};

/* Each rank's columns of rows that all have to all of them; back: what the ranks have for this one's,
 * one rank's below another's. */
static hd_status scatter_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    HD_RETURN_IF_ERROR(
        hdi_sequence_check(op, o->sequences, o->groups * hdi_sequence_group_columns(o)));
    return hdi_sequence_declare(program, op, o->ranks * o->sequences,
                                hdi_sequence_groups_of(o, o->rank) * hdi_sequence_group_columns(o));
}

static hd_status scatter_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    const int64_t each = o->sequences * hdi_sequence_group_columns(o);
    chunks send, recv;
    fill_chunks(o, &send, count_groups, each);
    fill_chunks(o, &recv, count_alike, hdi_sequence_groups_of(o, o->rank) * each);
    return post_all_to_all(run, &send, &recv);
}

const hd_op_kind hdi_op_sequence_scatter = {
    .name = "sequence_scatter",
    .options_bytes = sizeof(hdi_sequence_options),
    .flags = HD_OP_COMMUNICATES,
    .shape = scatter_shape,
    .cost = sent_cost,
    .run = scatter_run,
};

/* Every rank's own to all ranks, chunk by chunk: columns of rows that all have, or rows. */
static bool shares_rows(const hdi_sequence_options *o)
{
    return o->groups == 0;
}

static hd_status share_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    if (shares_rows(o)) {
        HD_RETURN_IF_ERROR(hdi_sequence_check(op, hdi_sequence_rows_of(o, o->rank), -1));
        return hdi_sequence_declare(program, op, o->sequences * o->tokens, op->in_info[0]->dims[1]);
    }
    HD_RETURN_IF_ERROR(hdi_sequence_check(
        op, o->sequences, hdi_sequence_groups_of(o, o->rank) * hdi_sequence_group_columns(o)));
    return hdi_sequence_declare(program, op, o->sequences,
                                o->groups * hdi_sequence_group_columns(o));
}

static hd_status share_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    const hd_tensor_info *x = run->op->in_info[0];
    chunks all;
    if (shares_rows(o))
        fill_chunks(o, &all, count_rows, x->dims[1]);
    else
        fill_chunks(o, &all, count_groups, o->sequences * hdi_sequence_group_columns(o));
    char *own = (char *)run->out[0] + (size_t)all.offset[o->rank] * hd_dtype_bytes(x->dtype);
    HD_RETURN_IF_ERROR(run->backend->copy(run->stream, own, run->in[0], x->bytes));
    *run->posted_on = hd_mesh_device_comm(run->mesh, o->collective.axis);
    return hd_comm_all_gather(*run->posted_on, run->out[0], all.count, all.offset, x->dtype,
                              run->request);
}

static void share_backward(hd_backward *context, const hd_op *op)
{
    hd_program *program = hd_backward_program(context);
    hdi_sequence_options options = *(const hdi_sequence_options *)op->options;
    options.back = true;
    hd_tensor gradient = hd_backward_output_gradient(context, 0);
    if (shares_rows(&options)) {
        gradient = hd_custom_op(program, &hdi_op_sequence_own_rows, &options, 1, &gradient);
    } else {
        gradient = hd_custom_op(program, &hdi_op_sequence_scatter, &options, 1, &gradient);
        gradient = hd_custom_op(program, &hdi_op_sequence_sum, &options, 1, &gradient);
    }
    hd_backward_give(context, 0, gradient);
}

const hd_op_kind hdi_op_sequence_share = {
    .name = "sequence_share",
    .options_bytes = sizeof(hdi_sequence_options),
    .flags = HD_OP_COMMUNICATES,
    .shape = share_shape,
    .backward = share_backward,
    .cost = sent_cost,
    .run = share_run,
};

/* Options start as zeros, padding too: programs are compared. */
static hdi_sequence_options start(const hd_program *program, int64_t sequences, int64_t tokens)
{
    hdi_sequence_options o;
    memset(&o, 0, sizeof o);
    o.ranks = ranks_of(program);
    o.rank = hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE);
    o.sequences = sequences;
    o.tokens = tokens;
    o.collective.axis = HD_AXIS_SEQUENCE;
    return o;
}

static void deal_heads(hdi_sequence_options *o, const hdi_sequence_shape *shape, int parts)
{
    const int64_t queries = shape->heads / shape->kv_heads * shape->head_dim;
    const int64_t unit[HDI_SEQUENCE_PARTS] = {queries, shape->head_dim, shape->head_dim};
    o->groups = shape->kv_heads;
    o->parts = parts;
    memcpy(o->unit, unit, (size_t)parts * sizeof *unit);
    o->collective.elements = o->sequences * o->tokens * o->groups * hdi_sequence_group_columns(o);
    o->collective.what = parts == 1 ? "attention results" : "queries, keys and values";
}

hd_tensor hdi_sequence_own_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens)
{
    if (ranks_of(program) == 1) return x;
    const hdi_sequence_options o = start(program, sequences, tokens);
    return hd_custom_op(program, &hdi_op_sequence_own_rows, &o, 1, &x);
}

/* One sequence's rows are chunks as they are. */
static hd_tensor rearrange_rows(hd_program *program, hd_tensor x, hdi_sequence_options o, bool back)
{
    o.back = back;
    return o.sequences == 1 ? x : hd_custom_op(program, &hdi_op_sequence_rows, &o, 1, &x);
}

hd_tensor hdi_sequence_all_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    if (ranks_of(program) == 1 || !info) return x;
    hdi_sequence_options o = start(program, sequences, tokens);
    o.collective.elements = sequences * tokens * hdi_columns(info);
    o.collective.what = "rows";
    x = hd_custom_op(program, &hdi_op_sequence_share, &o, 1, &x);
    return rearrange_rows(program, x, o, true);
}

hd_tensor hdi_sequence_to_heads(hd_program *program, hd_tensor qkv, const hdi_sequence_shape *shape)
{
    if (ranks_of(program) == 1) return qkv;
    hdi_sequence_options o = start(program, shape->sequences, shape->tokens);
    deal_heads(&o, shape, 3);
    qkv = hd_custom_op(program, &hdi_op_sequence_columns, &o, 1, &qkv);
    qkv = hd_custom_op(program, &hdi_op_sequence_exchange, &o, 1, &qkv);
    return rearrange_rows(program, qkv, o, true);
}

hd_tensor hdi_sequence_to_tokens(hd_program *program, hd_tensor x, const hdi_sequence_shape *shape)
{
    if (ranks_of(program) == 1) return x;
    hdi_sequence_options o = start(program, shape->sequences, shape->tokens);
    deal_heads(&o, shape, 1);
    x = rearrange_rows(program, x, o, false);
    o.back = true;
    x = hd_custom_op(program, &hdi_op_sequence_exchange, &o, 1, &x);
    return hd_custom_op(program, &hdi_op_sequence_columns, &o, 1, &x);
}

/* Rows that all ranks have, taken as sequences of one token. */
static hdi_sequence_options start_alike(hd_program *program, hd_tensor x,
                                        const hdi_sequence_shape *shape, int parts)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    hdi_sequence_options o = start(program, info ? info->dims[0] : 1, 1);
    deal_heads(&o, shape, parts);
    return o;
}

hd_tensor hdi_sequence_take_heads(hd_program *program, hd_tensor qkv,
                                  const hdi_sequence_shape *shape)
{
    if (ranks_of(program) == 1) return qkv;
    const hdi_sequence_options o = start_alike(program, qkv, shape, 3);
    return hd_custom_op(program, &hdi_op_sequence_own_columns, &o, 1, &qkv);
}

hd_tensor hdi_sequence_all_heads(hd_program *program, hd_tensor x, const hdi_sequence_shape *shape)
{
    if (ranks_of(program) == 1) return x;
    hdi_sequence_options o = start_alike(program, x, shape, 1);
    x = hd_custom_op(program, &hdi_op_sequence_share, &o, 1, &x);
    o.back = true;
    return hd_custom_op(program, &hdi_op_sequence_columns, &o, 1, &x);
}
