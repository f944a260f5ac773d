/* Seconds of products in pieces, one computed while another travels. */
#include "ops/tensor_pieces.h"

#include <math.h>

#define MESSAGE_SECONDS 20e-6 /* what a message takes beyond its bytes */

static double after_gather(const hdi_piece_timing *t, int groups)
{
    const int steps = (t->ranks - 1) * (groups - 1);
    if (groups == 1) return fmax(t->beside, t->sent + MESSAGE_SECONDS) + t->product + t->each;
    const double piece = (t->product - t->product / t->ranks) / steps;
    double computed = t->beside + t->product / t->ranks + t->each;
    for (int i = 1; i <= steps; i++)
        computed = fmax(computed, i * (t->sent / steps + MESSAGE_SECONDS)) + piece + t->each;
    return computed;
}

static double before_exchange(const hdi_piece_timing *t, int groups)
{
    const int steps = (t->ranks - 1) * (groups - 1);
    double computed = t->product + t->each, sent = computed + t->sent + MESSAGE_SECONDS;
    if (groups > 1) {
        const double piece = (t->product - t->product / t->ranks) / steps;
        computed = sent = 0;
        for (int i = 1; i <= steps; i++) {
            computed += piece + t->each;
            sent = fmax(sent, computed) + t->sent / steps + MESSAGE_SECONDS;
        }
        computed += t->product / t->ranks + t->each;
    }
    return fmax(computed + t->beside, sent);
}

double hdi_piece_seconds(const hdi_piece_timing *timing, bool gathers, int groups)
{
    return gathers ? after_gather(timing, groups) : before_exchange(timing, groups);
}

int hdi_piece_groups(const hdi_piece_timing *timing, bool gathers)
{
    int best = 1;
    for (int groups = 2; groups <= HDI_TENSOR_GROUPS; groups++)
        if (hdi_piece_seconds(timing, gathers, groups) < hdi_piece_seconds(timing, gathers, best))
            best = groups;
    return best;
}
