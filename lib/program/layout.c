/* Flat order of parameters, buckets and shards. */
#include "program/layout.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "program/residency.h"

#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "layout: out of host memory");
}

int hdi_layout_find(const hdi_layout *layout, const char *name)
{
    return hdi_names_find(&layout->by_name, name);
}

/* Entries of which ranks have parts first, then those that all have: a bucket holds one kind, so that
 * buckets of the second are the same on all ranks. */
static hd_status part_alike(hdi_layout *layout)
{
    if (layout->entry_count == 0) return HD_OK;
    hdi_entry *sorted = hdi_alloc_array((size_t)layout->entry_count, sizeof *sorted);
    if (!sorted) return out_of_memory();
    int count = 0;
    for (int alike = 0; alike < 2; alike++)
        for (int i = 0; i < layout->entry_count; i++)
            if (hdi_entry_is_part(&layout->entries[i]) == !alike)
                sorted[count++] = layout->entries[i];
    memcpy(layout->entries, sorted, (size_t)count * sizeof *sorted);
    hdi_free(sorted);
    for (int i = 0; i < count; i++)
        if (!hdi_names_put(&layout->by_name, layout->entries[i].name, i)) return out_of_memory();
    return HD_OK;
}

static const hdi_instance *find_instance(const hdi_layout *layout, int program, hd_tensor gradient)
{
    for (int i = 0; i < layout->instance_count; i++)
        if (layout->instances[i].program == program &&
            layout->instances[i].gradient.id == gradient.id)
            return &layout->instances[i];
    return NULL;
}

/* Entries in the order in which the backward finishes their gradients: last use first, and a
 * parameter that is used again earlier is finished there. */
static hd_status collect_entries(hdi_layout *layout, hd_program *const *programs, int count,
                                 const hdi_layout_options *options)
{
    for (int p = 0; p < count; p++) {
        for (int u = 0; u < programs[p]->use_count; u++) {
            const hdi_use *use = &programs[p]->uses[u];
            if (hdi_layout_find(layout, use->name) >= 0) continue;
            if (!HDI_GROW(layout->entries, layout->entry_count, layout->entry_capacity) ||
                !hdi_names_put(&layout->by_name, use->name, layout->entry_count))
                return out_of_memory();
            layout->entries[layout->entry_count++] = (hdi_entry){
                .name = use->name,
                .options = &use->options,
                .program = p,
                .block = -1,
                .elements = hd_tensor_get(programs[p], use->tensor)->elements,
                .tied = options->is_tied && options->is_tied(options->user, use->name),
            };
        }
    }
    for (int low = 0, high = layout->entry_count - 1; low < high; low++, high--) {
        hdi_entry swap = layout->entries[low];
        layout->entries[low] = layout->entries[high];
        layout->entries[high] = swap;
    }
    return part_alike(layout);
}

static hd_status collect_instances(hdi_layout *layout, hd_program *const *programs, int count)
{
    for (int p = 0; p < count; p++) {
        for (int u = 0; u < programs[p]->use_count; u++) {
            const hdi_use *use = &programs[p]->uses[u];
            if (!use->gradient.id || hdi_layout_gradient(layout, p, use->gradient) >= 0) continue;
            int entry = hdi_layout_find(layout, use->name);
            if (!HDI_GROW(layout->instances, layout->instance_count, layout->instance_capacity))
                return out_of_memory();
            layout->instances[layout->instance_count++] =
                (hdi_instance){.program = p, .entry = entry, .gradient = use->gradient};
            layout->entries[entry].instances++;
        }
    }
    return HD_OK;
}

