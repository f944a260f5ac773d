/* What the kinds of `heddle data` share: the set that is written, its classes, its report. */
#ifndef HDI_JOBS_DATA_DATA_H
#define HDI_JOBS_DATA_DATA_H

#include <heddle/job.h>

#include "core/file.h"
#include "io/video_dataset.h"
#include "jobs/listing.h"

typedef struct hdi_data_job {
    const hd_data_options *options; /* defaults filled in */
    hdi_listing *listing;
    hdi_video_writer *writer; /* made by hdi_data_begin */
    hdi_name_list classes;    /* names, in the order of their texts; text 0 is the empty prompt */
    int64_t samples;
} hdi_data_job;

/* Each kind reads its inputs and appends samples. */
hd_status hdi_data_shapes(hdi_data_job *job);
hd_status hdi_data_images(hdi_data_job *job);
hd_status hdi_data_videos(hdi_data_job *job);
hd_status hdi_data_arrays(hdi_data_job *job);

/* Begin a set of RGB pixels with the job's classes as texts: all of the same number of tokens, the
 * words of the longest name. Without classes there are no texts. */
hd_status hdi_data_begin_pixels(hdi_data_job *job);

/* Append pixels [3, frames, height, width] of the class of that index, -1: none. */
hd_status hdi_data_append(hdi_data_job *job, int64_t frames, int64_t height, int64_t width,
                          int class_index, double fps, const float *pixels);

/* A file among the inputs, and its class. */
typedef struct hdi_data_file {
    char *path; /* owned */
    int class_index;
} hdi_data_file;

typedef struct hdi_data_files {
    hdi_data_file *files;
    int count, capacity;
} hdi_data_files;

/* The inputs that are files, and those below inputs that are folders, whose sub-folders' names
 * become job->classes. `endings` ends with NULL; in folders, files that end otherwise are passed
 * over. HD_ERROR_ARGUMENT if there are none. */
hd_status hdi_data_find_files(hdi_data_job *job, const char *const *endings, hdi_data_files *out);
void hdi_data_files_free(hdi_data_files *files);

/* Scale pixels [3][height][width] to cover wanted_height x wanted_width, by averages over areas, and
 * cut off what stands over on both sides alike. */
void hdi_data_resize(const float *pixels, int64_t height, int64_t width, int64_t wanted_height,
                     int64_t wanted_width, float *out);

#endif
