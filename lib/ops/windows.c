/* Videos' rows cut into windows of places over all frames, and the way back. Windows that the far
 * sides cut are smaller; those of one size are a part. */
#include <heddle/diffusion.h>

#include "core/checked.h"
#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>
#include <string.h>

/* Windows of one size: `down` by `across` of them, the first at this place. */
typedef struct part {
    int64_t down, across, height, width, top, left;
} part;

static int list_parts(const hd_window_options *o, part out[HD_WINDOW_PARTS])
{
    const int64_t down = o->height / o->window_height, across = o->width / o->window_width;
    const int64_t rest_down = o->height % o->window_height, rest = o->width % o->window_width;
    const part all[HD_WINDOW_PARTS] = {
        {down, across, o->window_height, o->window_width, 0, 0},
        {down, 1, o->window_height, rest, 0, o->width - rest},
        {1, across, rest_down, o->window_width, o->height - rest_down, 0},
        {1, 1, rest_down, rest, o->height - rest_down, o->width - rest}};
    int count = 0;
    for (int i = 0; i < HD_WINDOW_PARTS; i++)
        if (all[i].down * all[i].across * all[i].height * all[i].width > 0) out[count++] = all[i];
    return count;
}

static int64_t part_rows(const hd_window_options *o, const part *of)
{
    return o->sequences * of->down * of->across * o->frames * of->height * of->width;
}

static hd_status check_options(const hd_window_options *o)
{
    if (o->sequences > 0 && o->frames > 0 && o->height > 0 && o->width > 0 &&
        o->window_height > 0 && o->window_width > 0)
        return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT,
                     "%" PRId64 " videos of %" PRId64 " x %" PRId64 " x %" PRId64
                     " in windows of %" PRId64 " x %" PRId64 ", want all > 0",
                     o->sequences, o->frames, o->height, o->width, o->window_height,
                     o->window_width);
}

static void moved_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = hdi_tensor_bytes(op);
}

/* Between all rows and those of a part, `row` bytes each. A window's row of places is one block. */
static hd_status copy_part(const hd_run *run, const part *of, size_t row, const void *all,
                           void *windows, bool cut)
{
    const hd_window_options *o = run->op->options;
    const size_t line = (size_t)o->width * row, frame = (size_t)o->height * line;
    const size_t strip = (size_t)of->width * row, slice = (size_t)of->height * strip;
    const size_t window = (size_t)o->frames * slice;
    char *first = (char *)hdi_updated(all) + (size_t)of->top * line + (size_t)of->left * row;
    const size_t whole[HDI_GRID_DIMS] = {(size_t)o->frames * frame, (size_t)of->height * line,
                                         strip, frame, line};
    const size_t apart[HDI_GRID_DIMS] = {(size_t)(of->down * of->across) * window,
                                         (size_t)of->across * window, window, slice, strip};
    hdi_copy_grid_args args = {.count = {o->sequences, of->down, of->across, o->frames, of->height},
                               .block_bytes = strip,
                               .x = cut ? first : windows,
                               .out = cut ? windows : first};
    memcpy(args.x_stride, cut ? whole : apart, sizeof whole);
    memcpy(args.out_stride, cut ? apart : whole, sizeof whole);
    return run->backend->copy_grid(run->stream, &args);
}

/* in: rows. out: a part each. */
static hd_status split_shape(hd_program *program, const hd_op *op)
{
    const hd_window_options *o = op->options;
    HD_RETURN_IF_ERROR(check_options(o));
    const int64_t dims[] = {o->sequences * o->frames * o->height * o->width, -1};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "x", HD_DTYPE_NONE, 2, dims));
    part parts[HD_WINDOW_PARTS];
    const int count = list_parts(o, parts);
    for (int i = 0; i < count; i++) {
        const int64_t rows[] = {part_rows(o, &parts[i]), op->in_info[0]->dims[1]};
        hd_op_output(program, op->in_info[0]->dtype, 2, rows);
    }
    return HD_OK;
}

static size_t row_bytes(const hd_tensor_info *info)
{
    return (size_t)info->dims[1] * hd_dtype_bytes(info->dtype);
}

static hd_status split_run(const hd_run *run)
{
    part parts[HD_WINDOW_PARTS];
    const int count = list_parts(run->op->options, parts);
    for (int i = 0; i < count; i++)
        HD_RETURN_IF_ERROR(copy_part(run, &parts[i], row_bytes(run->op->in_info[0]), run->in[0],
                                     run->out[i], true));
    return HD_OK;
}

