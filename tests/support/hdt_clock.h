/* A CPU backend with a clock of its own, as a GPU has one: time passes in products, a millisecond each, and
 * when a test says so. */
#ifndef HDT_CLOCK_H
#define HDT_CLOCK_H

#include "backend/backend.h"

/* One at a time in a process; its time starts at zero. Stamps can be read when they have been waited for. The
 * caller may replace more of it. */
hd_backend *hdt_clock_backend(void);

double hdt_clock_seconds(void);
void hdt_clock_pass(double seconds);

/* Stamps taken so far. */
int64_t hdt_clock_stamps(void);

#endif
