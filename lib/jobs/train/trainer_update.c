/* The end of a step: the pieces that this rank works on, and program `norm`, which completes gradients
 * that several stages or ranks of the tensor axis share and takes the sums of squares. */
#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "jobs/train/trainer.h"
#include "ops/collective.h"
#include "ops/host_copy.h"
#include "parallel/gradients.h"

#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
}

bool hdi_trainer_speaks_for(const hd_trainer *trainer, const hdi_entry *entry)
{
    const hdi_global_parameter *parameter = hdi_census_find(&trainer->census, entry->name);
    const bool first = hd_mesh_index(trainer->options.mesh, HD_AXIS_TENSOR) == 0;
    return parameter && hdi_trainer_rank_of(trainer, parameter->stages[0]) == trainer->stage &&
           (first || hdi_entry_is_part(entry));
}

/* This rank's elements of a bucket: its shard, or all of it where state is not sharded. */
static int64_t updated_range(const hdi_layout *layout, int bucket, int64_t *first)
{
    if (layout->state_sharded) return hdi_layout_shard(layout, bucket, layout->shard, first);
    *first = layout->buckets[bucket].first;
    return layout->buckets[bucket].elements;
}

static hd_status add_piece(hdi_piece **pieces, int *count, int *capacity, hdi_piece piece)
{
    if (piece.elements <= 0) return HD_OK;
    if (!HDI_GROW(*pieces, *count, *capacity)) return out_of_memory();
    (*pieces)[(*count)++] = piece;
    return HD_OK;
}

/* The part of `entry` that lies in flat [first, first + elements). */
static hdi_piece cut_piece(const hd_trainer *trainer, const hdi_layout *layout,
                           const hdi_entry *entry, int64_t first, int64_t elements)
{
    const hd_adamw_options *adamw = &trainer->options.adamw;
    const hdi_bucket *bucket = &layout->buckets[entry->bucket];
    int64_t begin = first > entry->first ? first : entry->first;
    int64_t end = first + elements, entry_end = entry->first + entry->elements, state_base;
    if (end > entry_end) end = entry_end;
    updated_range(layout, entry->bucket, &state_base);
    bool decays = adamw->decay_all || entry->options->rank > 1;
    return (hdi_piece){.first = begin,
                       .elements = end - begin,
                       .state_first = bucket->state_first + begin - state_base,
                       .bucket = entry->bucket,
                       .block = hdi_census_find(&trainer->census, entry->name)->first_block +
                                (begin - entry->first) / HDI_BLOCK_ELEMENTS_LAYOUT,
                       .weight_decay = decays ? adamw->weight_decay : 0};
}

/* What is on the host is updated in chunks, what is not in whole buckets. */
static hd_status cut_chunks(hd_trainer *trainer, const hdi_layout *layout, int index)
{
    const int64_t state_first = layout->buckets[index].state_first;
    int64_t first, elements = updated_range(layout, index, &first), at = 0;
    const bool passes = hdi_trainer_on_host(trainer) || hdi_trainer_gradients_on_host(trainer);
    const int64_t most = passes ? trainer->options.chunk_elements : elements;
    for (; at < elements; at += most) {
        if (!HDI_GROW(trainer->update_chunks, trainer->chunk_count, trainer->chunk_capacity))
            return out_of_memory();
        trainer->update_chunks[trainer->chunk_count++] =
            (hdi_update_chunk){.bucket = index,
                               .first = first + at,
                               .elements = elements - at < most ? elements - at : most,
                               .state_first = state_first + at,
                               .first_piece = trainer->update_count};
        hdi_update_chunk *chunk = &trainer->update_chunks[trainer->chunk_count - 1];
        const hdi_bucket *bucket = &layout->buckets[index];
        for (int i = bucket->first_entry; i < bucket->first_entry + bucket->entries; i++) {
            const hdi_entry *entry = &layout->entries[i];
            if (entry->options->frozen) continue;
            HD_RETURN_IF_ERROR(add_piece(
                &trainer->update_pieces, &trainer->update_count, &trainer->update_capacity,
                cut_piece(trainer, layout, entry, chunk->first, chunk->elements)));
        }
        chunk->pieces = trainer->update_count - chunk->first_piece;
    }
    return HD_OK;
}

