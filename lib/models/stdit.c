/* STDiT3, the transformer of Open-Sora 1.2: spatial blocks, which attend within a frame, and temporal
 * blocks, which attend along a place, alternate; each also attends to the text. Layer 2n is spatial
 * block n, layer 2n + 1 temporal block n.
 *
 * Modulation tables have a row for each sequence at its time and, if frames are given, another for
 * each at time 0: `entries` rows. Between stages x, text and both kinds of conditioning travel as
 * one tensor, so that the gradients of what blocks share take one path. */
#include <heddle/diffusion.h>

#include "core/checked.h"
#include "models/stdit.h"
#include "program/program.h"

#include <inttypes.h>
#include <math.h>

typedef struct builder {
    hd_program *p;
    const hdi_stdit_config *config;
    const hd_stage *stage;
    int64_t frames, height, width; /* in patches */
    int64_t places, tokens;        /* of a frame, of a sequence */
    int64_t kinds, entries;        /* 1 or 2, with given frames; times sequences */
    hd_tensor frame_entries, text_offsets;
    hd_tensor text;       /* [sequences * text, hidden], packed */
    hd_tensor modulation; /* [entries * 6, hidden], for all blocks */
    hd_tensor time;       /* [entries, hidden], for the final layer */
} builder;

/* The value of x + gate * delta, or x if delta is invalid: left to the norm that reads it. */
typedef struct stream {
    hd_tensor x, delta;
    hd_modulation gate;
} stream;

static hd_tensor linear(builder *b, hd_tensor x, const char *name, int64_t outputs)
{
    return hd_linear(b->p, x, &(hd_linear_options){.name = name, .outputs = outputs, .bias = true});
}

static hd_tensor rows_of(builder *b, hd_tensor x, int64_t rows, int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    return hd_reshape(b->p, x, 2, dims);
}

static hd_patch_options patches(const builder *b, hd_patch_order order)
{
    const hd_video_shape *video = &b->stage->video;
    const int64_t *patch = b->config->patch;
    return (hd_patch_options){.sequences = b->stage->sequences,
                              .channels = b->config->channels,
                              .frames = video->frames,
                              .height = video->height,
                              .width = video->width,
                              .patch = {patch[0], patch[1], patch[2]},
                              .order = order};
}

static hd_tensor video_input(builder *b, const char *name)
{
    const hd_video_shape *video = &b->stage->video;
    const int64_t dims[] = {b->stage->sequences, b->config->channels, video->frames, video->height,
                            video->width};
    return hd_input(b->p, name, HD_DTYPE_F32, 5, dims);
}

/* Buffers of the published files, which no op reads: they come along when weights are loaded and
 * saved. Samplers and text dropout read the first from there. */
static void declare_buffers(builder *b)
{
    const hdi_stdit_config *c = b->config;
    hd_parameter(b->p, &(hd_parameter_options){.name = "y_embedder.y_embedding",
                                               .rank = 2,
                                               .dims = {c->text_tokens, c->text_columns},
                                               .init = HD_INIT_NORMAL,
                                               .std = 1 / sqrt((double)c->text_columns),
                                               .frozen = true});
    hd_parameter(b->p, &(hd_parameter_options){.name = "rope.freqs",
                                               .rank = 1,
                                               .dims = {c->hidden / c->heads / 2},
                                               .init = HD_INIT_ROTARY,
                                               .frozen = true});
}

static hd_tensor time_mlp(builder *b, hd_tensor x, const char *first, const char *second)
{
    const int64_t hidden = b->config->hidden;
    return linear(b, hd_silu(b->p, linear(b, x, first, hidden)), second, hidden);
}

static hd_tensor sinusoid(builder *b, hd_tensor x, double scale)
{
    return hd_sinusoid(b->p, x, &(hd_sinusoid_options){.columns = 256, .scale = scale});
}

