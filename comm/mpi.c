/* The transport over MPI. Everything is posted by MPI_I* and ended by MPI_Test, so that each wait has a
 * deadline: a collective that blocks would hang with the slowest rank.
 *
 * Sums of floating point numbers are added in MPI's order; who needs a fixed order exchanges the terms
 * with all_to_all and adds them. MPI counts are ints: what is larger travels in pieces of 1 GiB. */
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/comm.h"
#include "comm/mpi_requests.h"
#include "core/error.h"
#include "core/memory.h"

/* What the communicators of one world share. Ends with the last of them. */
typedef struct mpi_world {
    MPI_Comm mpi;
    hdi_mpi_pool *pool;
    double deadline_seconds;
    size_t piece_bytes; /* the largest MPI message */
    int communicators;
    bool has_stuck_collective;
} mpi_world;

typedef struct mpi_state {
    mpi_world *world;
    MPI_Comm mpi; /* of the world communicator: the world's */
} mpi_state;

/* MPI starts and ends once in a process, whoever starts it. */
static bool started_here;
static int open_worlds;

enum { EXCHANGE_TAG = HDI_COMM_CHANNELS }; /* all_gather and all_to_all; below are the channels */

static mpi_state *state_of(const hd_comm *comm)
{
    return comm->state;
}

static int environment_number(const char *variable)
{
    const char *value = getenv(variable);
    return value ? atoi(value) : 0;
}

static hd_status start_mpi(void)
{
    int is_started, has_ended;
    MPI_Finalized(&has_ended);
    if (has_ended)
        return hdi_error(HD_ERROR_COMM,
                         "comm: MPI has ended in this process and cannot start again; "
                         "keep one world open while you need MPI");
    MPI_Initialized(&is_started);
    if (is_started) return HD_OK;
    int threads;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &threads) != MPI_SUCCESS)
        return hdi_error(HD_ERROR_COMM, "comm: MPI does not start");
    started_here = true;
    return HD_OK;
}

/* Another MPI's launcher starts ranks that each believe to be alone. */
static hd_status check_launcher(int size)
{
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"};
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) {
        const int launched = environment_number(variables[i]);
        if (size == 1 && launched > 1)
            return hdi_error(
                HD_ERROR_COMM,
                "comm: the launcher started %d ranks (%s) but MPI sees one: it belongs "
                "to another MPI than heddle was built with (Open MPI)",
                launched, variables[i]);
    }
    return HD_OK;
}

/* Where ranks share cores, looking often would take the core from the rank that is waited for. */
static int choose_spins(int size)
{
    int local = environment_number("OMPI_COMM_WORLD_LOCAL_SIZE");
    if (local == 0) local = size;
    return local <= sysconf(_SC_NPROCESSORS_ONLN) ? 500 : 20;
}

static void stop_mpi(mpi_world *world)
{
    if (world->has_stuck_collective) return;
    /* MPI_Finalize waits for all ranks without a deadline: enter it when they all have come. Without
     * it, mpirun sees this rank leave and ends the others. */
    hd_comm *all;
    if (hdi_comm_new(&hdi_transport_mpi, 0, 1, world->deadline_seconds, &all) != HD_OK) return;
    mpi_state state = {.world = world, .mpi = world->mpi};
    all->state = &state;
    const bool is_together = hd_comm_barrier(all) == HD_OK;
    hdi_comm_delete(all);
    if (!is_together) return;
    MPI_Comm_free(&world->mpi);
    MPI_Finalize();
}

static void leave_world(mpi_world *world)
{
    if (--world->communicators > 0) return;
    const bool is_last = world->pool && --open_worlds == 0;
    if (is_last && started_here)
        stop_mpi(world);
    else if (world->mpi != MPI_COMM_NULL && !world->has_stuck_collective)
        MPI_Comm_free(&world->mpi);
    hdi_mpi_pool_destroy(world->pool);
    hdi_free(world);
}

static void mpi_destroy(hd_comm *comm)
{
    mpi_state *state = state_of(comm);
    if (state) {
        mpi_world *world = state->world;
        const bool is_clean = !world->pool || hdi_mpi_drain(world->pool, comm);
        if (!is_clean) world->has_stuck_collective = true;
        if (is_clean && state->mpi != world->mpi && state->mpi != MPI_COMM_NULL)
            MPI_Comm_free(&state->mpi);
        leave_world(world);
        hdi_free(state);
    }
    hdi_comm_delete(comm);
}

