/* Median cut: the box of bins with the most pixels along its longest side is halved until there are
 * enough boxes; each gives its mean colour (Heckbert, "Color image quantization for frame buffer
 * display", 1982). */
#include "report/palette.h"

#include <stdlib.h>

enum { LEVELS = 32 };

/* Bins low .. high of each channel, both included. */
typedef struct box {
    int low[3], high[3];
    uint64_t pixels;
} box;

static int bin_of(int red, int green, int blue)
{
    return (red << 10) | (green << 5) | blue;
}

void hdi_palette_add(hdi_palette *palette, uint8_t red, uint8_t green, uint8_t blue)
{
    const int bin = bin_of(red >> 3, green >> 3, blue >> 3);
    palette->pixels[bin]++;
    palette->sums[0][bin] += red;
    palette->sums[1][bin] += green;
    palette->sums[2][bin] += blue;
}

/* Pixels of each level of a channel within the box. */
static void project(const hdi_palette *palette, const box *it, int channel, uint64_t out[LEVELS])
{
    for (int i = 0; i < LEVELS; i++)
        out[i] = 0;
    int at[3];
    for (at[0] = it->low[0]; at[0] <= it->high[0]; at[0]++)
        for (at[1] = it->low[1]; at[1] <= it->high[1]; at[1]++)
            for (at[2] = it->low[2]; at[2] <= it->high[2]; at[2]++)
                out[at[channel]] += palette->pixels[bin_of(at[0], at[1], at[2])];
}

/* Draw the box tight around its pixels. */
static void shrink(const hdi_palette *palette, box *it)
{
    for (int c = 0; c < 3; c++) {
        uint64_t levels[LEVELS];
        project(palette, it, c, levels);
        while (it->low[c] < it->high[c] && levels[it->low[c]] == 0)
            it->low[c]++;
        while (it->low[c] < it->high[c] && levels[it->high[c]] == 0)
            it->high[c]--;
        it->pixels = 0;
        for (int i = it->low[c]; i <= it->high[c]; i++)
            it->pixels += levels[i];
    }
}

static int longest_side(const box *it)
{
    int longest = 0;
    for (int c = 1; c < 3; c++)
        if (it->high[c] - it->low[c] > it->high[longest] - it->low[longest]) longest = c;
    return longest;
}

/* Halve the pixels of the box along its longest side; the upper part goes to *upper. */
static void cut(const hdi_palette *palette, box *lower, box *upper)
{
    const int side = longest_side(lower);
    uint64_t levels[LEVELS], below = 0;
    project(palette, lower, side, levels);
    int last = lower->low[side];
    for (below = levels[last]; last + 1 < lower->high[side] && 2 * below < lower->pixels; last++)
        below += levels[last + 1];
    *upper = *lower;
    lower->high[side] = last;
    upper->low[side] = last + 1;
    shrink(palette, lower);
    shrink(palette, upper);
}

static uint64_t worth(const box *it)
{
    const int side = longest_side(it);
    return it->pixels * (uint64_t)(it->high[side] - it->low[side]);
}

static void fill(hdi_palette *palette, const box *it, int colour)
{
    uint64_t sums[3] = {0}, pixels = it->pixels ? it->pixels : 1;
    for (int r = it->low[0]; r <= it->high[0]; r++)
        for (int g = it->low[1]; g <= it->high[1]; g++)
            for (int b = it->low[2]; b <= it->high[2]; b++) {
                const int bin = bin_of(r, g, b);
                palette->index[bin] = (uint8_t)colour;
                for (int c = 0; c < 3; c++)
                    sums[c] += palette->sums[c][bin];
            }
    for (int c = 0; c < 3; c++)
        palette->colours[3 * colour + c] = (uint8_t)((sums[c] + pixels / 2) / pixels);
}

void hdi_palette_make(hdi_palette *palette)
{
    box boxes[HDI_PALETTE_COLOURS] = {{.high = {LEVELS - 1, LEVELS - 1, LEVELS - 1}}};
    int count = 1;
    shrink(palette, &boxes[0]);
    while (count < HDI_PALETTE_COLOURS - 1) {
        int best = 0;
        for (int i = 1; i < count; i++)
            if (worth(&boxes[i]) > worth(&boxes[best])) best = i;
        if (worth(&boxes[best]) == 0) break;
        cut(palette, &boxes[best], &boxes[count++]);
    }
    for (int i = 0; i < count; i++)
        fill(palette, &boxes[i], i);
    palette->count = count;
}

uint8_t hdi_palette_find(const hdi_palette *palette, uint8_t red, uint8_t green, uint8_t blue)
{
    return palette->index[bin_of(red >> 3, green >> 3, blue >> 3)];
}
