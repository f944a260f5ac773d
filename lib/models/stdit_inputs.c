/* What STDiT3 makes of its inputs before the blocks: rows of latents, of text and of times. */
#include "models/stdit.h"
#include "program/program.h"

#include <math.h>
#include <string.h>

hd_tensor hdi_stdit_linear(hdi_stdit_build *b, hd_tensor x, const char *name, int64_t outputs)
{
    return hd_linear(b->p, x, &(hd_linear_options){.name = name, .outputs = outputs, .bias = true});
}

hd_tensor hdi_stdit_rows(hdi_stdit_build *b, hd_tensor x, int64_t rows, int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    return hd_reshape(b->p, x, 2, dims);
}

hd_patch_options hdi_stdit_patches(const hdi_stdit_build *b, hd_patch_order order)
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

hd_tensor hdi_stdit_video(hdi_stdit_build *b, const char *name, int64_t videos)
{
    const hd_video_shape *video = &b->stage->video;
    const int64_t dims[] = {videos, b->config->channels, video->frames, video->height,
                            video->width};
    return hd_input(b->p, name, HD_DTYPE_F32, 5, dims);
}

static hd_tensor null_text(hdi_stdit_build *b)
{
    const hdi_stdit_config *c = b->config;
    return hd_parameter(b->p, &(hd_parameter_options){.name = HDI_STDIT_NULL_TEXT,
                                                      .rank = 2,
                                                      .dims = {c->text_tokens, c->text_columns},
                                                      .init = HD_INIT_NORMAL,
                                                      .std = 1 / sqrt((double)c->text_columns),
                                                      .frozen = true});
}

/* A convolution over patches, as a linear layer of their rows. */
static hd_linear_part embedder_part(const hdi_stdit_config *c, const char *name)
{
    return (hd_linear_part){
        .name = name,
        .outputs = c->hidden,
        .file_rank = 5,
        .file_dims = {c->hidden, c->channels, c->patch[0], c->patch[1], c->patch[2]}};
}

static void declare_unread(hdi_stdit_build *b, const char *weight, const char *bias)
{
    const hdi_stdit_config *c = b->config;
    const hd_linear_part file = embedder_part(c, NULL);
    hd_parameter_options options = {
        .name = weight,
        .rank = 2,
        .dims = {c->hidden, c->channels * c->patch[0] * c->patch[1] * c->patch[2]},
        .parts = 1,
        .part = {{.name = weight, .rows = c->hidden, .file_rank = 5}},
        .frozen = true};
    memcpy(options.part[0].file_dims, file.file_dims, sizeof file.file_dims);
    hd_parameter(b->p, &options);
    hd_parameter(b->p, &(hd_parameter_options){
                           .name = bias, .rank = 1, .dims = {c->hidden}, .frozen = true});
}

void hdi_stdit_declare_buffers(hdi_stdit_build *b)
{
    const hdi_stdit_config *c = b->config;
    if (!b->given) null_text(b);
    hd_parameter(b->p,
                 &(hd_parameter_options){.name = "rope.freqs",
                                         .rank = 1,
                                         .dims = {c->hidden / c->heads / (c->window[0] ? 6 : 2)},
                                         .init = HD_INIT_ROTARY,
                                         .frozen = true});
    if (!c->condition || b->given) return;
    declare_unread(b, "x_embedder_cond.proj.weight", "x_embedder_cond.proj.bias");
    declare_unread(b, "x_embedder_cond_mask.proj.weight", "x_embedder_cond_mask.proj.bias");
}

static hd_tensor time_mlp(hdi_stdit_build *b, hd_tensor x, const char *first, const char *second)
{
    const int64_t hidden = b->config->hidden;
    return hdi_stdit_linear(b, hd_silu(b->p, hdi_stdit_linear(b, x, first, hidden)), second,
                            hidden);
}

static hd_tensor sinusoid(hdi_stdit_build *b, hd_tensor x, double scale)
{
    return hd_sinusoid(b->p, x, &(hd_sinusoid_options){.columns = 256, .scale = scale});
}

/* Embeddings of `times` times, those of all sequences at time 0 below them if frames have it; and the
 * modulation rows that the blocks share, six for each. */
void hdi_stdit_embed_time(hdi_stdit_build *b, int64_t times)
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
    b->modulation = hdi_stdit_rows(
        b, hdi_stdit_linear(b, hd_silu(p, b->time), "t_block.1", 6 * hidden), 6 * times, hidden);
}

/* As many rows of the caption that stands for none as each text has: what given frames read. Row r of
 * a text is at text_places[r], where texts are packed. */
static hd_tensor null_rows(hdi_stdit_build *b)
{
    const hdi_stdit_config *c = b->config;
    const int64_t text = b->stage->video.text, rows = b->stage->sequences * text;
    const hd_tensor places = b->stage->video.text_counts
                                 ? hd_input(b->p, "text_places", HD_DTYPE_I32, 1, &rows)
                                 : hd_positions(b->p, (hd_tensor){0}, rows, text, c->text_tokens);
    return hd_embedding_op(b->p, places, null_text(b));
}

