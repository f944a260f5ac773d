/* The staged transport: device memory travels through host memory and the communicator of the same
 * ranks there. An operation is copied out, moved, copied in; each wait drives all operations of the rank,
 * since a peer may need one that this rank is not waiting for.
 *
 * Operations start on the host in the order of their posts, as its transport asks. */
#include <string.h>

#include "comm/device.h"
#include "core/error.h"
#include "core/memory.h"

typedef enum staged_kind {
    STAGED_SEND,
    STAGED_RECV,
    STAGED_ALL_REDUCE,
    STAGED_ALL_GATHER,
    STAGED_ALL_TO_ALL,
    STAGED_BROADCAST
} staged_kind;

static const char *const kind_names[] = {
    [STAGED_SEND] = "send",
    [STAGED_RECV] = "recv",
    [STAGED_ALL_REDUCE] = "all_reduce",
    [STAGED_ALL_GATHER] = "all_gather",
    [STAGED_ALL_TO_ALL] = "all_to_all",
    [STAGED_BROADCAST] = "broadcast",
};

typedef enum staged_phase { STAGED_FREE, STAGED_OUT, STAGED_HOST, STAGED_IN, STAGED_OVER } phase;

/* One run of device memory and its copy on the host: [0] what leaves, [1] what comes. */
typedef struct staged_side {
    char *device, *host;       /* host is a part of the operation's memory */
    size_t bytes;              /* of the host's copy */
    int64_t *counts, *offsets; /* [ranks] blocks in bytes; owned by the state */
} staged_side;

typedef struct staged_operation {
    phase phase;
    staged_kind kind;
    int peer, channel; /* or the root */
    int64_t count;     /* all_reduce: elements */
    hd_dtype dtype;
    hd_reduce op;
    staged_side out, in;
    hd_request host; /* on the host's communicator */
    hd_status status;
    char text[256]; /* of a failure while somebody else's wait drove it */
    hdi_comm_label label;
    int64_t turn; /* order of posting */
    int generation;
    char *memory; /* host memory, kept from one operation to the next */
    size_t memory_bytes;
} staged_operation;

typedef struct staged_state {
    hd_comm *comm, *host;
    hdi_staging *staging; /* owned */
    hdi_staged_group *group;
    hd_comm *next; /* of the group */
    staged_operation operations[HDI_STAGED_OPERATIONS];
    int64_t *blocks;         /* [operations][4][ranks] */
    int64_t posted, started; /* turns given out, and the first that has not started on the host */
} staged_state;

enum { GENERATIONS = INT32_MAX / HDI_STAGED_OPERATIONS };

static staged_state *state_of(const hd_comm *comm)
{
    return comm->state;
}

static int slot_of(const staged_state *state, const staged_operation *operation)
{
    return (int)(operation - state->operations);
}

/* Copies of all blocks between the device and the host's memory; -1: none is left out. */
static hd_status copy_blocks(staged_state *state, const staged_side *side, bool leaves, int skip)
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

static hd_status start_on_host(staged_state *state, staged_operation *operation)
{
    hd_comm *host = state->host;
    hd_request *request = &operation->host;
    const staged_side *out = &operation->out, *in = &operation->in;
    switch (operation->kind) {
    case STAGED_SEND:
        return hd_comm_send(host, in->host, in->bytes, operation->peer, operation->channel,
                            request);
    case STAGED_RECV:
        return hd_comm_recv(host, in->host, in->bytes, operation->peer, operation->channel,
                            request);
    case STAGED_ALL_REDUCE:
        return hd_comm_all_reduce(host, in->host, operation->count, operation->dtype, operation->op,
                                  request);
    case STAGED_ALL_GATHER:
        return hd_comm_all_gather(host, in->host, in->counts, in->offsets, HD_DTYPE_U8, request);
    case STAGED_ALL_TO_ALL:
        return hd_comm_all_to_all(host, out->host, out->counts, out->offsets, in->host, in->counts,
                                  in->offsets, HD_DTYPE_U8, request);
    case STAGED_BROADCAST:
        return hd_comm_broadcast(host, in->host, in->bytes, operation->peer, request);
    }
    return HD_OK;
}

