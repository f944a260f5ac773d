/* ranks: 1 2 4, at most 4 */
/* The promise, for video models: steps of two sizes give the same weights and averages, bit for bit,
 * on every layout, stopped and taken up again or not; and training learns. */
#include "tests/support/hdt_job.h"

#include "core/memory.h"
#include "core/random.h"
#include "io/checkpoint.h"
#include "io/video_dataset.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

enum { CHANNELS = 4, COLUMNS = 24, POOLED = 12, CLASSES = 3, CLIPS = 24, IMAGES = 12 };

static const hdt_job_layout layouts[] = {
    {.data = 1, .pipeline = 1},
    {.data = 1, .pipeline = 1, .chunks = 2, .waits = true},
    {.data = 2, .pipeline = 1, .shard_state = 1},
    {.data = 2, .pipeline = 1, .shard_state = 3, .waits = true},
    {.data = 1, .pipeline = 2, .waits = true},
    {.data = 1, .pipeline = 2, .chunks = 2},
    {.data = 4, .pipeline = 1, .shard_state = 2, .waits = true},
    {.data = 1, .pipeline = 4},
    {.data = 2, .pipeline = 2, .shard_state = 1},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

/* Frames given beside the text where the model knows that. */
static const struct {
    const char *preset, *tasks, *shift;
} models[] = {{"hunyuan-video-tiny", "", "constant"},
              {"open-sora-2-tiny", "1,5,1,1", "open-sora-2"},
              {"stdit3-tiny", "1,1,1,1", "open-sora-1"},
              {"stdit3-v13-tiny", "1,1,1,1", "open-sora-1"}};
enum { MODELS = sizeof models / sizeof models[0] };

static bool is_for(const hdt_job_layout *one, int ranks)
{
    return one->data * one->pipeline == ranks;
}

/* Each class is a stripe of its own, a little disturbed. */
static void add_sample(hdi_video_writer *writer, int64_t number, int64_t frames, int64_t side)
{
    float latents[CHANNELS * 3 * 8 * 8];
    const int64_t class = number % CLASSES;
    for (int64_t i = 0; i < CHANNELS * frames * side * side; i++) {
        const float noise = hdi_random_normal(5, (uint64_t)number, (uint64_t)i);
        latents[i] = (i % side / 2 == class ? 2.0F : -1.0F) + 0.1F * noise;
    }
    const hdi_video_sample sample = {
        .dims = {CHANNELS, frames, side, side}, .text = 1 + class, .fps = 24};
    hdt_assert_ok(hdi_video_writer_append(writer, &sample, latents));
}

static void write_data(const char *path)
{
    hdi_video_writer *writer;
    hdt_assert_ok(hdi_video_writer_create(path,
                                          &(hdi_video_writer_options){.channels = CHANNELS,
                                                                      .text_columns = COLUMNS,
                                                                      .pooled_columns = POOLED},
                                          &writer));
    for (int64_t t = 0; t <= CLASSES; t++) {
        float text[4 * COLUMNS], pooled[POOLED];
        int64_t added;
        hdt_fill(text, 4 * COLUMNS, (uint64_t)t + 1);
        hdt_fill(pooled, POOLED, (uint64_t)t + 9);
        hdt_assert_ok(
            hdi_video_writer_text(writer, NULL, t == 0 ? 1 : 1 + t, text, pooled, &added));
    }
    hdt_assert_ok(hdi_video_writer_null_text(writer, 0));
    for (int64_t s = 0; s < CLIPS; s++)
        add_sample(writer, s, 3, 8);
    for (int64_t s = 0; s < IMAGES; s++)
        add_sample(writer, CLIPS + s, 1, 8);
    hdt_assert_ok(hdi_video_writer_finish(writer));
    hdi_video_writer_destroy(writer);
}

/* The data set; the first call is collective. */
static const char *data_path(void)
{
    static char path[4200];
    if (*path) return path;
    snprintf(path, sizeof path, "%s/videos", hdt_shared_temp_dir());
    if (hd_comm_rank(hdt_world) == 0) write_data(path);
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    return path;
}

/* A run of all ranks in `directory`; on one rank without MPI if `split` is NULL. Steps take 8 clips or,
 * by the budget of tokens, more images. */
static hd_config *configure(const char *directory, const hdt_job_layout *split, int model)
{
    static const char *const settings[][2] = {
        {"train.steps", "5"},
        {"train.tokens_per_step", "420"},
        {"train.ema", "0.8"},
        {"train.ema_warmup", "true"},
        {"train.validate_batches", "1"},
        {"data.validation_fraction", "0.2"},
        {"video.micro_batch", "1"},
        {"video.text_dropout", "0.2"},
        {"optimizer.learning_rate", "3e-3"},
        {"layout.reduction", "exact"},
        {"layout.bucket", "100000"},
    };
    hd_config *config = hdt_job_config(data_path(), directory, !split);
    hdt_set_all(config, settings);
    hdt_set(config, "model.preset", models[model].preset);
    if (*models[model].tasks) hdt_set(config, "video.task_ratios", models[model].tasks);
    hdt_set(config, "video.time_shift", models[model].shift);
    if (split) hdt_set_layout(config, split);
    return config;
}

static hd_status train(const char *directory, const hdt_job_layout *split, int model,
                       int64_t stop_after, hd_train_result *result)
{
    hd_config *config = configure(directory, split, model);
    hdt_set_number(config, "train.stop_after", stop_after);
    return hdt_job_train(config, result);
}

/* Of the averages in a run's newest checkpoint. */
static uint64_t average_hash(const char *directory)
{
    hdi_checkpoint *checkpoint;
    char *warning;
    uint64_t hash = 0;
    int found = 0;
    hdt_assert_ok(hdi_checkpoint_open(directory, NULL, &warning, &checkpoint));
    for (int i = 0; i < hdi_checkpoint_count(checkpoint); i++) {
        const hdi_checkpoint_tensor *tensor = hdi_checkpoint_get(checkpoint, i);
        if (strncmp(tensor->name, "ema/", 4) != 0) continue;
        float *values = hdi_alloc_array((size_t)tensor->elements, sizeof *values);
        hdt_assert_ok(hdi_checkpoint_read(checkpoint, tensor->name, 0, tensor->elements,
                                          HD_DTYPE_F32, values));
        hash = XXH3_64bits_withSeed(values, (size_t)tensor->elements * sizeof *values, hash);
        hdi_free(values);
        found++;
    }
    ck_assert_int_gt(found, 10);
    hdi_checkpoint_close(checkpoint);
    return hash;
}

typedef struct outcome {
    uint64_t weights, averages;
    double validation;
} outcome;

/* What a run on one rank that is never stopped ends with. Collective. */
static outcome reference(int model)
{
    static outcome known[MODELS];
    if (known[model].weights) return known[model];
    const char *directory = hdt_job_directory();
    data_path();
    if (hd_comm_rank(hdt_world) == 0) {
        hd_train_result result;
        hdt_assert_ok(train(directory, NULL, model, 0, &result));
        known[model] = (outcome){.weights = result.weights_hash,
                                 .averages = average_hash(directory),
                                 .validation = result.validation_loss};
        ck_assert_uint_ne(known[model].weights, known[model].averages);
    }
    hd_request request;
    hdt_assert_ok(hd_comm_broadcast(hdt_world, &known[model], sizeof known[model], 0, &request));
    hdt_assert_ok(hd_comm_wait(hdt_world, &request));
    return known[model];
}

START_TEST(weights_and_averages_are_equal_on_every_layout)
{
    const outcome wanted = reference(_i);
    int tried = 0;
    for (int l = 0; l < LAYOUTS; l++) {
        if (!is_for(&layouts[l], hd_comm_size(hdt_world))) continue;
        const char *directory = hdt_job_directory();
        hd_train_result result;
        hdt_assert_ok(train(directory, &layouts[l], _i, 0, &result));
        const uint64_t averages = average_hash(directory);
        ck_assert_msg(result.weights_hash == wanted.weights && averages == wanted.averages,
                      "%s, data %d x pipeline %d x chunks %d: weights %016llx averages %016llx, "
                      "one rank has %016llx %016llx",
                      models[_i].preset, layouts[l].data, layouts[l].pipeline, layouts[l].chunks,
                      (unsigned long long)result.weights_hash, (unsigned long long)averages,
                      (unsigned long long)wanted.weights, (unsigned long long)wanted.averages);
        if (layouts[l].data == 1) ck_assert_double_eq(result.validation_loss, wanted.validation);
        hdt_assert_ok(hd_comm_barrier(hdt_world));
        tried++;
    }
    ck_assert_int_gt(tried, 0);
}
END_TEST

START_TEST(a_run_goes_on_with_other_ranks_as_if_it_had_not_stopped)
{
    const outcome wanted = reference(_i);
    const bool leads = hd_comm_rank(hdt_world) == 0;
    int equal = 0, tried = 0;
    for (int l = 0; l < LAYOUTS; l++) {
        if (!is_for(&layouts[l], hd_comm_size(hdt_world)) || layouts[l].chunks > 1 || tried)
            continue;
        const char *directory = hdt_job_directory();
        hd_train_result result = {0};
        hd_status begun = HD_ERROR_INTERRUPTED, ended = HD_OK;
        if (leads) begun = train(directory, NULL, _i, 2, &result);
        hdt_assert_ok(hd_comm_barrier(hdt_world));
        hd_status middle = train(directory, &layouts[l], _i, 2, &result);
        hdt_assert_ok(hd_comm_barrier(hdt_world));
        if (leads) ended = train(directory, NULL, _i, 0, &result);
        hdt_assert_ok(hd_comm_barrier(hdt_world));
        tried++;
        equal += begun == HD_ERROR_INTERRUPTED && middle == HD_ERROR_INTERRUPTED &&
                 ended == HD_OK && average_hash(directory) == wanted.averages &&
                 (!leads || result.weights_hash == wanted.weights);
    }
    ck_assert_int_gt(tried, 0);
    ck_assert_int_eq(equal, tried);
}
END_TEST

/* Two steps, of a pipeline of pairs of ranks that share the layers, or of one rank without MPI. */
static hd_status train_in_pairs(const char *directory, bool pairs, int model,
                                hd_train_result *result)
{
    const hdt_job_layout half = {.data = 1, .pipeline = hd_comm_size(hdt_world) / 2, .tensor = 2};
    hd_config *config = configure(directory, pairs ? &half : NULL, model);
    hdt_set(config, "layout.reduction", "fast");
    hdt_set(config, "train.steps", "2");
    return hdt_job_train(config, result);
}

/* A clip has 48 tokens, and a tiny model four layers of eight roundings. */
START_TEST(layers_that_ranks_share_train_alike_and_open_on_one)
{
    if (hd_comm_size(hdt_world) == 1) return;
    const double bound = hdt_tolerance(HD_DTYPE_F32, 48 * 4 * 8);
    const char *split = hdt_job_directory(), *alone = hdt_job_directory();
    hd_train_result seen = {0}, opened = {0}, wanted = {0};
    data_path();
    hd_status status = train_in_pairs(split, true, _i, &seen), read = HD_OK, single = HD_OK;
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    if (hd_comm_rank(hdt_world) == 0) {
        read = train_in_pairs(split, false, _i, &opened);
        single = train_in_pairs(alone, false, _i, &wanted);
    }
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    hdt_assert_ok(status);
    if (hd_comm_rank(hdt_world) > 0) return;
    hdt_assert_ok(read);
    hdt_assert_ok(single);
    ck_assert_uint_eq(opened.weights_hash, seen.weights_hash);
    ck_assert_double_eq_tol(seen.validation_loss, wanted.validation_loss,
                            bound * wanted.validation_loss);
}
END_TEST

/* What knows the data but cannot see the noise in its input has a loss of 1, that of the noise. */
START_TEST(training_learns)
{
    if (hd_comm_size(hdt_world) > 1) return;
    hd_train_result result;
    hd_config *config = configure(hdt_job_directory(), NULL, _i);
    hdt_set(config, "train.steps", "60");
    hdt_set(config, "train.tokens_per_step", "0");
    hdt_set(config, "video.micro_batch", "4");
    hdt_set(config, "video.task_ratios", "");
    hdt_set(config, "layout.reduction", "fast");
    hdt_set(config, "optimizer.learning_rate", "1e-2");
    hdt_set(config, "optimizer.warmup", "5");
    hdt_assert_ok(hdt_job_train(config, &result));
    ck_assert_double_lt(result.validation_loss, 0.6);
}
END_TEST

typedef struct watched {
    char path[4300];
    bool has_started, has_stepped; /* lines that log.txt had after the first step */
    bool has_stack;                /* for the handlers of both signals that stop a run */
} watched;

static bool watch_log(void *user, const hd_progress *progress)
{
    watched *it = user;
    char text[4096] = "";
    struct sigaction user_signal, terminate;
    stack_t stack;
    sigaction(SIGUSR1, NULL, &user_signal);
    sigaction(SIGTERM, NULL, &terminate);
    sigaltstack(NULL, &stack);
    it->has_stack =
        (user_signal.sa_flags & terminate.sa_flags & SA_ONSTACK) && !(stack.ss_flags & SS_DISABLE);
    FILE *file = progress->step == 1 ? fopen(it->path, "r") : NULL;
    if (!file) return true;
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    it->has_started = strstr(text, "training: steps 1 to ") != NULL;
    it->has_stepped = strstr(text, "step 1/") != NULL;
    return true;
}

/* Without a stack of their own, handlers write where oneDNN has pointed the stack pointer: the heap. */
START_TEST(the_log_grows_while_the_run_goes_on_and_signals_have_a_stack)
{
    const char *directory = hdt_job_directory();
    watched seen = {.has_started = false};
    snprintf(seen.path, sizeof seen.path, "%s/log.txt", directory);
    const hdt_job_layout *split = &layouts[0];
    for (int l = 0; l < LAYOUTS; l++)
        if (is_for(&layouts[l], hd_comm_size(hdt_world))) split = &layouts[l];
    hd_train_result result;
    hd_config *config = configure(directory, split, 0);
    hd_status status = hd_train_run(config, watch_log, &seen, &result);
    hd_config_destroy(config);
    hdt_assert_ok(status);
    const bool leads = hd_comm_rank(hdt_world) == 0; /* the others are not asked */
    ck_assert(seen.has_started == leads && seen.has_stepped == leads);
    ck_assert(seen.has_stack == leads);
}
END_TEST

START_TEST(batches_that_follow_from_memory_are_refused_in_exact_mode)
{
    hd_train_result result;
    const hdt_job_layout *split = &layouts[0];
    for (int l = 0; l < LAYOUTS; l++)
        if (is_for(&layouts[l], hd_comm_size(hdt_world))) split = &layouts[l];
    hd_config *config = configure(hdt_job_directory(), split, 0);
    hdt_set(config, "video.micro_batch", "0");
    hdt_assert_status(hdt_job_train(config, &result), HD_ERROR_CONFIG, "video.micro_batch");
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("video_train");
    tcase_add_loop_test(tests, weights_and_averages_are_equal_on_every_layout, 0, MODELS);
    tcase_add_loop_test(tests, a_run_goes_on_with_other_ranks_as_if_it_had_not_stopped, 1, MODELS);
    tcase_add_loop_test(tests, layers_that_ranks_share_train_alike_and_open_on_one, 0, MODELS);
    tcase_add_loop_test(tests, training_learns, 0, 2);
    tcase_add_test(tests, the_log_grows_while_the_run_goes_on_and_signals_have_a_stack);
    tcase_add_test(tests, batches_that_follow_from_memory_are_refused_in_exact_mode);
    return hdt_main_ranks(argc, argv, "video_train", tests);
}
