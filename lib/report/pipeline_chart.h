/* A pipeline step as a Gantt chart, and its numbers. */
#ifndef HDI_REPORT_PIPELINE_CHART_H
#define HDI_REPORT_PIPELINE_CHART_H

#include "report/trace.h"

/* One rank's events, in any order; times of all lanes on one clock. Borrowed. */
typedef struct hdi_pipeline_lane {
    int rank;
    const char *label; /* NULL: "rank N" */
    const hdi_trace_event *events;
    int64_t count;
} hdi_pipeline_lane;

typedef struct hdi_pipeline_chart {
    const char *title; /* NULL: "pipeline step" */
    const hdi_pipeline_lane *lanes;
    int lane_count;
    bool one_step; /* take the events of `step` only */
    int64_t step;
} hdi_pipeline_chart;

/* The step spans from the first event to the last of any lane. A lane is busy while it computes
 * (forward, backward, weight gradients, optimizer); overlaps count once, waiting counts as idle. */
typedef struct hdi_pipeline_numbers {
    double begin_us, end_us;
    double busy;   /* mean over lanes, 0..1 */
    double bubble; /* idle share of all lanes between the first forward and the last backward or
                    * weight gradient of any lane: (p-1)/(m+p-1) for an ideal 1F1B or GPipe */
} hdi_pipeline_numbers;

/* `lane_busy` gets lane_count shares of the span, may be NULL. Errors: MEMORY. */
hd_status hdi_pipeline_measure(const hdi_pipeline_chart *chart, double *lane_busy,
                               hdi_pipeline_numbers *out);

/* Write the SVG. Atomic. Errors: ARGUMENT (no events), MEMORY, IO. */
hd_status hdi_pipeline_chart_write(const char *path, const hdi_pipeline_chart *chart);

/* Likewise from trace files, a lane each, sorted by rank. `step` -1: the last one that every file
 * has, or all events if none names a step. Errors also: FORMAT. */
hd_status hdi_pipeline_chart_from_files(const char *path, const char *title,
                                        const char *const *trace_paths, int count, int64_t step);

#endif
