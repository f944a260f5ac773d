/* One double-stream block of HunyuanVideo as the executor runs it, in bf16: milliseconds and TFLOP/s of a
 * forward and of forward and backward. Models of one and of three blocks are timed; half of the
 * difference is a block, so that what stands before and after the blocks cancels out.
 * Usage: speed_block [DEVICE [HEADS FRAMES HEIGHT WIDTH TEXT]], sizes of latents. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/hdt_video_speed.h"

/* Seconds of a run of a model of so many blocks. */
static double measure(hdt_video_speed what, int blocks)
{
    what.double_blocks = blocks;
    return hdt_video_seconds(&what);
}

int main(int argc, char **argv)
{
    hdt_video_speed what = {
        .heads = 24, .frames = 33, .height = 64, .width = 48, .text = 256, .single_blocks = 1};
    int64_t *const sizes[] = {&what.heads, &what.frames, &what.height, &what.width, &what.text};
    for (int i = 2; i < argc && i < 7; i++)
        *sizes[i - 2] = strtoll(argv[i], NULL, 10);
    const hd_context_options options = {.device = argc > 1 ? argv[1] : "cuda"};
    hdt_must(hd_context_create(&options, &what.context));
    const double width = (double)(what.heads * HDT_VIDEO_HEAD_DIM);
    const double tokens = (double)(what.frames * (what.height / 2) * (what.width / 2) + what.text);
    const double flops = 2 * tokens * 12 * width * width + 4 * tokens * tokens * width;
    for (int training = 0; training < 2; training++) {
        what.training = training;
        const double one = measure(what, 1), block = (measure(what, 3) - one) / 2;
        printf("heddle block of %.0f columns, %.0f tokens, %s %.2f ms/block %.0f TFLOP/s\n", width,
               tokens, training ? "fwd+bwd" : "fwd", block * 1e3,
               (training ? 3 : 1) * flops / block / 1e12);
        fflush(stdout);
    }
    hd_context_destroy(what.context);
    return EXIT_SUCCESS;
}
