/* The fp32 values behind 16-bit weights: their masters, or what weights and remainders make together.
 * Between steps gradients are dead, so values pass through their bytes: those that are saved lie where
 * their gradients do, others come piece by piece. */
#include "core/error.h"
#include "jobs/train/trainer.h"

char *hdi_trainer_weights(const hd_trainer *trainer, int64_t first)
{
    return trainer->session->arena + trainer->plan->units[0].base[HD_REGION_WEIGHTS] +
           (size_t)first * hd_dtype_bytes(trainer->options.dtype);
}

float *hdi_trainer_state(const hd_trainer *trainer, int64_t element)
{
    char *base = trainer->session->arena + trainer->plan->units[0].base[HD_REGION_OPTIMIZER];
    return (float *)(void *)base + element;
}

static int16_t *remainders(const hd_trainer *trainer, int64_t element)
{
    return (int16_t *)(void *)hdi_trainer_state(trainer,
                                                hdi_trainer_master_first(trainer->plan->layout)) +
           element;
}

static float *passing(const hd_trainer *trainer, int64_t stored)
{
    char *base = trainer->session->arena + trainer->plan->units[0].base[HD_REGION_GRADIENTS];
    return (float *)(void *)base + stored;
}

float *hdi_trainer_values(const hd_trainer *trainer, int bucket, int64_t first, int64_t state)
{
    const hdi_layout *layout = trainer->plan->layout;
    if (trainer->options.dtype == HD_DTYPE_F32)
        return (float *)(void *)hdi_trainer_weights(trainer, first);
    if (trainer->options.master == HD_MASTER_REMAINDER)
        return passing(trainer, hdi_layout_stored_gradient(layout, bucket, first));
    return hdi_trainer_state(trainer, hdi_trainer_master_first(layout) + state);
}

/* Elements [*first, *first + count) of a bucket whose optimizer state is on this rank. */
static int64_t owned(const hdi_layout *layout, int bucket, int64_t *first)
{
    if (layout->state_sharded) return hdi_layout_shard(layout, bucket, layout->shard, first);
    *first = layout->buckets[bucket].first;
    return layout->buckets[bucket].elements;
}

/* The fp32 values of flat positions from `first` on, wherever they are, become the weights there and what
 * this rank keeps behind them. */
static hd_status keep(hd_trainer *trainer, const hdi_entry *entry, int64_t first, int64_t count,
                      const float *values)
{
    const hd_backend *backend = trainer->session->context->backend;
    hd_stream *stream = trainer->session->context->stream;
    const hdi_layout *layout = trainer->plan->layout;
    const hd_dtype dtype = trainer->options.dtype;
    HD_RETURN_IF_ERROR(backend->split_weights(stream, dtype, count, values,
                                              hdi_trainer_weights(trainer, first), NULL));
    int64_t own_first, own = owned(layout, entry->bucket, &own_first);
    int64_t begin = first > own_first ? first : own_first, end = first + count;
    if (end > own_first + own) end = own_first + own;
    if (begin >= end) return HD_OK;
    int64_t state = layout->buckets[entry->bucket].state_first + begin - own_first;
    values += begin - first;
    if (trainer->options.master == HD_MASTER_REMAINDER)
        return backend->split_weights(stream, dtype, end - begin, values,
                                      hdi_trainer_weights(trainer, begin),
                                      remainders(trainer, state));
    return backend->copy(stream,
                         hdi_trainer_state(trainer, hdi_trainer_master_first(layout) + state),
                         values, (size_t)(end - begin) * sizeof(float));
}

/* Elements that pass at once: as many as this rank has gradients. */
static int64_t piece_of(const hd_trainer *trainer, int64_t left)
{
    const int64_t room = trainer->plan->layout->gradient_elements;
    return left < room ? left : room;
}

static hd_status initialize_entry(hd_trainer *trainer, const hdi_entry *entry, uint64_t seed)
{
    for (int64_t done = 0, count; done < entry->elements; done += count) {
        count = piece_of(trainer, entry->elements - done);
        HD_RETURN_IF_ERROR(hdi_session_fill(trainer->session, entry, done, count, seed,
                                            HD_DTYPE_F32, (char *)passing(trainer, 0)));
        HD_RETURN_IF_ERROR(keep(trainer, entry, entry->first + done, count, passing(trainer, 0)));
    }
    return HD_OK;
}

hd_status hdi_trainer_initialize(hd_trainer *trainer, uint64_t seed)
{
    hd_session *session = trainer->session;
    const hdi_layout *layout = trainer->plan->layout;
    if (trainer->options.dtype == HD_DTYPE_F32) return hd_session_initialize(session, seed);
    for (int i = 0; i < layout->entry_count; i++)
        HD_RETURN_IF_ERROR(initialize_entry(trainer, &layout->entries[i], seed));
    return session->context->backend->synchronize(session->context->stream);
}

hd_status hdi_trainer_write(hd_trainer *trainer, const hdi_entry *entry, int64_t begin,
                            int64_t count, const float *values)
{
    const hd_context *context = trainer->session->context;
    const int64_t first = entry->first + begin;
    if (trainer->options.dtype == HD_DTYPE_F32)
        return hdi_session_write_flat(trainer->session, first, count, values);
    for (int64_t done = 0, piece; done < count; done += piece) {
        piece = piece_of(trainer, count - done);
        HD_RETURN_IF_ERROR(context->backend->copy_in(context->stream, passing(trainer, 0),
                                                     values + done, (size_t)piece * sizeof(float)));
        HD_RETURN_IF_ERROR(keep(trainer, entry, first + done, piece, passing(trainer, 0)));
    }
    return context->backend->synchronize(context->stream);
}

static hd_status reset_part(void *user, const hdi_trainer_part *part)
{
    hd_trainer *trainer = user;
    const hd_context *context = trainer->session->context;
    if (!part->average) return HD_OK;
    if (trainer->options.dtype == HD_DTYPE_F32 || trainer->options.master != HD_MASTER_REMAINDER)
        return context->backend->copy(context->stream, part->average, part->values,
                                      (size_t)part->count * sizeof(float));
    int64_t state = part->m - hdi_trainer_state(trainer, 0);
    return context->backend->join_weights(
        context->stream, part->count,
        hdi_trainer_weights(trainer, part->entry->first + part->begin), remainders(trainer, state),
        part->average);
}

hd_status hdi_trainer_reset_average(hd_trainer *trainer)
{
    const hd_context *context = trainer->session->context;
    if (trainer->options.ema_decay <= 0) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_trainer_loaded_parts(trainer, reset_part, trainer));
    return context->backend->synchronize(context->stream);
}

static hd_status join_part(void *user, const hdi_trainer_part *part)
{
    hd_trainer *trainer = user;
    const hd_context *context = trainer->session->context;
    int64_t state = part->m - hdi_trainer_state(trainer, 0);
    return context->backend->join_weights(
        context->stream, part->count,
        hdi_trainer_weights(trainer, part->entry->first + part->begin), remainders(trainer, state),
        part->values);
}

hd_status hdi_trainer_join(hd_trainer *trainer)
{
    const hd_context *context = trainer->session->context;
    if (trainer->options.dtype == HD_DTYPE_F32 || trainer->options.master != HD_MASTER_REMAINDER)
        return HD_OK;
    HD_RETURN_IF_ERROR(hdi_trainer_saved_parts(trainer, join_part, trainer));
    return context->backend->synchronize(context->stream);
}
