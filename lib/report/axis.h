/* Axes and legends of charts: scales with round ticks. */
#ifndef HDI_REPORT_AXIS_H
#define HDI_REPORT_AXIS_H

#include "report/svg.h"

typedef struct hdi_scale {
    double low, high, step; /* values; ticks stand at multiples of step */
    double from, to;        /* drawing units of low and high */
} hdi_scale;

/* A scale of about `ticks` ticks (1, 2 or 5 times a power of ten apart) from low to high, widened
 * to whole ticks if asked. Any input gives a usable scale. */
hdi_scale hdi_scale_make(double low, double high, int ticks, bool widen, double from, double to);
double hdi_scale_at(const hdi_scale *scale, double value);

typedef struct hdi_plot_area {
    double left, top, right, bottom;
} hdi_plot_area;

/* Grid lines, tick texts and the axis' name: x below the area, y left of it. */
void hdi_axis_x(hdi_svg *svg, const hdi_plot_area *area, const hdi_scale *scale, bool grid,
                const char *name);
void hdi_axis_y(hdi_svg *svg, const hdi_plot_area *area, const hdi_scale *scale, const char *name);

typedef enum hdi_legend_mark { HDI_LEGEND_BOX, HDI_LEGEND_LINE, HDI_LEGEND_DOT } hdi_legend_mark;

typedef struct hdi_legend_entry {
    hdi_legend_mark mark;
    const char *color, *dash;
    double width; /* of a line */
    char text[96];
} hdi_legend_entry;

/* Rows of entries from (left, y), wrapped at `right`; returns the y below the last row. With a NULL
 * svg it only measures. */
double hdi_legend(hdi_svg *svg, double left, double right, double y,
                  const hdi_legend_entry *entries, int count);

#endif
