/* Ring attention, forward: blocks of keys and values go round, what comes of each is merged. */
#include "ops/ring.h"

#include "core/checked.h"
#include "core/error.h"
#include "ops/ops.h"
#include "ops/ring_parts.h"
#include "program/place.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { MERGE_OUT = 0, MERGE_LSE, MERGE_X, MERGE_X_LSE, MERGE_COUNTS, MERGE_INPUTS };

static hd_status split_shape(hd_program *program, const hd_op *op)
{
    const hdi_ring_options *o = op->options;
    const int64_t query = hdi_ring_query_columns(o), key = hdi_ring_key_columns(o);
    HD_RETURN_IF_ERROR(hdi_ring_check(op, 0, "qkv", o->place, query + key));
    const hd_tensor_info *qkv = op->in_info[0];
    hdi_output_like(program, qkv, query);
    hdi_output_like(program, qkv, key);
    return HD_OK;
}

/* Columns `first`.. of rows of `width` columns from, or (back) to, rows of `columns`. */
static hd_status move_columns(const hd_run *run, const void *x, void *out, int64_t first,
                              int64_t columns, bool back)
{
    const hd_tensor_info *info = run->op->in_info[0];
    const hdi_ring_options *o = run->op->options;
    const size_t bytes = hd_dtype_bytes(info->dtype);
    const size_t all = (size_t)(hdi_ring_query_columns(o) + hdi_ring_key_columns(o)) * bytes;
    const size_t own = (size_t)columns * bytes, before = (size_t)first * bytes;
    return run->backend->copy_blocks(
        run->stream, &(hdi_copy_blocks_args){.blocks = hdi_rows(info),
                                             .block_bytes = own,
                                             .x_stride = back ? own : all,
                                             .out_stride = back ? all : own,
                                             .x = (const char *)x + (back ? 0 : before),
                                             .out = (char *)out + (back ? before : 0)});
}

static hd_status split_run(const hd_run *run)
{
    const hdi_ring_options *o = run->op->options;
    const int64_t query = hdi_ring_query_columns(o), key = hdi_ring_key_columns(o);
    HD_RETURN_IF_ERROR(move_columns(run, run->in[0], run->out[0], 0, query, false));
    return move_columns(run, run->in[0], run->out[1], query, key, false);
}

static hd_status join_shape(hd_program *program, const hd_op *op)
{
    const hdi_ring_options *o = op->options;
    const int64_t query = hdi_ring_query_columns(o), key = hdi_ring_key_columns(o);
    HD_RETURN_IF_ERROR(hdi_ring_check(op, 0, "queries", o->place, query));
    HD_RETURN_IF_ERROR(hdi_ring_check(op, 1, "keys", o->place, key));
    hdi_output_like(program, op->in_info[0], query + key);
    return HD_OK;
}

static hd_status join_run(const hd_run *run)
{
    const hdi_ring_options *o = run->op->options;
    const int64_t query = hdi_ring_query_columns(o), key = hdi_ring_key_columns(o);
    HD_RETURN_IF_ERROR(move_columns(run, run->in[0], run->out[0], 0, query, true));
    return move_columns(run, run->in[1], run->out[0], query, key, true);
}

static const hd_op_kind ring_join = {
    .name = "ring_join",
    .options_bytes = sizeof(hdi_ring_options),
    .shape = join_shape,
    .run = join_run,
};

static void split_backward(hd_backward *context, const hd_op *op)
{
    const hd_tensor in[] = {hd_backward_output_gradient(context, 0),
                            hd_backward_output_gradient(context, 1)};
    hd_backward_give(context, 0,
                     hd_custom_op(hd_backward_program(context), &ring_join, op->options, 2, in));
}

/* qkv to queries, and keys and values, which travel. */
static const hd_op_kind ring_split = {
    .name = "ring_split",
    .options_bytes = sizeof(hdi_ring_options),
    .shape = split_shape,
    .backward = split_backward,
    .run = split_run,
};

/* in: queries, block, counts (may be absent). out: result and log-sum-exp of the queries that see
 * some of it. */
static hd_status block_shape(hd_program *program, const hd_op *op)
{
    const hdi_ring_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_ring_check(op, 0, "queries", o->place, hdi_ring_query_columns(o)));
    HD_RETURN_IF_ERROR(hdi_ring_check(op, 1, "block", o->source, hdi_ring_key_columns(o)));
    if (op->in_info[2])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 2, "counts", HD_DTYPE_I32, 1, &o->sequences));
    const int64_t out[] = {o->sequences * o->queries, hdi_ring_query_columns(o)};
    const int64_t lse[] = {o->sequences, o->heads, o->queries};
    hd_op_output(program, op->in_info[0]->dtype, 2, out);
    hd_op_output(program, HD_DTYPE_F32, 3, lse);
    return HD_OK;
}

