/* HunyuanVideo's and Open-Sora 2.0's transformers against golden runs of the references' own code:
 * velocity, loss, what blocks make, gradients; and that common mistakes would be seen. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "models/weights.h"
#include "ops/ops.h"
#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_safetensors.h"

static int64_t elements_of(const hdt_mmdit *g)
{
    return g->dims[0] * g->dims[1] * g->dims[2] * g->dims[3];
}

/* Distance of the velocity from the golden one. */
static double velocity_error(const hdt_mmdit *g, const hdt_mmdit_run *run)
{
    hdt_assert_ok(hdt_machine_run(run->machine, HDI_PHASE_FORWARD, false));
    double *seen = hdt_mmdit_prediction(g, run), *wanted = hdt_mmdit_latents(g, "out64.x");
    const double error = hdt_mmdit_distance(seen, wanted, elements_of(g));
    free(seen);
    free(wanted);
    return error;
}

static void check_loss(const hdt_mmdit *g, const hdt_mmdit_run *run, double tolerance)
{
    double *wanted = hdt_values(g->file, "out64.loss", NULL);
    const double *loss = hdt_machine_data(run->machine, hd_tensor_find(run->program, "loss"));
    ck_assert_double_eq(loss[1], (double)elements_of(g));
    ck_assert_double_le(fabs(loss[0] / loss[1] - wanted[0]), tolerance);
    free(wanted);
}

START_TEST(velocity_and_loss_equal_the_reference)
{
    hdt_mmdit g = hdt_mmdit_open(_i, NULL);
    for (int wide = 0; wide < 2; wide++) {
        const hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_EVALUATE);
        hdt_mmdit_run run = hdt_mmdit_start(&g, &stage, wide);
        /* Angles of rope come in fp32 tables: half an ulp of 1, through four blocks. */
        const double tolerance = wide ? 1e-7 : g.tolerance, error = velocity_error(&g, &run);
        ck_assert_msg(error <= tolerance, "velocity is off by %g, want %g", error, tolerance);
        check_loss(&g, &run, tolerance);
        hdt_mmdit_stop(&run);
    }
    hdt_mmdit_close(&g);
}
END_TEST

/* The last tensor but `back` that ops of the scope make in the forward. */
static hd_tensor made_by(const hd_program *program, const char *scope, int back)
{
    for (int i = program->op_count - 1; i >= 0; i--) {
        const hdi_op *op = program->ops[i];
        if (op->phase == HDI_PHASE_FORWARD && strcmp(program->scopes[op->scope].name, scope) == 0 &&
            back-- == 0)
            return op->op.out[0];
    }
    ck_abort_msg("scope %s makes nothing", scope);
    return (hd_tensor){0};
}

/* Rows of a program's tensor from `first` on against a golden tensor's first `rows`. */
static void compare_rows(const hdt_mmdit *g, const hdt_mmdit_run *run, hd_tensor tensor,
                         int64_t first, int64_t rows, const char *name)
{
    const int64_t hidden = hd_model_hidden(g->model);
    double *wanted = hdt_values(g->file, name, NULL), worst = 0;
    for (int64_t i = 0; i < rows * hidden; i++) {
        const double seen = hdt_machine_get(run->machine, tensor, first * hidden + i);
        ck_assert(isfinite(seen));
        worst = fmax(worst, fabs(seen - wanted[i]));
    }
    ck_assert_msg(worst <= g->tolerance, "%s is off by %g", name, worst);
    free(wanted);
}

