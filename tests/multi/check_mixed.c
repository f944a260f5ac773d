/* ranks: 1 2 4, at most 4 */
/* 16-bit training: it follows fp32, both kinds of master are one, F16 finds its loss scale, and a run
 * that was stopped goes on with the same bits. */
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_job.h"
#include "tests/support/hdt_train.h"

#include <math.h>

enum { STEPS = 30, LAYERS = 2 };

static const hd_trainer_options defaults;

static hdt_trained train(hd_dtype dtype, hd_master master, hd_trainer_options options)
{
    options.dtype = dtype;
    options.master = master;
    options.exact = true;
    hdt_trained trained;
    hdt_assert_ok(hdt_train(hdt_world,
                            &(hdt_training){.family = "llama",
                                            .layers = LAYERS,
                                            .steps = STEPS,
                                            .mesh = {.data = hd_comm_size(hdt_world)},
                                            .options = options},
                            &trained));
    return trained;
}

/* BF16 rounds each weight and activation by at most 2^-9, F16 by 2^-12: the loss moves by less than
 * four such roundings, of the loss itself. */
START_TEST(sixteen_bits_follow_the_fp32_loss)
{
    const hdt_trained full = train(HD_DTYPE_F32, HD_MASTER_F32, defaults);
    const hdt_trained bf16 = train(HD_DTYPE_BF16, HD_MASTER_F32, defaults);
    const hdt_trained f16 = train(HD_DTYPE_F16, HD_MASTER_F32, defaults);
    ck_assert_double_lt(full.last_loss, 0.8 * full.first_loss);
    ck_assert_double_eq_tol(bf16.first_loss, full.first_loss, 0x1p-7 * full.first_loss);
    ck_assert_double_eq_tol(bf16.last_loss, full.last_loss, 0x1p-7 * full.first_loss);
    ck_assert_double_eq_tol(bf16.validation_loss, full.validation_loss, 0x1p-7 * full.first_loss);
    ck_assert_double_eq_tol(f16.first_loss, full.first_loss, 0x1p-10 * full.first_loss);
    ck_assert_double_ne(bf16.last_loss, full.last_loss);
}
END_TEST

/* The scale doubles every third step, from 1: whatever is not divided out would show in moments that
 * are averaged over steps. */
START_TEST(a_loss_scale_that_grows_leaves_no_trace)
{
    const hdt_trained full = train(HD_DTYPE_F32, HD_MASTER_F32, defaults);
    const hdt_trained f16 = train(HD_DTYPE_F16, HD_MASTER_F32,
                                  (hd_trainer_options){.loss_scale = 1, .loss_scale_steps = 3});
    ck_assert_double_eq_tol(f16.last_loss, full.last_loss, 0x1p-7 * full.first_loss);
    ck_assert_double_eq_tol(f16.last_norm, full.last_norm, 0x1p-4 * full.last_norm);
}
END_TEST

START_TEST(remainders_are_a_master_of_half_the_size)
{
    const hdt_trained master = train(HD_DTYPE_BF16, HD_MASTER_F32, defaults);
    const hdt_trained remainder = train(HD_DTYPE_BF16, HD_MASTER_REMAINDER, defaults);
    ck_assert_uint_eq(master.hash, remainder.hash);
    ck_assert(master.last_loss == remainder.last_loss && master.last_norm == remainder.last_norm);
    ck_assert_uint_lt(remainder.planned, master.planned);
    ck_assert_uint_eq(remainder.high_water, remainder.planned);
    const hdt_trained automatic = train(HD_DTYPE_BF16, HD_MASTER_AUTO, defaults);
    ck_assert_uint_eq(automatic.hash, remainder.hash);
    ck_assert_uint_eq(automatic.planned, remainder.planned);
}
END_TEST

/* A trainer of its own, step by step. */
typedef struct session {
    hd_model *model;
    hd_mesh *mesh;
    hd_context *context;
    hd_trainer *trainer;
} session;

static hd_status open_session(hd_trainer_options options, session *out)
{
    *out = (session){.model = hdt_tiny_model("gpt2", LAYERS)};
    const int ranks = hd_comm_size(hdt_world);
    hd_status status = hd_mesh_create(hdt_world, &(hd_mesh_options){.data = ranks}, &out->mesh);
    if (status == HD_OK) status = hdt_open_context(hdt_world, out->mesh, &out->context);
    options.backend = out->context ? hd_context_backend(out->context) : NULL;
    options.build = hd_model_build;
    options.user = out->model;
    options.layers = LAYERS;
    options.mesh = out->mesh;
    options.sequences = HDT_SEQUENCES;
    options.tokens = HDT_TOKENS;
    options.accumulate = HDT_GLOBAL_BATCHES / ranks;
    if (status == HD_OK) status = hd_trainer_create(&options, &out->trainer);
    if (status == HD_OK) status = hd_trainer_start(out->trainer, out->context, 42);
    return status;
}

static void close_session(session *s)
{
    hd_trainer_destroy(s->trainer);
    hdt_close_place(s->mesh, s->context);
    hd_model_destroy(s->model);
}

