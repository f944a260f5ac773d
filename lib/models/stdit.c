/* STDiT3, the transformer of Open-Sora 1.2 and 1.3: spatial blocks, which attend within a frame, and
 * temporal blocks, which attend along a place (1.2) or in windows of places over all frames (1.3),
 * alternate; each also attends to the text. Layer 2n is spatial block n, layer 2n + 1 temporal block
 * n.
 *
 * Modulation tables have a row for each sequence at its time and, if frames are given by time 0
 * (1.2), another for each: `entries` rows. Frames that are given beside the latents (1.3) read the
 * caption that stands for none instead of the text. Where ranks share sequences they exchange heads, or
 * the places of a ring have whole frames in spatial blocks and whole positions, or windows, in temporal
 * ones. Between stages x, texts and both kinds of
 * conditioning travel as one tensor, so that the gradients of what blocks share take one path. */
#include "models/stdit.h"

#include "core/checked.h"
#include "ops/sequence.h"
#include "ops/tensor_axis.h"
#include "program/program.h"

#include <inttypes.h>

static hd_tensor finish(hdi_stdit_build *b, const hdi_stdit_stream *from)
{
    const hd_tensor x = hdi_stdit_all_rows(b, hdi_stdit_final_layer(b, from));
    const hd_patch_options options = hdi_stdit_patches(b, HD_PATCH_CHANNELS_LAST);
    if (b->stage->purpose == HD_PURPOSE_DENOISE)
        return hd_output(b->p, hd_unpatchify(b->p, x, &options), "velocity");
    const int64_t rows = b->stage->sequences * b->frames;
    hd_tensor weight = {0};
    if (b->stage->video.masked_frames)
        weight = hd_input(b->p, "loss_weight", HD_DTYPE_F32, 1, &rows);
    return hd_squared_error(
        b->p, hd_patches_to_frames(b->p, x, &options),
        hd_frame_rows(b->p, hdi_stdit_video(b, "target", b->stage->sequences), &options), weight);
}

/* x, text, modulation and time: rows of each, for one sequence. */
enum { PARTS = 4 };

static void boundary(const hdi_stdit_build *b, int64_t out[PARTS])
{
    out[0] = b->own;
    out[1] = b->text_rows;
    out[2] = 6 * b->kinds;
    out[3] = b->kinds;
}

static bool check_stage(const hdi_stdit_build *b, hd_tensor x)
{
    const hd_stage *stage = b->stage;
    const hd_video_shape *video = &stage->video;
    const int64_t layers = 2 * b->config->depth;
    const hd_tensor_info *info = hd_tensor_get(b->p, x);
    int64_t parts[PARTS], rows = 0;
    if (stage->purpose == HD_PURPOSE_GENERATE) {
        hd_program_fail(b->p, HD_ERROR_UNSUPPORTED,
                        "model stage: \"stdit3\" makes videos, it generates no tokens");
    } else if (stage->first_layer < 0 || stage->layers < 0 ||
               stage->first_layer > layers - stage->layers) {
        hd_program_fail(b->p, HD_ERROR_ARGUMENT,
                        "model stage: layers %d to %d, the model has %" PRId64, stage->first_layer,
                        stage->first_layer + stage->layers - 1, layers);
    } else if (stage->sequences < 1 || video->frames < 1 || video->height < 1 || video->width < 1 ||
               video->text < 1 || video->text > b->config->text_tokens) {
        hd_program_fail(b->p, HD_ERROR_ARGUMENT,
                        "model stage: %" PRId64 " videos of %" PRId64 " x %" PRId64 " x %" PRId64
                        " with %" PRId64 " text tokens; want at least one of each, at most %" PRId64
                        " text tokens",
                        stage->sequences, video->frames, video->height, video->width, video->text,
                        b->config->text_tokens);
    } else if ((stage->purpose == HD_PURPOSE_CONDITION && video->steps < 1) ||
               (stage->purpose >= HD_PURPOSE_CONDITION && stage->sequences != 1)) {
        hd_program_fail(b->p, HD_ERROR_ARGUMENT,
                        "model stage: %" PRId64 " videos, %" PRId64
                        " steps; want one video, and to make conditioning at least one step",
                        stage->sequences, video->steps);
    } else {
        boundary(b, parts);
        for (int i = 0; i < (stage->purpose == HD_PURPOSE_DENOISE ? 1 : PARTS); i++)
            rows += stage->sequences * parts[i];
        if (stage->first || stage->purpose == HD_PURPOSE_CONDITION ||
            (info && info->rank == 2 && info->dims[0] == rows &&
             info->dims[1] == b->config->hidden))
            return true;
        hd_program_fail(b->p, HD_ERROR_ARGUMENT,
                        "model stage: x is not what comes from the stage before, want [%" PRId64
                        ", %" PRId64 "]",
                        rows, b->config->hidden);
    }
    return false;
}

