/* Pictures and traces. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "report/axis.h"
#include "report/format.h"
#include "report/loss_curve.h"
#include "report/memory_map.h"
#include "report/pipeline_chart.h"
#include "tests/support/hdt_files.h"

/* Valid UTF-8 without control characters, and tags that close in order. Entities are ours only. */
static void assert_well_formed(const char *path)
{
    char *text = hdt_read_text(path), open_tags[16][16];
    int depth = 0;
    for (const char *c = text; *c;) {
        uint32_t code = hdi_utf8_next(&c);
        ck_assert_uint_ge(code, '\n');
    }
    ck_assert_int_eq(strncmp(text, "<?xml", 5), 0);
    for (const char *c = strchr(text + 1, '<'); c; c = strchr(c + 1, '<')) {
        size_t quotes = 0;
        const char *end = c + 1;
        for (; *end && (*end != '>' || quotes % 2); end++) {
            quotes += *end == '"';
            ck_assert_msg(*end != '<', "'<' within a tag: %.40s", c);
        }
        ck_assert_int_eq(*end, '>');
        size_t name = strcspn(c + 1 + (c[1] == '/'), " />");
        ck_assert_uint_lt(name, sizeof open_tags[0]);
        if (c[1] == '/') {
            ck_assert_int_gt(depth, 0);
            depth--;
            ck_assert_msg(strncmp(open_tags[depth], c + 2, name) == 0, "closes %s: %.20s",
                          open_tags[depth], c);
        } else if (end[-1] != '/') {
            ck_assert_int_lt(depth, 16);
            snprintf(open_tags[depth++], sizeof open_tags[0], "%.*s", (int)name, c + 1);
        }
    }
    ck_assert_int_eq(depth, 0);
    for (const char *c = strchr(text, '&'); c; c = strchr(c + 1, '&'))
        ck_assert_msg(!strncmp(c, "&amp;", 5) || !strncmp(c, "&lt;", 4) || !strncmp(c, "&gt;", 4) ||
                          !strncmp(c, "&quot;", 6) || !strncmp(c, "&#39;", 5),
                      "a bare ampersand: %.20s", c);
    hdi_free(text);
}

static void assert_holds(const char *path, const char *wanted, bool holds)
{
    char *text = hdt_read_text(path);
    ck_assert_msg((strstr(text, wanted) != NULL) == holds, "%s: '%s' is %s", path, wanted,
                  holds ? "missing" : "there");
    hdi_free(text);
}

START_TEST(loss_curve_is_well_formed_for_any_series)
{
    static hdi_point train[5000], validation[] = {{10, 3}, {20, NAN}, {4000, 2.5}};
    for (int i = 0; i < 5000; i++)
        train[i] = (hdi_point){i, i % 700 == 3 ? (double)NAN : 5 * exp(-i / 1000.0) + i % 3};
    static const int64_t counts[] = {0, 1, 2, 79, 80, 5000};
    const char *path = hdt_file("loss.svg");
    hdt_assert_ok(
        hdi_loss_curve_write(path, &(hdi_loss_curve){.title = HDT_HOSTILE_TEXT,
                                                     .train = train,
                                                     .train_count = counts[_i],
                                                     .validation = validation,
                                                     .validation_count = _i % 2 ? 3 : 0,
                                                     .reference = 4.2,
                                                     .reference_label = HDT_HOSTILE_TEXT}));
    assert_well_formed(path);
    assert_holds(path, "a&lt;b&gt;&amp;&quot;c&#39;", true);
    assert_holds(path, "nan", false);
    assert_holds(path, "class=\"curve\"", counts[_i] > 0 || _i % 2);
}
END_TEST

START_TEST(a_long_loss_curve_stays_small_and_keeps_its_spikes)
{
    enum { COUNT = 200000 };
    hdi_point *train = hdi_alloc_array(COUNT, sizeof *train);
    for (int i = 0; i < COUNT; i++)
        train[i] = (hdi_point){i, 2 + 0.1 * (i % 7)};
    train[77777].y = 10; /* the axis ends there, so the spike's top is the top of the plot */
    const char *path = hdt_file("long.svg");
    hdt_assert_ok(
        hdi_loss_curve_write(path, &(hdi_loss_curve){.train = train, .train_count = COUNT}));
    hdi_free(train);
    char *text = hdt_read_text(path);
    ck_assert_uint_lt(strlen(text), 100000);
    ck_assert_ptr_nonnull(strstr(text, ",84 "));
    hdi_free(text);
}
END_TEST

