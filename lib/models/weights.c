/* Parts and transposition between parameters and tensors of files. */
#include "models/weights.h"

#include "core/error.h"
#include "core/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int hdi_model_part_count(const hd_parameter_options *options)
{
    return options->parts ? options->parts : 1;
}

hdi_model_part hdi_model_part_of(const hd_parameter_options *options, int index)
{
    hdi_model_part it = {.name = options->name,
                         .rows = options->dims[0],
                         .columns = 1,
                         .transposed = options->transposed,
                         .rank = options->rank};
    const hd_parameter_part *part = options->parts ? &options->part[index] : NULL;
    if (part) {
        it.name = part->name;
        it.rows = part->rows;
        it.transposed = part->transposed;
    }
    it.transposed = it.transposed && it.rank == 2;
    it.dims[0] = it.rows;
    for (int i = 1; i < options->rank; i++) {
        it.dims[i] = options->dims[i];
        it.columns *= options->dims[i];
    }
    it.file_columns = it.columns;
    if (it.transposed) {
        it.dims[0] = it.columns;
        it.dims[1] = it.rows;
    }
    if (!part || !part->file_rank) return it;
    it.rank = part->file_rank;
    it.file_columns = 1;
    for (int i = 0; i < it.rank; i++) {
        it.dims[i] = part->file_dims[i];
        if (i) it.file_columns *= it.dims[i];
    }
    it.first = part->first_row * it.file_columns + part->first_column;
    return it;
}

static const hdi_safetensors_tensor *find(const hdi_weights *weights, const char *name,
                                          hdi_safetensors **file)
{
    static const char prefix[] = "transformer.";
    const hdi_safetensors_tensor *tensor = hdi_weights_find(weights, name, file);
    if (tensor || strncmp(name, prefix, sizeof prefix - 1) != 0) return tensor;
    return hdi_weights_find(weights, name + sizeof prefix - 1, file);
}

static const char *dims_text(int rank, const int64_t *dims, char *out, size_t bytes)
{
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < rank && used < bytes; i++)
        used += (size_t)snprintf(out + used, bytes - used, "%s%" PRId64, i ? ", " : "", dims[i]);
    return out;
}

/* What is wrong with the file's tensor for a part, appended to `out`; nothing if it is as wanted. */
static const hdi_safetensors_tensor *judge_part(const hdi_weights *weights,
                                                const hdi_model_part *it, hdi_safetensors **file,
                                                hdi_text *out)
{
    char seen[192], wanted[192];
    const hdi_safetensors_tensor *tensor = find(weights, it->name, file);
    bool equal = tensor && tensor->rank == it->rank;
    for (int i = 0; i < it->rank && equal; i++)
        equal = tensor->dims[i] == it->dims[i];
    if (equal) return tensor;
    dims_text(it->rank, it->dims, wanted, sizeof wanted);
    if (out->data) hdi_text_append(out, "; ");
    if (!tensor)
        hdi_text_printf(out, "%s: tensor \"%s\" is missing, want one [%s]",
                        hdi_weights_path(weights), it->name, wanted);
    else
        hdi_text_printf(out, "%s: tensor \"%s\" is [%s], want [%s]", hdi_safetensors_path(*file),
                        tensor->name, dims_text(tensor->rank, tensor->dims, seen, sizeof seen),
                        wanted);
    return NULL;
}

static hd_status report(hdi_text *faults)
{
    if (!faults->data && !faults->failed) return HD_OK;
    const hd_status status = faults->failed
                                 ? hdi_error(HD_ERROR_MEMORY, "weights: out of host memory")
                                 : hdi_error(HD_ERROR_FORMAT, "%s", faults->data);
    hdi_text_free(faults);
    return status;
}

static hd_status find_part(const hdi_weights *weights, const hdi_model_part *it,
                           hdi_safetensors **file, const hdi_safetensors_tensor **out)
{
    hdi_text fault = {0};
    *out = judge_part(weights, it, file, &fault);
    return report(&fault);
}

