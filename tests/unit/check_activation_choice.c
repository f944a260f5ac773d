/* Which blocks' activations are kept: as many as the budget allows, or as a number says; what that does to
 * bytes and predicted seconds, and what is refused. */
#include "jobs/train/trainer.h"
#include "ops/host_copy.h"
#include "tests/support/hdt_program.h"
#include "tests/support/hdt_train.h"

#include <heddle/job.h>

#include <stdio.h>
#include <string.h>

enum { BLOCKS = 6 };

/* Planned for rank 0 of the ranks that `sizes` make. */
static hd_status try_plan(const hd_mesh_options *sizes, hd_trainer_options options,
                          hd_trainer **out)
{
    hd_mesh *mesh = NULL;
    hd_model *model = hdt_tiny_model("gpt2", BLOCKS);
    const int ranks = sizes->pipeline ? sizes->pipeline : 1;
    hdt_assert_ok(hd_mesh_create_fake(0, ranks, sizes, &mesh));
    options.build = hd_model_build;
    options.user = model;
    options.layers = BLOCKS;
    options.mesh = mesh;
    options.sequences = 8;
    options.tokens = HDT_TOKENS;
    options.accumulate = 4;
    const hd_status status = hd_trainer_create(&options, out);
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
    return status;
}

static hd_trainer *plan(const hd_mesh_options *sizes, hd_trainer_options options)
{
    hd_trainer *trainer = NULL;
    hdt_assert_ok(try_plan(sizes, options, &trainer));
    return trainer;
}

static const hd_mesh_options alone = {.data = 1};

static size_t bytes_of(hd_trainer_options options)
{
    hd_trainer *trainer = plan(&alone, options);
    const size_t bytes = hd_plan_total_bytes(trainer->plan);
    hd_trainer_destroy(trainer);
    return bytes;
}

static double seconds_of(const hd_trainer *trainer)
{
    double seconds;
    hdt_assert_ok(hd_plan_seconds(trainer->plan, trainer->shapes[0].train[0].program, &seconds));
    return seconds;
}

START_TEST(each_block_more_takes_fewer_bytes_and_more_seconds)
{
    hd_trainer_options options = {.schedule = "gpipe"};
    hdt_assert_ok(hd_rates_find("h100", &options.rates));
    hd_trainer *before = plan(&alone, options);
    options.activations = HD_ACTIVATIONS_RECOMPUTE;
    for (int blocks = 1; blocks <= BLOCKS; blocks++) {
        options.activation_blocks = blocks;
        hd_trainer *trainer = plan(&alone, options);
        ck_assert_uint_lt(hd_plan_total_bytes(trainer->plan), hd_plan_total_bytes(before->plan));
        ck_assert_double_gt(seconds_of(trainer), seconds_of(before));
        hd_trainer_destroy(before);
        before = trainer;
    }
    options.activation_blocks = 0;
    ck_assert_uint_eq(bytes_of(options), hd_plan_total_bytes(before->plan));
    hd_trainer_destroy(before);
}
END_TEST

START_TEST(auto_keeps_as_many_blocks_as_the_budget_allows)
{
    hd_trainer_options options = {.schedule = "gpipe"};
    size_t need[BLOCKS + 1] = {bytes_of(options)};
    options.activations = HD_ACTIVATIONS_RECOMPUTE;
    for (int blocks = 1; blocks <= BLOCKS; blocks++) {
        options.activation_blocks = blocks;
        need[blocks] = bytes_of(options);
    }
    options.activation_blocks = 0;
    options.activations = HD_ACTIVATIONS_AUTO;
    for (int blocks = 0; blocks <= BLOCKS; blocks++)
        for (size_t more = 0; more < 2; more++) {
            options.budget =
                need[blocks] + (more && blocks ? need[blocks - 1] - need[blocks] - 1 : 0);
            hd_trainer *trainer = plan(&alone, options);
            const hd_trainer_options *o = &trainer->options;
            const bool keeps = o->activations == HD_ACTIVATIONS_KEEP;
            ck_assert(keeps || o->activations == HD_ACTIVATIONS_RECOMPUTE);
            const int chosen = keeps ? 0 : o->activation_blocks ? o->activation_blocks : BLOCKS;
            ck_assert_int_eq(chosen, blocks);
            ck_assert_uint_eq(hd_plan_total_bytes(trainer->plan), need[blocks]);
            hd_trainer_destroy(trainer);
        }
}
END_TEST

