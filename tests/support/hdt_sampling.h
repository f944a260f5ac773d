/* One video of golden weights, sampled by ranks on a layout. */
#ifndef HDT_SAMPLING_H
#define HDT_SAMPLING_H

#include <heddle/model.h>
#include <heddle/sampler.h>

#include "tests/support/hdt.h"
#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_stdit.h"

enum { HDT_SAMPLING_VALUES = 4096 };

/* What is sampled, and what the rank that hears of the last step has seen. */
typedef struct hdt_sampling {
    const hd_model *model;
    const char *weights; /* NULL: all of them random, none zero */
    const int64_t *dims; /* channels, frames, height, width */
    int64_t tokens;      /* of the text */
    bool masked;         /* the last frame is given */
    float text[512], seen[HDT_SAMPLING_VALUES], condition[2 * HDT_SAMPLING_VALUES];
    size_t bytes, region; /* of the latents; of the weights region of this rank */
} hdt_sampling;

/* Make *it the video of a golden file, or one of three frames for the spatial and temporal blocks of another;
 * files are borrowed. */
void hdt_sampling_of_mmdit(hdt_sampling *it, const hdt_mmdit *file);
void hdt_sampling_of_stdit(hdt_sampling *it, const hdt_stdit *file);

/* Elements of the latents. Fills text and condition. */
int64_t hdt_sampling_fill(hdt_sampling *it);

/* How: zeros mean resident weights, whole layers and as many groups of heads as suit. */
typedef struct hdt_sampling_way {
    hd_residency residency;
    int slices, sequence_groups, tensor_groups;
} hdt_sampling_way;

/* Three steps of the video. Collective over comm. */
hd_status hdt_sampling_run(hdt_sampling *it, hd_comm *comm, const hd_mesh_options *layout,
                           const hdt_sampling_way *way);

/* The same on this rank alone; asserts. */
void hdt_sampling_alone(hdt_sampling *it, const hdt_sampling_way *way);

#endif
