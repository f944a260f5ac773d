/* Rows of several tensors joined, sequence by sequence, and split again. */
#include <heddle/diffusion.h>

#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>
#include <string.h>

/* Parts without a tensor are zeros where rows are joined, and left out where they are split. */
enum { MOST_PARTS = 4 };

typedef struct parts_options {
    int64_t sequences, tokens[MOST_PARTS];
    int parts;
    bool wanted[MOST_PARTS]; /* split only */
} parts_options;

static hd_status check_sequences(const parts_options *options)
{
    if (options->sequences < 1 || options->parts < 1 || options->parts > MOST_PARTS)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%d parts of %" PRId64 " sequences, want 1 to %d of at least one",
                         options->parts, options->sequences, (int)MOST_PARTS);
    return HD_OK;
}

static int64_t all_tokens(const parts_options *options)
{
    int64_t tokens = 0;
    for (int i = 0; i < options->parts; i++)
        tokens += options->tokens[i];
    return tokens;
}

static const hd_tensor_info *first_part(const hd_op *op)
{
    for (int i = 0; i < op->inputs; i++)
        if (op->in_info[i]) return op->in_info[i];
    return NULL;
}

static hd_status join_shape(hd_program *program, const hd_op *op)
{
    const parts_options *options = op->options;
    const hd_tensor_info *first = first_part(op);
    HD_RETURN_IF_ERROR(check_sequences(options));
    for (int i = 0; i < options->parts; i++) {
        const int64_t dims[] = {options->sequences * options->tokens[i],
                                first ? hdi_columns(first) : -1};
        if (op->in_info[i])
            HD_RETURN_IF_ERROR(hdi_check_dims(op, i, "a part", first->dtype, 2, dims));
    }
    if (!first) return hdi_error(HD_ERROR_ARGUMENT, "no part is a valid tensor, want one");
    const int64_t dims[] = {options->sequences * all_tokens(options), hdi_columns(first)};
    hd_op_output(program, first->dtype, 2, dims);
    return HD_OK;
}

static hd_status split_shape(hd_program *program, const hd_op *op)
{
    const parts_options *options = op->options;
    HD_RETURN_IF_ERROR(check_sequences(options));
    for (int i = 0; i < options->parts; i++)
        if (options->tokens[i] < 1)
            return hdi_error(HD_ERROR_ARGUMENT, "part %d has %" PRId64 " tokens, want at least 1",
                             i, options->tokens[i]);
    const int64_t dims[] = {options->sequences * all_tokens(options), -1};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "x", HD_DTYPE_NONE, 2, dims));
    const hd_tensor_info *x = op->in_info[0];
    for (int i = 0; i < options->parts; i++) {
        const int64_t part[] = {options->sequences * options->tokens[i], x->dims[1]};
        if (options->wanted[i]) hd_op_output(program, x->dtype, 2, part);
    }
    return HD_OK;
}

/* A part's rows of a sequence are one block. */
static size_t part_bytes(const hd_tensor_info *whole, int64_t tokens)
{
    return (size_t)(tokens * whole->dims[1]) * hd_dtype_bytes(whole->dtype);
}

static void join_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = 2 * (double)op->out_info[0]->bytes;
}

static hd_status join_run(const hd_run *run)
{
    const parts_options *options = run->op->options;
    const hd_tensor_info *whole = run->op->out_info[0];
    size_t offset = 0;
    bool all = true;
    for (int i = 0; i < options->parts; i++)
        all = all && run->in[i];
    if (!all) HD_RETURN_IF_ERROR(run->backend->zero(run->stream, run->out[0], whole->bytes));
    for (int i = 0; i < options->parts; i++) {
        const size_t bytes = part_bytes(whole, options->tokens[i]);
        if (run->in[i])
            HD_RETURN_IF_ERROR(run->backend->copy_blocks(
                run->stream,
                &(hdi_copy_blocks_args){.blocks = options->sequences,
                                        .block_bytes = bytes,
                                        .x_stride = bytes,
                                        .out_stride = part_bytes(whole, all_tokens(options)),
                                        .x = run->in[i],
                                        .out = (char *)run->out[0] + offset}));
        offset += bytes;
    }
    return HD_OK;
}

static void split_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = 0;
    for (int i = 0; i < op->outputs; i++)
        out->bytes += 2 * (double)op->out_info[i]->bytes;
}

