/* Animated GIFs through libcgif, which is left out of the build where it is missing. */
#include "report/gif.h"

#include "core/error.h"

#ifdef HDI_CGIF

#include <cgif.h>
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "report/output.h"
#include "report/palette.h"

enum { MOST_PIXELS = 65535, PALETTE_PIXELS = 1 << 24 };

typedef struct picture {
    const hdi_frames *clips;
    int count;
    int64_t frames, columns, rows, scale; /* rows of clips */
    int64_t width, height;
    uint8_t *pixels; /* palette indices */
    hdi_palette *palette;
    uint8_t empty; /* of places without a clip: white */
} picture;

bool hdi_gif_is_there(void)
{
    return true;
}

static void colour_at(const hdi_frames *clip, int64_t frame, int64_t at, uint8_t out[3])
{
    const int64_t area = clip->height * clip->width;
    if (frame >= clip->frames) frame = clip->frames - 1;
    for (int c = 0; c < 3; c++)
        out[c] = hdi_frames_level(clip->pixels[(frame * 3 + c) * area + at]);
}

/* All pixels, or of many evenly spaced ones as many as the palette takes. */
static void make_palette(picture *it)
{
    int64_t total = 0;
    for (int i = 0; i < it->count; i++)
        total += it->clips[i].frames * it->clips[i].height * it->clips[i].width;
    const int64_t step = total / PALETTE_PIXELS + 1;
    int64_t place = 0;
    for (int i = 0; i < it->count; i++) {
        const hdi_frames *clip = &it->clips[i];
        const int64_t area = clip->height * clip->width;
        for (int64_t p = 0; p < clip->frames * area; p++) {
            if (place++ % step) continue;
            uint8_t colour[3];
            colour_at(clip, p / area, p % area, colour);
            hdi_palette_add(it->palette, colour[0], colour[1], colour[2]);
        }
    }
    hdi_palette_make(it->palette);
    it->empty = (uint8_t)it->palette->count++;
    memset(&it->palette->colours[3 * it->empty], 255, 3);
}

static void draw_frame(picture *it, int64_t frame)
{
    const int64_t height = it->clips[0].height, width = it->clips[0].width;
    for (int64_t y = 0; y < it->height; y++)
        for (int64_t x = 0; x < it->width; x++) {
            const int64_t row = y / it->scale, column = x / it->scale;
            const int64_t number = row / height * it->columns + column / width;
            uint8_t colour[3], *out = &it->pixels[y * it->width + x];
            if (number >= it->count) {
                *out = it->empty;
                continue;
            }
            colour_at(&it->clips[number], frame, row % height * width + column % width, colour);
            *out = hdi_palette_find(it->palette, colour[0], colour[1], colour[2]);
        }
}

static int write_bytes(void *output, const uint8_t *data, const size_t bytes)
{
    hdi_output_bytes(output, data, bytes);
    return ((hdi_output *)output)->status == HD_OK ? 0 : -1;
}

static hd_status encode(picture *it, hdi_output *output, uint16_t delay)
{
    CGIF_Config config = {.pGlobalPalette = it->palette->colours,
                          .attrFlags = CGIF_ATTR_IS_ANIMATED,
                          .width = (uint16_t)it->width,
                          .height = (uint16_t)it->height,
                          .numGlobalPaletteEntries = (uint16_t)it->palette->count,
                          .numLoops = CGIF_INFINITE_LOOP,
                          .pWriteFn = write_bytes,
                          .pContext = output};
    CGIF *gif = cgif_newgif(&config);
    bool good = gif != NULL;
    for (int64_t t = 0; t < it->frames && good; t++) {
        draw_frame(it, t);
        CGIF_FrameConfig frame = {
            .pImageData = it->pixels, .genFlags = CGIF_FRAME_GEN_USE_DIFF_WINDOW, .delay = delay};
        good = cgif_addframe(gif, &frame) == CGIF_OK;
    }
    if (gif && cgif_close(gif) != CGIF_OK) good = false;
    if (output->status != HD_OK) return output->status;
    return good ? HD_OK
                : hdi_error(HD_ERROR_MEMORY, "%s: libcgif failed to encode it", output->path);
}

hd_status hdi_gif_write(const char *path, const hdi_frames *clips, int count, int columns,
                        int scale, double frames_per_second)
{
    const int64_t rows = columns > 0 ? (count + (int64_t)columns - 1) / columns : 0;
    HD_RETURN_IF_ERROR(hdi_frames_check(path, clips, count, columns, rows, scale, MOST_PIXELS));
    if (!(frames_per_second > 0))
        return hdi_error(HD_ERROR_ARGUMENT, "%s: %g frames a second, want more than 0", path,
                         frames_per_second);
    picture it = {.clips = clips, .count = count, .columns = columns, .rows = rows, .scale = scale};
    it.width = columns * clips[0].width * scale;
    it.height = rows * clips[0].height * scale;
    for (int i = 0; i < count; i++)
        if (clips[i].frames > it.frames) it.frames = clips[i].frames;
    it.pixels = hdi_alloc_array((size_t)it.width, (size_t)it.height);
    it.palette = hdi_alloc(sizeof *it.palette);
    hdi_output *output = hdi_alloc(sizeof *output);
    hd_status status = HD_ERROR_MEMORY;
    if (!it.pixels || !it.palette || !output) {
        hdi_error(status, "%s: no memory for a picture of %lld x %lld pixels", path,
                  (long long)it.width, (long long)it.height);
    } else {
        make_palette(&it);
        /* In hundredths of a second; browsers slow what is faster than 2 of them. */
        const double delay = 100 / frames_per_second;
        status = hdi_output_open(output, path);
        if (status == HD_OK)
            status = encode(&it, output,
                            (uint16_t)(delay < 2       ? 2
                                       : delay > 60000 ? 60000
                                                       : lround(delay)));
        if (status == HD_OK)
            status = hdi_output_commit(output);
        else
            hdi_output_abandon(output);
    }
    hdi_free(output);
    hdi_free(it.palette);
    hdi_free(it.pixels);
    return status;
}

#else

bool hdi_gif_is_there(void)
{
    return false;
}

hd_status hdi_gif_write(const char *path, const hdi_frames *clips, int count, int columns,
                        int scale, double frames_per_second)
{
    (void)clips, (void)count, (void)columns, (void)scale, (void)frames_per_second;
    return hdi_error(HD_ERROR_UNSUPPORTED,
                     "%s: no GIF, heddle was built without libcgif (Debian: libcgif-dev)", path);
}

#endif
