/* The number of slices that a budget asks for: the fewest that fit, none where all is well without. */
#include "jobs/train/trainer.h"
#include "tests/support/hdt.h"

#include <heddle/model.h>
#include <stdio.h>

static hd_model *model;

static void set_up(void)
{
    hdt_assert_ok(hd_model_create_json("{\"model_type\":\"gpt2\",\"vocab_size\":900,"
                                       "\"n_positions\":64,\"n_embd\":16,\"n_layer\":1,"
                                       "\"n_head\":2}",
                                       &model));
}

static void tear_down(void)
{
    hd_model_destroy(model);
}

/* Logits are most of what there is. */
static hd_status create(int slices, size_t budget, const hd_mesh *mesh, bool exact,
                        hd_trainer **out)
{
    return hd_trainer_create(&(hd_trainer_options){.build = hd_model_build,
                                                   .user = model,
                                                   .layers = 1,
                                                   .mesh = mesh,
                                                   .sequences = 8,
                                                   .tokens = 64,
                                                   .exact = exact,
                                                   .validate_batches = 1,
                                                   .slices = slices,
                                                   .budget = budget},
                             out);
}

static size_t bytes_of(int slices)
{
    hd_trainer *trainer = NULL;
    hdt_assert_ok(create(slices, 0, NULL, false, &trainer));
    const size_t bytes = hd_plan_total_bytes(hd_trainer_plan(trainer));
    hd_trainer_destroy(trainer);
    return bytes;
}

static int chosen(size_t budget)
{
    hd_trainer *trainer = NULL;
    hdt_assert_ok(create(HD_SLICES_AUTO, budget, NULL, false, &trainer));
    const int slices = trainer->options.slices;
    hd_trainer_destroy(trainer);
    return slices;
}

START_TEST(as_few_slices_are_chosen_as_fit)
{
    const size_t one = bytes_of(1), two = bytes_of(2), four = bytes_of(4);
    ck_assert_uint_lt(two, one);
    ck_assert_uint_lt(four, two);
    ck_assert_int_eq(chosen(0), 1);
    ck_assert_int_eq(chosen(one), 1);
    ck_assert_int_eq(chosen(one - 1), 2);
    ck_assert_int_eq(chosen(two), 2);
    ck_assert_int_eq(chosen(two - 1), 4);
    ck_assert_uint_eq(bytes_of(0), one);
}
END_TEST

START_TEST(without_one_that_fits_what_is_short_without_slices_is_said)
{
    hd_trainer *trainer = NULL;
    char want[64];
    snprintf(want, sizeof want, "needs %zu bytes", bytes_of(1));
    hdt_assert_status(create(HD_SLICES_AUTO, 1 << 16, NULL, false, &trainer), HD_ERROR_BUDGET,
                      want);
    ck_assert_ptr_null(trainer);
}
END_TEST

START_TEST(a_choice_that_ranks_would_make_differently_is_refused)
{
    hd_trainer *trainer = NULL;
    hd_mesh *mesh;
    hdt_assert_ok(hd_mesh_create_fake(1, 2, &(hd_mesh_options){.tensor = 2}, &mesh));
    hdt_assert_status(create(HD_SLICES_AUTO, 0, mesh, false, &trainer), HD_ERROR_UNSUPPORTED,
                      "with tensor 2");
    hdt_assert_status(create(HD_SLICES_AUTO, 0, NULL, true, &trainer), HD_ERROR_UNSUPPORTED,
                      "reduction exact");
    hd_mesh_destroy(mesh);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("slices by budget");
    TCase *tests = tcase_create("slices by budget");
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, as_few_slices_are_chosen_as_fit);
    tcase_add_test(tests, without_one_that_fits_what_is_short_without_slices_is_said);
    tcase_add_test(tests, a_choice_that_ranks_would_make_differently_is_refused);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
