/* Sessions: the arena, its first contents, and writing weights. */
#include "runtime/session.h"

#include "core/error.h"
#include "core/half.h"
#include "core/memory.h"
#include "core/random.h"
#include "program/place.h"
#include "report/format.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

int hdi_session_unit(const hd_session *session, const hd_program *program)
{
    for (int i = 0; i < session->plan->unit_count; i++)
        if (session->plan->units[i].program == program) return i;
    return -1;
}

void *hdi_session_address(const hd_session *session, int unit, hd_tensor tensor, int micro_batch)
{
    return hdi_session_at(session, hdi_plan_address(session->plan, unit, tensor, micro_batch, 0));
}

bool hdi_session_is_host(const hd_session *session, const void *memory)
{
    const char *at = memory;
    return session->host && at >= session->host &&
           at < session->host + session->plan->host_arena_bytes;
}

static hd_status make_tables(hd_session *session)
{
    const hd_plan *plan = session->plan;
    const hd_context *context = session->context;
    size_t base = plan->units[0].base[HD_REGION_STATE];
    for (int i = 0; i < plan->state_count; i++) {
        const hdi_state *state = &plan->states[i];
        if (!state->from->fill) continue;
        float *values = hdi_alloc(state->bytes);
        if (!values) return hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
        state->from->fill((void *)(uintptr_t)state->from->fill_user, values);
        hd_status status =
            context->backend->copy_in(context->stream, session->arena + base + state->offset,
                                      values, state->from->info.bytes);
        if (status == HD_OK) status = context->backend->synchronize(context->stream);
        hdi_free(values);
        HD_RETURN_IF_ERROR(status);
    }
    return HD_OK;
}

static hd_status check(const hd_context *context, const hd_plan *plan, const hd_mesh *mesh)
{
    if (!plan->finished) return hdi_error(HD_ERROR_ARGUMENT, "session: the plan is not finished");
    if (context->backend != &hdi_backend_cpu && hd_mesh_ranks(mesh) > 1 &&
        context->attached != mesh)
        return hdi_error(HD_ERROR_ARGUMENT, "session: %d ranks on '%s' want hd_mesh_attach first",
                         hd_mesh_ranks(mesh), context->backend->name);
    return HD_OK;
}

static hd_status open_parts(hd_session *session)
{
    const hd_plan *plan = session->plan;
    const hd_context *context = session->context;
    session->posted = hdi_alloc_array((size_t)plan->unit_count, sizeof *session->posted);
    bool ok = session->posted != NULL;
    size_t most_unfinished = 1;
    for (int i = 0; i < plan->unit_count && ok; i++) {
        const hd_program *program = plan->units[i].program;
        session->posted[i] = hdi_alloc_array((size_t)program->op_count, sizeof **session->posted);
        ok = session->posted[i] != NULL;
        for (int k = 0; k < program->op_count; k++) {
            const hd_op *op = &program->ops[k]->op;
            if (hdi_op_is_posted(op) || op->kind->flags & HD_OP_RELEASES)
                most_unfinished += (size_t)(op->inputs + op->outputs);
        }
    }
    session->unfinished = hdi_alloc_array(most_unfinished, sizeof *session->unfinished);
    if (!ok || !session->unfinished)
        return hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
    HD_RETURN_IF_ERROR(hdi_replay_open(session));
    HD_RETURN_IF_ERROR(hdi_beside_open(session));
    void *arena = NULL;
    HD_RETURN_IF_ERROR(context->backend->reserve(context->device, plan->arena_bytes, &arena));
    session->arena = arena;
    void *host = NULL;
    if (plan->host_arena_bytes) {
        const hd_status status =
            context->backend->reserve_host(context->device, plan->host_arena_bytes, &host);
        if (status != HD_OK)
            return hdi_error_context(status, "pinned host memory of this rank, %s",
                                     hdi_bytes(plan->host_arena_bytes).text);
    }
    session->host = host;
    HD_RETURN_IF_ERROR(hdi_relay_open(session));
    HD_RETURN_IF_ERROR(hdi_streaming_open(session));
    if (context->backend != &hdi_backend_cpu && hd_mesh_ranks(session->mesh) > 1)
        HD_RETURN_IF_ERROR(hdi_session_warm_up(session));
    HD_RETURN_IF_ERROR(hdi_session_rehearse(session));
    return make_tables(session);
}

