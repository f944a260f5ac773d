/* Up to 256 colours that stand for many: median cut over a histogram of 5 bits a channel. */
#ifndef HDI_REPORT_PALETTE_H
#define HDI_REPORT_PALETTE_H

#include <stdbool.h>
#include <stdint.h>

enum { HDI_PALETTE_COLOURS = 256, HDI_PALETTE_BINS = 1 << 15 };

typedef struct hdi_palette {
    uint8_t colours[3 * HDI_PALETTE_COLOURS]; /* red, green, blue */
    int count;
    uint32_t pixels[HDI_PALETTE_BINS], sums[3][HDI_PALETTE_BINS];
    uint8_t index[HDI_PALETTE_BINS]; /* of the colour that stands for a bin */
} hdi_palette;

/* From a zeroed palette: add pixels (2^24 at most), then make, then look up. One place at least stays
 * free for a colour of the caller's. */
void hdi_palette_add(hdi_palette *palette, uint8_t red, uint8_t green, uint8_t blue);
void hdi_palette_make(hdi_palette *palette);
uint8_t hdi_palette_find(const hdi_palette *palette, uint8_t red, uint8_t green, uint8_t blue);

#endif
