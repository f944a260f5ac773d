/* One single-stream block of HunyuanVideo's shape, bf16, split over the ranks that mpirun starts:
 * milliseconds of a forward, or of forward and backward, and TFLOP/s of all ranks together. Models of one and
 * of three blocks are timed; half of the difference is a block.
 * Usage: mpirun -np RANKS speed_sequence [DEVICE [TOKENS [GROUPS [HEADS [TEXT [WORD...]]]]]]. A word says how the
 * ranks share the block: `heads` of its sequence change places (if none is given), keys and values go round
 * a `ring`, or the layers are split (`tensor`); `train` times the backward, too. GROUPS of heads, or pieces of
 * rows, travel one under what is computed of another; 0: as many as heddle would take. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <heddle/comm.h>
#include <string.h>

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
    const char *way = "heads";
    for (int i = 6; i < argc; i++) {
        if (strcmp(argv[i], "train") == 0)
            what.training = true;
        else
            way = argv[i];
    }
    what.frames = tokens;
    what.sequence_groups = what.tensor_groups = (int)groups;
    hd_comm *world;
    hdt_must(hd_comm_create_world(NULL, &world));
    const int ranks = hd_comm_size(world);
    const hd_context_options options = {.device = argc > 1 ? argv[1] : "cuda"};
    hd_mesh_options layout = {.sequence = ranks};
    if (strcmp(way, "ring") == 0) layout.ring = ranks;
    if (strcmp(way, "tensor") == 0) layout = (hd_mesh_options){.tensor = ranks};
    hdt_must(hd_mesh_create(world, &layout, &what.mesh));
    hdt_must(hd_context_create_ranked(world, &options, &what.context));
    hdt_must(hd_mesh_attach(what.mesh, what.context, HD_DEVICE_TRANSPORT_AUTO));
    const double width = (double)(what.heads * HDT_VIDEO_HEAD_DIM);
    const double rows = (double)(tokens + what.text);
    const double flops = 2 * rows * 12 * width * width + 4 * rows * rows * width;
    const double one = measure(what, 1), block = (measure(what, 3) - one) / 2;
    if (hd_comm_rank(world) == 0)
        printf(
            "heddle single-stream block of %.0f columns, %.0f tokens, %d ranks, %s, groups %" PRId64
            ", %s %.2f ms/block %.0f TFLOP/s\n",
            width, rows, ranks, way, groups, what.training ? "fwd+bwd" : "fwd", block * 1e3,
            (what.training ? 3 : 1) * flops / block / 1e12);
    hd_context_destroy(what.context);
    hd_mesh_destroy(what.mesh);
    hd_comm_destroy(world);
    return EXIT_SUCCESS;
}
