/* The order in which passes of the network run: the same list on every stage, from the request alone,
 * so nobody has to announce anything. */
#ifndef HDI_JOBS_SAMPLE_SAMPLER_WALK_H
#define HDI_JOBS_SAMPLE_SAMPLER_WALK_H

#include "optim/flow.h"

#include <heddle/sampler.h>

/* A video in flight, as the walk sees it. */
typedef struct hdi_walk_slot {
    int video; /* -1: none */
    int64_t step;
} hdi_walk_slot;

typedef struct hdi_walk {
    const hd_sampler_video *videos; /* borrowed */
    int count, stride;              /* this line takes every stride-th video */
    int64_t steps;
    hdi_guidance guidance;
    hdi_walk_slot *slots; /* [slot_count], borrowed */
    int slot_count;
    int next; /* video for the next free slot */
    int slot, branch;
} hdi_walk;

/* One pass: a branch of a step of a video. */
typedef struct hdi_pass {
    int slot, video, branch;
    int64_t step;
    hdi_guidance_step guidance; /* guidance.branches of them make the step */
    bool is_first;              /* pass of the video in this run */
} hdi_pass;

/* Fill the slots. `first`: the line's first video. Videos without steps left are passed over. */
void hdi_walk_begin(hdi_walk *walk, int first);

/* The next pass; false when there is none. Slots take turns, each with all branches of a step. */
bool hdi_walk_next(hdi_walk *walk, hdi_pass *out);

/* The passes of the line whose first video is `first`. */
int64_t hdi_walk_passes(const hdi_walk *walk, int first);

/* How many of a line's `videos` are in flight: as many as keep `stages` stages busy, and more where the last
 * ones would else run on their own. At least 1. */
int hdi_walk_in_flight(const hdi_guidance *guidance, int stages, int videos);

#endif
