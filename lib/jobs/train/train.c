/* The training job: from a configuration to a trained model, with everything that it writes. */
#include "jobs/train/train.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "jobs/job_model.h"
#include "jobs/progress.h"
#include "jobs/setup.h"
#include "jobs/train/plan_report.h"
#include "optim/learning_rate.h"
#include "report/format.h"
#include "report/pipeline_chart.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* Set by SIGUSR1 and SIGTERM: save after the step, then stop. */
static volatile sig_atomic_t stop_requested;

static void request_stop(int signal_number)
{
    (void)signal_number;
    stop_requested = 1;
}

typedef struct handlers {
    struct sigaction user, terminate;
    stack_t stack;
    bool has_our_stack;
} handlers;

/* Handlers run on a stack of their own: oneDNN's kernels let the stack pointer walk through a buffer on
 * the heap, and the frame of a signal would lie over whatever is beside it. */
static void catch_signals(handlers *before)
{
    static _Alignas(64) char memory[64 << 10]; /* as for stop_requested, one run at a time */
    const stack_t ours = {.ss_sp = memory, .ss_size = sizeof memory};
    struct sigaction action = {.sa_handler = request_stop, .sa_flags = SA_RESTART | SA_ONSTACK};
    *before = (handlers){.has_our_stack = false};
    stop_requested = 0;
    if (sigaltstack(NULL, &before->stack) == 0 && (before->stack.ss_flags & SS_DISABLE))
        before->has_our_stack = sigaltstack(&ours, NULL) == 0;
    sigaction(SIGUSR1, &action, &before->user);
    sigaction(SIGTERM, &action, &before->terminate);
}

static void restore_signals(const handlers *before)
{
    sigaction(SIGUSR1, &before->user, NULL);
    sigaction(SIGTERM, &before->terminate, NULL);
    if (before->has_our_stack) sigaltstack(&before->stack, NULL);
}

static hd_status make_trainer(hdi_train_job *job)
{
    hdi_train_target on = {.config = job->config,
                           .model = job->model,
                           .mesh = job->mesh,
                           .backend = job->context->backend,
                           .remedy = true};
    HD_RETURN_IF_ERROR(
        hd_comm_agree(job->world, hdi_job_foreign(job->config, job->mesh, job->context, &on.foreign,
                                                  &on.transport)));
    if (hd_model_video(job->model)) return hdi_train_videos(&on, &job->feed, &job->trainer);
    /* Whoever fails says so here: to create a trainer may be collective over some of the ranks. */
    HD_RETURN_IF_ERROR(
        hd_comm_agree(job->world, hdi_train_tokens(job->config, job->model, &job->feed)));
    return hdi_train_create(&on, NULL, &job->trainer);
}

static hd_status open_job(const hd_config *config, hdi_train_job *job)
{
    const hdi_config *values = config->values;
    job->config = config;
    job->seed = (uint64_t)hdi_config_int(values, "train.seed");
    HD_RETURN_IF_ERROR(hdi_job_open_world(config, &job->world));
    HD_RETURN_IF_ERROR(hdi_job_open_mesh(config, job->world, &job->mesh));
    /* Before planning: workspaces follow from the device. */
    HD_RETURN_IF_ERROR(hdi_job_open_device(config, job->world, job->mesh, &job->context));
    HD_RETURN_IF_ERROR(hd_comm_agree(job->world, hdi_job_model(config, &job->model)));
    HD_RETURN_IF_ERROR(hd_comm_agree(job->world, make_trainer(job)));
    HD_RETURN_IF_ERROR(hd_comm_check_equal(job->world, &job->feed->fingerprint,
                                           sizeof job->feed->fingerprint,
                                           "the training data (data.path)"));
    HD_RETURN_IF_ERROR(hdi_run_files_open(config, job->world, &job->files));
    HD_RETURN_IF_ERROR(
        hd_comm_agree(job->world, hd_trainer_start(job->trainer, job->context, job->seed)));
    HD_RETURN_IF_ERROR(hdi_train_open_writer(job));
    HD_RETURN_IF_ERROR(hdi_train_resume(job));
    HD_RETURN_IF_ERROR(hdi_train_load_weights(job));
    hd_status status = hdi_run_files_start(&job->files, config, job->trainer->steps);
    if (status == HD_OK && job->files.rank == 0)
        status = hdi_plan_report_write(job->trainer, job->files.directory);
    if (status == HD_OK && hdi_config_bool(values, "run.trace"))
        status = hdi_trace_create(job->files.rank, 1 << 16, &job->trace);
    if (status == HD_OK && job->trace) status = hdi_trainer_start_trace(job->trainer, job->trace);
    if (status == HD_OK) status = job->feed->start(job->feed, job->trainer);
    return hd_comm_agree(job->world, status);
}

