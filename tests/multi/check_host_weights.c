/* ranks: 1 2 4, at most 4 */
/* Training with the weights of blocks in host memory: the same bits as on the device, on every layout, with
 * whatever else is there. */
#include "tests/support/hdt.h"
#include "tests/support/hdt_train.h"

enum { LAYERS = 4, STEPS = 2 };

typedef struct layout {
    hd_mesh_options mesh;
    int chunks, shard_state;
    bool exact;
} layout;

static const layout layouts[] = {
    {{.data = 1}, 1, 0, false},
    {{.data = 1}, 2, 3, true},
    {{.pipeline = 2}, 1, 0, false},
    {{.pipeline = 2}, 2, 0, true},
    {{.data = 2}, 1, 0, true},
    {{.data = 2}, 1, 1, false},
    {{.data = 2}, 1, 2, true},
    {{.tensor = 2}, 1, 0, false},
    {{.sequence = 2}, 1, 1, false},
    {{.pipeline = 4}, 1, 0, false},
    {{.data = 2, .pipeline = 2}, 2, 1, true},
    {{.data = 2, .tensor = 2}, 1, 2, false},
    {{.data = 2}, 2, 3, true},
    {{.data = 2}, 1, 3, false},
    {{.data = 4, .shard_group = 2}, 1, 2, true},
    {{.data = 4}, 1, 3, false},
    {{.data = 2, .pipeline = 2}, 2, 3, true},
    {{.data = 4, .shard_group = 2}, 1, 3, true},
    {{.data = 2, .tensor = 2}, 1, 3, false},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

static const hd_trainer_options kinds[] = {
    {.dtype = HD_DTYPE_F32, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_BF16, .ema_decay = 0.9F},
    {.dtype = HD_DTYPE_BF16, .master = HD_MASTER_F32, .activations = HD_ACTIVATIONS_RECOMPUTE},
    {.dtype = HD_DTYPE_F16, .loss_scale = 1024, .activations = HD_ACTIVATIONS_HOST},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static int of(int size)
{
    return size ? size : 1;
}

static int ranks_of(const hd_mesh_options *mesh)
{
    return of(mesh->data) * of(mesh->pipeline) * of(mesh->sequence) * of(mesh->tensor);
}

static bool gradients_may_leave(const layout *split)
{
    return of(split->mesh.data) * of(split->mesh.sequence) == 1 || split->shard_state >= 2;
}

/* What is on the host is copied at the last moment. */
static hdt_trained train(const layout *split, hd_trainer_options options)
{
    hdt_trained trained;
    options.chunks = split->chunks;
    options.shard_state = split->shard_state;
    options.exact = split->exact;
    options.chunk_elements = 1000;
    hdt_assert_ok(hdt_train(hdt_world,
                            &(hdt_training){.family = of(split->mesh.data) == 1 ? "gpt2" : "llama",
                                            .layers = LAYERS,
                                            .steps = STEPS,
                                            .mesh = split->mesh,
                                            .late_copies = options.residency == HD_RESIDENCY_HOST,
                                            .options = options},
                            &trained));
    return trained;
}

static void assert_same(const layout *split, const char *what, const hdt_trained *got,
                        const hdt_trained *wanted)
{
    const hd_mesh_options *mesh = &split->mesh;
    ck_assert_msg(
        got->hash == wanted->hash && got->last_loss == wanted->last_loss &&
            got->last_norm == wanted->last_norm && got->validation_loss == wanted->validation_loss,
        "%s, data %d x pipeline %d x sequence %d x tensor %d, %d chunks, shard_state %d: loss "
        "%.17g norm %.17g, on the device %.17g, %.17g",
        what, mesh->data, mesh->pipeline, mesh->sequence, mesh->tensor, split->chunks,
        split->shard_state, got->last_loss, got->last_norm, wanted->last_loss, wanted->last_norm);
    ck_assert_uint_eq(got->high_water, got->planned);
    ck_assert_uint_eq(got->allocations, 0);
    ck_assert_uint_lt(got->weights, wanted->weights);
    ck_assert_uint_gt(got->host_planned, wanted->host_planned);
}

START_TEST(weights_on_the_host_train_the_same_bits_on_every_layout)
{
    hd_trainer_options options = kinds[_i];
    for (int l = 0; l < LAYOUTS; l++) {
        const layout *split = &layouts[l];
        if (ranks_of(&split->mesh) != hd_comm_size(hdt_world) || (l + _i) % 2) continue;
        options.residency = HD_RESIDENCY_RESIDENT;
        options.host_blocks = 0;
        const hdt_trained device = train(split, options);
        options.residency = HD_RESIDENCY_HOST;
        const hdt_trained host = train(split, options);
        assert_same(split, "all blocks", &host, &device);
        if (_i == 3 && gradients_may_leave(split)) {
            options.gradient_residency = HD_RESIDENCY_HOST;
            const hdt_trained all = train(split, options);
            assert_same(split, "all blocks and gradients", &all, &device);
            options.gradient_residency = HD_RESIDENCY_RESIDENT;
        }
        if (_i % 3) continue;
        options.host_blocks = 1;
        const hdt_trained one = train(split, options);
        assert_same(split, "one block", &one, &device);
        if (of(split->mesh.pipeline) < LAYERS) ck_assert_uint_gt(one.weights, host.weights);
    }
}
END_TEST

/* Rank 0 has a byte less than it needs with all blocks on the device, the others have plenty. Stages of two
 * blocks need as much either way. */
START_TEST(ranks_that_need_the_host_and_ranks_that_do_not_train_together)
{
    const bool tight = hd_comm_rank(hdt_world) == 0;
    for (int l = 0; l < LAYOUTS; l++) {
        const layout *split = &layouts[l];
        if (ranks_of(&split->mesh) != hd_comm_size(hdt_world) || of(split->mesh.pipeline) > 1)
            continue;
        hd_trainer_options options = {.dtype = HD_DTYPE_BF16,
                                      .optimizer_residency = HD_RESIDENCY_HOST,
                                      .in_turn = true}; /* else that is what a byte less costs */
        const hdt_trained device = train(split, options);
        options.residency = HD_RESIDENCY_AUTO;
        options.budget = 1 << 30;
        const hdt_trained roomy = train(split, options);
        if (tight) options.budget = roomy.planned - 1;
        const hdt_trained mixed = train(split, options);
        ck_assert_uint_eq(mixed.hash, device.hash);
        ck_assert_int_eq(mixed.planned < roomy.planned, tight);
        ck_assert_int_eq(mixed.host_planned > roomy.host_planned, tight);
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("host_weights");
    tcase_add_loop_test(tests, weights_on_the_host_train_the_same_bits_on_every_layout, 0, KINDS);
    tcase_add_test(tests, ranks_that_need_the_host_and_ranks_that_do_not_train_together);
    return hdt_main_ranks(argc, argv, "jobs", tests);
}
