/* Ranks that gather weights from each other keep them alike, and run programs equally often. */
#include "core/error.h"
#include "jobs/stages.h"
#include "program/plan.h"

/* In the order of the device memory that they leave. */
static const hd_residency kinds[] = {HD_RESIDENCY_RESIDENT, HD_RESIDENCY_SHARDED,
                                     HD_RESIDENCY_HOST_SHARDED, HD_RESIDENCY_HOST};
enum { KIND_BITS = 32, SLOTS_BITS = 40 };

static hd_residency kind_of(const hdi_residency *it)
{
    if (!it->host_blocks) return HD_RESIDENCY_RESIDENT;
    if (!it->gathers) return HD_RESIDENCY_HOST;
    return it->host_bytes ? HD_RESIDENCY_HOST_SHARDED : HD_RESIDENCY_SHARDED;
}

/* Larger where less is kept on the device: first fewer slots, then the kind, then the number of blocks. One
 * block has one slot, however many there are. */
static int64_t encode(const hdi_residency *it)
{
    int64_t kind = 0;
    while (kinds[kind] != kind_of(it))
        kind++;
    const bool is_single = it->host_blocks > 1 && it->slots == 1;
    return (int64_t)is_single << SLOTS_BITS | kind << KIND_BITS | it->host_blocks;
}

static hdi_keeping decode(int64_t code)
{
    const int64_t low = ((int64_t)1 << KIND_BITS) - 1;
    return (hdi_keeping){.residency = kinds[code >> KIND_BITS & 0xff],
                         .host_blocks = (int)(code & low),
                         .stream_slots = code >> SLOTS_BITS ? 1 : 0};
}

static hd_status largest(const hd_mesh *mesh, int64_t *inout, int count)
{
    hd_comm *comm = hd_mesh_comm(mesh, HD_AXIS_SHARD);
    hd_request request;
    if (hd_comm_size(comm) < 2) return HD_OK;
    HD_RETURN_IF_ERROR(
        hd_comm_all_reduce(comm, inout, count, HD_DTYPE_I64, HD_REDUCE_MAX, &request));
    return hd_comm_wait(comm, &request);
}

hd_status hdi_stage_agree(const hd_mesh *mesh, const hd_plan *plan, hdi_keeping *inout,
                          bool *changes)
{
    const int64_t own = plan ? encode(&plan->residency) : 0;
    int64_t all[] = {own, plan && plan->residency.gathers};
    *changes = false;
    HD_RETURN_IF_ERROR(largest(mesh, all, 2));
    *changes = all[1] && all[0] != own;
    if (*changes) *inout = decode(all[0]);
    return HD_OK;
}

hd_status hdi_stage_most_runs(const hd_mesh *mesh, const hd_plan *plan, int64_t own, int64_t *out)
{
    *out = own;
    return plan && plan->residency.gathers ? largest(mesh, out, 1) : HD_OK;
}

hd_status hdi_stage_idle(hd_session *session, const hd_program *program, int64_t *run, int64_t most)
{
    for (; *run < most; (*run)++) {
        HD_RETURN_IF_ERROR(
            hd_session_run(session, program,
                           &(hd_session_run_options){.idle = true, .no_next = *run + 1 == most}));
        HD_RETURN_IF_ERROR(hd_session_drain(session));
    }
    return HD_OK;
}