/* Embeddings of `times` times, those of all sequences at time 0 below them if frames are given; and
 * the modulation rows that the blocks share, six for each. */
static void embed_time(builder *b, int64_t times)
{
    hd_program *p = b->p;
    const int64_t sequences = b->stage->sequences, hidden = b->config->hidden;
    const bool given = b->kinds == 2;
    hd_tensor t = sinusoid(b, hd_input(p, "time", HD_DTYPE_F32, 1, &times), 1000), zero = {0};
    if (given) {
        const hd_tensor both[] = {t, sinusoid(b, hdi_stdit_zeros(p, 1), 1)};
        t = hd_join_rows(p, 1, 2, both);
    }
    t = time_mlp(b, t, "t_embedder.mlp.0", "t_embedder.mlp.2");
    if (given) {
        const int64_t rows[] = {times, 1};
        hd_tensor parts[2];
        hd_split_rows(p, t, 1, 2, rows, parts);
        t = parts[0];
        zero = parts[1];
    }
    const hd_tensor fps =
        time_mlp(b, sinusoid(b, hd_input(p, "fps", HD_DTYPE_F32, 1, &sequences), 1),
                 "fps_embedder.mlp.0", "fps_embedder.mlp.2");
    b->time = hd_add_rows(p, t, fps);
    if (given) {
        const hd_tensor both[] = {b->time, hd_add_rows(p, fps, zero)};
        b->time = hd_join_rows(p, 1, 2, both);
        times += sequences;
    }
    b->modulation =
        rows_of(b, linear(b, hd_silu(p, b->time), "t_block.1", 6 * hidden), 6 * times, hidden);
}

static void embed_text(builder *b)
{
    const hdi_stdit_config *c = b->config;
    const int64_t dims[] = {b->stage->sequences * b->stage->video.text, c->text_columns};
    const hd_tensor text = hd_cast(b->p, hd_input(b->p, "text", HD_DTYPE_F32, 2, dims));
    b->text = hd_gelu_mlp(
        b->p, text,
        &(hd_linear_options){.name = "y_embedder.y_proj.fc1", .outputs = c->hidden, .bias = true},
        &(hd_linear_options){.name = "y_embedder.y_proj.fc2", .outputs = c->hidden, .bias = true});
}

static hd_tensor embed_latents(builder *b)
{
    const hdi_stdit_config *c = b->config;
    const hd_video_shape *video = &b->stage->video;
    const hd_patch_options options = patches(b, HD_PATCH_CHANNELS_FIRST);
    hd_tensor x = hd_patchify(b->p, video_input(b, "latents"), &options);
    x = hd_linear(b->p, x,
                  &(hd_linear_options){.name = "x_embedder.proj",
                                       .outputs = c->hidden,
                                       .bias = true,
                                       .parts = 1,
                                       .part = {{.name = "x_embedder.proj",
                                                 .outputs = c->hidden,
                                                 .file_rank = 5,
                                                 .file_dims = {c->hidden, c->channels, c->patch[0],
                                                               c->patch[1], c->patch[2]}}}});
    const int64_t tall =
        video->pixel_height ? video->pixel_height : video->height * HDI_STDIT_COMPRESSION;
    const int64_t wide =
        video->pixel_width ? video->pixel_width : video->width * HDI_STDIT_COMPRESSION;
    const hdi_stdit_places places = {b->height, b->width, c->hidden,
                                     sqrt((double)tall * (double)wide) / (double)c->square};
    return hd_add_rows(b->p, x, hdi_stdit_positions(b->p, &places));
}

/* Groups of rows that a modulation table's rows stand for. */
static hd_modulation modulation(const builder *b, hd_tensor table)
{
    return (hd_modulation){.table = table,
                           .index = b->frame_entries,
                           .rows_per_group = b->kinds == 2 ? b->places : b->tokens,
                           .shift = -1,
                           .scale = -1,
                           .gate = -1};
}

