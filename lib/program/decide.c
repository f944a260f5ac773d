/* Where blocks of plans that only read weights are kept: as the caller says, or the fewest elsewhere that a
 * budget asks for, over the fastest link. */
#include "core/error.h"
#include "program/place.h"
#include "program/plan.h"

static bool is_gathered(hd_residency kind)
{
    return kind == HD_RESIDENCY_SHARDED || kind == HD_RESIDENCY_HOST_SHARDED;
}

/* Homes and blocks as `kind` has them; all blocks, until their number is chosen. */
static hd_status begin_kind(hd_plan *plan, hd_residency kind)
{
    if (is_gathered(kind)) return HD_OK;
    hdi_layout_keep(plan->layout, 0, 0);
    return hdi_residency_find(plan);
}

static hd_status choose(hd_plan *plan, hd_residency kind, int count, int slots)
{
    if (!is_gathered(kind)) {
        hdi_residency_choose(plan, count, slots);
        return HD_OK;
    }
    const bool on_host = kind == HD_RESIDENCY_HOST_SHARDED;
    hdi_layout_keep(plan->layout, on_host ? 0 : count, on_host ? count : 0);
    return hdi_residency_laid_out(plan, slots);
}

/* Bytes of weights, and of what pinning those on the host takes beside what is pinned anyway. */
static size_t needed(const hd_plan *plan)
{
    const size_t pinned = plan->host_arena_bytes + hdi_place_round(plan->residency.host_bytes);
    return hdi_residency_most_bytes(plan) + hdi_plan_page_tables(plan, pinned);
}

/* Ranks may be at different programs, which therefore have to gather the same blocks in one order. */
static hd_status march(hd_plan *plan, bool *out)
{
    *out = true;
    HD_RETURN_IF_ERROR(choose(plan, HD_RESIDENCY_SHARDED, plan->layout->block_count, 1));
    for (int u = 0; u < plan->unit_count && *out; u++) {
        HD_RETURN_IF_ERROR(hdi_unit_uses(plan, u));
        const hdi_stream_run *run = &plan->units[u].streamed[HDI_PHASE_FORWARD];
        const hdi_stream_run *first = &plan->units[0].streamed[HDI_PHASE_FORWARD];
        *out = run->use_count == first->use_count;
        for (int m = 0; m < run->use_count && *out; m++)
            *out = run->uses[m].block == first->uses[m].block;
    }
    return HD_OK;
}

hd_status hdi_residency_keep(hd_plan *plan, hd_residency kind, int count, int slots)
{
    const int blocks = plan->residency.block_count;
    bool marches = true;
    if (is_gathered(kind) && plan->options.shards < 2)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "residency sharded: blocks in shards of %d rank, want at least 2 data or "
                         "sequence ranks",
                         plan->options.shards > 0 ? plan->options.shards : 1);
    if (is_gathered(kind)) HD_RETURN_IF_ERROR(march(plan, &marches));
    if (!marches)
        return hdi_error(
            HD_ERROR_UNSUPPORTED,
            "residency sharded: blocks in shards of %d ranks, whose programs read other blocks, or "
            "in another order; want the same, as ranks gather together",
            plan->options.shards);
    if (is_gathered(kind)) {
        HD_RETURN_IF_ERROR(begin_kind(plan, HD_RESIDENCY_HOST));
        HD_RETURN_IF_ERROR(choose(plan, HD_RESIDENCY_HOST, blocks, 1));
        plan->least_weights = needed(plan);
    }
    return choose(plan, kind, count && count < blocks ? count : blocks, slots);
}

/* A way to keep a block, and the seconds that a byte which it saves on the device takes to come in. */
typedef struct way {
    hd_residency kind;
    double seconds;
} way;

enum { WAYS = 3 };

/* The fastest first; of equally fast ones what takes no host memory, then what lets ranks go their own
 * way. Unless rates tell them apart, both kinds of bytes take the same link. */
static int order_ways(const hd_plan *plan, way out[WAYS])
{
    const hd_rates rates = hdi_rates_filled(&plan->options.rates);
    const double ranks = plan->options.shards, host = 1 / rates.link;
    const double peer = rates.peer > 0 ? 1 / rates.peer : host;
    const double share = host / ranks, others = peer * (ranks - 1) / ranks;
    const double both = share > others ? share : others;
    if (ranks < 2) {
        out[0] = (way){HD_RESIDENCY_HOST, host};
        return 1;
    }
    const way ways[WAYS] = {{HD_RESIDENCY_SHARDED, peer},
                            {HD_RESIDENCY_HOST, host},
                            {HD_RESIDENCY_HOST_SHARDED, peer < host ? both : host}};
    for (int i = 0; i < WAYS; i++) {
        int at = i;
        for (; at > 0 && ways[i].seconds < out[at - 1].seconds; at--)
            out[at] = out[at - 1];
        out[at] = ways[i];
    }
    return WAYS;
}

/* Each rank decides for itself. As all reckon with the largest shards, what one of them must take because
 * another has less room fits as well as what it would have taken. */
static hd_status fit_kind(hd_plan *plan, hd_residency kind, size_t rest, int slots, bool *out)
{
    bool marches = true;
    *out = false;
    if (is_gathered(kind)) HD_RETURN_IF_ERROR(march(plan, &marches));
    if (!marches) return HD_OK;
    HD_RETURN_IF_ERROR(begin_kind(plan, kind));
    const int blocks = plan->residency.block_count;
    for (int count = 1; count <= blocks && !*out; count++) {
        HD_RETURN_IF_ERROR(choose(plan, kind, count, slots));
        *out = rest + needed(plan) <= plan->options.budget;
    }
    return HD_OK;
}

hd_status hdi_residency_fit(hd_plan *plan, size_t rest, int slots)
{
    way ways[WAYS];
    const int count = order_ways(plan, ways);
    bool fits = rest + needed(plan) <= plan->options.budget;
    for (int room = slots; room > 0 && !fits;
         room--) /* fewer slots only if nothing fits with more */
        for (int i = 0; i < count && !fits; i++)
            HD_RETURN_IF_ERROR(fit_kind(plan, ways[i].kind, rest, room, &fits));
    if (fits) return HD_OK;
    /* What takes least, which the budget then refuses. */
    HD_RETURN_IF_ERROR(begin_kind(plan, HD_RESIDENCY_HOST));
    return choose(plan, HD_RESIDENCY_HOST, plan->residency.block_count, 1);
}