static hd_status make_buckets(hdi_layout *layout, const hdi_layout_options *options)
{
    const int64_t limit = options->bucket_elements ? options->bucket_elements : 8 << 20;
    int64_t position = 0;
    for (int i = 0; i < layout->entry_count; i++) {
        hdi_entry *entry = &layout->entries[i];
        bool alone = entry->tied || entry->instances > 1;
        hdi_bucket *open = layout->bucket_count ? &layout->buckets[layout->bucket_count - 1] : NULL;
        bool cut =
            !open || alone || open->tied || open->elements >= limit ||
            open->program != entry->program || open->block != entry->block ||
            hdi_entry_is_part(&layout->entries[open->first_entry]) != hdi_entry_is_part(entry);
        if (cut) {
            if (!HDI_GROW(layout->buckets, layout->bucket_count, layout->bucket_capacity))
                return out_of_memory();
            open = &layout->buckets[layout->bucket_count++];
            *open =
                (hdi_bucket){.first = position,
                             .first_entry = i,
                             .program = entry->program,
                             .block = entry->block,
                             .tied = alone,
                             .late = alone || (options->sums_alike && !hdi_entry_is_part(entry))};
        }
        entry->first = position;
        entry->bucket = layout->bucket_count - 1;
        position += hdi_round_up(entry->elements, HDI_FLAT_ALIGNMENT);
        open->entries++;
        open->elements = position - open->first;
    }
    layout->weights_elements = layout->gradient_elements = position;
    return HD_OK;
}

static hd_status place_instances(hdi_layout *layout)
{
    bool *taken = hdi_alloc_array((size_t)layout->entry_count + 1, sizeof *taken);
    if (!taken) return out_of_memory();
    for (int i = 0; i < layout->instance_count; i++) {
        hdi_instance *instance = &layout->instances[i];
        const hdi_entry *entry = &layout->entries[instance->entry];
        if (!taken[instance->entry]) {
            taken[instance->entry] = true;
            instance->first = entry->first;
        } else {
            instance->first = layout->gradient_elements;
            layout->gradient_elements += hdi_round_up(entry->elements, HDI_FLAT_ALIGNMENT);
        }
    }
    hdi_free(taken);
    return HD_OK;
}

/* The smallest block boundary of the bucket at or after `position`. */
static int64_t next_boundary(const hdi_layout *layout, const hdi_bucket *bucket, int64_t position)
{
    for (int i = bucket->first_entry; i < bucket->first_entry + bucket->entries; i++) {
        const hdi_entry *entry = &layout->entries[i];
        if (position <= entry->first) return entry->first;
        if (position < entry->first + entry->elements) {
            int64_t inside = hdi_round_up(position - entry->first, HDI_BLOCK_ELEMENTS_LAYOUT);
            if (inside < entry->elements) return entry->first + inside;
        }
    }
    return bucket->first + bucket->elements;
}

/* Sums are element by element, so any cut does. */
static void cut_copies(const hdi_layout *layout, hdi_bucket *bucket, int64_t own)
{
    const int64_t each = hdi_round_up(hdi_ceil_div(own, layout->copies), HDI_FLAT_ALIGNMENT);
    for (int c = 0; c < layout->copies; c++) {
        const int64_t first = each * c < own ? each * c : own;
        bucket->copy_offsets[c] = first;
        bucket->copy_counts[c] = own - first < each ? own - first : each;
    }
    for (int c = 0; c < layout->copies; c++) {
        bucket->part_counts[c] = bucket->copy_counts[layout->copy];
        bucket->part_offsets[c] = bucket->part_counts[c] * c;
    }
}

static hd_status make_shards(hdi_layout *layout)
{
    int shards = layout->shards;
    for (int b = 0; b < layout->bucket_count; b++) {
        hdi_bucket *bucket = &layout->buckets[b];
        bucket->shard_first = hdi_alloc_array(5 * (size_t)shards + 4 * (size_t)layout->copies + 1,
                                              sizeof *bucket->shard_first);
        if (!bucket->shard_first) return out_of_memory();
        bucket->counts = bucket->shard_first + shards + 1;
        bucket->offsets = bucket->counts + shards;
        bucket->own_counts = bucket->offsets + shards;
        bucket->own_offsets = bucket->own_counts + shards;
        bucket->copy_counts = bucket->own_offsets + shards;
        bucket->copy_offsets = bucket->copy_counts + layout->copies;
        bucket->part_counts = bucket->copy_offsets + layout->copies;
        bucket->part_offsets = bucket->part_counts + layout->copies;
        for (int s = 0; s <= shards; s++)
            bucket->shard_first[s] =
                next_boundary(layout, bucket, bucket->first + bucket->elements * s / shards);
        bucket->shard_first[0] = bucket->first;
        int64_t first, own = hdi_layout_shard(layout, b, layout->shard, &first);
        for (int s = 0; s < shards; s++) {
            bucket->counts[s] = hdi_layout_shard(layout, b, s, &first);
            bucket->offsets[s] = first - bucket->first;
            bucket->own_counts[s] = own;
            bucket->own_offsets[s] = own * s;
        }
        cut_copies(layout, bucket, own);
        bucket->state_first = layout->optimizer_elements;
        layout->optimizer_elements +=
            layout->state_sharded ? hdi_round_up(hdi_layout_shard(layout, b, layout->shard, &first),
                                                 HDI_FLAT_ALIGNMENT)
                                  : bucket->elements;
    }
    return HD_OK;
}

