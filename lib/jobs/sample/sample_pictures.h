/* Pictures of sampled videos, where latents are pixels. */
#ifndef HDI_JOBS_SAMPLE_SAMPLE_PICTURES_H
#define HDI_JOBS_SAMPLE_SAMPLE_PICTURES_H

#include "jobs/sample/sample.h"

/* Of pixel-space models with 3 channels: into `directory` one GIF for each video, samples.gif with all
 * of them and the contact sheet samples.png. `paths` are the finished videos'. Nothing for other
 * models; no GIF without libcgif. Local. */
hd_status hdi_sample_draw(const char *directory, char *const *paths, const hdi_sample_file *files,
                          int count, double frames_per_second);

#endif
