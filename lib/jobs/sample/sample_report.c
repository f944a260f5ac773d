/* What a sampling tells of its speed: how busy ranks were, and what the plan had said. */
#include "jobs/sample/sample_report.h"

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/text.h"
#include "jobs/sample/sampler.h"

/* What a pass of rank 0's stage took, beside what the plan says. */
static void report_prediction(const hdi_sample_speed *it, const hd_sampler_result *result)
{
    double predicted;
    if (it->rates.compute <= 0 || result->passes < 1) return;
    if (hdi_sampler_seconds(it->sampler, &predicted) != HD_OK) return;
    hdi_log(HD_LOG_INFO, "a pass of this stage: predicted %.4g s, took %.4g s", predicted,
            result->busy_seconds / (double)result->passes);
}

static void report_residency(const hd_sampler *sampler)
{
    const hdi_residency *is = &sampler->denoise->residency;
    if (is->host_blocks)
        hdi_log(HD_LOG_INFO, "memory: %d of %d blocks %s%s", is->host_blocks, is->block_count,
                is->host_bytes ? "on the host" : "in shares of the ranks",
                is->gathers && is->host_bytes ? ", of which each rank copies in a share" : "");
}

hd_status hdi_sample_report_speed(const hdi_sample_speed *it, const hd_sampler_result *result,
                                  hd_sample_result *out)
{
    const int ranks = hd_comm_size(it->world), rank = hd_comm_rank(it->world);
    double *busy = hdi_alloc_array((size_t)ranks, sizeof *busy);
    HD_RETURN_IF_ERROR(hd_comm_agree(
        it->world, busy ? HD_OK : hdi_error(HD_ERROR_MEMORY, "sample: out of host memory")));
    busy[rank] = result->seconds > 0 ? 100 * result->busy_seconds / result->seconds : 0;
    hd_request request;
    hd_status status =
        hd_comm_all_reduce(it->world, busy, ranks, HD_DTYPE_F64, HD_REDUCE_SUM, &request);
    if (status == HD_OK) status = hd_comm_wait(it->world, &request);
    hdi_text text = {0};
    for (int r = 0; r < ranks; r++) {
        hdi_text_printf(&text, "%s%.0f", r ? ", " : "", busy[r]);
        out->utilisation += busy[r] / 100 / ranks;
    }
    if (status == HD_OK && rank == 0) {
        if (hd_sampler_slices(it->sampler) > 1)
            hdi_log(HD_LOG_INFO, "memory: blocks in %d slices", hd_sampler_slices(it->sampler));
        report_residency(it->sampler);
        hdi_log(
            HD_LOG_INFO,
            "%d video%s: what follows from texts and times alone %.2f s, loading weights %.2f s, "
            "steps %.2f s, of which the ranks computed for %s %%",
            it->videos, it->videos == 1 ? "" : "s", result->condition_seconds, result->load_seconds,
            result->seconds, text.data ? text.data : "");
        report_prediction(it, result);
        const hdi_metric fields[] = {
            hdi_metric_int("videos", it->videos),
            hdi_metric_float("condition_seconds", result->condition_seconds),
            hdi_metric_float("load_seconds", result->load_seconds),
            hdi_metric_float("step_seconds", result->seconds),
            hdi_metric_float("utilisation", out->utilisation),
            hdi_metric_string("busy_percent", text.data ? text.data : "")};
        status = hdi_metrics_append(it->metrics, fields, sizeof fields / sizeof fields[0]);
    }
    hdi_text_free(&text);
    hdi_free(busy);
    return status;
}
