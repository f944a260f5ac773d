/* What jobs share: stages' ends; and those that only run forward (generation, sampling) stages cut by cost
 * and their weights, kept alike by ranks that gather them from each other. */
#ifndef HDI_JOBS_STAGES_H
#define HDI_JOBS_STAGES_H

#include "parallel/balance.h"
#include "program/layout.h"

#include <heddle/comm.h>
#include <heddle/session.h>

/* Point-to-point channels of the pipeline axis: what stages pass on, and what the last one hands
 * back to the first. */
enum { HDI_CHANNEL_X = 0, HDI_CHANNEL_BACK = 1 };

/* The layers of one stage: of `given` [stages] if the caller chose them, else balanced. */
hd_status hdi_stage_cut(const hdi_balance_options *balance, const int *given, int stage, int *first,
                        int *count);

/* The stage's last activation becomes the tensor that travels. Sticky error of the program. */
void hdi_stage_end(hd_program *program, hd_tensor out);

/* How a plan keeps weights, for hd_plan_options. */
typedef struct hdi_keeping {
    hd_residency residency;
    int host_blocks, stream_slots;
} hdi_keeping;

/* Ranks plan by themselves, and AUTO may choose otherwise on each; those that gather from each other must keep
 * weights alike. If any of them gathers and `plan` (NULL: none) is not as the one that keeps least on the
 * device, that becomes *inout and *changes is true: plan again. Collective over HD_AXIS_SHARD. */
hd_status hdi_stage_agree(const hd_mesh *mesh, const hd_plan *plan, hdi_keeping *inout,
                          bool *changes);

/* Runs of programs after which the last of the lines of ranks that gather from each other is through:
 * the largest of their `own`; `own` itself if `plan` (NULL: none) does not gather. Collective over
 * HD_AXIS_SHARD. */
hd_status hdi_stage_most_runs(const hd_mesh *mesh, const hd_plan *plan, int64_t own, int64_t *out);

/* Take part in what the others gather in their runs from number *run on, until there were `most`. */
hd_status hdi_stage_idle(hd_session *session, const hd_program *program, int64_t *run,
                         int64_t most);

/* What a program gets from the stage before it and gives to the next one (each may be invalid), as many of
 * each at once. */
typedef struct hdi_stage_traffic {
    const hd_program *program;
    hd_tensor x, out;
    int count;
} hdi_stage_traffic;

/* What hdi_session_rehearse is for programs, for all this traffic at once. Local. */
hd_status hdi_stage_rehearse(hd_session *session, const hdi_stage_traffic *traffic, int count);

/* Wait unless nothing was posted. */
static inline hd_status hdi_stage_wait(hd_comm *comm, hd_request *request)
{
    return request->id ? hd_comm_wait(comm, request) : HD_OK;
}

/* Fill the session's parameters from a heddle checkpoint (a run directory or one step-N) or Hugging
 * Face weights (a folder or a safetensors file), each rank its own. A rank without parameters gives
 * no session. `kind`: what of a checkpoint, "weights" or "ema". `world` may be NULL: one rank. Collective. */
hd_status hdi_stage_load(hd_session *session, const hdi_layout *layout, hd_comm *world,
                         const char *path, const char *kind);

#endif
