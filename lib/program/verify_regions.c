/* Proof on the plan, across programs: the replay of verify.c sees one program, one slot, one gradient
 * level; here all slots and levels of what outlives a program's run are held against all that may
 * run meanwhile. Made from the addresses of tensors, not from the regions' sizes. */
#include "core/error.h"
#include "core/memory.h"
#include "program/plan.h"

#include <stdlib.h>

/* All that one program keeps in one region, or one boundary tensor or state: every slot of it. */
typedef struct extent {
    size_t begin, end;
    const char *name; /* of the program or tensor */
    hd_region region;
} extent;

typedef struct extents {
    extent *items;
    int count, capacity;
} extents;

static hd_status overlap(const extent *a, const extent *b)
{
    return hdi_error(HD_ERROR_INTERNAL,
                     "verifier: %s of '%s' [%zu, %zu) and %s of '%s' [%zu, %zu) share bytes",
                     hd_region_name(a->region), a->name, a->begin, a->end,
                     hd_region_name(b->region), b->name, b->begin, b->end);
}

static hd_status add(extents *list, extent item)
{
    if (item.begin == item.end) return HD_OK;
    if (!HDI_GROW(list->items, list->count, list->capacity))
        return hdi_error(HD_ERROR_MEMORY, "verifier: out of host memory");
    list->items[list->count++] = item;
    return HD_OK;
}

/* Bytes of a tensor in all its slots. */
static bool whole_range(const hd_plan *plan, const hdi_unit *unit, int id, extent *out)
{
    if (!hdi_unit_range(plan, unit, id, &out->begin, &out->end)) return false;
    const hdi_place_of *place = &unit->places[id];
    out->end += (size_t)(place->slots - 1) * place->stride;
    out->region = place->region;
    return true;
}

static hd_status bad_slots(const hdi_unit *unit, int id)
{
    const hdi_place_of *place = &unit->places[id];
    return hdi_error(HD_ERROR_INTERNAL,
                     "verifier: program '%s', tensor %d '%s': %d slots of %zu bytes at offset %zu, "
                     "%zu apart, share bytes",
                     unit->program->name, id, unit->program->tensors[id]->info.name, place->slots,
                     place->bytes, place->offset, place->stride);
}

/* What a program keeps from phase to phase: one extent for each region, one for each boundary
 * tensor. Slots of IO and SAVED lie side by side, each with every tensor: one stride for all, and
 * no tensor reaches into the next slot. Within a slot the replay has looked. */
static hd_status add_kept(const hd_plan *plan, int index, extents *list, size_t *transient_end)
{
    const hdi_unit *unit = &plan->units[index];
    extent kept[HD_REGIONS] = {0};
    const char *name = unit->program->name;
    size_t strides[HD_REGIONS] = {0};
    *transient_end = unit->base[HD_REGION_TRANSIENT];
    for (int id = 1; id < unit->program->tensor_count; id++) {
        extent range = {.name = name};
        if (unit->program->tensors[id]->within.id) continue; /* the whole stands for its parts */
        if (!whole_range(plan, unit, id, &range)) continue;
        const hdi_place_of *place = &unit->places[id];
        if (place->region == HD_REGION_TRANSIENT && *transient_end < range.end)
            *transient_end = range.end;
        if (place->region == HD_REGION_BOUNDARY) {
            if (place->slots > 1 && place->stride < place->bytes) return bad_slots(unit, id);
            HD_RETURN_IF_ERROR(add(list, range));
        }
        if (place->region != HD_REGION_IO && place->region != HD_REGION_SAVED) continue;
        if (!strides[place->region]) strides[place->region] = place->stride;
        if (place->slots > 1 && (place->stride != strides[place->region] ||
                                 place->offset + place->bytes > place->stride))
            return bad_slots(unit, id);
        extent *all = &kept[place->region];
        if (all->end && all->begin < range.begin) range.begin = all->begin;
        if (all->end > range.end) range.end = all->end;
        *all = range;
    }
    for (int i = 0; i < unit->program->op_count; i++) {
        size_t end =
            unit->base[HD_REGION_TRANSIENT] + unit->workspaces[i] + unit->workspace_bytes[i];
        if (unit->workspace_bytes[i] && *transient_end < end) *transient_end = end;
    }
    HD_RETURN_IF_ERROR(add(list, kept[HD_REGION_IO]));
    return add(list, kept[HD_REGION_SAVED]);
}

