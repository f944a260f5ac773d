/* Data parallelism: what happens to gradients after the backward has made them. */
#ifndef HDI_PARALLEL_DATA_H
#define HDI_PARALLEL_DATA_H

#include "program/layout.h"

/* Put gradient work into a program's backward, each bucket's right after its last gradient, so that
 * it travels while the rest computes: in exact mode the bucket first joins its partial sums
 * (gradient_fold); in the last micro-batch shards go to their owners by all-to-all, are summed in
 * the fixed tree over data ranks, and, unless the optimizer state is sharded, gathered again.
 * `layout` must outlive the program. Sticky errors of the program apply; a parameter that the loss
 * does not depend on is one. */
void hdi_data_reduce(hd_program *program, int index, const hdi_layout *layout);

/* The gradient level that local micro-batch `micro_batch` of `count` writes, and how often it then
 * joins levels below: micro-batches meet in a binary tree over their index. */
int hdi_gradient_level(int micro_batch);
int hdi_gradient_folds(int micro_batch, int count);

/* Levels needed for `count` micro-batches. */
int hdi_gradient_levels(int count);

#endif
