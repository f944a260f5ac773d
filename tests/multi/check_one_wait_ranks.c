/* ranks: 2 4, at most 4 */
/* Ranks whose inputs and results are staged train to the same bits, and each waits for its device once a
 * step; losses are summed over ranks when the device has passed a mark. */
#include "tests/support/hdt_deferred.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_train.h"

#include <string.h>

enum { STEPS = 3, MORE = 2, LAYERS = 2 };

static const hd_mesh_options layouts[] = {{.data = 2},
                                          {.pipeline = 2},
                                          {.data = 4},
                                          {.data = 2, .pipeline = 2},
                                          {.data = 2, .tensor = 2}};

static int size_of(int ranks)
{
    return ranks ? ranks : 1;
}

static hdt_trained train(const hd_mesh_options *layout, int steps, int shard_state, bool staged)
{
    hdt_trained out;
    hdt_assert_ok(hdt_train(hdt_world,
                            &(hdt_training){.family = "llama",
                                            .layers = LAYERS,
                                            .steps = steps,
                                            .mesh = *layout,
                                            .staged = staged,
                                            .options = {.shard_state = shard_state}},
                            &out));
    return out;
}

/* Where weights pass through slots, programs are still waited for one by one. */
START_TEST(ranks_wait_once_a_step)
{
    const bool on_cpu = strcmp(hdt_device(), "cpu") == 0;
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
        const hd_mesh_options *layout = &layouts[l];
        if (size_of(layout->data) * size_of(layout->pipeline) * size_of(layout->tensor) !=
            hd_comm_size(hdt_world))
            continue;
        for (int level = 0; level < (layout->tensor ? 1 : 4); level++) {
            const hdt_trained now = train(layout, STEPS, level, false);
            const hdt_trained staged = train(layout, STEPS, level, true);
            const int waits = hdt_deferred_waits();
            ck_assert_uint_eq(staged.hash, now.hash);
            ck_assert_double_eq(staged.last_loss, now.last_loss);
            ck_assert_double_eq(staged.last_norm, now.last_norm);
            ck_assert_double_eq(staged.validation_loss, now.validation_loss);
            ck_assert_uint_gt(staged.host_planned, 0);
            ck_assert_uint_eq(staged.allocations, 0);
            if (!on_cpu || level == 3) continue;
            (void)train(layout, STEPS + MORE, level, true);
            ck_assert_int_eq(hdt_deferred_waits() - waits, MORE);
        }
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("one_wait");
    tcase_add_test(tests, ranks_wait_once_a_step);
    return hdt_main_ranks(argc, argv, "one_wait_ranks", tests);
}
