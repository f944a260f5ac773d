/* ranks: 1 2 4 */
/* The promise: a training that replays graphs is the same bits as one that queues op by op, on every
 * layout, and everything is still waited for. */
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_train.h"

enum { LAYERS = 4, STEPS = 4 };

typedef struct layout {
    const char *family;
    int pipeline, sequence, tensor; /* the rest are data */
    bool late_copies, staged;
    hd_trainer_options options;
} layout;

static const layout layouts[] = {
    {.family = "gpt2", .options = {.shard_state = 1}},
    {.family = "llama", .options = {.shard_state = 3, .dtype = HD_DTYPE_BF16}},
    {.family = "gpt2", .options = {.exact = true, .shard_state = 2, .recompute = true}},
    {.family = "gpt2", .pipeline = 2, .options = {.chunks = 2, .dtype = HD_DTYPE_BF16}},
    {.family = "llama", .sequence = 2, .options = {.shard_state = 1}},
    {.family = "llama", .tensor = 2, .options = {.dtype = HD_DTYPE_BF16}},
    {.family = "llama", .pipeline = 2, .staged = true, .options = {.shard_state = 2}},
    {.family = "gpt2",
     .late_copies = true,
     .options = {.activations = HD_ACTIVATIONS_HOST,
                 .residency = HD_RESIDENCY_HOST,
                 .gradient_residency = HD_RESIDENCY_HOST,
                 .shard_state = 2}},
};

enum { LAYOUTS = sizeof layouts / sizeof *layouts };

static hd_status train(const layout *it, const hd_mesh_options *mesh, bool replays,
                       hdt_trained *out)
{
    return hdt_train(hdt_world,
                     &(hdt_training){.family = it->family,
                                     .layers = LAYERS,
                                     .steps = STEPS,
                                     .mesh = *mesh,
                                     .late_copies = it->late_copies,
                                     .staged = it->staged,
                                     .replays = replays,
                                     .options = it->options},
                     out);
}

START_TEST(a_training_that_replays_has_the_bits_of_one_that_walks)
{
    const layout *it = &layouts[_i];
    const int others = (it->pipeline ? it->pipeline : 1) * (it->sequence ? it->sequence : 1) *
                       (it->tensor ? it->tensor : 1);
    const int ranks = hd_comm_size(hdt_world);
    if (ranks % others) return;
    const hd_mesh_options mesh = {.data = ranks / others,
                                  .pipeline = it->pipeline,
                                  .sequence = it->sequence,
                                  .tensor = it->tensor};
    hdt_trained walked, replayed;
    hdt_assert_ok(train(it, &mesh, false, &walked));
    hdt_assert_ok(train(it, &mesh, true, &replayed));
    ck_assert_uint_eq(replayed.hash, walked.hash);
    ck_assert(replayed.last_loss == walked.last_loss && replayed.last_norm == walked.last_norm &&
              replayed.validation_loss == walked.validation_loss);
    ck_assert_uint_eq(replayed.high_water, walked.high_water);
    ck_assert_uint_le(replayed.allocations, walked.allocations);
    ck_assert_int_gt(replayed.launches, 0);
    if (!hdt_graphs()) ck_assert_int_eq(walked.launches, 0);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("replay");
    tcase_add_loop_test(tests, a_training_that_replays_has_the_bits_of_one_that_walks, 0, LAYOUTS);
    return hdt_main_ranks(argc, argv, "replay", tests);
}
