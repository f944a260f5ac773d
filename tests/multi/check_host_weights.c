/* ranks: 1 2 4 */
/* Training with the weights of blocks in host memory: the same bits as on the device, on every layout. */
#include "tests/support/hdt.h"
#include "tests/support/hdt_train.h"

enum { LAYERS = 4, STEPS = 3 };

typedef struct layout {
    int data, pipeline, chunks, shard_state;
    bool exact;
} layout;

static const layout layouts[] = {
    {1, 1, 1, 0, false}, {1, 1, 1, 0, true},  {1, 2, 1, 0, false}, {1, 2, 2, 0, true},
    {2, 1, 1, 0, true},  {2, 1, 1, 1, false}, {2, 1, 1, 2, true},  {1, 4, 1, 0, false},
    {2, 2, 1, 1, true},  {2, 2, 2, 0, false}, {4, 1, 1, 2, false},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

static const hd_trainer_options kinds[] = {
    {.dtype = HD_DTYPE_F32, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_BF16, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_BF16, .master = HD_MASTER_F32},
    {.dtype = HD_DTYPE_F16, .loss_scale = 1024},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static hdt_trained train(const layout *split, hd_trainer_options options)
{
    hdt_trained trained;
    options.chunks = split->chunks;
    options.shard_state = split->shard_state;
    options.exact = split->exact;
    options.chunk_elements = 1000;
    hdt_assert_ok(
        hdt_train(hdt_world,
                  &(hdt_training){.family = split->data == 1 ? "gpt2" : "llama",
                                  .layers = LAYERS,
                                  .steps = STEPS,
                                  .mesh = {.data = split->data, .pipeline = split->pipeline},
                                  .options = options},
                  &trained));
    return trained;
}

static void assert_same(const layout *split, const char *what, const hdt_trained *got,
                        const hdt_trained *wanted)
{
    ck_assert_msg(got->hash == wanted->hash && got->last_loss == wanted->last_loss &&
                      got->last_norm == wanted->last_norm &&
                      got->validation_loss == wanted->validation_loss,
                  "%s, data %d x pipeline %d x %d, shard_state %d: loss %.17g norm %.17g, on the "
                  "device %.17g, %.17g",
                  what, split->data, split->pipeline, split->chunks, split->shard_state,
                  got->last_loss, got->last_norm, wanted->last_loss, wanted->last_norm);
    ck_assert_uint_eq(got->high_water, got->planned);
    ck_assert_uint_eq(got->allocations, 0);
    ck_assert_uint_lt(got->weights, wanted->weights);
}

START_TEST(weights_on_the_host_train_the_same_bits_on_every_layout)
{
    hd_trainer_options options = kinds[_i];
    for (int l = 0; l < LAYOUTS; l++) {
        const layout *split = &layouts[l];
        if (split->data * split->pipeline != hd_comm_size(hdt_world)) continue;
        options.residency = HD_RESIDENCY_RESIDENT;
        const hdt_trained device = train(split, options);
        options.residency = HD_RESIDENCY_HOST;
        const hdt_trained host = train(split, options);
        assert_same(split, "all blocks", &host, &device);
        ck_assert_uint_gt(host.host_planned, 0);
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("host_weights");
    tcase_add_loop_test(tests, weights_on_the_host_train_the_same_bits_on_every_layout, 0, KINDS);
    return hdt_main_ranks(argc, argv, "jobs", tests);
}
