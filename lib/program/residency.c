/* Blocks of a plan's programs, which of them stay on the host, and when they are copied. */
#include "program/residency.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "program/place.h"
#include "program/plan.h"

#include <string.h>

enum { UNSEEN = -2, IN_NO_BLOCK = -1 };

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
}

static hd_status check_keeps_weights(const hd_program *program)
{
    bool writes = false;
    for (int i = 1; i < program->tensor_count; i++)
        writes = writes || program->tensors[i]->flat == HDI_FLAT_WEIGHTS;
    for (int i = 0; i < program->op_count; i++)
        for (int k = 0; k < program->ops[i]->op.outputs; k++)
            writes = writes || program->tensors[program->ops[i]->op.out[k].id]->info.role ==
                                   HD_ROLE_PARAMETER;
    if (!writes) return HD_OK;
    return hdi_error(HD_ERROR_UNSUPPORTED,
                     "plan: program '%s' writes weights; those on the host are read only",
                     program->name);
}

static bool has_scopes_inside(const hd_program *program, int scope)
{
    for (int i = scope + 1; i < program->scope_count; i++)
        if (program->scopes[i].parent == scope) return true;
    return false;
}

/* The block that an op belongs to. */
static hd_status find_block(hdi_residency *it, const hd_program *program, const hdi_op *op,
                            int *out)
{
    const char *name = program->scopes[op->scope].name;
    *out = IN_NO_BLOCK;
    if (op->scope == 0 || has_scopes_inside(program, op->scope)) return HD_OK;
    for (int b = it->block_count - 1; b >= 0; b--) {
        if (strcmp(it->blocks[b].name, name) != 0) continue;
        *out = b;
        return HD_OK;
    }
    if (!HDI_GROW(it->blocks, it->block_count, it->block_capacity)) return out_of_memory();
    *out = it->block_count++;
    it->blocks[*out] = (hdi_block){.name = name};
    return HD_OK;
}

static bool is_weight(const hd_program *program, int id)
{
    return program->tensors[id] && program->tensors[id]->info.role == HD_ROLE_PARAMETER;
}

/* An entry is in a block if all ops that read it are. */
static hd_status assign(hdi_residency *it, const hdi_layout *layout, const hd_program *program)
{
    for (int i = 0; i < program->op_count; i++) {
        const hdi_op *op = program->ops[i];
        int block = UNSEEN;
        for (int k = 0; k < op->op.inputs; k++) {
            const int id = op->op.in[k].id;
            if (!is_weight(program, id)) continue;
            if (block == UNSEEN) HD_RETURN_IF_ERROR(find_block(it, program, op, &block));
            const int entry = hdi_layout_find(layout, program->tensors[id]->info.name);
            if (entry < 0) continue; /* placing it will tell */
            hdi_home *home = &it->homes[entry];
            home->block = home->block == UNSEEN || home->block == block ? block : IN_NO_BLOCK;
        }
    }
    for (int u = 0; u < program->use_count; u++) {
        const int entry = hdi_layout_find(layout, program->uses[u].name);
        const hd_tensor_info *info = hd_tensor_get(program, program->uses[u].tensor);
        if (entry >= 0) it->homes[entry].bytes = info->bytes;
    }
    return HD_OK;
}

/* Blocks whose weights are all read elsewhere too are none. */
static void drop_empty(hdi_residency *it, int entries)
{
    int kept = 0;
    for (int b = 0; b < it->block_count; b++) {
        if (it->blocks[b].bytes)
            for (int e = 0; e < entries; e++)
                if (it->homes[e].block == b) it->homes[e].block = kept;
        if (it->blocks[b].bytes) it->blocks[kept++] = it->blocks[b];
    }
    it->block_count = kept;
}

static hd_status open_homes(hdi_residency *it, int entries)
{
    it->homes = hdi_alloc_array((size_t)entries + 1, sizeof *it->homes);
    if (!it->homes) return out_of_memory();
    for (int e = 0; e < entries; e++)
        it->homes[e].block = UNSEEN;
    return HD_OK;
}

static void place_in_blocks(hdi_residency *it, int entries)
{
    for (int e = 0; e < entries; e++) {
        hdi_home *home = &it->homes[e];
        if (home->block == UNSEEN) home->block = IN_NO_BLOCK;
        if (home->block == IN_NO_BLOCK) continue;
        home->in_block = it->blocks[home->block].bytes;
        it->blocks[home->block].bytes += hdi_place_round(home->bytes);
    }
    drop_empty(it, entries);
}

hd_status hdi_residency_find(hd_plan *plan)
{
    hdi_residency *it = &plan->residency;
    const int entries = plan->layout->entry_count;
    hdi_residency_free(it);
    HD_RETURN_IF_ERROR(open_homes(it, entries));
    for (int u = 0; u < plan->unit_count; u++) {
        HD_RETURN_IF_ERROR(check_keeps_weights(plan->units[u].program));
        HD_RETURN_IF_ERROR(assign(it, plan->layout, plan->units[u].program));
    }
    place_in_blocks(it, entries);
    return HD_OK;
}

