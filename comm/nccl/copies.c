/* Direct exchanges by copy engines, which leave all blocks to what is computed: which way they go, a trial of it
 * on streams of their own, and their end. Streams wait for words that ranks write for each other, and for nothing
 * else; an abort writes the words itself: no missing peer can hold a device. */
#include <string.h>

#include "comm/nccl/copies.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"

enum { TRIAL_BLOCK = 4096, DRAIN_SECONDS = 5 };

_Static_assert(HDI_NCCL_TRIAL_AT + 2 * HDI_DIRECT_RANKS * TRIAL_BLOCK <= HDI_DIRECT_FLAG_BYTES,
               "flags have room for a trial");

hd_status hdi_nccl_copy(const hdi_nccl_copies *it, void **to, const void **from, size_t *bytes,
                        size_t count, cudaStream_t stream)
{
#if CUDART_VERSION >= 13000
    if (it->has_batches && count) {
        struct cudaMemcpyAttributes attributes = {.srcAccessOrder = cudaMemcpySrcAccessOrderStream,
                                                  .flags = cudaMemcpyFlagPreferOverlapWithCompute};
        size_t first = 0;
        return hdi_nccl_cuda_status(
            cudaMemcpyBatchAsync(to, from, bytes, count, &attributes, &first, 1, stream),
            "cudaMemcpyBatchAsync");
    }
#endif
    for (size_t i = 0; i < count; i++)
        HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
            cudaMemcpyAsync(to[i], from[i], bytes[i], cudaMemcpyDeviceToDevice, stream),
            "cudaMemcpyAsync"));
    return HD_OK;
}

hd_status hdi_nccl_copy_parts(hdi_nccl_copies *it, const hdi_way *way, cudaEvent_t ready,
                              const hdi_nccl_parts *parts)
{
    return it->carrier->exchange(it, way, ready, parts);
}

hd_status hdi_nccl_copy_message(const hdi_nccl_copies *it, const hdi_way *way, hdi_nccl_lane *link,
                                const void *data, size_t bytes)
{
    return it->carrier->send(it, way, link, data, bytes);
}

hd_status hdi_nccl_await_message(const hdi_nccl_copies *it, hdi_nccl_lane *link, void *data,
                                 size_t bytes)
{
    return it->carrier->receive(it, link, data, bytes);
}

hdi_nccl_lane *hdi_nccl_copies_lane(const hdi_nccl_copies *it)
{
    return it->lane;
}

void hdi_nccl_release_copies(const hdi_nccl_copies *it)
{
    if (it && it->carrier) it->carrier->write_past(it);
}

/* Of all streams that wait for words. */
static cudaError_t query(const hdi_nccl_copies *it)
{
    for (int i = 0; i < it->state->lane_count; i++) {
        const hdi_nccl_lane *lane = &it->state->lanes[i];
        if (!lane->stream || (lane != it->lane && !lane->turn)) continue;
        const cudaError_t error = cudaStreamQuery(lane->stream);
        if (error != cudaSuccess) return error;
    }
    return cudaStreamQuery(it->beside);
}

/* A peer that comes late may write its own word over that of the abort. */
bool hdi_nccl_drain_copies(const hdi_nccl_copies *it)
{
    const double end = hdi_clock_seconds() + DRAIN_SECONDS;
    for (int64_t turn = 0; hdi_clock_seconds() < end; turn++) {
        const cudaError_t error = query(it);
        if (error != cudaErrorNotReady) return error == cudaSuccess;
        (void)cudaGetLastError();
        if (turn % 100 == 99) it->carrier->write_past(it);
        hdi_comm_back_off(turn, 10);
    }
    return false;
}

static char trial_value(int from, int to)
{
    return (char)(1 + from * HDI_DIRECT_RANKS + to);
}

static hd_status prepare(const hdi_nccl_state *state, hdi_nccl_copies *it)
{
    int least, greatest, version = 0;
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                                            "cudaDeviceGetStreamPriorityRange"));
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
        cudaStreamCreateWithPriority(&it->lane->stream, cudaStreamNonBlocking, greatest),
        "cudaStreamCreateWithPriority"));
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
        cudaStreamCreateWithPriority(&it->beside, cudaStreamNonBlocking, greatest),
        "cudaStreamCreateWithPriority"));
    HD_RETURN_IF_ERROR(
        hdi_nccl_cuda_status(cudaDriverGetVersion(&version), "cudaDriverGetVersion"));
    it->has_batches = version >= 12080;
    char values[HDI_DIRECT_RANKS * TRIAL_BLOCK];
    for (int r = 0; r < HDI_DIRECT_RANKS; r++)
        memset(values + (ptrdiff_t)r * TRIAL_BLOCK, trial_value(state->comm->rank, r), TRIAL_BLOCK);
    return hdi_nccl_cuda_status(
        cudaMemcpy(it->memory + HDI_NCCL_TRIAL_AT, values, sizeof values, cudaMemcpyHostToDevice),
        "cudaMemcpy");
}