static void block_cost(const hd_op *op, hd_cost *out)
{
    const hdi_ring_options *o = op->options;
    const double pairs = (double)o->queries * (double)o->keys;
    const bool masked = o->causal && o->source == o->place;
    out->flops =
        (masked ? 2.0 : 4.0) * (double)o->sequences * pairs * (double)hdi_ring_query_columns(o);
    out->bytes = hdi_tensor_bytes(op);
    out->head_dim = (double)o->head_dim;
    out->keys = (double)o->keys / (masked ? 2 : 1);
}

static size_t attention_bytes(const hd_op *op)
{
    const hdi_attention_args args = hdi_ring_arguments(op->options, op->in_info[0]->dtype);
    return hdi_place_round(hdi_op_backend(op)->attention_workspace(&args));
}

static size_t block_workspace(const hd_op *op)
{
    return attention_bytes(op) + (op->in_info[2] ? hdi_ring_counts_bytes(op->options) : 0);
}

static hd_status block_run(const hd_run *run)
{
    const hdi_ring_options *o = run->op->options;
    const hd_dtype dtype = run->op->in_info[0]->dtype;
    const int64_t query = hdi_ring_query_columns(o), key = hdi_ring_key_columns(o);
    const int64_t tokens = hdi_ring_tokens(o, o->place), keys = hdi_ring_tokens(o, o->source);
    const size_t bytes = hd_dtype_bytes(dtype);
    hdi_attention_args args = hdi_ring_arguments(o, dtype);
    args.workspace = run->workspace;
    HD_RETURN_IF_ERROR(
        hdi_ring_count(run, run->in[2], (char *)run->workspace + attention_bytes(run->op), &args));
    for (int64_t s = 0; s < o->sequences; s += args.batch) {
        const char *block = (const char *)run->in[1] + (size_t)(s * keys * key) * bytes;
        args.q = (const char *)run->in[0] + (size_t)((s * tokens + o->first) * query) * bytes;
        args.k = block;
        args.v = block + (size_t)(key / 2) * bytes;
        args.out = (char *)run->out[0] + (size_t)(s * o->queries * query) * bytes;
        args.lse = (float *)run->out[1] + s * o->heads * o->queries;
        HD_RETURN_IF_ERROR(run->backend->attention(run->stream, &args));
    }
    return HD_OK;
}

static const hd_op_kind ring_block = {
    .name = "ring_attention",
    .options_bytes = sizeof(hdi_ring_options),
    .flags = HD_OP_ATTENDS,
    .shape = block_shape,
    .cost = block_cost,
    .workspace = block_workspace,
    .run = block_run,
};

/* in: sum and log-sum-exp so far (absent at first), those of a block, counts (may be absent). */
static hd_status merge_shape(hd_program *program, const hd_op *op)
{
    const hdi_ring_options *o = op->options;
    const int64_t tokens = hdi_ring_tokens(o, o->place), query = hdi_ring_query_columns(o);
    const int64_t sum[] = {o->sequences * tokens, query}, lse[] = {o->sequences, o->heads, tokens};
    const int64_t x[] = {o->sequences * o->queries, query};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, MERGE_X, "x", HD_DTYPE_NONE, 2, x));
    if (op->in_info[MERGE_OUT])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, MERGE_OUT, "the sum", HD_DTYPE_F32, 2, sum));
    hd_op_output(program, HD_DTYPE_F32, 2, sum);
    hd_op_output(program, HD_DTYPE_F32, 3, lse);
    return HD_OK;
}

static size_t merge_workspace(const hd_op *op)
{
    return op->in_info[MERGE_COUNTS] ? hdi_ring_counts_bytes(op->options) : 0;
}

static hd_status merge_run(const hd_run *run)
{
    const hdi_ring_options *o = run->op->options;
    hdi_attention_args counted = {0};
    HD_RETURN_IF_ERROR(hdi_ring_count(run, run->in[MERGE_COUNTS], run->workspace, &counted));
    for (int i = 0; i < 2 && run->in[MERGE_OUT]; i++)
        if (run->out[i] != run->in[i])
            HD_RETURN_IF_ERROR(run->backend->copy(run->stream, run->out[i], run->in[i],
                                                  run->op->out_info[i]->bytes));
    return run->backend->merge_attention(
        run->stream, &(hdi_merge_attention_args){.dtype = run->op->in_info[MERGE_X]->dtype,
                                                 .sequences = o->sequences,
                                                 .tokens = hdi_ring_tokens(o, o->place),
                                                 .heads = o->heads,
                                                 .head_dim = o->head_dim,
                                                 .first = o->first,
                                                 .count = o->queries,
                                                 .begins = !run->in[MERGE_OUT],
                                                 .counts = counted.counts,
                                                 .x = run->in[MERGE_X],
                                                 .x_lse = run->in[MERGE_X_LSE],
                                                 .out = run->out[0],
                                                 .lse = run->out[1]});
}

