/* Timelines: what a rank did when, as a Chrome trace file (chrome://tracing, ui.perfetto.dev). */
#ifndef HDI_REPORT_TRACE_H
#define HDI_REPORT_TRACE_H

#include <heddle/status.h>

typedef enum hdi_trace_category {
    HDI_TRACE_OTHER, /* in the file, not in the pipeline chart */
    HDI_TRACE_OP,    /* likewise: one op inside of what follows */
    HDI_TRACE_FORWARD,
    HDI_TRACE_BACKWARD,
    HDI_TRACE_WEIGHT, /* weight gradients, where a schedule runs them apart */
    HDI_TRACE_OPTIMIZER,
    HDI_TRACE_COMM, /* moving bytes or waiting for them */
    /* While the device stood, inside of what comes before or between it: for copies from or to the host, for
     * communication, for the host to give it something. */
    HDI_TRACE_WAIT_COPIES,
    HDI_TRACE_WAIT_COMM,
    HDI_TRACE_WAIT_HOST,
    HDI_TRACE_CATEGORIES
} hdi_trace_category;

static inline bool hdi_trace_is_wait(hdi_trace_category category)
{
    return category >= HDI_TRACE_WAIT_COPIES && category <= HDI_TRACE_WAIT_HOST;
}

/* "forward", ..., "wait: copies", ...; and back, OTHER for an unknown name. */
const char *hdi_trace_category_name(hdi_trace_category category);
hdi_trace_category hdi_trace_category_from_name(const char *name);

typedef struct hdi_trace_event {
    const char *name; /* borrowed: must live until the last flush */
    hdi_trace_category category;
    int32_t thread;             /* stream or thread: a row of the rank in the viewer */
    int32_t micro_batch, chunk; /* -1: none */
    int64_t step;               /* -1: none */
    double begin_us, end_us;
} hdi_trace_event;

typedef struct hdi_trace hdi_trace;

/* Room for the last `capacity` events of `rank`. Errors: ARGUMENT, MEMORY. */
hd_status hdi_trace_create(int rank, int64_t capacity, hdi_trace **out);
void hdi_trace_destroy(hdi_trace *trace); /* takes NULL */

/* Microseconds of this machine's monotonic clock: what events are stamped with. */
double hdi_trace_now(void);

/* Keep an event; the oldest gives way. Allocates nothing; threads may record at once. A NULL trace
 * records nothing, so callers need no branch. */
void hdi_trace_record(hdi_trace *trace, const hdi_trace_event *event);

/* Title of a thread's row; at most 16 threads, `name` is borrowed as in events. */
void hdi_trace_name_thread(hdi_trace *trace, int32_t thread, const char *name);

/* Events that have given way so far. */
int64_t hdi_trace_dropped(const hdi_trace *trace);

/* Write all kept events, oldest first, `offset_us` added to every time: the difference to rank 0's
 * clock, so that the files of all ranks share one axis. Atomic. No thread may record meanwhile. */
hd_status hdi_trace_flush(const hdi_trace *trace, double offset_us, const char *path);

/* A trace file read back. Names are borrowed from it. */
typedef struct hdi_trace_file {
    int rank;
    hdi_trace_event *events;
    int64_t count;
    void *document;
} hdi_trace_file;

/* Read the complete events of a trace file. Errors: IO, FORMAT (file, line and what), MEMORY. */
hd_status hdi_trace_read(const char *path, hdi_trace_file *out);
void hdi_trace_file_free(hdi_trace_file *file); /* takes a zeroed one */

#endif
