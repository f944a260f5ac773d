/* Stages of jobs that only run forward: where they are cut, and how they end. */
#include "jobs/stages.h"

#include "comm/comm.h"
#include "core/error.h"
#include "core/memory.h"
#include "runtime/session.h"

#include <string.h>

hd_status hdi_stage_cut(const hdi_balance_options *balance, const int *given, int stage, int *first,
                        int *count)
{
    const int stages = balance->stages;
    *first = *count = 0;
    int *counts = hdi_alloc_array((size_t)stages, sizeof *counts);
    hd_status status = counts ? HD_OK : hdi_error(HD_ERROR_MEMORY, "stages: out of host memory");
    if (status == HD_OK && given) {
        status = hdi_balance_check(given, stages, balance);
        memcpy(counts, given, (size_t)stages * sizeof *counts);
    } else if (status == HD_OK) {
        status = hdi_balance(balance, counts);
    }
    for (int s = 0; s <= stage && status == HD_OK; s++) {
        *first += *count;
        *count = counts[s];
    }
    hdi_free(counts);
    return status;
}

void hdi_stage_end(hd_program *program, hd_tensor out)
{
    hdi_tensor *tensor = hdi_tensor_of(program, out);
    if (!tensor) return;
    if (tensor->info.role != HD_ROLE_ACTIVATION) {
        hd_program_fail(program, HD_ERROR_ARGUMENT,
                        "a stage must end in a tensor made by an op, not in its input");
        return;
    }
    tensor->info.role = HD_ROLE_BOUNDARY;
    tensor->keep = true;
}

static hd_status rehearse(hd_comm *comm, hd_session *session, const hdi_stage_traffic *it)
{
    const int unit = hdi_session_unit(session, it->program), rank = hd_comm_rank(comm);
    const hd_tensor_info *x = hd_tensor_get(it->program, it->x),
                         *out = hd_tensor_get(it->program, it->out);
    hd_request request; /* they are over with the rehearsal */
    for (int i = 0; i < it->count && x; i++)
        HD_RETURN_IF_ERROR(hd_comm_recv(comm, hdi_session_address(session, unit, it->x, i),
                                        x->bytes, rank - 1, HDI_CHANNEL_X, &request));
    for (int i = 0; i < it->count && out; i++)
        HD_RETURN_IF_ERROR(hd_comm_send(comm, hdi_session_address(session, unit, it->out, i),
                                        out->bytes, rank + 1, HDI_CHANNEL_X, &request));
    return HD_OK;
}

hd_status hdi_stage_rehearse(hd_session *session, const hdi_stage_traffic *traffic, int count)
{
    hd_comm *comm = hd_mesh_device_comm(session->mesh, HD_AXIS_PIPELINE);
    if (!hdi_comm_rehearse(comm, true)) return HD_OK;
    hd_status status = HD_OK;
    for (int i = 0; i < count && status == HD_OK; i++)
        if (traffic[i].program) status = rehearse(comm, session, &traffic[i]);
    hdi_comm_rehearse(comm, false);
    return status;
}
