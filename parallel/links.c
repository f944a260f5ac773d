/* Where the receives of a pipeline's ranks come to, so that senders can write there. */
#include "parallel/links.h"

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "parallel/schedule_internal.h"

struct hdi_links {
    hdi_way way;
    hdi_landing *landings; /* owned: [stages][chunks][HDI_CHANNELS] of receives; no bytes: none */
};

static hdi_landing *find(const hdi_links *links, const hdi_schedule *schedule, int stage, int chunk,
                         hdi_schedule_channel channel)
{
    return &links->landings[(stage * schedule->options.chunks + chunk) * HDI_CHANNELS +
                            (int)channel];
}

/* Of a send, the landing at its peer. */
static const hdi_landing *landing_of(const hdi_links *links, const hdi_schedule *schedule,
                                     const hdi_schedule_row *row)
{
    const int chunk = hdi_schedule_consumer(schedule, row) / schedule->options.stages;
    return find(links, schedule, row->peer, chunk, row->channel);
}

hd_tensor hdi_pipeline_moved(const hdi_pipeline_chunk *chunk, hdi_schedule_op op)
{
    switch (op) {
    case HDI_RECV_FORWARD: return chunk->x;
    case HDI_SEND_FORWARD: return chunk->out;
    case HDI_RECV_BACKWARD: return chunk->out_gradient;
    case HDI_SEND_BACKWARD: return chunk->x_gradient;
    case HDI_FORWARD:
    case HDI_BACKWARD:
    case HDI_SCHEDULE_OPS: break;
    }
    return (hd_tensor){0};
}

static size_t bytes_of(const hdi_pipeline_chunk *chunk, hdi_schedule_op op)
{
    return hd_tensor_get(chunk->program, hdi_pipeline_moved(chunk, op))->bytes;
}

static void note_own(const hdi_links *links, const hdi_schedule *schedule,
                     const hdi_pipeline_chunk *chunks, const hd_session *session)
{
    for (int i = 0; i < schedule->row_count; i++) {
        const hdi_schedule_row *row = &schedule->rows[i];
        if (row->op != HDI_RECV_FORWARD && row->op != HDI_RECV_BACKWARD) continue;
        const hdi_pipeline_chunk *chunk = &chunks[row->chunk];
        const int unit = hdi_session_unit(session, chunk->program);
        const hd_tensor tensor = hdi_pipeline_moved(chunk, row->op);
        const hdi_place_of *place = &session->plan->units[unit].places[tensor.id];
        *find(links, schedule, schedule->options.stage, row->chunk, row->channel) = (hdi_landing){
            .at = (char *)hdi_session_address(session, unit, tensor, 0) - session->arena,
            .bytes = (int64_t)bytes_of(chunk, row->op),
            .slots = place->slots,
            .stride = (int64_t)place->stride};
    }
}

static hd_status tell(const hdi_links *links, const hdi_schedule *schedule, hd_comm *host)
{
    int64_t counts[HDI_DIRECT_RANKS], offsets[HDI_DIRECT_RANKS];
    for (int r = 0; r < host->size; r++) {
        counts[r] = (int64_t)schedule->options.chunks * HDI_CHANNELS * HDI_LANDING_NUMBERS;
        offsets[r] = r * counts[r];
    }
    hd_request request;
    HD_RETURN_IF_ERROR(
        hd_comm_all_gather(host, links->landings, counts, offsets, HD_DTYPE_I64, &request));
    return hd_comm_wait(host, &request);
}

/* Every message is worth it, and of the size that is awaited. */
static bool fits(const hdi_links *links, const hdi_schedule *schedule,
                 const hdi_pipeline_chunk *chunks)
{
    for (int i = 0; i < schedule->row_count; i++) {
        const hdi_schedule_row *row = &schedule->rows[i];
        if (hdi_schedule_is_compute(row->op)) continue;
        const size_t bytes = bytes_of(&chunks[row->chunk], row->op);
        if (bytes < HDI_DIRECT_LEAST) return false;
        if (hdi_schedule_is_send(row->op) &&
            landing_of(links, schedule, row)->bytes != (int64_t)bytes)
            return false;
    }
    return true;
}

static hd_status open_window(hdi_links *links, const hdi_schedule *schedule,
                             const hdi_pipeline_chunk *chunks, hd_comm *host, hd_session *session)
{
    note_own(links, schedule, chunks, session);
    HD_RETURN_IF_ERROR(tell(links, schedule, host));
    int64_t all_fit = fits(links, schedule, chunks);
    HD_RETURN_IF_ERROR(hdi_direct_least(host, &all_fit, 1));
    if (!all_fit) return HD_OK;
    return hdi_session_window(session, HD_AXIS_PIPELINE, &links->way.window);
}

hd_status hdi_links_create(const hdi_schedule *schedule, const hdi_pipeline_chunk *chunks,
                           const hd_mesh *mesh, hd_session *session, hdi_links **out)
{
    *out = NULL;
    const int stages = hd_mesh_size(mesh, HD_AXIS_PIPELINE);
    if (stages < 2 || stages > HDI_DIRECT_RANKS ||
        !hdi_session_has_windows(session, HD_AXIS_PIPELINE))
        return HD_OK;
    hd_comm *host = hd_mesh_comm(mesh, HD_AXIS_PIPELINE);
    hdi_links *links = hdi_alloc(sizeof *links);
    if (links)
        links->landings =
            hdi_alloc_array((size_t)stages * (size_t)schedule->options.chunks * HDI_CHANNELS,
                            sizeof *links->landings);
    hd_status status = links && links->landings
                           ? HD_OK
                           : hdi_error(HD_ERROR_MEMORY, "pipeline: out of host memory");
    status = hd_comm_agree(host, status);
    if (status == HD_OK) status = open_window(links, schedule, chunks, host, session);
    if (status == HD_OK && links->way.window) {
        *out = links;
        if (hd_mesh_rank(mesh) == 0)
            hdi_log(HD_LOG_INFO, "messages of '%s': by copy engines%s", host->name,
                    hd_mesh_device_comm(mesh, HD_AXIS_PIPELINE)->through_host
                        ? ", through host memory"
                        : "");
        return HD_OK;
    }
    hdi_links_destroy(links);
    return status;
}

void hdi_links_destroy(hdi_links *links)
{
    if (!links) return;
    hdi_free(links->landings);
    hdi_free(links);
}

hdi_way *hdi_links_way(hdi_links *links, const hdi_schedule *schedule, const hdi_schedule_row *row)
{
    if (hdi_schedule_is_send(row->op))
        links->way.to[row->peer] =
            hdi_landing_at(landing_of(links, schedule, row), row->micro_batch, 0);
    return &links->way;
}
