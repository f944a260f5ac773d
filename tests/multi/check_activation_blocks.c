/* ranks: 1 2 4, at most 4 */
/* Training that keeps the activations of some blocks only: loss, gradients and weights have the bits of a run
 * that keeps all, for each kind of model, on every layout, whoever keeps how many. */
#include "tests/support/hdt_device.h"

#include "core/error.h"
#include "program/plan.h"
#include "tests/support/hdt_split.h"

#include <heddle/session.h>
#include <stdio.h>

enum { BLOCKS = 4 };

static const hdt_split models[] = {
    {.name = "gpt2",
     .json = "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":16,\"n_embd\":24,"
             "\"n_layer\":4,\"n_head\":4}",
     .tokens = 11,
     .heads = 4},
    {.name = "hunyuan",
     .json = "{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
             "\"num_attention_heads\": 4, \"attention_head_dim\": 8, \"num_layers\": 2, "
             "\"num_single_layers\": 2, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
             "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [4, 2, 2]}",
     .frames = 7,
     .text = 4,
     .heads = 4},
    {.name = "open sora 1.2",
     .json = "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 32, \"depth\": 2, "
             "\"num_heads\": 4, \"mlp_ratio\": 2.0, \"caption_channels\": 6, "
             "\"model_max_length\": 4, \"qk_norm\": true}",
     .frames = 3,
     .text = 4,
     .heads = 4,
     .height = 6,
     .width = 10,
     .masked = true},
};
enum { MODELS = sizeof models / sizeof models[0] };

typedef struct layout {
    hd_mesh_options mesh;
    const char *schedule;
    int chunks, shard_state;
} layout;

static const layout layouts[] = {
    {{.data = 1}, NULL, 1, 0},
    {{.data = 1}, "gpipe", 2, 0},
    {{.data = 2}, NULL, 1, 3},
    {{.pipeline = 2}, "1f1b", 1, 0},
    {{.pipeline = 2}, "gpipe", 1, 0},
    {{.pipeline = 2}, "interleaved", 2, 0},
    {{.sequence = 2}, NULL, 1, 0},
    {{.tensor = 2}, NULL, 1, 0},
    {{.data = 2, .pipeline = 2}, "1f1b", 1, 2},
    {{.sequence = 2, .ring = 2, .tensor = 2}, NULL, 1, 0},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

static int of(int size)
{
    return size ? size : 1;
}

static bool is_ours(const hd_mesh_options *mesh)
{
    return of(mesh->data) * of(mesh->pipeline) * of(mesh->sequence) * of(mesh->tensor) ==
           hd_comm_size(hdt_world);
}

typedef struct outcome {
    double loss, norm;
    uint64_t weights;
    size_t planned, used;
    int64_t code; /* of the activations that are not kept */
    hdt_split_gradients gradients;
} outcome;

static hd_status run(const hdt_split *one, hd_trainer *trainer, hd_context *context, void *result)
{
    outcome *out = result;
    hd_step_result step = {0};
    out->code = hdi_trainer_activations_code(trainer);
    out->planned = hd_plan_arena_bytes(trainer->plan);
    HD_RETURN_IF_ERROR(hd_trainer_start(trainer, context, 1));
    HD_RETURN_IF_ERROR(hdt_split_set_weights(trainer));
    HD_RETURN_IF_ERROR(
        hd_trainer_step(trainer, 1e-3, hdt_split_feed, (void *)(uintptr_t)one, &step));
    out->loss = step.loss;
    out->norm = step.grad_norm;
    if (!trainer->options.shard_state)
        HD_RETURN_IF_ERROR(hdt_split_read_gradients(trainer, &out->gradients));
    out->used = hd_session_high_water(trainer->session);
    return hd_trainer_weights_hash(trainer, &out->weights);
}

static void train(const hdt_split *one, const layout *on, hd_trainer_options options, outcome *out)
{
    memset(out, 0, sizeof *out);
    options.schedule = on->schedule;
    options.chunks = on->chunks;
    options.shard_state = on->shard_state;
    options.bucket_elements = 3000;
    options.accumulate = 2;
    hdt_assert_ok(hdt_split_with_trainer(hdt_world, one, &on->mesh, options, run, out));
}

static void assert_same(const hdt_split *one, const layout *on, const char *what,
                        const outcome *seen, const outcome *kept)
{
    const bool same = seen->loss == kept->loss && seen->norm == kept->norm &&
                      seen->weights == kept->weights &&
                      memcmp(&seen->gradients, &kept->gradients, sizeof kept->gradients) == 0;
    ck_assert_msg(same,
                  "%s, %s, data %d x pipeline %d x sequence %d x tensor %d in %d chunks, %s: loss "
                  "%.17g norm %.17g, with all kept %.17g, %.17g",
                  one->name, what, of(on->mesh.data), of(on->mesh.pipeline), of(on->mesh.sequence),
                  of(on->mesh.tensor), on->chunks, on->schedule ? on->schedule : "auto", seen->loss,
                  seen->norm, kept->loss, kept->norm);
    ck_assert_uint_le(seen->used, seen->planned);
}

START_TEST(some_blocks_give_the_bits_of_a_run_that_keeps_all)
{
    static const struct {
        hd_activations how;
        int blocks;
    } ways[] = {{HD_ACTIVATIONS_RECOMPUTE, 1},      {HD_ACTIVATIONS_RECOMPUTE, 3},
                {HD_ACTIVATIONS_RECOMPUTE, BLOCKS}, {HD_ACTIVATIONS_RECOMPUTE_HOST, 2},
                {HD_ACTIVATIONS_HOST, 1},           {HD_ACTIVATIONS_HOST, 3}};
    static outcome kept, seen;
    const hdt_split *one = &models[_i / LAYOUTS];
    const layout *on = &layouts[_i % LAYOUTS];
    if (!is_ours(&on->mesh)) return;
    hd_trainer_options options = {0};
    train(one, on, options, &kept);
    ck_assert_double_gt(kept.norm, 1e-3);
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
        char what[64];
        options.activations = ways[w].how;
        options.activation_blocks = ways[w].blocks;
        train(one, on, options, &seen);
        snprintf(what, sizeof what, "kind %d of %d blocks", ways[w].how, ways[w].blocks);
        assert_same(one, on, what, &seen, &kept);
    }
}
END_TEST

