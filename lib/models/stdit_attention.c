/* What STDiT3's blocks attend to: a frame, a place or a window of places over time, and the text. */
#include "models/stdit.h"
#include "ops/tensor_axis.h"

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
                              .stride = {b->part.positions},
                              .theta = 10000,
                              .pairing = HD_ROPE_INTERLEAVED};
    return (hd_rope_axes){
        .axes = 3,
        .dims = {part, part, part},
        .length = {temporal ? b->frames : 1, b->part.positions / b->width, b->width},
        .stride = {b->part.positions, b->width, 1},
        .scale = {1, scale, scale},
        .theta = 10000,
        .pairing = HD_ROPE_INTERLEAVED};
}

/* Rows of a sequence lie frame by frame: within frames, or along places. */
static hd_tensor attend(const hdi_stdit_build *b, hd_tensor qkv, int64_t heads, int64_t tokens,
                        int64_t interleave)
{
    return hd_attention(b->p, qkv,
                        &(hd_attention_options){.heads = heads,
                                                .head_dim = b->config->hidden / b->config->heads,
                                                .tokens = tokens,
                                                .interleave = interleave});
}

/* Windows that the far sides cut are smaller: nothing is padded, so nothing has to be masked. One that
 * holds all places is the sequence as it lies. */
static hd_tensor attend_windows(const hdi_stdit_build *b, hd_tensor qkv, int64_t heads)
{
    const int64_t *window = b->config->window, height = b->part.positions / b->width;
    if (window[0] >= height && window[1] >= b->width)
        return attend(b, qkv, heads, b->frames * b->part.positions, 1);
    const hd_window_options options = {.sequences = b->stage->sequences,
                                       .frames = b->frames,
                                       .height = height,
                                       .width = b->width,
                                       .window_height = window[0],
                                       .window_width = window[1]};
    hd_tensor parts[HD_WINDOW_PARTS];
    int64_t tokens[HD_WINDOW_PARTS];
    const int count = hd_split_windows(b->p, qkv, &options, parts, tokens);
    for (int i = 0; i < count; i++)
        parts[i] = attend(b, parts[i], heads, tokens[i], 1);
    return hd_join_windows(b->p, parts, &options);
}

/* Of what this rank's place of the ring has of sequences, and so many heads of it. */
static hd_tensor attention_of(const hdi_stdit_build *b, const hd_qkv_stream *stream, int64_t heads,
                              bool temporal)
{
    const hdi_stdit_config *c = b->config;
    hd_tensor x = stream->qkv;
    if (stream->rope.axes || c->qk_norm)
        x = hd_joint_qkv(b->p, b->stage->sequences, heads, c->hidden / c->heads, 0, 1, stream);
    if (!temporal) return attend(b, x, heads, b->places, 1);
    return c->window[0] ? attend_windows(b, x, heads)
                        : attend(b, x, heads, b->frames, b->part.positions);
}

/* Where ranks share a place of the ring each takes some of the heads of all its tokens: norms, turns,
 * frames, places and windows are then those of one rank. */
static hd_tensor attend_shared(const hdi_stdit_build *b, hd_qkv_stream stream, bool temporal)
{
    const hdi_stdit_config *c = b->config;
    const hdi_sequence_shape all = {.sequences = b->stage->sequences,
                                    .tokens = b->tokens,
                                    .heads = c->heads,
                                    .kv_heads = c->heads,
                                    .head_dim = c->hidden / c->heads};
    const hdi_sequence_heads travel = {.shape = hdi_tensor_own_heads(b->p, all),
                                       .turns = hdi_sequence_turns(b->p, &all),
                                       .of_place = stream.tokens};
    hd_tensor turn[HDI_SEQUENCE_TURNS];
    hdi_sequence_to_heads(b->p, stream.qkv, &travel, turn, NULL);
    for (int t = 0; t < travel.turns; t++) {
        const int64_t heads = hdi_sequence_turn_heads(b->p, travel.shape.heads,
                                                      travel.shape.kv_heads, travel.turns, t);
        stream.qkv = hdi_sequence_arrive(b->p, turn[t], &travel, t);
        const hd_tensor made = attention_of(b, &stream, heads, temporal);
        turn[t] = hdi_sequence_return(b->p, made, &travel, t, false);
    }
    return hdi_sequence_to_tokens(b->p, &travel, turn, NULL);
}

/* With the tensor axis rows stay by frames, and its ranks' queries, keys and values go by position and
 * what they make comes back. */
hd_tensor hdi_stdit_self_attention(hdi_stdit_build *b, hd_tensor x, bool temporal)
{
    const hdi_regroup_part rows = b->part;
    const bool goes = temporal != b->by_position && hdi_sequence_ring(b->p) > 1;
    x = hdi_stdit_to_heads(b, hdi_stdit_enter(b, x), "attn.qkv", 3);
    if (goes) {
        x = hdi_regroup(b->p, x, &b->video, temporal);
        b->part = hdi_regroup_part_of(b->p, &b->video, temporal);
    }
    const hd_qkv_stream stream = {.qkv = x,
                                  .query_norm = norm_weight(b, "attn.q_norm.weight"),
                                  .key_norm = norm_weight(b, "attn.k_norm.weight"),
                                  .tokens = b->part.frames * b->part.positions,
                                  .rope = rope_of(b, temporal)};
    x = attend_shared(b, stream, temporal);
    if (goes) x = hdi_regroup(b->p, x, &b->video, !temporal);
    b->part = rows;
    return hdi_stdit_leave(b, hdi_stdit_from_heads(b, x, "attn.proj"));
}

static hd_tensor read_text(hdi_stdit_build *b, hd_tensor q, hd_tensor kv)
{
    const hdi_stdit_config *c = b->config;
    return hd_cross_attention(b->p, q, kv, b->text_offsets,
                              &(hd_cross_attention_options){.heads = hdi_stdit_heads(b),
                                                            .head_dim = c->hidden / c->heads,
                                                            .tokens = b->joined,
                                                            .most_keys = b->stage->video.text});
}

hd_tensor hdi_stdit_text_attention(hdi_stdit_build *b, hd_tensor x)
{
    const int64_t rows = b->stage->sequences * b->stage->video.text, each[] = {rows, rows};
    const hd_tensor q = hdi_stdit_to_heads(b, hdi_stdit_enter(b, x), "cross_attn.q_linear", 1);
    hd_tensor kv[2] = {hdi_stdit_to_heads(b, b->text, "cross_attn.kv_linear", 2)};
    if (b->given) {
        hd_split_rows(b->p, kv[0], 1, 2, each, kv);
        x = hdi_stdit_choose(b, read_text(b, q, kv[0]), read_text(b, q, kv[1]));
    } else {
        x = read_text(b, q, kv[0]);
    }
    return hdi_stdit_leave(b, hdi_stdit_from_heads(b, x, "cross_attn.proj"));
}
