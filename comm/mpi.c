/* The transport over MPI. Everything is posted by MPI_I* and ended by MPI_Test, so that each wait has a
 * deadline: a collective that blocks would hang with the slowest rank.
 *
 * Sums of floating point numbers are added in MPI's order; who needs a fixed order exchanges the terms
 * with all_to_all and adds them. MPI counts are ints: what is larger travels in pieces of 1 GiB. */
#include <mpi.h>
#include <string.h>

#include "comm/mpi_world.h"
#include "core/error.h"

enum { EXCHANGE_TAG = HDI_COMM_CHANNELS }; /* all_gather and all_to_all; below are the channels */

static void mpi_abort(hd_comm *comm, int code)
{
    (void)comm;
    MPI_Abort(MPI_COMM_WORLD, code ? code : 1);
}

/* One direction of a message, in pieces that MPI can count. An empty message is one piece. */
static hd_status post_message(hd_comm *comm, hdi_mpi_operation *operation, const void *data,
                              void *into, size_t bytes, int peer, int tag)
{
    const hdi_mpi_state *state = hdi_mpi_of(comm);
    hdi_mpi_world *world = state->world;
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
    hdi_mpi_pool *pool = hdi_mpi_of(comm)->world->pool;
    hdi_mpi_operation *operation;
    HD_RETURN_IF_ERROR(hdi_mpi_begin(pool, comm, "send", bytes, channel, &operation));
    hd_status status = post_message(comm, operation, bytes ? data : "", NULL, bytes, peer, channel);
    return hdi_mpi_end(pool, operation, status, out);
}

static hd_status mpi_recv(hd_comm *comm, void *data, size_t bytes, int peer, int channel,
                          hd_request *out)
{
    char nothing;
    hdi_mpi_pool *pool = hdi_mpi_of(comm)->world->pool;
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
    hdi_mpi_pool *pool = hdi_mpi_of(comm)->world->pool;
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
    hdi_mpi_pool *pool = hdi_mpi_of(comm)->world->pool;
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
    const hdi_mpi_state *state = hdi_mpi_of(comm);
    hdi_mpi_world *world = state->world;
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
    const hdi_mpi_state *state = hdi_mpi_of(comm);
    hdi_mpi_world *world = state->world;
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
    const hdi_mpi_state *state = hdi_mpi_of(comm);
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
    return hdi_mpi_test(hdi_mpi_of(comm)->world->pool, comm, request, done);
}

static void mpi_describe(hd_comm *comm, const hd_request *request, char *text, size_t bytes)
{
    hdi_mpi_describe(hdi_mpi_of(comm)->world->pool, comm, request, text, bytes);
}

void hdi_comm_mpi_set_piece(hd_comm *comm, size_t bytes)
{
    if (comm->transport == &hdi_transport_mpi) hdi_mpi_of(comm)->world->piece_bytes = bytes;
}

/* Probing for a message that nobody sends makes MPI look at everything that is under way. */
static void mpi_progress(hd_comm *comm)
{
    int found;
    MPI_Iprobe(MPI_ANY_SOURCE, EXCHANGE_TAG + 1, hdi_mpi_of(comm)->mpi, &found, MPI_STATUS_IGNORE);
}

const hdi_transport hdi_transport_mpi = {
    .name = "mpi",
    .create_world = hdi_mpi_create_world,
    .split = hdi_mpi_split,
    .destroy = hdi_mpi_destroy,
    .abort = mpi_abort,
    .local = hdi_mpi_local,
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
