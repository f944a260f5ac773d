/* Late copies. */
#include "tests/support/hdt_late.h"

#include "core/error.h"

#include <string.h>

enum { MOST = 1024 };

typedef struct late_copy {
    void *to;
    const void *from;
    size_t bytes;
    int slot;
} late_copy;

/* Those of one direction, in their order. */
typedef struct late_stream {
    late_copy copies[MOST];
    int count;
} late_stream;

static late_stream fetches, stores;
static int queued;
static hd_backend backend;

static hd_status queue(late_stream *stream, int slot, void *to, const void *from, size_t bytes)
{
    if (stream->count == MOST)
        return hdi_error(HD_ERROR_INTERNAL, "late copies: over %d on their way", MOST);
    memset(to, 0xff, bytes);
    stream->copies[stream->count++] = (late_copy){to, from, bytes, slot};
    queued++;
    return HD_OK;
}

static void make(late_stream *stream, int slot)
{
    int last = -1, kept = 0;
    for (int i = 0; i < stream->count; i++)
        if (stream->copies[i].slot == slot) last = i;
    for (int i = 0; i <= last; i++)
        memcpy(stream->copies[i].to, stream->copies[i].from, stream->copies[i].bytes);
    for (int i = last + 1; i < stream->count; i++)
        stream->copies[kept++] = stream->copies[i];
    stream->count = kept;
}

static hd_status fetch(hd_stream *stream, int slot, void *to, const void *from, size_t bytes)
{
    (void)stream;
    return queue(&fetches, slot, to, from, bytes);
}

static hd_status store(hd_stream *stream, int slot, void *to, const void *from, size_t bytes)
{
    (void)stream;
    return queue(&stores, slot, to, from, bytes);
}

static hd_status await_fetch(hd_stream *stream, int slot)
{
    (void)stream;
    make(&fetches, slot);
    return HD_OK;
}

static hd_status await_store(hd_stream *stream, int slot)
{
    (void)stream;
    make(&stores, slot);
    return HD_OK;
}

const hd_backend *hdt_late_backend(void)
{
    fetches.count = stores.count = 0;
    queued = 0;
    backend = hdi_backend_cpu;
    backend.fetch = fetch;
    backend.await = await_fetch;
    backend.store = store;
    backend.await_store = await_store;
    return &backend;
}

int hdt_late_queued(void)
{
    return queued;
}

int hdt_late_pending(void)
{
    return fetches.count + stores.count;
}
