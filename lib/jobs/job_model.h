/* The model that a configuration asks for. */
#ifndef HDI_JOBS_JOB_MODEL_H
#define HDI_JOBS_JOB_MODEL_H

#include "jobs/config.h"

#include <heddle/model.h>

/* From model.preset, model.config, or sizes alone; sizes that are given change those of the
 * preset. Owned by the caller. Local. */
hd_status hdi_job_model(const hd_config *config, hd_model **out);

/* The model whose weights are at `path`: a checkpoint's own, or that of the config.json with Hugging Face
 * files unless the configuration names one; tensors laid out as those files have them. `key` says in
 * errors where the path was given. Owned by the caller. Local. */
hd_status hdi_job_model_of(const hd_config *config, const char *path, const char *key,
                           hd_model **out);

/* What Hugging Face files at `path` have: the dtype of the largest tensor if that is BF16 or F16, else
 * F32, as for checkpoints, which hold fp32 values. Local. */
hd_status hdi_job_stored_dtype(const char *path, hd_dtype *out);

#endif
