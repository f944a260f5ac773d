/* Ring attention, backward: each block's gradient from the result and log-sum-exp of all blocks. Keys
 * and values go round as in the forward; their gradients follow them, a step behind, and the last step
 * brings them home. All sums are fp32. */
#include "core/error.h"
#include "ops/ops.h"
#include "ops/ring_parts.h"
#include "program/place.h"

#include <heddle/diffusion.h>

enum { QUERIES, BLOCK, RESULT, LSE, GRADIENT, COUNTS, INPUTS };

/* out: gradients of the queries that see some of the block, and of the keys and values seen. */
static hd_status block_shape(hd_program *program, const hd_op *op)
{
    const hdi_ring_options *o = op->options;
    const int64_t query = hdi_ring_query_columns(o), key = hdi_ring_key_columns(o);
    const int64_t lse[] = {o->sequences, o->heads, hdi_ring_tokens(o, o->place)};
    HD_RETURN_IF_ERROR(hdi_ring_check(op, QUERIES, "queries", o->place, query));
    HD_RETURN_IF_ERROR(hdi_ring_check(op, BLOCK, "block", o->source, key));
    HD_RETURN_IF_ERROR(hdi_ring_check(op, RESULT, "result", o->place, query));
    HD_RETURN_IF_ERROR(hdi_check_dims(op, LSE, "log-sum-exp", HD_DTYPE_F32, 3, lse));
    HD_RETURN_IF_ERROR(hdi_ring_check(op, GRADIENT, "gradient", o->place, query));
    const int64_t queries[] = {o->sequences * o->queries, query};
    const int64_t keys[] = {o->sequences * o->keys, key};
    hd_op_output(program, op->in_info[QUERIES]->dtype, 2, queries);
    hd_op_output(program, op->in_info[QUERIES]->dtype, 2, keys);
    return HD_OK;
}

/* The scores again, and four products more. */
static void block_cost(const hd_op *op, hd_cost *out)
{
    const hdi_ring_options *o = op->options;
    const double pairs = (double)o->sequences * (double)o->queries * (double)o->keys;
    const bool masked = o->causal && o->source == o->place;
    out->flops = (masked ? 5.0 : 10.0) * pairs * (double)hdi_ring_query_columns(o);
    out->bytes = hdi_tensor_bytes(op);
    out->head_dim = (double)o->head_dim;
    out->keys = (double)o->keys / (masked ? 2 : 1);
}

static size_t attention_bytes(const hd_op *op)
{
    const hdi_attention_args args = hdi_ring_arguments(op->options, op->in_info[QUERIES]->dtype);
    return hdi_place_round(hdi_op_backend(op)->attention_gradient_workspace(&args));
}

/* The log-sum-exp of some queries of a sequence, where not all take part. */
static size_t lse_bytes(const hdi_ring_options *o)
{
    return hdi_place_round((size_t)(o->heads * o->queries) * sizeof(float));
}

static size_t block_workspace(const hd_op *op)
{
    const hdi_ring_options *o = op->options;
    return attention_bytes(op) + lse_bytes(o) +
           (op->in_info[COUNTS] ? hdi_ring_counts_bytes(o) : 0);
}

/* Those of the sequences from `s` on that the call has: of all tokens as they are, of some in `room`. */
static hd_status take_lse(const hd_run *run, int64_t s, float *room, float **out)
{
    const hdi_ring_options *o = run->op->options;
    const int64_t tokens = hdi_ring_tokens(o, o->place);
    const float *lse = (const float *)run->in[LSE] + s * o->heads * tokens;
    *out = hdi_updated(lse);
    if (o->queries == tokens) return HD_OK;
    *out = room;
    return run->backend->copy_blocks(
        run->stream, &(hdi_copy_blocks_args){.blocks = o->heads,
                                             .block_bytes = (size_t)o->queries * sizeof(float),
                                             .x_stride = (size_t)tokens * sizeof(float),
                                             .out_stride = (size_t)o->queries * sizeof(float),
                                             .x = lse + o->first,
                                             .out = room});
}