/* Levels of a shard together; a multiple of HDI_FLAT_ALIGNMENT, as shards are. */
static int64_t stored_shard(const hdi_layout *layout, int bucket)
{
    int64_t first;
    return layout->levels * hdi_layout_shard(layout, bucket, layout->shard, &first);
}

/* Shards in the order of the buckets, those of further instances after them. */
static void store_gradients(hdi_layout *layout)
{
    int64_t stored = 0;
    for (int b = 0; b < layout->bucket_count; b++) {
        hdi_bucket *bucket = &layout->buckets[b];
        bucket->gradient_first = layout->gradients_sharded ? stored : bucket->first;
        stored += stored_shard(layout, b);
    }
    if (layout->gradients_sharded) layout->gradient_elements = stored;
    for (int i = 0; i < layout->instance_count; i++) {
        hdi_instance *instance = &layout->instances[i];
        const hdi_entry *entry = &layout->entries[instance->entry];
        instance->stored = instance->first;
        if (!layout->gradients_sharded) continue;
        if (instance->first == entry->first) {
            instance->stored = layout->buckets[entry->bucket].gradient_first;
        } else {
            instance->stored = layout->gradient_elements;
            layout->gradient_elements += stored_shard(layout, entry->bucket);
        }
    }
    /* Values pass through these bytes on their way in, on ranks that own nothing, too. */
    if (layout->gradients_sharded && layout->gradient_elements < HDI_BLOCK_ELEMENTS_LAYOUT)
        layout->gradient_elements = HDI_BLOCK_ELEMENTS_LAYOUT;
}

static void store_bucket(const hdi_layout *layout, hdi_bucket *bucket, int64_t *stored)
{
    const int64_t own = bucket->counts[layout->shard];
    bucket->weights_first = *stored;
    *stored += bucket->sharded ? hdi_round_up(own, HDI_FLAT_ALIGNMENT) : bucket->elements;
}

static bool is_kept(const hdi_layout *layout, const hdi_bucket *bucket, int count)
{
    return bucket->block >= 0 && hdi_block_is_host(bucket->block, count, layout->block_count);
}

static void store_weights(hdi_layout *layout)
{
    for (int b = 0; b < layout->bucket_count; b++) {
        hdi_bucket *bucket = &layout->buckets[b];
        bucket->sharded = is_kept(layout, bucket, layout->sharded_blocks);
        bucket->host = is_kept(layout, bucket, layout->host_blocks);
    }
    layout->weights_elements = layout->host_weights_elements = 0;
    for (int b = 0; b < layout->bucket_count; b++)
        if (!layout->buckets[b].host)
            store_bucket(layout, &layout->buckets[b], &layout->weights_elements);
    for (int block = 0; block < layout->block_count; block++)
        for (int b = 0; b < layout->bucket_count; b++)
            if (layout->buckets[b].host && layout->buckets[b].block == block)
                store_bucket(layout, &layout->buckets[b], &layout->host_weights_elements);
}

