/* The progress line's text, the same for all jobs, and how fast a job goes. */
#ifndef HDI_REPORT_PROGRESS_H
#define HDI_REPORT_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* NaN leaves a field out. */
typedef struct hdi_progress {
    const char *unit;    /* of what is counted; NULL: "step" */
    int64_t step, steps; /* done, and in all; steps 0: unknown */
    double loss, learning_rate;
    const char *rate_unit; /* "tokens"; NULL: what is counted */
    double rate;           /* a second */
    double eta_seconds;
    bool plain; /* without the bar, for a log */
} hdi_progress;

/* "step 120/2000 [==>   ]  6%  loss 2.3456  lr 3.0e-04  12.3k tokens/s  eta 1m23s" in at most
 * `columns` ASCII characters and `bytes` bytes with the NUL: what matters least is left out first.
 * Pure. Returns the length. */
size_t hdi_progress_format(const hdi_progress *progress, int columns, char *out, size_t bytes);

/* Sums over what was done of late: some ten steps, or the steps of some five seconds. Starts as zeros. */
typedef struct hdi_pace {
    double seconds, steps, work;
    int notes;
} hdi_pace;

/* So many steps, with so much work in them, took so many seconds. The first note, which warms up, counts until
 * the second. */
void hdi_pace_note(hdi_pace *pace, double seconds, int64_t steps, double work);

/* Work a second, and the seconds that `steps` more will take; NaN before the first note. */
double hdi_pace_rate(const hdi_pace *pace);
double hdi_pace_left(const hdi_pace *pace, int64_t steps);

#endif
