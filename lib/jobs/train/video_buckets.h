/* The samples of a video data set, put together by size: a step takes all of its samples from one
 * bucket, so that every rank has equal work. Which one, and which samples, is a function of the
 * seed and the step: there is nothing to save. Everything here is Local. */
#ifndef HDI_JOBS_TRAIN_VIDEO_BUCKETS_H
#define HDI_JOBS_TRAIN_VIDEO_BUCKETS_H

#include "io/video_dataset.h"

#include <heddle/model.h>
#include <heddle/trainer.h>

typedef struct hdi_video_bucket {
    hd_trainer_shape shape; /* `sequences` and `accumulate` are for the caller to set */
    int64_t *samples;       /* of the data set: to train on, then to validate on; owned */
    int64_t train, validate;
    int64_t capacity;
    int64_t step_samples; /* over all ranks; the caller's too */
} hdi_video_bucket;

typedef struct hdi_video_buckets {
    hdi_video_bucket *items; /* the largest videos first; owned */
    int count, capacity;
} hdi_video_buckets;

typedef struct hdi_video_buckets_options {
    const hd_video_model *model;
    const hdi_video_dataset *dataset; /* NULL: only `sizes`, without samples */
    double validation_fraction;       /* of each bucket of several samples, at least one */
    bool drops_text;                  /* the null text takes part */
    bool own_null_text; /* the model has one, as long as each text, where the data set has none */
    bool masked_frames;
    const char *const *sizes; /* "33x32x56" each: latent frames, height, width to use; none: all */
    int size_count;
} hdi_video_buckets_options;

/* HD_ERROR_MISMATCH where model and data set do not fit each other, HD_ERROR_CONFIG for sizes that
 * cannot be read or have no samples. */
hd_status hdi_video_buckets_make(const hdi_video_buckets_options *options, hdi_video_buckets *out);
void hdi_video_buckets_release(hdi_video_buckets *buckets); /* takes a zeroed one */

/* Tokens of a video of the bucket: patches and text. */
int64_t hdi_video_bucket_tokens(const hdi_video_bucket *bucket, const hd_video_model *model);

/* Sample `index` of the bucket's endless order: each epoch has all of them, in an order of its own. */
int64_t hdi_video_bucket_sample(const hdi_video_bucket *bucket, uint64_t seed, int64_t index);

/* Walks over steps. */
typedef struct hdi_video_sampler {
    const hdi_video_buckets *buckets; /* borrowed */
    uint64_t seed;
    int64_t step;   /* the next in order */
    int64_t *taken; /* [buckets] samples of the steps before it; owned */
} hdi_video_sampler;

hd_status hdi_video_sampler_create(const hdi_video_buckets *buckets, uint64_t seed,
                                   hdi_video_sampler *out);
void hdi_video_sampler_release(hdi_video_sampler *sampler); /* takes a zeroed one */

/* The bucket of a step, and where in its order the step begins. Buckets come as often as lets each
 * sample be seen equally often. Steps may be asked in any order; going on is cheap. */
void hdi_video_sampler_at(hdi_video_sampler *sampler, int64_t step, int *bucket, int64_t *first);

#endif
