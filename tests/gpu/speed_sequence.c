/* One single-stream block of HunyuanVideo's shape, bf16, its sequence split over the ranks that mpirun
 * starts: milliseconds of a forward, or of forward and backward, and TFLOP/s of all ranks together. Models
 * of one and of three blocks are timed; half of the difference is a block.
 * Usage: mpirun -np RANKS speed_sequence [DEVICE [TOKENS [GROUPS [HEADS [TEXT [train]]]]]]; GROUPS of
 * heads change places one under another's attention; 0: as many as heddle would take. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <heddle/comm.h>

#include "tests/support/hdt_video_speed.h"

static double measure(hdt_video_speed what, int blocks)
{
    what.single_blocks = blocks;
    return hdt_video_seconds(&what);
}

int main(int argc, char **argv)
{
    int64_t tokens = 42840, groups = 0;
    hdt_video_speed what = {.heads = 24, .height = 2, .width = 2, .text = 256, .double_blocks = 1};
    int64_t *const numbers[] = {&tokens, &groups, &what.heads, &what.text};
    for (int i = 2; i < argc && i < 6; i++)
        *numbers[i - 2] = strtoll(argv[i], NULL, 10);
    what.frames = tokens;
    what.sequence_groups = (int)groups;
    what.training = argc > 6;
    hd_comm *world;
    hdt_must(hd_comm_create_world(NULL, &world));
    const int ranks = hd_comm_size(world);
    const hd_context_options options = {.device = argc > 1 ? argv[1] : "cuda"};
    hdt_must(hd_mesh_create(world, &(hd_mesh_options){.sequence = ranks}, &what.mesh));
    hdt_must(hd_context_create_ranked(world, &options, &what.context));
    hdt_must(hd_mesh_attach(what.mesh, what.context, HD_DEVICE_TRANSPORT_AUTO));
    const double width = (double)(what.heads * HDT_VIDEO_HEAD_DIM);
    const double rows = (double)(tokens + what.text);
    const double flops = 2 * rows * 12 * width * width + 4 * rows * rows * width;
    const double one = measure(what, 1), block = (measure(what, 3) - one) / 2;
    if (hd_comm_rank(world) == 0)
        printf("heddle single-stream block of %.0f columns, %.0f tokens, %d ranks, groups %" PRId64
               ", %s %.2f ms/block %.0f TFLOP/s\n",
               width, rows, ranks, groups, what.training ? "fwd+bwd" : "fwd", block * 1e3,
               (what.training ? 3 : 1) * flops / block / 1e12);
    hd_context_destroy(what.context);
    hd_mesh_destroy(what.mesh);
    hd_comm_destroy(world);
    return EXIT_SUCCESS;
}
