/* The executor: walks a program's ops in order, waits where the plan says so. Allocates nothing. */
#include "comm/comm.h"
#include "core/error.h"
#include "runtime/session.h"
#include "runtime/spans.h"

static bool is_load(const hd_session *session, int unit, int op)
{
    return session->plan->units[unit].program->ops[op]->op.kind->flags & HD_OP_LOADS;
}

/* Slots take turns: a copy whose slot has been taken by a later one is waited for with that one. */
static int take_slot(hd_session *session, uint32_t flags)
{
    if (flags & HD_OP_STORES) return session->stores = (session->stores + 1) % HDI_STORE_SLOTS;
    session->loads = (session->loads + 1) % HDI_OP_FETCHES;
    return HDI_STREAM_FETCHES + session->loads;
}

static hd_status wait_for_copy(hd_session *session, int unit, int op)
{
    const hd_context *context = session->context;
    hdi_posted *posted = &session->posted[unit][op];
    const int slot = posted->copy - 1;
    posted->copy = 0;
    hdi_moment begin;
    HD_RETURN_IF_ERROR(hdi_spans_now(session->spans, &begin));
    HD_RETURN_IF_ERROR(is_load(session, unit, op)
                           ? context->backend->await(session->queue, slot)
                           : context->backend->await_store(session->queue, slot));
    return hdi_spans_waited(session->spans, HDI_TRACE_WAIT_COPIES, &begin);
}

hd_status hdi_session_wait_for(hd_session *session, int unit, int op)
{
    hdi_posted *posted = &session->posted[unit][op];
    if (posted->copy) return wait_for_copy(session, unit, op);
    if (posted->flag) {
        const int flag = posted->flag;
        posted->flag = 0;
        return hdi_beside_await(session, flag);
    }
    if (!posted->comm) return HD_OK;
    hdi_moment begin;
    HD_RETURN_IF_ERROR(hdi_spans_now(session->spans, &begin));
    hd_status status = hdi_comm_order(posted->comm, &posted->request);
    posted->comm = NULL;
    if (status == HD_OK) return hdi_spans_waited(session->spans, HDI_TRACE_WAIT_COMM, &begin);
    char label[256];
    const hd_program *program = session->plan->units[unit].program;
    return hdi_error_context(status, "program '%s', op %d (%s)", program->name, op,
                             hdi_op_label(program, program->ops[op], label, sizeof label));
}

static bool is_posted(const hd_session *session, int unit, int op)
{
    const hdi_posted *posted = &session->posted[unit][op];
    return posted->comm || posted->copy || posted->flag;
}

static bool is_under_way(const hd_session *session, const hdi_unfinished *left, size_t at,
                         size_t bytes)
{
    return left->begin < at + bytes && at < left->end && is_posted(session, left->unit, left->op);
}

bool hdi_session_is_unfinished(const hd_session *session, size_t at, size_t bytes)
{
    for (int i = 0; i < session->unfinished_count; i++)
        if (is_under_way(session, &session->unfinished[i], at, bytes)) return true;
    return false;
}

hd_status hdi_session_await(hd_session *session, size_t at, size_t bytes)
{
    int kept = 0;
    for (int i = 0; i < session->unfinished_count; i++) {
        const hdi_unfinished left = session->unfinished[i];
        if (is_under_way(session, &left, at, bytes))
            HD_RETURN_IF_ERROR(hdi_session_wait_for(session, left.unit, left.op));
        if (is_posted(session, left.unit, left.op)) session->unfinished[kept++] = left;
    }
    session->unfinished_count = kept;
    return HD_OK;
}

size_t hdi_session_place(const hd_session *session, int unit, hd_tensor tensor, int streamed,
                         const hd_session_run_options *options, size_t *bytes)
{
    const hdi_place_of *place = &session->plan->units[unit].places[tensor.id];
    const int copy = place->region == HD_REGION_STREAMED ? streamed : options->micro_batch;
    *bytes = place->bytes;
    return hdi_plan_address(session->plan, unit, tensor, copy, options->level);
}

