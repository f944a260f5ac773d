/* The inside of direct exchanges: what has the copy engines, and the two ways to carry bytes with them. */
#ifndef HDI_COMM_NCCL_COPIES_H
#define HDI_COMM_NCCL_COPIES_H

#include "comm/nccl/nccl.h"
#include "comm/nccl/window.h"

/* A trial's bytes in each rank's memory: what goes and, behind that, what comes. Words are before them. */
enum { HDI_NCCL_TRIAL_AT = 1 << 16 };

typedef struct hdi_nccl_mail hdi_nccl_mail;

/* A way to carry bytes between all ranks of a communicator. What is posted runs on its streams, and an operation
 * is over with the last that is queued on its lane's. */
typedef struct hdi_nccl_carrier {
    bool through_host;
    hd_status (*open)(hdi_nccl_copies *it); /* ends in agreement. Collective over state->host */
    void (*close)(hdi_nccl_copies *it);     /* takes a half-open one; nothing is under way */
    hd_status (*exchange)(hdi_nccl_copies *it, const hdi_way *way, cudaEvent_t ready,
                          const hdi_nccl_parts *parts);
    hd_status (*send)(const hdi_nccl_copies *it, const hdi_way *way, hdi_nccl_lane *link,
                      const void *data, size_t bytes);
    hd_status (*receive)(const hdi_nccl_copies *it, hdi_nccl_lane *link, void *data, size_t bytes);
    /* Words that this rank waits for get values past any turn. */
    void (*write_past)(const hdi_nccl_copies *it);
} hdi_nccl_carrier;

extern const hdi_nccl_carrier hdi_nccl_peers; /* straight into their memory (peers.c) */
extern const hdi_nccl_carrier hdi_nccl_mails; /* through shared host memory (mails.c) */

struct hdi_nccl_copies {
    const hdi_nccl_carrier *carrier; /* NULL: not chosen yet */
    hdi_nccl_state *state;           /* borrowed */
    hdi_nccl_lane *lane;
    cudaStream_t
        beside;       /* peers: writes words of an abort while the lane waits; mails: what leaves */
    bool has_batches; /* the driver takes copies together, and beside computation */
    char *memory;     /* HDI_DIRECT_FLAG_BYTES of the device; borrowed */
    hdi_nccl_window *flags; /* of peers: all ranks' memory; owned */
    uint32_t turn;          /* of peers' exchanges */
    hdi_nccl_mail *mail;    /* of mails; owned */
    size_t host_bytes;      /* pinned memory of all ranks together */
};

/* Copies within the device's addresses. */
hd_status hdi_nccl_copy(const hdi_nccl_copies *it, void **to, const void **from, size_t *bytes,
                        size_t count, cudaStream_t stream);

#endif
