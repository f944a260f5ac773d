/* The safetensors reader: header rules, then range-checked reads. */
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/checked.h"
#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "io/safetensors.h"

typedef struct metadata_entry {
    char *key, *value;
} metadata_entry;

struct hdi_safetensors {
    char *path;
    int descriptor;
    int64_t file_bytes, data_offset;
    hdi_safetensors_tensor *tensors; /* [count], by place in the file */
    int count;
    int32_t *by_name; /* [count], indices into tensors */
    metadata_entry *metadata;
    int metadata_count;
};

static hd_status out_of_memory(const hdi_safetensors *file)
{
    return hdi_error(HD_ERROR_MEMORY, "%s: no memory for the header", file->path);
}

/* A JSON integer that is not negative; reals, booleans and strings are not integers. */
static bool read_integer(const json_t *value, int64_t *out)
{
    if (!json_is_integer(value)) return false;
    *out = json_integer_value(value);
    return *out >= 0;
}

static hd_status parse_shape(const hdi_safetensors *file, const json_t *shape,
                             hdi_safetensors_tensor *tensor)
{
    if (!json_is_array(shape))
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": shape is missing or no array",
                         file->path, tensor->name);
    if (json_array_size(shape) > HD_MAX_DIMS)
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": has %zu dimensions, want at most %d",
                         file->path, tensor->name, json_array_size(shape), HD_MAX_DIMS);
    tensor->rank = (int)json_array_size(shape);
    tensor->elements = 1;
    for (int i = 0; i < tensor->rank; i++) {
        if (!read_integer(json_array_get(shape, (size_t)i), &tensor->dims[i]))
            return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": dimension %d is no integer >= 0",
                             file->path, tensor->name, i);
        if (!hdi_mul_i64(tensor->elements, tensor->dims[i], &tensor->elements))
            return hdi_error(HD_ERROR_FORMAT,
                             "%s: tensor \"%s\": the product of its dimensions overflows at "
                             "dimension %d (%" PRId64 ")",
                             file->path, tensor->name, i, tensor->dims[i]);
    }
    return HD_OK;
}

static hd_status parse_offsets(const hdi_safetensors *file, const json_t *offsets,
                               hdi_safetensors_tensor *tensor)
{
    const int64_t data_bytes = file->file_bytes - file->data_offset;
    int64_t end;
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !read_integer(json_array_get(offsets, 0), &tensor->begin) ||
        !read_integer(json_array_get(offsets, 1), &end))
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%s\": data_offsets must be two integers >= 0", file->path,
                         tensor->name);
    if (end < tensor->begin || end > data_bytes)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%s\": data_offsets [%" PRId64 ", %" PRId64
                         "] do not lie in order within the %" PRId64 " bytes of data",
                         file->path, tensor->name, tensor->begin, end, data_bytes);
    int64_t bytes;
    if (!hdi_mul_i64(tensor->elements, (int64_t)hd_dtype_bytes(tensor->dtype), &bytes))
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%s\": the size in bytes of %" PRId64 " elements overflows",
                         file->path, tensor->name, tensor->elements);
    tensor->bytes = end - tensor->begin;
    if (bytes != tensor->bytes)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%s\": data_offsets span %" PRId64
                         " bytes, its shape and dtype %s want %" PRId64,
                         file->path, tensor->name, tensor->bytes, hd_dtype_name(tensor->dtype),
                         bytes);
    return HD_OK;
}

static hd_status parse_tensor(hdi_safetensors *file, const char *name, const json_t *entry)
{
    hdi_safetensors_tensor *tensor = &file->tensors[file->count];
    if (strlen(name) > HDI_SAFETENSORS_NAME_BYTES)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%.64s...\": name has %zu bytes, want at "
                         "most %d",
                         file->path, name, strlen(name), HDI_SAFETENSORS_NAME_BYTES);
    if (!(tensor->name = hdi_strdup(name))) return out_of_memory(file);
    file->count++;
    if (!json_is_object(entry))
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": its entry is no object", file->path,
                         name);
    if (json_object_size(entry) > 3)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%s\": its entry has %zu keys, want dtype, shape and "
                         "data_offsets only",
                         file->path, name, json_object_size(entry));
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype)
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": dtype is missing or no string",
                         file->path, name);
    tensor->dtype = hd_dtype_from_name(dtype);
    if (tensor->dtype == HD_DTYPE_NONE)
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": dtype \"%.32s\" is unknown",
                         file->path, name, dtype);
    HD_RETURN_IF_ERROR(parse_shape(file, json_object_get(entry, "shape"), tensor));
    return parse_offsets(file, json_object_get(entry, "data_offsets"), tensor);
}

