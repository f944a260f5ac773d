/* Blocks of a layout that says where weights are kept, on the host or in shards over ranks: their homes
 * and slots. */
#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "program/place.h"
#include "program/plan.h"

#include <string.h>

static size_t width_of(const hd_plan *plan)
{
    for (int u = 0; u < plan->unit_count; u++) {
        const hd_program *program = plan->units[u].program;
        if (program->use_count)
            return hd_dtype_bytes(hd_tensor_get(program, program->uses[0].tensor)->dtype);
    }
    return sizeof(float);
}

/* The scope of a layer "h.3" is the longest one that a parameter's name begins with. */
static const char *name_of(const hd_plan *plan, const hdi_entry *entry)
{
    const char *best = entry->name;
    size_t longest = 0;
    for (int u = 0; u < plan->unit_count; u++) {
        const hd_program *program = plan->units[u].program;
        for (int s = 1; s < program->scope_count; s++) {
            const char *scope = program->scopes[s].name;
            const size_t length = strlen(scope);
            if (length <= longest || strncmp(scope, entry->name, length) != 0) continue;
            best = scope;
            longest = length;
        }
    }
    return best;
}

/* A block's slot has what its weights are copied from: on the host all of it lies as it will there; what is
 * gathered comes bucket by bucket, each whole. */
static void place_bucket(hd_plan *plan, const hdi_bucket *bucket, size_t width)
{
    hdi_residency *it = &plan->residency;
    hdi_block *block = bucket->block < 0 ? NULL : &it->blocks[bucket->block];
    const size_t before = block ? block->bytes : 0;
    for (int e = bucket->first_entry; e < bucket->first_entry + bucket->entries; e++) {
        const hdi_entry *entry = &plan->layout->entries[e];
        const size_t inside = (size_t)(entry->first - bucket->first) * width;
        hdi_home *home = &it->homes[e];
        home->block = bucket->block;
        home->bytes = (size_t)entry->elements * width;
        home->offset = (size_t)bucket->weights_first * width + inside;
        if (!block) continue;
        home->in_block = before + inside;
        block->name = name_of(plan, entry);
    }
    if (!block) return;
    const size_t bytes = (size_t)bucket->elements * width;
    if (!before) block->host_offset = (size_t)bucket->weights_first * width;
    block->bytes += bucket->sharded ? hdi_place_round(bytes) : bytes;
}

size_t hdi_residency_shard_bytes(const hdi_bucket *bucket, int shard, size_t width)
{
    return hdi_place_round((size_t)bucket->counts[shard] * width);
}

/* The most that a block's shard takes, of those that come from the host. */
static size_t largest_shard(const hdi_layout *layout, int shard, size_t width)
{
    size_t most = 0;
    for (int block = 0; block < layout->block_count; block++) {
        size_t bytes = 0;
        for (int b = 0; b < layout->bucket_count; b++)
            if (layout->buckets[b].host && layout->buckets[b].block == block)
                bytes += hdi_residency_shard_bytes(&layout->buckets[b], shard, width);
        if (most < bytes) most = bytes;
    }
    return most;
}

size_t hdi_residency_most_bytes(const hd_plan *plan)
{
    const hdi_residency *it = &plan->residency;
    const hdi_layout *layout = plan->layout;
    const size_t width = width_of(plan);
    size_t most = hdi_place_round(plan->bytes[HD_REGION_WEIGHTS]) +
                  hdi_place_round(plan->bytes[HD_REGION_STREAMED]);
    for (int shard = 0; shard < layout->shards && it->gathers; shard++) {
        size_t bytes = 0;
        for (int b = 0; b < layout->bucket_count; b++) {
            const hdi_bucket *bucket = &layout->buckets[b];
            const int64_t kept = bucket->sharded ? bucket->counts[shard] : bucket->elements;
            if (!bucket->host) bytes += (size_t)hdi_round_up(kept, HDI_FLAT_ALIGNMENT) * width;
        }
        const size_t slots = (size_t)it->slots * it->slot_bytes;
        bytes =
            hdi_place_round(bytes) + hdi_place_round(slots + largest_shard(layout, shard, width));
        if (most < bytes) most = bytes;
    }
    return most;
}

hd_status hdi_residency_laid_out(hd_plan *plan, int slots)
{
    hdi_residency *it = &plan->residency;
    const hdi_layout *layout = plan->layout;
    const size_t width = width_of(plan);
    hdi_residency_free(it);
    it->homes = hdi_alloc_array((size_t)layout->entry_count + 1, sizeof *it->homes);
    it->blocks = hdi_alloc_array((size_t)layout->block_count + 1, sizeof *it->blocks);
    if (!it->homes || !it->blocks) return hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
    it->block_count = layout->block_count;
    it->host_blocks = layout->weights_sharded ? layout->sharded_blocks : layout->host_blocks;
    const bool shares = layout->weights_sharded || plan->options.shards > 1;
    it->gathers = it->host_blocks && shares;
    it->updates = layout->host_blocks > 0 && (layout->weights_sharded || !shares);
    it->slots = slots < it->host_blocks ? slots : it->host_blocks;
    it->host_bytes = (size_t)layout->host_weights_elements * width;
    for (int b = 0; b < layout->bucket_count; b++)
        place_bucket(plan, &layout->buckets[b], width);
    for (int b = 0; b < it->block_count; b++) {
        it->blocks[b].host = hdi_block_is_host(b, it->host_blocks, it->block_count);
        if (it->blocks[b].host && it->slot_bytes < it->blocks[b].bytes)
            it->slot_bytes = it->blocks[b].bytes;
    }
    it->slot_bytes = hdi_place_round(it->slot_bytes);
    plan->bytes[HD_REGION_WEIGHTS] = (size_t)layout->weights_elements * width;
    it->shard_bytes =
        it->gathers && it->host_bytes ? largest_shard(layout, layout->shard, width) : 0;
    plan->bytes[HD_REGION_STREAMED] = (size_t)it->slots * it->slot_bytes + it->shard_bytes;
    return HD_OK;
}

void hdi_residency_kept(const hd_plan *plan, int index, size_t *begin, size_t *end)
{
    const hdi_layout *layout = plan->layout;
    const hdi_bucket *bucket = &layout->buckets[index];
    const hd_region region = bucket->host ? HD_REGION_HOST_WEIGHTS : HD_REGION_WEIGHTS;
    const int64_t kept = bucket->sharded ? bucket->counts[layout->shard] : bucket->elements;
    *begin = plan->units[0].base[region] + (size_t)bucket->weights_first * width_of(plan);
    *end = *begin + (size_t)kept * width_of(plan);
}