/* Address of a tensor of op's, ready for it. */
static hd_status locate(hd_session *session, int index, hd_tensor tensor, int streamed,
                        const hd_session_run_options *options, void **out)
{
    size_t bytes;
    const size_t at = hdi_session_place(session, index, tensor, streamed, options, &bytes);
    if (at < HDI_HOST_BASE) hdi_session_touch(session, at, bytes);
    *out = hdi_session_at(session, at);
    /* A program beside others comes behind all that was under way, and others behind it. */
    return session->beside.walks ? HD_OK : hdi_session_await(session, at, bytes);
}

hd_status hdi_session_run_op(hd_session *session, int index, int op_index, int streamed,
                             const hd_session_run_options *options)
{
    const hd_plan *plan = session->plan;
    const hdi_unit *unit = &plan->units[index];
    const hdi_op *op = unit->program->ops[op_index];
    hdi_posted *posted = &session->posted[index][op_index];
    /* It has one request: what a run before has posted is over first, and then off the list of unfinished. */
    if (posted->comm) HD_RETURN_IF_ERROR(hdi_session_wait_for(session, index, op_index));
    const bool is_sum = op->op.outputs && op->op.out_info[0]->role == HD_ROLE_GRADIENT;
    hd_run run = {.op = &op->op,
                  .backend = session->context->backend,
                  .stream = session->queue,
                  .mesh = session->mesh,
                  .accumulate = is_sum && (options->accumulate || !op->first_writer),
                  .folds = options->folds,
                  .level_bytes = plan->gradient_level_bytes,
                  .micro_batch = options->micro_batch,
                  .last = options->last,
                  .request = &posted->request,
                  .posted_on = &posted->comm};
    for (int k = 0; k < op->op.inputs; k++) {
        if (!op->op.in[k].id) continue;
        void *in;
        HD_RETURN_IF_ERROR(locate(session, index, op->op.in[k], streamed, options, &in));
        run.in[k] = in;
    }
    for (int k = 0; k < op->op.outputs; k++)
        HD_RETURN_IF_ERROR(locate(session, index, op->op.out[k], streamed, options, &run.out[k]));
    if (unit->workspace_bytes[op_index]) {
        size_t at = unit->base[HD_REGION_TRANSIENT] + unit->workspaces[op_index];
        hdi_session_touch(session, at, unit->workspace_bytes[op_index]);
        run.workspace = session->arena + at;
    }
    const uint32_t flags = op->op.kind->flags;
    if (flags & (HD_OP_LOADS | HD_OP_STORES)) run.slot = take_slot(session, flags);
    if (posted->direct) hdi_session_set_way(posted->direct, options->micro_batch, options->level);
    hd_status status = op->op.kind->run(&run);
    if (posted->direct) hdi_session_clear_way(posted->direct);
    if (flags & (HD_OP_LOADS | HD_OP_STORES)) posted->copy = 1 + run.slot;
    if (status == HD_OK && posted->comm)
        hdi_comm_set_label(posted->comm, &posted->request,
                           &(hdi_comm_label){.program = unit->program->name,
                                             .scope = unit->program->scopes[op->scope].name,
                                             .op = op_index});
    if (status == HD_OK) return HD_OK;
    char label[256];
    return hdi_error_context(status, "program '%s', op %d (%s)", unit->program->name, op_index,
                             hdi_op_label(unit->program, op, label, sizeof label));
}

hd_status hdi_session_hear(hd_session *session, int unit, int op, hd_comm **out)
{
    const hd_session_run_options options = {.last = true};
    hdi_posted *posted = &session->posted[unit][op];
    const size_t high_water = session->high_water;
    const hd_status status = hdi_session_run_op(session, unit, op, 0, &options);
    session->high_water = high_water;
    *out = posted->comm;
    posted->comm = NULL;
    return status;
}

void hdi_session_leave(hd_session *session, int index, int op_index,
                       const hd_session_run_options *options)
{
    const hdi_unit *unit = &session->plan->units[index];
    const hd_op *op = &unit->program->ops[op_index]->op;
    for (int i = 0; i < session->unfinished_count; i++)
        if (session->unfinished[i].unit == index && session->unfinished[i].op == op_index) return;
    for (int k = 0; k < op->inputs + op->outputs; k++) {
        const hd_tensor tensor = k < op->inputs ? op->in[k] : op->out[k - op->inputs];
        if (!tensor.id) continue;
        const size_t at =
            hdi_plan_address(session->plan, index, tensor, options->micro_batch, options->level);
        session->unfinished[session->unfinished_count++] = (hdi_unfinished){
            .unit = index, .op = op_index, .begin = at, .end = at + unit->places[tensor.id].bytes};
    }
}

