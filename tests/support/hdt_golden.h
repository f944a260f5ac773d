/* Training a golden model through hd_trainer, from its stored weights on its stored tokens. */
#ifndef HDT_GOLDEN_H
#define HDT_GOLDEN_H

#include "tests/support/hdt.h"

#include <heddle/trainer.h>

enum { HDT_GOLDEN_STEPS = 10 };

/* Losses and gradient norms step by step, and how far they may be from the fp64 run: 2e-5 for the
 * loss, as the reference's notes allow, and for the norm as many times the reference's own fp32
 * error as that is for the loss. */
typedef struct hdt_golden_run {
    double loss[HDT_GOLDEN_STEPS], norm[HDT_GOLDEN_STEPS];
    double wanted_loss[HDT_GOLDEN_STEPS], wanted_norm[HDT_GOLDEN_STEPS];
    double loss_tolerance, norm_tolerance;
} hdt_golden_run;

/* How the golden batch of two sequences is worked on: by `data` ranks or in `accumulate`
 * micro-batches, or both; the product is 1 or 2. */
typedef struct hdt_golden_layout {
    hd_mesh_options mesh;
    int accumulate, chunks;
    bool exact, shard_state, recompute;
} hdt_golden_layout;

/* Train "gpt2" or "llama" on `comm`. Collective. */
hd_status hdt_golden_train(hd_comm *comm, const char *family, const hdt_golden_layout *layout,
                           hdt_golden_run *out);

/* Every loss and norm is within its tolerance; `what` names the run. */
void hdt_golden_compare(const hdt_golden_run *run, const char *what);

#endif
