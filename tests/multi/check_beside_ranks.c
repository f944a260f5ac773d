/* ranks: 2 4 */
/* An update whose weights ranks gather, or that are kept on the host or in shards, goes on beside the next step: the
 * same bits as one that ends first, on all ranks or on none. */
#include "core/error.h"
#include "core/memory.h"
#include "jobs/train/trainer.h"
#include "runtime/session.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_late.h"
#include "tests/support/hdt_train.h"

#include <string.h>

enum { LAYERS = 3, STEPS = 5, ACCUMULATE = 2, CHUNK = 1024, AHEAD = -1 };

static const hd_mesh_options meshes[] = {
    {.data = 2},
    {.sequence = 2},
    {.data = 4},
    {.data = 2, .pipeline = 2},
    {.data = 2, .sequence = 2},
    {.data = 2, .tensor = 2},
    {.data = 4, .shard_group = 2},
};
enum { MESHES = sizeof meshes / sizeof meshes[0] };

static const hd_trainer_options kinds[] = {
    {.shard_state = 1, .optimizer_residency = HD_RESIDENCY_HOST},
    {.shard_state = 1, .residency = HD_RESIDENCY_HOST, .dtype = HD_DTYPE_BF16, .ema_decay = 0.9F},
    {.shard_state = 2,
     .optimizer_residency = HD_RESIDENCY_HOST,
     .gradient_residency = HD_RESIDENCY_HOST,
     .dtype = HD_DTYPE_BF16,
     .activations = HD_ACTIVATIONS_HOST},
    {.shard_state = 2,
     .optimizer_residency = HD_RESIDENCY_HOST,
     .dtype = HD_DTYPE_F16,
     .loss_scale = 0x1p11F,
     .loss_scale_steps = 1},
    {.shard_state = 3, .optimizer_residency = HD_RESIDENCY_HOST, .recompute = true},
    {.shard_state = 3,
     .residency = HD_RESIDENCY_HOST,
     .host_blocks = 2,
     .gradient_residency = HD_RESIDENCY_HOST,
     .dtype = HD_DTYPE_BF16},
    {.residency = HD_RESIDENCY_HOST, .dtype = HD_DTYPE_BF16},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

typedef struct seen {
    double losses[STEPS], norms[STEPS], validation;
    uint64_t between, hash;
    int under_way, skipped; /* steps that ended before their update; steps without one */
} seen;

static hd_trainer_options options_of(const hd_trainer_options *kind, const hd_mesh *mesh,
                                     const hd_model *model)
{
    hd_trainer_options o = *kind;
    o.build = hd_model_build;
    o.user = (void *)(uintptr_t)model;
    o.layers = LAYERS;
    o.mesh = mesh;
    o.sequences = HDT_SEQUENCES;
    o.tokens = HDT_TOKENS;
    o.accumulate = ACCUMULATE;
    o.bucket_elements = 2000;
    o.chunk_elements = CHUNK;
    o.clip_norm = 1;
    o.validate_batches = 1;
    return o;
}

/* Two shapes take turns; after some steps others look at what the update changes. `ahead`: ops that are queued
 * before somebody waits for them; AHEAD: as always. */
static hd_status run(hd_trainer *trainer, int ahead, bool drains, seen *out)
{
    hdi_beside *beside = &trainer->session->beside;
    if (ahead != AHEAD) beside->ahead = ahead;
    uint64_t allocations = 0;
    for (int64_t step = 0; step < STEPS; step++) {
        hd_step_result result;
        HD_RETURN_IF_ERROR(
            hd_trainer_step_shape(trainer, step == 3, 3e-3, hdt_feed, &step, &result));
        out->losses[step] = result.loss;
        out->norms[step] = result.grad_norm;
        out->skipped += result.skipped;
        out->under_way += beside->flags > 0 && beside->raised < beside->flags;
        if (drains) HD_RETURN_IF_ERROR(hd_session_drain(trainer->session));
        if (step == 0) allocations = hdi_alloc_count();
        if (step == 1) {
            HD_RETURN_IF_ERROR(hd_trainer_validate(trainer, hdt_feed, &step, &result));
            out->validation = result.loss;
        }
        if (step == STEPS - 2) {
            ck_assert_uint_eq(hdi_alloc_count(), allocations);
            HD_RETURN_IF_ERROR(hd_trainer_weights_hash(trainer, &out->between));
        }
    }
    ck_assert_uint_eq(hd_session_high_water(trainer->session), hd_plan_arena_bytes(trainer->plan));
    HD_RETURN_IF_ERROR(hd_trainer_weights_hash(trainer, &out->hash));
    ck_assert_int_eq(beside->flags, 0);
    return HD_OK;
}

static seen train(const hd_mesh_options *split, hd_trainer_options kind, int ahead, bool drains)
{
    hd_model *model = hdt_tiny_model("llama", LAYERS);
    const hd_trainer_shape shapes[] = {
        {.sequences = HDT_SEQUENCES, .tokens = HDT_TOKENS, .accumulate = ACCUMULATE},
        {.sequences = HDT_SEQUENCES, .tokens = HDT_TOKENS / 2, .accumulate = ACCUMULATE}};
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    seen out = {0};
    hd_status status = hdt_open_place(hdt_world, split, &mesh, &context);
    if (status == HD_OK) {
        const bool is_cpu = strcmp(hdt_device(), "cpu") == 0;
        if (is_cpu) {
            context->backend = hdt_late_backend();
            context->attached = mesh;
        }
        hd_trainer_options options = options_of(&kind, mesh, model);
        options.backend = context->backend;
        options.shapes = shapes;
        options.shape_count = 2;
        status = hd_trainer_create(&options, &trainer);
    }
    if (status == HD_OK) status = hd_trainer_start(trainer, context, 7);
    if (status == HD_OK) status = run(trainer, ahead, drains, &out);
    hd_trainer_destroy(trainer);
    hdt_close_place(mesh, context);
    hd_model_destroy(model);
    hdt_assert_ok(status);
    return out;
}

static void assert_same(const hd_mesh_options *split, const seen *a, const seen *b)
{
    ck_assert_msg(memcmp(a->losses, b->losses, sizeof a->losses) == 0 &&
                      memcmp(a->norms, b->norms, sizeof a->norms) == 0 &&
                      a->validation == b->validation && a->between == b->between &&
                      a->hash == b->hash && a->skipped == b->skipped,
                  "data %d, pipeline %d, sequence %d, groups of %d: loss %.17g, %.17g; norm %.17g, "
                  "%.17g; validation %.17g, %.17g",
                  split->data, split->pipeline, split->sequence, split->shard_group,
                  a->losses[STEPS - 1], b->losses[STEPS - 1], a->norms[STEPS - 1],
                  b->norms[STEPS - 1], a->validation, b->validation);
}

static bool fits(const hd_mesh_options *split, const hd_trainer_options *kind)
{
    const int sizes[] = {split->data, split->pipeline, split->sequence, split->tensor};
    int ranks = 1;
    for (int i = 0; i < 4; i++)
        ranks *= sizes[i] ? sizes[i] : 1;
    return ranks == hd_comm_size(hdt_world) && (!split->shard_group || kind->shard_state >= 2);
}

/* Each rank queues another number of ops ahead: the order of what ranks post does not depend on it. */
START_TEST(what_comes_behind_an_update_finds_the_same_bits)
{
    hd_trainer_options in_turn = kinds[_i];
    in_turn.in_turn = true;
    for (int m = 0; m < MESHES; m++) {
        if (!fits(&meshes[m], &kinds[_i])) continue;
        const seen first = train(&meshes[m], in_turn, AHEAD, false);
        const seen late = train(&meshes[m], kinds[_i], 9 * hd_comm_rank(hdt_world), false);
        const seen drained = train(&meshes[m], kinds[_i], 0, true);
        hdt_set_staged(strcmp(hdt_device(), "cpu") == 0);
        const seen always = train(&meshes[m], kinds[_i], AHEAD, false);
        hdt_set_staged(false);
        assert_same(&meshes[m], &always, &first);
        assert_same(&meshes[m], &late, &first);
        assert_same(&meshes[m], &drained, &first);
        ck_assert_int_eq(late.under_way, STEPS - late.skipped);
        ck_assert_int_eq(first.under_way, 0);
        ck_assert_int_eq(late.skipped > 0, kinds[_i].dtype == HD_DTYPE_F16);
        ck_assert_int_gt(late.under_way, 1);
    }
}
END_TEST

static const hdi_transport *under;
static int gathers, failing; /* so far, and the one that fails; 0: none */

static hd_status count_gather(hd_comm *comm, void *inout, const int64_t *counts,
                              const int64_t *offsets, hd_dtype dtype, hd_request *out)
{
    if (++gathers == failing) return hdi_error(HD_ERROR_IO, "no gather %d", gathers);
    return under->all_gather(comm, inout, counts, offsets, dtype, out);
}

typedef struct counted {
    hd_model *model;
    hd_mesh *mesh;
    hd_context *context;
    hd_trainer *trainer;
    hd_comm *comm;
    hdi_transport transport;
} counted;

/* A trainer that has taken a step; what it gathers is counted from here on. */
static void begin_counting(const hd_trainer_options *kind, counted *out)
{
    hd_step_result result;
    int64_t step = 0;
    const hd_mesh_options split = {.data = hd_comm_size(hdt_world)};
    out->model = hdt_tiny_model("llama", LAYERS);
    hdt_assert_ok(hdt_open_place(hdt_world, &split, &out->mesh, &out->context));
    hd_trainer_options options = options_of(kind, out->mesh, out->model);
    options.backend = out->context->backend;
    hdt_assert_ok(hd_trainer_create(&options, &out->trainer));
    hdt_assert_ok(hd_trainer_start(out->trainer, out->context, 7));
    hdt_assert_ok(hd_trainer_step(out->trainer, 3e-3, hdt_feed, &step, &result));
    out->comm = hd_mesh_device_comm(out->mesh, HD_AXIS_SHARD);
    under = out->comm->transport;
    out->transport = *under;
    out->transport.all_gather = count_gather;
    out->comm->transport = &out->transport;
    gathers = failing = 0;
}

static void end_counting(counted *it)
{
    hd_trainer_destroy(it->trainer);
    it->comm->transport = under;
    hdt_close_place(it->mesh, it->context);
    hd_model_destroy(it->model);
}

/* Its peers may be elsewhere: they would take what it posts for something else. */
START_TEST(who_leaves_posts_nothing_more)
{
    counted it;
    begin_counting(&kinds[0], &it);
    const hdi_beside *beside = &it.trainer->session->beside;
    ck_assert_int_lt(beside->raised, beside->flags - 1);
    end_counting(&it);
    ck_assert_int_eq(gathers, 0);
}
END_TEST

/* What was posted before one fails comes, all the same: into slots, and where weights are. */
START_TEST(what_was_gathered_when_another_failed_is_waited_for)
{
    static const hd_trainer_options resident = {.shard_state = 1};
    counted it;
    hd_step_result result;
    int64_t step = 1;
    begin_counting(_i ? &resident : &kinds[4], &it);
    failing = 4;
    hdt_assert_status(hd_trainer_step(it.trainer, 3e-3, hdt_feed, &step, &result), HD_ERROR_IO,
                      "no gather");
    end_counting(&it); /* it looks for what is still under way */
}
END_TEST

/* The last rank has no room for it. */
START_TEST(all_ranks_gather_beside_or_none)
{
    const int ranks = hd_comm_size(hdt_world);
    const bool is_last = hd_comm_rank(hdt_world) == ranks - 1;
    hd_model *model = hdt_tiny_model("llama", LAYERS);
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hdt_assert_ok(hdt_open_place(hdt_world, &(hd_mesh_options){.data = ranks}, &mesh, &context));
    hd_trainer_options options = options_of(&kinds[_i], mesh, model);
    hd_trainer *beside = NULL, *in_turn = NULL, *chosen = NULL;
    options.backend = context->backend;
    hdt_assert_ok(hd_trainer_create(&options, &beside));
    options.in_turn = true;
    hdt_assert_ok(hd_trainer_create(&options, &in_turn));
    options.in_turn = false;
    ck_assert(hdi_trainer_updates_beside(&beside->options));
    options.budget = hd_plan_total_bytes(is_last ? in_turn->plan : beside->plan);
    hdt_assert_ok(hd_trainer_create(&options, &chosen));
    ck_assert_int_eq(hdi_trainer_updates_beside(&chosen->options),
                     kinds[_i].shard_state == 0 && !is_last);
    hd_trainer_destroy(beside);
    hd_trainer_destroy(in_turn);
    hd_trainer_destroy(chosen);
    hdt_close_place(mesh, context);
    hd_model_destroy(model);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("beside_ranks");
    tcase_add_loop_test(tests, what_comes_behind_an_update_finds_the_same_bits, 0, KINDS);
    tcase_add_test(tests, who_leaves_posts_nothing_more);
    tcase_add_loop_test(tests, what_was_gathered_when_another_failed_is_waited_for, 0, 2);
    tcase_add_loop_test(tests, all_ranks_gather_beside_or_none, 0, KINDS);
    return hdt_main_ranks(argc, argv, "beside_ranks", tests);
}
