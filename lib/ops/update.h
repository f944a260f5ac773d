/* The optimizer's ops: norms and updates over pieces of flat storage. */
#ifndef HDI_OPS_UPDATE_H
#define HDI_OPS_UPDATE_H

#include "program/program.h"

/* A run of one parameter that this rank works on. */
typedef struct hdi_piece {
    int64_t first, elements; /* of the flat weights, for sums of squares of the stored gradients;
                                a block boundary of the parameter */
    int64_t state_first;     /* of the flat optimizer state */
    int64_t block;           /* global index of its first block */
    int bucket;
    float weight_decay;
} hdi_piece;

/* in[0]: flat gradients from position `first` on. out[0]: F64 [blocks of all parameters], 0 where other
 * ranks work; with `adds`, what is not of the pieces stays. */
typedef struct hdi_squares_options {
    const hdi_piece *pieces; /* borrowed */
    int count;
    int64_t first;
    bool adds;
} hdi_squares_options;
extern const hd_op_kind hdi_op_squares;

/* in[0]: sums that several ops have added to; out[0]: a copy. */
extern const hd_op_kind hdi_op_collect_squares;

/* in: gradients, scalars; out: weights, m, v (ranges of flat storage) and, for 16-bit weights, their
 * fp32 master or, I16, remainders, which lie as m does. Positions of the pieces count
 * from the ranges' first elements. */
typedef struct hdi_adamw_options {
    const hdi_piece *pieces; /* borrowed */
    int count;
    int64_t first, state_first; /* of the ranges */
    float beta1, beta2, epsilon;
} hdi_adamw_options;
extern const hd_op_kind hdi_op_adamw;

/* in: F32 [1] share, then fp32 values, or BF16 weights and their I16 remainders; out: F32 average of
 * them, moved towards them by the share. */
typedef struct hdi_average_options {
    int64_t elements; /* the first of each */
} hdi_average_options;
extern const hd_op_kind hdi_op_average;

#endif
