/* ranks: 1 2 4 */
/* Training whose MLPs are made in slices of rows, for each kind of model on every layout: the bits of the same
 * layout without slices, but for the gradients of the MLPs' own weights, which are near; with reduction exact
 * the same bits on every layout. */
#include "core/error.h"
#include "tests/support/hdt_device.h"

#include <stdio.h>

#include "tests/support/hdt_split.h"

/* Of some hundred rows, so that ranks that share sequences have several slices, too. */
static const hdt_split models[] = {
    {.name = "gpt2",
     .json = "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":149,\"n_embd\":24,"
             "\"n_layer\":4,\"n_head\":4}",
     .tokens = 149,
     .heads = 4,
     .roundings = 32},
    {.name = "llama",
     .json = "{\"model_type\":\"llama\",\"vocab_size\":31,\"max_position_embeddings\":149,"
             "\"hidden_size\":24,\"intermediate_size\":41,\"num_hidden_layers\":4,"
             "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"rms_norm_eps\":1e-5,"
             "\"tie_word_embeddings\":false}",
     .tokens = 149,
     .heads = 4,
     .roundings = 32},
    {.name = "hunyuan",
     .json = "{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
             "\"num_attention_heads\": 4, \"attention_head_dim\": 8, \"num_layers\": 2, "
             "\"num_single_layers\": 2, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
             "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [4, 2, 2]}",
     .frames = 33,
     .text = 4,
     .heads = 4,
     .height = 4,
     .width = 6,
     .roundings = 32},
    {.name = "open sora 1.2",
     .json = "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 32, \"depth\": 2, "
             "\"num_heads\": 4, \"mlp_ratio\": 2.0, \"caption_channels\": 6, "
             "\"model_max_length\": 4, \"qk_norm\": true}",
     .frames = 5,
     .text = 4,
     .heads = 4,
     .height = 12,
     .width = 12,
     .masked = true,
     .roundings = 32},
};

typedef struct layout {
    hd_mesh_options mesh;
    const char *schedule;
    int chunks, shard_state;
    hd_activations activations;
    int blocks; /* that are as these say */
    hd_residency weights;
} layout;

static const layout layouts[] = {
    {{.data = 1}, NULL, 1, 0, HD_ACTIVATIONS_KEEP, 0, HD_RESIDENCY_RESIDENT},
    {{.data = 1}, NULL, 1, 0, HD_ACTIVATIONS_RECOMPUTE, 3, HD_RESIDENCY_RESIDENT},
    {{.data = 1}, "gpipe", 1, 0, HD_ACTIVATIONS_HOST, 0, HD_RESIDENCY_RESIDENT},
    {{.data = 1}, NULL, 1, 0, HD_ACTIVATIONS_RECOMPUTE_HOST, 2, HD_RESIDENCY_RESIDENT},
    {{.data = 1}, NULL, 1, 0, HD_ACTIVATIONS_RECOMPUTE, 2, HD_RESIDENCY_HOST},
    {{.data = 2}, NULL, 1, 3, HD_ACTIVATIONS_RECOMPUTE, 0, HD_RESIDENCY_RESIDENT},
    {{.pipeline = 2}, "1f1b", 1, 0, HD_ACTIVATIONS_HOST, 1, HD_RESIDENCY_RESIDENT},
    {{.pipeline = 2}, "interleaved", 2, 0, HD_ACTIVATIONS_KEEP, 0, HD_RESIDENCY_RESIDENT},
    {{.sequence = 2}, NULL, 1, 0, HD_ACTIVATIONS_RECOMPUTE, 1, HD_RESIDENCY_RESIDENT},
    {{.sequence = 2, .ring = 2}, NULL, 1, 0, HD_ACTIVATIONS_KEEP, 0, HD_RESIDENCY_RESIDENT},
    {{.tensor = 2}, NULL, 1, 0, HD_ACTIVATIONS_KEEP, 0, HD_RESIDENCY_RESIDENT},
    {{.tensor = 2}, NULL, 1, 0, HD_ACTIVATIONS_RECOMPUTE, 0, HD_RESIDENCY_RESIDENT},
    {{.tensor = 2}, NULL, 1, 0, HD_ACTIVATIONS_HOST, 0, HD_RESIDENCY_RESIDENT},
    {{.sequence = 2}, NULL, 1, 0, HD_ACTIVATIONS_HOST, 1, HD_RESIDENCY_RESIDENT},
    {{.data = 2, .pipeline = 2}, "1f1b", 1, 2, HD_ACTIVATIONS_KEEP, 0, HD_RESIDENCY_RESIDENT},
    {{.sequence = 2, .tensor = 2}, NULL, 1, 0, HD_ACTIVATIONS_RECOMPUTE, 2, HD_RESIDENCY_RESIDENT},
};
enum { MODELS = sizeof models / sizeof models[0], LAYOUTS = sizeof layouts / sizeof layouts[0] };
enum { SLICES = 2 };

