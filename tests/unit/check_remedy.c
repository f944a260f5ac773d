/* What is said when a plan does not fit: every remedy named fits, cheap ones are named before dear
 * ones, and the budget named as the smallest is the smallest. */
#include "tests/support/hdt_job.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct run {
    const char *layers, *pipeline, *sequence, *schedule, *shard_state, *hidden, *slices,
        *mlp_slices;
    int ranks;
    const char *first; /* what is named when a byte is missing */
    const char *among; /* what is named before there is nothing more to do */
} run;

/* Wide and few tokens: parameters take most; narrow and many: activations. */
static const run runs[] = {
    {"2", "1", "1", "auto", "0", "64", "16", "16", 1, "optimizer.residency=host",
     "gradient_residency=host"},
    {"6", "1", "1", "auto", "0", "32", "16", "16", 1, "optimizer.residency=host",
     "train.residency=host"},
    {"4", "1", "1", "auto", "0", "64", "16", "16", 4, "layout.shard_state=1",
     "layout.shard_state=3"},
    {"4", "1", "2", "auto", "1", "64", "16", "16", 2, "layout.shard_state=2",
     "gradient_residency=host"},
    {"4", "1", "1", "auto", "0", "16", "16", "16", 4, "layout.shard_state=1",
     "layout.shard_state=3"},
    {"2", "2", "1", "gpipe", "0", "16", "16", "16", 2, "layout.schedule=1f1b",
     "layout.recompute=layer"},
    {"2", "2", "1", "auto", "0", "64", "16", "16", 4, "layout.shard_state=1",
     "layout.recompute=layer"},
    {"2", "1", "1", "auto", "0", "32", "1", "16", 1, "train.slices=16", "layout.recompute=layer"},
    {"2", "1", "2", "auto", "0", "32", "1", "16", 2, "train.slices=16", "layout.shard_state=2"},
    {"2", "1", "1", "auto", "0", "32", "16", "1", 1, "train.mlp_slices=16",
     "train.mlp_slices=16 optimizer.residency=host"},
};
enum { RUNS = sizeof runs / sizeof runs[0] };

static hd_config *configure(const run *one, size_t budget)
{
    hd_config *config;
    char text[32];
    hdt_assert_ok(hd_config_create(&config));
    hdt_set(config, "model.layers", one->layers);
    hdt_set(config, "model.hidden", one->hidden);
    hdt_set(config, "model.heads", "2");
    hdt_set(config, "train.tokens", "32");
    hdt_set(config, "train.micro_batch", "2");
    hdt_set(config, "train.accumulate", "4");
    hdt_set(config, "layout.bucket", "16000");
    hdt_set(config, "layout.pipeline", one->pipeline);
    hdt_set(config, "layout.sequence", one->sequence);
    hdt_set(config, "layout.schedule", one->schedule);
    hdt_set(config, "train.slices", one->slices);
    hdt_set(config, "train.mlp_slices", one->mlp_slices);
    hdt_set(config, "layout.shard_state", one->shard_state);
    snprintf(text, sizeof text, "%zu", budget);
    hdt_set(config, "memory.budget", text);
    return config;
}

/* Plan with a budget, changed by "KEY=VALUE KEY=VALUE ... [on N ranks]". The text of a refusal goes
 * to `refusal`, which is empty if the plan fits. */
static void plan(const run *one, size_t budget, const char *changes, char refusal[HDT_REFUSAL])
{
    hd_config *config = configure(one, budget);
    const int ranks = hdt_set_words(config, changes);
    hd_status status = hd_plan_run(config, ranks ? ranks : one->ranks, NULL, false, NULL, NULL);
    hdt_take_refusal(status, refusal);
    hd_config_destroy(config);
}

/* What stands between two words of a text. */
static bool between(const char *text, const char *before, const char *after, char out[512])
{
    const char *begin = strstr(text, before);
    const char *end = begin ? strstr(begin + strlen(before), after) : NULL;
    if (!end) return false;
    begin += strlen(before);
    snprintf(out, 512, "%.*s", (int)(end - begin), begin);
    return true;
}

static size_t smallest_budget(const char *refusal)
{
    char text[512];
    ck_assert_msg(between(refusal, "memory.budget=", " is the smallest", text), "%s", refusal);
    return strtoull(text, NULL, 10);
}

START_TEST(every_remedy_and_the_smallest_budget_that_are_named_fit)
{
    char refusal[HDT_REFUSAL], changes[512], bytes[512], all[4096] = "";
    plan(&runs[_i], 1, "", refusal);
    const size_t smallest = smallest_budget(refusal);
    plan(&runs[_i], smallest, "", refusal);
    ck_assert_str_eq(refusal, "");
    size_t budget = smallest - 1, need = 0;
    for (int remedies = 0;; remedies++) {
        plan(&runs[_i], budget, "", refusal);
        ck_assert_uint_eq(smallest_budget(refusal), smallest);
        if (!between(refusal, "\nwith ", " it needs ", changes)) break;
        if (!remedies) ck_assert_str_eq(changes, runs[_i].first);
        ck_assert(between(refusal, " it needs ", " and fits", bytes));
        need = strtoull(bytes, NULL, 10);
        ck_assert_uint_le(need, budget);
        plan(&runs[_i], need, changes, refusal);
        ck_assert_msg(!*refusal, "%s does not fit: %s", changes, refusal);
        if (remedies == 1) {
            plan(&runs[_i], need - 1, changes, refusal);
            ck_assert_msg(*refusal, "%s needs less than %zu bytes", changes, need);
        }
        strncat(all, changes, sizeof all - strlen(all) - 1);
        budget = need - need / 6;
    }
    /* Then the smallest need that was found is above the budget, and true. */
    ck_assert_msg(between(refusal, "smallest found is ", " with ", bytes), "%s", refusal);
    ck_assert_uint_gt(strtoull(bytes, NULL, 10), budget);
    ck_assert_msg(strstr(all, runs[_i].among), "no %s among %s", runs[_i].among, all);
}
END_TEST

START_TEST(what_is_foreign_is_taken_from_the_budget)
{
    char refusal[HDT_REFUSAL];
    plan(&runs[0], 1, "", refusal);
    const size_t smallest = smallest_budget(refusal);
    plan(&runs[0], smallest, "memory.foreign=1000", refusal);
    ck_assert_uint_eq(smallest_budget(refusal), smallest + 1000);
    plan(&runs[0], smallest + 1000, "memory.foreign=1000", refusal);
    ck_assert_str_eq(refusal, "");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("remedy");
    TCase *tests = tcase_create("remedy");
    tcase_add_loop_test(tests, every_remedy_and_the_smallest_budget_that_are_named_fit, 0, RUNS);
    tcase_add_test(tests, what_is_foreign_is_taken_from_the_budget);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
