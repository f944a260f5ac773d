/* How many blocks a training keeps on the host: the bytes that it then takes, and what the planner makes of
 * a budget. */
#include "jobs/train/trainer.h"
#include "program/place.h"
#include "tests/support/hdt_program.h"
#include "tests/support/hdt_train.h"

#include <heddle/job.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 8 };

static hd_model *model;
static hd_mesh *mesh;

static void begin(const hd_mesh_options *sizes, int ranks)
{
    model = hdt_tiny_model("llama", LAYERS);
    hdt_assert_ok(hd_mesh_create_fake(0, ranks, sizes, &mesh));
}

static void end(void)
{
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
}

static hd_trainer_options complete(hd_trainer_options options)
{
    options.build = hd_model_build;
    options.user = model;
    options.layers = LAYERS;
    options.mesh = mesh;
    options.sequences = 1;
    options.tokens = HDT_TOKENS;
    options.bucket_elements = 20000;
    options.chunk_elements = 4096;
    return options;
}

/* NULL if it does not fit. */
static hd_trainer *make(hd_trainer_options options)
{
    hd_trainer *trainer = NULL;
    options = complete(options);
    const hd_status status = hd_trainer_create(&options, &trainer);
    if (status != HD_ERROR_BUDGET) hdt_assert_ok(status);
    return trainer;
}

static size_t needed(hd_trainer_options options)
{
    hd_trainer *trainer = make(options);
    const size_t bytes = hd_plan_total_bytes(trainer->plan);
    hd_trainer_destroy(trainer);
    return bytes;
}

/* Blocks are alike; two of them have room on the device. */
START_TEST(blocks_on_the_host_leave_room_for_two)
{
    begin(&(hd_mesh_options){0}, 1);
    hd_trainer_options options = {.dtype = HD_DTYPE_BF16};
    hd_trainer *resident = make(options);
    const size_t all = hd_plan_region_bytes(resident->plan, HD_REGION_WEIGHTS);
    options.residency = HD_RESIDENCY_HOST;
    size_t block = 0;
    for (int count = LAYERS; count >= 3; count--) {
        options.host_blocks = count == LAYERS ? 0 : count;
        hd_trainer *host = make(options);
        hd_streaming passing;
        hd_plan_streaming(host->plan, host->shapes[0].train[0].program, &passing);
        ck_assert_int_eq(passing.blocks, LAYERS);
        ck_assert_int_eq(passing.host_blocks, count);
        ck_assert_int_eq(passing.slots, 2);
        if (!block) block = passing.host_bytes / LAYERS;
        ck_assert_uint_eq(passing.host_bytes, (size_t)count * block);
        ck_assert_uint_eq(hd_plan_region_bytes(host->plan, HD_REGION_STREAMED),
                          2 * hdi_place_round(block));
        ck_assert_uint_eq(hd_plan_region_bytes(host->plan, HD_REGION_WEIGHTS),
                          hdi_place_round(all - (size_t)count * block));
        ck_assert_uint_eq(hd_plan_region_bytes(host->plan, HD_REGION_OPTIMIZER), 0);
        ck_assert_uint_eq(hd_plan_host_bytes(host->plan),
                          hdi_place_round((size_t)count * block) +
                              hdi_place_round(10 * (size_t)host->plan->layout->optimizer_elements));
        hd_trainer_destroy(host);
    }
    hd_trainer_destroy(resident);
    end();
}
END_TEST

/* Of level 3 each rank has its shard there, and room for one on the device. */
START_TEST(shards_on_the_host_are_what_is_left_of_the_weights)
{
    enum { RANKS = 3 };
    size_t whole = 0, shards = 0;
    for (int rank = 0; rank <= RANKS; rank++) {
        model = hdt_tiny_model("llama", LAYERS);
        hdt_assert_ok(
            hd_mesh_create_fake(rank % RANKS, RANKS, &(hd_mesh_options){.data = RANKS}, &mesh));
        hd_trainer *trainer = make((hd_trainer_options){.residency = HD_RESIDENCY_HOST,
                                                        .shard_state = rank < RANKS ? 3 : 0});
        const hdi_residency *it = &trainer->plan->residency;
        const hdi_layout *layout = trainer->plan->layout;
        const size_t bytes = (size_t)layout->host_weights_elements * sizeof(float);
        ck_assert_uint_eq(hd_plan_region_bytes(trainer->plan, HD_REGION_HOST_WEIGHTS),
                          hdi_place_round(bytes));
        ck_assert_uint_eq(hd_plan_region_bytes(trainer->plan, HD_REGION_STREAMED),
                          hdi_place_round(2 * it->slot_bytes + it->shard_bytes));
        if (rank < RANKS)
            shards += bytes;
        else
            whole = bytes;
        ck_assert_int_eq(it->shard_bytes > 0, rank < RANKS);
        hd_trainer_destroy(trainer);
        end();
    }
    ck_assert_uint_eq(shards, whole);
}
END_TEST

/* From room for all but one block to room for two, beside an update that goes on or ends first. */
START_TEST(a_budget_keeps_as_many_blocks_on_the_device_as_it_holds)
{
    begin(&(hd_mesh_options){0}, 1);
    hd_trainer_options fixed = {.optimizer_residency = HD_RESIDENCY_HOST, .in_turn = true};
    const size_t resident = needed(fixed);
    fixed.residency = HD_RESIDENCY_HOST;
    const size_t least = needed(fixed);
    ck_assert_uint_lt(least, resident);
    hd_trainer_options options = {.optimizer_residency = HD_RESIDENCY_AUTO,
                                  .residency = HD_RESIDENCY_AUTO};
    options.budget = resident;
    hd_trainer *trainer = make(options);
    ck_assert_int_eq(trainer->plan->residency.host_blocks, 0);
    hd_trainer_destroy(trainer);
    const size_t step = (resident - least) / 11;
    for (options.budget = least; options.budget < resident; options.budget += step) {
        trainer = make(options);
        ck_assert_ptr_nonnull(trainer);
        const int count = trainer->plan->residency.host_blocks;
        ck_assert_uint_le(hd_plan_total_bytes(trainer->plan), options.budget);
        ck_assert_int_gt(count, 0);
        fixed.host_blocks = count - 1;
        fixed.in_turn = trainer->options.in_turn;
        if (count > 1) ck_assert_uint_gt(needed(fixed), options.budget);
        hd_trainer_destroy(trainer);
    }
    options.budget = least - 1;
    ck_assert_ptr_null(make(options));
    end();
}
END_TEST

