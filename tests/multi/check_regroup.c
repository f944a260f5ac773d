/* ranks: 2 3 4 6 8 */
/* Videos whose places take turns, by frames in spatial blocks and by positions or windows in temporal
 * ones, give what one rank gives: more ranks than heads, frames and windows that do not divide, places
 * that several ranks share. */
#include "tests/support/hdt_device.h"

#include "core/error.h"
#include "tests/support/hdt_split.h"

#include <stdio.h>

/* A model, and the most places that its frames, and its positions, make. */
static const struct setting {
    hdt_split split;
    int most;
} settings[] = {
    {{"open sora 1.2, given frames",
      "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 16, \"depth\": 2, "
      "\"num_heads\": 2, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
      "\"qk_norm\": true}",
      0, 7, 4, 2, 6, 10, true, 32},
     7},
    {{"open sora 1.3, given frames",
      "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 12, \"depth\": 1, "
      "\"num_heads\": 2, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
      "\"qk_norm\": true, \"kernel_size\": [2, 2, -1], \"use_spatial_rope\": true}",
      0, 5, 4, 2, 14, 6, true, 16},
     4},
    {{"open sora 1.3",
      "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 12, \"depth\": 1, "
      "\"num_heads\": 1, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
      "\"kernel_size\": [2, 4, -1]}",
      0, 4, 4, 1, 14, 6, false, 16},
     4},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

static void check_layout(const struct setting *one, const hd_mesh_options *layout,
                         const hd_trainer_options *options, const hdt_split_outcome *alone)
{
    static hdt_split_outcome seen;
    char what[96];
    snprintf(what, sizeof what, "data %d x pipeline %d x sequence %d in %d places", layout->data,
             layout->pipeline, layout->sequence, layout->ring);
    const hd_status status = hdt_split_train(hdt_world, &one->split, layout, *options, &seen);
    int places = layout->ring;
    while (places > one->most || layout->sequence % places)
        places--;
    if (layout->sequence / places > one->split.heads) {
        hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "key and value heads");
        return;
    }
    hdt_assert_ok(status);
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &seen.loss, sizeof seen.loss, "losses"));
    hdt_split_compare(&one->split, what, &seen, alone);
}

START_TEST(loss_and_gradients_are_those_of_one_rank)
{
    const struct setting *one = &settings[_i];
    static hdt_split_outcome alone;
    const int ranks = hd_comm_size(hdt_world);
    hd_trainer_options options = {.bucket_elements = 3000};
    hdt_split_train_alone(&one->split, &options, &alone);
    for (int ring = 2; ring <= ranks; ring++) {
        if (ranks % ring) continue;
        const hd_mesh_options all = {.data = 1, .pipeline = 1, .sequence = ranks, .ring = ring};
        options = (hd_trainer_options){.bucket_elements = 3000, .sequence_groups = 2};
        check_layout(one, &all, &options, &alone);
        options.recompute = true;
        options.shard_state = ring % 4;
        check_layout(one, &all, &options, &alone);
    }
}
END_TEST

/* Stages end behind spatial blocks and behind temporal ones. */
START_TEST(places_go_with_data_and_pipeline)
{
    const struct setting *one = &settings[_i];
    static hdt_split_outcome alone;
    const int ranks = hd_comm_size(hdt_world);
    if (ranks % 2 || ranks == 2) return;
    hd_trainer_options options = {.bucket_elements = 3000, .accumulate = 2};
    hdt_split_train_alone(&one->split, &options, &alone);
    const int half = ranks / 2;
    check_layout(one, &(hd_mesh_options){.data = 1, .pipeline = 2, .sequence = half, .ring = half},
                 &options, &alone);
    if (ranks == 8 && _i == 0)
        check_layout(one, &(hd_mesh_options){.data = 1, .pipeline = 4, .sequence = 2, .ring = 2},
                     &options, &alone);
    options.accumulate = 1;
    check_layout(one, &(hd_mesh_options){.data = 2, .pipeline = 1, .sequence = half, .ring = half},
                 &options, &alone);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("regroup");
    tcase_add_loop_test(tests, loss_and_gradients_are_those_of_one_rank, 0, SETTINGS);
    tcase_add_loop_test(tests, places_go_with_data_and_pipeline, 0, 2);
    return hdt_main_ranks(argc, argv, "regroup", tests);
}
