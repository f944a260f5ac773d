/* Gathers on the tensor axis, and the product after each in pieces: own rows, then others' as they come. */
#include "core/error.h"
#include "core/memory.h"
#include "ops/ops.h"
#include "ops/tensor_pieces.h"

/* A gather, maybe an op that joins its rows to others, and the first product of all of them. */
typedef struct entrance {
    hdi_cut_ranks r;
    int joins, product; /* joins: -1 where none is */
    hd_tensor own, whole;
} entrance;

static bool find(const hdi_cutter *c, int index, entrance *out)
{
    const hd_op *gather = &hdi_cut_op(c, index)->op;
    hd_tensor whole = gather->out[0];
    *out = (entrance){.joins = -1, .own = gather->in[0]};
    out->r = (hdi_cut_ranks){
        .o = gather->options, .source = index, .columns = gather->in_info[0]->dims[1]};
    int next = hdi_cut_reader(c, whole, index);
    const int64_t *joined = next < 0 ? NULL : hdi_joined_rows(&hdi_cut_op(c, next)->op);
    if (joined && hdi_cut_has_one_reader(c, whole)) {
        const hd_op *join = &hdi_cut_op(c, next)->op;
        for (int i = 0; join->in[i].id != whole.id; i++)
            out->r.before += joined[i];
        whole = join->out[0];
        out->joins = next;
        next = hdi_cut_reader(c, whole, next);
    }
    if (next < 0) return false;
    const hd_op *product = &hdi_cut_op(c, next)->op;
    out->product = next;
    out->whole = whole;
    out->r.rows = hd_tensor_get(c->program, whole)->dims[0];
    bool ok = hdi_cut_is_plain(c->program, whole, out->r.rows) && !product->kind->cut &&
              hdi_cut_is_by_rows(c, next, out->r.rows) &&
              hdi_cut_op(c, next)->phase == hdi_cut_op(c, index)->phase;
    for (int k = 0; k < product->inputs; k++)
        ok = ok && (product->in[k].id != whole.id || (product->kind->by_rows >> k & 1));
    return ok;
}

/* The gather's input is made where the gathered rows are, if only the gather reads it. */
static bool make_in_place(hdi_cutter *c, const entrance *e)
{
    const hdi_row_run own = hdi_cut_rows(&e->r, e->r.o->rank);
    hdi_tensor *tensor = hdi_tensor_of(c->program, e->own);
    if (e->joins >= 0 || !hdi_cut_is_plain(c->program, e->own, own.count) ||
        !hdi_cut_has_one_reader(c, e->own) || c->dead[tensor->producer] ||
        hdi_cut_op(c, tensor->producer)->phase != hdi_cut_op(c, e->r.source)->phase)
        return false;
    tensor->within = e->whole;
    tensor->within_first = own.first * e->r.columns;
    return true;
}

static void emit_place(hdi_cutter *c, const entrance *e, hd_tensor from, hdi_row_run rows)
{
    const hd_tensor to = hdi_cut_part(c, e->whole, rows);
    hdi_cut_emit(c, e->r.source, e->joins < 0 ? e->r.source : e->joins, &hdi_op_tensor_place, NULL,
                 1, &from, 1, &to);
}

/* Own rows, and those that all ranks have, go to their places. */
static void place_rows(hdi_cutter *c, const entrance *e)
{
    const hdi_row_run own = hdi_cut_rows(&e->r, e->r.o->rank);
    if (e->joins < 0) {
        emit_place(c, e, e->own, own);
        return;
    }
    const hd_op *join = &hdi_cut_op(c, e->joins)->op;
    int64_t first = 0;
    for (int i = 0; i < join->inputs; i++) {
        const bool is_own = join->in[i].id == hdi_cut_op(c, e->r.source)->op.out[0].id;
        const hdi_row_run rows = {first, join->in_info[i]->dims[0]};
        emit_place(c, e, is_own ? e->own : join->in[i], is_own ? own : rows);
        first += rows.count;
    }
}

/* The product of some rows and of those beside them that all ranks have, before op `at`. */
static void emit_product(hdi_cutter *c, const entrance *e, int at, hdi_row_run rows)
{
    const hd_op *op = &hdi_cut_op(c, e->product)->op;
    hd_tensor out[HD_OP_OUTPUTS];
    const hdi_row_run all = hdi_cut_extend(&e->r, rows);
    for (int k = 0; k < op->outputs; k++)
        out[k] = hdi_cut_part(c, op->out[k], all);
    hdi_cut_emit_rows(c, e->product, at, all, NULL, out);
}

static void emit_steps(hdi_cutter *c, const entrance *e)
{
    const hdi_row_run own = {0, hdi_sequence_rows_of(e->r.o, e->r.o->rank)};
    for (int step = 1; step < e->r.o->ranks; step++)
        for (int j = 0; j < e->r.pieces; j++) {
            const hdi_row_run sent = hdi_cut_piece(&e->r, own, j);
            const hdi_row_run others = hdi_cut_rows(&e->r, hdi_cut_peer(&e->r, -step));
            hdi_cut_emit_step(c, &e->r, e->r.source, step, j,
                              hdi_tensor_rows(c->program, e->own, sent.first, sent.count),
                              hdi_cut_part(c, e->whole, hdi_cut_piece(&e->r, others, j)));
        }
}

/* What others make of own rows alone may be computed while rows travel, in forwards that nothing follows. */
static double seconds_of_others(const hdi_cutter *c, const entrance *e)
{
    double seconds = 0;
    for (int i = hdi_cut_reader(c, e->whole, e->product + 1); i >= 0 && !c->program->training;
         i = hdi_cut_reader(c, e->whole, i + 1))
        seconds += hdi_cut_seconds(c, &e->r, i) / e->r.o->ranks;
    return seconds;
}

static bool note(hdi_cutter *c, const entrance *e, const hdi_piece_timing *timing)
{
    if (!HDI_GROW(c->gathered, c->gathered_count, c->gathered_capacity)) {
        hd_program_fail(c->program, HD_ERROR_MEMORY, "out of host memory");
        return false;
    }
    c->gathered[c->gathered_count++] =
        (hdi_gathered){.whole = e->whole,
                       .product = e->product,
                       .bare = timing->product / timing->ranks < timing->sent};
    return true;
}

void hdi_cut_gather(hdi_cutter *c, int index)
{
    entrance e;
    if (!find(c, index, &e)) return;
    hdi_piece_timing timing = hdi_cut_timing(c, &e.r, hdi_cut_seconds(c, &e.r, e.product),
                                             hdi_cut_seconds_between(c, &e.r, index, e.product));
    if (timing.beside + timing.product / timing.ranks < timing.sent)
        timing.beside += seconds_of_others(c, &e);
    e.r.pieces = hdi_cut_choose(c, &e.r, &timing, true);
    if (e.r.pieces == 0 || !note(c, &e, &timing)) return;
    const bool in_place = make_in_place(c, &e);
    emit_steps(c, &e);
    if (!in_place) place_rows(c, &e);
    emit_product(c, &e, e.product, hdi_cut_rows(&e.r, e.r.o->rank));
    for (int step = 1; step < e.r.o->ranks; step++)
        for (int j = 0; j < e.r.pieces; j++)
            emit_product(c, &e, e.product + 1,
                         hdi_cut_piece(&e.r, hdi_cut_rows(&e.r, hdi_cut_peer(&e.r, -step)), j));
    c->dead[index] = c->dead[e.product] = true;
    if (e.joins >= 0) c->dead[e.joins] = true;
}
