/* A session on several GPUs runs every op once before its first step, so that no product is timed while a
 * peer waits; here on the CPU, which does not need it. */
#include "runtime/session.h"
#include "tests/support/hdt_train.h"

/* Validation has its inputs where training has activations and gradients, which of zeros are often not
 * numbers, let alone rows of a table. */
START_TEST(programs_that_share_bytes_warm_up_one_after_another)
{
    hd_comm *self;
    hd_mesh *mesh;
    hd_context *context;
    hd_trainer *trainer;
    hd_model *model = hdt_tiny_model(_i ? "llama" : "gpt2", 2);
    hdt_assert_ok(hd_comm_create_world(&(hd_comm_options){.transport = HD_TRANSPORT_SELF}, &self));
    hdt_assert_ok(hd_mesh_create(self, &(hd_mesh_options){0}, &mesh));
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    const hd_trainer_options options = {.build = hd_model_build,
                                        .user = model,
                                        .layers = hd_model_layers(model),
                                        .mesh = mesh,
                                        .backend = hd_context_backend(context),
                                        .sequences = HDT_SEQUENCES,
                                        .tokens = HDT_TOKENS,
                                        .accumulate = 2,
                                        .validate_batches = 2};
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    hdt_assert_ok(hd_trainer_start(trainer, context, 1));
    hd_session *session = hd_trainer_session(trainer);
    memset(session->arena, 0xff, session->plan->arena_bytes); /* NaN, as numbers */
    hdt_assert_ok(hdi_session_warm_up(session));
    size_t left = 0; /* bytes that are not zero */
    for (size_t i = 0; i < session->plan->arena_bytes; i++)
        left += ((const char *)session->arena)[i] != 0;
    ck_assert_uint_eq(left, 0);
    hd_trainer_destroy(trainer);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    hd_comm_destroy(self);
    hd_model_destroy(model);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("warm up");
    tcase_add_loop_test(tests, programs_that_share_bytes_warm_up_one_after_another, 0, 2);
    Suite *suite = suite_create("warm_up");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
