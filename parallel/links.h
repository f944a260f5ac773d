/* Links of a pipeline whose messages go straight into the receiver's memory (comm/direct.h). */
#ifndef HDI_PARALLEL_LINKS_H
#define HDI_PARALLEL_LINKS_H

#include "comm/direct.h"
#include "parallel/pipeline.h"

typedef struct hdi_links hdi_links;

/* The tensor that a communication row moves. */
hd_tensor hdi_pipeline_moved(const hdi_pipeline_chunk *chunk, hdi_schedule_op op);

/* Ranks tell each other where the receives of their schedules come to. *out NULL: messages stay with the
 * transport, on all ranks. Collective over the pipeline axis. */
hd_status hdi_links_create(const hdi_schedule *schedule, const hdi_pipeline_chunk *chunks,
                           const hd_mesh *mesh, hd_session *session, hdi_links **out);
void hdi_links_destroy(hdi_links *links); /* takes NULL */

/* The way of a communication row's message. Local. */
hdi_way *hdi_links_way(hdi_links *links, const hdi_schedule *schedule, const hdi_schedule_row *row);

#endif