hd_status hdi_model_check_parameter(const hdi_weights *weights, const hd_parameter_options *options)
{
    return hdi_model_check_parameters(weights, &options, 1);
}

hd_status hdi_model_check_parameters(const hdi_weights *weights,
                                     const hd_parameter_options *const *parameters, int count)
{
    enum { NAMED = 8 }; /* faults that are told, of all */
    hdi_text faults = {0};
    int wrong = 0;
    for (int p = 0; p < count; p++) {
        for (int i = 0; i < hdi_model_part_count(parameters[p]); i++) {
            const hdi_model_part it = hdi_model_part_of(parameters[p], i);
            hdi_safetensors *file;
            hdi_text rest = {0};
            if (!judge_part(weights, &it, &file, wrong < NAMED ? &faults : &rest)) wrong++;
            hdi_text_free(&rest);
        }
    }
    if (wrong > NAMED) hdi_text_printf(&faults, "; and %d more like these", wrong - NAMED);
    return report(&faults);
}

static int by_address(const void *a, const void *b)
{
    const uintptr_t one = (uintptr_t) * (const void *const *)a,
                    two = (uintptr_t) * (const void *const *)b;
    return (one > two) - (one < two);
}

hd_status hdi_model_unused_tensors(const hdi_weights *weights,
                                   const hd_parameter_options *const *parameters, int count,
                                   hdi_text *out)
{
    const void **used = hdi_alloc_array((size_t)count * HD_MAX_PARTS + 1, sizeof *used);
    if (!used) return hdi_error(HD_ERROR_MEMORY, "weights: out of host memory");
    size_t found = 0;
    for (int p = 0; p < count; p++) {
        for (int i = 0; i < hdi_model_part_count(parameters[p]); i++) {
            hdi_safetensors *file;
            used[found] = find(weights, hdi_model_part_of(parameters[p], i).name, &file);
            found += used[found] != NULL;
        }
    }
    qsort(used, found, sizeof *used, by_address);
    const char *separator = "";
    for (int i = 0; i < hdi_weights_count(weights); i++) {
        hdi_safetensors *file;
        const hdi_safetensors_tensor *tensor = hdi_weights_get(weights, i, &file);
        const void *key = tensor;
        if (bsearch(&key, used, found, sizeof *used, by_address)) continue;
        hdi_text_printf(out, "%s%s", separator, tensor->name);
        separator = ", ";
    }
    hdi_free(used);
    return out->failed ? hdi_error(HD_ERROR_MEMORY, "weights: out of host memory") : HD_OK;
}

/* Elements of a file's row-major tensor [columns, rows] that are [first, first + count) of its
 * transpose: the rows that they touch, column by column, several columns at a time when all rows
 * are wanted. */
static hd_status read_transposed(const hdi_safetensors *file, const hdi_safetensors_tensor *tensor,
                                 const hdi_model_part *it, int64_t first, int64_t count, float *out)
{
    enum { BUFFER = 1 << 18 };
    const int64_t first_row = first / it->columns, last_row = (first + count - 1) / it->columns;
    const int64_t rows = last_row - first_row + 1;
    const int64_t together = rows == it->rows && rows < BUFFER ? BUFFER / rows : 1;
    float *buffer = hdi_alloc_array((size_t)(together * rows), sizeof *buffer);
    if (!buffer) return hdi_error(HD_ERROR_MEMORY, "%s: out of host memory", it->name);
    hd_status status = HD_OK;
    for (int64_t c = 0; c < it->columns && status == HD_OK; c += together) {
        const int64_t columns = it->columns - c < together ? it->columns - c : together;
        status = hdi_safetensors_read_f32(file, tensor, c * it->rows + first_row, columns * rows,
                                          buffer);
        for (int64_t k = 0; k < columns && status == HD_OK; k++) {
            for (int64_t r = 0; r < rows; r++) {
                const int64_t element = (first_row + r) * it->columns + c + k - first;
                if (element >= 0 && element < count) out[element] = buffer[k * rows + r];
            }
        }
    }
    hdi_free(buffer);
    return status;
}

