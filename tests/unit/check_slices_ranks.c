/* A video of 129 x 720 x 1280 pixels by HunyuanVideo, planned for ranks that share it: slices take memory
 * from them as from one rank. */
#include "tests/support/hdt_program.h"

#include <heddle/job.h>

#include <stdio.h>
#include <stdlib.h>

static void set(hd_config *config, const char *key, const char *value)
{
    hdt_assert_ok(hd_config_set(config, key, value));
}

static void set_number(hd_config *config, const char *key, int value)
{
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    set(config, key, text);
}

typedef struct layout {
    int sequence, ring, tensor;
} layout;

static hd_config *video(const layout *of)
{
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    set(config, "model.preset", "hunyuan-video-13b");
    set(config, "sample.dtype", "bf16");
    set(config, "sample.text_tokens", "256");
    set(config, "sample.frames", "129");
    set(config, "sample.height", "720");
    set(config, "sample.width", "1280");
    set(config, "memory.foreign", "800MiB");
    set_number(config, "layout.sequence", of->sequence);
    set_number(config, "layout.ring", of->ring);
    set_number(config, "layout.tensor", of->tensor);
    return config;
}

/* Bytes that the plan names so, of denoising. */
static double bytes_of(const char *plan, const char *what)
{
    const char *at = strstr(plan, "one pass");
    ck_assert_msg(at != NULL, "no denoising in:\n%s", plan);
    at = strstr(at, what);
    ck_assert_msg(at != NULL, "no %s in:\n%s", what, plan);
    return strtod(at + strlen(what), NULL);
}

static double planned(hd_config *config, const layout *of, const char *what)
{
    hdt_text out = {.used = 0};
    hdt_assert_ok(hd_sample_plan_run(config, of->sequence * of->tensor, false, hdt_collect, &out));
    hd_config_destroy(config);
    return bytes_of(out.text, what);
}

static const layout layouts[] = {{2, 1, 1}, {2, 2, 1}, {4, 1, 1}, {4, 2, 1},
                                 {4, 4, 1}, {8, 1, 1}, {8, 2, 1}, {2, 1, 2}};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

static void check_fits(const layout *of, const char *budget, double bytes)
{
    hd_config *config = video(of);
    set(config, "memory.budget", budget);
    ck_assert_double_le(planned(config, of, "total"), bytes);
}

START_TEST(a_720p_video_fits_4_gib_on_ranks_that_share_its_sequence)
{
    check_fits(&layouts[_i], "4GiB", 4.0 * (1 << 30));
    if (_i == 0) check_fits(&layouts[_i], "6GiB", 6.0 * (1 << 30));
}
END_TEST

static double transients(const layout *of, int slices)
{
    hd_config *config = video(of);
    set(config, "sample.residency", "host");
    set_number(config, "sample.slices", slices);
    return planned(config, of, "transients");
}

/* What lies between blocks and around attention, rows of hidden columns, is a rank's share. Of a turn's
 * heads, however few, a rank has all the tokens of its place. */
START_TEST(in_slices_ranks_need_less_than_at_once_and_than_one_rank_in_slices)
{
    static const layout sliced[] = {{2, 1, 1}, {4, 2, 1}, {8, 1, 1}};
    const double at_once = transients(&sliced[_i], 1), few = transients(&sliced[_i], 2),
                 many = transients(&sliced[_i], 16), alone = transients(&(layout){1, 1, 1}, 16);
    ck_assert_double_lt(few, 0.75 * at_once);
    ck_assert_double_le(many, few);
    ck_assert_double_lt(many, 0.7 * alone);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("slices_ranks");
    TCase *tests = tcase_create("plans");
    tcase_add_loop_test(tests, a_720p_video_fits_4_gib_on_ranks_that_share_its_sequence, 0,
                        LAYOUTS);
    tcase_add_loop_test(tests, in_slices_ranks_need_less_than_at_once_and_than_one_rank_in_slices,
                        0, 3);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
