/* The pass that cuts products on the tensor axis: what both sides of layers share, and its end. */
#include "ops/tensor_pieces.h"

#include "core/error.h"
#include "core/memory.h"
#include "ops/ops.h"
#include "program/plan.h"
#include "program/shard.h"

#include <string.h>

int hdi_cut_reader(const hdi_cutter *c, hd_tensor x, int from)
{
    for (int i = from; i < c->original; i++)
        for (int k = 0; k < hdi_cut_op(c, i)->op.inputs && !c->dead[i]; k++)
            if (hdi_cut_op(c, i)->op.in[k].id == x.id) return i;
    return -1;
}

bool hdi_cut_has_one_reader(const hdi_cutter *c, hd_tensor x)
{
    const int first = hdi_cut_reader(c, x, 0);
    return first >= 0 && hdi_cut_reader(c, x, first + 1) < 0;
}

bool hdi_cut_is_plain(const hd_program *program, hd_tensor x, int64_t rows)
{
    const hdi_tensor *tensor = hdi_tensor_of(program, x);
    return tensor && tensor->info.role == HD_ROLE_ACTIVATION && tensor->info.rank == 2 &&
           tensor->info.dims[0] == rows && !tensor->keep && !tensor->host && !tensor->within.id &&
           !tensor->holds && tensor->producer >= 0;
}

/* What a product in pieces costs more for each: a launch, and tiles that fill half a device at its end (132
 * of 128 x 256 columns of 3072 on an H100). */
#define TILES_FLOPS 1.3e10

/* Options of an op for some rows, in a caller's buffer; NULL if the op cannot make these. */
enum { OPTIONS_BYTES = 512 };
static const void *options_of(const hd_op *op, hdi_row_run rows, char buffer[OPTIONS_BYTES])
{
    if (op->kind->options_bytes > OPTIONS_BYTES) return NULL;
    memset(buffer, 0, OPTIONS_BYTES);
    if (op->options) memcpy(buffer, op->options, op->kind->options_bytes);
    return op->kind->cut && !op->kind->cut(op, rows.first, rows.count, buffer) ? NULL : buffer;
}

bool hdi_cut_is_by_rows(const hdi_cutter *c, int index, int64_t rows)
{
    const hd_op *op = &hdi_cut_op(c, index)->op;
    char options[OPTIONS_BYTES];
    if (c->dead[index] || (!op->kind->by_rows && !op->kind->cut) || op->outputs < 1) return false;
    for (int k = 0; k < op->inputs; k++) {
        const hd_tensor_info *x = op->in_info[k];
        if ((op->kind->by_rows >> k & 1) && (!x || x->rank != 2 || x->dims[0] != rows))
            return false;
    }
    for (int k = 0; k < op->outputs; k++)
        if (!hdi_cut_is_plain(c->program, op->out[k], rows)) return false;
    return options_of(op, (hdi_row_run){0, rows}, options);
}

void hdi_cut_emit(hdi_cutter *c, int source, int at, const hd_op_kind *kind, const void *options,
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
    p->phase = hdi_cut_op(c, source)->phase;
    p->scope_open = hdi_cut_op(c, source)->scope;
    p->appending_recomputed = hdi_cut_op(c, source)->recomputed;
    hdi_op_append(p, kind, options, inputs, in, outputs, out);
}

hd_tensor hdi_cut_part(hdi_cutter *c, hd_tensor whole, hdi_row_run rows)
{
    hdi_tensor *tensor = hdi_tensor_of(c->program, whole);
    if (tensor) tensor->holds = true;
    return hdi_tensor_rows(c->program, whole, rows.first, rows.count);
}

void hdi_cut_emit_rows(hdi_cutter *c, int index, int at, hdi_row_run rows, const hd_tensor *in,
                       const hd_tensor *out)
{
    const hd_op *op = &hdi_cut_op(c, index)->op;
    char options[OPTIONS_BYTES];
    hd_tensor from[HD_OP_INPUTS];
    for (int k = 0; k < op->inputs; k++) {
        from[k] = in ? in[k] : (hd_tensor){0};
        if (from[k].id) continue;
        from[k] = op->kind->by_rows >> k & 1
                      ? hdi_tensor_rows(c->program, op->in[k], rows.first, rows.count)
                      : op->in[k];
    }
    hdi_cut_emit(c, index, at, op->kind, options_of(op, rows, options), op->inputs, from,
                 op->outputs, out);
}

