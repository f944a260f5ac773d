/* Communication and joining of gradients as ops. Options point into the layout, which outlives the
 * programs. */
#ifndef HDI_OPS_COLLECTIVE_H
#define HDI_OPS_COLLECTIVE_H

#include "program/program.h"

/* The head of every communication op's options: what must be equal on all ranks of the axis. */
typedef struct hdi_collective {
    hd_axis axis;     /* HD_AXIS_NONE: the world */
    int64_t elements; /* in all, over the ranks */
    const char *what; /* names the data in messages; borrowed */
} hdi_collective;

/* in[0] -> out[0], counts per rank of the axis, in elements of in[0]'s dtype. */
typedef struct hdi_all_to_all_options {
    hdi_collective collective;
    const int64_t *send_counts, *send_offsets, *recv_counts, *recv_offsets; /* borrowed */
} hdi_all_to_all_options;
extern const hd_op_kind hdi_op_all_to_all;

/* out[0] gathered in place; no inputs. */
typedef struct hdi_all_gather_options {
    hdi_collective collective;
    const int64_t *counts, *offsets; /* borrowed */
} hdi_all_gather_options;
extern const hd_op_kind hdi_op_all_gather;

/* out[0] summed over the ranks of the axis in place; no inputs. */
extern const hd_op_kind hdi_op_all_reduce; /* options: hdi_collective */

/* out[0] = tree sum of `parts` runs of out[0]'s length in in[0]. */
typedef struct hdi_tree_sum_options {
    int parts;
} hdi_tree_sum_options;
extern const hd_op_kind hdi_op_tree_sum;

/* out[0] += in[0], ranges of flat storage; out[0] is read, too. */
extern const hd_op_kind hdi_op_gradient_join;

/* Join the level that out[0] was written at with run->folds levels below, fp32; no inputs. */
extern const hd_op_kind hdi_op_gradient_fold;

/* NULL unless the op is one of these; a user's own ops may communicate by other means. */
const hdi_collective *hdi_op_collective(const hd_op *op);

#endif
