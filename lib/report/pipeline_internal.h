/* Shared by the files of the pipeline chart. */
#ifndef HDI_REPORT_PIPELINE_INTERNAL_H
#define HDI_REPORT_PIPELINE_INTERNAL_H

#include "report/pipeline_chart.h"

/* Whether the chart shows the event. */
bool hdi_pipeline_takes(const hdi_pipeline_chart *chart, const hdi_trace_event *event);

#endif
