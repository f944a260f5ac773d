/* Folders of weights: the index, its shards, and one list of all their tensors. */
#include "io/weights_index.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "core/checked.h"
#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"

enum { INDEX_BYTES = 64 << 20 };

typedef struct located_tensor {
    const hdi_safetensors_tensor *tensor;
    int file;
} located_tensor;

struct hdi_weights {
    char *path;
    hdi_safetensors **files;
    char **shards; /* [file_count] names of the files in the folder; NULL without an index */
    int file_count, file_capacity, shard_capacity;
    located_tensor *tensors; /* [count], by name */
    int count;
};

static hd_status out_of_memory(const hdi_weights *weights)
{
    return hdi_error(HD_ERROR_MEMORY, "%s: no memory for the index", weights->path);
}

static int compare_located(const void *left, const void *right)
{
    const located_tensor *a = left, *b = right;
    return strcmp(a->tensor->name, b->tensor->name);
}

static hd_status add_file(hdi_weights *weights, const char *path)
{
    if (!HDI_GROW(weights->files, weights->file_count, weights->file_capacity))
        return out_of_memory(weights);
    HD_RETURN_IF_ERROR(hdi_safetensors_open(path, &weights->files[weights->file_count]));
    weights->file_count++;
    return HD_OK;
}

/* List the tensors of all files by name; a name in two files is an error. */
static hd_status collect(hdi_weights *weights)
{
    int64_t total = 0;
    for (int f = 0; f < weights->file_count; f++)
        total += hdi_safetensors_count(weights->files[f]);
    if (total > INT_MAX)
        return hdi_error(HD_ERROR_FORMAT, "%s: has %" PRId64 " tensors, want at most %d",
                         weights->path, total, INT_MAX);
    weights->tensors = hdi_alloc_array((size_t)total, sizeof *weights->tensors);
    if (!weights->tensors) return out_of_memory(weights);
    for (int f = 0; f < weights->file_count; f++)
        for (int i = 0; i < hdi_safetensors_count(weights->files[f]); i++)
            weights->tensors[weights->count++] =
                (located_tensor){hdi_safetensors_get(weights->files[f], i), f};
    qsort(weights->tensors, (size_t)weights->count, sizeof *weights->tensors, compare_located);
    for (int i = 1; i < weights->count; i++)
        if (compare_located(&weights->tensors[i - 1], &weights->tensors[i]) == 0)
            return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\" is in %s and in %s, want one file",
                             weights->path, weights->tensors[i].tensor->name,
                             hdi_safetensors_path(weights->files[weights->tensors[i - 1].file]),
                             hdi_safetensors_path(weights->files[weights->tensors[i].file]));
    return HD_OK;
}

static bool is_inside(const char *path, const char *folder)
{
    const size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && path[length] == '/';
}

/* A shard's name comes from the index, so it must not lead out of the folder, by links neither. The
 * Hugging Face cache is the one exception: its snapshots/<revision>/ link to ../../blobs/. */
static hd_status check_inside(const char *index_path, const char *folder, const char *path)
{
    char real_folder[PATH_MAX], real_path[PATH_MAX];
    if (!realpath(folder, real_folder))
        return hdi_error(HD_ERROR_IO, "%s: cannot resolve: %s", folder, strerror(errno));
    if (!realpath(path, real_path))
        return hdi_error(HD_ERROR_IO, "%s: cannot open: %s", path, strerror(errno));
    if (is_inside(real_path, real_folder)) return HD_OK;

    static const char snapshots[] = "/snapshots", blobs[] = "/blobs";
    char *revision = strrchr(real_folder, '/');
    *revision = '\0';
    char *end = strrchr(real_folder, '/');
    if (end && strcmp(end, snapshots) == 0) {
        memcpy(end, blobs, sizeof blobs); /* shorter than "/snapshots" */
        if (is_inside(real_path, real_folder)) return HD_OK;
    }
    return hdi_error(HD_ERROR_FORMAT, "%s: shard %s leads to %s, out of its folder", index_path,
                     path, real_path);
}

/* The place of a shard in weights->files, opened when first met. */
static hd_status shard_index(hdi_weights *weights, const char *index_path, const char *folder,
                             const char *shard, int *out)
{
    for (*out = 0; *out < weights->file_count; ++*out)
        if (strcmp(weights->shards[*out], shard) == 0) return HD_OK;

    if (shard[0] == '\0' || strchr(shard, '/') || strcmp(shard, ".") == 0 ||
        strcmp(shard, "..") == 0)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: shard \"%.200s\" is not the plain name of a file in its folder",
                         index_path, shard);
    if (!HDI_GROW(weights->shards, weights->file_count, weights->shard_capacity))
        return out_of_memory(weights);
    char *copy = hdi_strdup(shard), *path = hdi_path_join(folder, shard);
    hd_status status =
        copy && path ? check_inside(index_path, folder, path) : out_of_memory(weights);
    weights->shards[weights->file_count] = copy;
    if (status == HD_OK) status = add_file(weights, path);
    if (status != HD_OK) { /* not counted, so close would miss it */
        weights->shards[weights->file_count] = NULL;
        hdi_free(copy);
    }
    hdi_free(path);
    return status;
}

static hd_status check_total(const hdi_weights *weights, const char *index_path,
                             const json_t *metadata)
{
    if (!metadata) return HD_OK;
    const json_t *total = json_object_get(metadata, "total_size");
    if (!total) return HD_OK;
    if (!json_is_integer(total))
        return hdi_error(HD_ERROR_FORMAT, "%s: metadata.total_size is no integer", index_path);
    int64_t bytes = 0;
    for (int i = 0; i < weights->count; i++)
        if (!hdi_add_i64(bytes, weights->tensors[i].tensor->bytes, &bytes))
            return hdi_error(HD_ERROR_FORMAT, "%s: the sizes of the tensors overflow", index_path);
    if (bytes != json_integer_value(total))
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: metadata.total_size is %" PRId64 ", the tensors have %" PRId64
                         " bytes",
                         index_path, (int64_t)json_integer_value(total), bytes);
    return HD_OK;
}

