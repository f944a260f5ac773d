/* NCCL operations in flight: an event before and one after each, and a watch over deadlines and errors.
 *
 * Nothing here waits for the device except settle. An operation's deadline runs from the moment when the
 * device has come to it and its lane is free, so that hours of queued computation are no timeout. */
#include <string.h>

#include "comm/nccl/nccl.h"
#include "core/clock.h"
#include "core/error.h"

enum { GENERATIONS = INT32_MAX / HDI_NCCL_OPERATIONS };
static const double watch_seconds = 0.1;

static void unlink_operation(hdi_nccl_device *device, hdi_nccl_operation *operation)
{
    if (operation->previous)
        operation->previous->next = operation->next;
    else
        device->first = operation->next;
    if (operation->next)
        operation->next->previous = operation->previous;
    else
        device->last = operation->previous;
    operation->comm = NULL;
    operation->previous = NULL;
    operation->next = device->free;
    device->free = operation;
}

/* The text of what stopped the device, for whoever asks later. */
static hd_status stopped(const hdi_nccl_device *device)
{
    return hdi_error(device->failed, "%s", device->text);
}

static hd_status stop(hdi_nccl_device *device, hd_status status)
{
    if (device->failed != HD_OK) return stopped(device);
    device->failed = status;
    device->text[0] = '\0';
    hdi_comm_append(device->text, sizeof device->text, "%s", hd_last_error());
    hdi_nccl_abort_lanes(device);
    return stopped(device);
}

static hd_status event_status(cudaEvent_t event, bool *done)
{
    const cudaError_t error = cudaEventQuery(event);
    *done = error == cudaSuccess;
    if (error == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return HD_OK;
    }
    return hdi_nccl_cuda_status(error, "cudaEventQuery");
}

static void describe(const hdi_nccl_operation *operation, char *text, size_t bytes)
{
    hdi_comm_append(text, bytes, "%s", operation->name);
    if (operation->bytes) hdi_comm_append(text, bytes, " of %zu bytes", operation->bytes);
    if (operation->peer >= 0) {
        hdi_comm_append(text, bytes, " with rank %d on channel %d", operation->peer,
                        operation->lane->channel);
        const int world = operation->comm->world_ranks[operation->peer];
        if (world != operation->peer) hdi_comm_append(text, bytes, " (world rank %d)", world);
    }
    hdi_comm_append_label(text, bytes, &operation->label);
}

static hd_status late(const hdi_nccl_operation *operation)
{
    const hd_comm *comm = operation->comm;
    char text[512] = "";
    describe(operation, text, sizeof text);
    return hdi_error(HD_ERROR_TIMEOUT,
                     "comm '%s' (nccl), rank %d of %d: %s: no answer within the deadline of %g s",
                     comm->name, comm->rank, comm->size, text, comm->deadline_seconds);
}

static hd_status watch_lanes(hdi_nccl_device *device)
{
    for (hdi_nccl_state *state = device->communicators; state; state = state->next)
        for (int i = 0; i < state->lane_count; i++) {
            hdi_nccl_lane *lane = &state->lanes[i];
            ncclResult_t result = ncclSuccess;
            lane->is_busy = false;
            if (!lane->nccl) continue;
            const ncclResult_t asked = ncclCommGetAsyncError(lane->nccl, &result);
            if (asked != ncclSuccess) result = asked;
            if (result != ncclInProgress)
                HD_RETURN_IF_ERROR(
                    hdi_nccl_status(result, lane->nccl, state->comm, "a peer or the link failed"));
        }
    return HD_OK;
}

/* Look at everything in flight: give back what is over, fail what is late. */
static hd_status look(hdi_nccl_device *device)
{
    const double now = hdi_clock_seconds();
    device->watched = now;
    HD_RETURN_IF_ERROR(watch_lanes(device));
    for (hdi_nccl_operation *operation = device->first, *next; operation; operation = next) {
        next = operation->next;
        bool done;
        HD_RETURN_IF_ERROR(event_status(operation->done, &done));
        if (done) {
            if (operation->is_ordered) unlink_operation(device, operation);
            continue;
        }
        if (operation->lane->is_busy) continue;
        operation->lane->is_busy = true;
        if (operation->started == 0) {
            bool ready;
            HD_RETURN_IF_ERROR(event_status(operation->ready, &ready));
            if (ready) operation->started = now;
        } else if (now - operation->started > operation->comm->deadline_seconds) {
            return late(operation);
        }
    }
    return HD_OK;
}

