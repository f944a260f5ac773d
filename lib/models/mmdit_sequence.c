/* Attention where the image's rows are split over ranks and all have the text's: each rank takes some
 * of the heads, of the image's rows by exchanges, a group of heads at a time. Norms and rotations then
 * see whole sequences. */
#include "models/mmdit.h"
#include "ops/ring.h"
#include "ops/slices.h"
#include "ops/tensor_axis.h"

/* The streams as attention has them: apart, and of whole sequences, or, in a ring, of what its place has
 * of them. */
static void part_streams(const hdi_mmdit_build *b, const hd_qkv_stream *streams,
                         hdi_mmdit_travel *out)
{
    const int image = hdi_mmdit_image(b->config);
    const hd_qkv_stream *text = out->count == 2 ? &streams[1 - image] : streams;
    out->stream[image] = out->count == 2 ? streams[image] : *streams;
    hd_qkv_stream *own = &out->stream[image];
    own->tokens = own->rope.count = hdi_ring_cut(b->p, b->image, &own->rope.start);
    own->rope.first = 0;
    out->stream[1 - image] = (hd_qkv_stream){.query_norm = text->query_norm,
                                             .key_norm = text->key_norm,
                                             .tokens = hdi_ring_alike(b->p, b->text)};
}

/* What travels, in so many turns as `choose` says. */
static void start(hdi_mmdit_build *b, int count, const hd_qkv_stream *streams,
                  int (*choose)(hd_program *program, const hdi_sequence_shape *shape),
                  hdi_mmdit_travel *out)
{
    const hdi_mmdit_config *config = b->config;
    const hdi_sequence_shape shape = {.sequences = b->stage->sequences,
                                      .tokens = b->image,
                                      .heads = config->heads,
                                      .kv_heads = config->heads,
                                      .head_dim = config->head_dim};
    *out = (hdi_mmdit_travel){.count = count};
    out->image = (hdi_sequence_heads){.shape = hdi_tensor_own_heads(b->p, shape),
                                      .turns = choose(b->p, &shape)};
    part_streams(b, streams, out);
    if (count == 1) {
        *(hdi_mmdit_image(config) ? &out->image.before : &out->image.after) = b->text;
        return;
    }
    out->text = out->image;
    out->text.shape.tokens = 0;
    out->text.before = b->text;
}

void hdi_mmdit_sequence_begin(hdi_mmdit_build *b, int count, const hd_qkv_stream *streams,
                              hdi_mmdit_travel *out)
{
    const int image = hdi_mmdit_image(b->config);
    start(b, count, streams, hdi_sequence_turns, out);
    if (count == 1) {
        hdi_sequence_to_heads(b->p, streams->qkv, &out->image, out->heads[image],
                              out->heads[1 - image]);
        return;
    }
    hdi_sequence_to_heads(b->p, streams[image].qkv, &out->image, out->heads[image], NULL);
    hdi_sequence_to_heads(b->p, streams[1 - image].qkv, &out->text, NULL, out->heads[1 - image]);
}

static hd_tensor attend_joint(hdi_mmdit_build *b, hd_tensor joint, int64_t heads)
{
    if (hd_mesh_ring(b->p->mesh) > 1)
        return hdi_ring_attention(b->p, joint,
                                  &(hdi_ring_shape){.sequences = b->stage->sequences,
                                                    .heads = heads,
                                                    .kv_heads = heads,
                                                    .head_dim = b->config->head_dim,
                                                    .tokens = b->image,
                                                    .alike = b->text,
                                                    .counts = b->text_counts});
    return hd_attention(b->p, joint,
                        &(hd_attention_options){.heads = heads,
                                                .head_dim = b->config->head_dim,
                                                .tokens = b->image + b->text,
                                                .counts = b->joint_counts});
}

static int64_t turn_heads(const hdi_mmdit_build *b, const hdi_mmdit_travel *travel, int turn)
{
    const int64_t all = travel->image.shape.heads;
    return hdi_sequence_turn_heads(b->p, all, all, travel->image.turns, turn);
}

/* A turn's heads of each stream, which were on their way, joined for attention. */
static hd_tensor arrive(hdi_mmdit_build *b, hdi_mmdit_travel *travel, int turn,
                        const hd_tensor heads[2])
{
    const int image = hdi_mmdit_image(b->config);
    const int64_t sequences = b->stage->sequences;
    hd_qkv_stream *own = travel->stream;
    own[image].qkv = hdi_sequence_arrive(b->p, heads[image], &travel->image, turn);
    own[1 - image].qkv = hdi_ring_take(b->p, heads[1 - image], sequences, b->text);
    return hd_joint_qkv(b->p, sequences, turn_heads(b, travel, turn), b->config->head_dim, 1e-6, 2,
                        own);
}

