/* Blocks of which ranks have shards, put together in their slots. */
#ifndef HDI_RUNTIME_GATHER_H
#define HDI_RUNTIME_GATHER_H

#include <heddle/session.h>

/* What is under way for each slot. */
typedef struct hdi_gathers {
    hd_request *requests; /* [slots][most], owned */
    int most;             /* buckets of a block */
    int prepared; /* block of which this rank's shard is behind the slots, or on its way there from the
                     host; -1: none */
} hdi_gathers;

hd_status hdi_gathers_open(hd_session *session);
void hdi_gathers_close(hd_session *session);

/* Queue the gathering of a block into its slot at arena offset `at`: it begins when what the device has
 * been given is done. Collective over the axis that shards. */
hd_status hdi_gather_begin(hd_session *session, int slot, int block, size_t at);

/* Copy this rank's shard of a block from the host, where shards are kept there: when what the device has
 * been given is done, and before the block's gathering, which does it itself otherwise. Local. */
hd_status hdi_gather_prepare(hd_session *session, int block);

/* Nothing is prepared any more, and its copy is over. Local. */
hd_status hdi_gather_forget(hd_session *session);

/* What the device is given from here on finds the slot's block whole. */
hd_status hdi_gather_await(hd_session *session, int slot);

/* As hdi_session_rehearse says, of as many blocks at once as there are slots. */
hd_status hdi_gathers_rehearse(hd_session *session);

#endif
