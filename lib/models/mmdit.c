/* A stage of an MMDiT: what stands before, between and after its blocks. */
#include "models/mmdit.h"
#include "ops/sequence.h"
#include "ops/tensor_axis.h"

#include <inttypes.h>

static bool check_stage(hdi_mmdit_build *b, hd_tensor x)
{
    const hdi_mmdit_config *config = b->config;
    const hd_stage *stage = b->stage;
    const hd_video_shape *video = &stage->video;
    const int64_t layers = config->double_blocks + config->single_blocks;
    const bool samples =
        stage->purpose == HD_PURPOSE_CONDITION || stage->purpose == HD_PURPOSE_DENOISE;
    const hd_tensor_info *info = hd_tensor_get(b->p, x);
    const int64_t rows = stage->sequences * (b->own + b->text + !samples);
    if (stage->purpose == HD_PURPOSE_GENERATE)
        hd_program_fail(b->p, HD_ERROR_ARGUMENT,
                        "model stage: to generate tokens, want a model of tokens");
    else if (stage->first_layer < 0 || stage->layers < 0 ||
             stage->first_layer > layers - stage->layers)
        hd_program_fail(b->p, HD_ERROR_ARGUMENT,
                        "model stage: layers %d to %d, the model has %" PRId64, stage->first_layer,
                        stage->first_layer + stage->layers - 1, layers);
    else if (stage->sequences < 1 || b->image < 1 || b->text < 1 || b->text > config->text_tokens ||
             (samples && (stage->sequences != 1 || video->text_counts)) ||
             (stage->purpose == HD_PURPOSE_CONDITION && video->steps < 1))
        hd_program_fail(b->p, HD_ERROR_ARGUMENT,
                        "model stage: %" PRId64 " sequences of [%" PRId64 ", %" PRId64 ", %" PRId64
                        "] latents and %" PRId64 " text tokens%s, %" PRId64
                        " steps; want at least one of each, at most %" PRId64
                        " text tokens, and to sample one sequence of all its text tokens",
                        stage->sequences, video->frames, video->height, video->width, video->text,
                        video->text_counts ? " or fewer" : "", video->steps, config->text_tokens);
    else if (stage->purpose != HD_PURPOSE_CONDITION && !stage->first &&
             (!info || info->rank != 2 || info->dims[0] != rows || info->dims[1] != config->hidden))
        hd_program_fail(b->p, HD_ERROR_ARGUMENT,
                        "model stage: x is not what comes from the stage before, want [%" PRId64
                        ", %" PRId64 "]",
                        rows, config->hidden);
    else
        return true;
    return false;
}

static bool begin(hdi_mmdit_build *b, hd_tensor x)
{
    const hd_video_shape *video = &b->stage->video;
    const int64_t sizes[] = {video->frames, video->height, video->width};
    b->image = 1;
    for (int i = 0; i < 3; i++) {
        b->grid[i] = sizes[i] < 1 ? 0 : (sizes[i] + b->config->patch[i] - 1) / b->config->patch[i];
        b->image *= b->grid[i];
    }
    b->text = video->text;
    b->shared = hdi_sequence_own_tokens(b->p, b->image);
    b->own = hdi_tensor_own_tokens(b->p, b->shared);
    b->entries = b->stage->purpose == HD_PURPOSE_CONDITION ? video->steps : b->stage->sequences;
    if (!check_stage(b, x) || !hdi_sequence_begin(b->p, b->image, b->config->heads, true) ||
        !hdi_tensor_begin(b->p, b->image, b->config->heads))
        return false;
    if (hd_mesh_ring(b->p->mesh) > b->text) {
        hd_program_fail(b->p, HD_ERROR_UNSUPPORTED,
                        "layout.ring is %d, want at most %" PRId64
                        ", the text's tokens, of which every place of the ring attends some",
                        hd_mesh_ring(b->p->mesh), b->text);
        return false;
    }
    if (video->text_counts && !b->config->text_first) {
        b->text_counts = hd_input(b->p, "text_counts", HD_DTYPE_I32, 1, &b->stage->sequences);
        b->joint_counts = hd_raise_counts(b->p, b->text_counts, b->image);
    }
    return true;
}