/* in: a part each; those that are missing are zeros. out: rows. */
static hd_status join_shape(hd_program *program, const hd_op *op)
{
    const hd_window_options *o = op->options;
    const hd_tensor_info *seen = NULL;
    HD_RETURN_IF_ERROR(check_options(o));
    for (int i = 0; i < op->inputs && !seen; i++)
        seen = op->in_info[i];
    if (!seen || seen->rank != 2)
        return hdi_error(HD_ERROR_ARGUMENT, "no part is a matrix, want [rows, columns]");
    part parts[HD_WINDOW_PARTS];
    const int count = list_parts(o, parts);
    for (int i = 0; i < count; i++) {
        const int64_t rows[] = {part_rows(o, &parts[i]), seen->dims[1]};
        if (op->in_info[i])
            HD_RETURN_IF_ERROR(hdi_check_dims(op, i, "a part", seen->dtype, 2, rows));
    }
    const int64_t dims[] = {o->sequences * o->frames * o->height * o->width, seen->dims[1]};
    hd_op_output(program, seen->dtype, 2, dims);
    return HD_OK;
}

static hd_status join_run(const hd_run *run)
{
    part parts[HD_WINDOW_PARTS];
    const hd_tensor_info *all = run->op->out_info[0];
    const int count = list_parts(run->op->options, parts);
    bool whole = true;
    for (int i = 0; i < count; i++)
        whole = whole && run->in[i];
    if (!whole) HD_RETURN_IF_ERROR(run->backend->zero(run->stream, run->out[0], all->bytes));
    for (int i = 0; i < count; i++)
        if (run->in[i])
            HD_RETURN_IF_ERROR(copy_part(run, &parts[i], row_bytes(all), run->out[0],
                                         hdi_updated(run->in[i]), false));
    return HD_OK;
}

static void split_backward(hd_backward *context, const hd_op *op);
static void join_backward(hd_backward *context, const hd_op *op);

static const hd_op_kind split_windows = {
    .name = "split_windows",
    .options_bytes = sizeof(hd_window_options),
    .shape = split_shape,
    .backward = split_backward,
    .cost = moved_cost,
    .run = split_run,
};

static const hd_op_kind join_windows = {
    .name = "join_windows",
    .options_bytes = sizeof(hd_window_options),
    .shape = join_shape,
    .backward = join_backward,
    .cost = moved_cost,
    .run = join_run,
};

static void split_backward(hd_backward *context, const hd_op *op)
{
    hd_tensor parts[HD_WINDOW_PARTS];
    for (int i = 0; i < op->outputs; i++)
        parts[i] = hd_backward_output_gradient(context, i);
    hd_backward_give(context, 0, hd_join_windows(hd_backward_program(context), parts, op->options));
}

static void join_backward(hd_backward *context, const hd_op *op)
{
    hd_tensor parts[HD_WINDOW_PARTS];
    hd_split_windows(hd_backward_program(context), hd_backward_output_gradient(context, 0),
                     op->options, parts, NULL);
    for (int i = 0; i < op->inputs; i++)
        if (hd_backward_wants(context, i)) hd_backward_give(context, i, parts[i]);
}

int hd_split_windows(hd_program *program, hd_tensor x, const hd_window_options *options,
                     hd_tensor out[HD_WINDOW_PARTS], int64_t tokens[HD_WINDOW_PARTS])
{
    memset(out, 0, HD_WINDOW_PARTS * sizeof *out);
    if (!hd_custom_op(program, &split_windows, options, 1, &x).id) return 0;
    part parts[HD_WINDOW_PARTS];
    const int count = list_parts(options, parts);
    for (int i = 0; i < count; i++) {
        out[i] = hd_op_result(program, i);
        if (tokens) tokens[i] = options->frames * parts[i].height * parts[i].width;
    }
    return count;
}

hd_tensor hd_join_windows(hd_program *program, const hd_tensor x[HD_WINDOW_PARTS],
                          const hd_window_options *options)
{
    part parts[HD_WINDOW_PARTS];
    const bool good = check_options(options) == HD_OK;
    return hd_custom_op(program, &join_windows, options, good ? list_parts(options, parts) : 1, x);
}
