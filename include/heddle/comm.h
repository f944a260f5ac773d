/* Communicators: groups of ranks that move bytes between each other.
 *
 * Every operation is posted and completes later: the call returns a request, hd_comm_wait ends it.
 * Buffers are borrowed until then. Counts are elements, never bytes, unless the name says so.
 * Posting order must be equal on all ranks of the communicator for collectives, and per (pair,
 * channel) for send and receive. A wait that passes the communicator's deadline fails with
 * HD_ERROR_TIMEOUT and names the operation and its peers. */
#ifndef HEDDLE_COMM_H
#define HEDDLE_COMM_H

#include <heddle/dtype.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hd_comm hd_comm;

/* Kinds of transport for hd_comm_create_world. */
typedef enum hd_transport {
    HD_TRANSPORT_AUTO, /* mpi if started by mpirun or a batch system's launcher, else self */
    HD_TRANSPORT_SELF, /* one rank */
    HD_TRANSPORT_MPI
} hd_transport;

typedef struct hd_comm_options {
    hd_transport transport;
    double deadline_seconds; /* of every wait; zero means 120 */
} hd_comm_options;

/* The communicator of all ranks. Collective. Starts MPI when nobody has; then the last
 * hd_comm_destroy of a world ends it. Owned by the caller. */
HD_API hd_status hd_comm_create_world(const hd_comm_options *options, hd_comm **out);

/* Ranks with equal `color` form a new communicator, ordered by `key`. Collective. */
HD_API hd_status hd_comm_split(hd_comm *comm, int color, int key, hd_comm **out);
HD_API void hd_comm_destroy(hd_comm *comm); /* Collective; takes NULL */

HD_API int hd_comm_rank(const hd_comm *comm); /* Local; 0 for NULL */
HD_API int hd_comm_size(const hd_comm *comm); /* Local; 1 for NULL */

typedef enum hd_reduce { HD_REDUCE_SUM, HD_REDUCE_MAX, HD_REDUCE_MIN } hd_reduce;

/* A posted operation. A zeroed request is complete. */
typedef struct hd_request {
    int32_t id; /* 0: complete */
} hd_request;

/* Point to point. Matched by (pair, channel) in posting order. Channels are 0..15. */
HD_API hd_status hd_comm_send(hd_comm *comm, const void *data, size_t bytes, int peer, int channel,
                              hd_request *out);
HD_API hd_status hd_comm_recv(hd_comm *comm, void *data, size_t bytes, int peer, int channel,
                              hd_request *out);

/* Replace inout on every rank by the reduction over all ranks. F32, F64, I32, I64. Collective. */
HD_API hd_status hd_comm_all_reduce(hd_comm *comm, void *inout, int64_t count, hd_dtype dtype,
                                    hd_reduce op, hd_request *out);

/* Rank r contributes counts[r] elements at offsets[r] of `inout`, and has all of it after.
 * Collective; counts and offsets are equal on all ranks. */
HD_API hd_status hd_comm_all_gather(hd_comm *comm, void *inout, const int64_t *counts,
                                    const int64_t *offsets, hd_dtype dtype, hd_request *out);

/* Send send_counts[r] elements from send_offsets[r] to each rank r, receive likewise. Collective. */
HD_API hd_status hd_comm_all_to_all(hd_comm *comm, const void *send, const int64_t *send_counts,
                                    const int64_t *send_offsets, void *recv,
                                    const int64_t *recv_counts, const int64_t *recv_offsets,
                                    hd_dtype dtype, hd_request *out);

/* Copy `bytes` from `root` to all. Collective. */
HD_API hd_status hd_comm_broadcast(hd_comm *comm, void *inout, size_t bytes, int root,
                                   hd_request *out);

/* Make progress; *done says whether the request has completed. Local. */
HD_API hd_status hd_comm_test(hd_comm *comm, hd_request *request, bool *done);

/* Wait for a request, up to the deadline. Local, but a peer that never posts makes it fail. */
HD_API hd_status hd_comm_wait(hd_comm *comm, hd_request *request);

/* Post and wait for a barrier. Collective. */
HD_API hd_status hd_comm_barrier(hd_comm *comm);

/* HD_OK if `bytes` of data are equal on all ranks, else HD_ERROR_MISMATCH on all of them, naming
 * `what` and the ranks that differ from rank 0. Collective. */
HD_API hd_status hd_comm_check_equal(hd_comm *comm, const void *data, size_t bytes,
                                     const char *what);

/* If any rank passes a status that is not HD_OK, every rank gets a failing status: its own, or
 * HD_ERROR_COMM naming the first rank that failed and its text. Collective. */
HD_API hd_status hd_comm_agree(hd_comm *comm, hd_status status);

/* End the whole job: all ranks stop, the launcher returns `code`. Does not return under MPI. */
HD_API void hd_comm_abort(hd_comm *comm, int code);

#ifdef __cplusplus
}
#endif
#endif