static hd_tensor norm(builder *b, const stream *from, const hd_modulation *by, hd_tensor *sum)
{
    *sum = from->x;
    return from->delta.id
               ? hd_gated_modulated_norm(b->p, from->x, from->delta, &from->gate, by, 0, sum)
               : hd_modulated_norm(b->p, from->x, by, 0);
}

static hd_tensor value_of(builder *b, const stream *from)
{
    return from->delta.id ? hd_gated_add(b->p, from->x, from->delta, &from->gate) : from->x;
}

static hd_tensor norm_weight(builder *b, const char *name)
{
    if (!b->config->qk_norm) return (hd_tensor){0};
    return hd_parameter(b->p,
                        &(hd_parameter_options){.name = name,
                                                .rank = 1,
                                                .dims = {b->config->hidden / b->config->heads},
                                                .init = HD_INIT_ONES});
}

/* Within frames, or along places: rows of a sequence lie frame by frame. */
static hd_tensor self_attention(builder *b, hd_tensor x, bool temporal)
{
    const hdi_stdit_config *c = b->config;
    const int64_t head_dim = c->hidden / c->heads;
    hd_qkv_stream qkv = {.qkv = linear(b, x, "attn.qkv", 3 * c->hidden),
                         .query_norm = norm_weight(b, "attn.q_norm.weight"),
                         .key_norm = norm_weight(b, "attn.k_norm.weight"),
                         .tokens = b->tokens};
    if (temporal)
        qkv.rope = (hd_rope_axes){.axes = 1,
                                  .dims = {head_dim},
                                  .length = {b->frames},
                                  .stride = {b->places},
                                  .theta = 10000,
                                  .pairing = HD_ROPE_INTERLEAVED};
    x = temporal || c->qk_norm
            ? hd_joint_qkv(b->p, b->stage->sequences, c->heads, head_dim, 0, 1, &qkv)
            : qkv.qkv;
    x = hd_attention(b->p, x,
                     &(hd_attention_options){.heads = c->heads,
                                             .head_dim = head_dim,
                                             .tokens = temporal ? b->frames : b->places,
                                             .interleave = temporal ? b->places : 1});
    return linear(b, x, "attn.proj", c->hidden);
}

static hd_tensor text_attention(builder *b, hd_tensor x)
{
    const int64_t hidden = b->config->hidden, heads = b->config->heads, text = b->stage->video.text;
    x = hd_cross_attention(
        b->p, linear(b, x, "cross_attn.q_linear", hidden),
        linear(b, b->text, "cross_attn.kv_linear", 2 * hidden), b->text_offsets,
        &(hd_cross_attention_options){
            .heads = heads, .head_dim = hidden / heads, .tokens = b->tokens, .most_keys = text});
    return linear(b, x, "cross_attn.proj", hidden);
}

static hd_tensor mlp(builder *b, hd_tensor x)
{
    return hd_gelu_mlp(
        b->p, x, &(hd_linear_options){.name = "mlp.fc1", .outputs = b->config->inner, .bias = true},
        &(hd_linear_options){.name = "mlp.fc2", .outputs = b->config->hidden, .bias = true});
}

/* Learned rows added to each run of as many of `rows`, then `count` rows side by side. */
static hd_tensor table_of(builder *b, hd_tensor rows, const char *name, int64_t count)
{
    const int64_t hidden = b->config->hidden;
    const hd_tensor learned =
        hd_parameter(b->p, &(hd_parameter_options){.name = name,
                                                   .rank = 2,
                                                   .dims = {count, hidden},
                                                   .init = HD_INIT_NORMAL,
                                                   .std = 1 / sqrt((double)hidden)});
    return rows_of(b, hd_add_rows(b->p, rows, learned), b->entries, count * hidden);
}

