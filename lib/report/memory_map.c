/* The plan as a picture, in SVG. */
#include "report/memory_map.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "report/axis.h"
#include "report/format.h"

enum { WIDTH = 1100, LEFT = 84, RIGHT = 104, TOP = 96, PLOT = 340, COLUMNS = 900 };

/* Chosen for contrast between neighbours in the usual order of regions. */
static const char *const colors[] = {HDI_COLOR_BLUE,   HDI_COLOR_SKY,    HDI_COLOR_GREEN,
                                     HDI_COLOR_ORANGE, HDI_COLOR_YELLOW, HDI_COLOR_PINK,
                                     HDI_COLOR_RED,    HDI_COLOR_GREY};

static const char *region_color(int index)
{
    return colors[index % (int)(sizeof colors / sizeof *colors)];
}

static size_t total_at(const hdi_memory_map *map, int64_t position)
{
    size_t total = 0;
    for (int r = 0; r < map->region_count; r++)
        total += map->regions[r].bytes[position];
    return total;
}

static int64_t peak_between(const hdi_memory_map *map, int64_t begin, int64_t end)
{
    int64_t peak = begin;
    size_t most = 0;
    for (int64_t i = begin; i < end; i++) {
        size_t total = total_at(map, i);
        if (total <= most) continue;
        most = total;
        peak = i;
    }
    return peak;
}

void hdi_memory_map_peak(const hdi_memory_map *map, int64_t *position, size_t *bytes)
{
    *position = peak_between(map, 0, map->positions);
    *bytes = map->positions > 0 ? total_at(map, *position) : 0;
}

/* Positions are drawn as steps; in a long program neighbours share a column, and the one with the
 * highest sum stands for it, so that the peak is always seen. */
typedef struct columns {
    int count;
    int64_t shown[COLUMNS]; /* position drawn in each column */
} columns;

static void make_columns(const hdi_memory_map *map, columns *out)
{
    out->count = map->positions < COLUMNS ? (int)map->positions : COLUMNS;
    for (int c = 0; c < out->count; c++)
        out->shown[c] = peak_between(map, c * map->positions / out->count,
                                     (c + 1) * map->positions / out->count);
}

static double stacked(const hdi_memory_map *map, int regions, int64_t position)
{
    double sum = 0;
    for (int r = 0; r < regions; r++)
        sum += (double)map->regions[r].bytes[position];
    return sum;
}

static void draw_region(hdi_svg *svg, const hdi_memory_map *map, int region, const columns *shown,
                        const hdi_plot_area *area, const hdi_scale *y, double unit)
{
    /* Seams help while steps are wide; in a long program they would be all that is seen. */
    const char *seam = shown->count < 120 ? "#ffffff" : NULL;
    const hdi_svg_style style = {.fill = region_color(region), .stroke = seam, .width = 0.4};
    double width = (area->right - area->left) / shown->count;
    hdi_svg_path_begin(svg, true, &style);
    for (int c = 0; c < shown->count; c++) {
        double top = hdi_scale_at(y, stacked(map, region + 1, shown->shown[c]) / unit);
        hdi_svg_point(svg, area->left + c * width, top);
        hdi_svg_point(svg, area->left + (c + 1) * width, top);
    }
    for (int c = shown->count - 1; c >= 0; c--) {
        double bottom = hdi_scale_at(y, stacked(map, region, shown->shown[c]) / unit);
        hdi_svg_point(svg, area->left + (c + 1) * width, bottom);
        hdi_svg_point(svg, area->left + c * width, bottom);
    }
    hdi_svg_path_end(svg, map->regions[region].name);
}

static double x_of(const hdi_memory_map *map, const hdi_plot_area *area, double position)
{
    return area->left + position / (double)map->positions * (area->right - area->left);
}

static void draw_phases(hdi_svg *svg, const hdi_memory_map *map, const hdi_plot_area *area)
{
    const hdi_svg_style border = {.stroke = "#404040", .width = 1, .dash = "2 3"};
    for (int i = 0; i < map->phase_count; i++) {
        int64_t end = i + 1 < map->phase_count ? map->phases[i + 1].begin : map->positions;
        double left = x_of(map, area, (double)map->phases[i].begin);
        double right = x_of(map, area, (double)end);
        if (i > 0) hdi_svg_line(svg, left, area->top - 18, left, area->bottom, &border);
        hdi_svg_text_within(
            svg, (left + right) / 2, area->top - 6, right - left - 2,
            &(hdi_svg_font){.anchor = HDI_SVG_MIDDLE, .size = 11, .color = HDI_COLOR_FAINT},
            map->phases[i].name);
    }
}

static void draw_peak(hdi_svg *svg, const hdi_memory_map *map, const columns *shown, int64_t peak,
                      size_t bytes, const hdi_plot_area *area, const hdi_scale *y, double unit)
{
    int column = 0;
    while (column + 1 < shown->count && shown->shown[column] != peak)
        column++;
    double x = area->left + (column + 0.5) * (area->right - area->left) / shown->count;
    double top = hdi_scale_at(y, (double)bytes / unit);
    char size[HDI_NUMBER_TEXT], tooltip[256];
    hdi_format_bytes((double)bytes, size);
    snprintf(tooltip, sizeof tooltip, "peak %s at op %" PRId64 " %.160s", size, peak,
             map->position_names ? map->position_names[peak] : "");
    hdi_svg_line(svg, x, top, x, area->bottom,
                 &(hdi_svg_style){.stroke = HDI_COLOR_INK, .width = 1.2, .dash = "3 3"});
    hdi_svg_circle(svg, x, top, 5,
                   &(hdi_svg_style){.fill = HDI_COLOR_INK, .stroke = "#ffffff", .width = 1.5},
                   tooltip);
}

