/* What the ops of the sequence axis share: options, counts, shape rules. */
#ifndef HDI_OPS_SEQUENCE_PARTS_H
#define HDI_OPS_SEQUENCE_PARTS_H

#include "ops/sequence.h"

enum { HDI_SEQUENCE_PARTS = 3 };

typedef struct hdi_sequence_options {
    hdi_collective collective;
    int ranks, rank;
    int64_t sequences, tokens; /* rows of all ranks; of rows that all ranks have: sequences, 1 */
    int64_t groups;            /* dealt out over ranks */
    int64_t unit[HDI_SEQUENCE_PARTS]; /* columns of each part in a group: queries, keys, values */
    int parts;
    bool back;
} hdi_sequence_options;

/* Groups before those of `rank`; its groups, and its rows of all sequences; columns of a group. */
int64_t hdi_sequence_first_group(int64_t groups, int ranks, int rank);
int64_t hdi_sequence_groups_of(const hdi_sequence_options *o, int rank);
int64_t hdi_sequence_rows_of(const hdi_sequence_options *o, int rank);
int64_t hdi_sequence_group_columns(const hdi_sequence_options *o);

/* Shape rules: the input's dims, any where -1; an output of its dtype. */
hd_status hdi_sequence_check(const hd_op *op, int64_t rows, int64_t columns);
hd_status hdi_sequence_declare(hd_program *program, const hd_op *op, int64_t rows, int64_t columns);

/* Gradients of ops that only move elements are moved back by the same op. */
void hdi_sequence_move_back(hd_backward *context, const hd_op *op);

/* Within a rank. `columns`: rows of all columns to one chunk for each rank's columns. `rows`: all
 * sequences to one chunk for each rank's tokens. `own_rows`: of each sequence, or, back, the chunk of
 * all ranks'; without gradient. `own_columns`: of rows that all ranks have; back: with zeros for the
 * others'. `sum`: of what all ranks have sent, in their order. */
extern const hd_op_kind hdi_op_sequence_columns, hdi_op_sequence_rows, hdi_op_sequence_own_rows,
    hdi_op_sequence_own_columns, hdi_op_sequence_sum;

#endif
