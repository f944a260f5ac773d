/* Frames as rows, for losses that weigh them one by one: of videos, and of a transformer's patches. */
#include <heddle/diffusion.h>

#include "core/checked.h"
#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>
#include <string.h>

typedef struct frame_options {
    hd_patch_options video;
    int64_t row_columns; /* of the patches */
    hd_dtype dtype;      /* of the patches */
} frame_options;

/* Patches that are whole frames, channels first. */
static hdi_patch_args whole_frames(const hd_patch_options *video, hd_dtype dtype)
{
    return (hdi_patch_args){.dtype = dtype,
                            .sequences = video->sequences,
                            .channels = video->channels,
                            .frames = video->frames,
                            .height = video->height,
                            .width = video->width,
                            .patch = {video->patch[0], video->height, video->width},
                            .row_columns =
                                video->channels * video->patch[0] * video->height * video->width};
}

static hdi_patch_args patches(const frame_options *options)
{
    hdi_patch_args args = whole_frames(&options->video, options->dtype);
    args.row_columns = options->row_columns;
    args.channels_last = options->video.order == HD_PATCH_CHANNELS_LAST;
    memcpy(args.patch, options->video.patch, sizeof args.patch);
    return args;
}

static hd_status check_sizes(const hd_patch_options *video)
{
    const int64_t sizes[] = {video->sequences, video->channels, video->frames,   video->height,
                             video->width,     video->patch[0], video->patch[1], video->patch[2]};
    for (int i = 0; i < 8; i++)
        if (sizes[i] < 1)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "size %d of the video and its patches is %" PRId64 ", want at least 1",
                             i, sizes[i]);
    return HD_OK;
}

static void declare_frames(hd_program *program, const hd_patch_options *video, hd_dtype dtype)
{
    const int64_t dims[] = {video->sequences * hdi_ceil_div(video->frames, video->patch[0]),
                            whole_frames(video, dtype).row_columns};
    hd_op_output(program, dtype, 2, dims);
}

static hd_status video_shape(hd_program *program, const hd_op *op)
{
    const hd_patch_options *video = &((const frame_options *)op->options)->video;
    HD_RETURN_IF_ERROR(check_sizes(video));
    const int64_t dims[] = {video->sequences, video->channels, video->frames, video->height,
                            video->width};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "video", HD_DTYPE_F32, 5, dims));
    declare_frames(program, video, HD_DTYPE_F32);
    return HD_OK;
}

static hd_status video_run(const hd_run *run)
{
    hdi_patch_args args =
        whole_frames(&((const frame_options *)run->op->options)->video, HD_DTYPE_F32);
    args.x = run->in[0];
    args.out = run->out[0];
    return run->backend->patchify(run->stream, &args);
}

static void moves(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = hdi_tensor_bytes(op);
}

static const hd_op_kind video_frames = {
    .name = "frame_rows",
    .options_bytes = sizeof(frame_options),
    .shape = video_shape,
    .cost = moves,
    .run = video_run,
};

static int64_t patch_rows(const hd_patch_options *video)
{
    return video->sequences * hdi_ceil_div(video->frames, video->patch[0]) *
           hdi_ceil_div(video->height, video->patch[1]) *
           hdi_ceil_div(video->width, video->patch[2]);
}

static hd_status patches_shape(hd_program *program, const hd_op *op)
{
    const frame_options *options = op->options;
    const hd_patch_options *video = &options->video;
    HD_RETURN_IF_ERROR(check_sizes(video));
    const int64_t volume = video->patch[0] * video->patch[1] * video->patch[2];
    const int64_t dims[] = {patch_rows(video), options->row_columns};
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "x", HD_DTYPE_NONE, 2, dims));
    const bool wider = video->order == HD_PATCH_CHANNELS_LAST && dims[1] % volume == 0;
    if (dims[1] != video->channels * volume && !(wider && dims[1] > video->channels * volume))
        return hdi_error(HD_ERROR_ARGUMENT,
                         "x has %" PRId64 " columns, want %" PRId64
                         ", or more channels for each of the patch's %" PRId64
                         " places if they come last",
                         dims[1], video->channels * volume, volume);
    declare_frames(program, video, options->dtype);
    return HD_OK;
}

/* Both ways lead over the video itself. */
static size_t video_bytes(const hd_op *op)
{
    const hd_patch_options *video = &((const frame_options *)op->options)->video;
    return (size_t)(video->sequences * video->channels * video->frames * video->height *
                    video->width) *
           sizeof(float);
}

static hd_status patches_run(const hd_run *run)
{
    const frame_options *options = run->op->options;
    hdi_patch_args from = patches(options), to = whole_frames(&options->video, options->dtype);
    from.x = run->in[0];
    from.out = run->workspace;
    to.x = run->workspace;
    to.out = run->out[0];
    HD_RETURN_IF_ERROR(run->backend->unpatchify(run->stream, &from));
    return run->backend->patchify(run->stream, &to);
}

static hd_status gradient_shape(hd_program *program, const hd_op *op)
{
    const frame_options *options = op->options;
    const int64_t dims[] = {patch_rows(&options->video), options->row_columns};
    hd_op_output(program, options->dtype, 2, dims);
    return HD_OK;
}

/* The adjoint: what was cut off gets zeros. */
static hd_status gradient_run(const hd_run *run)
{
    const frame_options *options = run->op->options;
    hdi_patch_args from = whole_frames(&options->video, options->dtype), to = patches(options);
    from.x = run->in[0];
    from.out = run->workspace;
    to.x = run->workspace;
    to.out = run->out[0];
    HD_RETURN_IF_ERROR(run->backend->unpatchify(run->stream, &from));
    return run->backend->patchify(run->stream, &to);
}

static const hd_op_kind patches_gradient = {
    .name = "patches_to_frames_gradient",
    .options_bytes = sizeof(frame_options),
    .shape = gradient_shape,
    .cost = moves,
    .workspace = video_bytes,
    .run = gradient_run,
};

static void patches_backward(hd_backward *context, const hd_op *op)
{
    const hd_tensor gradient = hd_backward_output_gradient(context, 0);
    hd_backward_give(
        context, 0,
        hd_custom_op(hd_backward_program(context), &patches_gradient, op->options, 1, &gradient));
}

static const hd_op_kind patches_to_frames = {
    .name = "patches_to_frames",
    .options_bytes = sizeof(frame_options),
    .shape = patches_shape,
    .backward = patches_backward,
    .cost = moves,
    .workspace = video_bytes,
    .run = patches_run,
};

hd_tensor hd_frame_rows(hd_program *program, hd_tensor video, const hd_patch_options *options)
{
    frame_options copied;
    memset(&copied, 0, sizeof copied);
    copied.video = *options;
    return hd_custom_op(program, &video_frames, &copied, 1, &video);
}

hd_tensor hd_patches_to_frames(hd_program *program, hd_tensor x, const hd_patch_options *options)
{
    frame_options copied;
    memset(&copied, 0, sizeof copied);
    copied.video = *options;
    const hd_tensor_info *info = hd_tensor_get(program, x);
    if (info) {
        copied.row_columns = hdi_columns(info);
        copied.dtype = info->dtype;
    }
    return hd_custom_op(program, &patches_to_frames, &copied, 1, &x);
}
