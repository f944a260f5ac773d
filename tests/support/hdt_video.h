/* A tiny video model of the tests' own, and samplings with it: every kind of input and every way from
 * condition programs to denoising ones. */
#ifndef HDT_VIDEO_H
#define HDT_VIDEO_H

#include "runtime/memory_watch.h"
#include "tests/support/hdt.h"

#include <heddle/sampler.h>

enum {
    HDT_VIDEO_LAYERS = 4,
    HDT_VIDEO_CHANNELS = 2,
    HDT_VIDEO_FRAMES = 3,
    HDT_VIDEO_HEIGHT = 4,
    HDT_VIDEO_WIDTH = 6,
    HDT_VIDEO_ELEMENTS = HDT_VIDEO_CHANNELS * HDT_VIDEO_FRAMES * HDT_VIDEO_HEIGHT * HDT_VIDEO_WIDTH,
    HDT_VIDEO_TEXT = 6,
    HDT_VIDEO_POOLED = 5,
    HDT_VIDEO_STEPS = 5
};

/* Reads latents, a condition of as many channels, text, pooled text, time and guidance. */
extern const hd_video_model hdt_video_model;
hd_tensor hdt_video_build(void *user, hd_program *program, const hd_stage *stage, hd_tensor x);

/* Options of a sampler for texts of 3 and 5 tokens. */
hd_sampler_options hdt_video_options(const hd_mesh *mesh);

/* Text `index`, of 3 or 5 tokens, a function of the index. */
enum { HDT_VIDEO_TEXTS = 4 };
const hd_sampler_text *hdt_video_texts(void);

/* What to make, and what became of it. */
typedef struct hdt_sampling {
    hd_mesh_options mesh;
    hd_sampler_run_options run;
    hd_dtype dtype;
    size_t budget;
    hd_residency residency;
    int host_blocks;
    const char *weights;         /* NULL: from seed 3 */
    const hd_video_model *model; /* NULL: hdt_video_model */
    hd_sampler_video *videos;
    int count;
    hdi_memory_watch *memory; /* NULL, or where to put what this rank saw in use */
} hdt_sampling;

/* Latents of every video after its steps land in out [count][HDT_VIDEO_ELEMENTS] on all ranks.
 * Collective. */
hd_status hdt_sample(hd_comm *comm, const hdt_sampling *with, float *out,
                     hd_sampler_result *result);

#endif
