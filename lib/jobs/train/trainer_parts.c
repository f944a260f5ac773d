/* What of the model this rank holds: for checkpoints, exports and hashes. */
#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "jobs/train/trainer.h"

#include <string.h>
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
    HD_RETURN_IF_ERROR(hd_session_drain(trainer->session));
    for (int i = 0; i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        if (layout->copy > 0 || !hdi_trainer_speaks_for(trainer, entry)) continue;
        int64_t first, count = hdi_layout_shard(layout, entry->bucket, layout->shard, &first);
        HD_RETURN_IF_ERROR(visit_range(trainer, entry, first, count, visit, user));
    }
    return HD_OK;
}

hd_status hdi_trainer_loaded_parts(hd_trainer *trainer, hdi_trainer_part_fn visit, void *user)
{
    const hdi_layout *layout = trainer->plan->layout;
    HD_RETURN_IF_ERROR(hd_session_drain(trainer->session));
    for (int i = 0; i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        const hdi_bucket *bucket = &layout->buckets[entry->bucket];
        int64_t first = bucket->first, count = bucket->elements;
        if (layout->state_sharded)
            count = hdi_layout_shard(layout, entry->bucket, layout->shard, &first);
        /* Before, within and after this rank's state: only the middle has m and v, and weights too
         * where they are sharded. */
        if (bucket->sharded) {
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
    char *own = values + (size_t)(first - entry->first) * width;
    const char *from = count ? hdi_trainer_weights(trainer, first) : NULL;
    if (hdi_session_is_host(trainer->session, from))
        memcpy(own, from, (size_t)count * width);
    else if (count)
        HD_RETURN_IF_ERROR(
            context->backend->copy_out(context->stream, own, from, (size_t)count * width));
    HD_RETURN_IF_ERROR(context->backend->synchronize(context->stream));
    if (!trainer->plan->layout->buckets[entry->bucket].sharded) return HD_OK;
    return gather_shards(trainer, entry, values);
}

/* This rank's elements of a parameter at their places in the whole, which is zeros before, if it
 * speaks for them. Collective where they are sharded. */
static hd_status place_weights(const hd_trainer *trainer, const hdi_entry *entry, bool speaks,
                               char *whole)
{
    const size_t width = hd_dtype_bytes(trainer->options.dtype);
    char *own = hdi_alloc((size_t)entry->elements * width);
    if (!own) return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
    const hd_status status = read_whole(trainer, entry, own);
    for (int64_t at = 0; at < entry->elements && speaks && status == HD_OK;) {
        int64_t global, run = hdi_shard_run(entry->options, at, &global);
        memcpy(whole + (size_t)global * width, own + (size_t)at * width, (size_t)run * width);
        at += run;
    }
    hdi_free(own);
    return status;
}

static hd_status sum_over(hd_comm *comm, void *inout, int64_t count, hd_dtype dtype)
{
    hd_request request;
    if (hd_comm_size(comm) == 1) return HD_OK;
    HD_RETURN_IF_ERROR(hd_comm_all_reduce(comm, inout, count, dtype, HD_REDUCE_SUM, &request));
    return hd_comm_wait(comm, &request);
}

/* Of a parameter as one rank would have it: bits of parts and zeros join as integers do. `first`: of the
 * ranks that have the same parameters. */
static hd_status hash_parameter(const hd_trainer *trainer, const hdi_global_parameter *parameter,
                                bool first, int64_t *out)
{
    const hdi_layout *layout = trainer->plan->layout;
    const hd_mesh *mesh = trainer->options.mesh;
    const size_t bytes = (size_t)parameter->elements * hd_dtype_bytes(trainer->options.dtype);
    const int64_t words = hdi_ceil_div((int64_t)bytes, sizeof(int32_t));
    const int index = hdi_layout_find(layout, parameter->name); /* parts may be on others only */
    const hdi_entry *entry = index < 0 ? NULL : &layout->entries[index];
    const bool is_sharded = entry && layout->buckets[entry->bucket].sharded;
    const bool speaks = first && entry && hdi_trainer_speaks_for(trainer, entry);
    char *whole = hdi_alloc_array((size_t)words, sizeof(int32_t));
    hd_status status = whole ? HD_OK : hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
    if (status == HD_OK && (speaks || is_sharded))
        status = place_weights(trainer, entry, speaks, whole);
    if (status == HD_OK && first)
        status = sum_over(hd_mesh_comm(mesh, HD_AXIS_TENSOR), whole, words, HD_DTYPE_I32);
    if (status == HD_OK && first && hd_mesh_index(mesh, HD_AXIS_TENSOR) == 0)
        *out = (int64_t)XXH3_64bits(whole, bytes);
    hdi_free(whole);
    return status;
}

/* One hash per parameter from the ranks that speak for it; the others add zero. */
hd_status hd_trainer_weights_hash(hd_trainer *trainer, uint64_t *out)
{
    const hdi_census *census = &trainer->census;
    const hd_mesh *mesh = trainer->options.mesh;
    int64_t *sums = hdi_alloc_array((size_t)census->count, sizeof *sums);
    hd_status status = sums ? HD_OK : hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
    if (status == HD_OK) status = hd_session_drain(trainer->session);
    const bool first = hd_mesh_index(mesh, HD_AXIS_REPLICA) == 0;
    for (int i = 0; i < census->count && status == HD_OK; i++)
        if (hdi_trainer_rank_of(trainer, census->parameters[i].stages[0]) == trainer->stage)
            status = hash_parameter(trainer, &census->parameters[i], first, &sums[i]);
    if (status == HD_OK)
        status = sum_over(hd_mesh_comm(mesh, HD_AXIS_NONE), sums, census->count, HD_DTYPE_I64);
    if (status == HD_OK) *out = XXH3_64bits(sums, (size_t)census->count * sizeof *sums);
    hdi_free(sums);
    return status;
}