static hd_status attach(hd_comm *comm, mpi_world *world)
{
    mpi_state *state = hdi_alloc(sizeof *state);
    if (!state) return hdi_error(HD_ERROR_MEMORY, "comm: out of host memory");
    state->world = world;
    state->mpi = MPI_COMM_NULL;
    comm->state = state;
    world->communicators++;
    return HD_OK;
}

/* The world's own copy of MPI_COMM_WORLD, so that no other library's messages meet ours. */
static hd_status copy_world(hd_comm *comm, mpi_world *world)
{
    hdi_mpi_operation *operation;
    hd_request request = {0};
    MPI_Request *posted;
    HD_RETURN_IF_ERROR(hdi_mpi_begin(world->pool, comm, "create_world", 0, -1, &operation));
    hd_status status = hdi_mpi_add(world->pool, operation, 0, -1, false, &posted);
    if (status == HD_OK)
        status = hdi_mpi_status(MPI_Comm_idup(MPI_COMM_WORLD, &world->mpi, posted), comm,
                                "MPI_Comm_idup");
    HD_RETURN_IF_ERROR(hdi_mpi_end(world->pool, operation, status, &request));
    HD_RETURN_IF_ERROR(hd_comm_wait(comm, &request));
    MPI_Comm_set_errhandler(world->mpi, MPI_ERRORS_RETURN);
    state_of(comm)->mpi = world->mpi;
    return HD_OK;
}

static hd_status fill_world(hd_comm *comm)
{
    mpi_world *world = hdi_alloc(sizeof *world);
    if (!world) return hdi_error(HD_ERROR_MEMORY, "comm: out of host memory");
    world->mpi = MPI_COMM_NULL;
    world->piece_bytes = (size_t)1 << 30;
    world->deadline_seconds = comm->deadline_seconds;
    hd_status status = attach(comm, world);
    if (status != HD_OK) {
        hdi_free(world);
        return status;
    }
    HD_RETURN_IF_ERROR(hdi_mpi_pool_create(comm->size, &world->pool));
    open_worlds++;
    comm->spins = choose_spins(comm->size);
    return copy_world(comm, world);
}

static hd_status mpi_create_world(double deadline_seconds, hd_comm **out)
{
    HD_RETURN_IF_ERROR(start_mpi());
    int rank, size;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    HD_RETURN_IF_ERROR(check_launcher(size));
    hd_comm *comm;
    HD_RETURN_IF_ERROR(hdi_comm_new(&hdi_transport_mpi, rank, size, deadline_seconds, &comm));
    hd_status status = fill_world(comm);
    if (status != HD_OK) {
        mpi_destroy(comm);
        return status;
    }
    *out = comm;
    return HD_OK;
}

/* What each rank tells the others before MPI splits. */
typedef struct split_record {
    int32_t color, key, rank, has_memory;
} split_record;

_Static_assert(sizeof(split_record) <= HDI_COMM_RECORD, "a split record is one record");

static int compare_keys(const void *left, const void *right)
{
    const split_record *a = left, *b = right;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return (a->rank > b->rank) - (a->rank < b->rank);
}

/* All ranks reach the same verdict, since all see the same records. */
static hd_status check_split(const hd_comm *comm, const split_record *records)
{
    for (int r = 0; r < comm->size; r++) {
        if (records[r].color < 0)
            return hdi_error(HD_ERROR_ARGUMENT, "comm_split: rank %d has color %d, want >= 0", r,
                             (int)records[r].color);
        if (!records[r].has_memory)
            return hdi_error(HD_ERROR_MEMORY, "comm_split: rank %d is out of host memory", r);
    }
    return HD_OK;
}

