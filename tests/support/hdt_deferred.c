/* A queue of calls of the CPU backend. */
#include "tests/support/hdt_deferred.h"

#include "core/error.h"
#include "tests/support/hdt_calls.h"

#include <stdio.h>

enum { MOST = 1 << 14 };

static hdt_call calls[MOST];
static int first, count, marked, waits;
static bool is_eager;
static hd_status failed;
static char text[1024];
static hd_backend backend;

/* As a GPU: a call that fails does not stop the others, and whoever waits hears of the first. */
static void make_until(int end)
{
    for (; first < end; first++) {
        const hd_status status = hdt_call_make(&calls[first]);
        if (status == HD_OK || failed != HD_OK) continue;
        failed = status;
        snprintf(text, sizeof text, "%s", hd_last_error());
    }
    if (first == count) first = count = marked = 0;
}

static hd_status say(void)
{
    const hd_status status = failed;
    failed = HD_OK;
    return status == HD_OK ? HD_OK : hdi_error(status, "%s", text);
}

static hd_status take(hd_stream *stream, hdt_call_fn make, const void *args, size_t bytes)
{
    if (count == MOST)
        return hdi_error(HD_ERROR_INTERNAL, "deferred backend: over %d calls are queued", MOST);
    hdt_call_keep(&calls[count++], stream, make, args, bytes);
    if (is_eager) make_until(count);
    return HD_OK;
}

static hd_status copy_beside(hd_stream *stream, int slot, void *out, const void *x, size_t bytes)
{
    (void)slot;
    return take_copy(stream, out, x, bytes);
}

/* What trainings start with is not queued; it has its turn all the same. */
static hd_status split_weights(hd_stream *stream, hd_dtype dtype, int64_t elements,
                               const float *values, void *weights, int16_t *remainder)
{
    make_until(count);
    return hdi_backend_cpu.split_weights(stream, dtype, elements, values, weights, remainder);
}

static hd_status join_weights(hd_stream *stream, int64_t elements, const void *weights,
                              const int16_t *remainder, float *values)
{
    make_until(count);
    return hdi_backend_cpu.join_weights(stream, elements, weights, remainder, values);
}

static hd_status fill_normal(hd_stream *stream, hd_dtype dtype, void *out, int64_t elements,
                             uint64_t seed, uint64_t stream_number, int64_t begin, float std)
{
    make_until(count);
    return hdi_backend_cpu.fill_normal(stream, dtype, out, elements, seed, stream_number, begin,
                                       std);
}

static hd_status synchronize(hd_stream *stream)
{
    (void)stream;
    waits++;
    make_until(count);
    return say();
}

static hd_status is_idle(hd_stream *stream, bool *idle)
{
    (void)stream;
    make_until(count);
    *idle = true;
    return HD_OK;
}

static hd_status mark(hd_stream *stream)
{
    (void)stream;
    marked = count;
    return HD_OK;
}

static hd_status is_past(hd_stream *stream, bool *past)
{
    (void)stream;
    make_until(marked);
    *past = true;
    return say();
}

const hd_backend *hdt_deferred_backend(bool eager)
{
    first = count = marked = waits = 0;
    failed = HD_OK;
    is_eager = eager;
    backend = below = hdi_backend_cpu;
    hdt_calls_put(&backend);
    backend.copy_in = backend.copy_out = backend.copy;
    backend.fetch = backend.store = copy_beside;
    backend.split_weights = split_weights;
    backend.join_weights = join_weights;
    backend.fill_normal = fill_normal;
    backend.synchronize = synchronize;
    backend.is_idle = is_idle;
    backend.mark = mark;
    backend.is_past = is_past;
    return &backend;
}

int hdt_deferred_waits(void)
{
    return waits;
}

int hdt_deferred_pending(void)
{
    return count - first;
}
