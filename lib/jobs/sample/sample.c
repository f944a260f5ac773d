/* The sampling job: text embeddings and weights in, latents (and pictures, of pixel-space models)
 * out. */
#include "jobs/sample/sample.h"
#include "jobs/sample/sample_report.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "io/checkpoint.h"
#include "io/manifest.h"
#include "jobs/job_model.h"
#include "jobs/progress.h"
#include "jobs/sample/sample_pictures.h"
#include "jobs/sample/sample_remedy.h"
#include "jobs/setup.h"
#include "report/metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

/* What a sampling holds, in the order in which it is made. */
typedef struct job {
    const hd_config *config;
    hdi_teller teller;
    const char *weights; /* NULL: random ones */
    char *directory, *state_directory;
    hd_comm *world;
    hd_mesh *mesh;
    hd_context *context;
    hd_model *model;
    hdi_sample_inputs inputs;
    hdi_sample_settings settings;
    const int64_t *seeds; /* [seed_count] */
    int seed_count;
    hd_sampler *sampler;
    hd_sampler_video *videos; /* [count] */
    hdi_sample_file *files;   /* [count] */
    float **latents;          /* [count] of videos that are taken up, on the ranks that need them */
    int count;
    hdi_metrics *metrics;
    double begin;                    /* of the steps */
    int64_t steps_done, steps_to_do; /* of this line of ranks, for rank 0's progress */
    size_t planned;                  /* bytes of the larger phase */
    hd_rates rates;
} job;

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "sample: out of host memory");
}

static hd_status open_model(job *it)
{
    const hdi_config *values = it->config->values;
    if (hdi_config_bool(values, "sample.random_weights"))
        return hdi_job_model(it->config, &it->model);
    const char *path = hdi_config_string(values, "sample.checkpoint");
    it->weights = *path ? path : hdi_config_string(values, "run.directory");
    return hdi_job_model_of(it->config, it->weights, "sample.checkpoint", &it->model);
}

static hd_status make_sampler(job *it)
{
    const hdi_config *values = it->config->values;
    const hd_backend *backend;
    const char *given = hdi_config_string(values, "sample.given");
    HD_RETURN_IF_ERROR(hd_backend_find(hdi_config_string(values, "run.device"), &backend));
    HD_RETURN_IF_ERROR(
        hdi_sample_settings_read(it->config, it->model, backend, *given, &it->settings));
    HD_RETURN_IF_ERROR(hdi_sample_inputs_read(it->config, it->settings.model, it->weights,
                                              it->settings.run.branches > 1, &it->inputs));
    if (*given) HD_RETURN_IF_ERROR(hdi_sample_inputs_read_given(given, &it->settings, &it->inputs));
    HD_RETURN_IF_ERROR(hdi_job_rates(it->config, backend, &it->rates));
    size_t foreign, transport;
    HD_RETURN_IF_ERROR(hdi_job_foreign(it->config, it->mesh, it->context, &foreign, &transport));
    const hd_sampler_options options = {
        .build = hd_model_build,
        .user = it->model,
        .layers = hd_model_layers(it->model),
        .model = it->settings.model,
        .mesh = it->mesh,
        .backend = backend,
        .dtype = it->settings.dtype,
        .shape = it->settings.shape,
        .texts = it->inputs.lengths,
        .text_lengths = it->inputs.length_count,
        .budget = (size_t)hdi_config_bytes(values, "memory.budget"),
        .foreign = foreign,
        .transport = transport,
        .mailboxes = hdi_job_mailboxes(it->config, it->mesh, backend),
        .rates = it->rates,
        .residency = (hd_residency)hdi_config_enum(values, "sample.residency"),
        .slices = (int)hdi_config_int(values, "sample.slices"),
        .sequence_groups = (int)hdi_config_int(values, "layout.sequence_groups"),
        .tensor_groups = (int)hdi_config_int(values, "layout.tensor_groups")};
    const hd_status status = hd_sampler_create(&options, &it->sampler);
    return status == HD_ERROR_BUDGET ? hdi_sample_remedy_add(it->config, &options) : status;
}