static hd_status copy_in(staged_state *state, staged_operation *operation)
{
    const staged_side *in = &operation->in;
    const int rank = state->comm->rank;
    switch (operation->kind) {
    case STAGED_SEND: return HD_OK;
    case STAGED_RECV:
    case STAGED_ALL_REDUCE:
        return state->staging->copy(state->staging, in->device, in->host, in->bytes);
    case STAGED_BROADCAST:
        if (operation->peer == rank) return HD_OK;
        return state->staging->copy(state->staging, in->device, in->host, in->bytes);
    case STAGED_ALL_GATHER: return copy_blocks(state, in, false, rank);
    case STAGED_ALL_TO_ALL: return copy_blocks(state, in, false, -1);
    }
    return HD_OK;
}

static hd_status step(staged_state *state, staged_operation *operation)
{
    const int slot = slot_of(state, operation);
    bool done = false;
    if (operation->phase == STAGED_OUT && operation->turn == state->started) {
        HD_RETURN_IF_ERROR(state->staging->query(state->staging, slot, &done));
        if (!done) return HD_OK;
        state->started++;
        operation->phase = STAGED_HOST;
        HD_RETURN_IF_ERROR(start_on_host(state, operation));
    }
    if (operation->phase == STAGED_HOST) {
        done = operation->host.id == 0;
        if (!done) HD_RETURN_IF_ERROR(hd_comm_test(state->host, &operation->host, &done));
        if (!done) return HD_OK;
        HD_RETURN_IF_ERROR(copy_in(state, operation));
        HD_RETURN_IF_ERROR(state->staging->mark(state->staging, slot));
        operation->phase = STAGED_IN;
    }
    if (operation->phase == STAGED_IN) {
        HD_RETURN_IF_ERROR(state->staging->query(state->staging, slot, &done));
        if (done) operation->phase = STAGED_OVER;
    }
    return HD_OK;
}

/* Move everything on as far as it goes; a start may let the next operation start. */
static void drive_one(staged_state *state)
{
    int64_t before;
    do {
        before = state->started;
        for (int i = 0; i < HDI_STAGED_OPERATIONS; i++) {
            staged_operation *operation = &state->operations[i];
            if (operation->phase == STAGED_FREE || operation->phase == STAGED_OVER) continue;
            operation->status = step(state, operation);
            if (operation->status == HD_OK) continue;
            operation->text[0] = '\0';
            hdi_comm_append(operation->text, sizeof operation->text, "%s", hd_last_error());
            if (operation->phase == STAGED_OUT) state->started++; /* the others go on */
            operation->phase = STAGED_OVER;
        }
    } while (state->started != before);
}

static void drive(hd_comm *comm)
{
    for (hd_comm *each = state_of(comm)->group->first; each; each = state_of(each)->next)
        drive_one(state_of(each));
}

static void staged_progress(hd_comm *comm)
{
    drive(comm);
    hdi_comm_progress(state_of(comm)->host);
}

static staged_operation *find(const hd_comm *comm, const hd_request *request)
{
    if (request->id < HDI_STAGED_OPERATIONS) return NULL;
    staged_operation *operation = &state_of(comm)->operations[request->id % HDI_STAGED_OPERATIONS];
    const bool is_current = operation->phase != STAGED_FREE &&
                            operation->generation == request->id / HDI_STAGED_OPERATIONS;
    return is_current ? operation : NULL;
}

static hd_status staged_test(hd_comm *comm, hd_request *request, bool *done)
{
    staged_operation *operation = find(comm, request);
    *done = false;
    if (!operation) {
        const int id = request->id;
        request->id = 0;
        return hdi_error(HD_ERROR_ARGUMENT, "comm '%s': request %d is not in flight here",
                         comm->name, id);
    }
    drive(comm);
    if (operation->phase != STAGED_OVER) return HD_OK;
    const hd_status status = operation->status;
    operation->phase = STAGED_FREE;
    request->id = 0;
    *done = true;
    return status == HD_OK ? HD_OK : hdi_error(status, "%s", operation->text);
}