static hd_status check_map(hdi_weights *weights, const char *index_path, const char *folder,
                           json_t *map)
{
    if (!json_is_object(map))
        return hdi_error(HD_ERROR_FORMAT, "%s: weight_map is missing or no object", index_path);
    const char *name;
    json_t *shard;
    json_object_foreach(map, name, shard)
    {
        if (!json_is_string(shard))
            return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%.200s\": its shard is no string",
                             index_path, name);
        int file;
        HD_RETURN_IF_ERROR(
            shard_index(weights, index_path, folder, json_string_value(shard), &file));
        if (!hdi_safetensors_find(weights->files[file], name))
            return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%.200s\" is not in its shard %s",
                             index_path, name, json_string_value(shard));
    }
    HD_RETURN_IF_ERROR(collect(weights));
    for (int i = 0; i < weights->count; i++)
        if (!json_object_get(map, weights->tensors[i].tensor->name))
            return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\" of %s is not in weight_map",
                             index_path, weights->tensors[i].tensor->name,
                             weights->shards[weights->tensors[i].file]);
    return HD_OK;
}

static hd_status open_index(hdi_weights *weights, const char *index_path, const char *folder)
{
    char *text;
    size_t bytes;
    HD_RETURN_IF_ERROR(hdi_file_read_all(index_path, INDEX_BYTES, &text, &bytes));
    json_error_t error;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    hdi_free(text);
    if (!root)
        return hdi_error(HD_ERROR_FORMAT, "%s: line %d column %d: %s", index_path, error.line,
                         error.column, error.text);
    hd_status status = check_map(weights, index_path, folder, json_object_get(root, "weight_map"));
    if (status == HD_OK)
        status = check_total(weights, index_path, json_object_get(root, "metadata"));
    json_decref(root);
    return status;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static hd_status open_file_or_index(hdi_weights *weights)
{
    if (!ends_with(weights->path, ".json")) {
        HD_RETURN_IF_ERROR(add_file(weights, weights->path));
        return collect(weights);
    }
    char *folder = hdi_strdup(weights->path);
    if (!folder) return out_of_memory(weights);
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder] = '\0'; /* "/x.json" lies in "/" */
    hd_status status = open_index(weights, weights->path, slash ? folder : ".");
    hdi_free(folder);
    return status;
}

static hd_status open_folder(hdi_weights *weights)
{
    char *single = hdi_path_join(weights->path, "model.safetensors");
    char *index = hdi_path_join(weights->path, "model.safetensors.index.json");
    hd_status status;
    if (!single || !index)
        status = out_of_memory(weights);
    else if (hdi_file_exists(single)) {
        status = add_file(weights, single);
        if (status == HD_OK) status = collect(weights);
    } else if (hdi_file_exists(index))
        status = open_index(weights, index, weights->path);
    else
        status = hdi_error(HD_ERROR_IO,
                           "%s: has neither model.safetensors nor model.safetensors.index.json",
                           weights->path);
    hdi_free(single);
    hdi_free(index);
    return status;
}

hd_status hdi_weights_open(const char *path, hdi_weights **out)
{
    *out = NULL;
    hdi_weights *weights = hdi_alloc(sizeof *weights);
    if (!weights || !(weights->path = hdi_strdup(path))) {
        hdi_free(weights);
        return hdi_error(HD_ERROR_MEMORY, "%s: no memory to open it", path);
    }
    hd_status status = hdi_is_directory(path) ? open_folder(weights) : open_file_or_index(weights);
    if (status != HD_OK) {
        hdi_weights_close(weights);
        return status;
    }
    *out = weights;
    return HD_OK;
}

void hdi_weights_close(hdi_weights *weights)
{
    if (!weights) return;
    for (int i = 0; i < weights->file_count; i++) {
        hdi_safetensors_close(weights->files[i]);
        if (weights->shards) hdi_free(weights->shards[i]);
    }
    hdi_free(weights->files);
    hdi_free(weights->shards);
    hdi_free(weights->tensors);
    hdi_free(weights->path);
    hdi_free(weights);
}

const char *hdi_weights_path(const hdi_weights *weights)
{
    return weights->path;
}

int hdi_weights_file_count(const hdi_weights *weights)
{
    return weights->file_count;
}

hdi_safetensors *hdi_weights_file(const hdi_weights *weights, int index)
{
    return weights->files[index];
}

int hdi_weights_count(const hdi_weights *weights)
{
    return weights->count;
}

const hdi_safetensors_tensor *hdi_weights_get(const hdi_weights *weights, int index,
                                              hdi_safetensors **out_file)
{
    const located_tensor *located = &weights->tensors[index];
    if (out_file) *out_file = weights->files[located->file];
    return located->tensor;
}

const hdi_safetensors_tensor *hdi_weights_find(const hdi_weights *weights, const char *name,
                                               hdi_safetensors **out_file)
{
    const hdi_safetensors_tensor wanted = {.name = name};
    const located_tensor key = {.tensor = &wanted};
    const located_tensor *found = weights->count == 0
                                      ? NULL
                                      : bsearch(&key, weights->tensors, (size_t)weights->count,
                                                sizeof *weights->tensors, compare_located);
    if (!found) return NULL;
    if (out_file) *out_file = weights->files[found->file];
    return found->tensor;
}
