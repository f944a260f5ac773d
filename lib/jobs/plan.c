/* The plan job: every rank's programs on a fake mesh, their bytes, costs, schedule, and the proof that
 * their collectives match. */
#include "core/clock.h"
#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "jobs/job_model.h"
#include "jobs/plan_report.h"
#include "jobs/setup.h"
#include "jobs/train.h"
#include "parallel/match.h"
#include "report/format.h"

#include <inttypes.h>

typedef struct planning {
    const hd_config *config;
    hd_model *model;
    const hd_backend *backend;
    int ranks;
    hd_mesh **meshes;      /* [ranks] */
    hd_trainer **trainers; /* [ranks] */
    hdi_calls *calls;      /* [ranks] */
} planning;

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
}

/* Communication of a step in the order in which the rank's schedule reaches it. */
static hd_status collect_calls(const hd_trainer *trainer, hdi_calls *calls)
{
    const hdi_schedule *schedule = trainer->schedule;
    for (int i = 0; i < schedule->action_count; i++) {
        const hdi_schedule_action *action = &schedule->actions[i];
        if (action->op == HDI_BACKWARD &&
            action->micro_batch == schedule->options.micro_batches - 1)
            HD_RETURN_IF_ERROR(
                hdi_calls_add(calls, trainer->train[action->chunk].program, HDI_PHASE_BACKWARD));
    }
    HD_RETURN_IF_ERROR(hdi_calls_add(calls, trainer->norm, HDI_PHASE_FORWARD));
    return hdi_calls_add(calls, trainer->update, HDI_PHASE_FORWARD);
}

static hd_status plan_ranks(planning *p)
{
    hd_mesh_options options;
    HD_RETURN_IF_ERROR(hdi_job_mesh_options(p->config, p->ranks, &options));
    HD_RETURN_IF_ERROR(hdi_job_model(p->config, &p->model));
    HD_RETURN_IF_ERROR(
        hd_backend_find(hdi_config_string(p->config->values, "run.device"), &p->backend));
    for (int r = 0; r < p->ranks; r++) {
        HD_RETURN_IF_ERROR(hd_mesh_create_fake(r, p->ranks, &options, &p->meshes[r]));
        hd_status status =
            hdi_train_create(p->config, p->model, p->meshes[r], p->backend, 0, &p->trainers[r]);
        if (status != HD_OK) return hdi_error_context(status, "rank %d of %d", r, p->ranks);
        HD_RETURN_IF_ERROR(collect_calls(p->trainers[r], &p->calls[r]));
    }
    return hdi_calls_match(p->calls, p->meshes, p->ranks);
}

/* All stages' tables, with each chunk costing what its program's ops cost. */
static hd_status simulate(const planning *p, hdi_schedule_timing *timing, double *ideal)
{
    const hd_trainer *any = p->trainers[0];
    int stages = any->pipeline, chunks = any->chunks;
    hdi_schedule **tables = hdi_alloc_array((size_t)stages, sizeof(hdi_schedule *));
    double *costs = hdi_alloc_array(2 * (size_t)(stages * chunks), sizeof(double));
    hd_status status = tables && costs ? HD_OK : out_of_memory();
    double *backward = costs + stages * chunks;
    for (int s = 0; s < stages && status == HD_OK; s++) {
        const hd_trainer *trainer = p->trainers[hd_mesh_peer(p->meshes[0], HD_AXIS_PIPELINE, s)];
        tables[s] = trainer->schedule;
        for (int c = 0; c < chunks; c++) {
            hd_cost cost;
            hdi_program_cost(trainer->train[c].program, HDI_PHASE_FORWARD, &cost);
            costs[c * stages + s] = cost.flops;
            hdi_program_cost(trainer->train[c].program, HDI_PHASE_BACKWARD, &cost);
            backward[c * stages + s] = cost.flops;
        }
    }
    if (status == HD_OK) status = hdi_schedule_check(tables, stages);
    if (status == HD_OK)
        status = hdi_schedule_simulate(
            tables, stages, &(hdi_schedule_costs){.forward = costs, .backward = backward}, timing,
            NULL);
    *ideal = 0;
    for (int i = 0; i < 2 * stages * chunks && status == HD_OK; i++)
        *ideal += costs[i] * any->options.accumulate / stages;
    hdi_free(tables);
    hdi_free(costs);
    return status;
}

