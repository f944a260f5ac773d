/* Communicators of device memory that outlast their mesh: who next wants the same ranks takes them. For
 * processes that go through many meshes on one GPU, which is tests: to make a communicator takes half a second
 * there. Only those of kernels stay; what copy engines use lies in their context's memory. */
#ifndef HDI_RUNTIME_PARKING_H
#define HDI_RUNTIME_PARKING_H

#include "comm/comm.h"
#include "comm/device.h"
#include "runtime/session.h"

/* A world's `parking` is NULL, or borrows one of these, on all its ranks. Local. */
hd_status hdi_parking_create(hdi_parking **out);

/* Before its world ends, and after all meshes. Collective over the world; takes NULL. */
void hdi_parking_destroy(hdi_parking *parking);

/* What communicators of `context` share, for one mesh at a time; *out NULL: it is lent already, or there is no
 * parking. Give it back when nothing of it is used. Local. */
hd_status hdi_parking_lend(hdi_parking *parking, const hd_context *context, hdi_nccl_device **out);
void hdi_parking_return(hdi_parking *parking);

/* The communicator of host's ranks, owned by the caller; NULL: none, or not on all of them. Collective over
 * host. */
hd_comm *hdi_parking_take(hdi_parking *parking, hd_comm *host, bool links);

/* Leave one there. False: something of it was late or has failed on a rank, the caller keeps it. Collective
 * over host. */
bool hdi_parking_put(hdi_parking *parking, hd_comm *comm, hd_comm *host, bool links);

#endif
