/* Layers split over the ranks of the mesh's tensor axis (Megatron, arXiv 1909.08053 and 2205.05198): a
 * rank has some of a layer's inner columns and heads, dealt out by unequal counts where they do not
 * divide. Between layers it has some of the tokens, as lib/ops/sequence.h deals them: all ranks' rows
 * come together before a layer, and the ranks' parts of its result are summed as they part again.
 * Rows that all ranks have alike go without: the parts are summed for all. Each rank's gradient of
 * what all have alike is its part, and the sum over ranks is the whole. */
#ifndef HDI_OPS_TENSOR_AXIS_H
#define HDI_OPS_TENSOR_AXIS_H

#include "ops/collective.h"

/* A model says that it heeds the axis: false, and an error of the program, where there are more ranks
 * than heads of keys and values or (0: no matter) tokens of a sequence, or sequences are split, too. */
bool hdi_tensor_begin(hd_program *program, int64_t tokens, int64_t kv_heads);

int hdi_tensor_ranks(const hd_program *program);

/* This rank's run of `columns` that are dealt out in equal `groups`, the first ranks having one more. */
hd_shard_run hdi_tensor_deal(const hd_program *program, int64_t columns, int64_t groups);

/* This rank's part of a sequence's tokens. */
int64_t hdi_tensor_own_tokens(const hd_program *program, int64_t tokens);

/* This rank's rows of x [sequences * tokens, ...], which all have. No gradient. */
hd_tensor hdi_tensor_own_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens);

/* All ranks' rows, for a layer of which each makes some columns. Adjoint to sum_rows. Collective. */
hd_tensor hdi_tensor_all_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens);

/* This rank's rows of the sum of all ranks' x [sequences * tokens, columns], in fp32 and by a tree over the
 * ranks. Collective. */
hd_tensor hdi_tensor_sum_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens);

/* The same where rows of one rank lie below another's, which layers that work row by row do not mind: such
 * products are cut into pieces. hdi_tensor_by_sequence makes rows of sequences of those (back: those of
 * these). Collective, but for that. */
hd_tensor hdi_tensor_gather_rows(hd_program *program, hd_tensor x, int64_t sequences,
                                 int64_t tokens);
hd_tensor hdi_tensor_exchange_rows(hd_program *program, hd_tensor x, int64_t sequences,
                                   int64_t tokens);
hd_tensor hdi_tensor_by_sequence(hd_program *program, hd_tensor x, int64_t sequences,
                                 int64_t tokens, bool back);

/* That sum itself, on all ranks. Adjoint to itself. Collective. */
hd_tensor hdi_tensor_sum_alike(hd_program *program, hd_tensor x);

/* All rows for what all ranks make of them alike, up to a loss that counts once: the gradient is this
 * rank's rows. Collective. */
hd_tensor hdi_tensor_whole_rows(hd_program *program, hd_tensor x, int64_t sequences,
                                int64_t tokens);

/* All ranks' columns of rows that all have, dealt out in `groups` of `unit` columns. Collective. */
hd_tensor hdi_tensor_all_columns(hd_program *program, hd_tensor x, int64_t groups, int64_t unit);

/* Each rank's x [rows, columns], one below another: [ranks * rows, columns]. No gradient. Collective. */
hd_tensor hdi_tensor_collect(hd_program *program, hd_tensor x);

/* tensor_sum, in: what has come from all ranks, and what this rank has sent, which is not read: it takes the
 * gradient. */
extern const hd_op_kind hdi_op_tensor_gather, hdi_op_tensor_exchange, hdi_op_tensor_sum;

/* Options of a step, in which a rank sends in[0] to one rank of the axis and has out[0] from another. */
typedef struct hdi_tensor_step {
    hdi_collective collective;
    int to, from;
} hdi_tensor_step;
extern const hd_op_kind hdi_op_tensor_step;

/* out[0] = in[0]: rows that are wanted in another place. */
extern const hd_op_kind hdi_op_tensor_place;

#endif
