/* Exchanges on the tensor axis, and the products before each in pieces: the other ranks' rows, then own
 * ones, while those are on their way. */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/tensor_pieces.h"

enum { MOST_LINKS = 8 };

/* Ops that make all rows, one from another; maybe one that splits these; the exchange, and the sum of
 * what it brings. */
typedef struct way_out {
    hdi_cut_ranks r;
    int chain[MOST_LINKS], links; /* the last op first */
    int splits, sum;              /* splits: -1 where none does */
    hd_tensor received;
} way_out;

/* Whether op `index` makes what only an op of the chain reads, row by row. */
static bool is_link(const hdi_cutter *c, const way_out *w, int index)
{
    const hd_op *op = &hdi_cut_op(c, index)->op;
    if (!hdi_cut_is_by_rows(c, index, w->r.rows) || op->outputs != 1 ||
        !hdi_cut_has_one_reader(c, op->out[0]))
        return false;
    const int last = hdi_cut_reader(c, op->out[0], index);
    const hd_op *next = &hdi_cut_op(c, last)->op;
    bool ok = hdi_cut_op(c, last)->phase == hdi_cut_op(c, index)->phase, is_in = false;
    for (int i = 0; i < w->links; i++)
        is_in = is_in || w->chain[i] == last;
    for (int k = 0; k < next->inputs; k++)
        ok = ok && (next->in[k].id != op->out[0].id || (next->kind->by_rows >> k & 1));
    return ok && is_in;
}

static bool is_small(const hdi_cutter *c, const way_out *w, int index)
{
    return hdi_cut_seconds(c, &w->r, index) == 0 && !hdi_cut_op(c, index)->op.kind->cut;
}

/* The op that makes what is exchanged, or, if it is a part of more rows, those. */
static int find_maker(const hdi_cutter *c, hd_tensor x, way_out *out)
{
    int maker = hdi_tensor_of(c->program, x)->producer;
    const int64_t *parts = maker < 0 ? NULL : hdi_split_rows(&hdi_cut_op(c, maker)->op);
    if (parts) {
        const hd_op *split = &hdi_cut_op(c, maker)->op;
        bool is_before = true;
        for (int i = 0; i < split->outputs; i++) {
            is_before = is_before && split->out[i].id != x.id;
            if (is_before) out->r.before += parts[i];
            if (!hdi_cut_is_plain(c->program, split->out[i], parts[i])) return -1;
        }
        x = split->in[0];
        out->splits = maker;
        maker = hdi_cut_has_one_reader(c, x) ? hdi_tensor_of(c->program, x)->producer : -1;
    }
    out->r.rows = hd_tensor_get(c->program, x)->dims[0];
    return maker;
}

static bool find(const hdi_cutter *c, int index, way_out *out)
{
    const hd_op *exchange = &hdi_cut_op(c, index)->op;
    const hd_tensor x = exchange->in[0];
    *out = (way_out){.splits = -1, .received = exchange->out[0]};
    out->r = (hdi_cut_ranks){
        .o = exchange->options, .source = index, .columns = exchange->in_info[0]->dims[1]};
    out->sum = hdi_cut_reader(c, out->received, index);
    if (out->sum < 0 || !hdi_cut_has_one_reader(c, out->received) ||
        hdi_cut_op(c, out->sum)->op.kind != &hdi_op_tensor_sum ||
        hdi_cut_reader(c, x, 0) != index || hdi_cut_reader(c, x, index + 1) != out->sum ||
        hdi_cut_reader(c, x, out->sum + 1) >= 0)
        return false;
    const int maker = find_maker(c, x, out);
    if (maker < 0 || !hdi_cut_is_by_rows(c, maker, out->r.rows) ||
        hdi_cut_op(c, maker)->op.outputs != 1 ||
        hdi_cut_op(c, maker)->phase != hdi_cut_op(c, index)->phase)
        return false;
    out->chain[out->links++] = maker;
    for (int i = maker - 1; i >= 0 && out->links < MOST_LINKS && is_link(c, out, i); i--)
        out->chain[out->links++] = i;
    while (out->links > 1 && is_small(c, out, out->chain[out->links - 1]))
        out->links--; /* in place of all rows it needs less memory */
    return true;
}

/* Whether an op needs own rows of a gather alone, or what `early` links make of them: where it may then go,
 * or -1. Only where something is left to hide. */
static int early_place(const hdi_cutter *c, const way_out *w, int link, const int *early)
{
    const hd_op *op = &hdi_cut_op(c, w->chain[link])->op;
    int place = -1;
    if (op->kind->cut) return -1;
    for (int k = 0; k < op->inputs; k++) {
        int found = op->in_info[k] && op->in_info[k]->role != HD_ROLE_PARAMETER ? -1 : 0;
        if (!found) continue;
        for (int i = 0; i < c->gathered_count; i++)
            if (c->gathered[i].whole.id == op->in[k].id && c->gathered[i].bare)
                found = c->gathered[i].product;
        for (int i = link + 1; i < w->links; i++)
            if (hdi_cut_op(c, w->chain[i])->op.out[0].id == op->in[k].id) found = early[i];
        if (found < 0 || (place >= 0 && place != found)) return -1;
        place = found;
    }
    return place;
}

/* The chain for some rows, which become `out`; of own rows what can be is made while a gather is under
 * way. */
