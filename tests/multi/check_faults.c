/* ranks: 1 2 4, at most 4 */
/* Faults that the ranks must meet together: a NaN on one of them, settings or data that differ, a
 * layout that does not fit them, a budget that does not fit the plan. */
#include "tests/support/hdt_train.h"

#include <heddle/ops.h>

#include "core/memory.h"
#include "jobs/train/trainer.h"
#include "runtime/session.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_job.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { STEPS = 5, POISONED_STEP = 2, LAYERS = 4, HIDDEN = 48, MEGABYTE = 1 << 20 };

/* The model with an input that is added to its embeddings. */
static hd_tensor build_poisoned(void *user, hd_program *program, const hd_stage *stage, hd_tensor x)
{
    hd_stage part = *stage;
    if (stage->first) {
        const int64_t dims[] = {stage->sequences * stage->tokens, HIDDEN};
        part.layers = 0;
        part.last = false;
        x = hd_model_build(user, program, &part, x);
        x = hd_add(program, x, hd_input(program, "poison", HD_DTYPE_F32, 2, dims));
        part = *stage;
        part.first = false;
        if (part.layers == 0 && !part.last) return x;
    }
    return hd_model_build(user, program, &part, x);
}

/* A NaN in one element of one micro-batch, which one data rank has. */
static hd_status feed_poison(void *user, const char *name, int64_t global_batch, void *out,
                             size_t bytes)
{
    if (strcmp(name, "poison") != 0) return hdt_feed(user, name, global_batch, out, bytes);
    memset(out, 0, bytes);
    if (*(const int64_t *)user == POISONED_STEP && global_batch == HDT_GLOBAL_BATCHES - 1)
        ((float *)out)[bytes / sizeof(float) / 2] = NAN;
    return HD_OK;
}

typedef struct outcome {
    hd_step_result results[STEPS];
    uint64_t hashes[STEPS];
    bool ranks_agree; /* on every weight that data ranks share */
} outcome;

static hd_status compare_replicas(hd_trainer *trainer, const hd_mesh *mesh, bool *equal)
{
    const hdi_layout *layout = trainer->plan->layout;
    const hd_context *context = trainer->session->context;
    const hdi_entry *last = &layout->entries[layout->entry_count - 1];
    const size_t bytes = (size_t)(last->first + last->elements) * sizeof(float);
    void *weights = malloc(bytes);
    hd_status status = context->backend->copy_out(
        context->stream, weights,
        trainer->session->arena + trainer->plan->units[0].base[HD_REGION_WEIGHTS], bytes);
    if (status == HD_OK) status = context->backend->synchronize(context->stream);
    if (status == HD_OK)
        status =
            hd_comm_check_equal(hd_mesh_comm(mesh, HD_AXIS_DATA), weights, bytes, "the weights");
    free(weights);
    *equal = status == HD_OK;
    return status == HD_ERROR_MISMATCH ? HD_OK : status;
}

static hd_status train_poisoned(hd_comm *comm, const hd_mesh_options *sizes, bool shard_state,
                                outcome *out)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    hd_model *model = hdt_tiny_model("gpt2", LAYERS);
    hd_status status = hd_mesh_create(comm, sizes, &mesh);
    if (status == HD_OK) status = hdt_open_context(comm, mesh, &context);
    if (status == HD_OK)
        status =
            hd_trainer_create(&(hd_trainer_options){.build = build_poisoned,
                                                    .user = model,
                                                    .layers = LAYERS,
                                                    .mesh = mesh,
                                                    .backend = hd_context_backend(context),
                                                    .sequences = HDT_SEQUENCES,
                                                    .tokens = HDT_TOKENS,
                                                    .accumulate = HDT_GLOBAL_BATCHES /
                                                                  hd_mesh_size(mesh, HD_AXIS_DATA),
                                                    .exact = true,
                                                    .shard_state = shard_state,
                                                    .clip_norm = 1},
                              &trainer);
    if (status == HD_OK) status = hd_trainer_start(trainer, context, 42);
    for (int64_t step = 0; step < STEPS && status == HD_OK; step++) {
        status = hd_trainer_step(trainer, 3e-3, feed_poison, &step, &out->results[step]);
        if (status == HD_OK) status = hd_trainer_weights_hash(trainer, &out->hashes[step]);
    }
    if (status == HD_OK) status = compare_replicas(trainer, mesh, &out->ranks_agree);
    hd_trainer_destroy(trainer);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
    return status;
}

