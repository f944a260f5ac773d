/* Appending ops to a program: shape rules, moving and removing. */
#include "core/error.h"
#include "core/memory.h"
#include "program/program.h"

#include <stdio.h>
#include <string.h>

static void refresh_infos(const hd_program *program, hd_op *op)
{
    for (int i = 0; i < op->inputs; i++)
        op->in_info[i] = hd_tensor_get(program, op->in[i]);
    for (int i = 0; i < op->outputs; i++)
        op->out_info[i] = hd_tensor_get(program, op->out[i]);
}

hdi_op *hdi_op_append(hd_program *program, const hd_op_kind *kind, const void *options, int inputs,
                      const hd_tensor *in, int outputs, const hd_tensor *out)
{
    if (program->status != HD_OK) return NULL;
    hdi_op *op = hdi_alloc(sizeof *op);
    void *copy = kind->options_bytes ? hdi_alloc(kind->options_bytes) : NULL;
    if (!op || (kind->options_bytes && !copy) ||
        !HDI_GROW(program->ops, program->op_count, program->op_capacity)) {
        hdi_free(op);
        hdi_free(copy);
        hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
        return NULL;
    }
    if (copy && options) memcpy(copy, options, kind->options_bytes);
    op->options = copy;
    op->phase = program->phase;
    op->scope = program->scope_open;
    op->recomputed = program->appending_recomputed;
    op->op = (hd_op){.kind = kind,
                     .options = copy,
                     .backend = program->backend,
                     .inputs = inputs,
                     .outputs = outputs};
    for (int i = 0; i < inputs; i++)
        op->op.in[i] = in[i];
    for (int i = 0; i < outputs; i++)
        op->op.out[i] = out[i];
    refresh_infos(program, &op->op);
    for (int i = 0; i < outputs; i++) {
        hdi_tensor *tensor = hdi_tensor_of(program, out[i]);
        if (tensor && tensor->info.role != HD_ROLE_GRADIENT) tensor->producer = program->op_count;
    }
    program->ops[program->op_count++] = op;
    return op;
}

hd_tensor hd_custom_op(hd_program *program, const hd_op_kind *kind, const void *options, int inputs,
                       const hd_tensor *in)
{
    if (program->status != HD_OK) return (hd_tensor){0};
    if (inputs < 0 || inputs > HD_OP_INPUTS)
        return hd_program_fail(program, HD_ERROR_ARGUMENT, "%s: %d inputs, want at most %d",
                               kind->name, inputs, HD_OP_INPUTS);
    if (!kind->shape || !kind->run)
        return hd_program_fail(program, HD_ERROR_ARGUMENT, "%s: the record lacks shape or run",
                               kind->name);
    hdi_op *op = hdi_op_append(program, kind, options, inputs, in, 0, NULL);
    if (!op) return (hd_tensor){0};
    bool needs_gradient = false;
    for (int i = 0; i < inputs; i++) {
        hdi_tensor *tensor = hdi_tensor_of(program, in[i]);
        if (in[i].id && !tensor)
            return hd_program_fail(program, HD_ERROR_ARGUMENT, "%s: input %d is of another program",
                                   kind->name, i);
        needs_gradient = needs_gradient || (tensor && tensor->needs_gradient);
    }
    program->appending = op;
    hd_status status = kind->shape(program, &op->op);
    program->appending = NULL;
    if (status != HD_OK)
        return hd_program_fail(program, status, "%s: %s", kind->name, hd_last_error());
    if (program->status != HD_OK) return (hd_tensor){0};
    for (int i = 0; i < op->op.outputs; i++) {
        hdi_tensor *tensor = program->tensors[op->op.out[i].id];
        tensor->needs_gradient = needs_gradient && kind->backward;
    }
    return op->op.outputs ? op->op.out[0] : (hd_tensor){0};
}

