/* Products beside what travels on the tensor axis, cut into pieces of rows. After a gather a rank begins
 * with its own rows and goes on with the others' as they come; before an exchange it makes the other ranks'
 * first, and its own while those are on their way. In step s each rank sends to the s-th rank after it
 * and has from the s-th before it. Pieces lie within what they are pieces of: nothing is copied but rows
 * that were elsewhere, and what reads the whole, as weight gradients do, does not notice. */
#include "ops/tensor_pieces.h"
#include "core/error.h"
#include "core/memory.h"
#include "ops/ops.h"
#include "ops/sequence_parts.h"
#include "ops/tensor_axis.h"
#include "program/plan.h"
#include "program/shard.h"

#include <string.h>

enum { MOST_CHAIN = 4 };

typedef struct cutter {
    hd_program *program;
    hd_rates rates;
    int original; /* ops, before any is added; places are indexes among them */
    int *before;  /* [added] */
    int before_capacity;
    bool *dead; /* [original] */
} cutter;

typedef struct row_run {
    int64_t first, count;
} row_run;

static const hdi_op *op_at(const cutter *c, int index)
{
    return c->program->ops[index];
}

/* The first living op from `from` on that reads a tensor, or -1. */
static int reader(const cutter *c, hd_tensor x, int from)
{
    for (int i = from; i < c->original; i++)
        for (int k = 0; k < op_at(c, i)->op.inputs && !c->dead[i]; k++)
            if (op_at(c, i)->op.in[k].id == x.id) return i;
    return -1;
}

static bool has_one_reader(const cutter *c, hd_tensor x)
{
    const int first = reader(c, x, 0);
    return first >= 0 && reader(c, x, first + 1) < 0;
}

/* An activation with bytes of its own, made at once by one op. */
static bool is_plain(const cutter *c, hd_tensor x, int64_t rows)
{
    const hdi_tensor *tensor = hdi_tensor_of(c->program, x);
    return tensor && tensor->info.role == HD_ROLE_ACTIVATION && tensor->info.rank == 2 &&
           tensor->info.dims[0] == rows && !tensor->keep && !tensor->host && !tensor->within.id &&
           !tensor->holds && tensor->producer >= 0;
}

/* Whether op `index` makes `rows` rows of plain tensors, row by row. */
static bool is_by_rows(const cutter *c, int index, int64_t rows)
{
    const hd_op *op = &op_at(c, index)->op;
    if (c->dead[index] || !op->kind->by_rows || op->outputs < 1) return false;
    for (int k = 0; k < op->inputs; k++) {
        const hd_tensor_info *x = op->in_info[k];
        if ((op->kind->by_rows >> k & 1) && (!x || x->rank != 2 || x->dims[0] != rows))
            return false;
    }
    for (int k = 0; k < op->outputs; k++)
        if (!is_plain(c, op->out[k], rows)) return false;
    return true;
}

/* Append an op that goes before op `at`, in the place of op `source`. */
static void emit(cutter *c, int source, int at, const hd_op_kind *kind, const void *options,
                 int inputs, const hd_tensor *in, int outputs, const hd_tensor *out)
{
    hd_program *p = c->program;
    int added = p->op_count - c->original;
    if (p->status != HD_OK) return;
    if (!HDI_GROW(c->before, added, c->before_capacity)) {
        hd_program_fail(p, HD_ERROR_MEMORY, "out of host memory");
        return;
    }
    c->before[added] = at;
    p->phase = op_at(c, source)->phase;
    p->scope_open = op_at(c, source)->scope;
    p->appending_recomputed = op_at(c, source)->recomputed;
    hdi_op_append(p, kind, options, inputs, in, outputs, out);
}

/* Rows of tensor `whole` that an op is to write. */
static hd_tensor part_of(cutter *c, hd_tensor whole, row_run rows)
{
    hdi_tensor *tensor = hdi_tensor_of(c->program, whole);
    if (tensor) tensor->holds = true;
    return hdi_tensor_rows(c->program, whole, rows.first, rows.count);
}

/* Op `index` for some rows only. */
static void emit_rows(cutter *c, int index, int at, row_run rows, const hd_tensor *inputs,
                      const hd_tensor *out)
{
    const hd_op *op = &op_at(c, index)->op;
    hd_tensor in[HD_OP_INPUTS];
    for (int k = 0; k < op->inputs; k++) {
        in[k] = inputs ? inputs[k] : (hd_tensor){0};
        if (in[k].id) continue;
        in[k] = op->kind->by_rows >> k & 1
                    ? hdi_tensor_rows(c->program, op->in[k], rows.first, rows.count)
                    : op->in[k];
    }
    emit(c, index, at, op->kind, op->options, op->inputs, in, op->outputs, out);
}