static void draw_budget(hdi_svg *svg, const hdi_memory_map *map, const hdi_plot_area *area,
                        const hdi_scale *y, double unit)
{
    char size[HDI_NUMBER_TEXT];
    hdi_format_bytes((double)map->budget, size);
    double at = hdi_scale_at(y, (double)map->budget / unit);
    hdi_svg_line(svg, area->left, at, area->right + 6, at,
                 &(hdi_svg_style){.stroke = "#b00020", .width = 2, .dash = "8 4"});
    const hdi_svg_font font = {.size = 12, .color = "#b00020", .bold = true};
    hdi_svg_text(svg, area->right + 10, at - 1, &font, "budget");
    hdi_svg_text(svg, area->right + 10, at + 13, &font, size);
}

/* "peak 123.4 MiB at op 17 backward h.3.mlp · budget 200 MiB, 61.7 % used" */
static void draw_headline(hdi_svg *svg, const hdi_memory_map *map, int64_t peak, size_t bytes)
{
    char size[HDI_NUMBER_TEXT], budget[HDI_NUMBER_TEXT], text[512], tail[96] = "";
    hdi_format_bytes((double)bytes, size);
    if (map->budget > 0) {
        hdi_format_bytes((double)map->budget, budget);
        double share = 100 * (double)bytes / (double)map->budget;
        snprintf(tail, sizeof tail, " · %.1f %% of the budget of %s", share, budget);
    }
    snprintf(text, sizeof text, "peak %s at op %" PRId64 "%s%.100s%s", size, peak,
             map->position_names ? " " : "", map->position_names ? map->position_names[peak] : "",
             tail);
    hdi_svg_circle(svg, 29, 48, 5, &(hdi_svg_style){.fill = HDI_COLOR_INK}, NULL);
    hdi_svg_text_within(svg, 40, 52, WIDTH - 64, &(hdi_svg_font){.size = 13}, text);
}

static void make_legend(const hdi_memory_map *map, int64_t peak, hdi_legend_entry *entries)
{
    for (int i = 0; i < map->region_count; i++) {
        char size[HDI_NUMBER_TEXT];
        hdi_format_bytes((double)map->regions[i].bytes[peak], size);
        entries[i] = (hdi_legend_entry){HDI_LEGEND_BOX, region_color(i), NULL, 0, ""};
        snprintf(entries[i].text, sizeof entries[i].text, "%.40s %s", map->regions[i].name, size);
    }
}

hd_status hdi_memory_map_write(const char *path, const hdi_memory_map *map)
{
    if (map->positions <= 0 || map->region_count <= 0 || map->region_count > HDI_MEMORY_MAP_REGIONS)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: %" PRId64 " positions and %d regions, want >= 1 and 1..%d", path,
                         map->positions, map->region_count, HDI_MEMORY_MAP_REGIONS);
    int64_t peak;
    size_t bytes;
    hdi_memory_map_peak(map, &peak, &bytes);

    /* A budget far above the peak would flatten the picture; then the headline alone tells it. */
    bool show_budget = map->budget > 0 && (double)map->budget <= 2.5 * (double)bytes;
    double highest = (double)(show_budget && map->budget > bytes ? map->budget : bytes);
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int unit_index = 0;
    double unit = 1;
    for (; highest / unit >= 1024 && unit_index < 4; unit_index++)
        unit *= 1024;

    hdi_legend_entry entries[HDI_MEMORY_MAP_REGIONS];
    make_legend(map, peak, entries);
    const hdi_plot_area area = {LEFT, TOP, WIDTH - RIGHT, TOP + PLOT};
    double legend_top = area.bottom + 68;
    double height = hdi_legend(NULL, LEFT, WIDTH - 24, legend_top, entries, map->region_count) + 14;
    hdi_scale y = hdi_scale_make(0, highest * 1.04 / unit, 7, false, area.bottom, area.top);
    hdi_scale x = hdi_scale_make(0, (double)map->positions, 10, false, area.left, area.right);
    x.step = fmax(x.step, 1);

    hdi_svg svg;
    const char *title = map->title ? map->title : "memory plan";
    hd_status status = hdi_svg_begin(&svg, path, WIDTH, height, title);
    if (status != HD_OK) return hdi_svg_end(&svg);
    hdi_svg_text_within(&svg, 24, 30, WIDTH - 48, &(hdi_svg_font){.size = 17, .bold = true}, title);
    draw_headline(&svg, map, peak, bytes);
    hdi_axis_y(&svg, &area, &y, units[unit_index]);
    columns shown;
    make_columns(map, &shown);
    for (int r = 0; r < map->region_count; r++)
        draw_region(&svg, map, r, &shown, &area, &y, unit);
    hdi_axis_x(&svg, &area, &x, false, "op, in the order of execution");
    draw_phases(&svg, map, &area);
    draw_peak(&svg, map, &shown, peak, bytes, &area, &y, unit);
    if (show_budget) draw_budget(&svg, map, &area, &y, unit);
    hdi_svg_text(&svg, LEFT, legend_top - 8, &(hdi_svg_font){.size = 11, .color = HDI_COLOR_FAINT},
                 "at the peak, from the bottom:");
    hdi_legend(&svg, LEFT, WIDTH - 24, legend_top, entries, map->region_count);
    return hdi_svg_end(&svg);
}
