/* The configuration: what it reads, what it refuses and how it says so. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/config.h"
#include "core/file.h"
#include "core/memory.h"
#include "tests/support/hdt.h"

static const char *const schedules[] = {"gpipe", "1f1b", "interleaved", NULL};

static const hdi_config_row schema[] = {
    {.key = "train.steps",
     .type = HDI_CONFIG_INT,
     .fallback = "100",
     .min = "1",
     .max = "1000000",
     .unit = "steps",
     .help = "how long"},
    {.key = "train.seed", .type = HDI_CONFIG_INT, .fallback = "1"},
    {.key = "train.exact", .type = HDI_CONFIG_BOOL, .fallback = "false"},
    {.key = "train.schedule.kind", .type = HDI_CONFIG_ENUM, .fallback = "1f1b", .names = schedules},
    {.key = "optimizer.rate", .type = HDI_CONFIG_FLOAT, .fallback = "1e-3", .min = "0", .max = "1"},
    {.key = "memory.budget", .type = HDI_CONFIG_BYTES, .fallback = "24GiB", .min = "1MiB"},
    {.key = "layout.stages", .type = HDI_CONFIG_INT_LIST, .min = "0", .max = "64"},
    {.key = "data.path", .type = HDI_CONFIG_STRING, .fallback = "corpus"},
    {.key = "data.tags", .type = HDI_CONFIG_STRING_LIST},
    {.key = "log.level",
     .type = HDI_CONFIG_STRING,
     .fallback = "info",
     .flags = HDI_CONFIG_NO_EFFECT},
};
enum { ROWS = sizeof schema / sizeof schema[0] };

static hdi_config *config;

static void setup(void)
{
    hdt_assert_ok(hdi_config_create(schema, ROWS, &config));
}

static void teardown(void)
{
    hdi_config_destroy(config);
    config = NULL;
}

static hd_status load(const char *text)
{
    return hdi_config_load_text(config, text, strlen(text), "c.json");
}

static void load_well(const char *text)
{
    hdt_assert_ok(load(text));
}

START_TEST(defaults_hold_until_something_is_set)
{
    int count;
    ck_assert_int_eq(hdi_config_int(config, "train.steps"), 100);
    ck_assert(!hdi_config_bool(config, "train.exact"));
    ck_assert_int_eq(hdi_config_enum(config, "train.schedule.kind"), 1);
    ck_assert_str_eq(hdi_config_string(config, "train.schedule.kind"), "1f1b");
    ck_assert_double_eq(hdi_config_float(config, "optimizer.rate"), 1e-3);
    ck_assert_int_eq(hdi_config_bytes(config, "memory.budget"), INT64_C(24) << 30);
    hdi_config_int_list(config, "layout.stages", &count);
    ck_assert_int_eq(count, 0);
    ck_assert_str_eq(hdi_config_string(config, "data.path"), "corpus");
    ck_assert_str_eq(hdi_config_origin(config, "data.path"), "default");
    hdt_assert_ok(hdi_config_misuse(config));
}
END_TEST

START_TEST(file_sets_every_type)
{
    load_well("{\"train\": {\"steps\": 500, \"seed\": 9007199254740993, \"exact\": true,\n"
              "  \"schedule\": {\"kind\": \"gpipe\"}},\n"
              " \"optimizer\": {\"rate\": 1},\n"
              " \"memory\": {\"budget\": \"1.5GiB\"}, \"layout.stages\": [3, 4, 5],\n"
              " \"data\": {\"path\": \"a,b \\u00e9\", \"tags\": [\"x\", \"y,z\"]}}");
    int count;
    ck_assert_int_eq(hdi_config_int(config, "train.steps"), 500);
    ck_assert_int_eq(hdi_config_int(config, "train.seed"), INT64_C(9007199254740993));
    ck_assert(hdi_config_bool(config, "train.exact"));
    ck_assert_str_eq(hdi_config_string(config, "train.schedule.kind"), "gpipe");
    ck_assert_double_eq(hdi_config_float(config, "optimizer.rate"), 1);
    ck_assert_int_eq(hdi_config_bytes(config, "memory.budget"), INT64_C(3) << 29);
    const int64_t *stages = hdi_config_int_list(config, "layout.stages", &count);
    ck_assert_int_eq(count, 3);
    ck_assert_int_eq(stages[2], 5);
    ck_assert_str_eq(hdi_config_string(config, "data.path"), "a,b \xc3\xa9");
    const char *const *tags = hdi_config_string_list(config, "data.tags", &count);
    ck_assert_int_eq(count, 2);
    ck_assert_str_eq(tags[1], "y,z");
    ck_assert_str_eq(hdi_config_origin(config, "train.schedule.kind"), "c.json:2");
    ck_assert_str_eq(hdi_config_origin(config, "data.tags"), "c.json:5");
}
END_TEST

START_TEST(override_sets_every_type_and_wins_over_the_file)
{
    static const char *const settings[][2] = {{"train.steps", "7"},
                                              {"train.exact", "true"},
                                              {"train.schedule.kind", "interleaved"},
                                              {"optimizer.rate", "3e-4"},
                                              {"memory.budget", "512MiB"},
                                              {"layout.stages", "1,2,64"},
                                              {"data.path", ""},
                                              {"data.tags", "[\"p,q\", \"r\"]"},
                                              {"train.seed", "-9223372036854775808"}};
    load_well("{\"train\": {\"steps\": 500}}");
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        hdt_assert_ok(hdi_config_set(config, settings[i][0], settings[i][1]));
    int count;
    ck_assert_int_eq(hdi_config_int(config, "train.steps"), 7);
    ck_assert_str_eq(hdi_config_origin(config, "train.steps"), "command line");
    ck_assert(hdi_config_bool(config, "train.exact"));
    ck_assert_int_eq(hdi_config_enum(config, "train.schedule.kind"), 2);
    ck_assert_double_eq(hdi_config_float(config, "optimizer.rate"), 3e-4);
    ck_assert_int_eq(hdi_config_bytes(config, "memory.budget"), 512 << 20);
    ck_assert_int_eq(hdi_config_int_list(config, "layout.stages", &count)[2], 64);
    ck_assert_str_eq(hdi_config_string(config, "data.path"), "");
    ck_assert_str_eq(hdi_config_string_list(config, "data.tags", &count)[0], "p,q");
    ck_assert_int_eq(hdi_config_int(config, "train.seed"), INT64_MIN);
    hdt_assert_ok(hdi_config_set(config, "layout.stages", ""));
    hdi_config_int_list(config, "layout.stages", &count);
    ck_assert_int_eq(count, 0);
}
END_TEST

/* Refused files, and what the message must be. */
static const char *const refused_files[][2] = {
    {"{\"train\":\n {\"step\": 5}}", "c.json:2: unknown key train.step; nearest is train.steps"},
    {"{\n\n\"steps\": 5}", "c.json:3: unknown key steps; nearest is train.steps"},
    {"{\"trian\": {\"steps\": 5}}", "c.json:1: unknown section trian; nearest is train"},
    {"{\"train\": 5}", "c.json:1: train is a section: seen a value, wanted train.<name>"},
    {"{\"train\": {\"steps\": \"500\"}}",
     "c.json:1: train.steps: seen \"500\", wanted an integer from 1 to 1000000 (steps)"},
    {"{\"train\": {\"exact\": false,\n\n\"steps\": 1e3}}",
     "c.json:3: train.steps: seen 1000.0, wanted an integer from 1 to 1000000 (steps)"},
    {"{\"train\": {\"steps\": 0}}",
     "c.json:1: train.steps: seen 0, wanted an integer from 1 to 1000000 (steps)"},
    {"{\"train\": {\"steps\": 1000001}}",
     "c.json:1: train.steps: seen 1000001, wanted an integer from 1 to 1000000 (steps)"},
    {"{\"train\": {\"steps\": null}}",
     "c.json:1: train.steps: seen null, wanted an integer from 1 to 1000000 (steps)"},
    {"{\"train\": {\"steps\": {\"a\": 1}}}",
     "c.json:1: train.steps: seen {\"a\": 1}, wanted an integer from 1 to 1000000 (steps)"},
    {"{\"train\": {\"exact\": 1}}", "c.json:1: train.exact: seen 1, wanted true or false"},
    {"{\"train\": {\"schedule\": {\"kind\": \"zb\"}}}",
     "c.json:1: train.schedule.kind: seen \"zb\", wanted gpipe, 1f1b or interleaved"},
    {"{\"optimizer\": {\"rate\": -0.5}}",
     "c.json:1: optimizer.rate: seen -0.5, wanted a number from 0 to 1"},
    {"{\"memory\": {\"budget\": \"24G\"}}",
     "c.json:1: memory.budget: seen \"24G\", wanted bytes such as 1024, 512MiB or 24GiB of at "
     "least 1MiB"},
    {"{\"memory\": {\"budget\": 1000}}",
     "c.json:1: memory.budget: seen 1000, wanted bytes such as 1024, 512MiB or 24GiB of at "
     "least 1MiB"},
    {"{\"layout\": {\"stages\": [1, 65]}}",
     "c.json:1: layout.stages: seen [1, 65], wanted a list of integers, each from 0 to 64"},
    {"{\"layout\": {\"stages\": [1, \"2\"]}}",
     "c.json:1: layout.stages: seen [1, \"2\"], wanted a list of integers, each from 0 to 64"},
    {"{\"layout\": {\"stages\": 3}}",
     "c.json:1: layout.stages: seen 3, wanted a list of integers, each from 0 to 64"},
    {"{\"data\": {\"tags\": [\"a\", 1]}}",
     "c.json:1: data.tags: seen [\"a\", 1], wanted a list of strings"},
    {"{\"data\": {\"path\": [\"a\"]}}", "c.json:1: data.path: seen [\"a\"], wanted a string"},
    {"{\"train\": {\"seed\": 1},\n \"train.seed\": 2}",
     "c.json:2: train.seed is given twice in this file"},
    {"[1]", "c.json: seen an array, wanted an object: {\"section\": ...}"},
};

