/* Where a patch lies, as sines and cosines added to its row. Rotary positions tell only how far apart
 * two rows are; small models learn much sooner with both. */
#include "models/mmdit.h"

#include "program/program.h"

#include <heddle/diffusion.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* What a table is a function of. */
typedef struct places {
    int64_t grid[3], hidden;
} places;

/* A quarter of the columns is for the frame, the rest for y and x: angles of 1.5 to 0.15 for each
 * patch, sines, then cosines. What is left over is 0. */
static void fill_row(const places *of, const int64_t at[3], float *out)
{
    const int64_t pairs[] = {of->hidden / 8, of->hidden * 3 / 16, of->hidden * 3 / 16};
    memset(out, 0, (size_t)of->hidden * sizeof *out);
    for (int a = 0; a < 3; a++) {
        for (int64_t i = 0; i < pairs[a]; i++) {
            const double angle = 1.5 * (double)at[a] * pow(10, -(double)i / (double)pairs[a]);
            out[i] = (float)sin(angle);
            out[pairs[a] + i] = (float)cos(angle);
        }
        out += 2 * pairs[a];
    }
}

static void fill(void *user, float *out)
{
    places of;
    memcpy(&of, user, sizeof of);
    int64_t at[3];
    for (at[0] = 0; at[0] < of.grid[0]; at[0]++)
        for (at[1] = 0; at[1] < of.grid[1]; at[1]++)
            for (at[2] = 0; at[2] < of.grid[2]; at[2]++, out += of.hidden)
                fill_row(&of, at, out);
}

hd_tensor hdi_mmdit_positions(hdi_mmdit_build *b)
{
    const places of = {{b->grid[0], b->grid[1], b->grid[2]}, b->config->hidden};
    const int64_t dims[] = {b->image, of.hidden};
    char name[160];
    snprintf(name, sizeof name,
             "positions.frames%" PRId64 ".height%" PRId64 ".width%" PRId64 ".columns%" PRId64,
             of.grid[0], of.grid[1], of.grid[2], of.hidden);
    return hd_cast(b->p, hdi_table(b->p, name, 2, dims, fill, &of, sizeof of));
}
