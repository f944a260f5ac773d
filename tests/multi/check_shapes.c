/* ranks: 1 2 4, at most 4 */
/* The promise: steps of several shapes give the same bits on every layout, a smaller shape costs no
 * memory, and the average of the weights is what a plain loop makes of them. */
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_train.h"

#include "core/error.h"
#include "core/memory.h"
#include "jobs/train/trainer.h"

#include <math.h>
#include <string.h>

typedef struct layout {
    int data, pipeline, chunks;
} layout;

static const layout layouts[] = {{1, 1, 1}, {1, 1, 2}, {2, 1, 1}, {1, 2, 1},
                                 {1, 2, 2}, {4, 1, 1}, {1, 4, 1}, {2, 2, 1}};
enum { LAYERS = 4, STEPS = 4, SHORT = 8, LAYOUTS = sizeof layouts / sizeof layouts[0] };
static const char *const families[] = {"gpt2", "llama"};

typedef struct run {
    hd_model *model;
    hd_mesh *mesh;
    hd_context *context;
    hd_trainer *trainer;
} run;

/* Two shapes: 4 micro-batches of long sequences, or 8 of more but shorter ones. */
static hd_status open_run(hd_comm *comm, const char *family, const layout *split,
                          const hd_trainer_options *wanted, run *out)
{
    *out = (run){.model = hdt_tiny_model(family, LAYERS)};
    const hd_mesh_options sizes = {.data = split->data, .pipeline = split->pipeline};
    const hd_trainer_shape shapes[] = {
        {.sequences = 2, .tokens = HDT_TOKENS, .accumulate = 4 / split->data},
        {.sequences = 3, .tokens = SHORT, .accumulate = 8 / split->data}};
    hd_status status = hdt_open_place(comm, &sizes, &out->mesh, &out->context);
    if (status != HD_OK) return status;
    hd_trainer_options options = *wanted;
    options.build = hd_model_build;
    options.user = out->model;
    options.layers = LAYERS;
    options.mesh = out->mesh;
    options.backend = hd_context_backend(out->context);
    options.shapes = shapes;
    if (!options.shape_count) options.shape_count = 2;
    options.chunks = split->chunks;
    options.exact = true;
    options.bucket_elements = 20000;
    options.clip_norm = 1;
    options.validate_batches = 2;
    status = hd_trainer_create(&options, &out->trainer);
    return status == HD_OK ? hd_trainer_start(out->trainer, out->context, 42) : status;
}

static void close_run(run *it)
{
    hd_trainer_destroy(it->trainer);
    hdt_close_place(it->mesh, it->context);
    hd_model_destroy(it->model);
}

static hd_status feed(void *user, const char *name, int64_t global_batch, void *out, size_t bytes)
{
    const int64_t step = *(const int64_t *)user;
    const int shift = strcmp(name, "targets") == 0;
    int32_t *ids = out;
    for (int64_t i = 0; i < (int64_t)(bytes / sizeof *ids); i++)
        ids[i] = (int32_t)((7 * step + 3 * global_batch + i / 5 + i + shift) % HDT_VOCAB);
    return HD_OK;
}

typedef struct outcome {
    uint64_t hash;
    double losses[STEPS], validation;
} outcome;

static hd_status train(hd_comm *comm, const char *family, const layout *split,
                       const hd_trainer_options *options, outcome *out)
{
    run it;
    uint64_t allocations = 0;
    hd_step_result result;
    hd_status status = open_run(comm, family, split, options, &it);
    for (int64_t step = 0; step < STEPS && status == HD_OK; step++) {
        status = hd_trainer_step_shape(it.trainer, step % 3 != 0, 3e-3, feed, &step, &result);
        out->losses[step] = result.loss;
        if (step == 0) allocations = hdi_alloc_count();
    }
    int64_t step = 99;
    if (status == HD_OK) status = hd_trainer_validate_shape(it.trainer, 1, feed, &step, &result);
    const bool learns = strcmp(hdt_device(), "cpu") != 0; /* a GPU's products, at first use */
    if (status == HD_OK && !learns && hdi_alloc_count() != allocations)
        status = hdi_error(HD_ERROR_INTERNAL, "memory was taken after the first step");
    out->validation = result.loss;
    if (status == HD_OK) status = hd_trainer_weights_hash(it.trainer, &out->hash);
    if (status == HD_OK && hd_session_high_water(hd_trainer_session(it.trainer)) >
                               hd_plan_arena_bytes(hd_trainer_plan(it.trainer)))
        status = hdi_error(HD_ERROR_INTERNAL, "more than was planned");
    close_run(&it);
    return status;
}

START_TEST(two_shapes_give_the_same_bits_on_every_layout)
{
    hd_comm *self = NULL;
    outcome wanted = {0};
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    hd_status status = train(self, families[_i], &layouts[0], &(hd_trainer_options){0}, &wanted);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    for (int l = 0; l < LAYOUTS; l++) {
        if (layouts[l].data * layouts[l].pipeline != hd_comm_size(hdt_world)) continue;
        for (int variant = 0; variant < 4; variant += 3) {
            outcome got = {0};
            hdt_assert_ok(train(
                hdt_world, families[_i], &layouts[l],
                &(hd_trainer_options){.shard_state = variant & 1, .recompute = variant & 2}, &got));
            ck_assert_msg(got.hash == wanted.hash, "%s, data %d x pipeline %d x chunks %d, %d",
                          families[_i], layouts[l].data, layouts[l].pipeline, layouts[l].chunks,
                          variant);
            ck_assert_mem_eq(got.losses, wanted.losses, sizeof got.losses);
            if (layouts[l].data == 1) ck_assert_double_eq(got.validation, wanted.validation);
        }
    }
}
END_TEST

