/* What the ops of the sequence axis share: options, counts, shape rules. */
#ifndef HDI_OPS_SEQUENCE_PARTS_H
#define HDI_OPS_SEQUENCE_PARTS_H

#include "ops/sequence.h"

enum { HDI_SEQUENCE_PARTS = 3 };

typedef struct hdi_sequence_options {
    hdi_collective collective;
    int ranks, rank, base; /* that take part: rank 0 is rank `base` of the axis */
    int ring;              /* these three as in hdi_sequence_cut */
    bool zigzag;
    int64_t together;
    int64_t sequences, tokens; /* rows of all ranks; of rows that all ranks have: sequences, 1 */
    int64_t groups;            /* dealt out over ranks */
    int64_t unit[HDI_SEQUENCE_PARTS]; /* columns of each part in a group: queries, keys, values */
    int parts;
    int turn, turns;       /* which of a rank's groups, of how many runs of them */
    bool single;           /* tensors of that turn alone, not one for each */
    int64_t before, after; /* rows of a sequence that all ranks have, around the own ones */
    bool all_ranks;        /* of those rows all ranks' columns, not this rank's */
    bool back;
} hdi_sequence_options;

/* Groups before those of `rank`, all turns together. */
int64_t hdi_sequence_first_group(int64_t groups, int ranks, int rank);

/* How tokens are cut: by places of a ring, then by the ranks that share a place, whose number is
 * ranks / ring; rank r is at place r / (ranks / ring). A zigzag gives place p the pieces p and
 * 2 * ring - 1 - p of twice as many, so that a causal mask leaves all places the same work. */
typedef struct hdi_sequence_cut {
    int ranks, ring;
    bool zigzag;
    int64_t together; /* tokens in a run that places do not part; 0: 1 */
} hdi_sequence_cut;

typedef struct hdi_token_run {
    int64_t first, count;
} hdi_token_run;

enum { HDI_SEQUENCE_RUNS = 2 };

/* What `rank` has of `tokens`, in its order; runs may be empty. And their sum. */
void hdi_sequence_runs(const hdi_sequence_cut *cut, int64_t tokens, int rank,
                       hdi_token_run out[HDI_SEQUENCE_RUNS]);
int64_t hdi_sequence_tokens_of(const hdi_sequence_cut *cut, int64_t tokens, int rank);

/* The cut over all ranks of a program's axis, and over the places of its ring, whose `rank` is the
 * place; the number of ranks that share a place, and this program's place. */
hdi_sequence_cut hdi_sequence_cut_of(const hd_program *program);
hdi_sequence_cut hdi_sequence_places(const hd_program *program);
int hdi_sequence_sharing(const hd_program *program);
int hdi_sequence_place(const hd_program *program);
int64_t hdi_sequence_place_tokens(const hd_program *program, int64_t tokens);

/* Of a rank's `groups` those before `turn` of `turns`. */
int64_t hdi_sequence_turn_first(int64_t groups, int turns, int turn);

/* Groups before those of `rank`, and its own, of o's turn; its rows of all sequences; columns of a
 * group, and of all ranks' groups of o's turn. */
int64_t hdi_sequence_groups_before(const hdi_sequence_options *o, int rank);
int64_t hdi_sequence_groups_of(const hdi_sequence_options *o, int rank);
int64_t hdi_sequence_rows_of(const hdi_sequence_options *o, int rank);
hdi_sequence_cut hdi_sequence_options_cut(const hdi_sequence_options *o);
int64_t hdi_sequence_group_columns(const hdi_sequence_options *o);
int64_t hdi_sequence_turn_columns(const hdi_sequence_options *o);

/* Shape rules: the input's dims, any where -1; an output of its dtype. */
hd_status hdi_sequence_check(const hd_op *op, int64_t rows, int64_t columns);
hd_status hdi_sequence_declare(hd_program *program, const hd_op *op, int64_t rows, int64_t columns);

/* `rows` rows of `columns` elements between matrices of these widths; and how they come from in[0] to
 * out[which], or (back) from in[which] to out[0]. */
typedef struct hdi_rectangle {
    int64_t rows, columns, x_width, out_width, x_first, out_first;
} hdi_rectangle;
typedef hd_status (*hdi_rectangle_fn)(const hd_run *run, const hdi_rectangle *r, int which,
                                      bool back);
hd_status hdi_sequence_copy(const hd_run *run, const hdi_rectangle *r, int which, bool back);

/* The tokens of `rank` out of rows of all tokens, to (back: from) element `first` on. */
hd_status hdi_sequence_copy_rows(const hd_run *run, int64_t columns, int rank, int64_t first,
                                 bool back);

/* Gradients of ops that only move elements are moved back by the same op. */
void hdi_sequence_move_back(hd_backward *context, const hd_op *op);

/* Within a rank. `part`: rows of all columns to one tensor for each turn, of the own rows with a chunk
 * for each rank's columns, and then, where all ranks have rows alike, one for each turn of those, with
 * this rank's columns or a chunk for each rank's. `join`: the way back; absent tensors are zeros, and so
 * are others' columns. `rows`: all sequences to one chunk for each rank's tokens. `own_rows`: of each
 * sequence, or, back, the chunk of all ranks'; without gradient. `sum`: of what all ranks have sent,
 * in their order. */
extern const hd_op_kind hdi_op_sequence_part, hdi_op_sequence_join, hdi_op_sequence_rows,
    hdi_op_sequence_own_rows, hdi_op_sequence_sum;

/* Of a single turn. `make`: what `part` takes of a linear map's results, from its rows, weight and bias, and
 * nothing else of those. `fill`: in[0], or nothing yet, with that turn's columns as `join` puts them from the
 * tensors after it. No gradient. */
extern const hd_op_kind hdi_op_sequence_make, hdi_op_sequence_fill;

#endif