/* Stages do, and data ranks whose devices differ. */
START_TEST(ranks_that_keep_different_blocks_train_together)
{
    static outcome kept, seen;
    const hdt_split *one = &models[_i];
    for (int l = 0; l < LAYOUTS; l++) {
        const layout *on = &layouts[l];
        if (!is_ours(&on->mesh) || of(on->mesh.sequence) * of(on->mesh.tensor) > 1) continue;
        hd_trainer_options options = {0};
        train(one, on, options, &kept);
        const int rank = hd_comm_rank(hdt_world);
        options.activations = rank % 2 ? HD_ACTIVATIONS_HOST : HD_ACTIVATIONS_RECOMPUTE;
        options.activation_blocks = 1 + rank;
        train(one, on, options, &seen);
        assert_same(one, on, "different blocks", &seen, &kept);
    }
}
END_TEST

/* What one of them must give up, since its device has less room, all that share layers or sequences do. */
START_TEST(ranks_that_share_layers_or_sequences_agree)
{
    static outcome kept, all, seen;
    const hdt_split *one = &models[_i];
    for (int l = 0; l < LAYOUTS; l++) {
        const layout *on = &layouts[l];
        if (!is_ours(&on->mesh) || of(on->mesh.sequence) * of(on->mesh.tensor) == 1) continue;
        hd_trainer_options options = {0};
        train(one, on, options, &kept);
        options.activations = HD_ACTIVATIONS_RECOMPUTE;
        train(one, on, options, &all);
        options.activations = HD_ACTIVATIONS_AUTO;
        options.budget =
            hd_comm_rank(hdt_world) ? (size_t)1 << 30 : (kept.planned + all.planned) / 2;
        train(one, on, options, &seen);
        hdt_assert_ok(hd_comm_check_equal(hdt_world, &seen.code, sizeof seen.code, "blocks"));
        ck_assert_int_gt(seen.code, 0);
        ck_assert_uint_lt(seen.planned, kept.planned);
        assert_same(one, on, "the least room", &seen, &kept);
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("activation_blocks");
    tcase_add_loop_test(tests, some_blocks_give_the_bits_of_a_run_that_keeps_all, 0,
                        MODELS * LAYOUTS);
    tcase_add_loop_test(tests, ranks_that_keep_different_blocks_train_together, 0, MODELS);
    tcase_add_loop_test(tests, ranks_that_share_layers_or_sequences_agree, 0, MODELS);
    return hdt_main_ranks(argc, argv, "jobs", tests);
}
