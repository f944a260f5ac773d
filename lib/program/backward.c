/* The backward pass: walks the forward in reverse and lets each op's rule emit gradient ops.
 * Scopes marked for recompute run again first, so that only what enters them is kept. */
#include "core/error.h"
#include "core/memory.h"
#include "program/program.h"

#include <string.h>

struct hd_backward {
    hd_program *program;
    const hd_op *op;     /* as the rule sees it: recomputed tensors in place of forward ones */
    const hd_op *source; /* as the forward made it */
    hd_tensor *gradient; /* [tensor id]: gradient known so far */
    hd_tensor *again;    /* [tensor id]: recomputed copy, invalid if none */
    int tensors;         /* length of both: the forward's tensors */
    int loss;            /* tensor id whose gradient is the implicit 1 */
};

hd_program *hd_backward_program(hd_backward *context)
{
    return context->program;
}

hd_tensor hd_backward_output_gradient(hd_backward *context, int output)
{
    return context->gradient[context->source->out[output].id];
}

bool hd_backward_wants(const hd_backward *context, int input)
{
    const hdi_tensor *tensor = hdi_tensor_of(context->program, context->source->in[input]);
    return tensor && tensor->needs_gradient;
}

void hd_backward_give(hd_backward *context, int input, hd_tensor gradient)
{
    if (!hd_backward_wants(context, input)) return;
    hd_tensor *sum = &context->gradient[context->source->in[input].id];
    hd_program *program = context->program;
    if (hdi_tensor_of(program, context->source->in[input])->use >= 0) {
        hd_program_fail(program, HD_ERROR_INTERNAL, "%s: gradient of a parameter given as data",
                        context->op->kind->name);
        return;
    }
    const hd_tensor both[2] = {*sum, gradient};
    *sum = sum->id ? hd_custom_op(program, &hdi_op_add, NULL, 2, both) : gradient;
}

/* The gradient tensor of a use: one for each use in exact mode, else one for each name. */
static hd_tensor use_gradient(hd_program *program, hdi_use *use)
{
    if (use->gradient.id) return use->gradient;
    for (int i = 0; i < program->use_count && !program->exact; i++)
        if (program->uses[i].gradient.id && strcmp(program->uses[i].name, use->name) == 0)
            return use->gradient = program->uses[i].gradient;
    const hd_tensor_info *info = hd_tensor_get(program, use->tensor);
    use->gradient =
        hdi_tensor_add(program, NULL, program->gradients, HD_ROLE_GRADIENT, info->rank, info->dims);
    hdi_tensor *tensor = hdi_tensor_of(program, use->gradient);
    if (tensor) tensor->use = (int)(use - program->uses);
    return use->gradient;
}

static void append_weight(hd_program *program, const hd_op_kind *kind, const void *options,
                          int inputs, const hd_tensor *in, hd_tensor out)
{
    hdi_tensor *tensor = hdi_tensor_of(program, out);
    hdi_op *op = hdi_op_append(program, kind, options, inputs, in, 1, &out);
    if (!op || !tensor) return;
    op->first_writer = !tensor->summed;
    tensor->summed = true;
    hd_status status = kind->shape ? kind->shape(program, &op->op) : HD_OK;
    if (status != HD_OK) hd_program_fail(program, status, "%s: %s", kind->name, hd_last_error());
}

void hd_backward_weight(hd_backward *context, int input, const hd_op_kind *kind,
                        const void *options, int inputs, const hd_tensor *in)
{
    hd_program *program = context->program;
    const hdi_tensor *tensor = hdi_tensor_of(program, context->source->in[input]);
    if (!tensor || !tensor->needs_gradient || program->status != HD_OK) return;
    if (tensor->use < 0 || !(kind->flags & HD_OP_WEIGHT_GRADIENT)) {
        hd_program_fail(program, HD_ERROR_ARGUMENT,
                        "%s: hd_backward_weight wants a parameter input and a record flagged "
                        "HD_OP_WEIGHT_GRADIENT",
                        kind->name);
        return;
    }
    hd_tensor gradient = use_gradient(program, &program->uses[tensor->use]);
    if (program->gradients == HD_DTYPE_F32 || (kind->flags & HD_OP_ROUNDS)) {
        append_weight(program, kind, options, inputs, in, gradient);
        return;
    }
    const hd_tensor_info *info = hd_tensor_get(program, gradient);
    if (!info) return;
    hd_tensor exact =
        hdi_tensor_add(program, NULL, HD_DTYPE_F32, HD_ROLE_ACTIVATION, info->rank, info->dims);
    append_weight(program, kind, options, inputs, in, exact);
    append_weight(program, &hdi_op_round_sum, NULL, 1, &exact, gradient);
}

/* The outermost scope around `scope` that is marked for recompute, or -1. */
static int recompute_scope(const hd_program *program, int scope)
{
    int found = -1;
    for (; scope >= 0; scope = program->scopes[scope].parent)
        if (program->scopes[scope].recompute) found = scope;
    return found;
}

static hd_tensor remapped(const hd_backward *context, hd_tensor handle)
{
    bool mapped = handle.id < context->tensors && context->again[handle.id].id;
    return mapped ? context->again[handle.id] : handle;
}