/* The first scale makes gradients of 2^29 and more, far above what F16 holds. */
START_TEST(f16_skips_steps_that_overflow_until_the_scale_fits)
{
    enum { GROWS_AFTER = 5 };
    session s;
    hd_step_result results[STEPS];
    uint64_t first_hash = 0, hash = 0;
    hd_status status = open_session((hd_trainer_options){.dtype = HD_DTYPE_F16,
                                                         .shard_state = true,
                                                         .loss_scale = 0x1p30F,
                                                         .loss_scale_steps = GROWS_AFTER},
                                    &s);
    if (status == HD_OK) status = hd_trainer_weights_hash(s.trainer, &first_hash);
    for (int64_t step = 0; step < STEPS && status == HD_OK; step++) {
        status = hd_trainer_step(s.trainer, 3e-3, hdt_feed, &step, &results[step]);
        if (status == HD_OK && step == 4) status = hd_trainer_weights_hash(s.trainer, &hash);
    }
    close_session(&s);
    hdt_assert_ok(status);
    int skipped = 0, grown = 0, clean = 0;
    ck_assert(results[0].loss_scale == 0x1p30);
    for (int i = 0; i + 1 < STEPS; i++) {
        clean = results[i].skipped ? 0 : clean + 1;
        const bool grows = clean == GROWS_AFTER;
        if (grows) clean = 0;
        const double factor = results[i].skipped ? 0.5 : grows ? 2 : 1;
        ck_assert_msg(results[i + 1].loss_scale == results[i].loss_scale * factor,
                      "step %d: scale %g, then %g, skipped %d", i, results[i].loss_scale,
                      results[i + 1].loss_scale, results[i].skipped);
        ck_assert(isfinite(results[i].loss) &&
                  isfinite(results[i].grad_norm) != results[i].skipped);
        skipped += results[i].skipped;
        grown += grows;
    }
    ck_assert_int_ge(skipped, 30 - 16);
    ck_assert_int_ge(grown, 1);
    ck_assert_uint_eq(hash, first_hash); /* after five skipped steps */
    ck_assert_double_lt(results[STEPS - 1].loss, results[0].loss);
}
END_TEST

START_TEST(what_cannot_be_is_refused)
{
    session s;
    hd_status status = open_session(
        (hd_trainer_options){.dtype = HD_DTYPE_F16, .master = HD_MASTER_REMAINDER}, &s);
    close_session(&s);
    hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "want weights of BF16, seen F16");
    status = open_session((hd_trainer_options){.dtype = HD_DTYPE_I32}, &s);
    close_session(&s);
    hdt_assert_status(status, HD_ERROR_ARGUMENT, "dtype is I32");
}
END_TEST

/* A run of all ranks as data ranks; collective. `stop` 0: to the end. */
static hd_status run(const char *directory, const char *dtype, const char *master, bool shard_state,
                     int stop, hd_train_result *result)
{
    const char *const settings[][2] = {
        {"model.layers", "2"},
        {"model.hidden", "48"},
        {"model.heads", "2"},
        {"train.tokens", "32"},
        {"train.micro_batch", "1"},
        {"train.batch", "4"},
        {"train.steps", "8"},
        {"optimizer.learning_rate", "3e-3"},
        {"layout.reduction", "exact"},
        {"train.validate_every", "2"},
        {"train.validate_batches", "1"},
        {"train.dtype", dtype},
        {"optimizer.master", master},
    };
    hd_config *config = hdt_job_config(hdt_job_text(), directory, false);
    hdt_set_all(config, settings);
    hdt_set_layout(config, &(hdt_job_layout){.shard_state = shard_state});
    hdt_set_number(config, "train.stop_after", stop);
    return hdt_job_train(config, result);
}

/* dtype and master of the run that stops, and of the one that goes on. F16 skips its first step:
 * without the scale of the checkpoint it would skip one again. */
static const char *const resumes[][3] = {
    {"bf16", "fp32", "fp32"},      {"bf16", "remainder", "remainder"},
    {"bf16", "fp32", "remainder"}, {"bf16", "remainder", "fp32"},
    {"bf16", "fp32", "auto"},      {"bf16", "auto", "fp32"},
    {"f16", "fp32", "auto"}};

START_TEST(a_run_that_was_stopped_goes_on_with_the_same_bits)
{
    const char *dtype = resumes[_i][0], *before = resumes[_i][1], *after = resumes[_i][2];
    const char *whole = hdt_job_directory(), *stopped = hdt_job_directory();
    hd_train_result wanted, first, second;
    hd_status one = run(whole, dtype, before, false, 0, &wanted);
    hd_status two = run(stopped, dtype, before, true, 5, &first);
    hd_status three = run(stopped, dtype, after, false, 0, &second);
    hdt_assert_ok(one);
    ck_assert_int_eq(two, HD_ERROR_INTERRUPTED);
    hdt_assert_ok(three);
    ck_assert_int_eq(first.steps, 5);
    ck_assert_uint_ne(first.weights_hash, wanted.weights_hash);
    ck_assert_uint_eq(second.weights_hash, wanted.weights_hash);
    ck_assert(second.loss == wanted.loss && second.validation_loss == wanted.validation_loss);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("mixed");
    tcase_add_test(tests, sixteen_bits_follow_the_fp32_loss);
    tcase_add_test(tests, a_loss_scale_that_grows_leaves_no_trace);
    tcase_add_test(tests, remainders_are_a_master_of_half_the_size);
    tcase_add_test(tests, f16_skips_steps_that_overflow_until_the_scale_fits);
    tcase_add_test(tests, what_cannot_be_is_refused);
    tcase_add_loop_test(tests, a_run_that_was_stopped_goes_on_with_the_same_bits, 0,
                        sizeof resumes / sizeof resumes[0]);
    return hdt_main_ranks(argc, argv, "mixed", tests);
}
