/* Constants of STDiT3 programs. */
#include <heddle/diffusion.h>

#include "models/stdit.h"
#include "program/program.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Sines, then cosines, of place * 10000^(-i / quarter). */
static void fill_axis(double place, int64_t quarter, float *out)
{
    for (int64_t i = 0; i < quarter; i++) {
        const double angle = place * pow(10000, -(double)i / (double)quarter);
        out[i] = (float)sin(angle);
        out[quarter + i] = (float)cos(angle);
    }
}

/* A frame of any shape spans about the square root of its patches in both directions. */
static void fill_positions(void *user, float *out)
{
    hdi_stdit_places of;
    memcpy(&of, user, sizeof of);
    const double base = nearbyint(sqrt((double)(of.height * of.width)));
    const int64_t quarter = of.hidden / 4;
    for (int64_t r = 0; r < of.rows; r++, out += of.hidden) {
        const int64_t place = (of.first + r) % (of.height * of.width);
        const double x = (double)(place % of.width), y = (double)(place / of.width);
        fill_axis(x / of.scale * base / (double)of.width, quarter, out);
        fill_axis(y / of.scale * base / (double)of.height, quarter, out + 2 * quarter);
    }
}

hd_tensor hdi_stdit_positions(hd_program *program, const hdi_stdit_places *places)
{
    char name[224];
    snprintf(name, sizeof name,
             "positions.height%" PRId64 ".width%" PRId64 ".columns%" PRId64 ".first%" PRId64
             ".rows%" PRId64 ".scale%.17g",
             places->height, places->width, places->hidden, places->first, places->rows,
             places->scale);
    const int64_t dims[] = {places->rows, places->hidden};
    return hd_cast(program,
                   hdi_table(program, name, 2, dims, fill_positions, places, sizeof *places));
}

typedef struct sizes {
    int64_t rows, columns;
} sizes;

static void fill_zeros(void *user, float *out)
{
    int64_t rows;
    memcpy(&rows, user, sizeof rows);
    memset(out, 0, (size_t)rows * sizeof *out);
}

hd_tensor hdi_stdit_zeros(hd_program *program, int64_t rows)
{
    char name[64];
    snprintf(name, sizeof name, "zeros%" PRId64, rows);
    return hdi_table(program, name, 1, &rows, fill_zeros, &rows, sizeof rows);
}

static void fill_selection(void *user, float *out)
{
    sizes of;
    memcpy(&of, user, sizeof of);
    for (int64_t r = 0; r < 2 * of.rows; r++) {
        for (int64_t c = 0; c < 2 * of.columns; c++) {
            const float given = c < of.columns ? -1.0F : 1.0F;
            *out++ = r < of.rows ? 0.0F : given;
        }
    }
}

hd_tensor hdi_stdit_selection(hd_program *program, int64_t entries, int64_t hidden)
{
    char name[96];
    snprintf(name, sizeof name, "selection.entries%" PRId64 ".columns%" PRId64, entries, hidden);
    const sizes of = {entries, hidden};
    const int64_t dims[] = {2 * entries, 2 * hidden};
    return hd_cast(program, hdi_table(program, name, 2, dims, fill_selection, &of, sizeof of));
}
