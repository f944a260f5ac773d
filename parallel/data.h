/* Data parallelism: what happens to gradients after the backward has made them. */
#ifndef HDI_PARALLEL_DATA_H
#define HDI_PARALLEL_DATA_H

#include "ops/collective.h"
#include "parallel/gradients.h"
#include "program/layout.h"

/* Put gradient work into a program's backward, each bucket's right after its last gradient, so that
 * it travels while the rest computes: in exact mode the bucket first joins its partial sums
 * (gradient_fold); in the last micro-batch shards go to their owners by all-to-all, are summed in
 * the fixed tree over data ranks, and, unless the optimizer state is sharded, gathered again. Where
 * gradients are sharded, shards go to their owners in every micro-batch and are added up there; if there
 * are copies of the shards, the last micro-batch sums over them. With `host`, sums are kept there: of
 * gradients that are sharded the shards, and of layouts of one shard whole buckets, pass through the
 * device to be added to.
 * `layout` must outlive the program. Sticky errors of the program apply; a parameter that the loss
 * does not depend on is one. */
void hdi_data_reduce(hd_program *program, int index, const hdi_layout *layout,
                     const hdi_host_gradients *host);

/* Which micro-batches of a step a data rank takes, numbered over all of them: `group` neighbours take
 * turns, so that what they exchange is next to each other in the order of the sums; groups follow one
 * another. With 1, or 0, each rank has a row of its own. */
typedef struct hdi_deal {
    int rank, group;
} hdi_deal;

/* Global number of micro-batch `local` of the rank's `batches`. */
static inline int64_t hdi_deal_batch(hdi_deal deal, int batches, int64_t local)
{
    const int group = deal.group > 1 ? deal.group : 1;
    return ((int64_t)(deal.rank / group) * batches + local) * group + deal.rank % group;
}

#endif
