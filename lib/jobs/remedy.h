/* What to change when a training does not fit its budget. */
#ifndef HDI_JOBS_REMEDY_H
#define HDI_JOBS_REMEDY_H

#include "jobs/config.h"

#include <heddle/trainer.h>

/* After hd_trainer_create refused `options` with HD_ERROR_BUDGET: plan with other settings, the
 * cheapest in time first, on fake meshes, and add to the error's text which of them fits, or the
 * smallest need that was found, and the budget that would do as it is. Settings keep the batch and
 * are named by their keys. Returns HD_ERROR_BUDGET. Local. */
hd_status hdi_remedy_add(const hd_config *config, const hd_trainer_options *options);

#endif
