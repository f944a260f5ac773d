/* STDiT3's configuration: the keys of the published config.json. */
#include "models/stdit.h"

#include "core/error.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

const hdi_model_preset hdi_stdit_presets[] = {
    {"open-sora-1.2-xl",
     "{\"model_type\": \"stdit3\", \"input_sq_size\": 512, \"in_channels\": 4, "
     "\"patch_size\": [1, 2, 2], \"hidden_size\": 1152, \"depth\": 28, \"num_heads\": 16, "
     "\"mlp_ratio\": 4.0, \"pred_sigma\": true, \"caption_channels\": 4096, "
     "\"model_max_length\": 300, \"qk_norm\": true}"},
    {"stdit3-tiny", "{\"model_type\": \"stdit3\", \"input_sq_size\": 512, \"in_channels\": 4, "
                    "\"patch_size\": [1, 2, 2], \"hidden_size\": 64, \"depth\": 2, "
                    "\"num_heads\": 4, \"mlp_ratio\": 2.0, \"pred_sigma\": true, "
                    "\"caption_channels\": 24, \"model_max_length\": 10, \"qk_norm\": true}"},
    {"open-sora-1.3-xl",
     "{\"model_type\": \"stdit3\", \"input_sq_size\": 512, \"in_channels\": 16, "
     "\"patch_size\": [1, 2, 2], \"hidden_size\": 1152, \"depth\": 28, \"num_heads\": 16, "
     "\"mlp_ratio\": 4.0, \"pred_sigma\": true, \"caption_channels\": 4096, "
     "\"model_max_length\": 300, \"qk_norm\": true, \"kernel_size\": [8, 8, -1], "
     "\"use_spatial_rope\": true}"},
    {"stdit3-v13-tiny",
     "{\"model_type\": \"stdit3\", \"input_sq_size\": 512, \"in_channels\": 4, "
     "\"patch_size\": [1, 2, 2], \"hidden_size\": 48, \"depth\": 2, \"num_heads\": 2, "
     "\"mlp_ratio\": 2.0, \"pred_sigma\": true, \"caption_channels\": 24, "
     "\"model_max_length\": 10, \"qk_norm\": true, \"kernel_size\": [3, 2, -1], "
     "\"use_spatial_rope\": true}"},
    {NULL, NULL},
};

/* "patch_size": [frames, height, width]. */
static hd_status read_patch(const json_t *object, int64_t out[3])
{
    const json_t *list = json_object_get(object, "patch_size");
    if (!list || json_is_null(list)) return HD_OK;
    char seen[HDI_JSON_TEXT];
    bool right = json_is_array(list) && json_array_size(list) == 3;
    for (size_t i = 0; i < 3 && right; i++) {
        const json_t *value = json_array_get(list, i);
        right = json_is_integer(value) && json_integer_value(value) > 0 &&
                json_integer_value(value) <= 1024;
        if (right) out[i] = json_integer_value(value);
    }
    if (right) return HD_OK;
    return hdi_error(HD_ERROR_CONFIG,
                     "model config: \"patch_size\" is %s, want a list of three integers from 1 to "
                     "1024: frames, height, width",
                     hdi_model_json_text(list, seen));
}

/* "kernel_size": [height, width, -1], Open-Sora 1.3's windows; it also has embedders of given frames,
 * which its config.json does not speak of. */
static hd_status read_windows(const json_t *object, hdi_stdit_config *out)
{
    const json_t *list = json_object_get(object, "kernel_size");
    char seen[HDI_JSON_TEXT];
    if (list && !json_is_null(list)) {
        bool right = json_is_array(list) && json_array_size(list) == 3 &&
                     json_integer_value(json_array_get(list, 2)) == -1;
        for (size_t i = 0; i < 2 && right; i++) {
            out->window[i] = json_integer_value(json_array_get(list, i));
            right = out->window[i] > 0 && out->window[i] <= INT32_MAX;
        }
        if (!right)
            return hdi_error(
                HD_ERROR_UNSUPPORTED,
                "model config: \"kernel_size\" is %s, want [height, width, -1]: windows "
                "of places over all frames",
                hdi_model_json_text(list, seen));
        out->condition = true;
    }
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "use_spatial_rope", &out->spatial_rope));
    if (out->spatial_rope && !out->window[0])
        return hdi_error(HD_ERROR_CONFIG, "model config: \"use_spatial_rope\" is true and there is "
                                          "no \"kernel_size\", want both or none");
    return hdi_model_read_bool(object, "x_embedder_cond", &out->condition);
}

/* Keys that would change the network's function, if they were not at these values. */
static hd_status refuse_variants(const json_t *object)
{
    const json_t *drop = json_object_get(object, "drop_path");
    char seen[HDI_JSON_TEXT];
    if (drop && !json_is_null(drop) && !(json_is_number(drop) && json_number_value(drop) == 0))
        return hdi_error(HD_ERROR_UNSUPPORTED, "model config: \"drop_path\" is %s, want 0",
                         hdi_model_json_text(drop, seen));
    HD_RETURN_IF_ERROR(hdi_model_require_bool(object, "skip_temporal", false));
    return hdi_model_require_bool(object, "skip_y_embedder", false);
}

