/* The families of MMDiTs, their config.json and presets. */
#include "models/mmdit.h"

#include "core/error.h"

#include <inttypes.h>
#include <string.h>

/* What has to hold whatever the family. */
static hd_status check(const hdi_mmdit_config *config)
{
    const int64_t turned = config->axes[0] + config->axes[1] + config->axes[2];
    for (int i = 0; i < 3; i++)
        if (config->axes[i] % 2)
            return hdi_error(HD_ERROR_CONFIG,
                             "model config: rope axis %d turns %" PRId64
                             " columns, want an even number",
                             i, config->axes[i]);
    if (turned != config->head_dim)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: the rope axes turn %" PRId64
                         " columns in all, want those of a head, %" PRId64,
                         turned, config->head_dim);
    if (!(config->theta > 1))
        return hdi_error(HD_ERROR_CONFIG, "model config: the rope theta is %g, want a number > 1",
                         config->theta);
    return HD_OK;
}

static hd_status read_inner(const json_t *object, hdi_mmdit_config *out)
{
    HD_RETURN_IF_ERROR(hdi_model_read_positive(object, "mlp_ratio", &out->mlp_ratio));
    const double inner = (double)out->hidden * out->mlp_ratio;
    if (inner >= 1 && inner <= INT32_MAX) {
        out->inner = (int64_t)inner;
        return HD_OK;
    }
    return hdi_error(HD_ERROR_CONFIG,
                     "model config: \"mlp_ratio\" is %g, want one that makes 1 to 2147483647 "
                     "columns of %" PRId64,
                     out->mlp_ratio, out->hidden);
}

/* A count that may be 0, if the value is null or 0. */
static hd_status read_count(const json_t *object, const char *key, int64_t *out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value) || json_integer_value(value) != 0)
        return hdi_model_read_int(object, key, false, out);
    *out = 0;
    return HD_OK;
}

static hd_status read_hunyuan_layout(const json_t *object, hdi_mmdit_config *out)
{
    const char *layout = json_object_get(object, "_class_name") ? "diffusers" : "original";
    HD_RETURN_IF_ERROR(hdi_model_read_string(object, "layout", &layout));
    for (int i = HDI_MMDIT_ORIGINAL; i <= HDI_MMDIT_DIFFUSERS; i++) {
        out->layout = (hdi_mmdit_layout)i;
        if (strcmp(layout, hdi_mmdit_layout_name(out->layout)) == 0) return HD_OK;
    }
    return hdi_error(HD_ERROR_CONFIG,
                     "model config: \"layout\" is \"%s\", want \"original\" or \"diffusers\"",
                     layout);
}

/* The keys of diffusers' HunyuanVideoTransformer3DModel, and "text_len", "layout". */
static hd_status read_keys(const json_t *object, hdi_mmdit_config *out)
{
    int64_t out_channels, patch = out->patch[1];
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "in_channels", false, &out->channels));
    out_channels = out->channels;
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "out_channels", false, &out_channels));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "num_attention_heads", false, &out->heads));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "attention_head_dim", false, &out->head_dim));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "num_layers", false, &out->double_blocks));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "num_single_layers", false, &out->single_blocks));
    HD_RETURN_IF_ERROR(read_count(object, "num_refiner_layers", &out->refiner_blocks));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "patch_size", false, &patch));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "patch_size_t", false, &out->patch[0]));
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "guidance_embeds", &out->guidance));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "text_embed_dim", false, &out->text_columns));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "text_len", false, &out->text_tokens));
    HD_RETURN_IF_ERROR(read_count(object, "pooled_projection_dim", &out->pooled_columns));
    HD_RETURN_IF_ERROR(hdi_model_read_positive(object, "rope_theta", &out->theta));
    HD_RETURN_IF_ERROR(hdi_model_read_ints(object, "rope_axes_dim", 3, out->axes));
    HD_RETURN_IF_ERROR(hdi_model_require_string(object, "qk_norm", "rms_norm"));
    const json_t *image = json_object_get(object, "image_condition_type");
    if (image && !json_is_null(image))
        return hdi_error(
            HD_ERROR_UNSUPPORTED,
            "model config: \"image_condition_type\" is set, heddle computes null only");
    if (out_channels != out->channels)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "model config: \"out_channels\" is %" PRId64
                         ", want \"in_channels\", %" PRId64,
                         out_channels, out->channels);
    out->patch[1] = out->patch[2] = patch;
    out->hidden = out->heads * out->head_dim;
    if (out->hidden > INT32_MAX)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: %" PRId64 " heads of %" PRId64
                         " columns, want at most 2147483647 in all",
                         out->heads, out->head_dim);
    HD_RETURN_IF_ERROR(read_inner(object, out));
    HD_RETURN_IF_ERROR(read_hunyuan_layout(object, out));
    return check(out);
}

