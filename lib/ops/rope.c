/* Rotary position embedding (Su et al., arXiv 2104.09864) of the first heads of a packed matrix. */
#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct rope_options {
    hd_rope_pairing pairing;
    bool inverse;
    int64_t heads, head_dim, tokens;
} rope_options;

/* in: x, table [positions, head_dim / 2, 2], positions I32 [rows] (may be absent). */
static hd_status rope_shape(hd_program *program, const hd_op *op)
{
    const rope_options *options = op->options;
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "x", HD_DTYPE_NONE));
    const hd_tensor_info *x = op->in_info[0];
    const int64_t rows = hdi_rows(x);
    if (options->heads < 1 || options->head_dim < 2 || options->head_dim % 2 ||
        options->heads > hdi_columns(x) / options->head_dim)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "x has %" PRId64 " columns, want %" PRId64 " heads of %" PRId64
                         " (an even number)",
                         hdi_columns(x), options->heads, options->head_dim);
    const int64_t table_dims[] = {-1, options->head_dim / 2, 2};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "table", HD_DTYPE_F32, 3, table_dims));
    if (op->in_info[2])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 2, "positions", HD_DTYPE_I32, 1, &rows));
    else if (options->tokens < 1 || options->tokens > op->in_info[1]->dims[0])
        return hdi_error(HD_ERROR_ARGUMENT, "%" PRId64 " tokens, want 1 to %" PRId64,
                         options->tokens, op->in_info[1]->dims[0]);
    hd_op_output(program, x->dtype, x->rank, x->dims);
    return HD_OK;
}

static hd_status rope_run(const hd_run *run)
{
    const rope_options *options = run->op->options;
    const hd_tensor_info *x = run->op->in_info[0];
    /* Columns outside the heads have to come along. */
    if (run->out[0] != run->in[0])
        HD_RETURN_IF_ERROR(run->backend->copy(run->stream, run->out[0], run->in[0], x->bytes));
    return run->backend->rope(run->stream,
                              &(hdi_rope_args){.pairing = options->pairing == HD_ROPE_HALVES
                                                              ? HDI_ROPE_HALVES
                                                              : HDI_ROPE_INTERLEAVED,
                                               .dtype = x->dtype,
                                               .rows = hdi_rows(x),
                                               .heads = options->heads,
                                               .head_dim = options->head_dim,
                                               .x_stride = hdi_columns(x),
                                               .period = options->tokens,
                                               .table = run->in[1],
                                               .positions = run->in[2],
                                               .x = run->out[0],
                                               .out = run->out[0],
                                               .inverse = options->inverse});
}

static void rope_backward(hd_backward *context, const hd_op *op)
{
    if (!hd_backward_wants(context, 0)) return;
    rope_options options = *(const rope_options *)op->options;
    options.inverse = !options.inverse;
    const hd_tensor in[] = {hd_backward_output_gradient(context, 0), op->in[1], op->in[2]};
    hd_backward_give(context, 0,
                     hd_custom_op(hd_backward_program(context), &hdi_op_rope, &options, 3, in));
}

const hd_op_kind hdi_op_rope = {
    .name = "rope",
    .options_bytes = sizeof(rope_options),
    .shape = rope_shape,
    .backward = rope_backward,
    .in_place = 1,
    .run = rope_run,
};

typedef struct table_facts {
    int64_t positions, head_dim;
    double theta;
} table_facts;

static void fill_table(void *user, float *out)
{
    table_facts facts;
    memcpy(&facts, user, sizeof facts);
    const int64_t half = facts.head_dim / 2;
    for (int64_t p = 0; p < facts.positions; p++) {
        for (int64_t i = 0; i < half; i++) {
            const double exponent = -2.0 * (double)i / (double)facts.head_dim;
            const double angle = (double)p * pow(facts.theta, exponent);
            out[2 * (p * half + i)] = (float)cos(angle);
            out[2 * (p * half + i) + 1] = (float)sin(angle);
        }
    }
}

hd_tensor hd_rope(hd_program *program, hd_tensor x, const hd_rope_options *options)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    const table_facts facts = {
        .positions = options->positions ? options->positions : options->tokens,
        .head_dim = options->head_dim,
        .theta = options->theta != 0 ? options->theta : 10000.0,
    };
    if (!info || facts.positions < 1 || facts.head_dim < 2 || facts.head_dim % 2 ||
        !(facts.theta > 1))
        return hd_program_fail(program, HD_ERROR_ARGUMENT,
                               "rope: x is %s, %" PRId64 " positions, head_dim %" PRId64
                               ", theta %g; want a valid tensor, positions >= 1, an even head_dim "
                               ">= 2, theta > 1",
                               info ? "valid" : "invalid", facts.positions, facts.head_dim,
                               facts.theta);
    /* One table serves all layers and programs that agree on it: its name says what is in it. */
    char name[128];
    snprintf(name, sizeof name, "rope.theta%.17g.head_dim%" PRId64 ".positions%" PRId64,
             facts.theta, facts.head_dim, facts.positions);
    const int64_t dims[] = {facts.positions, facts.head_dim / 2, 2};
    const hd_tensor table = hdi_table(program, name, 3, dims, fill_table, &facts, sizeof facts);
    hd_tensor positions = options->places;
    if (options->first.id)
        positions =
            hd_positions(program, options->first, hdi_rows(info), options->tokens, facts.positions);
    rope_options copied;
    memset(&copied, 0, sizeof copied);
    copied.pairing = options->pairing;
    copied.heads = options->heads;
    copied.head_dim = options->head_dim;
    copied.tokens = options->tokens;
    const hd_tensor in[] = {x, table, positions};
    return hd_custom_op(program, &hdi_op_rope, &copied, 3, in);
}
