/* The walk of host blocks through the slots of the device. Allocates nothing once it is open. */
#include "runtime/streaming.h"

#include "core/error.h"
#include "runtime/session.h"
#include "runtime/spans.h"

#include <limits.h>

_Static_assert((int)HD_STREAM_SLOTS == (int)HDI_STREAM_FETCHES, "a fetch for each slot");

/* The one place that takes memory for weights on the host, but for those that programs update, which are in
 * the session's arena there. */
static hd_status reserve_host(hd_session *session)
{
    const hd_context *context = session->context;
    void *memory = session->streaming.copy.shared.memory;
    if (session->plan->residency.updates)
        memory = hdi_session_at(session, session->plan->units[0].base[HD_REGION_HOST_WEIGHTS]);
    if (!memory)
        HD_RETURN_IF_ERROR(context->backend->reserve_host(
            context->device, session->plan->residency.host_bytes, &memory));
    session->streaming.host = memory;
    return HD_OK;
}

static void release_host(hd_session *session)
{
    const hd_context *context = session->context;
    if (session->streaming.host && !session->streaming.copy.shared.memory &&
        !session->plan->residency.updates)
        context->backend->release_host(context->device, session->streaming.host,
                                       session->plan->residency.host_bytes);
    session->streaming.host = NULL;
    hdi_node_copy_close(context, &session->streaming.copy);
}

static void forget_all(hdi_streaming *streaming)
{
    for (int s = 0; s < HD_STREAM_SLOTS; s++)
        streaming->held[s] = -1;
}

hd_status hdi_streaming_open(hd_session *session)
{
    forget_all(&session->streaming);
    if (session->plan->residency.host_bytes) HD_RETURN_IF_ERROR(reserve_host(session));
    return session->plan->residency.gathers ? hdi_gathers_open(session) : HD_OK;
}

void hdi_streaming_close(hd_session *session)
{
    /* A run fetches for the next one, which may never come, and one that fails has posted what nobody holds. */
    for (int s = 0; s < session->plan->residency.slots && session->streaming.gathers.requests; s++)
        (void)hdi_gather_await(session, s);
    if (session->streaming.host || session->streaming.gathers.requests)
        (void)hdi_streaming_stale(session);
    hdi_gathers_close(session);
    release_host(session);
}

static size_t slot_address(const hd_session *session, int slot)
{
    return session->plan->units[0].base[HD_REGION_STREAMED] +
           (size_t)slot * session->plan->residency.slot_bytes;
}

static int slot_of(const hd_session *session, int use)
{
    return (session->streaming.turn + use) % session->plan->residency.slots;
}

static hd_status await(hd_session *session, int slot)
{
    if (session->plan->residency.gathers) return hdi_gather_await(session, slot);
    hdi_moment begin;
    HD_RETURN_IF_ERROR(hdi_spans_now(session->spans, &begin));
    HD_RETURN_IF_ERROR(session->context->backend->await(session->context->stream, slot));
    return hdi_spans_waited(session->spans, HDI_TRACE_WAIT_COPIES, &begin);
}

/* The block of a use and its slot; -1: none, or it is there already. Behind the run's own uses come the first
 * ones of the next run. */
static int wanted(const hd_session *session, const hdi_streaming_walk *walk, int use, int *slot)
{
    const hdi_stream_run *run = walk->run, *next = walk->next;
    const int ahead = use - run->use_count, common = ahead < 0 ? 0 : hdi_stream_common(run, next);
    *slot = slot_of(session, use - common);
    if (ahead >= 0 && (!next || next->use_count == 0)) return -1;
    const int number = ahead < 0 ? run->uses[use].block : next->uses[ahead % next->use_count].block;
    return session->streaming.held[*slot] == number ? -1 : number;
}

/* What is gathered after use number `use`: this rank's shard of it comes from the host meanwhile. */
static hd_status prepare(hd_session *session, const hdi_streaming_walk *walk, int use)
{
    int slot;
    const int block = wanted(session, walk, use + 1, &slot);
    return block < 0 ? HD_OK : hdi_gather_prepare(session, block);
}

hd_status hdi_streaming_await_kept(hd_session *session, int block)
{
    const hd_plan *plan = session->plan;
    const int unit = session->beside.unit;
    const hd_program *update = plan->units[unit].program;
    for (int i = 0; session->beside.flags && i < update->op_count; i++)
        if (session->posted[unit][i].flag && hdi_releases_block(plan, &update->ops[i]->op, block))
            HD_RETURN_IF_ERROR(hdi_session_wait_for(session, unit, i));
    return HD_OK;
}

