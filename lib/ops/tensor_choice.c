/* Seconds of products in pieces, one computed while another travels. */
#include "ops/tensor_pieces.h"

#include <math.h>

/* What a piece costs beyond its rows: a product less full of tiles, a message of its own. */
#define PRODUCT_SECONDS 10e-6
#define MESSAGE_SECONDS 20e-6

static double after_gather(const hdi_piece_timing *t, int groups)
{
    const int steps = (t->ranks - 1) * (groups - 1);
    if (groups == 1)
        return fmax(t->beside, t->sent + MESSAGE_SECONDS) + t->product + PRODUCT_SECONDS;
    const double piece = (t->product - t->product / t->ranks) / steps;
    double computed = t->beside + t->product / t->ranks + PRODUCT_SECONDS;
    for (int i = 1; i <= steps; i++)
        computed =
            fmax(computed, i * (t->sent / steps + MESSAGE_SECONDS)) + piece + PRODUCT_SECONDS;
    return computed;
}

static double before_exchange(const hdi_piece_timing *t, int groups)
{
    const int steps = (t->ranks - 1) * (groups - 1);
    double computed = t->product + PRODUCT_SECONDS, sent = computed + t->sent + MESSAGE_SECONDS;
    if (groups > 1) {
        const double piece = (t->product - t->product / t->ranks) / steps;
        computed = sent = 0;
        for (int i = 1; i <= steps; i++) {
            computed += piece + PRODUCT_SECONDS;
            sent = fmax(sent, computed) + t->sent / steps + MESSAGE_SECONDS;
        }
        computed += t->product / t->ranks + PRODUCT_SECONDS;
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
