/* Adaptive layer norm and gated residual adds, apart or in one pass, whose scales, shifts and gates
 * are columns of tables that the program computes (adaLN, arXiv 2212.09748).
 *
 * in: x; delta and the gates' table and index, if rows are added; table and index of shifts and
 * scales, if there is a norm. out: normed, then the sum, of those that are made; mean and
 * 1 / deviation of each row if a backward will follow. */
#include <heddle/diffusion.h>

#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>
#include <string.h>

enum { X, DELTA, GATE_TABLE, GATE_INDEX, TABLE, INDEX, INPUTS };

typedef struct modulate_options {
    bool adds, norms, saves;
    float epsilon;
    int64_t gate_rows, rows;    /* of a group */
    int64_t gate, shift, scale; /* first columns; -1: none */
} modulate_options;

/* Elements of an index or, without one, the groups that there are. */
static hd_status check_groups(const hd_op *op, int table, int index, const char *what,
                              int64_t rows_per_group)
{
    const hd_tensor_info *x = op->in_info[X];
    const int64_t rows = hdi_rows(x), any[] = {-1, -1};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, table, what, x->dtype, 2, any));
    if (rows_per_group < 1 || rows % rows_per_group)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: groups of %" PRId64 " rows, want a divisor of the %" PRId64 " rows",
                         what, rows_per_group, rows);
    const int64_t groups = rows / rows_per_group;
    if (op->in_info[index]) return hdi_check_dims(op, index, "index", HD_DTYPE_I32, 1, &groups);
    if (op->in_info[table]->dims[0] < groups)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s has %" PRId64 " entries for %" PRId64 " groups, want one each", what,
                         op->in_info[table]->dims[0], groups);
    return HD_OK;
}

static hd_status check_window(const hd_op *op, int table, const char *what, int64_t first)
{
    const int64_t columns = hdi_columns(op->in_info[X]), width = op->in_info[table]->dims[1];
    if (first >= 0 && first <= width - columns) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT,
                     "%s starts at column %" PRId64 ", want %" PRId64 " columns within %" PRId64,
                     what, first, columns, width);
}

/* Its gradient would not be a whole table: parameters are added to an activation first. */
static hd_status check_no_parameter(hd_program *program, const hd_op *op, int table)
{
    const hdi_tensor *tensor = hdi_tensor_of(program, op->in[table]);
    if (!program->training || !tensor || tensor->use < 0) return HD_OK;
    return hdi_error(HD_ERROR_UNSUPPORTED,
                     "the table is the parameter '%s', want an activation (see hd_add_rows)",
                     tensor->info.name);
}

static hd_status modulate_shape(hd_program *program, const hd_op *op)
{
    const modulate_options *options = op->options;
    HD_RETURN_IF_ERROR(hdi_check_input(op, X, "x", HD_DTYPE_NONE));
    const hd_tensor_info *x = op->in_info[X];
    const int64_t rows = hdi_rows(x);
    if (options->adds) {
        HD_RETURN_IF_ERROR(hdi_check_dims(op, DELTA, "delta", x->dtype, x->rank, x->dims));
        HD_RETURN_IF_ERROR(
            check_groups(op, GATE_TABLE, GATE_INDEX, "gate table", options->gate_rows));
        HD_RETURN_IF_ERROR(check_window(op, GATE_TABLE, "gate", options->gate));
        HD_RETURN_IF_ERROR(check_no_parameter(program, op, GATE_TABLE));
    }
    if (options->norms) {
        HD_RETURN_IF_ERROR(check_groups(op, TABLE, INDEX, "table", options->rows));
        if (options->shift != -1)
            HD_RETURN_IF_ERROR(check_window(op, TABLE, "shift", options->shift));
        if (options->scale != -1)
            HD_RETURN_IF_ERROR(check_window(op, TABLE, "scale", options->scale));
        HD_RETURN_IF_ERROR(check_no_parameter(program, op, TABLE));
        if (!(options->epsilon > 0))
            return hdi_error(HD_ERROR_ARGUMENT, "epsilon is %g, want > 0",
                             (double)options->epsilon);
        hd_op_output(program, x->dtype, x->rank, x->dims);
    }
    if (options->adds) hd_op_output(program, x->dtype, x->rank, x->dims);
    if (options->saves) {
        hd_op_output(program, HD_DTYPE_F32, 1, &rows);
        hd_op_output(program, HD_DTYPE_F32, 1, &rows);
    }
    return HD_OK;
}