static hd_status read_hunyuan(const json_t *object, void *config)
{
    hdi_mmdit_config *out = config;
    *out = (hdi_mmdit_config){.heads = 24,
                              .head_dim = 128,
                              .double_blocks = 20,
                              .single_blocks = 40,
                              .refiner_blocks = 2,
                              .channels = 16,
                              .patch = {1, 2, 2},
                              .compression = {4, 8, 8},
                              .text_columns = 4096,
                              .text_tokens = 256,
                              .pooled_columns = 768,
                              .axes = {16, 56, 56},
                              .theta = 256,
                              .mlp_ratio = 4,
                              .guidance = true,
                              .qk_norm = true};
    return read_keys(object, out);
}

static hd_status read_pixels(const json_t *object, void *config)
{
    hdi_mmdit_config *out = config;
    *out = (hdi_mmdit_config){.heads = 4,
                              .head_dim = 32,
                              .double_blocks = 2,
                              .single_blocks = 2,
                              .channels = 3,
                              .patch = {2, 4, 4},
                              .compression = {1, 1, 1},
                              .text_columns = 32,
                              .text_tokens = 8,
                              .pooled_columns = 32,
                              .axes = {8, 12, 12},
                              .theta = 256,
                              .mlp_ratio = 4,
                              .qk_norm = true,
                              .positions = true};
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "position_table", &out->positions));
    return read_keys(object, out);
}

static void write_keys(const hdi_mmdit_config *config, hdi_text *out)
{
    hdi_text_printf(out,
                    "  \"in_channels\": %" PRId64 ",\n  \"out_channels\": %" PRId64
                    ",\n  \"num_attention_heads\": %" PRId64 ",\n  \"attention_head_dim\": %" PRId64
                    ",\n  \"num_layers\": %" PRId64 ",\n  \"num_single_layers\": %" PRId64
                    ",\n  \"num_refiner_layers\": %" PRId64 ",\n  \"mlp_ratio\": ",
                    config->channels, config->channels, config->heads, config->head_dim,
                    config->double_blocks, config->single_blocks, config->refiner_blocks);
    hdi_text_append_float(out, config->mlp_ratio);
    hdi_text_printf(out,
                    ",\n  \"patch_size\": %" PRId64 ",\n  \"patch_size_t\": %" PRId64
                    ",\n  \"qk_norm\": \"rms_norm\",\n  \"guidance_embeds\": %s"
                    ",\n  \"text_embed_dim\": %" PRId64 ",\n  \"text_len\": %" PRId64
                    ",\n  \"pooled_projection_dim\": %" PRId64 ",\n  \"rope_theta\": ",
                    config->patch[1], config->patch[0], config->guidance ? "true" : "false",
                    config->text_columns, config->text_tokens, config->pooled_columns);
    hdi_text_append_float(out, config->theta);
    hdi_text_printf(out,
                    ",\n  \"rope_axes_dim\": [%" PRId64 ", %" PRId64 ", %" PRId64
                    "],\n  \"layout\": \"%s\"\n}\n",
                    config->axes[0], config->axes[1], config->axes[2],
                    hdi_mmdit_layout_name(config->layout));
}

static void write_hunyuan(const void *config, hdi_text *out)
{
    hdi_text_append(out, "{\n  \"model_type\": \"hunyuan_video\",\n"
                         "  \"_class_name\": \"HunyuanVideoTransformer3DModel\",\n");
    write_keys(config, out);
}

