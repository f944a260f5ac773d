/* Exchanges of a session that go straight into peers' arenas: which those are, and where they come to. */
#include "comm/direct.h"

#include <stddef.h>

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "runtime/gpu.h"
#include "runtime/session.h"

struct hdi_direct {
    hd_comm *comm; /* borrowed */
    hdi_way way;
    hdi_landing landings[HDI_DIRECT_RANKS]; /* peers' */
};

/* What a session would post on one communicator, in the order of its programs. */
typedef struct survey {
    hd_comm *comm;
    int ranks;
    int64_t count, room;
    hdi_posted **posted;       /* [count] where each is noted */
    hdi_landing *own, *theirs; /* [ranks][count] once it is all there */
    hdi_landing *heard;        /* [count][ranks] */
    size_t *go;                /* [count][ranks] */
    int64_t *fits;             /* [count] */
} survey;

void hdi_session_set_way(hdi_direct *direct, int micro_batch, int level)
{
    for (int r = 0; r < direct->comm->size; r++)
        direct->way.to[r] = hdi_landing_at(&direct->landings[r], micro_batch, level);
    direct->comm->way = &direct->way;
}

void hdi_session_clear_way(hdi_direct *direct)
{
    direct->comm->way = NULL;
}

static void listen_to(const hd_mesh *mesh, hdi_heard *heard)
{
    for (int axis = HD_AXIS_NONE; axis < HD_AXES; axis++)
        hd_mesh_device_comm(mesh, (hd_axis)axis)->hears = heard;
}

static void note(const hd_session *session, int index, int op_index, const hdi_heard *heard,
                 survey *it)
{
    const hd_plan *plan = session->plan;
    const hdi_unit *unit = &plan->units[index];
    const hd_tensor out = unit->program->ops[op_index]->op.out[0];
    const hdi_place_of *place = &unit->places[out.id];
    const size_t level =
        hdi_plan_address(plan, index, out, 0, 1) - hdi_plan_address(plan, index, out, 0, 0);
    it->posted[it->count] = &session->posted[index][op_index];
    it->fits[it->count] =
        place->region != HD_REGION_STREAMED &&
        hdi_heard_fits(heard, it->comm->rank, it->ranks, session->arena, plan->arena_bytes);
    for (int r = 0; r < it->ranks && heard->is_exchange; r++) {
        it->go[it->count * it->ranks + r] = heard->go[r];
        it->heard[it->count * it->ranks + r] =
            (hdi_landing){.at = heard->come_to[r] - session->arena,
                          .bytes = (int64_t)heard->come[r],
                          .slots = place->slots,
                          .stride = (int64_t)place->stride,
                          .level_stride = (int64_t)level};
    }
    it->count++;
}

static hd_status hear_all(hd_session *session, const hd_mesh *mesh, survey *it)
{
    hdi_heard heard;
    hd_status status = HD_OK;
    listen_to(mesh, &heard);
    for (int u = 0; u < session->plan->unit_count; u++) {
        const hd_program *program = session->plan->units[u].program;
        for (int i = 0; i < program->op_count && status == HD_OK; i++) {
            if (!(program->ops[i]->op.kind->flags & HD_OP_COMMUNICATES)) continue;
            hd_comm *comm = NULL;
            heard = (hdi_heard){0};
            status = hdi_session_hear(session, u, i, &comm);
            if (status == HD_OK && comm == it->comm) note(session, u, i, &heard, it);
        }
    }
    listen_to(mesh, NULL);
    return status;
}

static hd_status make_survey(hd_session *session, const hd_mesh *mesh, hd_axis axis, survey *it)
{
    *it = (survey){.comm = hd_mesh_device_comm(mesh, axis), .room = 1};
    it->ranks = it->comm->size;
    for (int u = 0; session && u < session->plan->unit_count; u++)
        for (int i = 0; i < session->plan->units[u].program->op_count; i++)
            it->room +=
                (session->plan->units[u].program->ops[i]->op.kind->flags & HD_OP_COMMUNICATES) != 0;
    const size_t room = (size_t)it->room, all = room * (size_t)it->ranks;
    it->posted = hdi_alloc_array(room, sizeof *it->posted);
    it->fits = hdi_alloc_array(room, sizeof *it->fits);
    it->own = hdi_alloc_array(all, sizeof *it->own);
    it->theirs = hdi_alloc_array(all, sizeof *it->theirs);
    it->heard = hdi_alloc_array(all, sizeof *it->heard);
    it->go = hdi_alloc_array(all, sizeof *it->go);
    if (!it->posted || !it->fits || !it->own || !it->theirs || !it->heard || !it->go)
        return hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
    if (session) HD_RETURN_IF_ERROR(hear_all(session, mesh, it));
    for (int64_t i = 0; i < it->count; i++)
        for (int r = 0; r < it->ranks; r++)
            it->own[r * it->count + i] = it->heard[i * it->ranks + r];
    return HD_OK;
}

static void end_survey(survey *it)
{
    hdi_free(it->posted);
    hdi_free(it->fits);
    hdi_free(it->own);
    hdi_free(it->theirs);
    hdi_free(it->heard);
    hdi_free(it->go);
}

