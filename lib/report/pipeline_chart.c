/* The pipeline step as SVG: a lane per rank, computing above, communication in a strip below. */
#include "report/pipeline_chart.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/memory.h"
#include "report/axis.h"
#include "report/format.h"
#include "report/pipeline_internal.h"

enum {
    WIDTH = 1200,
    LEFT = 110,
    RIGHT = 110,
    TOP = 92,
    LANE = 42,
    BOX = 26,
    STRIP = 6,
    BOTTOM = 56,
    NUMBER_SIZE = 11
};

static const char *const colors[HDI_TRACE_CATEGORIES] = {
    [HDI_TRACE_OTHER] = HDI_COLOR_GREY,     [HDI_TRACE_OP] = HDI_COLOR_GREY,
    [HDI_TRACE_FORWARD] = HDI_COLOR_BLUE,   [HDI_TRACE_BACKWARD] = HDI_COLOR_ORANGE,
    [HDI_TRACE_WEIGHT] = HDI_COLOR_YELLOW,  [HDI_TRACE_OPTIMIZER] = HDI_COLOR_GREEN,
    [HDI_TRACE_COMM] = HDI_COLOR_PINK,      [HDI_TRACE_WAIT_COPIES] = HDI_COLOR_RED,
    [HDI_TRACE_WAIT_COMM] = HDI_COLOR_PINK, [HDI_TRACE_WAIT_HOST] = HDI_COLOR_SKY,
};

static void draw_event(hdi_svg *svg, const hdi_trace_event *event, const hdi_scale *ms,
                       double begin_us, double y)
{
    double begin = (event->begin_us - begin_us) / 1e3, end = (event->end_us - begin_us) / 1e3;
    double x = hdi_scale_at(ms, begin), width = hdi_scale_at(ms, end) - x;
    char tooltip[256], number[16], color[8], place[48] = "";
    if (event->micro_batch >= 0 && event->chunk >= 0)
        snprintf(place, sizeof place, " · micro-batch %d, chunk %d", event->micro_batch,
                 event->chunk);
    else if (event->micro_batch >= 0)
        snprintf(place, sizeof place, " · micro-batch %d", event->micro_batch);
    snprintf(tooltip, sizeof tooltip, "%.120s%s: %.3f to %.3f ms", event->name ? event->name : "",
             place, begin, end);

    /* Chunks alternate between the colour and a lighter one. */
    hdi_svg_lighten(colors[event->category], event->chunk > 0 && event->chunk % 2 ? 0.45 : 0,
                    color);
    const hdi_svg_style style = {.fill = color, .stroke = "#ffffff", .width = 0.6};
    if (event->category == HDI_TRACE_COMM || hdi_trace_is_wait(event->category)) {
        hdi_svg_rect(svg, x, y + BOX + 2, fmax(width, 0.5), STRIP, &(hdi_svg_style){.fill = color},
                     tooltip);
        return;
    }
    hdi_svg_rect(svg, x, y, fmax(width, 0.5), BOX, &style, tooltip);
    if (event->micro_batch < 0) return;
    snprintf(number, sizeof number, "%d", event->micro_batch);
    if (hdi_svg_text_width(number, NUMBER_SIZE) + 2 > width) return;
    hdi_svg_text(svg, x + width / 2, y + BOX / 2.0 + 4,
                 &(hdi_svg_font){
                     .size = NUMBER_SIZE, .anchor = HDI_SVG_MIDDLE, .color = hdi_svg_ink_on(color)},
                 number);
}

static void draw_lane(hdi_svg *svg, const hdi_pipeline_chart *chart, int index, const hdi_scale *ms,
                      double begin_us, double busy)
{
    const hdi_pipeline_lane *lane = &chart->lanes[index];
    double y = TOP + index * LANE + (LANE - BOX - STRIP) / 2.0 - 1;
    char text[64];
    snprintf(text, sizeof text, "rank %d", lane->rank);
    hdi_svg_text_within(svg, LEFT - 10, y + BOX / 2.0 + 4, LEFT - 20,
                        &(hdi_svg_font){.anchor = HDI_SVG_END}, lane->label ? lane->label : text);
    hdi_svg_rect(svg, LEFT, y, WIDTH - RIGHT - LEFT, BOX, &(hdi_svg_style){.fill = "#f3f3f3"},
                 NULL);
    /* Waits over what they are in. */
    for (int64_t i = 0; i < 2 * lane->count; i++) {
        const hdi_trace_event *event = &lane->events[i % lane->count];
        if (hdi_pipeline_takes(chart, event) &&
            hdi_trace_is_wait(event->category) == (i >= lane->count))
            draw_event(svg, event, ms, begin_us, y);
    }
    snprintf(text, sizeof text, "%.1f %% busy", busy * 100);
    hdi_svg_text(svg, WIDTH - RIGHT + 10, y + BOX / 2.0 + 4, &(hdi_svg_font){.size = 12}, text);
}

