/* The public configuration: what it tells about its keys, and that it holds what is set. */
#include <heddle/job.h>

#include <stdio.h>
#include <string.h>

#include "jobs/config.h"
#include "tests/support/hdt.h"
#include "tests/support/hdt_program.h"

START_TEST(every_key_of_the_schema_is_an_option)
{
    ck_assert_int_eq(hd_config_options(), hdi_job_schema_rows);
    for (int i = 0; i < hdi_job_schema_rows; i++) {
        const hd_config_option *option = hd_config_option_at(i);
        ck_assert_str_eq(option->key, hdi_job_schema[i].key);
        ck_assert_msg(*option->value && strlen(option->value) < 79, "%s: value text is cut: %s",
                      option->key, option->value);
        ck_assert_msg(*option->help, "%s has no help", option->key);
        ck_assert_ptr_nonnull(option->fallback);
    }
    ck_assert_ptr_null(hd_config_option_at(-1));
    ck_assert_ptr_null(hd_config_option_at(hdi_job_schema_rows));
}
END_TEST

START_TEST(options_tell_limits_names_and_units)
{
    static const char *const wanted[][2] = {
        {"train.tokens", "integer 1..16777216 tokens"},
        {"run.deadline", "number >= 0.1 seconds"},
        {"layout.reduction", "fast|exact"},
        {"layout.stages", "integers with commas, each 0..4096 layers"},
        {"layout.shard_state", "0|1|2|3|false|true"},
        {"train.ema_warmup", "true|false"},
        {"memory.budget", "bytes (512MiB, 24GiB)"},
    };
    for (size_t w = 0; w < sizeof wanted / sizeof wanted[0]; w++) {
        const char *seen = NULL;
        for (int i = 0; i < hd_config_options(); i++)
            if (strcmp(hd_config_option_at(i)->key, wanted[w][0]) == 0)
                seen = hd_config_option_at(i)->value;
        ck_assert_ptr_nonnull(seen);
        ck_assert_str_eq(seen, wanted[w][1]);
    }
}
END_TEST

START_TEST(state_sharding_is_a_level_or_a_word)
{
    static const struct {
        const char *text;
        int level; /* -1: refused */
    } given[] = {{"0", 0},     {"1", 1},        {"2", 2},  {"3", 3},   {"true", 1},  {"false", 0},
                 {"\"3\"", 3}, {"\"true\"", 1}, {"4", -1}, {"-1", -1}, {"null", -1}, {"1.5", -1}};
    for (size_t i = 0; i < sizeof given / sizeof given[0]; i++) {
        char text[64];
        hd_config *config;
        hdt_assert_ok(hd_config_create(&config));
        const int length =
            snprintf(text, sizeof text, "{\"layout\": {\"shard_state\": %s}}", given[i].text);
        const hd_status status =
            hdi_config_load_text(config->values, text, (size_t)length, "given");
        const int level = hdi_config_enum(config->values, "layout.shard_state") % HDI_SHARDINGS;
        hd_config_destroy(config);
        if (given[i].level < 0)
            hdt_assert_status(status, HD_ERROR_CONFIG, "wanted 0, 1, 2, 3, false or true");
        else
            hdt_assert_ok(status);
        if (given[i].level >= 0) ck_assert_int_eq(level, given[i].level);
    }
}
END_TEST

START_TEST(defaults_pass_their_own_rules)
{
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    for (int i = 0; i < hd_config_options(); i++)
        hdt_assert_ok(
            hd_config_set(config, hd_config_option_at(i)->key, hd_config_option_at(i)->fallback));
    hd_config_destroy(config);
}
END_TEST

START_TEST(what_is_set_is_printed_and_reads_back)
{
    hd_config *config, *again;
    hdt_text first = {.used = 0}, second = {.used = 0};
    const char *path = hdt_temp_path("config.json");
    hdt_assert_ok(hd_config_create(&config));
    hdt_assert_ok(hd_config_set(config, "train.steps", "77"));
    hdt_assert_ok(hd_config_print(config, hdt_collect, &first));
    ck_assert_ptr_nonnull(strstr(first.text, "\"steps\": 77"));

    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(first.text, file);
    ck_assert_int_eq(fclose(file), 0);
    hdt_assert_ok(hd_config_create(&again));
    hdt_assert_ok(hd_config_load(again, path));
    hdt_assert_ok(hd_config_print(again, hdt_collect, &second));
    ck_assert_str_eq(first.text, second.text);
    hd_config_destroy(again);
    hd_config_destroy(config);
}
END_TEST

START_TEST(wrong_settings_are_refused)
{
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    hdt_assert_status(hd_config_set(config, "train.step", "7"), HD_ERROR_CONFIG,
                      "nearest is train.steps");
    hdt_assert_status(hd_config_set(config, "train.tokens", "0"), HD_ERROR_CONFIG, "train.tokens");
    hdt_assert_status(hd_config_set(config, NULL, "0"), HD_ERROR_ARGUMENT, "NULL");
    hdt_assert_status(hd_config_load(config, "/nonexistent/c.json"), HD_ERROR_IO, "c.json");
    hd_config_destroy(config);
    hd_config_destroy(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("job_config");
    TCase *tests = tcase_create("job_config");
    tcase_add_test(tests, every_key_of_the_schema_is_an_option);
    tcase_add_test(tests, options_tell_limits_names_and_units);
    tcase_add_test(tests, state_sharding_is_a_level_or_a_word);
    tcase_add_test(tests, defaults_pass_their_own_rules);
    tcase_add_test(tests, what_is_set_is_printed_and_reads_back);
    tcase_add_test(tests, wrong_settings_are_refused);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
