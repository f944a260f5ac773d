/* On a GPU an update with state on the host goes on while what follows it begins, and is the same bits as one that
 * ends first. */
#include "core/error.h"
#include "jobs/train/trainer.h"
#include "runtime/session.h"
#include "tests/gpu/hdt_gpu.h"

#include <heddle/model.h>

#include <string.h>

enum { STEPS = 6, LAYERS = 6, SEQUENCES = 2, TOKENS = 128, CHUNK = 1 << 18 };

/* 45 million parameters, some 170 chunks: more than a device takes ahead at once. */
static const char json[] = "{\"model_type\":\"gpt2\",\"vocab_size\":50304,\"n_positions\":128,"
                           "\"n_embd\":512,\"n_layer\":6,\"n_head\":8}";

static hd_status feed(void *user, const char *name, int64_t batch, void *out, size_t bytes)
{
    const int64_t step = *(const int64_t *)user;
    int32_t *ids = out;
    const int shift = strcmp(name, "targets") == 0;
    for (size_t i = 0; i < bytes / sizeof *ids; i++)
        ids[i] = (int32_t)((9973 * (step + 1) + 331 * batch + 17 * ((int64_t)i + shift)) % 1000);
    return HD_OK;
}

typedef struct seen {
    double loss[STEPS], norm[STEPS], validation[STEPS];
    uint64_t hash;
    int under_way; /* steps whose update had not ended on the device when they returned */
} seen;

/* Is the stream beside still at it? */
static bool is_busy(const hd_trainer *trainer)
{
    bool idle = true;
    hd_stream *stream = trainer->session->beside.stream;
    if (stream) hdt_assert_ok(hdi_backend_cuda.is_idle(stream, &idle));
    return !idle;
}

static seen train(hd_trainer_options options, bool in_turn)
{
    seen out = {0};
    hd_model *model = NULL;
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    hdt_assert_ok(hd_model_create_json(json, &model));
    hdt_assert_ok(hd_mesh_create_fake(0, 1, &(hd_mesh_options){0}, &mesh));
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cuda"}, &context));
    options.build = hd_model_build;
    options.user = model;
    options.layers = LAYERS;
    options.mesh = mesh;
    options.backend = hd_context_backend(context);
    options.sequences = SEQUENCES;
    options.tokens = TOKENS;
    options.clip_norm = 1;
    options.exact = true;
    options.chunk_elements = CHUNK;
    options.validate_batches = 1;
    options.in_turn = in_turn;
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    hdt_assert_ok(hd_trainer_start(trainer, context, 42));
    for (int64_t step = 0; step < STEPS; step++) {
        hd_step_result result;
        hdt_assert_ok(hd_trainer_step(trainer, 3e-4, feed, &step, &result));
        out.under_way += is_busy(trainer);
        out.loss[step] = result.loss;
        out.norm[step] = result.grad_norm;
        if (step % 3 != 1) continue;
        hdt_assert_ok(hd_trainer_validate(trainer, feed, &step, &result));
        out.validation[step] = result.loss;
    }
    hdt_assert_ok(hd_trainer_weights_hash(trainer, &out.hash));
    hd_trainer_destroy(trainer);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
    return out;
}

static const hd_trainer_options kinds[] = {
    {.dtype = HD_DTYPE_F32, .accumulate = 1},
    {.dtype = HD_DTYPE_BF16, .accumulate = 3, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_BF16,
     .accumulate = 1,
     .gradient_residency = HD_RESIDENCY_HOST,
     .activations = HD_ACTIVATIONS_HOST},
    {.dtype = HD_DTYPE_F16, .accumulate = 2, .loss_scale = 16384, .loss_scale_steps = 1},
};

START_TEST(an_update_beside_the_next_step_is_the_same_bits)
{
    hd_trainer_options kind = kinds[_i];
    kind.optimizer_residency = HD_RESIDENCY_HOST;
    const seen in_turn = train(kind, true), beside = train(kind, false);
    ck_assert_mem_eq(beside.loss, in_turn.loss, sizeof beside.loss);
    ck_assert_mem_eq(beside.norm, in_turn.norm, sizeof beside.norm);
    ck_assert_mem_eq(beside.validation, in_turn.validation, sizeof beside.validation);
    ck_assert_uint_eq(beside.hash, in_turn.hash);
    ck_assert_int_eq(in_turn.under_way, 0);
    ck_assert_int_gt(beside.under_way, 0);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("beside_cuda");
    tcase_add_loop_test(tests, an_update_beside_the_next_step_is_the_same_bits, 0,
                        (int)(sizeof kinds / sizeof *kinds));
    return hdt_main_gpu("beside_cuda", tests);
}
