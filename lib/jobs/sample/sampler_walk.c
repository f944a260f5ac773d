/* The order of passes. */
#include "jobs/sample/sampler_walk.h"

static void take_video(hdi_walk *walk, hdi_walk_slot *slot)
{
    while (walk->next < walk->count && walk->videos[walk->next].step >= walk->steps)
        walk->next += walk->stride;
    slot->video = walk->next < walk->count ? walk->next : -1;
    if (slot->video < 0) return;
    slot->step = walk->videos[slot->video].step;
    walk->next += walk->stride;
}

void hdi_walk_begin(hdi_walk *walk, int first)
{
    walk->next = first;
    walk->slot = walk->branch = 0;
    for (int s = 0; s < walk->slot_count; s++)
        take_video(walk, &walk->slots[s]);
}

/* The slot whose turn it is, or the next one that has a video. */
static bool find_slot(hdi_walk *walk)
{
    for (int tried = 0; tried < walk->slot_count; tried++) {
        if (walk->slots[walk->slot].video >= 0) return true;
        walk->slot = (walk->slot + 1) % walk->slot_count;
    }
    return false;
}

bool hdi_walk_next(hdi_walk *walk, hdi_pass *out)
{
    if (!find_slot(walk)) return false;
    hdi_walk_slot *slot = &walk->slots[walk->slot];
    *out =
        (hdi_pass){.slot = walk->slot,
                   .video = slot->video,
                   .branch = walk->branch,
                   .step = slot->step,
                   .guidance = hdi_guidance_at(&walk->guidance, slot->step, walk->steps),
                   .is_first = walk->branch == 0 && slot->step == walk->videos[slot->video].step};
    if (++walk->branch < out->guidance.branches) return true;
    walk->branch = 0;
    if (++slot->step == walk->steps) take_video(walk, slot);
    walk->slot = (walk->slot + 1) % walk->slot_count;
    return true;
}

int64_t hdi_walk_passes(const hdi_walk *walk, int first)
{
    int64_t passes = 0;
    for (int v = first; v < walk->count; v += walk->stride)
        for (int64_t step = walk->videos[v].step; step < walk->steps; step++)
            passes += hdi_guidance_at(&walk->guidance, step, walk->steps).branches;
    return passes;
}

/* When the last branch of a step has entered the first stage, `stages` - 1 more passes go by before the
 * step is over; one more hides the way back. Steps that rest from guidance have one branch. */
int hdi_walk_in_flight(const hdi_guidance *guidance, int stages, int videos)
{
    if (stages == 1 || videos < 1) return 1;
    const int branches = guidance->oscillate ? 1 : guidance->branches;
    const int busy = 1 + (stages + branches - 1) / branches;
    const int rounds = videos > busy ? videos / busy : 1;
    return (videos + rounds - 1) / rounds;
}
