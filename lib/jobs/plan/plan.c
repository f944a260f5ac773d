/* The plan job: every rank's programs on a fake mesh, their bytes, costs, schedule, and the proof that
 * their collectives match. */
#include "core/clock.h"
#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "jobs/job_model.h"
#include "jobs/setup.h"
#include "jobs/train/plan_report.h"
#include "jobs/train/train.h"
#include "ops/sequence.h"
#include "parallel/match.h"
#include "report/format.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct planning {
    const hd_config *config;
    hd_model *model;
    const hd_backend *backend;
    hdi_video_buckets buckets; /* of video models; owned */
    int ranks;
    hd_mesh **meshes;      /* [ranks] */
    hd_trainer **trainers; /* [ranks] */
    int64_t *codes;        /* [ranks] of hdi_trainer_adopt; zero: as it chose itself */
    hdi_calls *calls;      /* [ranks] */
    hdi_searches searches;
} planning;

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
}

/* Communication of a step in the order in which the rank's schedule reaches it. */
static hd_status collect_step(const hd_trainer *trainer, const hdi_trainer_shape *shape,
                              hdi_calls *calls)
{
    const hdi_schedule *schedule = shape->schedule;
    for (int i = 0; i < schedule->action_count; i++) {
        const hdi_schedule_action *action = &schedule->actions[i];
        const hd_program *program = shape->train[action->chunk].program;
        const bool backward = action->op == HDI_BACKWARD;
        HD_RETURN_IF_ERROR(hdi_calls_add_gathers(
            calls, trainer->plan, program, backward ? HDI_PHASE_BACKWARD : HDI_PHASE_FORWARD));
        if (backward && action->micro_batch == schedule->options.micro_batches - 1)
            HD_RETURN_IF_ERROR(hdi_calls_add(calls, program, HDI_PHASE_BACKWARD));
    }
    HD_RETURN_IF_ERROR(hdi_calls_add(calls, trainer->norm, HDI_PHASE_FORWARD));
    return hdi_calls_add(calls, trainer->update, HDI_PHASE_FORWARD);
}

static hd_status collect_calls(const hd_trainer *trainer, hdi_calls *calls)
{
    for (int s = 0; s < trainer->shape_count; s++)
        HD_RETURN_IF_ERROR(collect_step(trainer, &trainer->shapes[s], calls));
    return HD_OK;
}

/* The buckets of data.path, or those that video.shapes names. */
static hd_status plan_buckets(planning *p, hdi_train_target *on)
{
    const char *path = hdi_config_string(p->config->values, "data.path");
    hdi_video_dataset *dataset = NULL;
    if (!hd_model_video(p->model)) return HD_OK;
    if (*path) HD_RETURN_IF_ERROR(hdi_video_dataset_open(path, &dataset));
    const hd_status status = hdi_train_buckets(on, dataset, &p->buckets);
    hdi_video_dataset_close(dataset);
    return status;
}

/* Another trainer of a rank, for one that has its activations where `code` says. */
static hd_status plan_rank(planning *p, hdi_train_target *on, int r, int64_t code)
{
    const bool is_first = !p->trainers[r];
    hd_trainer_destroy(p->trainers[r]);
    p->trainers[r] = NULL;
    p->codes[r] = code;
    on->mesh = p->meshes[r];
    on->transport = hdi_job_transport(p->config, p->meshes[r], p->backend);
    on->activations = code;
    if (r == 0 && is_first) HD_RETURN_IF_ERROR(plan_buckets(p, on));
    const hd_status status =
        hdi_train_create(on, p->buckets.count ? &p->buckets : NULL, &p->trainers[r]);
    return status == HD_OK ? status : hdi_error_context(status, "rank %d of %d", r, p->ranks);
}

static bool shares_activations(const hd_mesh *a, const hd_mesh *b)
{
    return hd_mesh_index(a, HD_AXIS_DATA) == hd_mesh_index(b, HD_AXIS_DATA) &&
           hd_mesh_index(a, HD_AXIS_PIPELINE) == hd_mesh_index(b, HD_AXIS_PIPELINE);
}

