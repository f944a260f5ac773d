/* What a training keeps in host memory: the same bits as on the device though every copy is late, and
 * the bytes that were planned. */
#include "core/memory.h"
#include "jobs/train/trainer.h"
#include "program/place.h"
#include "runtime/session.h"
#include "tests/support/hdt_late.h"
#include "tests/support/hdt_program.h"
#include "tests/support/hdt_train.h"

#include <heddle/job.h>

#include <stdio.h>
#include <string.h>

enum { LAYERS = 3, STEPS = 4, CHUNK = 1024 };

typedef struct trained {
    uint64_t hash;
    double loss, norm;
    size_t planned, high_water, host, gradients, update_scratch;
    int copies;
    uint64_t allocations;
} trained;

static hd_trainer *make_trainer(hd_model *model, const hd_mesh *mesh, const hd_backend *backend,
                                hd_trainer_options options)
{
    hd_trainer *trainer = NULL;
    options.build = hd_model_build;
    options.user = model;
    options.layers = LAYERS;
    options.mesh = mesh;
    options.backend = backend;
    options.sequences = HDT_SEQUENCES;
    options.tokens = HDT_TOKENS;
    options.accumulate = 3;
    options.bucket_elements = 20000;
    options.chunk_elements = CHUNK;
    options.clip_norm = 1;
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    return trainer;
}

static size_t scratch_of_update(const hd_trainer *trainer)
{
    const hd_plan *plan = trainer->plan;
    for (int u = 0; u < plan->unit_count; u++)
        if (plan->units[u].program == trainer->update)
            return plan->units[u].bytes[HD_REGION_TRANSIENT];
    return 0;
}

static trained train(hd_trainer_options options)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_model *model = hdt_tiny_model("llama", LAYERS);
    hdt_assert_ok(hd_mesh_create_fake(0, 1, &(hd_mesh_options){0}, &mesh));
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    context->backend = hdt_late_backend();
    hd_trainer *trainer = make_trainer(model, mesh, context->backend, options);
    hdt_assert_ok(hd_trainer_start(trainer, context, 42));
    trained out = {0};
    hd_step_result result;
    for (int64_t step = 0; step < STEPS; step++) {
        hdt_assert_ok(hd_trainer_step(trainer, 3e-3, hdt_feed, &step, &result));
        if (step == 0) out.allocations = hdi_alloc_count();
        ck_assert_int_eq(hdt_late_pending(), 0);
    }
    out.allocations = hdi_alloc_count() - out.allocations;
    out.loss = result.loss;
    out.norm = result.grad_norm;
    out.copies = hdt_late_queued();
    out.planned = hd_plan_arena_bytes(trainer->plan);
    out.high_water = hd_session_high_water(trainer->session);
    out.host = hd_plan_host_bytes(trainer->plan);
    out.gradients = hd_plan_region_bytes(trainer->plan, HD_REGION_GRADIENTS);
    out.update_scratch = scratch_of_update(trainer);
    hdt_assert_ok(hd_trainer_weights_hash(trainer, &out.hash));
    hd_trainer_destroy(trainer);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
    return out;
}

static void assert_same(const trained *host, const trained *device)
{
    ck_assert_uint_eq(host->hash, device->hash);
    ck_assert_double_eq(host->loss, device->loss);
    ck_assert_double_eq(host->norm, device->norm);
    ck_assert_uint_eq(host->high_water, host->planned);
    ck_assert_uint_eq(host->allocations, 0);
}

static const hd_trainer_options kinds[] = {
    {.dtype = HD_DTYPE_F32},
    {.dtype = HD_DTYPE_F32, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_BF16},
    {.dtype = HD_DTYPE_BF16, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_BF16, .master = HD_MASTER_F32, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_F16, .loss_scale = 1024},
    {.dtype = HD_DTYPE_BF16, .gradients = HD_DTYPE_BF16},
};

/* Moments, what is behind the weights, the average: bytes an element. */
static const size_t widths[] = {8, 12, 10, 14, 16, 12, 10};

