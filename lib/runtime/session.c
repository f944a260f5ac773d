/* Sessions: the arena, its first contents, and reading and writing tensors. */
#include "runtime/session.h"

#include "core/error.h"
#include "core/memory.h"
#include "core/random.h"
#include "program/place.h"

#include <inttypes.h>
#include <string.h>

int hdi_session_unit(const hd_session *session, const hd_program *program)
{
    for (int i = 0; i < session->plan->unit_count; i++)
        if (session->plan->units[i].program == program) return i;
    return -1;
}

void *hdi_session_address(const hd_session *session, int unit, hd_tensor tensor, int micro_batch)
{
    return session->arena + hdi_plan_address(session->plan, unit, tensor, micro_batch, 0);
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

hd_status hd_session_create(hd_context *context, const hd_plan *plan, const hd_mesh *mesh,
                            hd_session **out)
{
    *out = NULL;
    if (!plan->finished) return hdi_error(HD_ERROR_ARGUMENT, "session: the plan is not finished");
    hd_session *session = hdi_alloc(sizeof *session);
    if (!session) return hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
    session->context = context;
    session->plan = plan;
    session->mesh = mesh;
    session->posted = hdi_alloc_array((size_t)plan->unit_count, sizeof *session->posted);
    bool ok = session->posted != NULL;
    for (int i = 0; i < plan->unit_count && ok; i++) {
        session->posted[i] =
            hdi_alloc_array((size_t)plan->units[i].program->op_count, sizeof **session->posted);
        ok = session->posted[i] != NULL;
    }
    void *arena = NULL;
    hd_status status = ok ? context->backend->reserve(context->device, plan->arena_bytes, &arena)
                          : hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
    session->arena = arena;
    if (status == HD_OK) status = make_tables(session);
    if (status != HD_OK) {
        hd_session_destroy(session);
        return status;
    }
    *out = session;
    return HD_OK;
}

void hd_session_destroy(hd_session *session)
{
    if (!session) return;
    if (session->arena)
        session->context->backend->release(session->context->device, session->arena,
                                           session->plan->arena_bytes);
    for (int i = 0; i < session->plan->unit_count && session->posted; i++)
        hdi_free(session->posted[i]);
    hdi_free(session->posted);
    hdi_free(session);
}

static hd_dtype weights_dtype(const hd_session *session)
{
    for (int u = 0; u < session->plan->unit_count; u++) {
        const hd_program *program = session->plan->units[u].program;
        if (program->use_count) return hd_tensor_get(program, program->uses[0].tensor)->dtype;
    }
    return HD_DTYPE_F32;
}

static hd_status fill_ones(hd_session *session, hd_dtype dtype, const hdi_entry *entry)
{
    enum { PIECE = 1024 };
    float ones[PIECE];
    for (int i = 0; i < PIECE; i++)
        ones[i] = 1;
    for (int64_t done = 0; done < entry->elements; done += PIECE) {
        int64_t count = entry->elements - done < PIECE ? entry->elements - done : PIECE;
        HD_RETURN_IF_ERROR(
            hdi_session_write_flat(session, dtype, entry->first + done, count, ones));
    }
    return HD_OK;
}

hd_status hd_session_initialize(hd_session *session, uint64_t seed)
{
    const hd_plan *plan = session->plan;
    const hd_backend *backend = session->context->backend;
    hd_stream *stream = session->context->stream;
    hd_dtype dtype = weights_dtype(session);
    char *weights = session->arena + plan->units[0].base[HD_REGION_WEIGHTS];
    for (int i = 0; i < plan->layout->entry_count; i++) {
        const hdi_entry *entry = &plan->layout->entries[i];
        char *place = weights + (size_t)entry->first * hd_dtype_bytes(dtype);
        size_t bytes = (size_t)entry->elements * hd_dtype_bytes(dtype);
        switch (entry->options->init) {
        case HD_INIT_ZEROS: HD_RETURN_IF_ERROR(backend->zero(stream, place, bytes)); break;
        case HD_INIT_ONES: HD_RETURN_IF_ERROR(fill_ones(session, dtype, entry)); break;
        case HD_INIT_NORMAL:
            HD_RETURN_IF_ERROR(backend->fill_normal(stream, dtype, place, entry->elements, seed,
                                                    hdi_random_stream(entry->name), 0,
                                                    (float)entry->options->std));
            break;
        }
    }
    return backend->synchronize(stream);
}

hd_status hdi_session_write_flat(hd_session *session, hd_dtype dtype, int64_t first,
                                 int64_t elements, const float *values)
{
    const hd_backend *backend = session->context->backend;
    hd_stream *stream = session->context->stream;
    char *place = session->arena + session->plan->units[0].base[HD_REGION_WEIGHTS] +
                  (size_t)first * hd_dtype_bytes(dtype);
    if (dtype != HD_DTYPE_F32)
        return hdi_error(HD_ERROR_UNSUPPORTED, "weights of dtype %s cannot be written on %s",
                         hd_dtype_name(dtype), backend->name);
    HD_RETURN_IF_ERROR(backend->copy_in(stream, place, values, (size_t)elements * sizeof(float)));
    return backend->synchronize(stream);
}

static hd_status find(const hd_session *session, const hd_program *program, hd_tensor tensor,
                      int *unit)
{
    *unit = hdi_session_unit(session, program);
    if (*unit < 0)
        return hdi_error(HD_ERROR_ARGUMENT, "session: program '%s' is not in its plan",
                         program->name);
    if (!hdi_tensor_of(program, tensor) || !session->plan->units[*unit].places[tensor.id].placed)
        return hdi_error(HD_ERROR_ARGUMENT, "session: program '%s' has no tensor %d with a place",
                         program->name, tensor.id);
    return HD_OK;
}

hd_status hd_session_write(hd_session *session, const hd_program *program, hd_tensor tensor,
                           int micro_batch, const void *host)
{
    int unit;
    HD_RETURN_IF_ERROR(find(session, program, tensor, &unit));
    HD_RETURN_IF_ERROR(session->context->backend->copy_in(
        session->context->stream, hdi_session_address(session, unit, tensor, micro_batch), host,
        program->tensors[tensor.id]->info.bytes));
    return session->context->backend->synchronize(session->context->stream);
}

hd_status hd_session_read(hd_session *session, const hd_program *program, hd_tensor tensor,
                          int micro_batch, void *host)
{
    int unit;
    HD_RETURN_IF_ERROR(find(session, program, tensor, &unit));
    HD_RETURN_IF_ERROR(session->context->backend->copy_out(
        session->context->stream, host, hdi_session_address(session, unit, tensor, micro_batch),
        program->tensors[tensor.id]->info.bytes));
    return session->context->backend->synchronize(session->context->stream);
}

size_t hd_session_high_water(const hd_session *session)
{
    return hdi_place_round(session->high_water);
}
