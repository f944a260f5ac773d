/* Attention where the image's rows are split over ranks and all have the text's: each rank takes some
 * of the heads, of the image's rows by an exchange. Norms and rotations then see whole sequences. */
#include "models/mmdit.h"
#include "ops/ring.h"

/* Of whole sequences the tokens of this rank's place in the ring, which turn as what they are. */
static void place_stream(const hdi_mmdit_build *b, hd_qkv_stream *image)
{
    image->tokens = hdi_ring_cut(b->p, b->image, &image->rope.start);
    image->rope.count = image->tokens;
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

static void attend(hdi_mmdit_build *b, const hd_qkv_stream streams[2], hd_tensor attended[2])
{
    const hdi_mmdit_config *config = b->config;
    const int64_t sequences = b->stage->sequences;
    const int image = hdi_mmdit_image(config);
    const int64_t heads = hdi_sequence_own_heads(b->p, config->heads, config->heads);
    const hdi_sequence_shape shape = {.sequences = sequences,
                                      .tokens = b->image,
                                      .heads = config->heads,
                                      .kv_heads = config->heads,
                                      .head_dim = config->head_dim};
    hd_qkv_stream own[] = {streams[0], streams[1]};
    place_stream(b, &own[image]);
    own[1 - image].tokens = hdi_ring_alike(b->p, b->text);
    const int64_t tokens[] = {own[0].tokens, own[1].tokens};
    own[image].qkv = hdi_sequence_to_heads(b->p, streams[image].qkv, &shape);
    own[1 - image].qkv = hdi_sequence_take_heads(b->p, streams[1 - image].qkv, &shape);
    own[1 - image].qkv = hdi_ring_take(b->p, own[1 - image].qkv, sequences, b->text);
    const hd_tensor joint = hd_joint_qkv(b->p, sequences, heads, config->head_dim, 1e-6, 2, own);
    const hd_tensor x = attend_joint(b, joint, heads);
    hd_split_rows(b->p, x, sequences, 2, tokens, attended);
    attended[image] = hdi_sequence_to_tokens(b->p, attended[image], &shape);
    attended[1 - image] = hdi_ring_gather(b->p, attended[1 - image], sequences, b->text);
    attended[1 - image] = hdi_sequence_all_heads(b->p, attended[1 - image], &shape);
}

void hdi_mmdit_sequence_attention(hdi_mmdit_build *b, int count, const hd_qkv_stream *streams,
                                  hd_tensor *out)
{
    if (count == 2) {
        attend(b, streams, out);
        return;
    }
    const int image = hdi_mmdit_image(b->config);
    int64_t rows[] = {b->text, b->text};
    rows[image] = b->own;
    hd_tensor parts[2];
    hd_split_rows(b->p, streams->qkv, b->stage->sequences, 2, rows, parts);
    hd_qkv_stream apart[] = {*streams, *streams};
    apart[image].tokens = b->image;
    apart[image].rope.first = 0;
    apart[1 - image].tokens = b->text;
    apart[1 - image].rope = (hd_rope_axes){0};
    for (int s = 0; s < 2; s++)
        apart[s].qkv = parts[s];
    attend(b, apart, parts);
    *out = hd_join_rows(b->p, b->stage->sequences, 2, parts);
}
