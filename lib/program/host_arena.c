/* The rank's pinned host memory: one arena beside the device's, in the same space of addresses. Weights
 * that programs only read are not in it; several ranks may share those. */
#include "program/place.h"
#include "program/plan.h"

/* What programs of one group keep there lies side by side; groups share the bytes. */
static void lay_out_host_saved(hd_plan *plan)
{
    size_t *most = &plan->bytes[HD_REGION_HOST_SAVED];
    *most = 0;
    for (int i = 0; i < plan->unit_count; i++) {
        hdi_unit *unit = &plan->units[i];
        size_t cursor = 0;
        for (int j = 0; j < i; j++)
            if (plan->units[j].options.group == unit->options.group)
                cursor += plan->units[j].bytes[HD_REGION_HOST_SAVED];
        unit->base[HD_REGION_HOST_SAVED] = cursor;
        cursor += unit->bytes[HD_REGION_HOST_SAVED];
        if (cursor > *most) *most = cursor;
    }
}

void hdi_plan_lay_out_host(hd_plan *plan)
{
    size_t cursor = HDI_HOST_BASE;
    lay_out_host_saved(plan);
    plan->bytes[HD_REGION_HOST_WEIGHTS] = plan->residency.host_bytes;
    for (int r = hdi_plan_first_host(plan); r < HD_ALL_REGIONS; r++) {
        plan->bytes[r] = hdi_place_round(plan->bytes[r]);
        for (int i = 0; i < plan->unit_count; i++)
            plan->units[i].base[r] =
                cursor + (r == HD_REGION_HOST_SAVED ? plan->units[i].base[r] : 0);
        cursor += plan->bytes[r];
    }
    plan->host_arena_bytes = cursor - HDI_HOST_BASE;
}

size_t hd_plan_host_bytes(const hd_plan *plan)
{
    return plan->host_arena_bytes +
           (plan->residency.updates ? 0 : plan->bytes[HD_REGION_HOST_WEIGHTS]);
}
