/* ranks: 1 2 4 */
/* Training with gradients of BF16 on any layout: it follows fp32's, in fewer planned bytes, and a run
 * that was stopped goes on with the same bits, or nearly so on another layout. */
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_job.h"
#include "tests/support/hdt_train.h"

#include <math.h>

typedef struct layout {
    const char *family; /* gpt2: one parameter is used by the first stage and the last */
    int data, pipeline, chunks;
    int shard_state;
} layout;

static const layout layouts[] = {
    {"gpt2", 1, 1, 1, 0},  {"llama", 2, 1, 1, 0}, {"gpt2", 2, 1, 1, 1}, {"gpt2", 2, 1, 1, 2},
    {"llama", 2, 1, 1, 3}, {"gpt2", 1, 2, 1, 0},  {"gpt2", 4, 1, 1, 1}, {"llama", 4, 1, 1, 2},
    {"gpt2", 4, 1, 1, 3},  {"llama", 2, 2, 1, 0}, {"gpt2", 2, 2, 2, 1}, {"gpt2", 2, 2, 1, 2},
    {"llama", 2, 2, 2, 3},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0], STEPS = 10, LAYERS = 4 };
/* Between two runs that should not differ. Without reduction exact the attention gradient of a GPU
 * is not the same bits in every run. */
static double tolerance(void)
{
    return strcmp(hdt_device(), "cpu") == 0 ? 0 : 0x1p-7;
}

static hd_status train(const layout *split, hd_dtype gradients, int steps, hdt_trained *out)
{
    return hdt_train(hdt_world,
                     &(hdt_training){.family = split->family,
                                     .layers = LAYERS,
                                     .steps = steps,
                                     .mesh = {.data = split->data, .pipeline = split->pipeline},
                                     .options = {.dtype = HD_DTYPE_BF16,
                                                 .gradients = gradients,
                                                 .chunks = split->chunks,
                                                 .shard_state = split->shard_state}},
                     out);
}

/* A gradient is a sum of 8 micro-batches, and of data ranks, and of two uses of a tied parameter:
 * each of at most 8 + 1 + 2 roundings is off by 2^-8 of a sum that is no larger than the sum of the
 * terms' sizes. Norms of sums of micro-batches grow no faster than that of the last. The loss feels
 * gradients through a step of AdamW, which has no size of theirs: it moves by less than its own two
 * roundings of weights. */
START_TEST(training_follows_that_with_fp32_gradients)
{
    for (int l = 0; l < LAYOUTS; l++) {
        if (layouts[l].data * layouts[l].pipeline != hd_comm_size(hdt_world)) continue;
        hdt_trained first[2], wide, half;
        for (int side = 0; side < 2; side++)
            hdt_assert_ok(train(&layouts[l], side ? HD_DTYPE_BF16 : HD_DTYPE_F32, 1, &first[side]));
        hdt_assert_ok(train(&layouts[l], HD_DTYPE_F32, STEPS, &wide));
        hdt_assert_ok(train(&layouts[l], HD_DTYPE_BF16, STEPS, &half));
        ck_assert(first[1].first_loss == first[0].first_loss);
        ck_assert_double_eq_tol(first[1].last_norm, first[0].last_norm,
                                11 * 0x1p-8 * first[0].last_norm);
        ck_assert(first[1].last_norm != first[0].last_norm);
        ck_assert_double_lt(half.last_loss, 0.9 * half.first_loss);
        ck_assert_double_eq_tol(half.last_loss, wide.last_loss, 0x1p-7 * wide.first_loss);
        ck_assert_double_eq_tol(half.validation_loss, wide.validation_loss,
                                0x1p-7 * wide.first_loss);
        ck_assert_uint_ne(half.hash, wide.hash);
        ck_assert_uint_lt(half.planned, wide.planned);
        ck_assert_uint_eq(half.high_water, half.planned);
        if (strcmp(hdt_device(), "cpu") == 0) ck_assert_uint_eq(half.allocations, wide.allocations);
    }
}
END_TEST