/* Peers may wait for a rank that fails alone, in the middle of a step, and it must not wait for them
 * in turn to end MPI together. What they may still read or write here stays until the process ends. */
static void leave_job(hdi_train_job *job)
{
    if (job->files.directory) hdi_run_files_close(&job->files);
}

static void close_job(hdi_train_job *job)
{
    if (job->feed) job->feed->destroy(job->feed); /* its thread looks at the trainer's shapes */
    hdi_checkpoint_writer_destroy(job->writer);
    for (hdi_train_source *source = job->sources, *next; source; source = next) {
        next = source->next;
        hdi_free(source);
    }
    hd_trainer_destroy(job->trainer);
    hdi_trace_destroy(job->trace);
    hd_context_destroy(job->context);
    hd_model_destroy(job->model);
    if (job->files.directory) hdi_run_files_close(&job->files);
    hd_mesh_destroy(job->mesh);
    hd_comm_destroy(job->world);
}

void hdi_train_keep_record(hdi_train_job *job, const hdi_metric *record, int count)
{
    hd_status status = hdi_metrics_append(job->files.metrics, record, count);
    if (status != HD_OK && !job->records_lost)
        hdi_log(HD_LOG_WARN, "going on without records: %s", hd_last_error());
    job->records_lost = status != HD_OK;
}

/* Over all that the feed has for it, each part counting as much as what is in it. */
static hd_status validate(hdi_train_job *job, double *loss)
{
    double sum = 0, tokens = 0;
    hdi_train_feed *feed = job->feed;
    for (int part = 0;; part++) {
        hd_step_result result;
        int shape;
        HD_RETURN_IF_ERROR(feed->validate(feed, part, &shape));
        if (shape < 0) break;
        HD_RETURN_IF_ERROR(
            hd_trainer_validate_shape(job->trainer, shape, feed->fill, feed, &result));
        hdi_glance_at_memory(job->context, HDI_WORK_VALIDATION);
        sum += result.loss * result.tokens;
        tokens += result.tokens;
    }
    if (tokens <= 0) return HD_OK;
    hdi_watch_memory(job->context, HDI_WORK_VALIDATION);
    *loss = sum / tokens;
    if (job->files.rank != 0) return HD_OK;
    const hdi_metric record[] = {hdi_metric_int("step", job->trainer->steps),
                                 hdi_metric_float("validation_loss", *loss)};
    hdi_log(HD_LOG_INFO, "step %" PRId64 ": validation loss %.4f", job->trainer->steps, *loss);
    hdi_train_keep_record(job, record, 2);
    return HD_OK;
}

/* All ranks stop after the same step, whoever was asked. */
static hd_status agree_to_stop(hdi_train_job *job, bool asked, bool *stop)
{
    int32_t flag = asked || stop_requested;
    hd_request request;
    HD_RETURN_IF_ERROR(
        hd_comm_all_reduce(job->world, &flag, 1, HD_DTYPE_I32, HD_REDUCE_MAX, &request));
    HD_RETURN_IF_ERROR(hd_comm_wait(job->world, &request));
    *stop = flag != 0;
    return HD_OK;
}

