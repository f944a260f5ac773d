/* ranks: 2 4 */
/* Weights of which each rank keeps a share, in its device's memory or in what it copies from the host, and which
 * ranks gather block by block: texts and videos of the same bits as with resident weights, whatever number
 * of them each line of ranks makes. */
#include "core/error.h"
#include "program/plan.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_generate.h"
#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_video.h"

#include <stdlib.h>

static const hd_residency kinds[] = {HD_RESIDENCY_SHARDED, HD_RESIDENCY_HOST_SHARDED};
enum { KINDS = sizeof kinds / sizeof *kinds, VIDEOS = 3 };

/* Three videos on two lines or four, which have two, one or none; one of them is taken up in its midst. */
static void make_videos(hd_sampler_video videos[VIDEOS], const float *begun)
{
    for (int v = 0; v < VIDEOS; v++) /* texts of both lengths: two programs in turn */
        videos[v] = (hd_sampler_video){.text = {v % 2, 3, 2}, .seed = 5, .number = (uint64_t)v};
    videos[1].step = 2;
    videos[1].latents = begun;
}

START_TEST(videos_have_the_same_bits)
{
    float resident[VIDEOS * HDT_VIDEO_ELEMENTS], got[VIDEOS * HDT_VIDEO_ELEMENTS];
    float begun[HDT_VIDEO_ELEMENTS];
    const int ranks = hd_comm_size(hdt_world);
    hd_sampler_video videos[VIDEOS];
    hdt_fill(begun, HDT_VIDEO_ELEMENTS, 8);
    make_videos(videos, begun);
    const hd_mesh_options layouts[] = {{.data = ranks}, {.data = ranks / 2, .pipeline = 2}};
    for (int l = 0; l < 2 && layouts[l].data > 1; l++) {
        hdt_sampling with = {.run = {.shift = 3, .branches = 2, .guidance = 4},
                             .videos = videos,
                             .count = VIDEOS,
                             .dtype = _i ? HD_DTYPE_BF16 : HD_DTYPE_F32,
                             .mesh = layouts[l]};
        hdt_assert_ok(hdt_sample(hdt_world, &with, resident, NULL));
        for (int k = 0; k < KINDS; k++) {
            with.residency = kinds[k];
            for (with.host_blocks = 0; with.host_blocks < HDT_VIDEO_LAYERS; with.host_blocks++) {
                hdt_assert_ok(hdt_sample(hdt_world, &with, got, NULL));
                ck_assert_msg(memcmp(got, resident, sizeof got) == 0,
                              "layout %d, kind %d, %d blocks: other bits", l, k, with.host_blocks);
            }
        }
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *videos = tcase_create("videos");
    tcase_add_loop_test(videos, videos_have_the_same_bits, 0, 2);
    return hdt_main_ranks(argc, argv, "gathered_weights", videos);
}
