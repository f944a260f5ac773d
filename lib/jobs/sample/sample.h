/* The parts of the sampling job: what the configuration asks for, what comes in, what is kept. */
#ifndef HDI_JOBS_SAMPLE_SAMPLE_H
#define HDI_JOBS_SAMPLE_SAMPLE_H

#include "jobs/config.h"

#include <heddle/sampler.h>

/* Order of the names of sample.scheduler. */
typedef enum hdi_sample_scheduler {
    HDI_SCHEDULER_AUTO,
    HDI_SCHEDULER_FLOW,
    HDI_SCHEDULER_OPEN_SORA_2,
    HDI_SCHEDULER_OPEN_SORA_1
} hdi_sample_scheduler;

/* sample_settings.c: sizes in latents, and how to guide. */
typedef struct hdi_sample_settings {
    const hd_video_model *model; /* borrowed from the hd_model */
    hdi_sample_scheduler scheduler;
    hd_video_shape shape; /* text aside */
    int64_t pixel_frames, pixel_height, pixel_width;
    hd_dtype dtype;
    hd_sampler_run_options run; /* events aside */
} hdi_sample_settings;

/* `given`: some frames are given. HD_ERROR_CONFIG names the key, what was seen and what would do. */
hd_status hdi_sample_settings_read(const hd_config *config, const hd_model *model,
                                   const hd_backend *backend, bool given, hdi_sample_settings *out);

/* sample_inputs.c: texts, each with the name that its results get, and given frames. */
typedef struct hdi_sample_inputs {
    hd_sampler_text *texts; /* [count + negatives] owned; the negative texts come last */
    char **names;           /* [count] owned */
    int count, capacity, name_capacity;
    int negatives;    /* 0; 1: for all inputs; count: one for each */
    int64_t *lengths; /* owned, the different lengths of texts */
    int length_count;
    float *null_text;         /* owned, the weights' negative text, which texts have as theirs */
    float *given, *condition; /* owned, as hd_sampler_video has them; NULL: none */
    bool *given_frames;       /* owned */
} hdi_sample_inputs;

/* Read sample.inputs and sample.negative, for a model; without a negative text, that of the weights at
 * this path, which may be NULL. */
hd_status hdi_sample_inputs_read(const hd_config *config, const hd_video_model *model,
                                 const char *weights, bool wants_negative, hdi_sample_inputs *out);

/* Read sample.given: latents of the settings' size and which frames of them are given. */
hd_status hdi_sample_inputs_read_given(const char *path, const hdi_sample_settings *settings,
                                       hdi_sample_inputs *inout);
void hdi_sample_inputs_free(hdi_sample_inputs *inputs); /* takes a zeroed one */

/* sample_files.c: a video on its way or done. A file is whole or absent; its metadata say how many steps
 * are done, of what (fingerprint), and the sum of the latents. */
typedef struct hdi_sample_file {
    const char *name; /* of the input */
    uint64_t seed, fingerprint;
    int64_t step, steps;
    const hdi_sample_settings *settings;
} hdi_sample_file;

/* latents [channels, frames, height, width]. */
hd_status hdi_sample_file_write(const char *path, const hdi_sample_file *file,
                                const float *latents);

/* Steps done of what `file` describes: -1 if there is no such file, it is damaged, or another
 * sampling's, which *why then says (static text). `latents` may be NULL: they are only checked. */
int64_t hdi_sample_file_read(const char *path, const hdi_sample_file *file, float *latents,
                             const char **why);

#endif
