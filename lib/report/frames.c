/* Clips for pictures: what GIFs and PNGs share. */
#include "report/frames.h"

#include <inttypes.h>

#include "core/error.h"

void hdi_frames_from_latents(const float *latents, int64_t frames, int64_t height, int64_t width,
                             float *out)
{
    const int64_t area = height * width;
    for (int64_t c = 0; c < 3; c++)
        for (int64_t t = 0; t < frames; t++)
            for (int64_t i = 0; i < area; i++)
                out[(t * 3 + c) * area + i] = (latents[(c * frames + t) * area + i] + 1) * 0.5f;
}

unsigned char hdi_frames_level(float value)
{
    return !(value > 0) ? 0 : value >= 1 ? 255 : (unsigned char)(value * 255 + 0.5f);
}

hd_status hdi_frames_check(const char *path, const hdi_frames *clips, int count, int64_t columns,
                           int64_t rows, int64_t scale, int64_t most)
{
    if (count < 1 || columns < 1 || rows < 1 || scale < 1 || scale > most)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: %d clips in %" PRId64 " columns, enlarged %" PRId64
                         " times: want at least one of each",
                         path, count, columns, scale);
    for (int i = 0; i < count; i++) {
        const hdi_frames *clip = &clips[i];
        if (clip->frames < 1 || clip->height < 1 || clip->width < 1 ||
            clip->height != clips[0].height || clip->width != clips[0].width)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "%s: clip %d has %" PRId64 " frames of %" PRId64 " x %" PRId64
                             " pixels, want frames of the first one's size",
                             path, i, clip->frames, clip->height, clip->width);
    }
    if (clips[0].height > (most / scale - 1) / rows - 1 ||
        clips[0].width > (most / scale - 1) / columns - 1)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: %" PRId64 " x %" PRId64 " pictures of %" PRId64 " x %" PRId64
                         " pixels, enlarged %" PRId64 " times, want at most %" PRId64
                         " pixels a side",
                         path, rows, columns, clips[0].height, clips[0].width, scale, most);
    return HD_OK;
}