/* This rank's of the image's rows, and all ranks'. */
static hd_tensor own_rows(hdi_mmdit_build *b, hd_tensor x, int64_t sequences)
{
    const hd_tensor shared = hdi_sequence_own_rows(b->p, x, sequences, b->image);
    return hdi_tensor_own_rows(b->p, shared, sequences, b->shared);
}

static hd_tensor all_rows(hdi_mmdit_build *b, hd_tensor x)
{
    const int64_t sequences = b->stage->sequences;
    return hdi_sequence_all_rows(b->p, hdi_tensor_whole_rows(b->p, x, sequences, b->shared),
                                 sequences, b->image);
}

static hd_patch_options patches(const hdi_mmdit_build *b, int64_t channels)
{
    const hd_video_shape *video = &b->stage->video;
    const int64_t *patch = b->config->patch;
    return (hd_patch_options){.sequences = b->stage->sequences,
                              .channels = channels,
                              .frames = video->frames,
                              .height = video->height,
                              .width = video->width,
                              .patch = {patch[0], patch[1], patch[2]}};
}

static hd_tensor video_input(hdi_mmdit_build *b, const char *name, int64_t channels)
{
    const hd_video_shape *video = &b->stage->video;
    const int64_t dims[] = {b->stage->sequences, channels, video->frames, video->height,
                            video->width};
    return hd_input(b->p, name, HD_DTYPE_F32, 5, dims);
}

/* Latents as rows, and to them the given frames: none given is zeros, of which the bias is left. */
static hd_tensor image_rows(hdi_mmdit_build *b)
{
    const hdi_mmdit_config *config = b->config;
    hd_patch_options cut = patches(b, config->channels);
    hd_tensor x = hd_patchify(b->p, video_input(b, "latents", config->channels), &cut);
    const int64_t sequences = b->stage->sequences;
    x = own_rows(b, x, sequences);
    x = hdi_mmdit_linear(b, x, "img_in.proj", config->hidden);
    if (config->positions) x = hd_add_rows(b->p, x, own_rows(b, hdi_mmdit_positions(b), 1));
    if (!config->condition_channels) return x;
    const hd_tensor bias = hdi_mmdit_vector(b, "cond_in.bias", HD_INIT_ZEROS, 2, config->hidden);
    x = hd_add_rows(b->p, x, bias);
    if (!b->stage->video.masked_frames) return x;
    cut = patches(b, config->condition_channels);
    const hd_tensor given = own_rows(
        b, hd_patchify(b->p, video_input(b, "condition", config->condition_channels), &cut),
        sequences);
    hdi_mmdit_layer layer;
    hdi_mmdit_layer_of(b, "cond_in", 1, config->hidden, &layer);
    layer.options.bias = false;
    layer.options.std = -1;
    layer.options.add = x;
    return hd_linear(b->p, given, &layer.options);
}

/* Streams in their order as joined rows, and, where rows travel in training, `more`: the
 * conditioning. */
static hd_tensor join(hdi_mmdit_build *b, int parts, hdi_mmdit_rows *rows, hd_tensor more)
{
    hd_tensor x[3];
    for (int i = 0; i < parts; i++)
        x[i] = hdi_mmdit_sum(b->p, &rows[i]);
    if (more.id) x[parts++] = more;
    return parts == 1 ? x[0] : hd_join_rows(b->p, b->stage->sequences, parts, x);
}

static void split(hdi_mmdit_build *b, hd_tensor x, int parts, hdi_mmdit_rows *rows)
{
    const int64_t first = b->config->text_first ? b->text : b->own;
    const bool carries = b->stage->purpose != HD_PURPOSE_DENOISE;
    int64_t tokens[3] = {first, b->own + b->text - first, 1};
    hd_tensor out[3] = {{0}};
    if (parts == 1) {
        tokens[0] = b->own + b->text;
        tokens[1] = 1;
    }
    if (parts == 1 && !carries)
        out[0] = x;
    else
        hd_split_rows(b->p, x, b->stage->sequences, parts + carries, tokens, out);
    for (int i = 0; i < parts; i++)
        rows[i] = (hdi_mmdit_rows){.x = out[i]};
    if (carries) b->vector = out[parts];
}

