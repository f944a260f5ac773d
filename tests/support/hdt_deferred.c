/* A queue of calls of the CPU backend. */
#include "tests/support/hdt_deferred.h"

#include "core/error.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum { MOST = 1 << 14, ARGS_BYTES = 256 };

typedef struct call {
    hd_status (*make)(hd_stream *stream, const void *args);
    hd_stream *stream;
    _Alignas(max_align_t) char args[ARGS_BYTES];
} call;

static call calls[MOST];
static int first, count, marked, waits;
static bool is_eager;
static hd_status failed;
static char text[1024];
static hd_backend backend;

/* As a GPU: a call that fails does not stop the others, and whoever waits hears of the first. */
static void make_until(int end)
{
    for (; first < end; first++) {
        const hd_status status = calls[first].make(calls[first].stream, calls[first].args);
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

static hd_status queue(hd_status (*make)(hd_stream *stream, const void *args), hd_stream *stream,
                       const void *args, size_t bytes)
{
    if (count == MOST)
        return hdi_error(HD_ERROR_INTERNAL, "deferred backend: over %d calls are queued", MOST);
    calls[count].make = make;
    calls[count].stream = stream;
    memcpy(calls[count++].args, args, bytes);
    if (is_eager) make_until(count);
    return HD_OK;
}

/* Kernels that take their arguments in a struct. */
#define KERNELS(of)                                                                               \
    of(gemm, hdi_gemm_args) of(column_sum, hdi_column_sum_args) of(embedding, hdi_embedding_args) \
        of(embedding_gradient, hdi_embedding_gradient_args) of(positions, hdi_positions_args)     \
            of(norm, hdi_norm_args) of(norm_gradient, hdi_norm_gradient_args)                     \
                of(activation, hdi_activation_args) of(activation_gradient, hdi_activation_args)  \
                    of(gated, hdi_gated_args) of(gated_gradient, hdi_gated_args)                  \
                        of(rope, hdi_rope_args) of(attention, hdi_attention_args)                 \
                            of(attention_gradient, hdi_attention_args)                            \
                                of(cross_entropy, hdi_cross_entropy_args)                         \
                                    of(adamw, hdi_adamw_args) of(average, hdi_average_args)

#define DEFER(name, type)                                                 \
    _Static_assert(sizeof(type) <= ARGS_BYTES, "room for the arguments"); \
    static hd_status make_##name(hd_stream *stream, const void *args)     \
    {                                                                     \
        return hdi_backend_cpu.name(stream, args);                        \
    }                                                                     \
    static hd_status name(hd_stream *stream, const type *args)            \
    {                                                                     \
        return queue(make_##name, stream, args, sizeof *args);            \
    }
KERNELS(DEFER)

/* What all others take. */
typedef struct plain_args {
    hd_dtype from, to;
    int64_t elements, stride;
    const void *x, *y;
    void *out;
    size_t bytes;
    int parts;
    bool accumulate;
} plain_args;

static hd_status make_copy(hd_stream *stream, const void *args)
{
    const plain_args *a = args;
    return hdi_backend_cpu.copy(stream, a->out, a->x, a->bytes);
}

static hd_status copy(hd_stream *stream, void *out, const void *x, size_t bytes)
{
    return queue(make_copy, stream, &(plain_args){.out = out, .x = x, .bytes = bytes},
                 sizeof(plain_args));
}

static hd_status copy_beside(hd_stream *stream, int slot, void *out, const void *x, size_t bytes)
{
    (void)slot;
    return copy(stream, out, x, bytes);
}

static hd_status make_zero(hd_stream *stream, const void *args)
{
    const plain_args *a = args;
    return hdi_backend_cpu.zero(stream, a->out, a->bytes);
}

static hd_status zero(hd_stream *stream, void *out, size_t bytes)
{
    return queue(make_zero, stream, &(plain_args){.out = out, .bytes = bytes}, sizeof(plain_args));
}

static hd_status make_add(hd_stream *stream, const void *args)
{
    const plain_args *a = args;
    return hdi_backend_cpu.add(stream, a->from, a->elements, a->x, a->y, a->out);
}

static hd_status add(hd_stream *stream, hd_dtype dtype, int64_t elements, const void *x,
                     const void *y, void *out)
{
    const plain_args args = {.from = dtype, .elements = elements, .x = x, .y = y, .out = out};
    return queue(make_add, stream, &args, sizeof args);
}

static hd_status make_convert(hd_stream *stream, const void *args)
{
    const plain_args *a = args;
    return hdi_backend_cpu.convert(stream, a->from, a->x, a->to, a->out, a->elements);
}

static hd_status convert(hd_stream *stream, hd_dtype from, const void *x, hd_dtype to, void *out,
                         int64_t elements)
{
    const plain_args args = {.from = from, .to = to, .elements = elements, .x = x, .out = out};
    return queue(make_convert, stream, &args, sizeof args);
}

static hd_status make_loss_sum(hd_stream *stream, const void *args)
{
    const plain_args *a = args;
    return hdi_backend_cpu.loss_sum(stream, a->x, a->y, a->elements, a->out);
}

static hd_status loss_sum(hd_stream *stream, const float *loss, const int32_t *targets,
                          int64_t rows, double out[2])
{
    const plain_args args = {.elements = rows, .x = loss, .y = targets, .out = out};
    return queue(make_loss_sum, stream, &args, sizeof args);
}

static hd_status make_sum_of_squares(hd_stream *stream, const void *args)
{
    const plain_args *a = args;
    return hdi_backend_cpu.sum_of_squares(stream, a->from, a->x, a->elements, a->out);
}

static hd_status sum_of_squares(hd_stream *stream, hd_dtype dtype, const void *x, int64_t elements,
                                double *out)
{
    const plain_args args = {.from = dtype, .elements = elements, .x = x, .out = out};
    return queue(make_sum_of_squares, stream, &args, sizeof args);
}

static hd_status make_tree_sum(hd_stream *stream, const void *args)
{
    const plain_args *a = args;
    return hdi_backend_cpu.tree_sum(stream, a->from, a->x, a->stride, a->parts, a->elements,
                                    a->out);
}

static hd_status tree_sum(hd_stream *stream, hd_dtype dtype, const void *x, int64_t stride,
                          int parts, int64_t elements, void *out)
{
    const plain_args args = {
        .from = dtype, .elements = elements, .stride = stride, .parts = parts, .x = x, .out = out};
    return queue(make_tree_sum, stream, &args, sizeof args);
}

static hd_status make_round_sum(hd_stream *stream, const void *args)
{
    const plain_args *a = args;
    return hdi_backend_cpu.round_sum(stream, a->from, a->elements, a->x, a->accumulate, a->out);
}

static hd_status round_sum(hd_stream *stream, hd_dtype dtype, int64_t elements, const float *x,
                           bool accumulate, void *out)
{
    const plain_args args = {
        .from = dtype, .elements = elements, .x = x, .accumulate = accumulate, .out = out};
    return queue(make_round_sum, stream, &args, sizeof args);
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
    backend = hdi_backend_cpu;
#define TAKE(name, type) backend.name = name;
    KERNELS(TAKE)
    backend.copy_in = backend.copy_out = backend.copy = copy;
    backend.fetch = backend.store = copy_beside;
    backend.zero = zero;
    backend.add = add;
    backend.convert = convert;
    backend.loss_sum = loss_sum;
    backend.sum_of_squares = sum_of_squares;
    backend.tree_sum = tree_sum;
    backend.round_sum = round_sum;
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