static hdt_split_outcome whole, sliced;

static int of(int size)
{
    return size ? size : 1;
}

static bool is_mlp(const char *name)
{
    static const char *const parts[] = {"_mlp", ".mlp.c_", ".mlp.gate_up", ".mlp.down", ".mlp.fc"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (strstr(name, parts[i])) return true;
    return false;
}

/* On a CPU a row's bits do not depend on the rows beside it. */
static void check_bits(const hdt_split *one, const char *what)
{
    const hdt_split_gradients *a = &whole.gradients, *b = &sliced.gradients;
    int differ = 0;
    ck_assert_msg(sliced.loss == whole.loss && sliced.validation == whole.validation,
                  "%s, %s: loss %.17g, validation %.17g, want %.17g, %.17g", one->name, what,
                  sliced.loss, sliced.validation, whole.loss, whole.validation);
    ck_assert_int_eq(a->parameters, b->parameters);
    for (int p = 0; p < a->parameters; p++) {
        const bool same = memcmp(a->values + a->firsts[p], b->values + b->firsts[p],
                                 (size_t)a->sizes[p] * sizeof *a->values) == 0;
        ck_assert_str_eq(a->names[p], b->names[p]);
        ck_assert_msg(same || is_mlp(a->names[p]), "%s, %s: the gradient of %s has other bits",
                      one->name, what, a->names[p]);
        differ += !same;
    }
    ck_assert_msg(differ > 0 || a->parameters == 0, "%s, %s: nothing was sliced", one->name, what);
}

START_TEST(every_layout_has_the_bits_that_it_has_without_slices)
{
    const hdt_split *one = &models[_i / LAYOUTS];
    const layout *on = &layouts[_i % LAYOUTS];
    const hd_mesh_options *mesh = &on->mesh;
    char what[160];
    if (of(mesh->data) * of(mesh->pipeline) * of(mesh->sequence) * of(mesh->tensor) !=
        hd_comm_size(hdt_world))
        return;
    hd_trainer_options options = {.schedule = on->schedule,
                                  .chunks = on->chunks,
                                  .shard_state = on->shard_state,
                                  .activations = on->activations,
                                  .activation_blocks = on->blocks,
                                  .residency = on->weights,
                                  .tensor_groups = on->activations == HD_ACTIVATIONS_KEEP ? 1 : 3,
                                  .bucket_elements = 3000,
                                  .accumulate = 2};
    snprintf(what, sizeof what,
             "data %d x pipeline %d x sequence %d x tensor %d in %d chunks, shard_state %d, "
             "activations %d of %d blocks, weights %d",
             of(mesh->data), of(mesh->pipeline), of(mesh->sequence), of(mesh->tensor), on->chunks,
             on->shard_state, on->activations, on->blocks, on->weights);
    hdt_assert_ok(hdt_split_train(hdt_world, one, mesh, options, &whole));
    options.mlp_slices = SLICES;
    hdt_assert_ok(hdt_split_train(hdt_world, one, mesh, options, &sliced));
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &sliced.loss, sizeof sliced.loss, "losses"));
    hdt_split_compare(one, what, &sliced, &whole);
    if (strcmp(hdt_device(), "cpu") == 0) check_bits(one, what);
}
END_TEST

