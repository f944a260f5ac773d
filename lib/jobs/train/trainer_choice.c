/* What is kept where, as the planner chooses it from the budget. */
#include "core/error.h"
#include "jobs/train/trainer.h"

/* From cheap to dear. Copies of optimizer state cost a part of a step's end; computing again, a third of
 * all micro-batches; copies of activations, what the link is too slow for; those of gradients, both ways
 * in every micro-batch, and of weights, for each forward and backward and for the update, the most. */
typedef enum on_host {
    NOTHING,
    OPTIMIZER,
    GRADIENTS,
    WEIGHTS
} on_host; /* each with those before it */

static const struct rung {
    hd_activations activations;
    on_host most;
} rungs[] = {
    {HD_ACTIVATIONS_KEEP, NOTHING},
    {HD_ACTIVATIONS_KEEP, OPTIMIZER},
    {HD_ACTIVATIONS_RECOMPUTE, NOTHING},
    {HD_ACTIVATIONS_RECOMPUTE_HOST, NOTHING},
    {HD_ACTIVATIONS_RECOMPUTE, OPTIMIZER},
    {HD_ACTIVATIONS_RECOMPUTE_HOST, OPTIMIZER},
    {HD_ACTIVATIONS_HOST, NOTHING},
    {HD_ACTIVATIONS_HOST, OPTIMIZER},
    {HD_ACTIVATIONS_KEEP, GRADIENTS},
    {HD_ACTIVATIONS_RECOMPUTE, GRADIENTS},
    {HD_ACTIVATIONS_RECOMPUTE_HOST, GRADIENTS},
    {HD_ACTIVATIONS_HOST, GRADIENTS},
    {HD_ACTIVATIONS_KEEP, WEIGHTS},
    {HD_ACTIVATIONS_RECOMPUTE, WEIGHTS},
    {HD_ACTIVATIONS_RECOMPUTE_HOST, WEIGHTS},
    {HD_ACTIVATIONS_HOST, WEIGHTS},
};

static void choose_place(const struct rung *rung, on_host what, hd_residency *inout)
{
    if (*inout == HD_RESIDENCY_AUTO)
        *inout = rung->most >= what ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT;
}

/* What the user has decided stays. */
static void choose(const hd_trainer_options *wanted, const struct rung *rung,
                   hd_trainer_options *out)
{
    *out = *wanted;
    if (wanted->activations == HD_ACTIVATIONS_AUTO) out->activations = rung->activations;
    choose_place(rung, OPTIMIZER, &out->optimizer_residency);
    if (hdi_trainer_gradients_may_leave(wanted))
        choose_place(rung, GRADIENTS, &out->gradient_residency);
    else if (wanted->gradient_residency == HD_RESIDENCY_AUTO)
        out->gradient_residency = HD_RESIDENCY_RESIDENT;
    choose_place(rung, WEIGHTS, &out->residency);
}

static bool is_same_choice(const hd_trainer_options *a, const hd_trainer_options *b)
{
    return a->activations == b->activations && a->optimizer_residency == b->optimizer_residency &&
           a->gradient_residency == b->gradient_residency && a->residency == b->residency;
}

/* Of a trainer with all blocks on the host: another, if that fits, with as many on the device as there is
 * room for. */
static hd_status keep_blocks(const hd_trainer_options *options, bool cuts_blocks,
                             hd_trainer **inout)
{
    const hd_plan *plan = (*inout)->plan;
    const hdi_residency *it = &plan->residency;
    const int blocks = plan->layout->host_blocks;
    const size_t room = options->budget - hd_plan_total_bytes(plan);
    const size_t each = it->gathers ? it->shard_bytes : it->slot_bytes;
    if (!blocks || room < each) return HD_OK;
    const size_t fit = room / each, most = (size_t)blocks - 1;
    hd_trainer_options fewer = *options;
    hd_trainer *kept = NULL;
    fewer.host_blocks = blocks - (int)(fit < most ? fit : most);
    const hd_status status = hdi_trainer_create_sliced(&fewer, cuts_blocks, &kept);
    if (status == HD_ERROR_BUDGET) return HD_OK;
    HD_RETURN_IF_ERROR(status);
    hd_trainer_destroy(*inout);
    *inout = kept;
    return HD_OK;
}

/* What fits is the cheapest that does. Ranks that sum gradients may choose differently, since their shards
 * and parts differ by a little: their buckets must not. */
hd_status hd_trainer_create(const hd_trainer_options *options, hd_trainer **out)
{
    const bool may_stream = options->residency == HD_RESIDENCY_AUTO && options->budget;
    const int others = hd_mesh_ranks(options->mesh) / hd_mesh_size(options->mesh, HD_AXIS_PIPELINE);
    const bool cuts_blocks = may_stream && others > 1;
    hd_status status = HD_OK;
    *out = NULL;
    for (size_t r = 0; r < sizeof rungs / sizeof rungs[0]; r++) {
        hd_trainer_options tried, before;
        bool is_new = true;
        choose(options, &rungs[r], &tried);
        for (size_t earlier = 0; earlier < r && is_new; earlier++) {
            choose(options, &rungs[earlier], &before);
            is_new = !is_same_choice(&tried, &before);
        }
        if (!is_new) continue;
        status = hdi_trainer_create_sliced(&tried, cuts_blocks, out);
        if (status == HD_OK && may_stream && tried.residency == HD_RESIDENCY_HOST)
            return keep_blocks(&tried, cuts_blocks, out);
        if (status != HD_ERROR_BUDGET) return status;
    }
    return status;
}
