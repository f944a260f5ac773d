/* Inputs of a video training step are a function of seed, step and sample alone, marked as they are,
 * and made ahead without taking memory; buckets hold what they should. */
#include "jobs/train/flow_feed.h"

#include "core/file.h"
#include "core/memory.h"
#include "tests/support/hdt.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHANNELS = 2, SIDE = 4, COLUMNS = 3, POOLED = 2 };

static char folder[4200];
static hdi_video_dataset *dataset;

/* Two sizes: clips of 3 frames and images, with texts of 1 to 3 tokens; text 0 is the null text. */
enum { CLIPS = 10, IMAGES = 6, TEXTS = 4 };

static float value_of(int64_t sample, int64_t element)
{
    return (float)sample + (float)element / 1024;
}

static void write_dataset(void)
{
    hdi_video_writer *writer;
    hdt_assert_ok(hdi_video_writer_create(folder,
                                          &(hdi_video_writer_options){.channels = CHANNELS,
                                                                      .text_columns = COLUMNS,
                                                                      .pooled_columns = POOLED},
                                          &writer));
    for (int64_t t = 0; t < TEXTS; t++) {
        float text[3 * COLUMNS], pooled[POOLED];
        int64_t number;
        for (int i = 0; i < 3 * COLUMNS; i++)
            text[i] = (float)(100 * t + i + 1);
        for (int i = 0; i < POOLED; i++)
            pooled[i] = (float)(10 * t + i + 1);
        hdt_assert_ok(hdi_video_writer_text(writer, NULL, t == 0 ? 1 : t, text, pooled, &number));
        ck_assert_int_eq(number, t);
    }
    hdt_assert_ok(hdi_video_writer_null_text(writer, 0));
    for (int64_t s = 0; s < CLIPS + IMAGES; s++) {
        const int64_t frames = s < CLIPS ? 3 : 1;
        float latents[CHANNELS * 3 * SIDE * SIDE];
        for (int64_t i = 0; i < CHANNELS * frames * SIDE * SIDE; i++)
            latents[i] = value_of(s, i);
        const hdi_video_sample sample = {
            .dims = {CHANNELS, frames, SIDE, SIDE}, .text = 1 + s % (TEXTS - 1), .fps = 8};
        hdt_assert_ok(hdi_video_writer_append(writer, &sample, latents));
    }
    hdt_assert_ok(hdi_video_writer_finish(writer));
    hdi_video_writer_destroy(writer);
}

static void setup(void)
{
    snprintf(folder, sizeof folder, "%s/XXXXXX", hdt_temp_dir());
    ck_assert_ptr_nonnull(mkdtemp(folder));
    rmdir(folder);
    write_dataset();
    hdt_assert_ok(hdi_video_dataset_open(folder, &dataset));
}

static void teardown(void)
{
    hdi_video_dataset_close(dataset);
    hdi_remove_tree(folder);
}

static const hd_video_model stdit_like = {.channels = CHANNELS,
                                          .patch = {1, 2, 2},
                                          .compression = {4, 8, 8},
                                          .text_columns = COLUMNS,
                                          .text_tokens = 3,
                                          .pooled_columns = POOLED,
                                          .frame_times = true,
                                          .text_packed = true};
static const hd_video_model open_sora_like = {.channels = CHANNELS,
                                              .patch = {1, 2, 2},
                                              .compression = {4, 8, 8},
                                              .text_columns = COLUMNS,
                                              .text_tokens = 3,
                                              .pooled_columns = POOLED,
                                              .condition_channels = CHANNELS + 1,
                                              .condition_masks = 1};
static const hd_video_model stdit_v13_like = {.channels = CHANNELS,
                                              .patch = {1, 2, 2},
                                              .compression = {4, 8, 8},
                                              .text_columns = COLUMNS,
                                              .text_tokens = 3,
                                              .pooled_columns = POOLED,
                                              .condition_channels = 2 * CHANNELS,
                                              .condition_masks = CHANNELS,
                                              .given_by_mask = true,
                                              .text_packed = true};

static const hdi_flow_options plain = {.seed = 7, .time_std = 1, .shift_factor = 1};

