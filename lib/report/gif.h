/* Animated GIFs of clips. */
#ifndef HDI_REPORT_GIF_H
#define HDI_REPORT_GIF_H

#include "report/frames.h"

/* Clips of equal height and width side by side, `columns` in a row, each pixel enlarged `scale`
 * times, as one animation that starts over for ever; shorter clips rest on their last frame. One
 * palette for all. HD_ERROR_UNSUPPORTED if heddle was built without libcgif. Local. */
hd_status hdi_gif_write(const char *path, const hdi_frames *clips, int count, int columns,
                        int scale, double frames_per_second);

/* False if heddle was built without libcgif. */
bool hdi_gif_is_there(void);

#endif