void hdi_stdit_embed_text(hdi_stdit_build *b)
{
    const hdi_stdit_config *c = b->config;
    const int64_t dims[] = {b->stage->sequences * b->stage->video.text, c->text_columns};
    hd_tensor text = hd_cast(b->p, hd_input(b->p, "text", HD_DTYPE_F32, 2, dims));
    if (b->given) {
        const hd_tensor both[] = {text, null_rows(b)};
        text = hd_join_rows(b->p, 1, 2, both);
    }
    b->text = hd_gelu_mlp(
        b->p, text,
        &(hd_linear_options){.name = "y_embedder.y_proj.fc1", .outputs = c->hidden, .bias = true},
        &(hd_linear_options){.name = "y_embedder.y_proj.fc2", .outputs = c->hidden, .bias = true});
}

/* Rows of a video's patches, and to them `add` if it is valid. */
static hd_tensor embed_patches(hdi_stdit_build *b, hd_tensor rows, const char *name, hd_tensor add)
{
    const hdi_stdit_config *c = b->config;
    return hd_linear(b->p, rows,
                     &(hd_linear_options){.name = name,
                                          .outputs = c->hidden,
                                          .bias = true,
                                          .std = add.id ? -1 : 0,
                                          .add = add,
                                          .parts = 1,
                                          .part = {embedder_part(c, name)}});
}

/* Masks and latents of given frames, sequence by sequence: twice as many videos. Where none is given
 * what is left of them is their biases. */
static hd_tensor add_given(hdi_stdit_build *b, hd_tensor x)
{
    hd_patch_options options = hdi_stdit_patches(b, HD_PATCH_CHANNELS_FIRST);
    options.sequences *= 2;
    const hd_tensor rows =
        hd_patchify(b->p, hdi_stdit_video(b, "condition", options.sequences), &options);
    const int64_t tokens[] = {b->tokens, b->tokens};
    hd_tensor parts[2];
    hd_split_rows(b->p, rows, b->stage->sequences, 2, tokens, parts);
    for (int i = 0; i < 2; i++)
        parts[i] = hdi_stdit_own_rows(b, parts[i]);
    x = embed_patches(b, parts[1], "x_embedder_cond.proj", x);
    return embed_patches(b, parts[0], "x_embedder_cond_mask.proj", x);
}

double hdi_stdit_scale(const hdi_stdit_build *b)
{
    const hd_video_shape *video = &b->stage->video;
    const int64_t tall =
        video->pixel_height ? video->pixel_height : video->height * HDI_STDIT_COMPRESSION;
    const int64_t wide =
        video->pixel_width ? video->pixel_width : video->width * HDI_STDIT_COMPRESSION;
    return sqrt((double)tall * (double)wide) / (double)b->config->square;
}

/* All ranks have the places of a frame, or each those of its own rows. */
static hd_tensor positions(hdi_stdit_build *b)
{
    const hdi_stdit_places places = {.height = b->height,
                                     .width = b->width,
                                     .hidden = b->config->hidden,
                                     .first = hdi_stdit_first(b),
                                     .rows = b->own < b->tokens ? b->own : b->places,
                                     .scale = hdi_stdit_scale(b)};
    return hdi_stdit_positions(b->p, &places);
}

hd_tensor hdi_stdit_latents(hdi_stdit_build *b)
{
    const int64_t sequences = b->stage->sequences;
    const hd_patch_options options = hdi_stdit_patches(b, HD_PATCH_CHANNELS_FIRST);
    hd_tensor x = hd_patchify(b->p, hdi_stdit_video(b, "latents", sequences), &options);
    x = hdi_stdit_own_rows(b, x);
    x = embed_patches(b, x, "x_embedder.proj", (hd_tensor){0});
    if (b->given) x = add_given(b, x);
    return hd_add_rows(b->p, x, positions(b));
}

/* What one step reads, and what the condition program makes of it: `steps` times as large where it
 * depends on the step. */
static hd_tensor conditioning(hdi_stdit_build *b, const char *name, int64_t rows)
{
    const int64_t dims[] = {rows, b->config->hidden};
    return hd_input(b->p, name, b->p->dtype, 2, dims);
}

static hd_tensor with_given(hdi_stdit_build *b, const char *name, const char *given, int64_t rows)
{
    const hd_tensor both[] = {conditioning(b, name, rows),
                              b->kinds == 2 ? conditioning(b, given, rows) : (hd_tensor){0}};
    return b->kinds == 2 ? hd_join_rows(b->p, 1, 2, both) : both[0];
}

void hdi_stdit_read_conditioning(hdi_stdit_build *b)
{
    if (b->stage->layers) {
        b->modulation = with_given(b, "modulation", "modulation_given", 6);
        b->text = conditioning(b, "text_rows", b->text_rows);
    }
    if (b->stage->last) b->time = with_given(b, "time_embedding", "time_embedding_given", 1);
}

static void put_out(hdi_stdit_build *b, hd_tensor x, int64_t rows, const char *name,
                    const char *given)
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

void hdi_stdit_make_conditioning(hdi_stdit_build *b)
{
    if (!b->stage->layers && !b->stage->last) return;
    hdi_stdit_embed_time(b, b->stage->video.steps);
    if (b->stage->layers) {
        put_out(b, b->modulation, 6, "modulation", "modulation_given");
        hdi_stdit_embed_text(b);
        hd_output(b->p, b->text, "text_rows");
    }
    if (b->stage->last) put_out(b, b->time, 1, "time_embedding", "time_embedding_given");
}
