/* The end of a step as two programs: `norm` completes gradients that several stages share and takes
 * the sums of squares; `update` applies AdamW and, with sharded state, gathers the weights. */
#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "jobs/train/trainer.h"
#include "ops/collective.h"

#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
}

bool hdi_trainer_speaks_for(const hd_trainer *trainer, const char *name)
{
    const hdi_global_parameter *parameter = hdi_census_find(&trainer->census, name);
    return parameter && hdi_trainer_rank_of(trainer, parameter->stages[0]) == trainer->stage;
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
                       .block = hdi_census_find(&trainer->census, entry->name)->first_block +
                                (begin - entry->first) / HDI_BLOCK_ELEMENTS_LAYOUT,
                       .weight_decay = decays ? adamw->weight_decay : 0};
}

static hd_status cut_pieces(hd_trainer *trainer, const hdi_layout *layout)
{
    for (int i = 0; i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        if (entry->options->frozen) continue;
        int64_t first, count = hdi_layout_shard(layout, entry->bucket, layout->shard, &first);
        if (layout->copy == 0 && hdi_trainer_speaks_for(trainer, entry->name)) {
            hdi_piece piece = cut_piece(trainer, layout, entry, first, count);
            piece.first = hdi_layout_stored_gradient(layout, entry->bucket, piece.first);
            HD_RETURN_IF_ERROR(add_piece(&trainer->square_pieces, &trainer->square_count,
                                         &trainer->square_capacity, piece));
        }
        count = updated_range(layout, entry->bucket, &first);
        HD_RETURN_IF_ERROR(add_piece(&trainer->update_pieces, &trainer->update_count,
                                     &trainer->update_capacity,
                                     cut_piece(trainer, layout, entry, first, count)));
    }
    return HD_OK;
}

static hd_tensor gradients(hd_program *program, int64_t first, int64_t elements)
{
    return hdi_flat_tensor(program, "gradients", HDI_FLAT_GRADIENTS, program->gradients, first,
                           elements);
}