/* Its copies on the host are taken before the first step, of all shapes. */
START_TEST(the_staged_transport_takes_no_memory_in_a_step_either)
{
    if (strcmp(hdt_device(), "cpu") != 0) return; /* its places stay as they are */
    for (int l = 0; l < LAYOUTS; l++) {
        if (layouts[l].data * layouts[l].pipeline != hd_comm_size(hdt_world)) continue;
        const hd_trainer_options options = {.shard_state = true};
        outcome direct = {0}, staged = {0};
        hd_status status = train(hdt_world, families[0], &layouts[l], &options, &direct);
        hdt_set_staged(true);
        if (status == HD_OK) status = train(hdt_world, families[0], &layouts[l], &options, &staged);
        hdt_set_staged(false);
        hdt_assert_ok(status);
        ck_assert(staged.hash == direct.hash);
    }
}
END_TEST

START_TEST(a_smaller_shape_costs_no_more_than_its_gradient_levels)
{
    if (hd_comm_size(hdt_world) > 1) return;
    run one, two;
    hdt_assert_ok(
        open_run(hdt_world, "gpt2", &layouts[0], &(hd_trainer_options){.shape_count = 1}, &one));
    hdt_assert_ok(open_run(hdt_world, "gpt2", &layouts[0], &(hd_trainer_options){0}, &two));
    const hd_plan *small = hd_trainer_plan(one.trainer), *large = hd_trainer_plan(two.trainer);
    /* 8 micro-batches meet in a tree of one level more than 4; all else is shared. */
    ck_assert_uint_eq(hd_plan_arena_bytes(large),
                      hd_plan_arena_bytes(small) + large->gradient_level_bytes);
    close_run(&one);
    close_run(&two);
}
END_TEST

enum { MOST = 1 << 20, DECAYS = 3 };
static float averages[MOST];

/* The plain loop: each update moves the average by 1 - decay of the way. */
typedef struct plain {
    hd_trainer *trainer;
    double share;
    int64_t at;
    bool first, checks;
    double worst;
} plain;

static hd_status follow(void *user, const hdi_trainer_part *part)
{
    static float values[MOST];
    plain *loop = user;
    ck_assert_int_le(loop->at + part->count, MOST);
    hdt_assert_ok(hdi_trainer_read(loop->trainer, part, 0, part->count, values));
    for (int64_t i = 0; i < part->count; i++, loop->at++) {
        float *mine = &averages[loop->at];
        const float value = values[i];
        *mine = loop->first ? value : *mine + (float)loop->share * (value - *mine);
        if (!loop->checks) continue;
        const double off = fabs((double)*mine - (double)part->average[i]);
        const double scale = fmax(fabs((double)value), fabs((double)*mine)) + 1e-30;
        if (off / scale > loop->worst) loop->worst = off / scale;
    }
    return HD_OK;
}

static const hd_trainer_options kinds[] = {
    {.ema_decay = 0.9F},
    {.ema_decay = 0.5F, .ema_warmup = true, .shard_state = true},
    {.ema_decay = 0.9F, .dtype = HD_DTYPE_BF16, .shard_state = true},
    {.ema_decay = 0.9F, .dtype = HD_DTYPE_BF16, .master = HD_MASTER_REMAINDER},
};

START_TEST(the_average_is_what_a_plain_loop_makes)
{
    if (strcmp(hdt_device(), "cpu") != 0) return; /* reads the arena */
    for (int l = 0; l < LAYOUTS; l++) {
        if (layouts[l].data * layouts[l].pipeline != hd_comm_size(hdt_world)) continue;
        run it;
        plain loop = {.first = true};
        hd_step_result result;
        hdt_assert_ok(open_run(hdt_world, "gpt2", &layouts[l], &kinds[_i], &it));
        loop.trainer = it.trainer;
        hdt_assert_ok(hdi_trainer_saved_parts(it.trainer, follow, &loop));
        for (int64_t step = 0; step < STEPS; step++) {
            const double decay = (double)kinds[_i].ema_decay,
                         early = (2.0 + (double)step) / (11.0 + (double)step);
            loop = (plain){.trainer = it.trainer,
                           .share = 1 - (kinds[_i].ema_warmup ? fmin(decay, early) : decay),
                           .checks = true};
            hdt_assert_ok(
                hd_trainer_step_shape(it.trainer, (int)(step % 2), 3e-3, feed, &step, &result));
            hdt_assert_ok(hdi_trainer_saved_parts(it.trainer, follow, &loop));
        }
        close_run(&it);
        /* The same fp32 operations; a compiler may fuse the product and the sum of one of them: half
         * an ulp a step. */
        ck_assert_double_le(loop.worst, STEPS * 0x1p-23);
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("shapes");
    tcase_add_loop_test(tests, two_shapes_give_the_same_bits_on_every_layout, 0, 2);
    tcase_add_test(tests, the_staged_transport_takes_no_memory_in_a_step_either);
    tcase_add_test(tests, a_smaller_shape_costs_no_more_than_its_gradient_levels);
    tcase_add_loop_test(tests, the_average_is_what_a_plain_loop_makes, 0,
                        sizeof kinds / sizeof kinds[0]);
    return hdt_main_ranks(argc, argv, "shapes", tests);
}
