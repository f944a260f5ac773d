/* The executor of schedules: runs one rank's table over the programs of its chunks. */
#ifndef HDI_PARALLEL_PIPELINE_H
#define HDI_PARALLEL_PIPELINE_H

#include "parallel/schedule.h"
#include "runtime/session.h"
#include "runtime/spans.h"

/* One chunk of this rank. Tensors at the edges of the pipeline are invalid. */
typedef struct hdi_pipeline_chunk {
    hd_program *program;                /* borrowed */
    hd_tensor x, out;                   /* boundary tensors of the forward */
    hd_tensor x_gradient, out_gradient; /* and of the backward */
} hdi_pipeline_chunk;

typedef struct hdi_pipeline hdi_pipeline;

/* What becomes of a micro-batch's gradients. */
typedef enum hdi_gradient_sum {
    HDI_GRADIENT_ADDED,  /* to those of earlier ones */
    HDI_GRADIENT_TREE,   /* they join in the fixed tree */
    HDI_GRADIENT_LEAVES, /* they leave for their owners, which add them up */
} hdi_gradient_sum;

/* `schedule`, `chunks` [schedule chunks] and `mesh` are borrowed. Local. */
hd_status hdi_pipeline_create(const hdi_schedule *schedule, const hdi_pipeline_chunk *chunks,
                              const hd_mesh *mesh, hdi_gradient_sum sum, hdi_pipeline **out);
void hdi_pipeline_destroy(hdi_pipeline *pipeline); /* takes NULL */

/* Let messages between stages go straight into the receiver's memory where communicators can do that; else
 * nothing changes. Before the first run. Collective over the pipeline axis. */
hd_status hdi_pipeline_share(hdi_pipeline *pipeline, hd_session *session);

/* How many copies each boundary tensor needs under the schedule; set before planning. */
void hdi_pipeline_set_slots(const hdi_schedule *schedule, int chunk,
                            const hdi_pipeline_chunk *tensors);

/* What hdi_session_rehearse is for programs, for what stages hand to each other. Local. */
hd_status hdi_pipeline_rehearse(hdi_pipeline *pipeline, hd_session *session);

/* Run the whole table once. On return all sends are over, or on a GPU queued; gradient communication
 * may still be under way. `spans` may be NULL. Allocates nothing. Collective over the pipeline axis. */
hd_status hdi_pipeline_run(hdi_pipeline *pipeline, hd_session *session, hdi_spans *spans,
                           int64_t step);

#endif
