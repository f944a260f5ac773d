/* Gathering of blocks, a collective for each bucket. Allocates nothing once it is open. */
#include "runtime/gather.h"

#include "comm/comm.h"
#include "core/error.h"
#include "core/memory.h"
#include "runtime/session.h"
#include "runtime/spans.h"

static int buckets_of(const hdi_layout *layout, int block)
{
    int count = 0;
    for (int b = 0; b < layout->bucket_count; b++)
        count += layout->buckets[b].block == block;
    return count;
}

hd_status hdi_gathers_open(hd_session *session)
{
    const hd_plan *plan = session->plan;
    hdi_gathers *it = &session->streaming.gathers;
    it->prepared = -1;
    for (int b = 0; b < plan->residency.block_count; b++)
        if (buckets_of(plan->layout, b) > it->most) it->most = buckets_of(plan->layout, b);
    it->requests =
        hdi_alloc_array((size_t)(plan->residency.slots * it->most), sizeof *it->requests);
    return it->requests ? HD_OK : hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
}

void hdi_gathers_close(hd_session *session)
{
    hdi_free(session->streaming.gathers.requests);
}

static hd_comm *comm_of(const hd_session *session)
{
    return hd_mesh_device_comm(session->mesh, session->plan->layout->axis);
}

/* Behind the slots. */
static char *prepared_shard(const hd_session *session)
{
    const hdi_residency *it = &session->plan->residency;
    return session->arena + session->plan->units[0].base[HD_REGION_STREAMED] +
           (size_t)it->slots * it->slot_bytes;
}

/* Where on the host this rank's shard of a bucket is, flat position `first`: alone, or in the whole. */
static const char *host_shard(const hd_session *session, const hdi_bucket *bucket, int64_t first)
{
    const hdi_residency *it = &session->plan->residency;
    if (bucket->sharded) return hdi_session_weights_at(session, first);
    return session->streaming.host + it->blocks[bucket->block].host_offset +
           it->homes[bucket->first_entry].in_block +
           (size_t)(first - bucket->first) * hd_dtype_bytes(hdi_session_weights_dtype(session));
}

static bool is_on_host(const hd_session *session, int block)
{
    const hdi_layout *layout = session->plan->layout;
    return hdi_block_is_host(block, layout->host_blocks, layout->block_count);
}

/* One transfer beside the slots' at a time, each of all of a block's buckets. */
enum { SHARD_FETCH = 0 };

hd_status hdi_gather_prepare(hd_session *session, int block)
{
    const hd_context *context = session->context;
    const hdi_residency *it = &session->plan->residency;
    const hdi_layout *layout = session->plan->layout;
    const size_t width = hd_dtype_bytes(hdi_session_weights_dtype(session));
    int *prepared = &session->streaming.gathers.prepared;
    if (!is_on_host(session, block) || *prepared == block) return HD_OK;
    *prepared = -1;
    HD_RETURN_IF_ERROR(hdi_streaming_await_kept(session, block));
    char *to = prepared_shard(session);
    for (int b = 0; b < layout->bucket_count; b++) {
        const hdi_bucket *bucket = &layout->buckets[b];
        int64_t first, own = hdi_layout_shard(layout, b, layout->shard, &first);
        if (bucket->block != block || !own) continue;
        HD_RETURN_IF_ERROR(context->backend->fetch(context->stream, SHARD_FETCH, to,
                                                   host_shard(session, bucket, first),
                                                   (size_t)own * width));
        to += hdi_residency_shard_bytes(bucket, layout->shard, width);
    }
    hdi_session_touch(session, (size_t)(prepared_shard(session) - session->arena), it->shard_bytes);
    *prepared = block;
    return HD_OK;
}

static hd_status await_shard(const hd_session *session)
{
    const hd_context *context = session->context;
    hdi_moment begin;
    HD_RETURN_IF_ERROR(hdi_spans_now(session->spans, &begin));
    HD_RETURN_IF_ERROR(context->backend->await(context->stream, SHARD_FETCH));
    return hdi_spans_waited(session->spans, HDI_TRACE_WAIT_COPIES, &begin);
}

hd_status hdi_gather_forget(hd_session *session)
{
    const hd_context *context = session->context;
    if (session->streaming.gathers.prepared < 0) return HD_OK;
    session->streaming.gathers.prepared = -1;
    HD_RETURN_IF_ERROR(await_shard(session));
    return context->backend->synchronize(context->stream);
}