START_TEST(optimizer_state_on_the_host_gives_the_same_bits)
{
    hd_trainer_options options = kinds[_i];
    const trained device = train(options);
    ck_assert_int_eq(device.copies, 0);
    ck_assert_uint_eq(device.host, 0);
    options.optimizer_residency = HD_RESIDENCY_HOST;
    const trained host = train(options);
    assert_same(&host, &device);
    ck_assert_int_gt(host.copies, 0);
}
END_TEST

/* Three chunks are on the device at a time, each tensor of a chunk rounded up. */
START_TEST(only_three_chunks_of_the_state_are_on_the_device)
{
    hd_trainer_options options = kinds[_i];
    hd_mesh *mesh = NULL;
    hd_model *model = hdt_tiny_model("llama", LAYERS);
    hdt_assert_ok(hd_mesh_create_fake(0, 1, &(hd_mesh_options){0}, &mesh));
    hd_trainer *device = make_trainer(model, mesh, NULL, options);
    options.optimizer_residency = HD_RESIDENCY_HOST;
    hd_trainer *host = make_trainer(model, mesh, NULL, options);
    const size_t elements = (size_t)host->plan->layout->optimizer_elements;
    ck_assert_uint_eq(hd_plan_region_bytes(host->plan, HD_REGION_OPTIMIZER), 0);
    ck_assert_uint_eq(hd_plan_region_bytes(host->plan, HD_REGION_HOST_OPTIMIZER),
                      hdi_place_round(elements * widths[_i]));
    ck_assert_uint_eq(hd_plan_region_bytes(device->plan, HD_REGION_OPTIMIZER),
                      hd_plan_region_bytes(host->plan, HD_REGION_HOST_OPTIMIZER));
    ck_assert_uint_eq(scratch_of_update(host), 3 * CHUNK * widths[_i]);
    ck_assert_uint_le(hd_plan_arena_bytes(host->plan),
                      hd_plan_arena_bytes(device->plan) -
                          hd_plan_region_bytes(device->plan, HD_REGION_OPTIMIZER) +
                          scratch_of_update(host));
    hd_trainer_destroy(device);
    hd_trainer_destroy(host);
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
}
END_TEST

START_TEST(auto_puts_the_state_on_the_host_only_if_the_budget_asks_for_it)
{
    hd_trainer_options options = {.dtype = HD_DTYPE_BF16};
    const trained device = train(options);
    options.optimizer_residency = HD_RESIDENCY_HOST;
    const trained host = train(options);
    options.optimizer_residency = HD_RESIDENCY_AUTO;
    ck_assert_uint_eq(train(options).host, 0);
    options.budget = device.planned;
    ck_assert_uint_eq(train(options).host, 0);
    options.budget = device.planned - 1;
    const trained less = train(options);
    ck_assert_uint_eq(less.host, host.host);
    assert_same(&less, &device);
}
END_TEST

/* With gpipe three micro-batches are in flight, and the last block is copied too. */
START_TEST(activations_on_the_host_give_the_same_bits)
{
    hd_trainer_options options = kinds[_i];
    options.schedule = _i % 2 ? "gpipe" : NULL;
    const trained device = train(options);
    options.activations = HD_ACTIVATIONS_HOST;
    const trained host = train(options);
    assert_same(&host, &device);
    ck_assert_int_gt(host.copies, 0);
    ck_assert_uint_lt(host.planned, device.planned);
    options.optimizer_residency = HD_RESIDENCY_HOST;
    const trained both = train(options);
    assert_same(&both, &device);
    ck_assert_uint_lt(both.planned, host.planned);
}
END_TEST

/* What is computed again is the same bits, so what enters blocks may wait anywhere. */
START_TEST(what_enters_blocks_waits_on_the_host)
{
    hd_trainer_options options = kinds[_i];
    options.schedule = _i % 2 ? "gpipe" : NULL;
    const trained device = train(options);
    options.activations = HD_ACTIVATIONS_RECOMPUTE;
    const trained again = train(options);
    options.activations = HD_ACTIVATIONS_RECOMPUTE_HOST;
    const trained host = train(options);
    assert_same(&host, &device);
    ck_assert_int_gt(host.copies, 0);
    ck_assert_uint_eq(again.host, 0);
    ck_assert_uint_le(host.planned, again.planned);
    if (options.schedule) ck_assert_uint_lt(host.planned, again.planned);
}
END_TEST

