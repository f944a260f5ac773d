/* Communicators of device memory, made over communicators of host memory with the same ranks. */
#ifndef HDI_COMM_DEVICE_H
#define HDI_COMM_DEVICE_H

#include "comm/direct.h"

/* What the NCCL communicators of one rank share: events, deadlines, the watch. */
typedef struct hdi_nccl_device hdi_nccl_device;

/* `compute_stream` is the cudaStream_t that the rank's programs run on, borrowed. Local. */
hd_status hdi_nccl_device_create(int ordinal, void *compute_stream, hdi_nccl_device **out);
void hdi_nccl_device_destroy(hdi_nccl_device *device); /* takes NULL; after its communicators */

/* Programs run on another stream from here on; nothing is under way. Local. */
void hdi_nccl_serve(hdi_nccl_device *device, void *compute_stream);

typedef struct hdi_nccl_options {
    /* Send and receive between neighbours of the ring, upwards on channel 0 and downwards on channel 1; without,
     * there are collectives only. */
    bool links;
    /* Direct exchanges (direct.h), too, where all ranks can; the same on all. */
    hdi_copy_engines copies;
    /* HDI_DIRECT_FLAG_BYTES for them, as hdi_nccl_open_copies has it; outlives the communicator. */
    void *flags;
} hdi_nccl_options;

/* Ranks of `host`, which is borrowed, by NCCL. Ends in agreement: all ranks get a communicator, or all an
 * error. Collective over host. */
hd_status hdi_comm_create_nccl(hd_comm *host, hdi_nccl_device *device,
                               const hdi_nccl_options *options, hd_comm **out);

/* A communicator on which nothing is under way goes on with another `host` of the same ranks. Local. */
void hdi_nccl_rehost(hd_comm *comm, hd_comm *host);

/* How the staged transport reaches device memory. Slots number the operations in flight. */
typedef struct hdi_staging hdi_staging;
struct hdi_staging {
    hd_status (*reserve)(hdi_staging *staging, size_t bytes, void **out); /* host memory */
    void (*release)(hdi_staging *staging, void *memory, size_t bytes);

    /* Copies that follow run after what the device's programs have queued until now. */
    hd_status (*begin)(hdi_staging *staging, int slot);
    hd_status (*copy)(hdi_staging *staging, void *out, const void *x, size_t bytes);
    /* Whether everything since has been copied is asked by `query`. */
    hd_status (*mark)(hdi_staging *staging, int slot);
    hd_status (*query)(hdi_staging *staging, int slot, bool *done);
    /* That `begin` looks at; NULL: the first one. NULL where nothing is queued. */
    void (*follow)(hdi_staging *staging, void *stream);
    void (*destroy)(hdi_staging *staging); /* waits for its copies */
};

/* Device memory that is host memory: copies are over when they return. */
hd_status hdi_staging_create_host(hdi_staging **out);

/* By CUDA, behind `compute_stream` (a cudaStream_t, borrowed), for `slots` slots. */
hd_status hdi_staging_create_cuda(void *compute_stream, int slots, hdi_staging **out);

enum { HDI_STAGED_OPERATIONS = 128 }; /* in flight at once, per communicator; its slots */

/* What the staged communicators of one rank share: each wait drives all of them. */
typedef struct hdi_staged_group {
    hd_comm *first;
    bool rehearses;
} hdi_staged_group;

/* Ranks of `host`, through host memory. `host` and `group` are borrowed, `staging` is taken over
 * (also on failure). Local. */
hd_status hdi_comm_create_staged(hd_comm *host, hdi_staged_group *group, hdi_staging *staging,
                                 hd_comm **out);

/* The text for messages that stand for an operation of a program. */
void hdi_comm_append_label(char *text, size_t bytes, const hdi_comm_label *label);

#endif
