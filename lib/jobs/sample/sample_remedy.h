/* What to change when a sampling does not fit its budget. */
#ifndef HDI_JOBS_SAMPLE_REMEDY_H
#define HDI_JOBS_SAMPLE_REMEDY_H

#include "jobs/config.h"

#include <heddle/sampler.h>

/* After hd_sampler_create refused `options` with HD_ERROR_BUDGET: plan with other settings on fake meshes and
 * add to the error's text the first that fits, or the smallest budget that was found, by their keys.
 * Returns HD_ERROR_BUDGET. Local. */
hd_status hdi_sample_remedy_add(const hd_config *config, const hd_sampler_options *options);

#endif
