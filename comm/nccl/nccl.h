/* The inside of the NCCL transport: lanes, operations in flight, and the watch over them. */
#ifndef HDI_COMM_NCCL_NCCL_H
#define HDI_COMM_NCCL_NCCL_H

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "comm/device.h"
#include "comm/direct.h"

enum {
    HDI_NCCL_OPERATIONS = 1024, /* in flight at once, per device */
    HDI_NCCL_LANES = 7          /* of a communicator */
};

/* One NCCL communicator with a stream of its own: what is posted on it runs in order. Point-to-point
 * lanes have two ranks and carry one direction of one channel, so that a message never waits for
 * one of another direction. */
typedef struct hdi_nccl_lane {
    ncclComm_t nccl; /* NULL: not made, or aborted, or of copies */
    cudaStream_t stream;
    int from, to, channel; /* ranks of the communicator; channel -1: all ranks */
    bool is_busy;          /* while the watch looks: an earlier operation is not over */
    uint32_t turn;         /* messages, or pieces of them, that went by copy engines */
} hdi_nccl_lane;

typedef struct hdi_nccl_operation hdi_nccl_operation;
struct hdi_nccl_operation {
    hd_comm *comm; /* borrowed; NULL: free */
    hdi_nccl_lane *lane;
    const char *name;
    size_t bytes;
    int peer; /* -1: all */
    hdi_comm_label label;
    cudaEvent_t ready, done; /* the device came to it; it is over */
    double started;          /* when the watch first saw it ready with its lane free; 0: not yet */
    bool is_ordered;         /* the caller has no request any more */
    int generation;
    hdi_nccl_operation *previous, *next; /* in order of posting, or the free list by next */
};

typedef struct hdi_nccl_state hdi_nccl_state;
typedef struct hdi_nccl_copies hdi_nccl_copies;

/* What the NCCL communicators of one device share. */
struct hdi_nccl_device {
    cudaStream_t compute, queue; /* borrowed; queue: that posts follow and orders hold back */
    int ordinal;
    hdi_nccl_operation *operations; /* [HDI_NCCL_OPERATIONS] */
    hdi_nccl_operation *free, *first, *last;
    hdi_nccl_state *communicators; /* list */
    void *scratch;                 /* device memory for what carries no data */
    double watched;                /* when the watch looked last */
    hd_status failed;              /* once not HD_OK, every lane has been aborted */
    char text[1024];
};

struct hdi_nccl_state {
    hdi_nccl_device *device;
    hd_comm *comm;
    hd_comm *host; /* borrowed: the same ranks over host memory */
    hdi_nccl_lane lanes[HDI_NCCL_LANES];
    int lane_count;
    hdi_nccl_copies *copies; /* owned; NULL: no exchange by copy engines */
    hdi_nccl_state *next;
};

/* The first two lanes of every communicator. */
enum { HDI_NCCL_GATHER, HDI_NCCL_REDUCE, HDI_NCCL_FIRST_LINK };

static inline hdi_nccl_state *hdi_nccl_state_of(const hd_comm *comm)
{
    return comm->state;
}

extern const hdi_transport hdi_transport_nccl;

hd_status hdi_nccl_cuda_status(cudaError_t error, const char *what);
hd_status hdi_nccl_status(ncclResult_t result, ncclComm_t nccl, const hd_comm *comm,
                          const char *what);

/* Wait until a lane's last call has been taken. Fails after `deadline` seconds. */
hd_status hdi_nccl_poll(const hd_comm *comm, hdi_nccl_lane *lane, const char *what);

/* Make, and end, the lanes of a communicator (setup.c). Collective over state->host. */
hd_status hdi_nccl_open_lanes(hdi_nccl_state *state, bool links);
void hdi_nccl_close_lanes(hdi_nccl_state *state, bool is_clean);

/* Direct exchanges (copies.c), if all ranks can do them; else all go without. `flags`: device memory of
 * HDI_DIRECT_FLAG_BYTES, zeroed, borrowed until they are closed; NULL: this rank cannot. `engines` says the same
 * on all ranks. Collective. */
void hdi_nccl_open_copies(hdi_nccl_state *state, hdi_copy_engines engines, void *flags);
void hdi_nccl_close_copies(hdi_nccl_state *state);
hdi_nccl_lane *hdi_nccl_copies_lane(const hdi_nccl_copies *copies);
hd_status hdi_nccl_open_window(hd_comm *comm, void *memory, bool fits, void **window);
void hdi_nccl_close_window(hd_comm *comm, void *window);

/* What goes to each rank, and where what comes from each is to lie; the own goes from one to the other. */
typedef struct hdi_nccl_parts {
    const void *from[HDI_DIRECT_RANKS];
    void *come_to[HDI_DIRECT_RANKS];
    size_t go[HDI_DIRECT_RANKS], come[HDI_DIRECT_RANKS];
} hdi_nccl_parts;

/* On the lane of copies, which waits for `ready` already. */
hd_status hdi_nccl_copy_parts(hdi_nccl_copies *copies, const hdi_way *way, cudaEvent_t ready,
                              const hdi_nccl_parts *parts);

/* Both ends of a message of a link, in the order of the link's others. */
hd_status hdi_nccl_copy_message(const hdi_nccl_copies *copies, const hdi_way *way,
                                hdi_nccl_lane *link, const void *data, size_t bytes);
hd_status hdi_nccl_await_message(const hdi_nccl_copies *copies, hdi_nccl_lane *link, void *data,
                                 size_t bytes);

/* When peers do not come any more: nothing waits for them; true once all that was posted is over. */
void hdi_nccl_release_copies(const hdi_nccl_copies *copies); /* takes NULL */
bool hdi_nccl_drain_copies(const hdi_nccl_copies *copies);

/* Abort every lane of the device, for good. A driver that does not come back ends the process. */
void hdi_nccl_abort_lanes(hdi_nccl_device *device);

/* Operations (requests.c). begin: the lane waits for the device; end: with the status of the NCCL
 * calls made in between. */
hd_status hdi_nccl_begin(hd_comm *comm, hdi_nccl_lane *lane, const char *name, size_t bytes,
                         int peer, hdi_nccl_operation **out);
hd_status hdi_nccl_end(hdi_nccl_operation *operation, hd_status posted, hd_request *out);
hd_status hdi_nccl_test(hd_comm *comm, hd_request *request, bool *done);
hd_status hdi_nccl_order(hd_comm *comm, hd_request *request);
void hdi_nccl_follow(hd_comm *comm, void *stream);
hd_status hdi_nccl_settle(hd_comm *comm);
bool hdi_nccl_is_quiet(hd_comm *comm);
hd_status hdi_nccl_watch(hd_comm *comm);
void hdi_nccl_label(hd_comm *comm, const hd_request *request, const hdi_comm_label *label);
void hdi_nccl_describe(hd_comm *comm, const hd_request *request, char *text, size_t bytes);

/* Forget what a communicator has in flight; true if nothing was. */
bool hdi_nccl_forget(hd_comm *comm);

#endif