/* As hd_trainer_create does where ranks can ask each other. */
static hd_status agree(planning *p, hdi_train_target *on)
{
    bool changes = true;
    while (changes) {
        changes = false;
        for (int r = 0; r < p->ranks; r++) {
            const int64_t own = hdi_trainer_activations_code(p->trainers[r]);
            int64_t code = own;
            for (int o = 0; o < p->ranks; o++) {
                if (!shares_activations(p->meshes[r], p->meshes[o])) continue;
                const int64_t other = hdi_trainer_activations_code(p->trainers[o]);
                if (code < other) code = other;
            }
            if (code == own) continue;
            HD_RETURN_IF_ERROR(plan_rank(p, on, r, code));
            changes = true;
        }
    }
    return HD_OK;
}

static bool shares_state(const hd_mesh *a, const hd_mesh *b)
{
    return hd_mesh_index(a, HD_AXIS_PIPELINE) == hd_mesh_index(b, HD_AXIS_PIPELINE) &&
           hd_mesh_index(a, HD_AXIS_TENSOR) == hd_mesh_index(b, HD_AXIS_TENSOR) &&
           hd_mesh_index(a, HD_AXIS_COPY) == hd_mesh_index(b, HD_AXIS_COPY);
}

/* The same of updates beside the next step: who takes turns differs from all that do not. */
static hd_status agree_to_overlap(planning *p, hdi_train_target *on)
{
    on->in_turn = true;
    for (int r = 0; r < p->ranks; r++) {
        const int64_t own = hdi_trainer_overlap_code(p->trainers[r]);
        bool alike = true;
        for (int o = 0; o < p->ranks && own && p->trainers[r]->options.shard_state; o++)
            alike = alike && (!shares_state(p->meshes[r], p->meshes[o]) ||
                              hdi_trainer_overlap_code(p->trainers[o]) == own);
        if (!alike) HD_RETURN_IF_ERROR(plan_rank(p, on, r, p->codes[r]));
    }
    return HD_OK;
}

static hd_status plan_ranks(planning *p)
{
    hd_mesh_options options;
    HD_RETURN_IF_ERROR(hdi_job_mesh_options(p->config, p->ranks, &options));
    HD_RETURN_IF_ERROR(hdi_job_model(p->config, &p->model));
    HD_RETURN_IF_ERROR(
        hd_backend_find(hdi_config_string(p->config->values, "run.device"), &p->backend));
    hdi_train_target on = {.config = p->config,
                           .model = p->model,
                           .backend = p->backend,
                           .foreign = (size_t)hdi_config_bytes(p->config->values, "memory.foreign"),
                           .remedy = true,
                           .searches = &p->searches};
    for (int r = 0; r < p->ranks; r++) {
        HD_RETURN_IF_ERROR(hd_mesh_create_fake(r, p->ranks, &options, &p->meshes[r]));
        HD_RETURN_IF_ERROR(plan_rank(p, &on, r, 0));
    }
    HD_RETURN_IF_ERROR(agree(p, &on));
    HD_RETURN_IF_ERROR(agree_to_overlap(p, &on));
    for (int r = 0; r < p->ranks; r++)
        HD_RETURN_IF_ERROR(collect_calls(p->trainers[r], &p->calls[r]));
    return hdi_calls_match(p->calls, p->meshes, p->ranks);
}

