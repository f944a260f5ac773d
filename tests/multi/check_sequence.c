/* ranks: 2 3 4 5, at most 5 */
/* Sequences split over ranks by unequal counts give what one rank gives. Attention of each head stays
 * whole, so forward bits are equal; gradients are sums over parts of the rows, and round otherwise. */
#include "tests/support/hdt_device.h"

#include "core/error.h"
#include "jobs/train/trainer.h"
#include "program/plan.h"
#include "tests/support/hdt_split.h"

#include <heddle/diffusion.h>
#include <heddle/model.h>
#include <heddle/nn.h>
#include <heddle/session.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const hdt_split settings[] = {
    {"gpt2",
     "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":16,\"n_embd\":30,"
     "\"n_layer\":2,\"n_head\":10}",
     11, 0, 0, 10, 0, 0, false, 0},
    {"llama",
     "{\"model_type\":\"llama\",\"vocab_size\":31,\"max_position_embeddings\":16,"
     "\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":2,"
     "\"num_attention_heads\":6,\"num_key_value_heads\":3,\"rms_norm_eps\":1e-5}",
     7, 0, 0, 3, 0, 0, false, 0},
    {"hunyuan", hdt_split_hunyuan, 0, 7, 4, 6, 0, 0, false, 0},
    {"open sora", hdt_split_open_sora, 0, 13, 3, 5, 0, 0, true, 0},
    {"open sora 1.2, given frames",
     "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 40, \"depth\": 1, "
     "\"num_heads\": 10, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
     "\"qk_norm\": true}",
     0, 3, 4, 10, 6, 10, true, 0},
    {"open sora 1.3, given frames",
     "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 60, \"depth\": 1, "
     "\"num_heads\": 10, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
     "\"qk_norm\": true, \"kernel_size\": [2, 3, -1], \"use_spatial_rope\": true}",
     0, 3, 4, 10, 6, 10, true, 0},
    {"open sora 1.3",
     "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 60, \"depth\": 1, "
     "\"num_heads\": 5, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
     "\"kernel_size\": [2, 4, -1]}",
     0, 2, 4, 5, 6, 10, false, 0},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

static void check_layout(const hdt_split *one, const hd_mesh_options *layout,
                         const hd_trainer_options *options, const hdt_split_outcome *alone,
                         hdt_split_outcome *seen)
{
    char what[96];
    snprintf(what, sizeof what, "data %d x pipeline %d x sequence %d, heads in %d groups",
             layout->data, layout->pipeline, layout->sequence, options->sequence_groups);
    const hd_status status = hdt_split_train(hdt_world, one, layout, *options, seen);
    if (layout->sequence > one->heads) {
        hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "key and value heads");
        return;
    }
    hdt_assert_ok(status);
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &seen->loss, sizeof seen->loss, "losses"));
    hdt_split_compare(one, what, seen, alone);
}

START_TEST(loss_and_gradients_are_those_of_one_rank)
{
    const hdt_split *one = &settings[_i];
    static hdt_split_outcome alone, groups[3];
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options all = {.data = 1, .pipeline = 1, .sequence = ranks};
    hd_trainer_options options = {.bucket_elements = 3000};
    hdt_split_train_alone(one, &options, &alone);
    for (int g = 0; g < 3; g++) {
        options.sequence_groups = g + 1;
        check_layout(one, &all, &options, &alone, &groups[g]);
        ck_assert_msg(
            groups[g].loss == groups[0].loss && groups[g].validation == groups[0].validation,
            "%s: heads in %d groups: loss %.17g, validation %.17g, in one %.17g, %.17g", one->name,
            g + 1, groups[g].loss, groups[g].validation, groups[0].loss, groups[0].validation);
    }
    options.recompute = true;
    options.shard_state = 3;
    check_layout(one, &all, &options, &alone, &groups[0]);
}
END_TEST

START_TEST(sequence_goes_with_data_and_pipeline)
{
    const hdt_split *one = &settings[_i];
    static hdt_split_outcome alone, seen;
    if (hd_comm_size(hdt_world) != 4) return;
    hd_trainer_options options = {.bucket_elements = 3000, .accumulate = 2, .sequence_groups = 2};
    hdt_split_train_alone(one, &options, &alone);
    check_layout(one, &(hd_mesh_options){.data = 1, .pipeline = 2, .sequence = 2}, &options, &alone,
                 &seen);
    options.accumulate = 1;
    check_layout(one, &(hd_mesh_options){.data = 2, .pipeline = 1, .sequence = 2}, &options, &alone,
                 &seen);
}
END_TEST

/* A model that says nothing of sequences, nor of layers. */
static hd_tensor build_unaware(void *user, hd_program *program, const hd_stage *stage, hd_tensor x)
{
    (void)user;
    const int64_t dims[] = {3, 4};
    if (stage->first) x = hd_input(program, "latents", HD_DTYPE_F32, 2, dims);
    if (stage->layers)
        x = hd_linear(program, x, &(hd_linear_options){.name = "layer", .outputs = 4});
    if (!stage->last) return x;
    return hd_squared_error(program, x, hd_input(program, "target", HD_DTYPE_F32, 2, dims),
                            (hd_tensor){0});
}

START_TEST(what_cannot_be_split_is_refused_with_the_reason)
{
    static hdt_split_outcome out;
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options all = {.sequence = ranks};
    const hd_trainer_options none = {0}, exact = {.exact = true};
    hdt_split one = settings[0];
    hdt_assert_status(hdt_split_train(hdt_world, &one, &all, exact, &out), HD_ERROR_UNSUPPORTED,
                      "reduction exact with layout.sequence");
    one.tokens = ranks - 1;
    hdt_assert_status(hdt_split_train(hdt_world, &one, &all, none, &out), HD_ERROR_UNSUPPORTED,
                      "tokens of a sequence");
    const hd_mesh_options layouts[] = {all, {.tensor = ranks}};
    const char *const reasons[] = {"does not split its sequences", "does not split its layers"};
    const hd_trainer_shape shape = {.sequences = 1, .tokens = 3};
    const hd_backend *backend;
    hdt_assert_ok(hd_backend_find("cpu", &backend));
    for (int l = 0; l < 2; l++) {
        hd_mesh *mesh;
        hd_trainer *trainer;
        hdt_assert_ok(hd_mesh_create(hdt_world, &layouts[l], &mesh));
        const hd_status status = hd_trainer_create(&(hd_trainer_options){.build = build_unaware,
                                                                         .layers = 1,
                                                                         .mesh = mesh,
                                                                         .backend = backend,
                                                                         .shapes = &shape,
                                                                         .shape_count = 1},
                                                   &trainer);
        hd_mesh_destroy(mesh);
        hdt_assert_status(status, HD_ERROR_UNSUPPORTED, reasons[l]);
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("sequence");
    tcase_add_loop_test(tests, loss_and_gradients_are_those_of_one_rank, 0, SETTINGS);
    tcase_add_loop_test(tests, sequence_goes_with_data_and_pipeline, 0, SETTINGS);
    tcase_add_test(tests, what_cannot_be_split_is_refused_with_the_reason);
    return hdt_main_ranks(argc, argv, "sequence", tests);
}
