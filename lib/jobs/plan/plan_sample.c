/* The plan of a sampling: every rank's two phases on a fake mesh, their bytes and costs. */
#include "backend/backend.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/text.h"
#include "jobs/job_model.h"
#include "jobs/sample/sample.h"
#include "jobs/sample/sample_remedy.h"
#include "jobs/sample/sampler.h"
#include "jobs/setup.h"
#include "program/plan.h"
#include "report/format.h"

#include <inttypes.h>
#include <string.h>

typedef struct planning {
    const hd_config *config;
    hd_model *model;
    hdi_sample_settings settings;
    int64_t tokens; /* of a text */
    int ranks, stages;
    hd_mesh_options layout;
    hd_rates rates;
    hd_mesh **meshes;      /* [stages] of data line 0 */
    hd_sampler **samplers; /* [stages] */
} planning;

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
}

static hd_status plan_stage(planning *p, const hd_backend *backend, int stage)
{
    hd_mesh *any;
    HD_RETURN_IF_ERROR(hd_mesh_create_fake(0, p->ranks, &p->layout, &any));
    const int rank = hd_mesh_peer(any, HD_AXIS_PIPELINE, stage);
    hd_mesh_destroy(any);
    HD_RETURN_IF_ERROR(hd_mesh_create_fake(rank, p->ranks, &p->layout, &p->meshes[stage]));
    const hdi_config *values = p->config->values;
    const hd_sampler_options options = {
        .build = hd_model_build,
        .user = p->model,
        .layers = hd_model_layers(p->model),
        .model = p->settings.model,
        .mesh = p->meshes[stage],
        .backend = backend,
        .dtype = p->settings.dtype,
        .shape = p->settings.shape,
        .texts = &p->tokens,
        .text_lengths = 1,
        .budget = (size_t)hdi_config_bytes(values, "memory.budget"),
        .foreign = (size_t)hdi_config_bytes(values, "memory.foreign"),
        .transport = hdi_job_transport(p->config, p->meshes[stage], backend),
        .mailboxes = hdi_job_mailboxes(p->config, p->meshes[stage], backend),
        .rates = p->rates,
        .residency = (hd_residency)hdi_config_enum(values, "sample.residency"),
        .slices = (int)hdi_config_int(values, "sample.slices"),
        .sequence_groups = (int)hdi_config_int(values, "layout.sequence_groups"),
        .tensor_groups = (int)hdi_config_int(values, "layout.tensor_groups")};
    hd_status status = hd_sampler_create(&options, &p->samplers[stage]);
    if (status == HD_ERROR_BUDGET) status = hdi_sample_remedy_add(p->config, &options);
    return status == HD_OK ? HD_OK : hdi_error_context(status, "stage %d of %d", stage, p->stages);
}

static hd_status plan_stages(planning *p)
{
    const hdi_config *values = p->config->values;
    const hd_backend *backend;
    HD_RETURN_IF_ERROR(hdi_job_mesh_options(p->config, p->ranks, &p->layout));
    HD_RETURN_IF_ERROR(hdi_job_model(p->config, &p->model));
    HD_RETURN_IF_ERROR(hd_backend_find(hdi_config_string(values, "run.device"), &backend));
    HD_RETURN_IF_ERROR(hdi_sample_settings_read(
        p->config, p->model, backend, *hdi_config_string(values, "sample.given"), &p->settings));
    p->tokens = hdi_config_int(values, "sample.text_tokens");
    if (p->tokens == 0) p->tokens = p->settings.model->text_tokens;
    HD_RETURN_IF_ERROR(hdi_job_rates(p->config, backend, &p->rates));
    /* run.rates names a GPU, whichever device this process has. */
    if (p->rates.compute > 0 && strcmp(hdi_config_string(values, "sample.dtype"), "auto") == 0)
        p->settings.dtype = HD_DTYPE_BF16;
    p->stages = p->layout.pipeline;
    p->meshes = hdi_alloc_array((size_t)p->stages, sizeof(hd_mesh *));
    p->samplers = hdi_alloc_array((size_t)p->stages, sizeof(hd_sampler *));
    if (!p->meshes || !p->samplers) return out_of_memory();
    for (int s = 0; s < p->stages; s++)
        HD_RETURN_IF_ERROR(plan_stage(p, backend, s));
    return HD_OK;
}