/* Weights, slots for them, optimizer state, tables; and gradients, all levels, where group `group` has any. */
static hd_status add_shared(const hd_plan *plan, int group, extents *list)
{
    const hdi_unit *first = &plan->units[0];
    enum { PERSISTENT = 4 };
    const hd_region regions[] = {HD_REGION_WEIGHTS, HD_REGION_STREAMED, HD_REGION_OPTIMIZER,
                                 HD_REGION_STATE, HD_REGION_GRADIENTS};
    extent all[PERSISTENT + 1];
    for (int r = 0; r <= PERSISTENT; r++)
        all[r] = (extent){.name = "all programs",
                          .region = regions[r],
                          .begin = first->base[regions[r]],
                          .end = first->base[regions[r]] + plan->bytes[regions[r]]};
    extent *gradients = &all[PERSISTENT];
    gradients->end = gradients->begin;
    for (int u = 0; u < plan->unit_count; u++) {
        const hdi_unit *unit = &plan->units[u];
        if (unit->options.group != group) continue;
        for (int id = 1; id < unit->program->tensor_count; id++) {
            extent range;
            if (!whole_range(plan, unit, id, &range)) continue;
            if (range.region == HD_REGION_GRADIENTS) {
                size_t level = unit->base[HD_REGION_GRADIENTS] + plan->gradient_level_bytes;
                gradients->begin = unit->base[HD_REGION_GRADIENTS];
                gradients->end = gradients->begin +
                                 plan->gradient_level_bytes * (size_t)plan->options.gradient_levels;
                if (range.end <= level) continue;
            } else {
                bool inside = true;
                for (int r = 0; r < PERSISTENT; r++)
                    if (range.region == regions[r])
                        inside = all[r].begin <= range.begin && range.end <= all[r].end;
                if (inside) continue;
            }
            return hdi_error(HD_ERROR_INTERNAL,
                             "verifier: program '%s', tensor %d '%s' leaves its region, %s",
                             unit->program->name, id, unit->program->tensors[id]->info.name,
                             hd_region_name(range.region));
        }
    }
    for (int r = 0; r <= PERSISTENT; r++)
        HD_RETURN_IF_ERROR(add(list, all[r]));
    return HD_OK;
}