START_TEST(reduction_exact_has_the_same_bits_on_every_layout)
{
    const int ranks = hd_comm_size(hdt_world);
    const hdt_split *one = &models[2 * _i]; /* one kind of tokens and one of videos */
    hd_trainer_options options = {
        .exact = true, .mlp_slices = SLICES, .accumulate = 4, .recompute = true};
    hdt_split_train_alone(one, &options, &whole);
    for (int data = 1; data <= ranks; data *= 2) {
        const hd_mesh_options mesh = {.data = data, .pipeline = ranks / data};
        options.accumulate = 4 / data;
        options.recompute = !options.recompute;
        hdt_assert_ok(hdt_split_train(hdt_world, one, &mesh, options, &sliced));
        ck_assert_uint_eq(sliced.weights, whole.weights);
        ck_assert_double_eq(sliced.loss, whole.loss);
    }
}
END_TEST

typedef struct chosen {
    size_t bytes;
    int slices;
} chosen;

static hd_status note(const hdt_split *one, hd_trainer *trainer, hd_context *context, void *out)
{
    (void)one, (void)context;
    *(chosen *)out = (chosen){.bytes = hd_plan_total_bytes(hd_trainer_plan(trainer)),
                              .slices = trainer->options.mlp_slices};
    return HD_OK;
}

static hd_status take_a_step(const hdt_split *one, hd_trainer *trainer, hd_context *context,
                             void *out)
{
    hd_step_result step;
    HD_RETURN_IF_ERROR(note(one, trainer, context, out));
    HD_RETURN_IF_ERROR(hd_trainer_start(trainer, context, 7));
    return hd_trainer_step(trainer, 1e-3, hdt_split_feed, (void *)(uintptr_t)one, &step);
}

/* In a backward of an MMDiT's single blocks, what heads travel for comes in another order. */
START_TEST(ranks_that_share_sequences_choose_the_same_slices)
{
    const hdt_split *hunyuan = &models[2];
    const int ranks = hd_comm_size(hdt_world);
    const bool is_last = hd_comm_rank(hdt_world) == ranks - 1;
    const hd_mesh_options mesh = {.sequence = ranks};
    hd_trainer_options options = {.accumulate = 1, .mlp_slices = 4};
    chosen least, most, own;
    if (ranks == 1) return;
    hdt_assert_ok(hdt_split_with_trainer(hdt_world, hunyuan, &mesh, options, note, &least));
    options.mlp_slices = 1;
    hdt_assert_ok(hdt_split_with_trainer(hdt_world, hunyuan, &mesh, options, note, &most));
    ck_assert_uint_lt(least.bytes, most.bytes);
    options.mlp_slices = HD_SLICES_AUTO;
    options.budget = is_last ? most.bytes - 1 : most.bytes;
    hdt_assert_ok(hdt_split_with_trainer(hdt_world, hunyuan, &mesh, options, take_a_step, &own));
    ck_assert_int_gt(own.slices, 1);
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &own.slices, sizeof own.slices, "slices"));
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("mlp slices");
    tcase_add_loop_test(tests, every_layout_has_the_bits_that_it_has_without_slices, 0,
                        MODELS * LAYOUTS);
    tcase_add_loop_test(tests, reduction_exact_has_the_same_bits_on_every_layout, 0, MODELS / 2);
    tcase_add_test(tests, ranks_that_share_sequences_choose_the_same_slices);
    return hdt_main_ranks(argc, argv, "mlp slices", tests);
}