typedef struct clock_state {
    double begin, last; /* of the steps after the first; of the last step's end */
    double tokens;      /* since begin */
    hdi_pace pace;
} clock_state;

static void record_step(hdi_train_job *job, const hd_step_result *result, double rate,
                        double seconds)
{
    int64_t every = hdi_config_int(job->config->values, "run.log_every");
    if (result->skipped)
        hdi_log(HD_LOG_WARN,
                "step %" PRId64 ": loss %g, gradient norm %g: not finite, step skipped",
                job->trainer->steps, result->loss, result->grad_norm);
    if (job->files.rank != 0 || (job->trainer->steps % every && !result->skipped)) return;
    hdi_metric record[9 + HDI_TRAIN_EXPOSED] = {
        hdi_metric_int("step", job->trainer->steps),
        hdi_metric_float("loss", result->loss),
        hdi_metric_float("grad_norm", result->grad_norm),
        hdi_metric_float("learning_rate", rate),
        hdi_metric_float("tokens", result->tokens),
        hdi_metric_float("seconds", seconds),
        hdi_metric_float("tokens_per_second", result->tokens / seconds),
        hdi_metric_int("skipped", result->skipped),
        hdi_metric_float("loss_scale", result->loss_scale)};
    const bool scaled = job->trainer->options.dtype == HD_DTYPE_F16;
    int count = scaled ? 9 : 8;
    count += hdi_train_record_exposed(job, record + count);
    hdi_train_keep_record(job, record, count);
}

/* What somebody who looks at log.txt while it grows wants to know; metrics.jsonl has every step. */
static void log_start(const hdi_train_job *job)
{
    const int ranks = hd_mesh_ranks(job->mesh);
    if (job->files.rank != 0) return;
    hdi_log(HD_LOG_INFO,
            "training: steps %" PRId64 " to %" PRId64 " of a model of %" PRId64
            " parameters on %d rank%s (%s); planned %s on rank 0",
            job->trainer->steps + 1, hdi_config_int(job->config->values, "train.steps"),
            hd_model_parameters(job->model), ranks, ranks == 1 ? "" : "s",
            job->context->backend->name, hdi_bytes(hd_plan_total_bytes(job->trainer->plan)).text);
}

static void log_step(hdi_train_job *job, const hd_progress *progress, double now)
{
    enum { SECONDS_BETWEEN = 30 };
    if (job->files.rank != 0 || now < job->logs_next) return;
    job->logs_next = now + SECONDS_BETWEEN;
    char line[160];
    hdi_progress shown = hdi_progress_line(progress);
    shown.plain = true;
    hdi_progress_format(&shown, sizeof line, line, sizeof line);
    hdi_log_run(HD_LOG_INFO, "%s", line);
}

static void look_ahead(void *user)
{
    hdi_train_feed *feed = user;
    if (feed->ahead) feed->ahead(feed);
}

static hd_status one_step(hdi_train_job *job, const hdi_rate_options *rates, clock_state *clock,
                          hd_progress *progress, hd_train_result *out)
{
    hd_trainer *trainer = job->trainer;
    double rate = hdi_learning_rate(rates, trainer->steps);
    hdi_train_feed *feed = job->feed;
    hd_step_result result;
    int shape;
    double begin = hdi_clock_seconds();
    HD_RETURN_IF_ERROR(hdi_train_begin_step(job));
    HD_RETURN_IF_ERROR(feed->begin(feed, trainer->steps, &shape));
    trainer->meanwhile = look_ahead;
    trainer->meanwhile_user = feed;
    HD_RETURN_IF_ERROR(hd_trainer_step_shape(trainer, shape, rate, feed->fill, feed, &result));
    feed->end(feed, &trainer->shapes[shape].is);
    HD_RETURN_IF_ERROR(hdi_train_take_exposed(job));
    hdi_glance_at_memory(job->context, HDI_WORK_TRAINING);
    if (feed->tokens) result.tokens = feed->tokens(feed, shape);
    clock->last = hdi_clock_seconds();
    if (out->first_step_seconds == 0) {
        out->first_step_seconds = hdi_clock_process_age();
        clock->begin = clock->last;
    } else {
        clock->tokens += result.tokens;
        out->tokens_per_second = clock->tokens / (clock->last - clock->begin);
    }
    out->loss = result.loss;
    out->steps = trainer->steps;
    progress->step = trainer->steps;
    progress->loss = result.loss;
    progress->learning_rate = rate;
    hdi_pace_note(&clock->pace, clock->last - begin, 1, result.tokens);
    progress->rate = hdi_pace_rate(&clock->pace);
    progress->seconds_left = hdi_pace_left(&clock->pace, progress->steps - trainer->steps);
    record_step(job, &result, rate, clock->last - begin);
    log_step(job, progress, clock->last);
    return HD_OK;
}

