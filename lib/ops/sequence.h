/* Tokens of each sequence split over the ranks of the mesh's sequence axis, by unequal counts and
 * without padding. The axis is cut into the places of a ring (ops/ring.h), each place's tokens over
 * the ranks that share it. For attention one exchange among those of all queries, keys and values
 * gives each rank some of the heads of all tokens of its place, and one the results back (Ulysses,
 * arXiv 2309.14509). Rows that all ranks have alike, such as text, go without: each rank takes its
 * heads of them, and what comes out is gathered. */
#ifndef HDI_OPS_SEQUENCE_H
#define HDI_OPS_SEQUENCE_H

#include "ops/collective.h"

enum { HDI_SEQUENCE_RANKS = 128 }; /* at most */

/* The first of `tokens` tokens that `rank` of `ranks` has, one run each; of `ranks` the end. */
int64_t hdi_sequence_first(int64_t tokens, int ranks, int rank);

int hdi_sequence_ranks(const hd_program *program);

/* Places that this program's sequences are cut into. */
int hdi_sequence_ring(const hd_program *program);

/* This program's part of `tokens`. */
int64_t hdi_sequence_own_tokens(const hd_program *program, int64_t tokens);

/* Tokens see only those before them: to be said first of all. A ring then cuts sequences in a zigzag. */
void hdi_sequence_is_causal(hd_program *program);

/* A model says that it splits its sequences, of so many tokens and heads at least: false where there
 * are more ranks than they allow, which is an error of the program. `whole_loss`: its loss is that of
 * all tokens on each rank, not of this rank's. */
bool hdi_sequence_begin(hd_program *program, int64_t tokens, int64_t kv_heads, bool whole_loss);

/* This rank's rows of x [sequences * tokens, ...]. No gradient. */
hd_tensor hdi_sequence_own_rows(hd_program *program, hd_tensor x, int64_t sequences,
                                int64_t tokens);

/* This rank's rows of those x [sequences * tokens, ...] that its place has. No gradient. */
hd_tensor hdi_sequence_rows_of_place(hd_program *program, hd_tensor x, int64_t sequences,
                                     int64_t tokens);

/* Of entries I32 [groups], each for that many rows, one for each row: [groups * rows_per_group]. */
hd_tensor hdi_sequence_each_row(hd_program *program, hd_tensor entries, int64_t rows_per_group);

/* The way back: all rows, on every rank. What is made of them must be the same on all ranks up to the
 * loss, which counts once: the gradient is this rank's rows of that of the result. */
hd_tensor hdi_sequence_all_rows(hd_program *program, hd_tensor x, int64_t sequences,
                                int64_t tokens);

/* Sizes of attention, before anything is split. */
typedef struct hdi_sequence_shape {
    int64_t sequences, tokens; /* tokens that are split: none where all ranks have all rows */
    int64_t heads, kv_heads, head_dim;
} hdi_sequence_shape;

/* Heads travel a group at a time, so that one group's exchange is under way while another's attention
 * is computed. How many turns that takes: what the program's sequence_groups say, or as many as leave
 * a rank with messages of about HDI_SEQUENCE_MESSAGE bytes; each rank has heads in each turn. Of heads
 * before the tensor axis deals them out: the turns are as many on all ranks. */
enum { HDI_SEQUENCE_TURNS = 4, HDI_SEQUENCE_MESSAGE = 64 << 20 };
int hdi_sequence_turns(hd_program *program, const hdi_sequence_shape *shape);

/* This rank's heads of one turn, out of its tensor rank's: those of keys and values are dealt out, the
 * first ranks having one more, and queries' go with them. */
int64_t hdi_sequence_turn_heads(const hd_program *program, int64_t heads, int64_t kv_heads,
                                int turns, int turn);

/* Rows of all heads: each sequence's own tokens and, around them, rows that all ranks have alike. */
typedef struct hdi_sequence_heads {
    hdi_sequence_shape shape;
    int64_t before, after;
    int turns;
    int64_t of_place; /* tokens of a sequence that this place has; 0: as the ring cuts them */
} hdi_sequence_heads;

/* qkv [sequences * (before + own tokens + after), (heads + 2 * kv_heads) * head_dim] to alike[turns]
 * of the rows that all have, [sequences * (before + after), this rank's heads of the turn], packed
 * alike, which do not travel; and own[turns] of the others, on their way: hdi_sequence_arrive, called
 * where they are wanted, makes [sequences * tokens of the place, the same] of each. Collective when
 * run. */
void hdi_sequence_to_heads(hd_program *program, hd_tensor qkv, const hdi_sequence_heads *from,
                           hd_tensor *own, hd_tensor *alike);
hd_tensor hdi_sequence_arrive(hd_program *program, hd_tensor x, const hdi_sequence_heads *from,
                              int turn);

/* What attention made of a turn sets out on its way back. hdi_sequence_to_tokens makes rows of all
 * turns, [sequences * (before + own tokens + after), heads * head_dim]. Of rows that all ranks have
 * each rank's gradient is a part: their sum is the gradient. Collective when run. */
hd_tensor hdi_sequence_return(hd_program *program, hd_tensor x, const hdi_sequence_heads *from,
                              int turn, bool alike);
hd_tensor hdi_sequence_to_tokens(hd_program *program, const hdi_sequence_heads *from,
                                 const hd_tensor *own, const hd_tensor *alike);

extern const hd_op_kind hdi_op_sequence_exchange, hdi_op_sequence_share, hdi_op_sequence_scatter;

#endif
