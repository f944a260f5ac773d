/* Parts and transposition between parameters and tensors of files. */
#include "models/weights.h"

#include "core/error.h"
#include "core/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* A part of a parameter as files hold it; a parameter without parts is one part. */
typedef struct part {
    const char *name;
    int64_t rows, columns; /* in heddle's order */
    bool transposed;
    int rank;
    int64_t dims[HD_MAX_DIMS]; /* in the file */
} part;

static int part_count(const hd_parameter_options *options)
{
    return options->parts ? options->parts : 1;
}

static part part_of(const hd_parameter_options *options, int index)
{
    part it = {.name = options->name,
               .rows = options->dims[0],
               .columns = 1,
               .transposed = options->transposed,
               .rank = options->rank};
    if (options->parts) {
        it.name = options->part[index].name;
        it.rows = options->part[index].rows;
        it.transposed = options->part[index].transposed;
    }
    it.transposed = it.transposed && it.rank == 2;
    it.dims[0] = it.rows;
    for (int i = 1; i < options->rank; i++) {
        it.dims[i] = options->dims[i];
        it.columns *= options->dims[i];
    }
    if (it.transposed) {
        it.dims[0] = it.columns;
        it.dims[1] = it.rows;
    }
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

static hd_status find_part(const hdi_weights *weights, const part *it, hdi_safetensors **file,
                           const hdi_safetensors_tensor **out)
{
    char seen[192], wanted[192];
    dims_text(it->rank, it->dims, wanted, sizeof wanted);
    const hdi_safetensors_tensor *tensor = find(weights, it->name, file);
    if (!tensor)
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\" is missing, want one [%s]",
                         hdi_weights_path(weights), it->name, wanted);
    bool equal = tensor->rank == it->rank;
    for (int i = 0; i < it->rank && equal; i++)
        equal = tensor->dims[i] == it->dims[i];
    if (!equal)
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\" is [%s], want [%s]",
                         hdi_safetensors_path(*file), tensor->name,
                         dims_text(tensor->rank, tensor->dims, seen, sizeof seen), wanted);
    *out = tensor;
    return HD_OK;
}

hd_status hdi_model_check_parameter(const hdi_weights *weights, const hd_parameter_options *options)
{
    for (int i = 0; i < part_count(options); i++) {
        const part it = part_of(options, i);
        hdi_safetensors *file;
        const hdi_safetensors_tensor *tensor;
        HD_RETURN_IF_ERROR(find_part(weights, &it, &file, &tensor));
    }
    return HD_OK;
}

/* Elements of a file's row-major tensor [columns, rows] that are [first, first + count) of its
 * transpose: the rows that they touch, column by column, several columns at a time when all rows
 * are wanted. */
static hd_status read_transposed(const hdi_safetensors *file, const hdi_safetensors_tensor *tensor,
                                 const part *it, int64_t first, int64_t count, float *out)
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

hd_status hdi_model_read_parameter(const hdi_weights *weights, const hd_parameter_options *options,
                                   int64_t first, int64_t count, float *out)
{
    int64_t begin = 0; /* of the part, in elements of the parameter */
    const int64_t end = first + count;
    for (int i = 0; i < part_count(options); i++) {
        const part it = part_of(options, i);
        const int64_t elements = it.rows * it.columns;
        const int64_t from = first > begin ? first - begin : 0;
        const int64_t to = end - begin < elements ? end - begin : elements;
        if (from < to) {
            hdi_safetensors *file;
            const hdi_safetensors_tensor *tensor;
            HD_RETURN_IF_ERROR(find_part(weights, &it, &file, &tensor));
            float *target = out + (begin + from - first);
            if (it.transposed)
                HD_RETURN_IF_ERROR(read_transposed(file, tensor, &it, from, to - from, target));
            else
                HD_RETURN_IF_ERROR(hdi_safetensors_read_f32(file, tensor, from, to - from, target));
        }
        begin += elements;
    }
    if (first < 0 || count < 0 || end > begin)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "parameter '%s': asked for %" PRId64 " elements at %" PRId64
                         ", it has %" PRId64,
                         options->name, count, first, begin);
    return HD_OK;
}

static bool is_used(const hdi_weights *weights, const hdi_safetensors_tensor *tensor,
                    const hd_parameter_options *const *parameters, int count)
{
    for (int p = 0; p < count; p++) {
        for (int i = 0; i < part_count(parameters[p]); i++) {
            const part it = part_of(parameters[p], i);
            hdi_safetensors *file;
            if (find(weights, it.name, &file) == tensor) return true;
        }
    }
    return false;
}

hd_status hdi_model_unused_tensors(const hdi_weights *weights,
                                   const hd_parameter_options *const *parameters, int count,
                                   hdi_text *out)
{
    const char *separator = "";
    for (int i = 0; i < hdi_weights_count(weights); i++) {
        hdi_safetensors *file;
        const hdi_safetensors_tensor *tensor = hdi_weights_get(weights, i, &file);
        if (is_used(weights, tensor, parameters, count)) continue;
        hdi_text_printf(out, "%s%s", separator, tensor->name);
        separator = ", ";
    }
    return out->failed ? hdi_error(HD_ERROR_MEMORY, "weights: out of host memory") : HD_OK;
}

hd_status hdi_model_declare_parameter(hdi_safetensors_writer *writer,
                                      const hd_parameter_options *options)
{
    for (int i = 0; i < part_count(options); i++) {
        const part it = part_of(options, i);
        HD_RETURN_IF_ERROR(
            hdi_safetensors_writer_tensor(writer, it.name, HD_DTYPE_F32, it.rank, it.dims));
    }
    return HD_OK;
}

static hd_status write_transposed(hdi_safetensors_writer *writer, const part *it,
                                  const float *values)
{
    float buffer[4096];
    const int64_t elements = it->rows * it->columns;
    for (int64_t first = 0; first < elements; first += 4096) {
        const int64_t count = elements - first < 4096 ? elements - first : 4096;
        for (int64_t i = 0; i < count; i++) {
            const int64_t column = (first + i) / it->rows, row = (first + i) % it->rows;
            buffer[i] = values[row * it->columns + column];
        }
        HD_RETURN_IF_ERROR(
            hdi_safetensors_writer_write(writer, buffer, (size_t)count * sizeof *buffer));
    }
    return HD_OK;
}

hd_status hdi_model_write_parameter(hdi_safetensors_writer *writer,
                                    const hd_parameter_options *options, const float *values)
{
    for (int i = 0; i < part_count(options); i++) {
        const part it = part_of(options, i);
        const int64_t elements = it.rows * it.columns;
        if (it.transposed)
            HD_RETURN_IF_ERROR(write_transposed(writer, &it, values));
        else
            HD_RETURN_IF_ERROR(
                hdi_safetensors_writer_write(writer, values, (size_t)elements * sizeof *values));
        values += elements;
    }
    return HD_OK;
}