static void make_buckets(const hd_video_model *model, int64_t sequences, int accumulate, int data,
                         hdi_video_buckets *out)
{
    hdt_assert_ok(hdi_video_buckets_make(&(hdi_video_buckets_options){.model = model,
                                                                      .dataset = dataset,
                                                                      .validation_fraction = 0.2,
                                                                      .drops_text = true,
                                                                      .masked_frames = true},
                                         out));
    for (int i = 0; i < out->count; i++) {
        hdi_video_bucket *bucket = &out->items[i];
        bucket->shape.sequences = sequences;
        bucket->shape.accumulate = accumulate;
        bucket->step_samples = sequences * accumulate * data;
    }
}

START_TEST(buckets_hold_every_sample_once)
{
    hdi_video_buckets buckets;
    bool seen[CLIPS + IMAGES] = {false};
    make_buckets(&stdit_like, 1, 1, 1, &buckets);
    ck_assert_int_eq(buckets.count, 2);
    ck_assert_int_eq(buckets.items[0].shape.video.frames, 3); /* the largest comes first */
    ck_assert_int_eq(buckets.items[0].validate, 2);
    ck_assert_int_eq(buckets.items[1].validate, 1);
    ck_assert(buckets.items[0].shape.video.text_counts);
    ck_assert_int_eq(buckets.items[0].shape.video.text, 3);
    ck_assert_int_eq(hdi_video_bucket_tokens(&buckets.items[0], &stdit_like), 3 * 2 * 2 + 3);
    for (int b = 0; b < 2; b++)
        for (int64_t i = 0; i < buckets.items[b].train + buckets.items[b].validate; i++) {
            const int64_t sample = buckets.items[b].samples[i];
            ck_assert(!seen[sample] && (sample < CLIPS) == (b == 0));
            seen[sample] = true;
        }
    for (int s = 0; s < CLIPS + IMAGES; s++)
        ck_assert(seen[s]);
    const hdi_video_bucket *bucket = &buckets.items[0];
    for (int64_t epoch = 0; epoch < 3; epoch++) {
        bool visited[CLIPS + IMAGES] = {false};
        for (int64_t i = 0; i < bucket->train; i++) {
            const int64_t sample = hdi_video_bucket_sample(bucket, 7, epoch * bucket->train + i);
            ck_assert(!visited[sample]);
            visited[sample] = true;
        }
    }
    hdi_video_buckets_release(&buckets);
}
END_TEST

START_TEST(the_sampler_is_a_function_of_the_step)
{
    enum { STEPS = 4000 };
    hdi_video_buckets buckets;
    hdi_video_sampler walking, jumping;
    make_buckets(&stdit_like, 2, 1, 1, &buckets);
    hdt_assert_ok(hdi_video_sampler_create(&buckets, 7, &walking));
    hdt_assert_ok(hdi_video_sampler_create(&buckets, 7, &jumping));
    int drawn[2] = {0};
    int64_t expected[2] = {0};
    for (int64_t step = 0; step < STEPS; step++) {
        int bucket, same;
        int64_t first, first_again;
        hdi_video_sampler_at(&walking, step, &bucket, &first);
        ck_assert_int_eq(first, expected[bucket]);
        expected[bucket] += 2;
        drawn[bucket]++;
        if (step % 500 != 3) continue;
        hdi_video_sampler_at(&jumping, STEPS - step, &same, &first_again);
        hdi_video_sampler_at(&jumping, step, &same, &first_again);
        ck_assert(same == bucket && first_again == first);
    }
    /* 8 clips and 5 images to train on: every sample as often. */
    const double share = 8.0 / 13, error = sqrt(share * (1 - share) / STEPS);
    ck_assert_double_eq_tol((double)drawn[0] / STEPS, share, 5 * error);
    hdi_video_sampler_release(&walking);
    hdi_video_sampler_release(&jumping);
    hdi_video_buckets_release(&buckets);
}
END_TEST

enum { ALL_INPUTS = (1 << HDI_FLOW_INPUTS) - 1, STEPS = 6 };

static hdi_flow_feed_options feed_options(const hd_video_model *model,
                                          const hdi_video_buckets *buckets, int rank)
{
    hdi_flow_feed_options options = {.source = {.dataset = dataset,
                                                .buckets = buckets,
                                                .model = model,
                                                .flow = plain,
                                                .guidance = 6},
                                     .reads = ALL_INPUTS,
                                     .deal = {.rank = rank},
                                     .validate_batches = 1,
                                     .end_step = STEPS};
    options.source.flow.text_dropout = 0.3;
    options.source.flow.task_ratio[HDI_FLOW_HEAD] = 1;
    options.source.flow.task_ratio[HDI_FLOW_TEXT] = 1;
    return options;
}

