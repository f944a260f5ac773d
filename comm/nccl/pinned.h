/* Pinned memory of a host that all ranks of a communicator map: their GPUs read and write it, and so does the CPU. */
#ifndef HDI_COMM_NCCL_PINNED_H
#define HDI_COMM_NCCL_PINNED_H

#include "comm/comm.h"
#include "core/shared.h"

typedef struct hdi_nccl_pinned {
    hdi_shared shared;
    bool is_registered;
    char *device;  /* where it begins for this rank's GPU */
} hdi_nccl_pinned; /* zeroed is closed */

/* Zeros: `common` bytes and, behind them, `each` of every rank, which that rank has the system give it, and so near
 * its own GPU. All ranks of `host` are on one host. Ends in agreement; on failure the caller closes it, too.
 * Collective. */
hd_status hdi_nccl_pinned_open(hd_comm *host, size_t common, size_t each, hdi_nccl_pinned *out);
void hdi_nccl_pinned_close(hdi_nccl_pinned *it); /* nothing uses it any more */

/* By the CPU, at once. */
void hdi_nccl_pinned_store(const hdi_nccl_pinned *it, size_t at, uint32_t value);

#endif
