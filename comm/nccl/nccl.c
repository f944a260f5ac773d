/* The transport over NCCL: device memory, one communicator and stream for each lane.
 *
 * Counts that differ between ranks travel as grouped sends and receives. Ring and tree reductions add
 * in NCCL's order; who needs a fixed order exchanges the terms with all_to_all and adds them. */
#include "comm/nccl/nccl.h"

#include <stdlib.h>

#include "core/error.h"
#include "core/memory.h"

enum { SCRATCH_BYTES = 256 };

/* Calls that were taken, or are being taken, went well so far. */
static bool is_fine(ncclResult_t result)
{
    return result == ncclSuccess || result == ncclInProgress;
}

static hd_status posted_status(ncclResult_t result, const hdi_nccl_operation *operation)
{
    if (is_fine(result)) return HD_OK;
    return hdi_nccl_status(result, operation->lane->nccl, operation->comm, operation->name);
}

static hdi_nccl_lane *lane_of(hd_comm *comm, int which)
{
    return &hdi_nccl_state_of(comm)->lanes[which];
}

static hd_status find_link(hd_comm *comm, int from, int to, int channel, hdi_nccl_lane **out)
{
    hdi_nccl_state *state = hdi_nccl_state_of(comm);
    for (int i = HDI_NCCL_FIRST_LINK; i < state->lane_count; i++) {
        hdi_nccl_lane *lane = &state->lanes[i];
        *out = lane;
        if (lane->from == from && lane->to == to && lane->channel == channel) return HD_OK;
    }
    return hdi_error(HD_ERROR_UNSUPPORTED,
                     "comm '%s' (nccl): no link from rank %d to rank %d on channel %d; there are "
                     "links of the pipeline axis between neighbours, upwards on channel 0 and "
                     "downwards on channel 1",
                     comm->name, from, to, channel);
}

static hd_status nccl_send(hd_comm *comm, const void *data, size_t bytes, int peer, int channel,
                           hd_request *out)
{
    hdi_nccl_lane *lane = NULL;
    hdi_nccl_operation *operation;
    HD_RETURN_IF_ERROR(find_link(comm, comm->rank, peer, channel, &lane));
    if (bytes == 0) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_nccl_begin(comm, lane, "send", bytes, peer, &operation));
    if (comm->way)
        return hdi_nccl_end(
            operation,
            hdi_nccl_copy_message(hdi_nccl_state_of(comm)->copies, comm->way, lane, data, bytes),
            out);
    const ncclResult_t result = ncclSend(data, bytes, ncclUint8, 1, lane->nccl, lane->stream);
    return hdi_nccl_end(operation, posted_status(result, operation), out);
}

static hd_status nccl_recv(hd_comm *comm, void *data, size_t bytes, int peer, int channel,
                           hd_request *out)
{
    hdi_nccl_lane *lane = NULL;
    hdi_nccl_operation *operation;
    HD_RETURN_IF_ERROR(find_link(comm, peer, comm->rank, channel, &lane));
    if (bytes == 0) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_nccl_begin(comm, lane, "recv", bytes, peer, &operation));
    if (comm->way)
        return hdi_nccl_end(
            operation, hdi_nccl_await_message(hdi_nccl_state_of(comm)->copies, lane, data, bytes),
            out);
    const ncclResult_t result = ncclRecv(data, bytes, ncclUint8, 0, lane->nccl, lane->stream);
    return hdi_nccl_end(operation, posted_status(result, operation), out);
}

static ncclDataType_t nccl_type(hd_dtype dtype)
{
    switch (dtype) {
    case HD_DTYPE_F32: return ncclFloat32;
    case HD_DTYPE_F64: return ncclFloat64;
    case HD_DTYPE_I32: return ncclInt32;
    default: return ncclInt64;
    }
}

static ncclRedOp_t nccl_op(hd_reduce op)
{
    switch (op) {
    case HD_REDUCE_MAX: return ncclMax;
    case HD_REDUCE_MIN: return ncclMin;
    default: return ncclSum;
    }
}

static hd_status nccl_all_reduce(hd_comm *comm, void *inout, int64_t count, hd_dtype dtype,
                                 hd_reduce op, hd_request *out)
{
    hdi_nccl_lane *lane = lane_of(comm, HDI_NCCL_REDUCE);
    hdi_nccl_operation *operation;
    const size_t bytes = (size_t)count * hd_dtype_bytes(dtype);
    if (bytes == 0) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_nccl_begin(comm, lane, "all_reduce", bytes, -1, &operation));
    const ncclResult_t result = ncclAllReduce(inout, inout, (size_t)count, nccl_type(dtype),
                                              nccl_op(op), lane->nccl, lane->stream);
    return hdi_nccl_end(operation, posted_status(result, operation), out);
}