/* The ranks' rows, and the pieces that they travel in. */
typedef struct ranks {
    const hdi_sequence_options *o;
    int source; /* the op that is cut */
    int64_t base, columns;
    int pieces; /* of each rank's rows */
} ranks;

static row_run rows_of(const ranks *r, int rank)
{
    row_run out = {r->base, hdi_sequence_rows_of(r->o, rank)};
    for (int i = 0; i < rank; i++)
        out.first += hdi_sequence_rows_of(r->o, i);
    return out;
}

static row_run piece_of(const ranks *r, row_run rows, int piece)
{
    const int64_t begin = rows.count * piece / r->pieces;
    return (row_run){rows.first + begin, rows.count * (piece + 1) / r->pieces - begin};
}

/* The rank `step` places on, or before. */
static int peer(const ranks *r, int step)
{
    return (r->o->rank + r->o->ranks + step) % r->o->ranks;
}

static void emit_step(cutter *c, const ranks *r, int at, int step, int piece, hd_tensor in,
                      hd_tensor out)
{
    hdi_tensor_step options;
    memset(&options, 0, sizeof options);
    options.collective = r->o->collective;
    options.collective.elements = 0;
    for (int i = 0; i < r->o->ranks; i++)
        options.collective.elements += piece_of(r, rows_of(r, i), piece).count * r->columns;
    options.to = r->o->base + peer(r, step);
    options.from = r->o->base + peer(r, -step);
    emit(c, r->source, at, &hdi_op_tensor_step, &options, 1, &in, 1, &out);
}

/* The mean over the ranks of what a product of all their rows takes, by the whole of its weights: ranks
 * have unequal shares of those, but must come to the same pieces. */
static double product_seconds(const cutter *c, const hdi_sequence_options *o, int index)
{
    const hdi_op *op = op_at(c, index);
    const int64_t rows = o->sequences * o->tokens;
    double weights = 0;
    if (c->dead[index] || !op->op.in_info[0] || op->op.in_info[0]->dims[0] < rows) return 0;
    for (int k = 0; k < op->op.inputs + op->op.outputs; k++) {
        const hd_tensor x = k < op->op.inputs ? op->op.in[k] : op->op.out[k - op->op.inputs];
        const hdi_tensor *tensor = hdi_tensor_of(c->program, x);
        if (tensor && tensor->use >= 0 && tensor->info.rank == 2)
            weights += (double)hdi_shard_whole(&c->program->uses[tensor->use].options);
    }
    return 2 * (double)rows * weights / o->ranks / c->rates.compute;
}

static double seconds_between(const cutter *c, const hdi_sequence_options *o, int from, int to)
{
    double seconds = 0;
    for (int i = from + 1; i < to; i++)
        if (op_at(c, i)->phase == op_at(c, from)->phase) seconds += product_seconds(c, o, i);
    return seconds;
}

/* Into how many pieces each other rank's rows are cut, given the product's seconds and those of products
 * that are computed beside what travels anyway; none: all ranks' rows stay together. */
static int choose(const cutter *c, const ranks *r, double product, double beside, bool gathers)
{
    const hdi_sequence_options *o = r->o;
    const hd_dtype dtype = op_at(c, r->source)->op.in_info[0]->dtype;
    const double bytes = (double)(o->tokens * r->columns) * (double)hd_dtype_bytes(dtype);
    const hdi_piece_timing timing = {.product = product,
                                     .sent = bytes * (o->ranks - 1) / o->ranks / c->rates.peer,
                                     .beside = beside,
                                     .ranks = o->ranks};
    const int64_t most = 1 + o->tokens / o->ranks; /* a row for each piece */
    int groups = c->program->tensor_groups;
    if (groups == 0) groups = hdi_piece_groups(&timing, gathers);
    if (groups > most) groups = (int)most;
    if (c->program->tensor_pieces < groups) c->program->tensor_pieces = groups;
    return groups - 1;
}

