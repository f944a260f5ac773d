/* The public face of the progress line. */
#include "report/progress.h"

#include <heddle/job.h>

size_t hd_progress_format(const hd_progress *progress, int columns, char *out, size_t bytes)
{
    const hdi_progress line = {.unit = progress->unit,
                               .step = progress->step,
                               .steps = progress->steps,
                               .loss = progress->loss,
                               .learning_rate = progress->learning_rate,
                               .rate_unit = progress->rate_unit,
                               .rate = progress->rate,
                               .eta_seconds = progress->seconds_left};
    return hdi_progress_format(&line, columns, out, bytes);
}
