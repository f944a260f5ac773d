/* The staged transport: device memory travels through host memory and the communicator of the same
 * ranks there. An operation is copied out, moved, copied in; each wait drives all operations of the rank,
 * since a peer may need one that this rank is not waiting for.
 *
 * Operations start on the host in the order of their posts, as its transport asks. */
#include <string.h>

#include "comm/staged.h"
#include "core/error.h"
#include "core/memory.h"

static void staged_progress(hd_comm *comm)
{
    hdi_staged_drive(comm);
    hdi_comm_progress(hdi_staged_of(comm)->host);
}

static hd_status staged_test(hd_comm *comm, hd_request *request, bool *done)
{
    hdi_staged_operation *operation = hdi_staged_find(comm, request);
    *done = false;
    if (!operation) {
        const int id = request->id;
        request->id = 0;
        *done = hdi_staged_of(comm)->group->rehearses; /* it made room for others */
        if (*done) return HD_OK;
        return hdi_error(HD_ERROR_ARGUMENT, "comm '%s': request %d is not in flight here",
                         comm->name, id);
    }
    hdi_staged_drive(comm);
    if (operation->phase != HDI_STAGED_OVER && operation->phase != HDI_STAGED_REHEARSED)
        return HD_OK;
    const hd_status status = operation->status;
    operation->phase = HDI_STAGED_FREE;
    request->id = 0;
    *done = true;
    return status == HD_OK ? HD_OK : hdi_error(status, "%s", operation->text);
}

/* An operation on one run of memory; what `leaves` is copied out. */
static hd_status run_of_memory(hd_comm *comm, hdi_staged_operation given, void *device,
                               size_t bytes, bool leaves, hd_request *out)
{
    hdi_staged_operation *operation;
    hdi_staging *staging = hdi_staged_of(comm)->staging;
    HD_RETURN_IF_ERROR(hdi_staged_take(comm, given.kind, bytes, &operation));
    operation->peer = given.peer;
    operation->channel = given.channel;
    operation->count = given.count;
    operation->dtype = given.dtype;
    operation->op = given.op;
    operation->in.device = device;
    operation->in.host = operation->memory;
    operation->in.bytes = bytes;
    if (leaves) HD_RETURN_IF_ERROR(staging->copy(staging, operation->memory, device, bytes));
    return hdi_staged_queue(comm, operation, out);
}

static hd_status staged_send(hd_comm *comm, const void *data, size_t bytes, int peer, int channel,
                             hd_request *out)
{
    const hdi_staged_operation send = {.kind = HDI_STAGED_SEND, .peer = peer, .channel = channel};
    return run_of_memory(comm, send, (void *)(uintptr_t)data, bytes, true, out);
}

static hd_status staged_recv(hd_comm *comm, void *data, size_t bytes, int peer, int channel,
                             hd_request *out)
{
    const hdi_staged_operation recv = {.kind = HDI_STAGED_RECV, .peer = peer, .channel = channel};
    return run_of_memory(comm, recv, data, bytes, false, out);
}

static hd_status staged_all_reduce(hd_comm *comm, void *inout, int64_t count, hd_dtype dtype,
                                   hd_reduce op, hd_request *out)
{
    const hdi_staged_operation reduce = {
        .kind = HDI_STAGED_ALL_REDUCE, .count = count, .dtype = dtype, .op = op};
    return run_of_memory(comm, reduce, inout, (size_t)count * hd_dtype_bytes(dtype), true, out);
}