static void modulate_cost(const hd_op *op, hd_cost *out)
{
    const modulate_options *options = op->options;
    const hd_tensor_info *x = op->in_info[X];
    out->flops = (double)x->elements * ((options->adds ? 2 : 0) + (options->norms ? 8 : 0));
    out->bytes = (double)x->bytes * (1 + (options->adds ? 2 : 0) + (options->norms ? 1 : 0));
}

/* Where the vector that starts at a column of a table begins; NULL if there is none. */
static const void *window(const hd_run *run, int table, int64_t first)
{
    const char *base = run->in[table];
    if (!base || first < 0) return NULL;
    return base + (size_t)first * hd_dtype_bytes(run->op->in_info[table]->dtype);
}

static int64_t dim_of(const hd_op *op, int table, int dim)
{
    return op->in_info[table] ? op->in_info[table]->dims[dim] : 0;
}

static hd_status modulate_run(const hd_run *run)
{
    const hd_op *op = run->op;
    const modulate_options *options = op->options;
    const hd_tensor_info *x = op->in_info[X];
    const int sum = options->norms ? 1 : 0, mean = sum + (options->adds ? 1 : 0);
    return run->backend->modulate(
        run->stream, &(hdi_modulate_args){.dtype = x->dtype,
                                          .rows = hdi_rows(x),
                                          .columns = hdi_columns(x),
                                          .rows_per_group = options->rows,
                                          .gate_rows_per_group = options->gate_rows,
                                          .epsilon = options->epsilon,
                                          .x = run->in[X],
                                          .delta = run->in[DELTA],
                                          .gate = window(run, GATE_TABLE, options->gate),
                                          .shift = window(run, TABLE, options->shift),
                                          .scale = window(run, TABLE, options->scale),
                                          .gate_stride = dim_of(op, GATE_TABLE, 1),
                                          .stride = dim_of(op, TABLE, 1),
                                          .gate_entries = dim_of(op, GATE_TABLE, 0),
                                          .entries = dim_of(op, TABLE, 0),
                                          .gate_index = run->in[GATE_INDEX],
                                          .index = run->in[INDEX],
                                          .sum = options->adds ? run->out[sum] : NULL,
                                          .out = options->norms ? run->out[0] : NULL,
                                          .mean = options->saves ? run->out[mean] : NULL,
                                          .rstd = options->saves ? run->out[mean + 1] : NULL});
}

/* in: gradient of normed and that of the sum (one may be absent), the sum, the tables as in the
 * forward, mean and 1 / deviation. out: gradient of the sum, if it goes through a norm; gradient
 * of delta; F32 sums over groups for [shift | scale] and for the gate. */
enum {
    G_GRADIENT,
    G_CARRY,
    G_SUM,
    G_DELTA,
    G_GATE_TABLE,
    G_GATE_INDEX,
    G_TABLE,
    G_INDEX,
    G_MEAN,
    G_RSTD,
    G_INPUTS
};

typedef struct gradient_options {
    modulate_options forward; /* adds and norms: those that are on the way to the loss */
    bool delta, sums, gate_sums;
} gradient_options;

