/* PNG pictures: single frames, and contact sheets of clips. */
#ifndef HDI_REPORT_PNG_H
#define HDI_REPORT_PNG_H

#include "report/frames.h"

/* Frame `frame` of a clip, each pixel enlarged `scale` times. Local. */
hd_status hdi_png_write(const char *path, const hdi_frames *clip, int64_t frame, int scale);

/* A contact sheet: a row for each clip with at most `columns` (zero: all) evenly spaced ones of its
 * frames, margins between them, and left of it its label (`labels` may be NULL; letters, digits and
 * a few signs are drawn). Local. */
hd_status hdi_png_write_sheet(const char *path, const hdi_frames *clips, int count,
                              const char *const *labels, int64_t columns, int scale);

/* Read a PNG as [3][height][width] in [0, 1], black in place of what is transparent. *out_pixels is freed
 * by hdi_free. HD_ERROR_FORMAT if it is none, or larger than 2^26 pixels. Local. */
hd_status hdi_png_read(const char *path, float **out_pixels, int64_t *out_height,
                       int64_t *out_width);

#endif
