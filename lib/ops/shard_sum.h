/* Sums over micro-batches of a rank's shard of gradients, and how partial sums meet. */
#ifndef HDI_OPS_SHARD_SUM_H
#define HDI_OPS_SHARD_SUM_H

#include "program/program.h"

/* A shard is kept in `levels` runs of the same length, one after another; the first is the sum when the
 * step's last micro-batch has been added. */
typedef struct hdi_shard_sum_options {
    int parts;               /* runs that come of one micro-batch, each from another rank */
    int levels;              /* 1 unless exact */
    bool exact, accumulates; /* accumulates: there are several micro-batches */
} hdi_shard_sum_options;

/* in[0]: a micro-batch's gradients of this rank's shard, `parts` runs. out[0]: all levels; the step's
 * first micro-batch begins the sum. In exact mode runs join in the tree over (micro-batch, rank). */
extern const hd_op_kind hdi_op_shard_sum;

/* Copies of a shard that is kept on the host: those of its levels that the sum of this micro-batch reads
 * come to the device; and those go back that it has written and a later one or the update reads. in[0] and
 * out[0] are all levels, on either side. */
extern const hd_op_kind hdi_op_shard_load, hdi_op_shard_store;

/* Leaves of the tree that a micro-batch adds to an exact sum over `parts` ranks: runs that are a whole
 * subtree are summed at once. */
int hdi_shard_leaves(int parts, bool accumulates);

/* The gradient level that local micro-batch `micro_batch` of `count` writes, and how often it then
 * joins levels below: micro-batches meet in a binary tree over their index. */
int hdi_gradient_level(int micro_batch);
int hdi_gradient_folds(int micro_batch, int count);

/* Levels needed for `count` micro-batches. */
int hdi_gradient_levels(int count);

/* Join the level at `at`, fp32, with `folds` levels below, `level_bytes` apart. */
hd_status hdi_gradient_fold(const hd_run *run, char *at, int64_t elements, size_t level_bytes,
                            int folds);

#endif
