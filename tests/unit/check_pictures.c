/* Pictures that people look at: PNGs read back to the byte, sheets have their frames in place, GIFs
 * have every frame and loop; colours survive the palette. */
#include <fcntl.h>
#include <stdlib.h>

#include "core/file.h"
#include "core/memory.h"
#include "report/font.h"
#include "report/gif.h"
#include "report/palette.h"
#include "report/png.h"
#include "tests/support/hdt.h"

enum { FRAMES = 3, HEIGHT = 4, WIDTH = 5, AREA = HEIGHT * WIDTH };

/* Levels k / 255, other ones in each frame. */
static hdi_frames clip_of(float *pixels, int seed)
{
    for (int i = 0; i < FRAMES * 3 * AREA; i++)
        pixels[i] = (float)((i * 7 + seed * 50) % 256) / 255;
    return (hdi_frames){pixels, FRAMES, HEIGHT, WIDTH};
}

START_TEST(a_png_reads_back_to_the_byte_and_enlarged)
{
    float pixels[FRAMES * 3 * AREA], *seen;
    const hdi_frames clip = clip_of(pixels, 1);
    const char *path = hdt_temp_path("frame.png");
    int64_t height, width;
    for (int scale = 1; scale <= 3; scale += 2) {
        hdt_assert_ok(hdi_png_write(path, &clip, 2, scale));
        hdt_assert_ok(hdi_png_read(path, &seen, &height, &width));
        ck_assert_int_eq(height, HEIGHT * scale);
        ck_assert_int_eq(width, WIDTH * scale);
        for (int64_t c = 0; c < 3; c++)
            for (int64_t y = 0; y < height; y++)
                for (int64_t x = 0; x < width; x++)
                    ck_assert_float_eq(seen[(c * height + y) * width + x],
                                       pixels[(2 * 3 + c) * AREA + y / scale * WIDTH + x / scale]);
        hdi_free(seen);
    }
}
END_TEST

START_TEST(values_out_of_range_are_shown_as_the_nearest)
{
    ck_assert_uint_eq(hdi_frames_level(-1), 0);
    ck_assert_uint_eq(hdi_frames_level(1.5F), 255);
    ck_assert_uint_eq(hdi_frames_level(0.0F / 0.0F), 0);
    ck_assert_uint_eq(hdi_frames_level(0.5F), 128);
    const float latents[3 * 2 * 1] = {-1, 0, 1, -1, 0, 1}; /* 2 frames of one pixel */
    float out[6];
    hdi_frames_from_latents(latents, 2, 1, 1, out);
    const float wanted[6] = {0, 1, 0.5F, 0.5F, 0, 1};
    ck_assert_mem_eq(out, wanted, sizeof out);
}
END_TEST

START_TEST(a_sheet_has_a_row_for_each_clip_and_its_label)
{
    float pixels[2][FRAMES * 3 * AREA], *seen;
    const hdi_frames clips[2] = {clip_of(pixels[0], 0), clip_of(pixels[1], 3)};
    const char *path = hdt_temp_path("sheet.png"), *labels[2] = {"a", "T 1"};
    int64_t plain, height, width;
    hdt_assert_ok(hdi_png_write_sheet(path, clips, 2, NULL, 2, 1));
    hdt_assert_ok(hdi_png_read(path, &seen, &height, &plain));
    hdi_free(seen);
    hdt_assert_ok(hdi_png_write_sheet(path, clips, 2, labels, 2, 1));
    hdt_assert_ok(hdi_png_read(path, &seen, &height, &width));
    const int64_t margin = 4, left = width - 2 * (WIDTH + margin);
    const int64_t line = 2 * HDI_FONT_HEIGHT; /* higher than a frame */
    ck_assert_int_eq(height, margin + 2 * (line + margin));
    ck_assert_int_gt(width, plain);
    /* Of three frames in two columns: 0 and 1. */
    for (int64_t row = 0; row < 2; row++)
        for (int64_t frame = 0; frame < 2; frame++)
            for (int64_t i = 0; i < AREA; i++) {
                const int64_t y = margin + row * (line + margin) + i / WIDTH;
                const int64_t x = left + frame * (WIDTH + margin) + i % WIDTH;
                ck_assert_float_eq(seen[y * width + x], pixels[row][frame * 3 * AREA + i]);
            }
    int dark = 0; /* dots of the labels, of 2 x 2 pixels each */
    for (int64_t i = 0; i < height * width; i++)
        dark += i % width < left - margin && seen[i] < 0.5F;
    int dots = 0;
    for (const char *letter = "aT1"; *letter; letter++)
        for (int i = 0; i < HDI_FONT_WIDTH * HDI_FONT_HEIGHT; i++)
            dots += hdi_font_dot(*letter, i % HDI_FONT_WIDTH, i / HDI_FONT_WIDTH);
    ck_assert_int_gt(dots, 15);
    ck_assert_int_eq(dark, 4 * dots);
    hdi_free(seen);
}
END_TEST