START_TEST(scales_have_round_ticks_for_any_range)
{
    static const double ranges[][2] = {{0, 1},         {3, 3},         {0, 0},
                                       {-5, 7e12},     {1e-9, 2e-9},   {NAN, 3},
                                       {2, -INFINITY}, {1e300, 1e300}, {5, 5.0000000001}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        hdi_scale scale = hdi_scale_make(ranges[i][0], ranges[i][1], 8, _i, 0, 100);
        double mantissa = scale.step / pow(10, floor(log10(scale.step) + 1e-9));
        ck_assert(isfinite(scale.low) && scale.high > scale.low);
        ck_assert(fabs(mantissa - 1) < 1e-6 || fabs(mantissa - 2) < 1e-6 ||
                  fabs(mantissa - 5) < 1e-6);
        double ticks = (scale.high - scale.low) / scale.step;
        ck_assert_msg(ticks >= 1 && ticks <= 11, "range %zu: %g ticks", i, ticks);
        ck_assert_double_eq(hdi_scale_at(&scale, scale.low), 0);
        ck_assert_double_eq(hdi_scale_at(&scale, scale.high), 100);
    }
}
END_TEST

static hdi_trace_event event_of(hdi_trace_category category, int micro_batch, double begin_us,
                                double end_us)
{
    return (hdi_trace_event){.name = hdi_trace_category_name(category),
                             .category = category,
                             .micro_batch = micro_batch,
                             .chunk = -1,
                             .step = 7,
                             .begin_us = begin_us,
                             .end_us = end_us};
}

START_TEST(trace_files_read_back_as_recorded)
{
    hdi_trace *trace;
    hdt_assert_ok(hdi_trace_create(3, 4, &trace));
    hdi_trace_name_thread(trace, 2, HDT_HOSTILE_TEXT);
    uint64_t allocations = hdi_alloc_count();
    for (int i = 0; i < 6; i++) {
        hdi_trace_event event = event_of(HDI_TRACE_BACKWARD, i, 100 * i, 100 * i + 50.125);
        event.name = HDT_HOSTILE_TEXT;
        event.thread = 2;
        event.chunk = i - 3;
        hdi_trace_record(trace, &event);
    }
    hdi_trace_record(NULL, &(hdi_trace_event){0});
    ck_assert_uint_eq(hdi_alloc_count(), allocations);
    ck_assert_int_eq(hdi_trace_dropped(trace), 2);
    const char *path = hdt_file("rank3.json");
    hdt_assert_ok(hdi_trace_flush(trace, 1e12, path));
    hdi_trace_destroy(trace);

    hdi_trace_file file;
    hdt_assert_ok(hdi_trace_read(path, &file));
    ck_assert_int_eq(file.rank, 3);
    ck_assert_int_eq(file.count, 4);
    for (int i = 0; i < 4; i++) {
        const hdi_trace_event *event = &file.events[i];
        ck_assert_int_eq(event->micro_batch, i + 2);
        ck_assert_int_eq(event->chunk, i - 1);
        ck_assert_int_eq(event->step, 7);
        ck_assert_int_eq(event->thread, 2);
        ck_assert_int_eq(event->category, HDI_TRACE_BACKWARD);
        ck_assert_double_eq(event->begin_us, 1e12 + 100 * (i + 2)); /* eighths add exactly */
        ck_assert_double_eq(event->end_us - event->begin_us, 50.125);
        ck_assert_int_eq(strncmp(event->name, "a<b>&\"c'\\ \x01 ", 12), 0);
    }
    hdi_trace_file_free(&file);
}
END_TEST