/* The gather's input is made where the gathered rows are, if only the gather reads it. */
static bool make_in_place(cutter *c, const ranks *r, hd_tensor x, hd_tensor whole)
{
    const row_run own = rows_of(r, r->o->rank);
    hdi_tensor *tensor = hdi_tensor_of(c->program, x);
    if (!is_plain(c, x, own.count) || !has_one_reader(c, x) || c->dead[tensor->producer] ||
        op_at(c, tensor->producer)->phase != op_at(c, r->source)->phase)
        return false;
    tensor->within = whole;
    tensor->within_first = own.first * r->columns;
    return true;
}

/* A gather, maybe an op that joins its rows to others, and the first product of all of them. */
typedef struct entrance {
    ranks r;
    int joins, product; /* joins: -1 where none is */
    hd_tensor own, whole;
} entrance;

static bool find_entrance(const cutter *c, int index, entrance *out)
{
    const hd_op *gather = &op_at(c, index)->op;
    hd_tensor whole = gather->out[0];
    *out = (entrance){.joins = -1, .own = gather->in[0]};
    out->r = (ranks){.o = gather->options, .source = index, .columns = gather->in_info[0]->dims[1]};
    if (out->r.o->sequences != 1) return false;
    int next = reader(c, whole, index);
    const int64_t *joined = next < 0 ? NULL : hdi_joined_rows(&op_at(c, next)->op);
    if (joined && has_one_reader(c, whole)) {
        const hd_op *join = &op_at(c, next)->op;
        for (int i = 0; join->in[i].id != whole.id; i++)
            out->r.base += joined[i];
        whole = join->out[0];
        out->joins = next;
        next = reader(c, whole, next);
    }
    if (next < 0) return false;
    const int64_t rows = hd_tensor_get(c->program, whole)->dims[0];
    const hd_op *product = &op_at(c, next)->op;
    bool ok = is_plain(c, whole, rows) && is_by_rows(c, next, rows) &&
              op_at(c, next)->phase == op_at(c, index)->phase;
    for (int k = 0; k < product->inputs; k++)
        ok = ok && (product->in[k].id != whole.id || (product->kind->by_rows >> k & 1));
    out->product = next;
    out->whole = whole;
    return ok;
}

static void emit_product(cutter *c, const entrance *e, row_run rows)
{
    const hd_op *op = &op_at(c, e->product)->op;
    hd_tensor out[HD_OP_OUTPUTS];
    for (int k = 0; k < op->outputs; k++)
        out[k] = part_of(c, op->out[k], rows);
    emit_rows(c, e->product, e->product, rows, NULL, out);
}

static void emit_place(cutter *c, const entrance *e, hd_tensor from, row_run rows)
{
    const hd_tensor to = part_of(c, e->whole, rows);
    emit(c, e->r.source, e->joins < 0 ? e->r.source : e->joins, &hdi_op_tensor_place, NULL, 1,
         &from, 1, &to);
}

/* Own rows, and those that all ranks have, need no ranks: they go to their places and are multiplied at
 * once, runs that touch as one. */
static void enter_at_once(cutter *c, const entrance *e, bool in_place)
{
    const row_run own = rows_of(&e->r, e->r.o->rank);
    const hd_op *join = e->joins < 0 ? NULL : &op_at(c, e->joins)->op;
    const hd_op *gather = &op_at(c, e->r.source)->op;
    row_run run = {0};
    int64_t first = 0;
    for (int i = 0; i < (join ? join->inputs : 1); i++) {
        const bool is_own = !join || join->in[i].id == gather->out[0].id;
        const int64_t count = hd_tensor_get(c->program, join ? join->in[i] : e->own)->dims[0];
        const row_run rows = is_own ? own : (row_run){first, count};
        first += count;
        if (!is_own || !in_place) emit_place(c, e, is_own ? e->own : join->in[i], rows);
        if (run.count && run.first + run.count != rows.first) {
            emit_product(c, e, run);
            run.count = 0;
        }
        run = (row_run){run.count ? run.first : rows.first, run.count + rows.count};
    }
    emit_product(c, e, run);
}