/* All that it waits for is on the device already. */
static hd_status post_trial(const hdi_nccl_state *state, hdi_nccl_copies *it)
{
    const hd_comm *comm = state->comm;
    const size_t come_at = HDI_NCCL_TRIAL_AT + HDI_DIRECT_RANKS * TRIAL_BLOCK;
    hdi_nccl_parts parts = {0};
    hdi_way way = {.window = it->flags};
    for (int r = 0; r < comm->size; r++) {
        parts.from[r] = it->memory + HDI_NCCL_TRIAL_AT + (ptrdiff_t)r * TRIAL_BLOCK;
        parts.come_to[r] = it->memory + come_at + (ptrdiff_t)r * TRIAL_BLOCK;
        parts.go[r] = parts.come[r] = TRIAL_BLOCK;
        way.to[r] = come_at + (size_t)comm->rank * TRIAL_BLOCK;
    }
    cudaEvent_t ready;
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
        cudaEventCreateWithFlags(&ready, cudaEventDisableTiming), "cudaEventCreate"));
    hd_status status =
        hdi_nccl_cuda_status(cudaEventRecord(ready, it->lane->stream), "cudaEventRecord");
    if (status == HD_OK) status = it->carrier->exchange(it, &way, ready, &parts);
    (void)cudaEventDestroy(ready);
    return status;
}

/* The first exchange of all: what each pair of devices can do is seen here. */
static hd_status try_exchange(const hdi_nccl_state *state, hdi_nccl_copies *it)
{
    const hd_comm *comm = state->comm;
    const size_t come_at = HDI_NCCL_TRIAL_AT + HDI_DIRECT_RANKS * TRIAL_BLOCK;
    char values[HDI_DIRECT_RANKS * TRIAL_BLOCK];
    HD_RETURN_IF_ERROR(hd_comm_agree(state->host, post_trial(state, it)));
    for (const double end = hdi_clock_seconds() + DRAIN_SECONDS;;) {
        const cudaError_t error = cudaStreamQuery(it->lane->stream);
        if (error == cudaSuccess) break;
        if (error != cudaErrorNotReady || hdi_clock_seconds() > end)
            return hdi_nccl_cuda_status(error, "a trial of copies");
        (void)cudaGetLastError();
    }
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
        cudaMemcpy(values, it->memory + come_at, sizeof values, cudaMemcpyDeviceToHost),
        "cudaMemcpy"));
    for (int r = 0; r < comm->size; r++)
        for (int i = 0; i < TRIAL_BLOCK; i++)
            if (values[r * TRIAL_BLOCK + i] != trial_value(r, comm->rank))
                return hdi_error(HD_ERROR_DEVICE,
                                 "nccl: copies of rank %d do not arrive: byte %d is %d, want %d", r,
                                 i, values[r * TRIAL_BLOCK + i], trial_value(r, comm->rank));
    return HD_OK;
}

static void close_carrier(hdi_nccl_copies *it)
{
    if (!it->carrier) return;
    if (query(it) == cudaErrorNotReady) {
        it->carrier->write_past(it);
        (void)hdi_nccl_drain_copies(it);
    }
    it->carrier->close(it);
    it->carrier = NULL;
}

static hd_status try_carrier(hdi_nccl_copies *it, const hdi_nccl_carrier *carrier)
{
    hd_status status = carrier->open(it);
    if (status != HD_OK) {
        carrier->close(it);
        return status;
    }
    it->carrier = carrier;
    status = hd_comm_agree(it->state->host, try_exchange(it->state, it));
    if (status != HD_OK) close_carrier(it);
    return status;
}

/* Of the GPUs of other ranks; of one that this process does not see (CUDA_VISIBLE_DEVICES) it is not known. */
typedef char bus_name[32];

static bool reaches(int ordinal, const bus_name peer)
{
    int there = -1, can = 0;
    const bool is_seen = cudaDeviceGetByPCIBusId(&there, peer) == cudaSuccess;
    if (is_seen && there == ordinal) return true;
    const bool is_known = is_seen && cudaDeviceCanAccessPeer(&can, ordinal, there) == cudaSuccess;
    return is_known && can;
}

