/* Tokens of each sequence split over the ranks of the mesh's sequence axis, by unequal counts and
 * without padding. The axis is cut into the places of a ring (ops/ring.h), and a place's tokens over
 * the ranks that share it. For attention one exchange among those of all queries, keys and values
 * gives each rank some of the heads of all tokens of its place, and one the results back (Ulysses,
 * arXiv 2309.14509). Rows that all ranks have alike, such as text, go without: each rank takes its
 * heads of its place's part of them, and what comes out is gathered. */
#ifndef HDI_OPS_SEQUENCE_H
#define HDI_OPS_SEQUENCE_H

#include "ops/collective.h"

enum { HDI_SEQUENCE_RANKS = 128 }; /* at most */

/* The first of `tokens` tokens that `rank` of `ranks` has, one run each; of `ranks` the end. */
int64_t hdi_sequence_first(int64_t tokens, int ranks, int rank);

/* This program's part of `tokens`, and of the heads; those of keys and values are dealt out, the first
 * ranks having one more where they do not divide, and queries' go with them. */
int64_t hdi_sequence_own_tokens(const hd_program *program, int64_t tokens);
int64_t hdi_sequence_own_heads(const hd_program *program, int64_t heads, int64_t kv_heads);

/* Tokens see only those before them: to be said first of all. A ring then cuts sequences in a zigzag. */
void hdi_sequence_is_causal(hd_program *program);

/* A model says that it splits its sequences, of so many tokens and heads at least: false where there
 * are more ranks than they allow, which is an error of the program. `whole_loss`: its loss is that of
 * all tokens on each rank, not of this rank's. */
bool hdi_sequence_begin(hd_program *program, int64_t tokens, int64_t kv_heads, bool whole_loss);

/* This rank's rows of x [sequences * tokens, ...]. No gradient. */
hd_tensor hdi_sequence_own_rows(hd_program *program, hd_tensor x, int64_t sequences,
                                int64_t tokens);

/* The way back: all rows, on every rank. What is made of them must be the same on all ranks up to the
 * loss, which counts once: the gradient is this rank's rows of that of the result. */
hd_tensor hdi_sequence_all_rows(hd_program *program, hd_tensor x, int64_t sequences,
                                int64_t tokens);

/* Sizes of attention, before anything is split. */
typedef struct hdi_sequence_shape {
    int64_t sequences, tokens; /* tokens are not read for rows that all ranks have */
    int64_t heads, kv_heads, head_dim;
} hdi_sequence_shape;

/* qkv [sequences * own tokens, (heads + 2 * kv_heads) * head_dim] to own heads of the tokens of the
 * place, packed alike; and of what attention makes of them [rows, own heads * head_dim] the way
 * back, to [sequences * own tokens, heads * head_dim]. Adjoint to themselves. Collective when run. */
hd_tensor hdi_sequence_to_heads(hd_program *program, hd_tensor qkv,
                                const hdi_sequence_shape *shape);
hd_tensor hdi_sequence_to_tokens(hd_program *program, hd_tensor x, const hdi_sequence_shape *shape);

/* The same for rows that all ranks have alike. Each rank's gradient of them is a part: their sum is the gradient. The first is not Collective; its gradient has zeros for others' heads. */
hd_tensor hdi_sequence_take_heads(hd_program *program, hd_tensor qkv,
                                  const hdi_sequence_shape *shape);
hd_tensor hdi_sequence_all_heads(hd_program *program, hd_tensor x, const hdi_sequence_shape *shape);

extern const hd_op_kind hdi_op_sequence_exchange, hdi_op_sequence_share, hdi_op_sequence_scatter;

#endif
