/* Attention from the rows that queries, keys and values are made of, a group of heads at a time: only
 * a group's queries, keys and values are in memory. */
#include "ops/slices.h"

#include "core/error.h"
#include "ops/ops.h"
#include "program/place.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { MOST_STREAMS = 2, ROWS = 0, WEIGHT, BIAS, QUERY_NORM, KEY_NORM, TABLE, STREAM_INPUTS };
enum { COUNTS = MOST_STREAMS * STREAM_INPUTS, INPUTS };

typedef struct slices_options {
    int64_t sequences, heads, head_dim, tokens[MOST_STREAMS];
    hdi_rope_axes rope[MOST_STREAMS]; /* without the tables */
    float epsilon, scale;
    int streams;
    int64_t group; /* heads of a group; the last one may have fewer */
} slices_options;

static int64_t joint_tokens(const slices_options *options)
{
    return options->tokens[0] + options->tokens[1];
}

static hd_status check_stream(const hd_op *op, int stream)
{
    const slices_options *options = op->options;
    const int first = stream * STREAM_INPUTS;
    const int64_t rows[] = {options->sequences * options->tokens[stream], -1};
    const int64_t head = options->head_dim, packed = 3 * options->heads * head;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, first + ROWS, "rows", HD_DTYPE_NONE, 2, rows));
    const hd_tensor_info *const *in = op->in_info + first;
    const hd_dtype dtype = op->in_info[0]->dtype;
    const int64_t weight[] = {packed, in[ROWS]->dims[1]};
    HD_RETURN_IF_ERROR(hdi_check_input(op, first + ROWS, "rows", dtype));
    HD_RETURN_IF_ERROR(hdi_check_dims(op, first + WEIGHT, "weight", dtype, 2, weight));
    if (in[BIAS]) HD_RETURN_IF_ERROR(hdi_check_dims(op, first + BIAS, "bias", dtype, 1, &packed));
    if (!in[QUERY_NORM] != !in[KEY_NORM])
        return hdi_error(HD_ERROR_ARGUMENT, "stream %d has a norm of %s only, want both or none",
                         stream, in[QUERY_NORM] ? "queries" : "keys");
    if (!in[QUERY_NORM]) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, first + QUERY_NORM, "query_norm", dtype, 1, &head));
    return hdi_check_dims(op, first + KEY_NORM, "key_norm", dtype, 1, &head);
}

static hd_status slices_shape(hd_program *program, const hd_op *op)
{
    const slices_options *options = op->options;
    for (int s = 0; s < options->streams; s++)
        HD_RETURN_IF_ERROR(check_stream(op, s));
    if (op->in_info[COUNTS])
        HD_RETURN_IF_ERROR(
            hdi_check_dims(op, COUNTS, "counts", HD_DTYPE_I32, 1, &options->sequences));
    for (int s = 0; s < options->streams; s++) {
        const int64_t dims[] = {options->sequences * options->tokens[s],
                                options->heads * options->head_dim};
        hd_op_output(program, op->in_info[0]->dtype, 2, dims);
    }
    return HD_OK;
}

static void slices_cost(const hd_op *op, hd_cost *out)
{
    const slices_options *options = op->options;
    const double tokens = (double)joint_tokens(options);
    out->flops = 4.0 * (double)options->sequences * tokens * tokens *
                 (double)(options->heads * options->head_dim);
    for (int s = 0; s < options->streams; s++)
        out->flops += 2.0 * (double)hdi_rows(op->in_info[s * STREAM_INPUTS + ROWS]) *
                      (double)op->in_info[s * STREAM_INPUTS + WEIGHT]->elements;
    out->bytes = hdi_tensor_bytes(op);
    out->head_dim = (double)options->head_dim;
    out->keys = tokens;
}

/* Of `heads` heads whose queries, keys and values lie packed at `packed`. */
static hdi_attention_args attention_of(const hd_op *op, int64_t heads, const void *packed)
{
    const slices_options *options = op->options;
    const int64_t part = heads * options->head_dim;
    const size_t bytes = (size_t)part * hd_dtype_bytes(op->in_info[0]->dtype);
    return (hdi_attention_args){
        .dtype = op->in_info[0]->dtype,
        .batch = options->sequences,
        .tokens = joint_tokens(options),
        .kv_tokens = joint_tokens(options),
        .heads = heads,
        .kv_heads = heads,
        .head_dim = options->head_dim,
        .q_stride = 3 * part,
        .k_stride = 3 * part,
        .v_stride = 3 * part,
        .out_stride = options->streams > 1 ? part : options->heads * options->head_dim,
        .scale = options->scale,
        .interleave = 1,
        .q = packed,
        .k = packed ? (const char *)packed + bytes : NULL,
        .v = packed ? (const char *)packed + 2 * bytes : NULL,
    };
}

