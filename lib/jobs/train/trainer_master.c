/* The fp32 values behind 16-bit weights: their masters, or what weights and remainders make together.
 * Between steps gradients are dead, so values pass through their bytes, as many as fit at a time; where
 * they are on the host, through the transients, which hold a bucket of them at least. */
#include "core/error.h"
#include "jobs/train/trainer.h"

#include <string.h>

char *hdi_trainer_weights(const hd_trainer *trainer, int64_t first)
{
    return hdi_session_weights_at(trainer->session, first);
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

/* Where values pass, and how many fit at a time. */
static float *passing(const hd_trainer *trainer, int64_t *fits)
{
    const hd_plan *plan = trainer->plan;
    if (hdi_trainer_gradients_on_host(trainer)) {
        const hdi_unit *train =
            &plan->units[hdi_session_unit(trainer->session, trainer->shapes[0].train[0].program)];
        *fits = (int64_t)(train->bytes[HD_REGION_TRANSIENT] / sizeof(float));
        return (float *)(void *)(trainer->session->arena + train->base[HD_REGION_TRANSIENT]);
    }
    *fits = (int64_t)(plan->gradient_level_bytes / sizeof(float));
    char *base = trainer->session->arena + plan->units[0].base[HD_REGION_GRADIENTS];
    return (float *)(void *)base;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

float *hdi_trainer_values(const hd_trainer *trainer, int64_t first, int64_t state)
{
    if (trainer->options.dtype == HD_DTYPE_F32)
        return (float *)(void *)hdi_trainer_weights(trainer, first);
    if (trainer->options.master == HD_MASTER_REMAINDER) return NULL;
    return hdi_trainer_state(trainer, hdi_trainer_master_first(trainer->plan->layout) + state);
}

/* Elements [*first, *first + count) of a bucket whose optimizer state is on this rank. */
static int64_t owned(const hdi_layout *layout, int bucket, int64_t *first)
{
    if (layout->state_sharded) return hdi_layout_shard(layout, bucket, layout->shard, first);
    *first = layout->buckets[bucket].first;
    return layout->buckets[bucket].elements;
}

/* Weights from flat position `first` on, and what this rank keeps behind them, from their values on
 * the device. */
static hd_status keep(hd_trainer *trainer, const hdi_entry *entry, int64_t first, int64_t count,
                      const float *values)
{
    const hd_backend *backend = trainer->session->context->backend;
    hd_stream *stream = trainer->session->context->stream;
    const hdi_layout *layout = trainer->plan->layout;
    const hd_dtype dtype = trainer->options.dtype;
    int64_t kept_first = first, kept = count;
    hdi_session_clip(trainer->session, entry, &kept_first, &kept);
    if (kept)
        HD_RETURN_IF_ERROR(backend->split_weights(stream, dtype, kept, values + kept_first - first,
                                                  hdi_trainer_weights(trainer, kept_first), NULL));
    int64_t own_first, own = owned(layout, entry->bucket, &own_first);
    int64_t begin = first > own_first ? first : own_first;
    int64_t end = least(first + count, own_first + own);
    if (begin >= end) return HD_OK;
    int64_t state = layout->buckets[entry->bucket].state_first + begin - own_first;
    values += begin - first;
    if (trainer->options.master == HD_MASTER_REMAINDER)
        return backend->split_weights(stream, dtype, end - begin, values,
                                      hdi_trainer_weights(trainer, begin),
                                      remainders(trainer, state));
    return backend->copy(stream, hdi_trainer_values(trainer, begin, state), values,
                         (size_t)(end - begin) * sizeof(float));
}

hd_status hdi_trainer_initialize(hd_trainer *trainer, uint64_t seed)
{
    hd_session *session = trainer->session;
    const hdi_layout *layout = trainer->plan->layout;
    HD_RETURN_IF_ERROR(hdi_streaming_stale(session));
    if (trainer->options.dtype == HD_DTYPE_F32) return hd_session_initialize(session, seed);
    int64_t fits;
    float *place = passing(trainer, &fits);
    for (int i = 0; i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        for (int64_t done = 0; done < entry->elements; done += fits) {
            const int64_t count = least(fits, entry->elements - done);
            HD_RETURN_IF_ERROR(
                hdi_session_fill(session, entry, done, count, seed, HD_DTYPE_F32, (char *)place));
            HD_RETURN_IF_ERROR(keep(trainer, entry, entry->first + done, count, place));
        }
    }
    return session->context->backend->synchronize(session->context->stream);
}

hd_status hdi_trainer_write(hd_trainer *trainer, const hdi_entry *entry, int64_t begin,
                            int64_t count, const float *values)
{
    const hd_context *context = trainer->session->context;
    int64_t first = entry->first + begin, fits;
    HD_RETURN_IF_ERROR(hdi_streaming_stale(trainer->session));
    if (trainer->options.dtype == HD_DTYPE_F32)
        return hdi_session_write_flat(trainer->session, first, count, values);
    float *place = passing(trainer, &fits);
    for (int64_t done = 0; done < count; done += fits) {
        const int64_t piece = least(fits, count - done);
        HD_RETURN_IF_ERROR(context->backend->copy_in(context->stream, place, values + done,
                                                     (size_t)piece * sizeof(float)));
        HD_RETURN_IF_ERROR(keep(trainer, entry, first + done, piece, place));
    }
    return context->backend->synchronize(context->stream);
}

/* Values of BF16 weights and remainders, to host memory. */
static hd_status read_joined(hd_trainer *trainer, int64_t first, int64_t state, int64_t count,
                             float *out)
{
    const hd_context *context = trainer->session->context;
    int64_t fits;
    float *place = passing(trainer, &fits);
    for (int64_t done = 0; done < count; done += fits) {
        const int64_t piece = least(fits, count - done);
        HD_RETURN_IF_ERROR(context->backend->join_weights(
            context->stream, piece, hdi_trainer_weights(trainer, first + done),
            remainders(trainer, state + done), place));
        HD_RETURN_IF_ERROR(context->backend->copy_out(context->stream, out + done, place,
                                                      (size_t)piece * sizeof(float)));
    }
    return context->backend->synchronize(context->stream);
}

hd_status hdi_trainer_read(hd_trainer *trainer, const hdi_trainer_part *part, int64_t first,
                           int64_t count, float *out)
{
    const hd_context *context = trainer->session->context;
    if (!part->values)
        return read_joined(trainer, part->entry->first + part->begin + first,
                           part->m - hdi_trainer_state(trainer, 0) + first, count, out);
    if (hdi_session_is_host(trainer->session, part->values)) {
        memcpy(out, part->values + first, (size_t)count * sizeof *out);
        return HD_OK;
    }
    HD_RETURN_IF_ERROR(context->backend->copy_out(context->stream, out, part->values + first,
                                                  (size_t)count * sizeof *out));
    return context->backend->synchronize(context->stream);
}

static hd_status reset_part(void *user, const hdi_trainer_part *part)
{
    hd_trainer *trainer = user;
    const hd_context *context = trainer->session->context;
    if (!part->average) return HD_OK;
    if (part->values)
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
