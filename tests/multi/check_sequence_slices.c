/* ranks: 2 3 4 5, at most 5 */
/* Videos that ranks of the sequence axis make in slices are bit for bit those that they make at once. */
#include "tests/support/hdt_device.h"

#include "core/error.h"
#include "tests/support/hdt_sampling.h"

#include <math.h>

/* Eleven heads, which no number of ranks divides; HunyuanVideo has the image's rows first, Open-Sora the
 * text's. Rows are more than those for few of which the BLAS has kernels of their own. */
static const struct video {
    const char *json;
    int64_t dims[4], tokens;
} videos[] = {
    {"{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
     "\"num_attention_heads\": 11, \"attention_head_dim\": 8, \"num_layers\": 1, "
     "\"num_single_layers\": 2, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
     "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [4, 2, 2]}",
     {2, 3, 14, 10},
     33},
    {"{\"model_type\": \"open_sora_2\", \"in_channels\": 8, \"vec_in_dim\": 5, "
     "\"context_in_dim\": 6, \"hidden_size\": 88, \"mlp_ratio\": 2.0, \"num_heads\": 11, "
     "\"depth\": 1, \"depth_single_blocks\": 2, \"axes_dim\": [4, 2, 2], \"cond_embed\": true, "
     "\"fused_qkv\": false}",
     {2, 3, 14, 10},
     37},
};

static const hdt_sampling_way at_once = {.slices = 1, .tensor_groups = 1};
static const hdt_sampling_way sliced[] = {
    {.slices = 2, .tensor_groups = 1},
    {.slices = 16, .tensor_groups = 1},
    {.slices = 2, .sequence_groups = 4, .tensor_groups = 1, .residency = HD_RESIDENCY_HOST}};
enum { WAYS = sizeof sliced / sizeof *sliced };

/* Whether this rank has seen the same. A GPU's library may take other kernels for fewer columns, and ranks
 * that share one take turns: there one way has to run. */
static hd_status compare(hdt_sampling *it, const hd_mesh_options *layout, bool *same)
{
    static float whole[HDT_SAMPLING_VALUES];
    const bool on_cpu = strcmp(hdt_device(), "cpu") == 0;
    HD_RETURN_IF_ERROR(hdt_sampling_run(it, hdt_world, layout, &at_once));
    memcpy(whole, it->seen, it->bytes);
    for (size_t i = 0; i < it->bytes / sizeof *whole; i++)
        *same = *same && isfinite(whole[i]);
    for (int w = 0; w < (on_cpu ? WAYS : 1); w++) {
        HD_RETURN_IF_ERROR(hdt_sampling_run(it, hdt_world, layout, &sliced[w]));
        *same = *same && (!on_cpu || memcmp(whole, it->seen, it->bytes) == 0);
    }
    return HD_OK;
}

/* The first `count` layouts, of four ranks; of other numbers there are two. */
enum { MOST_LAYOUTS = 6 };
static void compare_layouts(hdt_sampling *it, int count)
{
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options layouts[MOST_LAYOUTS] = {{.sequence = ranks},
                                                   {.sequence = ranks, .ring = ranks},
                                                   {.sequence = ranks, .ring = 2},
                                                   {.sequence = 2, .tensor = 2, .ring = 1},
                                                   {.sequence = 2, .tensor = 2, .ring = 2},
                                                   {.sequence = 2, .pipeline = 2, .ring = 1}};
    hd_status status = HD_OK;
    bool same[MOST_LAYOUTS];
    for (int l = 0; l < MOST_LAYOUTS && status == HD_OK; l++) {
        same[l] = true;
        if (l < 2 || (ranks == 4 && l < count)) status = compare(it, &layouts[l], &same[l]);
    }
    hdt_assert_ok(status);
    for (int l = 0; l < MOST_LAYOUTS; l++)
        ck_assert_msg(same[l], "sequence %d, ring %d, tensor %d: other bits in slices",
                      layouts[l].sequence, layouts[l].ring, layouts[l].tensor);
}

START_TEST(videos_in_slices_have_the_bits_of_videos_at_once)
{
    static hdt_sampling it;
    hd_model *model;
    hdt_assert_ok(hd_model_create_json(videos[_i].json, &model));
    it = (hdt_sampling){.model = model, .dims = videos[_i].dims, .tokens = videos[_i].tokens};
    hdt_sampling_fill(&it);
    compare_layouts(&it, MOST_LAYOUTS);
    hd_model_destroy(model);
}
END_TEST

/* Blocks of space and time take only their MLP in slices. */
START_TEST(videos_of_spatial_and_temporal_blocks_too)
{
    static hdt_sampling it;
    hdt_stdit file = hdt_stdit_open();
    hdt_sampling_of_stdit(&it, &file);
    if (hd_comm_size(hdt_world) <= 4) compare_layouts(&it, 2);
    hdt_stdit_close(&file);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("sequence_slices");
    tcase_add_loop_test(tests, videos_in_slices_have_the_bits_of_videos_at_once, 0,
                        sizeof videos / sizeof *videos);
    tcase_add_test(tests, videos_of_spatial_and_temporal_blocks_too);
    return hdt_main_ranks(argc, argv, "sequence_slices", tests);
}