/* Other programs share the transients, so what was posted on them ends with its program. */
static hd_status end_communication(hd_session *session, int index,
                                   const hd_session_run_options *options)
{
    const hdi_unit *unit = &session->plan->units[index];
    for (int i = 0; i < unit->program->op_count; i++) {
        if (!is_posted(session, index, i)) continue;
        const hd_op *op = &unit->program->ops[i]->op;
        bool transient = false;
        for (int k = 0; k < op->inputs; k++)
            transient = transient || unit->places[op->in[k].id].region == HD_REGION_TRANSIENT;
        for (int k = 0; k < op->outputs; k++)
            transient = transient || unit->places[op->out[k].id].region == HD_REGION_TRANSIENT;
        if (transient)
            HD_RETURN_IF_ERROR(hdi_session_wait_for(session, index, i));
        else if (session->posted[index][i].comm)
            hdi_session_leave(session, index, i, options);
    }
    return HD_OK;
}

static hd_status run_ops(hd_session *session, const hdi_segment *segment,
                         const hd_session_run_options *options)
{
    const hd_program *program = session->plan->units[segment->unit].program;
    for (int i = segment->begin; i < segment->end; i++)
        if (hdi_op_runs(program->ops[i], options))
            HD_RETURN_IF_ERROR(
                hdi_session_run_op(session, segment->unit, i, segment->streamed, options));
    return HD_OK;
}

/* Queue the op `begin`, which runs, and with it what is replayed together. */
static hd_status run_segment(hd_session *session, hdi_segment *segment, int until,
                             const hd_session_run_options *options)
{
    hdi_replayed *it = hdi_replay_find(session, segment, until, options);
    if (it && it->graph.loaded) return hdi_replay_run(session, it);
    if (it && hdi_replay_begin(session, it))
        hdi_replay_end(session, it, run_ops(session, segment, options));
    return run_ops(session, segment, options);
}

static hd_status walk(hd_session *session, int index, int next,
                      const hd_session_run_options *options)
{
    const hdi_unit *unit = &session->plan->units[index];
    const hd_program *program = unit->program;
    const hdi_phase phase = hdi_phase_of(options->phase);
    hdi_streaming_walk walk = {.run = &unit->streamed[phase], .use = -1};
    if (!options->no_next)
        walk.next = &session->plan->units[next].streamed[hdi_phase_of(options->next_phase)];
    HD_RETURN_IF_ERROR(hdi_spans_return(session->spans));
    hdi_replay_load(session);
    for (int i = 0, end; i < program->op_count; i = end) {
        const hdi_op *op = program->ops[i];
        end = i + 1;
        if (op->phase != phase) continue;
        /* Those of an op that is left out, too: later ones rely on them. */
        for (int w = unit->wait_begin[i]; w < unit->wait_begin[i + 1]; w++)
            HD_RETURN_IF_ERROR(hdi_session_wait_for(session, index, unit->waits[w]));
        if (!hdi_op_runs(op, options)) continue;
        HD_RETURN_IF_ERROR(hdi_streaming_before(session, &walk, i));
        if (options->idle) continue;
        hdi_segment segment = {.unit = index,
                               .begin = i,
                               .end = i + 1,
                               .streamed = hdi_streaming_slot(session, &walk),
                               .micro_batch = options->micro_batch,
                               .level = options->level,
                               .folds = options->folds,
                               .accumulate = options->accumulate,
                               .last = options->last};
        HD_RETURN_IF_ERROR(
            run_segment(session, &segment, hdi_streaming_until(session, &walk), options));
        end = segment.end;
        hdi_comm_progress(hd_mesh_device_comm(session->mesh, HD_AXIS_NONE));
    }
    HD_RETURN_IF_ERROR(hdi_streaming_end(session, &walk));
    return end_communication(session, index, options);
}