static void emit_chain(hdi_cutter *c, const way_out *w, hdi_row_run rows, bool own, hd_tensor out)
{
    hd_tensor made[MOST_LINKS];
    int early[MOST_LINKS];
    for (int i = w->links - 1; i >= 0; i--) {
        const hd_op *op = &hdi_cut_op(c, w->chain[i])->op;
        const int64_t dims[] = {rows.count, op->out_info[0]->dims[1]};
        hd_tensor in[HD_OP_INPUTS] = {{0}};
        for (int k = 0; k < op->inputs; k++)
            for (int j = i + 1; j < w->links; j++)
                if (hdi_cut_op(c, w->chain[j])->op.out[0].id == op->in[k].id) in[k] = made[j];
        made[i] = i == 0 ? out
                         : hdi_tensor_add(c->program, NULL, op->out_info[0]->dtype,
                                          HD_ROLE_ACTIVATION, 2, dims);
        early[i] = own ? early_place(c, w, i, early) : -1;
        hdi_cut_emit_rows(c, w->chain[i], early[i] < 0 ? w->chain[0] : early[i], rows, in,
                          &made[i]);
    }
}

/* Rows of the split that are not exchanged are where the chain has made them: `made` has rows from
 * `first` on. */
static void leave_alike(hdi_cutter *c, const way_out *w, hd_tensor made, hdi_row_run rows)
{
    const hd_op *split = w->splits < 0 ? NULL : &hdi_cut_op(c, w->splits)->op;
    const hdi_tensor *from = hdi_tensor_of(c->program, made);
    int64_t first = 0;
    for (int i = 0; split && from && i < split->outputs; i++) {
        hdi_tensor *part = hdi_tensor_of(c->program, split->out[i]);
        if (first != w->r.before && first >= rows.first && first < rows.first + rows.count) {
            part->within = from->within.id ? from->within : made;
            part->within_first = from->within_first + (first - rows.first) * w->r.columns;
        }
        first += part->info.dims[0];
    }
}

/* A piece of the rows of the rank `step` places on sets out. */
static void emit_piece(hdi_cutter *c, const way_out *w, hd_tensor received, hdi_row_run from,
                       int step, int piece)
{
    const hdi_row_run sent =
        hdi_cut_piece(&w->r, hdi_cut_rows(&w->r, hdi_cut_peer(&w->r, step)), piece);
    const hdi_row_run all = hdi_cut_extend(&w->r, sent);
    const int64_t dims[] = {all.count, w->r.columns};
    const hd_dtype dtype = hd_tensor_get(c->program, received)->dtype;
    const hd_tensor made = hdi_tensor_add(c->program, NULL, dtype, HD_ROLE_ACTIVATION, 2, dims);
    emit_chain(c, w, all, false, made);
    leave_alike(c, w, made, all);
    hdi_cut_emit_step(c, &w->r, w->chain[0], step, piece,
                      hdi_tensor_rows(c->program, made, sent.first - all.first, sent.count),
                      hdi_cut_part(c, received, hdi_cut_piece(&w->r, from, piece)));
}

void hdi_cut_exchange(hdi_cutter *c, int index)
{
    way_out w;
    if (!find(c, index, &w)) return;
    double product = 0;
    for (int i = 0; i < w.links; i++)
        product += hdi_cut_seconds(c, &w.r, w.chain[i]);
    const hdi_piece_timing timing =
        hdi_cut_timing(c, &w.r, product, hdi_cut_seconds_between(c, &w.r, index, w.sum));
    w.r.pieces = hdi_cut_choose(c, &w.r, &timing, false);
    if (w.r.pieces == 0) return;
    /* What has come from all ranks, and around it the rows that own ones are made with. */
    const hdi_row_run own = hdi_cut_rows(&w.r, w.r.o->rank), all = hdi_cut_extend(&w.r, own);
    const int64_t lead = own.first - all.first;
    const int64_t dims[] = {w.r.o->ranks * own.count + all.count - own.count, w.r.columns};
    const hd_dtype dtype = hd_tensor_get(c->program, w.received)->dtype;
    const hd_tensor received = hdi_tensor_add(c->program, NULL, dtype, HD_ROLE_ACTIVATION, 2, dims);
    if (!received.id) return;
    for (int step = 1; step < w.r.o->ranks; step++)
        for (int j = 0; j < w.r.pieces; j++)
            emit_piece(c, &w, received,
                       (hdi_row_run){lead + hdi_cut_peer(&w.r, -step) * own.count, own.count}, step,
                       j);
    const hd_tensor last =
        hdi_cut_part(c, received, (hdi_row_run){w.r.o->rank * own.count, all.count});
    emit_chain(c, &w, all, true, last);
    leave_alike(c, &w, last, all);
    hd_op *sum = &c->program->ops[w.sum]->op;
    sum->in[0] = hdi_tensor_rows(c->program, received, lead, w.r.o->ranks * own.count);
    sum->in_info[0] = hd_tensor_get(c->program, sum->in[0]);
    sum->inputs = 1; /* what was sent took the gradient */
    c->dead[index] = true;
    for (int i = 0; i < w.links; i++)
        c->dead[w.chain[i]] = true;
    if (w.splits >= 0) c->dead[w.splits] = true;
}
