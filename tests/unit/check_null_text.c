/* The text for none that Open-Sora's weights hold: read from where it is, and as many of its rows in the
 * place of a text as that has, in training and in sampling. */
#include "jobs/null_text.h"

#include <heddle/job.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "jobs/sample/sample.h"
#include "jobs/train/flow_inputs.h"
#include "tests/support/hdt_safetensors.h"

enum { CHANNELS = 4, SIDE = 8, COLUMNS = 24, ROWS = 10, TEXTS = 2, SAMPLES = 4 };

static char folder[4200];
static hd_model *model;

/* Texts of 2 and 4 tokens, none of them for the empty prompt. */
static void setup(void)
{
    hdi_video_writer *writer;
    snprintf(folder, sizeof folder, "%s/XXXXXX", hdt_temp_dir());
    ck_assert_ptr_nonnull(mkdtemp(folder));
    rmdir(folder);
    hdt_assert_ok(hdi_video_writer_create(
        folder, &(hdi_video_writer_options){.channels = CHANNELS, .text_columns = COLUMNS},
        &writer));
    for (int64_t t = 0; t < TEXTS; t++) {
        float text[4 * COLUMNS];
        int64_t number;
        hdt_fill(text, 4 * COLUMNS, (uint64_t)t + 1);
        hdt_assert_ok(hdi_video_writer_text(writer, NULL, 2 + 2 * t, text, NULL, &number));
    }
    for (int64_t s = 0; s < SAMPLES; s++) {
        float latents[CHANNELS * SIDE * SIDE];
        hdt_fill(latents, CHANNELS * SIDE * SIDE, (uint64_t)s + 9);
        const hdi_video_sample sample = {.dims = {CHANNELS, 1, SIDE, SIDE}, .text = s % TEXTS};
        hdt_assert_ok(hdi_video_writer_append(writer, &sample, latents));
    }
    hdt_assert_ok(hdi_video_writer_finish(writer));
    hdi_video_writer_destroy(writer);
    hdt_assert_ok(hd_model_create_preset("stdit3-tiny", &model));
}

static void teardown(void)
{
    hd_model_destroy(model);
    hdi_remove_tree(folder);
}

/* The golden weights under their own names, in a file. To be closed. */
static hdi_weights *golden(float wanted[ROWS * COLUMNS])
{
    hdi_safetensors *file;
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path("stdit3_tiny.safetensors"), &file));
    const hdi_safetensors_tensor *tensor =
        hdi_safetensors_find(file, "weights.y_embedder.y_embedding");
    ck_assert_int_eq(tensor->elements, ROWS * COLUMNS);
    hdt_assert_ok(hdi_safetensors_read_f32(file, tensor, 0, tensor->elements, wanted));
    hdi_weights *weights = hdt_extract(file, "weights.", "");
    hdi_safetensors_close(file);
    return weights;
}

START_TEST(it_is_read_from_published_weights)
{
    float wanted[ROWS * COLUMNS], *seen;
    hdi_weights *weights = golden(wanted);
    hdt_assert_ok(hdi_null_text_read(hd_model_video(model), hdi_weights_path(weights), 0, &seen));
    ck_assert_mem_eq(seen, wanted, sizeof wanted);
    hdi_free(seen);
    hdi_weights_close(weights);
}
END_TEST

START_TEST(without_weights_it_is_what_training_begins_with_and_keeps)
{
    char run[4300];
    float *first, *kept, *other;
    hd_config *config;
    snprintf(run, sizeof run, "%s/run", folder);
    const char *const settings[][2] = {{"model.preset", "stdit3-tiny"},
                                       {"data.path", folder},
                                       {"run.directory", run},
                                       {"run.transport", "self"},
                                       {"run.device", "cpu"},
                                       {"train.steps", "2"},
                                       {"train.seed", "11"},
                                       {"video.micro_batch", "2"},
                                       {"video.text_dropout", "0.5"},
                                       {"train.validate_batches", "0"},
                                       {"train.ema", "0"}};
    hdt_assert_ok(hd_config_create(&config));
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        hdt_assert_ok(hd_config_set(config, settings[i][0], settings[i][1]));
    hd_train_result result;
    hdt_assert_ok(hd_train_run(config, NULL, NULL, &result));
    hd_config_destroy(config);
    hdt_assert_ok(hdi_null_text_read(hd_model_video(model), "", 11, &first));
    hdt_assert_ok(hdi_null_text_read(hd_model_video(model), run, 0, &kept));
    hdt_assert_ok(hdi_null_text_read(hd_model_video(model), "", 12, &other));
    ck_assert_mem_eq(first, kept, ROWS * COLUMNS * sizeof *first);
    ck_assert_mem_ne(first, other, ROWS * COLUMNS * sizeof *first);
    hdi_free(first);
    hdi_free(kept);
    hdi_free(other);
}
END_TEST