static stream block(builder *b, int layer, const stream *from)
{
    const int64_t hidden = b->config->hidden;
    const bool temporal = layer % 2;
    hd_scope_begin(b->p, "%s_blocks.%d", temporal ? "temporal" : "spatial", layer / 2);
    if (b->stage->recompute) hd_scope_recompute(b->p);
    hd_modulation by = modulation(b, table_of(b, b->modulation, "scale_shift_table", 6));
    hd_modulation gate = by;
    by.shift = 0;
    by.scale = hidden;
    gate.gate = 2 * hidden;
    hd_tensor x, h = norm(b, from, &by, &x);
    x = hd_gated_add(b->p, x, self_attention(b, h, temporal), &gate);
    x = hd_add(b->p, x, text_attention(b, x));
    by.shift = 3 * hidden;
    by.scale = 4 * hidden;
    gate.gate = 5 * hidden;
    h = hd_modulated_norm(b->p, x, &by, 0);
    stream out = {.x = x, .delta = mlp(b, h), .gate = gate};
    /* Where blocks run again in the backward, one tensor is kept for each, not three. */
    if (b->stage->recompute) out = (stream){.x = value_of(b, &out)};
    hd_scope_end(b->p);
    return out;
}

/* Given frames are normed and modulated twice, as the model was trained: with their sequence's time
 * and then, what came out, with time 0. Both are made of all frames; the selection takes the first
 * away from given frames, exactly, and adds the second there. */
static hd_tensor modulate_given_again(builder *b, hd_tensor h, const hd_modulation *by)
{
    const int64_t hidden = b->config->hidden;
    const hd_tensor again = hd_modulated_norm(b->p, h, by, 0);
    hd_modulation select = modulation(b, hdi_stdit_selection(b->p, b->stage->sequences, hidden));
    select.gate = 0;
    h = hd_gated_add(b->p, h, h, &select);
    select.gate = hidden;
    return hd_gated_add(b->p, h, again, &select);
}

static hd_tensor final_layer(builder *b, const stream *from)
{
    const hdi_stdit_config *c = b->config;
    const hd_tensor twice[] = {b->time, b->time};
    const hd_tensor rows = hd_join_rows(b->p, b->entries, 2, twice);
    hd_modulation given = modulation(b, table_of(b, rows, "final_layer.scale_shift_table", 2));
    given.shift = 0;
    given.scale = c->hidden;
    hd_modulation by = given; /* all frames at their sequence's time */
    by.index = (hd_tensor){0};
    by.rows_per_group = b->tokens;
    hd_tensor x, h = norm(b, from, &by, &x);
    if (b->kinds == 2) h = modulate_given_again(b, h, &given);
    const int64_t channels = c->channels * (c->sigma ? 2 : 1);
    return linear(b, h, "final_layer.linear", c->patch[0] * c->patch[1] * c->patch[2] * channels);
}

static hd_tensor finish(builder *b, const stream *from)
{
    const hd_tensor x = final_layer(b, from);
    const hd_patch_options options = patches(b, HD_PATCH_CHANNELS_LAST);
    if (b->stage->purpose == HD_PURPOSE_DENOISE)
        return hd_output(b->p, hd_unpatchify(b->p, x, &options), "velocity");
    const int64_t rows = b->stage->sequences * b->frames;
    hd_tensor weight = {0};
    if (b->kinds == 2) weight = hd_input(b->p, "loss_weight", HD_DTYPE_F32, 1, &rows);
    return hd_squared_error(b->p, hd_patches_to_frames(b->p, x, &options),
                            hd_frame_rows(b->p, video_input(b, "target"), &options), weight);
}

/* What one step reads, and what the condition program makes of it: `steps` times as large where it
 * depends on the step. */
static hd_tensor conditioning(builder *b, const char *name, int64_t rows)
{
    const int64_t dims[] = {rows, b->config->hidden};
    return hd_input(b->p, name, b->p->dtype, 2, dims);
}

