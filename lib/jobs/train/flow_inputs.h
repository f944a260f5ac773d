/* One micro-batch's inputs of a video model, in one block of memory. Everything here is Local. */
#ifndef HDI_JOBS_TRAIN_FLOW_INPUTS_H
#define HDI_JOBS_TRAIN_FLOW_INPUTS_H

#include "io/video_dataset.h"
#include "jobs/train/flow.h"
#include "jobs/train/video_buckets.h"

/* As stage.h has them. */
typedef enum hdi_flow_input {
    HDI_FLOW_LATENTS,
    HDI_FLOW_TIME,
    HDI_FLOW_TEXTS,
    HDI_FLOW_TEXT_COUNTS,
    HDI_FLOW_TEXT_OFFSETS,
    HDI_FLOW_TEXT_PLACES,
    HDI_FLOW_POOLED,
    HDI_FLOW_GUIDANCE,
    HDI_FLOW_FPS,
    HDI_FLOW_CONDITION,
    HDI_FLOW_FRAME_ENTRIES,
    HDI_FLOW_TARGET,
    HDI_FLOW_LOSS_WEIGHT,
    HDI_FLOW_INPUTS
} hdi_flow_input;

/* What inputs are made from; all borrowed. */
typedef struct hdi_flow_source {
    const hdi_video_dataset *dataset;
    const hdi_video_buckets *buckets;
    const hd_video_model *model;
    const float *null_text; /* the model's own, where the data set has none; NULL: no rows */
    hdi_flow_options flow;
    double guidance; /* of models with embedded guidance */
    bool
        given_loss; /* given frames count in the loss, where the model sees them beside the noise */
} hdi_flow_source;

const char *hdi_flow_input_name(hdi_flow_input input);

/* Where an input begins in the block of a micro-batch of a shape, its bytes; HDI_FLOW_INPUTS: the end. */
size_t hdi_flow_input_offset(const hdi_flow_source *source, unsigned reads,
                             const hd_trainer_shape *shape, hdi_flow_input input);
size_t hdi_flow_input_bytes(const hdi_flow_source *source, const hd_trainer_shape *shape,
                            hdi_flow_input input);

/* A micro-batch: which samples, and what their random numbers follow from. */
typedef struct hdi_flow_batch {
    int bucket;
    bool validates;       /* samples kept for that */
    int64_t step;         /* for random numbers */
    int64_t first;        /* in the bucket's order, of the step */
    int64_t first_number; /* of this micro-batch's samples within the step */
} hdi_flow_batch;

/* Fill the block with those inputs that `reads` has. `scratch` is [2 * elements of a video]. */
hd_status hdi_flow_fill(const hdi_flow_source *source, unsigned reads, const hdi_flow_batch *batch,
                        float *scratch, char *block);

#endif
