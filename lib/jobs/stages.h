/* What jobs share: stages' ends; and those that only run forward (generation, sampling) stages cut by cost
 * and their weights. */
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