/* A free operation with host memory for `bytes`. Sizes are powers of two and do not stand in for each
 * other: then each size has as many as are ever in flight at once after the first step, and no step
 * reserves any more. */
static hd_status take(hd_comm *comm, staged_kind kind, size_t bytes, staged_operation **out)
{
    staged_state *state = state_of(comm);
    staged_operation *best = NULL;
    size_t size = 4096;
    while (size < bytes)
        size *= 2;
    for (int i = 0; i < HDI_STAGED_OPERATIONS; i++) {
        staged_operation *operation = &state->operations[i];
        if (operation->phase != STAGED_FREE) continue;
        if (!best || operation->memory_bytes == size ||
            (best->memory_bytes != size && operation->memory_bytes == 0))
            best = operation;
    }
    if (!best)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s on '%s': %d operations are in flight already; wait for some first",
                         kind_names[kind], comm->name, HDI_STAGED_OPERATIONS);
    if (best->memory_bytes != size) {
        void *memory;
        if (best->memory) state->staging->release(state->staging, best->memory, best->memory_bytes);
        best->memory = NULL;
        best->memory_bytes = 0;
        HD_RETURN_IF_ERROR(state->staging->reserve(state->staging, size, &memory));
        best->memory = memory;
        best->memory_bytes = size;
    }
    int64_t *blocks = state->blocks + (ptrdiff_t)slot_of(state, best) * 4 * comm->size;
    *best = (staged_operation){.kind = kind,
                               .generation = best->generation % (GENERATIONS - 1) + 1,
                               .memory = best->memory,
                               .memory_bytes = best->memory_bytes,
                               .out = {.counts = blocks, .offsets = blocks + comm->size},
                               .in = {.counts = blocks + (ptrdiff_t)2 * comm->size,
                                      .offsets = blocks + (ptrdiff_t)3 * comm->size}};
    *out = best;
    return state->staging->begin(state->staging, slot_of(state, best));
}

static hd_status queue(hd_comm *comm, staged_operation *operation, hd_request *out)
{
    staged_state *state = state_of(comm);
    const int slot = slot_of(state, operation);
    HD_RETURN_IF_ERROR(state->staging->mark(state->staging, slot));
    operation->phase = STAGED_OUT;
    operation->turn = state->posted++;
    out->id = operation->generation * HDI_STAGED_OPERATIONS + slot;
    return HD_OK;
}

/* An operation on one run of memory; what `leaves` is copied out. */
static hd_status run_of_memory(hd_comm *comm, staged_operation given, void *device, size_t bytes,
                               bool leaves, hd_request *out)
{
    staged_operation *operation;
    hdi_staging *staging = state_of(comm)->staging;
    HD_RETURN_IF_ERROR(take(comm, given.kind, bytes, &operation));
    operation->peer = given.peer;
    operation->channel = given.channel;
    operation->count = given.count;
    operation->dtype = given.dtype;
    operation->op = given.op;
    operation->in.device = device;
    operation->in.host = operation->memory;
    operation->in.bytes = bytes;
    if (leaves) HD_RETURN_IF_ERROR(staging->copy(staging, operation->memory, device, bytes));
    return queue(comm, operation, out);
}

static hd_status staged_send(hd_comm *comm, const void *data, size_t bytes, int peer, int channel,
                             hd_request *out)
{
    const staged_operation send = {.kind = STAGED_SEND, .peer = peer, .channel = channel};
    return run_of_memory(comm, send, (void *)(uintptr_t)data, bytes, true, out);
}

static hd_status staged_recv(hd_comm *comm, void *data, size_t bytes, int peer, int channel,
                             hd_request *out)
{
    const staged_operation recv = {.kind = STAGED_RECV, .peer = peer, .channel = channel};
    return run_of_memory(comm, recv, data, bytes, false, out);
}

