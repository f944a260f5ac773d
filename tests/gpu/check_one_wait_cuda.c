/* A step on a GPU waits for it once, reads its inputs while the one before still updates, and is the same
 * bits as on a GPU that is waited for after every copy. */
#include "core/error.h"
#include "jobs/train/trainer.h"
#include "runtime/session.h"
#include "tests/gpu/hdt_gpu.h"

#include <heddle/model.h>

#include <stdio.h>
#include <string.h>

enum { STEPS = 5, VOCAB = 50304, SEQUENCES = 2, TOKENS = 64 };

/* 27 million parameters, so that an update takes a while. */
static const char json[] = "{\"model_type\":\"gpt2\",\"vocab_size\":50304,\"n_positions\":64,"
                           "\"n_embd\":512,\"n_layer\":2,\"n_head\":8}";

static hd_backend counting;
static int waits;
static bool waits_for_copies;

static hd_status synchronize(hd_stream *stream)
{
    waits++;
    return hdi_backend_cuda.synchronize(stream);
}

static hd_status copy_in(hd_stream *stream, void *to, const void *from, size_t bytes)
{
    HD_RETURN_IF_ERROR(hdi_backend_cuda.copy_in(stream, to, from, bytes));
    return waits_for_copies ? hdi_backend_cuda.synchronize(stream) : HD_OK;
}

static hd_status copy_out(hd_stream *stream, void *to, const void *from, size_t bytes)
{
    HD_RETURN_IF_ERROR(hdi_backend_cuda.copy_out(stream, to, from, bytes));
    return waits_for_copies ? hdi_backend_cuda.synchronize(stream) : HD_OK;
}

typedef struct feeding {
    int64_t step;
    hd_stream *stream;
    bool saw_work; /* the device had some when an input came */
    int bad_step;  /* whose second micro-batch names a token that is none; -1: no step's */
} feeding;

static hd_status feed(void *user, const char *name, int64_t batch, void *out, size_t bytes)
{
    feeding *it = user;
    int32_t *ids = out;
    bool idle;
    HD_RETURN_IF_ERROR(hdi_backend_cuda.is_idle(it->stream, &idle));
    it->saw_work = it->saw_work || !idle;
    const int shift = strcmp(name, "targets") == 0;
    for (size_t i = 0; i < bytes / sizeof *ids; i++)
        ids[i] =
            (int32_t)((9973 * (it->step + 1) + 331 * batch + 17 * ((int64_t)i + shift)) % 1000);
    if (!shift && batch == 1 && it->step == it->bad_step) ids[3] = VOCAB;
    return HD_OK;
}

typedef struct seen {
    double loss[STEPS], norm[STEPS];
    int waits[STEPS];
    uint64_t hash;
    bool saw_work;
    hd_status status;
    char text[1024];
    int64_t updates;
} seen;

/* Up to the first step that fails. */
static seen train(hd_trainer_options options, bool slowly, int bad_step)
{
    seen out = {0};
    hd_model *model = NULL;
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    hdt_assert_ok(hd_model_create_json(json, &model));
    hdt_assert_ok(hd_mesh_create_fake(0, 1, &(hd_mesh_options){0}, &mesh));
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cuda"}, &context));
    counting = hdi_backend_cuda;
    counting.synchronize = synchronize;
    counting.copy_in = copy_in;
    counting.copy_out = copy_out;
    waits_for_copies = slowly;
    context->backend = &counting;
    options.build = hd_model_build;
    options.user = model;
    options.layers = 2;
    options.mesh = mesh;
    options.backend = &counting;
    options.sequences = SEQUENCES;
    options.tokens = TOKENS;
    options.clip_norm = 1;
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    hdt_assert_ok(hd_trainer_start(trainer, context, 42));
    feeding input = {.stream = context->stream, .bad_step = bad_step};
    for (int s = 0; s < STEPS && out.status == HD_OK; s++) {
        hd_step_result result;
        const int before = waits;
        input.step = s;
        if (s == 1) input.saw_work = false; /* the first step comes after a start */
        out.status = hd_trainer_step(trainer, 3e-4, feed, &input, &result);
        if (out.status != HD_OK) snprintf(out.text, sizeof out.text, "%s", hd_last_error());
        out.waits[s] = waits - before;
        out.loss[s] = result.loss;
        out.norm[s] = result.grad_norm;
    }
    out.updates = trainer->updates;
    out.saw_work = input.saw_work;
    hdt_assert_ok(hd_trainer_weights_hash(trainer, &out.hash));
    hd_trainer_destroy(trainer);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
    return out;
}

/* With fp16 some steps overflow and are left out, and some do not. */
static const hd_trainer_options kinds[] = {
    {.dtype = HD_DTYPE_F32, .accumulate = 1, .exact = true},
    {.dtype = HD_DTYPE_BF16, .accumulate = 8, .exact = true, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_F16,
     .accumulate = 3,
     .exact = true,
     .loss_scale = 16384,
     .loss_scale_steps = 1},
};

START_TEST(a_step_waits_once_and_is_the_same_bits)
{
    const seen slow = train(kinds[_i], true, -1), fast = train(kinds[_i], false, -1);
    hdt_assert_ok(slow.status);
    hdt_assert_ok(fast.status);
    for (int s = 0; s < STEPS; s++)
        ck_assert_int_eq(fast.waits[s], 1);
    ck_assert_mem_eq(fast.loss, slow.loss, sizeof fast.loss);
    ck_assert_mem_eq(fast.norm, slow.norm, sizeof fast.norm);
    ck_assert_uint_eq(fast.hash, slow.hash);
    ck_assert_int_eq(fast.updates, slow.updates);
    ck_assert_int_gt(fast.updates, 0);
    ck_assert_int_eq(fast.updates < STEPS, kinds[_i].dtype == HD_DTYPE_F16);
    ck_assert_msg(fast.saw_work, "the device was idle whenever an input came");
}
END_TEST

START_TEST(a_bad_token_fails_in_its_own_step)
{
    const seen out = train((hd_trainer_options){.accumulate = 2}, false, 3);
    ck_assert_int_eq(out.status, HD_ERROR_ARGUMENT);
    ck_assert_msg(strstr(out.text, "embedding: id 50304 in row 3, want below 50304") != NULL,
                  "seen '%s'", out.text);
    ck_assert_int_eq(out.updates, 3);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("one_wait_cuda");
    tcase_add_loop_test(tests, a_step_waits_once_and_is_the_same_bits, 0,
                        (int)(sizeof kinds / sizeof *kinds));
    tcase_add_test(tests, a_bad_token_fails_in_its_own_step);
    return hdt_main_gpu("one_wait_cuda", tests);
}