/* In training each block ends in the sum of its rows. Blocks' rows are padded where text is. */
START_TEST(every_block_makes_what_the_reference_makes)
{
    static const int with[] = {HDT_HUNYUAN_DIFFUSERS, HDT_OPEN_SORA, HDT_OPEN_SORA_FUSED};
    hdt_mmdit g = hdt_mmdit_open(with[_i], NULL);
    const bool hunyuan = with[_i] == HDT_HUNYUAN_DIFFUSERS;
    const hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_TRAIN);
    hdt_mmdit_run run = hdt_mmdit_start(&g, &stage, false);
    hdt_assert_ok(hdt_machine_run(run.machine, HDI_PHASE_FORWARD, false));
    const int64_t image = g.dims[1] * (g.dims[2] / 2) * (g.dims[3] / 2);
    const int blocks = hd_model_layers(g.model) / 2;
    char scope[64], name[64];
    for (int i = 0; i < blocks; i++) {
        snprintf(scope, sizeof scope, "double_blocks.%d", i);
        snprintf(name, sizeof name, "mid.double.%d%s", i, hunyuan ? "" : ".img");
        /* The text's half runs last where the image is first; its op before ends the image's. */
        const hd_tensor last = made_by(run.program, scope, 0);
        const int64_t rows = hd_tensor_get(run.program, last)->dims[0];
        ck_assert_int_eq(rows, hunyuan ? g.text : image);
        if (!hunyuan) compare_rows(&g, &run, last, 0, image, name);
        snprintf(name, sizeof name, "mid.double.%d.txt", i);
        if (hunyuan) compare_rows(&g, &run, last, 0, g.valid, name);
        snprintf(scope, sizeof scope, "single_blocks.%d", i);
        const hd_tensor joined = made_by(run.program, scope, 0);
        snprintf(name, sizeof name, "mid.single.%d", i);
        compare_rows(&g, &run, joined, 0, hunyuan ? image : image + g.text, name);
        snprintf(name, sizeof name, "mid.single.%d.txt", i);
        if (hunyuan) compare_rows(&g, &run, joined, image, g.valid, name);
    }
    if (hunyuan) {
        const hd_tensor text = made_by(run.program, "txt_in.individual_token_refiner.blocks.1", 0);
        compare_rows(&g, &run, text, 0, g.valid, "mid.txt_in");
    }
    hdt_mmdit_stop(&run);
    hdt_mmdit_close(&g);
}
END_TEST

/* The part of a parameter that a golden gradient holds, from element `first` of the parameter on. */
static void compare_part(const hdt_mmdit *g, const hdt_mmdit_run *run, const hdi_use *use, int part,
                         int64_t first)
{
    const hdi_model_part it = hdi_model_part_of(&use->options, part);
    const int64_t elements = it.rows * it.columns;
    const double *loss = hdt_machine_data(run->machine, hd_tensor_find(run->program, "loss"));
    hd_parameter_options alone = use->options;
    alone.dims[0] = it.rows;
    if (alone.parts) {
        alone.parts = 1;
        alone.part[0] = use->options.part[part];
    }
    float *wanted = calloc((size_t)elements, sizeof *wanted);
    hdt_assert_ok(hdi_model_read_parameter(g->gradients, &alone, 0, elements, wanted));
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < elements; i++) {
        const double seen = hdt_machine_get(run->machine, use->gradient, first + i) / loss[1];
        ck_assert(isfinite(seen));
        largest = fmax(largest, fabs((double)wanted[i]));
        worst = fmax(worst, fabs(seen - (double)wanted[i]));
    }
    ck_assert_msg(worst <= g->gradient_tolerance * largest, "gradient of %s is off by %g of %g",
                  it.name, worst, largest);
    free(wanted);
}

START_TEST(gradients_equal_the_reference)
{
    hdt_mmdit g = hdt_mmdit_open(_i, NULL);
    const hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_TRAIN);
    hdt_mmdit_run run = hdt_mmdit_start(&g, &stage, false);
    hdt_assert_ok(hdt_machine_run(run.machine, HDI_PHASE_FORWARD, false));
    hdt_assert_ok(hdt_machine_run(run.machine, HDI_PHASE_BACKWARD, false));
    int64_t compared = 0, stored = 0;
    for (int u = 0; u < run.program->use_count; u++) {
        const hdi_use *use = &run.program->uses[u];
        int64_t first = 0;
        for (int i = 0; i < hdi_model_part_count(&use->options); i++) {
            const hdi_model_part it = hdi_model_part_of(&use->options, i);
            if (hdi_weights_find(g.gradients, it.name, NULL)) {
                compare_part(&g, &run, use, i, first);
                compared += it.rows * it.columns;
            }
            first += it.rows * it.columns;
        }
    }
    for (int i = 0; i < hdi_weights_count(g.gradients); i++)
        stored += hdi_weights_get(g.gradients, i, NULL)->elements;
    ck_assert_int_eq(compared, stored);
    hdt_mmdit_stop(&run);
    hdt_mmdit_close(&g);
}
END_TEST

/* Each of these is a mistake that the velocity's tolerance must not let pass. */
static double error_with_erf(const hdt_mmdit *g, hdt_mmdit_run *run)
{
    int changed = 0;
    for (int i = 0; i < run->program->op_count; i++) {
        hdi_op *op = run->program->ops[i];
        hdi_activation_options *options = op->options;
        if (op->op.kind != &hdi_op_activation || options->kind != HDI_GELU_TANH) continue;
        options->kind = HDI_GELU_ERF;
        changed++;
    }
    ck_assert_int_gt(changed, 0);
    return velocity_error(g, run);
}

