/* Saved activations leave the device, or shrink, between forward and backward. */
#include "parallel/activations.h"

#include "core/error.h"
#include "core/memory.h"
#include "ops/host_copy.h"
#include "ops/quantize.h"
#include "program/layout.h"

#include <stdlib.h>

enum { LEAST_SHARE = 16 };

/* A tensor that the forward makes in a block and the backward reads. */
typedef struct saved {
    int id, block;
    int made, last_forward, first_backward; /* ops */
} saved;

typedef struct block {
    int scope, end;     /* the last op of its forward */
    int first_backward; /* the first op that reads what it saved */
    size_t largest;
    bool moves;
} block;

typedef struct mover {
    hd_program *program;
    const hdi_activations_options *options;
    block *blocks; /* in the order of the forward */
    int block_count, block_capacity;
    saved *items;
    int item_count, item_capacity;
    int original_ops, first_backward;
    int *before; /* [appended op] the original op that it goes before */
    int before_capacity;
} mover;

static bool failed(const mover *m)
{
    return m->program->status != HD_OK;
}

static void out_of_memory(mover *m)
{
    hd_program_fail(m->program, HD_ERROR_MEMORY, "out of host memory");
}

static bool is_leaf(const hd_program *program, int scope)
{
    for (int i = scope + 1; i < program->scope_count; i++)
        if (program->scopes[i].parent == scope) return false;
    return scope > 0;
}

static void find_blocks(mover *m)
{
    const hd_program *program = m->program;
    m->first_backward = m->original_ops;
    for (int i = m->original_ops - 1; i >= 0; i--)
        if (program->ops[i]->phase == HDI_PHASE_BACKWARD) m->first_backward = i;
    for (int i = 0; i < m->original_ops; i++) {
        const hdi_op *op = program->ops[i];
        if (op->phase != HDI_PHASE_FORWARD || !is_leaf(program, op->scope)) continue;
        block *known = NULL;
        for (int b = 0; b < m->block_count; b++)
            if (m->blocks[b].scope == op->scope) known = &m->blocks[b];
        if (!known) {
            if (!HDI_GROW(m->blocks, m->block_count, m->block_capacity)) {
                out_of_memory(m);
                return;
            }
            known = &m->blocks[m->block_count++];
            *known = (block){.scope = op->scope, .first_backward = m->original_ops};
        }
        known->end = i;
    }
}

/* Whether an op's input is a tensor or rows of it. */
static bool reads(const hd_program *program, hd_tensor in, int id)
{
    return in.id && (in.id == id || program->tensors[in.id]->within.id == id);
}

static void find_saved(mover *m)
{
    const hd_program *program = m->program;
    for (int id = 1; id < program->tensor_count && !failed(m); id++) {
        const hdi_tensor *tensor = program->tensors[id];
        if (tensor->info.role != HD_ROLE_ACTIVATION || tensor->keep || tensor->producer < 0)
            continue;
        const hdi_op *producer = program->ops[tensor->producer];
        if (producer->phase != HDI_PHASE_FORWARD) continue;
        saved item = {.id = id,
                      .block = -1,
                      .made = tensor->producer,
                      .last_forward = tensor->producer,
                      .first_backward = m->original_ops};
        for (int b = 0; b < m->block_count; b++)
            if (m->blocks[b].scope == producer->scope) item.block = b;
        for (int i = 0; i < m->original_ops; i++)
            for (int k = 0; k < program->ops[i]->op.inputs; k++) {
                if (!reads(program, program->ops[i]->op.in[k], id)) continue;
                if (program->ops[i]->phase == HDI_PHASE_FORWARD)
                    item.last_forward = i;
                else if (i < item.first_backward)
                    item.first_backward = i;
            }
        if (item.block < 0 || item.first_backward == m->original_ops) continue;
        if (!HDI_GROW(m->items, m->item_count, m->item_capacity)) {
            out_of_memory(m);
            return;
        }
        m->items[m->item_count++] = item;
        block *of = &m->blocks[item.block];
        if (item.first_backward < of->first_backward) of->first_backward = item.first_backward;
        if (tensor->info.bytes > of->largest) of->largest = tensor->info.bytes;
    }
}

/* Append an op that will stand before original op `before`, in its phase. */
static void append(mover *m, const hd_op_kind *kind, hdi_phase phase, int scope, int before,
                   int inputs, const hd_tensor *in, int outputs, const hd_tensor *out)
{
    hd_program *program = m->program;
    const int index = program->op_count - m->original_ops;
    if (index == m->before_capacity) {
        out_of_memory(m);
        return;
    }
    hdi_op *op = hdi_op_append(program, kind, NULL, inputs, in, outputs, out);
    if (!op) return;
    op->phase = phase;
    op->scope = scope;
    m->before[index] = before;
}

/* Ops of the backward read `now` in place of `was`. Rows of it that nothing makes are read by the backward
 * alone. */