START_TEST(gradients_on_the_host_give_the_same_bits)
{
    hd_trainer_options options = kinds[_i];
    const trained device = train(options);
    options.gradient_residency = HD_RESIDENCY_HOST;
    const trained host = train(options);
    assert_same(&host, &device);
    ck_assert_int_gt(host.copies, 0);
    ck_assert_uint_eq(host.gradients, 0);
    ck_assert_uint_eq(host.host, device.gradients);
    options.optimizer_residency = HD_RESIDENCY_HOST;
    options.activations = HD_ACTIVATIONS_HOST;
    const trained all = train(options);
    assert_same(&all, &device);
    ck_assert_uint_lt(all.planned, host.planned);
}
END_TEST

/* The optimizer's state goes there with them. */
START_TEST(weights_on_the_host_give_the_same_bits)
{
    hd_trainer_options options = kinds[_i];
    options.exact = _i % 2 && options.gradients != HD_DTYPE_BF16;
    const trained device = train(options);
    options.residency = HD_RESIDENCY_HOST;
    const trained host = train(options);
    assert_same(&host, &device);
    ck_assert_int_gt(host.copies, 0);
    ck_assert_uint_lt(host.planned, device.planned);
    options.host_blocks = 2;
    const trained two = train(options);
    assert_same(&two, &device);
    ck_assert_uint_lt(two.host, host.host);
    options.gradient_residency = options.exact ? HD_RESIDENCY_RESIDENT : HD_RESIDENCY_HOST;
    options.activations = HD_ACTIVATIONS_HOST;
    const trained all = train(options);
    assert_same(&all, &device);
    ck_assert_uint_lt(all.planned, two.planned);
}
END_TEST

/* What fits is taken in this order, and each step down is taken when the one before does not fit. */
START_TEST(auto_takes_the_cheapest_that_fits)
{
    hd_model *model = hdt_tiny_model("llama", LAYERS);
    hd_mesh *mesh = NULL;
    hdt_assert_ok(hd_mesh_create_fake(0, 1, &(hd_mesh_options){0}, &mesh));
    hd_trainer_options options = {.dtype = HD_DTYPE_BF16,
                                  .activations = HD_ACTIVATIONS_AUTO,
                                  .optimizer_residency = HD_RESIDENCY_AUTO,
                                  .gradient_residency = HD_RESIDENCY_AUTO,
                                  .residency = HD_RESIDENCY_AUTO};
    hd_trainer *trainer = make_trainer(model, mesh, NULL, options);
    size_t before = 0;
    int different = 0;
    ck_assert_int_eq(trainer->options.activations, HD_ACTIVATIONS_KEEP);
    ck_assert_uint_eq(hd_plan_host_bytes(trainer->plan), 0);
    for (hd_status status = HD_OK; status == HD_OK; different++) {
        before = hd_plan_total_bytes(trainer->plan);
        options.budget = before - 1;
        hd_trainer_options tried = trainer->options;
        hd_trainer_destroy(trainer);
        trainer = NULL;
        tried.activations = options.activations;
        tried.optimizer_residency = options.optimizer_residency;
        tried.gradient_residency = options.gradient_residency;
        tried.residency = options.residency;
        tried.host_blocks = 0;
        tried.budget = options.budget;
        status = hd_trainer_create(&tried, &trainer);
        ck_assert(status == HD_OK || status == HD_ERROR_BUDGET);
        if (status == HD_OK) ck_assert_uint_le(hd_plan_total_bytes(trainer->plan), options.budget);
    }
    ck_assert_int_ge(different, 4); /* all kept, two ways of less, and blocks on the host */
    ck_assert_ptr_null(trainer);
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
}
END_TEST

