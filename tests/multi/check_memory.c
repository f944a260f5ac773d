/* ranks: 1 2, at most 4 */
/* The promise: a training says what was in use of its devices in steps, validations and saves. */
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_files.h"
#include "tests/support/hdt_job.h"

#include "core/memory.h"
#include "report/metrics.h"

#include <stdio.h>

/* Of the last record of metrics.jsonl that has it. */
static size_t recorded(const char *directory, const char *field)
{
    char path[1100];
    bool found = false;
    double value = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", directory);
    hdt_assert_ok(hdi_metrics_last(path, field, &value, &found));
    ck_assert_msg(found, "no %s in %s", field, path);
    return (size_t)value;
}

START_TEST(a_training_says_what_was_in_use_in_all_its_work)
{
    static const char *const settings[][2] = {{"model.layers", "2"},     {"model.hidden", "24"},
                                              {"model.heads", "2"},      {"train.steps", "4"},
                                              {"train.tokens", "16"},    {"train.batch", "4"},
                                              {"train.micro_batch", "1"}};
    const bool is_cpu = strcmp(hdt_device(), "cpu") == 0, validates = _i & 1, saves = _i & 2;
    const char *directory = hdt_job_directory();
    hdt_end_parking(); /* what stays is memory of nobody's plan */
    hd_config *config = hdt_job_config(hdt_job_text(), directory, false);
    hdt_set_all(config, settings);
    hdt_set(config, "memory.budget", is_cpu ? "1GiB" : "4GiB");
    hdt_set_number(config, "train.validate_every", validates ? 2 : 0);
    hdt_set_number(config, "train.validate_batches", validates ? 1 : 0);
    hdt_set_number(config, "checkpoint.every", saves ? 2 : 0);
    hdt_set(config, "checkpoint.save_last", saves ? "true" : "false");
    hd_train_result is = {0};
    hdt_assert_ok(hdt_job_train(config, &is));
    ck_assert_uint_gt(is.planned_bytes, 0);
    ck_assert_uint_gt(is.training_bytes, 0);
    ck_assert_int_eq(is.validation_bytes > 0, validates);
    ck_assert_int_eq(is.save_bytes > 0, saves);
    if (!is_cpu) { /* whose memory others use, too */
        ck_assert_uint_le(is.training_bytes, is.planned_bytes);
        ck_assert_uint_le(is.validation_bytes, is.training_bytes);
        ck_assert_uint_le(is.save_bytes, is.training_bytes);
    }
    if (hd_comm_rank(hdt_world) != 0) return;
    ck_assert_uint_eq(recorded(directory, "planned_bytes"), is.planned_bytes);
    ck_assert_uint_eq(recorded(directory, "training_bytes"), is.training_bytes);
    ck_assert_uint_eq(recorded(directory, "validation_bytes"), is.validation_bytes);
    ck_assert_uint_eq(recorded(directory, "save_bytes"), is.save_bytes);
    char path[1100];
    snprintf(path, sizeof path, "%s/log.txt", directory);
    char *log = hdt_read_text(path);
    ck_assert_ptr_nonnull(strstr(log, "memory: planned "));
    ck_assert_int_eq(strstr(log, " in validation") != NULL, validates && !is_cpu);
    ck_assert_int_eq(strstr(log, " in saving") != NULL, saves && !is_cpu);
    hdi_free(log);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("memory");
    tcase_add_loop_test(tests, a_training_says_what_was_in_use_in_all_its_work, 0, 4);
    tcase_add_checked_fixture(tests, hdt_files_reset, NULL);
    return hdt_main_ranks(argc, argv, "memory", tests);
}