START_TEST(file_is_refused_with_line_key_seen_and_wanted)
{
    ck_assert_int_eq(load(refused_files[_i][0]), HD_ERROR_CONFIG);
    ck_assert_str_eq(hd_last_error(), refused_files[_i][1]);
}
END_TEST

/* Refused as JSON: the place is ours, the words are jansson's. */
static const char *const broken_files[][2] = {
    {"{\"train\": {\"seed\": 1,\n \"seed\": 2}}", "c.json:2:"},
    {"{\"train\": {\"seed\": 1,}}", "c.json:1:"},
    {"{\n// comment\n}", "(JSON has no comments)"},
    {"", "c.json:1:"},
    {"{\"train\": {\"seed\": 9223372036854775808}}", "c.json:1:"},
    {"{} {}", "c.json:1:"},
    {"{\"data\": {\"path\": \"\xff\"}}", "c.json:1:"},
};

START_TEST(file_that_is_no_json_is_refused)
{
    hdt_assert_status(load(broken_files[_i][0]), HD_ERROR_CONFIG, broken_files[_i][1]);
}
END_TEST

static const char *const refused_overrides[][3] = {
    {"train.step", "5", "command line: unknown key train.step; nearest is train.steps"},
    {"rate", "5", "command line: unknown key rate; nearest is optimizer.rate"},
    {"optimiser.rate", "5", "command line: unknown key optimiser.rate; nearest is optimizer.rate"},
    {"data.ptah", "5", "command line: unknown key data.ptah; nearest is data.path"},
    {"train", "5", "command line: train is a section: seen a value, wanted train.<name>"},
    {"train.steps", "1e3",
     "command line: train.steps: seen \"1e3\", wanted an integer from 1 to 1000000 (steps)"},
    {"train.steps", "0",
     "command line: train.steps: seen \"0\", wanted an integer from 1 to 1000000 (steps)"},
    {"train.seed", "9223372036854775808",
     "command line: train.seed: seen \"9223372036854775808\", wanted an integer"},
    {"train.exact", "yes", "command line: train.exact: seen \"yes\", wanted true or false"},
    {"train.schedule.kind", "1F1B",
     "command line: train.schedule.kind: seen \"1F1B\", wanted gpipe, 1f1b or interleaved"},
    {"optimizer.rate", "nan",
     "command line: optimizer.rate: seen \"nan\", wanted a number from 0 to 1"},
    {"optimizer.rate", "1.01",
     "command line: optimizer.rate: seen \"1.01\", wanted a number from 0 to 1"},
    {"memory.budget", "-1GiB",
     "command line: memory.budget: seen \"-1GiB\", wanted bytes such as 1024, 512MiB or 24GiB of "
     "at least 1MiB"},
    {"layout.stages", "1,,2",
     "command line: layout.stages: seen \"1,,2\", wanted a list of integers, each from 0 to 64"},
    {"layout.stages", "[1, 2",
     "command line: layout.stages: seen \"[1, 2\", wanted a list of integers, each from 0 to 64"},
    {"data.tags", "a,", "command line: data.tags: seen \"a,\", wanted a list of strings"},
};

