/* The inside of hdi_program_cut: products beside what travels on the tensor axis, in pieces of rows.
 *
 * After a gather a rank begins with its own rows and goes on with the others' as they come; before an
 * exchange it makes the other ranks' first, and its own while those are on their way. In step s each rank
 * sends to the s-th rank after it and has from the s-th before it. Pieces lie within what they are pieces
 * of: what reads the whole, as weight gradients do, does not notice. */
#ifndef HDI_OPS_TENSOR_PIECES_H
#define HDI_OPS_TENSOR_PIECES_H

#include "ops/sequence_parts.h"
#include "ops/tensor_axis.h"

/* Seconds of a product of all ranks' rows, of what travels before it (a gather) or after it, and of what
 * is computed beside that, whatever happens to the product. each: what a piece costs beyond its rows. */
typedef struct hdi_piece_timing {
    double product, sent, beside, each;
    int ranks;
} hdi_piece_timing;

enum { HDI_TENSOR_GROUPS = 8 };

/* Seconds until both are through in `groups` groups: one, all ranks' rows at once, or own rows and groups
 * - 1 pieces of each other rank's. And the number of groups that takes the fewest. */
double hdi_piece_seconds(const hdi_piece_timing *timing, bool gathers, int groups);
int hdi_piece_groups(const hdi_piece_timing *timing, bool gathers);

typedef struct hdi_row_run {
    int64_t first, count;
} hdi_row_run;

/* Rows that came together, for the products after them: a piece of the others' waits for its step, what
 * is this rank's does not. */
typedef struct hdi_gathered {
    hd_tensor whole;
    int product; /* the first of them, which is cut; ops that need own rows alone may go before it */
    bool bare;   /* that is not enough to hide what travels */
} hdi_gathered;

typedef struct hdi_cutter {
    hd_program *program;
    hd_rates rates;
    int original; /* ops, before any is added; places are indexes among them */
    int *before;  /* [added] */
    int before_capacity;
    bool *dead; /* [original] */
    hdi_gathered *gathered;
    int gathered_count, gathered_capacity;
} hdi_cutter;

static inline const hdi_op *hdi_cut_op(const hdi_cutter *c, int index)
{
    return c->program->ops[index];
}

/* The first living op from `from` on that reads a tensor, or -1. */
int hdi_cut_reader(const hdi_cutter *c, hd_tensor x, int from);
bool hdi_cut_has_one_reader(const hdi_cutter *c, hd_tensor x);

/* An activation of `rows` rows with bytes of its own, made at once by one op. */
bool hdi_cut_is_plain(const hd_program *program, hd_tensor x, int64_t rows);

/* Whether op `index` makes `rows` rows of plain tensors, and may make some of them. */
bool hdi_cut_is_by_rows(const hdi_cutter *c, int index, int64_t rows);

/* Append an op that goes before op `at`, in the scope and phase of op `source`. */
void hdi_cut_emit(hdi_cutter *c, int source, int at, const hd_op_kind *kind, const void *options,
                  int inputs, const hd_tensor *in, int outputs, const hd_tensor *out);

/* Rows of `whole` that an op is to write. */
hd_tensor hdi_cut_part(hdi_cutter *c, hd_tensor whole, hdi_row_run rows);

/* Op `index` for some rows only, from `in` where that is given. */
void hdi_cut_emit_rows(hdi_cutter *c, int index, int at, hdi_row_run rows, const hd_tensor *in,
                       const hd_tensor *out);

/* The ranks' rows of a tensor that has more before them and after them, which all ranks have, and the
 * pieces that they travel in. */
typedef struct hdi_cut_ranks {
    const hdi_sequence_options *o; /* rows of one rank below another's: of all its sequences */
    int source;                    /* the op that is cut */
    int64_t before, rows, columns;
    int pieces; /* of each rank's rows */
} hdi_cut_ranks;

hdi_row_run hdi_cut_rows(const hdi_cut_ranks *r, int rank);
hdi_row_run hdi_cut_piece(const hdi_cut_ranks *r, hdi_row_run rows, int piece);

/* With the rows that all ranks have, where they touch. */
hdi_row_run hdi_cut_extend(const hdi_cut_ranks *r, hdi_row_run rows);

/* The rank `step` places on, or before. */
int hdi_cut_peer(const hdi_cut_ranks *r, int step);

void hdi_cut_emit_step(hdi_cutter *c, const hdi_cut_ranks *r, int at, int step, int piece,
                       hd_tensor in, hd_tensor out);

/* The mean over the ranks of what the product at `index` takes for all rows, by the whole of its weights:
 * ranks have unequal shares of those, but must come to the same pieces. Of those between two ops. */
double hdi_cut_seconds(const hdi_cutter *c, const hdi_cut_ranks *r, int index);
double hdi_cut_seconds_between(const hdi_cutter *c, const hdi_cut_ranks *r, int from, int to);

/* How long a product and what travels take, and into how many pieces each other rank's rows are cut; none:
 * all ranks' rows stay together. */
hdi_piece_timing hdi_cut_timing(const hdi_cutter *c, const hdi_cut_ranks *r, double product,
                                double beside);
int hdi_cut_choose(const hdi_cutter *c, const hdi_cut_ranks *r, const hdi_piece_timing *timing,
                   bool gathers);

/* The two sides of layers (tensor_enter.c, tensor_leave.c): a gather and the product after it, an exchange
 * and the products before it. All gathers come first. */
void hdi_cut_gather(hdi_cutter *c, int index);
void hdi_cut_exchange(hdi_cutter *c, int index);

#endif
