/* A CPU backend that lags as a GPU does: it queues what it is asked for and computes when somebody waits for
 * it, so that what the host reads or writes again too early is wrong. */
#ifndef HDT_DEFERRED_H
#define HDT_DEFERRED_H

#include "backend/backend.h"

/* One at a time in a process; forgets what is queued. With `eager` it computes at once, for ranks whose
 * communication reads memory when it is posted. */
const hd_backend *hdt_deferred_backend(bool eager);

/* How often somebody has waited until all is done; calls that are queued now. */
int hdt_deferred_waits(void);
int hdt_deferred_pending(void);

#endif