/* All stages' tables, with each chunk costing what its program's ops cost. */
static hd_status simulate(const planning *p, int shape, hdi_schedule_timing *timing, double *ideal)
{
    const hd_trainer *any = p->trainers[0];
    const hd_rates rates = hdi_rates_filled(&any->options.rates);
    int stages = any->pipeline, chunks = any->chunks;
    hdi_schedule **tables = hdi_alloc_array((size_t)stages, sizeof(hdi_schedule *));
    double *costs = hdi_alloc_array(2 * (size_t)(stages * chunks), sizeof(double));
    hd_status status = tables && costs ? HD_OK : out_of_memory();
    double *backward = costs + stages * chunks;
    for (int s = 0; s < stages && status == HD_OK; s++) {
        const hd_trainer *trainer = p->trainers[hd_mesh_peer(p->meshes[0], HD_AXIS_PIPELINE, s)];
        tables[s] = trainer->shapes[shape].schedule;
        for (int c = 0; c < chunks; c++) {
            const hd_program *program = trainer->shapes[shape].train[c].program;
            costs[c * stages + s] = hdi_program_seconds(program, HDI_PHASE_FORWARD, &rates);
            backward[c * stages + s] = hdi_program_seconds(program, HDI_PHASE_BACKWARD, &rates);
            hdi_copies copies = {0};
            if (hdi_plan_uses_host(trainer->plan) && status == HD_OK)
                status = hdi_plan_copies(trainer->plan, program, &copies);
            backward[c * stages + s] += copies.exposed_seconds;
        }
    }
    if (status == HD_OK) status = hdi_schedule_check(tables, stages);
    if (status == HD_OK)
        status = hdi_schedule_simulate(
            tables, stages, &(hdi_schedule_costs){.forward = costs, .backward = backward}, timing,
            NULL);
    *ideal = 0;
    for (int i = 0; i < 2 * stages * chunks && status == HD_OK; i++)
        *ideal += costs[i] * any->shapes[shape].is.accumulate / stages;
    hdi_free(tables);
    hdi_free(costs);
    return status;
}

/* The weights that wait on the host. */
static void describe_blocks(const hd_trainer *trainer, hdi_text *text)
{
    hd_streaming all = {0};
    double seconds = 0;
    for (int c = 0; c < trainer->chunks; c++) {
        hd_plan_streaming(trainer->plan, trainer->shapes[0].train[c].program, &all);
        seconds += all.exposed_seconds;
    }
    hdi_text_printf(text,
                    "       train.residency=host: %d of %d blocks, %s, through %d slots; "
                    "%.3g s of waiting for them in a micro-batch\n",
                    trainer->plan->layout->host_blocks, all.blocks, hdi_bytes(all.host_bytes).text,
                    all.slots, seconds);
}

/* What the planner, or the user, has chosen; nothing where all is as by default. */
static void describe_places(const hd_trainer *trainer, hdi_text *text)
{
    static const char *const names[] = {[HD_ACTIVATIONS_KEEP] = "keep",
                                        [HD_ACTIVATIONS_RECOMPUTE] = "recompute",
                                        [HD_ACTIVATIONS_RECOMPUTE_HOST] = "recompute-host",
                                        [HD_ACTIVATIONS_HOST] = "host",
                                        [HD_ACTIVATIONS_INT8] = "int8"};
    const hd_trainer_options *o = &trainer->options;
    if (o->activations != HD_ACTIVATIONS_KEEP)
        hdi_text_printf(text, "       train.activations=%s", names[o->activations]);
    const int blocks = hdi_trainer_layers(trainer);
    if (o->activation_blocks && o->activation_blocks < blocks)
        hdi_text_printf(text, ": %d of %d blocks", o->activation_blocks, blocks);
    if (o->activations != HD_ACTIVATIONS_KEEP) hdi_text_append(text, "\n");
    if (o->slices > 1) hdi_text_printf(text, "       train.slices=%d\n", o->slices);
    if (o->mlp_slices > 1) hdi_text_printf(text, "       train.mlp_slices=%d\n", o->mlp_slices);
    if (o->residency == HD_RESIDENCY_HOST) describe_blocks(trainer, text);
    if (hdi_trainer_on_host(trainer)) hdi_text_append(text, "       optimizer.residency=host\n");
    if (hdi_trainer_gradients_on_host(trainer))
        hdi_text_append(text, "       train.gradient_residency=host\n");
    if (hdi_trainer_updates_beside(o))
        hdi_text_append(text, "       the update goes on beside the next step's first forward\n");
}

