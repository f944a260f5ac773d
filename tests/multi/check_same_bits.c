/* ranks: 1 2 4 8 */
/* The promise: the same bits on every layout in exact mode, what was planned is what is used, and
 * nothing is allocated after the first step. */
#include "tests/support/hdt_train.h"

typedef struct layout {
    const char *schedule;
    int data, pipeline, chunks;
} layout;

/* Those whose product is the number of ranks are run. */
static const layout layouts[] = {
    {NULL, 1, 1, 1},   {"gpipe", 1, 1, 1},       {"interleaved", 1, 1, 2}, {NULL, 2, 1, 1},
    {"1f1b", 1, 2, 1}, {"gpipe", 1, 2, 1},       {"interleaved", 1, 2, 2}, {NULL, 4, 1, 1},
    {"1f1b", 1, 4, 1}, {"1f1b", 2, 2, 1},        {"interleaved", 2, 2, 2}, {NULL, 8, 1, 1},
    {"1f1b", 2, 4, 1}, {"interleaved", 4, 2, 2},
};

enum { STEPS = 5, LAYERS = 4, LEVELS = 4 };
static const char *const families[] = {"gpt2", "llama"};

static hdt_trained reference_of(const char *family, int steps, hd_trainer_options options)
{
    hd_comm *self = NULL;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    hdt_trained trained;
    options.exact = true;
    hd_status status = hdt_train(
        self,
        &(hdt_training){.family = family, .layers = LAYERS, .steps = steps, .options = options},
        &trained);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    return trained;
}

static hdt_trained reference(const char *family)
{
    return reference_of(family, STEPS, (hd_trainer_options){0});
}

START_TEST(weights_are_equal_bit_for_bit_on_every_layout)
{
    const char *family = families[_i];
    hdt_trained one = reference(family);
    ck_assert_double_lt(one.last_loss, 0.95 * one.first_loss);
    for (size_t l = 0; l < sizeof layouts / sizeof layouts[0]; l++) {
        const layout *tried = &layouts[l];
        if (tried->data * tried->pipeline != hd_comm_size(hdt_world)) continue;
        for (int level = 0; level < LEVELS; level++) {
            hdt_trained got;
            hd_status status = hdt_train(
                hdt_world,
                &(hdt_training){.family = family,
                                .layers = LAYERS,
                                .steps = STEPS,
                                .mesh = {.data = tried->data, .pipeline = tried->pipeline},
                                .options = {.exact = true,
                                            .schedule = tried->schedule,
                                            .chunks = tried->chunks,
                                            .shard_state = level,
                                            .recompute = level > 1}},
                &got);
            hdt_assert_ok(status);
            ck_assert_msg(
                got.hash == one.hash && got.last_loss == one.last_loss &&
                    got.last_norm == one.last_norm && got.validation_loss == one.validation_loss,
                "%s, data %d x pipeline %d x chunks %d %s, shard_state %d, recompute %d: "
                "loss %.17g norm %.17g validation %.17g, one rank has %.17g, %.17g, %.17g",
                family, tried->data, tried->pipeline, tried->chunks,
                tried->schedule ? tried->schedule : "auto", level, level > 1, got.last_loss,
                got.last_norm, got.validation_loss, one.last_loss, one.last_norm,
                one.validation_loss);
            ck_assert_uint_eq(got.high_water, got.planned);
            ck_assert_uint_eq(got.allocations, 0);
        }
    }
}
END_TEST

/* F16 starts so high that some steps are skipped. */
static const hd_trainer_options mixed[] = {
    {.dtype = HD_DTYPE_BF16},
    {.dtype = HD_DTYPE_BF16, .shard_state = 1, .recompute = true},
    {.dtype = HD_DTYPE_BF16, .master = HD_MASTER_REMAINDER},
    {.dtype = HD_DTYPE_BF16, .master = HD_MASTER_REMAINDER, .shard_state = 3},
    {.dtype = HD_DTYPE_F16, .shard_state = 3, .loss_scale = 0x1p18F, .loss_scale_steps = 3},
};

START_TEST(weights_of_16_bits_are_equal_bit_for_bit_on_every_layout)
{
    enum { MORE = 8 };
    const char *family = families[_i % 2];
    hdt_trained one = reference_of(family, MORE, mixed[_i]);
    for (size_t l = 0; l < sizeof layouts / sizeof layouts[0]; l++) {
        const layout *tried = &layouts[l];
        if (tried->data * tried->pipeline != hd_comm_size(hdt_world)) continue;
        hdt_trained got;
        hdt_training training = {.family = family,
                                 .layers = LAYERS,
                                 .steps = MORE,
                                 .mesh = {.data = tried->data, .pipeline = tried->pipeline},
                                 .options = mixed[_i]};
        training.options.exact = true;
        training.options.schedule = tried->schedule;
        training.options.chunks = tried->chunks;
        hdt_assert_ok(hdt_train(hdt_world, &training, &got));
        ck_assert_msg(
            got.hash == one.hash && got.last_loss == one.last_loss &&
                got.last_norm == one.last_norm && got.validation_loss == one.validation_loss,
            "%s, variant %d, data %d x pipeline %d x chunks %d: loss %.17g norm %.17g validation "
            "%.17g, one rank has %.17g, %.17g, %.17g",
            family, _i, tried->data, tried->pipeline, tried->chunks, got.last_loss, got.last_norm,
            got.validation_loss, one.last_loss, one.last_norm, one.validation_loss);
        ck_assert_uint_eq(got.high_water, got.planned);
        ck_assert_uint_eq(got.allocations, 0);
    }
}
END_TEST

START_TEST(fast_mode_agrees_within_rounding)
{
    hdt_trained one = reference("gpt2");
    for (size_t l = 0; l < sizeof layouts / sizeof layouts[0]; l++) {
        const layout *tried = &layouts[l];
        if (tried->data * tried->pipeline != hd_comm_size(hdt_world)) continue;
        hdt_trained got;
        hd_status status = hdt_train(
            hdt_world,
            &(hdt_training){.family = "gpt2",
                            .layers = LAYERS,
                            .steps = 3,
                            .mesh = {.data = tried->data, .pipeline = tried->pipeline},
                            .options = {.schedule = tried->schedule, .chunks = tried->chunks}},
            &got);
        hdt_assert_ok(status);
        /* The first loss is before any update: only the order of 384 tokens' sum could differ. */
        ck_assert_double_eq_tol(got.first_loss, one.first_loss, 1e-12);
        ck_assert_uint_eq(got.high_water, got.planned);
        ck_assert_uint_eq(got.allocations, 0);
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("same_bits");
    tcase_add_loop_test(tests, weights_are_equal_bit_for_bit_on_every_layout, 0, 2);
    tcase_add_loop_test(tests, weights_of_16_bits_are_equal_bit_for_bit_on_every_layout, 0,
                        sizeof mixed / sizeof mixed[0]);
    tcase_add_test(tests, fast_mode_agrees_within_rounding);
    return hdt_main_ranks(argc, argv, "same_bits", tests);
}