/* Whether every GPU is known to reach that of every other rank. Collective. */
static hd_status all_reach(const hdi_nccl_state *state, bool *out)
{
    hd_comm *host = state->host;
    const int ordinal = state->device->ordinal;
    bus_name *names = host->records, own = {0};
    int64_t reach = cudaDeviceGetPCIBusId(own, sizeof own, ordinal) == cudaSuccess;
    memcpy(names[host->rank], own, sizeof own);
    HD_RETURN_IF_ERROR(hdi_comm_gather(host, sizeof own));
    for (int r = 0; r < host->size; r++)
        reach = reach && reaches(ordinal, names[r]);
    (void)cudaGetLastError();
    const hd_status status = hdi_direct_least(host, &reach, 1);
    *out = reach != 0;
    return status;
}

/* Into peers' memory if all ranks can; through the host's where GPUs do not reach each other, or that is asked for.
 * GPUs that do, and yet cannot be mapped, are NCCL's. */
static hd_status open_copies(hdi_nccl_copies *it, hdi_copy_engines engines)
{
    hd_comm *host = it->state->host;
    HD_RETURN_IF_ERROR(hd_comm_agree(host, prepare(it->state, it)));
    if (engines == HDI_COPY_ENGINES_HOST) return try_carrier(it, &hdi_nccl_mails);
    const hd_status status = try_carrier(it, &hdi_nccl_peers);
    if (status == HD_OK || engines == HDI_COPY_ENGINES_PEERS) return status;
    hdi_log(HD_LOG_DEBUG, "comm '%s': no copies into peers' memory: %s", host->name,
            hd_last_error());
    (void)cudaGetLastError();
    bool reach = false;
    HD_RETURN_IF_ERROR(all_reach(it->state, &reach));
    return reach ? status : try_carrier(it, &hdi_nccl_mails);
}

void hdi_nccl_open_copies(hdi_nccl_state *state, hdi_copy_engines engines, void *flags)
{
    hdi_nccl_copies *it = hdi_alloc(sizeof *it);
    hd_status status = it && flags ? HD_OK : hdi_error(HD_ERROR_MEMORY, "nccl: out of memory");
    status = hd_comm_agree(state->host, status);
    if (it) {
        it->state = state;
        it->memory = flags;
        it->lane = &state->lanes[state->lane_count++];
        *it->lane = (hdi_nccl_lane){.channel = -1};
    }
    if (status == HD_OK) status = open_copies(it, engines);
    state->copies = it;
    if (status == HD_OK) {
        const hd_comm *comm = state->comm;
        state->comm->through_host = it->carrier->through_host;
        if (comm->through_host && comm->world_ranks[comm->rank] == 0)
            hdi_log(HD_LOG_INFO, "mailboxes of '%s': %zu bytes of pinned host memory for %d ranks",
                    comm->name, it->host_bytes, comm->size);
        return;
    }
    hdi_log(HD_LOG_DEBUG, "comm '%s': no exchange by copy engines: %s", state->comm->name,
            hd_last_error());
    hdi_nccl_close_copies(state);
    (void)cudaGetLastError();
}

void hdi_nccl_close_copies(hdi_nccl_state *state)
{
    hdi_nccl_copies *it = state->copies;
    state->copies = NULL;
    if (!it) return;
    close_carrier(it);
    if (it->beside) (void)cudaStreamDestroy(it->beside);
    hdi_free(it);
}

/* Mailboxes need no window; what stands for one says that they are there. */
hd_status hdi_nccl_open_window(hd_comm *comm, void *memory, bool fits, void **out)
{
    hdi_nccl_state *state = hdi_nccl_state_of(comm);
    hdi_nccl_window *window = NULL;
    *out = NULL;
    if (!state->copies) return HD_OK;
    if (comm->through_host) {
        *out = state->copies;
        return HD_OK;
    }
    hd_status status =
        fits ? HD_OK : hdi_error(HD_ERROR_UNSUPPORTED, "the arena is not one piece of memory");
    status = hd_comm_agree(state->host, status);
    if (status == HD_OK)
        status = hdi_nccl_window_open(state->host, state->device->ordinal, memory, &window);
    if (status != HD_OK)
        hdi_log(HD_LOG_DEBUG, "comm '%s': no exchange by copy engines: %s", comm->name,
                hd_last_error());
    *out = window;
    return HD_OK;
}

void hdi_nccl_close_window(hd_comm *comm, void *window)
{
    const hdi_nccl_copies *it = hdi_nccl_state_of(comm)->copies;
    if (it) (void)hdi_nccl_drain_copies(it);
    if (window != it) hdi_nccl_window_close(window);
}
