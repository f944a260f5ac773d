/* What a sampling tells of its speed. */
#ifndef HDI_JOBS_SAMPLE_SAMPLE_REPORT_H
#define HDI_JOBS_SAMPLE_SAMPLE_REPORT_H

#include "report/metrics.h"

#include <heddle/job.h>
#include <heddle/sampler.h>

typedef struct hdi_sample_speed {
    const hd_sampler *sampler;
    hd_comm *world;
    hdi_metrics *metrics; /* rank 0 appends a line */
    int videos;
    hd_rates rates; /* of all zeros: nothing was predicted */
} hdi_sample_speed;

/* For how much of the time each rank computed, and what a pass took beside what its plan says: logged,
 * appended to the metrics, and the mean kept in `out`. Collective. */
hd_status hdi_sample_report_speed(const hdi_sample_speed *it, const hd_sampler_result *result,
                                  hd_sample_result *out);

#endif