START_TEST(broken_trace_files_are_refused_with_their_name)
{
    static const struct {
        const char *text;
        hd_status status;
    } cases[] = {
        {"", HD_ERROR_FORMAT},
        {"{\"traceEvents\":[", HD_ERROR_FORMAT},
        {"{\"events\":[]}", HD_ERROR_FORMAT},
        {"3", HD_ERROR_FORMAT},
        {"[{\"ph\":\"X\",\"ts\":\"soon\"}]", HD_ERROR_FORMAT},
        {"[{\"ph\":\"X\",\"ts\":1,\"dur\":-1}]", HD_ERROR_FORMAT},
        {"[7,{\"ph\":5},{\"ph\":\"M\"},{\"ph\":\"X\",\"ts\":1,\"args\":[],\"pid\":1e99}]", HD_OK},
    };
    const char *path = hdt_file("broken.json");
    hdt_write_text(path, cases[_i].text);
    hdi_trace_file file;
    ck_assert_int_eq(hdi_trace_read(path, &file), cases[_i].status);
    if (cases[_i].status != HD_OK) ck_assert_ptr_nonnull(strstr(hd_last_error(), "broken.json"));
    hdi_trace_file_free(&file);
}
END_TEST

START_TEST(a_missing_trace_file_is_an_io_error)
{
    hdi_trace_file file;
    ck_assert_int_eq(hdi_trace_read(hdt_file("absent"), &file), HD_ERROR_IO);
}
END_TEST

/* GPipe with equal stages, forward 1 ms and backward 2 ms. */
static void gpipe(int stages, int micro_batches, hdi_trace_event *events, hdi_pipeline_lane *lanes)
{
    for (int s = 0; s < stages; s++) {
        hdi_trace_event *own = events + 2 * s * micro_batches;
        for (int m = 0; m < micro_batches; m++) {
            double forward = 1e3 * (s + m);
            double backward = 1e3 * (micro_batches + stages - 1) + 2e3 * (stages - 1 - s + m);
            own[2 * m] = event_of(HDI_TRACE_FORWARD, m, forward, forward + 1e3);
            own[2 * m + 1] = event_of(HDI_TRACE_BACKWARD, m, backward, backward + 2e3);
        }
        lanes[s] = (hdi_pipeline_lane){s, NULL, own, 2 * micro_batches};
    }
}

START_TEST(bubble_of_a_gpipe_step_is_the_formulas)
{
    hdi_trace_event events[2 * 8 * 16];
    hdi_pipeline_lane lanes[8];
    for (int stages = 1; stages <= 8; stages++) {
        for (int micro_batches = 1; micro_batches <= 16; micro_batches++) {
            gpipe(stages, micro_batches, events, lanes);
            hdi_pipeline_numbers numbers;
            double busy[8];
            hdt_assert_ok(hdi_pipeline_measure(
                &(hdi_pipeline_chart){.lanes = lanes, .lane_count = stages}, busy, &numbers));
            double bubble = (stages - 1.0) / (micro_batches + stages - 1);
            ck_assert_double_eq_tol(numbers.bubble, bubble, 1e-12);
            ck_assert_double_eq_tol(numbers.busy, 1 - bubble, 1e-12);
            ck_assert_double_eq_tol(busy[stages - 1], 1 - bubble, 1e-12);
        }
    }
}
END_TEST

START_TEST(a_rank_that_waits_inside_of_a_pass_is_not_busy)
{
    hdi_trace_event events[] = {
        event_of(HDI_TRACE_WAIT_HOST, -1, 0, 10),    event_of(HDI_TRACE_WAIT_COPIES, -1, 20, 30),
        event_of(HDI_TRACE_WAIT_COPIES, -1, 25, 35), event_of(HDI_TRACE_FORWARD, 0, 10, 60),
        event_of(HDI_TRACE_WAIT_COMM, -1, 70, 80),   event_of(HDI_TRACE_COMM, -1, 60, 100)};
    hdi_pipeline_lane lane = {0, NULL, events, 6};
    hdi_pipeline_chart chart = {.lanes = &lane, .lane_count = 1, .one_step = true, .step = 7};
    double busy;
    hdi_pipeline_numbers numbers;
    hdt_assert_ok(hdi_pipeline_measure(&chart, &busy, &numbers));
    ck_assert_double_eq_tol(busy, 0.35, 1e-12);
    ck_assert_double_eq_tol(numbers.bubble, 0, 1e-12); /* which is the schedule's */

    const char *path = hdt_file("waits.svg");
    hdt_assert_ok(hdi_pipeline_chart_write(path, &chart));
    assert_well_formed(path);
    assert_holds(path, "wait: copies", true);
    assert_holds(path, "waiting for copies", true);
    assert_holds(path, "waiting for the host", true);
}
END_TEST