static hd_status staged_all_reduce(hd_comm *comm, void *inout, int64_t count, hd_dtype dtype,
                                   hd_reduce op, hd_request *out)
{
    const staged_operation reduce = {
        .kind = STAGED_ALL_REDUCE, .count = count, .dtype = dtype, .op = op};
    return run_of_memory(comm, reduce, inout, (size_t)count * hd_dtype_bytes(dtype), true, out);
}

static hd_status staged_broadcast(hd_comm *comm, void *inout, size_t bytes, int root,
                                  hd_request *out)
{
    const staged_operation broadcast = {.kind = STAGED_BROADCAST, .peer = root};
    return run_of_memory(comm, broadcast, inout, bytes, root == comm->rank, out);
}

/* The range of bytes that blocks lie in: *low its start, the value its length. */
static size_t span(const hd_comm *comm, const int64_t *counts, const int64_t *offsets,
                   size_t element, size_t *low)
{
    size_t begin = SIZE_MAX, end = 0;
    for (int r = 0; r < comm->size; r++) {
        if (!counts[r]) continue;
        const size_t first = (size_t)offsets[r] * element;
        const size_t after = first + (size_t)counts[r] * element;
        if (first < begin) begin = first;
        if (after > end) end = after;
    }
    *low = end ? begin : 0;
    return end ? end - begin : 0;
}

/* Blocks of a side in bytes from its lowest one, which is where the host's copy begins. */
static void lay_side(const hd_comm *comm, staged_side *side, const void *device, char *host,
                     const int64_t *counts, const int64_t *offsets, size_t element)
{
    size_t low;
    side->bytes = span(comm, counts, offsets, element, &low);
    side->device = (char *)(uintptr_t)device + low;
    side->host = host;
    for (int r = 0; r < comm->size; r++) {
        side->counts[r] = counts[r] * (int64_t)element;
        side->offsets[r] = counts[r] ? offsets[r] * (int64_t)element - (int64_t)low : 0;
    }
}

static hd_status staged_all_gather(hd_comm *comm, void *inout, const int64_t *counts,
                                   const int64_t *offsets, hd_dtype dtype, hd_request *out)
{
    staged_operation *operation;
    hdi_staging *staging = state_of(comm)->staging;
    const size_t element = hd_dtype_bytes(dtype);
    size_t low;
    HD_RETURN_IF_ERROR(
        take(comm, STAGED_ALL_GATHER, span(comm, counts, offsets, element, &low), &operation));
    staged_side *in = &operation->in;
    lay_side(comm, in, inout, operation->memory, counts, offsets, element);
    const size_t own = (size_t)in->offsets[comm->rank];
    HD_RETURN_IF_ERROR(
        staging->copy(staging, in->host + own, in->device + own, (size_t)in->counts[comm->rank]));
    return queue(comm, operation, out);
}

static hd_status staged_all_to_all(hd_comm *comm, const void *send, const int64_t *send_counts,
                                   const int64_t *send_offsets, void *recv,
                                   const int64_t *recv_counts, const int64_t *recv_offsets,
                                   hd_dtype dtype, hd_request *out)
{
    staged_operation *operation;
    const size_t element = hd_dtype_bytes(dtype);
    size_t low;
    const size_t leaving = span(comm, send_counts, send_offsets, element, &low);
    const size_t coming = span(comm, recv_counts, recv_offsets, element, &low);
    HD_RETURN_IF_ERROR(take(comm, STAGED_ALL_TO_ALL, leaving + coming, &operation));
    lay_side(comm, &operation->out, send, operation->memory, send_counts, send_offsets, element);
    lay_side(comm, &operation->in, recv, operation->memory + leaving, recv_counts, recv_offsets,
             element);
    HD_RETURN_IF_ERROR(copy_blocks(state_of(comm), &operation->out, true, -1));
    return queue(comm, operation, out);
}