static const void *input(hdi_flow_feed *feed, hdi_flow_input which, int64_t batch,
                         const hdi_flow_feed_options *options, const hdi_video_bucket *bucket)
{
    static char bytes[4][4096];
    static int next;
    char *out = bytes[next++ % 4];
    hdt_assert_ok(
        hdi_flow_feed_fill(feed, hdi_flow_input_name(which), batch, out,
                           hdi_flow_input_bytes(&options->source, &bucket->shape, which)));
    return out;
}

START_TEST(inputs_do_not_depend_on_the_layout)
{
    hdi_video_buckets one, two;
    make_buckets(&stdit_like, 2, 4, 1, &one);
    make_buckets(&stdit_like, 2, 2, 2, &two);
    const hdi_flow_feed_options alone = feed_options(&stdit_like, &one, 0);
    hdi_flow_feed *whole, *ranks[2];
    hdt_assert_ok(hdi_flow_feed_create(&alone, &whole));
    for (int r = 0; r < 2; r++) {
        const hdi_flow_feed_options half = feed_options(&stdit_like, &two, r);
        hdt_assert_ok(hdi_flow_feed_create(&half, &ranks[r]));
    }
    for (int64_t step = 0; step < STEPS; step++) {
        int shape, same;
        hdt_assert_ok(hdi_flow_feed_begin(whole, step, &shape));
        for (int r = 0; r < 2; r++) {
            hdt_assert_ok(hdi_flow_feed_begin(ranks[r], step, &same));
            ck_assert_int_eq(shape, same);
        }
        const hdi_video_bucket *bucket = &one.items[shape];
        for (int64_t batch = 0; batch < 4; batch++)
            for (int i = 0; i < HDI_FLOW_INPUTS; i++) {
                const hdi_flow_input which = (hdi_flow_input)i;
                ck_assert_mem_eq(input(whole, which, batch, &alone, bucket),
                                 input(ranks[batch / 2], which, batch, &alone, bucket),
                                 hdi_flow_input_bytes(&alone.source, &bucket->shape, which));
            }
        hdi_flow_feed_end(whole);
        for (int r = 0; r < 2; r++)
            hdi_flow_feed_end(ranks[r]);
    }
    hdi_flow_feed_destroy(whole);
    for (int r = 0; r < 2; r++)
        hdi_flow_feed_destroy(ranks[r]);
    hdi_video_buckets_release(&one);
    hdi_video_buckets_release(&two);
}
END_TEST

/* Which sample a clean value came from. */
static int64_t sample_of(float value)
{
    return (int64_t)floorf(value);
}