START_TEST(overlaps_count_once_and_waiting_not_at_all)
{
    hdi_trace_event first[] = {
        event_of(HDI_TRACE_BACKWARD, 0, 40, 80), event_of(HDI_TRACE_FORWARD, 0, 0, 40),
        event_of(HDI_TRACE_WEIGHT, 0, 60, 80),   event_of(HDI_TRACE_COMM, -1, 80, 90),
        event_of(HDI_TRACE_OP, -1, 0, 1000),     event_of(HDI_TRACE_OPTIMIZER, -1, 90, 100)};
    hdi_trace_event second[] = {event_of(HDI_TRACE_FORWARD, 0, 0, 20),
                                event_of(HDI_TRACE_FORWARD, 0, 500, 900)};
    second[1].step = 8;
    hdi_pipeline_lane lanes[] = {{0, NULL, first, 6}, {1, NULL, second, 2}, {2, NULL, NULL, 0}};
    hdi_pipeline_chart chart = {.lanes = lanes, .lane_count = 3, .one_step = true, .step = 7};
    double busy[3];
    hdi_pipeline_numbers numbers;
    hdt_assert_ok(hdi_pipeline_measure(&chart, busy, &numbers));
    ck_assert_double_eq(numbers.end_us - numbers.begin_us, 100);
    ck_assert_double_eq_tol(busy[0], 0.9, 1e-12);
    ck_assert_double_eq_tol(busy[1], 0.2, 1e-12);
    ck_assert_double_eq_tol(busy[2], 0, 1e-12);
    ck_assert_double_eq_tol(numbers.bubble, 1 - 100.0 / 240, 1e-12); /* the phase lasts 80 */

    const char *path = hdt_file("lanes.svg");
    hdt_assert_ok(hdi_pipeline_chart_write(path, &chart));
    assert_well_formed(path);
    assert_holds(path, "90.0 % busy", true);
    assert_holds(path, "bubble 58.3 %", true);
}
END_TEST

START_TEST(pipeline_chart_reads_the_files_of_all_ranks)
{
    hdi_trace_event events[2 * 4 * 8];
    hdi_pipeline_lane lanes[4];
    gpipe(4, 8, events, lanes);
    char paths[4][4200];
    const char *borrowed[4];
    for (int rank = 0; rank < 4; rank++) {
        hdi_trace *trace;
        hdt_assert_ok(hdi_trace_create(rank, 100, &trace));
        for (int i = 0; i < lanes[rank].count; i++) {
            hdi_trace_event event = lanes[rank].events[i];
            event.name = HDT_HOSTILE_TEXT;
            hdi_trace_record(trace, &event);
            event.step = 8; /* rank 3 was stopped before it */
            event.begin_us += 1e9;
            event.end_us += 2e9;
            if (rank < 3) hdi_trace_record(trace, &event);
        }
        char name[32];
        snprintf(name, sizeof name, "%d.json", rank);
        snprintf(paths[rank], sizeof paths[0], "%s", hdt_file(name));
        hdt_assert_ok(hdi_trace_flush(trace, 5, paths[rank]));
        hdi_trace_destroy(trace);
        borrowed[3 - rank] = paths[rank];
    }
    const char *path = hdt_file("chart.svg");
    hdt_assert_ok(hdi_pipeline_chart_from_files(path, HDT_HOSTILE_TEXT, borrowed, 4, -1));
    assert_well_formed(path);
    assert_holds(path, "bubble 27.3 %", true); /* 3/11 */
    char *text = hdt_read_text(path);
    ck_assert(strstr(text, "rank 0") < strstr(text, "rank 3"));
    hdi_free(text);
    ck_assert_int_eq(hdi_pipeline_chart_from_files(path, NULL, borrowed, 4, 99), HD_ERROR_ARGUMENT);
    assert_well_formed(path); /* the older chart stays */
}
END_TEST

