/* STDiT3 against the golden run of Open-Sora 1.2's own code: outputs, what the first blocks make,
 * loss and gradients; in fp32 and, on the reference backend, in fp64. */
#include <math.h>
#include <stdlib.h>

#include "tests/support/hdt_stdit.h"

/* In fp64 what is left is the rounding of tables (positions, rotations), which programs hold in fp32:
 * 3e-8 of a sine, some of which add up. */
START_TEST(outputs_equal_the_reference)
{
    hdt_stdit g = hdt_stdit_open();
    for (int wide = 0; wide < 2; wide++) {
        const hdt_stdit_scene *s = &hdt_stdit_scenes[_i];
        const hd_stage stage = hdt_stdit_stage(&g, s, HD_PURPOSE_EVALUATE);
        hdt_stdit_trial t = hdt_stdit_start(&g, &stage, wide, 0);
        hdt_stdit_feed(&t, &g, s, 0, s->sequences);
        hdt_stdit_run(&t, HDI_PHASE_FORWARD);
        const double worst = hdt_stdit_distance(&t, &g, s);
        ck_assert_msg(worst <= (wide ? 2e-7 : 5e-5), "%s: off by %g", s->out, worst);
        hdt_stdit_stop(&t);
    }
    hdt_stdit_close(&g);
}
END_TEST

/* Frames that are given, modulated once only: a mistake that the comparison above must see. */
START_TEST(given_frames_modulated_once_are_told_from_twice)
{
    hdt_stdit g = hdt_stdit_open();
    const hd_stage stage = hdt_stdit_stage(&g, &hdt_stdit_scenes[0], HD_PURPOSE_EVALUATE);
    hdt_stdit_trial t = hdt_stdit_start(&g, &stage, false, 0);
    hdt_stdit_feed(&t, &g, &hdt_stdit_scenes[0], 0, 2);
    for (int i = 1; i < t.program->tensor_count; i++) {
        const hd_tensor_info *info = hd_tensor_get(t.program, (hd_tensor){i});
        for (int64_t e = 0; e < info->elements && strncmp(info->name, "selection.", 10) == 0; e++)
            hdt_machine_set(t.machine, (hd_tensor){i}, e, 0);
    }
    hdt_stdit_run(&t, HDI_PHASE_FORWARD);
    const double worst = hdt_stdit_distance(&t, &g, &hdt_stdit_scenes[0]);
    ck_assert_msg(worst > 2 && worst < 3.5, "off by %g, want about 2.6", worst);
    hdt_stdit_stop(&t);
    hdt_stdit_close(&g);
}
END_TEST

START_TEST(first_blocks_equal_the_reference)
{
    static const char *const names[] = {"mid.spatial.0", "mid.temporal.0"};
    hdt_stdit g = hdt_stdit_open();
    hd_stage stage = hdt_stdit_stage(&g, &hdt_stdit_scenes[0], HD_PURPOSE_EVALUATE);
    stage.layers = _i + 1;
    stage.last = false;
    hdt_stdit_trial t = hdt_stdit_start(&g, &stage, false, 0);
    hdt_stdit_feed(&t, &g, &hdt_stdit_scenes[0], 0, 2);
    hdt_stdit_run(&t, HDI_PHASE_FORWARD);
    double *wanted = hdt_values(g.file, names[_i], NULL), worst = 0;
    const int64_t rows = hd_tensor_get(t.program, t.result)->dims[0] / 2, tokens = 36;
    for (int64_t i = 0; i < 2 * tokens * HDT_STDIT_HIDDEN; i++) {
        const int64_t row = i / HDT_STDIT_HIDDEN / tokens * rows + i / HDT_STDIT_HIDDEN % tokens;
        const double seen =
            hdt_machine_get(t.machine, t.result, row * HDT_STDIT_HIDDEN + i % HDT_STDIT_HIDDEN);
        ck_assert(isfinite(seen));
        worst = fmax(worst, fabs(seen - wanted[i]));
    }
    ck_assert_msg(worst <= 5e-5, "%s: off by %g", names[_i], worst);
    free(wanted);
    hdt_stdit_stop(&t);
    hdt_stdit_close(&g);
}
END_TEST

START_TEST(loss_and_gradients_equal_the_reference)
{
    hdt_stdit g = hdt_stdit_open();
    const hd_stage stage = hdt_stdit_stage(&g, &hdt_stdit_scenes[0], HD_PURPOSE_TRAIN);
    hdt_stdit_trial t = hdt_stdit_start(&g, &stage, false, 0);
    hdt_stdit_feed(&t, &g, &hdt_stdit_scenes[0], 0, 2);
    hdt_stdit_run(&t, HDI_PHASE_FORWARD);
    hdt_stdit_run(&t, HDI_PHASE_BACKWARD);
    double *wanted_loss = hdt_values(g.file, "out64.loss", NULL);
    const double count = hdt_machine_get(t.machine, t.result, 1);
    ck_assert_double_eq(count, 2 * HDT_STDIT_CHANNELS * 3 * 6 * 8);
    const double loss = hdt_machine_get(t.machine, t.result, 0) / count;
    ck_assert_msg(fabs(loss - wanted_loss[0]) <= 5e-5, "loss is %.9g, want %.9g", loss,
                  wanted_loss[0]);
    hdt_stdit_compare_gradients(&t, &g, count, 4e-5);
    free(wanted_loss);
    hdt_stdit_stop(&t);
    hdt_stdit_close(&g);
}
END_TEST

int main(void)
{
    TCase *parity = tcase_create("parity");
    tcase_add_loop_test(parity, outputs_equal_the_reference, 0, HDT_STDIT_SCENES);
    tcase_add_test(parity, given_frames_modulated_once_are_told_from_twice);
    tcase_add_loop_test(parity, first_blocks_equal_the_reference, 0, 2);
    tcase_add_test(parity, loss_and_gradients_equal_the_reference);
    Suite *suite = suite_create("stdit_golden");
    suite_add_tcase(suite, parity);
    return hdt_main(suite);
}
