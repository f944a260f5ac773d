/* Making and ending the lanes of a communicator. NCCL's calls do not block here but are polled with the
 * deadline, so that a rank that is missing is no hang. All lanes of a communicator are made at once, then
 * connected one after the other: NCCL's setup may wait for the device, and so for a kernel of another
 * lane, which waits for a peer; to make lanes takes no kernels. */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm/nccl/nccl.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/memory.h"

/* Neighbours need little: a message of a pipeline is some MiB, and the cores are for computing. */
enum { LINK_BLOCKS = 4, END_SECONDS = 5, ABORT_SECONDS = 10 };

hd_status hdi_nccl_cuda_status(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return HD_OK;
    return hdi_error(error == cudaErrorMemoryAllocation ? HD_ERROR_MEMORY : HD_ERROR_DEVICE,
                     "nccl: %s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

hd_status hdi_nccl_status(ncclResult_t result, ncclComm_t nccl, const hd_comm *comm,
                          const char *what)
{
    if (result == ncclSuccess) return HD_OK;
    return hdi_error(HD_ERROR_COMM, "comm '%s' (nccl), rank %d of %d: %s: %s (%s)", comm->name,
                     comm->rank, comm->size, what, ncclGetErrorString(result),
                     ncclGetLastError(nccl));
}

static hd_status poll_until(const hd_comm *comm, hdi_nccl_lane *lane, const char *what, double end)
{
    for (int64_t turn = 0;; turn++) {
        ncclResult_t result = ncclInProgress;
        HD_RETURN_IF_ERROR(hdi_nccl_status(ncclCommGetAsyncError(lane->nccl, &result), lane->nccl,
                                           comm, "ncclCommGetAsyncError"));
        if (result != ncclInProgress) return hdi_nccl_status(result, lane->nccl, comm, what);
        if (hdi_clock_seconds() > end)
            return hdi_error(HD_ERROR_TIMEOUT,
                             "comm '%s' (nccl), rank %d of %d: %s: peers did not take part within "
                             "the deadline of %g s",
                             comm->name, comm->rank, comm->size, what, comm->deadline_seconds);
        hdi_comm_back_off(turn, 1000);
    }
}

hd_status hdi_nccl_poll(const hd_comm *comm, hdi_nccl_lane *lane, const char *what)
{
    return poll_until(comm, lane, what, hdi_clock_seconds() + comm->deadline_seconds);
}

/* The lanes that this rank is on, in an order that is the same on all ranks, as each is connected before
 * the next is begun. Links from even ranks go first, so that neighbours do not form one long queue. */
static void lay_lanes(hdi_nccl_state *state, bool links)
{
    const int rank = state->comm->rank, size = state->comm->size;
    state->lanes[HDI_NCCL_GATHER] = (hdi_nccl_lane){.channel = -1};
    state->lanes[HDI_NCCL_REDUCE] = (hdi_nccl_lane){.channel = -1};
    state->lane_count = HDI_NCCL_FIRST_LINK;
    for (int channel = 0; links && channel < 2; channel++)
        for (int odd = 0; odd < 2; odd++)
            for (int from = odd; from < size; from += 2) {
                const int to = (channel == 0 ? from + 1 : from + size - 1) % size;
                if (from != rank && to != rank) continue;
                state->lanes[state->lane_count++] =
                    (hdi_nccl_lane){.from = from, .to = to, .channel = channel};
            }
}

/* Who makes the identity of a lane: rank 0 for all ranks, the sender of a link. */
enum { IDS_EACH = 4 };

static hd_status exchange_ids(const hdi_nccl_state *state, ncclUniqueId *ids)
{
    const hd_comm *comm = state->comm;
    hd_status status = HD_OK;
    ncclUniqueId *own = ids + (ptrdiff_t)comm->rank * IDS_EACH;
    for (int i = 0; i < state->lane_count && status == HD_OK; i++) {
        const hdi_nccl_lane *lane = &state->lanes[i];
        const bool is_link = lane->channel >= 0;
        if (is_link ? lane->from != comm->rank : comm->rank != 0) continue;
        ncclUniqueId *id = is_link ? &own[2 + lane->channel] : &own[i];
        status = hdi_nccl_status(ncclGetUniqueId(id), NULL, comm, "ncclGetUniqueId");
    }
    HD_RETURN_IF_ERROR(hd_comm_agree(state->host, status));
    int64_t *counts = comm->counts, *offsets = comm->counts + comm->size;
    for (int r = 0; r < comm->size; r++) {
        counts[r] = IDS_EACH * (int64_t)sizeof *ids;
        offsets[r] = r * counts[r];
    }
    hd_request request;
    HD_RETURN_IF_ERROR(
        hd_comm_all_gather(state->host, ids, counts, offsets, HD_DTYPE_U8, &request));
    return hd_comm_wait(state->host, &request);
}

static hd_status start_lane(const hdi_nccl_state *state, hdi_nccl_lane *lane, ncclUniqueId id)
{
    const hd_comm *comm = state->comm;
    const bool is_link = lane->channel >= 0;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.commName = comm->name;
    if (is_link) config.maxCTAs = LINK_BLOCKS;
    int least, greatest;
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                                            "cudaDeviceGetStreamPriorityRange"));
    /* Bytes that others wait for go before computation. */
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
        cudaStreamCreateWithPriority(&lane->stream, cudaStreamNonBlocking, greatest),
        "cudaStreamCreateWithPriority"));
    const int size = is_link ? 2 : comm->size, rank = is_link ? lane->to == comm->rank : comm->rank;
    const ncclResult_t result = ncclCommInitRankConfig(&lane->nccl, size, id, rank, &config);
    return result == ncclInProgress ? HD_OK : hdi_nccl_status(result, NULL, comm, "init");
}

