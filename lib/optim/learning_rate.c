/* Learning-rate schedules as functions of the step. */
#include "optim/learning_rate.h"

#include <math.h>

/* From peak at 0 to peak * final_share at 1. */
static double fall(const hdi_rate_options *o, double progress)
{
    return o->peak * (o->final_share + (1 - o->final_share) * (1 - progress));
}

double hdi_learning_rate(const hdi_rate_options *o, int64_t step)
{
    const double pi = 3.14159265358979323846;
    if (step < o->warmup) return o->peak * (double)(step + 1) / (double)o->warmup;
    double span = (double)(o->total - o->warmup);
    double progress = span > 0 ? (double)(step - o->warmup) / span : 1;
    if (progress > 1) progress = 1;
    switch (o->schedule) {
    case HDI_RATE_CONSTANT: return o->peak;
    case HDI_RATE_LINEAR: return fall(o, progress);
    case HDI_RATE_COSINE: return fall(o, 0.5 * (1 - cos(pi * progress)));
    case HDI_RATE_WSD: {
        double decay = o->decay_fraction * (double)o->total;
        if (decay > span) decay = span;
        double into = (double)step - ((double)o->total - decay);
        if (into <= 0 || decay <= 0) return o->peak;
        return fall(o, into < decay ? into / decay : 1);
    }
    }
    return o->peak;
}
