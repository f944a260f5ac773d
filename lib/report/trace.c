/* The ring of events and the Chrome trace writer. */
#include "report/trace.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "core/clock.h"
#include "core/memory.h"
#include "report/output.h"

enum { THREADS = 16 };

struct hdi_trace {
    int rank;
    int64_t capacity;
    _Atomic int64_t recorded; /* since creation; the next event goes to recorded % capacity */
    hdi_trace_event *events;  /* owned */
    int named_threads;
    int32_t threads[THREADS];
    const char *thread_names[THREADS]; /* borrowed */
};

static const char *const category_names[HDI_TRACE_CATEGORIES] = {
    [HDI_TRACE_OTHER] = "other",
    [HDI_TRACE_OP] = "op",
    [HDI_TRACE_FORWARD] = "forward",
    [HDI_TRACE_BACKWARD] = "backward",
    [HDI_TRACE_WEIGHT] = "weight",
    [HDI_TRACE_OPTIMIZER] = "optimizer",
    [HDI_TRACE_COMM] = "comm",
    [HDI_TRACE_WAIT_COPIES] = "wait: copies",
    [HDI_TRACE_WAIT_COMM] = "wait: communication",
    [HDI_TRACE_WAIT_HOST] = "wait: host",
};

const char *hdi_trace_category_name(hdi_trace_category category)
{
    bool known = (unsigned)category < HDI_TRACE_CATEGORIES;
    return category_names[known ? category : HDI_TRACE_OTHER];
}

hdi_trace_category hdi_trace_category_from_name(const char *name)
{
    for (int i = 0; i < HDI_TRACE_CATEGORIES; i++)
        if (strcmp(name, category_names[i]) == 0) return (hdi_trace_category)i;
    return HDI_TRACE_OTHER;
}

hd_status hdi_trace_create(int rank, int64_t capacity, hdi_trace **out)
{
    *out = NULL;
    if (capacity <= 0)
        return hdi_error(HD_ERROR_ARGUMENT, "trace: capacity is %" PRId64 ", want > 0", capacity);
    hdi_trace *trace = hdi_alloc(sizeof *trace);
    if (trace) trace->events = hdi_alloc_array((size_t)capacity, sizeof *trace->events);
    if (!trace || !trace->events) {
        hdi_trace_destroy(trace);
        return hdi_error(HD_ERROR_MEMORY, "trace: no host memory for %" PRId64 " events", capacity);
    }
    trace->rank = rank;
    trace->capacity = capacity;
    *out = trace;
    return HD_OK;
}

void hdi_trace_destroy(hdi_trace *trace)
{
    if (!trace) return;
    hdi_free(trace->events);
    hdi_free(trace);
}

double hdi_trace_now(void)
{
    return hdi_clock_seconds() * 1e6;
}

void hdi_trace_record(hdi_trace *trace, const hdi_trace_event *event)
{
    if (!trace) return;
    int64_t index = atomic_fetch_add_explicit(&trace->recorded, 1, memory_order_relaxed);
    trace->events[index % trace->capacity] = *event;
}

void hdi_trace_name_thread(hdi_trace *trace, int32_t thread, const char *name)
{
    if (!trace || trace->named_threads == THREADS) return;
    trace->threads[trace->named_threads] = thread;
    trace->thread_names[trace->named_threads++] = name;
}

int64_t hdi_trace_dropped(const hdi_trace *trace)
{
    int64_t recorded = trace ? atomic_load(&trace->recorded) : 0;
    return trace && recorded > trace->capacity ? recorded - trace->capacity : 0;
}

static void put_metadata(hdi_output *output, const char *kind, int rank, int32_t thread,
                         const char *name)
{
    hdi_output_format(
        output, "{\"name\":\"%s\",\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"args\":{\"name\":", kind,
        rank, thread);
    hdi_output_json(output, name);
    hdi_output_text(output, "}},\n");
}

static void put_event(hdi_output *output, int rank, double offset_us, const hdi_trace_event *event)
{
    double duration = event->end_us - event->begin_us;
    hdi_output_text(output, ",\n{\"name\":");
    hdi_output_json(output, event->name ? event->name : "");
    hdi_output_format(output, ",\"cat\":\"%s\",\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"ts\":",
                      hdi_trace_category_name(event->category), rank, event->thread);
    hdi_output_fixed(output, event->begin_us + offset_us, 3);
    hdi_output_text(output, ",\"dur\":");
    hdi_output_fixed(output, duration > 0 ? duration : 0, 3);
    hdi_output_text(output, ",\"args\":{");
    const char *comma = "";
    if (event->step >= 0) {
        hdi_output_format(output, "\"step\":%" PRId64, event->step);
        comma = ",";
    }
    if (event->micro_batch >= 0) {
        hdi_output_format(output, "%s\"micro_batch\":%d", comma, event->micro_batch);
        comma = ",";
    }
    if (event->chunk >= 0) hdi_output_format(output, "%s\"chunk\":%d", comma, event->chunk);
    hdi_output_text(output, "}}");
}

hd_status hdi_trace_flush(const hdi_trace *trace, double offset_us, const char *path)
{
    hdi_output output;
    if (hdi_output_open(&output, path) != HD_OK) return hdi_output_commit(&output);

    int64_t end = atomic_load(&trace->recorded), begin = hdi_trace_dropped(trace);
    char name[32];
    snprintf(name, sizeof name, "rank %d", trace->rank);
    hdi_output_format(
        &output,
        "{\"displayTimeUnit\":\"ms\",\n\"otherData\":{\"rank\":%d,\"events_dropped\":%" PRId64
        "},\n\"traceEvents\":[\n",
        trace->rank, begin);
    put_metadata(&output, "process_name", trace->rank, 0, name);
    for (int i = 0; i < trace->named_threads; i++)
        put_metadata(&output, "thread_name", trace->rank, trace->threads[i],
                     trace->thread_names[i]);
    hdi_output_format(&output,
                      "{\"name\":\"process_sort_index\",\"ph\":\"M\",\"pid\":%d,\"tid\":0,"
                      "\"args\":{\"sort_index\":%d}}",
                      trace->rank, trace->rank);
    for (int64_t i = begin; i < end; i++)
        put_event(&output, trace->rank, offset_us, &trace->events[i % trace->capacity]);
    hdi_output_text(&output, "\n]}\n");
    return hdi_output_commit(&output);
}
