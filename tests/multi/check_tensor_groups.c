/* ranks: 2 3 4 */
/* Products in pieces beside what travels on the tensor axis give what they give at once. */
#include "tests/support/hdt_device.h"

#include "program/plan.h"
#include "tests/support/hdt_split.h"

#include <math.h>
#include <stdio.h>

static const hdt_split settings[] = {
    {"gpt2",
     "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":16,\"n_embd\":30,"
     "\"n_layer\":2,\"n_head\":5}",
     11, 0, 0, 5, 0, 0, false, 16},
    {"llama",
     "{\"model_type\":\"llama\",\"vocab_size\":31,\"max_position_embeddings\":16,"
     "\"hidden_size\":24,\"intermediate_size\":41,\"num_hidden_layers\":2,"
     "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"rms_norm_eps\":1e-5}",
     7, 0, 0, 4, 0, 0, false, 16},
    {"hunyuan",
     "{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
     "\"num_attention_heads\": 6, \"attention_head_dim\": 8, \"num_layers\": 1, "
     "\"num_single_layers\": 2, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
     "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [4, 2, 2]}",
     0, 7, 4, 6, 0, 0, false, 16},
    {"open sora",
     "{\"model_type\": \"open_sora_2\", \"in_channels\": 8, \"vec_in_dim\": 5, "
     "\"context_in_dim\": 6, \"hidden_size\": 40, \"mlp_ratio\": 2.0, "
     "\"num_heads\": 5, \"depth\": 1, \"depth_single_blocks\": 1, "
     "\"axes_dim\": [4, 2, 2], \"cond_embed\": true, \"fused_qkv\": false}",
     0, 13, 3, 5, 0, 0, true, 16},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

START_TEST(pieces_give_what_is_made_at_once)
{
    static hdt_split_outcome whole, seen;
    const hdt_split *one = &settings[_i];
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options layout = {.data = 1, .tensor = ranks};
    hd_trainer_options options = {.tensor_groups = 1};
    hdt_split_sequences = one->tokens ? 2 : 1; /* of a video's rows text is a part */
    hdt_assert_ok(hdt_split_train(hdt_world, one, &layout, options, &whole));
    for (options.tensor_groups = 2; options.tensor_groups <= 3; options.tensor_groups++) {
        char what[64];
        snprintf(what, sizeof what, "%d ranks, %d groups", ranks, options.tensor_groups);
        options.recompute = options.tensor_groups == 3;
        hdt_assert_ok(hdt_split_train(hdt_world, one, &layout, options, &seen));
        hdt_split_compare(one, what, &seen, &whole);
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("tensor groups");
    tcase_add_loop_test(tests, pieces_give_what_is_made_at_once, 0, SETTINGS);
    return hdt_main_ranks(argc, argv, "tensor groups", tests);
}