static hd_status gradient_shape(hd_program *program, const hd_op *op)
{
    const gradient_options *options = op->options;
    const hd_tensor_info *like = op->in_info[options->forward.norms ? G_GRADIENT : G_CARRY];
    const int64_t rows = hdi_rows(like), columns = hdi_columns(like);
    if (options->forward.norms) hd_op_output(program, like->dtype, like->rank, like->dims);
    if (options->delta) hd_op_output(program, like->dtype, like->rank, like->dims);
    if (options->sums) {
        const int64_t dims[] = {rows / options->forward.rows, 2 * columns};
        hd_op_output(program, HD_DTYPE_F32, 2, dims);
    }
    if (options->gate_sums) {
        const int64_t dims[] = {rows / options->forward.gate_rows, columns};
        hd_op_output(program, HD_DTYPE_F32, 2, dims);
    }
    return HD_OK;
}

static void gradient_cost(const hd_op *op, hd_cost *out)
{
    const gradient_options *options = op->options;
    const double elements = (double)op->out_info[0]->elements;
    out->flops = elements * ((options->forward.norms ? 12 : 0) + (options->sums ? 4 : 0) +
                             (options->delta ? 1 : 0) + (options->gate_sums ? 2 : 0));
    out->bytes = hdi_tensor_bytes(op);
    for (int i = G_GATE_TABLE; i <= G_TABLE; i += G_TABLE - G_GATE_TABLE)
        if (op->in_info[i]) out->bytes -= (double)op->in_info[i]->bytes;
}

/* What the shape alone says. */
static hdi_modulate_gradient_args gradient_args(const hd_op *op)
{
    const gradient_options *options = op->options;
    const hd_tensor_info *like = op->in_info[options->forward.norms ? G_GRADIENT : G_CARRY];
    return (hdi_modulate_gradient_args){.dtype = like->dtype,
                                        .rows = hdi_rows(like),
                                        .columns = hdi_columns(like),
                                        .rows_per_group = options->forward.rows,
                                        .gate_rows_per_group = options->forward.gate_rows,
                                        .gate_stride = dim_of(op, G_GATE_TABLE, 1),
                                        .stride = dim_of(op, G_TABLE, 1),
                                        .gate_entries = dim_of(op, G_GATE_TABLE, 0),
                                        .entries = dim_of(op, G_TABLE, 0)};
}

static size_t gradient_workspace(const hd_op *op)
{
    const hdi_modulate_gradient_args args = gradient_args(op);
    return hdi_op_backend(op)->modulate_gradient_workspace(&args);
}

static hd_status gradient_run(const hd_run *run)
{
    const gradient_options *options = run->op->options;
    hdi_modulate_gradient_args args = gradient_args(run->op);
    int out = 0;
    args.gradient = run->in[G_GRADIENT];
    args.carry = run->in[G_CARRY];
    args.x = run->in[G_SUM];
    args.delta = run->in[G_DELTA];
    args.gate = window(run, G_GATE_TABLE, options->forward.gate);
    args.scale = window(run, G_TABLE, options->forward.scale);
    args.gate_index = run->in[G_GATE_INDEX];
    args.index = run->in[G_INDEX];
    args.mean = run->in[G_MEAN];
    args.rstd = run->in[G_RSTD];
    args.x_gradient = options->forward.norms ? run->out[out++] : NULL;
    args.delta_gradient = options->delta ? run->out[out++] : NULL;
    args.sums = options->sums ? run->out[out++] : NULL;
    args.gate_sums = options->gate_sums ? run->out[out++] : NULL;
    args.workspace = run->workspace;
    return run->backend->modulate_gradient(run->stream, &args);
}

static const hd_op_kind modulate_gradient = {
    .name = "modulate_gradient",
    .options_bytes = sizeof(gradient_options),
    .shape = gradient_shape,
    .cost = gradient_cost,
    .workspace = gradient_workspace,
    .in_place = 1 << G_GRADIENT | 1 << G_CARRY,
    .run = gradient_run,
};

/* Without a norm, what comes out first is another tensor's gradient. */
static const hd_op_kind gate_gradient = {
    .name = "gate_gradient",
    .options_bytes = sizeof(gradient_options),
    .shape = gradient_shape,
    .cost = gradient_cost,
    .workspace = gradient_workspace,
    .run = gradient_run,
};

