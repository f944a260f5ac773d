/* The progress line's text. */
#ifndef HDI_REPORT_PROGRESS_H
#define HDI_REPORT_PROGRESS_H

#include <stddef.h>
#include <stdint.h>

/* NaN leaves a field out. */
typedef struct hdi_progress {
    int64_t step, steps; /* steps 0: unknown */
    double loss, learning_rate, tokens_per_second, eta_seconds;
} hdi_progress;

/* "step 120/2000 [==>   ]  6%  loss 2.3456  lr 3.0e-04  12.3k tok/s  eta 1m23s" in at most
 * `columns` ASCII characters and `bytes` bytes with the NUL: what matters least is left out first.
 * Pure. Returns the length. */
size_t hdi_progress_format(const hdi_progress *progress, int columns, char *out, size_t bytes);

#endif