static hd_status fill_split(hd_comm *comm, hd_comm *child, int color, int key)
{
    /* MPI_Comm_split blocks; the exchange before it has the deadline. */
    HD_RETURN_IF_ERROR(hdi_comm_gather(comm, sizeof(split_record)));
    split_record *records = comm->records;
    HD_RETURN_IF_ERROR(check_split(comm, records));

    int members = 0;
    for (int r = 0; r < comm->size; r++)
        if (records[r].color == color) records[members++] = records[r];
    qsort(records, (size_t)members, sizeof *records, compare_keys);
    for (int r = 0; r < members; r++) {
        child->world_ranks[r] = comm->world_ranks[records[r].rank];
        if (records[r].rank == comm->rank) child->rank = r;
    }
    child->size = members;
    child->spins = comm->spins;
    hdi_comm_set_name(child, "");
    hdi_comm_append(child->name, sizeof child->name, "split %d", color);
    return hdi_mpi_status(MPI_Comm_split(state_of(comm)->mpi, color, key, &state_of(child)->mpi),
                          comm, "MPI_Comm_split");
}

static hd_status mpi_split(hd_comm *comm, int color, int key, hd_comm **out)
{
    hd_comm *child;
    hd_status status =
        hdi_comm_new(&hdi_transport_mpi, 0, comm->size, comm->deadline_seconds, &child);
    if (status == HD_OK) status = attach(child, state_of(comm)->world);
    ((split_record *)comm->records)[comm->rank] = (split_record){
        .color = color, .key = key, .rank = comm->rank, .has_memory = status == HD_OK};
    if (status != HD_OK) { /* the others must hear of it */
        hdi_comm_delete(child);
        hdi_comm_gather(comm, sizeof(split_record));
        return hdi_error(status, "comm_split: out of host memory");
    }
    status = fill_split(comm, child, color, key);
    if (status != HD_OK) {
        mpi_destroy(child);
        return status;
    }
    *out = child;
    return HD_OK;
}

/* The split blocks: come here soon after something that all ranks have passed. */
static hd_status mpi_local(hd_comm *comm, int *rank, int *size)
{
    HD_RETURN_IF_ERROR(hd_comm_barrier(comm));
    MPI_Comm local;
    HD_RETURN_IF_ERROR(hdi_mpi_status(MPI_Comm_split_type(state_of(comm)->mpi, MPI_COMM_TYPE_SHARED,
                                                          comm->rank, MPI_INFO_NULL, &local),
                                      comm, "MPI_Comm_split_type"));
    MPI_Comm_rank(local, rank);
    MPI_Comm_size(local, size);
    MPI_Comm_free(&local);
    return HD_OK;
}

static void mpi_abort(hd_comm *comm, int code)
{
    (void)comm;
    MPI_Abort(MPI_COMM_WORLD, code ? code : 1);
}

/* One direction of a message, in pieces that MPI can count. An empty message is one piece. */
static hd_status post_message(hd_comm *comm, hdi_mpi_operation *operation, const void *data,
                              void *into, size_t bytes, int peer, int tag)
{
    const mpi_state *state = state_of(comm);
    mpi_world *world = state->world;
    size_t at = 0;
    do {
        const size_t piece = bytes - at < world->piece_bytes ? bytes - at : world->piece_bytes;
        MPI_Request *request;
        HD_RETURN_IF_ERROR(
            hdi_mpi_add(world->pool, operation, piece, peer, into != NULL, &request));
        int code = into ? MPI_Irecv((char *)into + at, (int)piece, MPI_BYTE, peer, tag, state->mpi,
                                    request)
                        : MPI_Isend((const char *)data + at, (int)piece, MPI_BYTE, peer, tag,
                                    state->mpi, request);
        HD_RETURN_IF_ERROR(hdi_mpi_status(code, comm, operation->name));
        at += piece;
    } while (at < bytes);
    return HD_OK;
}

static hd_status mpi_send(hd_comm *comm, const void *data, size_t bytes, int peer, int channel,
                          hd_request *out)
{
    hdi_mpi_pool *pool = state_of(comm)->world->pool;
    hdi_mpi_operation *operation;
    HD_RETURN_IF_ERROR(hdi_mpi_begin(pool, comm, "send", bytes, channel, &operation));
    hd_status status = post_message(comm, operation, bytes ? data : "", NULL, bytes, peer, channel);
    return hdi_mpi_end(pool, operation, status, out);
}

