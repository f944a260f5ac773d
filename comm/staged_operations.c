/* Operations of the staged transport: the host memory that each takes, and how they move on. */
#include "comm/staged.h"

#include <string.h>

#include "core/error.h"

static const char *const kind_names[] = {
    [HDI_STAGED_SEND] = "send",
    [HDI_STAGED_RECV] = "recv",
    [HDI_STAGED_ALL_REDUCE] = "all_reduce",
    [HDI_STAGED_ALL_GATHER] = "all_gather",
    [HDI_STAGED_ALL_TO_ALL] = "all_to_all",
    [HDI_STAGED_BROADCAST] = "broadcast",
};

const char *hdi_staged_name(hdi_staged_kind kind)
{
    return kind_names[kind];
}

enum { GENERATIONS = INT32_MAX / HDI_STAGED_OPERATIONS };

static int slot_of(const hdi_staged_state *state, const hdi_staged_operation *operation)
{
    return (int)(operation - state->operations);
}

hd_status hdi_staged_copy_blocks(hdi_staged_state *state, const hdi_staged_side *side, bool leaves,
                                 int skip)
{
    for (int r = 0; r < state->comm->size; r++) {
        const size_t bytes = (size_t)side->counts[r], at = (size_t)side->offsets[r];
        if (r == skip || bytes == 0) continue;
        HD_RETURN_IF_ERROR(
            leaves
                ? state->staging->copy(state->staging, side->host + at, side->device + at, bytes)
                : state->staging->copy(state->staging, side->device + at, side->host + at, bytes));
    }
    return HD_OK;
}

static hd_status start_on_host(hdi_staged_state *state, hdi_staged_operation *operation)
{
    hd_comm *host = state->host;
    hd_request *request = &operation->host;
    const hdi_staged_side *out = &operation->out, *in = &operation->in;
    switch (operation->kind) {
    case HDI_STAGED_SEND:
        return hd_comm_send(host, in->host, in->bytes, operation->peer, operation->channel,
                            request);
    case HDI_STAGED_RECV:
        return hd_comm_recv(host, in->host, in->bytes, operation->peer, operation->channel,
                            request);
    case HDI_STAGED_ALL_REDUCE:
        return hd_comm_all_reduce(host, in->host, operation->count, operation->dtype, operation->op,
                                  request);
    case HDI_STAGED_ALL_GATHER:
        return hd_comm_all_gather(host, in->host, in->counts, in->offsets, HD_DTYPE_U8, request);
    case HDI_STAGED_ALL_TO_ALL:
        return hd_comm_all_to_all(host, out->host, out->counts, out->offsets, in->host, in->counts,
                                  in->offsets, HD_DTYPE_U8, request);
    case HDI_STAGED_BROADCAST:
        return hd_comm_broadcast(host, in->host, in->bytes, operation->peer, request);
    }
    return HD_OK;
}

static hd_status copy_in(hdi_staged_state *state, hdi_staged_operation *operation)
{
    const hdi_staged_side *in = &operation->in;
    const int rank = state->comm->rank;
    switch (operation->kind) {
    case HDI_STAGED_SEND: return HD_OK;
    case HDI_STAGED_RECV:
    case HDI_STAGED_ALL_REDUCE:
        return state->staging->copy(state->staging, in->device, in->host, in->bytes);
    case HDI_STAGED_BROADCAST:
        if (operation->peer == rank) return HD_OK;
        return state->staging->copy(state->staging, in->device, in->host, in->bytes);
    case HDI_STAGED_ALL_GATHER: return hdi_staged_copy_blocks(state, in, false, rank);
    case HDI_STAGED_ALL_TO_ALL: return hdi_staged_copy_blocks(state, in, false, -1);
    }
    return HD_OK;
}

static hd_status step(hdi_staged_state *state, hdi_staged_operation *operation)
{
    const int slot = slot_of(state, operation);
    bool done = false;
    if (operation->phase == HDI_STAGED_OUT && operation->turn == state->started) {
        HD_RETURN_IF_ERROR(state->staging->query(state->staging, slot, &done));
        if (!done) return HD_OK;
        state->started++;
        operation->phase = HDI_STAGED_HOST;
        HD_RETURN_IF_ERROR(start_on_host(state, operation));
    }
    if (operation->phase == HDI_STAGED_HOST) {
        done = operation->host.id == 0;
        if (!done) HD_RETURN_IF_ERROR(hd_comm_test(state->host, &operation->host, &done));
        if (!done) return HD_OK;
        HD_RETURN_IF_ERROR(copy_in(state, operation));
        HD_RETURN_IF_ERROR(state->staging->mark(state->staging, slot));
        operation->phase = HDI_STAGED_IN;
    }
    if (operation->phase == HDI_STAGED_IN) {
        HD_RETURN_IF_ERROR(state->staging->query(state->staging, slot, &done));
        if (done) operation->phase = HDI_STAGED_OVER;
    }
    return HD_OK;
}