/* A run of elements: F32 of whatever is stored, else as they are. */
static hd_status read_run(const hdi_safetensors *file, const hdi_safetensors_tensor *tensor,
                          hd_dtype dtype, int64_t first, int64_t count, char *out)
{
    if (dtype == HD_DTYPE_F32)
        return hdi_safetensors_read_f32(file, tensor, first, count, (float *)(void *)out);
    const int64_t bytes = (int64_t)hd_dtype_bytes(dtype);
    return hdi_safetensors_pread(file, tensor, first * bytes, count * bytes, out);
}

/* Elements [first, first + count) of a block of a wider tensor: row by row. */
static hd_status read_block(const hdi_safetensors *file, const hdi_safetensors_tensor *tensor,
                            const hdi_model_part *it, hd_dtype dtype, int64_t first, int64_t count,
                            char *out)
{
    while (count > 0) {
        const int64_t row = first / it->columns, column = first % it->columns;
        const int64_t left = it->columns - column, now = left < count ? left : count;
        HD_RETURN_IF_ERROR(
            read_run(file, tensor, dtype, it->first + row * it->file_columns + column, now, out));
        first += now;
        out += (size_t)now * hd_dtype_bytes(dtype);
        count -= now;
    }
    return HD_OK;
}

static hd_status read_part(const hdi_weights *weights, const hdi_model_part *it, hd_dtype dtype,
                           int64_t first, int64_t count, char *out)
{
    hdi_safetensors *file;
    const hdi_safetensors_tensor *tensor;
    HD_RETURN_IF_ERROR(find_part(weights, it, &file, &tensor));
    if (dtype != HD_DTYPE_F32 && (it->transposed || tensor->dtype != dtype))
        return hdi_error(HD_ERROR_ARGUMENT, "%s: tensor \"%s\": %s%s, asked for %s as it is",
                         hdi_safetensors_path(file), tensor->name, hd_dtype_name(tensor->dtype),
                         it->transposed ? " in columns" : "", hd_dtype_name(dtype));
    if (it->transposed)
        return read_transposed(file, tensor, it, first, count, (float *)(void *)out);
    if (it->columns != it->file_columns)
        return read_block(file, tensor, it, dtype, first, count, out);
    return read_run(file, tensor, dtype, it->first + first, count, out);
}

bool hdi_model_is_stored_as(const hdi_weights *weights, const hd_parameter_options *options,
                            hd_dtype dtype)
{
    for (int i = 0; i < hdi_model_part_count(options); i++) {
        const hdi_model_part it = hdi_model_part_of(options, i);
        hdi_safetensors *file;
        const hdi_safetensors_tensor *tensor = find(weights, it.name, &file);
        if (!tensor || tensor->dtype != dtype || it.transposed) return false;
    }
    return true;
}

hd_status hdi_model_copy_parameter(const hdi_weights *weights, const hd_parameter_options *options,
                                   hd_dtype dtype, int64_t first, int64_t count, void *out)
{
    int64_t begin = 0; /* of the part, in elements of the parameter */
    const int64_t end = first + count;
    for (int i = 0; i < hdi_model_part_count(options); i++) {
        const hdi_model_part it = hdi_model_part_of(options, i);
        const int64_t elements = it.rows * it.columns;
        const int64_t from = first > begin ? first - begin : 0;
        const int64_t to = end - begin < elements ? end - begin : elements;
        if (from < to)
            HD_RETURN_IF_ERROR(
                read_part(weights, &it, dtype, from, to - from,
                          (char *)out + (size_t)(begin + from - first) * hd_dtype_bytes(dtype)));
        begin += elements;
    }
    if (first < 0 || count < 0 || end > begin)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "parameter '%s': asked for %" PRId64 " elements at %" PRId64
                         ", it has %" PRId64,
                         options->name, count, first, begin);
    return HD_OK;
}

hd_status hdi_model_read_parameter(const hdi_weights *weights, const hd_parameter_options *options,
                                   int64_t first, int64_t count, float *out)
{
    return hdi_model_copy_parameter(weights, options, HD_DTYPE_F32, first, count, out);
}