static void replace(mover *m, hd_tensor was, hd_tensor now)
{
    for (int id = 1; id < m->program->tensor_count; id++) {
        hdi_tensor *tensor = m->program->tensors[id];
        if (tensor->within.id == was.id && tensor->producer < 0) tensor->within = now;
    }
    for (int i = m->first_backward; i < m->original_ops; i++) {
        hd_op *op = &m->program->ops[i]->op;
        for (int k = 0; k < op->inputs; k++) {
            if (op->in[k].id != was.id) continue;
            op->in[k] = now;
            op->in_info[k] = hd_tensor_get(m->program, now);
        }
    }
}

static hd_tensor like(mover *m, hd_tensor x)
{
    const hd_tensor_info *info = hd_tensor_get(m->program, x);
    return hdi_tensor_add(m->program, info->name, info->dtype, HD_ROLE_ACTIVATION, info->rank,
                          info->dims);
}

/* Out behind the op that made it. Its bytes are free when the block behind has been computed, so that
 * the copy has that time; in again when the backward of the block behind begins. */
static void move_to_host(mover *m, const saved *item)
{
    hd_program *program = m->program;
    const hd_tensor x = {item->id}, host = like(m, x), back = like(m, x);
    if (failed(m)) return;
    hdi_tensor_of(program, host)->host = true;
    const int scope = m->blocks[item->block].scope;
    int free_at = m->first_backward, load_at = m->first_backward;
    if (item->block + 1 < m->block_count) {
        const block *behind = &m->blocks[item->block + 1];
        free_at = 1 + (behind->end > item->last_forward ? behind->end : item->last_forward);
        if (behind->first_backward < m->original_ops) load_at = behind->first_backward;
    }
    if (item->first_backward < load_at) load_at = item->first_backward;
    append(m, &hdi_op_store, HDI_PHASE_FORWARD, scope, item->made + 1, 1, &x, 1, &host);
    append(m, &hdi_op_hold, HDI_PHASE_FORWARD, scope, free_at, 1, &x, 0, NULL);
    append(m, &hdi_op_load, HDI_PHASE_BACKWARD, scope, load_at, 1, &host, 1, &back);
    replace(m, x, back);
}

static void round_to_int8(mover *m, const saved *item)
{
    hd_program *program = m->program;
    const hd_tensor x = {item->id}, back = like(m, x);
    const hd_tensor_info *info = hd_tensor_get(program, x);
    const int64_t elements = info->elements, scales = hdi_quantize_scales(elements);
    const int scope = m->blocks[item->block].scope;
    hd_tensor kept[2];
    kept[0] = hdi_tensor_add(program, info->name, HD_DTYPE_I8, HD_ROLE_ACTIVATION, 1, &elements);
    kept[1] = hdi_tensor_add(program, info->name, HD_DTYPE_F32, HD_ROLE_ACTIVATION, 1, &scales);
    append(m, &hdi_op_quantize, HDI_PHASE_FORWARD, scope, item->made + 1, 1, &x, 2, kept);
    append(m, &hdi_op_dequantize, HDI_PHASE_BACKWARD, scope, item->first_backward, 2, kept, 1,
           &back);
    replace(m, x, back);
}

static bool may_move(const mover *m, int b)
{
    const hdi_activations_options *o = m->options;
    if (o->keep_last && b == m->block_count - 1) return false;
    return !o->again_only || m->program->scopes[m->blocks[b].scope].recompute;
}

/* Evenly spread, so that copies have the blocks between for their time; the first, whose activations wait
 * longest, before the last. */
static void choose_blocks(mover *m)
{
    int count = 0;
    for (int b = 0; b < m->block_count; b++)
        count += may_move(m, b);
    const int chosen = m->options->blocks < count ? m->options->blocks : count;
    for (int b = 0, left = count; b < m->block_count; b++)
        m->blocks[b].moves = may_move(m, b) && hdi_block_is_host(--left, chosen, count);
}

static bool moves(const mover *m, const saved *item)
{
    const hdi_saved_as how = m->options->how;
    const hd_tensor_info *info = &m->program->tensors[item->id]->info;
    const bool real =
        info->dtype == HD_DTYPE_F32 || info->dtype == HD_DTYPE_BF16 || info->dtype == HD_DTYPE_F16;
    if (how == HDI_SAVED_AS_INT8 && !real) return false;
    return m->blocks[item->block].moves &&
           info->bytes >= m->blocks[item->block].largest / LEAST_SHARE;
}

void hdi_activations_move(hd_program *program, const hdi_activations_options *options)
{
    if (program->status != HD_OK) return;
    mover m = {.program = program, .options = options, .original_ops = program->op_count};
    find_blocks(&m);
    choose_blocks(&m);
    find_saved(&m);
    m.before_capacity = 3 * m.item_count;
    m.before = hdi_alloc_array((size_t)m.before_capacity + 1, sizeof *m.before);
    if (!m.before) out_of_memory(&m);
    for (int i = 0; i < m.item_count && !failed(&m); i++) {
        if (!moves(&m, &m.items[i])) continue;
        if (options->how == HDI_SAVED_ON_HOST)
            move_to_host(&m, &m.items[i]);
        else
            round_to_int8(&m, &m.items[i]);
    }
    if (!failed(&m)) hdi_program_insert(program, m.original_ops, m.before);
    hdi_free(m.blocks);
    hdi_free(m.items);
    hdi_free(m.before);
}
