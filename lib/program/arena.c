/* The device's arena: what stays, then scratch, which groups of programs have one after the other. */
#include "program/place.h"
#include "program/plan.h"

static bool has_gradients(const hdi_unit *unit)
{
    for (int i = 1; i < unit->program->tensor_count; i++)
        if (unit->places[i].placed && unit->places[i].region == HD_REGION_GRADIENTS) return true;
    return false;
}

/* Scratch of programs that run beside others, in any group. */
static size_t lay_out_beside(hd_plan *plan, size_t begin, size_t bytes[HD_REGIONS])
{
    size_t cursor = begin;
    for (int i = 0; i < plan->unit_count; i++) {
        hdi_unit *unit = &plan->units[i];
        for (int r = HD_REGION_IO; r <= HD_REGION_TRANSIENT && unit->options.beside; r++) {
            unit->base[r] = cursor;
            cursor += unit->bytes[r];
            bytes[r] += unit->bytes[r];
        }
    }
    for (int i = 0; i < plan->unit_count; i++)
        if (plan->units[i].options.beside) plan->units[i].base[HD_REGION_GRADIENTS] = cursor;
    return cursor;
}

static bool is_in_group(const hdi_unit *unit, int group)
{
    return unit->options.group == group && !unit->options.beside;
}

/* Scratch of a group: gradients, then what each program keeps, then transients that all share. */
static size_t lay_out_group(hd_plan *plan, int group, size_t begin, size_t bytes[HD_REGIONS])
{
    const hd_region kept[] = {HD_REGION_IO, HD_REGION_SAVED, HD_REGION_BOUNDARY};
    size_t cursor = begin;
    bool gradients = false;
    for (int i = 0; i < plan->unit_count; i++)
        if (plan->units[i].options.group == group)
            gradients = gradients || has_gradients(&plan->units[i]);
    if (gradients) {
        bytes[HD_REGION_GRADIENTS] =
            plan->gradient_level_bytes * (size_t)plan->options.gradient_levels;
        cursor += bytes[HD_REGION_GRADIENTS];
    }
    for (int r = 0; r < 3; r++) {
        for (int i = 0; i < plan->unit_count; i++) {
            hdi_unit *unit = &plan->units[i];
            if (!is_in_group(unit, group)) continue;
            unit->base[HD_REGION_GRADIENTS] = begin;
            unit->base[kept[r]] = cursor;
            cursor += unit->bytes[kept[r]];
            bytes[kept[r]] += unit->bytes[kept[r]];
        }
    }
    for (int i = 0; i < plan->unit_count; i++) {
        hdi_unit *unit = &plan->units[i];
        if (!is_in_group(unit, group)) continue;
        unit->base[HD_REGION_TRANSIENT] = cursor;
        if (unit->bytes[HD_REGION_TRANSIENT] > bytes[HD_REGION_TRANSIENT])
            bytes[HD_REGION_TRANSIENT] = unit->bytes[HD_REGION_TRANSIENT];
    }
    return cursor + bytes[HD_REGION_TRANSIENT];
}

void hdi_plan_lay_out_arena(hd_plan *plan)
{
    const hd_region persistent[] = {HD_REGION_WEIGHTS, HD_REGION_STREAMED, HD_REGION_OPTIMIZER,
                                    HD_REGION_STATE};
    size_t cursor = 0;
    for (int r = 0; r < 4; r++) {
        plan->bytes[persistent[r]] = hdi_place_round(plan->bytes[persistent[r]]);
        for (int i = 0; i < plan->unit_count; i++)
            plan->units[i].base[persistent[r]] = cursor;
        cursor += plan->bytes[persistent[r]];
    }
    size_t beside[HD_REGIONS] = {0};
    cursor = lay_out_beside(plan, cursor, beside);
    plan->arena_bytes = cursor;
    for (int i = 0; i < plan->unit_count; i++) {
        int group = plan->units[i].options.group;
        bool seen = plan->units[i].options.beside;
        for (int j = 0; j < i; j++)
            seen = seen || is_in_group(&plan->units[j], group);
        if (seen) continue;
        size_t bytes[HD_REGIONS] = {0};
        size_t end = lay_out_group(plan, group, cursor, bytes);
        if (end <= plan->arena_bytes) continue;
        plan->arena_bytes = end;
        for (int r = HD_REGION_GRADIENTS; r <= HD_REGION_TRANSIENT; r++)
            plan->bytes[r] = bytes[r];
    }
    for (int r = HD_REGION_IO; r <= HD_REGION_TRANSIENT; r++)
        plan->bytes[r] += beside[r];
    plan->bytes[HD_REGION_FOREIGN] = plan->options.foreign;
    plan->bytes[HD_REGION_TRANSPORT] = plan->options.transport;
}