/* Every rank has as much, one behind the other: what NCCL's own all-gather takes. */
static bool is_even(const hd_comm *comm, const int64_t *counts, const int64_t *offsets)
{
    for (int r = 0; r < comm->size; r++)
        if (counts[r] != counts[0] || offsets[r] != offsets[0] + r * counts[0]) return false;
    return true;
}

/* What one rank sends to each other, and gets from each. */
typedef struct exchange {
    const char *send;
    char *recv;
    size_t element;
    const int64_t *send_counts, *send_offsets, *recv_counts, *recv_offsets;
    bool same_block; /* the own block goes to all */
} exchange;

static ncclResult_t post_exchange(const hd_comm *comm, const hdi_nccl_lane *lane,
                                  const exchange *what)
{
    ncclResult_t result = ncclGroupStart();
    if (result != ncclSuccess) return result;
    for (int i = 1; i < comm->size; i++) {
        const int to = (comm->rank + i) % comm->size;
        const int from = (comm->rank + comm->size - i) % comm->size;
        const int block = what->same_block ? comm->rank : to;
        const size_t send_bytes = (size_t)what->send_counts[block] * what->element;
        const size_t recv_bytes = (size_t)what->recv_counts[from] * what->element;
        if (send_bytes && is_fine(result))
            result = ncclSend(what->send + (size_t)what->send_offsets[block] * what->element,
                              send_bytes, ncclUint8, to, lane->nccl, lane->stream);
        if (recv_bytes && is_fine(result))
            result = ncclRecv(what->recv + (size_t)what->recv_offsets[from] * what->element,
                              recv_bytes, ncclUint8, from, lane->nccl, lane->stream);
    }
    const ncclResult_t ended = ncclGroupEnd();
    return is_fine(result) ? ended : result;
}

/* All ranks have agreed to go this way. */
static hd_status post_direct(hd_comm *comm, const char *name, const exchange *what, hd_request *out)
{
    hdi_nccl_copies *copies = hdi_nccl_state_of(comm)->copies;
    hdi_nccl_operation *operation;
    hdi_nccl_parts parts = {0};
    size_t all = 0;
    for (int r = 0; r < comm->size; r++) {
        const int block = what->same_block ? comm->rank : r;
        parts.from[r] = what->send + (size_t)what->send_offsets[block] * what->element;
        parts.go[r] = (size_t)what->send_counts[block] * what->element;
        parts.come_to[r] = what->recv + (size_t)what->recv_offsets[r] * what->element;
        parts.come[r] = (size_t)what->recv_counts[r] * what->element;
        all += parts.go[r];
    }
    HD_RETURN_IF_ERROR(
        hdi_nccl_begin(comm, hdi_nccl_copies_lane(copies), name, all, -1, &operation));
    return hdi_nccl_end(operation, hdi_nccl_copy_parts(copies, comm->way, operation->ready, &parts),
                        out);
}

static hd_status nccl_all_gather(hd_comm *comm, void *inout, const int64_t *counts,
                                 const int64_t *offsets, hd_dtype dtype, hd_request *out)
{
    hdi_nccl_lane *lane = lane_of(comm, HDI_NCCL_GATHER);
    hdi_nccl_operation *operation;
    const size_t element = hd_dtype_bytes(dtype);
    const exchange what = {inout, inout, element, counts, offsets, counts, offsets, true};
    const size_t own = (size_t)counts[comm->rank] * element;
    if (comm->way) return post_direct(comm, "all_gather", &what, out);
    HD_RETURN_IF_ERROR(hdi_nccl_begin(comm, lane, "all_gather", own, -1, &operation));
    ncclResult_t result = ncclSuccess;
    if (!is_even(comm, counts, offsets))
        result = post_exchange(comm, lane, &what);
    else if (own)
        result = ncclAllGather((const char *)inout + (size_t)offsets[comm->rank] * element,
                               (char *)inout + (size_t)offsets[0] * element, own, ncclUint8,
                               lane->nccl, lane->stream);
    return hdi_nccl_end(operation, posted_status(result, operation), out);
}