/* The copy is the session's, or closed. */
static hd_status create(hd_context *context, const hd_plan *plan, const hd_mesh *mesh,
                        hdi_node_copy *copy, hd_session **out)
{
    hd_session *session = hdi_alloc(sizeof *session);
    if (!session) {
        hdi_node_copy_close(context, copy);
        return hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
    }
    session->context = context;
    session->plan = plan;
    session->mesh = mesh;
    session->streaming.copy = *copy;
    const hd_status status = open_parts(session);
    if (status != HD_OK) {
        hd_session_destroy(session);
        return status;
    }
    *out = session;
    return HD_OK;
}

hd_status hd_session_create(hd_context *context, const hd_plan *plan, const hd_mesh *mesh,
                            hd_session **out)
{
    *out = NULL;
    HD_RETURN_IF_ERROR(check(context, plan, mesh));
    return create(context, plan, mesh, &(hdi_node_copy){0}, out);
}

hd_status hdi_session_create_shared(hd_context *context, const hd_plan *plan, const hd_mesh *mesh,
                                    hd_session **out)
{
    *out = NULL;
    const hd_status status = plan ? check(context, plan, mesh) : HD_OK;
    hdi_node_copy copy;
    HD_RETURN_IF_ERROR(hdi_node_copy_open(context, mesh, status == HD_OK ? plan : NULL, &copy));
    if (status != HD_OK || !plan) return status;
    return create(context, plan, mesh, &copy, out);
}

void hd_session_destroy(hd_session *session)
{
    if (!session) return;
    if (session->arena && hdi_beside_abandon(session) == HD_OK)
        (void)hd_session_drain(session); /* what is under way goes to this memory */
    hdi_streaming_close(session);        /* and so does this */
    hdi_session_end_sharing(session);
    if (session->arena)
        session->context->backend->release(session->context->device, session->arena,
                                           session->plan->arena_bytes);
    if (session->host)
        session->context->backend->release_host(session->context->device, session->host,
                                                session->plan->host_arena_bytes);
    hdi_replay_close(session);
    hdi_relay_close(session);
    for (int i = 0; i < session->plan->unit_count && session->posted; i++)
        hdi_free(session->posted[i]);
    hdi_free(session->posted);
    hdi_free(session->unfinished);
    hdi_free(session);
}

hd_dtype hdi_session_weights_dtype(const hd_session *session)
{
    for (int u = 0; u < session->plan->unit_count; u++) {
        const hd_program *program = session->plan->units[u].program;
        if (program->use_count) return hd_tensor_get(program, program->uses[0].tensor)->dtype;
    }
    return HD_DTYPE_F32;
}

/* fp32 values as weights of `dtype`. */
static void round_values(hd_dtype dtype, int64_t elements, const float *values, void *out)
{
    uint16_t *rounded = out;
    if (dtype == HD_DTYPE_F32)
        memcpy(out, values, (size_t)elements * sizeof *values);
    else
        for (int64_t i = 0; i < elements; i++)
            rounded[i] = hdi_half_weight(dtype, values[i]);
}

hd_status hdi_session_put(hd_session *session, char *place, const void *data, size_t bytes)
{
    const hd_context *context = session->context;
    if (hdi_session_is_host(session, place)) {
        memcpy(place, data, bytes);
        return HD_OK;
    }
    HD_RETURN_IF_ERROR(context->backend->copy_in(context->stream, place, data, bytes));
    return context->backend->synchronize(context->stream);
}

