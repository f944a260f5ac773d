/* Graphs of calls of a backend on the CPU. */
#include "tests/support/hdt_recorder.h"

#include <stdlib.h>
#include <string.h>

#include "core/error.h"

enum { MOST_CALLS = 2048, ARGS_BYTES = 320 };

typedef hd_status (*again_fn)(hd_stream *stream, const void *args);

typedef struct call {
    again_fn again;
    hd_stream *stream;
    _Alignas(16) char args[ARGS_BYTES];
} call;

typedef struct recording {
    int count;
    call calls[MOST_CALLS];
} recording;

/* Arguments of the functions that take no struct. */
typedef struct loose_args {
    hd_dtype dtype, to;
    int64_t elements, stride;
    int parts;
    bool accumulate;
    size_t bytes;
    const void *x, *y;
    void *out, *second;
} loose_args;

hdt_recorder_state hdt_recorder;
static recording *now;
static hd_backend backend, below;

static hd_status take(hd_stream *stream, again_fn again, const void *args, size_t bytes)
{
    if (!hdt_recorder.records) return again(stream, args);
    if (now->count == MOST_CALLS)
        return hdi_error(HD_ERROR_INTERNAL, "recorder: over %d calls", MOST_CALLS);
    call *it = &now->calls[now->count++];
    *it = (call){.again = again, .stream = stream};
    memcpy(it->args, args, bytes);
    return HD_OK;
}

