/* How busy the ranks of a pipeline were. */
#include <math.h>
#include <stdlib.h>

#include "core/error.h"
#include "core/memory.h"
#include "report/pipeline_chart.h"
#include "report/pipeline_internal.h"

typedef struct interval {
    double begin, end;
} interval;

static int by_begin(const void *a, const void *b)
{
    double left = ((const interval *)a)->begin, right = ((const interval *)b)->begin;
    return (left > right) - (left < right);
}

bool hdi_pipeline_takes(const hdi_pipeline_chart *chart, const hdi_trace_event *event)
{
    if (event->category < HDI_TRACE_FORWARD || !(event->end_us >= event->begin_us)) return false;
    return !chart->one_step || event->step == chart->step;
}

static bool in_phase(const hdi_trace_event *event)
{
    return event->category == HDI_TRACE_FORWARD || event->category == HDI_TRACE_BACKWARD ||
           event->category == HDI_TRACE_WEIGHT;
}

static bool computes(const hdi_trace_event *event)
{
    return event->category != HDI_TRACE_COMM && !hdi_trace_is_wait(event->category);
}

static bool waits(const hdi_trace_event *event)
{
    return hdi_trace_is_wait(event->category);
}

static bool computes_or_waits(const hdi_trace_event *event)
{
    return computes(event) || waits(event);
}

/* Time covered by such of a lane's events. `scratch` has room for all of them. */
static double covered(const hdi_pipeline_chart *chart, const hdi_pipeline_lane *lane,
                      bool (*is_such)(const hdi_trace_event *event), interval *scratch)
{
    size_t used = 0;
    for (int64_t i = 0; i < lane->count; i++) {
        const hdi_trace_event *event = &lane->events[i];
        if (!hdi_pipeline_takes(chart, event) || !is_such(event)) continue;
        scratch[used++] = (interval){event->begin_us, event->end_us};
    }
    if (used > 0) qsort(scratch, used, sizeof *scratch, by_begin);
    double total = 0, reached = -INFINITY;
    for (size_t i = 0; i < used; i++) {
        double begin = fmax(scratch[i].begin, reached);
        if (scratch[i].end > begin) total += scratch[i].end - begin;
        reached = fmax(reached, scratch[i].end);
    }
    return total;
}

/* Time in which a lane computes and does not wait meanwhile. */
static double computed(const hdi_pipeline_chart *chart, const hdi_pipeline_lane *lane,
                       interval *scratch)
{
    return covered(chart, lane, computes_or_waits, scratch) - covered(chart, lane, waits, scratch);
}

hd_status hdi_pipeline_measure(const hdi_pipeline_chart *chart, double *lane_busy,
                               hdi_pipeline_numbers *out)
{
    interval whole = {INFINITY, -INFINITY}, phase = {INFINITY, -INFINITY};
    int64_t most = 1;
    for (int l = 0; l < chart->lane_count; l++) {
        const hdi_pipeline_lane *lane = &chart->lanes[l];
        most = lane->count > most ? lane->count : most;
        for (int64_t i = 0; i < lane->count; i++) {
            const hdi_trace_event *event = &lane->events[i];
            if (!hdi_pipeline_takes(chart, event)) continue;
            whole.begin = fmin(whole.begin, event->begin_us);
            whole.end = fmax(whole.end, event->end_us);
            if (!in_phase(event)) continue;
            phase.begin = fmin(phase.begin, event->begin_us);
            phase.end = fmax(phase.end, event->end_us);
        }
    }
    *out = (hdi_pipeline_numbers){0};
    interval *scratch = hdi_alloc_array((size_t)most, sizeof *scratch);
    if (!scratch) return hdi_error(HD_ERROR_MEMORY, "pipeline chart: out of host memory");
    double span = whole.end - whole.begin, phase_span = phase.end - phase.begin;
    double busy = 0, phase_busy = 0;
    for (int l = 0; l < chart->lane_count; l++) {
        double share = span > 0 ? computed(chart, &chart->lanes[l], scratch) / span : 0;
        if (lane_busy) lane_busy[l] = share;
        busy += share;
        phase_busy += covered(chart, &chart->lanes[l], in_phase, scratch);
    }
    hdi_free(scratch);
    if (span >= 0) {
        out->begin_us = whole.begin;
        out->end_us = whole.end;
    }
    if (chart->lane_count > 0) out->busy = busy / chart->lane_count;
    if (phase_span > 0) out->bubble = 1 - phase_busy / (phase_span * chart->lane_count);
    return HD_OK;
}