static hd_status list_videos(job *it)
{
    it->seeds = hdi_config_int_list(it->config->values, "sample.seeds", &it->seed_count);
    if (it->seed_count < 1) return hdi_error(HD_ERROR_CONFIG, "sample.seeds: empty, want a seed");
    it->count = it->inputs.count * it->seed_count;
    it->videos = hdi_alloc_array((size_t)it->count, sizeof *it->videos);
    it->files = hdi_alloc_array((size_t)it->count, sizeof *it->files);
    it->latents = hdi_alloc_array((size_t)it->count, sizeof *it->latents);
    if (!it->videos || !it->files || !it->latents) return out_of_memory();
    const bool by_mask = it->settings.model->given_by_mask;
    for (int v = 0; v < it->count; v++) {
        const int input = v / it->seed_count;
        const int own = it->inputs.negatives > 1 ? input : 0, negative = it->inputs.count + own;
        const uint64_t seed = (uint64_t)it->seeds[v % it->seed_count];
        it->videos[v] = (hd_sampler_video){.text = {input, negative, negative},
                                           .seed = seed,
                                           .number = (uint64_t)input,
                                           .condition = it->inputs.condition,
                                           .given = by_mask ? NULL : it->inputs.given,
                                           .given_frames = it->inputs.given_frames};
        it->files[v] = (hdi_sample_file){.name = it->inputs.names[input],
                                         .seed = seed,
                                         .steps = it->settings.shape.steps,
                                         .settings = &it->settings};
    }
    return HD_OK;
}

/* All that a rank can do by itself before weights are read. */
static hd_status prepare(job *it)
{
    const hdi_config *values = it->config->values;
    const char *directory = hdi_config_string(values, "sample.directory");
    it->directory = *directory
                        ? hdi_strdup(directory)
                        : hdi_path_join(hdi_config_string(values, "run.directory"), "samples");
    it->state_directory = it->directory ? hdi_path_join(it->directory, "state") : NULL;
    if (!it->state_directory) return out_of_memory();
    HD_RETURN_IF_ERROR(open_model(it));
    HD_RETURN_IF_ERROR(make_sampler(it));
    HD_RETURN_IF_ERROR(list_videos(it));
    return hdi_directory_create(it->state_directory);
}

/* What the weights are: a checkpoint's manifest, or the size and the time of the files. */
static hd_status identify_weights(const job *it, uint64_t *out)
{
    *out = 0;
    if (!it->weights) return HD_OK;
    char *warning = NULL, *text = NULL, *path = NULL;
    if (!hdi_checkpoint_exists(it->weights)) {
        struct stat facts;
        if (stat(it->weights, &facts) != 0) return HD_OK;
        const int64_t numbers[] = {(int64_t)facts.st_size, (int64_t)facts.st_mtim.tv_sec,
                                   (int64_t)facts.st_mtim.tv_nsec};
        *out = XXH3_64bits_withSeed(numbers, sizeof numbers,
                                    XXH3_64bits(it->weights, strlen(it->weights)));
        return HD_OK;
    }
    hdi_checkpoint *checkpoint;
    HD_RETURN_IF_ERROR(hdi_checkpoint_open(it->weights, NULL, &warning, &checkpoint));
    hdi_free(warning); /* loading the weights tells it again */
    size_t bytes = 0;
    path = hdi_path_join(hdi_checkpoint_folder(checkpoint), HDI_MANIFEST_NAME);
    hd_status status =
        path ? hdi_file_read_all(path, SIZE_MAX / 2, &text, &bytes) : out_of_memory();
    if (status == HD_OK) *out = XXH3_64bits(text, bytes);
    hdi_checkpoint_close(checkpoint);
    hdi_free(path);
    hdi_free(text);
    return status;
}

static uint64_t hash_text(const job *it, int index, uint64_t hash)
{
    const hd_sampler_text *text = &it->inputs.texts[index];
    const hd_video_model *model = it->settings.model;
    hash = XXH3_64bits_withSeed(text->text,
                                (size_t)(text->tokens * model->text_columns) * sizeof(float), hash);
    if (!text->pooled || !model->pooled_columns) return hash;
    return XXH3_64bits_withSeed(text->pooled, (size_t)model->pooled_columns * sizeof(float), hash);
}