void hd_op_output(hd_program *program, hd_dtype dtype, int rank, const int64_t *dims)
{
    hdi_op *op = program->appending;
    if (!op || op->op.outputs == HD_OP_OUTPUTS) {
        hd_program_fail(program, HD_ERROR_ARGUMENT,
                        "hd_op_output: outside a shape rule, or over %d outputs", HD_OP_OUTPUTS);
        return;
    }
    hd_tensor out = hdi_tensor_add(program, NULL, dtype, HD_ROLE_ACTIVATION, rank, dims);
    if (!out.id) return;
    program->tensors[out.id]->producer = program->op_count - 1;
    op->op.out[op->op.outputs++] = out;
    refresh_infos(program, &op->op);
}

hd_tensor hd_op_result(hd_program *program, int index)
{
    if (program->status != HD_OK || program->op_count == 0) return (hd_tensor){0};
    const hd_op *op = &program->ops[program->op_count - 1]->op;
    if (index < 0 || index >= op->outputs)
        return hd_program_fail(program, HD_ERROR_ARGUMENT, "%s: result %d of %d", op->kind->name,
                               index, op->outputs);
    return op->out[index];
}

void hdi_program_insert(hd_program *program, int original_ops, const int *before)
{
    const int added = program->op_count - original_ops;
    hdi_op **merged = hdi_alloc_array((size_t)program->op_capacity, sizeof(hdi_op *));
    int *next = hdi_alloc_array((size_t)original_ops + 2, sizeof *next);
    if (!merged || !next) {
        hdi_free(merged);
        hdi_free(next);
        hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
        return;
    }
    for (int a = 0; a < added; a++)
        next[before[a] + 1]++;
    for (int i = 1; i <= original_ops + 1; i++)
        next[i] += next[i - 1]; /* of the added, those before op i: the place of the first at i */
    for (int i = 0; i < original_ops; i++)
        merged[i + next[i + 1]] = program->ops[i];
    for (int a = 0; a < added; a++)
        merged[before[a] + next[before[a]]++] = program->ops[original_ops + a];
    hdi_free(next);
    hdi_free(program->ops);
    program->ops = merged;
    hdi_program_index(program);
}

void hdi_op_move(hd_program *program, int from, int to)
{
    hdi_op *moved = program->ops[from];
    for (; from > to; from--)
        program->ops[from] = program->ops[from - 1];
    for (; from < to; from++)
        program->ops[from] = program->ops[from + 1];
    program->ops[to] = moved;
}

void hdi_program_index(hd_program *program)
{
    for (int i = 1; i < program->tensor_count; i++)
        program->tensors[i]->producer = -1;
    for (int i = 0; i < program->op_count; i++) {
        const hd_op *op = &program->ops[i]->op;
        for (int k = 0; k < op->outputs; k++) {
            hdi_tensor *tensor = hdi_tensor_of(program, op->out[k]);
            if (!tensor || tensor->info.role == HD_ROLE_GRADIENT) continue;
            tensor->producer = i;
            if (tensor->within.id) program->tensors[tensor->within.id]->producer = i;
        }
    }
}

static bool is_activations(const hd_program *program, const hd_op *op)
{
    for (int k = 0; k < op->inputs + op->outputs; k++) {
        const hd_tensor x = k < op->inputs ? op->in[k] : op->out[k - op->inputs];
        const hdi_tensor *tensor = hdi_tensor_of(program, x);
        if (!tensor || tensor->flat || tensor->holds || tensor->within.id || tensor->use >= 0)
            return false;
    }
    return op->inputs > 0;
}

/* Whether one op makes an input of another, or a part of it. */
static bool is_made_by(const hd_program *program, const hd_op *maker, const hd_op *op)
{
    for (int k = 0; k < op->inputs; k++)
        for (int o = 0; o < maker->outputs; o++)
            if (op->in[k].id && (maker->out[o].id == op->in[k].id ||
                                 program->tensors[maker->out[o].id]->within.id == op->in[k].id))
                return true;
    return false;
}

