/* A small SVG writer: shapes, text, tooltips, axes. White ground, so dark viewers show it alike. */
#ifndef HDI_REPORT_SVG_H
#define HDI_REPORT_SVG_H

#include "report/output.h"

/* Colours that stay apart for the colour-blind (Okabe and Ito), and inks. */
#define HDI_COLOR_BLUE "#0072b2"
#define HDI_COLOR_ORANGE "#e69f00"
#define HDI_COLOR_GREEN "#009e73"
#define HDI_COLOR_PINK "#cc79a7"
#define HDI_COLOR_RED "#d55e00"
#define HDI_COLOR_SKY "#56b4e9"
#define HDI_COLOR_YELLOW "#f0e442"
#define HDI_COLOR_GREY "#8c8c8c"
#define HDI_COLOR_INK "#1a1a1a"
#define HDI_COLOR_FAINT "#595959"
#define HDI_COLOR_GRID "#e3e3e3"

typedef struct hdi_svg {
    hdi_output output;
} hdi_svg;

typedef struct hdi_svg_style {
    const char *fill, *stroke; /* NULL: none */
    double width;              /* of the stroke; zero means 1 */
    const char *dash;          /* "4 3"; NULL: solid */
} hdi_svg_style;

typedef enum hdi_svg_anchor { HDI_SVG_START, HDI_SVG_MIDDLE, HDI_SVG_END } hdi_svg_anchor;

typedef struct hdi_svg_font {
    double size; /* zero means 12 */
    hdi_svg_anchor anchor;
    const char *color; /* NULL: HDI_COLOR_INK */
    bool bold, turned; /* turned: reads upwards */
} hdi_svg_font;

/* Every begin must be followed by end, also when it fails; end reports the first error. `title` is
 * for screen readers and window titles. */
hd_status hdi_svg_begin(hdi_svg *svg, const char *path, double width, double height,
                        const char *title);
hd_status hdi_svg_end(hdi_svg *svg);

/* `tooltip` may be NULL. */
void hdi_svg_rect(hdi_svg *svg, double x, double y, double width, double height,
                  const hdi_svg_style *style, const char *tooltip);
void hdi_svg_circle(hdi_svg *svg, double x, double y, double radius, const hdi_svg_style *style,
                    const char *tooltip);
void hdi_svg_line(hdi_svg *svg, double x1, double y1, double x2, double y2,
                  const hdi_svg_style *style);

/* A polyline, or a polygon when `closed`: begin, points, end. */
void hdi_svg_path_begin(hdi_svg *svg, bool closed, const hdi_svg_style *style);
void hdi_svg_point(hdi_svg *svg, double x, double y);
void hdi_svg_path_end(hdi_svg *svg, const char *tooltip);

/* Text with its baseline at y; `text` may hold anything. */
void hdi_svg_text(hdi_svg *svg, double x, double y, const hdi_svg_font *font, const char *text);

/* Likewise, cut to `room` units with an ellipsis. */
void hdi_svg_text_within(hdi_svg *svg, double x, double y, double room, const hdi_svg_font *font,
                         const char *text);

/* A careful guess of the width: fonts differ between viewers. */
double hdi_svg_text_width(const char *text, double size);

/* `color` ("#rrggbb") mixed with white: share 0 keeps it, 1 is white. */
void hdi_svg_lighten(const char *color, double share, char out[8]);

/* Black or white, whichever reads better on `color`. */
const char *hdi_svg_ink_on(const char *color);

#endif
