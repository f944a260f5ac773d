/* Time. */
#ifndef HDI_CORE_CLOCK_H
#define HDI_CORE_CLOCK_H

/* Seconds of a clock that never goes back; only differences mean anything. Thread-safe. */
double hdi_clock_seconds(void);

/* Seconds since the kernel started this process, to the kernel's tick (10 ms): what a user who
 * typed the command has waited. Negative if /proc cannot tell. Thread-safe. */
double hdi_clock_process_age(void);

#endif
