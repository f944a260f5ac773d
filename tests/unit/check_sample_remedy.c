/* What is said when a sampling does not fit: the remedy that is named fits, and so does the smallest budget. */
#include "tests/support/hdt_job.h"

#include <stdio.h>
#include <stdlib.h>

#define VIDEO                                                                         \
    "model.preset=mmdit-pixel-tiny sample.frames=8 sample.height=64 sample.width=64 " \
    "sample.steps=10 "

typedef struct refused {
    const char *settings, *budget;
    int ranks;
    const char *remedy;
} refused;

static const refused cases[] = {
    {VIDEO "sample.residency=resident", "7MiB", 1, "sample.residency=auto"},
    {VIDEO "sample.residency=host sample.slices=1", "6MiB", 1,
     "sample.residency=auto sample.slices=0"},
    {VIDEO, "4MiB", 1, "sample.dtype=bf16"},
    {VIDEO, "3MiB", 1, "sample.dtype=bf16 layout.tensor=2 on 2 ranks"},
    {VIDEO "sample.dtype=bf16 layout.data=2", "3MiB", 2, "layout.data=1 layout.tensor=2"},
};
enum { CASES = sizeof cases / sizeof cases[0] };

/* Plan with a budget, changed by "KEY=VALUE KEY=VALUE ... [on N ranks]"; the refusal's text, or "". */
static void plan(const refused *one, const char *budget, const char *changes,
                 char refusal[HDT_REFUSAL])
{
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    hdt_assert_ok(hd_config_set(config, "memory.budget", budget));
    hdt_set_words(config, one->settings);
    const int ranks = hdt_set_words(config, changes);
    const hd_status status =
        hd_sample_plan_run(config, ranks ? ranks : one->ranks, false, NULL, NULL);
    hdt_take_refusal(status, refusal);
    hd_config_destroy(config);
}

START_TEST(the_remedy_that_is_named_fits)
{
    char refusal[HDT_REFUSAL], wanted[256];
    plan(&cases[_i], cases[_i].budget, "", refusal);
    snprintf(wanted, sizeof wanted, "\nwith %s it fits", cases[_i].remedy);
    ck_assert_msg(strstr(refusal, wanted) != NULL, "no '%s' in: %s", wanted + 1, refusal);
    plan(&cases[_i], cases[_i].budget, cases[_i].remedy, refusal);
    ck_assert_str_eq(refusal, "");
}
END_TEST

START_TEST(where_nothing_fits_the_smallest_budget_that_was_found_does)
{
    static const refused one = {VIDEO, "100KiB", 1, NULL};
    static const char before[] = "the smallest budget found is ", with[] = ", with ";
    char refusal[HDT_REFUSAL], budget[32], changes[256];
    plan(&one, one.budget, "", refusal);
    const char *at = strstr(refusal, before);
    ck_assert_msg(at != NULL, "%s", refusal);
    const size_t bytes = strtoull(at + strlen(before), NULL, 10);
    ck_assert_msg((at = strstr(at, with)) != NULL, "%s", refusal);
    snprintf(changes, sizeof changes, "%s", at + strlen(with));
    snprintf(budget, sizeof budget, "%zu", bytes);
    plan(&one, budget, changes, refusal);
    ck_assert_str_eq(refusal, "");
    snprintf(budget, sizeof budget, "%zu", bytes - 1);
    plan(&one, budget, changes, refusal);
    ck_assert_str_ne(refusal, "");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sample remedy");
    TCase *tests = tcase_create("remedy");
    tcase_add_loop_test(tests, the_remedy_that_is_named_fits, 0, CASES);
    tcase_add_test(tests, where_nothing_fits_the_smallest_budget_that_was_found_does);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