static bool begin(hd_program *p, const hdi_stdit_config *config, const hd_stage *stage, hd_tensor x,
                  hdi_stdit_build *out)
{
    const hd_video_shape *video = &stage->video;
    *out = (hdi_stdit_build){.p = p, .config = config, .stage = stage};
    out->frames = hdi_ceil_div(video->frames, config->patch[0]);
    out->height = hdi_ceil_div(video->height, config->patch[1]);
    out->width = hdi_ceil_div(video->width, config->patch[2]);
    out->places = out->height * out->width;
    out->tokens = out->frames * out->places;
    out->given = video->masked_frames && config->condition;
    out->kinds = video->masked_frames && !config->condition ? 2 : 1;
    out->text_rows = (out->given ? 2 : 1) * video->text;
    out->entries = out->kinds * stage->sequences;
    const int64_t band = config->window[0] * out->width; /* positions of a row of windows */
    out->video = (hdi_regroup_video){.sequences = stage->sequences,
                                     .frames = out->frames,
                                     .positions = out->places,
                                     .together = band > 0 ? band : 1};
    const bool is_cut = hdi_regroup_begin(p, &out->video, config->heads);
    hdi_stdit_cut(out, false);
    return is_cut && check_stage(out, x) &&
           hdi_sequence_begin(p, out->tokens, config->heads, true) &&
           hdi_tensor_begin(p, out->tokens, config->heads);
}

static void read_frame_entries(hdi_stdit_build *b)
{
    const int64_t frames = b->stage->sequences * b->frames;
    b->all_entries = hd_input(b->p, "frame_entries", HD_DTYPE_I32, 1, &frames);
    hdi_stdit_cut(b, b->by_position);
}

/* Where the stage's blocks begin: x, and what they share, made here or by others. */
static hd_tensor enter(hdi_stdit_build *b, hd_tensor x)
{
    const hd_stage *stage = b->stage;
    const int64_t ends = stage->sequences + 1;
    if (b->given ? stage->layers > 0 : b->kinds == 2 && (stage->layers || stage->last))
        read_frame_entries(b);
    if (stage->video.text_counts && stage->layers)
        b->text_offsets = hd_input(b->p, "text_offsets", HD_DTYPE_I32, 1, &ends);
    if (stage->purpose == HD_PURPOSE_DENOISE) {
        hdi_stdit_read_conditioning(b);
        return stage->first ? hdi_stdit_latents(b) : x;
    }
    if (stage->first) {
        hdi_stdit_declare_buffers(b);
        hdi_stdit_embed_time(b, stage->sequences);
        hdi_stdit_embed_text(b);
        return hdi_stdit_latents(b);
    }
    int64_t rows[PARTS];
    hd_tensor parts[PARTS];
    boundary(b, rows);
    hd_split_rows(b->p, x, stage->sequences, PARTS, rows, parts);
    b->text = parts[1];
    b->modulation = parts[2];
    b->time = parts[3];
    return parts[0];
}

static hd_tensor build(void *user, hd_program *p, const hd_stage *stage, hd_tensor x)
{
    hdi_stdit_build b;
    if (!begin(p, user, stage, x, &b)) return (hd_tensor){0};
    if (stage->purpose == HD_PURPOSE_CONDITION) {
        hdi_stdit_make_conditioning(&b);
        return (hd_tensor){0};
    }
    hdi_stdit_stream at = {.x = enter(&b, x)};
    for (int i = 0; i < stage->layers; i++)
        at = hdi_stdit_block(&b, stage->first_layer + i, &at);
    at = hdi_stdit_turn(&b, &at, false);
    if (stage->last) return finish(&b, &at);
    x = hdi_stdit_value(&b, &at);
    if (stage->purpose == HD_PURPOSE_DENOISE) return x;
    const hd_tensor parts[PARTS] = {x, b.text, b.modulation, b.time};
    return hd_join_rows(p, stage->sequences, PARTS, parts);
}

const hdi_model_family hdi_stdit3 = {.type = "stdit3",
                                     .class_name = "STDiT3",
                                     .config_bytes = sizeof(hdi_stdit_config),
                                     .presets = hdi_stdit_presets,
                                     .read = hdi_stdit_read,
                                     .write = hdi_stdit_write,
                                     .describe = hdi_stdit_describe,
                                     .build = build};
