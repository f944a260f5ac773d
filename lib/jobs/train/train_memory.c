/* What a training had in use of its devices, into its result and its records. */
#include "core/error.h"
#include "jobs/setup.h"
#include "jobs/train/train.h"

hd_status hdi_train_sum_up_memory(hdi_train_job *job, hd_train_result *out)
{
    const size_t *most = job->context->memory.most;
    out->planned_bytes = hd_plan_total_bytes(job->trainer->plan);
    HD_RETURN_IF_ERROR(hdi_job_most_memory(job->world, job->context, &out->planned_bytes));
    out->training_bytes = most[HDI_WORK_TRAINING];
    out->validation_bytes = most[HDI_WORK_VALIDATION];
    out->save_bytes = most[HDI_WORK_SAVE];
    if (job->files.rank != 0) return HD_OK;
    const hdi_metric record[] = {hdi_metric_int("step", job->trainer->steps),
                                 hdi_metric_int("planned_bytes", (int64_t)out->planned_bytes),
                                 hdi_metric_int("training_bytes", (int64_t)out->training_bytes),
                                 hdi_metric_int("validation_bytes", (int64_t)out->validation_bytes),
                                 hdi_metric_int("save_bytes", (int64_t)out->save_bytes)};
    hdi_train_keep_record(job, record, sizeof record / sizeof record[0]);
    return HD_OK;
}