static hd_status block_run(const hd_run *run)
{
    const hdi_ring_options *o = run->op->options;
    const hd_dtype dtype = run->op->in_info[QUERIES]->dtype;
    const size_t bytes = hd_dtype_bytes(dtype);
    const int64_t tokens = hdi_ring_tokens(o, o->place), keys = hdi_ring_tokens(o, o->source);
    const size_t query = (size_t)hdi_ring_query_columns(o) * bytes;
    const size_t key = (size_t)hdi_ring_key_columns(o) * bytes;
    char *const room = (char *)run->workspace + attention_bytes(run->op);
    hdi_attention_args args = hdi_ring_arguments(o, dtype);
    args.workspace = run->workspace;
    HD_RETURN_IF_ERROR(hdi_ring_count(run, run->in[COUNTS], room + lse_bytes(o), &args));
    for (int64_t s = 0; s < o->sequences; s += args.batch) {
        const size_t row = (size_t)(s * tokens + o->first) * query;
        const char *block = (const char *)run->in[BLOCK] + (size_t)(s * keys) * key;
        char *block_gradient = (char *)run->out[1] + (size_t)(s * o->keys) * key;
        args.q = (const char *)run->in[QUERIES] + row;
        args.k = block;
        args.v = block + key / 2;
        args.out = (char *)hdi_updated(run->in[RESULT]) + row;
        args.out_gradient = (const char *)run->in[GRADIENT] + row;
        args.q_gradient = (char *)run->out[0] + (size_t)(s * o->queries) * query;
        args.k_gradient = block_gradient;
        args.v_gradient = block_gradient + key / 2;
        HD_RETURN_IF_ERROR(take_lse(run, s, (float *)(void *)room, &args.lse));
        HD_RETURN_IF_ERROR(run->backend->attention_gradient(run->stream, &args));
    }
    return HD_OK;
}

static const hd_op_kind ring_block_gradient = {
    .name = "ring_attention_gradient",
    .options_bytes = sizeof(hdi_ring_options),
    .flags = HD_OP_ATTENDS,
    .shape = block_shape,
    .cost = block_cost,
    .workspace = block_workspace,
    .run = block_run,
};

/* in: the sum so far (absent at first), a block's part of it: rows first .. first + count - 1 of each
 * sequence's `tokens`. */
typedef struct sum_options {
    int64_t sequences, tokens, first, count;
} sum_options;

static hd_status sum_shape(hd_program *program, const hd_op *op)
{
    const sum_options *o = op->options;
    const int64_t part[] = {o->sequences * o->count, -1};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "part", HD_DTYPE_NONE, 2, part));
    const int64_t dims[] = {o->sequences * o->tokens, op->in_info[1]->dims[1]};
    if (op->in_info[0])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "sum", HD_DTYPE_F32, 2, dims));
    else if (o->count != o->tokens)
        return hdi_error(HD_ERROR_INTERNAL, "a sum that begins with a part of its rows");
    hd_op_output(program, HD_DTYPE_F32, 2, dims);
    return HD_OK;
}

static hd_status sum_run(const hd_run *run)
{
    const sum_options *o = run->op->options;
    const hd_tensor_info *part = run->op->in_info[1];
    const int64_t columns = part->dims[1];
    float *out = run->out[0];
    if (!run->in[0])
        return run->backend->convert(run->stream, part->dtype, run->in[1], HD_DTYPE_F32, out,
                                     part->elements);
    if (out != run->in[0])
        HD_RETURN_IF_ERROR(
            run->backend->copy(run->stream, out, run->in[0], run->op->out_info[0]->bytes));
    return run->backend->add_blocks(run->stream,
                                    &(hdi_add_blocks_args){.dtype = part->dtype,
                                                           .blocks = o->sequences,
                                                           .elements = o->count * columns,
                                                           .stride = o->tokens * columns,
                                                           .x = run->in[1],
                                                           .out = out + o->first * columns});
}

static const hd_op_kind ring_sum = {
    .name = "ring_sum",
    .options_bytes = sizeof(sum_options),
    .shape = sum_shape,
    .in_place = 1,
    .run = sum_run,
};

static hd_tensor add_part(hd_program *program, hd_tensor sum, hd_tensor part,
                          const sum_options *options)
{
    const hd_tensor in[] = {sum, part};
    return hd_custom_op(program, &ring_sum, options, 2, in);
}

void hdi_ring_backward(hd_backward *context, const hd_op *op)
{
    hd_program *program = hd_backward_program(context);
    hdi_ring_options o = *(const hdi_ring_options *)op->options;
    hd_tensor block = op->in[1], queries = {0}, keys = {0};
    for (int step = 0; step < o.places.ring; step++) {
        hdi_ring_at_step(&o, step);
        const hd_tensor in[INPUTS] = {
            op->in[0], block, op->out[0], op->in[3], hd_backward_output_gradient(context, 0),
            op->in[4]};
        if (step + 1 < o.places.ring) block = hdi_ring_shift(program, &o, block, "keys and values");
        const hd_tensor part = hd_custom_op(program, &ring_block_gradient, &o, INPUTS, in);
        const hd_tensor key_part = hd_op_result(program, 1);
        const sum_options of_queries = {o.sequences, hdi_ring_tokens(&o, o.place), o.first,
                                        o.queries};
        const sum_options of_keys = {o.sequences, hdi_ring_tokens(&o, o.source), 0, o.keys};
        queries = add_part(program, queries, part, &of_queries);
        keys = add_part(program, keys, key_part, &of_keys);
        keys = hdi_ring_shift(program, &o, keys, "gradients of keys and values");
    }
    hd_backward_give(context, 0, hd_cast(program, queries));
    hd_backward_give(context, 1, hd_cast(program, keys));
}
