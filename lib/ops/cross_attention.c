/* Attention of queries to the packed keys and values of another source. */
#include "core/error.h"
#include "ops/ops.h"

#include <heddle/diffusion.h>

#include <inttypes.h>
#include <math.h>
#include <string.h>

typedef struct cross_options {
    int64_t heads, head_dim, tokens, most_keys;
    float scale;
    bool exact, saves; /* saves: the log-sum-exp, for the backward */
} cross_options;

static hd_status check_inputs(const hd_op *op, int offsets)
{
    const cross_options *options = op->options;
    const int64_t columns = options->heads * options->head_dim;
    const int64_t q_dims[] = {-1, columns}, kv_dims[] = {-1, 2 * columns};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "q", HD_DTYPE_NONE, 2, q_dims));
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "kv", op->in_info[0]->dtype, 2, kv_dims));
    const int64_t rows = op->in_info[0]->dims[0], kv_rows = op->in_info[1]->dims[0];
    const int64_t sequences = rows / options->tokens, ends = sequences + 1;
    if (rows < 1 || rows % options->tokens)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "q has %" PRId64 " rows, want a multiple of %" PRId64 " tokens", rows,
                         options->tokens);
    if (op->in_info[offsets]) return hdi_check_dims(op, offsets, "offsets", HD_DTYPE_I32, 1, &ends);
    if (kv_rows % sequences)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "kv has %" PRId64
                         " rows and there are no offsets, want a multiple of %" PRId64 " sequences",
                         kv_rows, sequences);
    return HD_OK;
}

/* in: q, kv, offsets (may be absent). out: shape of q; log-sum-exp if a backward will follow. */
static hd_status cross_shape(hd_program *program, const hd_op *op)
{
    const cross_options *options = op->options;
    HD_RETURN_IF_ERROR(check_inputs(op, 2));
    const hd_tensor_info *q = op->in_info[0];
    hd_op_output(program, q->dtype, q->rank, q->dims);
    const int64_t dims[] = {q->dims[0] / options->tokens, options->heads, options->tokens};
    if (options->saves) hd_op_output(program, HD_DTYPE_F32, 3, dims);
    return HD_OK;
}

/* Two products, each of all queries with their share of the keys. */
static double products(const hd_op *op)
{
    const cross_options *options = op->options;
    return 4.0 * (double)options->tokens * (double)op->in_info[1]->dims[0] *
           (double)(options->heads * options->head_dim);
}

static void cross_cost(const hd_op *op, hd_cost *out)
{
    const cross_options *options = op->options;
    const double sequences = (double)op->in_info[0]->dims[0] / (double)options->tokens;
    *out = (hd_cost){.flops = products(op),
                     .bytes = hdi_tensor_bytes(op),
                     .head_dim = (double)options->head_dim,
                     .keys = (double)op->in_info[1]->dims[0] / sequences};
}

/* The values of packed keys and values. */
static void *values_at(const hd_op *op, const void *kv)
{
    const cross_options *options = op->options;
    const size_t bytes = hd_dtype_bytes(op->in_info[0]->dtype);
    return kv ? (char *)hdi_updated(kv) + (size_t)(options->heads * options->head_dim) * bytes
              : NULL;
}

/* `offsets`: which input they are. */
static hdi_cross_attention_args arguments(const hd_op *op, int offsets, const void *q,
                                          const void *kv)
{
    const cross_options *options = op->options;
    const int64_t columns = options->heads * options->head_dim, kv_rows = op->in_info[1]->dims[0];
    const int64_t most = options->most_keys > 0 ? options->most_keys : kv_rows;
    return (hdi_cross_attention_args){
        .dtype = op->in_info[0]->dtype,
        .sequences = op->in_info[0]->dims[0] / options->tokens,
        .tokens = options->tokens,
        .kv_rows = kv_rows,
        .heads = options->heads,
        .head_dim = options->head_dim,
        .q_stride = columns,
        .k_stride = 2 * columns,
        .v_stride = 2 * columns,
        .out_stride = columns,
        .scale = options->scale,
        .exact = options->exact,
        .most_keys = !op->in_info[offsets] ? 0
                     : most < kv_rows      ? most
                                           : kv_rows,
        .q = q,
        .k = kv,
        .v = values_at(op, kv),
    };
}

static size_t cross_workspace(const hd_op *op)
{
    const hdi_cross_attention_args args = arguments(op, 2, NULL, NULL);
    return hdi_op_backend(op)->cross_attention_workspace(&args);
}