static hd_status start_lanes(hdi_nccl_state *state, const ncclUniqueId *ids)
{
    const double end = hdi_clock_seconds() + state->comm->deadline_seconds;
    for (int i = 0; i < state->lane_count; i++) {
        hdi_nccl_lane *lane = &state->lanes[i];
        const ptrdiff_t maker = (ptrdiff_t)lane->from * IDS_EACH;
        HD_RETURN_IF_ERROR(
            start_lane(state, lane, lane->channel >= 0 ? ids[maker + 2 + lane->channel] : ids[i]));
    }
    for (int i = 0; i < state->lane_count; i++)
        HD_RETURN_IF_ERROR(poll_until(state->comm, &state->lanes[i], "init", end));
    return HD_OK;
}

static ncclResult_t first_exchange(const hdi_nccl_state *state, const hdi_nccl_lane *lane)
{
    char *scratch = state->device->scratch;
    const hd_comm *comm = state->comm;
    if (lane->channel >= 0)
        return lane->from == comm->rank
                   ? ncclSend(scratch, 1, ncclUint8, 1, lane->nccl, lane->stream)
                   : ncclRecv(scratch + 1, 1, ncclUint8, 0, lane->nccl, lane->stream);
    ncclResult_t result = ncclGroupStart();
    for (int peer = 0; peer < comm->size; peer++) {
        if (peer == comm->rank) continue;
        if (result == ncclSuccess || result == ncclInProgress)
            result = ncclSend(scratch, 1, ncclUint8, peer, lane->nccl, lane->stream);
        if (result == ncclSuccess || result == ncclInProgress)
            result = ncclRecv(scratch + 1, 1, ncclUint8, peer, lane->nccl, lane->stream);
    }
    const ncclResult_t ended = ncclGroupEnd();
    return result == ncclSuccess || result == ncclInProgress ? ended : result;
}

/* Wait until a first call has been taken and the device has done it. */
static hd_status finish_first(const hd_comm *comm, hdi_nccl_lane *lane, ncclResult_t result,
                              double end)
{
    const char *what = "first exchange";
    if (result != ncclInProgress)
        HD_RETURN_IF_ERROR(hdi_nccl_status(result, lane->nccl, comm, what));
    HD_RETURN_IF_ERROR(poll_until(comm, lane, what, end));
    for (int64_t turn = 0;; turn++) {
        const cudaError_t error = cudaStreamQuery(lane->stream);
        if (error != cudaErrorNotReady) return hdi_nccl_cuda_status(error, what);
        (void)cudaGetLastError();
        if (hdi_clock_seconds() > end)
            return hdi_error(HD_ERROR_TIMEOUT,
                             "comm '%s' (nccl), rank %d of %d: %s: no answer within the deadline "
                             "of %g s",
                             comm->name, comm->rank, comm->size, what, comm->deadline_seconds);
        hdi_comm_back_off(turn, 1000);
    }
}

/* NCCL connects two peers at their first exchange, and the call waits for both. Later, when each rank
 * posts in its own time, that would be a deadlock; and it takes memory, which belongs here. */
static hd_status connect_lanes(hdi_nccl_state *state)
{
    const hd_comm *comm = state->comm;
    void *scratch = state->device->scratch;
    const double end = hdi_clock_seconds() + comm->deadline_seconds;
    for (int i = 0; i < state->lane_count; i++) {
        hdi_nccl_lane *lane = &state->lanes[i];
        HD_RETURN_IF_ERROR(finish_first(comm, lane, first_exchange(state, lane), end));
    }
    hdi_nccl_lane *reduce = &state->lanes[HDI_NCCL_REDUCE];
    const ncclResult_t result =
        ncclAllReduce(scratch, scratch, 1, ncclFloat64, ncclSum, reduce->nccl, reduce->stream);
    return finish_first(comm, reduce, result, end);
}