hd_status hdi_layout_create(hd_program *const *programs, int count,
                            const hdi_layout_options *options, hdi_layout **out)
{
    *out = NULL;
    hdi_layout *layout = hdi_alloc(sizeof *layout);
    if (!layout) return out_of_memory();
    layout->axis = options->axis ? options->axis : HD_AXIS_DATA;
    layout->shards = options->shards > 0 ? options->shards : 1;
    layout->shard = options->shard;
    layout->copies = options->copies > 0 ? options->copies : 1;
    layout->copy = options->copy;
    layout->state_sharded = options->sharding >= 1;
    layout->gradients_sharded =
        options->shards_alone || (options->sharding >= 2 && layout->shards > 1);
    layout->weights_sharded = options->sharding >= 3 && layout->shards > 1;
    layout->levels = layout->gradients_sharded && options->levels > 1 ? options->levels : 1;
    layout->accumulates = options->accumulates;
    hd_status status = collect_entries(layout, programs, count, options);
    if (status == HD_OK) status = collect_instances(layout, programs, count);
    if (status == HD_OK &&
        (layout->weights_sharded || options->cuts_blocks || options->host_blocks > 0))
        status = hdi_residency_blocks(layout, programs, count);
    layout->sharded_blocks = layout->weights_sharded ? layout->block_count : 0;
    layout->host_blocks =
        options->host_blocks < layout->block_count ? options->host_blocks : layout->block_count;
    if (status == HD_OK) status = make_buckets(layout, options);
    if (status == HD_OK) status = place_instances(layout);
    if (status == HD_OK) status = make_shards(layout);
    if (status == HD_OK) store_gradients(layout);
    if (status == HD_OK) store_weights(layout);
    if (status != HD_OK) {
        hdi_layout_destroy(layout);
        return status;
    }
    *out = layout;
    return HD_OK;
}

void hdi_layout_keep(hdi_layout *layout, int sharded, int host)
{
    layout->weights_sharded = sharded > 0;
    layout->sharded_blocks = sharded;
    layout->host_blocks = host;
    store_weights(layout);
}

void hdi_layout_destroy(hdi_layout *layout)
{
    if (!layout) return;
    for (int i = 0; i < layout->bucket_count; i++)
        hdi_free(layout->buckets[i].shard_first);
    hdi_free(layout->entries);
    hdi_names_free(&layout->by_name);
    hdi_free(layout->instances);
    hdi_free(layout->buckets);
    hdi_free(layout);
}

hd_status hdi_layout_alias(hdi_layout *layout, const hd_program *like, int like_index,
                           const hd_program *program, int index)
{
    if (program->use_count != like->use_count)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "layout: program '%s' uses parameters %d times, '%s' %d times",
                         program->name, program->use_count, like->name, like->use_count);
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u], *other = &like->uses[u];
        if (strcmp(use->name, other->name) != 0 || hd_tensor_get(program, use->tensor)->elements !=
                                                       hd_tensor_get(like, other->tensor)->elements)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "layout: programs '%s' and '%s' differ in parameter '%s'",
                             program->name, like->name, use->name);
        if (!use->gradient.id || hdi_layout_gradient(layout, index, use->gradient) >= 0) continue;
        const hdi_instance *same = find_instance(layout, like_index, other->gradient);
        if (!same)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "layout: parameter '%s' has a gradient in program '%s' only",
                             use->name, program->name);
        const int64_t first = same->first, stored = same->stored; /* `same` may move */
        if (!HDI_GROW(layout->instances, layout->instance_count, layout->instance_capacity))
            return out_of_memory();
        layout->instances[layout->instance_count++] =
            (hdi_instance){.program = index,
                           .entry = hdi_layout_find(layout, use->name),
                           .gradient = use->gradient,
                           .first = first,
                           .stored = stored,
                           .alias = true};
    }
    return HD_OK;
}

int64_t hdi_layout_gradient(const hdi_layout *layout, int program, hd_tensor gradient)
{
    const hdi_instance *found = find_instance(layout, program, gradient);
    return found ? found->first : -1;
}

int64_t hdi_layout_shard(const hdi_layout *layout, int bucket, int shard, int64_t *first)
{
    const hdi_bucket *b = &layout->buckets[bucket];
    *first = b->shard_first[shard];
    return b->shard_first[shard + 1] - b->shard_first[shard];
}

int64_t hdi_layout_stored_gradient(const hdi_layout *layout, int bucket, int64_t first)
{
    const hdi_bucket *b = &layout->buckets[bucket];
    return b->gradient_first + first -
           (layout->gradients_sharded ? b->shard_first[layout->shard] : b->first);
}

int64_t hdi_layout_stored_weights(const hdi_layout *layout, int bucket, int64_t first)
{
    const hdi_bucket *b = &layout->buckets[bucket];
    return b->weights_first + first - (b->sharded ? b->shard_first[layout->shard] : b->first);
}