/* Of a stage's blocks those whose scopes are marked, as bits. */
static unsigned marked(const hd_program *program)
{
    unsigned bits = 0;
    for (int s = 0, layer; s < program->scope_count; s++)
        if (program->scopes[s].recompute &&
            sscanf(program->scopes[s].name, "transformer.h.%d", &layer) == 1)
            bits |= 1U << layer;
    return bits;
}

/* Of earlier chunks more micro-batches are in flight. */
START_TEST(the_first_blocks_of_the_first_chunk_are_computed_again)
{
    hd_trainer_options options = {.activations = HD_ACTIVATIONS_RECOMPUTE, .chunks = 2};
    const int stage_layers[] = {2, 1, 2, 1};
    options.stage_layers = stage_layers;
    const unsigned wanted[][2] = {{1, 0}, {3, 0}, {3, 8}, {3, 24}, {3, 24}};
    for (int blocks = 1; blocks <= 5; blocks++) {
        options.activation_blocks = blocks;
        hd_trainer *trainer = plan(&(hd_mesh_options){.pipeline = 2}, options);
        ck_assert_int_eq(hdi_trainer_layers(trainer), 4);
        for (int c = 0; c < 2; c++)
            ck_assert_uint_eq(marked(trainer->shapes[0].train[c].program), wanted[blocks - 1][c]);
        hd_trainer_destroy(trainer);
    }
}
END_TEST

/* Blocks from which something is copied to the host, as bits. */
static unsigned copied(const hd_program *program)
{
    unsigned bits = 0;
    for (int i = 0, layer; i < program->op_count; i++)
        if (program->ops[i]->op.kind == &hdi_op_store &&
            sscanf(program->scopes[program->ops[i]->scope].name, "transformer.h.%d", &layer) == 1)
            bits |= 1U << layer;
    return bits;
}

START_TEST(blocks_that_are_copied_are_evenly_spread)
{
    static const unsigned wanted[] = {1, 9, 21, 27, 31, 63};
    hd_trainer_options options = {.activations = HD_ACTIVATIONS_HOST, .schedule = "gpipe"};
    for (int blocks = 1; blocks <= BLOCKS; blocks++) {
        options.activation_blocks = blocks;
        hd_trainer *trainer = plan(&alone, options);
        ck_assert_uint_eq(copied(trainer->shapes[0].train[0].program), wanted[blocks - 1]);
        hd_trainer_destroy(trainer);
    }
    options.activations = HD_ACTIVATIONS_RECOMPUTE_HOST; /* what recomputed blocks hand on */
    options.activation_blocks = 2;
    hd_trainer *trainer = plan(&alone, options);
    ck_assert_uint_eq(marked(trainer->shapes[0].train[0].program), 3);
    ck_assert_uint_eq(copied(trainer->shapes[0].train[0].program), 3);
    hd_trainer_destroy(trainer);
}
END_TEST

START_TEST(more_blocks_than_there_are_and_blocks_of_no_kind_are_refused)
{
    hd_trainer *trainer = NULL;
    hd_trainer_options options = {.activations = HD_ACTIVATIONS_RECOMPUTE};
    options.activation_blocks = BLOCKS + 1;
    hdt_assert_status(try_plan(&alone, options, &trainer), HD_ERROR_ARGUMENT,
                      "activations of 7 blocks");
    options.activation_blocks = -1;
    hdt_assert_status(try_plan(&alone, options, &trainer), HD_ERROR_ARGUMENT, "want 0 to 6");
    options.activation_blocks = 2;
    options.activations = HD_ACTIVATIONS_KEEP;
    hdt_assert_status(try_plan(&alone, options, &trainer), HD_ERROR_ARGUMENT, "those of all are");
    ck_assert_ptr_null(trainer);
}
END_TEST

static hd_config *configure(const char *const settings[][2], size_t count)
{
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    for (size_t i = 0; i < count; i++)
        hdt_assert_ok(hd_config_set(config, settings[i][0], settings[i][1]));
    return config;
}

START_TEST(settings_that_cannot_be_are_refused_by_name)
{
    static const char *const settings[][2] = {{"model.layers", "2"},
                                              {"model.hidden", "16"},
                                              {"model.heads", "2"},
                                              {"train.activation_blocks", "3"}};
    hd_config *config = configure(settings, 4);
    hdt_assert_status(hd_plan_run(config, 1, NULL, false, NULL, NULL), HD_ERROR_CONFIG,
                      "train.activation_blocks: seen 3, the model has 2 blocks");
    hdt_assert_ok(hd_config_set(config, "train.activation_blocks", "1"));
    hdt_assert_status(hd_plan_run(config, 1, NULL, false, NULL, NULL), HD_ERROR_CONFIG,
                      "seen 1 with train.activations keep");
    hdt_assert_ok(hd_config_set(config, "layout.recompute", "layer"));
    hdt_assert_ok(hd_plan_run(config, 1, NULL, false, NULL, NULL));
    hd_config_destroy(config);
}
END_TEST

