/* Which rows a place of the ring has, of tokens that are cut and of tokens that all ranks have. */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/ring_parts.h"

#include <string.h>

/* Rows over the places: the ranks that take part are base, base + step, ... of the axis. */
typedef struct rows_options {
    hdi_sequence_options rows;
    int base, step;
} rows_options;

static rows_options start(const hd_program *program, int64_t sequences, int64_t tokens)
{
    rows_options o;
    memset(&o, 0, sizeof o);
    o.step = hdi_sequence_sharing(program);
    o.base = hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE) % o.step;
    o.rows.collective.axis = HD_AXIS_SEQUENCE;
    o.rows.collective.elements = sequences * tokens;
    o.rows.collective.what = "rows that all ranks have";
    o.rows.ranks = o.rows.ring = hd_mesh_ring(program->mesh);
    o.rows.rank = hdi_sequence_place(program);
    o.rows.sequences = sequences;
    o.rows.tokens = tokens;
    return o;
}

hd_tensor hdi_ring_cut_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens)
{
    if (hd_mesh_ring(program->mesh) == 1) return x;
    rows_options o = start(program, sequences, tokens);
    o.rows.zigzag = hdi_sequence_places(program).zigzag;
    return hd_custom_op(program, &hdi_op_sequence_own_rows, &o.rows, 1, &x);
}

int64_t hdi_ring_cut(const hd_program *program, int64_t tokens, int64_t *first)
{
    const hdi_sequence_cut places = hdi_sequence_places(program);
    hdi_token_run runs[HDI_SEQUENCE_RUNS];
    hdi_sequence_runs(&places, tokens, hdi_sequence_place(program), runs);
    *first = runs[0].first;
    return runs[0].count + runs[1].count;
}

int64_t hdi_ring_alike(const hd_program *program, int64_t alike)
{
    const int places = hd_mesh_ring(program->mesh), place = hdi_sequence_place(program);
    return hdi_sequence_first(alike, places, place + 1) - hdi_sequence_first(alike, places, place);
}

static hd_status take_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = op->options;
    const int64_t all = o->sequences * o->tokens, own = hdi_sequence_rows_of(o, o->rank);
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->back ? own : all, -1));
    return hdi_sequence_declare(program, op, o->back ? all : own, op->in_info[0]->dims[1]);
}

static hd_status take_run(const hd_run *run)
{
    const hdi_sequence_options *o = run->op->options;
    if (o->back)
        HD_RETURN_IF_ERROR(
            run->backend->zero(run->stream, run->out[0], run->op->out_info[0]->bytes));
    return hdi_sequence_copy_rows(run, run->op->in_info[0]->dims[1], o->rank, 0, o->back);
}

static const hd_op_kind ring_take = {
    .name = "ring_take",
    .options_bytes = sizeof(hdi_sequence_options),
    .shape = take_shape,
    .backward = hdi_sequence_move_back,
    .run = take_run,
};

hd_tensor hdi_ring_take(hd_program *program, hd_tensor x, int64_t sequences, int64_t alike)
{
    if (hd_mesh_ring(program->mesh) == 1) return x;
    const rows_options o = start(program, sequences, alike);
    return hd_custom_op(program, &ring_take, &o.rows, 1, &x);
}

static void sent_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = (double)op->out_info[0]->bytes;
}

/* What each place has to all of them, or (scattered) of what all have each place's part to it. */
static hd_status exchange(const hd_run *run, bool scatter)
{
    const rows_options *o = run->op->options;
    const int64_t columns = run->op->in_info[0]->dims[1];
    const int64_t own = hdi_sequence_rows_of(&o->rows, o->rows.rank) * columns;
    int64_t same[HDI_SEQUENCE_RANKS] = {0}, same_at[HDI_SEQUENCE_RANKS] = {0};
    int64_t part[HDI_SEQUENCE_RANKS] = {0}, part_at[HDI_SEQUENCE_RANKS] = {0}, before = 0;
    for (int p = 0; p < o->rows.ranks; p++) {
        const int rank = o->base + p * o->step;
        same[rank] = own;
        same_at[rank] = scatter ? p * own : 0;
        part[rank] = hdi_sequence_rows_of(&o->rows, p) * columns;
        part_at[rank] = before;
        before += part[rank];
    }
    *run->posted_on = hd_mesh_device_comm(run->mesh, HD_AXIS_SEQUENCE);
    return hd_comm_all_to_all(*run->posted_on, run->in[0], scatter ? part : same,
                              scatter ? part_at : same_at, run->out[0], scatter ? same : part,
                              scatter ? same_at : part_at, run->op->in_info[0]->dtype,
                              run->request);
}

static hd_status scatter_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = &((const rows_options *)op->options)->rows;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, o->sequences * o->tokens, -1));
    return hdi_sequence_declare(program, op, o->ranks * hdi_sequence_rows_of(o, o->rank),
                                op->in_info[0]->dims[1]);
}

static hd_status scatter_run(const hd_run *run)
{
    return exchange(run, true);
}

const hd_op_kind hdi_op_ring_scatter = {
    .name = "ring_scatter",
    .options_bytes = sizeof(rows_options),
    .flags = HD_OP_COMMUNICATES,
    .shape = scatter_shape,
    .cost = sent_cost,
    .run = scatter_run,
};

static hd_status gather_shape(hd_program *program, const hd_op *op)
{
    const hdi_sequence_options *o = &((const rows_options *)op->options)->rows;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, hdi_sequence_rows_of(o, o->rank), -1));
    return hdi_sequence_declare(program, op, o->sequences * o->tokens, op->in_info[0]->dims[1]);
}

static hd_status gather_run(const hd_run *run)
{
    return exchange(run, false);
}

/* The places' parts of this one's rows, summed in their order. */
static void gather_backward(hd_backward *context, const hd_op *op)
{
    hd_program *program = hd_backward_program(context);
    hd_tensor gradient = hd_backward_output_gradient(context, 0);
    gradient = hd_custom_op(program, &hdi_op_ring_scatter, op->options, 1, &gradient);
    hdi_sequence_options sum = ((const rows_options *)op->options)->rows;
    sum.sequences = hdi_sequence_rows_of(&sum, sum.rank);
    hd_backward_give(context, 0, hd_custom_op(program, &hdi_op_sequence_sum, &sum, 1, &gradient));
}

const hd_op_kind hdi_op_ring_gather = {
    .name = "ring_gather",
    .options_bytes = sizeof(rows_options),
    .flags = HD_OP_COMMUNICATES,
    .shape = gather_shape,
    .backward = gather_backward,
    .cost = sent_cost,
    .run = gather_run,
};

hd_tensor hdi_ring_gather(hd_program *program, hd_tensor x, int64_t sequences, int64_t alike)
{
    if (hd_mesh_ring(program->mesh) == 1) return x;
    rows_options o = start(program, sequences, alike);
    x = hd_custom_op(program, &hdi_op_ring_gather, &o, 1, &x);
    o.rows.back = true;
    return sequences == 1 ? x : hd_custom_op(program, &hdi_op_sequence_rows, &o.rows, 1, &x);
}