/* Append copies of ops [first, last] of a recomputed scope. */
static void run_again(hd_backward *context, int first, int last)
{
    hd_program *program = context->program;
    program->appending_recomputed = true;
    for (int i = first; i <= last; i++) {
        const hdi_op *op = program->ops[i];
        hd_tensor in[HD_OP_INPUTS], out[HD_OP_OUTPUTS];
        for (int k = 0; k < op->op.inputs; k++)
            in[k] = remapped(context, op->op.in[k]);
        for (int k = 0; k < op->op.outputs; k++) {
            const hd_tensor_info *info = op->op.out_info[k];
            out[k] = hdi_tensor_add(program, NULL, info->dtype, HD_ROLE_ACTIVATION, info->rank,
                                    info->dims);
            context->again[op->op.out[k].id] = out[k];
        }
        program->scope_open = op->scope;
        hdi_op_append(program, op->op.kind, op->options, op->op.inputs, in, op->op.outputs, out);
    }
    program->appending_recomputed = false;
}

static void apply_rule(hd_backward *context, int index)
{
    hd_program *program = context->program;
    const hdi_op *source = program->ops[index];
    bool reached = false;
    for (int k = 0; k < source->op.outputs; k++) {
        int id = source->op.out[k].id;
        reached = reached || context->gradient[id].id || id == context->loss;
    }
    if (!reached || !source->op.kind->backward) return;
    hd_op seen = source->op;
    for (int k = 0; k < seen.inputs; k++) {
        seen.in[k] = remapped(context, seen.in[k]);
        seen.in_info[k] = hd_tensor_get(program, seen.in[k]);
    }
    for (int k = 0; k < seen.outputs; k++) {
        seen.out[k] = remapped(context, seen.out[k]);
        seen.out_info[k] = hd_tensor_get(program, seen.out[k]);
    }
    context->op = &seen;
    context->source = &source->op;
    program->scope_open = source->scope;
    source->op.kind->backward(context, &seen);
}

void hd_program_backward(hd_program *program, hd_tensor loss, hd_tensor seed)
{
    if (program->status != HD_OK) return;
    if (!program->training || !hdi_tensor_of(program, loss)) {
        hd_program_fail(program, HD_ERROR_ARGUMENT,
                        "backward: wants a program made for training and a valid loss");
        return;
    }
    if (program->phase == HDI_PHASE_BACKWARD) {
        hd_program_fail(program, HD_ERROR_ARGUMENT, "backward: the program has one already");
        return;
    }
    const hd_tensor_info *top = hd_tensor_get(program, loss), *given = hd_tensor_get(program, seed);
    if (seed.id && (!given || given->elements != top->elements || given->dtype != top->dtype)) {
        hd_program_fail(program, HD_ERROR_ARGUMENT,
                        "backward: the seed has %lld elements of %s, want %lld of %s",
                        given ? (long long)given->elements : 0LL,
                        given ? hd_dtype_name(given->dtype) : "another program",
                        (long long)top->elements, hd_dtype_name(top->dtype));
        return;
    }
    hd_backward context = {.program = program, .tensors = program->tensor_count};
    int forward_ops = program->op_count, open = program->scope_open;
    context.gradient = hdi_alloc_array((size_t)program->tensor_count, sizeof *context.gradient);
    context.again = hdi_alloc_array((size_t)program->tensor_count, sizeof *context.again);
    if (!context.gradient || !context.again) {
        hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    } else {
        program->phase = HDI_PHASE_BACKWARD;
        if (seed.id)
            context.gradient[loss.id] = seed;
        else
            context.loss = loss.id;
        int again_from = forward_ops;
        for (int i = forward_ops - 1; i >= 0 && program->status == HD_OK; i--) {
            int scope = recompute_scope(program, program->ops[i]->scope);
            if (scope >= 0 && i < again_from) {
                int first = i;
                while (first > 0 &&
                       recompute_scope(program, program->ops[first - 1]->scope) == scope)
                    first--;
                run_again(&context, first, i);
                again_from = first;
            }
            apply_rule(&context, i);
        }
        for (int i = 1; i < context.tensors && program->status == HD_OK; i++) {
            hdi_tensor *tensor = program->tensors[i];
            bool marked = tensor->needs_gradient && tensor->use < 0 && tensor->producer < 0;
            if (!marked) continue;
            tensor->gradient = context.gradient[i];
            hdi_tensor *kept = hdi_tensor_of(program, tensor->gradient);
            if (!kept) continue;
            kept->keep = true;
            if (kept->info.role == HD_ROLE_ACTIVATION)
                kept->info.role =
                    tensor->info.role == HD_ROLE_BOUNDARY ? HD_ROLE_BOUNDARY : HD_ROLE_OUTPUT;
        }
        program->scope_open = open;
        hdi_program_remove_dead(program);
    }
    hdi_free(context.gradient);
    hdi_free(context.again);
}

void hd_input_needs_gradient(hd_program *program, hd_tensor input)
{
    hdi_tensor *tensor = hdi_tensor_of(program, input);
    if (tensor) tensor->needs_gradient = true;
}

hd_tensor hd_gradient(const hd_program *program, hd_tensor handle)
{
    const hdi_tensor *tensor = hdi_tensor_of(program, handle);
    if (!tensor) return (hd_tensor){0};
    return tensor->use >= 0 ? program->uses[tensor->use].gradient : tensor->gradient;
}
