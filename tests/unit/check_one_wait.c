/* A step on a device that lags waits for it once, and is the same bits as on one that does not. */
#include "core/error.h"
#include "core/memory.h"
#include "jobs/train/trainer.h"
#include "program/place.h"
#include "runtime/session.h"
#include "tests/support/hdt_deferred.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_recorder.h"
#include "tests/support/hdt_train.h"

#include <math.h>
#include <string.h>

enum { LAYERS = 2, STEPS = 4, VALIDATIONS = 3 };

typedef struct training {
    hd_model *model;
    hd_mesh *mesh;
    hd_context *context;
    hd_trainer *trainer;
} training;

static training begin_training(const char *family, hd_trainer_options options, bool lags)
{
    training it = {.model = hdt_tiny_model(family, LAYERS)};
    hdt_assert_ok(hd_mesh_create_fake(0, 1, &(hd_mesh_options){0}, &it.mesh));
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &it.context));
    if (lags) it.context->backend = hdt_deferred_backend(false);
    it.context->graphs = hdt_graphs();
    if (hdt_graphs()) it.context->backend = hdt_recorder_backend(it.context->backend);
    options.build = hd_model_build;
    options.user = it.model;
    options.layers = LAYERS;
    options.mesh = it.mesh;
    options.backend = it.context->backend;
    options.sequences = HDT_SEQUENCES;
    options.tokens = HDT_TOKENS;
    options.validate_batches = VALIDATIONS;
    options.clip_norm = 1;
    hdt_assert_ok(hd_trainer_create(&options, &it.trainer));
    hdt_assert_ok(hd_trainer_start(it.trainer, it.context, 42));
    return it;
}

static void end_training(training *it)
{
    hd_trainer_destroy(it->trainer);
    hd_context_destroy(it->context);
    hd_mesh_destroy(it->mesh);
    hd_model_destroy(it->model);
}

/* What the inputs of a step come while. */
typedef struct feeding {
    int64_t step;
    int fewest; /* calls that are queued then */
} feeding;

static hd_status feed(void *user, const char *name, int64_t batch, void *out, size_t bytes)
{
    feeding *it = user;
    const int pending = hdt_deferred_pending();
    if (pending < it->fewest) it->fewest = pending;
    return hdt_feed(&it->step, name, batch, out, bytes);
}

typedef struct seen {
    double loss[STEPS], norm[STEPS], validation[STEPS];
    int waits[STEPS], validation_waits[STEPS]; /* of each */
    int behind[STEPS];                         /* calls that are queued when its inputs come */
    uint64_t hash, allocations;
    int64_t updates;
} seen;

/* With more than one shape each has its turn, and so has its validation. */
static seen train(const char *family, hd_trainer_options options, bool lags, bool validates)
{
    seen out = {0};
    training it = begin_training(family, options, lags);
    const int shapes = options.shape_count ? options.shape_count : 1;
    for (int s = 0; s < STEPS; s++) {
        hd_step_result result;
        feeding input = {.step = s, .fewest = 1 << 30};
        int before = hdt_deferred_waits();
        hdt_assert_ok(hd_trainer_step_shape(it.trainer, s % shapes, 3e-3, feed, &input, &result));
        out.waits[s] = hdt_deferred_waits() - before;
        out.behind[s] = input.fewest;
        out.loss[s] = result.loss;
        out.norm[s] = result.grad_norm;
        before = hdt_deferred_waits();
        if (validates)
            hdt_assert_ok(
                hd_trainer_validate_shape(it.trainer, (s + 1) % shapes, feed, &input, &result));
        out.validation[s] = result.loss;
        out.validation_waits[s] = hdt_deferred_waits() - before;
        if (s == 0) out.allocations = hdi_alloc_count();
    }
    out.allocations = hdi_alloc_count() - out.allocations;
    out.updates = it.trainer->updates;
    hdt_assert_ok(hd_trainer_weights_hash(it.trainer, &out.hash));
    end_training(&it);
    return out;
}

static void assert_same(const seen *late, const seen *now)
{
    ck_assert_mem_eq(late->loss, now->loss, sizeof late->loss);
    ck_assert_mem_eq(late->norm, now->norm, sizeof late->norm);
    ck_assert_mem_eq(late->validation, now->validation, sizeof late->validation);
    ck_assert_int_eq(late->updates, now->updates);
    ck_assert_uint_eq(late->hash, now->hash);
    ck_assert_uint_eq(late->allocations, 0);
}

static const int accumulations[] = {1, 3, 8};