static int make_legend(const hdi_pipeline_chart *chart, hdi_legend_entry *entries)
{
    bool seen[HDI_TRACE_CATEGORIES] = {false};
    for (int l = 0; l < chart->lane_count; l++)
        for (int64_t i = 0; i < chart->lanes[l].count; i++) {
            const hdi_trace_event *event = &chart->lanes[l].events[i];
            if (hdi_pipeline_takes(chart, event)) seen[event->category] = true;
        }
    static const char *const texts[HDI_TRACE_CATEGORIES] = {
        [HDI_TRACE_FORWARD] = "forward (number: micro-batch)",
        [HDI_TRACE_BACKWARD] = "backward",
        [HDI_TRACE_WEIGHT] = "weight gradient",
        [HDI_TRACE_OPTIMIZER] = "optimizer",
        [HDI_TRACE_COMM] = "communication",
        [HDI_TRACE_WAIT_COPIES] = "waiting for copies",
        [HDI_TRACE_WAIT_COMM] = "waiting for ranks",
        [HDI_TRACE_WAIT_HOST] = "waiting for the host",
    };
    int used = 0;
    for (int i = HDI_TRACE_FORWARD; i < HDI_TRACE_CATEGORIES; i++) {
        if (!seen[i]) continue;
        entries[used] = (hdi_legend_entry){HDI_LEGEND_BOX, colors[i], NULL, 0, ""};
        snprintf(entries[used++].text, sizeof entries->text, "%s", texts[i]);
    }
    return used;
}

static hd_status draw(const char *path, const hdi_pipeline_chart *chart, const double *busy,
                      const hdi_pipeline_numbers *numbers)
{
    const char *title = chart->title ? chart->title : "pipeline step";
    double height = TOP + chart->lane_count * LANE + BOTTOM;
    const hdi_plot_area area = {LEFT, TOP, WIDTH - RIGHT, height - BOTTOM};
    double span_ms = (numbers->end_us - numbers->begin_us) / 1e3;
    hdi_scale ms = hdi_scale_make(0, span_ms, 10, false, area.left, area.right);

    hdi_svg svg;
    hd_status status = hdi_svg_begin(&svg, path, WIDTH, height, title);
    if (status != HD_OK) return hdi_svg_end(&svg);
    char text[128], span[HDI_NUMBER_TEXT];
    hdi_format_fixed(span_ms, span_ms < 100 ? 2 : 0, span);
    hdi_svg_text_within(&svg, 24, 30, WIDTH - 48, &(hdi_svg_font){.size = 17, .bold = true}, title);
    snprintf(text, sizeof text,
             "step %s ms · bubble %.1f %% of the pipeline phase · ranks busy %.1f %%", span,
             numbers->bubble * 100, numbers->busy * 100);
    hdi_svg_text(&svg, 24, 51, &(hdi_svg_font){.size = 13, .color = HDI_COLOR_FAINT}, text);
    hdi_legend_entry entries[HDI_TRACE_CATEGORIES];
    hdi_legend(&svg, 20, WIDTH - 24, 60, entries, make_legend(chart, entries));
    hdi_axis_x(&svg, &area, &ms, true, "time (ms)");
    for (int l = 0; l < chart->lane_count; l++)
        draw_lane(&svg, chart, l, &ms, numbers->begin_us, busy[l]);
    return hdi_svg_end(&svg);
}

hd_status hdi_pipeline_chart_write(const char *path, const hdi_pipeline_chart *chart)
{
    double *busy = hdi_alloc_array((size_t)chart->lane_count + 1, sizeof *busy);
    if (!busy) return hdi_error(HD_ERROR_MEMORY, "%s: out of host memory", path);
    hdi_pipeline_numbers numbers;
    hd_status status = hdi_pipeline_measure(chart, busy, &numbers);
    if (status == HD_OK && !(numbers.end_us > numbers.begin_us))
        status = hdi_error(HD_ERROR_ARGUMENT, "%s: %d lanes without events to draw", path,
                           chart->lane_count);
    if (status == HD_OK) status = draw(path, chart, busy, &numbers);
    hdi_free(busy);
    return status;
}

static int by_rank(const void *a, const void *b)
{
    return ((const hdi_trace_file *)a)->rank - ((const hdi_trace_file *)b)->rank;
}

/* The last step of which every file has events: a later one may have been cut off. */
static int64_t last_common_step(const hdi_trace_file *files, int count)
{
    int64_t common = INT64_MAX;
    for (int f = 0; f < count; f++) {
        int64_t last = -1;
        for (int64_t i = 0; i < files[f].count; i++)
            last = files[f].events[i].step > last ? files[f].events[i].step : last;
        common = last < common ? last : common;
    }
    return common;
}

hd_status hdi_pipeline_chart_from_files(const char *path, const char *title,
                                        const char *const *trace_paths, int count, int64_t step)
{
    hdi_trace_file *files = hdi_alloc_array((size_t)count + 1, sizeof *files);
    hdi_pipeline_lane *lanes = hdi_alloc_array((size_t)count + 1, sizeof *lanes);
    hd_status status = HD_OK;
    if (!files || !lanes) status = hdi_error(HD_ERROR_MEMORY, "%s: out of host memory", path);
    for (int i = 0; i < count && status == HD_OK; i++)
        status = hdi_trace_read(trace_paths[i], &files[i]);
    if (status == HD_OK) {
        qsort(files, (size_t)count, sizeof *files, by_rank);
        for (int i = 0; i < count; i++)
            lanes[i] = (hdi_pipeline_lane){files[i].rank, NULL, files[i].events, files[i].count};
        if (step < 0) step = last_common_step(files, count);
        status = hdi_pipeline_chart_write(
            path, &(hdi_pipeline_chart){title, lanes, count, step >= 0 && count > 0, step});
    }
    for (int i = 0; i < count && files; i++)
        hdi_trace_file_free(&files[i]);
    hdi_free(files);
    hdi_free(lanes);
    return status;
}
