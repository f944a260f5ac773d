/* metrics.jsonl and the progress line. */
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "core/file.h"
#include "core/memory.h"
#include "report/format.h"
#include "report/metrics.h"
#include "report/progress.h"
#include "tests/support/hdt_files.h"

static void append_step(hdi_metrics *metrics, int64_t step, double loss)
{
    const hdi_metric fields[] = {hdi_metric_int("step", step), hdi_metric_float("loss", loss)};
    hdt_assert_ok(hdi_metrics_append(metrics, fields, 2));
}

START_TEST(metrics_read_back_bit_for_bit)
{
    const char *path = hdt_file("metrics.jsonl");
    static const double values[] = {0.1, 2.2999999523162842, 3, 1e300, -5e-324, 123456789};
    hdi_metrics *metrics;
    hdt_assert_ok(hdi_metrics_open(path, &metrics));
    uint64_t allocations = hdi_alloc_count();
    for (int i = 0; i < 6; i++)
        append_step(metrics, i, values[i]);
    append_step(metrics, 6, NAN);
    append_step(metrics, 7, INFINITY);
    ck_assert_uint_eq(hdi_alloc_count(), allocations);
    hdi_metrics_close(metrics);

    hdi_point *points;
    int64_t count;
    hdt_assert_ok(hdi_metrics_series(path, "step", "loss", &points, &count));
    ck_assert_int_eq(count, 8);
    for (int i = 0; i < 6; i++)
        ck_assert(points[i].x == i && points[i].y == values[i]);
    ck_assert(isnan(points[6].y) && isnan(points[7].y));
    hdi_free(points);
}
END_TEST

START_TEST(metrics_survive_a_torn_last_line)
{
    const char *path = hdt_file("metrics.jsonl");
    hdt_write_text(path, "{\"step\": 1, \"loss\": 4.5}\nnot json\n{\"step\": 2, \"lo");
    double value;
    bool found;
    hdt_assert_ok(hdi_metrics_last(path, "step", &value, &found));
    ck_assert(found && value == 1);

    hdi_metrics *metrics;
    hdt_assert_ok(hdi_metrics_open(path, &metrics));
    append_step(metrics, 2, 4.25);
    hdi_metrics_close(metrics);
    char *text = hdt_read_text(path);
    ck_assert_str_eq(text,
                     "{\"step\": 1, \"loss\": 4.5}\nnot json\n{\"step\": 2, \"loss\": 4.25}\n");
    hdi_free(text);
    hdt_assert_ok(hdi_metrics_last(path, "loss", &value, &found));
    ck_assert(found && value == 4.25);
}
END_TEST

START_TEST(a_resumed_run_drops_the_records_it_will_write_again)
{
    const char *path = hdt_file("metrics.jsonl");
    hdt_assert_ok(hdi_metrics_drop_after(path, 5)); /* no file yet */
    hdt_write_text(path, "{\"run\": \"a\"}\n{\"step\": 9}\n{\"step\": 10}\n{\"step\": 11}\n"
                         "{\"validation\": 1.5, \"step\": 11}\n{\"st");
    hdt_assert_ok(hdi_metrics_drop_after(path, 10));
    char *text = hdt_read_text(path);
    ck_assert_str_eq(text, "{\"run\": \"a\"}\n{\"step\": 9}\n{\"step\": 10}\n");
    hdi_free(text);
    double value;
    bool found;
    hdt_assert_ok(hdi_metrics_last(path, "validation", &value, &found));
    ck_assert(!found);
    hdt_assert_ok(hdi_metrics_last(hdt_file("absent"), "step", &value, &found));
    ck_assert(!found);
}
END_TEST

START_TEST(hostile_names_and_texts_stay_json)
{
    const char *path = hdt_file("metrics.jsonl");
    hdi_metrics *metrics;
    hdt_assert_ok(hdi_metrics_open(path, &metrics));
    hdi_metric field = hdi_metric_string(HDT_HOSTILE_TEXT, HDT_HOSTILE_TEXT);
    hdt_assert_ok(hdi_metrics_append(metrics, &field, 1));
    char *text = hdt_read_text(path);
    json_t *record = json_loads(text, 0, NULL);
    ck_assert(json_is_object(record));
    ck_assert_uint_eq(json_object_size(record), 1);
    json_decref(record);

    static char huge[5000];
    memset(huge, 'x', sizeof huge - 1);
    field = hdi_metric_string("huge", huge);
    ck_assert_int_eq(hdi_metrics_append(metrics, &field, 1), HD_ERROR_ARGUMENT);
    hdi_metrics_close(metrics);
    char *after = hdt_read_text(path);
    ck_assert_str_eq(after, text);
    hdi_free(text);
    hdi_free(after);
}
END_TEST