static void cut_gather(cutter *c, int index)
{
    entrance e;
    if (!find_entrance(c, index, &e)) return;
    e.r.pieces = choose(c, &e.r, product_seconds(c, e.r.o, e.product),
                        seconds_between(c, e.r.o, index, e.product), true);
    if (e.r.pieces == 0) return;
    const bool in_place = e.joins < 0 && make_in_place(c, &e.r, e.own, e.whole);
    const row_run own = {0, hdi_sequence_rows_of(e.r.o, e.r.o->rank)};
    for (int step = 1; step < e.r.o->ranks; step++)
        for (int j = 0; j < e.r.pieces; j++) {
            const row_run sent = piece_of(&e.r, own, j);
            const row_run come = piece_of(&e.r, rows_of(&e.r, peer(&e.r, -step)), j);
            emit_step(c, &e.r, index, step, j,
                      hdi_tensor_rows(c->program, e.own, sent.first, sent.count),
                      part_of(c, e.whole, come));
        }
    enter_at_once(c, &e, in_place);
    for (int step = 1; step < e.r.o->ranks; step++)
        for (int j = 0; j < e.r.pieces; j++)
            emit_product(c, &e, piece_of(&e.r, rows_of(&e.r, peer(&e.r, -step)), j));
    c->dead[index] = c->dead[e.product] = true;
    if (e.joins >= 0) c->dead[e.joins] = true;
}

/* Products, the last of which makes all rows; maybe an op that splits these; the exchange of them, and the
 * sum of what it brings. */
typedef struct way_out {
    ranks r;
    int chain[MOST_CHAIN], links; /* the last product first */
    int splits, sum;              /* splits: -1 where none does */
    hd_tensor received;
} way_out;

/* Whether op `index` makes what the product before nobody but these products reads. */
static bool is_link(const cutter *c, const way_out *w, int index, int64_t rows)
{
    const hd_op *op = &op_at(c, index)->op;
    if (!is_by_rows(c, index, rows) || op->outputs != 1 || !has_one_reader(c, op->out[0]))
        return false;
    const int last = reader(c, op->out[0], index);
    if (op_at(c, last)->phase != op_at(c, index)->phase) return false;
    for (int i = 0; i < w->links; i++)
        if (w->chain[i] == last) {
            const hd_op *next = &op_at(c, last)->op;
            bool ok = true;
            for (int k = 0; k < next->inputs; k++)
                ok = ok && (next->in[k].id != op->out[0].id || (next->kind->by_rows >> k & 1));
            return ok;
        }
    return false;
}

static bool find_way_out(const cutter *c, int index, way_out *out)
{
    const hd_op *exchange = &op_at(c, index)->op;
    hd_tensor x = exchange->in[0];
    *out = (way_out){.splits = -1, .received = exchange->out[0]};
    out->r =
        (ranks){.o = exchange->options, .source = index, .columns = exchange->in_info[0]->dims[1]};
    out->sum = reader(c, out->received, index);
    if (out->r.o->sequences != 1 || out->sum < 0 || !has_one_reader(c, out->received) ||
        op_at(c, out->sum)->op.kind != &hdi_op_tensor_sum || reader(c, x, 0) != index ||
        reader(c, x, index + 1) != out->sum || reader(c, x, out->sum + 1) >= 0)
        return false;
    int maker = hdi_tensor_of(c->program, x)->producer;
    const int64_t *parts = maker < 0 ? NULL : hdi_split_rows(&op_at(c, maker)->op);
    if (parts) {
        const hd_op *split = &op_at(c, maker)->op;
        for (int i = 0; split->out[i].id != x.id; i++)
            out->r.base += parts[i];
        x = split->in[0];
        out->splits = maker;
        maker = has_one_reader(c, x) ? hdi_tensor_of(c->program, x)->producer : -1;
    }
    const int64_t rows = hd_tensor_get(c->program, x)->dims[0];
    if (maker < 0 || !is_by_rows(c, maker, rows) || op_at(c, maker)->op.outputs != 1 ||
        op_at(c, maker)->phase != op_at(c, index)->phase)
        return false;
    out->chain[out->links++] = maker;
    for (int i = maker - 1; i >= 0 && out->links < MOST_CHAIN && is_link(c, out, i, rows); i--)
        out->chain[out->links++] = i;
    return true;
}

/* The chain for some rows, which become `out`. */
static void emit_chain(cutter *c, const way_out *w, row_run rows, hd_tensor out)
{
    hd_tensor made[MOST_CHAIN];
    for (int i = w->links - 1; i >= 0; i--) {
        const hd_op *op = &op_at(c, w->chain[i])->op;
        const int64_t dims[] = {rows.count, op->out_info[0]->dims[1]};
        hd_tensor in[HD_OP_INPUTS] = {{0}};
        for (int k = 0; k < op->inputs; k++)
            for (int j = i + 1; j < w->links; j++)
                if (op_at(c, w->chain[j])->op.out[0].id == op->in[k].id) in[k] = made[j];
        made[i] = i == 0 ? out
                         : hdi_tensor_add(c->program, NULL, op->out_info[0]->dtype,
                                          HD_ROLE_ACTIVATION, 2, dims);
        emit_rows(c, w->chain[i], w->chain[0], rows, in, &made[i]);
    }
}

