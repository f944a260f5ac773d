/* How far a job is, for whoever wants to know. */
#ifndef HDI_JOBS_PROGRESS_H
#define HDI_JOBS_PROGRESS_H

#include "report/progress.h"

#include <heddle/job.h>

/* Who is told, and how fast it has gone. */
typedef struct hdi_teller {
    hd_progress_fn progress; /* or NULL: nobody is */
    void *user;              /* borrowed */
    double last; /* the clock's seconds when something was told, or when the job began */
    hdi_pace pace;
} hdi_teller;

/* Tell units and steps of `progress`, with the rate and the time left: so much work was done since the last
 * time, and so much is to do. */
void hdi_tell(hdi_teller *it, const hd_progress *progress, int64_t work, int64_t work_left);

/* The line that it is shown in. */
hdi_progress hdi_progress_line(const hd_progress *progress);

#endif