static void describe_stage(const planning *p, int stage, hdi_text *text)
{
    const hd_trainer *trainer = p->trainers[hd_mesh_peer(p->meshes[0], HD_AXIS_PIPELINE, stage)];
    const hd_plan *plan = trainer->plan;
    hdi_text_printf(text, "%5d  layers", stage);
    for (int c = 0; c < trainer->chunks; c++)
        hdi_text_printf(text, "%s%d", c ? "+" : " ",
                        trainer->census.stage_layers[c * trainer->pipeline + stage]);
    hdi_text_append(text, "\n");
    for (int r = 0; r < HD_REGIONS; r++)
        if (plan->bytes[r])
            hdi_text_printf(text, "       %-18s %16zu bytes\n", hd_region_name((hd_region)r),
                            plan->bytes[r]);
    hdi_text_printf(text, "       %-18s %16zu bytes\n", "total", hd_plan_total_bytes(plan));
}

static hd_status describe(const planning *p, double seconds, hdi_text *text)
{
    const hd_trainer *any = p->trainers[0];
    hdi_schedule_timing timing;
    double ideal, flops = 0;
    HD_RETURN_IF_ERROR(simulate(p, &timing, &ideal));
    for (int s = 0; s < any->pipeline; s++) {
        const hd_trainer *trainer = p->trainers[hd_mesh_peer(p->meshes[0], HD_AXIS_PIPELINE, s)];
        for (int c = 0; c < any->chunks; c++)
            for (int phase = 0; phase < HDI_PHASES; phase++) {
                hd_cost cost;
                hdi_program_cost(trainer->train[c].program, (hdi_phase)phase, &cost);
                flops += cost.flops;
            }
    }
    int data = hd_mesh_size(p->meshes[0], HD_AXIS_DATA);
    int64_t tokens = any->options.sequences * any->options.tokens * any->options.accumulate * data;
    hdi_text_printf(
        text,
        "%d ranks: data %d x pipeline %d, %d chunks each, schedule %s, %d micro-batches of "
        "%" PRId64 " x %" PRId64 " tokens\n",
        p->ranks, data, any->pipeline, any->chunks,
        hdi_schedule_kind_name(any->schedule->options.kind), any->options.accumulate,
        any->options.sequences, any->options.tokens);
    hdi_text_printf(text, "%" PRId64 " parameters, %" PRId64 " tokens a step, %.4g FLOP a step\n",
                    hd_model_parameters(p->model), tokens, flops * any->options.accumulate * data);
    hdi_text_printf(text,
                    "bubble %.1f %% of the step; collectives of all ranks match, no deadlock\n",
                    100 * (1 - ideal / timing.makespan));
    hdi_text_append(text, "stage\n");
    for (int s = 0; s < any->pipeline; s++)
        describe_stage(p, s, text);
    hdi_text_printf(text, "planned in %.3f s\n", seconds);
    return HD_OK;
}

static hd_status report(const planning *p, double begin, const char *directory, bool print,
                        hd_write_fn write, void *user)
{
    hdi_text text = {0};
    hd_status status = describe(p, hdi_clock_seconds() - begin, &text);
    char *taken = hdi_text_take(&text);
    if (status == HD_OK && !taken) status = out_of_memory();
    if (status == HD_OK && write) write(user, taken);
    hdi_free(taken);
    if (status == HD_OK && directory) status = hdi_directory_create(directory);
    if (status == HD_OK && directory) status = hdi_plan_report_write(p->trainers[0], directory);
    for (int s = 0; s < p->trainers[0]->pipeline && print && status == HD_OK && write; s++)
        hd_plan_print(p->trainers[hd_mesh_peer(p->meshes[0], HD_AXIS_PIPELINE, s)]->plan, write,
                      user);
    return status;
}

hd_status hd_plan_run(const hd_config *config, int ranks, const char *directory, bool print,
                      hd_write_fn write, void *user)
{
    if (ranks < 1) return hdi_error(HD_ERROR_ARGUMENT, "plan: ranks is %d, want at least 1", ranks);
    double begin = hdi_clock_seconds();
    hdi_cpu_set_threads(hdi_job_threads(config)); /* workspaces follow from it */
    planning p = {.config = config, .ranks = ranks};
    p.meshes = hdi_alloc_array((size_t)ranks, sizeof(hd_mesh *));
    p.trainers = hdi_alloc_array((size_t)ranks, sizeof(hd_trainer *));
    p.calls = hdi_alloc_array((size_t)ranks, sizeof *p.calls);
    hd_status status = p.meshes && p.trainers && p.calls ? HD_OK : out_of_memory();
    if (status == HD_OK) status = plan_ranks(&p);
    if (status == HD_OK) status = report(&p, begin, directory, print, write, user);
    for (int r = 0; r < ranks; r++) {
        if (p.trainers) hd_trainer_destroy(p.trainers[r]);
        if (p.meshes) hd_mesh_destroy(p.meshes[r]);
        if (p.calls) hdi_calls_free(&p.calls[r]);
    }
    hd_model_destroy(p.model);
    hdi_free(p.calls);
    hdi_free(p.trainers);
    hdi_free(p.meshes);
    return status;
}