static hd_status mpi_recv(hd_comm *comm, void *data, size_t bytes, int peer, int channel,
                          hd_request *out)
{
    char nothing;
    hdi_mpi_pool *pool = state_of(comm)->world->pool;
    hdi_mpi_operation *operation;
    HD_RETURN_IF_ERROR(hdi_mpi_begin(pool, comm, "recv", bytes, channel, &operation));
    hd_status status =
        post_message(comm, operation, NULL, bytes ? data : &nothing, bytes, peer, channel);
    return hdi_mpi_end(pool, operation, status, out);
}

/* A run of bytes that goes to, or comes from, one peer. */
typedef struct block {
    size_t offset, bytes;
} block;

static block block_of(const int64_t *counts, const int64_t *offsets, int rank, size_t element)
{
    return (block){.offset = (size_t)offsets[rank] * element,
                   .bytes = (size_t)counts[rank] * element};
}

/* All ranks exchange blocks pairwise; an empty block is no message. Point-to-point messages take 64-bit
 * offsets, which MPI's own collectives do not, and tell which peer is late. Each rank starts with its
 * neighbour, so that nobody is everyone's first. */
static hd_status mpi_all_gather(hd_comm *comm, void *inout, const int64_t *counts,
                                const int64_t *offsets, hd_dtype dtype, hd_request *out)
{
    hdi_mpi_pool *pool = state_of(comm)->world->pool;
    const size_t element = hd_dtype_bytes(dtype);
    const block own = block_of(counts, offsets, comm->rank, element);
    hdi_mpi_operation *operation;
    HD_RETURN_IF_ERROR(hdi_mpi_begin(pool, comm, "all_gather", own.bytes, -1, &operation));
    hd_status status = HD_OK;
    for (int i = 1; i < comm->size && status == HD_OK; i++) {
        const int peer = (comm->rank + comm->size - i) % comm->size;
        const block from = block_of(counts, offsets, peer, element);
        if (from.bytes)
            status = post_message(comm, operation, NULL, (char *)inout + from.offset, from.bytes,
                                  peer, EXCHANGE_TAG);
    }
    for (int i = 1; i < comm->size && status == HD_OK && own.bytes; i++)
        status = post_message(comm, operation, (const char *)inout + own.offset, NULL, own.bytes,
                              (comm->rank + i) % comm->size, EXCHANGE_TAG);
    return hdi_mpi_end(pool, operation, status, out);
}

static hd_status mpi_all_to_all(hd_comm *comm, const void *send, const int64_t *send_counts,
                                const int64_t *send_offsets, void *recv, const int64_t *recv_counts,
                                const int64_t *recv_offsets, hd_dtype dtype, hd_request *out)
{
    hdi_mpi_pool *pool = state_of(comm)->world->pool;
    const size_t element = hd_dtype_bytes(dtype);
    const block own_from = block_of(send_counts, send_offsets, comm->rank, element);
    const block own_to = block_of(recv_counts, recv_offsets, comm->rank, element);
    size_t bytes = 0;
    for (int r = 0; r < comm->size; r++)
        bytes += (size_t)send_counts[r] * element;
    hdi_mpi_operation *operation;
    HD_RETURN_IF_ERROR(hdi_mpi_begin(pool, comm, "all_to_all", bytes, -1, &operation));
    hd_status status = HD_OK;
    for (int i = 1; i < comm->size && status == HD_OK; i++) {
        const int peer = (comm->rank + comm->size - i) % comm->size;
        const block from = block_of(recv_counts, recv_offsets, peer, element);
        if (from.bytes)
            status = post_message(comm, operation, NULL, (char *)recv + from.offset, from.bytes,
                                  peer, EXCHANGE_TAG);
    }
    for (int i = 1; i < comm->size && status == HD_OK; i++) {
        const int peer = (comm->rank + i) % comm->size;
        const block to = block_of(send_counts, send_offsets, peer, element);
        if (to.bytes)
            status = post_message(comm, operation, (const char *)send + to.offset, NULL, to.bytes,
                                  peer, EXCHANGE_TAG);
    }
    if (own_from.bytes)
        memmove((char *)recv + own_to.offset, (const char *)send + own_from.offset, own_from.bytes);
    return hdi_mpi_end(pool, operation, status, out);
}