static const hd_op_kind ring_merge = {
    .name = "ring_merge",
    .options_bytes = sizeof(hdi_ring_options),
    .shape = merge_shape,
    .workspace = merge_workspace,
    .in_place = 1 << MERGE_OUT,
    .second_in_place = 1 << MERGE_LSE,
    .run = merge_run,
};

/* in: queries, keys and values, sum, log-sum-exp, counts. out: the sum in the queries' dtype. What
 * came before is nobody's gradient: this op's rule makes all of it. */
static hd_status end_shape(hd_program *program, const hd_op *op)
{
    const hdi_ring_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_ring_check(op, 0, "queries", o->place, hdi_ring_query_columns(o)));
    hdi_output_like(program, op->in_info[0], hdi_ring_query_columns(o));
    return HD_OK;
}

static void end_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = (double)op->in_info[2]->bytes + (double)op->out_info[0]->bytes;
}

static hd_status end_run(const hd_run *run)
{
    const hd_tensor_info *out = run->op->out_info[0];
    if (run->out[0] == run->in[2]) return HD_OK;
    return run->backend->convert(run->stream, HD_DTYPE_F32, run->in[2], out->dtype, run->out[0],
                                 out->elements);
}

static const hd_op_kind ring_end = {
    .name = "ring_end",
    .options_bytes = sizeof(hdi_ring_options),
    .shape = end_shape,
    .backward = hdi_ring_backward,
    .cost = end_cost,
    .in_place = 1 << 2,
    .run = end_run,
};

/* Options start as zeros, padding too: programs are compared. */
static hdi_ring_options start(const hd_program *program, const hdi_ring_shape *shape)
{
    hdi_ring_options o;
    memset(&o, 0, sizeof o);
    const int sharing = hdi_sequence_sharing(program);
    o.collective.axis = HD_AXIS_SEQUENCE;
    o.places = hdi_sequence_places(program);
    o.place = hdi_sequence_place(program);
    o.base = hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE) % sharing;
    o.step = sharing;
    o.sequences = shape->sequences;
    o.heads = shape->heads;
    o.kv_heads = shape->kv_heads;
    o.head_dim = shape->head_dim;
    o.tokens = shape->tokens;
    o.alike = shape->alike;
    o.scale = (float)(1.0 / sqrt((double)shape->head_dim));
    o.causal = shape->causal;
    o.exact = program->exact;
    hdi_ring_at_step(&o, 0);
    return o;
}

hd_tensor hdi_ring_attention(hd_program *program, hd_tensor qkv, const hdi_ring_shape *shape)
{
    hdi_ring_options o = start(program, shape);
    if (shape->causal && (shape->alike || shape->counts.id))
        return hd_program_fail(program, HD_ERROR_UNSUPPORTED,
                               "ring attention: %" PRId64 " tokens that all ranks have%s, and a "
                               "causal mask; want one of them",
                               shape->alike, shape->counts.id ? ", counted" : "");
    const hd_tensor queries = hd_custom_op(program, &ring_split, &o, 1, &qkv);
    const hd_tensor own = hd_op_result(program, 1);
    hd_tensor block = own, merge[MERGE_INPUTS] = {{0}};
    merge[MERGE_COUNTS] = shape->counts;
    for (int step = 0; step < o.places.ring; step++) {
        hdi_ring_at_step(&o, step);
        const hd_tensor in[] = {queries, block, shape->counts};
        if (step + 1 < o.places.ring) block = hdi_ring_shift(program, &o, block, "keys and values");
        merge[MERGE_X] = hd_custom_op(program, &ring_block, &o, 3, in);
        merge[MERGE_X_LSE] = hd_op_result(program, 1);
        merge[MERGE_OUT] = hd_custom_op(program, &ring_merge, &o, MERGE_INPUTS, merge);
        merge[MERGE_LSE] = hd_op_result(program, 1);
    }
    hdi_ring_at_step(&o, 0);
    const hd_tensor in[] = {queries, own, merge[MERGE_OUT], merge[MERGE_LSE], shape->counts};
    return hd_custom_op(program, &ring_end, &o, 5, in);
}