hdi_row_run hdi_cut_rows(const hdi_cut_ranks *r, int rank)
{
    hdi_row_run out = {r->before, hdi_sequence_rows_of(r->o, rank)};
    for (int i = 0; i < rank; i++)
        out.first += hdi_sequence_rows_of(r->o, i);
    return out;
}

hdi_row_run hdi_cut_piece(const hdi_cut_ranks *r, hdi_row_run rows, int piece)
{
    const int64_t begin = rows.count * piece / r->pieces;
    return (hdi_row_run){rows.first + begin, rows.count * (piece + 1) / r->pieces - begin};
}

hdi_row_run hdi_cut_extend(const hdi_cut_ranks *r, hdi_row_run rows)
{
    int64_t end = rows.first + rows.count;
    if (rows.first == r->before) rows.first = 0;
    if (end == r->before + r->o->sequences * r->o->tokens) end = r->rows;
    return (hdi_row_run){rows.first, end - rows.first};
}

int hdi_cut_peer(const hdi_cut_ranks *r, int step)
{
    return (r->o->rank + r->o->ranks + step) % r->o->ranks;
}

void hdi_cut_emit_step(hdi_cutter *c, const hdi_cut_ranks *r, int at, int step, int piece,
                       hd_tensor in, hd_tensor out)
{
    hdi_tensor_step options;
    memset(&options, 0, sizeof options);
    options.collective = r->o->collective;
    options.collective.elements = 0;
    for (int i = 0; i < r->o->ranks; i++)
        options.collective.elements +=
            hdi_cut_piece(r, hdi_cut_rows(r, i), piece).count * r->columns;
    options.to = r->o->base + hdi_cut_peer(r, step);
    options.from = r->o->base + hdi_cut_peer(r, -step);
    hdi_cut_emit(c, r->source, at, &hdi_op_tensor_step, &options, 1, &in, 1, &out);
}

double hdi_cut_seconds(const hdi_cutter *c, const hdi_cut_ranks *r, int index)
{
    const hd_op *op = &hdi_cut_op(c, index)->op;
    double weights = 0;
    if (c->dead[index] || !op->in_info[0] || op->in_info[0]->dims[0] < r->rows) return 0;
    for (int k = 0; k < op->inputs + op->outputs; k++) {
        const hd_tensor x = k < op->inputs ? op->in[k] : op->out[k - op->inputs];
        const hdi_tensor *tensor = hdi_tensor_of(c->program, x);
        if (tensor && tensor->use >= 0 && tensor->info.rank == 2)
            weights += (double)hdi_shard_whole(&c->program->uses[tensor->use].options);
    }
    return 2 * (double)r->rows * weights / r->o->ranks / c->rates.compute;
}

double hdi_cut_seconds_between(const hdi_cutter *c, const hdi_cut_ranks *r, int from, int to)
{
    double seconds = 0;
    for (int i = from + 1; i < to; i++)
        if (hdi_cut_op(c, i)->phase == hdi_cut_op(c, from)->phase)
            seconds += hdi_cut_seconds(c, r, i);
    return seconds;
}

hdi_piece_timing hdi_cut_timing(const hdi_cutter *c, const hdi_cut_ranks *r, double product,
                                double beside)
{
    const hd_dtype dtype = hdi_cut_op(c, r->source)->op.in_info[0]->dtype;
    const double bytes =
        (double)(r->o->sequences * r->o->tokens * r->columns) * (double)hd_dtype_bytes(dtype);
    const double peers = r->o->ranks - 1;
    return (hdi_piece_timing){.product = product,
                              .sent = bytes * peers / r->o->ranks / c->rates.peer,
                              .beside = beside,
                              .each = HDI_LAUNCH_SECONDS + TILES_FLOPS / c->rates.compute,
                              .ranks = r->o->ranks};
}

int hdi_cut_choose(const hdi_cutter *c, const hdi_cut_ranks *r, const hdi_piece_timing *timing,
                   bool gathers)
{
    const int64_t most = 1 + r->o->tokens / r->o->ranks; /* a row for each piece */
    int groups = c->program->tensor_groups;
    if (groups == 0) groups = hdi_piece_groups(timing, gathers);
    if (groups > HDI_TENSOR_GROUPS) groups = HDI_TENSOR_GROUPS;
    if (groups > most) groups = (int)most;
    if (c->program->tensor_pieces < groups) c->program->tensor_pieces = groups;
    return groups - 1;
}

