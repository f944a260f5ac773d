/* Axes and legends of charts. */
#include "report/axis.h"

#include <math.h>
#include <stdio.h>

enum { MOST_TICKS = 50, TICK_SIZE = 11, ROW = 20 };

hdi_scale hdi_scale_make(double low, double high, int ticks, bool widen, double from, double to)
{
    if (!isfinite(low)) low = 0;
    if (!isfinite(high) || high < low) high = low;
    /* A flat range, also one that is flat only in the digits a double has. */
    double least = fmax(fabs(low), fabs(high)) * 1e-9;
    if (high - low <= least) high = low + (least > 0 ? fmax(least * 1e3, fabs(low) * 0.1) : 1);

    double raw = (high - low) / (ticks > 0 ? ticks : 1);
    double power = pow(10, floor(log10(raw)));
    double step = raw <= power       ? power
                  : raw <= 2 * power ? 2 * power
                  : raw <= 5 * power ? 5 * power
                                     : 10 * power;
    hdi_scale scale = {low, high, step, from, to};
    if (widen) {
        scale.low = floor(low / step + 1e-9) * step;
        scale.high = ceil(high / step - 1e-9) * step;
    }
    return scale;
}

double hdi_scale_at(const hdi_scale *scale, double value)
{
    return scale->from +
           (value - scale->low) / (scale->high - scale->low) * (scale->to - scale->from);
}

/* The `index`-th tick; false past the last. */
static bool tick(const hdi_scale *scale, int index, double *value, char *text, size_t bytes)
{
    double first = ceil(scale->low / scale->step - 1e-9);
    *value = (first + index) * scale->step;
    if (index >= MOST_TICKS || *value > scale->high + 1e-9 * scale->step) return false;
    if (fabs(*value) < scale->step * 1e-6) *value = 0; /* not "-0" */
    int decimals = (int)fmax(0, -floor(log10(scale->step) + 1e-9));
    if (decimals > 6 || fabs(*value) >= 1e9)
        snprintf(text, bytes, "%g", *value);
    else
        snprintf(text, bytes, "%.*f", decimals, *value);
    return true;
}

void hdi_axis_x(hdi_svg *svg, const hdi_plot_area *area, const hdi_scale *scale, bool grid,
                const char *name)
{
    const hdi_svg_style faint = {.stroke = HDI_COLOR_GRID}, dark = {.stroke = HDI_COLOR_GREY};
    char text[32];
    double value;
    for (int i = 0; tick(scale, i, &value, text, sizeof text); i++) {
        double x = hdi_scale_at(scale, value);
        if (grid) hdi_svg_line(svg, x, area->top, x, area->bottom, &faint);
        hdi_svg_line(svg, x, area->bottom, x, area->bottom + 4, &dark);
        hdi_svg_text(svg, x, area->bottom + 17,
                     &(hdi_svg_font){.size = TICK_SIZE, .anchor = HDI_SVG_MIDDLE}, text);
    }
    hdi_svg_line(svg, area->left, area->bottom, area->right, area->bottom, &dark);
    hdi_svg_text(svg, (area->left + area->right) / 2, area->bottom + 36,
                 &(hdi_svg_font){.anchor = HDI_SVG_MIDDLE, .color = HDI_COLOR_FAINT}, name);
}

void hdi_axis_y(hdi_svg *svg, const hdi_plot_area *area, const hdi_scale *scale, const char *name)
{
    const hdi_svg_style faint = {.stroke = HDI_COLOR_GRID}, dark = {.stroke = HDI_COLOR_GREY};
    char text[32];
    double value, widest = 0;
    for (int i = 0; tick(scale, i, &value, text, sizeof text); i++) {
        double y = hdi_scale_at(scale, value);
        hdi_svg_line(svg, area->left, y, area->right, y, &faint);
        hdi_svg_text(svg, area->left - 8, y + 4,
                     &(hdi_svg_font){.size = TICK_SIZE, .anchor = HDI_SVG_END}, text);
        widest = fmax(widest, hdi_svg_text_width(text, TICK_SIZE));
    }
    hdi_svg_line(svg, area->left, area->top, area->left, area->bottom, &dark);
    hdi_svg_text(
        svg, area->left - 20 - widest, (area->top + area->bottom) / 2,
        &(hdi_svg_font){.anchor = HDI_SVG_MIDDLE, .color = HDI_COLOR_FAINT, .turned = true}, name);
}

double hdi_legend(hdi_svg *svg, double left, double right, double y,
                  const hdi_legend_entry *entries, int count)
{
    double x = left;
    for (int i = 0; i < count; i++) {
        const hdi_legend_entry *entry = &entries[i];
        double width = 26 + hdi_svg_text_width(entry->text, 12) + 18;
        if (x > left && x + width > right) {
            x = left;
            y += ROW;
        }
        double middle = y + ROW / 2.0;
        if (svg) {
            if (entry->mark == HDI_LEGEND_BOX)
                hdi_svg_rect(svg, x + 4, middle - 6, 14, 12, &(hdi_svg_style){.fill = entry->color},
                             NULL);
            else if (entry->mark == HDI_LEGEND_DOT)
                hdi_svg_circle(svg, x + 10, middle, 4, &(hdi_svg_style){.fill = entry->color},
                               NULL);
            else
                hdi_svg_line(svg, x, middle, x + 20, middle,
                             &(hdi_svg_style){.stroke = entry->color,
                                              .width = entry->width,
                                              .dash = entry->dash});
            hdi_svg_text_within(svg, x + 26, middle + 4, right - x - 26,
                                &(hdi_svg_font){.size = 12}, entry->text);
        }
        x += width;
    }
    return y + ROW;
}
