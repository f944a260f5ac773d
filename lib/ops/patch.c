/* Patches of videos as rows, and the way back. */
#include <heddle/diffusion.h>

#include "core/checked.h"
#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>

/* A row's columns: what a patch fills; unpatchify may be given more. */
typedef struct patch_shape {
    int64_t video[5], rows[2];
} patch_shape;

static hd_status shape_of(const hd_patch_options *options, patch_shape *out)
{
    *out = (patch_shape){
        {options->sequences, options->channels, options->frames, options->height, options->width},
        {options->sequences, options->channels}};
    bool positive = options->sequences > 0 && options->channels > 0;
    for (int i = 0; i < 3 && positive; i++) {
        positive = out->video[2 + i] > 0 && options->patch[i] > 0;
        if (!positive) break;
        out->rows[0] *= hdi_ceil_div(out->video[2 + i], options->patch[i]);
        out->rows[1] *= options->patch[i];
    }
    if (positive) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT,
                     "videos [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                     "] in patches [%" PRId64 ", %" PRId64 ", %" PRId64 "], want all above 0",
                     options->sequences, options->channels, options->frames, options->height,
                     options->width, options->patch[0], options->patch[1], options->patch[2]);
}

static hdi_patch_args args_of(const hd_run *run, hd_dtype dtype, int64_t row_columns)
{
    const hd_patch_options *options = run->op->options;
    return (hdi_patch_args){
        .dtype = dtype,
        .sequences = options->sequences,
        .channels = options->channels,
        .frames = options->frames,
        .height = options->height,
        .width = options->width,
        .patch = {options->patch[0], options->patch[1], options->patch[2]},
        .row_columns = row_columns,
        .channels_last = options->order == HD_PATCH_CHANNELS_LAST,
        .x = run->in[0],
        .out = run->out[0],
    };
}

static hd_status patchify_shape(hd_program *program, const hd_op *op)
{
    const hd_patch_options *options = op->options;
    patch_shape shape;
    HD_RETURN_IF_ERROR(shape_of(options, &shape));
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "video", HD_DTYPE_F32, 5, shape.video));
    hd_op_output(program, options->dtype, 2, shape.rows);
    return HD_OK;
}

static hd_status patchify_run(const hd_run *run)
{
    const hd_tensor_info *out = run->op->out_info[0];
    const hdi_patch_args args = args_of(run, out->dtype, out->dims[1]);
    return run->backend->patchify(run->stream, &args);
}

static const hd_op_kind patchify = {
    .name = "patchify",
    .options_bytes = sizeof(hd_patch_options),
    .shape = patchify_shape,
    .run = patchify_run,
};

hd_tensor hd_patchify(hd_program *program, hd_tensor video, const hd_patch_options *options)
{
    hd_patch_options all = *options;
    if (!all.dtype) all.dtype = program->dtype;
    return hd_custom_op(program, &patchify, &all, 1, &video);
}

static hd_status unpatchify_shape(hd_program *program, const hd_op *op)
{
    const hd_patch_options *options = op->options;
    patch_shape shape;
    HD_RETURN_IF_ERROR(shape_of(options, &shape));
    const int64_t dims[] = {shape.rows[0], -1};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "x", HD_DTYPE_NONE, 2, dims));
    const int64_t columns = op->in_info[0]->dims[1], volume = shape.rows[1] / options->channels;
    const bool more = options->order == HD_PATCH_CHANNELS_LAST && columns > shape.rows[1] &&
                      columns % volume == 0;
    if (columns != shape.rows[1] && !more)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "x has %" PRId64 " columns, want %" PRId64
                         ", or channels last and more channels in patches of %" PRId64,
                         columns, shape.rows[1], volume);
    hd_op_output(program, HD_DTYPE_F32, 5, shape.video);
    return HD_OK;
}

static hd_status unpatchify_run(const hd_run *run)
{
    const hd_tensor_info *x = run->op->in_info[0];
    const hdi_patch_args args = args_of(run, x->dtype, x->dims[1]);
    return run->backend->unpatchify(run->stream, &args);
}

static const hd_op_kind unpatchify = {
    .name = "unpatchify",
    .options_bytes = sizeof(hd_patch_options),
    .shape = unpatchify_shape,
    .run = unpatchify_run,
};

hd_tensor hd_unpatchify(hd_program *program, hd_tensor x, const hd_patch_options *options)
{
    return hd_custom_op(program, &unpatchify, options, 1, &x);
}
