/* ranks: 2 4, at most 4 */
/* Videos sampled by ranks that share their sequences are those of one rank. */
#include "tests/support/hdt_device.h"

#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_sampling.h"
#include "tests/support/hdt_stdit.h"

#include <math.h>

/* Of as many sequence ranks as there may be heads for, of pipelines of two, and in rings. */
static void compare_videos(hdt_sampling *it, int heads, double bound)
{
    static float alone[HDT_SAMPLING_VALUES], in_one[HDT_SAMPLING_VALUES];
    static const hdt_sampling_way ways[] = {{.slices = 1, .sequence_groups = 1},
                                            {.slices = 1, .sequence_groups = 2},
                                            {.slices = 2, .sequence_groups = 2}};
    const int ranks = hd_comm_size(hdt_world);
    const int64_t elements = hdt_sampling_fill(it);
    hdt_sampling_alone(it, &ways[0]);
    memcpy(alone, it->seen, it->bytes);
    const hd_mesh_options layouts[] = {{.sequence = 2, .pipeline = ranks / 2},
                                       {.sequence = ranks},
                                       {.sequence = ranks, .ring = ranks},
                                       {.sequence = ranks, .ring = 2}};
    enum { LAYOUTS = sizeof layouts / sizeof *layouts };
    hd_status status = HD_OK;
    double error[LAYOUTS] = {0};
    bool differs = false; /* where heads change places in two groups */
    for (int l = 0; l < LAYOUTS && status == HD_OK; l++) {
        const int ring = layouts[l].ring ? layouts[l].ring : 1;
        if (layouts[l].sequence / ring > heads) continue;
        const bool hears = hd_comm_rank(hdt_world) == ranks - layouts[l].sequence;
        status = hdt_sampling_run(it, hdt_world, &layouts[l], &ways[0]);
        memcpy(in_one, it->seen, it->bytes);
        if (status == HD_OK) status = hdt_sampling_run(it, hdt_world, &layouts[l], &ways[1]);
        differs = differs || memcmp(in_one, it->seen, it->bytes) != 0;
        if (status == HD_OK) status = hdt_sampling_run(it, hdt_world, &layouts[l], &ways[2]);
        for (int64_t i = 0; hears && i < elements; i++)
            error[l] = fmax(error[l], fmax(fabs((double)it->seen[i] - (double)alone[i]),
                                           fabs((double)in_one[i] - (double)alone[i])));
    }
    hdt_assert_ok(status);
    ck_assert(!differs);
    for (int l = 0; l < LAYOUTS; l++)
        ck_assert_msg(error[l] <= bound, "sequence %d, ring %d: latents are off by %g, want %g",
                      layouts[l].sequence, layouts[l].ring, error[l], bound);
}

/* The golden models have two heads, or four. */
START_TEST(videos_are_those_of_one_rank)
{
    static hdt_sampling it;
    const int models[] = {HDT_HUNYUAN, HDT_OPEN_SORA};
    hdt_mmdit file = hdt_mmdit_open(models[_i], NULL);
    hdt_sampling_of_mmdit(&it, &file);
    compare_videos(&it, models[_i] == HDT_HUNYUAN ? 2 : 4, file.tolerance);
    hdt_mmdit_close(&file);
}
END_TEST

/* Three frames, and five rows of positions in two rows of windows, make two places of a ring of four. */
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
    TCase *tests = tcase_create("sequence_videos");
    tcase_add_loop_test(tests, videos_are_those_of_one_rank, 0, 2);
    tcase_add_loop_test(tests, videos_of_spatial_and_temporal_blocks_too, 0, 2);
    return hdt_main_ranks(argc, argv, "sequence_videos", tests);
}