START_TEST(a_full_disk_leaves_whole_records)
{
    const char *path = hdt_file("metrics.jsonl");
    hdi_metrics *metrics;
    hdt_assert_ok(hdi_metrics_open(path, &metrics));
    append_step(metrics, 1, 0.5);
    char *before = hdt_read_text(path);

    struct rlimit old, tight;
    getrlimit(RLIMIT_FSIZE, &old);
    tight = (struct rlimit){strlen(before) + 10, old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &tight);
    const hdi_metric fields[] = {hdi_metric_int("step", 2), hdi_metric_float("loss", 0.25)};
    hd_status status = hdi_metrics_append(metrics, fields, 2);
    setrlimit(RLIMIT_FSIZE, &old);
    ck_assert_int_eq(status, HD_ERROR_IO);
    char *after = hdt_read_text(path);
    ck_assert_str_eq(after, before);
    hdi_free(after);
    hdi_free(before);
    append_step(metrics, 2, 0.25);
    hdi_metrics_close(metrics);
    after = hdt_read_text(path);
    ck_assert_ptr_nonnull(strstr(after, "{\"step\": 2, \"loss\": 0.25}\n"));
    hdi_free(after);
}
END_TEST

START_TEST(csv_has_a_column_for_every_field)
{
    const char *path = hdt_file("metrics.jsonl"), *csv = hdt_file("metrics.csv");
    hdt_write_text(path, "{\"step\": 1, \"loss\": 4.5}\n{\"step\": 2, \"loss\": null, \"note\": "
                         "\"say \\\"hi\\\", all\"}\n{\"ok\": true, \"step\": 3}\n");
    hdt_assert_ok(hdi_metrics_export_csv(path, csv));
    char *text = hdt_read_text(csv);
    ck_assert_str_eq(text, "step,loss,note,ok\r\n1,4.5,,\r\n2,,\"say \"\"hi\"\", all\",\r\n"
                           "3,,,true\r\n");
    hdi_free(text);
    ck_assert_int_eq(hdi_metrics_export_csv(hdt_file("absent"), csv), HD_ERROR_IO);
    ck_assert_int_eq(hdi_metrics_export_csv(path, hdt_file("no/folder.csv")), HD_ERROR_IO);
}
END_TEST

START_TEST(progress_fits_every_terminal)
{
    const hdi_progress progress = {.step = 120,
                                   .steps = 2000,
                                   .loss = 2.34567,
                                   .learning_rate = 3e-4,
                                   .rate_unit = "tokens",
                                   .rate = 12345,
                                   .eta_seconds = 83};
    char line[160];
    for (int columns = 0; columns < 150; columns++) {
        size_t length = hdi_progress_format(&progress, columns, line, sizeof line);
        ck_assert_uint_eq(length, strlen(line));
        ck_assert_uint_le(length, (size_t)columns);
        if (columns >= 28) ck_assert_ptr_nonnull(strstr(line, "loss 2.3457"));
    }
    hdi_progress_format(&progress, 80, line, sizeof line);
    ck_assert_str_eq(line, "step  120/2000 [>     ]   6%  loss 2.3457  lr 3.0e-04  "
                           "12.3k tokens/s  eta 1m23s");
    ck_assert_uint_eq(hdi_progress_format(&progress, 80, line, 8), 7);
    hdi_progress_format(
        &(hdi_progress){
            .step = 5, .loss = NAN, .learning_rate = NAN, .rate = NAN, .eta_seconds = NAN},
        80, line, sizeof line);
    ck_assert_str_eq(line, "step 5");
}
END_TEST

START_TEST(all_jobs_count_in_one_format)
{
    const hdi_progress lines[] = {
        {.step = 3, .steps = 40, .loss = NAN, .learning_rate = NAN, .rate = 2.5, .eta_seconds = 15},
        {.step = 3,
         .steps = 40,
         .loss = NAN,
         .learning_rate = NAN,
         .rate = 0.05,
         .eta_seconds = 740},
        {.unit = "token",
         .step = 3,
         .steps = 40,
         .loss = NAN,
         .learning_rate = NAN,
         .rate = 1234,
         .eta_seconds = 0.03},
        {.unit = "tensor",
         .step = 3,
         .steps = 40,
         .loss = NAN,
         .learning_rate = NAN,
         .rate_unit = "B",
         .rate = 85e6,
         .eta_seconds = NAN},
        {.step = 3,
         .steps = 40,
         .loss = 1.5,
         .learning_rate = 1e-3,
         .rate_unit = "tokens",
         .rate = 0.5,
         .eta_seconds = 3700},
    };
    static const char *const wanted[] = {
        "step 3/40  2.5 steps/s  eta 15s", "step 3/40  20 s/step  eta 12m20s",
        "token 3/40  1.2k tokens/s  eta 0s", "tensor 3/40  85M B/s",
        "step 3/40  loss 1.5000  lr 1.0e-03  0.5 tokens/s  eta 1h01m"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char line[160];
        hdi_progress plain = lines[i];
        plain.plain = true;
        hdi_progress_format(&plain, 120, line, sizeof line);
        ck_assert_str_eq(line, wanted[i]);
    }
}
END_TEST

