/* Relayed copies, and the waits that they end with. Allocates nothing once it is open. */
#include "runtime/relay.h"

#include "comm/comm.h"
#include "core/error.h"
#include "core/memory.h"
#include "runtime/session.h"
#include "runtime/spans.h"

#include <string.h>

hd_status hdi_relay_open(hd_session *session)
{
    size_t places = 1;
    for (int u = 0; u < session->plan->unit_count; u++) {
        const hdi_unit *unit = &session->plan->units[u];
        for (int i = 1; i < unit->program->tensor_count; i++)
            if (unit->program->tensors[i]->staged) places += (size_t)unit->options.io_slots;
    }
    session->relay.passing = hdi_alloc_array(places, sizeof *session->relay.passing);
    return session->relay.passing ? HD_OK
                                  : hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
}

void hdi_relay_close(hd_session *session)
{
    hdi_free(session->relay.passing);
}

/* The first `count` copies are over. */
static void arrive(hd_session *session, int count)
{
    hdi_relay *relay = &session->relay;
    for (int i = 0; i < count; i++) {
        const hdi_passing *copy = &relay->passing[i];
        if (copy->to)
            memcpy(copy->to, hdi_session_at(session, copy->begin), copy->end - copy->begin);
    }
    relay->count -= count;
    relay->marked = 0;
    memmove(relay->passing, relay->passing + count, (size_t)relay->count * sizeof *relay->passing);
}

/* A staged tensor's place on the host, free for a copy. */
static hd_status free_place(hd_session *session, int unit, hd_tensor tensor, int micro_batch,
                            hdi_passing *out)
{
    out->begin = hdi_plan_staging(session->plan, unit, tensor, micro_batch);
    out->end = out->begin + session->plan->units[unit].places[tensor.id].bytes;
    for (int i = 0; i < session->relay.count; i++) {
        const hdi_passing *other = &session->relay.passing[i];
        if (other->begin < out->end && out->begin < other->end)
            return hdi_session_synchronize(session); /* nothing is passing then */
    }
    return HD_OK;
}

hd_status hdi_relay_room(hd_session *session, const hd_program *program, hd_tensor tensor,
                         int micro_batch, void **out)
{
    int unit;
    hdi_passing copy;
    char *place;
    HD_RETURN_IF_ERROR(hdi_session_find(session, program, tensor, micro_batch, &unit));
    const hdi_tensor *found = program->tensors[tensor.id];
    if (!found->staged && session->context->backend->is_idle)
        return hdi_error(HD_ERROR_INTERNAL, "session: program '%s': '%s' has no place on the host",
                         program->name, found->info.name);
    if (found->staged) {
        HD_RETURN_IF_ERROR(free_place(session, unit, tensor, micro_batch, &copy));
        place = hdi_session_at(session, copy.begin);
    } else {
        HD_RETURN_IF_ERROR(hdi_session_reach(session, unit, tensor, micro_batch, &place));
    }
    *out = place;
    return HD_OK;
}

hd_status hdi_relay_send(hd_session *session, const hd_program *program, hd_tensor tensor,
                         int micro_batch)
{
    int unit;
    hdi_passing copy = {0};
    char *place;
    HD_RETURN_IF_ERROR(hdi_session_find(session, program, tensor, micro_batch, &unit));
    if (!program->tensors[tensor.id]->staged) return HD_OK;
    HD_RETURN_IF_ERROR(free_place(session, unit, tensor, micro_batch, &copy));
    HD_RETURN_IF_ERROR(hdi_session_reach(session, unit, tensor, micro_batch, &place));
    session->relay.passing[session->relay.count++] = copy;
    return session->context->backend->copy_in(session->context->stream, place,
                                              hdi_session_at(session, copy.begin),
                                              copy.end - copy.begin);
}

hd_status hdi_relay_read(hd_session *session, const hd_program *program, hd_tensor tensor,
                         int micro_batch, void *host)
{
    int unit;
    hdi_passing copy = {.to = host};
    char *place;
    HD_RETURN_IF_ERROR(hdi_session_find(session, program, tensor, micro_batch, &unit));
    if (!program->tensors[tensor.id]->staged)
        return hd_session_read(session, program, tensor, micro_batch, host);
    HD_RETURN_IF_ERROR(free_place(session, unit, tensor, micro_batch, &copy));
    HD_RETURN_IF_ERROR(hdi_session_reach(session, unit, tensor, micro_batch, &place));
    session->relay.passing[session->relay.count++] = copy;
    return session->context->backend->copy_out(session->context->stream,
                                               hdi_session_at(session, copy.begin), place,
                                               copy.end - copy.begin);
}

/* Look again and again, while peers get what they need of the host. */
static hd_status wait_until(const hd_session *session, hd_status (*is_over)(hd_stream *, bool *))
{
    enum { SPINS = 200 };
    for (int64_t look = 0;; look++) {
        bool over;
        HD_RETURN_IF_ERROR(is_over(session->context->stream, &over));
        if (over) return HD_OK;
        HD_RETURN_IF_ERROR(hdi_comm_watch(hd_mesh_device_comm(session->mesh, HD_AXIS_NONE)));
        hdi_comm_progress(hd_mesh_comm(session->mesh, HD_AXIS_NONE));
        hdi_comm_back_off(look, SPINS);
    }
}

hd_status hdi_relay_mark(hd_session *session)
{
    const hd_context *context = session->context;
    session->relay.marked = session->relay.count;
    return context->backend->mark ? context->backend->mark(context->stream) : HD_OK;
}

hd_status hdi_relay_await_mark(hd_session *session)
{
    const hd_backend *backend = session->context->backend;
    if (backend->is_past) HD_RETURN_IF_ERROR(wait_until(session, backend->is_past));
    arrive(session, session->relay.marked);
    return HD_OK;
}

hd_status hdi_session_settle(hd_session *session)
{
    const hd_backend *backend = session->context->backend;
    HD_RETURN_IF_ERROR(hdi_comm_settle(hd_mesh_device_comm(session->mesh, HD_AXIS_NONE)));
    if (!backend->is_idle || hd_mesh_ranks(session->mesh) < 2) return HD_OK;
    return wait_until(session, backend->is_idle);
}

hd_status hdi_session_synchronize(hd_session *session)
{
    HD_RETURN_IF_ERROR(hdi_spans_leave(session->spans));
    HD_RETURN_IF_ERROR(hdi_session_settle(session));
    HD_RETURN_IF_ERROR(session->context->backend->synchronize(session->context->stream));
    arrive(session, session->relay.count);
    return HD_OK;
}