START_TEST(a_step_waits_once_whatever_the_number_of_micro_batches)
{
    const hd_trainer_options options = {.accumulate = accumulations[_i], .ema_decay = 0.9F};
    const seen late = train("llama", options, true, true),
               now = train("llama", options, false, true);
    for (int s = 0; s < STEPS; s++) {
        ck_assert_int_eq(late.waits[s], 1);
        ck_assert_int_eq(late.validation_waits[s], 1);
    }
    assert_same(&late, &now);
}
END_TEST

/* The update is still queued then. */
START_TEST(the_next_steps_inputs_are_written_while_the_device_updates)
{
    const hd_trainer_options options = {.accumulate = 2};
    const seen late = train("gpt2", options, true, false);
    for (int s = 1; s < STEPS; s++)
        ck_assert_int_gt(late.behind[s], 0);
}
END_TEST

/* With fp16 some steps overflow and are left out, and some do not. */
static const hd_trainer_options kinds[] = {
    {.dtype = HD_DTYPE_F32, .accumulate = 2},
    {.dtype = HD_DTYPE_F32, .accumulate = 4, .exact = true},
    {.dtype = HD_DTYPE_BF16, .accumulate = 2, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_BF16, .accumulate = 2, .gradients = HD_DTYPE_BF16},
    {.dtype = HD_DTYPE_F16, .accumulate = 3, .loss_scale = 65536, .loss_scale_steps = 1},
    {.dtype = HD_DTYPE_F32, .accumulate = 2, .optimizer_residency = HD_RESIDENCY_HOST},
    {.dtype = HD_DTYPE_F32, .accumulate = 2, .residency = HD_RESIDENCY_HOST},
};

START_TEST(a_late_device_gives_the_same_bits)
{
    for (int family = 0; family < 2; family++) {
        const char *name = family ? "gpt2" : "llama";
        const seen late = train(name, kinds[_i], true, true);
        const seen now = train(name, kinds[_i], false, true);
        assert_same(&late, &now);
        ck_assert_int_gt(now.updates, 0);
        ck_assert_int_eq(now.updates < STEPS, kinds[_i].dtype == HD_DTYPE_F16);
    }
}
END_TEST

/* What shapes and validations share on the host, none takes from another; losses of the third shape are where
 * the norm has its squares. */
START_TEST(shapes_in_turns_wait_once_each)
{
    const hd_trainer_shape shapes[] = {{.sequences = 2, .tokens = HDT_TOKENS, .accumulate = 1},
                                       {.sequences = 1, .tokens = HDT_TOKENS / 2, .accumulate = 4},
                                       {.sequences = 3, .tokens = HDT_TOKENS, .accumulate = 2}};
    const hd_trainer_options options = {.shapes = shapes, .shape_count = 3};
    for (int validates = 0; validates < 2; validates++) {
        const seen late = train("gpt2", options, true, validates);
        const seen now = train("gpt2", options, false, validates);
        for (int s = 0; s < STEPS; s++) {
            ck_assert_int_eq(late.waits[s], 1);
            ck_assert_int_eq(late.validation_waits[s], validates);
            ck_assert_double_eq_tol(late.loss[s], log(HDT_VOCAB), 0.5);
        }
        assert_same(&late, &now);
    }
}
END_TEST

static hd_status feed_one_bad(void *user, const char *name, int64_t batch, void *out, size_t bytes)
{
    HD_RETURN_IF_ERROR(hdt_feed(user, name, batch, out, bytes));
    if (batch == 1 && strcmp(name, "tokens") == 0) ((int32_t *)out)[3] = HDT_VOCAB;
    return HD_OK;
}

/* And the weights are as they were, so that the next step is as good as any. */
START_TEST(a_bad_input_fails_in_its_own_step)
{
    training it = begin_training("gpt2", (hd_trainer_options){.accumulate = 2}, true);
    int64_t step = 0;
    hd_step_result result;
    uint64_t before, after;
    hdt_assert_ok(hd_trainer_step(it.trainer, 3e-3, hdt_feed, &step, &result));
    hdt_assert_ok(hd_trainer_weights_hash(it.trainer, &before));
    hdt_assert_status(hd_trainer_step(it.trainer, 3e-3, feed_one_bad, &step, &result),
                      HD_ERROR_ARGUMENT, "97");
    hdt_assert_ok(hd_trainer_weights_hash(it.trainer, &after));
    ck_assert_uint_eq(before, after);
    hdt_assert_ok(hd_trainer_step(it.trainer, 3e-3, hdt_feed, &step, &result));
    end_training(&it);
}
END_TEST