START_TEST(override_is_refused_with_key_seen_and_wanted)
{
    const char *const *refused = refused_overrides[_i];
    ck_assert_int_eq(hdi_config_set(config, refused[0], refused[1]), HD_ERROR_CONFIG);
    ck_assert_str_eq(hd_last_error(), refused[2]);
    ck_assert_int_eq(hdi_config_int(config, "train.steps"), 100);
    ck_assert_str_eq(hdi_config_origin(config, "train.steps"), "default");
}
END_TEST

START_TEST(lines_are_found_behind_escapes_and_lists)
{
    load_well("{\"data\": {\"path\": \"x\\\"\\\\\",\n\"tags\": [\"train\",\n\"a\\\":\"]\n},\n"
              "\"tr\\u0061in\":\n{\"seed\": 3}}");
    ck_assert_str_eq(hdi_config_string(config, "data.path"), "x\"\\");
    ck_assert_str_eq(hdi_config_origin(config, "data.tags"), "c.json:2");
    ck_assert_str_eq(hdi_config_origin(config, "train.seed"), "c.json:6");
}
END_TEST

START_TEST(dump_is_sorted_stable_and_loads_back)
{
    char *first, *second;
    load_well("{\"optimizer\": {\"rate\": 0.1}, \"data\": {\"tags\": [\"a\", \"\\\"\"]}}");
    hdt_assert_ok(hdi_config_dump(config, &first));
    ck_assert_str_eq(first, "{\n"
                            "  \"data\": {\n"
                            "    \"path\": \"corpus\",\n"
                            "    \"tags\": [\"a\", \"\\\"\"]\n"
                            "  },\n"
                            "  \"layout\": {\n"
                            "    \"stages\": []\n"
                            "  },\n"
                            "  \"log\": {\n"
                            "    \"level\": \"info\"\n"
                            "  },\n"
                            "  \"memory\": {\n"
                            "    \"budget\": 25769803776\n"
                            "  },\n"
                            "  \"optimizer\": {\n"
                            "    \"rate\": 0.1\n"
                            "  },\n"
                            "  \"train\": {\n"
                            "    \"exact\": false,\n"
                            "    \"schedule\": {\n"
                            "      \"kind\": \"1f1b\"\n"
                            "    },\n"
                            "    \"seed\": 1,\n"
                            "    \"steps\": 100\n"
                            "  }\n"
                            "}\n");
    teardown();
    setup();
    load_well(first);
    hdt_assert_ok(hdi_config_dump(config, &second));
    ck_assert_str_eq(first, second);
    hdi_free(first);
    hdi_free(second);
}
END_TEST

