/* Attention over packed query, key and value heads: training, and generation with a cache. */
#include "core/error.h"
#include "core/memory.h"
#include "ops/ops.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

typedef struct attention_options {
    int64_t heads, kv_heads, head_dim, tokens, interleave, capacity;
    float scale;
    bool causal, exact, saves; /* saves: the log-sum-exp, for the backward */
    int64_t first, queries;    /* of one sequence: queries that are wanted; zero of them: all */
} attention_options;

static int64_t packed_columns(const attention_options *options)
{
    return (options->heads + 2 * options->kv_heads) * options->head_dim;
}

static hd_status check_packed(const hd_op *op)
{
    const attention_options *options = op->options;
    const int64_t dims[] = {-1, packed_columns(options)};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "qkv", HD_DTYPE_NONE, 2, dims));
    const int64_t rows = op->in_info[0]->dims[0];
    if (rows < 1 || rows % options->tokens || rows / options->tokens % options->interleave)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "qkv has %" PRId64 " rows, want a multiple of %" PRId64
                         " tokens of %" PRId64 " sequences",
                         rows, options->tokens, options->interleave);
    return HD_OK;
}

static hd_status check_counts(const hd_op *op, int index)
{
    const attention_options *options = op->options;
    if (!op->in_info[index]) return HD_OK;
    const int64_t sequences = op->in_info[0]->dims[0] / options->tokens;
    return hdi_check_dims(op, index, "counts", HD_DTYPE_I32, 1, &sequences);
}

/* in: qkv, counts (may be absent). */
static hd_status attention_shape(hd_program *program, const hd_op *op)
{
    const attention_options *options = op->options;
    HD_RETURN_IF_ERROR(check_packed(op));
    HD_RETURN_IF_ERROR(check_counts(op, 1));
    hdi_output_like(program, op->in_info[0], options->heads * options->head_dim);
    const int64_t dims[] = {op->in_info[0]->dims[0] / options->tokens, options->heads,
                            options->tokens};
    if (options->saves) hd_op_output(program, HD_DTYPE_F32, 3, dims);
    return HD_OK;
}

/* Two products of queries and keys; a causal mask leaves half. */
static double products(const hd_op *op)
{
    const attention_options *options = op->options;
    const int64_t queries = options->queries ? options->queries : op->in_info[0]->dims[0];
    const double pairs = (double)queries * (double)options->tokens;
    const double flops = 4.0 * pairs * (double)options->heads * (double)options->head_dim;
    return options->causal ? flops / 2 : flops;
}

static void attention_cost(const hd_op *op, hd_cost *out)
{
    const attention_options *options = op->options;
    *out = (hd_cost){.flops = products(op),
                     .bytes = hdi_tensor_bytes(op),
                     .head_dim = (double)options->head_dim,
                     .keys = (double)options->tokens / (options->causal ? 2 : 1)};
}

/* Heads side by side at `qkv`, with offsets in elements of `bytes` bytes. */
static const void *head_at(const void *qkv, int64_t head, int64_t head_dim, size_t bytes)
{
    return qkv ? (const char *)qkv + (size_t)(head * head_dim) * bytes : NULL;
}

static hdi_attention_args arguments(const hd_op *op, const void *qkv)
{
    const attention_options *options = op->options;
    const hd_tensor_info *info = op->in_info[0];
    const int64_t columns = packed_columns(options);
    const size_t bytes = hd_dtype_bytes(info->dtype);
    return (hdi_attention_args){
        .dtype = info->dtype,
        .batch = info->dims[0] / options->tokens,
        .tokens = options->queries ? options->queries : options->tokens,
        .kv_tokens = options->tokens,
        .heads = options->heads,
        .kv_heads = options->kv_heads,
        .head_dim = options->head_dim,
        .q_stride = columns,
        .k_stride = columns,
        .v_stride = columns,
        .out_stride = options->heads * options->head_dim,
        .scale = options->scale,
        .causal = options->causal,
        .exact = options->exact,
        .interleave = options->interleave,
        .q = head_at(qkv, options->first, columns, bytes),
        .k = head_at(qkv, options->heads, options->head_dim, bytes),
        .v = head_at(qkv, options->heads + options->kv_heads, options->head_dim, bytes),
    };
}

/* A query needs all keys, but no other query. */
static bool cut_queries(const hd_op *op, int64_t first, int64_t rows, void *options)
{
    attention_options *o = options;
    o->first = first;
    o->queries = rows;
    return !o->causal && !o->saves && !op->in[1].id && o->tokens == op->in_info[0]->dims[0];
}

static size_t attention_workspace(const hd_op *op)
{
    const hdi_attention_args args = arguments(op, NULL);
    return hdi_op_backend(op)->attention_workspace(&args);
}