static int earlier(const void *left, const void *right)
{
    const extent *a = left, *b = right;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

/* What a program that runs beside others has to itself. */
static hd_status add_beside(const hd_plan *plan, int index, extents *list)
{
    const hdi_unit *unit = &plan->units[index];
    extent transients = {.name = unit->program->name,
                         .region = HD_REGION_TRANSIENT,
                         .begin = unit->base[HD_REGION_TRANSIENT]};
    HD_RETURN_IF_ERROR(add_kept(plan, index, list, &transients.end));
    return add(list, transients);
}

/* Transients of the group's programs share bytes with each other and with nothing else. */
static hd_status verify_group(const hd_plan *plan, int group)
{
    extents list = {0};
    extent transients = {.name = "all programs", .region = HD_REGION_TRANSIENT, .begin = SIZE_MAX};
    hd_status status = add_shared(plan, group, &list);
    for (int u = 0; u < plan->unit_count && status == HD_OK; u++) {
        if (plan->units[u].options.beside) status = add_beside(plan, u, &list);
        if (plan->units[u].options.beside || plan->units[u].options.group != group) continue;
        size_t end, begin = plan->units[u].base[HD_REGION_TRANSIENT];
        status = add_kept(plan, u, &list, &end);
        if (end > begin && begin < transients.begin) transients.begin = begin;
        if (end > begin && end > transients.end) transients.end = end;
    }
    if (status == HD_OK && transients.end) status = add(&list, transients);
    if (status == HD_OK && list.count)
        qsort(list.items, (size_t)list.count, sizeof *list.items, earlier);
    for (int i = 0; i < list.count && status == HD_OK; i++) {
        const extent *item = &list.items[i];
        if (item->end < item->begin || item->end > plan->arena_bytes)
            status = hdi_error(HD_ERROR_INTERNAL,
                               "verifier: %s of '%s' [%zu, %zu) leave the arena of %zu bytes",
                               hd_region_name(item->region), item->name, item->begin, item->end,
                               plan->arena_bytes);
        else if (i + 1 < list.count && list.items[i + 1].begin < item->end)
            status = overlap(item, &list.items[i + 1]);
    }
    hdi_free(list.items);
    return status;
}

/* Parameters that share nothing must not share bytes. */
static hd_status verify_entries(const hdi_layout *layout)
{
    for (int i = 1; i < layout->entry_count; i++) {
        const hdi_entry *before = &layout->entries[i - 1], *entry = &layout->entries[i];
        if (before->first + before->elements > entry->first)
            return hdi_error(HD_ERROR_INTERNAL, "verifier: parameters '%s' and '%s' share bytes",
                             before->name, entry->name);
    }
    return HD_OK;
}

/* Activations have a part of their region for each program of a group. */
static bool inside_host(const hd_plan *plan, const hdi_unit *unit, const extent *range)
{
    const size_t begin = unit->base[range->region];
    const size_t bytes = range->region == HD_REGION_HOST_SAVED ? unit->bytes[range->region]
                                                               : plan->bytes[range->region];
    return range->begin >= begin && range->end <= begin + bytes;
}

/* What is on the host is inside its region, in every slot; regions there do not share bytes. */
static hd_status verify_host(const hd_plan *plan)
{
    size_t end = HDI_HOST_BASE;
    for (int r = hdi_plan_first_host(plan); r <= HD_REGION_HOST_STAGING; r++) {
        if (plan->units[0].base[r] < end) /* the first unit begins where the region does */
            return hdi_error(HD_ERROR_INTERNAL, "verifier: '%s' begins inside the region before it",
                             hd_region_name((hd_region)r));
        end = plan->units[0].base[r] + plan->bytes[r];
    }
    if (end > HDI_HOST_BASE + plan->host_arena_bytes)
        return hdi_error(HD_ERROR_INTERNAL, "verifier: the host's regions leave its arena");
    for (int u = 0; u < plan->unit_count; u++) {
        const hdi_unit *unit = &plan->units[u];
        for (int id = 1; id < unit->program->tensor_count; id++) {
            extent range;
            const bool host = unit->program->tensors[id]->host;
            if (!whole_range(plan, unit, id, &range)) continue;
            if (host != (range.region >= HD_REGIONS) || (host && !inside_host(plan, unit, &range)))
                return hdi_error(HD_ERROR_INTERNAL,
                                 "verifier: program '%s', tensor %d '%s' leaves its region, %s",
                                 unit->program->name, id, unit->program->tensors[id]->info.name,
                                 hd_region_name(range.region));
        }
    }
    return HD_OK;
}

/* A program's staging is inside the region, a micro-batch's place for each staged tensor inside that, and
 * what may be on its way at once shares no bytes. */
static hd_status verify_staging(const hd_plan *plan)
{
    const hd_region r = HD_REGION_HOST_STAGING;
    const int first = plan->units[0].options.group;
    const size_t end = plan->units[0].base[r] + plan->bytes[r];
    for (int u = 0; u < plan->unit_count; u++) {
        const hdi_unit *unit = &plan->units[u];
        const size_t each = unit->bytes[r] / (size_t)unit->options.io_slots;
        size_t at = 0;
        bool holds =
            unit->base[r] >= plan->units[0].base[r] && unit->base[r] + unit->bytes[r] <= end;
        for (int id = 1; id < unit->program->tensor_count; id++) {
            if (!unit->program->tensors[id]->staged) continue;
            const hdi_place_of *place = &unit->places[id];
            holds = holds && place->placed && place->region == HD_REGION_IO && place->staging >= at;
            at = place->staging + place->bytes;
        }
        holds = holds && at <= each;
        for (int v = 0; v < u; v++) {
            const hdi_unit *other = &plan->units[v];
            if (other->options.group != unit->options.group && other->options.group != first &&
                unit->options.group != first)
                continue;
            holds = holds && (unit->base[r] >= other->base[r] + other->bytes[r] ||
                              other->base[r] >= unit->base[r] + unit->bytes[r]);
        }
        if (!holds)
            return hdi_error(HD_ERROR_INTERNAL,
                             "verifier: program '%s': its staging on the host is not its own",
                             unit->program->name);
    }
    return HD_OK;
}

hd_status hdi_plan_verify_regions(const hd_plan *plan)
{
    HD_RETURN_IF_ERROR(verify_entries(plan->layout));
    HD_RETURN_IF_ERROR(verify_host(plan));
    HD_RETURN_IF_ERROR(verify_staging(plan));
    for (int i = 1; i < plan->state_count; i++)
        if (plan->states[i - 1].offset + plan->states[i - 1].bytes > plan->states[i].offset)
            return hdi_error(HD_ERROR_INTERNAL, "verifier: states '%s' and '%s' share bytes",
                             plan->states[i - 1].name, plan->states[i].name);
    for (int u = 0; u < plan->unit_count; u++) {
        bool seen = false;
        for (int before = 0; before < u; before++)
            seen = seen || plan->units[before].options.group == plan->units[u].options.group;
        if (!seen) HD_RETURN_IF_ERROR(verify_group(plan, plan->units[u].options.group));
    }
    return HD_OK;
}