/* Move everything on as far as it goes; a start may let the next operation start. */
static void drive_one(hdi_staged_state *state)
{
    int64_t before;
    do {
        before = state->started;
        for (int i = 0; i < HDI_STAGED_OPERATIONS; i++) {
            hdi_staged_operation *operation = &state->operations[i];
            if (operation->phase < HDI_STAGED_OUT || operation->phase == HDI_STAGED_OVER) continue;
            operation->status = step(state, operation);
            if (operation->status == HD_OK) continue;
            operation->text[0] = '\0';
            hdi_comm_append(operation->text, sizeof operation->text, "%s", hd_last_error());
            if (operation->phase == HDI_STAGED_OUT) state->started++; /* the others go on */
            operation->phase = HDI_STAGED_OVER;
        }
    } while (state->started != before);
}

void hdi_staged_drive(hd_comm *comm)
{
    for (hd_comm *each = hdi_staged_of(comm)->group->first; each; each = hdi_staged_of(each)->next)
        drive_one(hdi_staged_of(each));
}

hdi_staged_operation *hdi_staged_find(const hd_comm *comm, const hd_request *request)
{
    if (request->id < HDI_STAGED_OPERATIONS) return NULL;
    hdi_staged_operation *operation =
        &hdi_staged_of(comm)->operations[request->id % HDI_STAGED_OPERATIONS];
    const bool is_current = operation->phase != HDI_STAGED_FREE &&
                            operation->generation == request->id / HDI_STAGED_OPERATIONS;
    return is_current ? operation : NULL;
}

/* What was rehearsed holds its memory no longer. */
static void end_rehearsed(hdi_staged_state *state)
{
    for (int i = 0; i < HDI_STAGED_OPERATIONS; i++)
        if (state->operations[i].phase == HDI_STAGED_REHEARSED)
            state->operations[i].phase = HDI_STAGED_FREE;
}

void hdi_staged_rehearse(hdi_staged_group *group, bool begins)
{
    group->rehearses = begins;
    for (hd_comm *each = group->first; each && !begins; each = hdi_staged_of(each)->next)
        end_rehearsed(hdi_staged_of(each));
}

static bool is_message(hdi_staged_kind kind)
{
    return kind == HDI_STAGED_SEND || kind == HDI_STAGED_RECV;
}

/* A free operation, best one whose memory is of that size, else one that has none. Sizes do not stand in
 * for each other, nor messages for collectives, which are rehearsed apart: then each has as many as were
 * in flight at once in the rehearsal. */
static hdi_staged_operation *choose(hdi_staged_state *state, hdi_staged_kind kind, size_t size)
{
    hdi_staged_operation *best = NULL;
    for (int i = 0; i < HDI_STAGED_OPERATIONS; i++) {
        hdi_staged_operation *operation = &state->operations[i];
        if (operation->phase != HDI_STAGED_FREE) continue;
        if (operation->memory_bytes == size && is_message(operation->kind) == is_message(kind))
            return operation;
        if (!best || (best->memory_bytes && !operation->memory_bytes)) best = operation;
    }
    return best;
}

static hd_status resize(hdi_staged_state *state, hdi_staged_operation *operation, size_t size)
{
    void *memory;
    if (operation->memory_bytes == size) return HD_OK;
    if (operation->memory)
        state->staging->release(state->staging, operation->memory, operation->memory_bytes);
    operation->memory = NULL;
    operation->memory_bytes = 0;
    HD_RETURN_IF_ERROR(state->staging->reserve(state->staging, size, &memory));
    operation->memory = memory;
    operation->memory_bytes = size;
    return HD_OK;
}

hd_status hdi_staged_take(hd_comm *comm, hdi_staged_kind kind, size_t bytes,
                          hdi_staged_operation **out)
{
    hdi_staged_state *state = hdi_staged_of(comm);
    size_t size = 4096;
    while (size < bytes)
        size *= 2;
    hdi_staged_operation *best = choose(state, kind, size);
    if (!best && state->group->rehearses) { /* so many are never in flight at once */
        end_rehearsed(state);
        best = choose(state, kind, size);
    }
    if (!best)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s on '%s': %d operations are in flight already; wait for some first",
                         kind_names[kind], comm->name, HDI_STAGED_OPERATIONS);
    HD_RETURN_IF_ERROR(resize(state, best, size));
    int64_t *blocks = state->blocks + (ptrdiff_t)slot_of(state, best) * 4 * comm->size;
    *best = (hdi_staged_operation){.kind = kind,
                                   .generation = best->generation % (GENERATIONS - 1) + 1,
                                   .memory = best->memory,
                                   .memory_bytes = best->memory_bytes,
                                   .out = {.counts = blocks, .offsets = blocks + comm->size},
                                   .in = {.counts = blocks + (ptrdiff_t)2 * comm->size,
                                          .offsets = blocks + (ptrdiff_t)3 * comm->size}};
    *out = best;
    return state->staging->begin(state->staging, slot_of(state, best));
}

hd_status hdi_staged_queue(hd_comm *comm, hdi_staged_operation *operation, hd_request *out)
{
    hdi_staged_state *state = hdi_staged_of(comm);
    const int slot = slot_of(state, operation);
    out->id = operation->generation * HDI_STAGED_OPERATIONS + slot;
    if (state->group->rehearses) {
        operation->phase = HDI_STAGED_REHEARSED;
        return HD_OK;
    }
    HD_RETURN_IF_ERROR(state->staging->mark(state->staging, slot));
    operation->phase = HDI_STAGED_OUT;
    operation->turn = state->posted++;
    return HD_OK;
}
