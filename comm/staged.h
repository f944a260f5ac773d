/* The inside of the staged transport: its operations in flight. */
#ifndef HDI_COMM_STAGED_H
#define HDI_COMM_STAGED_H

#include "comm/device.h"

typedef enum hdi_staged_kind {
    HDI_STAGED_SEND,
    HDI_STAGED_RECV,
    HDI_STAGED_ALL_REDUCE,
    HDI_STAGED_ALL_GATHER,
    HDI_STAGED_ALL_TO_ALL,
    HDI_STAGED_BROADCAST
} hdi_staged_kind;

typedef enum hdi_staged_phase {
    HDI_STAGED_FREE,
    HDI_STAGED_REHEARSED, /* holds its memory; nothing moves */
    HDI_STAGED_OUT,
    HDI_STAGED_HOST,
    HDI_STAGED_IN,
    HDI_STAGED_OVER
} hdi_staged_phase;

/* A run of device memory and its copy on the host. */
typedef struct hdi_staged_side {
    char *device, *host;       /* host is a part of the operation's memory */
    size_t bytes;              /* of the host's copy */
    int64_t *counts, *offsets; /* [ranks] blocks in bytes; owned by the state */
} hdi_staged_side;

typedef struct hdi_staged_operation {
    hdi_staged_phase phase;
    hdi_staged_kind kind;
    int peer, channel; /* or the root */
    int64_t count;     /* all_reduce: elements */
    hd_dtype dtype;
    hd_reduce op;
    hdi_staged_side out, in;
    hd_request host; /* on the host's communicator */
    hd_status status;
    char text[256]; /* of a failure while somebody else's wait drove it */
    hdi_comm_label label;
    int64_t turn; /* order of posting */
    int generation;
    char *memory; /* host memory, kept from one operation to the next */
    size_t memory_bytes;
} hdi_staged_operation;

typedef struct hdi_staged_state {
    hd_comm *comm, *host;
    hdi_staging *staging; /* owned */
    hdi_staged_group *group;
    hd_comm *next; /* of the group */
    hdi_staged_operation operations[HDI_STAGED_OPERATIONS];
    int64_t *blocks;         /* [operations][4][ranks] */
    int64_t posted, started; /* turns given out, and the first that has not started on the host */
} hdi_staged_state;

static inline hdi_staged_state *hdi_staged_of(const hd_comm *comm)
{
    return comm->state;
}

/* A free operation with host memory for `bytes`, after what the device has queued until now. */
hd_status hdi_staged_take(hd_comm *comm, hdi_staged_kind kind, size_t bytes,
                          hdi_staged_operation **out);

/* The operation takes its turn, or, in a rehearsal, only holds its memory until it is waited for. */
hd_status hdi_staged_queue(hd_comm *comm, hdi_staged_operation *operation, hd_request *out);

/* Copies of all blocks of a side between the device and the host's memory; skip -1: none is left out. */
hd_status hdi_staged_copy_blocks(hdi_staged_state *state, const hdi_staged_side *side, bool leaves,
                                 int skip);

/* What a request stands for; NULL if it is not in flight. */
hdi_staged_operation *hdi_staged_find(const hd_comm *comm, const hd_request *request);

/* Move all operations of the rank on as far as they go. */
void hdi_staged_drive(hd_comm *comm);

/* As hdi_comm_rehearse says, for the group. */
void hdi_staged_rehearse(hdi_staged_group *group, bool begins);

const char *hdi_staged_name(hdi_staged_kind kind);

#endif
