/* Learning-rate schedules: linear warm-up, then constant, linear, cosine, or warm-up-stable-decay. */
#ifndef HDI_OPTIM_LEARNING_RATE_H
#define HDI_OPTIM_LEARNING_RATE_H

#include <stdint.h>

/* In the order of the names "constant", "linear", "cosine", "wsd". */
typedef enum hdi_rate_schedule {
    HDI_RATE_CONSTANT,
    HDI_RATE_LINEAR,
    HDI_RATE_COSINE,
    HDI_RATE_WSD
} hdi_rate_schedule;

typedef struct hdi_rate_options {
    hdi_rate_schedule schedule;
    double peak, final_share; /* the schedule ends at peak * final_share */
    int64_t warmup, total;    /* steps; total includes the warm-up */
    double decay_fraction;    /* wsd: share of total that decays, linearly, at its end; at most
                                 what the warm-up leaves */
} hdi_rate_options;

/* The rate of step `step`, counted from 0. The warm-up reaches the peak at step warmup - 1. */
double hdi_learning_rate(const hdi_rate_options *options, int64_t step);

#endif