START_TEST(what_cannot_be_on_the_host_is_refused)
{
    hd_model *model = hdt_tiny_model("llama", LAYERS);
    hd_mesh *mesh = NULL;
    hd_trainer *trainer = NULL;
    hd_trainer_options options = {.build = hd_model_build,
                                  .user = model,
                                  .layers = LAYERS,
                                  .sequences = 1,
                                  .tokens = HDT_TOKENS,
                                  .gradient_residency = HD_RESIDENCY_HOST};
    hdt_assert_ok(hd_mesh_create_fake(0, 2, &(hd_mesh_options){.data = 2}, &mesh));
    options.mesh = mesh;
    hdt_assert_status(hd_trainer_create(&options, &trainer), HD_ERROR_UNSUPPORTED,
                      "with 2 data and sequence ranks and layout.shard_state 0");
    options.shard_state = 1;
    hdt_assert_status(hd_trainer_create(&options, &trainer), HD_ERROR_UNSUPPORTED,
                      "want layout.shard_state 2 or 3");
    options.gradient_residency = HD_RESIDENCY_AUTO; /* never on the host here */
    options.budget = 1;
    hdt_assert_status(hd_trainer_create(&options, &trainer), HD_ERROR_BUDGET, " gradients ");
    options.shard_state = 2;
    hdt_assert_status(hd_trainer_create(&options, &trainer), HD_ERROR_BUDGET, "does not fit");
    ck_assert_ptr_null(strstr(hd_last_error(), " gradients "));
    hd_mesh_destroy(mesh);
    hdt_assert_ok(hd_mesh_create_fake(0, 1, &(hd_mesh_options){0}, &mesh));
    options.mesh = mesh;
    options.budget = 0;
    options.chunk_elements = -1;
    hdt_assert_status(hd_trainer_create(&options, &trainer), HD_ERROR_ARGUMENT, "chunks of -1");
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
}
END_TEST

/* As examples/llama-7b-on-24-gib.json has it. */
START_TEST(seven_billion_parameters_train_within_24_gib)
{
    static const char *const settings[][2] = {
        {"model.preset", "llama-7b"},      {"train.dtype", "bf16"},
        {"train.tokens", "2048"},          {"train.micro_batch", "8"},
        {"train.activations", "auto"},     {"train.gradient_residency", "auto"},
        {"optimizer.residency", "auto"},   {"memory.budget", "24GiB"},
        {"data.validation_fraction", "0"},
    };
    static const char *const wanted[] = {
        "train.activations=recompute",
        "optimizer.residency=host",
        "train.gradient_residency=host",
        "host: optimizer         67384156160 bytes",
        "copies of a step: 94337818624 bytes in, ",
    };
    hd_config *config;
    hdt_text out = {.used = 0};
    hdt_assert_ok(hd_config_create(&config));
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        hdt_assert_ok(hd_config_set(config, settings[i][0], settings[i][1]));
    hdt_assert_ok(hd_plan_run(config, 1, NULL, false, hdt_collect, &out));
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        ck_assert_msg(strstr(out.text, wanted[i]), "no '%s' in:\n%s", wanted[i], out.text);
    hdt_assert_ok(hd_config_set(config, "layout.recompute", "layer"));
    hdt_assert_status(hd_plan_run(config, 1, NULL, false, hdt_collect, &out), HD_ERROR_CONFIG,
                      "layout.recompute: seen layer with train.activations auto");
    hd_config_destroy(config);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("host_state");
    TCase *tests = tcase_create("host");
    const int count = (int)(sizeof kinds / sizeof kinds[0]);
    tcase_add_loop_test(tests, optimizer_state_on_the_host_gives_the_same_bits, 0, count);
    tcase_add_loop_test(tests, only_three_chunks_of_the_state_are_on_the_device, 0, count);
    tcase_add_test(tests, auto_puts_the_state_on_the_host_only_if_the_budget_asks_for_it);
    tcase_add_loop_test(tests, activations_on_the_host_give_the_same_bits, 0, count);
    tcase_add_loop_test(tests, what_enters_blocks_waits_on_the_host, 0, count);
    tcase_add_loop_test(tests, gradients_on_the_host_give_the_same_bits, 0, count);
    tcase_add_loop_test(tests, weights_on_the_host_give_the_same_bits, 0, count);
    tcase_add_test(tests, auto_takes_the_cheapest_that_fits);
    tcase_add_test(tests, what_cannot_be_on_the_host_is_refused);
    tcase_add_test(tests, seven_billion_parameters_train_within_24_gib);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
