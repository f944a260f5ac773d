/* Programs beside others. Allocates nothing. */
#include "runtime/beside.h"

#include "comm/comm.h"
#include "core/error.h"
#include "runtime/gpu.h"
#include "runtime/session.h"
#include "runtime/spans.h"

/* Flag 0 says that a run may begin. */
_Static_assert((int)HDI_RELEASES + 2 <= (int)HDI_FLAGS, "flags for all releases, begin and end");

hd_status hdi_beside_open(hd_session *session)
{
    const hd_context *context = session->context;
    session->queue = context->stream;
    session->beside.ahead = HDI_BESIDE_AHEAD;
    for (int u = 0; u < session->plan->unit_count && !session->beside.stream; u++)
        if (session->plan->units[u].options.beside)
            HD_RETURN_IF_ERROR(
                context->backend->side_stream(context->device, &session->beside.stream));
    if (session->beside.stream)
        session->beside.followed = hdi_gpu_stream(context->backend, session->beside.stream);
    return HD_OK;
}

static const hd_op *op_of(const hd_session *session, int index)
{
    return &session->plan->units[session->beside.unit].program->ops[index]->op;
}

static int op_count(const hd_session *session)
{
    return session->plan->units[session->beside.unit].program->op_count;
}

static hd_status queue_op(hd_session *session, int index)
{
    hdi_beside *it = &session->beside;
    const hdi_unit *unit = &session->plan->units[it->unit];
    for (int w = unit->wait_begin[index]; w < unit->wait_begin[index + 1]; w++)
        HD_RETURN_IF_ERROR(hdi_session_wait_for(session, it->unit, unit->waits[w]));
    HD_RETURN_IF_ERROR(hdi_session_run_op(session, it->unit, index, 0, &it->options));
    if (!(op_of(session, index)->kind->flags & HD_OP_RELEASES)) return HD_OK;
    return session->context->backend->raise_flag(it->stream, ++it->raised);
}

static bool is_next_for_all(const hd_session *session)
{
    const hdi_beside *it = &session->beside;
    return it->next < op_count(session) &&
           op_of(session, it->next)->kind->flags & HD_OP_COMMUNICATES;
}

/* What it has posted is known on its own stream only, so that ends there. */
static hd_status queue_end(hd_session *session)
{
    hdi_beside *it = &session->beside;
    for (int i = 0; i < op_count(session); i++)
        if (hdi_op_is_posted(op_of(session, i)))
            HD_RETURN_IF_ERROR(hdi_session_wait_for(session, it->unit, i));
    return session->context->backend->raise_flag(it->stream, ++it->raised);
}

/* Until `flag` is queued, and some more. Its own waits are nobody else's, and no trace's. */
static hd_status advance(hd_session *session, int flag)
{
    hdi_beside *it = &session->beside;
    const int until = it->communicates ? flag + 1 : flag;
    hd_comm *comm = hd_mesh_device_comm(session->mesh, HD_AXIS_NONE);
    hdi_spans *spans = session->spans;
    hd_stream *queue = session->queue;
    hd_status status = HD_OK;
    session->spans = NULL;
    session->queue = it->stream;
    it->walks = true;
    hdi_comm_follow(comm, it->followed);
    for (int more = it->ahead; status == HD_OK && it->raised < it->flags;) {
        if (it->raised >= until && (more-- <= 0 || is_next_for_all(session))) break;
        status = it->next < op_count(session) ? queue_op(session, it->next++) : queue_end(session);
        hdi_comm_progress(comm);
    }
    hdi_comm_follow(comm, NULL);
    session->spans = spans;
    session->queue = queue;
    it->walks = false;
    return status;
}

hd_status hdi_beside_begin(hd_session *session, int unit, const hd_session_run_options *options)
{
    hdi_beside *it = &session->beside;
    const hd_context *context = session->context;
    HD_RETURN_IF_ERROR(hdi_session_order(session));
    HD_RETURN_IF_ERROR(hdi_spans_return(session->spans));
    HD_RETURN_IF_ERROR(context->backend->raise_flag(context->stream, 0));
    HD_RETURN_IF_ERROR(context->backend->await_flag(it->stream, 0));
    *it = (hdi_beside){.stream = it->stream,
                       .followed = it->followed,
                       .ahead = it->ahead,
                       .unit = unit,
                       .options = *options,
                       .flags = 1};
    for (int i = 0; i < op_count(session); i++) {
        it->communicates = it->communicates || op_of(session, i)->kind->flags & HD_OP_COMMUNICATES;
        if (!(op_of(session, i)->kind->flags & HD_OP_RELEASES)) continue;
        session->posted[unit][i].flag = it->flags++;
        hdi_session_leave(session, unit, i, options);
    }
    return advance(session, 0);
}

/* Such programs are there for their copies, so who waits for one waits for those. */
hd_status hdi_beside_await(hd_session *session, int flag)
{
    hdi_moment begin;
    HD_RETURN_IF_ERROR(advance(session, flag));
    HD_RETURN_IF_ERROR(hdi_spans_now(session->spans, &begin));
    HD_RETURN_IF_ERROR(session->context->backend->await_flag(session->queue, flag));
    return hdi_spans_waited(session->spans, HDI_TRACE_WAIT_COPIES, &begin);
}

hd_status hdi_beside_end(hd_session *session)
{
    hdi_beside *it = &session->beside;
    if (!it->flags) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_beside_await(session, it->flags));
    for (int i = 0; i < op_count(session); i++)
        session->posted[it->unit][i].flag = 0;
    it->flags = 0;
    return HD_OK;
}

hd_status hdi_beside_abandon(hd_session *session)
{
    hdi_beside *it = &session->beside;
    if (!it->flags) return HD_OK;
    it->next = op_count(session);
    it->raised = it->flags - 1;
    return hdi_beside_end(session);
}