/* All ranks exchange their shards of a bucket. */
static hd_status post(hd_session *session, const hdi_bucket *bucket, char *to, hd_request *request)
{
    HD_RETURN_IF_ERROR(hd_comm_all_gather(comm_of(session), to, bucket->counts, bucket->offsets,
                                          hdi_session_weights_dtype(session), request));
    hdi_comm_set_label(
        comm_of(session), request,
        &(hdi_comm_label){.program = "weights",
                          .scope = session->plan->residency.blocks[bucket->block].name});
    return HD_OK;
}

/* This rank's shard takes its place; then all ranks exchange theirs. */
static hd_status gather_bucket(hd_session *session, int index, const char *shard, char *to,
                               hd_request *request)
{
    const hd_context *context = session->context;
    const hdi_layout *layout = session->plan->layout;
    const hdi_bucket *bucket = &layout->buckets[index];
    const size_t width = hd_dtype_bytes(hdi_session_weights_dtype(session));
    int64_t first, own = hdi_layout_shard(layout, index, layout->shard, &first);
    if (own)
        HD_RETURN_IF_ERROR(context->backend->copy(
            context->stream, to + (size_t)(first - bucket->first) * width,
            shard ? shard : hdi_session_weights_at(session, first), (size_t)own * width));
    return post(session, bucket, to, request);
}

hd_status hdi_gather_begin(hd_session *session, int slot, int block, size_t at)
{
    const hd_plan *plan = session->plan;
    const hdi_gathers *it = &session->streaming.gathers;
    const size_t width = hd_dtype_bytes(hdi_session_weights_dtype(session));
    hd_request *request = it->requests + (ptrdiff_t)slot * it->most;
    const char *shard = is_on_host(session, block) ? prepared_shard(session) : NULL;
    HD_RETURN_IF_ERROR(hdi_gather_await(session, slot));
    HD_RETURN_IF_ERROR(hdi_streaming_await_kept(session, block));
    HD_RETURN_IF_ERROR(hdi_gather_prepare(session, block));
    if (shard) HD_RETURN_IF_ERROR(await_shard(session));
    for (int b = 0; b < plan->layout->bucket_count; b++) {
        const hdi_bucket *bucket = &plan->layout->buckets[b];
        if (bucket->block != block) continue;
        char *to = session->arena + at + plan->residency.homes[bucket->first_entry].in_block;
        HD_RETURN_IF_ERROR(gather_bucket(session, b, shard, to, request++));
        if (shard) shard += hdi_residency_shard_bytes(bucket, plan->layout->shard, width);
    }
    return HD_OK;
}

hd_status hdi_gather_await(hd_session *session, int slot)
{
    const hdi_gathers *it = &session->streaming.gathers;
    hd_request *requests = it->requests + (ptrdiff_t)slot * it->most;
    int first = 0;
    while (first < it->most && !requests[first].id)
        first++;
    if (first == it->most) return HD_OK;
    hdi_moment begin;
    HD_RETURN_IF_ERROR(hdi_spans_now(session->spans, &begin));
    for (int i = first; i < it->most; i++)
        HD_RETURN_IF_ERROR(hdi_comm_order(comm_of(session), &requests[i]));
    return hdi_spans_waited(session->spans, HDI_TRACE_WAIT_COMM, &begin);
}

hd_status hdi_gathers_rehearse(hd_session *session)
{
    const hdi_residency *residency = &session->plan->residency;
    const hdi_layout *layout = session->plan->layout;
    const hdi_gathers *it = &session->streaming.gathers;
    if (!residency->gathers) return HD_OK;
    for (int block = 0; block < residency->block_count; block++) {
        const int slot = block % residency->slots;
        hd_request *request = it->requests + (ptrdiff_t)slot * it->most;
        HD_RETURN_IF_ERROR(hdi_gather_await(session, slot));
        for (int b = 0; b < layout->bucket_count; b++)
            if (layout->buckets[b].block == block)
                HD_RETURN_IF_ERROR(post(session, &layout->buckets[b], session->arena, request++));
    }
    for (int slot = 0; slot < residency->slots; slot++)
        HD_RETURN_IF_ERROR(hdi_gather_await(session, slot));
    return HD_OK;
}