START_TEST(dropped_texts_are_as_long_as_they_were)
{
    enum { SEQUENCES = 4, INPUTS = 1 << HDI_FLOW_TEXTS | 1 << HDI_FLOW_TEXT_OFFSETS };
    hdi_video_dataset *dataset;
    hdi_video_buckets buckets;
    float *null_text, scratch[2 * CHANNELS * SIDE * SIDE];
    static float block[4096];
    hdt_assert_ok(hdi_video_dataset_open(folder, &dataset));
    hdt_assert_ok(hdi_null_text_read(hd_model_video(model), "", 3, &null_text));
    hdt_assert_ok(hdi_video_buckets_make(
        &(hdi_video_buckets_options){.model = hd_model_video(model), .dataset = dataset},
        &buckets));
    buckets.items[0].shape.sequences = SEQUENCES;
    ck_assert(buckets.items[0].shape.video.text_counts);
    const hdi_flow_source source = {.dataset = dataset,
                                    .buckets = &buckets,
                                    .model = hd_model_video(model),
                                    .null_text = null_text,
                                    .flow = {.time_std = 1, .shift_factor = 1, .text_dropout = 1}};
    const hdi_flow_batch batch = {.bucket = 0};
    hdt_assert_ok(hdi_flow_fill(&source, INPUTS, &batch, scratch, (char *)block));
    const hd_trainer_shape *shape = &buckets.items[0].shape;
    const char *bytes = (const char *)block;
    const float *text =
        (const float *)(const void *)(bytes + hdi_flow_input_offset(&source, INPUTS, shape,
                                                                    HDI_FLOW_TEXTS));
    const int32_t *offsets =
        (const int32_t *)(const void *)(bytes + hdi_flow_input_offset(&source, INPUTS, shape,
                                                                      HDI_FLOW_TEXT_OFFSETS));
    int long_ones = 0;
    for (int s = 0; s < SEQUENCES; s++) {
        const int32_t tokens = offsets[s + 1] - offsets[s];
        ck_assert(tokens == 2 || tokens == 4);
        long_ones += tokens == 4;
        ck_assert_mem_eq(text + (ptrdiff_t)offsets[s] * COLUMNS, null_text,
                         (size_t)tokens * COLUMNS * sizeof *text);
    }
    ck_assert_int_eq(long_ones, SEQUENCES / 2);
    hdi_free(null_text);
    hdi_video_buckets_release(&buckets);
    hdi_video_dataset_close(dataset);
}
END_TEST

START_TEST(samplings_are_guided_away_from_as_many_rows_as_each_text_has)
{
    float wanted[ROWS * COLUMNS];
    hd_config *config;
    char list[4300];
    hdi_weights *weights = golden(wanted);
    snprintf(list, sizeof list, "%s", folder);
    hdt_assert_ok(hd_config_create(&config));
    hdt_assert_ok(hd_config_set(config, "sample.inputs", list));
    hdi_sample_inputs inputs = {0};
    hdt_assert_ok(hdi_sample_inputs_read(config, hd_model_video(model), hdi_weights_path(weights),
                                         true, &inputs));
    ck_assert_int_eq(inputs.count, TEXTS);
    ck_assert_int_eq(inputs.negatives, TEXTS);
    ck_assert_int_eq(inputs.length_count, 2);
    for (int t = 0; t < TEXTS; t++) {
        const hd_sampler_text *negative = &inputs.texts[TEXTS + t];
        ck_assert_int_eq(negative->tokens, inputs.texts[t].tokens);
        ck_assert_mem_eq(negative->text, wanted,
                         (size_t)negative->tokens * COLUMNS * sizeof *wanted);
    }
    hdi_sample_inputs_free(&inputs);
    hdt_assert_status(hdi_sample_inputs_read(config, hd_model_video(model), NULL, true, &inputs),
                      HD_ERROR_CONFIG, "sample.negative");
    hdi_sample_inputs_free(&inputs);
    hdi_weights_close(weights);
    hd_config_destroy(config);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("null_text");
    TCase *tests = tcase_create("null_text");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, it_is_read_from_published_weights);
    tcase_add_test(tests, without_weights_it_is_what_training_begins_with_and_keeps);
    tcase_add_test(tests, dropped_texts_are_as_long_as_they_were);
    tcase_add_test(tests, samplings_are_guided_away_from_as_many_rows_as_each_text_has);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