static hd_status staged_barrier(hd_comm *comm, hd_request *out)
{
    (void)out;
    return hd_comm_barrier(state_of(comm)->host);
}

static hd_status staged_split(hd_comm *comm, int color, int key, hd_comm **out)
{
    (void)color, (void)key, (void)out;
    return hdi_error(HD_ERROR_UNSUPPORTED,
                     "comm_split: '%s' is of device memory; split the one of host memory",
                     comm->name);
}

static void staged_abort(hd_comm *comm, int code)
{
    hd_comm_abort(state_of(comm)->host, code);
}

static void staged_label(hd_comm *comm, const hd_request *request, const hdi_comm_label *label)
{
    staged_operation *operation = find(comm, request);
    if (operation) operation->label = *label;
}

static void staged_describe(hd_comm *comm, const hd_request *request, char *text, size_t bytes)
{
    staged_operation *operation = find(comm, request);
    text[0] = '\0';
    if (!operation) return;
    hd_comm *host = state_of(comm)->host;
    if (operation->phase == STAGED_HOST)
        host->transport->describe(host, &operation->host, text, bytes);
    else
        hdi_comm_append(text, bytes, "%s, %s", kind_names[operation->kind],
                        operation->phase == STAGED_OUT ? "before it left the device"
                                                       : "on its way into the device");
    hdi_comm_append_label(text, bytes, &operation->label);
}

static void staged_destroy(hd_comm *comm)
{
    staged_state *state = state_of(comm);
    for (hd_comm **link = &state->group->first; *link; link = &state_of(*link)->next)
        if (*link == comm) {
            *link = state->next;
            break;
        }
    for (int i = 0; i < HDI_STAGED_OPERATIONS; i++) {
        staged_operation *operation = &state->operations[i];
        /* The host's transport may still write there: better lost than given away. */
        if (operation->phase == STAGED_HOST && operation->host.id) continue;
        if (operation->memory)
            state->staging->release(state->staging, operation->memory, operation->memory_bytes);
    }
    state->staging->destroy(state->staging);
    hdi_free(state->blocks);
    hdi_free(state);
    hdi_comm_delete(comm);
}

static const hdi_transport transport_staged = {
    .name = "staged",
    .split = staged_split,
    .destroy = staged_destroy,
    .abort = staged_abort,
    .send = staged_send,
    .recv = staged_recv,
    .all_reduce = staged_all_reduce,
    .all_gather = staged_all_gather,
    .all_to_all = staged_all_to_all,
    .broadcast = staged_broadcast,
    .barrier = staged_barrier,
    .test = staged_test,
    .progress = staged_progress,
    .label = staged_label,
    .describe = staged_describe,
};

hd_status hdi_comm_create_staged(hd_comm *host, hdi_staged_group *group, hdi_staging *staging,
                                 hd_comm **out)
{
    *out = NULL;
    hd_comm *comm = NULL;
    staged_state *state = hdi_alloc(sizeof *state);
    int64_t *blocks =
        hdi_alloc_array((size_t)host->size * 4 * HDI_STAGED_OPERATIONS, sizeof *blocks);
    hd_status status =
        hdi_comm_new(&transport_staged, host->rank, host->size, host->deadline_seconds, &comm);
    if (!state || !blocks || status != HD_OK) {
        staging->destroy(staging);
        hdi_free(state);
        hdi_free(blocks);
        hdi_comm_delete(comm);
        return hdi_error(HD_ERROR_MEMORY, "staged: out of host memory");
    }
    state->comm = comm;
    state->host = host;
    state->staging = staging;
    state->group = group;
    state->blocks = blocks;
    state->next = group->first;
    group->first = comm;
    comm->state = state;
    comm->spins = host->spins;
    hdi_comm_set_name(comm, host->name);
    for (int r = 0; r < host->size; r++)
        comm->world_ranks[r] = host->world_ranks[r];
    *out = comm;
    return HD_OK;
}
