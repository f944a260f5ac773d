/* The configuration of jobs: the schema, and values as the jobs want them. */
#ifndef HDI_JOBS_CONFIG_H
#define HDI_JOBS_CONFIG_H

#include "core/config.h"

#include <heddle/job.h>

struct hd_config {
    hdi_config *values; /* owned */
};

/* The schema: every key of every job. */
extern const hdi_config_row hdi_job_schema[];
extern const int hdi_job_schema_rows;

/* Names of enums, for hdi_config_enum. */
typedef enum hdi_job_reduction { HDI_REDUCTION_FAST, HDI_REDUCTION_EXACT } hdi_job_reduction;
/* Levels 0 and up, then "false" and "true" for the first two. */
enum { HDI_SHARDINGS = 4 };
typedef enum hdi_job_recompute { HDI_RECOMPUTE_NONE, HDI_RECOMPUTE_LAYER } hdi_job_recompute;
typedef enum hdi_job_dtype { HDI_JOB_F32, HDI_JOB_BF16, HDI_JOB_F16 } hdi_job_dtype;
typedef enum hdi_job_master {
    HDI_JOB_MASTER_AUTO,
    HDI_JOB_MASTER_FP32,
    HDI_JOB_MASTER_REMAINDER
} hdi_job_master;
typedef enum hdi_job_gradients { HDI_JOB_GRADIENTS_FP32, HDI_JOB_GRADIENTS_BF16 } hdi_job_gradients;
typedef enum hdi_job_times { HDI_JOB_TIMES_LOGIT_NORMAL, HDI_JOB_TIMES_UNIFORM } hdi_job_times;
typedef enum hdi_job_decay { HDI_DECAY_MATRICES, HDI_DECAY_ALL } hdi_job_decay;

#endif
