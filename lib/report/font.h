/* Letters of 3 x 5 dots for labels in pictures. */
#ifndef HDI_REPORT_FONT_H
#define HDI_REPORT_FONT_H

#include <stdbool.h>

enum { HDI_FONT_WIDTH = 3, HDI_FONT_HEIGHT = 5 };

/* True if the letter's dot at column x, row y is set; small letters look like capitals, unknown
 * characters like a space. */
bool hdi_font_dot(char letter, int x, int y);

#endif
