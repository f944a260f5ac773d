/* The seconds that plans predict, against those that steps were seen to take: docs/benchmarks.md. */
#include "tests/support/hdt_job.h"
#include "tests/support/hdt_program.h"

#include <stdio.h>
#include <stdlib.h>

#define GPT2 "model.vocab=50304 train.dtype=bf16 train.tokens=1024 train.validate_batches=0 "
#define VIDEO "model.preset=hunyuan-video-13b sample.dtype=bf16 sample.text_tokens=256 "
#define H100 "run.rates=h100 "
#define H200 "run.rates=h200 "
#define STAGES "model.preset=gpt2 train.micro_batch=16 train.batch=256 layout.pipeline=2 "

typedef struct row {
    const char *settings;
    int ranks;
    double seconds; /* of a step, seen */
} row;

/* Tokens of a step by tokens a second. */
static const row trainings[] = {
    {GPT2 H100 "optimizer.master=fp32 model.preset=gpt2 train.micro_batch=32", 1, 32768 / 561740.0},
    {GPT2 H100 "optimizer.master=fp32 model.preset=gpt2 train.micro_batch=64", 1, 65536 / 578849.0},
    {GPT2 H100 "model.preset=gpt2-medium train.micro_batch=16", 1, 16384 / 201136.0},
    {GPT2 H100 "model.preset=gpt2-large train.micro_batch=8", 1, 8192 / 88777.0},
    {GPT2 H100 "model.preset=gpt2-xl train.micro_batch=8", 1, 8192 / 46558.0},
    {GPT2 H200 "model.preset=gpt2 train.micro_batch=32", 1, 32768 / 583796.0},
    {GPT2 H200 "model.preset=gpt2-xl train.micro_batch=8", 1, 8192 / 48141.0},
    {GPT2 H200 "model.preset=gpt2 train.micro_batch=32 layout.data=2 layout.shard_state=1", 2,
     65536 / 1139669.0},
    {GPT2 H200 "model.preset=gpt2-xl train.micro_batch=8 layout.data=2 layout.shard_state=1", 2,
     16384 / 94234.0},
    {GPT2 H200 STAGES "layout.chunks=1", 2, 262144 / 1062132.0},
    {GPT2 H200 STAGES "layout.chunks=2", 2, 262144 / 1079841.0},
};

static const row samplings[] = {
    {VIDEO H100 "sample.frames=129 sample.height=512 sample.width=384", 1, 1.359},
    {VIDEO H100 "sample.frames=81 sample.height=544 sample.width=960", 1, 3.393},
    {VIDEO H100 "sample.frames=129 sample.height=512 sample.width=384 memory.budget=6GiB", 1,
     1.360},
    {VIDEO H100 "sample.frames=129 sample.height=720 sample.width=1280 memory.budget=24GiB", 1,
     21.38},
    {VIDEO H100 "sample.frames=129 sample.height=720 sample.width=1280 memory.budget=6GiB", 1,
     21.34},
    {VIDEO H200 "sample.frames=81 sample.height=544 sample.width=960", 1, 3.432},
    {VIDEO H200 "sample.frames=81 sample.height=544 sample.width=960 layout.sequence=2", 2, 1.863},
    {VIDEO H200 "sample.frames=81 sample.height=544 sample.width=960 layout.sequence=2 "
                "layout.ring=2",
     2, 1.856},
};

static hd_config *configure(const char *settings)
{
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    hdt_set_words(config, settings);
    return config;
}

/* What design promises of predicted seconds. */
static void assert_near(const row *one, const char *plan)
{
    static const char before[] = "predicted ";
    const char *at = strstr(plan, before);
    ck_assert_msg(at != NULL, "%s: no seconds in:\n%s", one->settings, plan);
    const double predicted = strtod(at + strlen(before), NULL);
    const double off = predicted / one->seconds - 1;
    ck_assert_msg(off > -0.15 && off < 0.15, "%s: predicted %g s, seen %g s, %.1f %% off",
                  one->settings, predicted, one->seconds, 100 * off);
}

START_TEST(steps_of_training_take_what_was_predicted_within_15_percent)
{
    const row *one = &trainings[_i];
    hdt_text out = {.used = 0};
    hd_config *config = configure(one->settings);
    hdt_assert_ok(hd_plan_run(config, one->ranks, NULL, false, hdt_collect, &out));
    assert_near(one, out.text);
    hd_config_destroy(config);
}
END_TEST

START_TEST(steps_of_denoising_take_what_was_predicted_within_15_percent)
{
    const row *one = &samplings[_i];
    hdt_text out = {.used = 0};
    hd_config *config = configure(one->settings);
    hdt_assert_ok(hd_sample_plan_run(config, one->ranks, false, hdt_collect, &out));
    assert_near(one, out.text);
    hd_config_destroy(config);
}
END_TEST

/* Whether an update ends first or goes on beside the next step. */
START_TEST(a_step_takes_its_computation_and_what_it_waits_for)
{
    static const char *const settings[] = {
        GPT2 H100 "model.preset=gpt2 optimizer.residency=host train.accumulate=1",
        GPT2 H100 "model.preset=gpt2 optimizer.residency=host train.accumulate=1 "
                  "optimizer.overlap=false"};
    double seconds[2], summed[2];
    for (int i = 0; i < 2; i++) {
        hdt_text out = {.used = 0};
        hd_config *config = configure(settings[i]);
        hdt_assert_ok(hd_plan_run(config, 1, NULL, false, hdt_collect, &out));
        const char *step = strstr(out.text, "predicted "),
                   *of = strstr(out.text, "exposed: copies ");
        of = of ? strstr(of, " % of ") : NULL;
        ck_assert_msg(step && of, "%s", out.text);
        seconds[i] = strtod(step + strlen("predicted "), NULL);
        summed[i] = strtod(of + strlen(" % of "), NULL);
        hd_config_destroy(config);
    }
    for (int i = 0; i < 2; i++) /* as many digits as are shown */
        ck_assert_double_eq_tol(seconds[i], summed[i], 0.01 * summed[i]);
    ck_assert_double_lt(seconds[0], 0.97 * seconds[1]);
}
END_TEST

int main(void)
{
    TCase *predictions = tcase_create("predictions");
    tcase_add_loop_test(predictions, steps_of_training_take_what_was_predicted_within_15_percent, 0,
                        sizeof trainings / sizeof trainings[0]);
    tcase_add_loop_test(predictions, steps_of_denoising_take_what_was_predicted_within_15_percent,
                        0, sizeof samplings / sizeof samplings[0]);
    tcase_add_test(predictions, a_step_takes_its_computation_and_what_it_waits_for);
    Suite *suite = suite_create("predictions");
    suite_add_tcase(suite, predictions);
    return hdt_main(suite);
}