static void check_micro_batch(hdi_flow_feed *feed, const hdi_flow_feed_options *options,
                              const hdi_video_bucket *bucket, int64_t batch, int *given_seen,
                              int *null_seen)
{
    const hd_video_model *model = options->source.model;
    const hd_video_shape *video = &bucket->shape.video;
    const int64_t n = bucket->shape.sequences, area = SIDE * SIDE, frames = video->frames;
    const float *latents = input(feed, HDI_FLOW_LATENTS, batch, options, bucket);
    const int32_t *entries = input(feed, HDI_FLOW_FRAME_ENTRIES, batch, options, bucket);
    const float *weight = input(feed, HDI_FLOW_LOSS_WEIGHT, batch, options, bucket);
    for (int64_t s = 0; s < n; s++)
        for (int64_t f = 0; f < frames; f++) {
            const bool given = entries[s * frames + f] == n + s;
            ck_assert(given || entries[s * frames + f] == s);
            ck_assert_float_eq(weight[s * frames + f], given ? 0 : 1);
            ck_assert(!given || (f == 0 && frames > 1));
            *given_seen += given;
            if (!given || !model->frame_times) continue;
            const float *clean = latents + s * CHANNELS * frames * area;
            for (int64_t i = 0; i < area; i++)
                ck_assert_float_eq(clean[i], value_of(sample_of(clean[0]), i));
        }
    if (model->condition_channels) {
        const float *condition = input(feed, HDI_FLOW_CONDITION, batch, options, bucket);
        for (int64_t s = 0; s < n; s++)
            for (int64_t f = 0; f < frames; f++) {
                const bool given = entries[s * frames + f] == n + s;
                const int64_t masks = model->condition_masks;
                const float *mask = condition + (s * model->condition_channels * frames + f) * area;
                const float *first = mask + masks * frames * area; /* channel 0 of the latents */
                for (int64_t c = 0; c < masks; c++)
                    ck_assert_float_eq(mask[c * frames * area + area - 1], given ? 1 : 0);
                ck_assert_float_eq(first[3], given ? value_of(sample_of(first[0]), 3) : 0);
            }
    }
    const int32_t *counts = input(feed, HDI_FLOW_TEXT_COUNTS, batch, options, bucket);
    const int32_t *offsets = input(feed, HDI_FLOW_TEXT_OFFSETS, batch, options, bucket);
    const float *text = input(feed, HDI_FLOW_TEXTS, batch, options, bucket);
    const int32_t *places = input(feed, HDI_FLOW_TEXT_PLACES, batch, options, bucket);
    for (int64_t s = 0; s < n && model->text_packed; s++)
        for (int32_t r = offsets[s]; r < offsets[s + 1]; r++)
            ck_assert_int_eq(places[r], r - offsets[s]);
    ck_assert_int_eq(offsets[0], 0);
    for (int64_t s = 0; s < n; s++) {
        const float *row = text + COLUMNS * (model->text_packed ? offsets[s] : s * video->text);
        const int64_t number = (int64_t)row[0] / 100;
        ck_assert_int_eq(offsets[s + 1] - offsets[s], counts[s]);
        ck_assert_int_eq(counts[s], number == 0 ? 1 : number);
        ck_assert_float_eq(row[counts[s] * COLUMNS - 1],
                           (float)(100 * number + counts[s] * COLUMNS));
        *null_seen += number == 0;
    }
    if (model->text_packed) /* nothing after the last valid row */
        for (int64_t i = COLUMNS * offsets[n]; i < COLUMNS * n * video->text; i++)
            ck_assert_float_eq(text[i], 0);
    const float *time = input(feed, HDI_FLOW_TIME, batch, options, bucket);
    const float *guidance = input(feed, HDI_FLOW_GUIDANCE, batch, options, bucket);
    const float *fps = input(feed, HDI_FLOW_FPS, batch, options, bucket);
    ck_assert(time[0] > 0 && time[0] < 1 && guidance[n - 1] == 6000 && fps[n - 1] == 8);
}

START_TEST(frames_and_texts_are_marked_as_they_are)
{
    const hd_video_model *const models[] = {&stdit_like, &open_sora_like, &stdit_v13_like};
    const hd_video_model *model = models[_i];
    hdi_video_buckets buckets;
    make_buckets(model, 2, 2, 1, &buckets);
    const hdi_flow_feed_options options = feed_options(model, &buckets, 0);
    hdi_flow_feed *feed;
    int shape, given = 0, null = 0;
    hdt_assert_ok(hdi_flow_feed_create(&options, &feed));
    for (int64_t step = 0; step < STEPS; step++) {
        hdt_assert_ok(hdi_flow_feed_begin(feed, step, &shape));
        for (int64_t batch = 0; batch < 2; batch++)
            check_micro_batch(feed, &options, &buckets.items[shape], batch, &given, &null);
        hdi_flow_feed_end(feed);
    }
    ck_assert_int_gt(given, 0);
    ck_assert_int_gt(null, 0);
    hdi_flow_feed_destroy(feed);
    hdi_video_buckets_release(&buckets);
}
END_TEST