static void start(hdi_mmdit_build *b, hdi_mmdit_rows *rows)
{
    const hd_purpose purpose = b->stage->purpose;
    const int image = hdi_mmdit_image(b->config);
    const int64_t dims[] = {b->text, b->config->hidden};
    if (purpose == HD_PURPOSE_DENOISE)
        rows[1 - image].x = hd_input(b->p, "text_refined", b->p->dtype, 2, dims);
    else
        rows[1 - image].x = hdi_mmdit_text(b);
    if (purpose == HD_PURPOSE_CONDITION)
        hd_output(b->p, rows[1 - image].x, "text_refined");
    else
        rows[image].x = image_rows(b);
}

/* Velocity of the image's rows, as patches. */
static hd_tensor finish(hdi_mmdit_build *b, hdi_mmdit_rows *joined)
{
    const hdi_mmdit_config *config = b->config;
    const int64_t hidden = config->hidden;
    const hd_tensor table = hdi_mmdit_modulation(b, "final_layer.adaLN_modulation.1", 2);
    if (b->stage->purpose == HD_PURPOSE_CONDITION) return (hd_tensor){0};
    const hd_modulation by = {
        .table = table, .rows_per_group = b->own, .shift = 0, .scale = hidden, .gate = -1};
    const int image = hdi_mmdit_image(config);
    int64_t tokens[] = {b->text, b->text};
    tokens[image] = b->own;
    hd_tensor parts[2];
    hd_split_rows(b->p, hdi_mmdit_sum(b->p, joined), b->stage->sequences, 2, tokens, parts);
    hdi_mmdit_layer layer;
    hdi_mmdit_layer_of(b, "final_layer.linear", hidden,
                       config->channels * config->patch[0] * config->patch[1] * config->patch[2],
                       &layer);
    layer.options.std = -1;
    const hd_tensor x =
        hd_linear(b->p, hd_modulated_norm(b->p, parts[image], &by, 1e-6), &layer.options);
    return all_rows(b, x);
}

static hd_tensor result(hdi_mmdit_build *b, hd_tensor x)
{
    const int64_t channels = b->config->channels;
    const hd_patch_options cut = patches(b, channels);
    if (b->stage->purpose == HD_PURPOSE_CONDITION) return (hd_tensor){0};
    if (b->stage->purpose == HD_PURPOSE_DENOISE)
        return hd_output(b->p, hd_unpatchify(b->p, x, &cut), "velocity");
    const int64_t frames = b->stage->sequences * b->grid[0];
    hd_tensor weight = {0};
    if (b->stage->video.masked_frames)
        weight = hd_input(b->p, "loss_weight", HD_DTYPE_F32, 1, &frames);
    return hd_squared_error(b->p, hd_patches_to_frames(b->p, x, &cut),
                            hd_frame_rows(b->p, video_input(b, "target", channels), &cut), weight);
}

hd_tensor hdi_mmdit_build_stage(void *user, hd_program *program, const hd_stage *stage, hd_tensor x)
{
    hdi_mmdit_build build = {.p = program, .config = user, .stage = stage}, *b = &build;
    if (!begin(b, x)) return (hd_tensor){0};
    const int doubles = (int)b->config->double_blocks;
    const bool conditions = stage->purpose == HD_PURPOSE_CONDITION;
    hdi_mmdit_rows rows[2] = {0};
    bool joined = !stage->first && stage->first_layer >= doubles;
    if (!conditions && !stage->first) split(b, x, joined ? 1 : 2, rows);
    if (conditions || (stage->first && stage->purpose != HD_PURPOSE_DENOISE))
        b->vector = hdi_mmdit_conditioning(b);
    if (stage->first) start(b, rows);
    const int end = stage->first_layer + stage->layers;
    for (int i = stage->first_layer; i < end && i < doubles; i++)
        hdi_mmdit_double_block(b, i, rows);
    if (!joined && !conditions && (end > doubles || stage->last)) {
        rows[0] = (hdi_mmdit_rows){.x = join(b, 2, rows, (hd_tensor){0})};
        joined = true;
    }
    for (int i = stage->first_layer > doubles ? stage->first_layer : doubles; i < end; i++)
        hdi_mmdit_single_block(b, i - doubles, &rows[0]);
    if (stage->last) return result(b, finish(b, &rows[0]));
    return conditions ? (hd_tensor){0} : join(b, joined ? 1 : 2, rows, b->vector);
}