static hd_status check(hdi_stdit_config *config)
{
    if (config->hidden % config->heads || config->hidden / config->heads % 2)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: \"hidden_size\" is %" PRId64
                         ", want a multiple of twice \"num_heads\", %" PRId64,
                         config->hidden, 2 * config->heads);
    if (config->window[0] && config->hidden / config->heads % 6)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: heads have %" PRId64
                         " columns, want a multiple of 6 for rotations on three axes",
                         config->hidden / config->heads);
    if (config->hidden % 4)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: \"hidden_size\" is %" PRId64 ", want a multiple of 4",
                         config->hidden);
    const double inner = (double)config->hidden * config->mlp_ratio;
    if (!(inner >= 1) || inner > INT32_MAX)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: \"mlp_ratio\" is %g, want \"hidden_size\" times it from 1 "
                         "to 2147483647",
                         config->mlp_ratio);
    config->inner = (int64_t)inner;
    return HD_OK;
}

hd_status hdi_stdit_read(const json_t *object, void *config)
{
    hdi_stdit_config *out = config;
    *out = (hdi_stdit_config){.channels = 4,
                              .text_columns = 4096,
                              .text_tokens = 300,
                              .patch = {1, 2, 2},
                              .square = 512,
                              .mlp_ratio = 4,
                              .sigma = true};
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "depth", true, &out->depth));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "hidden_size", true, &out->hidden));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "num_heads", true, &out->heads));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "in_channels", false, &out->channels));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "caption_channels", false, &out->text_columns));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "model_max_length", false, &out->text_tokens));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "input_sq_size", false, &out->square));
    HD_RETURN_IF_ERROR(hdi_model_read_positive(object, "mlp_ratio", &out->mlp_ratio));
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "pred_sigma", &out->sigma));
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "qk_norm", &out->qk_norm));
    HD_RETURN_IF_ERROR(read_patch(object, out->patch));
    HD_RETURN_IF_ERROR(read_windows(object, out));
    HD_RETURN_IF_ERROR(refuse_variants(object));
    return check(out);
}

void hdi_stdit_write(const void *config, hdi_text *out)
{
    const hdi_stdit_config *from = config;
    hdi_text_printf(out,
                    "{\n  \"model_type\": \"stdit3\",\n  \"input_sq_size\": %" PRId64
                    ",\n  \"in_channels\": %" PRId64 ",\n  \"patch_size\": [%" PRId64 ", %" PRId64
                    ", %" PRId64 "],\n  \"hidden_size\": %" PRId64 ",\n  \"depth\": %" PRId64
                    ",\n  \"num_heads\": %" PRId64 ",\n  \"mlp_ratio\": ",
                    from->square, from->channels, from->patch[0], from->patch[1], from->patch[2],
                    from->hidden, from->depth, from->heads);
    hdi_text_append_float(out, from->mlp_ratio);
    hdi_text_printf(out,
                    ",\n  \"pred_sigma\": %s,\n  \"caption_channels\": %" PRId64
                    ",\n  \"model_max_length\": %" PRId64 ",\n  \"qk_norm\": %s",
                    from->sigma ? "true" : "false", from->text_columns, from->text_tokens,
                    from->qk_norm ? "true" : "false");
    if (from->window[0])
        hdi_text_printf(out,
                        ",\n  \"kernel_size\": [%" PRId64 ", %" PRId64
                        ", -1],\n  \"use_spatial_rope\": %s",
                        from->window[0], from->window[1], from->spatial_rope ? "true" : "false");
    if (from->condition != (from->window[0] > 0))
        hdi_text_printf(out, ",\n  \"x_embedder_cond\": %s", from->condition ? "true" : "false");
    hdi_text_printf(out, "\n}\n");
}

void hdi_stdit_describe(const void *config, hdi_model_facts *out)
{
    const hdi_stdit_config *from = config;
    out->layers = 2 * from->depth;
    out->hidden = from->hidden;
    out->is_video = true;
    out->video = (hd_video_model){
        .channels = from->channels,
        .patch = {from->patch[0], from->patch[1], from->patch[2]},
        .compression = {4, HDI_STDIT_COMPRESSION, HDI_STDIT_COMPRESSION},
        .text_columns = from->text_columns,
        .text_tokens = from->text_tokens,
        .condition_channels = from->condition ? 2 * from->channels : 0,
        .condition_masks = from->condition ? from->channels : 0,
        .given_by_mask = from->condition,
        .fps = true,
        .frame_times = !from->condition,
        .text_packed = true,
        .towards_data = true,
        .null_text = HDI_STDIT_NULL_TEXT,
        .null_text_std = 1 / sqrt((double)from->text_columns),
    };
}
