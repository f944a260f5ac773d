/* Batch sizes of video training follow from memory and the budget of tokens, and are whole. */
#include "jobs/train/train.h"

#include "tests/support/hdt.h"

#include <stdio.h>

typedef struct setup {
    hd_config *config;
    hd_model *model;
    hd_mesh *mesh;
    hdi_train_target on;
} setup;

static void set(const setup *it, const char *key, const char *value)
{
    hdt_assert_ok(hd_config_set(it->config, key, value));
}

static void open_setup(setup *it, int data, int pipeline)
{
    hdt_assert_ok(hd_config_create(&it->config));
    hdt_assert_ok(hd_model_create_preset("hunyuan-video-tiny", &it->model));
    const hd_mesh_options sizes = {.data = data, .pipeline = pipeline};
    hdt_assert_ok(hd_mesh_create_fake(0, data * pipeline, &sizes, &it->mesh));
    it->on = (hdi_train_target){.config = it->config, .model = it->model, .mesh = it->mesh};
    set(it, "video.shapes", "5x8x8,1x8x8");
    set(it, "train.validate_batches", "0");
}

static void close_setup(setup *it)
{
    hd_mesh_destroy(it->mesh);
    hd_model_destroy(it->model);
    hd_config_destroy(it->config);
}

/* Bytes of a trainer with so many large videos a micro-batch. */
static size_t bytes_of(setup *it, const char *micro_batch)
{
    hdi_video_buckets buckets;
    hd_trainer *trainer;
    set(it, "video.micro_batch", micro_batch);
    hdt_assert_ok(hdi_train_buckets(&it->on, NULL, &buckets));
    buckets.count = 1;
    hdt_assert_ok(hdi_train_create(&it->on, &buckets, &trainer));
    const size_t bytes = hd_plan_total_bytes(hd_trainer_plan(trainer));
    hd_trainer_destroy(trainer);
    buckets.count = 2;
    hdi_video_buckets_release(&buckets);
    return bytes;
}

START_TEST(micro_batches_are_the_largest_that_fit)
{
    setup it;
    open_setup(&it, 1, 1);
    const size_t four = bytes_of(&it, "4"), eight = bytes_of(&it, "8");
    ck_assert_uint_lt(four, eight);
    char text[32];
    hdi_video_buckets buckets;
    set(&it, "video.micro_batch", "0");
    set(&it, "video.largest_micro_batch", "16");
    const size_t budgets[] = {four, eight - 1, eight};
    const int64_t wanted[] = {4, 4, 8};
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof text, "%zu", budgets[i]);
        set(&it, "memory.budget", text);
        hdt_assert_ok(hdi_train_buckets(&it.on, NULL, &buckets));
        ck_assert_int_eq(buckets.items[0].shape.sequences, wanted[i]);
        ck_assert_int_ge(buckets.items[1].shape.sequences, wanted[i]);
        hdi_video_buckets_release(&buckets);
    }
    close_setup(&it);
}
END_TEST

/* A clip has 5 x 16 patches and 256 tokens of text, an image 16 and 256. */
START_TEST(tokens_of_a_step_say_how_many_micro_batches)
{
    setup it;
    hdi_video_buckets buckets;
    open_setup(&it, 2, 1);
    set(&it, "video.micro_batch", "2");
    set(&it, "train.tokens_per_step", "8192");
    hdt_assert_ok(hdi_train_buckets(&it.on, NULL, &buckets));
    ck_assert_int_eq(hdi_video_bucket_tokens(&buckets.items[0], hd_model_video(it.model)), 336);
    ck_assert_int_eq(buckets.items[0].shape.accumulate, 6); /* 12 of 672, 2 ranks */
    ck_assert_int_eq(buckets.items[1].shape.accumulate, 7); /* 15 of 544 */
    ck_assert_int_eq(buckets.items[0].step_samples, 24);
    hdi_video_buckets_release(&buckets);
    set(&it, "layout.reduction", "exact");
    hdt_assert_ok(hdi_train_buckets(&it.on, NULL, &buckets));
    ck_assert_int_eq(buckets.items[0].shape.accumulate, 4);
    ck_assert_int_eq(buckets.items[1].shape.accumulate, 4);
    hdi_video_buckets_release(&buckets);
    set(&it, "train.tokens_per_step", "700");
    hdt_assert_status(hdi_train_buckets(&it.on, NULL, &buckets), HD_ERROR_CONFIG,
                      "train.tokens_per_step");
    set(&it, "train.tokens_per_step", "0");
    set(&it, "train.batch", "6");
    hdt_assert_status(hdi_train_buckets(&it.on, NULL, &buckets), HD_ERROR_CONFIG, "train.batch");
    set(&it, "video.micro_batch", "0");
    hdt_assert_status(hdi_train_buckets(&it.on, NULL, &buckets), HD_ERROR_CONFIG,
                      "video.micro_batch");
    close_setup(&it);
}
END_TEST

START_TEST(what_does_not_fit_is_refused_with_a_remedy)
{
    setup it;
    hdi_video_buckets buckets;
    hd_trainer *trainer;
    open_setup(&it, 1, 1);
    it.on.remedy = true;
    set(&it, "memory.budget", "2000000");
    hdt_assert_ok(hdi_train_buckets(&it.on, NULL, &buckets));
    ck_assert_int_eq(buckets.items[0].shape.sequences, 1);
    hdt_assert_status(hdi_train_create(&it.on, &buckets, &trainer), HD_ERROR_BUDGET,
                      "memory.budget=");
    hdi_video_buckets_release(&buckets);
    close_setup(&it);
}
END_TEST

/* What a key of token models says does not matter. */
START_TEST(slices_of_a_loss_are_no_concern_of_video_models)
{
    static const char *const layouts[][2] = {{"layout.tensor", "2"}, {"layout.reduction", "exact"}};
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    hdt_assert_ok(hd_config_set(config, "model.preset", "hunyuan-video-tiny"));
    hdt_assert_ok(hd_config_set(config, "video.shapes", "5x8x8"));
    hdt_assert_ok(hd_config_set(config, "video.micro_batch", "1"));
    hdt_assert_ok(hd_config_set(config, "train.slices", "0"));
    hdt_assert_ok(hd_config_set(config, layouts[_i][0], layouts[_i][1]));
    hdt_assert_ok(hd_plan_run(config, 2, NULL, false, NULL, NULL));
    hd_config_destroy(config);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("train buckets");
    TCase *sizes = tcase_create("sizes");
    tcase_add_test(sizes, micro_batches_are_the_largest_that_fit);
    tcase_add_test(sizes, tokens_of_a_step_say_how_many_micro_batches);
    tcase_add_loop_test(sizes, slices_of_a_loss_are_no_concern_of_video_models, 0, 2);
    tcase_add_test(sizes, what_does_not_fit_is_refused_with_a_remedy);
    suite_add_tcase(suite, sizes);
    return hdt_main(suite);
}
