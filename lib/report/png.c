/* PNG pictures through libpng's simplified interface, which reports errors by return values. */
#include "report/png.h"

#include <inttypes.h>
#include <png.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "report/font.h"
#include "report/output.h"

enum {
    MOST_PIXELS = 1 << 15, /* a side */
    READ_PIXELS = 1 << 26, /* of a file */
    READ_BYTES = 1 << 28,
    MARGIN = 2, /* around the frames of a sheet, before they are enlarged by dots */
    MOST_LETTERS = 40,
    PAPER = 255,
    INK = 60
};

/* Red, green, blue, row by row. */
typedef struct canvas {
    uint8_t *pixels;
    int64_t width, height;
} canvas;

static hd_status create_canvas(const char *path, int64_t width, int64_t height, canvas *out)
{
    if (width > MOST_PIXELS || height > MOST_PIXELS)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: a picture of %" PRId64 " x %" PRId64
                         " pixels, want at most %d a side",
                         path, width, height, MOST_PIXELS);
    *out = (canvas){.width = width, .height = height};
    out->pixels = hdi_alloc((size_t)(3 * width * height));
    if (!out->pixels)
        return hdi_error(HD_ERROR_MEMORY, "%s: no memory for %" PRId64 " x %" PRId64 " pixels",
                         path, width, height);
    memset(out->pixels, PAPER, (size_t)(3 * width * height));
    return HD_OK;
}

static void draw_frame(const canvas *it, const hdi_frames *clip, int64_t frame, int64_t left,
                       int64_t top, int64_t scale)
{
    const int64_t area = clip->height * clip->width;
    const float *from = clip->pixels + frame * 3 * area;
    for (int64_t y = 0; y < clip->height * scale; y++)
        for (int64_t x = 0; x < clip->width * scale; x++)
            for (int64_t c = 0; c < 3; c++)
                it->pixels[3 * ((top + y) * it->width + left + x) + c] =
                    hdi_frames_level(from[c * area + y / scale * clip->width + x / scale]);
}

static void draw_label(const canvas *it, const char *label, int64_t left, int64_t top,
                       int64_t scale)
{
    for (int i = 0; label[i] && i < MOST_LETTERS; i++, left += (HDI_FONT_WIDTH + 1) * scale)
        for (int64_t y = 0; y < HDI_FONT_HEIGHT * scale; y++)
            for (int64_t x = 0; x < HDI_FONT_WIDTH * scale; x++)
                if (hdi_font_dot(label[i], (int)(x / scale), (int)(y / scale)))
                    memset(it->pixels + 3 * ((top + y) * it->width + left + x), INK, 3);
}

static hd_status write_canvas(const char *path, const canvas *it)
{
    png_image image = {.version = PNG_IMAGE_VERSION,
                       .width = (png_uint_32)it->width,
                       .height = (png_uint_32)it->height,
                       .format = PNG_FORMAT_RGB};
    png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(image);
    uint8_t *data = hdi_alloc(bytes);
    hdi_output *output = hdi_alloc(sizeof *output);
    hd_status status = HD_OK;
    if (!data || !output) {
        status = hdi_error(HD_ERROR_MEMORY, "%s: no memory to write it", path);
    } else if (!png_image_write_to_memory(&image, data, &bytes, 0, it->pixels, 0, NULL)) {
        status = hdi_error(HD_ERROR_INTERNAL, "%s: libpng: %s", path, image.message);
    } else {
        hdi_output_open(output, path);
        hdi_output_bytes(output, data, bytes);
        status = hdi_output_commit(output);
    }
    png_image_free(&image);
    hdi_free(output);
    hdi_free(data);
    return status;
}

hd_status hdi_png_write(const char *path, const hdi_frames *clip, int64_t frame, int scale)
{
    HD_RETURN_IF_ERROR(hdi_frames_check(path, clip, 1, 1, 1, scale, MOST_PIXELS));
    if (frame < 0 || frame >= clip->frames)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: frame %" PRId64 ", the clip has %" PRId64, path,
                         frame, clip->frames);
    canvas it;
    HD_RETURN_IF_ERROR(create_canvas(path, clip->width * scale, clip->height * scale, &it));
    draw_frame(&it, clip, frame, 0, 0, scale);
    const hd_status status = write_canvas(path, &it);
    hdi_free(it.pixels);
    return status;
}