/* Of everything that a video is a function of, so that files of another sampling are not taken up. */
static void make_fingerprints(job *it, uint64_t weights)
{
    const hdi_sample_settings *is = &it->settings;
    const double facts[] = {hdi_config_bool(it->config->values, "sample.average"),
                            (double)is->shape.frames,
                            (double)is->shape.height,
                            (double)is->shape.width,
                            (double)is->shape.steps,
                            (double)is->dtype,
                            is->run.shift,
                            is->run.branches,
                            is->run.guidance,
                            is->run.image_guidance,
                            is->run.oscillate,
                            is->run.embedded,
                            is->run.embedded_rounded,
                            is->run.fps};
    const char *model = hd_model_config_json(it->model);
    uint64_t common = XXH3_64bits_withSeed(facts, sizeof facts, weights);
    common = XXH3_64bits_withSeed(model, strlen(model), common);
    const int64_t plane = is->shape.height * is->shape.width;
    if (it->inputs.given) {
        common = XXH3_64bits_withSeed(
            it->inputs.given,
            (size_t)(is->model->channels * is->shape.frames * plane) * sizeof(float), common);
        common = XXH3_64bits_withSeed(it->inputs.given_frames,
                                      (size_t)is->shape.frames * sizeof(bool), common);
    }
    for (int v = 0; v < it->count; v++) {
        const uint64_t own[] = {it->videos[v].seed, it->videos[v].number};
        uint64_t hash = XXH3_64bits_withSeed(own, sizeof own, common);
        for (int b = 0; b < is->run.branches && b < 2; b++)
            hash = hash_text(it, it->videos[v].text[b], hash);
        it->files[v].fingerprint = hash;
    }
}

/* "DIRECTORY/NAME-seed-S.safetensors"; NULL when memory is out. */
static char *path_of(const job *it, int video, bool done)
{
    return hdi_format("%s/%s-seed-%" PRIu64 ".safetensors",
                      done ? it->directory : it->state_directory, it->files[video].name,
                      it->videos[video].seed);
}

/* Rank 0: steps of the video that its files hold, and whether it is the finished one that holds them. */
static hd_status look_for(const job *it, int video, int64_t *out)
{
    *out = 0;
    for (int done = 1; done >= 0; done--) {
        const char *why;
        char *path = path_of(it, video, done);
        if (!path) return out_of_memory();
        const int64_t step = hdi_sample_file_read(path, &it->files[video], NULL, &why);
        if (why && !done) hdi_log(HD_LOG_WARN, "%s %s: not taken up", path, why);
        hdi_free(path);
        const bool whole = step == it->files[video].steps;
        if (step > *out && whole == (done == 1)) *out = step;
    }
    return HD_OK;
}

static bool is_here(const job *it, int video)
{
    const int stage = hd_mesh_index(it->mesh, HD_AXIS_PIPELINE);
    const int stages = hd_mesh_size(it->mesh, HD_AXIS_PIPELINE);
    return video % hd_mesh_size(it->mesh, HD_AXIS_DATA) == hd_mesh_index(it->mesh, HD_AXIS_DATA) &&
           (stage == 0 || stage == stages - 1);
}

static hd_status take_up(job *it, int video)
{
    const hdi_sample_settings *is = &it->settings;
    const int64_t elements =
        is->model->channels * is->shape.frames * is->shape.height * is->shape.width;
    if (it->videos[video].step == 0 || it->videos[video].step == it->files[video].steps ||
        !is_here(it, video))
        return HD_OK;
    const char *why;
    char *path = path_of(it, video, false);
    it->latents[video] = hdi_alloc_array((size_t)elements, sizeof(float));
    hd_status status = path && it->latents[video] ? HD_OK : out_of_memory();
    if (status == HD_OK && hdi_sample_file_read(path, &it->files[video], it->latents[video],
                                                &why) != it->videos[video].step)
        status = hdi_error(HD_ERROR_FORMAT, "%s %s; remove it, or set sample.resume to never", path,
                           why ? why : "has changed meanwhile");
    it->videos[video].latents = it->latents[video];
    hdi_free(path);
    return status;
}