/* Where ranks do not agree on what comes out. */
static hd_status note_alone(hdi_train_job *job, hd_status status)
{
    job->alone = status != HD_OK;
    return status;
}

/* Steps until the end, or until somebody asks to stop: then HD_ERROR_INTERRUPTED after a save. */
static hd_status run_steps(hdi_train_job *job, hd_progress_fn progress_fn, void *user,
                           hd_train_result *out)
{
    const hdi_config *values = job->config->values;
    int64_t steps = hdi_config_int(values, "train.steps"), total;
    int64_t save_every = hdi_config_int(values, "checkpoint.every");
    int64_t validate_every = hdi_config_int(values, "train.validate_every");
    int64_t stop_after = hdi_config_int(values, "train.stop_after");
    bool validates = job->trainer->options.validate_batches > 0;
    bool save_last = hdi_config_bool(values, "checkpoint.save_last");
    total = hdi_config_int(values, "optimizer.decay_steps");
    hdi_rate_options rates = {
        .schedule = (hdi_rate_schedule)hdi_config_enum(values, "optimizer.schedule"),
        .peak = hdi_config_float(values, "optimizer.learning_rate"),
        .final_share = hdi_config_float(values, "optimizer.final_rate"),
        .warmup = hdi_config_int(values, "optimizer.warmup"),
        .total = total ? total : steps,
        .decay_fraction = hdi_config_float(values, "optimizer.decay_fraction")};
    clock_state clock = {0};
    hd_progress progress = {.steps = steps, .rate_unit = "tokens"};
    int64_t begun_at = job->trainer->steps, saved_at = job->trainer->steps;
    bool stop = false;
    while (job->trainer->steps < steps && !stop) {
        HD_RETURN_IF_ERROR(note_alone(job, one_step(job, &rates, &clock, &progress, out)));
        int64_t step = job->trainer->steps;
        bool asked = progress_fn && job->files.rank == 0 && !progress_fn(user, &progress);
        asked = asked || (stop_after && step - begun_at >= stop_after && step < steps);
        HD_RETURN_IF_ERROR(note_alone(job, agree_to_stop(job, asked, &stop)));
        const bool now_validates =
            validates && (step == steps || (validate_every && step % validate_every == 0));
        const bool now_saves =
            (step == steps && save_last) || stop || (save_every && step % save_every == 0);
        if (now_validates || now_saves || step == steps)
            hdi_watch_memory(job->context, HDI_WORK_TRAINING);
        if (now_validates)
            HD_RETURN_IF_ERROR(note_alone(job, validate(job, &out->validation_loss)));
        if (now_saves) {
            hd_status saved = hdi_train_save(job);
            if (saved == HD_OK) saved_at = step;
            if (saved == HD_OK && job->files.rank == 0)
                hdi_log_run(HD_LOG_INFO, "step %" PRId64 ": saved", step);
            if (saved != HD_OK && (stop || step == steps)) return saved;
            if (saved != HD_OK)
                hdi_log(HD_LOG_ERROR, "step %" PRId64 ": not saved, going on: %s", step,
                        hd_last_error());
        }
    }
    if (stop && job->trainer->steps < steps)
        return hdi_error(HD_ERROR_INTERRUPTED,
                         "stopped on request after step %" PRId64 ", saved in %s at step %" PRId64,
                         job->trainer->steps, job->files.checkpoints, saved_at);
    return HD_OK;
}

