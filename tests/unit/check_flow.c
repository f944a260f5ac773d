/* Rectified flow's draws have the distributions that they promise, and its target is the path's
 * slope. */
#include "jobs/train/flow.h"

#include "tests/support/hdt.h"

#include <math.h>
#include <string.h>

enum { CHANNELS = 2, DRAWS = 20000 };

static const hd_video_model stdit_like = {.channels = CHANNELS,
                                          .patch = {1, 2, 2},
                                          .compression = {4, 8, 8},
                                          .frame_times = true,
                                          .text_packed = true};
static const hd_video_model open_sora_like = {.channels = CHANNELS,
                                              .patch = {1, 2, 2},
                                              .compression = {4, 8, 8},
                                              .condition_channels = CHANNELS + 1};

static const hdi_flow_options plain = {.seed = 7, .time_std = 1, .shift_factor = 1};

static hdi_flow_draw draw_of(const hdi_flow_options *options, double shift, int64_t number)
{
    hdi_flow_draw draw;
    hdi_flow_draw_sample(options, shift, 5, number / 16, number % 16, &draw);
    return draw;
}

static double logit(double time)
{
    return log(time / (1 - time));
}

/* Bounds are five standard errors of N independent draws. */
START_TEST(times_are_logit_normal_and_shifted)
{
    const double means[] = {0, 0.5, -1}, stds[] = {1, 0.5, 2}, shifts[] = {1, 3, 0.5};
    hdi_flow_options options = plain;
    options.time_mean = means[_i];
    options.time_std = stds[_i];
    double sum = 0, squares = 0;
    for (int64_t n = 0; n < DRAWS; n++) {
        const double x = logit(draw_of(&options, shifts[_i], n).time);
        sum += x;
        squares += x * x;
    }
    /* The logit of a shifted time is the logit plus the shift's logarithm. */
    const double mean = sum / DRAWS, variance = squares / DRAWS - mean * mean;
    const double wanted = means[_i] + log(shifts[_i]);
    ck_assert_double_eq_tol(mean, wanted, 5 * stds[_i] / sqrt(DRAWS));
    ck_assert_double_eq_tol(variance / (stds[_i] * stds[_i]), 1, 5 * sqrt(2.0 / DRAWS));
}
END_TEST

START_TEST(uniform_times_are_uniform)
{
    hdi_flow_options options = plain;
    options.uniform_time = true;
    double sum = 0, squares = 0;
    for (int64_t n = 0; n < DRAWS; n++) {
        const double x = draw_of(&options, 1, n).time;
        sum += x;
        squares += x * x;
    }
    ck_assert_double_eq_tol(sum / DRAWS, 0.5, 5 * sqrt(1.0 / 12 / DRAWS));
    ck_assert_double_eq_tol(squares / DRAWS, 1.0 / 3, 5 * sqrt(4.0 / 45 / DRAWS));
}
END_TEST

START_TEST(shifts_are_those_of_the_models)
{
    hdi_flow_options options = plain;
    options.shift = HDI_FLOW_SHIFT_OPEN_SORA_2; /* 16 x 16 patches, then 64 x 64 and 4 frames */
    const hd_video_shape small = {.frames = 1, .height = 32, .width = 32};
    const hd_video_shape large = {.frames = 4, .height = 128, .width = 128};
    ck_assert_double_eq_tol(hdi_flow_shift(&options, &open_sora_like, &small), 1, 1e-12);
    ck_assert_double_eq_tol(hdi_flow_shift(&options, &open_sora_like, &large), 6, 1e-12);
    options.shift = HDI_FLOW_SHIFT_OPEN_SORA_1; /* 512 x 512 pixels, then 1024 x 1024 */
    const hd_video_shape square = {.frames = 9, .height = 64, .width = 64};
    ck_assert_double_eq_tol(hdi_flow_shift(&options, &stdit_like, &square), 3, 1e-12);
    ck_assert_double_eq_tol(hdi_flow_shift(&options, &stdit_like, &large), 4, 1e-12);
    options.shift = HDI_FLOW_SHIFT_CONSTANT;
    options.shift_factor = 2.5;
    ck_assert_double_eq(hdi_flow_shift(&options, &stdit_like, &large), 2.5);
}
END_TEST

static void assert_share(int64_t count, double probability)
{
    const double error = sqrt(probability * (1 - probability) / DRAWS);
    ck_assert_double_eq_tol((double)count / DRAWS, probability, 5 * error);
}

