/* What STDiT3's blocks attend to: a frame, a place or a window of places over time, and the text. */
#include "models/stdit.h"

static hd_tensor norm_weight(hdi_stdit_build *b, const char *name)
{
    if (!b->config->qk_norm) return (hd_tensor){0};
    return hd_parameter(b->p,
                        &(hd_parameter_options){.name = name,
                                                .rank = 1,
                                                .dims = {b->config->hidden / b->config->heads},
                                                .init = HD_INIT_ONES});
}

/* Turns by frame and place. Positions count through the whole grid: all that attention sees of them is
 * their differences, which within a window, or a frame, are those of the published model. */
static hd_rope_axes rope_of(const hdi_stdit_build *b, bool temporal)
{
    const hdi_stdit_config *c = b->config;
    const int64_t head_dim = c->hidden / c->heads, part = head_dim / 3;
    const double scale = 1 / hdi_stdit_scale(b);
    if (c->window[0] ? !temporal && !c->spatial_rope : !temporal) return (hd_rope_axes){0};
    if (!c->window[0])
        return (hd_rope_axes){.axes = 1,
                              .dims = {head_dim},
                              .length = {b->frames},
                              .stride = {b->places},
                              .theta = 10000,
                              .pairing = HD_ROPE_INTERLEAVED};
    return (hd_rope_axes){.axes = 3,
                          .dims = {part, part, part},
                          .length = {temporal ? b->frames : 1, b->height, b->width},
                          .stride = {b->places, b->width, 1},
                          .scale = {1, scale, scale},
                          .theta = 10000,
                          .pairing = HD_ROPE_INTERLEAVED};
}

/* Rows of a sequence lie frame by frame: within frames, or along places. */
static hd_tensor attend(hdi_stdit_build *b, hd_tensor qkv, int64_t tokens, int64_t interleave)
{
    const hdi_stdit_config *c = b->config;
    return hd_attention(b->p, qkv,
                        &(hd_attention_options){.heads = c->heads,
                                                .head_dim = c->hidden / c->heads,
                                                .tokens = tokens,
                                                .interleave = interleave});
}

/* Windows that the far sides cut are smaller: nothing is padded, so nothing has to be masked. One that
 * holds all places is the sequence as it lies. */
static hd_tensor attend_windows(hdi_stdit_build *b, hd_tensor qkv)
{
    const int64_t *window = b->config->window;
    if (window[0] >= b->height && window[1] >= b->width) return attend(b, qkv, b->tokens, 1);
    const hd_window_options options = {.sequences = b->stage->sequences,
                                       .frames = b->frames,
                                       .height = b->height,
                                       .width = b->width,
                                       .window_height = window[0],
                                       .window_width = window[1]};
    hd_tensor parts[HD_WINDOW_PARTS];
    int64_t tokens[HD_WINDOW_PARTS];
    const int count = hd_split_windows(b->p, qkv, &options, parts, tokens);
    for (int i = 0; i < count; i++)
        parts[i] = attend(b, parts[i], tokens[i], 1);
    return hd_join_windows(b->p, parts, &options);
}

hd_tensor hdi_stdit_self_attention(hdi_stdit_build *b, hd_tensor x, bool temporal)
{
    const hdi_stdit_config *c = b->config;
    const hd_qkv_stream qkv = {.qkv = hdi_stdit_linear(b, x, "attn.qkv", 3 * c->hidden),
                               .query_norm = norm_weight(b, "attn.q_norm.weight"),
                               .key_norm = norm_weight(b, "attn.k_norm.weight"),
                               .tokens = b->tokens,
                               .rope = rope_of(b, temporal)};
    x = qkv.rope.axes || c->qk_norm
            ? hd_joint_qkv(b->p, b->stage->sequences, c->heads, c->hidden / c->heads, 0, 1, &qkv)
            : qkv.qkv;
    if (!temporal)
        x = attend(b, x, b->places, 1);
    else
        x = c->window[0] ? attend_windows(b, x) : attend(b, x, b->frames, b->places);
    return hdi_stdit_linear(b, x, "attn.proj", c->hidden);
}

static hd_tensor read_text(hdi_stdit_build *b, hd_tensor q, hd_tensor kv)
{
    const hdi_stdit_config *c = b->config;
    return hd_cross_attention(b->p, q, kv, b->text_offsets,
                              &(hd_cross_attention_options){.heads = c->heads,
                                                            .head_dim = c->hidden / c->heads,
                                                            .tokens = b->tokens,
                                                            .most_keys = b->stage->video.text});
}

hd_tensor hdi_stdit_text_attention(hdi_stdit_build *b, hd_tensor x)
{
    const hdi_stdit_config *c = b->config;
    const int64_t rows = b->stage->sequences * b->stage->video.text, each[] = {rows, rows};
    const hd_tensor q = hdi_stdit_linear(b, x, "cross_attn.q_linear", c->hidden);
    hd_tensor kv[2] = {hdi_stdit_linear(b, b->text, "cross_attn.kv_linear", 2 * c->hidden)};
    if (b->given) {
        hd_split_rows(b->p, kv[0], 1, 2, each, kv);
        x = hdi_stdit_choose(b, read_text(b, q, kv[0]), read_text(b, q, kv[1]));
    } else {
        x = read_text(b, q, kv[0]);
    }
    return hdi_stdit_linear(b, x, "cross_attn.proj", c->hidden);
}
