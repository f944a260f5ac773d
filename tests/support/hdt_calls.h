/* What a backend computes as calls that can be kept: a function and its arguments in one run of bytes. Whoever
 * includes this defines `take`, sets `below`, and has a backend whose functions give their calls to take. */
#ifndef HDT_CALLS_H
#define HDT_CALLS_H

#include "backend/backend.h"

#include <stddef.h>
#include <string.h>

enum { HDT_CALL_BYTES = 320 };

typedef hd_status (*hdt_call_fn)(hd_stream *stream, const void *args);

typedef struct hdt_call {
    hdt_call_fn make;
    hd_stream *stream;
    _Alignas(max_align_t) char args[HDT_CALL_BYTES];
} hdt_call;

static inline void hdt_call_keep(hdt_call *call, hd_stream *stream, hdt_call_fn make,
                                 const void *args, size_t bytes)
{
    call->make = make;
    call->stream = stream;
    memcpy(call->args, args, bytes);
}

static inline hd_status hdt_call_make(const hdt_call *call)
{
    return call->make(call->stream, call->args);
}

/* What makes the calls; and what is done with one instead. */
static hd_backend below;
static hd_status take(hd_stream *stream, hdt_call_fn make, const void *args, size_t bytes);

#define HDT_BY_STRUCT(f, type)                                           \
    static hd_status make_##f(hd_stream *stream, const void *args)       \
    {                                                                    \
        return below.f(stream, args);                                    \
    }                                                                    \
    static hd_status take_##f(hd_stream *stream, const type *args)       \
    {                                                                    \
        _Static_assert(sizeof *args <= HDT_CALL_BYTES, "room for args"); \
        return take(stream, make_##f, args, sizeof *args);               \
    }

#define HDT_ALL_BY_STRUCT(DO)                              \
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

HDT_ALL_BY_STRUCT(HDT_BY_STRUCT)

/* Arguments of the functions that take no struct. */
typedef struct hdt_loose_args {
    hd_dtype dtype, to;
    int64_t elements, stride;
    int parts;
    bool accumulate;
    size_t bytes;
    const void *x, *y;
    void *out, *second;
} hdt_loose_args;

/* Functions of loose arguments: `call` of those in a, which `...` puts there. */
#define HDT_LOOSE(f, parameters, call, ...)                                                    \
    static hd_status make_##f(hd_stream *stream, const void *args)                             \
    {                                                                                          \
        const hdt_loose_args *a = args;                                                        \
        return below.f call;                                                                   \
    }                                                                                          \
    static hd_status take_##f parameters                                                       \
    {                                                                                          \
        return take(stream, make_##f, &(hdt_loose_args){__VA_ARGS__}, sizeof(hdt_loose_args)); \
    }

HDT_LOOSE(copy, (hd_stream * stream, void *out, const void *x, size_t bytes),
          (stream, a->out, a->x, a->bytes), .out = out, .x = x, .bytes = bytes)
HDT_LOOSE(zero, (hd_stream * stream, void *out, size_t bytes), (stream, a->out, a->bytes),
          .out = out, .bytes = bytes)
HDT_LOOSE(add,
          (hd_stream * stream, hd_dtype dtype, int64_t elements, const void *x, const void *y,
           void *out),
          (stream, a->dtype, a->elements, a->x, a->y, a->out), .dtype = dtype, .elements = elements,
          .x = x, .y = y, .out = out)
HDT_LOOSE(convert,
          (hd_stream * stream, hd_dtype from, const void *x, hd_dtype to, void *out,
           int64_t elements),
          (stream, a->dtype, a->x, a->to, a->out, a->elements), .dtype = from, .x = x, .to = to,
          .out = out, .elements = elements)
HDT_LOOSE(loss_sum,
          (hd_stream * stream, const float *loss, const int32_t *targets, int64_t rows,
           double out[2]),
          (stream, a->x, a->y, a->elements, a->out), .x = loss, .y = targets, .elements = rows,
          .out = out)
HDT_LOOSE(sum_of_squares,
          (hd_stream * stream, hd_dtype dtype, const void *x, int64_t elements, double *out),
          (stream, a->dtype, a->x, a->elements, a->out), .dtype = dtype, .x = x,
          .elements = elements, .out = out)
HDT_LOOSE(tree_sum,
          (hd_stream * stream, hd_dtype dtype, const void *x, int64_t stride, int parts,
           int64_t elements, void *out),
          (stream, a->dtype, a->x, a->stride, a->parts, a->elements, a->out), .dtype = dtype,
          .x = x, .stride = stride, .parts = parts, .elements = elements, .out = out)
HDT_LOOSE(round_sum,
          (hd_stream * stream, hd_dtype dtype, int64_t elements, const float *x, bool accumulate,
           void *out),
          (stream, a->dtype, a->elements, a->x, a->accumulate, a->out), .dtype = dtype,
          .elements = elements, .x = x, .accumulate = accumulate, .out = out)
HDT_LOOSE(split_weights,
          (hd_stream * stream, hd_dtype dtype, int64_t elements, const float *values, void *weights,
           int16_t *remainder),
          (stream, a->dtype, a->elements, a->x, a->out, a->second), .dtype = dtype,
          .elements = elements, .x = values, .out = weights, .second = remainder)
HDT_LOOSE(join_weights,
          (hd_stream * stream, int64_t elements, const void *weights, const int16_t *remainder,
           float *values),
          (stream, a->elements, a->x, a->y, a->out), .elements = elements, .x = weights,
          .y = remainder, .out = values)

/* Let the functions of `backend` give their calls to take. */
static void hdt_calls_put(hd_backend *backend)
{
#define HDT_PUT(f, type) backend->f = take_##f;
    HDT_ALL_BY_STRUCT(HDT_PUT)
    backend->copy = take_copy;
    backend->zero = take_zero;
    backend->add = take_add;
    backend->convert = take_convert;
    backend->loss_sum = take_loss_sum;
    backend->sum_of_squares = take_sum_of_squares;
    backend->tree_sum = take_tree_sum;
    backend->round_sum = take_round_sum;
    backend->split_weights = take_split_weights;
    backend->join_weights = take_join_weights;
}

#endif
