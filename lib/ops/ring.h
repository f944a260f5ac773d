/* Ring attention (Liu et al., arXiv 2310.01889): each place of the sequence axis' ring has the queries
 * of its tokens, keys and values go round block by block, and what comes of each block is merged. The
 * next block travels while one is attended. Backward, keys and values go round again, followed by
 * their gradients, which are summed in fp32 and come home last.
 *
 * Causal sequences are cut in a zigzag, so that of every block but a place's own it sees the first half
 * with all queries, or all of it with the second half of them: no mask, and the same work everywhere. */
#ifndef HDI_OPS_RING_H
#define HDI_OPS_RING_H

#include "ops/sequence.h"

typedef struct hdi_ring_shape {
    int64_t sequences, heads, kv_heads, head_dim; /* this rank's heads */
    int64_t tokens;                               /* of a whole sequence, which the places cut */
    int64_t alike; /* and further ones that all ranks have, each place attending its part */
    bool causal;
    hd_tensor
        counts; /* I32 [sequences]: valid first ones of `alike`, which then come last; the others'
                         results are zero and nobody sees them. Invalid: all */
} hdi_ring_shape;

/* Attention of qkv [sequences * place's tokens, (heads + 2 * kv_heads) * head_dim], packed as
 * hd_attention has it, to all places' tokens: [rows, heads * head_dim]. Collective when run. */
hd_tensor hdi_ring_attention(hd_program *program, hd_tensor qkv, const hdi_ring_shape *shape);

/* What a place has of rows that all ranks or none have: x [sequences * tokens, ...] to its rows. Of
 * tokens that are cut, no gradient. Of those that all have, the gradient has zeros for the others. */
hd_tensor hdi_ring_cut_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens);
hd_tensor hdi_ring_take(hd_program *program, hd_tensor x, int64_t sequences, int64_t alike);

/* The way back to rows that all have: each rank's gradient of them is a part, whose sum is the
 * gradient. Collective when run. */
hd_tensor hdi_ring_gather(hd_program *program, hd_tensor x, int64_t sequences, int64_t alike);

/* Tokens of each sequence that this program's place has: how many of those that all have, and which of
 * the cut ones, unless they are causal. */
int64_t hdi_ring_alike(const hd_program *program, int64_t alike);
int64_t hdi_ring_cut(const hd_program *program, int64_t tokens, int64_t *first);

extern const hd_op_kind hdi_op_ring_shift, hdi_op_ring_gather, hdi_op_ring_scatter;

#endif
