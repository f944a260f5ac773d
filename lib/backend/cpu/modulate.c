/* Adaptive layer norm and gated adds, forward and backward, a row at a time; sums over groups of
 * rows in parts that only the shape decides on. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

#include <inttypes.h>
#include <string.h>

static hd_status check_index(const int32_t *index, int64_t groups, int64_t entries)
{
    for (int64_t g = 0; index && g < groups; g++)
        if (index[g] < 0 || index[g] >= entries)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "modulate: entry %" PRId32 " for group %" PRId64
                             ", want 0 to %" PRId64,
                             index[g], g, entries - 1);
    return HD_OK;
}

/* The vector of row r's group; NULL if there is none. */
static inline const float *vector_of(const void *table, int64_t stride, const int32_t *index,
                                     int64_t rows_per_group, int64_t r)
{
    if (!table) return NULL;
    const int64_t group = r / rows_per_group;
    return (const float *)table + (index ? index[group] : group) * stride;
}

/* out = (x - mean) * rstd * (1 + scale) + shift. */
static void modulate_row(const float *x, const float *scale, const float *shift, float mean,
                         float rstd, int64_t columns, float *out)
{
    if (scale && shift) {
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            out[c] = hdi_multiply_add((x[c] - mean) * rstd, 1.0f + scale[c], shift[c]);
    } else {
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++) {
            const float normed = (x[c] - mean) * rstd * (scale ? 1.0f + scale[c] : 1.0f);
            out[c] = shift ? normed + shift[c] : normed;
        }
    }
}

static void modulate_rows(void *context, int64_t index, int lane)
{
    const hdi_modulate_args *args = context;
    (void)lane;
    const int64_t columns = args->columns, chunk = hdi_cpu_chunk_rows(columns);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->rows);
    for (int64_t r = index * chunk; r < end; r++) {
        const float *x = (const float *)args->x + r * columns;
        float *out = args->out ? (float *)args->out + r * columns : NULL;
        float *sum = args->sum ? (float *)args->sum + r * columns : NULL;
        if (args->delta) {
            /* Without a place for the sum, out holds it until it is normed in place. */
            float *held = sum ? sum : out;
            const float *delta = (const float *)args->delta + r * columns;
            const float *gate = vector_of(args->gate, args->gate_stride, args->gate_index,
                                          args->gate_rows_per_group, r);
            HDI_INDEPENDENT
            for (int64_t c = 0; c < columns; c++)
                held[c] = hdi_multiply_add(gate[c], delta[c], x[c]);
            x = held;
        } else if (sum && sum != x) {
            memcpy(sum, x, (size_t)columns * sizeof *x);
        }
        if (!out) continue;
        const float mean = hdi_sum(x, columns) / (float)columns;
        const float variance = hdi_sum_of_squares(x, mean, columns) / (float)columns;
        const float rstd = 1.0f / sqrtf(variance + args->epsilon);
        if (args->mean) args->mean[r] = mean;
        if (args->rstd) args->rstd[r] = rstd;
        modulate_row(x, vector_of(args->scale, args->stride, args->index, args->rows_per_group, r),
                     vector_of(args->shift, args->stride, args->index, args->rows_per_group, r),
                     mean, rstd, columns, out);
    }
}

hd_status hdi_cpu_check_modulate(const hdi_modulate_args *args)
{
    if (args->gate)
        HD_RETURN_IF_ERROR(check_index(args->gate_index, args->rows / args->gate_rows_per_group,
                                       args->gate_entries));
    if (args->scale || args->shift)
        return check_index(args->index, args->rows / args->rows_per_group, args->entries);
    return HD_OK;
}

hd_status hdi_cpu_modulate(hd_stream *stream, const hdi_modulate_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("modulate", args->dtype));
    HD_RETURN_IF_ERROR(hdi_cpu_check_modulate(args));
    hdi_modulate_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->columns)), modulate_rows,
                     &work);
    return HD_OK;
}

/* A part is at most this many rows of one group, of both kinds of groups. */
enum { PART_ROWS = 32 };

typedef struct row_cut {
    int64_t unit, per_unit, count;
} row_cut;

static row_cut cut_of(const hdi_modulate_gradient_args *args)
{
    int64_t a = args->rows_per_group, b = args->gate_rows_per_group;
    while (b) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    if (a < 1) return (row_cut){0};
    const int64_t per_unit = hdi_ceil_div(a, PART_ROWS);
    return (row_cut){a, per_unit, args->rows / a * per_unit};
}

size_t hdi_cpu_modulate_gradient_workspace(const hdi_modulate_gradient_args *args)
{
    return (size_t)(cut_of(args).count * 3 * args->columns) * sizeof(float);
}

/* Gradient of one row of s, through the norm; adds the row to `sums` ([shift | scale]), if any. */
static void norm_gradient_of_row(const hdi_modulate_gradient_args *args, int64_t r,
                                 const float *carry, float *out, float *sums)
{
    const int64_t columns = args->columns;
    const float mean = args->mean[r], rstd = args->rstd[r];
    const float *gradient = (const float *)args->gradient + r * columns;
    const float *x = (const float *)args->x + r * columns;
    const float *scale = vector_of(args->scale, args->stride, args->index, args->rows_per_group, r);
    if (sums) { /* first: out may be the memory of gradient */
        float *scale_sums = sums + columns;
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++) {
            sums[c] += gradient[c];
            scale_sums[c] += gradient[c] * ((x[c] - mean) * rstd);
        }
    }
    float both[2];
    hdi_cpu_norm_sums(gradient, x, scale, 1, mean, rstd, columns, both);
    const float center = both[0] / (float)columns, slope = both[1] / (float)columns;
    HDI_INDEPENDENT
    for (int64_t c = 0; c < columns; c++) {
        const float scaled = gradient[c] * (scale ? 1.0f + scale[c] : 1.0f);
        const float through = rstd * (scaled - center - (x[c] - mean) * rstd * slope);
        out[c] = carry ? through + carry[c] : through;
    }
}