/* What lay within tensor `id` lies within what that now lies in. */
static void put_within(hd_program *p, hd_tensor x, hd_tensor whole, int64_t first)
{
    for (int i = 1; i < p->tensor_count; i++) {
        hdi_tensor *tensor = p->tensors[i];
        if (i != x.id && tensor->within.id != x.id) continue;
        tensor->within = whole;
        tensor->within_first += first;
    }
}

/* Rows are made where they are joined, if all parts can be. */
static bool join_in_place(hdi_cutter *c, int index)
{
    const hd_op *op = &hdi_cut_op(c, index)->op;
    const int64_t *rows = hdi_joined_rows(op);
    if (!rows || !hdi_cut_is_plain(c->program, op->out[0], op->out_info[0]->dims[0])) return false;
    for (int i = 0; i < op->inputs; i++) {
        if (!hdi_cut_is_plain(c->program, op->in[i], rows[i]) ||
            !hdi_cut_has_one_reader(c, op->in[i]))
            return false;
        const int maker = hdi_tensor_of(c->program, op->in[i])->producer;
        if (hdi_cut_op(c, maker)->phase != hdi_cut_op(c, index)->phase) return false;
    }
    for (int64_t i = 0, first = 0; i < op->inputs; first += op->in_info[i++]->elements)
        put_within(c->program, op->in[i], op->out[0], first);
    hdi_tensor_of(c->program, op->out[0])->holds = true;
    return true;
}

/* Rows that are split stay where they are. */
static bool split_in_place(hdi_cutter *c, int index)
{
    const hd_op *op = &hdi_cut_op(c, index)->op;
    const int64_t *rows = hdi_split_rows(op);
    const hdi_tensor *from = hdi_tensor_of(c->program, op->in[0]);
    if (!rows || from->flat || from->use >= 0 || from->host) return false;
    for (int i = 0; i < op->outputs; i++)
        if (!hdi_cut_is_plain(c->program, op->out[i], rows[i])) return false;
    const hd_tensor whole = from->within.id ? from->within : op->in[0];
    for (int64_t i = 0, first = from->within.id ? from->within_first : 0; i < op->outputs;
         first += op->out_info[i++]->elements)
        put_within(c->program, op->out[i], whole, first);
    return true;
}

/* The added ops take their places; the dead ones leave. */
static void settle(hdi_cutter *c)
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
    if (p->op_count > c->original) hdi_program_insert(p, c->original, c->before);
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

static void cut_products(hdi_cutter *c)
{
    for (int i = 0; i < c->original; i++)
        if (hdi_cut_op(c, i)->op.kind == &hdi_op_tensor_gather) hdi_cut_gather(c, i);
    for (int i = 0; i < c->original; i++)
        if (hdi_cut_op(c, i)->op.kind == &hdi_op_tensor_exchange) hdi_cut_exchange(c, i);
}

static void leave_rows(hdi_cutter *c)
{
    for (int i = 0; i < c->original; i++)
        c->dead[i] = join_in_place(c, i) || split_in_place(c, i);
}

static void pass(hd_program *program, void (*mark)(hdi_cutter *c))
{
    hdi_cutter c = {.program = program,
                    .rates = hdi_rates_filled(&program->rates),
                    .original = program->op_count};
    if (program->status != HD_OK) return;
    if (c.rates.peer <= 0) c.rates.peer = c.rates.link;
    c.dead = hdi_alloc_array((size_t)program->op_count + 1, sizeof *c.dead);
    if (c.dead)
        mark(&c);
    else
        hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    if (program->status == HD_OK) settle(&c);
    hdi_free(c.before);
    hdi_free(c.gathered);
    hdi_free(c.dead);
}

void hdi_program_cut(hd_program *program)
{
    if (program->tensor_groups == 1 || hdi_tensor_ranks(program) == 1) return;
    const hdi_phase phase = program->phase;
    const int scope = program->scope_open;
    pass(program, cut_products);
    pass(program, leave_rows);
    program->phase = phase;
    program->scope_open = scope;
    program->appending_recomputed = false;
}
