/* Parts of parameters: runs of rows or of columns. */
#include "program/shard.h"

#include "core/error.h"
#include "core/memory.h"

#include <string.h>

static int64_t columns_of(const hd_parameter_options *options)
{
    int64_t columns = 1;
    for (int i = 1; i < options->rank; i++)
        columns *= options->dims[i];
    return columns;
}

int64_t hdi_shard_whole(const hd_parameter_options *options)
{
    return options->dims[0] * columns_of(options);
}

bool hdi_shard_dims(const hd_parameter_options *options, int64_t out[HD_MAX_DIMS])
{
    const hd_shard *shard = &options->shard;
    for (int i = 0; i < options->rank; i++)
        out[i] = options->dims[i];
    if (!hdi_shard_is_part(options)) return true;
    const bool rows = shard->dim == 0, columns = shard->dim == 1 && options->rank == 2;
    if (!(rows || columns) || shard->runs < 1 || shard->runs > (rows ? HD_MAX_PARTS : 1))
        return false;
    int64_t count = 0, end = 0;
    for (int i = 0; i < shard->runs; i++) {
        const hd_shard_run *run = &shard->run[i];
        if (run->first < end || run->count < 1 ||
            run->count > options->dims[shard->dim] - run->first)
            return false;
        end = run->first + run->count;
        count += run->count;
    }
    out[shard->dim] = count;
    return true;
}

bool hdi_shard_equal(const hd_shard *left, const hd_shard *right)
{
    bool equal = left->axis == right->axis && left->dim == right->dim && left->runs == right->runs;
    for (int i = 0; i < left->runs && equal; i++)
        equal =
            left->run[i].first == right->run[i].first && left->run[i].count == right->run[i].count;
    return equal;
}

int64_t hdi_shard_run(const hd_parameter_options *options, int64_t own, int64_t *global)
{
    const hd_shard *shard = &options->shard;
    const int64_t columns = columns_of(options);
    *global = own;
    if (!hdi_shard_is_part(options)) return options->dims[0] * columns - own;
    if (shard->dim == 1) {
        const hd_shard_run *run = &shard->run[0];
        const int64_t row = own / run->count, column = own % run->count;
        *global = row * columns + run->first + column;
        return run->count - column;
    }
    for (int i = 0; i < shard->runs; i++) {
        const int64_t elements = shard->run[i].count * columns;
        *global = shard->run[i].first * columns + own;
        if (own < elements) return elements - own;
        own -= elements;
    }
    return 0;
}

enum { READ_BYTES = 4 << 20 };

static hd_status read_columns(const hd_parameter_options *options, int64_t begin, int64_t count,
                              size_t element_bytes, hdi_shard_read_fn read, void *user, char *out)
{
    const int64_t columns = options->dims[1], width = options->shard.run[0].count;
    const int64_t row_bytes = columns * (int64_t)element_bytes;
    const int64_t at_once = row_bytes < READ_BYTES ? READ_BYTES / row_bytes : 1;
    const int64_t end = begin + count, last = (end + width - 1) / width;
    char *rows = hdi_alloc((size_t)(at_once * row_bytes));
    if (!rows)
        return hdi_error(HD_ERROR_MEMORY, "parameter '%s': out of host memory", options->name);
    hd_status status = HD_OK;
    for (int64_t row = begin / width; row < last && status == HD_OK; row += at_once) {
        const int64_t now = last - row < at_once ? last - row : at_once;
        status = read(user, row * columns, now * columns, rows);
        const int64_t stop = (row + now) * width < end ? (row + now) * width : end;
        for (int64_t at = row * width > begin ? row * width : begin;
             at < stop && status == HD_OK;) {
            int64_t global, run = hdi_shard_run(options, at, &global);
            if (run > stop - at) run = stop - at;
            memcpy(out + (size_t)(at - begin) * element_bytes,
                   rows + (size_t)(global - row * columns) * element_bytes,
                   (size_t)run * element_bytes);
            at += run;
        }
    }
    hdi_free(rows);
    return status;
}

hd_status hdi_shard_read(const hd_parameter_options *options, int64_t begin, int64_t count,
                         size_t element_bytes, hdi_shard_read_fn read, void *user, void *out)
{
    if (hdi_shard_is_part(options) && options->shard.dim == 1)
        return read_columns(options, begin, count, element_bytes, read, user, out);
    for (int64_t at = begin; at < begin + count;) {
        int64_t global, run = hdi_shard_run(options, at, &global);
        if (run > begin + count - at) run = begin + count - at;
        HD_RETURN_IF_ERROR(
            read(user, global, run, (char *)out + (size_t)(at - begin) * element_bytes));
        at += run;
    }
    return HD_OK;
}
