/* ranks: 2 3 4 6 8 */
/* The promise: gradients and weights that are sharded are the same bits as whole ones, however
 * micro-batches are dealt, and take a share of the memory. */
#include "tests/support/hdt_train.h"

enum { STEPS = 2, LAYERS = 4, MOST = 6 }; /* more ranks are for groups of 4 alone */

static hd_status train_on(hd_comm *comm, int batches, const hd_mesh_options *mesh,
                          const hd_trainer_options *options, hdt_trained *out)
{
    return hdt_train(comm,
                     &(hdt_training){.family = "gpt2",
                                     .layers = LAYERS,
                                     .steps = STEPS,
                                     .global_batches = batches,
                                     .mesh = *mesh,
                                     .options = *options},
                     out);
}

/* On rank 0 alone, whole; the others get zeros. Collective. */
static hdt_trained reference(int batches, hd_trainer_options options)
{
    hd_comm *self = NULL;
    hdt_trained trained = {0};
    hd_status status = HD_OK;
    options.shard_state = 0;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    if (hd_comm_rank(hdt_world) == 0)
        status = train_on(self, batches, &(hd_mesh_options){0}, &options, &trained);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    return trained;
}

static void compare(int pipeline, int accumulate, int group, const hd_trainer_options *options)
{
    const int data = hd_comm_size(hdt_world) / pipeline;
    const hdt_trained one = reference(data * accumulate, *options);
    hdt_trained got;
    hdt_assert_ok(
        train_on(hdt_world, data * accumulate,
                 &(hd_mesh_options){.data = data, .pipeline = pipeline, .shard_group = group},
                 options, &got));
    if (hd_comm_rank(hdt_world) > 0) return;
    ck_assert_msg(
        got.hash == one.hash && got.last_loss == one.last_loss && got.last_norm == one.last_norm &&
            got.validation_loss == one.validation_loss,
        "shard_state %d, data %d x pipeline %d, accumulate %d, groups of %d: loss %.17g norm %.17g "
        "validation %.17g, one rank has %.17g, %.17g, %.17g",
        options->shard_state, data, pipeline, accumulate, group, got.last_loss, got.last_norm,
        got.validation_loss, one.last_loss, one.last_norm, one.validation_loss);
    ck_assert_uint_eq(got.high_water, got.planned);
    ck_assert_uint_eq(got.allocations, 0);
}

START_TEST(bits_are_those_of_one_rank_whatever_is_accumulated)
{
    if (hd_comm_size(hdt_world) > MOST) return;
    for (int accumulate = 1; accumulate <= 4; accumulate += accumulate)
        compare(1, accumulate, 0, &(hd_trainer_options){.exact = true, .shard_state = _i});
}
END_TEST

START_TEST(bits_are_those_of_one_rank_in_a_pipeline)
{
    if (hd_comm_size(hdt_world) > MOST) return;
    if (hd_comm_size(hdt_world) % 2) return;
    for (int accumulate = 2; accumulate <= 3; accumulate++)
        compare(2, accumulate, 0,
                &(hd_trainer_options){
                    .exact = true, .shard_state = _i, .chunks = accumulate == 2 ? 2 : 1});
}
END_TEST

START_TEST(bits_are_those_of_one_rank_with_16_bits_and_recompute)
{
    if (hd_comm_size(hdt_world) > MOST) return;
    compare(1, 2, 0,
            &(hd_trainer_options){.exact = true,
                                  .shard_state = _i,
                                  .recompute = true,
                                  .dtype = HD_DTYPE_BF16,
                                  .ema_decay = 0.9F});
}
END_TEST

START_TEST(bits_are_those_of_one_rank_with_the_optimizer_on_the_host)
{
    if (hd_comm_size(hdt_world) > MOST) return;
    compare(1, 2, 0,
            &(hd_trainer_options){.exact = true,
                                  .shard_state = _i,
                                  .optimizer_residency = HD_RESIDENCY_HOST,
                                  .dtype = HD_DTYPE_BF16,
                                  .ema_decay = 0.9F});
}
END_TEST

START_TEST(groups_that_cannot_be_are_refused)
{
    const int ranks = hd_comm_size(hdt_world);
    hdt_trained got;
    if (ranks != 4 && ranks != 6) return;
    const hd_mesh_options pairs = {.data = ranks, .shard_group = 2};
    hdt_assert_status(
        train_on(hdt_world, ranks, &pairs, &(hd_trainer_options){.shard_state = 1}, &got),
        HD_ERROR_UNSUPPORTED, "want layout.shard_state 2 or 3");
    hdt_assert_status(train_on(hdt_world, 3 * ranks, &pairs,
                               &(hd_trainer_options){.exact = true, .shard_state = 2}, &got),
                      HD_ERROR_UNSUPPORTED, "6 micro-batches for each shard group");
}
END_TEST