static hd_status nccl_all_to_all(hd_comm *comm, const void *send, const int64_t *send_counts,
                                 const int64_t *send_offsets, void *recv,
                                 const int64_t *recv_counts, const int64_t *recv_offsets,
                                 hd_dtype dtype, hd_request *out)
{
    hdi_nccl_lane *lane = lane_of(comm, HDI_NCCL_REDUCE);
    hdi_nccl_operation *operation;
    const size_t element = hd_dtype_bytes(dtype);
    const int rank = comm->rank;
    const exchange what = {send,         recv,        element,      send_counts,
                           send_offsets, recv_counts, recv_offsets, false};
    size_t bytes = 0;
    if (comm->way) return post_direct(comm, "all_to_all", &what, out);
    for (int r = 0; r < comm->size; r++)
        bytes += (size_t)send_counts[r] * element;
    HD_RETURN_IF_ERROR(hdi_nccl_begin(comm, lane, "all_to_all", bytes, -1, &operation));
    hd_status status = HD_OK;
    if (send_counts[rank])
        status = hdi_nccl_cuda_status(
            cudaMemcpyAsync((char *)recv + (size_t)recv_offsets[rank] * element,
                            (const char *)send + (size_t)send_offsets[rank] * element,
                            (size_t)send_counts[rank] * element, cudaMemcpyDeviceToDevice,
                            lane->stream),
            "cudaMemcpyAsync");
    if (status == HD_OK) status = posted_status(post_exchange(comm, lane, &what), operation);
    return hdi_nccl_end(operation, status, out);
}

static hd_status nccl_broadcast(hd_comm *comm, void *inout, size_t bytes, int root, hd_request *out)
{
    hdi_nccl_lane *lane = lane_of(comm, HDI_NCCL_GATHER);
    hdi_nccl_operation *operation;
    if (bytes == 0) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_nccl_begin(comm, lane, "broadcast", bytes, -1, &operation));
    const ncclResult_t result =
        ncclBroadcast(inout, inout, bytes, ncclUint8, root, lane->nccl, lane->stream);
    return hdi_nccl_end(operation, posted_status(result, operation), out);
}

static hd_status nccl_barrier(hd_comm *comm, hd_request *out)
{
    hdi_nccl_lane *lane = lane_of(comm, HDI_NCCL_REDUCE);
    void *scratch = hdi_nccl_state_of(comm)->device->scratch;
    hdi_nccl_operation *operation;
    HD_RETURN_IF_ERROR(hdi_nccl_begin(comm, lane, "barrier", 0, -1, &operation));
    const ncclResult_t result =
        ncclAllReduce(scratch, scratch, 1, ncclInt32, ncclMax, lane->nccl, lane->stream);
    return hdi_nccl_end(operation, posted_status(result, operation), out);
}

static hd_status nccl_split(hd_comm *comm, int color, int key, hd_comm **out)
{
    (void)color, (void)key, (void)out;
    return hdi_error(HD_ERROR_UNSUPPORTED,
                     "comm_split: '%s' is of device memory; split the one of host memory",
                     comm->name);
}

static void nccl_abort(hd_comm *comm, int code)
{
    hdi_nccl_state *state = hdi_nccl_state_of(comm);
    hdi_nccl_abort_lanes(state->device);
    hd_comm_abort(state->host, code);
}

static void nccl_destroy(hd_comm *comm)
{
    hdi_nccl_state *state = hdi_nccl_state_of(comm);
    if (state) {
        hdi_nccl_device *device = state->device;
        const bool is_clean = hdi_nccl_forget(comm);
        hdi_nccl_close_copies(state);
        hdi_nccl_close_lanes(state, is_clean);
        for (hdi_nccl_state **link = &device->communicators; *link; link = &(*link)->next)
            if (*link == state) {
                *link = state->next;
                break;
            }
        hdi_free(state);
    }
    hdi_comm_delete(comm);
}

const hdi_transport hdi_transport_nccl = {
    .name = "nccl",
    .split = nccl_split,
    .destroy = nccl_destroy,
    .abort = nccl_abort,
    .send = nccl_send,
    .recv = nccl_recv,
    .all_reduce = nccl_all_reduce,
    .all_gather = nccl_all_gather,
    .all_to_all = nccl_all_to_all,
    .broadcast = nccl_broadcast,
    .barrier = nccl_barrier,
    .test = hdi_nccl_test,
    .order = hdi_nccl_order,
    .settle = hdi_nccl_settle,
    .is_quiet = hdi_nccl_is_quiet,
    .watch = hdi_nccl_watch,
    .label = hdi_nccl_label,
    .follow = hdi_nccl_follow,
    .open_window = hdi_nccl_open_window,
    .close_window = hdi_nccl_close_window,
    .keeps_deadline = true,
    .describe = hdi_nccl_describe,
};

