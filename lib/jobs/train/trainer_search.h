/* Trainers of many ranks that one process plans for: what is searched for one rank serves those like it. */
#ifndef HDI_JOBS_TRAIN_TRAINER_SEARCH_H
#define HDI_JOBS_TRAIN_TRAINER_SEARCH_H

#include "jobs/train/trainer.h"

/* What a rank's search has ended with, and how the trainer that it made looks. */
typedef struct hdi_search {
    int64_t code; /* what hdi_trainer_adopt was told; zero: nothing */
    hd_trainer_options found;
    bool cuts_blocks;
    uint64_t likeness;
} hdi_search;

/* Of ranks of one mesh, model and configuration. Zeros: none yet. */
typedef struct hdi_searches {
    hdi_search *items; /* owned */
    int count, capacity;
} hdi_searches;

/* The trainer that hd_trainer_create would make of a fake mesh's options, or, with a code, hdi_trainer_adopt.
 * If a rank before has found settings with which this one's trainer is like that one's, those are taken: a
 * search decides by sizes and seconds, so that it would end there again. Local. */
hd_status hdi_searches_create_trainer(hdi_searches *searches, const hd_trainer_options *options,
                                      int64_t code, hd_trainer **out);
void hdi_searches_release(hdi_searches *searches);

/* A hash of what plans and predictions are made of: stage, shares, programs but for positions in what ranks
 * share, places, bytes and seconds. Ranks that have the same one differ only in which of equal shares theirs are. */
hd_status hdi_trainer_likeness(const hd_trainer *trainer, uint64_t *out);

#endif