/* Copy fp32 values in as weights of `dtype`. */
static hd_status write_values(hd_session *session, hd_dtype dtype, char *place, int64_t elements,
                              const float *values)
{
    enum { PIECE = 1 << 20 };
    if (dtype == HD_DTYPE_F32)
        return hdi_session_put(session, place, values, (size_t)elements * sizeof(float));
    uint16_t *rounded =
        hdi_alloc_array((size_t)(elements < PIECE ? elements : PIECE), sizeof *rounded);
    hd_status status = rounded ? HD_OK : hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
    for (int64_t done = 0; done < elements && status == HD_OK; done += PIECE) {
        int64_t count = elements - done < PIECE ? elements - done : PIECE;
        round_values(dtype, count, values + done, rounded);
        status = hdi_session_put(session, place + (size_t)done * sizeof *rounded, rounded,
                                 (size_t)count * sizeof *rounded);
    }
    hdi_free(rounded);
    return status;
}

static hd_status fill_ones(hd_session *session, hd_dtype dtype, char *place, int64_t elements)
{
    enum { PIECE = 1024 };
    float ones[PIECE];
    for (int i = 0; i < PIECE; i++)
        ones[i] = 1;
    for (int64_t done = 0; done < elements; done += PIECE) {
        int64_t count = elements - done < PIECE ? elements - done : PIECE;
        HD_RETURN_IF_ERROR(write_values(session, dtype, place, count, ones));
        place += (size_t)count * hd_dtype_bytes(dtype);
    }
    return HD_OK;
}

static hd_status fill_rotary(hd_session *session, hd_dtype dtype, char *place, int64_t begin,
                             int64_t count, int64_t elements)
{
    for (int64_t i = begin; i < begin + count; i++, place += hd_dtype_bytes(dtype)) {
        const float value = (float)pow(10000, -(double)i / (double)elements);
        HD_RETURN_IF_ERROR(write_values(session, dtype, place, 1, &value));
    }
    return HD_OK;
}

hd_status hdi_session_fill(hd_session *session, const hdi_entry *entry, int64_t begin,
                           int64_t count, uint64_t seed, hd_dtype dtype, char *place)
{
    const hd_backend *backend = session->context->backend;
    hd_stream *stream = session->context->stream;
    switch (entry->options->init) {
    case HD_INIT_ZEROS: return backend->zero(stream, place, (size_t)count * hd_dtype_bytes(dtype));
    case HD_INIT_ONES: return fill_ones(session, dtype, place, count);
    case HD_INIT_ROTARY: return fill_rotary(session, dtype, place, begin, count, entry->elements);
    case HD_INIT_NORMAL: break;
    }
    for (int64_t done = 0; done < count;) {
        int64_t first, run = hdi_shard_run(entry->options, begin + done, &first);
        if (run > count - done) run = count - done;
        HD_RETURN_IF_ERROR(backend->fill_normal(
            stream, dtype, place + (size_t)done * hd_dtype_bytes(dtype), run, seed,
            hdi_random_stream(entry->name), first, (float)entry->options->std));
        done += run;
    }
    return HD_OK;
}

/* The entry that holds flat position `first`; -1 if none does. */
static int entry_at(const hdi_layout *layout, int64_t first)
{
    int low = 0, high = layout->entry_count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (layout->entries[middle].first <= first)
            low = middle;
        else
            high = middle - 1;
    }
    return high < 0 || first < layout->entries[low].first ? -1 : low;
}

char *hdi_session_weights_at(const hd_session *session, int64_t first)
{
    const hd_plan *plan = session->plan;
    const hdi_layout *layout = plan->layout;
    const size_t width = hd_dtype_bytes(hdi_session_weights_dtype(session));
    char *weights = session->arena + plan->units[0].base[HD_REGION_WEIGHTS];
    if (!plan->residency.host_blocks) return weights + (size_t)first * width;
    const hdi_entry *entry = &layout->entries[entry_at(layout, first)];
    if (!plan->residency.gathers && !plan->residency.updates)
        return weights + plan->residency.homes[entry - layout->entries].offset +
               (size_t)(first - entry->first) * width;
    if (layout->buckets[entry->bucket].host)
        weights = hdi_session_at(session, plan->units[0].base[HD_REGION_HOST_WEIGHTS]);
    return weights + width * (size_t)hdi_layout_stored_weights(layout, entry->bucket, first);
}