/* Of 2 with 4, 6 or 8 ranks, of 4 with 8; in a pipeline of 2 the data axis is half of that. */
START_TEST(bits_are_those_of_one_rank_in_shard_groups)
{
    const int ranks = hd_comm_size(hdt_world);
    for (int pipeline = 1; pipeline <= 2; pipeline++)
        for (int group = 2; 2 * group * pipeline <= ranks; group *= 2)
            if (ranks % (group * pipeline) == 0)
                compare(pipeline, 2, group,
                        &(hd_trainer_options){.exact = true,
                                              .shard_state = _i,
                                              .dtype = HD_DTYPE_BF16,
                                              .ema_decay = 0.9F});
}
END_TEST

START_TEST(fast_mode_agrees_within_rounding)
{
    if (hd_comm_size(hdt_world) > MOST) return;
    const int ranks = hd_comm_size(hdt_world);
    const hdt_trained one = reference(2 * ranks, (hd_trainer_options){0});
    hdt_trained got;
    hdt_assert_ok(train_on(hdt_world, 2 * ranks, &(hd_mesh_options){.data = ranks},
                           &(hd_trainer_options){.shard_state = _i}, &got));
    if (hd_comm_rank(hdt_world) > 0) return;
    ck_assert_double_eq_tol(got.first_loss, one.first_loss, 1e-12);
    /* One update of 3e-3 lies between: what rounding makes of a gradient changes it by a few 2^-24. */
    ck_assert_double_eq_tol(got.last_loss, one.last_loss, 1e-4 * one.last_loss);
    ck_assert_double_eq_tol(got.last_norm, one.last_norm, 1e-3 * one.last_norm);
    ck_assert_uint_eq(got.high_water, got.planned);
}
END_TEST

/* Shards differ by some blocks of 4096 elements, one at most at either end of each bucket. */
START_TEST(memory_of_what_is_sharded_is_a_share)
{
    if (hd_comm_size(hdt_world) > MOST) return;
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options whole = {.data = ranks};
    hdt_trained one, got;
    hdt_assert_ok(train_on(hdt_world, ranks, &whole, &(hd_trainer_options){0}, &one));
    hdt_assert_ok(
        train_on(hdt_world, ranks, &whole, &(hd_trainer_options){.shard_state = _i}, &got));
    const size_t buckets = one.gradients / sizeof(float) / 20000 + 1;
    const size_t slack = 2 * 4096 * sizeof(float) * buckets;
    ck_assert_uint_le(got.optimizer, one.optimizer / (size_t)ranks + 2 * slack);
    ck_assert_uint_le(got.gradients, one.gradients / (size_t)ranks + slack);
    ck_assert_uint_lt(got.gradients, one.gradients);
    /* Embeddings and the last norm stay whole; a layer has 12 hidden^2 + 13 hidden elements. */
    const size_t layers = LAYERS * (12 * 48 * 48 + 13 * 48) * sizeof(float);
    if (_i < 3) ck_assert_uint_eq(got.weights, one.weights);
    if (_i == 3)
        ck_assert_uint_le(got.weights, one.weights - layers + layers / (size_t)ranks + slack);
}
END_TEST

int main(int argc, char **argv)
{
    enum { FIRST = 2, END = 4 };
    TCase *tests = tcase_create("sharding");
    tcase_add_loop_test(tests, bits_are_those_of_one_rank_whatever_is_accumulated, FIRST, END);
    tcase_add_loop_test(tests, bits_are_those_of_one_rank_in_a_pipeline, FIRST, END);
    tcase_add_loop_test(tests, bits_are_those_of_one_rank_with_16_bits_and_recompute, FIRST, END);
    tcase_add_loop_test(tests, bits_are_those_of_one_rank_with_the_optimizer_on_the_host, FIRST,
                        END);
    tcase_add_loop_test(tests, bits_are_those_of_one_rank_in_shard_groups, FIRST, END);
    tcase_add_test(tests, groups_that_cannot_be_are_refused);
    tcase_add_loop_test(tests, fast_mode_agrees_within_rounding, FIRST, END);
    tcase_add_loop_test(tests, memory_of_what_is_sharded_is_a_share, FIRST, END);
    return hdt_main_ranks(argc, argv, "sharding", tests);
}