/* Several gradients of one parameter on this rank become one. */
static void join_instances(hd_program *program, const hdi_layout *layout)
{
    for (int i = 0; i < layout->instance_count; i++) {
        const hdi_instance *instance = &layout->instances[i];
        const hdi_entry *entry = &layout->entries[instance->entry];
        if (instance->alias || instance->first == entry->first) continue;
        int64_t first, count = updated_range(layout, entry->bucket, &first);
        if (!count) continue;
        const int64_t into_first = hdi_layout_stored_gradient(layout, entry->bucket, first);
        const int64_t inside = into_first - layout->buckets[entry->bucket].gradient_first;
        hd_tensor extra = gradients(program, instance->stored + inside, count);
        hd_tensor into = gradients(program, into_first, count);
        hdi_op_append(program, &hdi_op_gradient_join, NULL, 1, &extra, 1, &into);
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
    hd_tensor own = gradients(program, first, elements);
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
    join_instances(program, layout);
    for (int i = 0; i < census->count; i++) {
        bool several = false;
        for (int s = 1; s < census->parameters[i].stage_count; s++)
            several = several || hdi_trainer_rank_of(trainer, census->parameters[i].stages[s]) !=
                                     hdi_trainer_rank_of(trainer, census->parameters[i].stages[0]);
        if (several) HD_RETURN_IF_ERROR(make_tie(trainer, layout, i));
    }
    for (int i = 0; i < trainer->tie_count; i++)
        sum_tie(trainer, layout, &trainer->ties[i]);
    hd_tensor all = gradients(program, 0, layout->gradient_elements);
    trainer->squares = hdi_tensor_add(program, "squares", HD_DTYPE_F64, HD_ROLE_OUTPUT, 1,
                                      &(int64_t){census->blocks});
    hdi_op_append(program, &hdi_op_squares,
                  &(hdi_squares_options){trainer->square_pieces, trainer->square_count}, 1, &all, 1,
                  &trainer->squares);
    if (hd_mesh_ranks(trainer->options.mesh) > 1)
        hdi_op_append(program, &hdi_op_all_reduce,
                      &(hdi_collective){HD_AXIS_NONE, census->blocks, "sums of squares"}, 0, NULL,
                      1, &trainer->squares);
    return hd_program_finish(program);
}

/* What is kept behind 16-bit weights, after all of m and v: fp32, or remainders of half the size. */
static hd_tensor master(hd_trainer *trainer, const hdi_layout *layout, int64_t state_first,
                        int64_t elements)
{
    int64_t after = hdi_trainer_master_first(layout);
    if (trainer->options.master == HD_MASTER_REMAINDER)
        return hdi_flat_tensor(trainer->update, "remainder", HDI_FLAT_OPTIMIZER, HD_DTYPE_I16,
                               2 * after + state_first, elements);
    return hdi_flat_tensor(trainer->update, "master", HDI_FLAT_OPTIMIZER, HD_DTYPE_F32,
                           after + state_first, elements);
}

/* Move the average of a bucket's values, which the update has just changed. */
static void average_bucket(hd_trainer *trainer, const hdi_layout *layout, int64_t state_first,
                           int64_t elements, hd_tensor weights, hd_tensor behind)
{
    hd_program *program = trainer->update;
    hd_tensor average =
        hdi_flat_tensor(program, "average", HDI_FLAT_OPTIMIZER, HD_DTYPE_F32,
                        hdi_trainer_average_first(trainer, layout) + state_first, elements);
    const bool joins = trainer->options.master == HD_MASTER_REMAINDER;
    hd_tensor in[3] = {trainer->average_share, behind.id && !joins ? behind : weights, behind};
    hdi_op_append(program, &hdi_op_average, NULL, joins ? 3 : 2, in, 1, &average);
}

/* AdamW on this rank's part of a bucket. State has its place even where nothing is updated (frozen
 * parameters), since checkpoints hold it. */
static void update_part(hd_trainer *trainer, const hdi_layout *layout, int index, int first_piece,
                        int pieces)
{
    hd_program *program = trainer->update;
    const hdi_bucket *bucket = &layout->buckets[index];
    const hd_adamw_options *adamw = &trainer->options.adamw;
    hd_dtype dtype = trainer->options.dtype;
    int64_t first, elements = updated_range(layout, index, &first);
    if (!elements) return;
    hd_tensor in[] = {
        gradients(program, hdi_layout_stored_gradient(layout, index, first), elements),
        trainer->scalars};
    hd_tensor out[4] = {hdi_flat_tensor(program, "weights", HDI_FLAT_WEIGHTS, dtype,
                                        hdi_layout_stored_weights(layout, index, first), elements),
                        hdi_flat_tensor(program, "m", HDI_FLAT_OPTIMIZER, HD_DTYPE_F32,
                                        bucket->state_first, elements),
                        hdi_flat_tensor(program, "v", HDI_FLAT_OPTIMIZER, HD_DTYPE_F32,
                                        layout->optimizer_elements + bucket->state_first,
                                        elements)};
    int outs = 3;
    if (dtype != HD_DTYPE_F32) out[outs++] = master(trainer, layout, bucket->state_first, elements);
    if (pieces)
        hdi_op_append(program, &hdi_op_adamw,
                      &(hdi_adamw_options){.pieces = trainer->update_pieces + first_piece,
                                           .count = pieces,
                                           .first = first,
                                           .state_first = bucket->state_first,
                                           .beta1 = adamw->beta1,
                                           .beta2 = adamw->beta2,
                                           .epsilon = adamw->epsilon},
                      2, in, outs, out);
    if (trainer->average_share.id)
        average_bucket(trainer, layout, bucket->state_first, elements, out[0], out[3]);
}

static void update_bucket(hd_trainer *trainer, const hdi_layout *layout, int index, int first_piece,
                          int pieces)
{
    hd_program *program = trainer->update;
    const hdi_bucket *bucket = &layout->buckets[index];
    hd_dtype dtype = trainer->options.dtype;
    update_part(trainer, layout, index, first_piece, pieces);
    if (!layout->state_sharded || layout->shards == 1 || bucket->block >= 0) return;
    hd_tensor weights = hdi_flat_tensor(program, "weights", HDI_FLAT_WEIGHTS, dtype,
                                        bucket->weights_first, bucket->elements);
    hdi_op_append(
        program, &hdi_op_all_gather,
        &(hdi_all_gather_options){.collective = {layout->axis, bucket->elements, "weights"},
                                  .counts = bucket->counts,
                                  .offsets = bucket->offsets},
        0, NULL, 1, &weights);
}

static hd_status build_update(hd_trainer *trainer, const hdi_layout *layout)
{
    HD_RETURN_IF_ERROR(
        hd_program_create(&(hd_program_options){.name = "update",
                                                .gradients = trainer->options.gradients,
                                                .mesh = trainer->options.mesh,
                                                .backend = trainer->options.backend},
                          &trainer->update));
    trainer->scalars = hd_input(trainer->update, "adamw.scalars", HD_DTYPE_F32, 1, &(int64_t){5});
    if (trainer->options.ema_decay > 0)
        trainer->average_share =
            hd_input(trainer->update, "average.share", HD_DTYPE_F32, 1, &(int64_t){1});
    int piece = 0;
    for (int b = 0; b < layout->bucket_count; b++) {
        const hdi_bucket *bucket = &layout->buckets[b];
        int first_piece = piece;
        while (piece < trainer->update_count &&
               trainer->update_pieces[piece].first < bucket->first + bucket->elements)
            piece++;
        update_bucket(trainer, layout, b, first_piece, piece - first_piece);
    }
    return hd_program_finish(trainer->update);
}

hd_status hdi_trainer_build_update(hd_trainer *trainer, const hdi_layout *layout)
{
    HD_RETURN_IF_ERROR(cut_pieces(trainer, layout));
    HD_RETURN_IF_ERROR(build_norm(trainer, layout));
    return build_update(trainer, layout);
}
