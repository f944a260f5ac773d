/* The loss curve as SVG. */
#include "report/loss_curve.h"

#include <math.h>
#include <stdio.h>

#include "report/axis.h"

enum { WIDTH = 900, HEIGHT = 500, LEFT = 76, RIGHT = 24, TOP = 84, BOTTOM = 52 };

typedef struct range {
    double low, high;
} range;

static void include(range *r, double value)
{
    if (!isfinite(value)) return;
    r->low = fmin(r->low, value);
    r->high = fmax(r->high, value);
}

/* A curve that breaks at values that are not finite. */
typedef struct pen {
    hdi_svg *svg;
    const hdi_scale *x, *y;
    const hdi_svg_style *style;
    bool down;
} pen;

static void pen_up(pen *p)
{
    if (p->down) hdi_svg_path_end(p->svg, NULL);
    p->down = false;
}

static void pen_to(pen *p, double x, double y)
{
    if (!isfinite(x) || !isfinite(y)) {
        pen_up(p);
        return;
    }
    if (!p->down) hdi_svg_path_begin(p->svg, false, p->style);
    p->down = true;
    hdi_svg_point(p->svg, hdi_scale_at(p->x, x), hdi_scale_at(p->y, y));
}

/* The raw series. Where several points fall on one column, its lowest and highest stand for all, so
 * the file stays small and no spike is lost. */
static void draw_raw(pen *p, const hdi_point *points, int64_t count)
{
    for (int64_t i = 0; i < count;) {
        int column = (int)hdi_scale_at(p->x, points[i].x);
        range seen = {INFINITY, -INFINITY};
        int64_t end = i;
        for (; end < count && (int)hdi_scale_at(p->x, points[end].x) == column; end++)
            include(&seen, points[end].y);
        if (end - i <= 2) {
            for (; i < end; i++)
                pen_to(p, points[i].x, points[i].y);
        } else {
            bool falls = points[i].y > points[end - 1].y;
            pen_to(p, points[i].x, falls ? seen.high : seen.low);
            pen_to(p, points[end - 1].x, falls ? seen.low : seen.high);
            i = end;
        }
    }
    pen_up(p);
}

/* Mean over `half` points on both sides. At the start, where losses fall fast, equally many on
 * both, so that the curve is not shifted; at the end, what there is. The sum is carried along. */
static void draw_smooth(pen *p, const hdi_point *points, int64_t count, int64_t half)
{
    double sum = 0;
    int64_t begin = 0, end = 0, finite = 0;
    double last_column = -1;
    for (int64_t i = 0; i < count; i++) {
        int64_t reach = i < half ? i : half;
        for (; end <= i + reach && end < count; end++)
            if (isfinite(points[end].y)) sum += points[end].y, finite++;
        for (; begin < i - reach; begin++)
            if (isfinite(points[begin].y)) sum -= points[begin].y, finite--;
        double column = floor(hdi_scale_at(p->x, points[i].x) * 2);
        if (column == last_column && i + 1 < count) continue;
        last_column = column;
        pen_to(p, points[i].x, finite > 0 ? sum / (double)finite : (double)NAN);
    }
    pen_up(p);
}

static void draw_reference(hdi_svg *svg, const hdi_plot_area *area, const hdi_scale *y,
                           const hdi_loss_curve *curve)
{
    if (!curve->reference_label || !isfinite(curve->reference)) return;
    double at = hdi_scale_at(y, curve->reference);
    hdi_svg_line(svg, area->left, at, area->right, at,
                 &(hdi_svg_style){.stroke = HDI_COLOR_FAINT, .width = 1.5, .dash = "7 4"});
}

