/* What is kept where, as the planner chooses it from the budget. */
#include "core/error.h"
#include "jobs/train/trainer.h"

/* From cheap to dear. Copies of optimizer state cost a part of a step's end; computing again, a third of
 * all micro-batches; copies of activations, what the link is too slow for; those of gradients, both ways
 * in every micro-batch, the most. */
typedef enum on_host { NOTHING, OPTIMIZER, GRADIENTS } on_host; /* each with those before it */

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
};

static hd_residency place_of(const struct rung *rung, on_host what)
{
    return rung->most >= what ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT;
}

/* What the user has decided stays. */
static void choose(const hd_trainer_options *wanted, const struct rung *rung,
                   hd_trainer_options *out)
{
    *out = *wanted;
    if (wanted->activations == HD_ACTIVATIONS_AUTO) out->activations = rung->activations;
    if (wanted->optimizer_residency == HD_RESIDENCY_AUTO)
        out->optimizer_residency = place_of(rung, OPTIMIZER);
    if (wanted->gradient_residency == HD_RESIDENCY_AUTO)
        out->gradient_residency = hdi_trainer_gradients_may_leave(wanted)
                                      ? place_of(rung, GRADIENTS)
                                      : HD_RESIDENCY_RESIDENT;
}

static bool is_same_choice(const hd_trainer_options *a, const hd_trainer_options *b)
{
    return a->activations == b->activations && a->optimizer_residency == b->optimizer_residency &&
           a->gradient_residency == b->gradient_residency;
}

/* What fits is the cheapest that does. */
hd_status hd_trainer_create(const hd_trainer_options *options, hd_trainer **out)
{
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
        status = hdi_trainer_create_as(&tried, out);
        if (status != HD_ERROR_BUDGET) return status;
    }
    return status;
}
