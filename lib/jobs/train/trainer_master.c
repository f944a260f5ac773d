/* The fp32 values behind 16-bit weights: their masters, or what weights and remainders make together.
 * Between steps gradients are dead, so values pass through their bytes: a parameter's lie where its
 * gradient does. */
#include "core/error.h"
#include "jobs/train/trainer.h"

char *hdi_trainer_weights(const hd_trainer *trainer, int64_t first)
{
    return trainer->session->arena + trainer->plan->units[0].base[HD_REGION_WEIGHTS] +
           (size_t)first * hd_dtype_bytes(trainer->options.dtype);
}

float *hdi_trainer_state(const hd_trainer *trainer, int64_t element)
{
    const hd_region region =
        hdi_trainer_on_host(trainer) ? HD_REGION_HOST_OPTIMIZER : HD_REGION_OPTIMIZER;
    char *base = hdi_session_at(trainer->session, trainer->plan->units[0].base[region]);
    return (float *)(void *)base + element;
}

static int16_t *remainders(const hd_trainer *trainer, int64_t element)
{
    return (int16_t *)(void *)hdi_trainer_state(trainer,
                                                hdi_trainer_master_first(trainer->plan->layout)) +
           element;
}

static float *passing(const hd_trainer *trainer, int64_t first)
{
    char *base = trainer->session->arena + trainer->plan->units[0].base[HD_REGION_GRADIENTS];
    return (float *)(void *)base + first;
}

float *hdi_trainer_values(const hd_trainer *trainer, int64_t first, int64_t state)
{
    if (trainer->options.dtype == HD_DTYPE_F32)
        return (float *)(void *)hdi_trainer_weights(trainer, first);
    if (trainer->options.master == HD_MASTER_REMAINDER) return passing(trainer, first);
    return hdi_trainer_state(trainer, hdi_trainer_master_first(trainer->plan->layout) + state);
}

/* Elements [*first, *first + count) of a bucket whose optimizer state is on this rank. */
static int64_t owned(const hdi_layout *layout, int bucket, int64_t *first)
{
    if (layout->state_sharded) return hdi_layout_shard(layout, bucket, layout->shard, first);
    *first = layout->buckets[bucket].first;
    return layout->buckets[bucket].elements;
}

/* Weights, and what this rank keeps behind them, from values that lie where gradients do. */
static hd_status keep(hd_trainer *trainer, const hdi_entry *entry, int64_t first, int64_t count)
{
    const hd_backend *backend = trainer->session->context->backend;
    hd_stream *stream = trainer->session->context->stream;
    const hdi_layout *layout = trainer->plan->layout;
    const hd_dtype dtype = trainer->options.dtype;
    HD_RETURN_IF_ERROR(backend->split_weights(stream, dtype, count, passing(trainer, first),
                                              hdi_trainer_weights(trainer, first), NULL));
    int64_t own_first, own = owned(layout, entry->bucket, &own_first);
    int64_t begin = first > own_first ? first : own_first, end = first + count;
    if (end > own_first + own) end = own_first + own;
    if (begin >= end) return HD_OK;
    int64_t state = layout->buckets[entry->bucket].state_first + begin - own_first;
    if (trainer->options.master == HD_MASTER_REMAINDER)
        return backend->split_weights(stream, dtype, end - begin, passing(trainer, begin),
                                      hdi_trainer_weights(trainer, begin),
                                      remainders(trainer, state));
    return backend->copy(stream, hdi_trainer_values(trainer, begin, state), passing(trainer, begin),
                         (size_t)(end - begin) * sizeof(float));
}

hd_status hdi_trainer_initialize(hd_trainer *trainer, uint64_t seed)
{
    hd_session *session = trainer->session;
    const hdi_layout *layout = trainer->plan->layout;
    if (trainer->options.dtype == HD_DTYPE_F32) return hd_session_initialize(session, seed);
    for (int i = 0; i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        HD_RETURN_IF_ERROR(hdi_session_fill(session, entry, seed, HD_DTYPE_F32,
                                            (char *)passing(trainer, entry->first)));
        HD_RETURN_IF_ERROR(keep(trainer, entry, entry->first, entry->elements));
    }
    return session->context->backend->synchronize(session->context->stream);
}

hd_status hdi_trainer_write(hd_trainer *trainer, const hdi_entry *entry, int64_t begin,
                            int64_t count, const float *values)
{
    const hd_context *context = trainer->session->context;
    int64_t first = entry->first + begin;
    if (trainer->options.dtype == HD_DTYPE_F32)
        return hdi_session_write_flat(trainer->session, first, count, values);
    HD_RETURN_IF_ERROR(context->backend->copy_in(context->stream, passing(trainer, first), values,
                                                 (size_t)count * sizeof(float)));
    HD_RETURN_IF_ERROR(keep(trainer, entry, first, count));
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