START_TEST(what_is_no_picture_is_refused)
{
    float pixels[FRAMES * 3 * AREA], *seen;
    hdi_frames clips[2] = {clip_of(pixels, 0), clip_of(pixels, 0)};
    const char *path = hdt_temp_path("refused");
    int64_t height, width;
    hdt_assert_status(hdi_png_write(path, clips, FRAMES, 1), HD_ERROR_ARGUMENT, "frame 3");
    hdt_assert_status(hdi_png_write(path, clips, 0, 0), HD_ERROR_ARGUMENT, "enlarged 0 times");
    hdt_assert_status(hdi_png_write(path, clips, 0, 30000), HD_ERROR_ARGUMENT, "want at most");
    clips[1].width--;
    hdt_assert_status(hdi_png_write_sheet(path, clips, 2, NULL, 0, 1), HD_ERROR_ARGUMENT,
                      "clip 1 has 3 frames of 4 x 4");
    ck_assert(!hdi_file_exists(path));
    hdt_assert_ok(hdi_file_write_text(path, "no picture"));
    hdt_assert_status(hdi_png_read(path, &seen, &height, &width), HD_ERROR_FORMAT, "no good PNG");
    ck_assert_ptr_null(seen);
    hdt_assert_status(hdi_png_read(hdt_temp_path("lost.png"), &seen, &height, &width), HD_ERROR_IO,
                      "lost.png");
}
END_TEST

START_TEST(a_cut_png_is_refused_at_any_length)
{
    float pixels[FRAMES * 3 * AREA], *seen;
    const hdi_frames clip = clip_of(pixels, 1);
    const char *path = hdt_temp_path("cut.png");
    hdt_assert_ok(hdi_png_write(path, &clip, 0, 4));
    char *data;
    size_t bytes;
    int64_t height, width;
    hdt_assert_ok(hdi_file_read_all(path, 1 << 20, &data, &bytes));
    for (size_t cut = 0; cut + 20 < bytes; cut++) { /* the end chunk may be missing */
        int descriptor;
        hdt_assert_ok(hdi_file_open(path, O_WRONLY | O_TRUNC, &descriptor));
        hdt_assert_ok(hdi_file_write(descriptor, path, data, cut));
        hdt_assert_ok(hdi_file_close(descriptor, path));
        ck_assert_int_eq(hdi_png_read(path, &seen, &height, &width), HD_ERROR_FORMAT);
        ck_assert_ptr_null(seen);
    }
    hdi_free(data);
}
END_TEST

START_TEST(few_colours_come_through_the_palette_as_they_are)
{
    hdi_palette *palette = hdi_alloc(sizeof *palette);
    uint8_t colours[200][3];
    for (int i = 0; i < 200; i++) {
        const uint8_t colour[3] = {(uint8_t)(i % 6 * 40), (uint8_t)(i / 6 % 6 * 40 + 3),
                                   (uint8_t)(i / 36 * 40 + 5)};
        memcpy(colours[i], colour, sizeof colour);
        for (int k = 0; k <= i; k++)
            hdi_palette_add(palette, colour[0], colour[1], colour[2]);
    }
    hdi_palette_make(palette);
    ck_assert_int_eq(palette->count, 200);
    for (int i = 0; i < 200; i++) {
        const int found = hdi_palette_find(palette, colours[i][0], colours[i][1], colours[i][2]);
        ck_assert_mem_eq(palette->colours + 3 * found, colours[i], 3);
    }
    hdi_free(palette);
}
END_TEST

START_TEST(many_colours_get_255_that_are_near)
{
    hdi_palette *palette = hdi_alloc(sizeof *palette);
    for (int r = 0; r < 256; r += 4)
        for (int g = 0; g < 256; g += 4)
            for (int b = 0; b < 256; b += 4)
                hdi_palette_add(palette, (uint8_t)r, (uint8_t)g, (uint8_t)b);
    hdi_palette_make(palette);
    ck_assert_int_eq(palette->count, 255);
    for (int r = 0; r < 256; r += 12)
        for (int g = 0; g < 256; g += 12)
            for (int b = 0; b < 256; b += 12) {
                const uint8_t *seen =
                    palette->colours +
                    3 * hdi_palette_find(palette, (uint8_t)r, (uint8_t)g, (uint8_t)b);
                /* 256 boxes of an even cube have sides of 64 at most. */
                ck_assert_int_le(abs(seen[0] - r), 64);
                ck_assert_int_le(abs(seen[1] - g), 64);
                ck_assert_int_le(abs(seen[2] - b), 64);
            }
    hdi_free(palette);
}
END_TEST