/* What passes between the host and the device in a step of shape 0, and for how long computation waits. */
static hd_status describe_copies(const hd_trainer *trainer, hdi_text *text)
{
    const hdi_trainer_shape *shape = &trainer->shapes[0];
    hdi_copies all = {0}, one;
    if (!hdi_plan_uses_host(trainer->plan)) return HD_OK;
    for (int i = 0; i < trainer->chunks + 2; i++) {
        const bool trains = i < trainer->chunks;
        const hd_program *program = trains ? shape->train[i].program : trainer->norm;
        const int runs = trains ? shape->is.accumulate : 1;
        HD_RETURN_IF_ERROR(i <= trainer->chunks ? hdi_plan_copies(trainer->plan, program, &one)
                                                : hdi_trainer_copies_of_update(trainer, &one));
        all.in_bytes += one.in_bytes * (size_t)runs;
        all.out_bytes += one.out_bytes * (size_t)runs;
        all.compute_seconds += one.compute_seconds * runs;
        all.exposed_seconds += one.exposed_seconds * runs;
    }
    const hd_rates rates = hdi_rates_filled(&trainer->options.rates);
    hdi_text_printf(
        text,
        "       copies of a step: %zu bytes in, %zu out; %.3g s exposed beside %.3g s of "
        "computation, by %.3g bytes/s each way and %.3g FLOP/s\n",
        all.in_bytes, all.out_bytes, all.exposed_seconds, all.compute_seconds, rates.link,
        rates.compute);
    const double seconds = all.exposed_seconds + all.compute_seconds;
    if (seconds > 0)
        hdi_text_printf(text, "       exposed: copies %.1f %% of %.3g s a step\n",
                        100 * all.exposed_seconds / seconds, seconds);
    return HD_OK;
}

static hd_status describe_stage(const planning *p, int stage, hdi_text *text)
{
    const hd_trainer *trainer = p->trainers[hd_mesh_peer(p->meshes[0], HD_AXIS_PIPELINE, stage)];
    const hd_plan *plan = trainer->plan;
    hdi_text_printf(text, "%5d  layers", stage);
    for (int c = 0; c < trainer->chunks; c++)
        hdi_text_printf(text, "%s%d", c ? "+" : " ",
                        trainer->census.stage_layers[c * trainer->pipeline + stage]);
    hdi_text_append(text, "\n");
    describe_places(trainer, text);
    for (int r = 0; r < HD_REGIONS; r++)
        if (plan->bytes[r])
            hdi_text_printf(text, "       %s\n",
                            hdi_bytes_row(hd_region_name((hd_region)r), plan->bytes[r]).text);
    hdi_text_printf(text, "       %s\n", hdi_bytes_row("total", hd_plan_total_bytes(plan)).text);
    for (int r = HD_REGIONS; r < HD_ALL_REGIONS; r++)
        if (plan->bytes[r])
            hdi_text_printf(text, "       %s\n",
                            hdi_bytes_row(hd_region_name((hd_region)r), plan->bytes[r]).text);
    return describe_copies(trainer, text);
}

/* "2 x 256 tokens", or "2 videos of 33 x 32 x 56 and 256 text tokens". */
static void describe_batch(const hd_trainer_shape *is, hdi_text *text)
{
    const hd_video_shape *video = &is->video;
    if (video->frames < 1)
        hdi_text_printf(text, "%" PRId64 " x %" PRId64 " tokens", is->sequences, is->tokens);
    else
        hdi_text_printf(text,
                        "%" PRId64 " videos of %" PRId64 " x %" PRId64 " x %" PRId64 " and %" PRId64
                        " text tokens",
                        is->sequences, video->frames, video->height, video->width, video->text);
}

/* FLOPs of one micro-batch, forward and backward, over all stages and the ranks that share its
 * sequences or layers. */
