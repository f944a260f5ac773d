/* Reading and writing tensors of a session, done when a call returns. */
#include "core/error.h"
#include "runtime/session.h"

#include <string.h>

hd_status hdi_session_find(const hd_session *session, const hd_program *program, hd_tensor tensor,
                           int micro_batch, int *unit)
{
    *unit = hdi_session_unit(session, program);
    if (*unit < 0)
        return hdi_error(HD_ERROR_ARGUMENT, "session: program '%s' is not in its plan",
                         program->name);
    if (!hdi_tensor_of(program, tensor) || !session->plan->units[*unit].places[tensor.id].placed)
        return hdi_error(HD_ERROR_ARGUMENT, "session: program '%s' has no tensor %d with a place",
                         program->name, tensor.id);
    if (micro_batch < 0)
        return hdi_error(HD_ERROR_ARGUMENT, "session: program '%s': micro-batch is %d, want >= 0",
                         program->name, micro_batch);
    return HD_OK;
}

static bool is_sharded(const hd_session *session, int unit, hd_tensor tensor)
{
    const hd_plan *plan = session->plan;
    return hdi_residency_is_sharded(&plan->residency) &&
           plan->units[unit].places[tensor.id].region == HD_REGION_STREAMED;
}

/* An update that goes on beside changes weights where they are kept, which is not where programs read them. */
static hd_status end_update(hd_session *session)
{
    return session->beside.flags ? hd_session_drain(session) : HD_OK;
}

/* Of a parameter that is sharded, this rank's part. */
static hd_status write_shard(hd_session *session, const hd_program *program, hd_tensor tensor,
                             const char *host)
{
    const hd_tensor_info *info = &program->tensors[tensor.id]->info;
    const hdi_layout *layout = session->plan->layout;
    const hdi_entry *entry = &layout->entries[hdi_layout_find(layout, info->name)];
    const size_t width = hd_dtype_bytes(info->dtype);
    int64_t first = entry->first, count = entry->elements;
    hdi_session_clip(session, entry, &first, &count);
    HD_RETURN_IF_ERROR(end_update(session));
    HD_RETURN_IF_ERROR(hdi_streaming_stale(session));
    if (!count) return HD_OK;
    return hdi_session_put(session, hdi_session_weights_at(session, first),
                           host + (size_t)(first - entry->first) * width, (size_t)count * width);
}

/* The entry of a parameter that stays on the host; -1 for all other tensors. */
static int host_entry(const hd_session *session, int unit, hd_tensor tensor)
{
    const hd_plan *plan = session->plan;
    if (plan->units[unit].places[tensor.id].region != HD_REGION_STREAMED) return -1;
    return hdi_layout_find(plan->layout, plan->units[unit].program->tensors[tensor.id]->info.name);
}

hd_status hdi_session_reach(hd_session *session, int unit, hd_tensor tensor, int micro_batch,
                            char **out)
{
    const size_t at = hdi_plan_address(session->plan, unit, tensor, micro_batch, 0);
    *out = hdi_session_at(session, at);
    return hdi_session_await(session, at, session->plan->units[unit].places[tensor.id].bytes);
}

hd_status hd_session_write(hd_session *session, const hd_program *program, hd_tensor tensor,
                           int micro_batch, const void *host)
{
    int unit;
    HD_RETURN_IF_ERROR(hdi_session_find(session, program, tensor, micro_batch, &unit));
    if (is_sharded(session, unit, tensor)) return write_shard(session, program, tensor, host);
    const int entry = host_entry(session, unit, tensor);
    if (entry >= 0) {
        HD_RETURN_IF_ERROR(end_update(session));
        HD_RETURN_IF_ERROR(hdi_streaming_forget(session, entry));
        memcpy(hdi_streaming_weights(session, entry), host,
               program->tensors[tensor.id]->info.bytes);
        return HD_OK;
    }
    char *place;
    HD_RETURN_IF_ERROR(hdi_session_reach(session, unit, tensor, micro_batch, &place));
    HD_RETURN_IF_ERROR(session->context->backend->copy_in(session->context->stream, place, host,
                                                          program->tensors[tensor.id]->info.bytes));
    return hdi_session_synchronize(session);
}

hd_status hd_session_read(hd_session *session, const hd_program *program, hd_tensor tensor,
                          int micro_batch, void *host)
{
    int unit;
    HD_RETURN_IF_ERROR(hdi_session_find(session, program, tensor, micro_batch, &unit));
    if (is_sharded(session, unit, tensor))
        return hdi_error(
            HD_ERROR_UNSUPPORTED,
            "session: parameter '%s' is sharded over %d ranks, no rank can read all of it",
            program->tensors[tensor.id]->info.name, session->plan->layout->shards);
    const int entry = host_entry(session, unit, tensor);
    if (entry >= 0) {
        HD_RETURN_IF_ERROR(end_update(session));
        memcpy(host, hdi_streaming_weights(session, entry),
               program->tensors[tensor.id]->info.bytes);
        return HD_OK;
    }
    char *place;
    HD_RETURN_IF_ERROR(hdi_session_reach(session, unit, tensor, micro_batch, &place));
    HD_RETURN_IF_ERROR(
        hdi_session_settle(session)); /* the copy may hold the host until it is done */
    HD_RETURN_IF_ERROR(session->context->backend->copy_out(
        session->context->stream, host, place, program->tensors[tensor.id]->info.bytes));
    return hdi_session_synchronize(session);
}