hd_status hdi_trainer_cut_pieces(hd_trainer *trainer, const hdi_layout *layout)
{
    for (int i = 0; i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        if (entry->options->frozen || layout->copy > 0 || !hdi_trainer_speaks_for(trainer, entry))
            continue;
        int64_t first, count = hdi_layout_shard(layout, entry->bucket, layout->shard, &first);
        hdi_piece piece = cut_piece(trainer, layout, entry, first, count);
        piece.first = hdi_layout_stored_gradient(layout, entry->bucket, piece.first);
        HD_RETURN_IF_ERROR(add_piece(&trainer->square_pieces, &trainer->square_count,
                                     &trainer->square_capacity, piece));
    }
    for (int b = layout->bucket_count - 1; b >= 0; b--)
        HD_RETURN_IF_ERROR(cut_chunks(trainer, layout, b));
    return HD_OK;
}

static hd_tensor gradients(hd_program *program, int64_t first, int64_t elements)
{
    return hdi_flat_tensor(program, "gradients", HDI_FLAT_GRADIENTS, program->gradients, first,
                           elements);
}

hd_tensor hdi_trainer_take(const hd_trainer *trainer, int64_t first, int64_t elements)
{
    hd_program *program = trainer->norm;
    if (!hdi_trainer_gradients_on_host(trainer)) return gradients(program, first, elements);
    const hd_tensor host = hdi_host_gradient(program, first, elements);
    if (!elements) return host;
    const hd_tensor copy =
        hdi_tensor_add(program, "gradients", program->gradients, HD_ROLE_ACTIVATION, 1, &elements);
    hdi_op_append(program, &hdi_op_load, NULL, 1, &host, 1, &copy);
    return copy;
}

void hdi_trainer_give_back(const hd_trainer *trainer, int64_t first, int64_t elements,
                           hd_tensor copy)
{
    if (!hdi_trainer_gradients_on_host(trainer) || !elements) return;
    const hd_tensor host = hdi_host_gradient(trainer->norm, first, elements);
    hdi_op_append(trainer->norm, &hdi_op_store, NULL, 1, &copy, 1, &host);
}

/* Several gradients of one parameter on this rank become one. */
static void join_instances(const hd_trainer *trainer, const hdi_layout *layout)
{
    for (int i = 0; i < layout->instance_count; i++) {
        const hdi_instance *instance = &layout->instances[i];
        const hdi_entry *entry = &layout->entries[instance->entry];
        if (instance->alias || instance->first == entry->first) continue;
        int64_t first, count = updated_range(layout, entry->bucket, &first);
        if (!count) continue;
        const int64_t into_first = hdi_layout_stored_gradient(layout, entry->bucket, first);
        const int64_t inside = into_first - layout->buckets[entry->bucket].gradient_first;
        hd_tensor extra = hdi_trainer_take(trainer, instance->stored + inside, count);
        hd_tensor into = hdi_trainer_take(trainer, into_first, count);
        hdi_op_append(trainer->norm, &hdi_op_gradient_join, NULL, 1, &extra, 1, &into);
        hdi_trainer_give_back(trainer, into_first, count, into);
    }
}

static bool holds(const hd_trainer *trainer, const hdi_global_parameter *parameter,
                  int pipeline_rank)
{
    for (int i = 0; i < parameter->stage_count; i++)
        if (hdi_trainer_rank_of(trainer, parameter->stages[i]) == pipeline_rank) return true;
    return false;
}

/* Every pipeline rank takes part in the exchange; those without the parameter send nothing. */
static hd_status make_tie(hd_trainer *trainer, const hdi_layout *layout, int index)
{
    const hdi_global_parameter *parameter = &trainer->census.parameters[index];
    int ranks = trainer->pipeline, entry = hdi_layout_find(layout, parameter->name);
    hdi_tie tie = {.parameter = index};
    tie.send_counts = hdi_alloc_array(4 * (size_t)ranks, sizeof(int64_t));
    if (!tie.send_counts || !HDI_GROW(trainer->ties, trainer->tie_count, trainer->tie_capacity)) {
        hdi_free(tie.send_counts);
        return out_of_memory();
    }
    tie.send_offsets = tie.send_counts + ranks;
    tie.recv_counts = tie.send_offsets + ranks;
    tie.recv_offsets = tie.recv_counts + ranks;
    int64_t first, elements = 0;
    if (entry >= 0) elements = updated_range(layout, layout->entries[entry].bucket, &first);
    for (int r = 0; r < ranks; r++) {
        bool member = holds(trainer, parameter, r);
        tie.recv_offsets[r] = tie.members * elements;
        tie.send_counts[r] = tie.recv_counts[r] = member ? elements : 0;
        tie.members += member;
    }
    trainer->ties[trainer->tie_count++] = tie;
    return HD_OK;
}