static hd_status attention_run(const hd_run *run)
{
    const attention_options *options = run->op->options;
    hdi_attention_args args = arguments(run->op, run->in[0]);
    args.counts = run->in[1];
    args.out = run->out[0];
    args.lse = options->saves ? run->out[1] : NULL;
    args.workspace = run->workspace;
    return run->backend->attention(run->stream, &args);
}

/* in: qkv, out, log-sum-exp, gradient of out, counts (may be absent). out: gradient of qkv. */
static hd_status gradient_shape(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(check_packed(op));
    HD_RETURN_IF_ERROR(check_counts(op, 4));
    const hd_tensor_info *qkv = op->in_info[0], *out = op->in_info[1];
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 3, "gradient", qkv->dtype, out->rank, out->dims));
    hd_op_output(program, qkv->dtype, qkv->rank, qkv->dims);
    return HD_OK;
}

/* The scores again, and four products more. */
static void gradient_cost(const hd_op *op, hd_cost *out)
{
    attention_cost(op, out);
    out->flops *= 2.5;
}

static size_t gradient_workspace(const hd_op *op)
{
    const hdi_attention_args args = arguments(op, NULL);
    return hdi_op_backend(op)->attention_gradient_workspace(&args);
}

static hd_status gradient_run(const hd_run *run)
{
    hdi_attention_args args = arguments(run->op, run->in[0]);
    const hdi_attention_args gradient = arguments(run->op, run->out[0]);
    args.out = hdi_updated(run->in[1]);
    args.lse = hdi_updated(run->in[2]);
    args.out_gradient = run->in[3];
    args.counts = run->in[4];
    args.q_gradient = hdi_updated(gradient.q);
    args.k_gradient = hdi_updated(gradient.k);
    args.v_gradient = hdi_updated(gradient.v);
    args.workspace = run->workspace;
    return run->backend->attention_gradient(run->stream, &args);
}

static const hd_op_kind attention_gradient = {
    .name = "attention_gradient",
    .flags = HD_OP_ATTENDS,
    .options_bytes = sizeof(attention_options),
    .shape = gradient_shape,
    .cost = gradient_cost,
    .workspace = gradient_workspace,
    .run = gradient_run,
};

static void attention_backward(hd_backward *context, const hd_op *op)
{
    if (!hd_backward_wants(context, 0)) return;
    const hd_tensor in[] = {op->in[0], op->out[0], op->out[1],
                            hd_backward_output_gradient(context, 0), op->in[1]};
    hd_backward_give(
        context, 0,
        hd_custom_op(hd_backward_program(context), &attention_gradient, op->options, 5, in));
}

const hd_op_kind hdi_op_attention = {
    .name = "attention",
    .flags = HD_OP_ATTENDS,
    .options_bytes = sizeof(attention_options),
    .shape = attention_shape,
    .backward = attention_backward,
    .cost = attention_cost,
    .workspace = attention_workspace,
    .cut = cut_queries,
    .run = attention_run,
};

/* in: qkv, key cache, value cache, position, count. */
static hd_status cached_shape(hd_program *program, const hd_op *op)
{
    const attention_options *options = op->options;
    HD_RETURN_IF_ERROR(check_packed(op));
    const int64_t one = 1;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 3, "position", HD_DTYPE_I32, 1, &one));
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 4, "count", HD_DTYPE_I32, 1, &one));
    if (op->in_info[0]->dims[0] != options->tokens || options->tokens > options->capacity)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "qkv has %" PRId64 " rows, want those of one sequence, %" PRId64
                         ", and at most the capacity of %" PRId64,
                         op->in_info[0]->dims[0], options->tokens, options->capacity);
    hdi_output_like(program, op->in_info[0], options->heads * options->head_dim);
    return HD_OK;
}

static hdi_attention_cached_args cached_arguments(const hd_op *op, const void *qkv)
{
    const attention_options *options = op->options;
    const hdi_attention_args packed = arguments(op, qkv);
    return (hdi_attention_cached_args){
        .dtype = packed.dtype,
        .tokens = options->tokens,
        .capacity = options->capacity,
        .heads = options->heads,
        .kv_heads = options->kv_heads,
        .head_dim = options->head_dim,
        .q_stride = packed.q_stride,
        .k_stride = packed.k_stride,
        .v_stride = packed.v_stride,
        .out_stride = packed.out_stride,
        .scale = options->scale,
        .q = packed.q,
        .k = packed.k,
        .v = packed.v,
    };
}

static size_t cached_workspace(const hd_op *op)
{
    const hdi_attention_cached_args args = cached_arguments(op, NULL);
    return hdi_op_backend(op)->attention_cached_workspace(&args);
}