START_TEST(a_place_is_written_again_when_the_device_has_passed_it)
{
    training it = begin_training("gpt2", (hd_trainer_options){.accumulate = 2}, true);
    const hd_program *program = it.trainer->shapes[0].train[0].program;
    const hd_tensor tokens = hd_tensor_find(program, "tokens");
    int32_t *room[2], values[HDT_SEQUENCES * HDT_TOKENS];
    void *at;
    hd_session *session = it.trainer->session;
    hdt_assert_ok(hd_session_drain(session));
    const int before = hdt_deferred_waits();
    for (int b = 0; b < 2; b++) {
        hdt_assert_ok(hdi_relay_room(session, program, tokens, b, &at));
        room[b] = at;
        room[b][0] = 10 + b;
        hdt_assert_ok(hdi_relay_send(session, program, tokens, b));
    }
    ck_assert_int_eq(hdt_deferred_waits(), before);
    hdt_assert_ok(hdi_relay_read(session, program, tokens, 0, values)); /* by the same place */
    ck_assert_int_eq(hdt_deferred_waits(), before + 1);
    hdt_assert_ok(hdi_relay_room(session, program, tokens, 0, &at));
    ck_assert_int_eq(hdt_deferred_waits(), before + 2);
    ck_assert_ptr_eq(at, room[0]);
    ck_assert_int_eq(values[0], 10);
    room[0][0] = 20;
    hdt_assert_ok(hdi_relay_send(session, program, tokens, 0));
    hdt_assert_ok(hd_session_read(session, program, tokens, 0, values));
    ck_assert_int_eq(values[0], 20);
    hdt_assert_ok(hd_session_read(session, program, tokens, 1, values));
    ck_assert_int_eq(values[0], 11);
    end_training(&it);
}
END_TEST

/* Tokens, targets and a loss for each micro-batch; squares, and five scalars. */
START_TEST(staging_is_planned_to_the_byte_and_only_where_a_device_lags)
{
    const size_t ids = hdi_place_round(HDT_SEQUENCES * HDT_TOKENS * sizeof(int32_t));
    const size_t one = hdi_place_round(2 * sizeof(double)), batch = 2 * ids + one;
    training it = begin_training("gpt2", (hd_trainer_options){.accumulate = 5}, true);
    const size_t squares = hdi_place_round((size_t)it.trainer->census.blocks * sizeof(double));
    const size_t wanted = (5 + VALIDATIONS) * batch + squares + hdi_place_round(5 * sizeof(float));
    ck_assert_uint_eq(hd_plan_region_bytes(it.trainer->plan, HD_REGION_HOST_STAGING), wanted);
    ck_assert_uint_eq(hd_plan_host_bytes(it.trainer->plan), wanted);
    end_training(&it);
    it = begin_training("gpt2", (hd_trainer_options){.accumulate = 5}, false);
    ck_assert_uint_eq(hd_plan_host_bytes(it.trainer->plan), 0);
    end_training(&it);
}
END_TEST

START_TEST(the_proof_refuses_staging_that_two_programs_share)
{
    training it = begin_training("gpt2", (hd_trainer_options){.accumulate = 2}, true);
    hd_plan *plan = it.trainer->plan;
    hdt_assert_ok(hdi_plan_verify_regions(plan));
    for (int u = 1; u < plan->unit_count; u++) {
        size_t *base = &plan->units[u].base[HD_REGION_HOST_STAGING], kept = *base;
        *base = plan->units[0].base[HD_REGION_HOST_STAGING];
        hdt_assert_status(hdi_plan_verify_regions(plan), HD_ERROR_INTERNAL, "is not its own");
        *base = kept + plan->bytes[HD_REGION_HOST_STAGING];
        hdt_assert_status(hdi_plan_verify_regions(plan), HD_ERROR_INTERNAL, "is not its own");
        *base = kept;
    }
    const hd_tensor targets = hd_tensor_find(plan->units[0].program, "targets");
    plan->units[0].places[targets.id].staging -= HDI_PLACE_ALIGNMENT;
    hdt_assert_status(hdi_plan_verify_regions(plan), HD_ERROR_INTERNAL, "is not its own");
    end_training(&it);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("one_wait");
    TCase *tests = tcase_create("late");
    tcase_add_loop_test(tests, a_step_waits_once_whatever_the_number_of_micro_batches, 0,
                        (int)(sizeof accumulations / sizeof *accumulations));
    tcase_add_test(tests, the_next_steps_inputs_are_written_while_the_device_updates);
    tcase_add_loop_test(tests, a_late_device_gives_the_same_bits, 0,
                        (int)(sizeof kinds / sizeof *kinds));
    tcase_add_test(tests, shapes_in_turns_wait_once_each);
    tcase_add_test(tests, a_bad_input_fails_in_its_own_step);
    tcase_add_test(tests, a_place_is_written_again_when_the_device_has_passed_it);
    tcase_add_test(tests, staging_is_planned_to_the_byte_and_only_where_a_device_lags);
    tcase_add_test(tests, the_proof_refuses_staging_that_two_programs_share);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