void hdi_session_clip(const hd_session *session, const hdi_entry *entry, int64_t *first,
                      int64_t *count)
{
    const hdi_layout *layout = session->plan->layout;
    if (!layout->buckets[entry->bucket].sharded) return;
    int64_t own_first, own = hdi_layout_shard(layout, entry->bucket, layout->shard, &own_first);
    const int64_t begin = *first > own_first ? *first : own_first;
    const int64_t end = *first + *count < own_first + own ? *first + *count : own_first + own;
    *first = begin;
    *count = end > begin ? end - begin : 0;
}

/* First values of an entry that stays on the host, or of a part of it: made on the device. */
static hd_status fill_host(hd_session *session, const hdi_entry *entry, int64_t begin,
                           int64_t count, uint64_t seed, hd_dtype dtype, char *host)
{
    const hd_context *context = session->context;
    char *scratch = hdi_streaming_scratch(session);
    HD_RETURN_IF_ERROR(hdi_session_fill(session, entry, begin, count, seed, dtype, scratch));
    HD_RETURN_IF_ERROR(context->backend->copy_out(context->stream, host, scratch,
                                                  (size_t)count * hd_dtype_bytes(dtype)));
    return context->backend->synchronize(context->stream);
}

hd_status hd_session_initialize(hd_session *session, uint64_t seed)
{
    const hdi_layout *layout = session->plan->layout;
    hd_dtype dtype = hdi_session_weights_dtype(session);
    for (int i = 0; i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        char *place = hdi_streaming_weights(session, i);
        HD_RETURN_IF_ERROR(hdi_streaming_forget(session, i));
        if (!hdi_streaming_is_mine(session, i)) continue;
        int64_t first = entry->first, count = entry->elements;
        hdi_session_clip(session, entry, &first, &count);
        if (!count) continue;
        const bool streams = place != NULL;
        const int64_t begin = first - entry->first;
        if (!place) place = hdi_session_weights_at(session, first);
        HD_RETURN_IF_ERROR(
            streams || hdi_session_is_host(session, place)
                ? fill_host(session, entry, begin, count, seed, dtype, place)
                : hdi_session_fill(session, entry, begin, count, seed, dtype, place));
    }
    return session->context->backend->synchronize(session->context->stream);
}

hd_status hdi_session_host_weights(hd_session *session, int64_t first, char **out)
{
    const int entry = entry_at(session->plan->layout, first);
    *out = hdi_streaming_weights(session, entry);
    if (!*out) return HD_OK;
    const int64_t inside = first - session->plan->layout->entries[entry].first;
    *out += (size_t)inside * hd_dtype_bytes(hdi_session_weights_dtype(session));
    return hdi_streaming_forget(session, entry);
}

hd_status hdi_session_write_flat(hd_session *session, int64_t first, int64_t elements,
                                 const float *values)
{
    const hd_dtype dtype = hdi_session_weights_dtype(session);
    char *host;
    HD_RETURN_IF_ERROR(hdi_session_host_weights(session, first, &host));
    if (!host) {
        const hdi_layout *layout = session->plan->layout;
        int64_t begin = first;
        hdi_session_clip(session, &layout->entries[entry_at(layout, first)], &begin, &elements);
        if (!elements) return HD_OK;
        return write_values(session, dtype, hdi_session_weights_at(session, begin), elements,
                            values + (begin - first));
    }
    round_values(dtype, elements, values, host);
    return HD_OK;
}

hd_status hdi_session_write_weights(hd_session *session, int64_t first, int64_t elements,
                                    const void *weights)
{
    const size_t width = hd_dtype_bytes(hdi_session_weights_dtype(session));
    const hdi_layout *layout = session->plan->layout;
    int64_t begin = first;
    hdi_session_clip(session, &layout->entries[entry_at(layout, first)], &begin, &elements);
    if (!elements) return HD_OK;
    return hdi_session_put(session, hdi_session_weights_at(session, begin),
                           (const char *)weights + (size_t)(begin - first) * width,
                           (size_t)elements * width);
}

size_t hd_session_high_water(const hd_session *session)
{
    return hdi_place_round(session->high_water);
}
