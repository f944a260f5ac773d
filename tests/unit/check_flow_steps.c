/* A sampler's noise levels, Euler steps and guidance against the reference implementations'. */
#include "optim/flow.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/hdt.h"
#include "tests/support/hdt_safetensors.h"

/* As the golden files' notes allow. */
static const double levels_tolerance = 3e-7;

static hdi_safetensors *golden;

static void open_golden(void)
{
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path("schedulers.safetensors"), &golden));
}

static void close_golden(void)
{
    hdi_safetensors_close(golden);
}

static double *read(const char *name, int64_t wanted)
{
    int64_t count;
    double *values = hdt_values(golden, name, &count);
    ck_assert_int_eq(count, wanted);
    return values;
}

static void compare(const char *name, const double *seen, int64_t count, double scale,
                    double tolerance)
{
    double *wanted = read(name, count);
    for (int64_t i = 0; i < count; i++)
        ck_assert_msg(fabs(seen[i] * scale - wanted[i]) <= tolerance * scale,
                      "%s[%d] is %.9g, want %.9g", name, (int)i, seen[i] * scale, wanted[i]);
    free(wanted);
}

static const int64_t hunyuan_steps[] = {30, 50};

START_TEST(levels_are_hunyuans)
{
    const int64_t steps = hunyuan_steps[_i];
    double levels[51];
    char name[96];
    hdi_flow_levels(steps, 7, levels);
    static const char *const who[] = {"diffusers", "original"};
    for (int w = 0; w < 2; w++) {
        snprintf(name, sizeof name, "out.hunyuan.n%d.shift7.%s.sigmas", (int)steps, who[w]);
        compare(name, levels, steps + 1, 1, levels_tolerance);
        snprintf(name, sizeof name, "out.hunyuan.n%d.shift7.%s.timesteps", (int)steps, who[w]);
        compare(name, levels, steps, 1000, levels_tolerance);
    }
    snprintf(name, sizeof name, "out64.hunyuan.n%d.shift7.original.sigmas", (int)steps);
    compare(name, levels, steps + 1, 1, 8 * DBL_EPSILON);
}
END_TEST

/* In both implementations each step rounds once or twice, at values below 8. */
START_TEST(euler_steps_are_hunyuans)
{
    enum { ELEMENTS = 2 * 3 * 2 * 2 };
    const int64_t steps = hunyuan_steps[_i];
    double levels[51];
    float sample[ELEMENTS], velocity[ELEMENTS];
    char name[96];
    hdi_flow_levels(steps, 7, levels);
    snprintf(name, sizeof name, "in.hunyuan.n%d.shift7.sample", (int)steps);
    double *first = read(name, ELEMENTS);
    snprintf(name, sizeof name, "in.hunyuan.n%d.shift7.model_outputs", (int)steps);
    double *outputs = read(name, steps * ELEMENTS);
    snprintf(name, sizeof name, "out.hunyuan.n%d.shift7.original.samples", (int)steps);
    double *wanted = read(name, steps * ELEMENTS);
    for (int i = 0; i < ELEMENTS; i++)
        sample[i] = (float)first[i];
    for (int64_t k = 0; k < steps; k++) {
        for (int i = 0; i < ELEMENTS; i++)
            velocity[i] = (float)outputs[k * ELEMENTS + i];
        hdi_flow_step(sample, velocity, ELEMENTS, levels[k], levels[k + 1]);
        for (int i = 0; i < ELEMENTS; i++)
            ck_assert_double_eq_tol((double)sample[i], wanted[k * ELEMENTS + i],
                                    (double)(k + 1) * 8 * (double)FLT_EPSILON);
    }
    free(first);
    free(outputs);
    free(wanted);
}
END_TEST

static const struct {
    int tokens, frames, steps;
} open_sora_2[] = {{1024, 17, 30}, {2304, 33, 50}, {252, 33, 50}, {256, 1, 50}};

START_TEST(levels_are_open_sora_2s)
{
    double levels[51];
    char name[96];
    const int tokens = open_sora_2[_i].tokens, frames = open_sora_2[_i].frames;
    const int steps = open_sora_2[_i].steps;
    const double shift = hdi_flow_open_sora_2_shift(tokens, frames);
    snprintf(name, sizeof name, "out64.opensora2.tokens%d.T%d.n%d.alpha", tokens, frames, steps);
    compare(name, &shift, 1, 1, 64 * DBL_EPSILON);
    hdi_flow_levels(steps, shift, levels);
    snprintf(name, sizeof name, "out.opensora2.tokens%d.T%d.n%d.timesteps", tokens, frames, steps);
    compare(name, levels, steps + 1, 1, levels_tolerance);
}
END_TEST

START_TEST(levels_are_open_sora_12s)
{
    double levels[31];
    hdi_flow_levels(30, hdi_flow_open_sora_1_shift(240 * 426, 1), levels);
    compare("out.opensora12.h240.w426.f1.n30.timesteps", levels, 30, 1000, levels_tolerance);
    hdi_flow_levels(30, hdi_flow_open_sora_1_shift(720 * 1280, 102 / 17 * 5), levels);
    compare("out.opensora12.h720.w1280.f102.n30.timesteps", levels, 30, 1000, levels_tolerance);
}
END_TEST

