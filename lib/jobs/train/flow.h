/* Rectified flow (arXiv 2209.03003): how a training sample is made from clean latents, noise and a
 * time, as functions of (seed, step, number of the sample in the step) alone, so that no layout
 * changes them. Everything here is Local and allocates nothing. */
#ifndef HDI_JOBS_TRAIN_FLOW_H
#define HDI_JOBS_TRAIN_FLOW_H

#include <heddle/model.h>

/* What times are moved towards noise by, the more the larger a video is: the formulas of
 * optim/flow.h. */
typedef enum hdi_flow_shift_kind {
    HDI_FLOW_SHIFT_CONSTANT,
    HDI_FLOW_SHIFT_OPEN_SORA_2,
    HDI_FLOW_SHIFT_OPEN_SORA_1
} hdi_flow_shift_kind;

/* Which frames are given, clean, beside the text. */
typedef enum hdi_flow_task {
    HDI_FLOW_TEXT, /* none */
    HDI_FLOW_HEAD, /* the first */
    HDI_FLOW_LOOP, /* the first and the last */
    HDI_FLOW_TAIL, /* the last */
    HDI_FLOW_TASKS
} hdi_flow_task;

typedef struct hdi_flow_options {
    uint64_t seed;
    bool uniform_time; /* else logit-normal: sigmoid of a normal number */
    double time_mean, time_std;
    hdi_flow_shift_kind shift;
    double shift_factor;               /* the constant shift, or a factor of the others */
    double sigma_min;                  /* noise that stays at time 0 */
    bool towards_data;                 /* the target is data minus noise, else noise minus data */
    double text_dropout;               /* probability, for text and pooled text each on its own */
    double task_ratio[HDI_FLOW_TASKS]; /* of each task; all zero: text only */
} hdi_flow_options;

/* What is drawn for a sample. */
typedef struct hdi_flow_draw {
    double time; /* 0: data, 1: noise; shifted */
    bool drops_text, drops_pooled;
    hdi_flow_task task;
} hdi_flow_draw;

/* The shift for a model at a shape. */
double hdi_flow_shift(const hdi_flow_options *options, const hd_video_model *model,
                      const hd_video_shape *shape);

void hdi_flow_draw_sample(const hdi_flow_options *options, double shift, int64_t frames,
                          int64_t step, int64_t sample, hdi_flow_draw *out);

/* Whether latent frame `frame` of `frames` is given. */
bool hdi_flow_is_given(hdi_flow_task task, int64_t frame, int64_t frames);

/* out[i] = noise of element i of the sample. */
void hdi_flow_noise(const hdi_flow_options *options, int64_t step, int64_t sample, int64_t elements,
                    float *out);

/* noisy = (1 - t) * data + (1 - (1 - sigma_min) * (1 - t)) * noise, and
 * target = +-((1 - sigma_min) * noise - data). Either may be NULL; `target` may be `noise`. */
void hdi_flow_mix(const hdi_flow_options *options, double time, int64_t elements, const float *data,
                  const float *noise, float *noisy, float *target);

#endif