void hdi_nccl_rehost(hd_comm *comm, hd_comm *host)
{
    hdi_nccl_state_of(comm)->host = host;
    comm->deadline_seconds = host->deadline_seconds;
    comm->spins = host->spins;
    hdi_comm_set_name(comm, host->name);
}

hd_status hdi_comm_create_nccl(hd_comm *host, hdi_nccl_device *device,
                               const hdi_nccl_options *options, hd_comm **out)
{
    *out = NULL;
    hd_comm *comm = NULL;
    hdi_nccl_state *state = hdi_alloc(sizeof *state);
    hd_status status =
        hdi_comm_new(&hdi_transport_nccl, host->rank, host->size, host->deadline_seconds, &comm);
    if (status == HD_OK && !state) status = hdi_error(HD_ERROR_MEMORY, "nccl: out of host memory");
    if (status == HD_OK) status = hdi_nccl_cuda_status(cudaSetDevice(device->ordinal), "device");
    status = hd_comm_agree(host, status);
    if (status != HD_OK) {
        hdi_free(state);
        hdi_comm_delete(comm);
        return status;
    }
    *state = (hdi_nccl_state){.device = device, .comm = comm, .next = device->communicators};
    device->communicators = state;
    comm->state = state;
    hdi_nccl_rehost(comm, host);
    for (int r = 0; r < host->size; r++)
        comm->world_ranks[r] = host->world_ranks[r];
    status = hdi_nccl_open_lanes(state, options->links);
    if (status != HD_OK) {
        hdi_nccl_close_lanes(state, false);
        nccl_destroy(comm);
        return status;
    }
    if (options->copies != HDI_COPY_ENGINES_OFF)
        hdi_nccl_open_copies(state, options->copies, options->flags);
    *out = comm;
    return HD_OK;
}

static hd_status make_operations(hdi_nccl_device *device)
{
    device->operations = hdi_alloc_array(HDI_NCCL_OPERATIONS, sizeof *device->operations);
    if (!device->operations) return hdi_error(HD_ERROR_MEMORY, "nccl: out of host memory");
    for (int i = 0; i < HDI_NCCL_OPERATIONS; i++) {
        hdi_nccl_operation *operation = &device->operations[i];
        HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
            cudaEventCreateWithFlags(&operation->ready, cudaEventDisableTiming),
            "cudaEventCreate"));
        HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
            cudaEventCreateWithFlags(&operation->done, cudaEventDisableTiming), "cudaEventCreate"));
        operation->next = device->free;
        device->free = operation;
    }
    HD_RETURN_IF_ERROR(
        hdi_nccl_cuda_status(cudaMalloc(&device->scratch, SCRATCH_BYTES), "cudaMalloc"));
    return hdi_nccl_cuda_status(cudaMemset(device->scratch, 0, SCRATCH_BYTES), "cudaMemset");
}

/* Left alone NCCL connects each algorithm at its first use, in a call that then waits for all peers and
 * takes memory. NCCL reads this before its first communicator. */
static hd_status connect_early(void)
{
    if (setenv("NCCL_RUNTIME_CONNECT", "0", 0))
        return hdi_error(HD_ERROR_MEMORY, "nccl: out of host memory");
    return HD_OK;
}

hd_status hdi_nccl_device_create(int ordinal, void *compute_stream, hdi_nccl_device **out)
{
    *out = NULL;
    hdi_nccl_device *device = hdi_alloc(sizeof *device);
    if (!device) return hdi_error(HD_ERROR_MEMORY, "nccl: out of host memory");
    device->ordinal = ordinal;
    hdi_nccl_serve(device, compute_stream);
    hd_status status = connect_early();
    if (status == HD_OK) status = hdi_nccl_cuda_status(cudaSetDevice(ordinal), "cudaSetDevice");
    if (status == HD_OK) status = make_operations(device);
    if (status != HD_OK) {
        hdi_nccl_device_destroy(device);
        return status;
    }
    *out = device;
    return HD_OK;
}

void hdi_nccl_serve(hdi_nccl_device *device, void *compute_stream)
{
    device->compute = compute_stream;
    device->queue = compute_stream;
}

void hdi_nccl_device_destroy(hdi_nccl_device *device)
{
    if (!device) return;
    for (int i = 0; device->operations && i < HDI_NCCL_OPERATIONS; i++) {
        if (device->operations[i].ready) (void)cudaEventDestroy(device->operations[i].ready);
        if (device->operations[i].done) (void)cudaEventDestroy(device->operations[i].done);
    }
    if (device->scratch) (void)cudaFree(device->scratch);
    hdi_free(device->operations);
    hdi_free(device);
}