/* Which rank holds a gradient's shard does not change how it is rounded. */
START_TEST(sharding_the_state_changes_no_bits)
{
    const int ranks = hd_comm_size(hdt_world);
    hdt_trained sharded, whole;
    hdt_assert_ok(train(&(layout){"gpt2", ranks, 1, 1, 1}, HD_DTYPE_BF16, STEPS, &sharded));
    hdt_assert_ok(train(&(layout){"gpt2", ranks, 1, 1, 0}, HD_DTYPE_BF16, STEPS, &whole));
    ck_assert_double_le(fabs(sharded.last_loss - whole.last_loss), tolerance() * whole.last_loss);
    if (tolerance() > 0) return;
    ck_assert_uint_eq(sharded.hash, whole.hash);
    ck_assert(sharded.last_norm == whole.last_norm);
}
END_TEST

/* A run of all ranks; `stop` 0: to the end. Collective. */
static hd_status run(const char *directory, const char *master, int pipeline, bool shard_state,
                     int stop, hd_train_result *result)
{
    const char *const settings[][2] = {
        {"model.layers", "4"},
        {"model.hidden", "48"},
        {"model.heads", "2"},
        {"train.tokens", "32"},
        {"train.micro_batch", "1"},
        {"train.batch", "8"},
        {"train.steps", "8"},
        {"train.ema", "0.5"},
        {"train.validate_batches", "1"},
        {"train.dtype", "bf16"},
        {"train.gradients", "bf16"},
        {"optimizer.learning_rate", "3e-3"},
        {"optimizer.master", master},
    };
    hd_config *config = hdt_job_config(hdt_job_text(), directory, false);
    hdt_set_all(config, settings);
    hdt_set_layout(config, &(hdt_job_layout){.pipeline = pipeline, .shard_state = shard_state});
    hdt_set_number(config, "train.stop_after", stop);
    return hdt_job_train(config, result);
}

static const char *const masters[] = {"remainder", "fp32"};

/* The second run that was stopped goes on as a pipeline: sums of gradients are then made of other
 * parts, as above. */
START_TEST(a_run_that_was_stopped_goes_on)
{
    const bool moves = hd_comm_size(hdt_world) > 1 && _i == 0;
    const char *whole = hdt_job_directory(), *stopped = hdt_job_directory();
    const char *moved = hdt_job_directory();
    hd_train_result wanted, first, second, third, fourth = {0};
    hd_status one = run(whole, masters[_i], 1, true, 0, &wanted);
    hd_status two = run(stopped, masters[_i], 1, true, 5, &first);
    hd_status three = run(stopped, masters[1 - _i], 1, false, 0, &second);
    hd_status four = moves ? run(moved, masters[_i], 1, true, 5, &third) : HD_OK;
    hd_status five = moves ? run(moved, masters[_i], 2, true, 0, &fourth) : HD_OK;
    hdt_assert_ok(one);
    ck_assert_int_eq(two, HD_ERROR_INTERRUPTED);
    hdt_assert_ok(three);
    hdt_assert_ok(five);
    ck_assert_uint_ne(first.weights_hash, wanted.weights_hash);
    if (tolerance() == 0) ck_assert_uint_eq(second.weights_hash, wanted.weights_hash);
    ck_assert_double_le(fabs(second.loss - wanted.loss), tolerance() * wanted.loss);
    ck_assert_double_le(fabs(second.validation_loss - wanted.validation_loss),
                        tolerance() * wanted.loss);
    if (!moves) return;
    ck_assert_int_eq(four, HD_ERROR_INTERRUPTED);
    ck_assert_double_eq_tol(fourth.loss, wanted.loss, 0x1p-7 * wanted.loss);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("gradient_dtype");
    tcase_add_test(tests, training_follows_that_with_fp32_gradients);
    tcase_add_test(tests, sharding_the_state_changes_no_bits);
    tcase_add_loop_test(tests, a_run_that_was_stopped_goes_on, 0, 2);
    return hdt_main_ranks(argc, argv, "gradient_dtype", tests);
}
