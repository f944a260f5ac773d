/* Small trainings for tests. */
#include "tests/support/hdt_train.h"

#include "core/memory.h"
#include "core/random.h"
#include "runtime/session.h"
#include "tests/support/hdt_deferred.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_late.h"

#include <stdio.h>

hd_model *hdt_tiny_model(const char *family, int layers)
{
    char text[512];
    if (strcmp(family, "gpt2") == 0)
        snprintf(text, sizeof text,
                 "{\"model_type\":\"gpt2\",\"vocab_size\":%d,\"n_positions\":%d,\"n_embd\":48,"
                 "\"n_layer\":%d,\"n_head\":3}",
                 HDT_VOCAB, HDT_TOKENS, layers);
    else
        snprintf(text, sizeof text,
                 "{\"model_type\":\"llama\",\"vocab_size\":%d,\"max_position_embeddings\":%d,"
                 "\"hidden_size\":48,\"intermediate_size\":80,\"num_hidden_layers\":%d,"
                 "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"rms_norm_eps\":1e-5,"
                 "\"tie_word_embeddings\":false}",
                 HDT_VOCAB, HDT_TOKENS, layers);
    hd_model *model = NULL;
    hdt_assert_ok(hd_model_create_json(text, &model));
    return model;
}

/* Runs that a model can learn: each token follows from the one before and a little noise. */
static int32_t token_at(int64_t step, int64_t row, int64_t position)
{
    uint32_t words[4];
    hdi_random_words(7, (uint64_t)step, (uint64_t)row, words);
    return (int32_t)((words[0] + (uint64_t)position * (1 + words[1] % 3)) % HDT_VOCAB);
}

hd_status hdt_feed(void *user, const char *name, int64_t global_batch, void *out, size_t bytes)
{
    const int64_t step = *(const int64_t *)user;
    const int shift = strcmp(name, "targets") == 0;
    int32_t *ids = out;
    for (int64_t i = 0; i < (int64_t)(bytes / sizeof *ids); i++) {
        int64_t row = global_batch * HDT_SEQUENCES + i / HDT_TOKENS;
        ids[i] = token_at(step, row, i % HDT_TOKENS + shift);
        if (shift && i % 11 == 3 && row % 3 == 0) ids[i] = -1;
    }
    return HD_OK;
}

static hd_status run_steps(hd_trainer *trainer, int steps, hdt_trained *out)
{
    uint64_t allocations = 0;
    hd_step_result result = {0};
    for (int64_t step = 0; step < steps; step++) {
        hd_status status = hd_trainer_step(trainer, 3e-3, hdt_feed, &step, &result);
        if (status != HD_OK) return status;
        if (step == 0) {
            out->first_loss = result.loss;
            allocations = hdi_alloc_count();
        }
    }
    out->last_loss = result.loss;
    out->last_norm = result.grad_norm;
    int64_t step = 1000;
    hd_status status = hd_trainer_validate(trainer, hdt_feed, &step, &result);
    out->validation_loss = result.loss;
    out->allocations = hdi_alloc_count() - allocations;
    return status;
}

hd_status hdt_train(hd_comm *comm, const hdt_training *training, hdt_trained *out)
{
    *out = (hdt_trained){0};
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    hd_model *model = hdt_tiny_model(training->family, training->layers);
    hd_status status = hdt_open_place(comm, &training->mesh, &mesh, &context);
    const bool others = training->late_copies || training->staged;
    if (status == HD_OK && others && context->backend == &hdi_backend_cpu) {
        context->backend = training->staged ? hdt_deferred_backend(true) : hdt_late_backend();
        context->attached = mesh;
    }
    if (status == HD_OK) {
        hd_trainer_options options = training->options;
        options.build = hd_model_build;
        options.user = model;
        options.layers = training->layers;
        options.mesh = mesh;
        options.backend = hd_context_backend(context);
        options.sequences = HDT_SEQUENCES;
        options.tokens = HDT_TOKENS;
        const int batches =
            training->global_batches ? training->global_batches : HDT_GLOBAL_BATCHES;
        options.accumulate = batches / hd_mesh_size(mesh, HD_AXIS_DATA);
        options.validate_batches = options.accumulate;
        options.bucket_elements = 20000;
        options.clip_norm = 1;
        status = hd_trainer_create(&options, &trainer);
    }
    if (status == HD_OK) status = hd_trainer_start(trainer, context, 42);
    if (status == HD_OK) status = run_steps(trainer, training->steps, out);
    if (status == HD_OK) status = hd_trainer_weights_hash(trainer, &out->hash);
    if (status == HD_OK) {
        const hd_plan *plan = hd_trainer_plan(trainer);
        out->planned = hd_plan_arena_bytes(plan);
        out->host_planned = hd_plan_host_bytes(plan);
        out->weights = hd_plan_region_bytes(plan, HD_REGION_WEIGHTS);
        out->gradients = hd_plan_region_bytes(plan, HD_REGION_GRADIENTS);
        out->optimizer = hd_plan_region_bytes(plan, HD_REGION_OPTIMIZER);
        out->high_water = hd_session_high_water(hd_trainer_session(trainer));
    }
    hd_trainer_destroy(trainer);
    hdt_close_place(mesh, context);
    hd_model_destroy(model);
    return status;
}
