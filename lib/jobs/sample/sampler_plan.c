/* Plans of a sampler's two phases, and how many slices denoising works in: as few as the budget allows,
 * where weights on the host are not enough. */
#include "jobs/sample/sampler.h"

#include "core/error.h"

#include <inttypes.h>

/* Programs of one phase share weights. Conditions are made one after another, so their scratch shares
 * bytes; a denoising pass computes while the next one's x is on its way, whichever text it has. */
static hd_status plan_phase(const hd_sampler *sampler, hd_purpose phase, hd_plan **out)
{
    const hd_sampler_options *o = &sampler->options;
    const hdi_keeping *keep =
        phase == HD_PURPOSE_CONDITION ? &sampler->keep_condition : &sampler->keep_denoise;
    hd_plan_destroy(*out);
    HD_RETURN_IF_ERROR(
        hd_plan_create(&(hd_plan_options){.budget = o->budget,
                                          .foreign = o->foreign,
                                          .transport = o->transport,
                                          .mailboxes = o->mailboxes,
                                          .rates = o->rates,
                                          .residency = keep->residency,
                                          .host_blocks = keep->host_blocks,
                                          .stream_slots = keep->stream_slots,
                                          .shards = hd_mesh_size(o->mesh, HD_AXIS_SHARD),
                                          .shard = hd_mesh_index(o->mesh, HD_AXIS_SHARD)},
                       out));
    bool any = false;
    for (int s = 0; s < o->text_lengths; s++) {
        const hdi_sampler_set *set = &sampler->sets[s];
        hd_program *program = phase == HD_PURPOSE_CONDITION ? set->condition : set->denoise;
        if (!program) continue;
        any = true;
        HD_RETURN_IF_ERROR(
            hd_plan_add(*out, program,
                        &(hd_plan_program_options){.group = phase == HD_PURPOSE_CONDITION ? s : 0,
                                                   .boundary_slots = sampler->boundary_slots}));
    }
    if (any) return hd_plan_finish(*out);
    hd_plan_destroy(*out);
    *out = NULL;
    return HD_OK;
}

static hd_status plan_denoising(hd_sampler *sampler, int slices)
{
    hd_status status = HD_ERROR_BUDGET;
    hd_plan_destroy(sampler->denoise); /* before its programs */
    sampler->denoise = NULL;
    HD_RETURN_IF_ERROR(hdi_sampler_build_denoising(sampler, slices));
    for (int slots = sampler->stages > 1 ? HDI_SAMPLER_SLOTS : 1;
         slots > 0 && status == HD_ERROR_BUDGET; slots--) {
        sampler->boundary_slots = slots;
        status = plan_phase(sampler, HD_PURPOSE_DENOISE, &sampler->denoise);
    }
    return status;
}

/* Copies of weights and computing wait for each other, which slices may avoid. */
static bool takes_turns(const hd_plan *plan)
{
    return plan && plan->residency.slots == 1 && plan->residency.host_blocks > 1;
}

static hd_status choose_slices(hd_sampler *sampler)
{
    enum { MOST = 16 };
    const int wanted = sampler->options.slices;
    if (wanted) return plan_denoising(sampler, wanted);
    hd_status status = HD_ERROR_BUDGET;
    int fits = 0;
    for (int slices = 1; slices <= MOST; slices *= 2) {
        status = plan_denoising(sampler, slices);
        if (status != HD_OK && status != HD_ERROR_BUDGET) return status;
        if (status == HD_OK && !takes_turns(sampler->denoise)) return HD_OK;
        if (status == HD_OK && !fits) fits = slices;
    }
    return fits && fits != sampler->slices ? plan_denoising(sampler, fits) : status;
}

static size_t need(const hd_plan *plan)
{
    return plan ? hd_plan_total_bytes(plan) : 0;
}

hd_status hdi_sampler_plan(hd_sampler *sampler)
{
    hd_status denoise = choose_slices(sampler);
    if (denoise != HD_OK && denoise != HD_ERROR_BUDGET) return denoise;
    const hd_status condition = plan_phase(sampler, HD_PURPOSE_CONDITION, &sampler->condition);
    if (condition == HD_OK && denoise == HD_OK) return HD_OK;
    const size_t one = need(sampler->condition), other = need(sampler->denoise);
    const size_t least = one > other ? one : other;
    if (condition != HD_OK)
        return hdi_error_context(condition,
                                 "sampler, conditions of %" PRId64
                                 " steps (a budget of %zu bytes would do for all)",
                                 sampler->options.shape.steps, least);
    denoise = plan_denoising(sampler, sampler->slices); /* says again what is short */
    return hdi_error_context(denoise,
                             "sampler, denoising in %d slices (a budget of %zu bytes would do; a "
                             "smaller video, bf16 or more pipeline stages need less)",
                             sampler->slices, least);
}

hd_status hdi_sampler_agree(hd_sampler *sampler)
{
    const hd_mesh *mesh = sampler->options.mesh;
    bool conditions = false, steps = false;
    if (sampler->options.residency != HD_RESIDENCY_AUTO) return HD_OK;
    HD_RETURN_IF_ERROR(
        hdi_stage_agree(mesh, sampler->condition, &sampler->keep_condition, &conditions));
    HD_RETURN_IF_ERROR(hdi_stage_agree(mesh, sampler->denoise, &sampler->keep_denoise, &steps));
    return conditions || steps ? hdi_sampler_plan(sampler) : HD_OK;
}

hd_status hdi_sampler_seconds(const hd_sampler *sampler, double *out)
{
    return hd_plan_seconds(sampler->denoise, sampler->sets[0].denoise, out);
}