/* All ranks go by what rank 0 sees of earlier work. */
static hd_status resume(job *it)
{
    enum { AUTO, NEVER, REQUIRE };
    const int how = hdi_config_enum(it->config->values, "sample.resume");
    int64_t *words = hdi_alloc_array((size_t)it->count + 1, sizeof *words);
    hd_status status = words ? HD_OK : out_of_memory();
    uint64_t weights = 0;
    const bool is_root = hd_comm_rank(it->world) == 0;
    if (status == HD_OK && is_root) status = identify_weights(it, &weights);
    if (status == HD_OK && is_root) make_fingerprints(it, weights);
    if (status == HD_OK && is_root) memcpy(words + it->count, &weights, sizeof weights);
    int64_t found = 0;
    for (int v = 0; v < it->count && status == HD_OK && is_root && how != NEVER; v++) {
        status = look_for(it, v, &words[v]);
        found += words[v];
    }
    if (status == HD_OK && is_root && how == REQUIRE && found == 0)
        status = hdi_error(HD_ERROR_IO, "sample.resume: nothing to take up in %s", it->directory);
    status = hd_comm_agree(it->world, status);
    hd_request request;
    if (status == HD_OK)
        status = hd_comm_broadcast(it->world, words, ((size_t)it->count + 1) * sizeof *words, 0,
                                   &request);
    if (status == HD_OK) status = hd_comm_wait(it->world, &request);
    if (status == HD_OK) {
        memcpy(&weights, words + it->count, sizeof weights);
        make_fingerprints(it, weights);
        for (int v = 0; v < it->count; v++)
            it->videos[v].step = words[v];
        for (int v = 0; v < it->count && status == HD_OK; v++)
            status = take_up(it, v);
        status = hd_comm_agree(it->world, status);
    }
    hdi_free(words);
    return status;
}

static hd_status save(const job *it, const hd_sampler_event *event)
{
    const bool done = event->step == event->steps;
    const int64_t every = hdi_config_int(it->config->values, "sample.save_every");
    if (!done && (every == 0 || event->step % every != 0)) return HD_OK;
    hdi_sample_file file = it->files[event->video];
    file.step = event->step;
    char *path = path_of(it, event->video, done), *state = path_of(it, event->video, false);
    hd_status status =
        path && state ? hdi_sample_file_write(path, &file, event->latents) : out_of_memory();
    if (status == HD_OK && done) status = hdi_remove_tree(state);
    hdi_free(path);
    hdi_free(state);
    return status;
}

static hd_status on_step(void *user, const hd_sampler_event *event)
{
    job *it = user;
    const double seconds = hdi_clock_seconds() - it->begin;
    if (event->is_last_stage) {
        const hdi_metric fields[] = {hdi_metric_string("input", it->files[event->video].name),
                                     hdi_metric_int("seed", (int64_t)it->files[event->video].seed),
                                     hdi_metric_int("step", event->step),
                                     hdi_metric_int("steps", event->steps),
                                     hdi_metric_float("seconds", seconds)};
        HD_RETURN_IF_ERROR(
            hdi_metrics_append(it->metrics, fields, sizeof fields / sizeof fields[0]));
        HD_RETURN_IF_ERROR(save(it, event));
    }
    if (hd_comm_rank(it->world) != 0) return HD_OK;
    it->steps_done++;
    hdi_tell(&it->teller, &(hd_progress){.step = it->steps_done, .steps = it->steps_to_do}, 1,
             it->steps_to_do - it->steps_done);
    return HD_OK;
}

/* Rank 0 makes or mends the file before others open it. Lines of earlier samplings stay. */
static hd_status open_metrics(job *it)
{
    const bool is_root = hd_comm_rank(it->world) == 0;
    char *path = hdi_path_join(it->directory, "metrics.jsonl");
    hd_status status = path ? HD_OK : out_of_memory();
    if (status == HD_OK && is_root) status = hdi_metrics_open(path, &it->metrics);
    status = hd_comm_agree(it->world, status);
    if (status == HD_OK && !is_root) status = hdi_metrics_open(path, &it->metrics);
    hdi_free(path);
    return hd_comm_agree(it->world, status);
}