START_TEST(guidance_oscillates_as_open_sora_2s)
{
    const hdi_guidance guidance = {.branches = 3, .text = 7.5, .image = 3, .oscillate = true};
    double *wanted = read("out.opensora2.oscillation_guidance", 100);
    for (int k = 0; k < 50; k++) {
        const hdi_guidance_step step = hdi_guidance_at(&guidance, k, 50);
        ck_assert_double_eq(step.text, wanted[2 * k]);
        ck_assert_double_eq(step.first_image, wanted[2 * k + 1]);
        ck_assert_double_eq(step.last_image, wanted[2 * k + 1]);
        ck_assert_int_eq(step.branches, wanted[2 * k] == 1 ? 1 : 3);
    }
    free(wanted);
}
END_TEST

START_TEST(branches_without_weight_are_not_asked_for)
{
    const hdi_guidance plain = {.branches = 2, .text = 1};
    ck_assert_int_eq(hdi_guidance_at(&plain, 0, 4).branches, 1);
    const hdi_guidance image_only = {.branches = 3, .text = 1, .image = 2};
    ck_assert_int_eq(hdi_guidance_at(&image_only, 0, 4).branches, 3);
    const hdi_guidance text_only = {.branches = 3, .text = 2, .image = 1};
    ck_assert_int_eq(hdi_guidance_at(&text_only, 0, 4).branches, 3);
}
END_TEST

/* Small whole numbers, so that every product and sum is exact. */
START_TEST(branches_combine_as_their_formulas_say)
{
    enum { CHANNELS = 2, FRAMES = 3, PLANE = 2, COUNT = CHANNELS * FRAMES * PLANE };
    float v[3][COUNT];
    float *const velocity[3] = {v[0], v[1], v[2]};
    for (int i = 0; i < COUNT; i++) {
        v[0][i] = (float)i;
        v[1][i] = (float)(3 - i);
        v[2][i] = (float)(i % 5);
    }
    hdi_guidance_combine(&(hdi_guidance_step){.branches = 2, .text = 4}, velocity, CHANNELS, FRAMES,
                         PLANE);
    for (int i = 0; i < COUNT; i++)
        ck_assert_float_eq(v[0][i], (float)(3 - i + 4 * (i - (3 - i))));
    for (int i = 0; i < COUNT; i++)
        v[0][i] = (float)i;
    /* The given frames' weight is 1, 2 and 3 on the three frames. */
    hdi_guidance_combine(
        &(hdi_guidance_step){.branches = 3, .text = 4, .first_image = 1, .last_image = 3}, velocity,
        CHANNELS, FRAMES, PLANE);
    for (int i = 0; i < COUNT; i++) {
        const int image = 1 + i / PLANE % FRAMES, none = i % 5;
        ck_assert_float_eq(v[0][i], (float)(none + image * (3 - i - none) + 4 * (i - (3 - i))));
    }
}
END_TEST

/* linspace(1, s_k, T) over the frames, s_k = linspace(3, 1, steps + 1)[k]. */
START_TEST(image_guidance_ramps_over_frames_and_steps)
{
    const hdi_guidance guidance = {.branches = 3, .text = 7.5, .image = 3, .ramp = true};
    for (int k = 0; k < 4; k++) {
        const hdi_guidance_step step = hdi_guidance_at(&guidance, k, 4);
        ck_assert_double_eq(step.first_image, 1);
        ck_assert_double_eq(step.last_image, 3 - 0.5 * k);
    }
}
END_TEST

START_TEST(embedded_guidance_is_rounded_as_the_references_round_it)
{
    ck_assert_float_eq(hdi_guidance_embedded(6, true), 6016);
    ck_assert_float_eq(hdi_guidance_embedded(6, false), 6000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("flow steps");
    TCase *reference = tcase_create("reference");
    tcase_add_checked_fixture(reference, open_golden, close_golden);
    tcase_add_loop_test(reference, levels_are_hunyuans, 0, 2);
    tcase_add_loop_test(reference, euler_steps_are_hunyuans, 0, 2);
    tcase_add_loop_test(reference, levels_are_open_sora_2s, 0, 4);
    tcase_add_test(reference, levels_are_open_sora_12s);
    tcase_add_test(reference, guidance_oscillates_as_open_sora_2s);
    TCase *formulas = tcase_create("formulas");
    tcase_add_test(formulas, branches_without_weight_are_not_asked_for);
    tcase_add_test(formulas, branches_combine_as_their_formulas_say);
    tcase_add_test(formulas, image_guidance_ramps_over_frames_and_steps);
    tcase_add_test(formulas, embedded_guidance_is_rounded_as_the_references_round_it);
    suite_add_tcase(suite, reference);
    suite_add_tcase(suite, formulas);
    return hdt_main(suite);
}
