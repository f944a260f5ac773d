/* ranks: 1 2 4 */
/* Training that keeps parts of itself in host memory: the same bits as on the device, on every layout,
 * and across a stop and a resume that changes where things are. */
#include "tests/support/hdt_job.h"
#include "tests/support/hdt_train.h"

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
    ck_assert_uint_gt(got->host_planned, wanted->host_planned);
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
        options.activations = HD_ACTIVATIONS_KEEP;
    }
}
END_TEST

/* A run of all ranks, from step `first` or where it stopped, by these settings. Collective. */
static uint64_t run(const char *directory, int stop_after, const char *const place[4])
{
    static const char *const settings[][2] = {
        {"model.layers", "2"},         {"model.hidden", "24"},
        {"model.heads", "2"},          {"train.tokens", "16"},
        {"train.micro_batch", "1"},    {"train.batch", "8"},
        {"train.steps", "6"},          {"optimizer.learning_rate", "3e-3"},
        {"train.dtype", "bf16"},       {"train.ema", "0.9"},
        {"layout.bucket", "20000"},    {"train.validate_batches", "1"},
        {"layout.reduction", "exact"}, {"layout.shard_state", "true"},
    };
    hd_config *config = hdt_job_config(hdt_job_text(), directory, false);
    hdt_set_all(config, settings);
    hdt_set_number(config, "train.stop_after", stop_after);
    for (int i = 0; i < 4 && place[i]; i += 2)
        hdt_set(config, place[i], place[i + 1]);
    hd_train_result result;
    const hd_status status = hdt_job_train(config, &result);
    if (stop_after == 0)
        hdt_assert_ok(status);
    else
        hdt_assert_status(status, HD_ERROR_INTERRUPTED, "saved in");
    return result.weights_hash;
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
    const uint64_t whole = run(hdt_job_directory(), 0, places[0]);
    for (int from = 0; from < PLACES; from++)
        for (int step = 0; step <= (from == 1); step++) { /* on to the next one; one to the same */
            const int to = step ? from : (from + 1) % PLACES;
            const char *directory = hdt_job_directory();
            run(directory, 3, places[from]);
            ck_assert_uint_eq(run(directory, 0, places[to]), whole);
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