static int make_legend(const hdi_loss_curve *curve, int64_t half, hdi_legend_entry entries[4])
{
    int used = 0;
    if (curve->train_count > 0) {
        hdi_legend_entry *raw = &entries[used++];
        *raw = (hdi_legend_entry){HDI_LEGEND_LINE, half ? HDI_COLOR_SKY : HDI_COLOR_BLUE, NULL,
                                  half ? 1 : 2, "train"};
    }
    if (half > 0) {
        hdi_legend_entry *smooth = &entries[used++];
        *smooth = (hdi_legend_entry){HDI_LEGEND_LINE, HDI_COLOR_BLUE, NULL, 2.5, ""};
        snprintf(smooth->text, sizeof smooth->text, "train, mean of %lld",
                 (long long)(2 * half + 1));
    }
    if (curve->validation_count > 0) {
        hdi_legend_entry *validation = &entries[used++];
        *validation = (hdi_legend_entry){HDI_LEGEND_DOT, HDI_COLOR_RED, NULL, 0, ""};
        double last = curve->validation[curve->validation_count - 1].y;
        snprintf(validation->text, sizeof validation->text, "validation (last %.4g)", last);
    }
    if (curve->reference_label && isfinite(curve->reference)) {
        hdi_legend_entry *reference = &entries[used++];
        *reference = (hdi_legend_entry){HDI_LEGEND_LINE, HDI_COLOR_FAINT, "7 4", 1.5, ""};
        snprintf(reference->text, sizeof reference->text, "%.60s (%.4g)", curve->reference_label,
                 curve->reference);
    }
    return used;
}

static void draw_validation(hdi_svg *svg, const hdi_scale *x, const hdi_scale *y,
                            const hdi_point *points, int64_t count)
{
    const hdi_svg_style line = {.stroke = HDI_COLOR_RED, .width = 1.5};
    const hdi_svg_style dot = {.fill = HDI_COLOR_RED, .stroke = "#ffffff", .width = 1};
    pen p = {svg, x, y, &line, false};
    for (int64_t i = 0; i < count; i++)
        pen_to(&p, points[i].x, points[i].y);
    pen_up(&p);
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(points[i].x) || !isfinite(points[i].y)) continue;
        char tooltip[96];
        snprintf(tooltip, sizeof tooltip, "step %.0f: validation %.4f", points[i].x, points[i].y);
        hdi_svg_circle(svg, hdi_scale_at(x, points[i].x), hdi_scale_at(y, points[i].y), 3.5, &dot,
                       tooltip);
    }
}

hd_status hdi_loss_curve_write(const char *path, const hdi_loss_curve *curve)
{
    range steps = {INFINITY, -INFINITY}, losses = {INFINITY, -INFINITY};
    for (int64_t i = 0; i < curve->train_count; i++) {
        include(&steps, curve->train[i].x);
        include(&losses, curve->train[i].y);
    }
    for (int64_t i = 0; i < curve->validation_count; i++) {
        include(&steps, curve->validation[i].x);
        include(&losses, curve->validation[i].y);
    }
    if (curve->reference_label) include(&losses, curve->reference);

    const hdi_plot_area area = {LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM};
    hdi_scale x = hdi_scale_make(steps.low, steps.high, 8, false, area.left, area.right);
    hdi_scale y = hdi_scale_make(losses.low, losses.high, 7, true, area.bottom, area.top);

    const char *title = curve->title ? curve->title : "loss";
    hdi_svg svg;
    hd_status status = hdi_svg_begin(&svg, path, WIDTH, HEIGHT, title);
    if (status != HD_OK) return hdi_svg_end(&svg);
    hdi_svg_text_within(&svg, 24, 30, WIDTH - 48, &(hdi_svg_font){.size = 17, .bold = true}, title);

    int64_t half = curve->train_count / 80;
    hdi_legend_entry entries[4];
    hdi_legend(&svg, LEFT, WIDTH - RIGHT, 44, entries, make_legend(curve, half, entries));
    hdi_axis_y(&svg, &area, &y, "loss (nats per token)");
    hdi_axis_x(&svg, &area, &x, true, "step");

    draw_reference(&svg, &area, &y, curve);
    const hdi_svg_style thin = {.stroke = HDI_COLOR_SKY, .width = 1};
    const hdi_svg_style bold = {.stroke = HDI_COLOR_BLUE, .width = 2.5};
    pen raw = {&svg, &x, &y, half > 0 ? &thin : &bold, false};
    draw_raw(&raw, curve->train, curve->train_count);
    pen smooth = {&svg, &x, &y, &bold, false};
    if (half > 0) draw_smooth(&smooth, curve->train, curve->train_count, half);
    draw_validation(&svg, &x, &y, curve->validation, curve->validation_count);
    return hdi_svg_end(&svg);
}
