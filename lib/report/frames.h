/* Clips for pictures: frames as they leave a pixel-space model. */
#ifndef HDI_REPORT_FRAMES_H
#define HDI_REPORT_FRAMES_H

#include <heddle/status.h>

/* Borrowed. Values below 0 and above 1, and NaN, are shown as the nearest that there is (NaN: 0). */
typedef struct hdi_frames {
    const float *pixels; /* [frames][3][height][width] in [0, 1] */
    int64_t frames, height, width;
} hdi_frames;

/* Pixels [3][frames][height][width] in [-1, 1], as data sets and models have them, to
 * [frames][3][height][width] in [0, 1]. */
void hdi_frames_from_latents(const float *latents, int64_t frames, int64_t height, int64_t width,
                             float *out);

/* One colour of a frame as 0 .. 255. */
unsigned char hdi_frames_level(float value);

/* Refuses clips that are empty, differ in height and width, or whose picture of columns x rows of
 * them, each enlarged `scale` times with a margin of one pixel, is wider or higher than `most`. */
hd_status hdi_frames_check(const char *path, const hdi_frames *clips, int count, int64_t columns,
                           int64_t rows, int64_t scale, int64_t most);

#endif
