/* Spans of a trace: from one moment of a device's work to another; and for how much of it the device stood. */
#ifndef HDI_RUNTIME_SPANS_H
#define HDI_RUNTIME_SPANS_H

#include "report/trace.h"
#include "runtime/session.h"

/* When the device has done all that it had been given. */
typedef struct hdi_moment {
    double host_us; /* when it was taken; that is its time where the backend has no stamps */
    int stamp;
} hdi_moment;

/* Of steps' seconds those in which the device stood, and what for: exposed copies from and to the host,
 * exposed communication, and the host itself. */
typedef struct hdi_exposed {
    double seconds, copies, communication, host;
} hdi_exposed;

/* Of what a session's device does; `session` and `trace` are borrowed. At most `most` of them between two
 * settlements, counting two moments that come to nothing as one. Local. */
hd_status hdi_spans_create(hd_session *session, hdi_trace *trace, int most, hdi_spans **out);
void hdi_spans_destroy(hdi_spans *spans); /* takes NULL */

/* These take NULL, wait for nothing and allocate nothing. Record: a span from *inout, which becomes the moment
 * when it ends, with what the event says besides its times. Waited: one of the step, of such a category, that
 * ends now. */
hd_status hdi_spans_now(hdi_spans *spans, hdi_moment *out);
hd_status hdi_spans_record(hdi_spans *spans, const hdi_trace_event *event, hdi_moment *inout);
hd_status hdi_spans_waited(hdi_spans *spans, hdi_trace_category category, const hdi_moment *begin);

/* From begin to end the session measures its waits. Begin is when a step's time begins, the device has nothing
 * to do then but what was queued before; called again in the same step it does nothing. Both take NULL. */
hd_status hdi_spans_begin_step(hdi_spans *spans, int64_t step);
void hdi_spans_end_step(hdi_spans *spans);

/* From leave, where the host turns to something else than the device, to return the device waits for the host
 * as soon as it has done what was queued. Leave again, or return without it, does nothing. Both take NULL. */
hd_status hdi_spans_leave(hdi_spans *spans);
hd_status hdi_spans_return(hdi_spans *spans);

/* What was recorded goes to the trace: waits for the device, so call it where it has just been waited for.
 * Takes NULL. */
hd_status hdi_spans_settle(hdi_spans *spans);

/* Sums over all that has gone to the trace since the last call; of a step that was in part there, the rest.
 * Zeros for NULL. */
hdi_exposed hdi_spans_take(hdi_spans *spans);

/* By how many microseconds a settlement so far may have misread the device's clock: all of its spans are off by
 * the same. 0 without stamps. */
double hdi_spans_error_us(const hdi_spans *spans);

#endif
