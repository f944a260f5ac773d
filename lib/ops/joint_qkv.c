/* Streams of queries, keys and values, normed and rotated, into one packed matrix for attention.
 *
 * in, for each stream: qkv, query norm, key norm (both may be absent), table of angles (may be
 * absent). */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/slices.h"

#include <heddle/diffusion.h>

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MOST_STREAMS = 2, STREAM_INPUTS = 4, MOST_AXES = 3 };

typedef struct joint_options {
    int64_t sequences, heads, head_dim, tokens[MOST_STREAMS];
    hdi_rope_axes rope[MOST_STREAMS]; /* without the tables */
    float epsilon;
    int streams, stream; /* stream: that of a gradient op */
} joint_options;

static int64_t packed_columns(const joint_options *options)
{
    return 3 * options->heads * options->head_dim;
}

static int64_t joint_tokens(const joint_options *options)
{
    return options->tokens[0] + options->tokens[1];
}

/* Inputs from `first` on are those of stream `stream`. */
static hd_status check_stream(const hd_op *op, int first, int stream)
{
    const joint_options *options = op->options;
    const int64_t dims[] = {options->sequences * options->tokens[stream], packed_columns(options)};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, first, "qkv", HD_DTYPE_NONE, 2, dims));
    const hd_dtype dtype = op->in_info[first]->dtype;
    const hd_tensor_info *const *norms = op->in_info + first + 1;
    if (!norms[0] != !norms[1])
        return hdi_error(HD_ERROR_ARGUMENT, "stream %d has a norm of %s only, want both or none",
                         stream, norms[0] ? "queries" : "keys");
    if (!norms[0]) return HD_OK;
    const int64_t columns = options->head_dim;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, first + 1, "query_norm", dtype, 1, &columns));
    return hdi_check_dims(op, first + 2, "key_norm", dtype, 1, &columns);
}

static hd_status joint_shape(hd_program *program, const hd_op *op)
{
    const joint_options *options = op->options;
    for (int s = 0; s < options->streams; s++)
        HD_RETURN_IF_ERROR(check_stream(op, s * STREAM_INPUTS, s));
    const hd_dtype dtype = op->in_info[0]->dtype;
    for (int s = 1; s < options->streams; s++)
        HD_RETURN_IF_ERROR(hdi_check_input(op, s * STREAM_INPUTS, "qkv of stream 1", dtype));
    const int64_t dims[] = {options->sequences * joint_tokens(options), packed_columns(options)};
    hd_op_output(program, dtype, 2, dims);
    return HD_OK;
}

/* The arguments of one stream whose inputs start at `first`. */
static hdi_joint_qkv_args arguments(const hd_run *run, int first, int stream)
{
    const joint_options *options = run->op->options;
    hdi_joint_qkv_args args = {
        .dtype = run->op->in_info[first]->dtype,
        .sequences = options->sequences,
        .tokens = options->tokens[stream],
        .first = stream ? options->tokens[0] : 0,
        .out_tokens = joint_tokens(options),
        .heads = options->heads,
        .head_dim = options->head_dim,
        .epsilon = options->epsilon,
        .qkv = run->in[first],
        .query_norm = run->in[first + 1],
        .key_norm = run->in[first + 2],
        .rope = options->rope[stream],
    };
    args.rope.table = run->in[first + 3];
    return args;
}

static hd_status joint_run(const hd_run *run)
{
    const joint_options *options = run->op->options;
    for (int s = 0; s < options->streams; s++) {
        hdi_joint_qkv_args args = arguments(run, s * STREAM_INPUTS, s);
        args.out = run->out[0];
        HD_RETURN_IF_ERROR(run->backend->joint_qkv(run->stream, &args));
    }
    return HD_OK;
}

/* in: gradient of the joint rows, the stream's inputs. out: gradient of its qkv, and partial sums
 * [partial rows, 2 * head_dim] for its norms. */
static hd_status gradient_shape(hd_program *program, const hd_op *op)
{
    const joint_options *options = op->options;
    const int64_t dims[] = {options->sequences * joint_tokens(options), packed_columns(options)};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "gradient", HD_DTYPE_NONE, 2, dims));
    HD_RETURN_IF_ERROR(check_stream(op, 1, options->stream));
    const hd_tensor_info *qkv = op->in_info[1];
    hd_op_output(program, qkv->dtype, qkv->rank, qkv->dims);
    const int64_t partial_dims[] = {hdi_partial_rows(qkv->dims[0]), 2 * options->head_dim};
    if (op->in_info[2]) hd_op_output(program, HD_DTYPE_F32, 2, partial_dims);
    return HD_OK;
}