static const hd_mesh_options meshes[] = {{.data = 1, .pipeline = 1}, {.data = 2, .pipeline = 1},
                                         {.data = 1, .pipeline = 2}, {.data = 4, .pipeline = 1},
                                         {.data = 2, .pipeline = 2}, {.data = 1, .pipeline = 4}};

START_TEST(a_step_with_a_nan_is_skipped_by_all_ranks_alike)
{
    hd_comm *self;
    outcome one, all;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    hd_status alone = train_poisoned(self, &meshes[0], false, &one);
    hd_comm_destroy(self);
    hdt_assert_ok(alone);
    for (size_t i = 0; i < sizeof meshes / sizeof meshes[0]; i++) {
        if (meshes[i].data * meshes[i].pipeline != hd_comm_size(hdt_world)) continue;
        hdt_assert_ok(train_poisoned(hdt_world, &meshes[i], _i, &all));
        ck_assert(all.ranks_agree);
        for (int step = 0; step < STEPS; step++) {
            ck_assert_int_eq(all.results[step].skipped, step == POISONED_STEP);
            ck_assert_int_eq(isfinite(all.results[step].loss) != 0, step != POISONED_STEP);
            ck_assert_msg(all.hashes[step] == one.hashes[step],
                          "data %d x pipeline %d: other weights after step %d than on one rank",
                          meshes[i].data, meshes[i].pipeline, step);
            if (step > 0)
                ck_assert_int_eq(all.hashes[step] == all.hashes[step - 1], step == POISONED_STEP);
        }
        ck_assert_double_lt(all.results[STEPS - 1].loss, all.results[0].loss);
    }
}
END_TEST

/* A run with an arena of several megabytes. Each rank reads `text` in its own directory. */
static hd_config *configure(void)
{
    static const char *const settings[][2] = {
        {"model.layers", "4"},  {"model.hidden", "64"},     {"model.heads", "2"},
        {"train.tokens", "32"}, {"train.micro_batch", "4"}, {"train.batch", "16"},
        {"train.steps", "1"},   {"data.path", "text"},
    };
    hd_config *config;
    char directory[4200];
    snprintf(directory, sizeof directory, "%s/run", hdt_shared_temp_dir());
    hdt_assert_ok(hd_config_create(&config));
    hdt_set_all(config, settings);
    hdt_set(config, "run.directory", directory);
    return config;
}

static void write_own_text(const char *word)
{
    FILE *file = fopen(hdt_temp_path("text"), "w");
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < 500; i++)
        fprintf(file, "%s %d\n", word, i % 10);
    ck_assert_int_eq(fclose(file), 0);
    ck_assert_int_eq(chdir(hdt_temp_dir()), 0);
}

/* What opening a world takes at once: that much comes before anything can be refused. */
static size_t world_bytes(void)
{
    hdi_alloc_take_largest();
    hd_comm_destroy(hdt_open_world(0));
    return hdi_alloc_take_largest();
}

/* The run fails on every rank, before it takes much memory. */
static void expect_refusal(const hd_config *config, hd_status wanted, const char *fragment)
{
    hd_train_result result;
    const size_t world = world_bytes();
    hd_status status = hd_train_run(config, NULL, NULL, &result);
    const size_t largest = hdi_alloc_take_largest();
    hdt_assert_status(status, wanted, fragment);
    ck_assert_uint_le(largest, world > MEGABYTE ? world : MEGABYTE);
}

/* The same with the same text on all ranks. */
static void expect_one_refusal(const hd_config *config, hd_status wanted, const char *fragment)
{
    expect_refusal(config, wanted, fragment);
    char text[4096];
    snprintf(text, sizeof text, "%s", hd_last_error());
    hdt_assert_ok(hd_comm_check_equal(hdt_world, text, strlen(text), text));
}

static bool is_last(void)
{
    return hd_comm_rank(hdt_world) == hd_comm_size(hdt_world) - 1;
}

