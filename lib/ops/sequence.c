/* The sequence axis: rows and heads that change places between ranks. What travels is cut into one
 * chunk for each rank: of own rows that rank's columns, or of own columns that rank's rows. */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/sequence_parts.h"

#include <inttypes.h>
#include <string.h>

int64_t hdi_sequence_first_group(int64_t groups, int ranks, int rank)
{
    const int64_t more = groups % ranks;
    return rank * (groups / ranks) + (rank < more ? rank : more);
}

int64_t hdi_sequence_turn_first(int64_t groups, int turns, int turn)
{
    return groups * turn / turns;
}

int hdi_sequence_ranks(const hd_program *program)
{
    return hd_mesh_size(program->mesh, HD_AXIS_SEQUENCE);
}

int hdi_sequence_ring(const hd_program *program)
{
    return program->sequence_ring ? program->sequence_ring : hd_mesh_ring(program->mesh);
}

int64_t hdi_sequence_turn_heads(const hd_program *program, int64_t heads, int64_t kv_heads,
                                int turns, int turn)
{
    const int ranks = hdi_sequence_sharing(program);
    const int rank = hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE) % ranks;
    const int64_t own = hdi_sequence_first_group(kv_heads, ranks, rank + 1) -
                        hdi_sequence_first_group(kv_heads, ranks, rank);
    return (hdi_sequence_turn_first(own, turns, turn + 1) -
            hdi_sequence_turn_first(own, turns, turn)) *
           (heads / kv_heads);
}

bool hdi_sequence_begin(hd_program *program, int64_t tokens, int64_t kv_heads, bool whole_loss)
{
    const int ranks = hdi_sequence_ranks(program), ring = hdi_sequence_ring(program);
    const int64_t most = hdi_sequence_cut_of(program).zigzag ? tokens / 2 : tokens;
    program->splits_sequences = true;
    program->whole_loss = whole_loss;
    if (ranks <= most && ranks / ring <= kv_heads && ranks <= HDI_SEQUENCE_RANKS) return true;
    hd_program_fail(program, HD_ERROR_UNSUPPORTED,
                    "layout.sequence is %d with rings of %d, want at most %" PRId64
                    " (key and value heads, which ranks do not share) times the ring, %" PRId64
                    " (tokens of a sequence%s) and %d; take a larger ring, or more data or "
                    "pipeline ranks",
                    ranks, ring, kv_heads, most, most < tokens ? ", two for each rank" : "",
                    (int)HDI_SEQUENCE_RANKS);
    return false;
}

void hdi_sequence_is_causal(hd_program *program)
{
    program->causal_sequences = true;
}

hdi_sequence_cut hdi_sequence_options_cut(const hdi_sequence_options *o)
{
    return (hdi_sequence_cut){
        .ranks = o->ranks, .ring = o->ring, .zigzag = o->zigzag, .together = o->together};
}

int64_t hdi_sequence_rows_of(const hdi_sequence_options *o, int rank)
{
    const hdi_sequence_cut cut = hdi_sequence_options_cut(o);
    return o->sequences * hdi_sequence_tokens_of(&cut, o->tokens, rank);
}

static int64_t groups_of_turns(const hdi_sequence_options *o, int rank, int turn)
{
    const int64_t own = hdi_sequence_first_group(o->groups, o->ranks, rank + 1) -
                        hdi_sequence_first_group(o->groups, o->ranks, rank);
    return hdi_sequence_turn_first(own, o->turns, turn);
}

int64_t hdi_sequence_groups_before(const hdi_sequence_options *o, int rank)
{
    return hdi_sequence_first_group(o->groups, o->ranks, rank) + groups_of_turns(o, rank, o->turn);
}

int64_t hdi_sequence_groups_of(const hdi_sequence_options *o, int rank)
{
    return groups_of_turns(o, rank, o->turn + 1) - groups_of_turns(o, rank, o->turn);
}

int64_t hdi_sequence_group_columns(const hdi_sequence_options *o)
{
    int64_t columns = 0;
    for (int p = 0; p < o->parts; p++)
        columns += o->unit[p];
    return columns;
}

int64_t hdi_sequence_turn_columns(const hdi_sequence_options *o)
{
    int64_t groups = 0;
    for (int r = 0; r < o->ranks; r++)
        groups += hdi_sequence_groups_of(o, r);
    return groups * hdi_sequence_group_columns(o);
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

/* One run of elements for each rank of the axis. */
typedef struct chunks {
    int64_t count[HDI_SEQUENCE_RANKS], offset[HDI_SEQUENCE_RANKS];
} chunks;

static void fill_chunks(const hdi_sequence_options *o, chunks *out,
                        int64_t (*count)(const hdi_sequence_options *o, int rank, int64_t each),
                        int64_t each)
{
    int64_t offset = 0;
    memset(out, 0, sizeof *out);
    for (int r = 0; r < o->ranks; r++) {
        const int at = o->base + r;
        out->count[at] = count(o, r, each);
        out->offset[at] = offset;
        offset += out->count[at];
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
    const int64_t all = hdi_sequence_turn_columns(o),
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
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->sequences, hdi_sequence_turn_columns(o)));
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

/* Every rank's own to all ranks, or those of its place, chunk by chunk: columns of rows that all have,
 * or rows. */
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
    return hdi_sequence_declare(program, op, o->sequences, hdi_sequence_turn_columns(o));
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
    if (o->ranks < hd_mesh_size(run->mesh, o->collective.axis)) {
        chunks same;
        fill_chunks(o, &same, count_alike, x->elements);
        memset(same.offset, 0, sizeof same.offset);
        return post_all_to_all(run, &same, &all);
    }
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
