/* What is in use of a device through a run: the most of it in each kind of work, held against a budget. */
#ifndef HDI_RUNTIME_MEMORY_WATCH_H
#define HDI_RUNTIME_MEMORY_WATCH_H

#include <heddle/session.h>

#include <stddef.h>

typedef enum hdi_work {
    HDI_WORK_TRAINING,
    HDI_WORK_VALIDATION,
    HDI_WORK_SAVE,
    HDI_WORK_CONDITIONS, /* of a sampling: what depends on times and texts alone */
    HDI_WORK_STEPS,      /* of a sampling or a generation */
    HDI_WORKS
} hdi_work;

/* Part of a context. Zeroed: nothing was read, and there is no budget. */
typedef struct hdi_memory_watch {
    size_t budget; /* bytes; 0: none */
    size_t total;  /* of the device; 0: nothing was read */
    /* In use, this rank's part of what the ranks of a device use together. */
    size_t most[HDI_WORKS];
    double next; /* before this time a glance does not read */
    bool has_warned;
} hdi_memory_watch;

/* Read the device's memory in use and keep it if it is the most in this work; the first time that it is over
 * the budget a warning says so. Waits for nothing that was queued. What cannot be read is passed over. Local. */
void hdi_watch_memory(hd_context *context, hdi_work work);

/* The same where it is asked often: now and then, so that reading takes at most half a percent of the time. What
 * is taken of a device stays taken, so that the last reading of a work, by hdi_watch_memory, sees what glances missed. */
void hdi_glance_at_memory(hd_context *context, hdi_work work);

/* The most in all work. Local. */
size_t hdi_memory_most(const hdi_memory_watch *watch);

/* "training", "saving": what a device is doing. Static. */
const char *hdi_work_name(hdi_work work);

#endif
