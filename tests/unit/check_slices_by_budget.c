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

enum { LAYERS = 4, KINDS = 5 }; /* of numbers of slices */

static hd_trainer *create_of(int vocab, int hidden, int sequences, hd_trainer_options options)
{
    hd_trainer *trainer = NULL;
    hd_model *deep = NULL;
    char json[256];
    snprintf(json, sizeof json,
             "{\"model_type\":\"gpt2\",\"vocab_size\":%d,\"n_positions\":64,\"n_embd\":%d,"
             "\"n_layer\":%d,\"n_head\":2}",
             vocab, hidden, LAYERS);
    hdt_assert_ok(hd_model_create_json(json, &deep));
    options.build = hd_model_build;
    options.user = deep;
    options.layers = LAYERS;
    options.sequences = sequences;
    options.tokens = 64;
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    hd_model_destroy(deep);
    return trainer;
}

static hd_trainer *create_deep(int hidden, int sequences, hd_trainer_options options)
{
    return create_of(900, hidden, sequences, options);
}

static size_t bytes_of_deep(int hidden, int sequences, hd_trainer_options options)
{
    hd_trainer *trainer = create_deep(hidden, sequences, options);
    const size_t bytes = hd_plan_total_bytes(hd_trainer_plan(trainer));
    hd_trainer_destroy(trainer);
    return bytes;
}

/* As many blocks as are needed with most slices, and then as few slices as fit. */
static void check_chosen(hd_trainer_options options, size_t need[LAYERS + 1][KINDS])
{
    int blocks = 0, kind = 0;
    while (need[blocks][KINDS - 1] > options.budget)
        blocks++;
    while (need[blocks][kind] > options.budget)
        kind++;
    hd_trainer *trainer = create_deep(16, 8, options);
    const hd_trainer_options *o = &trainer->options;
    const bool keeps = o->activations == HD_ACTIVATIONS_KEEP;
    ck_assert(keeps || o->activations == HD_ACTIVATIONS_RECOMPUTE);
    ck_assert_int_eq(keeps ? 0 : o->activation_blocks ? o->activation_blocks : LAYERS, blocks);
    ck_assert_int_eq(o->slices, 1 << kind);
    hd_trainer_destroy(trainer);
}

START_TEST(slices_are_taken_before_blocks_are_computed_again)
{
    size_t need[LAYERS + 1][KINDS];
    hd_trainer_options options = {0};
    for (int blocks = 0; blocks <= LAYERS; blocks++)
        for (int kind = 0; kind < KINDS; kind++) {
            options.activations = blocks ? HD_ACTIVATIONS_RECOMPUTE : HD_ACTIVATIONS_KEEP;
            options.activation_blocks = blocks;
            options.slices = 1 << kind;
            need[blocks][kind] = bytes_of_deep(16, 8, options);
        }
    options = (hd_trainer_options){.activations = HD_ACTIVATIONS_AUTO, .slices = HD_SLICES_AUTO};
    const size_t least = need[LAYERS][KINDS - 1];
    for (int blocks = 0; blocks <= LAYERS; blocks++)
        for (int kind = 0; kind < KINDS; kind++)
            for (size_t less = 0; less < 2; less++) {
                options.budget = need[blocks][kind] - less;
                if (options.budget >= least) check_chosen(options, need);
            }
}
END_TEST

START_TEST(slices_are_taken_before_blocks_leave_for_the_host)
{
    hd_trainer_options options = {.optimizer_residency = HD_RESIDENCY_HOST,
                                  .gradient_residency = HD_RESIDENCY_HOST,
                                  .residency = HD_RESIDENCY_HOST,
                                  .chunk_elements = 8192,
                                  .slices = HD_SLICES_AUTO_MOST};
    const size_t least = bytes_of_deep(64, 4, options);
    options.residency = HD_RESIDENCY_RESIDENT;
    const size_t most = bytes_of_deep(64, 4, options);
    options.residency = HD_RESIDENCY_AUTO;
    int partly = 0;
    for (int step = 0; step <= 8; step++) {
        options.budget = least + (most - least) * (size_t)step / 8;
        options.slices = HD_SLICES_AUTO_MOST;
        hd_trainer *sliced = create_deep(64, 4, options);
        options.slices = HD_SLICES_AUTO;
        hd_trainer *chosen = create_deep(64, 4, options);
        const int blocks = chosen->plan->layout->host_blocks;
        ck_assert_int_eq(blocks, sliced->plan->layout->host_blocks);
        if (blocks && blocks < LAYERS && chosen->options.slices < HD_SLICES_AUTO_MOST) partly++;
        hd_trainer_destroy(sliced);
        hd_trainer_destroy(chosen);
    }
    ck_assert_int_gt(partly, 0);
}
END_TEST

/* Where MLPs are most of what there is. */
static hd_trainer *create_mlps(hd_trainer_options options)
{
    return create_of(8, 64, 8, options);
}

typedef struct need {
    size_t bytes;
    double seconds; /* of forwards and backwards */
} need;