hd_status hdi_png_write_sheet(const char *path, const hdi_frames *clips, int count,
                              const char *const *labels, int64_t columns, int scale)
{
    int64_t most = 0, letters = 0;
    for (int i = 0; i < count; i++) {
        if (clips[i].frames > most) most = clips[i].frames;
        const int64_t length = labels && labels[i] ? (int64_t)strlen(labels[i]) : 0;
        if (length > letters) letters = length < MOST_LETTERS ? length : MOST_LETTERS;
    }
    if (columns <= 0 || columns > most) columns = most;
    HD_RETURN_IF_ERROR(hdi_frames_check(path, clips, count, columns, count, scale, MOST_PIXELS));

    const int64_t dot = scale < 4 ? 2 : scale / 2, margin = MARGIN * dot;
    const int64_t wide = clips[0].width * scale + margin, line = HDI_FONT_HEIGHT * dot;
    const int64_t tall = clips[0].height * scale;
    const int64_t high = (letters && tall < line ? line : tall) + margin;
    const int64_t left = letters ? letters * (HDI_FONT_WIDTH + 1) * dot + 2 * margin : margin;
    canvas it;
    HD_RETURN_IF_ERROR(create_canvas(path, left + columns * wide, margin + count * high, &it));
    for (int i = 0; i < count; i++) {
        const int64_t top = margin + i * high, frames = clips[i].frames;
        if (labels && labels[i])
            draw_label(&it, labels[i], margin, top + (high - margin - line) / 2, dot);
        for (int64_t c = 0; c < columns && c < frames; c++)
            draw_frame(&it, &clips[i], frames <= columns ? c : c * frames / columns,
                       left + c * wide, top, scale);
    }
    const hd_status status = write_canvas(path, &it);
    hdi_free(it.pixels);
    return status;
}

static hd_status decode(const char *path, png_image *image, uint8_t **bytes, float **out)
{
    if ((uint64_t)image->width * image->height > READ_PIXELS)
        return hdi_error(HD_ERROR_FORMAT, "%s: %u x %u pixels, want at most 2^26", path,
                         image->width, image->height);
    image->format = PNG_FORMAT_RGB;
    const size_t area = (size_t)image->width * image->height;
    *bytes = hdi_alloc_array(area, 3);
    *out = hdi_alloc_array(area, 3 * sizeof **out);
    if (!*bytes || !*out)
        return hdi_error(HD_ERROR_MEMORY, "%s: no memory for %u x %u pixels", path, image->width,
                         image->height);
    const png_color black = {0, 0, 0};
    if (!png_image_finish_read(image, &black, *bytes, 0, NULL))
        return hdi_error(HD_ERROR_FORMAT, "%s: %s", path, image->message);
    for (size_t i = 0; i < area; i++)
        for (size_t c = 0; c < 3; c++)
            (*out)[c * area + i] = (float)(*bytes)[3 * i + c] / 255;
    return HD_OK;
}

hd_status hdi_png_read(const char *path, float **out_pixels, int64_t *out_height,
                       int64_t *out_width)
{
    *out_pixels = NULL;
    char *file;
    size_t file_bytes;
    HD_RETURN_IF_ERROR(hdi_file_read_all(path, READ_BYTES, &file, &file_bytes));
    png_image image = {.version = PNG_IMAGE_VERSION};
    uint8_t *bytes = NULL;
    float *pixels = NULL;
    hd_status status =
        png_image_begin_read_from_memory(&image, file, file_bytes)
            ? decode(path, &image, &bytes, &pixels)
            : hdi_error(HD_ERROR_FORMAT, "%s: is no good PNG: %s", path, image.message);
    *out_height = image.height;
    *out_width = image.width;
    png_image_free(&image);
    hdi_free(bytes);
    hdi_free(file);
    if (status == HD_OK)
        *out_pixels = pixels;
    else
        hdi_free(pixels);
    return status;
}