static void write_pixels(const void *config, hdi_text *out)
{
    const hdi_mmdit_config *model = config;
    hdi_text_printf(out, "{\n  \"model_type\": \"mmdit_pixels\",\n  \"position_table\": %s,\n",
                    model->positions ? "true" : "false");
    write_keys(config, out);
}

/* Open-Sora's keys, and "text_len". Its channels are counted after cutting into patches. */
static hd_status read_open_sora(const json_t *object, void *config)
{
    hdi_mmdit_config *out = config;
    int64_t columns = 64, side = 2;
    bool condition = false, fused = true;
    *out = (hdi_mmdit_config){.hidden = 3072,
                              .heads = 24,
                              .double_blocks = 19,
                              .single_blocks = 38,
                              .text_columns = 4096,
                              .text_tokens = 512,
                              .pooled_columns = 768,
                              .axes = {16, 56, 56},
                              .theta = 10000,
                              .mlp_ratio = 4,
                              .text_first = true,
                              .qk_norm = true};
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "in_channels", false, &columns));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "vec_in_dim", false, &out->pooled_columns));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "context_in_dim", false, &out->text_columns));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "hidden_size", false, &out->hidden));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "num_heads", false, &out->heads));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "depth", false, &out->double_blocks));
    HD_RETURN_IF_ERROR(
        hdi_model_read_int(object, "depth_single_blocks", false, &out->single_blocks));
    HD_RETURN_IF_ERROR(hdi_model_read_ints(object, "axes_dim", 3, out->axes));
    HD_RETURN_IF_ERROR(hdi_model_read_positive(object, "theta", &out->theta));
    HD_RETURN_IF_ERROR(hdi_model_require_bool(object, "qkv_bias", true));
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "guidance_embed", &out->guidance));
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "cond_embed", &condition));
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "fused_qkv", &fused));
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "use_liger_rope", &out->halves));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "patch_size", false, &side));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "text_len", false, &out->text_tokens));
    if (out->hidden % out->heads)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: \"hidden_size\" is %" PRId64
                         ", want a multiple of \"num_heads\", %" PRId64,
                         out->hidden, out->heads);
    if (side > 1024 || columns % (side * side))
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: \"in_channels\" is %" PRId64
                         ", want a multiple of \"patch_size\" squared, %" PRId64 " squared",
                         columns, side);
    out->head_dim = out->hidden / out->heads;
    out->channels = columns / (side * side);
    out->condition_channels = condition ? out->channels + 1 : 0; /* a mask, then given latents */
    out->layout = fused ? HDI_MMDIT_FUSED : HDI_MMDIT_SEPARATE;
    const int64_t spatial = side == 1 ? 32 : 8; /* the autoencoder that goes with either */
    const int64_t patch[] = {1, side, side}, compression[] = {4, spatial, spatial};
    memcpy(out->patch, patch, sizeof patch);
    memcpy(out->compression, compression, sizeof compression);
    HD_RETURN_IF_ERROR(read_inner(object, out));
    return check(out);
}

static void write_open_sora(const void *user, hdi_text *out)
{
    const hdi_mmdit_config *config = user;
    hdi_text_printf(out,
                    "{\n  \"model_type\": \"open_sora_2\",\n  \"in_channels\": %" PRId64
                    ",\n  \"vec_in_dim\": %" PRId64 ",\n  \"context_in_dim\": %" PRId64
                    ",\n  \"hidden_size\": %" PRId64 ",\n  \"mlp_ratio\": ",
                    config->channels * config->patch[1] * config->patch[2], config->pooled_columns,
                    config->text_columns, config->hidden);
    hdi_text_append_float(out, config->mlp_ratio);
    hdi_text_printf(out,
                    ",\n  \"num_heads\": %" PRId64 ",\n  \"depth\": %" PRId64
                    ",\n  \"depth_single_blocks\": %" PRId64 ",\n  \"axes_dim\": [%" PRId64
                    ", %" PRId64 ", %" PRId64 "],\n  \"theta\": ",
                    config->heads, config->double_blocks, config->single_blocks, config->axes[0],
                    config->axes[1], config->axes[2]);
    hdi_text_append_float(out, config->theta);
    hdi_text_printf(out,
                    ",\n  \"qkv_bias\": true,\n  \"guidance_embed\": %s,\n  \"cond_embed\": %s"
                    ",\n  \"fused_qkv\": %s,\n  \"use_liger_rope\": %s,\n  \"patch_size\": %" PRId64
                    ",\n  \"text_len\": %" PRId64 "\n}\n",
                    config->guidance ? "true" : "false",
                    config->condition_channels ? "true" : "false",
                    config->layout == HDI_MMDIT_FUSED ? "true" : "false",
                    config->halves ? "true" : "false", config->patch[1], config->text_tokens);
}