START_TEST(hash_follows_what_affects_results_only)
{
    uint64_t start, same, other;
    hdt_assert_ok(hdi_config_hash(config, &start));
    hdt_assert_ok(hdi_config_set(config, "log.level", "trace"));
    hdt_assert_ok(hdi_config_set(config, "train.steps", "100"));
    hdt_assert_ok(hdi_config_hash(config, &same));
    ck_assert_uint_eq(start, same);
    hdt_assert_ok(hdi_config_set(config, "train.steps", "101"));
    hdt_assert_ok(hdi_config_hash(config, &other));
    ck_assert_uint_ne(start, other);
}
END_TEST

START_TEST(getter_of_a_wrong_key_is_remembered)
{
    ck_assert_int_eq(hdi_config_int(config, "train.stepz"), 0);
    ck_assert_str_eq(hdi_config_string(config, "train.steps"), "");
    hdt_assert_status(hdi_config_misuse(config), HD_ERROR_INTERNAL, "train.stepz was asked for");
}
END_TEST

/* Schemas that contradict themselves. */
static const hdi_config_row bad_schemas[][2] = {
    {{.key = "a.b", .type = HDI_CONFIG_INT}, {.key = "a.b", .type = HDI_CONFIG_INT}},
    {{.key = "a", .type = HDI_CONFIG_INT}, {.key = "a.b", .type = HDI_CONFIG_INT}},
    {{.key = "a", .type = HDI_CONFIG_INT}, {.key = "B", .type = HDI_CONFIG_INT}},
    {{.key = "a", .type = HDI_CONFIG_INT}, {.key = "b", .type = HDI_CONFIG_ENUM}},
    {{.key = "a", .type = HDI_CONFIG_INT},
     {.key = "b", .type = HDI_CONFIG_INT, .fallback = "5", .max = "4"}},
    {{.key = "a", .type = HDI_CONFIG_INT},
     {.key = "b", .type = HDI_CONFIG_INT, .fallback = "5", .max = "ten"}},
};

