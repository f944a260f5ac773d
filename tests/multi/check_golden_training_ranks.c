/* ranks: 2 4, at most 4 */
/* The reference's ten steps on several ranks: data, pipeline, both, and sharded state. */
#include "tests/support/hdt_golden.h"

#include <stdio.h>

static const char *const families[] = {"gpt2", "llama"};

static const hdt_golden_layout layouts[] = {
    {.mesh = {.data = 2, .pipeline = 1}},
    {.mesh = {.data = 2, .pipeline = 1}, .shard_state = true},
    {.mesh = {.data = 1, .pipeline = 2}},
    {.mesh = {.data = 1, .pipeline = 2}, .accumulate = 2, .exact = true},
    {.mesh = {.data = 2, .pipeline = 2}},
    {.mesh = {.data = 2, .pipeline = 2}, .shard_state = true, .recompute = true, .exact = true},
};

START_TEST(ten_steps_have_the_losses_and_norms_of_the_reference)
{
    for (size_t l = 0; l < sizeof layouts / sizeof layouts[0]; l++) {
        const hdt_golden_layout *layout = &layouts[l];
        if (layout->mesh.data * layout->mesh.pipeline != hd_comm_size(hdt_world)) continue;
        char what[128];
        snprintf(what, sizeof what, "%s, data %d x pipeline %d, accumulate %d, shard_state %d",
                 families[_i], layout->mesh.data, layout->mesh.pipeline, layout->accumulate,
                 layout->shard_state);
        hdt_golden_run run;
        hdt_assert_ok(hdt_golden_train(hdt_world, families[_i], layout, &run));
        hdt_golden_compare(&run, what);
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("golden_training");
    tcase_add_loop_test(tests, ten_steps_have_the_losses_and_norms_of_the_reference, 0, 2);
    return hdt_main_ranks(argc, argv, "golden_training_ranks", tests);
}
