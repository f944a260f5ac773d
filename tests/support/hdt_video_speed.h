/* The speed of blocks of HunyuanVideo's shape, bf16, as the executor runs them. For programs that measure:
 * they end at the first error. */
#ifndef HDT_VIDEO_SPEED_H
#define HDT_VIDEO_SPEED_H

#include <heddle/mesh.h>
#include <heddle/session.h>

enum { HDT_VIDEO_HEAD_DIM = 128 };

typedef struct hdt_video_speed {
    hd_context *context;
    hd_mesh *mesh;                              /* attached to the context; NULL: one rank */
    int64_t heads, frames, height, width, text; /* sizes of latents, tokens of text */
    int double_blocks, single_blocks;
    bool training;
    int sequence_groups, tensor_groups; /* as hd_program_options has them */
} hdt_video_speed;

/* Prints what failed and ends the program. */
void hdt_must(hd_status status);

/* Seconds of a run of the whole model, the mean of several; prints them, on the first rank. Collective. */
double hdt_video_seconds(const hdt_video_speed *what);

#endif