static hd_status cross_run(const hd_run *run)
{
    const cross_options *options = run->op->options;
    hdi_cross_attention_args args = arguments(run->op, 2, run->in[0], run->in[1]);
    args.offsets = run->in[2];
    args.out = run->out[0];
    args.lse = options->saves ? run->out[1] : NULL;
    args.workspace = run->workspace;
    return run->backend->cross_attention(run->stream, &args);
}

/* in: q, kv, out, log-sum-exp, gradient of out, offsets (may be absent). out: gradients of q, kv. */
static hd_status gradient_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(check_inputs(op, 5));
    const hd_tensor_info *q = op->in_info[0], *kv = op->in_info[1];
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 4, "gradient", q->dtype, q->rank, q->dims));
    hd_op_output(program, q->dtype, q->rank, q->dims);
    hd_op_output(program, kv->dtype, kv->rank, kv->dims);
    return HD_OK;
}

/* The scores again, and four products more. */
static void gradient_cost(const hd_op *op, hd_cost *out)
{
    cross_cost(op, out);
    out->flops *= 2.5;
}

static size_t gradient_workspace(const hd_op *op)
{
    const hdi_cross_attention_args args = arguments(op, 5, NULL, NULL);
    return hdi_op_backend(op)->cross_attention_gradient_workspace(&args);
}

static hd_status gradient_run(const hd_run *run)
{
    hdi_cross_attention_args args = arguments(run->op, 5, run->in[0], run->in[1]);
    args.out = hdi_updated(run->in[2]);
    args.lse = hdi_updated(run->in[3]);
    args.out_gradient = run->in[4];
    args.offsets = run->in[5];
    args.q_gradient = run->out[0];
    args.k_gradient = run->out[1];
    args.v_gradient = values_at(run->op, run->out[1]);
    args.workspace = run->workspace;
    return run->backend->cross_attention_gradient(run->stream, &args);
}

static const hd_op_kind cross_attention_gradient = {
    .name = "cross_attention_gradient",
    .flags = HD_OP_ATTENDS,
    .options_bytes = sizeof(cross_options),
    .shape = gradient_shape,
    .cost = gradient_cost,
    .workspace = gradient_workspace,
    .run = gradient_run,
};

static void cross_backward(hd_backward *context, const hd_op *op)
{
    hd_program *program = hd_backward_program(context);
    const hd_tensor in[] = {
        op->in[0], op->in[1], op->out[0], op->out[1], hd_backward_output_gradient(context, 0),
        op->in[2]};
    const hd_tensor q_gradient =
        hd_custom_op(program, &cross_attention_gradient, op->options, 6, in);
    if (!q_gradient.id) return;
    const hd_tensor kv_gradient = hd_op_result(program, 1);
    hd_backward_give(context, 0, q_gradient);
    hd_backward_give(context, 1, kv_gradient);
}

static const hd_op_kind cross_attention = {
    .name = "cross_attention",
    .flags = HD_OP_ATTENDS,
    .options_bytes = sizeof(cross_options),
    .shape = cross_shape,
    .backward = cross_backward,
    .cost = cross_cost,
    .workspace = cross_workspace,
    .run = cross_run,
};

hd_tensor hd_cross_attention(hd_program *program, hd_tensor q, hd_tensor kv, hd_tensor offsets,
                             const hd_cross_attention_options *options)
{
    if (options->heads < 1 || options->head_dim < 1 || options->tokens < 1 ||
        options->most_keys < 0)
        return hd_program_fail(
            program, HD_ERROR_ARGUMENT,
            "cross_attention: heads %" PRId64 ", head_dim %" PRId64 ", tokens %" PRId64
            ", most_keys %" PRId64 "; want all > 0, most_keys may be 0",
            options->heads, options->head_dim, options->tokens, options->most_keys);
    cross_options resolved;
    memset(&resolved, 0, sizeof resolved);
    resolved.heads = options->heads;
    resolved.head_dim = options->head_dim;
    resolved.tokens = options->tokens;
    resolved.most_keys = options->most_keys;
    resolved.scale =
        (float)(options->scale != 0 ? options->scale : 1.0 / sqrt((double)options->head_dim));
    resolved.exact = program->exact;
    resolved.saves = program->training;
    const hd_tensor in[] = {q, kv, offsets};
    return hd_custom_op(program, &cross_attention, &resolved, 3, in);
}