START_TEST(memory_map_names_the_peak)
{
    enum { MIB = 1 << 20 };
    const size_t weights[] = {MIB, MIB, MIB, MIB}, saved[] = {0, MIB, 2 * MIB, 0};
    const hdi_memory_region regions[] = {{"weights", weights}, {HDT_HOSTILE_TEXT, saved}};
    const char *const names[] = {"forward h.0.mlp", "forward head", "backward h.0.mlp",
                                 HDT_HOSTILE_TEXT};
    const hdi_memory_phase phases[] = {{"forward", 0}, {"backward", 2}, {HDT_HOSTILE_TEXT, 3}};
    hdi_memory_map map = {.regions = regions,
                          .region_count = 2,
                          .positions = 4,
                          .position_names = names,
                          .phases = phases,
                          .phase_count = 3,
                          .budget = 4 * MIB};
    int64_t position;
    size_t bytes;
    hdi_memory_map_peak(&map, &position, &bytes);
    ck_assert_int_eq(position, 2);
    ck_assert_uint_eq(bytes, 3 * MIB);
    const char *path = hdt_file("plan.svg");
    hdt_assert_ok(hdi_memory_map_write(path, &map));
    assert_well_formed(path);
    assert_holds(path, "peak 3 MiB at op 2 backward h.0.mlp", true);
    assert_holds(path, "75 % of the budget of 4 MiB", false);
    assert_holds(path, "75.0 % of the budget of 4 MiB", true);
    map.region_count = 1; /* weights alone: level, so the first position is the peak */
    hdi_memory_map_peak(&map, &position, &bytes);
    ck_assert_int_eq(position, 0);
    map.positions = 0;
    ck_assert_int_eq(hdi_memory_map_write(path, &map), HD_ERROR_ARGUMENT);
}
END_TEST

START_TEST(memory_map_of_a_long_program_still_shows_its_peak)
{
    enum { POSITIONS = 30000 };
    size_t *bytes = hdi_alloc_array(POSITIONS, sizeof *bytes);
    for (int i = 0; i < POSITIONS; i++)
        bytes[i] = 1000;
    bytes[12345] = 5000;
    const hdi_memory_region region = {"transients", bytes};
    const char *path = hdt_file("long_plan.svg");
    hdt_assert_ok(hdi_memory_map_write(
        path, &(hdi_memory_map){.regions = &region, .region_count = 1, .positions = POSITIONS}));
    hdi_free(bytes);
    assert_holds(path, "peak 4.9 KiB at op 12345", true);
    /* The region's outline reaches as high as the dot that marks the peak. */
    char *text = hdt_read_text(path), y[32];
    const char *dot = strstr(strstr(text, "peak") + 4, "cy=\"");
    for (const char *next = dot; next; next = strstr(next + 1, "cy=\""))
        dot = next;
    ck_assert_int_eq(sscanf(dot, "cy=\"%20[0-9.]", y + 1), 1);
    y[0] = ',';
    const char *area = strstr(text, "class=\"area\"");
    ck_assert_ptr_nonnull(strstr(area, y));
    hdi_free(text);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("report");
    tcase_add_checked_fixture(tests, hdt_files_reset, NULL);
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, loss_curve_is_well_formed_for_any_series, 0, 6);
    tcase_add_test(tests, a_long_loss_curve_stays_small_and_keeps_its_spikes);
    tcase_add_loop_test(tests, scales_have_round_ticks_for_any_range, 0, 2);
    tcase_add_test(tests, trace_files_read_back_as_recorded);
    tcase_add_loop_test(tests, broken_trace_files_are_refused_with_their_name, 0, 7);
    tcase_add_test(tests, a_missing_trace_file_is_an_io_error);
    tcase_add_test(tests, bubble_of_a_gpipe_step_is_the_formulas);
    tcase_add_test(tests, a_rank_that_waits_inside_of_a_pass_is_not_busy);
    tcase_add_test(tests, overlaps_count_once_and_waiting_not_at_all);
    tcase_add_test(tests, pipeline_chart_reads_the_files_of_all_ranks);
    tcase_add_test(tests, memory_map_names_the_peak);
    tcase_add_test(tests, memory_map_of_a_long_program_still_shows_its_peak);
    Suite *suite = suite_create("report");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
