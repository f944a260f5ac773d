/* ranks: 2 4 8 */
/* Videos of layers that are split over ranks, whose weights each rank reads its part of, are those of one
 * rank, whether sequences are split, too, or not. */
#include "tests/support/hdt_device.h"

#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_sampling.h"
#include "tests/support/hdt_stdit.h"

#include <math.h>

/* The golden models have two heads, or four. */
static void compare_videos(hdt_sampling *it, int heads, double bound)
{
    static float alone[HDT_SAMPLING_VALUES];
    /* Resident; streamed from one copy on the host; in slices; each at once and in pieces of rows. */
    static const hdt_sampling_way ways[] = {
        {.slices = 1, .tensor_groups = 1},
        {.residency = HD_RESIDENCY_HOST, .slices = 1, .tensor_groups = 1},
        {.slices = 2, .tensor_groups = 1},
        {.slices = 1, .tensor_groups = 2},
        {.residency = HD_RESIDENCY_HOST, .slices = 1, .tensor_groups = 3},
        {.slices = 2, .tensor_groups = 4}};
    const int ranks = hd_comm_size(hdt_world);
    const int64_t elements = hdt_sampling_fill(it);
    hdt_sampling_alone(it, &ways[0]);
    memcpy(alone, it->seen, it->bytes);
    const size_t region = it->region;
    const hd_mesh_options layouts[] = {
        {.tensor = 2, .sequence = 1, .ring = 1, .pipeline = ranks / 2},
        {.tensor = ranks, .sequence = 1, .ring = 1},
        {.tensor = 2, .sequence = 2, .ring = 1, .pipeline = ranks / 4},
        {.tensor = 2, .sequence = 2, .ring = 2, .pipeline = ranks / 4}};
    enum { LAYOUTS = sizeof layouts / sizeof *layouts, WAYS = sizeof ways / sizeof *ways };
    hd_status status = HD_OK;
    double error[LAYOUTS] = {0};
    size_t largest = 0; /* weights region */
    for (int i = 0; i < LAYOUTS * WAYS && status == HD_OK; i++) {
        const hd_mesh_options *layout = &layouts[i / WAYS];
        const int shared = layout->tensor * layout->sequence;
        const bool wants = layout->sequence == 1 ? ranks <= 4 : ranks >= 4;
        if (!wants || shared / layout->ring > heads) continue;
        const bool hears = hd_comm_rank(hdt_world) == ranks - shared;
        status = hdt_sampling_run(it, hdt_world, layout, &ways[i % WAYS]);
        for (int64_t e = 0; hears && e < elements; e++)
            error[i / WAYS] = fmax(error[i / WAYS], fabs((double)it->seen[e] - (double)alone[e]));
        if (it->region > largest) largest = it->region;
    }
    hdt_assert_ok(status);
    for (int l = 0; l < LAYOUTS; l++)
        ck_assert_msg(error[l] <= bound,
                      "sequence %d in rings of %d x tensor %d: latents are off by %g, want %g",
                      layouts[l].sequence, layouts[l].ring, layouts[l].tensor, error[l], bound);
    ck_assert_uint_lt(largest, region * 3 / 4);
}

START_TEST(videos_are_those_of_one_rank)
{
    static hdt_sampling it;
    hdt_mmdit file = hdt_mmdit_open(_i, NULL);
    hdt_sampling_of_mmdit(&it, &file);
    compare_videos(&it, _i == HDT_OPEN_SORA ? 4 : 2, file.tolerance);
    hdt_mmdit_close(&file);
}
END_TEST

START_TEST(videos_of_spatial_and_temporal_blocks_too)
{
    static hdt_sampling it;
    hdt_stdit file = _i ? hdt_stdit_open_v13() : hdt_stdit_open();
    hdt_sampling_of_stdit(&it, &file);
    compare_videos(&it, _i ? 2 : 4, 5e-5);
    hdt_stdit_close(&file);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("tensor sample");
    tcase_add_loop_test(tests, videos_are_those_of_one_rank, 0, HDT_MMDITS);
    tcase_add_loop_test(tests, videos_of_spatial_and_temporal_blocks_too, 0, 2);
    return hdt_main_ranks(argc, argv, "tensor sample", tests);
}
