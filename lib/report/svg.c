/* A small SVG writer. */
#include "report/svg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report/format.h"

static void put(hdi_svg *svg, const char *text)
{
    hdi_output_text(&svg->output, text);
}

static void put_attribute(hdi_svg *svg, const char *name, double value)
{
    hdi_output_format(&svg->output, " %s=\"", name);
    hdi_output_fixed(&svg->output, value, 2);
    put(svg, "\"");
}

static void put_style(hdi_svg *svg, const hdi_svg_style *style)
{
    hdi_output_format(&svg->output, " fill=\"%s\"", style->fill ? style->fill : "none");
    if (!style->stroke) return;
    hdi_output_format(&svg->output, " stroke=\"%s\"", style->stroke);
    put_attribute(svg, "stroke-width", style->width > 0 ? style->width : 1);
    if (style->dash) hdi_output_format(&svg->output, " stroke-dasharray=\"%s\"", style->dash);
}

/* Close an open tag, with the tooltip as its title. */
static void close_tag(hdi_svg *svg, const char *name, const char *tooltip)
{
    if (!tooltip) {
        put(svg, "/>\n");
        return;
    }
    put(svg, "><title>");
    hdi_output_xml(&svg->output, tooltip);
    hdi_output_format(&svg->output, "</title></%s>\n", name);
}

hd_status hdi_svg_begin(hdi_svg *svg, const char *path, double width, double height,
                        const char *title)
{
    HD_RETURN_IF_ERROR(hdi_output_open(&svg->output, path));
    put(svg,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\"");
    put_attribute(svg, "width", width);
    put_attribute(svg, "height", height);
    hdi_output_format(&svg->output, " viewBox=\"0 0 %d %d\"", (int)width, (int)height);
    put(svg, " font-family=\"'DejaVu Sans', Verdana, 'Segoe UI', Helvetica, Arial, sans-serif\">\n"
             "<title>");
    hdi_output_xml(&svg->output, title);
    put(svg, "</title>\n");
    hdi_svg_rect(svg, 0, 0, width, height, &(hdi_svg_style){.fill = "#ffffff"}, NULL);
    return svg->output.status;
}

hd_status hdi_svg_end(hdi_svg *svg)
{
    put(svg, "</svg>\n");
    return hdi_output_commit(&svg->output);
}

void hdi_svg_rect(hdi_svg *svg, double x, double y, double width, double height,
                  const hdi_svg_style *style, const char *tooltip)
{
    put(svg, "<rect");
    put_attribute(svg, "x", x);
    put_attribute(svg, "y", y);
    put_attribute(svg, "width", width > 0 ? width : 0);
    put_attribute(svg, "height", height > 0 ? height : 0);
    put_style(svg, style);
    close_tag(svg, "rect", tooltip);
}

void hdi_svg_circle(hdi_svg *svg, double x, double y, double radius, const hdi_svg_style *style,
                    const char *tooltip)
{
    put(svg, "<circle");
    put_attribute(svg, "cx", x);
    put_attribute(svg, "cy", y);
    put_attribute(svg, "r", radius);
    put_style(svg, style);
    close_tag(svg, "circle", tooltip);
}

void hdi_svg_line(hdi_svg *svg, double x1, double y1, double x2, double y2,
                  const hdi_svg_style *style)
{
    put(svg, "<line");
    put_attribute(svg, "x1", x1);
    put_attribute(svg, "y1", y1);
    put_attribute(svg, "x2", x2);
    put_attribute(svg, "y2", y2);
    put_style(svg, style);
    put(svg, "/>\n");
}

void hdi_svg_path_begin(hdi_svg *svg, bool closed, const hdi_svg_style *style)
{
    put(svg, closed ? "<path class=\"area\"" : "<path class=\"curve\" stroke-linejoin=\"round\"");
    put_style(svg, style);
    put(svg, " d=\"M");
}

/* After M further pairs are line-tos: the path needs no letter between points. */
void hdi_svg_point(hdi_svg *svg, double x, double y)
{
    put(svg, " ");
    hdi_output_fixed(&svg->output, x, 2);
    put(svg, ",");
    hdi_output_fixed(&svg->output, y, 2);
}

void hdi_svg_path_end(hdi_svg *svg, const char *tooltip)
{
    put(svg, "\"");
    close_tag(svg, "path", tooltip);
}

static double font_size(const hdi_svg_font *font)
{
    return font->size > 0 ? font->size : 12;
}

void hdi_svg_text(hdi_svg *svg, double x, double y, const hdi_svg_font *font, const char *text)
{
    static const char *const anchors[] = {"start", "middle", "end"};
    put(svg, "<text");
    put_attribute(svg, "x", x);
    put_attribute(svg, "y", y);
    put_attribute(svg, "font-size", font_size(font));
    hdi_output_format(&svg->output, " fill=\"%s\" text-anchor=\"%s\"",
                      font->color ? font->color : HDI_COLOR_INK, anchors[font->anchor]);
    if (font->bold) put(svg, " font-weight=\"bold\"");
    if (font->turned) {
        put(svg, " transform=\"rotate(-90 ");
        hdi_output_fixed(&svg->output, x, 2);
        put(svg, " ");
        hdi_output_fixed(&svg->output, y, 2);
        put(svg, ")\"");
    }
    put(svg, ">");
    hdi_output_xml(&svg->output, text);
    put(svg, "</text>\n");
}

void hdi_svg_text_within(hdi_svg *svg, double x, double y, double room, const hdi_svg_font *font,
                         const char *text)
{
    char cut[512];
    double per_character = hdi_svg_text_width("x", font_size(font)) * (font->bold ? 1.1 : 1);
    size_t fit = room > per_character ? (size_t)(room / per_character) : 0;
    if (fit == 0) return;
    if (hdi_utf8_count(text) <= fit && strlen(text) < sizeof cut) {
        hdi_svg_text(svg, x, y, font, text);
        return;
    }
    const char *end = text;
    for (size_t i = 0; i + 1 < fit && (size_t)(end - text) < sizeof cut - 16; i++)
        hdi_utf8_next(&end);
    snprintf(cut, sizeof cut, "%.*s\u2026", (int)(end - text), text);
    hdi_svg_text(svg, x, y, font, cut);
}

double hdi_svg_text_width(const char *text, double size)
{
    return 0.6 * size * (double)hdi_utf8_count(text);
}

static long channel(const char *color, int index)
{
    char digits[3] = {color[1 + 2 * index], color[2 + 2 * index], 0};
    return strtol(digits, NULL, 16);
}

void hdi_svg_lighten(const char *color, double share, char out[8])
{
    int mixed[3];
    for (int i = 0; i < 3; i++) {
        double from = (double)channel(color, i);
        mixed[i] = (int)(from + (255 - from) * share + 0.5) & 0xFF;
    }
    snprintf(out, 8, "#%02x%02x%02x", (unsigned)mixed[0], (unsigned)mixed[1], (unsigned)mixed[2]);
}

const char *hdi_svg_ink_on(const char *color)
{
    double light = 0.299 * (double)channel(color, 0) + 0.587 * (double)channel(color, 1) +
                   0.114 * (double)channel(color, 2);
    return light > 140 ? HDI_COLOR_INK : "#ffffff";
}
