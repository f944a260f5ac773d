/* How many slices the loss is made in, as the planner chooses it from the budget. */
#include "core/error.h"
#include "jobs/train/trainer.h"

#include <stdio.h>

/* The number tells in the last bits of gradients, so that it must not depend on what a rank has; and ranks that
 * share classes meet in each slice, those that share layers cut products beside what travels alike. */
hd_status hdi_trainer_check_slices(const hd_trainer_options *o)
{
    if (o->slices >= 0 && o->mlp_slices >= 0) return HD_OK;
    const char *key = o->slices < 0 ? "train.slices" : "train.mlp_slices";
    const int tensor = hd_mesh_size(o->mesh, HD_AXIS_TENSOR);
    if (o->exact)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "%s 0, by the budget, with layout.reduction exact: layouts would "
                         "have different ones, and other bits; want a number",
                         key);
    if (tensor > 1)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "%s 0, by the budget, with layout.tensor %d: ranks, whose bytes "
                         "differ, could choose different ones; want a number",
                         key, tensor);
    return HD_OK;
}

static hd_status create_in(const hd_trainer_options *options, int slices, bool cuts_blocks,
                           hd_trainer **out)
{
    hd_trainer_options tried = *options;
    tried.slices = slices;
    hd_trainer_destroy(*out);
    *out = NULL;
    return hdi_trainer_create_as(&tried, cuts_blocks, out);
}

/* Those of 1, 2, 4 .. the most that fit, the fewest; where none does, what is short without slices. */
hd_status hdi_trainer_create_sliced(const hd_trainer_options *options, bool cuts_blocks,
                                    hd_trainer **out)
{
    const int most = HD_SLICES_AUTO_MOST;
    char refusal[4096];
    *out = NULL;
    if (options->slices >= 0) return hdi_trainer_create_as(options, cuts_blocks, out);
    hd_status status = create_in(options, 1, cuts_blocks, out);
    if (status != HD_ERROR_BUDGET) return status;
    snprintf(refusal, sizeof refusal, "%s", hd_last_error());
    status = create_in(options, most, cuts_blocks, out);
    if (status == HD_ERROR_BUDGET) return hdi_error(status, "%s", refusal);
    for (int slices = 2; status == HD_OK && slices < most; slices *= 2) {
        status = create_in(options, slices, cuts_blocks, out);
        if (status != HD_ERROR_BUDGET) return status;
        status = HD_OK;
    }
    return status == HD_OK ? create_in(options, most, cuts_blocks, out) : status;
}
