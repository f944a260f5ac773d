/* ranks: 2 4 */
/* Weights that ranks gather after an update are still on their way when the step is over: whatever runs,
 * reads or writes them next has them whole. */
#include "tests/support/hdt_device.h"

#include "core/error.h"
#include "runtime/session.h"
#include "tests/support/hdt_split.h"

static const hdt_split model = {
    .name = "gpt2",
    .json = "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":20,\"n_embd\":256,"
            "\"n_layer\":4,\"n_head\":4}",
    .tokens = 17,
    .heads = 4,
    .roundings = 32};

typedef struct seen {
    int unfinished;
    double at_once, later; /* losses of a validation, before and behind a drain */
    uint64_t weights[2];   /* likewise */
    float read;            /* of a weight */
} seen;

static hd_status step_of(const hdt_split *one, hd_trainer *trainer)
{
    hd_step_result result;
    return hd_trainer_step(trainer, 0.1, hdt_split_feed, (void *)(uintptr_t)one, &result);
}

static hd_status validate(const hdt_split *one, hd_trainer *trainer, double *loss)
{
    hd_step_result result;
    const hd_status status =
        hd_trainer_validate(trainer, hdt_split_feed, (void *)(uintptr_t)one, &result);
    *loss = result.loss;
    return status;
}

static hd_status look_after_steps(const hdt_split *one, hd_trainer *trainer, hd_context *context,
                                  void *out)
{
    seen *it = out;
    HD_RETURN_IF_ERROR(hd_trainer_start(trainer, context, 1));
    HD_RETURN_IF_ERROR(step_of(one, trainer));
    it->unfinished = trainer->session->unfinished_count;
    HD_RETURN_IF_ERROR(validate(one, trainer, &it->at_once));
    HD_RETURN_IF_ERROR(hd_session_drain(trainer->session));
    HD_RETURN_IF_ERROR(validate(one, trainer, &it->later));
    HD_RETURN_IF_ERROR(step_of(one, trainer));
    const hd_program *program = trainer->shapes[0].train[0].program;
    static float values[1 << 20];
    const hd_tensor parameter = program->uses[0].tensor;
    const size_t bytes = hd_tensor_get(program, parameter)->bytes;
    ck_assert_uint_le(bytes, sizeof values);
    HD_RETURN_IF_ERROR(hd_session_read(trainer->session, program, parameter, 0, values));
    it->read = values[bytes / sizeof *values - 1];
    HD_RETURN_IF_ERROR(hd_trainer_weights_hash(trainer, &it->weights[0]));
    HD_RETURN_IF_ERROR(hd_session_drain(trainer->session));
    return hd_trainer_weights_hash(trainer, &it->weights[1]);
}

START_TEST(what_follows_a_step_has_whole_weights)
{
    seen it = {0};
    hdt_assert_ok(hdt_split_with_trainer(
        hdt_world, &model, &(hd_mesh_options){.data = hd_comm_size(hdt_world)},
        (hd_trainer_options){.shard_state = 1, .accumulate = 1, .bucket_elements = 100000},
        look_after_steps, &it));
    ck_assert_int_gt(it.unfinished, 0);
    ck_assert_msg(it.at_once == it.later, "validation at once %.17g, later %.17g", it.at_once,
                  it.later);
    ck_assert_uint_eq(it.weights[0], it.weights[1]);
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &it.at_once, sizeof it.at_once, "losses"));
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &it.read, sizeof it.read, "weights"));
}
END_TEST

static hd_status step_and_leave(const hdt_split *one, hd_trainer *trainer, hd_context *context,
                                void *out)
{
    (void)out;
    HD_RETURN_IF_ERROR(hd_trainer_start(trainer, context, 1));
    return step_of(one, trainer);
}

START_TEST(a_session_may_end_with_weights_on_their_way)
{
    for (int i = 0; i < 3; i++)
        hdt_assert_ok(hdt_split_with_trainer(
            hdt_world, &model, &(hd_mesh_options){.data = hd_comm_size(hdt_world)},
            (hd_trainer_options){.shard_state = 1, .accumulate = 1}, step_and_leave, NULL));
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("unfinished");
    tcase_add_test(tests, what_follows_a_step_has_whole_weights);
    tcase_add_test(tests, a_session_may_end_with_weights_on_their_way);
    return hdt_main_ranks(argc, argv, "unfinished", tests);
}