static hd_status watch(hdi_nccl_device *device)
{
    if (device->failed != HD_OK) return stopped(device);
    if (hdi_clock_seconds() - device->watched < watch_seconds) return HD_OK;
    const hd_status status = look(device);
    return status == HD_OK ? HD_OK : stop(device, status);
}

/* Operations that nobody asks for any more make room; with none, wait for the oldest. */
static hd_status make_room(hdi_nccl_device *device)
{
    device->watched = 0;
    HD_RETURN_IF_ERROR(watch(device));
    while (!device->free) {
        if (!device->first->is_ordered)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "nccl: %d operations are in flight already; wait for some first",
                             HDI_NCCL_OPERATIONS);
        bool done;
        HD_RETURN_IF_ERROR(event_status(device->first->done, &done));
        if (done)
            unlink_operation(device, device->first);
        else
            HD_RETURN_IF_ERROR(watch(device));
    }
    return HD_OK;
}

hd_status hdi_nccl_begin(hd_comm *comm, hdi_nccl_lane *lane, const char *name, size_t bytes,
                         int peer, hdi_nccl_operation **out)
{
    hdi_nccl_device *device = hdi_nccl_state_of(comm)->device;
    if (device->failed != HD_OK) return stopped(device);
    if (!device->free) HD_RETURN_IF_ERROR(make_room(device));
    hdi_nccl_operation *operation = device->free;
    HD_RETURN_IF_ERROR(
        hdi_nccl_cuda_status(cudaEventRecord(operation->ready, device->queue), "cudaEventRecord"));
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(cudaStreamWaitEvent(lane->stream, operation->ready, 0),
                                            "cudaStreamWaitEvent"));
    device->free = operation->next;
    operation->comm = comm;
    operation->lane = lane;
    operation->name = name;
    operation->bytes = bytes;
    operation->peer = peer;
    operation->label = (hdi_comm_label){0};
    operation->started = 0;
    operation->is_ordered = false;
    operation->generation = operation->generation % (GENERATIONS - 1) + 1;
    operation->next = NULL;
    operation->previous = device->last;
    *(device->last ? &device->last->next : &device->first) = operation;
    device->last = operation;
    *out = operation;
    return HD_OK;
}

/* Until a call is taken its work is not on the stream, and the event would come too early. */
hd_status hdi_nccl_end(hdi_nccl_operation *operation, hd_status posted, hd_request *out)
{
    hdi_nccl_device *device = hdi_nccl_state_of(operation->comm)->device;
    if (posted == HD_OK && operation->lane->nccl)
        posted = hdi_nccl_poll(operation->comm, operation->lane, operation->name);
    if (posted == HD_OK)
        posted = hdi_nccl_cuda_status(cudaEventRecord(operation->done, operation->lane->stream),
                                      "cudaEventRecord");
    if (posted != HD_OK) {
        unlink_operation(device, operation);
        return stop(device, posted);
    }
    out->id = operation->generation * HDI_NCCL_OPERATIONS + (int)(operation - device->operations);
    return HD_OK;
}

static hdi_nccl_operation *find(const hd_comm *comm, const hd_request *request)
{
    if (request->id < HDI_NCCL_OPERATIONS) return NULL;
    hdi_nccl_operation *operation =
        &hdi_nccl_state_of(comm)->device->operations[request->id % HDI_NCCL_OPERATIONS];
    const bool is_current = operation->comm == comm && !operation->is_ordered &&
                            operation->generation == request->id / HDI_NCCL_OPERATIONS;
    return is_current ? operation : NULL;
}

static hd_status not_here(const hd_comm *comm, hd_request *request)
{
    const int id = request->id;
    request->id = 0;
    return hdi_error(HD_ERROR_ARGUMENT, "comm '%s': request %d is not in flight here", comm->name,
                     id);
}