hd_status hd_session_run(hd_session *session, const hd_program *program,
                         const hd_session_run_options *options)
{
    int index = hdi_session_unit(session, program);
    if (index < 0)
        return hdi_error(HD_ERROR_ARGUMENT, "session: program '%s' is not in its plan",
                         program->name);
    int levels = session->plan->options.gradient_levels;
    if (options->micro_batch < 0 || options->level < 0 || options->level >= levels ||
        options->folds < 0 || options->folds > options->level)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "session: program '%s': micro-batch %d, gradient level %d, %d folds; want "
                         "folds <= level < %d",
                         program->name, options->micro_batch, options->level, options->folds,
                         levels);
    const int next = options->next ? hdi_session_unit(session, options->next) : index;
    if (next < 0)
        return hdi_error(HD_ERROR_ARGUMENT, "session: program '%s' is not in its plan",
                         options->next->name);
    if (session->plan->units[index].options.beside)
        return hdi_beside_begin(session, index, options);
    return walk(session, index, next, options);
}

hd_status hdi_session_order(hd_session *session)
{
    HD_RETURN_IF_ERROR(hdi_beside_end(session));
    for (int u = 0; u < session->plan->unit_count; u++)
        for (int i = 0; i < session->plan->units[u].program->op_count; i++)
            HD_RETURN_IF_ERROR(hdi_session_wait_for(session, u, i));
    session->unfinished_count = 0;
    return HD_OK;
}

hd_status hd_session_drain(hd_session *session)
{
    HD_RETURN_IF_ERROR(hdi_session_order(session));
    return hdi_session_synchronize(session);
}

hd_status hdi_session_warm_up(hd_session *session)
{
    const hd_session_run_options writes = {.last = true}, adds = {.last = true, .accumulate = true};
    const hd_context *context = session->context;
    for (int u = 0; u < session->plan->unit_count; u++) {
        const hd_program *program = session->plan->units[u].program;
        /* What another program left where this one has its inputs is no row of a table. */
        HD_RETURN_IF_ERROR(
            context->backend->zero(context->stream, session->arena, session->plan->arena_bytes));
        for (int i = 0; i < program->op_count; i++) {
            const uint32_t flags = program->ops[i]->op.kind->flags;
            if (hdi_op_is_posted(&program->ops[i]->op)) continue;
            HD_RETURN_IF_ERROR(hdi_session_run_op(session, u, i, 0, &writes));
            if (flags & HD_OP_WEIGHT_GRADIENT)
                HD_RETURN_IF_ERROR(hdi_session_run_op(session, u, i, 0, &adds));
        }
    }
    HD_RETURN_IF_ERROR(
        context->backend->zero(context->stream, session->arena, session->plan->arena_bytes));
    return context->backend->synchronize(context->stream);
}

/* Only what is communicated: it waits for no more than in a run, so it holds at least as much. */
static hd_status rehearse(hd_session *session, int index, hdi_phase phase)
{
    const hdi_unit *unit = &session->plan->units[index];
    const hd_session_run_options options = {.last = true, .accumulate = true};
    const bool beside = unit->options.beside; /* while it waits others go on and post */
    for (int i = 0; i < unit->program->op_count; i++) {
        const hdi_op *op = unit->program->ops[i];
        if (op->phase != phase) continue;
        for (int w = unit->wait_begin[i]; w < unit->wait_begin[i + 1] && !beside; w++)
            HD_RETURN_IF_ERROR(hdi_session_wait_for(session, index, unit->waits[w]));
        if (op->op.kind->flags & HD_OP_COMMUNICATES)
            HD_RETURN_IF_ERROR(hdi_session_run_op(session, index, i, 0, &options));
    }
    return end_communication(session, index, &options);
}

hd_status hdi_session_rehearse(hd_session *session)
{
    enum { ROUNDS = 2 }; /* what the last program leaves is under way in the first one */
    hd_comm *comm = hd_mesh_device_comm(session->mesh, HD_AXIS_NONE);
    if (!hdi_comm_rehearse(comm, true)) return HD_OK;
    hd_status status = HD_OK;
    for (int i = 0; i < ROUNDS * session->plan->unit_count && status == HD_OK; i++) {
        const int unit = i % session->plan->unit_count;
        status = rehearse(session, unit, HDI_PHASE_FORWARD);
        if (status == HD_OK) status = rehearse(session, unit, HDI_PHASE_BACKWARD);
    }
    if (status == HD_OK) status = hdi_gathers_rehearse(session);
    if (status == HD_OK) status = hd_session_drain(session);
    hdi_comm_rehearse(comm, false);
    return status;
}
