/* The walk of a program that runs beside others: on a stream of its own, and queued bit by bit, since a device
 * takes only so much ahead and would keep the host from queueing what runs beside it. Where it communicates it is
 * queued up to the release behind the one that is waited for, and to the next op that communicates: peers wait for
 * the same releases at the same places, so all post in one order, whatever else each has queued. */
#ifndef HDI_RUNTIME_BESIDE_H
#define HDI_RUNTIME_BESIDE_H

#include "backend/backend.h"

#include <heddle/session.h>

/* How many ops are queued ahead of that. */
enum { HDI_BESIDE_AHEAD = 128 };

typedef struct hdi_beside {
    hd_stream *stream; /* borrowed; NULL: the plan has no such program */
    void *followed;    /* what it is to communicators of device memory; or NULL */
    int ahead;
    int unit, next; /* of the run under way, and its first op that is not queued yet */
    int flags; /* that it raises: one for each release, in their order, and the last; 0: no run */
    int raised;
    bool walks; /* now: what is queued is the program's */
    bool communicates;
    hd_session_run_options options;
} hdi_beside;

hd_status hdi_beside_open(hd_session *session);

/* Begin a run behind all that has been queued, and behind the last one. */
hd_status hdi_beside_begin(hd_session *session, int unit, const hd_session_run_options *options);

/* What is queued next on the session's queue comes behind one of its flags; behind all of it, which is over
 * then. */
hd_status hdi_beside_await(hd_session *session, int flag);
hd_status hdi_beside_end(hd_session *session);

/* The same of what is queued; the rest is left out. */
hd_status hdi_beside_abandon(hd_session *session);

#endif
