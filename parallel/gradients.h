/* Gradients that wait for the update in pinned host memory. */
#ifndef HDI_PARALLEL_GRADIENTS_H
#define HDI_PARALLEL_GRADIENTS_H

#include "ops/update.h"
#include "program/layout.h"

typedef struct hdi_host_gradients {
    bool accumulates;        /* steps have several micro-batches */
    const hdi_piece *pieces; /* [count] whose squares are taken on the way, ascending; borrowed */
    int count;
    int64_t blocks; /* of all parameters: length of the sums, the state HDI_SQUARES */
} hdi_host_gradients;

#define HDI_SQUARES "squares.sums"

/* Let a program's gradients, number `index` of a layout that does not shard them, lie in buckets that
 * pass: a bucket comes in, if it is added to, one bucket ahead; once its last gradient is there, squares
 * are taken, in the last micro-batch, and it goes to the host beside the computation. The pieces of late
 * buckets are left out, whose sums are not complete yet. Sticky errors of the program apply. */
void hdi_gradients_to_host(hd_program *program, int index, const hdi_layout *layout,
                           const hdi_host_gradients *options);

/* The squares of what of `elements` stored gradients from `first` on is complete in its bucket; false:
 * none. */
bool hdi_squares_of(const hdi_host_gradients *options, const hdi_bucket *bucket, int64_t first,
                    int64_t elements, hdi_squares_options *out);
hd_tensor hdi_squares_state(hd_program *program, const hdi_host_gradients *options);

/* A range of the host's flat gradients as a tensor. */
hd_tensor hdi_host_gradient(hd_program *program, int64_t first, int64_t elements);

#endif
