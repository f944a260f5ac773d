/* STDiT3 of Open-Sora 1.3 against its model restated in PyTorch, with padded and masked windows:
 * outputs, loss and gradients; in fp32 and, on the reference backend, in fp64. */
#include <math.h>
#include <stdlib.h>

#include "program/program.h"
#include "tests/support/hdt_stdit.h"

/* In fp64 what is left is the rounding of tables. */
START_TEST(outputs_equal_the_reference)
{
    hdt_stdit g = hdt_stdit_open_v13();
    for (int wide = 0; wide < 2; wide++) {
        const hdt_stdit_scene *s = &hdt_stdit_v13_scenes[_i];
        const hd_stage stage = hdt_stdit_stage(&g, s, HD_PURPOSE_EVALUATE);
        hdt_stdit_trial t = hdt_stdit_start(&g, &stage, wide, 0);
        hdt_stdit_feed(&t, &g, s, 0, s->sequences);
        hdt_stdit_run(&t, HDI_PHASE_FORWARD);
        const double worst = hdt_stdit_distance(&t, &g, s);
        ck_assert_msg(worst <= (wide ? 4e-7 : 5e-5), "%s: off by %g", s->out, worst);
        hdt_stdit_stop(&t);
    }
    hdt_stdit_close(&g);
}
END_TEST

START_TEST(loss_and_gradients_equal_the_reference)
{
    hdt_stdit g = hdt_stdit_open_v13();
    hd_stage stage = hdt_stdit_stage(&g, &hdt_stdit_v13_scenes[0], HD_PURPOSE_TRAIN);
    stage.recompute = _i;
    hdt_stdit_trial t = hdt_stdit_start(&g, &stage, false, 0);
    hdt_stdit_feed(&t, &g, &hdt_stdit_v13_scenes[0], 0, 2);
    hdt_stdit_run(&t, HDI_PHASE_FORWARD);
    hdt_stdit_run(&t, HDI_PHASE_BACKWARD);
    double *wanted = hdt_values(g.file, "out64.loss", NULL);
    const double count = hdt_machine_get(t.machine, t.result, 1);
    const double loss = hdt_machine_get(t.machine, t.result, 0) / count;
    ck_assert_double_eq(count, 2 * HDT_STDIT_CHANNELS * 3 * 10 * 10);
    ck_assert_msg(fabs(loss - wanted[0]) <= 5e-5, "loss is %.9g, want %.9g", loss, wanted[0]);
    hdt_stdit_compare_gradients(&t, &g, count, 4e-5);
    free(wanted);
    hdt_stdit_stop(&t);
    hdt_stdit_close(&g);
}
END_TEST

int main(void)
{
    TCase *parity = tcase_create("parity");
    tcase_add_loop_test(parity, outputs_equal_the_reference, 0, HDT_STDIT_V13_SCENES);
    tcase_add_loop_test(parity, loss_and_gradients_equal_the_reference, 0, 2);
    Suite *suite = suite_create("stdit_v13");
    suite_add_tcase(suite, parity);
    return hdt_main(suite);
}