static void gradient_of_part(void *context, int64_t index, int lane)
{
    const hdi_modulate_gradient_args *args = context;
    (void)lane;
    const row_cut cut = cut_of(args);
    const int64_t columns = args->columns, first_of_unit = index / cut.per_unit * cut.unit;
    const int64_t first = first_of_unit + index % cut.per_unit * PART_ROWS;
    const int64_t end = hdi_cpu_min(first + PART_ROWS, first_of_unit + cut.unit);
    float *sums = (float *)args->workspace + index * 3 * columns, *gate_sums = sums + 2 * columns;
    if (args->sums) memset(sums, 0, 2 * (size_t)columns * sizeof *sums);
    if (args->gate_sums) memset(gate_sums, 0, (size_t)columns * sizeof *sums);
    for (int64_t r = first; r < end; r++) {
        const float *ds = args->carry ? (const float *)args->carry + r * columns : NULL;
        if (args->gradient) {
            float *out = (float *)args->x_gradient + r * columns;
            norm_gradient_of_row(args, r, ds, out, args->sums ? sums : NULL);
            ds = out;
        } else if (args->x_gradient && args->x_gradient != args->carry) {
            memcpy((float *)args->x_gradient + r * columns, ds, (size_t)columns * sizeof *ds);
        }
        if (args->gate_sums) {
            const float *delta = (const float *)args->delta + r * columns;
            HDI_INDEPENDENT
            for (int64_t c = 0; c < columns; c++)
                gate_sums[c] += delta[c] * ds[c];
        }
        if (args->delta_gradient) {
            float *out = (float *)args->delta_gradient + r * columns;
            const float *gate = vector_of(args->gate, args->gate_stride, args->gate_index,
                                          args->gate_rows_per_group, r);
            HDI_INDEPENDENT
            for (int64_t c = 0; c < columns; c++)
                out[c] = gate[c] * ds[c];
        }
    }
}

/* out[c] = sum over a group's parts, in their order. */
static void sum_parts(const float *parts, int64_t count, int64_t stride, int64_t columns,
                      float *out)
{
    memset(out, 0, (size_t)columns * sizeof *out);
    for (int64_t p = 0; p < count; p++) {
        const float *part = parts + p * stride;
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            out[c] += part[c];
    }
}

static void sum_group(void *context, int64_t group, int lane)
{
    const hdi_modulate_gradient_args *args = context;
    (void)lane;
    const row_cut cut = cut_of(args);
    const int64_t columns = args->columns, count = args->rows_per_group / cut.unit * cut.per_unit;
    const float *parts = (const float *)args->workspace + group * count * 3 * columns;
    sum_parts(parts, count, 3 * columns, 2 * columns, args->sums + group * 2 * columns);
}

static void sum_gate_group(void *context, int64_t group, int lane)
{
    const hdi_modulate_gradient_args *args = context;
    (void)lane;
    const row_cut cut = cut_of(args);
    const int64_t columns = args->columns,
                  count = args->gate_rows_per_group / cut.unit * cut.per_unit;
    const float *parts = (const float *)args->workspace + group * count * 3 * columns + 2 * columns;
    sum_parts(parts, count, 3 * columns, columns, args->gate_sums + group * columns);
}

hd_status hdi_cpu_modulate_gradient(hd_stream *stream, const hdi_modulate_gradient_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("modulate gradient", args->dtype));
    hdi_modulate_gradient_args work = *args;
    hdi_cpu_parallel(cut_of(args).count, gradient_of_part, &work);
    if (args->sums) hdi_cpu_parallel(args->rows / args->rows_per_group, sum_group, &work);
    if (args->gate_sums)
        hdi_cpu_parallel(args->rows / args->gate_rows_per_group, sum_gate_group, &work);
    return HD_OK;
}

static void table_gradient_of_entry(void *context, int64_t entry, int lane)
{
    const hdi_modulation_gradient_args *args = context;
    (void)lane;
    float *row = (float *)args->table_gradient + entry * args->table_columns;
    memset(row, 0, (size_t)args->table_columns * sizeof *row);
    row += args->first;
    for (int64_t g = 0; g < args->groups; g++) {
        if ((args->index ? args->index[g] : g) != entry) continue;
        const float *sums = args->sums + g * args->sums_stride;
        HDI_INDEPENDENT
        for (int64_t c = 0; c < args->columns; c++)
            row[c] += sums[c];
    }
}

hd_status hdi_cpu_modulation_gradient(hd_stream *stream, const hdi_modulation_gradient_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("modulation gradient", args->dtype));
    hdi_modulation_gradient_args work = *args;
    hdi_cpu_parallel(args->entries, table_gradient_of_entry, &work);
    return HD_OK;
}