hd_status hdi_residency_blocks(hdi_layout *layout, hd_program *const *programs, int count)
{
    hdi_residency found = {0};
    hd_status status = open_homes(&found, layout->entry_count);
    for (int p = 0; p < count && status == HD_OK; p++)
        status = assign(&found, layout, programs[p]);
    for (int e = 0; e < layout->entry_count && status == HD_OK; e++)
        if (layout->entries[e].tied) found.homes[e].block = IN_NO_BLOCK;
    if (status == HD_OK) place_in_blocks(&found, layout->entry_count);
    for (int e = 0; e < layout->entry_count && status == HD_OK; e++)
        layout->entries[e].block = found.homes[e].block;
    layout->block_count = found.block_count;
    hdi_residency_free(&found);
    return status;
}

const hdi_home *hdi_residency_host(const hdi_residency *residency, int entry)
{
    if (!residency->host_blocks || entry < 0) return NULL;
    const hdi_home *home = &residency->homes[entry];
    return home->block >= 0 && residency->blocks[home->block].host ? home : NULL;
}

/* Bytes of an entry with the padding that layouts have. */
static size_t spacing(const hdi_entry *entry, const hdi_home *home)
{
    if (!entry->elements) return 0;
    return (size_t)hdi_round_up(entry->elements, HDI_FLAT_ALIGNMENT) *
           (home->bytes / (size_t)entry->elements);
}

void hdi_residency_choose(hd_plan *plan, int count, int slots)
{
    hdi_residency *it = &plan->residency;
    const int blocks = it->block_count;
    it->host_blocks = count;
    it->slots = slots < count ? slots : count;
    it->slot_bytes = it->host_bytes = 0;
    for (int b = 0; b < blocks; b++) {
        hdi_block *block = &it->blocks[b];
        block->host = hdi_block_is_host(b, count, blocks);
        if (!block->host) continue;
        block->host_offset = it->host_bytes;
        it->host_bytes += block->bytes;
        if (it->slot_bytes < block->bytes) it->slot_bytes = block->bytes;
    }
    size_t resident = 0;
    for (int e = 0; e < plan->layout->entry_count; e++) {
        if (hdi_residency_host(it, e)) continue;
        it->homes[e].offset = resident;
        resident += spacing(&plan->layout->entries[e], &it->homes[e]);
    }
    plan->bytes[HD_REGION_WEIGHTS] = resident;
    plan->bytes[HD_REGION_STREAMED] = (size_t)it->slots * it->slot_bytes;
}

/* The host block that an op reads; -1: none. */
static int reads_block(const hd_plan *plan, const hd_program *program, const hd_op *op)
{
    for (int k = 0; k < op->inputs; k++) {
        if (!is_weight(program, op->in[k].id)) continue;
        const char *name = program->tensors[op->in[k].id]->info.name;
        const hdi_home *home =
            hdi_residency_host(&plan->residency, hdi_layout_find(plan->layout, name));
        if (home) return home->block;
    }
    return -1;
}

/* A slot is free for its next block behind the last op that reads the one that it holds. Behind the
 * run's own uses come those that the next run begins with. */
static hd_status place_fetches(const hdi_residency *it, hdi_stream_run *run)
{
    const int count = run->use_count + it->slots;
    hdi_free(run->fetches);
    run->fetches = hdi_alloc_array((size_t)count, sizeof *run->fetches);
    if (!run->fetches) return out_of_memory();
    for (int m = it->slots; m < count; m++)
        run->fetches[m] = run->uses[m - it->slots].last + 1;
    return HD_OK;
}

static hd_status add_use(hdi_stream_run *run, int block, int op)
{
    hdi_stream_use *open = run->use_count ? &run->uses[run->use_count - 1] : NULL;
    if (open && open->block == block) {
        open->last = op;
        return HD_OK;
    }
    if (!HDI_GROW(run->uses, run->use_count, run->use_capacity)) return out_of_memory();
    run->uses[run->use_count++] = (hdi_stream_use){block, op, op};
    return HD_OK;
}

hd_status hdi_unit_uses(hd_plan *plan, int index)
{
    hdi_unit *unit = &plan->units[index];
    for (int phase = 0; phase < HDI_PHASES; phase++)
        unit->streamed[phase].use_count = 0;
    if (!plan->residency.host_blocks) return HD_OK;
    for (int i = 0; i < unit->program->op_count; i++) {
        const hdi_op *op = unit->program->ops[i];
        const int block = reads_block(plan, unit->program, &op->op);
        if (block >= 0) HD_RETURN_IF_ERROR(add_use(&unit->streamed[op->phase], block, i));
    }
    for (int phase = 0; phase < HDI_PHASES; phase++)
        HD_RETURN_IF_ERROR(place_fetches(&plan->residency, &unit->streamed[phase]));
    return HD_OK;
}

void hdi_residency_free(hdi_residency *residency)
{
    hdi_free(residency->blocks);
    hdi_free(residency->homes);
    *residency = (hdi_residency){0};
}
