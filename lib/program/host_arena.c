/* The rank's pinned host memory: one arena beside the device's, in the same space of addresses. Weights
 * that programs only read are not in it; several ranks may share those. */
#include "program/place.h"
#include "program/plan.h"

/* What programs of one group keep there lies side by side; groups share the bytes from `shared` on. */
static void lay_out_groups(hd_plan *plan, hd_region region, size_t shared)
{
    const int first = plan->units[0].options.group;
    plan->bytes[region] = shared;
    for (int i = 0; i < plan->unit_count; i++) {
        hdi_unit *unit = &plan->units[i];
        size_t cursor = unit->options.group == first ? 0 : shared;
        for (int j = 0; j < i; j++)
            if (plan->units[j].options.group == unit->options.group)
                cursor += plan->units[j].bytes[region];
        unit->base[region] = cursor;
        cursor += unit->bytes[region];
        if (cursor > plan->bytes[region]) plan->bytes[region] = cursor;
    }
}

static void place_staging(hdi_unit *unit)
{
    size_t cursor = 0;
    for (int i = 1; i < unit->program->tensor_count; i++) {
        if (!unit->program->tensors[i]->staged) continue;
        unit->places[i].staging = cursor;
        cursor += hdi_place_round(unit->places[i].bytes);
    }
    unit->bytes[HD_REGION_HOST_STAGING] = cursor * (size_t)unit->options.io_slots;
}

/* The first group's bytes are its own: inputs of its last program may be on their way to the device when
 * the first ones of another group come. */
static void lay_out_staging(hd_plan *plan)
{
    size_t own = 0;
    for (int i = 0; i < plan->unit_count; i++) {
        hdi_unit *unit = &plan->units[i];
        place_staging(unit);
        if (unit->options.group == plan->units[0].options.group)
            own += unit->bytes[HD_REGION_HOST_STAGING];
    }
    lay_out_groups(plan, HD_REGION_HOST_STAGING, own);
}

size_t hdi_plan_staging(const hd_plan *plan, int index, hd_tensor tensor, int micro_batch)
{
    const hdi_unit *unit = &plan->units[index];
    const int slots = unit->options.io_slots;
    return unit->base[HD_REGION_HOST_STAGING] + unit->places[tensor.id].staging +
           (size_t)(micro_batch % slots) * (unit->bytes[HD_REGION_HOST_STAGING] / (size_t)slots);
}

void hdi_plan_lay_out_host(hd_plan *plan)
{
    size_t cursor = HDI_HOST_BASE;
    lay_out_groups(plan, HD_REGION_HOST_SAVED, 0);
    lay_out_staging(plan);
    plan->bytes[HD_REGION_HOST_WEIGHTS] = plan->residency.host_bytes;
    plan->bytes[HD_REGION_HOST_MAILBOXES] = plan->options.mailboxes;
    for (int r = hdi_plan_first_host(plan); r <= HD_REGION_HOST_STAGING; r++) {
        plan->bytes[r] = hdi_place_round(plan->bytes[r]);
        for (int i = 0; i < plan->unit_count; i++)
            plan->units[i].base[r] =
                cursor + (r >= HD_REGION_HOST_SAVED ? plan->units[i].base[r] : 0);
        cursor += plan->bytes[r];
    }
    plan->host_arena_bytes = cursor - HDI_HOST_BASE;
    plan->bytes[HD_REGION_FOREIGN] =
        plan->options.foreign + hdi_plan_page_tables(plan, hd_plan_host_bytes(plan));
}

/* Devices take memory in pieces of 2 MiB. */
size_t hdi_plan_page_tables(const hd_plan *plan, size_t pinned)
{
    const size_t share = plan->options.pinned_share, piece = (size_t)2 << 20;
    return share ? (pinned / share + piece - 1) / piece * piece : 0;
}

size_t hd_plan_host_bytes(const hd_plan *plan)
{
    return plan->host_arena_bytes + plan->bytes[HD_REGION_HOST_MAILBOXES] +
           (plan->residency.updates ? 0 : plan->bytes[HD_REGION_HOST_WEIGHTS]);
}
