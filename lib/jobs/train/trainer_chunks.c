/* Program `update`: AdamW chunk by chunk and, with sharded state, the gather of the weights. State on the
 * host passes through the device: while a chunk is updated the next one comes and the one before goes, and the
 * next step begins with the blocks that have been updated. */
#include "core/checked.h"
#include "core/error.h"
#include "jobs/train/trainer.h"
#include "ops/collective.h"
#include "ops/host_copy.h"
#include "parallel/gradients.h"

#include <string.h>

/* What a chunk's weights are updated from and with; invalid where there is none. */
typedef struct chunk_state {
    hd_tensor weights, m, v, behind, average, gradient;
} chunk_state;

enum { MOST_STATES = 6, CHANGED = MOST_STATES - 1 /* all but the last */ };

static void list(const chunk_state *state, hd_tensor out[MOST_STATES])
{
    const hd_tensor all[MOST_STATES] = {state->weights, state->m,       state->v,
                                        state->behind,  state->average, state->gradient};
    memcpy(out, all, sizeof all);
}

/* How many chunks are loaded ahead; as many, and one more, are on the device at a time. */
enum { AHEAD = 2 };

/* What is kept behind 16-bit weights, after all of m and v: fp32, or remainders of half the size. */
static hd_tensor behind_weights(hd_trainer *trainer, const hdi_layout *layout, int64_t state_first,
                                int64_t elements)
{
    int64_t after = hdi_trainer_master_first(layout);
    if (trainer->options.dtype == HD_DTYPE_F32) return (hd_tensor){0};
    if (trainer->options.master == HD_MASTER_REMAINDER)
        return hdi_flat_tensor(trainer->update, "remainder", HDI_FLAT_OPTIMIZER, HD_DTYPE_I16,
                               2 * after + state_first, elements);
    return hdi_flat_tensor(trainer->update, "master", HDI_FLAT_OPTIMIZER, HD_DTYPE_F32,
                           after + state_first, elements);
}

/* A range of weights on the device or on the host. */
static hd_tensor weights(hd_trainer *trainer, bool host, int64_t first, int64_t elements)
{
    const hd_tensor out = hdi_flat_tensor(trainer->update, "weights", HDI_FLAT_WEIGHTS,
                                          trainer->options.dtype, first, elements);
    hdi_tensor *tensor = hdi_tensor_of(trainer->update, out);
    if (tensor) tensor->host = host;
    return out;
}

/* A chunk's state where it is kept. */
static chunk_state kept_state(hd_trainer *trainer, const hdi_layout *layout,
                              const hdi_update_chunk *chunk)
{
    hd_program *program = trainer->update;
    const hdi_bucket *bucket = &layout->buckets[chunk->bucket];
    chunk_state state = {
        .weights = weights(trainer, bucket->host,
                           hdi_layout_stored_weights(layout, chunk->bucket, chunk->first),
                           chunk->elements),
        .m = hdi_flat_tensor(program, "m", HDI_FLAT_OPTIMIZER, HD_DTYPE_F32, chunk->state_first,
                             chunk->elements),
        .v = hdi_flat_tensor(program, "v", HDI_FLAT_OPTIMIZER, HD_DTYPE_F32,
                             layout->optimizer_elements + chunk->state_first, chunk->elements),
        .behind = behind_weights(trainer, layout, chunk->state_first, chunk->elements)};
    if (trainer->average_share.id)
        state.average = hdi_flat_tensor(
            program, "average", HDI_FLAT_OPTIMIZER, HD_DTYPE_F32,
            hdi_trainer_average_first(trainer, layout) + chunk->state_first, chunk->elements);
    const int64_t gradient = hdi_layout_stored_gradient(layout, chunk->bucket, chunk->first);
    state.gradient = hdi_trainer_gradients_on_host(trainer)
                         ? hdi_host_gradient(program, gradient, chunk->elements)
                         : hdi_flat_tensor(program, "gradients", HDI_FLAT_GRADIENTS,
                                           program->gradients, gradient, chunk->elements);
    const hd_tensor kept[] = {state.m, state.v, state.behind, state.average};
    for (int k = 0; k < 4; k++)
        if (kept[k].id) hdi_tensor_of(program, kept[k])->host = hdi_trainer_on_host(trainer);
    return state;
}

/* Room of one size for all chunks, so that they take turns in it. */
static hd_tensor room_for(const hd_trainer *trainer, hd_tensor kept)
{
    const hd_tensor_info *info = hd_tensor_get(trainer->update, kept);
    if (!info) return (hd_tensor){0};
    int64_t most = 0;
    for (int c = 0; c < trainer->chunk_count; c++)
        if (trainer->update_chunks[c].elements > most) most = trainer->update_chunks[c].elements;
    return hdi_tensor_add(trainer->update, info->name, info->dtype, HD_ROLE_ACTIVATION, 1, &most);
}

static bool is_host(const hd_program *program, hd_tensor x)
{
    const hdi_tensor *tensor = hdi_tensor_of(program, x);
    return tensor && tensor->host;
}

