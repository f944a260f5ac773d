/* Proof on the plan, of weights that pass through slots: made from the programs' ops and the addresses
 * of their tensors, without the code that found the uses. */
#include "core/error.h"
#include "core/memory.h"
#include "program/place.h"
#include "program/plan.h"

#include <stdlib.h>

typedef struct piece {
    size_t begin, end;
    const char *name;
} piece;

static int earlier(const void *left, const void *right)
{
    const piece *a = left, *b = right;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

static hd_status check_apart(piece *pieces, int count, size_t room, const char *what)
{
    qsort(pieces, (size_t)count, sizeof *pieces, earlier);
    for (int i = 0; i < count; i++) {
        if (pieces[i].end > room)
            return hdi_error(HD_ERROR_INTERNAL, "verifier: '%s' [%zu, %zu) leaves %s of %zu bytes",
                             pieces[i].name, pieces[i].begin, pieces[i].end, what, room);
        if (i && pieces[i - 1].end > pieces[i].begin)
            return hdi_error(HD_ERROR_INTERNAL, "verifier: '%s' and '%s' share bytes of %s",
                             pieces[i - 1].name, pieces[i].name, what);
    }
    return HD_OK;
}

/* This rank's shards of blocks: those on the host, or those beside what is resident. */
static int add_shards(const hd_plan *plan, bool host, piece *pieces, int count)
{
    const hdi_layout *layout = plan->layout;
    for (int b = 0; b < layout->bucket_count; b++) {
        const hdi_bucket *bucket = &layout->buckets[b];
        const hdi_entry *entry = &layout->entries[bucket->first_entry];
        const hdi_home *home = &plan->residency.homes[bucket->first_entry];
        int64_t first, own = hdi_layout_shard(layout, b, layout->shard, &first);
        if (!bucket->sharded || bucket->host != host || !own) continue;
        const size_t width = home->bytes / (size_t)entry->elements;
        const size_t begin = (size_t)bucket->weights_first * width;
        pieces[count++] = (piece){begin, begin + (size_t)own * width, entry->name};
    }
    return count;
}

/* Blocks, or shards of them, in the host's copy. */
static hd_status check_host(const hd_plan *plan, piece *pieces)
{
    const hdi_residency *it = &plan->residency;
    const bool shards = hdi_residency_is_sharded(it);
    int count = shards ? add_shards(plan, true, pieces, 0) : 0;
    for (int b = 0; b < it->block_count && !shards; b++)
        if (it->blocks[b].host)
            pieces[count++] =
                (piece){it->blocks[b].host_offset, it->blocks[b].host_offset + it->blocks[b].bytes,
                        it->blocks[b].name};
    return it->host_bytes ? check_apart(pieces, count, it->host_bytes, "the host's copy") : HD_OK;
}

/* Entries in the weights, and in each block. */
static hd_status check_homes(const hd_plan *plan, piece *pieces)
{
    const hdi_residency *it = &plan->residency;
    int count = 0;
    for (int b = -1; b < it->block_count; b++) {
        const bool resident = b < 0;
        if (!resident && !it->blocks[b].host) continue;
        count = 0;
        for (int e = 0; e < plan->layout->entry_count; e++) {
            const hdi_home *home = hdi_residency_host(it, e);
            if (resident ? home != NULL : !home || home->block != b) continue;
            const size_t begin = resident ? it->homes[e].offset : home->in_block;
            pieces[count++] =
                (piece){begin, begin + it->homes[e].bytes, plan->layout->entries[e].name};
        }
        if (resident && hdi_residency_is_sharded(it))
            count = add_shards(plan, false, pieces, count);
        HD_RETURN_IF_ERROR(check_apart(
            pieces, count, resident ? plan->bytes[HD_REGION_WEIGHTS] : it->blocks[b].bytes,
            resident ? "the weights" : it->blocks[b].name));
    }
    return HD_OK;
}

/* Behind the slots there is room for what a rank copies of any block from the host, before it is gathered. */
static hd_status check_shard_room(const hd_plan *plan)
{
    const hdi_residency *it = &plan->residency;
    const hdi_layout *layout = plan->layout;
    const size_t slots = (size_t)it->slots * it->slot_bytes;
    if (!it->gathers || !it->host_bytes) return HD_OK;
    for (int block = 0; block < it->block_count; block++) {
        size_t end = slots;
        for (int b = 0; b < layout->bucket_count; b++) {
            const hdi_bucket *bucket = &layout->buckets[b];
            const hdi_home *home = &it->homes[bucket->first_entry];
            if (bucket->block != block || !it->blocks[block].host) continue;
            end += hdi_place_round((size_t)bucket->counts[layout->shard] * home->bytes /
                                   (size_t)layout->entries[bucket->first_entry].elements);
        }
        if (end > slots + it->shard_bytes || end > plan->bytes[HD_REGION_STREAMED])
            return hdi_error(HD_ERROR_INTERNAL,
                             "verifier: this rank's shard of '%s' ends at %zu of the slots and %zu "
                             "bytes behind them, in a region of %zu",
                             it->blocks[block].name, end, it->shard_bytes,
                             plan->bytes[HD_REGION_STREAMED]);
    }
    return HD_OK;
}

/* Every parameter is where its entry lives, in as many copies as there are slots. */
static hd_status check_places(const hd_plan *plan, const hdi_unit *unit)
{
    const hdi_residency *it = &plan->residency;
    for (int id = 1; id < unit->program->tensor_count; id++) {
        const hd_tensor_info *info = &unit->program->tensors[id]->info;
        const bool named = unit->program->tensors[id]->flat == HDI_FLAT_NONE;
        if (info->role != HD_ROLE_PARAMETER || !named) continue;
        const int entry = hdi_layout_find(plan->layout, info->name);
        const hdi_home *host = hdi_residency_host(it, entry);
        const hdi_place_of *place = &unit->places[id];
        const bool right =
            host ? place->region == HD_REGION_STREAMED && place->offset == host->in_block &&
                       place->slots == it->slots && place->stride == it->slot_bytes &&
                       place->offset + place->bytes <= it->slot_bytes
                 : place->region == HD_REGION_WEIGHTS && place->offset == it->homes[entry].offset;
        if (!right)
            return hdi_error(HD_ERROR_INTERNAL,
                             "verifier: program '%s', parameter '%s' is at %zu of %s, in %d slots "
                             "%zu apart, not where its values are",
                             unit->program->name, info->name, place->offset,
                             hd_region_name(place->region), place->slots, place->stride);
    }
    return HD_OK;
}

/* What the slots hold during one run of a phase. */
typedef struct passage {
    const hd_plan *plan;
    const hdi_unit *unit;
    hdi_phase phase;
    int held[HD_STREAM_SLOTS]; /* block; UNKNOWN: left by the run before, or for the run after */
    int turn;                  /* slot of the run's first use */
} passage;

enum { UNKNOWN = -1 };

static hd_status broken(const passage *p, int op, const char *what, int block)
{
    char label[256];
    const hd_program *program = p->unit->program;
    return hdi_error(HD_ERROR_INTERNAL, "verifier: program '%s', op %d (%s): %s block '%s'",
                     program->name, op,
                     hdi_op_label(program, program->ops[op], label, sizeof label), what,
                     block < 0 ? "" : p->plan->residency.blocks[block].name);
}

static hd_status check_op(const passage *p, int index, int use)
{
    const hdi_residency *it = &p->plan->residency;
    const hd_op *op = &p->unit->program->ops[index]->op;
    for (int k = 0; k < op->inputs; k++) {
        const hdi_tensor *tensor = hdi_tensor_of(p->unit->program, op->in[k]);
        if (!tensor || tensor->info.role != HD_ROLE_PARAMETER) continue;
        const hdi_home *home =
            hdi_residency_host(it, hdi_layout_find(p->plan->layout, tensor->info.name));
        if (!home) continue;
        const hdi_stream_use *now = use >= 0 ? &p->unit->streamed[p->phase].uses[use] : NULL;
        if (!now || now->block != home->block)
            return broken(p, index, "reads, outside its uses,", home->block);
        if (p->held[(p->turn + use) % it->slots] != home->block)
            return broken(p, index, "finds another block in the slot of", home->block);
    }
    return HD_OK;
}

/* Fetches queued before an op are made before it: the slots have new contents from there on. */
static hd_status run_through(passage *p)
{
    const hd_program *program = p->unit->program;
    const hdi_stream_run *run = &p->unit->streamed[p->phase];
    const int slots = p->plan->residency.slots, uses = run->use_count;
    int next = 0, use = -1;
    for (int s = 0; s < slots; s++)
        p->held[s] = UNKNOWN;
    for (int i = 0; i <= program->op_count; i++) {
        for (; next < uses + slots && run->fetches[next] <= i; next++)
            p->held[(p->turn + next) % slots] = next < uses ? run->uses[next].block : UNKNOWN;
        if (i == program->op_count) break;
        if (program->ops[i]->phase != p->phase) continue;
        while (use + 1 < uses && run->uses[use + 1].first <= i)
            if (++use >= next)
                return broken(p, i, "begins, before its copy is queued,", run->uses[use].block);
        HD_RETURN_IF_ERROR(check_op(p, i, use));
    }
    if (next < uses + slots) return broken(p, program->op_count - 1, "never copies", -1);
    return HD_OK;
}

/* Each phase is proved from slots of unknown contents, with each slot as its first, up to slots of
 * whatever the next run wants: so every order of runs is. */
static hd_status check_unit(const hd_plan *plan, const hdi_unit *unit)
{
    HD_RETURN_IF_ERROR(check_places(plan, unit));
    for (int phase = 0; phase < HDI_PHASES; phase++) {
        passage p = {.plan = plan, .unit = unit, .phase = (hdi_phase)phase};
        for (; p.turn < plan->residency.slots; p.turn++)
            HD_RETURN_IF_ERROR(run_through(&p));
    }
    return HD_OK;
}

hd_status hdi_plan_verify_residency(const hd_plan *plan)
{
    if (!plan->residency.host_blocks) return HD_OK;
    const size_t most = (size_t)(plan->layout->entry_count + plan->layout->bucket_count +
                                 plan->residency.block_count) +
                        1;
    piece *pieces = hdi_alloc_array(most, sizeof *pieces);
    if (!pieces) return hdi_error(HD_ERROR_MEMORY, "verifier: out of host memory");
    hd_status status = check_host(plan, pieces);
    if (status == HD_OK) status = check_shard_room(plan);
    if (status == HD_OK) status = check_homes(plan, pieces);
    for (int u = 0; u < plan->unit_count && status == HD_OK; u++)
        status = check_unit(plan, &plan->units[u]);
    hdi_free(pieces);
    return status;
}