static hd_status mpi_all_reduce(hd_comm *comm, void *inout, int64_t count, hd_dtype dtype,
                                hd_reduce op, hd_request *out)
{
    const mpi_state *state = state_of(comm);
    mpi_world *world = state->world;
    const size_t element = hd_dtype_bytes(dtype);
    const int64_t most = (int64_t)(world->piece_bytes / element);
    hdi_mpi_operation *operation;
    HD_RETURN_IF_ERROR(
        hdi_mpi_begin(world->pool, comm, "all_reduce", (size_t)count * element, -1, &operation));
    hd_status status = HD_OK;
    for (int64_t at = 0; at < count && status == HD_OK; at += most) {
        const int64_t piece = count - at < most ? count - at : most;
        MPI_Request *request;
        status = hdi_mpi_add(world->pool, operation, 0, -1, false, &request);
        if (status == HD_OK)
            status = hdi_mpi_status(
                MPI_Iallreduce(MPI_IN_PLACE, (char *)inout + (size_t)at * element, (int)piece,
                               hdi_mpi_type(dtype), hdi_mpi_op(op), state->mpi, request),
                comm, "all_reduce");
    }
    return hdi_mpi_end(world->pool, operation, status, out);
}

static hd_status mpi_broadcast(hd_comm *comm, void *inout, size_t bytes, int root, hd_request *out)
{
    const mpi_state *state = state_of(comm);
    mpi_world *world = state->world;
    hdi_mpi_operation *operation;
    HD_RETURN_IF_ERROR(hdi_mpi_begin(world->pool, comm, "broadcast", bytes, -1, &operation));
    hd_status status = HD_OK;
    for (size_t at = 0; at < bytes && status == HD_OK; at += world->piece_bytes) {
        const size_t piece = bytes - at < world->piece_bytes ? bytes - at : world->piece_bytes;
        MPI_Request *request;
        status = hdi_mpi_add(world->pool, operation, 0, -1, false, &request);
        if (status == HD_OK)
            status = hdi_mpi_status(
                MPI_Ibcast((char *)inout + at, (int)piece, MPI_BYTE, root, state->mpi, request),
                comm, "broadcast");
    }
    return hdi_mpi_end(world->pool, operation, status, out);
}

static hd_status mpi_barrier(hd_comm *comm, hd_request *out)
{
    const mpi_state *state = state_of(comm);
    hdi_mpi_pool *pool = state->world->pool;
    hdi_mpi_operation *operation;
    MPI_Request *request;
    HD_RETURN_IF_ERROR(hdi_mpi_begin(pool, comm, "barrier", 0, -1, &operation));
    hd_status status = hdi_mpi_add(pool, operation, 0, -1, false, &request);
    if (status == HD_OK)
        status = hdi_mpi_status(MPI_Ibarrier(state->mpi, request), comm, "barrier");
    return hdi_mpi_end(pool, operation, status, out);
}

static hd_status mpi_test(hd_comm *comm, hd_request *request, bool *done)
{
    return hdi_mpi_test(state_of(comm)->world->pool, comm, request, done);
}

static void mpi_describe(hd_comm *comm, const hd_request *request, char *text, size_t bytes)
{
    hdi_mpi_describe(state_of(comm)->world->pool, comm, request, text, bytes);
}

void hdi_comm_mpi_set_piece(hd_comm *comm, size_t bytes)
{
    if (comm->transport == &hdi_transport_mpi) state_of(comm)->world->piece_bytes = bytes;
}

/* Probing for a message that nobody sends makes MPI look at everything that is under way. */
static void mpi_progress(hd_comm *comm)
{
    int found;
    MPI_Iprobe(MPI_ANY_SOURCE, EXCHANGE_TAG + 1, state_of(comm)->mpi, &found, MPI_STATUS_IGNORE);
}

const hdi_transport hdi_transport_mpi = {
    .name = "mpi",
    .create_world = mpi_create_world,
    .split = mpi_split,
    .destroy = mpi_destroy,
    .abort = mpi_abort,
    .local = mpi_local,
    .send = mpi_send,
    .recv = mpi_recv,
    .all_reduce = mpi_all_reduce,
    .all_gather = mpi_all_gather,
    .all_to_all = mpi_all_to_all,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .test = mpi_test,
    .progress = mpi_progress,
    .describe = mpi_describe,
};
