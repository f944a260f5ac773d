/* Which layers go to which virtual stage: balanced by cost, or as the user says. */
#ifndef HDI_PARALLEL_BALANCE_H
#define HDI_PARALLEL_BALANCE_H

#include <heddle/status.h>

typedef struct hdi_balance_options {
    int layers, stages;      /* stages: virtual stages, chunks times pipeline ranks */
    int ranks;               /* stage s is on rank s modulo ranks; 0: as many as stages */
    const double *costs;     /* [layers], any unit; NULL: all 1 */
    double first_cost;       /* on top of the first stage's layers: the embedding, in that unit */
    double last_cost;        /* on top of the last stage's: the head and the loss */
    bool first_may_be_empty; /* the first stage may hold the embedding only */
    bool last_may_be_empty;  /* the last stage may hold the head only */
} hdi_balance_options;

/* Cut the layers, in order, into `stages` runs so that the most expensive stage costs as little as
 * can be; then so that costs are as even as can be (least sum of squares); then so that later
 * stages get more layers, because earlier ones keep more micro-batches in flight. With several stages
 * on a rank layers then move while that makes the most expensive rank cheaper, which bounds a step: a
 * pipeline stays busy with uneven chunks, not with uneven ranks. Fills counts_out[stages]. Local; the same on every rank. ARGUMENT on costs that are negative or not
 * finite, CONFIG where there are fewer layers than stages. */
hd_status hdi_balance(const hdi_balance_options *options, int *counts_out);

/* Read a list such as "3,4,4,3" of layers per virtual stage into counts_out[options->stages] and
 * check it: one count per stage, none empty but where the options say so, and the sum right. Costs
 * are not looked at. Local. CONFIG with the entry, the value seen and the value wanted. */
hd_status hdi_balance_parse(const char *text, const hdi_balance_options *options, int *counts_out);

/* The same check on counts that are numbers already, `count` of them. */
hd_status hdi_balance_check(const int *counts, int count, const hdi_balance_options *options);

#endif
