/* A few threads that share the work of one call. Work is cut by shape, never by the number of
 * threads, so results do not depend on it. */
#ifndef HDI_BACKEND_CPU_THREADS_H
#define HDI_BACKEND_CPU_THREADS_H

#include <stdint.h>

/* Do item `index`. `lane` is in [0, hdi_cpu_lanes()) and nobody else's while the item runs: it
 * picks a part of the workspace. */
typedef void (*hdi_cpu_work)(void *context, int64_t index, int lane);

/* Items that may run at a time. */
int hdi_cpu_lanes(void);

/* Run items 0..count-1 and wait for all; no allocation. A call from a second host thread, while one
 * runs, does its own work alone. */
void hdi_cpu_parallel(int64_t count, hdi_cpu_work work, void *context);

#endif