START_TEST(a_resumed_feed_goes_on_where_the_other_was_and_takes_no_memory)
{
    hdi_video_buckets buckets;
    make_buckets(&stdit_like, 2, 2, 1, &buckets);
    hdi_flow_feed_options options = feed_options(&stdit_like, &buckets, 0), later;
    later = options;
    later.first_step = 3;
    hdi_flow_feed *feed, *resumed;
    hdt_assert_ok(hdi_flow_feed_create(&options, &feed));
    hdt_assert_ok(hdi_flow_feed_create(&later, &resumed));
    const uint64_t allocations = hdi_alloc_count();
    float before[64], after[64];
    for (int64_t step = 0; step < STEPS; step++) {
        int shape, same;
        hdt_assert_ok(hdi_flow_feed_begin(feed, step, &shape));
        if (step >= 3) {
            hdt_assert_ok(hdi_flow_feed_begin(resumed, step, &same));
            ck_assert_int_eq(shape, same);
            const hdi_video_bucket *bucket = &buckets.items[shape];
            ck_assert_mem_eq(
                input(feed, HDI_FLOW_LATENTS, 1, &options, bucket),
                input(resumed, HDI_FLOW_LATENTS, 1, &options, bucket),
                hdi_flow_input_bytes(&options.source, &bucket->shape, HDI_FLOW_LATENTS));
            hdi_flow_feed_end(resumed);
        }
        hdi_flow_feed_end(feed);
        /* A validation is the same each time. */
        hdt_assert_ok(hdi_flow_feed_validate(feed, 1));
        memcpy(after, input(feed, HDI_FLOW_LATENTS, 0, &options, &buckets.items[1]), sizeof after);
        if (step) ck_assert_mem_eq(before, after, sizeof after);
        memcpy(before, after, sizeof after);
    }
    ck_assert_uint_eq(hdi_alloc_count(), allocations);
    hdi_flow_feed_destroy(feed);
    hdi_flow_feed_destroy(resumed);
    hdi_video_buckets_release(&buckets);
}
END_TEST

START_TEST(a_file_that_shrank_is_named_when_its_step_begins)
{
    hdi_video_buckets buckets;
    make_buckets(&stdit_like, 2, 2, 1, &buckets);
    const hdi_flow_feed_options options = feed_options(&stdit_like, &buckets, 0);
    hdi_flow_feed *feed;
    char path[4400];
    hdi_video_dataset_info info;
    hdi_video_dataset_get_info(dataset, &info);
    snprintf(path, sizeof path, "%s/shard-00000.safetensors", folder);
    ck_assert_int_eq(truncate(path, 64), 0);
    hdt_assert_ok(hdi_flow_feed_create(&options, &feed));
    int shape;
    hdt_assert_status(hdi_flow_feed_begin(feed, 0, &shape), HD_ERROR_IO, "shard-00000");
    hdi_flow_feed_destroy(feed);
    hdi_video_buckets_release(&buckets);
}
END_TEST

START_TEST(data_that_does_not_fit_the_model_is_refused)
{
    hd_video_model other = stdit_like;
    hdi_video_buckets buckets;
    other.channels = 4;
    hdi_video_buckets_options options = {.model = &other, .dataset = dataset};
    hdt_assert_status(hdi_video_buckets_make(&options, &buckets), HD_ERROR_MISMATCH, "channels");
    options.model = &stdit_like;
    const char *bad = "3x4", *absent = "5x4x4", *good = "3x4x4";
    options.size_count = 1;
    options.sizes = &bad;
    hdt_assert_status(hdi_video_buckets_make(&options, &buckets), HD_ERROR_CONFIG, "'3x4'");
    options.sizes = &absent;
    hdt_assert_status(hdi_video_buckets_make(&options, &buckets), HD_ERROR_CONFIG, "5x4x4");
    options.sizes = &good;
    hdt_assert_ok(hdi_video_buckets_make(&options, &buckets));
    ck_assert_int_eq(buckets.count, 1);
    ck_assert_int_eq(buckets.items[0].train, CLIPS);
    hdi_video_buckets_release(&buckets);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("flow feed");
    TCase *feeds = tcase_create("feeds");
    tcase_add_checked_fixture(feeds, setup, teardown);
    tcase_add_test(feeds, buckets_hold_every_sample_once);
    tcase_add_test(feeds, the_sampler_is_a_function_of_the_step);
    tcase_add_test(feeds, inputs_do_not_depend_on_the_layout);
    tcase_add_loop_test(feeds, frames_and_texts_are_marked_as_they_are, 0, 3);
    tcase_add_test(feeds, a_resumed_feed_goes_on_where_the_other_was_and_takes_no_memory);
    tcase_add_test(feeds, a_file_that_shrank_is_named_when_its_step_begins);
    tcase_add_test(feeds, data_that_does_not_fit_the_model_is_refused);
    suite_add_tcase(suite, feeds);
    return hdt_main(suite);
}
