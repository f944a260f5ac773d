/* Graphs of calls of a backend on the CPU. */
#include "tests/support/hdt_recorder.h"

#include <stdlib.h>

#include "core/error.h"
#include "tests/support/hdt_calls.h"

enum { MOST_CALLS = 2048 };

typedef struct recording {
    int count;
    hdt_call calls[MOST_CALLS];
} recording;

hdt_recorder_state hdt_recorder;
static recording *now;
static hd_backend backend;

static hd_status take(hd_stream *stream, hdt_call_fn make, const void *args, size_t bytes)
{
    if (!hdt_recorder.records) return make(stream, args);
    if (now->count == MOST_CALLS)
        return hdi_error(HD_ERROR_INTERNAL, "recorder: over %d calls", MOST_CALLS);
    hdt_call_keep(&now->calls[now->count++], stream, make, args, bytes);
    return HD_OK;
}

static hd_status begin_record(hd_stream *stream)
{
    (void)stream;
    now = calloc(1, sizeof *now);
    if (!now) return hdi_error(HD_ERROR_MEMORY, "recorder: out of host memory");
    hdt_recorder.recordings++;
    hdt_recorder.graphs++;
    hdt_recorder.records = true;
    return HD_OK;
}

static void forget_graph(hdi_graph *graph)
{
    hdt_recorder.graphs -= graph->recorded != NULL;
    hdt_recorder.graphs -= graph->loaded != NULL;
    free(graph->recorded);
    free(graph->loaded);
    *graph = (hdi_graph){0};
}

static hd_status end_record(hd_stream *stream, hdi_graph *out)
{
    (void)stream;
    *out = (hdi_graph){.recorded = now};
    now = NULL;
    hdt_recorder.records = false;
    if (hdt_recorder.end_status != HD_OK) forget_graph(out);
    return hdt_recorder.end_status;
}

static hd_status load_graph(hd_stream *stream, hdi_graph *graph, size_t most_bytes, size_t *bytes)
{
    (void)stream;
    const bool fits = hdt_recorder.graph_bytes <= most_bytes;
    *bytes = fits ? hdt_recorder.graph_bytes : 0;
    if (fits)
        *graph = (hdi_graph){.loaded = graph->recorded};
    else
        forget_graph(graph);
    return HD_OK;
}

static hd_status run_graph(hd_stream *stream, const hdi_graph *graph)
{
    const recording *it = graph->loaded;
    (void)stream;
    for (int i = 0; i < it->count; i++)
        HD_RETURN_IF_ERROR(hdt_call_make(&it->calls[i]));
    return HD_OK;
}

const hd_backend *hdt_recorder_backend(const hd_backend *base)
{
    hdt_recorder = (hdt_recorder_state){.graph_bytes = 1000};
    backend = below = *base;
    hdt_calls_put(&backend);
    backend.begin_record = begin_record;
    backend.end_record = end_record;
    backend.load_graph = load_graph;
    backend.run_graph = run_graph;
    backend.forget_graph = forget_graph;
    return &backend;
}