/* Move the op at `index` up to what makes its inputs, or to an op with one of `flags`. */
static int move_up(hd_program *program, int index, uint32_t flags)
{
    const hdi_op *op = program->ops[index];
    int to = index;
    for (; to > 0; to--) {
        const hdi_op *before = program->ops[to - 1];
        if (before->phase != op->phase || before->scope != op->scope ||
            before->op.kind->flags & flags || is_made_by(program, &before->op, &op->op))
            break;
    }
    hdi_op_move(program, index, to);
    return to;
}

/* What goes on to others as it has come would wait for it there: it stays, behind what hides it. */
static bool passes_on(const hd_program *program, int index)
{
    const hd_op *op = &program->ops[index]->op;
    for (int i = index - 1; i >= 0; i--)
        if (is_made_by(program, &program->ops[i]->op, op))
            return program->ops[i]->op.kind->flags & HD_OP_COMMUNICATES;
    return false;
}

void hdi_program_post_early(hd_program *program)
{
    for (int i = 0; i < program->op_count; i++) {
        const hdi_op *op = program->ops[i];
        if (!(op->op.kind->flags & HD_OP_COMMUNICATES) || !is_activations(program, &op->op) ||
            passes_on(program, i))
            continue;
        const int posted = move_up(program, i, HD_OP_COMMUNICATES | HD_OP_UPDATES);
        if (posted == 0) continue;
        /* What only readies it, the op just before, has waited for nothing else either. */
        const hdi_op *ready = program->ops[posted - 1];
        if (ready->op.inputs != 1 || ready->op.kind->flags ||
            !is_made_by(program, &ready->op, &op->op))
            continue;
        move_up(program, posted - 1, HD_OP_UPDATES);
        move_up(program, posted, HD_OP_COMMUNICATES | HD_OP_UPDATES);
    }
    hdi_program_index(program);
}

void hdi_program_remove_dead(hd_program *program)
{
    bool *read = hdi_alloc_array((size_t)program->tensor_count, sizeof *read);
    if (!read) {
        hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
        return;
    }
    for (int i = program->op_count - 1; i >= 0; i--) {
        hdi_op *op = program->ops[i];
        bool wanted = !op->recomputed;
        for (int k = 0; k < op->op.outputs; k++)
            wanted = wanted || read[op->op.out[k].id];
        if (!wanted) {
            hdi_free(op->options);
            hdi_free(op);
            program->ops[i] = NULL;
            continue;
        }
        for (int k = 0; k < op->op.inputs; k++) {
            const hdi_tensor *tensor = hdi_tensor_of(program, op->op.in[k]);
            read[op->op.in[k].id] = true;
            if (tensor) read[tensor->within.id] = true;
        }
    }
    int kept = 0;
    for (int i = 0; i < program->op_count; i++)
        if (program->ops[i]) program->ops[kept++] = program->ops[i];
    program->op_count = kept;
    hdi_free(read);
    hdi_program_index(program);
}

void hdi_op_cost(const hdi_op *op, hd_cost *out)
{
    *out = (hd_cost){0};
    if (op->op.kind->cost) {
        op->op.kind->cost(&op->op, out);
        return;
    }
    for (int i = 0; i < op->op.inputs; i++)
        if (op->op.in_info[i]) out->bytes += (double)op->op.in_info[i]->bytes;
    for (int i = 0; i < op->op.outputs; i++)
        if (op->op.out_info[i]) out->bytes += (double)op->op.out_info[i]->bytes;
}

void hdi_program_cost(const hd_program *program, hdi_phase phase, hd_cost *out)
{
    *out = (hd_cost){0};
    for (int i = 0; i < program->op_count; i++) {
        if (program->ops[i]->phase != phase) continue;
        hd_cost cost;
        hdi_op_cost(program->ops[i], &cost);
        out->flops += cost.flops;
        out->bytes += cost.bytes;
    }
}

const char *hdi_op_label(const hd_program *program, const hdi_op *op, char *buffer, size_t bytes)
{
    const char *scope = program->scopes[op->scope].name;
    snprintf(buffer, bytes, "%s%s%s%s", scope, *scope ? ": " : "", op->op.kind->name,
             op->recomputed ? " (again)" : "");
    return buffer;
}
