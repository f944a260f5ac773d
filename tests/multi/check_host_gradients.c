/* ranks: 1 2 3 4, at most 4 */
/* Gradients in host memory on layouts of several ranks: the same bits as on the device though every copy
 * is late, for sums over data and sequence ranks, groups, stages and the tensor axis. */
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_train.h"

#include <math.h>
#include <string.h>

enum { LAYERS = 3, STEPS = 3 };

/* Of 4 ranks unless the layout says less; where it does, the first ranks of as many run it. */
typedef struct row {
    const char *what, *family; /* gpt2: one parameter is used by the first stage and the last */
    hd_mesh_options mesh;
    hd_trainer_options options;
    int accumulate;
} row;

#define FP32 .dtype = HD_DTYPE_F32
#define BF16 .dtype = HD_DTYPE_BF16, .ema_decay = 0.9F
#define HALF_GRADIENTS .dtype = HD_DTYPE_BF16, .gradients = HD_DTYPE_BF16

static const row rows[] = {
    {"one rank", "gpt2", {.data = 1}, {BF16}, 2},
    {"one rank, exact", "gpt2", {.data = 1}, {FP32, .exact = true}, 1},
    {"one rank, exact, six", "gpt2", {.data = 1}, {BF16, .exact = true}, 6},
    {"data 2", "gpt2", {.data = 2}, {FP32, .shard_state = 2}, 1},
    {"data 2, two micro-batches", "gpt2", {.data = 2}, {BF16, .shard_state = 2}, 2},
    {"data 2, level 3", "llama", {.data = 2}, {BF16, .shard_state = 3}, 2},
    {"data 2, gradients of BF16", "gpt2", {.data = 2}, {HALF_GRADIENTS, .shard_state = 2}, 2},
    {"data 2, exact", "gpt2", {.data = 2}, {FP32, .shard_state = 2, .exact = true}, 1},
    {"data 2, exact, four", "llama", {.data = 2}, {BF16, .shard_state = 3, .exact = true}, 4},
    {"data 2, exact, five", "gpt2", {.data = 2}, {FP32, .shard_state = 2, .exact = true}, 5},
    {"pipeline 2", "gpt2", {.pipeline = 2}, {BF16, .chunks = 1}, 3},
    {"pipeline 2, exact", "gpt2", {.pipeline = 2}, {FP32, .exact = true}, 4},
    {"sequence 2", "llama", {.sequence = 2}, {BF16, .shard_state = 2}, 2},
    {"tensor 2", "llama", {.tensor = 2}, {FP32}, 1},
    {"tensor 2, two micro-batches", "gpt2", {.tensor = 2}, {BF16}, 2},
    {"tensor 2, gradients of BF16", "llama", {.tensor = 2}, {HALF_GRADIENTS}, 2},
    {"data 3, exact", "gpt2", {.data = 3}, {FP32, .shard_state = 2, .exact = true}, 3},
    {"data 3", "llama", {.data = 3}, {HALF_GRADIENTS, .shard_state = 3}, 2},
    {"data 4", "gpt2", {.data = 4}, {HALF_GRADIENTS, .shard_state = 3}, 1},
    {"data 4, two micro-batches", "llama", {.data = 4}, {BF16, .shard_state = 2}, 2},
    {"data 4, exact", "llama", {.data = 4}, {BF16, .shard_state = 3, .exact = true}, 2},
    {"groups of 2", "gpt2", {.data = 4, .shard_group = 2}, {BF16, .shard_state = 2}, 2},
    {"groups of 2, exact",
     "gpt2",
     {.data = 4, .shard_group = 2},
     {FP32, .shard_state = 3, .exact = true},
     2},
    {"data 2 x pipeline 2",
     "gpt2",
     {.data = 2, .pipeline = 2},
     {BF16, .shard_state = 2, .chunks = 1},
     3},
    {"data 2 x pipeline 2, two chunks, exact",
     "gpt2",
     {.data = 2, .pipeline = 2},
     {FP32, .shard_state = 3, .exact = true, .chunks = 1},
     2},
    {"data 2 x sequence 2", "llama", {.data = 2, .sequence = 2}, {BF16, .shard_state = 3}, 2},
    {"data 2 x tensor 2", "gpt2", {.data = 2, .tensor = 2}, {BF16, .shard_state = 2}, 2},
    {"pipeline 2 x tensor 2", "gpt2", {.pipeline = 2, .tensor = 2}, {FP32}, 2},
};
enum { ROWS = sizeof rows / sizeof rows[0] };

static int at_least_one(int size)
{
    return size > 1 ? size : 1;
}

static hdt_trained train(const row *one, hd_residency gradients)
{
    hdt_trained trained;
    hd_trainer_options options = one->options;
    options.gradient_residency = gradients;
    options.optimizer_residency = gradients;
    options.chunk_elements = 1000;
    hdt_assert_ok(
        hdt_train(hdt_world,
                  &(hdt_training){.family = one->family,
                                  .layers = LAYERS,
                                  .steps = STEPS,
                                  .global_batches = one->accumulate * at_least_one(one->mesh.data),
                                  .mesh = one->mesh,
                                  .late_copies = true,
                                  .options = options},
                  &trained));
    return trained;
}

/* Without reduction exact the attention gradient of a GPU is not the same bits in every run. */
static bool is_same(const row *one, const hdt_trained *host, const hdt_trained *device)
{
    const double tolerance =
        one->options.exact || strcmp(hdt_device(), "cpu") == 0 ? 0 : 0x1p-7 * device->first_loss;
    return (tolerance > 0 || host->hash == device->hash) &&
           fabs(host->last_loss - device->last_loss) <= tolerance &&
           fabs(host->last_norm - device->last_norm) <= tolerance &&
           fabs(host->validation_loss - device->validation_loss) <= tolerance;
}

START_TEST(gradients_on_the_host_are_the_same_bits_on_every_layout)
{
    const row *one = &rows[_i];
    const hd_mesh_options *mesh = &one->mesh;
    if (at_least_one(mesh->data) * at_least_one(mesh->pipeline) * at_least_one(mesh->sequence) *
            at_least_one(mesh->tensor) !=
        hd_comm_size(hdt_world))
        return;
    const hdt_trained device = train(one, HD_RESIDENCY_RESIDENT);
    const hdt_trained host = train(one, HD_RESIDENCY_HOST);
    ck_assert_msg(is_same(one, &host, &device),
                  "%s: loss %.17g norm %.17g, on the device %.17g, %.17g", one->what,
                  host.last_loss, host.last_norm, device.last_loss, device.last_norm);
    ck_assert_msg(host.gradients == 0 && host.high_water == host.planned && host.allocations == 0,
                  "%s: %zu bytes of gradients stay, %zu of %zu planned bytes are touched",
                  one->what, host.gradients, host.high_water, host.planned);
    ck_assert_uint_gt(device.gradients, 0);
    ck_assert_uint_ge(host.host_planned, device.optimizer);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("host_gradients");
    tcase_add_loop_test(tests, gradients_on_the_host_are_the_same_bits_on_every_layout, 0, ROWS);
    return hdt_main_ranks(argc, argv, "jobs", tests);
}
