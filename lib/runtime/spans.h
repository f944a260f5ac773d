/* Spans of a trace: from one moment of a device's work to another. */
#ifndef HDI_RUNTIME_SPANS_H
#define HDI_RUNTIME_SPANS_H

#include "report/trace.h"
#include "runtime/session.h"

typedef struct hdi_spans hdi_spans;

/* When the device has done all that it had been given. */
typedef struct hdi_moment {
    double host_us; /* when it was taken; that is its time where the backend has no stamps */
    int stamp;
} hdi_moment;

/* Of what a session's device does; `session` and `trace` are borrowed. At most `most` of them between two
 * settlements. Local. */
hd_status hdi_spans_create(hd_session *session, hdi_trace *trace, int most, hdi_spans **out);
void hdi_spans_destroy(hdi_spans *spans); /* takes NULL */

/* Both take NULL, wait for nothing and allocate nothing. Record: a span from *inout, which becomes the moment
 * when it ends, with what the event says besides its times. */
hd_status hdi_spans_now(hdi_spans *spans, hdi_moment *out);
hd_status hdi_spans_record(hdi_spans *spans, const hdi_trace_event *event, hdi_moment *inout);

/* What was recorded goes to the trace: waits for the device, so call it where it has just been waited for.
 * Takes NULL. */
hd_status hdi_spans_settle(hdi_spans *spans);

#endif