/* Where the weights are that are not resident, and what they cost. */
static void describe_residency(const hd_plan *plan, bool known, hdi_text *text)
{
    hd_streaming is;
    hd_plan_streaming(plan, plan->units[0].program, &is);
    const int ranks = plan->layout->shards;
    if (!is.host_blocks) return;
    hdi_text_printf(text, "         %d of %d blocks ", is.host_blocks, is.blocks);
    if (is.host_bytes)
        hdi_text_printf(text, "on the host, %s of pinned memory; ", hdi_bytes(is.host_bytes).text);
    else
        hdi_text_printf(text, "in shares of %d ranks; ", ranks);
    if (!is.gathered)
        hdi_text_printf(text, "a run copies in %s\n", hdi_bytes(is.run_bytes).text);
    else if (!is.host_bytes)
        hdi_text_printf(text, "a run gathers %s\n", hdi_bytes(is.run_bytes).text);
    else
        hdi_text_printf(text, "each of %d ranks copies in its share of %s a run\n", ranks,
                        hdi_bytes(is.run_bytes).text);
    if (is.gathered && !is.host_bytes && !known)
        return; /* what links between ranks do is unknown */
    hdi_text_printf(text,
                    "         %s%.3g s of copies beside %.3g s of computing, %.3g s exposed\n",
                    known ? "" : "at 25 GB/s and 100 TFLOP/s: ", is.copy_seconds,
                    is.compute_seconds, is.exposed_seconds);
}

static void describe_phase(const hd_sampler *sampler, hd_purpose phase, bool known, hdi_text *text)
{
    const hd_plan *plan = hd_sampler_plan(sampler, phase);
    if (!plan) return;
    hdi_text_printf(text, "       %s, %.4g FLOP",
                    phase == HD_PURPOSE_CONDITION ? "conditions of all steps" : "one pass",
                    hd_sampler_flops(sampler, phase, 0));
    if (phase == HD_PURPOSE_DENOISE && hd_sampler_slices(sampler) > 1)
        hdi_text_printf(text, ", blocks in %d slices", hd_sampler_slices(sampler));
    const int turns = plan->units[0].program->sequence_turns,
              places = plan->units[0].program->sequence_ring;
    if (phase == HD_PURPOSE_DENOISE && places > 1)
        hdi_text_printf(text, ", rows take turns in %d places", places);
    if (turns)
        hdi_text_printf(text, ", heads change places in %d group%s", turns, turns == 1 ? "" : "s");
    const int pieces = plan->units[0].program->tensor_pieces;
    if (pieces)
        hdi_text_printf(text, ", layers' rows in %d group%s", pieces, pieces == 1 ? "" : "s");
    hdi_text_append(text, "\n");
    for (int r = 0; r < HD_REGIONS; r++)
        if (hd_plan_region_bytes(plan, (hd_region)r))
            hdi_text_printf(text, "         %s\n",
                            hdi_bytes_row(hd_region_name((hd_region)r),
                                          hd_plan_region_bytes(plan, (hd_region)r))
                                .text);
    hdi_text_printf(text, "         %s\n", hdi_bytes_row("total", hd_plan_total_bytes(plan)).text);
    describe_residency(plan, known, text);
}

/* Seconds by run.rates: of a step of one video, and of the longest stage, which is all that videos in
 * flight wait for. */
static hd_status describe_seconds(const planning *p, hdi_text *text)
{
    double pass = 0, longest = 0;
    for (int s = 0; s < p->stages; s++) {
        double seconds;
        HD_RETURN_IF_ERROR(hdi_sampler_seconds(p->samplers[s], &seconds));
        pass += seconds;
        if (longest < seconds) longest = seconds;
    }
    const int branches = p->settings.run.branches;
    hdi_text_printf(text, "predicted %.4g s a step of one video", pass * branches);
    if (p->stages > 1) hdi_text_printf(text, ", %.4g s with all stages busy", longest * branches);
    hdi_text_append(text, "\n");
    return HD_OK;
}

