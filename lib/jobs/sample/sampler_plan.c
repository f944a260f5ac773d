/* Plans of a sampler's two phases, and how many slices denoising works in: as few as the budget allows,
 * where weights on the host are not enough. */
#include "jobs/sample/sampler.h"

#include "core/error.h"
#include "report/format.h"

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
                                          .pinned_share = o->backend ? o->backend->pinned_share : 0,
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

static size_t need(const hd_plan *plan)
{
    return plan ? hd_plan_total_bytes(plan) : 0;
}

/* Where nothing fits, what needs the least. */
static hd_status choose_slices(hd_sampler *sampler)
{
    enum { MOST = 16 };
    const int wanted = sampler->options.slices;
    if (wanted) return plan_denoising(sampler, wanted);
    hd_status status = HD_ERROR_BUDGET;
    int fits = 0, narrowest = 1;
    size_t least = SIZE_MAX;
    for (int slices = 1; slices <= MOST; slices *= 2) {
        status = plan_denoising(sampler, slices);
        if (status != HD_OK && status != HD_ERROR_BUDGET) return status;
        if (status == HD_OK && !takes_turns(sampler->denoise)) return HD_OK;
        if (status == HD_OK && !fits) fits = slices;
        if (need(sampler->denoise) >= least) continue;
        least = need(sampler->denoise);
        narrowest = slices;
    }
    const int chosen = fits ? fits : narrowest;
    return chosen != sampler->slices ? plan_denoising(sampler, chosen) : status;
}

hd_status hdi_sampler_plan(hd_sampler *sampler, size_t *least)
{
    hd_status denoise = choose_slices(sampler);
    if (denoise != HD_OK && denoise != HD_ERROR_BUDGET) return denoise;
    const hd_status condition = plan_phase(sampler, HD_PURPOSE_CONDITION, &sampler->condition);
    if (condition == HD_OK && denoise == HD_OK) return HD_OK;
    const size_t one = need(sampler->condition), other = need(sampler->denoise);
    *least = one > other ? one : other;
    if (condition != HD_OK)
        return hdi_error_context(condition,
                                 "conditions of %" PRId64
                                 " steps; for these and the steps a budget of %s would do",
                                 sampler->options.shape.steps, hdi_bytes(*least).text);
    denoise = plan_denoising(sampler, sampler->slices); /* says again what is short */
    return hdi_error_context(denoise,
                             "denoising in %d slice%s; a budget of %s would do, and a smaller "
                             "video, bf16 or more pipeline stages need less",
                             sampler->slices, sampler->slices == 1 ? "" : "s",
                             hdi_bytes(*least).text);
}

hd_status hdi_sampler_agree(hd_sampler *sampler)
{
    const hd_mesh *mesh = sampler->options.mesh;
    bool conditions = false, steps = false;
    if (sampler->options.residency != HD_RESIDENCY_AUTO) return HD_OK;
    HD_RETURN_IF_ERROR(
        hdi_stage_agree(mesh, sampler->condition, &sampler->keep_condition, &conditions));
    HD_RETURN_IF_ERROR(hdi_stage_agree(mesh, sampler->denoise, &sampler->keep_denoise, &steps));
    size_t least;
    return conditions || steps ? hdi_sampler_plan(sampler, &least) : HD_OK;
}

hd_status hdi_sampler_seconds(const hd_sampler *sampler, double *out)
{
    return hd_plan_seconds(sampler->denoise, sampler->sets[0].denoise, out);
}