static hd_tensor with_given(builder *b, const char *name, const char *given, int64_t rows)
{
    const hd_tensor both[] = {conditioning(b, name, rows),
                              b->kinds == 2 ? conditioning(b, given, rows) : (hd_tensor){0}};
    return b->kinds == 2 ? hd_join_rows(b->p, 1, 2, both) : both[0];
}

static void read_conditioning(builder *b)
{
    if (b->stage->layers) {
        b->modulation = with_given(b, "modulation", "modulation_given", 6);
        b->text = conditioning(b, "text_rows", b->stage->video.text);
    }
    if (b->stage->last) b->time = with_given(b, "time_embedding", "time_embedding_given", 1);
}

static void put_out(builder *b, hd_tensor x, int64_t rows, const char *name, const char *given)
{
    if (b->kinds == 2) {
        const int64_t tokens[] = {b->stage->video.steps * rows, rows};
        hd_tensor parts[2];
        hd_split_rows(b->p, x, 1, 2, tokens, parts);
        hd_output(b->p, parts[1], given);
        x = parts[0];
    }
    hd_output(b->p, x, name);
}

static void make_conditioning(builder *b)
{
    if (!b->stage->layers && !b->stage->last) return;
    embed_time(b, b->stage->video.steps);
    if (b->stage->layers) {
        put_out(b, b->modulation, 6, "modulation", "modulation_given");
        embed_text(b);
        hd_output(b->p, b->text, "text_rows");
    }
    if (b->stage->last) put_out(b, b->time, 1, "time_embedding", "time_embedding_given");
}

/* x, text, modulation and time: rows of each, for one sequence. */
enum { PARTS = 4 };

static void boundary(const builder *b, int64_t out[PARTS])
{
    out[0] = b->tokens;
    out[1] = b->stage->video.text;
    out[2] = 6 * b->kinds;
    out[3] = b->kinds;
}

static bool check_stage(const builder *b, hd_tensor x)
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
                  builder *out)
{
    const hd_video_shape *video = &stage->video;
    *out = (builder){.p = p, .config = config, .stage = stage};
    out->frames = hdi_ceil_div(video->frames, config->patch[0]);
    out->height = hdi_ceil_div(video->height, config->patch[1]);
    out->width = hdi_ceil_div(video->width, config->patch[2]);
    out->places = out->height * out->width;
    out->tokens = out->frames * out->places;
    out->kinds = video->masked_frames ? 2 : 1;
    out->entries = out->kinds * stage->sequences;
    return check_stage(out, x);
}

/* Where the stage's blocks begin: x, and what they share, made here or by others. */
static hd_tensor enter(builder *b, hd_tensor x)
{
    const hd_stage *stage = b->stage;
    const int64_t frames = stage->sequences * b->frames, ends = stage->sequences + 1;
    if (b->kinds == 2 && (stage->layers || stage->last))
        b->frame_entries = hd_input(b->p, "frame_entries", HD_DTYPE_I32, 1, &frames);
    if (stage->video.text_counts && stage->layers)
        b->text_offsets = hd_input(b->p, "text_offsets", HD_DTYPE_I32, 1, &ends);
    if (stage->purpose == HD_PURPOSE_DENOISE) {
        read_conditioning(b);
        return stage->first ? embed_latents(b) : x;
    }
    if (stage->first) {
        declare_buffers(b);
        embed_time(b, stage->sequences);
        embed_text(b);
        return embed_latents(b);
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
    builder b;
    if (!begin(p, user, stage, x, &b)) return (hd_tensor){0};
    if (stage->purpose == HD_PURPOSE_CONDITION) {
        make_conditioning(&b);
        return (hd_tensor){0};
    }
    stream at = {.x = enter(&b, x)};
    for (int i = 0; i < stage->layers; i++)
        at = block(&b, stage->first_layer + i, &at);
    if (stage->last) return finish(&b, &at);
    x = value_of(&b, &at);
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