static hd_status describe(const planning *p, double seconds, hdi_text *text)
{
    const bool known = p->rates.compute > 0;
    const hdi_sample_settings *is = &p->settings;
    double pass = 0, conditions = 0;
    for (int s = 0; s < p->stages; s++) {
        pass += hd_sampler_flops(p->samplers[s], HD_PURPOSE_DENOISE, 0);
        conditions += hd_sampler_flops(p->samplers[s], HD_PURPOSE_CONDITION, 0);
    }
    hdi_text_printf(text, "%d rank%s: data %d x pipeline %d, %s, %" PRId64 " parameters\n",
                    p->ranks, p->ranks == 1 ? "" : "s", p->layout.data, p->stages,
                    hd_dtype_name(is->dtype), hd_model_parameters(p->model));
    if (p->layout.tensor > 1)
        hdi_text_printf(
            text, "x tensor %d: what follows is for the first of the ranks that share a layer\n",
            p->layout.tensor);
    if (p->layout.sequence > 1)
        hdi_text_printf(text,
                        "x sequence %d in rings of %d: what follows is for the first of the ranks "
                        "that share a video\n",
                        p->layout.sequence, p->layout.ring);
    hdi_text_printf(text,
                    "%" PRId64 " frames of %" PRId64 " x %" PRId64 " pixels: latents %" PRId64
                    " x %" PRId64 " x %" PRId64 " x %" PRId64 ", %" PRId64 " text tokens\n",
                    is->pixel_frames, is->pixel_width, is->pixel_height, is->model->channels,
                    is->shape.frames, is->shape.height, is->shape.width, p->tokens);
    hdi_text_printf(text,
                    "%" PRId64 " steps of %d pass%s, %.4g FLOP a step; %.4g FLOP a video, of which "
                    "%.4g for conditions\n",
                    is->shape.steps, is->run.branches, is->run.branches == 1 ? "" : "es",
                    pass * is->run.branches,
                    (pass * (double)is->shape.steps + conditions) * is->run.branches,
                    conditions * is->run.branches);
    if (known) HD_RETURN_IF_ERROR(describe_seconds(p, text));
    hdi_text_append(text, "stage\n");
    for (int s = 0; s < p->stages; s++) {
        int first, count;
        hd_sampler_layers(p->samplers[s], &first, &count);
        hdi_text_printf(text, "%5d  layers %d, from layer %d\n", s, count, first);
        describe_phase(p->samplers[s], HD_PURPOSE_CONDITION, known, text);
        describe_phase(p->samplers[s], HD_PURPOSE_DENOISE, known, text);
    }
    hdi_text_printf(text, "planned in %.3f s\n", seconds);
    return HD_OK;
}

hd_status hd_sample_plan_run(const hd_config *config, int ranks, bool print, hd_write_fn write,
                             void *user)
{
    if (ranks < 1) return hdi_error(HD_ERROR_ARGUMENT, "plan: ranks is %d, want at least 1", ranks);
    const double begin = hdi_clock_seconds();
    hdi_cpu_set_threads(hdi_job_threads(config)); /* workspaces follow from it */
    planning p = {.config = config, .ranks = ranks};
    hdi_text text = {0};
    hd_status status = plan_stages(&p);
    if (status == HD_OK) status = describe(&p, hdi_clock_seconds() - begin, &text);
    if (status == HD_OK && text.failed) status = out_of_memory();
    if (status == HD_OK && write) write(user, text.data);
    for (int s = 0; s < p.stages && print && status == HD_OK && write; s++)
        for (hd_purpose phase = HD_PURPOSE_CONDITION; phase <= HD_PURPOSE_DENOISE; phase++)
            if (hd_sampler_plan(p.samplers[s], phase))
                hd_plan_print(hd_sampler_plan(p.samplers[s], phase), write, user);
    hdi_text_free(&text);
    for (int s = 0; s < p.stages; s++) {
        if (p.samplers) hd_sampler_destroy(p.samplers[s]);
        if (p.meshes) hd_mesh_destroy(p.meshes[s]);
    }
    hdi_free(p.samplers);
    hdi_free(p.meshes);
    hd_model_destroy(p.model);
    return status;
}
