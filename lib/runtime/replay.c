/* Which ops are replayed together, and the graphs that they are kept in. */
#include "runtime/replay.h"

#include "comm/comm.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "runtime/session.h"

#include <string.h>

int hdi_segment_end(const hdi_unit *unit, int begin, int until,
                    const hd_session_run_options *options)
{
    const hd_program *program = unit->program;
    int end = begin;
    for (int i = begin; i < program->op_count; i++) {
        const hdi_op *op = program->ops[i];
        if (op->phase != hdi_phase_of(options->phase)) continue;
        /* What is left out waits and fetches, too. */
        if (i > begin && (i >= until || unit->wait_begin[i] < unit->wait_begin[i + 1])) break;
        if (!hdi_op_runs(op, options)) continue;
        if (hdi_op_is_posted(&op->op) || op->op.kind->flags & HD_OP_VARIES) break;
        end = i + 1;
    }
    return end;
}

hd_status hdi_replay_open(hd_session *session)
{
    const hd_context *context = session->context;
    if (!context->graphs || !context->backend->begin_record) return HD_OK;
    session->replay.seen = hdi_alloc_array(HDI_REPLAY_SEGMENTS, sizeof *session->replay.seen);
    return session->replay.seen ? HD_OK : hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
}

void hdi_replay_close(hd_session *session)
{
    hdi_replay *replay = &session->replay;
    for (int i = 0; i < replay->count; i++)
        session->context->backend->forget_graph(&replay->seen[i].graph);
    session->context->graph_bytes -= replay->bytes;
    hdi_free(replay->seen);
    *replay = (hdi_replay){0};
}

/* Is communication under way where the op works? */
static bool is_awaited(const hd_session *session, const hdi_segment *segment, int index,
                       const hd_session_run_options *options)
{
    const hd_op *op = &session->plan->units[segment->unit].program->ops[index]->op;
    for (int k = 0; k < op->inputs + op->outputs; k++) {
        const hd_tensor tensor = k < op->inputs ? op->in[k] : op->out[k - op->inputs];
        if (!tensor.id) continue;
        size_t bytes;
        const size_t at =
            hdi_session_place(session, segment->unit, tensor, segment->streamed, options, &bytes);
        if (hdi_session_is_unfinished(session, at, bytes)) return true;
    }
    return false;
}

/* The step before this one met segments in the same order, so the first look is nearly always the last. */
static hdi_replayed *find(hdi_replay *replay, const hdi_segment *segment)
{
    for (int i = 0; i < replay->count; i++) {
        const int at = (replay->next + i) % replay->count;
        if (memcmp(&replay->seen[at].segment, segment, sizeof *segment)) continue;
        replay->next = at + 1;
        return &replay->seen[at];
    }
    return NULL;
}

hdi_replayed *hdi_replay_find(hd_session *session, hdi_segment *segment, int until,
                              const hd_session_run_options *options)
{
    hdi_replay *replay = &session->replay;
    const hdi_unit *unit = &session->plan->units[segment->unit];
    if (!replay->seen) return NULL;
    int end = hdi_segment_end(unit, segment->begin, until, options);
    for (int i = segment->begin; i < end && session->unfinished_count; i++)
        if (hdi_op_runs(unit->program->ops[i], options) && is_awaited(session, segment, i, options))
            end = i;
    if (end - segment->begin < HDI_REPLAY_LEAST_OPS) return NULL;
    segment->end = end;
    hdi_replayed *it = find(replay, segment);
    if (it || replay->count == HDI_REPLAY_SEGMENTS) return it;
    replay->seen[replay->count++].segment = *segment;
    replay->next = replay->count;
    return NULL;
}

static void refuse(hd_session *session, hdi_replayed *it, const char *why)
{
    const hd_program *program = session->plan->units[it->segment.unit].program;
    hdi_log(HD_LOG_DEBUG, "graphs: ops %d to %d of program '%s' are queued one by one: %s",
            it->segment.begin, it->segment.end - 1, program->name, why);
    it->is_refused = true;
}

bool hdi_replay_begin(hd_session *session, hdi_replayed *it)
{
    const hd_context *context = session->context;
    if (it->is_refused || it->graph.recorded) return false;
    if (context->backend->begin_record(context->stream) == HD_OK) return true;
    refuse(session, it, hd_last_error());
    return false;
}

void hdi_replay_end(hd_session *session, hdi_replayed *it, hd_status recorded)
{
    const hd_context *context = session->context;
    const hd_status ended = context->backend->end_record(context->stream, &it->graph);
    if (recorded == HD_OK && ended == HD_OK) {
        session->replay.waiting++;
        return;
    }
    context->backend->forget_graph(&it->graph);
    refuse(session, it, hd_last_error());
}

static void load(hd_session *session, hdi_replayed *it)
{
    hd_context *context = session->context;
    const size_t taken = context->graph_bytes;
    const size_t most = taken < HDI_REPLAY_BYTES ? HDI_REPLAY_BYTES - taken : 0;
    size_t bytes = 0;
    const hd_status status =
        context->backend->load_graph(context->stream, &it->graph, most, &bytes);
    context->graph_bytes += bytes;
    session->replay.bytes += bytes;
    if (!it->graph.loaded) refuse(session, it, status == HD_OK ? "no memory" : hd_last_error());
}

void hdi_replay_load(hd_session *session)
{
    hdi_replay *replay = &session->replay;
    if (!replay->waiting || !hdi_comm_is_quiet(hd_mesh_device_comm(session->mesh, HD_AXIS_NONE)))
        return;
    int kept = 0;
    for (int i = 0; i < replay->count; i++) {
        if (replay->seen[i].graph.recorded) load(session, &replay->seen[i]);
        kept += replay->seen[i].graph.loaded != NULL;
    }
    replay->waiting = 0;
    hdi_log(HD_LOG_DEBUG, "graphs: %d kept of %d, %zu bytes", kept, replay->count, replay->bytes);
}

hd_status hdi_replay_run(hd_session *session, const hdi_replayed *it)
{
    const hd_context *context = session->context;
    session->replay.launches++;
    const hd_status status = context->backend->run_graph(context->stream, &it->graph);
    if (status == HD_OK) return HD_OK;
    return hdi_error_context(status, "program '%s', ops %d to %d",
                             session->plan->units[it->segment.unit].program->name,
                             it->segment.begin, it->segment.end - 1);
}
