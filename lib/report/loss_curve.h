/* The loss curve of a run as a picture. */
#ifndef HDI_REPORT_LOSS_CURVE_H
#define HDI_REPORT_LOSS_CURVE_H

#include "report/metrics.h"

/* Points are (step, loss), steps ascending; a loss that is not finite leaves a gap. */
typedef struct hdi_loss_curve {
    const char *title; /* NULL: "loss" */
    const hdi_point *train;
    int64_t train_count;
    const hdi_point *validation;
    int64_t validation_count;
    double reference;            /* a level to compare with, in nats a token */
    const char *reference_label; /* "unigram entropy"; NULL: no reference line */
} hdi_loss_curve;

/* Write an SVG: train loss thin, its centred moving average bold, validation as dots. Atomic.
 * Errors: IO. */
hd_status hdi_loss_curve_write(const char *path, const hdi_loss_curve *curve);

#endif