/* Of the joint gradient only the stream's rows are read. */
static void gradient_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes =
        hdi_tensor_bytes(op) - (double)op->in_info[0]->bytes + (double)op->in_info[1]->bytes;
}

static hd_status gradient_run(const hd_run *run)
{
    const joint_options *options = run->op->options;
    const bool has_norms = run->op->outputs > 1;
    return run->backend->joint_qkv_gradient(
        run->stream, &(hdi_joint_qkv_gradient_args){
                         .forward = arguments(run, 1, options->stream),
                         .partial_rows = has_norms ? run->op->out_info[1]->dims[0] : 0,
                         .gradient = run->in[0],
                         .qkv_gradient = run->out[0],
                         .partials = has_norms ? run->out[1] : NULL,
                     });
}

static const hd_op_kind joint_qkv_gradient = {
    .name = "joint_qkv_gradient",
    .options_bytes = sizeof(joint_options),
    .shape = gradient_shape,
    .cost = gradient_cost,
    .in_place = 1,
    .run = gradient_run,
};

static void joint_backward(hd_backward *context, const hd_op *op)
{
    hd_program *program = hd_backward_program(context);
    joint_options options = *(const joint_options *)op->options;
    for (options.stream = 0; options.stream < options.streams; options.stream++) {
        const int first = options.stream * STREAM_INPUTS;
        if (!hd_backward_wants(context, first) && !hd_backward_wants(context, first + 1) &&
            !hd_backward_wants(context, first + 2))
            continue;
        const hd_tensor in[] = {hd_backward_output_gradient(context, 0), op->in[first],
                                op->in[first + 1], op->in[first + 2], op->in[first + 3]};
        const hd_tensor gradient = hd_custom_op(program, &joint_qkv_gradient, &options, 5, in);
        if (!gradient.id) return;
        if (op->in[first + 1].id) {
            const hd_tensor partials = hd_op_result(program, 1);
            hdi_norm_weight_gradient(context, first + 1, partials, 0, options.head_dim);
            hdi_norm_weight_gradient(context, first + 2, partials, options.head_dim,
                                     options.head_dim);
        }
        hd_backward_give(context, first, gradient);
    }
}

/* In place where one stream is all there is: only then are the sizes equal. */
static const hd_op_kind joint_qkv = {
    .name = "joint_qkv",
    .options_bytes = sizeof(joint_options),
    .shape = joint_shape,
    .backward = joint_backward,
    .in_place = 1,
    .run = joint_run,
};

/* What a table holds: 64 bytes, all that a table may ask for. */
typedef struct axes_facts {
    int32_t axes, dims[MOST_AXES], length[MOST_AXES];
    double scale[MOST_AXES], theta;
} axes_facts;

static void fill_table(void *user, float *out)
{
    axes_facts facts;
    memcpy(&facts, user, sizeof facts);
    for (int a = 0; a < facts.axes; a++) {
        for (int32_t p = 0; p < facts.length[a]; p++) {
            for (int32_t i = 0; i < facts.dims[a] / 2; i++, out += 2) {
                const double exponent = -2.0 * i / facts.dims[a];
                const double angle = p * facts.scale[a] * pow(facts.theta, exponent);
                out[0] = (float)cos(angle);
                out[1] = (float)sin(angle);
            }
        }
    }
}

static bool axes_are_good(const hd_rope_axes *rope, int64_t head_dim)
{
    if (rope->axes < 1 || rope->axes > MOST_AXES || !(rope->theta > 1)) return false;
    int64_t dims = 0;
    for (int a = 0; a < rope->axes; a++) {
        dims += rope->dims[a];
        if (rope->dims[a] < 2 || rope->dims[a] % 2 || rope->dims[a] > head_dim ||
            rope->length[a] < 1 || rope->length[a] > INT32_MAX || rope->stride[a] < 1)
            return false;
    }
    return dims == head_dim;
}