/* Blocks of a GIF89a: frames, whether it loops for ever, the delay, whether it ends well. */
typedef struct gif_facts {
    int width, height, frames, delay;
    bool loops, ends;
} gif_facts;

static gif_facts parse_gif(const unsigned char *data, size_t bytes)
{
    gif_facts facts = {.width = data[6] | data[7] << 8, .height = data[8] | data[9] << 8};
    size_t at = 13 + (data[10] & 128 ? 3 * ((size_t)2 << (data[10] & 7)) : 0);
    while (at + 11 < bytes || (at < bytes && data[at] == 0x3b)) {
        if (data[at] == 0x3b) {
            facts.ends = at + 1 == bytes;
            break;
        }
        if (data[at] == 0x21) {
            if (data[at + 1] == 0xf9) facts.delay = data[at + 4] | data[at + 5] << 8;
            if (data[at + 1] == 0xff && memcmp(data + at + 3, "NETSCAPE2.0", 11) == 0)
                facts.loops = data[at + 16] == 0 && data[at + 17] == 0;
            at += 2;
        } else {
            facts.frames++;
            at += 10 + (data[at + 9] & 128 ? 3 * ((size_t)2 << (data[at + 9] & 7)) : 0) + 1;
        }
        while (at < bytes && data[at])
            at += 1 + (size_t)data[at];
        at++;
    }
    return facts;
}

START_TEST(a_gif_has_every_frame_and_loops)
{
    float pixels[2][FRAMES * 3 * AREA];
    const hdi_frames clips[3] = {
        clip_of(pixels[0], 0), clip_of(pixels[1], 3), {pixels[0], 1, HEIGHT, WIDTH}};
    const char *path = hdt_temp_path("clips.gif");
    if (!hdi_gif_is_there()) {
        hdt_assert_status(hdi_gif_write(path, clips, 3, 2, 4, 8), HD_ERROR_UNSUPPORTED, "libcgif");
        return;
    }
    hdt_assert_ok(hdi_gif_write(path, clips, 3, 2, 4, 8));
    char *data;
    size_t bytes;
    hdt_assert_ok(hdi_file_read_all(path, 1 << 20, &data, &bytes));
    ck_assert_int_eq(memcmp(data, "GIF89a", 6), 0);
    const gif_facts facts = parse_gif((const unsigned char *)data, bytes);
    ck_assert_int_eq(facts.width, 2 * WIDTH * 4);
    ck_assert_int_eq(facts.height, 2 * HEIGHT * 4);
    ck_assert_int_eq(facts.frames, FRAMES);
    ck_assert_int_eq(facts.delay, 13);
    ck_assert(facts.loops);
    ck_assert(facts.ends);
    hdi_free(data);
    hdt_assert_status(hdi_gif_write(path, clips, 3, 0, 4, 8), HD_ERROR_ARGUMENT, "0 columns");
    hdt_assert_status(hdi_gif_write(path, clips, 3, 2, 4, 0), HD_ERROR_ARGUMENT, "frames a second");
    hdt_assert_status(hdi_gif_write(hdt_temp_path("no/such.gif"), clips, 3, 2, 4, 8), HD_ERROR_IO,
                      "such.gif");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pictures");
    TCase *pictures = tcase_create("pictures");
    tcase_add_test(pictures, a_png_reads_back_to_the_byte_and_enlarged);
    tcase_add_test(pictures, values_out_of_range_are_shown_as_the_nearest);
    tcase_add_test(pictures, a_sheet_has_a_row_for_each_clip_and_its_label);
    tcase_add_test(pictures, what_is_no_picture_is_refused);
    tcase_add_test(pictures, a_cut_png_is_refused_at_any_length);
    tcase_add_test(pictures, few_colours_come_through_the_palette_as_they_are);
    tcase_add_test(pictures, many_colours_get_255_that_are_near);
    tcase_add_test(pictures, a_gif_has_every_frame_and_loops);
    suite_add_tcase(suite, pictures);
    return hdt_main(suite);
}