static hd_status parse_metadata(hdi_safetensors *file, json_t *object)
{
    if (!json_is_object(object))
        return hdi_error(HD_ERROR_FORMAT, "%s: __metadata__ is no object", file->path);
    file->metadata = hdi_alloc_array(json_object_size(object), sizeof *file->metadata);
    if (!file->metadata) return out_of_memory(file);
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        if (!json_is_string(value))
            return hdi_error(HD_ERROR_FORMAT, "%s: __metadata__ \"%.200s\" is no string",
                             file->path, key);
        metadata_entry *entry = &file->metadata[file->metadata_count++];
        entry->key = hdi_strdup(key);
        entry->value = hdi_strdup(json_string_value(value));
        if (!entry->key || !entry->value) return out_of_memory(file);
    }
    return HD_OK;
}

static int compare_places(const void *left, const void *right)
{
    const hdi_safetensors_tensor *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

static int compare_named(const void *left, const void *right, void *tensors)
{
    const hdi_safetensors_tensor *all = tensors;
    return strcmp(all[*(const int32_t *)left].name, all[*(const int32_t *)right].name);
}

/* Tensors must tile the data: a byte that belongs to none or to two could hide another file. */
static hd_status check_tiling(hdi_safetensors *file)
{
    int64_t end = 0;
    for (int i = 0; i < file->count; i++) {
        const hdi_safetensors_tensor *tensor = &file->tensors[i];
        if (tensor->begin != end)
            return hdi_error(HD_ERROR_FORMAT,
                             "%s: tensor \"%s\": begins at %" PRId64 ", want %" PRId64
                             " (%s the tensor before it)",
                             file->path, tensor->name, tensor->begin, end,
                             tensor->begin < end ? "it overlaps" : "there is a gap after");
        end += tensor->bytes; /* within the file, so it cannot overflow */
    }
    if (file->data_offset + end != file->file_bytes)
        return hdi_error(HD_ERROR_FORMAT, "%s: %" PRId64 " bytes follow the last tensor, want none",
                         file->path, file->file_bytes - file->data_offset - end);
    return HD_OK;
}

static hd_status parse_header(hdi_safetensors *file, const char *header, size_t bytes)
{
    /* jansson would skip white space first, the format does not allow it. */
    if (bytes == 0 || header[0] != '{')
        return hdi_error(HD_ERROR_FORMAT, "%s: the header does not begin with '{'", file->path);
    json_error_t error;
    json_t *root = json_loadb(header, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return hdi_error(HD_ERROR_FORMAT, "%s: header byte %d: %s", file->path, error.position,
                         error.text);

    hd_status status = HD_OK;
    file->tensors = hdi_alloc_array(json_object_size(root), sizeof *file->tensors);
    if (!file->tensors) status = out_of_memory(file);
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry)
    {
        if (status != HD_OK) break;
        status = strcmp(name, "__metadata__") == 0 ? parse_metadata(file, entry)
                                                   : parse_tensor(file, name, entry);
    }
    json_decref(root);
    HD_RETURN_IF_ERROR(status);

    qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, compare_places);
    file->by_name = hdi_alloc_array((size_t)file->count, sizeof *file->by_name);
    if (!file->by_name) return out_of_memory(file);
    for (int i = 0; i < file->count; i++)
        file->by_name[i] = i;
    qsort_r(file->by_name, (size_t)file->count, sizeof *file->by_name, compare_named,
            file->tensors);
    return check_tiling(file);
}

/* Read and check the header of file->descriptor. */
static hd_status load(hdi_safetensors *file, int64_t max_header_bytes)
{
    struct stat info;
    if (fstat(file->descriptor, &info) != 0 || !S_ISREG(info.st_mode))
        return hdi_error(HD_ERROR_IO, "%s: is not a regular file", file->path);
    file->file_bytes = info.st_size;
    if (file->file_bytes < 8)
        return hdi_error(HD_ERROR_FORMAT, "%s: has %" PRId64 " bytes, want at least 8", file->path,
                         file->file_bytes);

    unsigned char prefix[8];
    HD_RETURN_IF_ERROR(hdi_file_read_at(file->descriptor, file->path, prefix, sizeof prefix, 0));
    uint64_t bytes = 0;
    for (int i = 7; i >= 0; i--)
        bytes = bytes << 8 | prefix[i];
    if (bytes > (uint64_t)(file->file_bytes - 8))
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: header length is %" PRIu64 ", the file has %" PRId64
                         " bytes after it",
                         file->path, bytes, file->file_bytes - 8);
    if (bytes > (uint64_t)max_header_bytes)
        return hdi_error(HD_ERROR_FORMAT, "%s: header length is %" PRIu64 ", want at most %" PRId64,
                         file->path, bytes, max_header_bytes);
    file->data_offset = 8 + (int64_t)bytes;

    char *header = hdi_alloc((size_t)bytes);
    if (!header) return out_of_memory(file);
    hd_status status =
        hdi_file_read_at(file->descriptor, file->path, header, (size_t)bytes, sizeof prefix);
    if (status == HD_OK) status = parse_header(file, header, (size_t)bytes);
    hdi_free(header);
    return status;
}