START_TEST(text_is_dropped_and_frames_are_given_as_often_as_asked)
{
    hdi_flow_options options = plain;
    const double ratios[] = {1, 5, 1, 1};
    memcpy(options.task_ratio, ratios, sizeof ratios);
    options.text_dropout = 0.316;
    int64_t text = 0, pooled = 0, both = 0, tasks[HDI_FLOW_TASKS] = {0};
    for (int64_t n = 0; n < DRAWS; n++) {
        const hdi_flow_draw draw = draw_of(&options, 1, n);
        text += draw.drops_text;
        pooled += draw.drops_pooled;
        both += draw.drops_text && draw.drops_pooled;
        tasks[draw.task]++;
    }
    assert_share(text, 0.316);
    assert_share(pooled, 0.316);
    assert_share(both, 0.316 * 0.316); /* each on its own */
    for (int i = 0; i < HDI_FLOW_TASKS; i++)
        assert_share(tasks[i], ratios[i] / 8);
    ck_assert(!hdi_flow_is_given(HDI_FLOW_TEXT, 0, 5) && !hdi_flow_is_given(HDI_FLOW_HEAD, 4, 5));
    ck_assert(hdi_flow_is_given(HDI_FLOW_HEAD, 0, 5) && hdi_flow_is_given(HDI_FLOW_TAIL, 4, 5));
    ck_assert(hdi_flow_is_given(HDI_FLOW_LOOP, 0, 5) && hdi_flow_is_given(HDI_FLOW_LOOP, 4, 5));
    ck_assert(!hdi_flow_is_given(HDI_FLOW_LOOP, 2, 5) && !hdi_flow_is_given(HDI_FLOW_TAIL, 0, 5));
}
END_TEST

START_TEST(noise_is_standard_normal_and_never_the_same_twice)
{
    static float one[DRAWS], other[DRAWS], again[DRAWS / 2 + 1];
    hdi_flow_noise(&plain, 3, 5, DRAWS, one);
    hdi_flow_noise(&plain, 3, 5, DRAWS / 2 + 1, again);
    ck_assert_mem_eq(one, again, sizeof again);
    double mean = 0, square = 0, fourth = 0, next = 0;
    for (int i = 0; i < DRAWS; i++) {
        const double x = (double)one[i];
        mean += x;
        square += x * x;
        fourth += x * x * x * x;
        next += x * (double)one[(i + 1) % DRAWS];
    }
    ck_assert_double_eq_tol(mean / DRAWS, 0, 5 / sqrt(DRAWS));
    ck_assert_double_eq_tol(square / DRAWS, 1, 5 * sqrt(2.0 / DRAWS));
    ck_assert_double_eq_tol(fourth / DRAWS, 3, 5 * sqrt(96.0 / DRAWS));
    ck_assert_double_eq_tol(next / DRAWS, 0, 5 / sqrt(DRAWS));
    const int64_t steps[] = {4, 3}, samples[] = {5, 6};
    for (int k = 0; k < 2; k++) {
        double product = 0;
        hdi_flow_noise(&plain, steps[k], samples[k], DRAWS, other);
        for (int i = 0; i < DRAWS; i++)
            product += (double)one[i] * (double)other[i];
        ck_assert_double_eq_tol(product / DRAWS, 0, 5 / sqrt(DRAWS));
    }
}
END_TEST

/* The target is how the mixture moves with time, in the model's direction. */
START_TEST(the_target_is_the_slope_of_the_path)
{
    enum { ELEMENTS = 64 };
    float data[ELEMENTS], noise[ELEMENTS], early[ELEMENTS], late[ELEMENTS], target[ELEMENTS];
    hdi_flow_options options = plain;
    options.sigma_min = _i % 2 ? 1e-5 : 0;
    options.towards_data = _i / 2;
    hdi_flow_noise(&options, 0, 0, ELEMENTS, noise);
    hdi_flow_noise(&options, 0, 1, ELEMENTS, data);
    hdi_flow_mix(&options, 0.25, ELEMENTS, data, noise, early, target);
    hdi_flow_mix(&options, 0.75, ELEMENTS, data, noise, late, noise); /* in place */
    ck_assert_mem_eq(noise, target, sizeof target);
    for (int i = 0; i < ELEMENTS; i++) {
        const double slope = 2 * ((double)late[i] - (double)early[i]);
        /* Each value has a few roundings of numbers below 8. */
        ck_assert_double_eq_tol((double)target[i], _i / 2 ? -slope : slope, 64 * 0x1p-24);
    }
    hdi_flow_noise(&options, 0, 0, ELEMENTS, noise);
    hdi_flow_mix(&options, 1, ELEMENTS, data, noise, late, NULL);
    hdi_flow_mix(&options, 0, ELEMENTS, data, noise, early, NULL);
    for (int i = 0; i < ELEMENTS; i++) {
        ck_assert_float_eq_tol(late[i], noise[i], 1e-6F);
        ck_assert_float_eq_tol(early[i], data[i], (float)options.sigma_min * 8 + 1e-6F);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("flow");
    TCase *draws = tcase_create("draws");
    tcase_add_loop_test(draws, times_are_logit_normal_and_shifted, 0, 3);
    tcase_add_test(draws, uniform_times_are_uniform);
    tcase_add_test(draws, shifts_are_those_of_the_models);
    tcase_add_test(draws, text_is_dropped_and_frames_are_given_as_often_as_asked);
    tcase_add_test(draws, noise_is_standard_normal_and_never_the_same_twice);
    tcase_add_loop_test(draws, the_target_is_the_slope_of_the_path, 0, 4);
    suite_add_tcase(suite, draws);
    return hdt_main(suite);
}