static hd_status staged_broadcast(hd_comm *comm, void *inout, size_t bytes, int root,
                                  hd_request *out)
{
    const hdi_staged_operation broadcast = {.kind = HDI_STAGED_BROADCAST, .peer = root};
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
static void lay_side(const hd_comm *comm, hdi_staged_side *side, const void *device, char *host,
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
    hdi_staged_operation *operation;
    hdi_staging *staging = hdi_staged_of(comm)->staging;
    const size_t element = hd_dtype_bytes(dtype);
    size_t low;
    HD_RETURN_IF_ERROR(hdi_staged_take(comm, HDI_STAGED_ALL_GATHER,
                                       span(comm, counts, offsets, element, &low), &operation));
    hdi_staged_side *in = &operation->in;
    lay_side(comm, in, inout, operation->memory, counts, offsets, element);
    const size_t own = (size_t)in->offsets[comm->rank];
    HD_RETURN_IF_ERROR(
        staging->copy(staging, in->host + own, in->device + own, (size_t)in->counts[comm->rank]));
    return hdi_staged_queue(comm, operation, out);
}

static hd_status staged_all_to_all(hd_comm *comm, const void *send, const int64_t *send_counts,
                                   const int64_t *send_offsets, void *recv,
                                   const int64_t *recv_counts, const int64_t *recv_offsets,
                                   hd_dtype dtype, hd_request *out)
{
    hdi_staged_operation *operation;
    const size_t element = hd_dtype_bytes(dtype);
    size_t low;
    const size_t leaving = span(comm, send_counts, send_offsets, element, &low);
    const size_t coming = span(comm, recv_counts, recv_offsets, element, &low);
    HD_RETURN_IF_ERROR(hdi_staged_take(comm, HDI_STAGED_ALL_TO_ALL, leaving + coming, &operation));
    lay_side(comm, &operation->out, send, operation->memory, send_counts, send_offsets, element);
    lay_side(comm, &operation->in, recv, operation->memory + leaving, recv_counts, recv_offsets,
             element);
    HD_RETURN_IF_ERROR(hdi_staged_copy_blocks(hdi_staged_of(comm), &operation->out, true, -1));
    return hdi_staged_queue(comm, operation, out);
}

static hd_status staged_barrier(hd_comm *comm, hd_request *out)
{
    (void)out;
    return hd_comm_barrier(hdi_staged_of(comm)->host);
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
    hd_comm_abort(hdi_staged_of(comm)->host, code);
}

static void staged_rehearse(hd_comm *comm, bool begins)
{
    hdi_staged_rehearse(hdi_staged_of(comm)->group, begins);
}

static void staged_label(hd_comm *comm, const hd_request *request, const hdi_comm_label *label)
{
    hdi_staged_operation *operation = hdi_staged_find(comm, request);
    if (operation) operation->label = *label;
}

static void staged_describe(hd_comm *comm, const hd_request *request, char *text, size_t bytes)
{
    hdi_staged_operation *operation = hdi_staged_find(comm, request);
    text[0] = '\0';
    if (!operation) return;
    hd_comm *host = hdi_staged_of(comm)->host;
    if (operation->phase == HDI_STAGED_HOST)
        host->transport->describe(host, &operation->host, text, bytes);
    else
        hdi_comm_append(text, bytes, "%s, %s", hdi_staged_name(operation->kind),
                        operation->phase == HDI_STAGED_OUT ? "before it left the device"
                                                           : "on its way into the device");
    hdi_comm_append_label(text, bytes, &operation->label);
}

static void staged_follow(hd_comm *comm, void *stream)
{
    for (hd_comm *each = hdi_staged_of(comm)->group->first; each;
         each = hdi_staged_of(each)->next) {
        hdi_staging *staging = hdi_staged_of(each)->staging;
        if (staging->follow) staging->follow(staging, stream);
    }
}

static void staged_destroy(hd_comm *comm)
{
    hdi_staged_state *state = hdi_staged_of(comm);
    for (hd_comm **link = &state->group->first; *link; link = &hdi_staged_of(*link)->next)
        if (*link == comm) {
            *link = state->next;
            break;
        }
    for (int i = 0; i < HDI_STAGED_OPERATIONS; i++) {
        hdi_staged_operation *operation = &state->operations[i];
        /* The host's transport may still write there: better lost than given away. */
        if (operation->phase == HDI_STAGED_HOST && operation->host.id) continue;
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
    .rehearse = staged_rehearse,
    .label = staged_label,
    .follow = staged_follow,
    .describe = staged_describe,
};

hd_status hdi_comm_create_staged(hd_comm *host, hdi_staged_group *group, hdi_staging *staging,
                                 hd_comm **out)
{
    *out = NULL;
    hd_comm *comm = NULL;
    hdi_staged_state *state = hdi_alloc(sizeof *state);
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