/* Bytes of `parts` of a group's queries, keys, values and results. */
static size_t group_bytes(const hd_op *op, int64_t parts)
{
    const slices_options *options = op->options;
    const int64_t rows = options->sequences * joint_tokens(options);
    return hdi_place_round((size_t)(rows * parts * options->group * options->head_dim) *
                           hd_dtype_bytes(op->in_info[0]->dtype));
}

/* The workspace: queries, keys and values; the results of two streams, which lie joined before they
 * are parted; what attention needs. */
static size_t joined_bytes(const hd_op *op)
{
    return ((const slices_options *)op->options)->streams > 1 ? group_bytes(op, 1) : 0;
}

static size_t slices_workspace(const hd_op *op)
{
    const slices_options *options = op->options;
    const int64_t last = options->heads % options->group;
    size_t most = 0;
    for (int i = 0; i < 2; i++) {
        const hdi_attention_args args = attention_of(op, i && last ? last : options->group, NULL);
        const size_t bytes = hdi_op_backend(op)->attention_workspace(&args);
        if (bytes > most) most = bytes;
    }
    return group_bytes(op, 3) + joined_bytes(op) + most;
}

/* Queries, keys and values of `heads` heads from `head` on, for one stream's rows of a sequence:
 * products that go where the norm and the rotation then work in place. */
static hd_status make_rows(const hd_run *run, int stream, int64_t sequence, int64_t head,
                           int64_t heads)
{
    const slices_options *options = run->op->options;
    const int first = stream * STREAM_INPUTS;
    const hd_tensor_info *rows = run->op->in_info[first + ROWS];
    const void *const *in = run->in + first;
    const size_t bytes = hd_dtype_bytes(rows->dtype);
    const int64_t inputs = rows->dims[1], part = heads * options->head_dim;
    const int64_t tokens = options->tokens[stream];
    const int64_t row = sequence * joint_tokens(options) + (stream ? options->tokens[0] : 0);
    char *out = (char *)run->workspace + (size_t)(row * 3 * part) * bytes;
    for (int64_t i = 0; i < 3; i++) {
        const int64_t outputs = (i * options->heads + head) * options->head_dim;
        const hdi_gemm_args product = {
            .dtype = rows->dtype,
            .out_dtype = rows->dtype,
            .rows = tokens,
            .columns = part,
            .inner = inputs,
            .a = (const char *)in[ROWS] + (size_t)(sequence * tokens * inputs) * bytes,
            .b = (const char *)in[WEIGHT] + (size_t)(outputs * inputs) * bytes,
            .a_stride = inputs,
            .b_stride = inputs,
            .out_stride = 3 * part,
            .transpose_b = true,
            .bias = in[BIAS] ? (const char *)in[BIAS] + (size_t)outputs * bytes : NULL,
            .out = out + (size_t)(i * part) * bytes};
        HD_RETURN_IF_ERROR(run->backend->gemm(run->stream, &product));
    }
    hdi_joint_qkv_args joint = {.dtype = rows->dtype,
                                .sequences = 1,
                                .tokens = tokens,
                                .out_tokens = tokens,
                                .heads = heads,
                                .head_dim = options->head_dim,
                                .epsilon = options->epsilon,
                                .qkv = out,
                                .query_norm = in[QUERY_NORM],
                                .key_norm = in[KEY_NORM],
                                .rope = options->rope[stream],
                                .out = out};
    joint.rope.table = in[TABLE];
    if (!joint.query_norm && !joint.rope.axes) return HD_OK;
    return run->backend->joint_qkv(run->stream, &joint);
}

