/* ranks: 1 2 4 */
/* Training that keeps parts of itself in host memory: the same bits as on the device, on every layout,
 * and across a stop and a resume that changes where things are. */
#include "tests/support/hdt.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_train.h"

#include <heddle/job.h>

#include <stdio.h>
#include <string.h>

enum { LAYERS = 4, STEPS = 3 };

typedef struct layout {
    int data, pipeline;
    bool shard_state, exact;
} layout;

static const layout layouts[] = {
    {1, 1, false, false}, {1, 1, false, true}, {1, 4, false, false},
    {2, 1, false, false}, {2, 1, true, false}, {2, 1, true, true},
    {1, 2, false, false}, {2, 2, true, false}, {2, 2, true, true},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

static const hd_trainer_options kinds[] = {
    {.dtype = HD_DTYPE_F32},
    {.dtype = HD_DTYPE_BF16, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_F16, .loss_scale = 1024, .clip_norm = 1},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static hdt_trained train(const layout *split, hd_trainer_options options)
{
    hdt_trained trained;
    options.shard_state = split->shard_state;
    options.exact = split->exact;
    options.chunk_elements = 1000;
    hdt_assert_ok(
        hdt_train(hdt_world,
                  &(hdt_training){.family = split->data == 1 ? "gpt2" : "llama",
                                  .layers = LAYERS,
                                  .steps = STEPS,
                                  .mesh = {.data = split->data, .pipeline = split->pipeline},
                                  .options = options},
                  &trained));
    return trained;
}

static void assert_same(const layout *split, const char *what, const hdt_trained *got,
                        const hdt_trained *wanted)
{
    ck_assert_msg(got->hash == wanted->hash && got->last_loss == wanted->last_loss &&
                      got->last_norm == wanted->last_norm &&
                      got->validation_loss == wanted->validation_loss,
                  "%s, data %d x pipeline %d, shard_state %d: loss %.17g norm %.17g, on the device "
                  "%.17g, %.17g",
                  what, split->data, split->pipeline, split->shard_state, got->last_loss,
                  got->last_norm, wanted->last_loss, wanted->last_norm);
    ck_assert_uint_eq(got->high_water, got->planned);
    ck_assert_uint_eq(got->allocations, 0);
    ck_assert_uint_eq(wanted->host_planned, 0);
    ck_assert_uint_gt(got->host_planned, 0);
}

START_TEST(what_is_on_the_host_trains_the_same_bits_on_every_layout)
{
    hd_trainer_options options = kinds[_i];
    for (int l = 0; l < LAYOUTS; l++) {
        const layout *split = &layouts[l];
        if (split->data * split->pipeline != hd_comm_size(hdt_world)) continue;
        options.optimizer_residency = HD_RESIDENCY_RESIDENT;
        const hdt_trained device = train(split, options);
        options.optimizer_residency = HD_RESIDENCY_HOST;
        const hdt_trained host = train(split, options);
        assert_same(split, "optimizer state", &host, &device);
        options.activations = HD_ACTIVATIONS_HOST;
        const hdt_trained both = train(split, options);
        assert_same(split, "optimizer state and activations", &both, &device);
        if (split->data == 1 && !split->exact) {
            options.gradient_residency = HD_RESIDENCY_HOST;
            const hdt_trained all = train(split, options);
            assert_same(split, "optimizer state, activations and gradients", &all, &device);
            ck_assert_uint_eq(all.gradients, 0);
        }
        options.gradient_residency = HD_RESIDENCY_RESIDENT;
        options.activations = HD_ACTIVATIONS_RECOMPUTE_HOST;
        const hdt_trained inputs = train(split, options);
        assert_same(split, "optimizer state and what enters blocks", &inputs, &device);
        options.activations = HD_ACTIVATIONS_KEEP;
    }
}
END_TEST

static void set(hd_config *config, const char *key, const char *value)
{
    hdt_assert_ok(hd_config_set(config, key, value));
}

/* Where a part of a run keeps what; pairs of keys and values. */
typedef const char *const settings[][2];

/* A run of all ranks, from step `first` or where it stopped, by these settings. Collective. */
static uint64_t run(const char *directory, const char *stop_after, const char *const place[4])
{
    static settings common = {
        {"model.layers", "2"},         {"model.hidden", "24"},
        {"model.heads", "2"},          {"train.tokens", "16"},
        {"train.micro_batch", "1"},    {"train.batch", "8"},
        {"train.steps", "6"},          {"optimizer.learning_rate", "3e-3"},
        {"train.dtype", "bf16"},       {"train.ema", "0.9"},
        {"layout.bucket", "20000"},    {"train.validate_batches", "1"},
        {"layout.reduction", "exact"}, {"layout.shard_state", "true"},
    };
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    for (size_t i = 0; i < sizeof common / sizeof common[0]; i++)
        set(config, common[i][0], common[i][1]);
    char path[4300];
    snprintf(path, sizeof path, "%s/text", hdt_shared_temp_dir());
    set(config, "data.path", path);
    set(config, "run.directory", directory);
    set(config, "run.device", hdt_device());
    set(config, "run.share_gpu", "true");
    set(config, "train.stop_after", stop_after);
    for (int i = 0; i < 4 && place[i]; i += 2)
        set(config, place[i], place[i + 1]);
    hd_train_result result;
    const hd_status status = hd_train_run(config, NULL, NULL, &result);
    hd_config_destroy(config);
    if (strcmp(stop_after, "0") == 0)
        hdt_assert_ok(status);
    else
        hdt_assert_status(status, HD_ERROR_INTERRUPTED, "saved in");
    return result.weights_hash;
}

static void write_text(void)
{
    char path[4300];
    snprintf(path, sizeof path, "%s/text", hdt_shared_temp_dir());
    if (hd_comm_rank(hdt_world) == 0) {
        FILE *file = fopen(path, "w");
        for (int i = 0; file && i < 1500; i++)
            fprintf(file, "%s", i * i % 5 > i % 3 ? "warp " : "weft ");
        ck_assert_ptr_nonnull(file);
        ck_assert_int_eq(fclose(file), 0);
    }
    hdt_assert_ok(hd_comm_barrier(hdt_world));
}

static const char *const places[][4] = {
    {"optimizer.residency", "device"},
    {"optimizer.residency", "host"},
    {"train.activations", "host"},
    {"train.residency", "host"},
    {"train.residency", "host", "layout.shard_state", "3"},
};
enum { PLACES = sizeof places / sizeof places[0] };

START_TEST(a_run_resumes_wherever_its_state_was)
{
    char directory[4300];
    write_text();
    snprintf(directory, sizeof directory, "%s/whole", hdt_shared_temp_dir());
    const uint64_t whole = run(directory, "0", places[0]);
    for (int from = 0; from < PLACES;
         from++) /* on to the next one; from one of them, to the same */
        for (int step = 0; step <= (from == 1); step++) {
            const int to = step ? from : (from + 1) % PLACES;
            snprintf(directory, sizeof directory, "%s/from-%d-%d", hdt_shared_temp_dir(), from, to);
            run(directory, "3", places[from]);
            ck_assert_uint_eq(run(directory, "0", places[to]), whole);
        }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("host_training");
    tcase_add_loop_test(tests, what_is_on_the_host_trains_the_same_bits_on_every_layout, 0, KINDS);
    tcase_add_test(tests, a_run_resumes_wherever_its_state_was);
    return hdt_main_ranks(argc, argv, "jobs", tests);
}
