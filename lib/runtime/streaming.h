/* Weights of a session that stay on the host: their memory there, and their way through the slots. */
#ifndef HDI_RUNTIME_STREAMING_H
#define HDI_RUNTIME_STREAMING_H

#include "backend/backend.h"
#include "program/plan.h"
#include "runtime/gather.h"
#include "runtime/node_copy.h"

#include <heddle/session.h>

typedef struct hdi_streaming {
    char *
        host; /* pinned: all host blocks; NULL without any. Owned, but for those that programs update */
    hdi_node_copy copy;        /* what `host` is in, if ranks share it */
    hdi_gathers gathers;       /* of a plan whose ranks have shards of the blocks */
    int held[HD_STREAM_SLOTS]; /* the block that a slot has or is about to have; -1: none */
    int turn;                  /* slot of the next run's first use */
} hdi_streaming;

/* How far a run of a program's phase has come with its uses. */
typedef struct hdi_streaming_walk {
    const hdi_stream_run *run;  /* borrowed from the plan, as what follows */
    const hdi_stream_run *next; /* whose first blocks are fetched while this one ends; or NULL */
    int fetch, use; /* the next fetch to queue; the use under way, -1 before the first */
} hdi_streaming_walk;

/* Make room for the host blocks, or for what gathers them. */
hd_status hdi_streaming_open(hd_session *session);
void hdi_streaming_close(hd_session *session);

/* What is queued next comes behind what an update beside changes of a block's weights where they are kept. */
hd_status hdi_streaming_await_kept(hd_session *session, int block);

/* Before op `op` is queued: fetches whose slots are free from here on, and the wait for the op's own
 * weights. After the last op of a run: the rest. */
hd_status hdi_streaming_before(hd_session *session, hdi_streaming_walk *walk, int op);
hd_status hdi_streaming_end(hd_session *session, hdi_streaming_walk *walk);

/* The slots forget what they had: weights have changed. */
hd_status hdi_streaming_stale(hd_session *session);

/* The first op from the next one on before which there is anything to do; INT_MAX: none. */
int hdi_streaming_until(const hd_session *session, const hdi_streaming_walk *walk);

/* The slot of the use under way. */
int hdi_streaming_slot(const hd_session *session, const hdi_streaming_walk *walk);

/* Host memory of layout entry `entry`; NULL if it is resident or sharded. */
char *hdi_streaming_weights(const hd_session *session, int entry);

/* False if another rank writes the entry's weights into memory that ranks share. */
bool hdi_streaming_is_mine(const hd_session *session, int entry);

/* After it the host's weights of `entry` may change: copies are over, and the slots forget them. */
hd_status hdi_streaming_forget(hd_session *session, int entry);

/* Device memory that serves to make an entry's first values; the slots forget what they had. */
char *hdi_streaming_scratch(hd_session *session);

#endif