/* Copy to the device what of a chunk is not there: *state is the chunk as the device has it. */
static void load(hd_trainer *trainer, const chunk_state *kept, chunk_state *state)
{
    hd_program *program = trainer->update;
    hd_tensor from[MOST_STATES], in[MOST_STATES], out[MOST_STATES];
    hd_tensor *const to[MOST_STATES] = {&state->weights, &state->m,       &state->v,
                                        &state->behind,  &state->average, &state->gradient};
    int count = 0;
    list(kept, from);
    *state = *kept;
    for (int k = 0; k < MOST_STATES; k++) {
        if (!is_host(program, from[k])) continue;
        *to[k] = room_for(trainer, from[k]);
        in[count] = from[k];
        out[count++] = *to[k];
    }
    hdi_op_append(program, &hdi_op_load, NULL, count, in, count, out);
}

/* Copy back what was changed. */
static void store(hd_trainer *trainer, const chunk_state *kept, const chunk_state *state)
{
    hd_tensor from[MOST_STATES], to[MOST_STATES], in[MOST_STATES], out[MOST_STATES];
    int count = 0;
    list(state, from);
    list(kept, to);
    for (int k = 0; k < CHANGED; k++) {
        if (!is_host(trainer->update, to[k])) continue;
        in[count] = from[k];
        out[count++] = to[k];
    }
    if (count) hdi_op_append(trainer->update, &hdi_op_store, NULL, count, in, count, out);
}

static void hold(hd_trainer *trainer, const chunk_state *state)
{
    hd_tensor all[MOST_STATES], in[MOST_STATES];
    int count = 0;
    list(state, all);
    for (int k = 0; k < MOST_STATES; k++) {
        const hdi_tensor *tensor = hdi_tensor_of(trainer->update, all[k]);
        if (tensor && tensor->flat == HDI_FLAT_NONE) in[count++] = all[k];
    }
    hdi_op_append(trainer->update, &hdi_op_hold, NULL, count, in, 0, NULL);
}

/* Move the average of a chunk's values, which the update has just changed. */
static void move_average(hd_trainer *trainer, int64_t elements, const chunk_state *state)
{
    const bool joins = trainer->options.master == HD_MASTER_REMAINDER;
    const hd_tensor behind = state->behind;
    hd_tensor in[3] = {trainer->average_share, behind.id && !joins ? behind : state->weights,
                       behind};
    hdi_op_append(trainer->update, &hdi_op_average, &(hdi_average_options){elements}, joins ? 3 : 2,
                  in, 1, &state->average);
}

/* State has its place even where nothing is updated (frozen parameters), since checkpoints hold it. */
static void update(hd_trainer *trainer, const hdi_update_chunk *chunk, const chunk_state *state)
{
    hd_program *program = trainer->update;
    const hd_adamw_options *adamw = &trainer->options.adamw;
    hd_tensor in[] = {state->gradient, trainer->scalars};
    hd_tensor out[] = {state->weights, state->m, state->v, state->behind};
    if (chunk->pieces)
        hdi_op_append(program, &hdi_op_adamw,
                      &(hdi_adamw_options){.pieces = trainer->update_pieces + chunk->first_piece,
                                           .count = chunk->pieces,
                                           .first = chunk->first,
                                           .state_first = chunk->state_first,
                                           .beta1 = adamw->beta1,
                                           .beta2 = adamw->beta2,
                                           .epsilon = adamw->epsilon},
                      2, in, state->behind.id ? 4 : 3, out);
    if (state->average.id) move_average(trainer, chunk->elements, state);
}

static void exchange(hd_trainer *trainer, const hdi_layout *layout, const hdi_bucket *bucket,
                     hd_tensor whole)
{
    hdi_op_append(
        trainer->update, &hdi_op_all_gather,
        &(hdi_all_gather_options){.collective = {layout->axis, bucket->elements, "weights"},
                                  .counts = bucket->counts,
                                  .offsets = bucket->offsets},
        0, NULL, 1, &whole);
}

/* Get the other ranks' shards of a bucket's weights. What is on the host passes through the device for it. */
static void gather(hd_trainer *trainer, const hdi_layout *layout, const hdi_bucket *bucket)
{
    const hd_tensor kept = weights(trainer, bucket->host, bucket->weights_first, bucket->elements);
    if (!bucket->host) {
        exchange(trainer, layout, bucket, kept);
        return;
    }
    const hd_tensor whole = hdi_tensor_add(trainer->update, "weights", trainer->options.dtype,
                                           HD_ROLE_ACTIVATION, 1, &bucket->elements);
    const hd_tensor back = weights(trainer, true, bucket->weights_first, bucket->elements);
    hdi_op_append(trainer->update, &hdi_op_load, NULL, 1, &kept, 1, &whole);
    exchange(trainer, layout, bucket, whole);
    hdi_op_append(trainer->update, &hdi_op_store, NULL, 1, &whole, 1, &back);
}

/* The device's copies, by chunk modulo their number. */
typedef struct passage {
    chunk_state states[AHEAD + 1];
    int loaded; /* chunks */
} passage;

/* Before chunk `now` is updated: those that come behind it. A copy that has just gone keeps its bytes
 * while one more chunk is updated; then the next may come into them. */