hd_status hdi_nccl_test(hd_comm *comm, hd_request *request, bool *done)
{
    hdi_nccl_device *device = hdi_nccl_state_of(comm)->device;
    hdi_nccl_operation *operation = find(comm, request);
    *done = false;
    if (!operation) return not_here(comm, request);
    hd_status status = device->failed == HD_OK ? event_status(operation->done, done) : HD_OK;
    if (status != HD_OK) status = stop(device, status);
    if (status == HD_OK && !*done) status = watch(device);
    if (status == HD_OK && !*done) return HD_OK;
    request->id = 0;
    unlink_operation(device, operation);
    return status;
}

hd_status hdi_nccl_order(hd_comm *comm, hd_request *request)
{
    hdi_nccl_device *device = hdi_nccl_state_of(comm)->device;
    hdi_nccl_operation *operation = find(comm, request);
    if (!operation) return not_here(comm, request);
    request->id = 0;
    operation->is_ordered = true;
    if (device->failed != HD_OK) return stopped(device);
    return hdi_nccl_cuda_status(cudaStreamWaitEvent(device->queue, operation->done, 0),
                                "cudaStreamWaitEvent");
}

void hdi_nccl_follow(hd_comm *comm, void *stream)
{
    hdi_nccl_device *device = hdi_nccl_state_of(comm)->device;
    device->queue = stream ? (cudaStream_t)stream : device->compute;
}

/* What still has a request is given back by its wait; a receive that was posted early may be for a
 * message that a peer sends only when this rank has gone on. */
static bool is_over(hdi_nccl_device *device, hd_status *status)
{
    for (hdi_nccl_operation *operation = device->first, *next; operation; operation = next) {
        next = operation->next;
        if (!operation->is_ordered) continue;
        bool done;
        *status = event_status(operation->done, &done);
        if (*status != HD_OK) *status = stop(device, *status);
        if (*status != HD_OK || !done) return false;
        unlink_operation(device, operation);
    }
    return true;
}

hd_status hdi_nccl_settle(hd_comm *comm)
{
    hdi_nccl_device *device = hdi_nccl_state_of(comm)->device;
    hd_status status = HD_OK;
    for (int64_t turn = 0; device->failed == HD_OK && !is_over(device, &status); turn++) {
        HD_RETURN_IF_ERROR(status);
        HD_RETURN_IF_ERROR(watch(device));
        hdi_comm_progress(comm->rider);
        hdi_comm_back_off(turn, 200);
    }
    return device->failed == HD_OK ? HD_OK : stopped(device);
}

bool hdi_nccl_is_quiet(hd_comm *comm)
{
    hdi_nccl_device *device = hdi_nccl_state_of(comm)->device;
    bool done = device->failed == HD_OK;
    for (const hdi_nccl_operation *operation = device->first; operation && done;
         operation = operation->next)
        if (event_status(operation->done, &done) != HD_OK) return false;
    return done;
}

hd_status hdi_nccl_watch(hd_comm *comm)
{
    return watch(hdi_nccl_state_of(comm)->device);
}

void hdi_nccl_label(hd_comm *comm, const hd_request *request, const hdi_comm_label *label)
{
    hdi_nccl_operation *operation = find(comm, request);
    if (operation) operation->label = *label;
}

void hdi_nccl_describe(hd_comm *comm, const hd_request *request, char *text, size_t bytes)
{
    const hdi_nccl_operation *operation = find(comm, request);
    text[0] = '\0';
    if (operation) describe(operation, text, bytes);
}

bool hdi_nccl_forget(hd_comm *comm)
{
    hdi_nccl_device *device = hdi_nccl_state_of(comm)->device;
    bool is_clean = true;
    for (hdi_nccl_operation *operation = device->first, *next; operation; operation = next) {
        next = operation->next;
        if (operation->comm != comm) continue;
        bool done = false;
        if (event_status(operation->done, &done) != HD_OK || !done) is_clean = false;
        unlink_operation(device, operation);
    }
    return is_clean;
}
