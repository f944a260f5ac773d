/* Attention where the image's rows are split over ranks and all have the text's: each rank takes some
 * of the heads, of the image's rows by exchanges, a group of heads at a time. Norms and rotations then
 * see whole sequences. */
#include "models/mmdit.h"
#include "ops/ring.h"
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

void hdi_mmdit_sequence_begin(hdi_mmdit_build *b, int count, const hd_qkv_stream *streams,
                              hdi_mmdit_travel *out)
{
    const hdi_mmdit_config *config = b->config;
    const int image = hdi_mmdit_image(config);
    const hdi_sequence_shape shape = {.sequences = b->stage->sequences,
                                      .tokens = b->image,
                                      .heads = config->heads,
                                      .kv_heads = config->heads,
                                      .head_dim = config->head_dim};
    *out = (hdi_mmdit_travel){.count = count};
    out->image = (hdi_sequence_heads){.shape = hdi_tensor_own_heads(b->p, shape),
                                      .turns = hdi_sequence_turns(b->p, &shape)};
    part_streams(b, streams, out);
    if (count == 1) {
        *(image ? &out->image.before : &out->image.after) = b->text;
        hdi_sequence_to_heads(b->p, streams->qkv, &out->image, out->heads[image],
                              out->heads[1 - image]);
        return;
    }
    out->text = out->image;
    out->text.shape.tokens = 0;
    out->text.before = b->text;
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

void hdi_mmdit_sequence_attend(hdi_mmdit_build *b, hdi_mmdit_travel *travel)
{
    const hdi_mmdit_config *config = b->config;
    const int image = hdi_mmdit_image(config), turns = travel->image.turns;
    const int64_t all = travel->image.shape.heads;
    const hdi_sequence_heads *text = travel->count == 1 ? &travel->image : &travel->text;
    hd_qkv_stream *own = travel->stream;
    const int64_t sequences = b->stage->sequences, tokens[] = {own[0].tokens, own[1].tokens};
    for (int t = 0; t < turns; t++) {
        const int64_t heads = hdi_sequence_turn_heads(b->p, all, all, turns, t);
        hd_tensor *const at[] = {&travel->heads[0][t], &travel->heads[1][t]};
        hd_tensor parts[2];
        own[image].qkv = hdi_sequence_arrive(b->p, *at[image], &travel->image, t);
        own[1 - image].qkv = hdi_ring_take(b->p, *at[1 - image], sequences, b->text);
        const hd_tensor joint =
            hd_joint_qkv(b->p, sequences, heads, config->head_dim, 1e-6, 2, own);
        hd_split_rows(b->p, attend_joint(b, joint, heads), sequences, 2, tokens, parts);
        parts[1 - image] = hdi_ring_gather(b->p, parts[1 - image], sequences, b->text);
        *at[image] = hdi_sequence_return(b->p, parts[image], &travel->image, t, false);
        *at[1 - image] = hdi_sequence_return(b->p, parts[1 - image], text, t, true);
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