/* in: sums over groups, index (may be absent). out: the gradient of a table. */
typedef struct table_options {
    int64_t entries, table_columns; /* of the table */
    int64_t first, columns;         /* of the window in it */
    int64_t sums_first;             /* the window's first column in the sums */
    hd_dtype dtype;
} table_options;

static hd_status table_shape(hd_program *program, const hd_op *op)
{
    const table_options *options = op->options;
    const int64_t dims[] = {options->entries, options->table_columns};
    hd_op_output(program, options->dtype, 2, dims);
    return HD_OK;
}

static hd_status table_run(const hd_run *run)
{
    const table_options *options = run->op->options;
    const hd_tensor_info *sums = run->op->in_info[0];
    return run->backend->modulation_gradient(
        run->stream,
        &(hdi_modulation_gradient_args){.dtype = options->dtype,
                                        .groups = sums->dims[0],
                                        .columns = options->columns,
                                        .entries = options->entries,
                                        .table_columns = options->table_columns,
                                        .first = options->first,
                                        .sums = (const float *)run->in[0] + options->sums_first,
                                        .sums_stride = sums->dims[1],
                                        .index = run->in[1],
                                        .table_gradient = run->out[0]});
}

static const hd_op_kind modulation_gradient = {
    .name = "modulation_gradient",
    .options_bytes = sizeof(table_options),
    .shape = table_shape,
    .run = table_run,
};

/* Give a table the gradient of one window of it. */
static void give_table(hd_backward *context, const hd_op *op, int table, hd_tensor sums,
                       int64_t first, int64_t columns, int64_t sums_first)
{
    table_options options;
    memset(&options, 0, sizeof options);
    options.entries = op->in_info[table]->dims[0];
    options.table_columns = op->in_info[table]->dims[1];
    options.first = first;
    options.columns = columns;
    options.sums_first = sums_first;
    options.dtype = op->in_info[table]->dtype;
    const hd_tensor in[] = {sums, op->in[table + 1]};
    hd_backward_give(
        context, table,
        hd_custom_op(hd_backward_program(context), &modulation_gradient, &options, 2, in));
}

/* Shift and scale that stand side by side, as they mostly do, are one window. */
static void give_shift_and_scale(hd_backward *context, const hd_op *op, hd_tensor sums)
{
    const modulate_options *options = op->options;
    const int64_t columns = hdi_columns(op->in_info[X]);
    if (options->shift >= 0 && options->scale == options->shift + columns) {
        give_table(context, op, TABLE, sums, options->shift, 2 * columns, 0);
        return;
    }
    if (options->shift >= 0) give_table(context, op, TABLE, sums, options->shift, columns, 0);
    if (options->scale >= 0) give_table(context, op, TABLE, sums, options->scale, columns, columns);
}