START_TEST(schema_that_contradicts_itself_is_refused)
{
    hdi_config *bad;
    ck_assert_int_eq(hdi_config_create(bad_schemas[_i], 2, &bad), HD_ERROR_INTERNAL);
    ck_assert_ptr_null(bad);
}
END_TEST

START_TEST(file_is_read_and_a_missing_one_named)
{
    const char *path = hdt_temp_path("config.json");
    hdt_assert_ok(hdi_file_write_text(path, "{\"train\": {\"steps\": 12}}"));
    hdt_assert_ok(hdi_config_load_file(config, path));
    ck_assert_int_eq(hdi_config_int(config, "train.steps"), 12);

    hdt_assert_status(hdi_config_load_file(config, "/nowhere/config.json"), HD_ERROR_IO,
                      "/nowhere/config.json");
    hdt_assert_status(hdi_config_load_file(config, hdt_temp_dir()), HD_ERROR_IO, "regular");
}
END_TEST

START_TEST(rows_can_be_listed_with_what_they_want)
{
    ck_assert_int_eq(hdi_config_rows(config), ROWS);
    const hdi_config_row *row = hdi_config_row_at(config, 0);
    ck_assert_str_eq(row->key, "train.steps");
    hdi_text text = {0};
    hdi_config_describe(row, &text);
    ck_assert_str_eq(text.data, "an integer from 1 to 1000000 (steps)");
    hdi_text_free(&text);
}
END_TEST

#define COUNT(array) (int)(sizeof(array) / sizeof((array)[0]))

int main(void)
{
    Suite *suite = suite_create("config");
    TCase *tests = tcase_create("config");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, defaults_hold_until_something_is_set);
    tcase_add_test(tests, file_sets_every_type);
    tcase_add_test(tests, override_sets_every_type_and_wins_over_the_file);
    tcase_add_loop_test(tests, file_is_refused_with_line_key_seen_and_wanted, 0,
                        COUNT(refused_files));
    tcase_add_loop_test(tests, file_that_is_no_json_is_refused, 0, COUNT(broken_files));
    tcase_add_loop_test(tests, override_is_refused_with_key_seen_and_wanted, 0,
                        COUNT(refused_overrides));
    tcase_add_test(tests, lines_are_found_behind_escapes_and_lists);
    tcase_add_test(tests, dump_is_sorted_stable_and_loads_back);
    tcase_add_test(tests, hash_follows_what_affects_results_only);
    tcase_add_test(tests, getter_of_a_wrong_key_is_remembered);
    tcase_add_loop_test(tests, schema_that_contradicts_itself_is_refused, 0, COUNT(bad_schemas));
    tcase_add_test(tests, file_is_read_and_a_missing_one_named);
    tcase_add_test(tests, rows_can_be_listed_with_what_they_want);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