hd_status hdi_safetensors_open_descriptor(int descriptor, const char *path,
                                          int64_t max_header_bytes, hdi_safetensors **out)
{
    *out = NULL;
    hdi_safetensors *file = hdi_alloc(sizeof *file);
    char *copy = hdi_strdup(path);
    if (!file || !copy) {
        hdi_free(file);
        hdi_free(copy);
        close(descriptor);
        return hdi_error(HD_ERROR_MEMORY, "%s: no memory to open it", path);
    }
    file->descriptor = descriptor;
    file->path = copy;
    if (max_header_bytes <= 0) max_header_bytes = HDI_SAFETENSORS_HEADER_BYTES;
    hd_status status = load(file, max_header_bytes);
    if (status != HD_OK) {
        hdi_safetensors_close(file);
        return status;
    }
    *out = file;
    return HD_OK;
}

hd_status hdi_safetensors_open(const char *path, hdi_safetensors **out)
{
    *out = NULL;
    int descriptor; /* non-blocking, so that a pipe given by mistake does not hang the open */
    HD_RETURN_IF_ERROR(hdi_file_open(path, O_RDONLY | O_NONBLOCK, &descriptor));
    return hdi_safetensors_open_descriptor(descriptor, path, 0, out);
}

void hdi_safetensors_close(hdi_safetensors *file)
{
    if (!file) return;
    close(file->descriptor); /* only read: nothing can be lost */
    for (int i = 0; i < file->count; i++)
        hdi_free((char *)file->tensors[i].name);
    for (int i = 0; i < file->metadata_count; i++) {
        hdi_free(file->metadata[i].key);
        hdi_free(file->metadata[i].value);
    }
    hdi_free(file->tensors);
    hdi_free(file->by_name);
    hdi_free(file->metadata);
    hdi_free(file->path);
    hdi_free(file);
}

const char *hdi_safetensors_path(const hdi_safetensors *file)
{
    return file->path;
}

int64_t hdi_safetensors_file_bytes(const hdi_safetensors *file)
{
    return file->file_bytes;
}

int64_t hdi_safetensors_data_offset(const hdi_safetensors *file)
{
    return file->data_offset;
}

int hdi_safetensors_count(const hdi_safetensors *file)
{
    return file->count;
}

const hdi_safetensors_tensor *hdi_safetensors_get(const hdi_safetensors *file, int index)
{
    return &file->tensors[index];
}

const hdi_safetensors_tensor *hdi_safetensors_find(const hdi_safetensors *file, const char *name)
{
    int low = 0, high = file->count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        const hdi_safetensors_tensor *tensor = &file->tensors[file->by_name[middle]];
        int order = strcmp(name, tensor->name);
        if (order == 0) return tensor;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const char *hdi_safetensors_metadata(const hdi_safetensors *file, const char *key)
{
    for (int i = 0; i < file->metadata_count; i++)
        if (strcmp(file->metadata[i].key, key) == 0) return file->metadata[i].value;
    return NULL;
}

int hdi_safetensors_metadata_count(const hdi_safetensors *file)
{
    return file->metadata_count;
}

void hdi_safetensors_metadata_get(const hdi_safetensors *file, int index, const char **out_key,
                                  const char **out_value)
{
    *out_key = file->metadata[index].key;
    *out_value = file->metadata[index].value;
}

hd_status hdi_safetensors_pread(const hdi_safetensors *file, const hdi_safetensors_tensor *tensor,
                                int64_t byte_offset, int64_t bytes, void *out)
{
    if (byte_offset < 0 || bytes < 0 || byte_offset > tensor->bytes ||
        bytes > tensor->bytes - byte_offset)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: tensor \"%s\": asked for %" PRId64 " bytes at %" PRId64
                         ", it has %" PRId64,
                         file->path, tensor->name, bytes, byte_offset, tensor->bytes);
    return hdi_file_read_at(file->descriptor, file->path, out, (size_t)bytes,
                            file->data_offset + tensor->begin + byte_offset);
}

hd_status hdi_safetensors_pread_file(const hdi_safetensors *file, int64_t offset, int64_t bytes,
                                     void *out)
{
    if (offset < 0 || bytes < 0 || offset > file->file_bytes || bytes > file->file_bytes - offset)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: asked for %" PRId64 " bytes at %" PRId64 ", it has %" PRId64,
                         file->path, bytes, offset, file->file_bytes);
    return hdi_file_read_at(file->descriptor, file->path, out, (size_t)bytes, offset);
}