/* A few blocks are computed again sooner than the optimizer's state leaves the device. */
START_TEST(a_plan_says_how_many_and_takes_the_faster_way)
{
    static const char *const settings[][2] = {
        {"model.preset", "gpt2-large"}, {"train.dtype", "bf16"},
        {"train.tokens", "1024"},       {"train.micro_batch", "8"},
        {"train.activations", "auto"},  {"optimizer.residency", "auto"},
        {"memory.budget", "22GiB"},     {"run.rates", "h100"}};
    hd_config *config = configure(settings, sizeof settings / sizeof settings[0]);
    hdt_text out = {.used = 0};
    hdt_assert_ok(hd_plan_run(config, 1, NULL, false, hdt_collect, &out));
    ck_assert_msg(strstr(out.text, "train.activations=recompute: 7 of 36 blocks\n"), "%s",
                  out.text);
    ck_assert_ptr_null(strstr(out.text, "optimizer.residency=host"));
    hd_config_destroy(config);
}
END_TEST

START_TEST(a_refusal_names_more_blocks)
{
    static const char *const settings[][2] = {{"model.layers", "6"},
                                              {"model.hidden", "16"},
                                              {"model.heads", "2"},
                                              {"train.tokens", "256"},
                                              {"train.activations", "recompute"},
                                              {"train.activation_blocks", "1"},
                                              {"memory.budget", "6MiB"}};
    hd_config *config = configure(settings, sizeof settings / sizeof settings[0]);
    hdt_assert_status(hd_plan_run(config, 1, NULL, false, NULL, NULL), HD_ERROR_BUDGET,
                      "\nwith train.activation_blocks=0 it needs ");
    hdt_assert_ok(hd_config_set(config, "train.activation_blocks", "0"));
    hdt_assert_ok(hd_plan_run(config, 1, NULL, false, NULL, NULL));
    hd_config_destroy(config);
}
END_TEST

/* Parts of layers and shards differ by rank, and so do the bytes. Ranks that share layers or sequences take what
 * suits all of them, others what suits each: a plan whose ranks' collectives do not match is refused. */
START_TEST(collectives_match_at_every_budget)
{
    static const char *const settings[][2] = {
        {"model.layers", "4"},          {"model.hidden", "40"},        {"model.heads", "5"},
        {"model.vocab", "301"},         {"train.activations", "auto"}, {"train.tokens", "31"},
        {"optimizer.residency", "auto"}};
    static const struct {
        const char *axis;
        int least, most; /* KiB: most blocks not kept, all kept */
    } runs[] = {{"layout.tensor", 1000, 2150},
                {"layout.sequence", 1340, 2310},
                {"layout.data", 2040, 4260}};
    enum { BUDGETS = 40 };
    hd_config *config = configure(settings, sizeof settings / sizeof settings[0]);
    hdt_assert_ok(hd_config_set(config, runs[_i].axis, "3"));
    hdt_assert_ok(hd_config_set(config, "layout.shard_state", "3"));
    for (int i = 0; i < BUDGETS; i++) {
        char text[32];
        snprintf(text, sizeof text, "%dKiB",
                 runs[_i].least + (runs[_i].most - runs[_i].least) * i / BUDGETS);
        hdt_assert_ok(hd_config_set(config, "memory.budget", text));
        hdt_assert_ok(hd_plan_run(config, 3, NULL, false, NULL, NULL));
    }
    hd_config_destroy(config);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("activation_choice");
    TCase *tests = tcase_create("choice");
    tcase_add_test(tests, each_block_more_takes_fewer_bytes_and_more_seconds);
    tcase_add_test(tests, auto_keeps_as_many_blocks_as_the_budget_allows);
    tcase_add_test(tests, the_first_blocks_of_the_first_chunk_are_computed_again);
    tcase_add_test(tests, blocks_that_are_copied_are_evenly_spread);
    tcase_add_test(tests, more_blocks_than_there_are_and_blocks_of_no_kind_are_refused);
    tcase_add_test(tests, settings_that_cannot_be_are_refused_by_name);
    tcase_add_test(tests, a_plan_says_how_many_and_takes_the_faster_way);
    tcase_add_test(tests, a_refusal_names_more_blocks);
    tcase_add_loop_test(tests, collectives_match_at_every_budget, 0, 3);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
