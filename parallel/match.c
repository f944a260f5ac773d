/* Matching of collectives over fake or real ranks. */
#include "parallel/match.h"

#include "core/error.h"
#include "core/memory.h"
#include "ops/collective.h"

#include <inttypes.h>
#include <stdio.h>

hd_status hdi_calls_add(hdi_calls *calls, const hd_program *program, hdi_phase phase)
{
    for (int i = 0; i < program->op_count; i++) {
        const hdi_op *op = program->ops[i];
        const hdi_collective *collective = hdi_op_collective(&op->op);
        if (!collective || op->phase != phase) continue;
        if (!HDI_GROW(calls->calls, calls->count, calls->capacity))
            return hdi_error(HD_ERROR_MEMORY, "match: out of host memory");
        calls->calls[calls->count++] = (hdi_call){.kind = op->op.kind,
                                                  .axis = collective->axis,
                                                  .elements = collective->elements,
                                                  .dtype = op->op.out_info[0]->dtype,
                                                  .program = program->name,
                                                  .what = collective->what};
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

static hd_status compare(const hdi_calls *calls, int first, int rank, hd_axis axis)
{
    int at_first = 0, at_rank = 0;
    for (int number = 0;; number++) {
        const hdi_call *a = next_on(&calls[first], axis, &at_first);
        const hdi_call *b = next_on(&calls[rank], axis, &at_rank);
        if (!a && !b) return HD_OK;
        if (a && b && a->kind == b->kind && a->elements == b->elements && a->dtype == b->dtype)
            continue;
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
        HD_RETURN_IF_ERROR(compare(calls, 0, rank, HD_AXIS_NONE));
        for (hd_axis axis = HD_AXIS_TENSOR; axis < HD_AXES; axis++) {
            int first = hd_mesh_peer(meshes[rank], axis, 0);
            if (first != rank) HD_RETURN_IF_ERROR(compare(calls, first, rank, axis));
        }
    }
    return HD_OK;
}
