/* Matching of collectives over fake or real ranks. */
#include "parallel/match.h"

#include "core/error.h"
#include "core/memory.h"
#include "ops/collective.h"

#include <inttypes.h>
#include <stdio.h>

static void add_counts(const hdi_op *op, hdi_call *call)
{
    if (op->op.kind == &hdi_op_all_to_all) {
        const hdi_all_to_all_options *options = op->options;
        call->send = options->send_counts;
        call->recv = options->recv_counts;
    } else if (op->op.kind == &hdi_op_all_gather) {
        const hdi_all_gather_options *options = op->options;
        call->send = call->recv = options->counts;
    }
}

hd_status hdi_calls_add(hdi_calls *calls, const hd_program *program, hdi_phase phase)
{
    for (int i = 0; i < program->op_count; i++) {
        const hdi_op *op = program->ops[i];
        const hdi_collective *collective = hdi_op_collective(&op->op);
        if (!collective || op->phase != phase) continue;
        if (!HDI_GROW(calls->calls, calls->count, calls->capacity))
            return hdi_error(HD_ERROR_MEMORY, "match: out of host memory");
        hdi_call *call = &calls->calls[calls->count++];
        *call = (hdi_call){.kind = op->op.kind,
                           .axis = collective->axis,
                           .elements = collective->elements,
                           .dtype = op->op.out_info[0]->dtype,
                           .program = program->name,
                           .what = collective->what};
        add_counts(op, call);
    }
    return HD_OK;
}

static hd_status add_block(hdi_calls *calls, const hd_plan *plan, const hd_program *program,
                           int block)
{
    const hdi_layout *layout = plan->layout;
    for (int b = 0; b < layout->bucket_count; b++) {
        const hdi_bucket *bucket = &layout->buckets[b];
        if (bucket->block != block) continue;
        if (!HDI_GROW(calls->calls, calls->count, calls->capacity))
            return hdi_error(HD_ERROR_MEMORY, "match: out of host memory");
        calls->calls[calls->count++] =
            (hdi_call){.kind = &hdi_op_all_gather,
                       .axis = layout->axis,
                       .elements = bucket->elements,
                       .dtype = hd_tensor_get(program, program->uses[0].tensor)->dtype,
                       .program = program->name,
                       .what = plan->residency.blocks[block].name,
                       .send = bucket->counts,
                       .recv = bucket->counts};
    }
    return HD_OK;
}

hd_status hdi_calls_add_gathers(hdi_calls *calls, const hd_plan *plan, const hd_program *program,
                                hdi_phase phase)
{
    if (!plan->residency.gathers) return HD_OK;
    for (int u = 0; u < plan->unit_count; u++) {
        const hdi_stream_run *run = &plan->units[u].streamed[phase];
        for (int m = 0; m < run->use_count && plan->units[u].program == program; m++)
            HD_RETURN_IF_ERROR(add_block(calls, plan, program, run->uses[m].block));
    }
    return HD_OK;
}

void hdi_calls_free(hdi_calls *calls)
{
    hdi_free(calls->calls);
    *calls = (hdi_calls){0};
}

static const hdi_call *next_on(const hdi_calls *calls, hd_axis axis, int *position)
{
    while (*position < calls->count && calls->calls[*position].axis != axis)
        (*position)++;
    return *position < calls->count ? &calls->calls[(*position)++] : NULL;
}

static const char *call_text(const hdi_call *call, char *buffer, size_t bytes)
{
    if (!call) return "nothing more";
    snprintf(buffer, bytes, "%s of %" PRId64 " %s of %s in program '%s'", call->kind->name,
             call->elements, hd_dtype_name(call->dtype), call->what, call->program);
    return buffer;
}

/* Of an all-to-all, what one sends the other receives; of an all-gather, both know the same. */
static hd_status compare_counts(const hdi_call *a, const hdi_call *b, const int at[2],
                                const int ranks[2], int number)
{
    if (!a->send || !b->send) return HD_OK;
    bool gather = a->send == a->recv;
    int64_t sent[] = {a->send[at[gather ? 0 : 1]], b->send[at[gather ? 1 : 0]]};
    int64_t wanted[] = {b->recv[at[0]], a->recv[at[1]]};
    for (int i = 0; i < 2; i++)
        if (sent[i] != wanted[i])
            return hdi_error(HD_ERROR_INTERNAL,
                             "verifier: collective %d on the %s axis (%s of %s in program '%s'): "
                             "rank %d gives %" PRId64 " elements, rank %d expects %" PRId64,
                             number, hd_axis_name(a->axis), a->kind->name, a->what, a->program,
                             ranks[i], sent[i], ranks[1 - i], wanted[i]);
    return HD_OK;
}

static hd_status compare(const hdi_calls *calls, hd_mesh *const *meshes, int first, int rank,
                         hd_axis axis)
{
    const int at[] = {hd_mesh_index(meshes[first], axis), hd_mesh_index(meshes[rank], axis)};
    const int ranks[] = {first, rank};
    int at_first = 0, at_rank = 0;
    for (int number = 0;; number++) {
        const hdi_call *a = next_on(&calls[first], axis, &at_first);
        const hdi_call *b = next_on(&calls[rank], axis, &at_rank);
        if (!a && !b) return HD_OK;
        if (a && b && a->kind == b->kind && a->elements == b->elements && a->dtype == b->dtype) {
            if (axis != HD_AXIS_NONE) HD_RETURN_IF_ERROR(compare_counts(a, b, at, ranks, number));
            continue;
        }
        char left[256], right[256];
        return hdi_error(HD_ERROR_INTERNAL,
                         "verifier: collective %d on the %s axis: rank %d has %s, rank %d has %s",
                         number, axis == HD_AXIS_NONE ? "world" : hd_axis_name(axis), first,
                         call_text(a, left, sizeof left), rank, call_text(b, right, sizeof right));
    }
}

hd_status hdi_calls_match(const hdi_calls *calls, hd_mesh *const *meshes, int ranks)
{
    for (int rank = 1; rank < ranks; rank++) {
        HD_RETURN_IF_ERROR(compare(calls, meshes, 0, rank, HD_AXIS_NONE));
        for (hd_axis axis = HD_AXIS_TENSOR; axis < HD_AXES; axis++)
            for (int i = 0; i < hd_mesh_index(meshes[rank], axis); i++)
                HD_RETURN_IF_ERROR(
                    compare(calls, meshes, hd_mesh_peer(meshes[rank], axis, i), rank, axis));
    }
    return HD_OK;
}
