/* Spans by stamps in the device's stream; without those, by the host's clock at once. */
#include "runtime/spans.h"

#include "core/error.h"
#include "core/memory.h"

#include <math.h>

typedef struct span {
    hdi_trace_event event;
    int begin, end; /* stamps */
} span;

/* The first stamps tie the device's clock to the host's, the best reading and the one under way; moments take
 * turns with the others. */
enum { CLOCKS = 2 };

/* When the device passed a stamp, by the host's clock: within `error_us` of `at_us`. */
typedef struct clock_reading {
    int stamp;
    double at_us, error_us;
} clock_reading;

struct hdi_spans {
    hd_session *session; /* these two are borrowed */
    hdi_trace *trace;
    span *pending; /* [most], owned; NULL where the backend has no stamps */
    int pending_count, most;
    int stamps, last_stamp; /* of moments */
    double error_us;
    int64_t step; /* that waits belong to */
    hdi_moment left;
    bool has_left;
    hdi_exposed sums;
    int64_t
        summed_step; /* its spans that are in the trace and not yet in sums.seconds go from ... to */
    double begin_us, end_us;
};

hd_status hdi_spans_create(hd_session *session, hdi_trace *trace, int most, hdi_spans **out)
{
    *out = NULL;
    const hd_context *context = session->context;
    hdi_spans *spans = hdi_alloc(sizeof *spans);
    if (!spans) return hdi_error(HD_ERROR_MEMORY, "spans: out of host memory");
    *spans = (hdi_spans){.session = session,
                         .trace = trace,
                         .most = most,
                         .stamps = 2 * most,
                         .begin_us = INFINITY,
                         .end_us = -INFINITY};
    hd_status status = HD_OK;
    if (context->backend->stamp) {
        spans->pending = hdi_alloc_array((size_t)most, sizeof *spans->pending);
        status = spans->pending
                     ? context->backend->open_stamps(context->device, CLOCKS + spans->stamps)
                     : hdi_error(HD_ERROR_MEMORY, "spans: out of host memory");
    }
    if (status != HD_OK) {
        hdi_spans_destroy(spans);
        return status;
    }
    *out = spans;
    return HD_OK;
}

void hdi_spans_destroy(hdi_spans *spans)
{
    if (!spans) return;
    hdi_spans_end_step(spans);
    hdi_free(spans->pending);
    hdi_free(spans);
}

hd_status hdi_spans_now(hdi_spans *spans, hdi_moment *out)
{
    *out = (hdi_moment){0};
    if (!spans) return HD_OK;
    out->host_us = hdi_trace_now();
    if (!spans->pending) return HD_OK;
    spans->last_stamp = (spans->last_stamp + 1) % spans->stamps;
    out->stamp = CLOCKS + spans->last_stamp;
    const hd_context *context = spans->session->context;
    return context->backend->stamp(context->stream, out->stamp);
}

static void add_step(hdi_spans *spans)
{
    if (spans->end_us > spans->begin_us)
        spans->sums.seconds += 1e-6 * (spans->end_us - spans->begin_us);
    spans->begin_us = INFINITY;
    spans->end_us = -INFINITY;
}

/* A step has the time from its first moment to its last one. The many waits for what is there already are only
 * summed. */
static void keep(hdi_spans *spans, const hdi_trace_event *event)
{
    const double least = 10e-6;
    const double seconds = 1e-6 * (event->end_us - event->begin_us);
    if (event->step != spans->summed_step) add_step(spans);
    spans->summed_step = event->step;
    spans->begin_us = fmin(spans->begin_us, event->begin_us);
    spans->end_us = fmax(spans->end_us, event->end_us);
    if (event->category == HDI_TRACE_WAIT_COPIES) spans->sums.copies += seconds;
    if (event->category == HDI_TRACE_WAIT_COMM) spans->sums.communication += seconds;
    if (event->category == HDI_TRACE_WAIT_HOST) spans->sums.host += seconds;
    if (!hdi_trace_is_wait(event->category) || seconds > least)
        hdi_trace_record(spans->trace, event);
}

static hd_status add(hdi_spans *spans, const hdi_trace_event *event, const hdi_moment *begin,
                     const hdi_moment *end)
{
    if (spans->pending && spans->pending_count == spans->most)
        return hdi_error(HD_ERROR_INTERNAL,
                         "trace: more than %d spans before the device was waited for", spans->most);
    hdi_trace_event timed = *event;
    timed.begin_us = begin->host_us;
    timed.end_us = end->host_us;
    if (spans->pending)
        spans->pending[spans->pending_count++] =
            (span){.event = timed, .begin = begin->stamp, .end = end->stamp};
    else
        keep(spans, &timed);
    return HD_OK;
}