static hd_status split_run(const hd_run *run)
{
    const parts_options *options = run->op->options;
    const hd_tensor_info *whole = run->op->in_info[0];
    size_t offset = 0;
    int out = 0;
    for (int i = 0; i < options->parts; i++) {
        const size_t bytes = part_bytes(whole, options->tokens[i]);
        if (options->wanted[i])
            HD_RETURN_IF_ERROR(run->backend->copy_blocks(
                run->stream,
                &(hdi_copy_blocks_args){.blocks = options->sequences,
                                        .block_bytes = bytes,
                                        .x_stride = part_bytes(whole, all_tokens(options)),
                                        .out_stride = bytes,
                                        .x = (const char *)run->in[0] + offset,
                                        .out = run->out[out++]}));
        offset += bytes;
    }
    return HD_OK;
}

static void join_backward(hd_backward *context, const hd_op *op);
static void split_backward(hd_backward *context, const hd_op *op);

static const hd_op_kind join_rows = {
    .name = "join_rows",
    .options_bytes = sizeof(parts_options),
    .shape = join_shape,
    .backward = join_backward,
    .cost = join_cost,
    .run = join_run,
};

static const hd_op_kind split_rows = {
    .name = "split_rows",
    .options_bytes = sizeof(parts_options),
    .shape = split_shape,
    .backward = split_backward,
    .cost = split_cost,
    .run = split_run,
};

const int64_t *hdi_joined_rows(const hd_op *op)
{
    const parts_options *options = op->options;
    if (op->kind != &join_rows || options->sequences != 1) return NULL;
    for (int i = 0; i < options->parts; i++)
        if (!op->in[i].id) return NULL;
    return options->tokens;
}

const int64_t *hdi_split_rows(const hd_op *op)
{
    const parts_options *options = op->options;
    const bool whole = op->kind == &split_rows && options->sequences == 1;
    return whole && op->outputs == options->parts ? options->tokens : NULL;
}

static void join_backward(hd_backward *context, const hd_op *op)
{
    hd_program *program = hd_backward_program(context);
    parts_options options = *(const parts_options *)op->options;
    const hd_tensor gradient = hd_backward_output_gradient(context, 0);
    int wanted = 0;
    for (int i = 0; i < options.parts; i++)
        wanted += options.wanted[i] = hd_backward_wants(context, i);
    if (!wanted || !hd_custom_op(program, &split_rows, &options, 1, &gradient).id) return;
    hd_tensor parts[MOST_PARTS] = {{0}};
    int out = 0;
    for (int i = 0; i < options.parts; i++)
        if (options.wanted[i]) parts[i] = hd_op_result(program, out++);
    for (int i = 0; i < options.parts; i++)
        if (options.wanted[i]) hd_backward_give(context, i, parts[i]);
}

static void split_backward(hd_backward *context, const hd_op *op)
{
    const parts_options *options = op->options;
    hd_tensor parts[MOST_PARTS];
    int out = 0;
    for (int i = 0; i < options->parts; i++)
        parts[i] =
            options->wanted[i] ? hd_backward_output_gradient(context, out++) : (hd_tensor){0};
    hd_backward_give(
        context, 0,
        hd_custom_op(hd_backward_program(context), &join_rows, options, options->parts, parts));
}

hd_tensor hd_join_rows(hd_program *program, int64_t sequences, int parts, const hd_tensor *x)
{
    parts_options options;
    memset(&options, 0, sizeof options);
    options.sequences = sequences;
    options.parts = parts;
    for (int i = 0; i < parts && i < MOST_PARTS; i++) {
        const hd_tensor_info *info = hd_tensor_get(program, x[i]);
        if (!info) /* an earlier error, or this one */
            return hd_program_fail(program, HD_ERROR_ARGUMENT,
                                   "join_rows: part %d is an invalid tensor", i);
        if (sequences > 0) options.tokens[i] = hdi_rows(info) / sequences;
    }
    return hd_custom_op(program, &join_rows, &options, parts < MOST_PARTS ? parts : MOST_PARTS, x);
}

void hd_split_rows(hd_program *program, hd_tensor x, int64_t sequences, int parts,
                   const int64_t *tokens, hd_tensor *out)
{
    parts_options options;
    memset(&options, 0, sizeof options);
    options.sequences = sequences;
    options.parts = parts;
    for (int i = 0; i < parts && i < MOST_PARTS; i++) {
        options.tokens[i] = tokens[i];
        options.wanted[i] = true;
    }
    const bool made = hd_custom_op(program, &split_rows, &options, 1, &x).id != 0;
    for (int i = 0; i < parts; i++)
        out[i] = made ? hd_op_result(program, i) : (hd_tensor){0};
}
