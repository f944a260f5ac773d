/* A CPU backend whose copies beside the computation are made at the last moment: what they will write is
 * spoiled when they are queued, and they read what is there when somebody waits for them. */
#ifndef HDT_LATE_H
#define HDT_LATE_H

#include "backend/backend.h"

/* One at a time in a process; forgets copies that are on their way. */
const hd_backend *hdt_late_backend(void);

/* Copies so far that were queued, and those that nobody has waited for yet. */
int hdt_late_queued(void);
int hdt_late_pending(void);

#endif