hd_status hdi_nccl_open_lanes(hdi_nccl_state *state, bool links)
{
    lay_lanes(state, links);
    ncclUniqueId *ids = hdi_alloc_array((size_t)state->comm->size * IDS_EACH, sizeof *ids);
    hd_status status = ids ? HD_OK : hdi_error(HD_ERROR_MEMORY, "nccl: out of host memory");
    status = hd_comm_agree(state->host, status);
    if (status == HD_OK) status = exchange_ids(state, ids);
    if (status == HD_OK) status = hd_comm_agree(state->host, start_lanes(state, ids));
    if (status == HD_OK) status = hd_comm_agree(state->host, connect_lanes(state));
    hdi_free(ids);
    return status;
}

static void *abort_lane(void *user)
{
    hdi_nccl_lane *lane = user;
    (void)ncclCommAbort(lane->nccl);
    lane->nccl = NULL;
    return NULL;
}

/* All lanes at once: an abort frees memory, which waits for the kernels of all lanes, and those end only
 * when their own lane is aborted. */
static void abort_together(hdi_nccl_lane **lanes, pthread_t *threads, int count)
{
    int started = 0;
    while (started < count &&
           pthread_create(&threads[started], NULL, abort_lane, lanes[started]) == 0)
        started++;
    for (int i = started; i < count; i++)
        abort_lane(lanes[i]);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
}

static bool begin_end(hdi_nccl_lane *lane)
{
    const ncclResult_t result = ncclCommFinalize(lane->nccl);
    return result == ncclSuccess || result == ncclInProgress;
}

/* All lanes at once. Peers must come, too: those that do not are not waited for long. */
void hdi_nccl_close_lanes(hdi_nccl_state *state, bool is_clean)
{
    const double end = hdi_clock_seconds() + END_SECONDS;
    bool is_final[HDI_NCCL_LANES] = {false};
    is_clean = is_clean && state->device->failed == HD_OK;
    for (int i = 0; i < state->lane_count && is_clean; i++)
        is_final[i] = state->lanes[i].nccl && begin_end(&state->lanes[i]);
    hdi_nccl_lane *left[HDI_NCCL_LANES];
    pthread_t threads[HDI_NCCL_LANES];
    int count = 0;
    for (int i = 0; i < state->lane_count; i++) {
        hdi_nccl_lane *lane = &state->lanes[i];
        if (is_final[i] && poll_until(state->comm, lane, "finalize", end) == HD_OK) {
            (void)ncclCommDestroy(lane->nccl);
            lane->nccl = NULL;
        } else if (lane->nccl) {
            left[count++] = lane;
        }
    }
    abort_together(left, threads, count);
    for (int i = 0; i < state->lane_count; i++) {
        if (state->lanes[i].stream) (void)cudaStreamDestroy(state->lanes[i].stream);
        state->lanes[i].stream = NULL;
    }
}

typedef struct last_resort {
    pthread_mutex_t mutex;
    pthread_cond_t over;
    bool is_over;
} last_resort;

/* An abort that hangs in the driver would leave a rank that nobody can end but the kernel, and its
 * peers waiting. This is the one place where heddle ends a process. */
static void *end_process_if_stuck(void *user)
{
    last_resort *resort = user;
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += ABORT_SECONDS;
    pthread_mutex_lock(&resort->mutex);
    int result = 0;
    while (!resort->is_over && result == 0)
        result = pthread_cond_timedwait(&resort->over, &resort->mutex, &end);
    const bool is_stuck = !resort->is_over;
    pthread_mutex_unlock(&resort->mutex);
    if (is_stuck) kill(getpid(), SIGKILL);
    return NULL;
}

static int open_lanes(const hdi_nccl_device *device, hdi_nccl_lane **out)
{
    int count = 0;
    for (hdi_nccl_state *state = device->communicators; state; state = state->next)
        for (int i = 0; i < state->lane_count; i++) {
            if (!state->lanes[i].nccl) continue;
            if (out) out[count] = &state->lanes[i];
            count++;
        }
    return count;
}

void hdi_nccl_abort_lanes(hdi_nccl_device *device)
{
    last_resort resort = {.mutex = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER};
    pthread_t guard;
    for (hdi_nccl_state *state = device->communicators; state; state = state->next)
        hdi_nccl_release_copies(state->copies);
    const int count = open_lanes(device, NULL);
    hdi_nccl_lane **lanes = hdi_alloc_array((size_t)count + 1, sizeof(hdi_nccl_lane *));
    pthread_t *threads = hdi_alloc_array((size_t)count + 1, sizeof *threads);
    const bool is_guarded = pthread_create(&guard, NULL, end_process_if_stuck, &resort) == 0;
    if (lanes && threads) {
        open_lanes(device, lanes);
        abort_together(lanes, threads, count);
    }
    for (hdi_nccl_state *state = device->communicators; state; state = state->next)
        if (state->copies) (void)hdi_nccl_drain_copies(state->copies);
    if (is_guarded) {
        pthread_mutex_lock(&resort.mutex);
        resort.is_over = true;
        pthread_cond_signal(&resort.over);
        pthread_mutex_unlock(&resort.mutex);
        pthread_join(guard, NULL);
    }
    hdi_free(lanes);
    hdi_free(threads);
}