/* A group's columns of the streams' results. */
static hd_status part_rows(const hd_run *run, const char *joined, int64_t head, int64_t heads)
{
    const slices_options *options = run->op->options;
    const size_t bytes = hd_dtype_bytes(run->op->in_info[0]->dtype);
    const size_t part = (size_t)(heads * options->head_dim) * bytes;
    const size_t whole = (size_t)(options->heads * options->head_dim) * bytes;
    for (int64_t q = 0; q < options->sequences; q++)
        for (int s = 0; s < options->streams; s++) {
            const int64_t row = q * joint_tokens(options) + (s ? options->tokens[0] : 0);
            char *out = (char *)run->out[s] + (size_t)(q * options->tokens[s]) * whole;
            HD_RETURN_IF_ERROR(run->backend->copy_blocks(
                run->stream,
                &(hdi_copy_blocks_args){.blocks = options->tokens[s],
                                        .block_bytes = part,
                                        .x_stride = part,
                                        .out_stride = whole,
                                        .x = joined + (size_t)row * part,
                                        .out = out + (size_t)(head * options->head_dim) * bytes}));
        }
    return HD_OK;
}

static hd_status run_group(const hd_run *run, int64_t head, int64_t heads)
{
    const hd_op *op = run->op;
    const slices_options *options = op->options;
    const size_t column =
        (size_t)(head * options->head_dim) * hd_dtype_bytes(op->in_info[0]->dtype);
    char *joined = (char *)run->workspace + group_bytes(op, 3);
    for (int64_t q = 0; q < options->sequences; q++)
        for (int s = 0; s < options->streams; s++)
            HD_RETURN_IF_ERROR(make_rows(run, s, q, head, heads));
    hdi_attention_args args = attention_of(op, heads, run->workspace);
    args.counts = run->in[COUNTS];
    args.out = options->streams > 1 ? joined : (char *)run->out[0] + column;
    args.workspace = joined + joined_bytes(op);
    HD_RETURN_IF_ERROR(run->backend->attention(run->stream, &args));
    return options->streams > 1 ? part_rows(run, joined, head, heads) : HD_OK;
}

static hd_status slices_run(const hd_run *run)
{
    const slices_options *options = run->op->options;
    for (int64_t head = 0; head < options->heads; head += options->group) {
        const int64_t left = options->heads - head;
        HD_RETURN_IF_ERROR(run_group(run, head, left < options->group ? left : options->group));
    }
    return HD_OK;
}

static const hd_op_kind attention_slices = {
    .name = "attention_slices",
    .flags = HD_OP_ATTENDS,
    .options_bytes = sizeof(slices_options),
    .shape = slices_shape,
    .cost = slices_cost,
    .workspace = slices_workspace,
    .run = slices_run,
};

void hdi_attention_sliced(hd_program *program, const hdi_attention_slices *from, hd_tensor *out)
{
    for (int s = 0; s < from->streams; s++)
        out[s] = (hd_tensor){0};
    if (!hdi_joint_sizes(program, from->sequences, from->heads, from->head_dim, from->epsilon,
                         from->streams))
        return;
    slices_options options;
    memset(&options, 0, sizeof options);
    options.sequences = from->sequences;
    options.heads = from->heads;
    options.head_dim = from->head_dim;
    options.epsilon = (float)(from->epsilon > 0 ? from->epsilon : 1e-6);
    options.scale = (float)(1.0 / sqrt((double)from->head_dim));
    options.streams = from->streams;
    const int64_t groups = from->groups > 1 ? from->groups : 1;
    options.group = (from->heads + groups - 1) / groups;
    hd_tensor in[INPUTS] = {[COUNTS] = from->counts};
    for (int s = 0; s < from->streams; s++) {
        const hd_qkv_stream *stream = &from->stream[s];
        hd_tensor *inputs = in + s * STREAM_INPUTS;
        options.tokens[s] = stream->tokens;
        inputs[ROWS] = stream->qkv;
        inputs[WEIGHT] = from->map[s].weight;
        inputs[BIAS] = from->map[s].bias;
        inputs[QUERY_NORM] = stream->query_norm;
        inputs[KEY_NORM] = stream->key_norm;
        if (!hdi_joint_rope(program, stream, s, from->head_dim, &options.rope[s], &inputs[TABLE]))
            return;
    }
    out[0] = hd_custom_op(program, &attention_slices, &options, INPUTS, in);
    if (from->streams > 1 && out[0].id) out[1] = hd_op_result(program, 1);
}