/* One table serves all layers, streams and programs that agree on it: its name says what is in it. */
static hd_tensor angles(hd_program *program, const hd_rope_axes *rope)
{
    axes_facts facts;
    memset(&facts, 0, sizeof facts);
    facts.axes = rope->axes;
    facts.theta = rope->theta;
    char name[320];
    int used = snprintf(name, sizeof name, "rope.theta%.17g", facts.theta);
    int64_t elements = 0;
    for (int a = 0; a < rope->axes; a++) {
        facts.dims[a] = (int32_t)rope->dims[a];
        facts.length[a] = (int32_t)rope->length[a];
        facts.scale[a] = rope->scale[a] != 0 ? rope->scale[a] : 1;
        elements += rope->length[a] * rope->dims[a];
        used += snprintf(name + used, sizeof name - (size_t)used,
                         ".dims%" PRId32 ".positions%" PRId32 ".scale%.17g", facts.dims[a],
                         facts.length[a], facts.scale[a]);
    }
    return hdi_table(program, name, 1, &elements, fill_table, &facts, sizeof facts);
}

static hdi_rope_axes axes_of(const hd_rope_axes *rope)
{
    hdi_rope_axes out;
    memset(&out, 0, sizeof out);
    out.axes = rope->axes;
    out.halves = rope->pairing == HD_ROPE_HALVES;
    out.first = rope->first;
    out.count = rope->count;
    out.start = rope->start;
    for (int a = 0; a < rope->axes; a++) {
        out.dims[a] = rope->dims[a];
        out.length[a] = rope->length[a];
        out.stride[a] = rope->stride[a];
    }
    return out;
}

bool hdi_joint_sizes(hd_program *program, int64_t sequences, int64_t heads, int64_t head_dim,
                     double epsilon, int streams)
{
    if (sequences >= 1 && heads >= 1 && head_dim >= 1 && streams >= 1 && streams <= MOST_STREAMS &&
        epsilon >= 0)
        return true;
    hd_program_fail(program, HD_ERROR_ARGUMENT,
                    "joint_qkv: sequences %" PRId64 ", heads %" PRId64 ", head_dim %" PRId64
                    ", %d streams, epsilon %g; want all > 0 and at most %d streams",
                    sequences, heads, head_dim, streams, epsilon, MOST_STREAMS);
    return false;
}

bool hdi_joint_rope(hd_program *program, const hd_qkv_stream *stream, int index, int64_t head_dim,
                    hdi_rope_axes *rope, hd_tensor *table)
{
    const hd_rope_axes *from = &stream->rope;
    if (stream->tokens < 1 || (from->axes && !axes_are_good(from, head_dim))) {
        hd_program_fail(program, HD_ERROR_ARGUMENT,
                        "joint_qkv: stream %d has %" PRId64
                        " tokens and turns on %d axes, dims %" PRId64 " %" PRId64 " %" PRId64
                        ", theta %g; want tokens > 0 and 0 to %d axes of even dims "
                        "that add up to head_dim %" PRId64 ", lengths and strides > 0, theta > 1",
                        index, stream->tokens, from->axes, from->dims[0], from->dims[1],
                        from->dims[2], from->theta, MOST_AXES, head_dim);
        return false;
    }
    if (!from->axes) return true;
    *rope = axes_of(from);
    *table = angles(program, from);
    return true;
}

hd_tensor hd_joint_qkv(hd_program *program, int64_t sequences, int64_t heads, int64_t head_dim,
                       double epsilon, int streams, const hd_qkv_stream *stream)
{
    if (!hdi_joint_sizes(program, sequences, heads, head_dim, epsilon, streams))
        return (hd_tensor){0};
    joint_options options;
    memset(&options, 0, sizeof options);
    options.sequences = sequences;
    options.heads = heads;
    options.head_dim = head_dim;
    options.epsilon = (float)(epsilon > 0 ? epsilon : 1e-6);
    options.streams = streams;
    hd_tensor in[MOST_STREAMS * STREAM_INPUTS] = {{0}};
    for (int s = 0; s < streams; s++) {
        hd_tensor *inputs = in + s * STREAM_INPUTS;
        options.tokens[s] = stream[s].tokens;
        inputs[0] = stream[s].qkv;
        inputs[1] = stream[s].query_norm;
        inputs[2] = stream[s].key_norm;
        if (!hdi_joint_rope(program, &stream[s], s, head_dim, &options.rope[s], &inputs[3]))
            return (hd_tensor){0};
    }
    return hd_custom_op(program, &joint_qkv, &options, streams * STREAM_INPUTS, in);
}
