/* What of the model this rank holds: for checkpoints, exports and hashes. */
#include "core/error.h"
#include "core/memory.h"
#include "jobs/train/trainer.h"

#include <xxhash.h>

static hd_status visit_range(hd_trainer *trainer, const hdi_entry *entry, int64_t first,
                             int64_t count, hdi_trainer_part_fn visit, void *user)
{
    const hdi_layout *layout = trainer->plan->layout;
    const hdi_bucket *bucket = &layout->buckets[entry->bucket];
    int64_t begin = first > entry->first ? first : entry->first, end = first + count;
    if (end > entry->first + entry->elements) end = entry->first + entry->elements;
    if (begin >= end) return HD_OK;
    int64_t own_first = bucket->first, own = bucket->elements;
    if (layout->state_sharded)
        own = hdi_layout_shard(layout, entry->bucket, layout->shard, &own_first);
    bool has_state = begin >= own_first && end <= own_first + own;
    int64_t state = bucket->state_first + (begin - own_first);
    float *m = hdi_trainer_state(trainer, state);
    bool has_average = has_state && trainer->options.ema_decay > 0;
    float *average = hdi_trainer_state(trainer, hdi_trainer_average_first(trainer, layout) + state);
    return visit(user, &(hdi_trainer_part){.entry = entry,
                                           .begin = begin - entry->first,
                                           .count = end - begin,
                                           .values = hdi_trainer_values(trainer, begin, state),
                                           .m = has_state ? m : NULL,
                                           .v = has_state ? m + layout->optimizer_elements : NULL,
                                           .average = has_average ? average : NULL});
}

hd_status hdi_trainer_saved_parts(hd_trainer *trainer, hdi_trainer_part_fn visit, void *user)
{
    const hdi_layout *layout = trainer->plan->layout;
    for (int i = 0; i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        if (layout->copy > 0 || !hdi_trainer_speaks_for(trainer, entry->name)) continue;
        int64_t first, count = hdi_layout_shard(layout, entry->bucket, layout->shard, &first);
        HD_RETURN_IF_ERROR(visit_range(trainer, entry, first, count, visit, user));
    }
    return HD_OK;
}

hd_status hdi_trainer_loaded_parts(hd_trainer *trainer, hdi_trainer_part_fn visit, void *user)
{
    const hdi_layout *layout = trainer->plan->layout;
    for (int i = 0; i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        const hdi_bucket *bucket = &layout->buckets[entry->bucket];
        int64_t first = bucket->first, count = bucket->elements;
        if (layout->state_sharded)
            count = hdi_layout_shard(layout, entry->bucket, layout->shard, &first);
        /* Before, within and after this rank's state: only the middle has m and v, and weights too
         * where they are sharded. */
        if (bucket->block >= 0) {
            HD_RETURN_IF_ERROR(visit_range(trainer, entry, first, count, visit, user));
            continue;
        }
        HD_RETURN_IF_ERROR(
            visit_range(trainer, entry, bucket->first, first - bucket->first, visit, user));
        HD_RETURN_IF_ERROR(visit_range(trainer, entry, first, count, visit, user));
        HD_RETURN_IF_ERROR(visit_range(trainer, entry, first + count,
                                       bucket->first + bucket->elements - first - count, visit,
                                       user));
    }
    return HD_OK;
}

/* Put the other ranks' shards of a parameter beside this rank's, on the host. Collective. */
static hd_status gather_shards(const hd_trainer *trainer, const hdi_entry *entry, char *values)
{
    const hdi_layout *layout = trainer->plan->layout;
    hd_comm *comm = hd_mesh_comm(trainer->options.mesh, layout->axis);
    int64_t *counts = hdi_alloc_array(2 * (size_t)layout->shards, sizeof *counts);
    if (!counts) return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
    int64_t *offsets = counts + layout->shards;
    for (int s = 0; s < layout->shards; s++) {
        int64_t first, count = hdi_layout_shard(layout, entry->bucket, s, &first);
        int64_t begin = first > entry->first ? first : entry->first, end = first + count;
        if (end > entry->first + entry->elements) end = entry->first + entry->elements;
        counts[s] = end > begin ? end - begin : 0;
        offsets[s] = counts[s] ? begin - entry->first : 0;
    }
    hd_request request;
    hd_status status =
        hd_comm_all_gather(comm, values, counts, offsets, trainer->options.dtype, &request);
    if (status == HD_OK) status = hd_comm_wait(comm, &request);
    hdi_free(counts);
    return status;
}

/* All weights of a parameter, to host memory. Collective where they are sharded. */
static hd_status read_whole(const hd_trainer *trainer, const hdi_entry *entry, char *values)
{
    const hd_context *context = trainer->session->context;
    const size_t width = hd_dtype_bytes(trainer->options.dtype);
    int64_t first = entry->first, count = entry->elements;
    hdi_session_clip(trainer->session, entry, &first, &count);
    if (count)
        HD_RETURN_IF_ERROR(context->backend->copy_out(
            context->stream, values + (size_t)(first - entry->first) * width,
            hdi_trainer_weights(trainer, first), (size_t)count * width));
    HD_RETURN_IF_ERROR(context->backend->synchronize(context->stream));
    if (trainer->plan->layout->buckets[entry->bucket].block < 0) return HD_OK;
    return gather_shards(trainer, entry, values);
}

/* One hash per parameter from the rank that speaks for it; the others add zero. */
hd_status hd_trainer_weights_hash(hd_trainer *trainer, uint64_t *out)
{
    const hdi_layout *layout = trainer->plan->layout;
    const hdi_census *census = &trainer->census;
    int64_t *sums = hdi_alloc_array((size_t)census->count, sizeof *sums);
    hd_status status = sums ? HD_OK : hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
    const bool first = hd_mesh_index(trainer->options.mesh, HD_AXIS_REPLICA) == 0;
    for (int i = 0; i < layout->entry_count && status == HD_OK; i++) {
        const hdi_entry *entry = &layout->entries[i];
        const bool speaks = first && hdi_trainer_speaks_for(trainer, entry->name);
        if (!speaks && layout->buckets[entry->bucket].block < 0) continue;
        size_t bytes = (size_t)entry->elements * hd_dtype_bytes(trainer->options.dtype);
        char *copy = hdi_alloc(bytes);
        if (!copy) status = hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
        if (status == HD_OK) status = read_whole(trainer, entry, copy);
        if (status == HD_OK && speaks)
            sums[hdi_census_find(census, entry->name) - census->parameters] =
                (int64_t)XXH3_64bits(copy, bytes);
        hdi_free(copy);
    }
    hd_comm *world = hd_mesh_comm(trainer->options.mesh, HD_AXIS_NONE);
    if (hd_mesh_ranks(trainer->options.mesh) > 1) {
        hd_request request = {0};
        if (status == HD_OK)
            status = hd_comm_all_reduce(world, sums, census->count, HD_DTYPE_I64, HD_REDUCE_SUM,
                                        &request);
        if (status == HD_OK) status = hd_comm_wait(world, &request);
    }
    if (status == HD_OK) *out = XXH3_64bits(sums, (size_t)census->count * sizeof *sums);
    hdi_free(sums);
    return status;
}
