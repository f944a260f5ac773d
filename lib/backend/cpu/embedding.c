/* Embedding: rows of a table by id, and the sum of gradients back into the table. */
#include <inttypes.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

/* Ids are data, so nobody has seen them before: a bad one must not read outside the table. */
static hd_status check_ids(const char *what, const int32_t *ids, int64_t rows, int64_t entries)
{
    for (int64_t r = 0; r < rows; r++)
        if (ids[r] < 0 || ids[r] >= entries)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "%s: id %" PRId32 " in row %" PRId64 ", want 0 to %" PRId64, what,
                             ids[r], r, entries - 1);
    return HD_OK;
}

static void look_up_rows(void *context, int64_t index, int lane)
{
    const hdi_embedding_args *args = context;
    (void)lane;
    const int64_t columns = args->columns, chunk = hdi_cpu_chunk_rows(columns);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->rows);
    for (int64_t r = index * chunk; r < end; r++) {
        const int64_t id = args->ids[r] - args->first;
        const float *entry = (const float *)args->table + id * columns;
        float *out = (float *)args->out + r * columns;
        if (id < 0 || id >= args->entries) {
            memset(out, 0, (size_t)columns * sizeof *out);
            continue;
        }
        if (!args->second_table) {
            memcpy(out, entry, (size_t)columns * sizeof *out);
            continue;
        }
        const float *second = (const float *)args->second_table + args->second_ids[r] * columns;
        for (int64_t c = 0; c < columns; c++)
            out[c] = entry[c] + second[c];
    }
}

hd_status hdi_cpu_embedding(hd_stream *stream, const hdi_embedding_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("embedding", args->dtype));
    HD_RETURN_IF_ERROR(
        check_ids("embedding", args->ids, args->rows, args->limit ? args->limit : args->entries));
    if (args->second_table)
        HD_RETURN_IF_ERROR(check_ids("embedding, second table", args->second_ids, args->rows,
                                     args->second_entries));
    hdi_embedding_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->columns)), look_up_rows,
                     &work);
    return HD_OK;
}

size_t hdi_cpu_embedding_gradient_workspace(int64_t rows, int64_t entries)
{
    (void)rows;
    (void)entries;
    return 0;
}

enum { STRIP = 64 };

/* Threads share columns, not rows: every entry sums its rows in order. */
static void add_strip(void *context, int64_t index, int lane)
{
    const hdi_embedding_gradient_args *args = context;
    (void)lane;
    const int64_t first = index * STRIP, columns = hdi_cpu_min(STRIP, args->columns - first);
    float *table = args->table_gradient + first;
    for (int64_t e = 0; e < args->entries && !args->accumulate; e++)
        memset(table + e * args->columns, 0, (size_t)columns * sizeof *table);
    for (int64_t r = 0; r < args->rows; r++) {
        const int64_t id = args->ids[r] - args->first;
        const float *gradient = (const float *)args->gradient + r * args->columns + first;
        float *entry = table + id * args->columns;
        if (id < 0 || id >= args->entries) continue;
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            entry[c] += gradient[c];
    }
}

hd_status hdi_cpu_embedding_gradient(hd_stream *stream, const hdi_embedding_gradient_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("embedding gradient", args->dtype));
    HD_RETURN_IF_ERROR(check_ids("embedding gradient", args->ids, args->rows,
                                 args->limit ? args->limit : args->entries));
    hdi_embedding_gradient_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->columns, STRIP), add_strip, &work);
    return HD_OK;
}

hd_status hdi_cpu_positions(hd_stream *stream, const hdi_positions_args *args)
{
    (void)stream;
    const int64_t first = args->first ? *args->first : 0;
    if (first < 0)
        return hdi_error(HD_ERROR_ARGUMENT, "positions: the first is %" PRId64 ", want >= 0",
                         first);
    for (int64_t r = 0; r < args->rows; r++)
        args->out[r] = (int32_t)hdi_cpu_min(first + r % args->period, args->limit - 1);
    return HD_OK;
}

hd_status hdi_cpu_select_row(hd_stream *stream, const hdi_select_row_args *args)
{
    (void)stream;
    const int64_t count = hdi_cpu_min(*args->count, args->rows);
    const int64_t row = count < 1 ? 0 : count - 1;
    const size_t bytes = (size_t)args->columns * hd_dtype_bytes(args->dtype);
    memcpy(args->out, (const char *)args->x + (size_t)row * bytes, bytes);
    return HD_OK;
}
