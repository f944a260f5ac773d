/* Operations in flight under MPI: a pool that is reserved once. An operation is a list of parts, one
 * MPI request each; it is complete when all of them are. */
#ifndef HDI_COMM_MPI_REQUESTS_H
#define HDI_COMM_MPI_REQUESTS_H

#include <mpi.h>

#include "comm/comm.h"

enum { HDI_MPI_REQUESTS = 1024 }; /* in flight at once, per world */

typedef struct hdi_mpi_part {
    MPI_Request request;
    size_t bytes; /* of a receive: what must arrive */
    int peer;     /* -1: all ranks of the communicator */
    bool receives;
} hdi_mpi_part;

typedef struct hdi_mpi_operation {
    hd_comm *comm; /* borrowed; NULL: free */
    const char *name;
    size_t bytes;
    int channel; /* of send and recv, else -1 */
    int generation, next_free;
    int parts, first_pending;
    hdi_mpi_part *part;
} hdi_mpi_operation;

typedef struct hdi_mpi_pool {
    hdi_mpi_operation operations[HDI_MPI_REQUESTS];
    hdi_mpi_part *parts; /* parts_each for each operation */
    int parts_each, first_free;
} hdi_mpi_pool;

hd_status hdi_mpi_pool_create(int ranks, hdi_mpi_pool **out);
void hdi_mpi_pool_destroy(hdi_mpi_pool *pool); /* takes NULL */

/* HD_OK, or HD_ERROR_COMM with MPI's text. */
hd_status hdi_mpi_status(int code, const hd_comm *comm, const char *what);

/* Of what an all-reduce takes. */
MPI_Datatype hdi_mpi_type(hd_dtype dtype);
MPI_Op hdi_mpi_op(hd_reduce op);

/* Start an operation, add parts (post into the address that comes back), and end it with the status
 * of the posts: a request, or everything given up. */
hd_status hdi_mpi_begin(hdi_mpi_pool *pool, hd_comm *comm, const char *name, size_t bytes,
                        int channel, hdi_mpi_operation **out);
hd_status hdi_mpi_add(hdi_mpi_pool *pool, hdi_mpi_operation *operation, size_t bytes, int peer,
                      bool receives, MPI_Request **out);
hd_status hdi_mpi_end(hdi_mpi_pool *pool, hdi_mpi_operation *operation, hd_status posted,
                      hd_request *out);

hd_status hdi_mpi_test(hdi_mpi_pool *pool, hd_comm *comm, hd_request *request, bool *done);
void hdi_mpi_describe(hdi_mpi_pool *pool, hd_comm *comm, const hd_request *request, char *text,
                      size_t bytes);

/* How many operations `comm` has posted that nobody has seen the end of. */
int hdi_mpi_in_flight(const hdi_mpi_pool *pool, const hd_comm *comm);

/* Give up what `comm` has in flight. False if MPI still holds a collective, which nothing can
 * withdraw. */
bool hdi_mpi_drain(hdi_mpi_pool *pool, const hd_comm *comm);

#endif