static hdi_trace_event wait_of(const hdi_spans *spans, hdi_trace_category category)
{
    return (hdi_trace_event){.name = hdi_trace_category_name(category),
                             .category = category,
                             .micro_batch = -1,
                             .chunk = -1,
                             .step = spans->step};
}

static hd_status add_host(hdi_spans *spans, const hdi_moment *end)
{
    const hdi_trace_event event = wait_of(spans, HDI_TRACE_WAIT_HOST);
    return add(spans, &event, &spans->left, end);
}

hd_status hdi_spans_record(hdi_spans *spans, const hdi_trace_event *event, hdi_moment *inout)
{
    const hdi_moment begin = *inout;
    if (!spans) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_spans_now(spans, inout));
    if (spans->has_left && hdi_trace_is_wait(event->category)) {
        HD_RETURN_IF_ERROR(add_host(spans, &begin)); /* and again from the end of this wait on */
        spans->left = *inout;
    }
    return add(spans, event, &begin, inout);
}

hd_status hdi_spans_waited(hdi_spans *spans, hdi_trace_category category, const hdi_moment *begin)
{
    if (!spans) return HD_OK;
    const hdi_trace_event event = wait_of(spans, category);
    hdi_moment at = *begin;
    return hdi_spans_record(spans, &event, &at);
}

hd_status hdi_spans_begin_step(hdi_spans *spans, int64_t step)
{
    if (!spans || (spans->session->spans && spans->step == step)) return HD_OK;
    spans->session->spans = spans;
    spans->step = step;
    spans->has_left = false; /* what comes between steps is no time of a step */
    return hdi_spans_leave(spans);
}

void hdi_spans_end_step(hdi_spans *spans)
{
    if (spans) spans->session->spans = NULL;
}

hd_status hdi_spans_leave(hdi_spans *spans)
{
    if (!spans || spans->has_left) return HD_OK;
    spans->has_left = true;
    return hdi_spans_now(spans, &spans->left);
}

hd_status hdi_spans_return(hdi_spans *spans)
{
    if (!spans || !spans->has_left) return HD_OK;
    hdi_moment now;
    HD_RETURN_IF_ERROR(hdi_spans_now(spans, &now));
    spans->has_left = false;
    return add_host(spans, &now);
}

/* An idle device passes a stamp between the call that queues it and the one that finds it done. Where others
 * have the device in turns that can be some milliseconds, so the shortest of several readings counts. */
static hd_status read_clock(const hd_context *context, clock_reading *out)
{
    enum { READINGS = 8 };
    const double short_us = 25;
    *out = (clock_reading){.stamp = 1, .error_us = INFINITY};
    for (int i = 0; i < READINGS && out->error_us > short_us; i++) {
        const int stamp = 1 - out->stamp;
        const double before_us = hdi_trace_now();
        HD_RETURN_IF_ERROR(context->backend->stamp(context->stream, stamp));
        HD_RETURN_IF_ERROR(context->backend->synchronize(context->stream));
        const double after_us = hdi_trace_now(), error_us = (after_us - before_us) / 2;
        if (error_us >= out->error_us) continue;
        *out = (clock_reading){
            .stamp = stamp, .at_us = (before_us + after_us) / 2, .error_us = error_us};
    }
    return HD_OK;
}

/* The host's clock when the device passed a stamp: the time since then before the reading. */
static hd_status passed_at(const hd_context *context, int stamp, const clock_reading *clock,
                           double *out)
{
    double seconds;
    HD_RETURN_IF_ERROR(context->backend->elapsed(context->stream, stamp, clock->stamp, &seconds));
    *out = clock->at_us - 1e6 * seconds;
    return HD_OK;
}

hd_status hdi_spans_settle(hdi_spans *spans)
{
    if (!spans || spans->pending_count == 0) return HD_OK;
    const hd_context *context = spans->session->context;
    clock_reading clock;
    HD_RETURN_IF_ERROR(hdi_session_synchronize(spans->session));
    HD_RETURN_IF_ERROR(read_clock(context, &clock));
    spans->error_us = fmax(spans->error_us, clock.error_us);
    for (int i = 0; i < spans->pending_count; i++) {
        span *it = &spans->pending[i];
        HD_RETURN_IF_ERROR(passed_at(context, it->begin, &clock, &it->event.begin_us));
        HD_RETURN_IF_ERROR(passed_at(context, it->end, &clock, &it->event.end_us));
        keep(spans, &it->event);
    }
    add_step(spans); /* what comes has another reading of the clock */
    spans->pending_count = 0;
    return HD_OK;
}

hdi_exposed hdi_spans_take(hdi_spans *spans)
{
    if (!spans) return (hdi_exposed){0};
    add_step(spans);
    const hdi_exposed sums = spans->sums;
    spans->sums = (hdi_exposed){0};
    return sums;
}

double hdi_spans_error_us(const hdi_spans *spans)
{
    return spans->error_us;
}