static double micro_batch_flops(const planning *p, int shape)
{
    double flops = 0;
    const int ranks = hd_mesh_size(p->meshes[0], HD_AXIS_SEQUENCE) *
                      hd_mesh_size(p->meshes[0], HD_AXIS_TENSOR); /* neighbours, the fastest axes */
    for (int i = 0; i < p->trainers[0]->pipeline * ranks; i++) {
        const int first = hd_mesh_peer(p->meshes[0], HD_AXIS_PIPELINE, i / ranks);
        const hd_trainer *trainer = p->trainers[first + i % ranks];
        for (int c = 0; c < trainer->chunks; c++)
            for (int phase = 0; phase < HDI_PHASES; phase++) {
                hd_cost cost;
                hdi_program_cost(trainer->shapes[shape].train[c].program, (hdi_phase)phase, &cost);
                flops += cost.flops;
            }
    }
    return flops;
}

/* How ranks share sequences and layers; nothing where they do not. */
static void describe_sequence(const hd_mesh *mesh, const hd_program *program, size_t bytes,
                              char *out)
{
    const int ranks = hd_mesh_size(mesh, HD_AXIS_SEQUENCE), ring = hdi_sequence_ring(program);
    char rings[32] = "", groups[32] = "";
    if (ring > 1)
        snprintf(rings, sizeof rings, program->sequence_ring ? " in %d places" : " in rings of %d",
                 ring);
    if (program->sequence_turns)
        snprintf(groups, sizeof groups, " (heads in %d %s)", program->sequence_turns,
                 program->sequence_turns == 1 ? "group" : "groups");
    out[0] = '\0';
    if (ranks > 1) snprintf(out, bytes, " x sequence %d%s%s", ranks, rings, groups);
    const int tensor = hd_mesh_size(mesh, HD_AXIS_TENSOR);
    const size_t used = strlen(out);
    groups[0] = '\0';
    if (program->tensor_pieces)
        snprintf(groups, sizeof groups, " (rows in %d group%s)", program->tensor_pieces,
                 program->tensor_pieces == 1 ? "" : "s");
    if (tensor > 1) snprintf(out + used, bytes - used, " x tensor %d%s", tensor, groups);
}

/* Seconds of a step by run.rates: the schedule, then the norm and the update, whose collectives wait for
 * each other, or what the next step waits for of an update that goes on beside it. */
static hd_status describe_seconds(const hd_trainer *trainer, int shape,
                                  const hdi_schedule_timing *timing, hdi_text *text)
{
    double norm;
    hdi_copies of_update;
    HD_RETURN_IF_ERROR(hd_plan_seconds(trainer->plan, trainer->norm, &norm));
    HD_RETURN_IF_ERROR(hdi_trainer_copies_of_update(trainer, &of_update));
    const double update = of_update.compute_seconds + of_update.exposed_seconds;
    const hd_trainer_shape *is = &trainer->shapes[shape].is;
    const double seconds = timing->makespan + norm + update;
    hdi_text_printf(text, "predicted %.4g s a step, of which %.3g s for the update", seconds,
                    norm + update);
    if (is->video.frames < 1)
        hdi_text_printf(text, "; %.4g tokens/s on each data rank",
                        (double)(is->sequences * is->tokens * is->accumulate) / seconds);
    hdi_text_append(text, "\n");
    return HD_OK;
}