START_TEST(a_pace_forgets_the_first_step_and_old_ones)
{
    hdi_pace pace = {0};
    ck_assert(isnan(hdi_pace_rate(&pace)) && isnan(hdi_pace_left(&pace, 10)));
    hdi_pace_note(&pace, 30, 1, 100);
    ck_assert_double_eq_tol(hdi_pace_left(&pace, 10), 300, 1e-9);
    hdi_pace_note(&pace, 2, 1, 100);
    ck_assert_double_eq_tol(hdi_pace_left(&pace, 10), 20, 1e-9);
    ck_assert_double_eq_tol(hdi_pace_rate(&pace), 50, 1e-9);
    hdi_pace_note(&pace, 4, 1, 100);
    ck_assert_double_gt(hdi_pace_left(&pace, 1), 2.9);
    ck_assert_double_lt(hdi_pace_left(&pace, 1), 3.2);
    for (int i = 0; i < 100; i++)
        hdi_pace_note(&pace, 8, 1, 100);
    ck_assert_double_eq_tol(hdi_pace_left(&pace, 1), 8, 1e-3);
    /* Many short steps count together: one that hesitates changes little. */
    for (int i = 0; i < 60000; i++)
        hdi_pace_note(&pace, 1e-3, 1, 1);
    hdi_pace_note(&pace, 0.05, 1, 1);
    ck_assert_double_lt(hdi_pace_left(&pace, 1000), 1.1);
}
END_TEST

START_TEST(quantities_read_like_a_person_wrote_them)
{
    char text[HDI_NUMBER_TEXT];
    static const struct {
        double value;
        const char *bytes, *rate, *duration;
    } cases[] = {
        {0, "0 B", "0", "0s"},
        {1023, "1023 B", "1k", "17m03s"},
        {1536, "1.5 KiB", "1.5k", "25m36s"},
        {123456789, "117.7 MiB", "123M", "1428d21h"},
        {59.6, "60 B", "59.6", "1m00s"},
        {7265, "7.1 KiB", "7.3k", "2h01m"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hdi_format_bytes(cases[i].value, text);
        ck_assert_str_eq(text, cases[i].bytes);
        hdi_format_rate(cases[i].value, text);
        ck_assert_str_eq(text, cases[i].rate);
        hdi_format_duration(cases[i].value, text);
        ck_assert_str_eq(text, cases[i].duration);
    }
    hdi_format_duration(NAN, text);
    ck_assert_str_eq(text, "?");
    hdi_format_fixed(-0.004, 2, text);
    ck_assert_str_eq(text, "0");
    hdi_format_fixed(-12.5, 3, text);
    ck_assert_str_eq(text, "-12.5");
    ck_assert_str_eq(hdi_bytes(1023).text, "1023 bytes");
    ck_assert_str_eq(hdi_bytes(6576668672).text, "6576668672 bytes (6.13 GiB)");
    ck_assert_str_eq(hdi_bytes_row("weights", 1).text, "weights                           1 bytes");
    ck_assert_str_eq(hdi_bytes_row("transport, about", SIZE_MAX).text,
                     "transport, about   18446744073709551615 bytes   16384 PiB");
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("metrics");
    tcase_add_checked_fixture(tests, hdt_files_reset, NULL);
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, metrics_read_back_bit_for_bit);
    tcase_add_test(tests, metrics_survive_a_torn_last_line);
    tcase_add_test(tests, a_resumed_run_drops_the_records_it_will_write_again);
    tcase_add_test(tests, hostile_names_and_texts_stay_json);
    tcase_add_test(tests, a_full_disk_leaves_whole_records);
    tcase_add_test(tests, csv_has_a_column_for_every_field);
    tcase_add_test(tests, progress_fits_every_terminal);
    tcase_add_test(tests, all_jobs_count_in_one_format);
    tcase_add_test(tests, a_pace_forgets_the_first_step_and_old_ones);
    tcase_add_test(tests, quantities_read_like_a_person_wrote_them);
    Suite *suite = suite_create("metrics");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