#define BY_STRUCT(f, type)                                           \
    static hd_status again_##f(hd_stream *stream, const void *args)  \
    {                                                                \
        return below.f(stream, args);                                \
    }                                                                \
    static hd_status take_##f(hd_stream *stream, const type *args)   \
    {                                                                \
        _Static_assert(sizeof *args <= ARGS_BYTES, "room for args"); \
        return take(stream, again_##f, args, sizeof *args);          \
    }

#define ALL_BY_STRUCT(DO)                                  \
    DO(gemm, hdi_gemm_args)                                \
    DO(column_sum, hdi_column_sum_args)                    \
    DO(embedding, hdi_embedding_args)                      \
    DO(embedding_gradient, hdi_embedding_gradient_args)    \
    DO(positions, hdi_positions_args)                      \
    DO(select_row, hdi_select_row_args)                    \
    DO(norm, hdi_norm_args)                                \
    DO(norm_gradient, hdi_norm_gradient_args)              \
    DO(activation, hdi_activation_args)                    \
    DO(activation_gradient, hdi_activation_args)           \
    DO(gated, hdi_gated_args)                              \
    DO(gated_gradient, hdi_gated_args)                     \
    DO(rope, hdi_rope_args)                                \
    DO(attention, hdi_attention_args)                      \
    DO(attention_gradient, hdi_attention_args)             \
    DO(merge_attention, hdi_merge_attention_args)          \
    DO(add_blocks, hdi_add_blocks_args)                    \
    DO(attention_cached, hdi_attention_cached_args)        \
    DO(cross_entropy, hdi_cross_entropy_args)              \
    DO(cross_entropy_part, hdi_cross_entropy_args)         \
    DO(sinusoid, hdi_sinusoid_args)                        \
    DO(modulate, hdi_modulate_args)                        \
    DO(modulate_gradient, hdi_modulate_gradient_args)      \
    DO(modulation_gradient, hdi_modulation_gradient_args)  \
    DO(add_rows, hdi_add_rows_args)                        \
    DO(add_rows_gradient, hdi_add_rows_gradient_args)      \
    DO(copy_blocks, hdi_copy_blocks_args)                  \
    DO(copy_grid, hdi_copy_grid_args)                      \
    DO(joint_qkv, hdi_joint_qkv_args)                      \
    DO(joint_qkv_gradient, hdi_joint_qkv_gradient_args)    \
    DO(cross_attention, hdi_cross_attention_args)          \
    DO(cross_attention_gradient, hdi_cross_attention_args) \
    DO(patchify, hdi_patch_args)                           \
    DO(unpatchify, hdi_patch_args)                         \
    DO(squared_error, hdi_squared_error_args)              \
    DO(mean_rows, hdi_mean_rows_args)                      \
    DO(raise_counts, hdi_raise_counts_args)                \
    DO(quantize, hdi_quantize_args)                        \
    DO(dequantize, hdi_quantize_args)                      \
    DO(adamw, hdi_adamw_args)                              \
    DO(average, hdi_average_args)

ALL_BY_STRUCT(BY_STRUCT)

/* Functions of loose arguments: `call_again` of those in a, which `...` puts there. */
#define LOOSE(f, parameters, call_again, ...)                                           \
    static hd_status again_##f(hd_stream *stream, const void *args)                     \
    {                                                                                   \
        const loose_args *a = args;                                                     \
        return below.f call_again;                                                      \
    }                                                                                   \
    static hd_status take_##f parameters                                                \
    {                                                                                   \
        return take(stream, again_##f, &(loose_args){__VA_ARGS__}, sizeof(loose_args)); \
    }

LOOSE(copy, (hd_stream * stream, void *out, const void *x, size_t bytes),
      (stream, a->out, a->x, a->bytes), .out = out, .x = x, .bytes = bytes)
LOOSE(zero, (hd_stream * stream, void *out, size_t bytes), (stream, a->out, a->bytes), .out = out,
      .bytes = bytes)
LOOSE(add,
      (hd_stream * stream, hd_dtype dtype, int64_t elements, const void *x, const void *y,
       void *out),
      (stream, a->dtype, a->elements, a->x, a->y, a->out), .dtype = dtype, .elements = elements,
      .x = x, .y = y, .out = out)
LOOSE(convert,
      (hd_stream * stream, hd_dtype from, const void *x, hd_dtype to, void *out, int64_t elements),
      (stream, a->dtype, a->x, a->to, a->out, a->elements), .dtype = from, .x = x, .to = to,
      .out = out, .elements = elements)
LOOSE(loss_sum,
      (hd_stream * stream, const float *loss, const int32_t *targets, int64_t rows, double out[2]),
      (stream, a->x, a->y, a->elements, a->out), .x = loss, .y = targets, .elements = rows,
      .out = out)
LOOSE(sum_of_squares,
      (hd_stream * stream, hd_dtype dtype, const void *x, int64_t elements, double *out),
      (stream, a->dtype, a->x, a->elements, a->out), .dtype = dtype, .x = x, .elements = elements,
      .out = out)
LOOSE(tree_sum,
      (hd_stream * stream, hd_dtype dtype, const void *x, int64_t stride, int parts,
       int64_t elements, void *out),
      (stream, a->dtype, a->x, a->stride, a->parts, a->elements, a->out), .dtype = dtype, .x = x,
      .stride = stride, .parts = parts, .elements = elements, .out = out)
LOOSE(round_sum,
      (hd_stream * stream, hd_dtype dtype, int64_t elements, const float *x, bool accumulate,
       void *out),
      (stream, a->dtype, a->elements, a->x, a->accumulate, a->out), .dtype = dtype,
      .elements = elements, .x = x, .accumulate = accumulate, .out = out)
LOOSE(split_weights,
      (hd_stream * stream, hd_dtype dtype, int64_t elements, const float *values, void *weights,
       int16_t *remainder),
      (stream, a->dtype, a->elements, a->x, a->out, a->second), .dtype = dtype,
      .elements = elements, .x = values, .out = weights, .second = remainder)
LOOSE(join_weights,
      (hd_stream * stream, int64_t elements, const void *weights, const int16_t *remainder,
       float *values),
      (stream, a->elements, a->x, a->y, a->out), .elements = elements, .x = weights, .y = remainder,
      .out = values)

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
        HD_RETURN_IF_ERROR(it->calls[i].again(it->calls[i].stream, it->calls[i].args));
    return HD_OK;
}

const hd_backend *hdt_recorder_backend(const hd_backend *base)
{
    hdt_recorder = (hdt_recorder_state){.graph_bytes = 1000};
    backend = below = *base;
#define PUT(f, type) backend.f = take_##f;
    ALL_BY_STRUCT(PUT)
    backend.copy = take_copy;
    backend.zero = take_zero;
    backend.add = take_add;
    backend.convert = take_convert;
    backend.loss_sum = take_loss_sum;
    backend.sum_of_squares = take_sum_of_squares;
    backend.tree_sum = take_tree_sum;
    backend.round_sum = take_round_sum;
    backend.split_weights = take_split_weights;
    backend.join_weights = take_join_weights;
    backend.begin_record = begin_record;
    backend.end_record = end_record;
    backend.load_graph = load_graph;
    backend.run_graph = run_graph;
    backend.forget_graph = forget_graph;
    return &backend;
}