/* Shards differ by a little between ranks, so that one may need the host and another not. */
START_TEST(ranks_have_the_same_buckets_wherever_their_weights_are)
{
    int counts[2];
    for (int tight = 0; tight < 2; tight++) {
        begin(&(hd_mesh_options){.data = 2}, 2);
        hd_trainer_options options = {.shard_state = 1, .residency = HD_RESIDENCY_AUTO};
        options.budget = tight ? needed((hd_trainer_options){.shard_state = 1}) - 1 : 1 << 30;
        hd_trainer *trainer = make(options);
        ck_assert_int_eq(trainer->plan->residency.host_blocks > 0, tight);
        counts[tight] = trainer->plan->layout->bucket_count;
        hd_trainer_destroy(trainer);
        end();
    }
    ck_assert_int_eq(counts[0], counts[1]);
}
END_TEST

START_TEST(what_cannot_be_is_refused)
{
    begin(&(hd_mesh_options){.data = 2}, 2);
    hd_trainer *trainer = NULL;
    hd_trainer_options options =
        complete((hd_trainer_options){.residency = HD_RESIDENCY_HOST, .host_blocks = -1});
    hdt_assert_status(hd_trainer_create(&options, &trainer), HD_ERROR_ARGUMENT, "-1 blocks");
    options = complete((hd_trainer_options){.residency = HD_RESIDENCY_SHARDED});
    hdt_assert_status(hd_trainer_create(&options, &trainer), HD_ERROR_ARGUMENT, "shard_state 3");
    end();
}
END_TEST

typedef const char *const settings[2];

static hd_config *configure(settings *model_settings, int count, const char *budget)
{
    settings common[] = {
        {"train.dtype", "bf16"},           {"train.activations", "auto"},
        {"optimizer.residency", "auto"},   {"train.gradient_residency", "auto"},
        {"train.residency", "auto"},       {"run.rates", "rtx-4090"},
        {"data.validation_fraction", "0"}, {"memory.budget", budget},
    };
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    for (size_t i = 0; i < sizeof common / sizeof common[0]; i++)
        hdt_assert_ok(hd_config_set(config, common[i][0], common[i][1]));
    for (int i = 0; i < count; i++)
        hdt_assert_ok(hd_config_set(config, model_settings[i][0], model_settings[i][1]));
    return config;
}

static void assert_says(const char *text, const char *wanted)
{
    ck_assert_msg(strstr(text, wanted) != NULL, "no '%s' in:\n%s", wanted, text);
}

START_TEST(seven_billion_parameters_train_within_8_gib)
{
    static settings large[] = {
        {"model.preset", "llama-7b"}, {"train.tokens", "2048"}, {"train.micro_batch", "4"}};
    hdt_text out = {.used = 0};
    hd_config *config = configure(large, 3, "8GiB");
    hdt_assert_ok(hd_plan_run(config, 1, NULL, false, hdt_collect, &out));
    assert_says(out.text, "train.residency=host: ");
    assert_says(out.text, " of 32 blocks, ");
    assert_says(out.text, "optimizer.residency=host");
    assert_says(out.text, "host: weights ");
    hd_config_destroy(config);
}
END_TEST

/* The refusal's figure is the smallest budget with which it does fit. */
START_TEST(the_smallest_budget_is_named)
{
    static settings small[] = {{"model.layers", "6"}, {"model.hidden", "64"}, {"model.heads", "4"}};
    static const char before[] = "memory.budget=";
    hdt_text out = {.used = 0};
    hd_config *config = configure(small, 3, "1");
    hdt_assert_status(hd_plan_run(config, 1, NULL, false, hdt_collect, &out), HD_ERROR_BUDGET,
                      before);
    const char *named = strstr(hd_last_error(), before) + strlen(before);
    const size_t bytes = (size_t)strtoull(named, NULL, 10);
    hd_config_destroy(config);
    for (size_t less = 0; less < 2; less++) {
        char budget[32];
        snprintf(budget, sizeof budget, "%zu", bytes - less);
        config = configure(small, 3, budget);
        out.used = 0;
        const hd_status status = hd_plan_run(config, 1, NULL, false, hdt_collect, &out);
        ck_assert_int_eq(status, less ? HD_ERROR_BUDGET : HD_OK);
        hd_config_destroy(config);
    }
    assert_says(out.text, "6 of 6 blocks");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("host_blocks");
    TCase *tests = tcase_create("host_blocks");
    tcase_add_test(tests, blocks_on_the_host_leave_room_for_two);
    tcase_add_test(tests, shards_on_the_host_are_what_is_left_of_the_weights);
    tcase_add_test(tests, a_budget_keeps_as_many_blocks_on_the_device_as_it_holds);
    tcase_add_test(tests, ranks_have_the_same_buckets_wherever_their_weights_are);
    tcase_add_test(tests, what_cannot_be_is_refused);
    tcase_add_test(tests, seven_billion_parameters_train_within_8_gib);
    tcase_add_test(tests, the_smallest_budget_is_named);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
