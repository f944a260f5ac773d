/* Progress of jobs: its line, and the rate of what most of them do. */
#include "jobs/progress.h"

#include "core/clock.h"

#include <math.h>

hdi_progress hdi_progress_line(const hd_progress *progress)
{
    return (hdi_progress){.unit = progress->unit,
                          .step = progress->step,
                          .steps = progress->steps,
                          .loss = progress->loss,
                          .learning_rate = progress->learning_rate,
                          .rate_unit = progress->rate_unit,
                          .rate = progress->rate,
                          .eta_seconds = progress->seconds_left};
}

size_t hd_progress_format(const hd_progress *progress, int columns, char *out, size_t bytes)
{
    const hdi_progress line = hdi_progress_line(progress);
    return hdi_progress_format(&line, columns, out, bytes);
}

void hdi_tell(hdi_teller *it, const hd_progress *progress, int64_t work, int64_t work_left)
{
    const double now = hdi_clock_seconds();
    hd_progress told = *progress;
    hdi_pace_note(&it->pace, now - it->last, work, (double)work);
    it->last = now;
    told.loss = told.learning_rate = NAN;
    told.rate = hdi_pace_rate(&it->pace);
    told.seconds_left = hdi_pace_left(&it->pace, work_left);
    if (it->progress) it->progress(it->user, &told);
}