START_TEST(ranks_that_were_configured_differently_all_say_so)
{
    if (hd_comm_size(hdt_world) == 1) return;
    write_own_text("warp");
    hd_config *config = configure();
    if (is_last()) hdt_set(config, "optimizer.learning_rate", "0.5");
    expect_one_refusal(config, HD_ERROR_MISMATCH, "optimizer.learning_rate");
    hd_config_destroy(config);
}
END_TEST

START_TEST(ranks_that_read_other_data_all_say_so)
{
    if (hd_comm_size(hdt_world) == 1) return;
    write_own_text(is_last() ? "weft" : "warp"); /* of the same size */
    hd_config *config = configure();
    expect_one_refusal(config, HD_ERROR_MISMATCH, "data.path");
    hd_config_destroy(config);
}
END_TEST

START_TEST(a_layout_that_does_not_fit_the_ranks_is_refused)
{
    write_own_text("warp");
    hd_config *config = configure();
    hdt_set(config, "layout.pipeline", "3");
    expect_one_refusal(config, HD_ERROR_CONFIG, "pipeline 3");
    hdt_set(config, "layout.pipeline", "1");
    hdt_set(config, "layout.data", "7");
    expect_one_refusal(config, HD_ERROR_CONFIG, "7");
    hd_config_destroy(config);
}
END_TEST

/* Every key=value of "with KEY=VALUE ... it needs". */
static void apply_remedy(hd_config *config, const char *text)
{
    const char *with = strstr(text, "\nwith ");
    ck_assert_msg(with, "no remedy in: %s", text);
    char settings[256];
    ck_assert_int_eq(sscanf(with, "\nwith %255[^\n]", settings), 1);
    hdt_set_words(config, settings);
}

START_TEST(a_budget_that_is_too_small_is_refused_with_a_remedy_that_works)
{
    write_own_text("warp");
    hd_config *config = configure();
    hd_train_result result;
    char text[4096], budget[32];
    size_t smallest = 0;
    hdt_set(config, "memory.budget", "2000");
    expect_refusal(config, HD_ERROR_BUDGET, "does not fit");
    snprintf(text, sizeof text, "%s", hd_last_error());
    ck_assert_msg(strstr(text, "needs ") && strstr(text, "the budget is 2000") &&
                      strstr(text, "the largest region is ") &&
                      strstr(text, "nothing tried fits; the smallest found is "),
                  "%s", text);
    const char *least = strstr(text, "memory.budget=");
    ck_assert_ptr_nonnull(least);
    ck_assert_int_eq(sscanf(least, "memory.budget=%zu", &smallest), 1);
    ck_assert_uint_gt(smallest, MEGABYTE);

    /* One byte less is refused, and names settings that then do. */
    snprintf(budget, sizeof budget, "%zu", smallest - 1);
    hdt_set(config, "memory.budget", budget);
    hd_status refused = hd_train_run(config, NULL, NULL, &result);
    snprintf(text, sizeof text, "%s", hd_last_error());
    hdt_set(config, "checkpoint.resume", "never");
    hd_config *changed = configure();
    hdt_set(changed, "memory.budget", budget);
    hdt_set(changed, "checkpoint.resume", "never");
    apply_remedy(changed, text);
    hd_status fits = hd_train_run(changed, NULL, NULL, &result);
    snprintf(budget, sizeof budget, "%zu", smallest);
    hdt_set(config, "memory.budget", budget);
    hd_status just = hd_train_run(config, NULL, NULL, &result);
    hd_config_destroy(changed);
    hd_config_destroy(config);
    ck_assert_int_ne(refused, HD_OK);
    hdt_assert_ok(fits);
    hdt_assert_ok(just);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("faults");
    tcase_add_loop_test(tests, a_step_with_a_nan_is_skipped_by_all_ranks_alike, 0, 2);
    tcase_add_test(tests, ranks_that_were_configured_differently_all_say_so);
    tcase_add_test(tests, ranks_that_read_other_data_all_say_so);
    tcase_add_test(tests, a_layout_that_does_not_fit_the_ranks_is_refused);
    tcase_add_test(tests, a_budget_that_is_too_small_is_refused_with_a_remedy_that_works);
    return hdt_main_ranks(argc, argv, "faults", tests);
}