/* What all ranks could do directly: *directs has it, in the order of the survey. */
static hd_status find(hd_session *session, const hd_mesh *mesh, hd_axis axis, survey *it,
                      hdi_direct **directs, int *out)
{
    hd_comm *host = hd_mesh_comm(mesh, axis);
    hd_status status = make_survey(session, mesh, axis, it);
    HD_RETURN_IF_ERROR(hd_comm_agree(host, status));
    HD_RETURN_IF_ERROR(hdi_direct_agree(host, it->count, it->own, it->theirs, it->go, it->fits));
    for (int64_t i = 0; i < it->count; i++)
        *out += it->fits[i] != 0;
    if (*out == 0) return HD_OK;
    *directs = hdi_alloc_array((size_t)*out, sizeof **directs);
    status = *directs ? HD_OK : hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
    HD_RETURN_IF_ERROR(hd_comm_agree(host, status));
    int next = 0;
    for (int64_t i = 0; i < it->count; i++) {
        if (!it->fits[i]) continue;
        hdi_direct *direct = &(*directs)[next++];
        direct->comm = it->comm;
        for (int r = 0; r < it->ranks; r++)
            direct->landings[r] = it->theirs[r * it->count + i];
    }
    return HD_OK;
}

/* From here on they are posted so. */
static void begin(const survey *it, hdi_direct *directs, void *window)
{
    int next = 0;
    for (int64_t i = 0; i < it->count; i++) {
        if (!it->fits[i]) continue;
        directs[next].way.window = window;
        it->posted[i]->direct = &directs[next++];
    }
}

bool hdi_session_has_windows(const hd_session *session, hd_axis axis)
{
    const hd_comm *comm = hd_mesh_device_comm(session->mesh, axis);
    return comm->size > 1 && comm->transport->open_window &&
           session->context->copy_engines != HDI_COPY_ENGINES_OFF;
}

hd_status hdi_session_window(hd_session *session, hd_axis axis, void **out)
{
    hdi_windows *windows = &session->windows;
    hd_comm *comm = hd_mesh_device_comm(session->mesh, axis);
    *out = NULL;
    for (int other = HD_AXIS_NONE; other < HD_AXES; other++)
        if (windows->comms[other] == comm) *out = windows->handles[other];
    if (*out) return HD_OK;
    const bool fits =
        hdi_gpu_can_share(session->context->ordinal, session->arena, session->plan->arena_bytes);
    HD_RETURN_IF_ERROR(comm->transport->open_window(comm, session->arena, fits, out));
    if (!*out) return HD_OK;
    windows->comms[axis] = comm;
    windows->handles[axis] = *out;
    return HD_OK;
}

hd_status hdi_session_share_axis(hd_session *session, const hd_mesh *mesh, hd_axis axis, int *out)
{
    survey it;
    hdi_direct *directs = NULL;
    void *window = NULL;
    *out = 0;
    hd_status status = find(session, mesh, axis, &it, &directs, out);
    if (status == HD_OK && *out) status = hdi_session_window(session, axis, &window);
    if (window) {
        begin(&it, directs, window);
        session->windows.directs[axis] = directs;
    } else {
        hdi_free(directs);
        *out = 0;
    }
    if (status == HD_OK && hd_mesh_rank(mesh) == 0 && it.count)
        hdi_log(HD_LOG_INFO, "exchanges of '%s': %d of %d by copy engines%s", it.comm->name, *out,
                (int)it.count, it.comm->through_host ? ", through host memory" : "");
    end_survey(&it);
    return status;
}

hd_status hdi_session_share(hd_session *session, const hd_context *context, const hd_mesh *mesh,
                            hd_status created)
{
    if (context->backend == &hdi_backend_cpu || context->copy_engines == HDI_COPY_ENGINES_OFF ||
        hd_mesh_ranks(mesh) < 2)
        return created;
    HD_RETURN_IF_ERROR(hd_comm_agree(hd_mesh_comm(mesh, HD_AXIS_NONE), created));
    for (int axis = HD_AXIS_TENSOR; axis < HD_AXES; axis++) {
        const hd_comm *comm = hd_mesh_device_comm(mesh, (hd_axis)axis);
        bool is_first = comm->size > 1 && comm->transport->open_window;
        for (int other = HD_AXIS_TENSOR; other < axis; other++)
            is_first = is_first && hd_mesh_device_comm(mesh, (hd_axis)other) != comm;
        int direct;
        if (is_first)
            HD_RETURN_IF_ERROR(hdi_session_share_axis(session, mesh, (hd_axis)axis, &direct));
    }
    return HD_OK;
}

void hdi_session_end_sharing(hd_session *session)
{
    hdi_windows *windows = &session->windows;
    for (int axis = HD_AXIS_NONE; axis < HD_AXES; axis++) {
        hd_comm *comm = windows->comms[axis];
        if (comm) comm->transport->close_window(comm, windows->handles[axis]);
        hdi_free(windows->directs[axis]);
    }
    *windows = (hdi_windows){0};
}