static need need_of(hd_trainer_options options)
{
    hd_trainer *trainer = create_mlps(options);
    need out = {.bytes = hd_plan_total_bytes(hd_trainer_plan(trainer))};
    hdt_assert_ok(
        hd_plan_seconds(trainer->plan, trainer->shapes[0].train[0].program, &out.seconds));
    hd_trainer_destroy(trainer);
    return out;
}

START_TEST(mlps_are_made_in_as_few_slices_as_fit)
{
    hd_trainer_options options = {.activations =
                                      _i ? HD_ACTIVATIONS_RECOMPUTE : HD_ACTIVATIONS_KEEP};
    need needs[3];
    for (int kind = 0; kind < 3; kind++) {
        options.mlp_slices = 1 << kind;
        needs[kind] = need_of(options);
        ck_assert(kind == 0 || needs[kind].bytes < needs[kind - 1].bytes);
    }
    options.mlp_slices = HD_SLICES_AUTO;
    for (int kind = 0; kind < 3; kind++)
        for (int less = 0; less < (kind < 2 ? 2 : 1); less++) {
            options.budget = needs[kind].bytes - (size_t)less;
            hd_trainer *trainer = create_mlps(options);
            ck_assert_int_eq(trainer->options.mlp_slices, 1 << (kind + less));
            ck_assert_int_eq(trainer->options.activations, options.activations);
            hd_trainer_destroy(trainer);
        }
}
END_TEST

/* Of three ways, at once with some blocks computed again, in slices, and in the fewest with some blocks, whichever
 * is predicted to be the fastest: each of the first two is somewhere. */
START_TEST(slices_of_mlps_and_blocks_that_are_computed_again_are_weighed)
{
    hd_trainer_options options = {.activations = HD_ACTIVATIONS_AUTO, .mlp_slices = 1};
    hd_trainer_options most = {.activations = HD_ACTIVATIONS_RECOMPUTE,
                               .mlp_slices = HD_SLICES_AUTO_MOST};
    const need all = need_of(options), least = need_of(most);
    int sliced = 0, again = 0;
    for (int step = 0; step <= 16; step++) {
        options.budget = least.bytes + (all.bytes - least.bytes) * (size_t)step / 16;
        options.mlp_slices = HD_SLICES_AUTO;
        hd_trainer *trainer = create_mlps(options);
        hd_trainer_options chosen = trainer->options;
        const bool keeps = chosen.activations == HD_ACTIVATIONS_KEEP;
        hd_trainer_destroy(trainer);
        ck_assert(keeps || chosen.activations == HD_ACTIVATIONS_RECOMPUTE);
        sliced += keeps && chosen.mlp_slices > 1;
        again += !keeps && chosen.mlp_slices == 1;
        chosen.budget = 0;
        const need seen = need_of(chosen);
        ck_assert_uint_le(seen.bytes, options.budget);
        for (int slices = 1; slices <= HD_SLICES_AUTO_MOST; slices *= 2)
            for (int blocks = 0; blocks <= LAYERS; blocks++) {
                const need other = need_of((hd_trainer_options){
                    .activations = blocks ? HD_ACTIVATIONS_RECOMPUTE : HD_ACTIVATIONS_KEEP,
                    .activation_blocks = blocks,
                    .mlp_slices = slices});
                const bool fits = other.bytes <= options.budget;
                if (slices <= 2 || blocks == 0) ck_assert(!fits || seen.seconds <= other.seconds);
            }
    }
    ck_assert_int_gt(sliced, 0);
    ck_assert_int_gt(again, 0);
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
                      "with layout.tensor 2");
    hdt_assert_status(create(HD_SLICES_AUTO, 0, NULL, true, &trainer), HD_ERROR_UNSUPPORTED,
                      "reduction exact");
    hd_trainer_options options = {.build = hd_model_build,
                                  .user = model,
                                  .layers = 1,
                                  .mesh = mesh,
                                  .sequences = 8,
                                  .tokens = 64,
                                  .mlp_slices = HD_SLICES_AUTO};
    hdt_assert_status(hd_trainer_create(&options, &trainer), HD_ERROR_UNSUPPORTED,
                      "train.mlp_slices 0, by the budget, with layout.tensor 2");
    options.mesh = NULL;
    options.exact = true;
    hdt_assert_status(hd_trainer_create(&options, &trainer), HD_ERROR_UNSUPPORTED,
                      "train.mlp_slices 0, by the budget, with layout.reduction exact");
    hd_mesh_destroy(mesh);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("slices by budget");
    TCase *tests = tcase_create("slices by budget");
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, as_few_slices_are_chosen_as_fit);
    tcase_add_test(tests, slices_are_taken_before_blocks_are_computed_again);
    tcase_add_test(tests, slices_are_taken_before_blocks_leave_for_the_host);
    tcase_add_loop_test(tests, mlps_are_made_in_as_few_slices_as_fit, 0, 2);
    tcase_add_test(tests, slices_of_mlps_and_blocks_that_are_computed_again_are_weighed);
    tcase_add_test(tests, without_one_that_fits_what_is_short_without_slices_is_said);
    tcase_add_test(tests, a_choice_that_ranks_would_make_differently_is_refused);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