/* What attention makes of them sets out on its way back. */
static void attend_turn(hdi_mmdit_build *b, const hdi_mmdit_travel *travel, int turn,
                        hd_tensor joint, hd_tensor heads[2])
{
    const int image = hdi_mmdit_image(b->config);
    const int64_t tokens[] = {travel->stream[0].tokens, travel->stream[1].tokens},
                  sequences = b->stage->sequences;
    hd_tensor parts[2];
    hd_split_rows(b->p, attend_joint(b, joint, turn_heads(b, travel, turn)), sequences, 2, tokens,
                  parts);
    parts[1 - image] = hdi_ring_gather(b->p, parts[1 - image], sequences, b->text);
    heads[image] = hdi_sequence_return(b->p, parts[image], &travel->image, turn, false);
    heads[1 - image] = hdi_sequence_return(
        b->p, parts[1 - image], travel->count == 1 ? &travel->image : &travel->text, turn, true);
}

void hdi_mmdit_sequence_attend(hdi_mmdit_build *b, hdi_mmdit_travel *travel)
{
    for (int t = 0; t < travel->image.turns; t++) {
        hd_tensor heads[] = {travel->heads[0][t], travel->heads[1][t]};
        attend_turn(b, travel, t, arrive(b, travel, t, heads), heads);
        for (int s = 0; s < 2; s++)
            travel->heads[s][t] = heads[s];
    }
}

void hdi_mmdit_sequence_end(hdi_mmdit_build *b, const hdi_mmdit_travel *travel, hd_tensor *out)
{
    const int image = hdi_mmdit_image(b->config);
    const hd_tensor *rows = travel->heads[image], *text = travel->heads[1 - image];
    if (travel->count == 1) {
        *out = hdi_sequence_to_tokens(b->p, &travel->image, rows, text);
        return;
    }
    out[image] = hdi_sequence_to_tokens(b->p, &travel->image, rows, NULL);
    out[1 - image] = hdi_sequence_to_tokens(b->p, &travel->text, NULL, text);
}

/* A turn's heads of each stream, made and on their way. */
static void depart(hdi_mmdit_build *b, const hdi_attention_slices *from,
                   const hdi_mmdit_travel *travel, int turn, hd_tensor heads[2])
{
    const int image = hdi_mmdit_image(b->config), text = 1 - image;
    if (travel->count == 1) {
        hdi_sequence_slice_to_heads(b->p, from->stream[0].qkv, &from->map[0], &travel->image, turn,
                                    &heads[image], &heads[text]);
        return;
    }
    hdi_sequence_slice_to_heads(b->p, from->stream[image].qkv, &from->map[image], &travel->image,
                                turn, &heads[image], NULL);
    hdi_sequence_slice_to_heads(b->p, from->stream[text].qkv, &from->map[text], &travel->text, turn,
                                NULL, &heads[text]);
}

/* What came back of a turn, into the streams' rows. */
static void return_to(hdi_mmdit_build *b, const hdi_mmdit_travel *travel, int turn, hd_tensor *out)
{
    const int image = hdi_mmdit_image(b->config), text = 1 - image;
    const hd_tensor rows = travel->heads[image][0], alike = travel->heads[text][0];
    const hd_tensor none = {0};
    if (travel->count == 1) {
        *out = hdi_sequence_slice_to_tokens(b->p, *out, &travel->image, turn, rows, alike);
        return;
    }
    out[image] = hdi_sequence_slice_to_tokens(b->p, out[image], &travel->image, turn, rows, none);
    out[text] = hdi_sequence_slice_to_tokens(b->p, out[text], &travel->text, turn, none, alike);
}

/* A turn sets out before attention of the one before, but after that one's messages are no longer
 * needed. Only the second sets out sooner, so that the first is not waited for in idleness: nothing has come
 * back then that would be in memory, too. */
void hdi_mmdit_slices_attend(hdi_mmdit_build *b, const hdi_attention_slices *from,
                             hdi_mmdit_travel *out, hd_tensor *rows)
{
    hd_tensor heads[2], next[2] = {{0}};
    start(b, from->streams, from->stream, hdi_sequence_slices, out);
    for (int s = 0; s < from->streams; s++)
        rows[s] = (hd_tensor){0};
    depart(b, from, out, 0, heads);
    const int turns = out->image.turns;
    if (turns > 1) depart(b, from, out, 1, next);
    for (int t = 0; t < turns; t++) {
        const hd_tensor joint = arrive(b, out, t, heads);
        if (t > 0 && t + 1 < turns) depart(b, from, out, t + 1, next);
        attend_turn(b, out, t, joint, heads);
        if (t > 0) return_to(b, out, t - 1, rows);
        for (int s = 0; s < 2; s++) {
            out->heads[s][0] = heads[s];
            heads[s] = next[s];
        }
    }
}

void hdi_mmdit_slices_end(hdi_mmdit_build *b, const hdi_mmdit_travel *travel, hd_tensor *rows)
{
    return_to(b, travel, travel->image.turns - 1, rows);
}