static hd_status draw(const job *it)
{
    char **paths = hdi_alloc_array((size_t)it->count, sizeof *paths);
    bool ok = paths;
    for (int v = 0; v < it->count && ok; v++) {
        paths[v] = path_of(it, v, true);
        ok = paths[v];
    }
    hd_status status =
        ok ? hdi_sample_draw(it->directory, paths, it->files, it->count, it->settings.run.fps)
           : out_of_memory();
    for (int v = 0; v < it->count && paths; v++)
        hdi_free(paths[v]);
    hdi_free(paths);
    return status;
}

/* What is left to do on rank 0's line, for its progress. */
static void count_steps(job *it)
{
    const int lines = hd_mesh_size(it->mesh, HD_AXIS_DATA);
    for (int v = hd_mesh_index(it->mesh, HD_AXIS_DATA); v < it->count; v += lines)
        it->steps_to_do += it->files[v].steps - it->videos[v].step;
}

static hd_status run_sampler(job *it, hd_sample_result *out)
{
    hd_sampler_run_options run = it->settings.run;
    run.event = on_step;
    run.user = it;
    int64_t left = 0;
    for (int v = 0; v < it->count; v++)
        left += it->files[v].steps - it->videos[v].step;
    for (int phase = HD_PURPOSE_CONDITION; phase <= HD_PURPOSE_DENOISE; phase++) {
        const hd_plan *plan = hd_sampler_plan(it->sampler, (hd_purpose)phase);
        const size_t bytes = plan ? hd_plan_total_bytes(plan) : 0;
        if (bytes > it->planned) it->planned = bytes;
    }
    count_steps(it);
    hd_sampler_result result = {0};
    it->begin = it->teller.last = hdi_clock_seconds();
    if (left)
        HD_RETURN_IF_ERROR(hd_sampler_run(it->sampler, it->inputs.texts,
                                          it->inputs.count + it->inputs.negatives, it->videos,
                                          it->count, &run, &result));
    HD_RETURN_IF_ERROR(hdi_job_most_memory(it->world, it->context, &it->planned));
    hdi_job_log_memory(it->context, it->planned);
    out->videos = it->count;
    out->steps = left;
    out->seconds = result.seconds;
    const hdi_sample_speed speed = {it->sampler, it->world, it->metrics, it->count, it->rates};
    return hdi_sample_report_speed(&speed, &result, out);
}

static hd_status run_job(job *it, hd_sample_result *out)
{
    HD_RETURN_IF_ERROR(hdi_job_open_world(it->config, &it->world));
    HD_RETURN_IF_ERROR(hdi_job_open_mesh(it->config, it->world, &it->mesh));
    HD_RETURN_IF_ERROR(hdi_job_open_device(it->config, it->world, it->mesh, &it->context));
    HD_RETURN_IF_ERROR(hd_comm_agree(it->world, prepare(it)));
    HD_RETURN_IF_ERROR(hd_sampler_start(
        it->sampler, it->context,
        &(hd_sampler_weights){.path = it->weights,
                              .average = hdi_config_bool(it->config->values, "sample.average")}));
    HD_RETURN_IF_ERROR(resume(it));
    HD_RETURN_IF_ERROR(open_metrics(it));
    HD_RETURN_IF_ERROR(run_sampler(it, out));
    snprintf(out->directory, sizeof out->directory, "%s", it->directory);
    hd_status status = hd_comm_rank(it->world) == 0 ? draw(it) : HD_OK;
    return hd_comm_agree(it->world, status);
}

hd_status hd_sample_run(const hd_config *config, hd_progress_fn progress, void *user,
                        hd_sample_result *out)
{
    *out = (hd_sample_result){0};
    job it = {.config = config, .teller = {.progress = progress, .user = user}};
    const hd_status status = run_job(&it, out);
    hdi_metrics_close(it.metrics);
    for (int v = 0; v < it.count && it.latents; v++)
        hdi_free(it.latents[v]);
    hdi_free(it.latents);
    hdi_free(it.videos);
    hdi_free(it.files);
    hd_sampler_destroy(it.sampler);
    hdi_sample_inputs_free(&it.inputs);
    hd_model_destroy(it.model);
    hd_context_destroy(it.context);
    hd_mesh_destroy(it.mesh);
    hd_comm_destroy(it.world);
    hdi_free(it.directory);
    hdi_free(it.state_directory);
    return status;
}