static void cut_exchange(cutter *c, int index)
{
    way_out w;
    if (!find_way_out(c, index, &w)) return;
    double product = 0;
    for (int i = 0; i < w.links; i++)
        product += product_seconds(c, w.r.o, w.chain[i]);
    w.r.pieces = choose(c, &w.r, product, seconds_between(c, w.r.o, index, w.sum), false);
    if (w.r.pieces == 0) return;
    const hd_tensor_info *info = hd_tensor_get(c->program, w.received);
    const int rank = w.r.o->rank;
    const int64_t own = hdi_sequence_rows_of(w.r.o, rank);
    for (int step = 1; step < w.r.o->ranks; step++)
        for (int j = 0; j < w.r.pieces; j++) {
            const row_run sent = piece_of(&w.r, rows_of(&w.r, peer(&w.r, step)), j);
            const row_run from = {peer(&w.r, -step) * own, own};
            const int64_t dims[] = {sent.count, w.r.columns};
            const hd_tensor piece =
                hdi_tensor_add(c->program, NULL, info->dtype, HD_ROLE_ACTIVATION, 2, dims);
            emit_chain(c, &w, sent, piece);
            emit_step(c, &w.r, w.chain[0], step, j, piece,
                      part_of(c, w.received, piece_of(&w.r, from, j)));
        }
    emit_chain(c, &w, rows_of(&w.r, rank), part_of(c, w.received, (row_run){rank * own, own}));
    const hd_op *split = w.splits < 0 ? NULL : &op_at(c, w.splits)->op;
    int64_t first = 0;
    for (int i = 0; split && i < split->outputs; i++) {
        const row_run rows = {first, split->out_info[i]->dims[0]};
        if (first != w.r.base) emit_chain(c, &w, rows, split->out[i]);
        first += rows.count;
    }
    c->program->ops[w.sum]->op.inputs = 1; /* what was sent took the gradient */
    c->dead[index] = true;
    for (int i = 0; i < w.links; i++)
        c->dead[w.chain[i]] = true;
    if (w.splits >= 0) c->dead[w.splits] = true;
}

/* The added ops take their places; the dead ones leave. */
static void settle(cutter *c)
{
    hd_program *p = c->program;
    hdi_op **dead = hdi_alloc_array((size_t)c->original + 1, sizeof(hdi_op *));
    int count = 0, kept = 0;
    if (!dead) {
        hd_program_fail(p, HD_ERROR_MEMORY, "out of host memory");
        return;
    }
    for (int i = 0; i < c->original; i++)
        if (c->dead[i]) dead[count++] = p->ops[i];
    hdi_program_insert(p, c->original, c->before);
    for (int i = 0, next = 0; i < p->op_count; i++) {
        if (next < count && p->ops[i] == dead[next])
            next++;
        else
            p->ops[kept++] = p->ops[i];
    }
    p->op_count = kept;
    for (int i = 0; i < count; i++) {
        hdi_free(dead[i]->options);
        hdi_free(dead[i]);
    }
    hdi_free(dead);
    hdi_program_index(p);
}

void hdi_program_cut(hd_program *program)
{
    cutter c = {.program = program,
                .rates = hdi_rates_filled(&program->rates),
                .original = program->op_count};
    if (program->tensor_groups == 1 || hdi_tensor_ranks(program) == 1) return;
    if (c.rates.peer <= 0) c.rates.peer = c.rates.link;
    c.dead = hdi_alloc_array((size_t)program->op_count + 1, sizeof *c.dead);
    if (!c.dead) {
        hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
        return;
    }
    const hdi_phase phase = program->phase;
    const int scope = program->scope_open;
    for (int i = 0; i < c.original; i++)
        if (op_at(&c, i)->op.kind == &hdi_op_tensor_gather) cut_gather(&c, i);
    for (int i = 0; i < c.original; i++)
        if (op_at(&c, i)->op.kind == &hdi_op_tensor_exchange) cut_exchange(&c, i);
    program->phase = phase;
    program->scope_open = scope;
    program->appending_recomputed = false;
    if (program->status == HD_OK && program->op_count > c.original) settle(&c);
    hdi_free(c.before);
    hdi_free(c.dead);
}