static void sum_tie(hd_trainer *trainer, const hdi_layout *layout, const hdi_tie *tie)
{
    hd_program *program = trainer->norm;
    const hdi_global_parameter *parameter = &trainer->census.parameters[tie->parameter];
    int entry = hdi_layout_find(layout, parameter->name);
    int64_t first = 0, elements = 0;
    if (entry >= 0) {
        const int bucket = layout->entries[entry].bucket;
        elements = updated_range(layout, bucket, &first);
        first = hdi_layout_stored_gradient(layout, bucket, first);
    }
    int64_t received = elements * tie->members;
    hd_tensor own = hdi_trainer_take(trainer, first, elements);
    hd_tensor all =
        hdi_tensor_add(program, "tied", program->gradients, HD_ROLE_ACTIVATION, 1, &received);
    hdi_op_append(program, &hdi_op_all_to_all,
                  &(hdi_all_to_all_options){
                      .collective = {HD_AXIS_PIPELINE, parameter->elements, parameter->name},
                      .send_counts = tie->send_counts,
                      .send_offsets = tie->send_offsets,
                      .recv_counts = tie->recv_counts,
                      .recv_offsets = tie->recv_offsets},
                  1, &own, 1, &all);
    if (elements)
        hdi_op_append(program, &hdi_op_tree_sum, &(hdi_tree_sum_options){tie->members}, 1, &all, 1,
                      &own);
    hdi_trainer_give_back(trainer, first, elements, own);
}

/* Of gradients on the host, those that are complete only now; the others' squares were taken on their
 * way. */
static void take_late_squares(hd_trainer *trainer, const hdi_layout *layout)
{
    hd_program *program = trainer->norm;
    const hd_tensor sums =
        hd_state(program, HDI_SQUARES, HD_DTYPE_F64, 1, &(int64_t){trainer->census.blocks});
    for (int i = 0; i < trainer->square_count; i++) {
        const hdi_piece *piece = &trainer->square_pieces[i];
        if (!layout->buckets[piece->bucket].late) continue;
        const hd_tensor taken = hdi_trainer_take(trainer, piece->first, piece->elements);
        hdi_op_append(program, &hdi_op_squares,
                      &(hdi_squares_options){
                          .pieces = piece, .count = 1, .first = piece->first, .adds = true},
                      1, &taken, 1, &sums);
    }
    hdi_op_append(program, &hdi_op_collect_squares, NULL, 1, &sums, 1, &trainer->squares);
}

static void take_squares(hd_trainer *trainer, const hdi_layout *layout)
{
    if (hdi_trainer_gradients_on_host(trainer)) {
        take_late_squares(trainer, layout);
        return;
    }
    const hd_tensor all = gradients(trainer->norm, 0, layout->gradient_elements);
    hdi_op_append(
        trainer->norm, &hdi_op_squares,
        &(hdi_squares_options){.pieces = trainer->square_pieces, .count = trainer->square_count}, 1,
        &all, 1, &trainer->squares);
}

static hd_status build_norm(hd_trainer *trainer, const hdi_layout *layout)
{
    HD_RETURN_IF_ERROR(
        hd_program_create(&(hd_program_options){.name = "norm",
                                                .gradients = trainer->options.gradients,
                                                .mesh = trainer->options.mesh,
                                                .backend = trainer->options.backend},
                          &trainer->norm));
    hd_program *program = trainer->norm;
    const hdi_census *census = &trainer->census;
    join_instances(trainer, layout);
    for (int i = 0; i < census->count; i++) {
        bool several = false;
        for (int s = 1; s < census->parameters[i].stage_count; s++)
            several = several || hdi_trainer_rank_of(trainer, census->parameters[i].stages[s]) !=
                                     hdi_trainer_rank_of(trainer, census->parameters[i].stages[0]);
        if (several) HD_RETURN_IF_ERROR(make_tie(trainer, layout, i));
    }
    for (int i = 0; i < trainer->tie_count; i++)
        sum_tie(trainer, layout, &trainer->ties[i]);
    HD_RETURN_IF_ERROR(hdi_trainer_sum_alike(trainer, layout));
    trainer->squares = hdi_tensor_add(program, "squares", HD_DTYPE_F64, HD_ROLE_OUTPUT, 1,
                                      &(int64_t){census->blocks});
    take_squares(trainer, layout);
    if (hd_mesh_ranks(trainer->options.mesh) > 1)
        hdi_op_append(program, &hdi_op_all_reduce,
                      &(hdi_collective){HD_AXIS_NONE, census->blocks, "sums of squares"}, 0, NULL,
                      1, &trainer->squares);
    return hd_program_finish(program);
}

hd_status hdi_trainer_build_update(hd_trainer *trainer, const hdi_layout *layout)
{
    HD_RETURN_IF_ERROR(build_norm(trainer, layout));
    return hdi_trainer_build_chunks(trainer, layout);
}