static hd_status write_trace(hdi_train_job *job)
{
    if (!job->trace) return HD_OK;
    char name[32];
    snprintf(name, sizeof name, "ranks/%04d.trace.json", job->files.rank);
    char *path = hdi_run_files_path(&job->files, name);
    hd_status status = path ? HD_OK : hdi_error(HD_ERROR_MEMORY, "trace: out of host memory");
    if (status == HD_OK) status = hdi_spans_settle(job->trainer->spans);
    if (status == HD_OK) status = hdi_trace_flush(job->trace, 0, path);
    hdi_free(path);
    status = hd_comm_agree(job->world, status);
    if (status != HD_OK || job->files.rank != 0) return status;
    int ranks = hd_mesh_ranks(job->mesh);
    char **paths = hdi_alloc_array((size_t)ranks, sizeof(char *));
    char *picture = hdi_run_files_path(&job->files, "pipeline.svg");
    bool ok = paths && picture;
    for (int r = 0; r < ranks && ok; r++) {
        snprintf(name, sizeof name, "ranks/%04d.trace.json", r);
        ok = (paths[r] = hdi_run_files_path(&job->files, name)) != NULL;
    }
    status = ok ? hdi_pipeline_chart_from_files(picture, "one training step",
                                                (const char *const *)paths, ranks, -1)
                : hdi_error(HD_ERROR_MEMORY, "trace: out of host memory");
    for (int r = 0; r < ranks && paths; r++)
        hdi_free(paths[r]);
    hdi_free(paths);
    hdi_free(picture);
    return status;
}

hd_status hd_train_run(const hd_config *config, hd_progress_fn progress, void *user,
                       hd_train_result *out)
{
    *out = (hd_train_result){.validation_loss = (double)NAN,
                             .exposed_copies = (double)NAN,
                             .exposed_communication = (double)NAN,
                             .exposed_host = (double)NAN};
    hdi_train_job job = {.files = {.log = -1, .rank_log = -1}};
    handlers before;
    catch_signals(&before);
    hd_status status = open_job(config, &job);
    if (status == HD_OK) {
        out->entropy = job.feed->entropy;
        out->steps = job.trainer->steps;
        snprintf(out->directory, sizeof out->directory, "%s", job.files.directory);
        log_start(&job);
        status = run_steps(&job, progress, user, out);
        hdi_job_log_memory(job.context, hd_plan_total_bytes(job.trainer->plan));
        hdi_train_sum_up_exposed(&job, out);
    }
    if (status == HD_OK || status == HD_ERROR_INTERRUPTED) {
        hd_status after =
            note_alone(&job, hd_trainer_weights_hash(job.trainer, &out->weights_hash));
        if (after == HD_OK) after = note_alone(&job, hdi_train_sum_up_memory(&job, out));
        if (after == HD_OK)
            after =
                hd_comm_agree(job.world, hdi_run_files_loss_curve(&job.files, job.feed->entropy));
        if (after == HD_OK) after = hd_comm_agree(job.world, write_trace(&job));
        if (after != HD_OK) status = after;
    }
    char text[4096]; /* closing down may fail too, for reasons that follow from the first */
    snprintf(text, sizeof text, "%s", hd_last_error());
    if (status != HD_OK && status != HD_ERROR_INTERRUPTED)
        hdi_log_run(HD_LOG_ERROR, "%s: %s", hd_status_string(status), text);
    if ((job.alone || status == HD_ERROR_TIMEOUT) && hd_comm_size(job.world) > 1)
        leave_job(&job);
    else
        close_job(&job);
    restore_signals(&before);
    return status == HD_OK ? HD_OK : hdi_error(status, "%s", text);
}