static void cached_cost(const hd_op *op, hd_cost *out)
{
    const attention_options *options = op->options;
    out->flops = 4.0 * (double)options->tokens * (double)options->capacity *
                 (double)(options->heads * options->head_dim);
    out->bytes = hdi_tensor_bytes(op);
}

static hd_status cached_run(const hd_run *run)
{
    hdi_attention_cached_args args = cached_arguments(run->op, run->in[0]);
    args.k_cache = hdi_updated(run->in[1]);
    args.v_cache = hdi_updated(run->in[2]);
    args.position = run->in[3];
    args.count = run->in[4];
    args.out = run->out[0];
    args.workspace = run->workspace;
    return run->backend->attention_cached(run->stream, &args);
}

const hd_op_kind hdi_op_attention_cached = {
    .name = "attention_cached",
    .flags = HD_OP_ATTENDS,
    .options_bytes = sizeof(attention_options),
    .shape = cached_shape,
    .cost = cached_cost,
    .workspace = cached_workspace,
    .run = cached_run,
};

/* Defaults filled in; false after a sticky error. */
static bool resolve(hd_program *program, const char *what, hd_tensor qkv,
                    const hd_attention_options *options, attention_options *out)
{
    const hd_tensor_info *info = hd_tensor_get(program, qkv);
    memset(out, 0, sizeof *out);
    out->heads = options->heads;
    out->kv_heads = options->kv_heads ? options->kv_heads : options->heads;
    out->head_dim = options->head_dim;
    const int64_t packed = out->heads + 2 * out->kv_heads;
    if (info && info->rank && !out->head_dim && packed > 0)
        out->head_dim = hdi_columns(info) / packed;
    out->tokens = options->tokens;
    out->interleave = options->interleave ? options->interleave : 1;
    out->capacity = options->capacity;
    out->causal = options->causal;
    out->exact = program->exact;
    out->saves = program->training;
    if (out->heads < 1 || out->kv_heads < 1 || out->heads % out->kv_heads || out->head_dim < 1 ||
        out->tokens < 1 || out->interleave < 1) {
        hd_program_fail(
            program, HD_ERROR_ARGUMENT,
            "%s: heads %" PRId64 ", kv_heads %" PRId64 ", head_dim %" PRId64 ", tokens %" PRId64
            ", interleave %" PRId64 "; want all > 0 and kv_heads to divide heads",
            what, out->heads, out->kv_heads, out->head_dim, out->tokens, out->interleave);
        return false;
    }
    out->scale = (float)(options->scale != 0 ? options->scale : 1.0 / sqrt((double)out->head_dim));
    return true;
}

hd_tensor hd_attention(hd_program *program, hd_tensor qkv, const hd_attention_options *options)
{
    attention_options resolved;
    if (!resolve(program, "attention", qkv, options, &resolved)) return (hd_tensor){0};
    if (options->counts.id && options->causal)
        return hd_program_fail(program, HD_ERROR_UNSUPPORTED,
                               "attention: counts are given and causal is set, want one of them");
    const hd_tensor in[] = {qkv, options->counts};
    return hd_custom_op(program, &hdi_op_attention, &resolved, 2, in);
}

static hd_tensor cache(hd_program *program, const char *name, hd_dtype dtype,
                       const attention_options *options)
{
    const char *scope = program->scopes[program->scope_open].name;
    char *full = hdi_format("%s%s%s", scope, *scope ? "." : "", name);
    if (!full) return hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    const int64_t dims[] = {options->capacity, options->kv_heads * options->head_dim};
    const hd_tensor handle = hdi_cache(program, full, dtype, 2, dims);
    hdi_free(full);
    return handle;
}

hd_tensor hd_attention_cached(hd_program *program, hd_tensor qkv,
                              const hd_attention_options *options)
{
    attention_options resolved;
    if (!resolve(program, "attention_cached", qkv, options, &resolved)) return (hd_tensor){0};
    if (options->counts.id || resolved.interleave > 1)
        return hd_program_fail(program, HD_ERROR_UNSUPPORTED,
                               "attention_cached: counts are %s and interleave is %" PRId64
                               ", want none and 1: the cache is of one sequence",
                               options->counts.id ? "given" : "not given", resolved.interleave);
    resolved.causal = true;
    const hd_tensor_info *info = hd_tensor_get(program, qkv);
    const hd_dtype dtype = info ? info->dtype : program->dtype;
    const hd_tensor in[] = {qkv, cache(program, "k_cache", dtype, &resolved),
                            cache(program, "v_cache", dtype, &resolved), options->position,
                            options->count};
    return hd_custom_op(program, &hdi_op_attention_cached, &resolved, 5, in);
}
