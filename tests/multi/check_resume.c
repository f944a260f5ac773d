/* ranks: 1 2 4, at most 4 */
/* The promise: a run that was stopped and taken up again, on whatever layout, ends with the same bits
 * as one that never stopped; and what cannot be taken up is refused with the reason. */
#include "tests/support/hdt_job.h"

#include <heddle/log.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STEPS = 6, STOP = 3 };

static const hdt_job_layout layouts[] = {
    {.data = 1, .pipeline = 1},
    {.data = 1, .pipeline = 1, .chunks = 2},
    {.data = 2, .pipeline = 1, .shard_state = 2},
    {.data = 1, .pipeline = 2},
    {.data = 1, .pipeline = 2, .chunks = 2},
    {.data = 4, .pipeline = 1, .shard_state = 3},
    {.data = 1, .pipeline = 4},
    {.data = 2, .pipeline = 2, .shard_state = 1},
    {.data = 2, .pipeline = 2, .chunks = 2, .shard_state = 3},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

static bool is_for(const hdt_job_layout *one, int ranks)
{
    return one->data * one->pipeline == ranks;
}

/* A run of all ranks in `directory`; on one rank without MPI if `split` is NULL. */
static hd_config *configure(const char *directory, const hdt_job_layout *split)
{
    static const char *const settings[][2] = {
        {"model.layers", "4"},         {"model.hidden", "24"},
        {"model.heads", "2"},          {"train.tokens", "16"},
        {"train.micro_batch", "1"},    {"train.batch", "8"},
        {"train.steps", "6"},          {"optimizer.learning_rate", "3e-3"},
        {"optimizer.warmup", "2"},     {"layout.reduction", "exact"},
        {"layout.bucket", "20000"},    {"train.validate_batches", "1"},
        {"train.validate_every", "2"},
    };
    hd_config *config = hdt_job_config(hdt_job_text(), directory, !split);
    hdt_set_all(config, settings);
    if (split) hdt_set_layout(config, split);
    return config;
}

static hd_status train(const char *directory, const hdt_job_layout *split, int64_t stop_after,
                       hd_train_result *result)
{
    hd_config *config = configure(directory, split);
    hdt_set_number(config, "train.stop_after", stop_after);
    return hdt_job_train(config, result);
}

/* What a run on one rank that is never stopped ends with. Collective. */
static uint64_t reference(void)
{
    static uint64_t hash;
    if (hash) return hash;
    const char *directory = hdt_job_directory();
    hdt_job_text();
    if (hd_comm_rank(hdt_world) == 0) {
        hd_train_result result;
        hdt_assert_ok(train(directory, NULL, 0, &result));
        hash = result.weights_hash;
    }
    hd_request request;
    hdt_assert_ok(hd_comm_broadcast(hdt_world, &hash, sizeof hash, 0, &request));
    hdt_assert_ok(hd_comm_wait(hdt_world, &request));
    return hash;
}

START_TEST(every_layout_resumes_what_every_layout_saved)
{
    const uint64_t wanted = reference();
    const int ranks = hd_comm_size(hdt_world);
    const hdt_job_layout *from = &layouts[_i];
    if (!is_for(from, ranks)) return;
    for (int i = 0; i < LAYOUTS; i++) {
        const hdt_job_layout *to = &layouts[i];
        if (!is_for(to, ranks)) continue;
        const char *directory = hdt_job_directory();
        hd_train_result first, second;
        hd_status stopped = train(directory, from, STOP, &first);
        hd_status resumed = train(directory, to, 0, &second);
        ck_assert_int_eq(stopped, HD_ERROR_INTERRUPTED);
        hdt_assert_ok(resumed);
        ck_assert_int_eq(first.steps, STOP);
        ck_assert_int_eq(second.steps, STEPS);
        ck_assert_msg(second.weights_hash == wanted,
                      "saved by data %d x pipeline %d x %d, shard_state %d, resumed by data %d x "
                      "pipeline %d x %d, shard_state %d: other weights than a run that never "
                      "stopped",
                      from->data, from->pipeline, from->chunks, from->shard_state, to->data,
                      to->pipeline, to->chunks, to->shard_state);
    }
}
END_TEST

START_TEST(one_rank_and_many_resume_each_other)
{
    const uint64_t wanted = reference();
    const bool leads = hd_comm_rank(hdt_world) == 0;
    int tried = 0, equal = 0;
    for (int i = 0; i < LAYOUTS; i++) {
        if (!is_for(&layouts[i], hd_comm_size(hdt_world))) continue;
        /* Two steps on one rank, two on all, the rest on one. */
        const char *directory = hdt_job_directory();
        hd_train_result result = {0};
        hd_status begun = HD_ERROR_INTERRUPTED, ended = HD_OK;
        if (leads) begun = train(directory, NULL, 2, &result);
        hdt_assert_ok(hd_comm_barrier(hdt_world));
        hd_status middle = train(directory, &layouts[i], 2, &result);
        hdt_assert_ok(hd_comm_barrier(hdt_world));
        if (leads) ended = train(directory, NULL, 0, &result);
        hdt_assert_ok(hd_comm_barrier(hdt_world));
        tried++;
        equal += begun == HD_ERROR_INTERRUPTED && middle == HD_ERROR_INTERRUPTED &&
                 ended == HD_OK && (!leads || result.weights_hash == wanted);
    }
    ck_assert_int_gt(tried, 0);
    ck_assert_int_eq(equal, tried); /* here, where a rank that fails alone keeps nobody waiting */
}
END_TEST

static const hdt_job_layout *any_layout(void)
{
    int i = 0;
    while (!is_for(&layouts[i], hd_comm_size(hdt_world)))
        i++;
    return &layouts[i];
}

/* "DIRECTORY/checkpoints/step-N/FILE"; `file` may be empty. Borrowed until the next call. */
static const char *step_path(const char *directory, int step, const char *file)
{
    static char path[8400];
    snprintf(path, sizeof path, "%s/checkpoints/step-%d/%s", directory, step, file);
    return path;
}

static hd_status train_saving(const char *directory, int64_t stop_after, hd_train_result *result)
{
    hd_config *config = configure(directory, any_layout());
    hdt_set(config, "checkpoint.every", "1");
    hdt_set(config, "checkpoint.keep", "3");
    hdt_set_number(config, "train.stop_after", stop_after);
    return hdt_job_train(config, result);
}

START_TEST(as_many_checkpoints_stay_as_were_asked_for)
{
    hd_train_result result;
    const char *directory = hdt_job_directory();
    hdt_job_text();
    hdt_assert_ok(train_saving(directory, 0, &result));
    for (int step = 1; step <= STEPS; step++)
        ck_assert_int_eq(access(step_path(directory, step, ""), F_OK) == 0, step > STEPS - 3);
    hdt_assert_ok(hd_comm_barrier(hdt_world));
}
END_TEST

static char warnings[4096];

static void collect_warnings(void *user, hd_log_level level, const char *line)
{
    (void)user, (void)level;
    const size_t used = strlen(warnings);
    snprintf(warnings + used, sizeof warnings - used, "%s\n", line);
}

/* Ways to spoil the newest checkpoint; each gives what a warning has to name. */
static const char *spoil(const char *directory, int way)
{
    const char *path = step_path(directory, STEPS, "rank-0.safetensors");
    struct stat info;
    ck_assert_int_eq(stat(path, &info), 0);
    switch (way) {
    case 0: ck_assert_int_eq(remove(path), 0); return "step-6";
    case 1: ck_assert_int_eq(truncate(path, info.st_size / 2), 0); return "step-6";
    case 2: {
        FILE *file = fopen(path, "r+b");
        ck_assert_ptr_nonnull(file);
        fseek(file, -1, SEEK_END);
        const int byte = fgetc(file);
        fseek(file, -1, SEEK_END);
        fputc(byte ^ 1, file);
        ck_assert_int_eq(fclose(file), 0);
        return "rank-0.safetensors";
    }
    default: ck_assert_int_eq(remove(step_path(directory, STEPS, "manifest.json")), 0);
    }
    return "step-6";
}

START_TEST(a_damaged_checkpoint_is_passed_over_with_a_warning)
{
    const uint64_t wanted = reference();
    const char *directory = hdt_job_directory(), *named = "";
    hd_train_result result;
    hdt_assert_ok(train_saving(directory, 0, &result));
    if (hd_comm_rank(hdt_world) == 0) named = spoil(directory, _i);
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    warnings[0] = '\0';
    hd_log_set_sink(collect_warnings, NULL, HD_LOG_INFO);
    hd_status status = train_saving(directory, 0, &result);
    hd_log_set_sink(NULL, NULL, HD_LOG_NONE);
    hdt_assert_ok(status);
    ck_assert_uint_eq(result.weights_hash, wanted);
    if (hd_comm_rank(hdt_world) != 0) return;
    ck_assert_msg(strstr(warnings, "warn:") && strstr(warnings, named), "'%s' is not in: %s", named,
                  warnings);
    ck_assert_msg(strstr(warnings, "resumed from step 5"), "another step: %s", warnings);
}
END_TEST

/* Files of more than one block, whose sums are checked when a block is read: three steps of which
 * the leader makes two. */
static hd_status train_large(const char *directory, const hdt_job_layout *split, const char *steps,
                             hd_train_result *result)
{
    hd_config *config = configure(directory, split);
    hdt_set(config, "model.vocab", "24000");
    hdt_set(config, "model.hidden", "64");
    hdt_set(config, "model.layers", "4");
    hdt_set(config, "train.batch", "4");
    hdt_set(config, "train.validate_batches", "0");
    hdt_set(config, "train.steps", steps);
    hdt_set(config, "optimizer.decay_steps", "3");
    hdt_set(config, "checkpoint.every", "1");
    return hdt_job_train(config, result);
}

START_TEST(damage_that_only_reading_finds_is_passed_over_too)
{
    const bool leads = hd_comm_rank(hdt_world) == 0;
    char whole[4200], directory[4200];
    hd_train_result wanted, result;
    hd_status undisturbed = HD_OK, begun = HD_OK;
    snprintf(whole, sizeof whole, "%s", hdt_job_directory());
    snprintf(directory, sizeof directory, "%s", hdt_job_directory());
    hdt_job_text();
    if (leads) {
        undisturbed = train_large(whole, NULL, "3", &wanted);
        begun = train_large(directory, NULL, "2", &result);
        FILE *file = fopen(step_path(directory, 2, "rank-0.safetensors"), "r+b");
        ck_assert_ptr_nonnull(file);
        fseek(file, -1, SEEK_END);
        const int byte = fgetc(file);
        ck_assert_int_gt(ftell(file), 16 << 20);
        fseek(file, -1, SEEK_END);
        fputc(byte ^ 1, file);
        ck_assert_int_eq(fclose(file), 0);
    }
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    warnings[0] = '\0';
    hd_log_set_sink(collect_warnings, NULL, HD_LOG_INFO);
    hd_status status = train_large(directory, any_layout(), "3", &result);
    hd_log_set_sink(NULL, NULL, HD_LOG_NONE);
    hdt_assert_ok(undisturbed);
    hdt_assert_ok(begun);
    hdt_assert_ok(status);
    if (!leads) return;
    ck_assert_msg(strstr(warnings, "rank-0.safetensors"), "not named: %s", warnings);
    ck_assert_msg(strstr(warnings, "resumed from step 1"), "another step: %s", warnings);
    ck_assert_uint_eq(result.weights_hash, wanted.weights_hash);
}
END_TEST

/* Every step has one record, in order, however often the run was taken up. */
START_TEST(records_go_on_without_gaps_or_repetition)
{
    const char *directory = hdt_job_directory();
    hd_train_result result;
    hdt_job_text();
    hd_status first = train_saving(directory, 4, &result);
    /* As after a crash before the save of step 4: records are ahead of the newest checkpoint. */
    char stale[8400];
    snprintf(stale, sizeof stale, "%s", step_path(directory, 4, "manifest.json"));
    if (hd_comm_rank(hdt_world) == 0) ck_assert_int_eq(remove(stale), 0);
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    hd_status second = train_saving(directory, 0, &result);
    ck_assert_int_eq(first, HD_ERROR_INTERRUPTED);
    hdt_assert_ok(second);
    if (hd_comm_rank(hdt_world) != 0) return;
    char path[4300], line[4096];
    snprintf(path, sizeof path, "%s/metrics.jsonl", directory);
    FILE *file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    int steps = 0, validations = 0, ends = 0;
    while (fgets(line, sizeof line, file)) {
        int step;
        ck_assert_int_eq(sscanf(line, "{\"step\": %d", &step), 1);
        if (strstr(line, "validation_loss")) {
            ck_assert_int_eq(step, 2 * ++validations);
            continue;
        }
        if (strstr(line, "planned_bytes")) { /* of the run that came to its end */
            ck_assert_int_eq(step, STEPS);
            ends++;
            continue;
        }
        ck_assert_int_eq(step, ++steps);
    }
    fclose(file);
    ck_assert_int_eq(steps, STEPS);
    ck_assert_int_eq(validations, STEPS / 2);
    ck_assert_int_eq(ends, 1);
}
END_TEST

/* Another run in the same directory, changed by one key, fails and says why. */
static void expect_refusal(const char *directory, const char *key, const char *value,
                           hd_status wanted, const char *fragment, const char *other)
{
    hd_train_result result;
    hd_config *config = configure(directory, any_layout());
    hdt_set(config, key, value);
    hd_status status = hdt_job_train(config, &result);
    hdt_assert_status(status, wanted, fragment);
    ck_assert_msg(strstr(hd_last_error(), other), "'%s' is not in: %s", other, hd_last_error());
}

START_TEST(a_checkpoint_of_another_run_is_refused_naming_both)
{
    const char *directory = hdt_job_directory();
    hd_train_result result;
    hdt_job_text();
    ck_assert_int_eq(train(directory, any_layout(), STOP, &result), HD_ERROR_INTERRUPTED);
    expect_refusal(directory, "model.hidden", "32", HD_ERROR_MISMATCH, "\"n_embd\":24",
                   "\"n_embd\": 32");
    expect_refusal(directory, "train.seed", "77", HD_ERROR_MISMATCH, "train.seed 1", "has 77");
    /* And it is still there for the run that it belongs to. */
    const uint64_t wanted = reference();
    hdt_assert_ok(train(directory, any_layout(), 0, &result));
    ck_assert_uint_eq(result.weights_hash, wanted);
}
END_TEST

START_TEST(a_checkpoint_that_is_required_must_be_there)
{
    const char *directory = hdt_job_directory();
    hdt_job_text();
    expect_refusal(directory, "checkpoint.resume", "require", HD_ERROR_IO, "holds no checkpoint",
                   "checkpoint.resume");
}
END_TEST

START_TEST(nothing_is_taken_up_when_that_is_not_wanted)
{
    const uint64_t wanted = reference();
    const char *directory = hdt_job_directory();
    hd_train_result result;
    ck_assert_int_eq(train(directory, any_layout(), STOP, &result), HD_ERROR_INTERRUPTED);
    hd_config *config = configure(directory, any_layout());
    hdt_set(config, "checkpoint.resume", "never");
    hd_status status = hdt_job_train(config, &result);
    hdt_assert_ok(status);
    ck_assert_uint_eq(result.weights_hash, wanted);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("resume");
    tcase_add_loop_test(tests, every_layout_resumes_what_every_layout_saved, 0, LAYOUTS);
    tcase_add_test(tests, one_rank_and_many_resume_each_other);
    tcase_add_test(tests, as_many_checkpoints_stay_as_were_asked_for);
    tcase_add_loop_test(tests, a_damaged_checkpoint_is_passed_over_with_a_warning, 0, 4);
    tcase_add_test(tests, damage_that_only_reading_finds_is_passed_over_too);
    tcase_add_test(tests, records_go_on_without_gaps_or_repetition);
    tcase_add_test(tests, a_checkpoint_of_another_run_is_refused_naming_both);
    tcase_add_test(tests, a_checkpoint_that_is_required_must_be_there);
    tcase_add_test(tests, nothing_is_taken_up_when_that_is_not_wanted);
    return hdt_main_ranks(argc, argv, "resume", tests);
}
