/* What stands behind communicators over MPI. */
#ifndef HDI_COMM_MPI_WORLD_H
#define HDI_COMM_MPI_WORLD_H

#include "comm/mpi_requests.h"

/* What the communicators of one world share. Ends with the last of them. */
typedef struct hdi_mpi_world {
    MPI_Comm mpi;
    hdi_mpi_pool *pool;
    double deadline_seconds;
    size_t piece_bytes; /* the largest MPI message */
    int communicators;
    bool has_stuck_collective;
} hdi_mpi_world;

typedef struct hdi_mpi_state {
    hdi_mpi_world *world;
    MPI_Comm mpi; /* of the world communicator: the world's */
} hdi_mpi_state;

static inline hdi_mpi_state *hdi_mpi_of(const hd_comm *comm)
{
    return comm->state;
}

/* As hdi_transport says. */
hd_status hdi_mpi_create_world(double deadline_seconds, hd_comm **out);
hd_status hdi_mpi_split(hd_comm *comm, int color, int key, hd_comm **out);
hd_status hdi_mpi_local(hd_comm *comm, int *rank, int *size);
void hdi_mpi_destroy(hd_comm *comm);

#endif
