/* What a training had in use of its devices, of all ranks the one with the most. */
#include "jobs/train/train.h"

#include "core/error.h"

hd_status hdi_train_sum_up_memory(hdi_train_job *job, hd_train_result *out)
{
    const size_t *most = job->context->memory.most;
    int64_t bytes[] = {(int64_t)hd_plan_total_bytes(job->trainer->plan),
                       (int64_t)most[HDI_WORK_TRAINING], (int64_t)most[HDI_WORK_VALIDATION],
                       (int64_t)most[HDI_WORK_SAVE]};
    const char *const names[] = {"planned_bytes", "training_bytes", "validation_bytes",
                                 "save_bytes"};
    enum { COUNT = sizeof bytes / sizeof bytes[0] };
    hd_request request;
    HD_RETURN_IF_ERROR(
        hd_comm_all_reduce(job->world, bytes, COUNT, HD_DTYPE_I64, HD_REDUCE_MAX, &request));
    HD_RETURN_IF_ERROR(hd_comm_wait(job->world, &request));
    out->planned_bytes = (size_t)bytes[0];
    out->training_bytes = (size_t)bytes[1];
    out->validation_bytes = (size_t)bytes[2];
    out->save_bytes = (size_t)bytes[3];
    if (job->files.rank != 0) return HD_OK;
    hdi_metric record[1 + COUNT] = {hdi_metric_int("step", job->trainer->steps)};
    for (int i = 0; i < COUNT; i++)
        record[1 + i] = hdi_metric_int(names[i], bytes[i]);
    hdi_train_keep_record(job, record, 1 + COUNT);
    return HD_OK;
}
