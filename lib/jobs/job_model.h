/* The model that a configuration asks for. */
#ifndef HDI_JOBS_JOB_MODEL_H
#define HDI_JOBS_JOB_MODEL_H

#include "jobs/config.h"

#include <heddle/model.h>

/* From model.preset, model.config, or sizes alone; sizes that are given change those of the
 * preset. Owned by the caller. Local. */
hd_status hdi_job_model(const hd_config *config, hd_model **out);

#endif