static double error_with_plain_guidance(const hdt_mmdit *g, hdt_mmdit_run *run)
{
    const double guidance = 6000;
    ck_assert(hdt_mmdit_feed(run, "guidance", &guidance));
    return velocity_error(g, run);
}

/* Sines first is the same as swapping the halves of what reads the sinusoid. */
static double error_with_sines_first(const hdt_mmdit *g, hdt_mmdit_run *run)
{
    for (int u = 0; u < run->program->use_count; u++) {
        const hdi_use *use = &run->program->uses[u];
        if (strcmp(use->name, "time_in.mlp.0.weight") != 0) continue;
        for (int64_t i = 0; i < use->options.dims[0] * 256; i++) {
            if (i % 256 >= 128) continue;
            const double cosine = hdt_machine_get(run->machine, use->tensor, i);
            const double sine = hdt_machine_get(run->machine, use->tensor, i + 128);
            hdt_machine_set(run->machine, use->tensor, i, sine);
            hdt_machine_set(run->machine, use->tensor, i + 128, cosine);
        }
        return velocity_error(g, run);
    }
    ck_abort_msg("nothing reads the sinusoid");
    return 0;
}

static double error_as_is(const hdt_mmdit *g, hdt_mmdit_run *run)
{
    return velocity_error(g, run);
}

static const struct {
    int which;
    const char *edit;
    double (*error)(const hdt_mmdit *g, hdt_mmdit_run *run);
    double at_least; /* half of what the golden files' notes give */
} mistakes[] = {
    {HDT_HUNYUAN, NULL, error_with_erf, 2.2e-4},
    {HDT_OPEN_SORA, NULL, error_with_erf, 1.1e-4},
    {HDT_HUNYUAN, NULL, error_with_plain_guidance, 0.49},
    {HDT_HUNYUAN, NULL, error_with_sines_first, 0.8},
    {HDT_OPEN_SORA, "{\"use_liger_rope\": false}", error_as_is, 0.15},
    {HDT_OPEN_SORA_FUSED, "{\"use_liger_rope\": true}", error_as_is, 0.15},
    {HDT_HUNYUAN, "{\"rope_theta\": 10000}", error_as_is, 1e-3},
};

START_TEST(common_mistakes_are_far_outside_the_tolerance)
{
    hdt_mmdit g = hdt_mmdit_open(mistakes[_i].which, mistakes[_i].edit);
    const hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_EVALUATE);
    hdt_mmdit_run run = hdt_mmdit_start(&g, &stage, false);
    const double error = mistakes[_i].error(&g, &run);
    ck_assert_double_gt(mistakes[_i].at_least, 2 * g.tolerance);
    ck_assert_double_ge(error, mistakes[_i].at_least);
    hdt_mmdit_stop(&run);
    hdt_mmdit_close(&g);
}
END_TEST

START_TEST(dropping_padded_text_is_the_same_as_counting_what_is_valid)
{
    hdt_mmdit g = hdt_mmdit_open(HDT_HUNYUAN, NULL);
    hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_EVALUATE);
    double *predictions[2];
    for (int dropped = 0; dropped < 2; dropped++) {
        if (dropped) stage.video.text = g.valid;
        if (dropped) stage.video.text_counts = false;
        hdt_mmdit_run run = hdt_mmdit_start(&g, &stage, true);
        hdt_assert_ok(hdt_machine_run(run.machine, HDI_PHASE_FORWARD, false));
        predictions[dropped] = hdt_mmdit_prediction(&g, &run);
        hdt_mmdit_stop(&run);
    }
    ck_assert_double_le(hdt_mmdit_distance(predictions[0], predictions[1], elements_of(&g)), 1e-12);
    free(predictions[0]);
    free(predictions[1]);
    hdt_mmdit_close(&g);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mmdit_golden");
    TCase *tests = tcase_create("mmdit_golden");
    tcase_add_loop_test(tests, velocity_and_loss_equal_the_reference, 0, HDT_MMDITS);
    tcase_add_loop_test(tests, every_block_makes_what_the_reference_makes, 0, 3);
    tcase_add_loop_test(tests, gradients_equal_the_reference, 0, HDT_MMDITS);
    tcase_add_loop_test(tests, common_mistakes_are_far_outside_the_tolerance, 0,
                        (int)(sizeof mistakes / sizeof mistakes[0]));
    tcase_add_test(tests, dropping_padded_text_is_the_same_as_counting_what_is_valid);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