static void load_ahead(hd_trainer *trainer, const hdi_layout *layout, passage *p, int now)
{
    while (p->loaded < trainer->chunk_count && p->loaded < now + AHEAD) {
        chunk_state *state = &p->states[p->loaded % (AHEAD + 1)];
        if (p->loaded > AHEAD) hold(trainer, state);
        const chunk_state kept = kept_state(trainer, layout, &trainer->update_chunks[p->loaded++]);
        load(trainer, &kept, state);
    }
}

static void update_of_bucket(hd_trainer *trainer, const hdi_layout *layout, int bucket, passage *p,
                             int *chunk)
{
    for (; *chunk < trainer->chunk_count && trainer->update_chunks[*chunk].bucket == bucket;
         ++*chunk) {
        const hdi_update_chunk *now = &trainer->update_chunks[*chunk];
        const chunk_state kept = kept_state(trainer, layout, now);
        if (!hdi_trainer_on_host(trainer) && !hdi_trainer_gradients_on_host(trainer)) {
            update(trainer, now, &kept);
            continue;
        }
        load_ahead(trainer, layout, p, *chunk);
        const chunk_state *state = &p->states[*chunk % (AHEAD + 1)];
        update(trainer, now, state);
        store(trainer, &kept, state);
    }
}

bool hdi_trainer_updates_beside(const hd_trainer_options *decided)
{
    const bool passes =
        decided->optimizer_residency == HD_RESIDENCY_HOST ||
        decided->gradient_residency == HD_RESIDENCY_HOST ||
        decided->residency == HD_RESIDENCY_HOST; /* and the optimizer's state with it */
    return passes && !decided->in_turn;
}

/* Elements from the first to behind the last of what lies side by side, in some order. */
typedef struct run {
    int64_t first, end;
} run;

static void widen(run *inout, int64_t first, int64_t elements)
{
    if (!elements) return;
    if (inout->first == inout->end) *inout = (run){first, first};
    if (first < inout->first) inout->first = first;
    if (first + elements > inout->end) inout->end = first + elements;
}

/* What this rank has of the weights of buckets `low` to `high` may be read and their gradients written from here
 * on. All ranks have as many releases, of the same buckets. */
static void release(hd_trainer *trainer, const hdi_layout *layout, int low, int high)
{
    hd_program *program = trainer->update;
    run kept[2] = {0}, gradients = {0}; /* weights on the device, and on the host */
    hd_tensor all[3];
    int count = 0;
    for (int b = low; b <= high; b++) {
        const hdi_bucket *bucket = &layout->buckets[b];
        const int64_t own = bucket->counts[layout->shard];
        widen(&kept[bucket->host], bucket->weights_first, bucket->sharded ? own : bucket->elements);
        widen(&gradients, bucket->gradient_first,
              layout->gradients_sharded ? layout->levels * own : bucket->elements);
    }
    for (int host = 0; host < 2; host++)
        if (kept[host].first < kept[host].end)
            all[count++] =
                weights(trainer, host, kept[host].first, kept[host].end - kept[host].first);
    const int64_t elements = gradients.end - gradients.first;
    if (elements)
        all[count++] = hdi_trainer_gradients_on_host(trainer)
                           ? hdi_host_gradient(program, gradients.first, elements)
                           : hdi_flat_tensor(program, "gradients", HDI_FLAT_GRADIENTS,
                                             program->gradients, gradients.first, elements);
    hdi_op_append(program, &hdi_op_release, &(hdi_release_options){low, high}, count, all, 0, NULL);
}

/* Of the buckets as a forward uses them. What ranks gather is released behind the update of one more bucket, so
 * that nothing waits meanwhile. */
static void append_updates(hd_trainer *trainer, const hdi_layout *layout)
{
    const bool beside = hdi_trainer_updates_beside(&trainer->options);
    const int last = layout->bucket_count - 1;
    const hdi_bucket *top = &layout->buckets[last];
    const int64_t least = hdi_ceil_div(top->first + top->elements, HDI_RELEASES - 1);
    passage p = {0};
    int chunk = 0, high = last, due_low = -1, due_high = -1;
    for (int b = last; b >= 0; b--) {
        const hdi_bucket *bucket = &layout->buckets[b];
        const bool gathers = layout->state_sharded && layout->shards > 1 && !bucket->sharded;
        update_of_bucket(trainer, layout, b, &p, &chunk);
        if (due_low >= 0) release(trainer, layout, due_low, due_high);
        due_low = -1;
        if (gathers) gather(trainer, layout, bucket);
        const int64_t updated =
            layout->buckets[high].first + layout->buckets[high].elements - bucket->first;
        if (!beside || (b && updated < least)) continue;
        if (gathers && b) {
            due_low = b;
            due_high = high;
        } else {
            release(trainer, layout, b, high);
        }
        high = b - 1;
    }
}

hd_status hdi_trainer_build_chunks(hd_trainer *trainer, const hdi_layout *layout)
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
    append_updates(trainer, layout);
    return hd_program_finish(trainer->update);
}
