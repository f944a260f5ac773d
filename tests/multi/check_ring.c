/* ranks: 2 3 4 5 6 7 8 */
/* Rings of ranks, alone and among ranks that exchange heads, give what one rank gives: more ranks than
 * heads, tokens that ranks do not divide, causal and not, with text that all ranks have. */
#include "tests/support/hdt_device.h"

#include "ops/ring.h"
#include "tests/support/hdt_split.h"

#include <stdio.h>

static const hdt_split settings[] = {
    {"gpt2",
     "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":20,\"n_embd\":24,"
     "\"n_layer\":2,\"n_head\":4}",
     17, 0, 0, 4},
    {"llama",
     "{\"model_type\":\"llama\",\"vocab_size\":31,\"max_position_embeddings\":20,"
     "\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":2,"
     "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"rms_norm_eps\":1e-5}",
     19, 0, 0, 2},
    {"hunyuan",
     "{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
     "\"num_attention_heads\": 3, \"attention_head_dim\": 8, \"num_layers\": 1, "
     "\"num_single_layers\": 1, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
     "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [4, 2, 2]}",
     0, 9, 9, 3},
    {"open sora",
     "{\"model_type\": \"open_sora_2\", \"in_channels\": 8, \"vec_in_dim\": 5, "
     "\"context_in_dim\": 6, \"hidden_size\": 16, \"mlp_ratio\": 2.0, "
     "\"num_heads\": 2, \"depth\": 1, \"depth_single_blocks\": 1, "
     "\"axes_dim\": [4, 2, 2], \"cond_embed\": true, \"fused_qkv\": false}",
     0, 13, 10, 2},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

static void check_layout(const hdt_split *one, const hd_mesh_options *layout,
                         const hd_trainer_options *options, const hdt_split_outcome *alone)
{
    static hdt_split_outcome seen;
    char what[96];
    snprintf(what, sizeof what, "data %d x pipeline %d x sequence %d in rings of %d", layout->data,
             layout->pipeline, layout->sequence, layout->ring);
    const hd_status status = hdt_split_train(hdt_world, one, layout, *options, &seen);
    if (layout->sequence / layout->ring > one->heads) {
        hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "key and value heads");
        return;
    }
    hdt_assert_ok(status);
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &seen.loss, sizeof seen.loss, "losses"));
    hdt_split_compare(one, what, &seen, alone);
}

START_TEST(loss_and_gradients_are_those_of_one_rank)
{
    const hdt_split *one = &settings[_i];
    static hdt_split_outcome alone;
    const int ranks = hd_comm_size(hdt_world);
    hd_trainer_options options = {.bucket_elements = 3000};
    hdt_split_train_alone(one, &options, &alone);
    for (int ring = 2; ring <= ranks; ring++) {
        if (ranks % ring) continue;
        const hd_mesh_options layout = {.data = 1, .pipeline = 1, .sequence = ranks, .ring = ring};
        options.recompute = options.shard_state = ring < ranks;
        check_layout(one, &layout, &options, &alone);
    }
}
END_TEST

START_TEST(rings_go_with_data_and_pipeline)
{
    const hdt_split *one = &settings[_i];
    static hdt_split_outcome alone;
    if (hd_comm_size(hdt_world) != 4) return;
    hd_trainer_options options = {.bucket_elements = 3000, .accumulate = 2};
    hdt_split_train_alone(one, &options, &alone);
    check_layout(one, &(hd_mesh_options){.data = 1, .pipeline = 2, .sequence = 2, .ring = 2},
                 &options, &alone);
    options.accumulate = 1;
    check_layout(one, &(hd_mesh_options){.data = 2, .pipeline = 1, .sequence = 2, .ring = 2},
                 &options, &alone);
}
END_TEST

START_TEST(what_a_ring_cannot_cut_is_refused_with_the_reason)
{
    static hdt_split_outcome out;
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options all = {.sequence = ranks, .ring = ranks};
    const hd_trainer_options none = {0}, exact = {.exact = true};
    hdt_split one = settings[0];
    hdt_assert_status(hdt_split_train(hdt_world, &one, &all, exact, &out), HD_ERROR_UNSUPPORTED,
                      "reduction exact with sequence");
    one.tokens = 2 * ranks - 1; /* a zigzag has two pieces for each place */
    hdt_assert_status(hdt_split_train(hdt_world, &one, &all, none, &out), HD_ERROR_UNSUPPORTED,
                      "two for each rank");
    one = settings[2];
    one.text = ranks - 1;
    hdt_assert_status(hdt_split_train(hdt_world, &one, &all, none, &out), HD_ERROR_UNSUPPORTED,
                      "the text's tokens");
    const hd_mesh_options odd = {.sequence = ranks, .ring = ranks + 1};
    hdt_assert_status(hdt_split_train(hdt_world, &one, &odd, none, &out), HD_ERROR_CONFIG,
                      "want a divisor of sequence");
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("ring");
    tcase_add_loop_test(tests, loss_and_gradients_are_those_of_one_rank, 0, SETTINGS);
    tcase_add_loop_test(tests, rings_go_with_data_and_pipeline, 0, SETTINGS);
    tcase_add_test(tests, what_a_ring_cannot_cut_is_refused_with_the_reason);
    return hdt_main_ranks(argc, argv, "ring", tests);
}
