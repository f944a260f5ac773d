/* Direct exchanges: each rank writes what it gives into its peers' memory. For that it must know where they
 * have it come to, so ranks tell each other once, before the first step, what programs would post; only
 * exchanges of which all ranks can do their part go this way, and none can take another way than its peers. */
#ifndef HDI_COMM_DIRECT_H
#define HDI_COMM_DIRECT_H

#include "comm/comm.h"

enum {
    HDI_DIRECT_RANKS = 8,           /* of a communicator; of more, none goes this way */
    HDI_DIRECT_LEAST = 128 << 10,   /* bytes to other ranks; below, the ranks' meetings cost more */
    HDI_DIRECT_FLAG_BYTES = 2 << 20 /* of device memory, per communicator, for meetings */
};

/* What copy engines do for ranks of one host. */
typedef enum hdi_copy_engines {
    HDI_COPY_ENGINES_AUTO, /* copy into peers' memory; where GPUs do not reach each other, as HOST; where
                              ranks share one, nothing */
    HDI_COPY_ENGINES_OFF,  /* nothing: exchanges are kernels */
    HDI_COPY_ENGINES_HOST, /* copy to shared host memory, and from there */
    HDI_COPY_ENGINES_PEERS /* copy into peers' memory or do nothing, also where ranks share a GPU: for tests */
} hdi_copy_engines;

/* An exchange that a rank would post: where each peer's part comes to, the bytes of it and of what the peer
 * gets. What was heard last; nothing at first. */
struct hdi_heard {
    bool is_exchange;
    const char *come_to[HDI_DIRECT_RANKS];
    size_t come[HDI_DIRECT_RANKS], go[HDI_DIRECT_RANKS];
};

/* What comm->hears is told instead of the transport. */
void hdi_hear_all_gather(hd_comm *comm, const void *inout, const int64_t *counts,
                         const int64_t *offsets, hd_dtype dtype);
void hdi_hear_all_to_all(hd_comm *comm, const int64_t *send_counts, const void *recv,
                         const int64_t *recv_counts, const int64_t *recv_offsets, hd_dtype dtype);

/* Where one rank has another's part come to: from the begin of its window, in the first slot at the first
 * gradient level, and how far others are from it. */
typedef struct hdi_landing {
    int64_t at, bytes, slots, stride, level_stride;
} hdi_landing;
enum { HDI_LANDING_NUMBERS = 5 };

static inline size_t hdi_landing_at(const hdi_landing *it, int micro_batch, int level)
{
    return (size_t)(it->at + micro_batch % it->slots * it->stride + level * it->level_stride);
}

/* Whether this rank could do its part: it is worth it, and what comes is in `bytes` at `memory`. Local. */
bool hdi_heard_fits(const hdi_heard *heard, int rank, int ranks, const void *memory, size_t bytes);

/* Whether the peers' landings are for what goes to them, [ranks] each. Local. */
bool hdi_landings_match(const hdi_landing *theirs, const size_t *go, int rank, int ranks);

/* Each number becomes the least of all ranks'. Waits. Collective over a communicator of host memory. */
hd_status hdi_direct_least(hd_comm *host, int64_t *inout, int64_t count);

/* Tell peers the landings of `count` exchanges, in the order in which all ranks post them first: own and
 * theirs are [ranks][count]. `go` is [count][ranks]. fits: [count], then of all ranks, and that all matches;
 * none fits if ranks count differently. Waits. Collective over a communicator of host memory. */
hd_status hdi_direct_agree(hd_comm *host, int64_t count, const hdi_landing *own,
                           hdi_landing *theirs, const size_t *go, int64_t *fits);

/* How an exchange goes that is posted now: into each peer's part of the window, from its begin on; peers that go
 * through host memory put it where their own operation says. */
struct hdi_way {
    void *window; /* what open_window gave */
    size_t to[HDI_DIRECT_RANKS];
};

#endif