static hd_status describe_shape(const planning *p, int index, hdi_text *text)
{
    const hd_trainer *any = p->trainers[0];
    const hdi_trainer_shape *shape = &any->shapes[index];
    const int data = hd_mesh_size(p->meshes[0], HD_AXIS_DATA);
    char sequences[96];
    describe_sequence(p->meshes[0], shape->train[0].program, sizeof sequences, sequences);
    hdi_schedule_timing timing;
    double ideal;
    HD_RETURN_IF_ERROR(simulate(p, index, &timing, &ideal));
    if (any->shape_count > 1) hdi_text_printf(text, "shape %d: ", index);
    hdi_text_printf(text, "%d %s: data %d x pipeline %d%s, %d %s each, schedule %s, %d %s of ",
                    p->ranks, p->ranks == 1 ? "rank" : "ranks", data, any->pipeline, sequences,
                    any->chunks, any->chunks == 1 ? "chunk" : "chunks",
                    hdi_schedule_kind_name(shape->schedule->options.kind), shape->is.accumulate,
                    shape->is.accumulate == 1 ? "micro-batch" : "micro-batches");
    describe_batch(&shape->is, text);
    hdi_text_printf(text, "\n%" PRId64 " parameters, ", hd_model_parameters(p->model));
    const int64_t batches = (int64_t)shape->is.accumulate * data;
    if (shape->is.video.frames < 1)
        hdi_text_printf(text, "%" PRId64 " tokens a step, ",
                        shape->is.sequences * shape->is.tokens * batches);
    else
        hdi_text_printf(text, "%" PRId64 " videos a step, ", shape->is.sequences * batches);
    hdi_text_printf(text, "%.4g FLOP a step\n", micro_batch_flops(p, index) * (double)batches);
    hdi_text_printf(text,
                    "bubble %.1f %% of the step; collectives of all ranks match, no deadlock\n",
                    100 * (1 - ideal / timing.makespan));
    if (any->options.rates.compute > 0) return describe_seconds(any, index, &timing, text);
    return HD_OK;
}

/* What is split over ranks, and what a forward and backward therefore gather. */
static void describe_sharding(const hd_trainer *any, hdi_text *text)
{
    const hdi_layout *layout = any->plan->layout;
    static const char *const what[] = {"", "optimizer state", "optimizer state and gradients",
                                       "optimizer state, gradients and weights of layers"};
    const int level = layout->state_sharded + layout->gradients_sharded + layout->weights_sharded;
    if (layout->shards == 1 || !level) return;
    hdi_text_printf(text, "%s in %d shards", what[level], layout->shards);
    if (layout->copies > 1) hdi_text_printf(text, ", %d copies of each", layout->copies);
    if (layout->weights_sharded) {
        hd_streaming passing;
        hd_plan_streaming(any->plan, any->shapes[0].train[0].program, &passing);
        hdi_text_printf(text, "; %d layers pass through %d slots, %s a micro-batch", passing.blocks,
                        passing.slots, hdi_bytes(passing.run_bytes).text);
    }
    hdi_text_append(text, "\n");
}

static hd_status describe(const planning *p, double seconds, hdi_text *text)
{
    const hd_trainer *any = p->trainers[0];
    for (int i = 0; i < any->shape_count; i++)
        HD_RETURN_IF_ERROR(describe_shape(p, i, text));
    if (any->options.dtype != HD_DTYPE_F32)
        hdi_text_printf(text, "weights %s, gradients %s, master %s\n",
                        hd_dtype_name(any->options.dtype), hd_dtype_name(any->options.gradients),
                        any->options.master == HD_MASTER_REMAINDER ? "remainder" : "F32");
    describe_sharding(any, text);
    hdi_text_append(text, "stage\n");
    for (int s = 0; s < any->pipeline; s++)
        HD_RETURN_IF_ERROR(describe_stage(p, s, text));
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
    p.codes = hdi_alloc_array((size_t)ranks, sizeof *p.codes);
    p.calls = hdi_alloc_array((size_t)ranks, sizeof *p.calls);
    hd_status status = p.meshes && p.trainers && p.codes && p.calls ? HD_OK : out_of_memory();
    if (status == HD_OK) status = plan_ranks(&p);
    if (status == HD_OK) status = report(&p, begin, directory, print, write, user);
    for (int r = 0; r < ranks; r++) {
        if (p.trainers) hd_trainer_destroy(p.trainers[r]);
        if (p.meshes) hd_mesh_destroy(p.meshes[r]);
        if (p.calls) hdi_calls_free(&p.calls[r]);
    }
    hdi_searches_release(&p.searches);
    hdi_video_buckets_release(&p.buckets);
    hd_model_destroy(p.model);
    hdi_free(p.calls);
    hdi_free(p.codes);
    hdi_free(p.trainers);
    hdi_free(p.meshes);
    return status;
}
