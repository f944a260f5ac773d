/* Learning-rate schedules against their formulas: corners, continuity, ends. */
#include "optim/learning_rate.h"

#include <float.h>
#include <math.h>

#include "tests/support/hdt.h"

enum { WARMUP = 10, TOTAL = 110 };

static hdi_rate_options options_of(hdi_rate_schedule schedule)
{
    return (hdi_rate_options){.schedule = schedule,
                              .peak = 0.5,
                              .final_share = 0.1,
                              .warmup = WARMUP,
                              .total = TOTAL,
                              .decay_fraction = 0.2};
}

/* A handful of operations, each off by half a unit of the last place at most. */
static void near(double seen, double wanted)
{
    ck_assert_double_eq_tol(seen, wanted, 8 * DBL_EPSILON);
}

START_TEST(all_warm_up_alike)
{
    hdi_rate_options o = options_of((hdi_rate_schedule)_i);
    for (int64_t step = 0; step < WARMUP; step++)
        near(hdi_learning_rate(&o, step), 0.5 * (double)(step + 1) / WARMUP);
    near(hdi_learning_rate(&o, WARMUP), 0.5); /* the warm-up ends at the peak */
    o.warmup = 0;
    near(hdi_learning_rate(&o, 0), 0.5);
}
END_TEST

START_TEST(each_follows_its_formula)
{
    hdi_rate_options o = options_of((hdi_rate_schedule)_i);
    for (int64_t step = WARMUP; step < 2 * TOTAL; step++) {
        double t = step < TOTAL ? (double)(step - WARMUP) / (TOTAL - WARMUP) : 1;
        double wanted = 0.5, left = (double)(TOTAL - step) / (0.2 * TOTAL); /* of wsd's decay */
        left = left > 1 ? 1 : left < 0 ? 0 : left;
        switch (o.schedule) {
        case HDI_RATE_CONSTANT: break;
        case HDI_RATE_LINEAR: wanted = 0.5 - 0.45 * t; break;
        case HDI_RATE_COSINE: wanted = 0.05 + 0.225 * (1 + cos(acos(-1) * t)); break;
        case HDI_RATE_WSD: wanted = 0.05 + 0.45 * left; break;
        }
        near(hdi_learning_rate(&o, step), wanted);
    }
    near(hdi_learning_rate(&o, TOTAL), _i == HDI_RATE_CONSTANT ? 0.5 : 0.05);
}
END_TEST

START_TEST(no_step_jumps)
{
    for (int decay = 0; decay <= 10; decay++) {
        hdi_rate_options o = options_of((hdi_rate_schedule)_i);
        o.decay_fraction = decay / 10.0; /* up to more than the warm-up leaves */
        near(hdi_learning_rate(&o, WARMUP), 0.5);
        double before = 0;
        for (int64_t step = 0; step < TOTAL + 5; step++) {
            double rate = hdi_learning_rate(&o, step);
            ck_assert_double_ge(rate, 0);
            ck_assert_double_le(rate, 0.5 + DBL_EPSILON);
            /* The steepest slopes: the warm-up's peak/10, and wsd's 0.45 over a tenth of 110. */
            if (!(o.schedule == HDI_RATE_WSD && decay == 0))
                ck_assert_double_le(fabs(rate - before), 0.05 + DBL_EPSILON);
            before = rate;
        }
    }
}
END_TEST

START_TEST(odd_lengths_stay_finite)
{
    const int64_t lengths[][2] = {{0, 0}, {0, 1}, {5, 5}, {10, 5}, {1, 1}};
    for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
        hdi_rate_options o = options_of((hdi_rate_schedule)_i);
        o.warmup = lengths[l][0];
        o.total = lengths[l][1];
        for (int64_t step = 0; step < 20; step++) {
            double rate = hdi_learning_rate(&o, step);
            ck_assert(isfinite(rate) && rate > 0 && rate <= 0.5);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("optim");
    TCase *tests = tcase_create("learning_rate");
    tcase_add_loop_test(tests, all_warm_up_alike, 0, 4);
    tcase_add_loop_test(tests, each_follows_its_formula, 0, 4);
    tcase_add_loop_test(tests, no_step_jumps, 0, 4);
    tcase_add_loop_test(tests, odd_lengths_stay_finite, 0, 4);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
