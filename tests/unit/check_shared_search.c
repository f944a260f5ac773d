/* One search for ranks that are alike: each rank's settings, bytes and seconds are those that its own search
 * ends with, whatever the shares, and fewer searches find them. */
#include "jobs/job_model.h"
#include "jobs/setup.h"
#include "jobs/train/train.h"
#include "tests/support/hdt_job.h"

typedef struct layout {
    const char *settings;
    int ranks;
    int most_searches; /* for all of them */
} layout;

#define SETTINGS                                                                                \
    "model.layers=6 train.tokens=64 train.micro_batch=4 train.dtype=bf16 run.rates=rtx-4090 "   \
    "layout.bucket=400kB train.activations=auto train.residency=auto optimizer.residency=auto " \
    "train.gradient_residency=auto "
#define EVEN "model.hidden=256 model.heads=8 model.vocab=1024 "
#define UNEVEN "model.hidden=192 model.heads=6 model.vocab=1003 "

static const layout layouts[] = {
    {SETTINGS EVEN "layout.shard_state=2 train.slices=0 train.mlp_slices=0", 8, 5},
    {SETTINGS EVEN "layout.shard_state=2 layout.tensor=4", 8, 4},
    {SETTINGS EVEN "layout.sequence=4 layout.shard_state=2", 8, 7},
    {SETTINGS UNEVEN "layout.shard_state=2 layout.tensor=2", 12, 12},
    {SETTINGS UNEVEN "layout.shard_state=2 layout.sequence=3", 12, 12},
    {SETTINGS UNEVEN "layout.pipeline=2 train.accumulate=4 layout.shard_state=1 train.slices=0", 8,
     8},
    {SETTINGS UNEVEN "layout.shard_state=3 train.slices=0", 7, 7},
};
static const double budgets[] = {0.75, 0.5}; /* of what one needs without any */
enum {
    LAYOUTS = sizeof layouts / sizeof layouts[0],
    BUDGETS = sizeof budgets / sizeof budgets[0],
    MOST_RANKS = 12
};

typedef struct ranks {
    hd_config *config;
    hd_model *model;
    hd_mesh *mesh[MOST_RANKS];
    int count;
} ranks;

static void open_ranks(ranks *r, const layout *one, size_t budget)
{
    hd_mesh_options sizes;
    hdt_assert_ok(hd_config_create(&r->config));
    hdt_set_words(r->config, one->settings);
    hdt_set_number(r->config, "memory.budget", (int64_t)budget);
    hdt_assert_ok(hdi_job_model(r->config, &r->model));
    hdt_assert_ok(hdi_job_mesh_options(r->config, one->ranks, &sizes));
    r->count = one->ranks;
    for (int i = 0; i < r->count; i++)
        hdt_assert_ok(hd_mesh_create_fake(i, r->count, &sizes, &r->mesh[i]));
}

static void close_ranks(ranks *r)
{
    for (int i = 0; i < r->count; i++)
        hd_mesh_destroy(r->mesh[i]);
    hd_model_destroy(r->model);
    hd_config_destroy(r->config);
}

static hd_status create(const ranks *r, int rank, int64_t code, hdi_searches *searches,
                        hd_trainer **out)
{
    const hdi_train_target on = {.config = r->config,
                                 .model = r->model,
                                 .mesh = r->mesh[rank],
                                 .activations = code,
                                 .searches = searches};
    return hdi_train_create(&on, NULL, out);
}

static size_t bytes_without_budget(const layout *one)
{
    ranks r = {0};
    hd_trainer *trainer;
    open_ranks(&r, one, 0);
    hdt_assert_ok(create(&r, 0, 0, NULL, &trainer));
    const size_t bytes = hd_plan_total_bytes(hd_trainer_plan(trainer));
    hd_trainer_destroy(trainer);
    close_ranks(&r);
    return bytes;
}

static void assert_same(const hd_trainer *shared, const hd_trainer *own)
{
    const hd_trainer_options *a = &shared->options, *b = &own->options;
    uint64_t likeness, own_likeness;
    double seconds, own_seconds;
    ck_assert_int_eq(a->slices, b->slices);
    ck_assert_int_eq(a->mlp_slices, b->mlp_slices);
    ck_assert_int_eq(a->activations, b->activations);
    ck_assert_int_eq(a->recompute, b->recompute);
    ck_assert_int_eq(a->activation_blocks, b->activation_blocks);
    ck_assert_int_eq(a->residency, b->residency);
    ck_assert_int_eq(a->host_blocks, b->host_blocks);
    ck_assert_int_eq(a->optimizer_residency, b->optimizer_residency);
    ck_assert_int_eq(a->gradient_residency, b->gradient_residency);
    ck_assert_int_eq(a->in_turn, b->in_turn);
    ck_assert_mem_eq(shared->plan->bytes, own->plan->bytes, sizeof own->plan->bytes);
    hdt_assert_ok(hdi_trainer_step_seconds(shared, &seconds));
    hdt_assert_ok(hdi_trainer_step_seconds(own, &own_seconds));
    ck_assert_double_eq(seconds, own_seconds);
    hdt_assert_ok(hdi_trainer_likeness(shared, &likeness));
    hdt_assert_ok(hdi_trainer_likeness(own, &own_likeness));
    ck_assert_uint_eq(likeness, own_likeness);
}

/* Returns the largest of what the ranks found: as in plans, those that share a sequence then adopt it. */
static int64_t compare_all(const ranks *r, int64_t code, hdi_searches *searches)
{
    int64_t largest = 0;
    for (int i = 0; i < r->count; i++) {
        hd_trainer *own = NULL, *shared = NULL;
        hdt_assert_ok(create(r, i, code, NULL, &own));
        hdt_assert_ok(create(r, i, code, searches, &shared));
        assert_same(shared, own);
        const int64_t found = hdi_trainer_activations_code(own);
        if (largest < found) largest = found;
        hd_trainer_destroy(own);
        hd_trainer_destroy(shared);
    }
    return largest;
}

START_TEST(each_rank_has_what_its_own_search_finds)
{
    const layout *one = &layouts[_i / BUDGETS];
    const double budget = budgets[_i % BUDGETS] * (double)bytes_without_budget(one);
    ranks r = {0};
    hdi_searches searches = {0};
    open_ranks(&r, one, (size_t)budget);
    const int64_t largest = compare_all(&r, 0, &searches);
    ck_assert_int_le(searches.count, one->most_searches);
    if (largest) compare_all(&r, largest, &searches);
    hdi_searches_release(&searches);
    close_ranks(&r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shared_search");
    TCase *tests = tcase_create("shared_search");
    tcase_add_loop_test(tests, each_rank_has_what_its_own_search_finds, 0, LAYOUTS * BUDGETS);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
