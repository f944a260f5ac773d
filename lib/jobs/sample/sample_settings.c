/* What the configuration says about a sampling, for a model. */
#include "jobs/sample/sample.h"

#include "backend/backend.h"
#include "core/error.h"
#include "optim/flow.h"

#include <inttypes.h>
#include <string.h>

static hdi_sample_scheduler scheduler_of(const hd_config *config, const hd_model *model)
{
    const int chosen = hdi_config_enum(config->values, "sample.scheduler");
    if (chosen != HDI_SCHEDULER_AUTO) return (hdi_sample_scheduler)chosen;
    if (strcmp(hd_model_type(model), "open_sora_2") == 0) return HDI_SCHEDULER_OPEN_SORA_2;
    if (strcmp(hd_model_type(model), "stdit3") == 0) return HDI_SCHEDULER_OPEN_SORA_1;
    return HDI_SCHEDULER_FLOW;
}

/* Open-Sora 1.2's autoencoder takes 17 frames at a time, and makes 5 of them. */
static hd_status read_frames(const hdi_sample_settings *is, int64_t *out)
{
    enum { PIECE = 17, LATENTS = 5 };
    const int64_t frames = is->pixel_frames, compression = is->model->compression[0];
    const bool in_pieces = is->scheduler == HDI_SCHEDULER_OPEN_SORA_1 && compression > 1;
    *out = in_pieces ? frames / PIECE * LATENTS : (frames - 1) / compression + 1;
    if (frames == 1 || (in_pieces ? frames % PIECE == 0 : (frames - 1) % compression == 0)) {
        if (frames == 1) *out = 1;
        return HD_OK;
    }
    const int64_t below = in_pieces ? frames / PIECE * PIECE : (*out - 1) * compression + 1;
    return hdi_error(HD_ERROR_CONFIG,
                     "sample.frames: %" PRId64 " is not what the autoencoder takes, want %" PRId64
                     " or %" PRId64,
                     frames, below ? below : 1, below + (in_pieces ? PIECE : compression));
}

static hd_status read_side(const char *key, int64_t pixels, int64_t compression, int64_t *out)
{
    *out = pixels / compression;
    if (pixels > 0 && pixels % compression == 0) return HD_OK;
    return hdi_error(HD_ERROR_CONFIG, "%s: %" PRId64 ", want a multiple of %" PRId64, key, pixels,
                     compression);
}

static double shift_of(const hd_config *config, const hd_model *model,
                       const hdi_sample_settings *is)
{
    const double given = hdi_config_float(config->values, "sample.shift");
    const int64_t *patch = is->model->patch;
    const double rows = (double)((is->shape.height + patch[1] - 1) / patch[1]);
    const double columns = (double)((is->shape.width + patch[2] - 1) / patch[2]);
    if (given > 0) return given;
    switch (is->scheduler) {
    case HDI_SCHEDULER_OPEN_SORA_2:
        return hdi_flow_open_sora_2_shift(rows * columns, (double)is->shape.frames);
    case HDI_SCHEDULER_OPEN_SORA_1:
        return hdi_flow_open_sora_1_shift((double)is->pixel_height * (double)is->pixel_width,
                                          (double)is->shape.frames);
    case HDI_SCHEDULER_AUTO:
    case HDI_SCHEDULER_FLOW: break;
    }
    return strcmp(hd_model_type(model), "hunyuan_video") == 0 ? 7 : 1;
}

/* Models that read given frames beside the latents are guided by the text and by those; others by the
 * text, or inside the network. */
static void read_guidance(const hd_config *config, bool given, hdi_sample_settings *out)
{
    const hdi_config *values = config->values;
    const bool open_sora_2 = out->scheduler == HDI_SCHEDULER_OPEN_SORA_2;
    hd_sampler_run_options *run = &out->run;
    double scale = hdi_config_float(values, "sample.guidance");
    if (scale == 0) scale = open_sora_2 ? 7.5 : out->scheduler == HDI_SCHEDULER_OPEN_SORA_1 ? 7 : 6;
    run->branches = 1;
    if (out->model->guidance) {
        run->embedded = scale;
        run->embedded_rounded = hdi_config_bool(values, "sample.rounded_guidance");
        return;
    }
    if (scale == 1) return;
    run->guidance = scale;
    run->image_guidance = hdi_config_float(values, "sample.image_guidance");
    run->branches = given && out->model->condition_channels ? 3 : 2;
    run->oscillate =
        (open_sora_2 || run->branches == 3) && hdi_config_bool(values, "sample.oscillate");
    run->ramp = run->branches == 3 && run->oscillate;
}

static hd_dtype dtype_of(const hd_config *config, const hd_backend *backend)
{
    const hd_dtype names[] = {backend == &hdi_backend_cpu ? HD_DTYPE_F32 : HD_DTYPE_BF16,
                              HD_DTYPE_F32, HD_DTYPE_BF16, HD_DTYPE_F16};
    return names[hdi_config_enum(config->values, "sample.dtype")];
}

hd_status hdi_sample_settings_read(const hd_config *config, const hd_model *model,
                                   const hd_backend *backend, bool given, hdi_sample_settings *out)
{
    const hdi_config *values = config->values;
    *out = (hdi_sample_settings){.model = hd_model_video(model),
                                 .scheduler = scheduler_of(config, model),
                                 .pixel_frames = hdi_config_int(values, "sample.frames"),
                                 .pixel_height = hdi_config_int(values, "sample.height"),
                                 .pixel_width = hdi_config_int(values, "sample.width"),
                                 .dtype = dtype_of(config, backend)};
    if (!out->model)
        return hdi_error(HD_ERROR_CONFIG,
                         "sample: the model is of type %s, which makes text (heddle generate); "
                         "want a video model",
                         hd_model_type(model));
    hd_video_shape *shape = &out->shape;
    HD_RETURN_IF_ERROR(read_frames(out, &shape->frames));
    HD_RETURN_IF_ERROR(
        read_side("sample.height", out->pixel_height, out->model->compression[1], &shape->height));
    HD_RETURN_IF_ERROR(
        read_side("sample.width", out->pixel_width, out->model->compression[2], &shape->width));
    shape->steps = hdi_config_int(values, "sample.steps");
    shape->pixel_height = out->pixel_height;
    shape->pixel_width = out->pixel_width;
    shape->masked_frames = given;
    read_guidance(config, given, out);
    out->run.shift = shift_of(config, model, out);
    out->run.fps = hdi_config_float(values, "sample.fps");
    out->run.in_flight = (int)hdi_config_int(values, "sample.in_flight");
    out->run.towards_data = strcmp(hd_model_type(model), "stdit3") == 0;
    return HD_OK;
}