static void modulate_backward(hd_backward *context, const hd_op *op)
{
    const modulate_options *forward = op->options;
    const int sum = forward->norms ? 1 : 0, mean = sum + (forward->adds ? 1 : 0);
    const hd_tensor none = {0};
    const hd_tensor gradient = forward->norms ? hd_backward_output_gradient(context, 0) : none;
    const hd_tensor carry = forward->adds ? hd_backward_output_gradient(context, sum) : none;
    gradient_options options;
    memset(&options, 0, sizeof options);
    options.forward = *forward;
    options.forward.norms = gradient.id != 0;
    options.delta = forward->adds && hd_backward_wants(context, DELTA);
    options.sums = gradient.id && hd_backward_wants(context, TABLE) &&
                   (forward->shift >= 0 || forward->scale >= 0);
    options.gate_sums = forward->adds && hd_backward_wants(context, GATE_TABLE);
    hd_tensor x_gradient = carry;
    if (gradient.id || options.delta || options.gate_sums) {
        hd_tensor in[G_INPUTS] = {[G_GRADIENT] = gradient, [G_CARRY] = carry};
        if (gradient.id) {
            in[G_SUM] = forward->adds ? op->out[sum] : op->in[X];
            in[G_TABLE] = op->in[TABLE];
            in[G_INDEX] = op->in[INDEX];
            in[G_MEAN] = op->out[mean];
            in[G_RSTD] = op->out[mean + 1];
        }
        if (options.gate_sums) in[G_DELTA] = op->in[DELTA];
        if (options.delta) {
            in[G_GATE_TABLE] = op->in[GATE_TABLE];
            in[G_GATE_INDEX] = op->in[GATE_INDEX];
        }
        hd_program *program = hd_backward_program(context);
        const hd_op_kind *kind = gradient.id ? &modulate_gradient : &gate_gradient;
        int out = 0;
        const hd_tensor first = hd_custom_op(program, kind, &options, G_INPUTS, in);
        if (!first.id) return;
        /* All before another op is appended. */
        if (gradient.id) x_gradient = hd_op_result(program, out++);
        const hd_tensor delta = options.delta ? hd_op_result(program, out++) : none;
        const hd_tensor sums = options.sums ? hd_op_result(program, out++) : none;
        const hd_tensor gate_sums = options.gate_sums ? hd_op_result(program, out++) : none;
        if (options.delta) hd_backward_give(context, DELTA, delta);
        if (options.sums) give_shift_and_scale(context, op, sums);
        if (options.gate_sums)
            give_table(context, op, GATE_TABLE, gate_sums, forward->gate,
                       hdi_columns(op->in_info[X]), 0);
    }
    hd_backward_give(context, X, x_gradient);
}

static const hd_op_kind modulate = {
    .name = "modulated_norm",
    .options_bytes = sizeof(modulate_options),
    .shape = modulate_shape,
    .backward = modulate_backward,
    .cost = modulate_cost,
    .in_place = 1 << DELTA,
    .second_in_place = 1 << X, /* the sum, where there is one */
    .run = modulate_run,
};

static const hd_op_kind gated_add = {
    .name = "gated_add",
    .options_bytes = sizeof(modulate_options),
    .shape = modulate_shape,
    .backward = modulate_backward,
    .cost = modulate_cost,
    .in_place = 1 << X | 1 << DELTA,
    .run = modulate_run,
};

static hd_tensor append(hd_program *program, hd_tensor x, hd_tensor delta,
                        const hd_modulation *gated, const hd_modulation *by, double epsilon)
{
    modulate_options options;
    memset(&options, 0, sizeof options);
    options.gate = options.shift = options.scale = -1;
    hd_tensor in[INPUTS] = {[X] = x, [DELTA] = delta};
    if (gated) {
        options.adds = true;
        options.gate_rows = gated->rows_per_group;
        options.gate = gated->gate;
        in[GATE_TABLE] = gated->table;
        in[GATE_INDEX] = gated->index;
    }
    if (by) {
        options.norms = true;
        options.saves = program->training;
        options.epsilon = epsilon == 0 ? 1e-6f : (float)epsilon;
        options.rows = by->rows_per_group;
        options.shift = by->shift;
        options.scale = by->scale;
        in[TABLE] = by->table;
        in[INDEX] = by->index;
    }
    return hd_custom_op(program, by ? &modulate : &gated_add, &options, INPUTS, in);
}

hd_tensor hd_modulated_norm(hd_program *program, hd_tensor x, const hd_modulation *by,
                            double epsilon)
{
    return append(program, x, (hd_tensor){0}, NULL, by, epsilon);
}

hd_tensor hd_gated_add(hd_program *program, hd_tensor x, hd_tensor delta, const hd_modulation *by)
{
    return append(program, x, delta, by, NULL, 0);
}

hd_tensor hd_gated_modulated_norm(hd_program *program, hd_tensor x, hd_tensor delta,
                                  const hd_modulation *gated, const hd_modulation *by,
                                  double epsilon, hd_tensor *sum)
{
    const hd_tensor normed = append(program, x, delta, gated, by, epsilon);
    *sum = normed.id ? hd_op_result(program, 1) : normed;
    return normed;
}