static hd_status fetch(hd_session *session, const hdi_streaming_walk *walk, int use)
{
    const hd_plan *plan = session->plan;
    int slot;
    const int number = wanted(session, walk, use, &slot);
    if (number < 0) return HD_OK;
    const hdi_block *block = &plan->residency.blocks[number];
    const size_t at = slot_address(session, slot);
    session->streaming.held[slot] = -1; /* until the copy is on its way */
    HD_RETURN_IF_ERROR(hdi_streaming_await_kept(session, number));
    if (plan->residency.gathers)
        HD_RETURN_IF_ERROR(hdi_gather_begin(session, slot, number, at));
    else
        HD_RETURN_IF_ERROR(session->context->backend->fetch(
            session->context->stream, slot, session->arena + at,
            session->streaming.host + block->host_offset, block->bytes));
    session->streaming.held[slot] = number;
    hdi_session_touch(session, at, block->bytes);
    return plan->residency.gathers ? prepare(session, walk, use) : HD_OK;
}

hd_status hdi_streaming_before(hd_session *session, hdi_streaming_walk *walk, int op)
{
    const hdi_stream_run *run = walk->run;
    if (!run->use_count) return HD_OK;
    const int fetches = run->use_count + session->plan->residency.slots;
    for (; walk->fetch < fetches && run->fetches[walk->fetch] <= op; walk->fetch++)
        HD_RETURN_IF_ERROR(fetch(session, walk, walk->fetch));
    if (walk->use + 1 == run->use_count || run->uses[walk->use + 1].first != op) return HD_OK;
    walk->use++;
    return await(session, hdi_streaming_slot(session, walk));
}

int hdi_streaming_until(const hd_session *session, const hdi_streaming_walk *walk)
{
    const hdi_stream_run *run = walk->run;
    if (!run->use_count) return INT_MAX;
    const int fetches = run->use_count + session->plan->residency.slots;
    int until = walk->fetch < fetches ? run->fetches[walk->fetch] : INT_MAX;
    if (walk->use + 1 < run->use_count && run->uses[walk->use + 1].first < until)
        until = run->uses[walk->use + 1].first;
    return until;
}

hd_status hdi_streaming_end(hd_session *session, hdi_streaming_walk *walk)
{
    HD_RETURN_IF_ERROR(hdi_streaming_before(session, walk, INT_MAX));
    const int uses = walk->run->use_count - hdi_stream_common(walk->run, walk->next);
    if (walk->run->use_count) session->streaming.turn = slot_of(session, uses);
    return HD_OK;
}

int hdi_streaming_slot(const hd_session *session, const hdi_streaming_walk *walk)
{
    return walk->use < 0 ? 0 : slot_of(session, walk->use);
}

char *hdi_streaming_weights(const hd_session *session, int entry)
{
    const hdi_residency *residency = &session->plan->residency;
    const hdi_home *home = hdi_residency_host(residency, entry);
    if (!home || hdi_residency_is_sharded(residency)) return NULL;
    return session->streaming.host + residency->blocks[home->block].host_offset + home->in_block;
}

bool hdi_streaming_is_mine(const hd_session *session, int entry)
{
    const hdi_residency *residency = &session->plan->residency;
    const hdi_home *home = hdi_residency_host(residency, entry);
    return !home || hdi_residency_is_sharded(residency) ||
           hdi_node_copy_is_mine(&session->streaming.copy,
                                 residency->blocks[home->block].host_offset + home->in_block);
}

static hd_status forget(hd_session *session, int slot)
{
    const hd_context *context = session->context;
    session->streaming.held[slot] = -1;
    HD_RETURN_IF_ERROR(await(session, slot));
    return context->backend->synchronize(context->stream);
}

hd_status hdi_streaming_forget(hd_session *session, int entry)
{
    const hdi_home *home = hdi_residency_host(&session->plan->residency, entry);
    for (int s = 0; s < session->plan->residency.slots && home; s++)
        if (session->streaming.held[s] == home->block) HD_RETURN_IF_ERROR(forget(session, s));
    return home && session->streaming.gathers.prepared == home->block ? hdi_gather_forget(session)
                                                                      : HD_OK;
}

hd_status hdi_streaming_stale(hd_session *session)
{
    for (int s = 0; s < session->plan->residency.slots; s++)
        if (session->streaming.held[s] >= 0) HD_RETURN_IF_ERROR(forget(session, s));
    return session->plan->residency.gathers ? hdi_gather_forget(session) : HD_OK;
}

char *hdi_streaming_scratch(hd_session *session)
{
    forget_all(&session->streaming);
    return session->arena + slot_address(session, 0);
}