static void describe(const void *user, hdi_model_facts *out)
{
    const hdi_mmdit_config *config = user;
    out->layers = config->double_blocks + config->single_blocks;
    out->hidden = config->hidden;
    out->layout = hdi_mmdit_layout_name(config->layout);
    out->is_video = true;
    out->video = (hd_video_model){.channels = config->channels,
                                  .text_columns = config->text_columns,
                                  .text_tokens = config->text_tokens,
                                  .pooled_columns = config->pooled_columns,
                                  .condition_channels = config->condition_channels,
                                  .condition_masks = config->condition_channels > 0,
                                  .guidance = config->guidance};
    memcpy(out->video.patch, config->patch, sizeof config->patch);
    memcpy(out->video.compression, config->compression, sizeof config->compression);
}

static const hdi_model_preset hunyuan_presets[] = {
    {"hunyuan-video-13b", "{\"model_type\": \"hunyuan_video\"}"},
    {"hunyuan-video-tiny",
     "{\"model_type\": \"hunyuan_video\", \"in_channels\": 4, \"out_channels\": 4, "
     "\"num_attention_heads\": 2, \"attention_head_dim\": 16, \"num_layers\": 2, "
     "\"num_single_layers\": 2, \"num_refiner_layers\": 2, \"text_embed_dim\": 24, "
     "\"pooled_projection_dim\": 12, \"rope_axes_dim\": [4, 6, 6]}"},
    {0},
};

static const hdi_model_preset open_sora_presets[] = {
    {"open-sora-2-11b", "{\"model_type\": \"open_sora_2\", \"cond_embed\": true, "
                        "\"fused_qkv\": false, \"use_liger_rope\": true}"},
    {"open-sora-2-tiny",
     "{\"model_type\": \"open_sora_2\", \"in_channels\": 16, \"vec_in_dim\": 12, "
     "\"context_in_dim\": 24, \"hidden_size\": 64, \"mlp_ratio\": 2.0, \"num_heads\": 4, "
     "\"depth\": 2, \"depth_single_blocks\": 2, \"axes_dim\": [4, 6, 6], \"cond_embed\": true, "
     "\"fused_qkv\": false, \"use_liger_rope\": true}"},
    {0},
};

static const hdi_model_preset pixel_presets[] = {
    {"mmdit-pixel-tiny", "{\"model_type\": \"mmdit_pixels\"}"},
    {0},
};

const hdi_model_family hdi_hunyuan_video = {
    .type = "hunyuan_video",
    .class_name = "HunyuanVideoTransformer3DModel",
    .config_bytes = sizeof(hdi_mmdit_config),
    .presets = hunyuan_presets,
    .read = read_hunyuan,
    .write = write_hunyuan,
    .describe = describe,
    .build = hdi_mmdit_build_stage,
    .match = hdi_mmdit_match,
    .layout_of = hdi_mmdit_hunyuan_layout,
};

const hdi_model_family hdi_open_sora_2 = {
    .type = "open_sora_2",
    .config_bytes = sizeof(hdi_mmdit_config),
    .presets = open_sora_presets,
    .read = read_open_sora,
    .write = write_open_sora,
    .describe = describe,
    .build = hdi_mmdit_build_stage,
    .match = hdi_mmdit_match,
    .layout_of = hdi_mmdit_open_sora_layout,
};

/* Small models of pixels, without an autoencoder and without published weights. */
const hdi_model_family hdi_mmdit_pixels = {
    .type = "mmdit_pixels",
    .config_bytes = sizeof(hdi_mmdit_config),
    .presets = pixel_presets,
    .read = read_pixels,
    .write = write_pixels,
    .describe = describe,
    .build = hdi_mmdit_build_stage,
    .match = hdi_mmdit_match,
};
