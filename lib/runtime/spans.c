/* Spans by stamps in the device's stream; without those, by the host's clock at once. */
#include "runtime/spans.h"

#include "core/error.h"
#include "core/memory.h"

typedef struct span {
    hdi_trace_event event;
    int begin, end; /* stamps */
} span;

/* The stamp that ties the device's clock to the host's; moments take turns with the others. */
enum { NOW = 0 };

struct hdi_spans {
    hd_session *session; /* these two are borrowed */
    hdi_trace *trace;
    span *pending; /* [most], owned; NULL where the backend has no stamps */
    int pending_count, most;
    int stamps, last_stamp;
};

hd_status hdi_spans_create(hd_session *session, hdi_trace *trace, int most, hdi_spans **out)
{
    *out = NULL;
    const hd_context *context = session->context;
    hdi_spans *spans = hdi_alloc(sizeof *spans);
    if (!spans) return hdi_error(HD_ERROR_MEMORY, "spans: out of host memory");
    /* A span has two ends; as many moments again may come to nothing. */
    *spans = (hdi_spans){.session = session, .trace = trace, .most = most, .stamps = 1 + 4 * most};
    hd_status status = HD_OK;
    if (context->backend->stamp) {
        spans->pending = hdi_alloc_array((size_t)most, sizeof *spans->pending);
        status = spans->pending ? context->backend->open_stamps(context->device, spans->stamps)
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
    hdi_free(spans->pending);
    hdi_free(spans);
}

hd_status hdi_spans_now(hdi_spans *spans, hdi_moment *out)
{
    *out = (hdi_moment){0};
    if (!spans) return HD_OK;
    out->host_us = hdi_trace_now();
    if (!spans->pending) return HD_OK;
    out->stamp = 1 + spans->last_stamp % (spans->stamps - 1);
    spans->last_stamp = out->stamp;
    const hd_context *context = spans->session->context;
    return context->backend->stamp(context->stream, out->stamp);
}

hd_status hdi_spans_record(hdi_spans *spans, const hdi_trace_event *event, hdi_moment *inout)
{
    const hdi_moment begin = *inout;
    if (!spans) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_spans_now(spans, inout));
    if (spans->pending && spans->pending_count == spans->most)
        return hdi_error(HD_ERROR_INTERNAL,
                         "trace: more than %d spans before the device was waited for", spans->most);
    hdi_trace_event timed = *event;
    timed.begin_us = begin.host_us;
    timed.end_us = inout->host_us;
    if (spans->pending)
        spans->pending[spans->pending_count++] =
            (span){.event = timed, .begin = begin.stamp, .end = inout->stamp};
    else
        hdi_trace_record(spans->trace, &timed);
    return HD_OK;
}

/* The host's clock when the device passed a stamp: the time since then before now. */
static hd_status passed_at(const hdi_spans *spans, int stamp, double now_us, double *out)
{
    const hd_context *context = spans->session->context;
    double seconds;
    HD_RETURN_IF_ERROR(context->backend->elapsed(context->stream, stamp, NOW, &seconds));
    *out = now_us - 1e6 * seconds;
    return HD_OK;
}

hd_status hdi_spans_settle(hdi_spans *spans)
{
    if (!spans || spans->pending_count == 0) return HD_OK;
    const hd_context *context = spans->session->context;
    HD_RETURN_IF_ERROR(hdi_session_synchronize(spans->session));
    HD_RETURN_IF_ERROR(context->backend->stamp(context->stream, NOW));
    const double now_us = hdi_trace_now(); /* the device is idle: it passes the stamp at once */
    HD_RETURN_IF_ERROR(context->backend->synchronize(context->stream));
    for (int i = 0; i < spans->pending_count; i++) {
        span *it = &spans->pending[i];
        HD_RETURN_IF_ERROR(passed_at(spans, it->begin, now_us, &it->event.begin_us));
        HD_RETURN_IF_ERROR(passed_at(spans, it->end, now_us, &it->event.end_us));
        hdi_trace_record(spans->trace, &it->event);
    }
    spans->pending_count = 0;
    return HD_OK;
}
