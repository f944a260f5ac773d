/* For how much of a training's time its devices stood, as traces see it. */
#include "jobs/train/train.h"

#include "core/error.h"
#include "core/log.h"

#include <math.h>

hd_status hdi_train_begin_step(hdi_train_job *job)
{
    return hdi_spans_begin_step(job->trainer->spans, job->trainer->steps);
}

/* The first step warms up: kernels are loaded and timed there. */
hd_status hdi_train_take_exposed(hdi_train_job *job)
{
    if (!job->trace) return HD_OK;
    const hdi_exposed own = hdi_spans_take(job->trainer->spans);
    double sums[] = {own.seconds, own.copies, own.communication, own.host};
    hd_request request;
    HD_RETURN_IF_ERROR(hd_comm_all_reduce(job->world, sums, sizeof sums / sizeof sums[0],
                                          HD_DTYPE_F64, HD_REDUCE_SUM, &request));
    HD_RETURN_IF_ERROR(hd_comm_wait(job->world, &request));
    const double ranks = hd_comm_size(job->world);
    job->exposed = (hdi_exposed){.seconds = sums[0] / ranks,
                                 .copies = sums[1] / ranks,
                                 .communication = sums[2] / ranks,
                                 .host = sums[3] / ranks};
    if (job->exposed_steps++ == 0) return HD_OK;
    job->exposed_sums.seconds += job->exposed.seconds;
    job->exposed_sums.copies += job->exposed.copies;
    job->exposed_sums.communication += job->exposed.communication;
    job->exposed_sums.host += job->exposed.host;
    return HD_OK;
}

int hdi_train_record_exposed(const hdi_train_job *job, hdi_metric *fields)
{
    const hdi_exposed *it = &job->exposed;
    if (!job->trace) return 0;
    int count = 0;
    fields[count++] = hdi_metric_float("exposed_copies_seconds", it->copies);
    fields[count++] = hdi_metric_float("exposed_communication_seconds", it->communication);
    fields[count++] = hdi_metric_float("exposed_host_seconds", it->host);
    fields[count++] = hdi_metric_float("exposed_of_seconds", it->seconds);
    return count;
}

void hdi_train_sum_up_exposed(const hdi_train_job *job, hd_train_result *out)
{
    const hdi_exposed *sums = &job->exposed_sums;
    const bool known = sums->seconds > 0;
    out->exposed_copies = known ? sums->copies / sums->seconds : (double)NAN;
    out->exposed_communication = known ? sums->communication / sums->seconds : (double)NAN;
    out->exposed_host = known ? sums->host / sums->seconds : (double)NAN;
    if (!known || job->files.rank != 0) return;
    hdi_log_run(HD_LOG_INFO,
                "exposed: copies %.1f %%, communication %.1f %%, host %.1f %% of %.3g s a step",
                100 * out->exposed_copies, 100 * out->exposed_communication,
                100 * out->exposed_host, sums->seconds / (double)(job->exposed_steps - 1));
}
