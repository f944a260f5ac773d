/* Opening data sets of videos: the index is read once and checked against the shards' headers. */
#include "io/video_dataset.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/checked.h"
#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "io/safetensors.h"
#include "io/video_dataset_files.h"

enum { INDEX_BYTES = 1 << 30 };

static hd_status broken(const hdi_video_dataset *dataset, const char *what)
{
    return hdi_error(HD_ERROR_FORMAT, "%s: %s", dataset->index_path, what);
}

static hd_status out_of_memory(const hdi_video_dataset *dataset)
{
    return hdi_error(HD_ERROR_MEMORY, "%s: no memory for the index", dataset->index_path);
}

/* An integer of the object, `fallback` if it is absent; false if it is none within least .. most. */
static bool read_integer(const json_t *object, const char *key, int64_t fallback, int64_t least,
                         int64_t most, int64_t *out)
{
    const json_t *value = json_object_get(object, key);
    *out = value ? json_integer_value(value) : fallback;
    return (!value || json_is_integer(value)) && *out >= least && *out <= most;
}

static hd_status check_names(const hdi_video_dataset *dataset, const char *what, int64_t index,
                             const json_t *object, const char *const *allowed)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        bool known = false;
        for (int i = 0; allowed[i]; i++)
            known = known || strcmp(allowed[i], key) == 0;
        if (known) continue;
        if (index < 0)
            return hdi_error(HD_ERROR_FORMAT, "%s: unknown key \"%.64s\"", dataset->index_path,
                             key);
        return hdi_error(HD_ERROR_FORMAT, "%s: %s %" PRId64 ": unknown key \"%.64s\"",
                         dataset->index_path, what, index, key);
    }
    return HD_OK;
}

static hd_status open_shards(hdi_video_dataset *dataset, const char *folder, const json_t *shards)
{
    if (!json_is_array(shards)) return broken(dataset, "shards is missing or no list");
    dataset->shards = hdi_alloc_array(json_array_size(shards), sizeof(hdi_safetensors *));
    if (!dataset->shards) return out_of_memory(dataset);
    char real_folder[HDI_PATH_BYTES];
    if (!realpath(folder, real_folder))
        return hdi_error(HD_ERROR_IO, "%s: cannot resolve: %s", folder, strerror(errno));
    for (size_t i = 0; i < json_array_size(shards); i++) {
        const char *name = json_string_value(json_array_get(shards, i));
        if (!name || !*name || strchr(name, '/') || strcmp(name, ".") == 0 ||
            strcmp(name, "..") == 0)
            return hdi_error(HD_ERROR_FORMAT,
                             "%s: shard %zu is \"%.200s\", want the plain name of a file in its "
                             "folder",
                             dataset->index_path, i, name ? name : "");
        char *path = hdi_path_join(folder, name);
        if (!path) return out_of_memory(dataset);
        /* A link may lead anywhere: the file must lie where the index lies. */
        char real_path[HDI_PATH_BYTES];
        const size_t length = strlen(real_folder);
        hd_status status;
        if (!realpath(path, real_path))
            status = hdi_error(HD_ERROR_IO, "%s: cannot open: %s", path, strerror(errno));
        else if (strncmp(real_path, real_folder, length) != 0 || real_path[length] != '/')
            status = hdi_error(HD_ERROR_FORMAT, "%s: shard %s leads to %s, out of its folder",
                               dataset->index_path, path, real_path);
        else
            status = hdi_safetensors_open(path, &dataset->shards[dataset->shard_count]);
        hdi_free(path);
        HD_RETURN_IF_ERROR(status);
        dataset->shard_count++;
    }
    return HD_OK;
}

/* "2, 3, 4". Borrowed from `out`. */
static const char *print_dims(int rank, const int64_t *dims, char out[HD_MAX_DIMS * 24])
{
    out[0] = '\0';
    for (int i = 0, used = 0; i < rank; i++)
        used += snprintf(out + used, 24, "%s%" PRId64, i ? ", " : "", dims[i]);
    return out;
}

/* The tensor "<prefix><number><suffix>" of an entry's shard, whose dims must be `dims`. */
static hd_status find_tensor(const hdi_video_dataset *dataset, int64_t shard, const char *prefix,
                             int64_t number, const char *suffix, int rank, const int64_t *dims,
                             bool may_be_u8, const hdi_safetensors_tensor **out)
{
    const hdi_safetensors *file = dataset->shards[shard];
    char name[64];
    snprintf(name, sizeof name, "%s%" PRId64 "%s", prefix, number, suffix);
    const hdi_safetensors_tensor *tensor = *out = hdi_safetensors_find(file, name);
    if (!tensor)
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\" is missing; %s wants it there",
                         hdi_safetensors_path(file), name, dataset->index_path);
    const hd_dtype dtype = tensor->dtype;
    if (dtype != HD_DTYPE_F32 && dtype != HD_DTYPE_F16 && dtype != HD_DTYPE_BF16 &&
        !(may_be_u8 && dtype == HD_DTYPE_U8))
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": dtype is %s, want F32, F16%s",
                         hdi_safetensors_path(file), name, hd_dtype_name(dtype),
                         may_be_u8 ? ", BF16 or U8" : " or BF16");
    bool same = tensor->rank == rank;
    for (int i = 0; same && i < rank; i++)
        same = tensor->dims[i] == dims[i];
    if (same) return HD_OK;
    char seen[HD_MAX_DIMS * 24], wanted[HD_MAX_DIMS * 24];
    return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": is [%s], %s wants [%s]",
                     hdi_safetensors_path(file), name, print_dims(tensor->rank, tensor->dims, seen),
                     dataset->index_path, print_dims(rank, dims, wanted));
}

static hd_status parse_text(hdi_video_dataset *dataset, int64_t number, const json_t *entry)
{
    static const char *const keys[] = {"shard", "tokens", "name", NULL};
    hdi_video_text_entry *text = &dataset->texts[number];
    int64_t shard, tokens;
    const json_t *name = json_object_get(entry, "name");
    if (!json_is_object(entry) || (name && !json_is_string(name)))
        return hdi_error(HD_ERROR_FORMAT, "%s: text %" PRId64 " is no object, or its name no text",
                         dataset->index_path, number);
    HD_RETURN_IF_ERROR(check_names(dataset, "text", number, entry, keys));
    if (!read_integer(entry, "shard", -1, 0, dataset->shard_count - 1, &shard) ||
        !read_integer(entry, "tokens", -1, 0, INT32_MAX, &tokens))
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: text %" PRId64
                         ": wants a shard from 0 to %d and tokens of at least 0",
                         dataset->index_path, number, dataset->shard_count - 1);
    text->view.name = text->name = hdi_strdup(name ? json_string_value(name) : "");
    if (!text->name) return out_of_memory(dataset);
    text->shard = (int32_t)shard;
    text->view.tokens = tokens;
    if (tokens > dataset->info.most_text_tokens) dataset->info.most_text_tokens = tokens;
    const int64_t dims[2] = {tokens, dataset->info.text_columns};
    HD_RETURN_IF_ERROR(
        find_tensor(dataset, shard, "text.", number, "", 2, dims, false, &text->tensor));
    if (dataset->info.pooled_columns == 0) return HD_OK;
    return find_tensor(dataset, shard, "pooled.", number, "", 1, &dataset->info.pooled_columns,
                       false, &text->pooled);
}

static hd_status parse_sample(hdi_video_dataset *dataset, int64_t number, const json_t *entry)
{
    static const char *const keys[] = {"shard", "dims", "text", "fps", NULL};
    hdi_video_sample_entry *sample = &dataset->samples[number];
    if (!json_is_object(entry))
        return hdi_error(HD_ERROR_FORMAT, "%s: sample %" PRId64 " is no object",
                         dataset->index_path, number);
    HD_RETURN_IF_ERROR(check_names(dataset, "sample", number, entry, keys));
    int64_t shard;
    const json_t *dims = json_object_get(entry, "dims"), *fps = json_object_get(entry, "fps");
    if (!read_integer(entry, "shard", -1, 0, dataset->shard_count - 1, &shard))
        return hdi_error(HD_ERROR_FORMAT, "%s: sample %" PRId64 ": wants a shard from 0 to %d",
                         dataset->index_path, number, dataset->shard_count - 1);
    if (json_array_size(dims) != 4)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: sample %" PRId64 ": dims is no list of channels, frames, height and "
                         "width",
                         dataset->index_path, number);
    for (size_t i = 0; i < 4; i++) {
        const json_t *dim = json_array_get(dims, i);
        sample->view.dims[i] = json_integer_value(dim);
        if (!json_is_integer(dim) || sample->view.dims[i] < 1 || sample->view.dims[i] > INT32_MAX)
            return hdi_error(HD_ERROR_FORMAT,
                             "%s: sample %" PRId64 ": dims[%zu] is no integer from 1 to %d",
                             dataset->index_path, number, i, INT32_MAX);
    }
    if (sample->view.dims[0] != dataset->info.channels)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: sample %" PRId64 ": has %" PRId64 " channels, the data set %" PRId64,
                         dataset->index_path, number, sample->view.dims[0], dataset->info.channels);
    if (!read_integer(entry, "text", -1, -1, dataset->info.texts - 1, &sample->view.text))
        return hdi_error(HD_ERROR_FORMAT, "%s: sample %" PRId64 ": its text is not one of %" PRId64,
                         dataset->index_path, number, dataset->info.texts);
    sample->view.fps = json_number_value(fps);
    if ((fps && !json_is_number(fps)) || !(sample->view.fps >= 0))
        return hdi_error(HD_ERROR_FORMAT, "%s: sample %" PRId64 ": fps is no number >= 0",
                         dataset->index_path, number);
    sample->shard = (int32_t)shard;
    return find_tensor(dataset, shard, "", number, ".latents", 4, sample->view.dims,
                       dataset->info.is_pixels, &sample->tensor);
}

static hd_status parse(hdi_video_dataset *dataset, const char *folder, const json_t *root)
{
    static const char *const keys[] = {"version",        "kind",      "channels", "text_columns",
                                       "pooled_columns", "null_text", "shards",   "texts",
                                       "samples",        NULL};
    hdi_video_dataset_info *info = &dataset->info;
    int64_t version;
    if (!json_is_object(root)) return broken(dataset, "is no object");
    if (!read_integer(root, "version", -1, INT64_MIN, INT64_MAX, &version) || version < 1)
        return broken(dataset, "version is missing or no integer of at least 1");
    if (version != HDI_VIDEO_DATASET_VERSION)
        return hdi_error(HD_ERROR_UNSUPPORTED, "%s: version is %" PRId64 ", want %d",
                         dataset->index_path, version, HDI_VIDEO_DATASET_VERSION);
    HD_RETURN_IF_ERROR(check_names(dataset, "", -1, root, keys));
    const char *kind = json_string_value(json_object_get(root, "kind"));
    info->is_pixels = kind && strcmp(kind, "pixels") == 0;
    if (!info->is_pixels && (!kind || strcmp(kind, "latents") != 0))
        return hdi_error(HD_ERROR_FORMAT, "%s: kind is \"%.32s\", want pixels or latents",
                         dataset->index_path, kind ? kind : "");
    if (!read_integer(root, "channels", -1, 1, INT32_MAX, &info->channels))
        return broken(dataset, "channels is no integer of at least 1");
    if (!read_integer(root, "text_columns", 0, 0, INT32_MAX, &info->text_columns) ||
        !read_integer(root, "pooled_columns", 0, 0, INT32_MAX, &info->pooled_columns))
        return broken(dataset, "text_columns or pooled_columns is no integer of at least 0");

    const json_t *texts = json_object_get(root, "texts");
    const json_t *samples = json_object_get(root, "samples");
    if (texts && !json_is_array(texts)) return broken(dataset, "texts is no list");
    if (!json_is_array(samples) || json_array_size(samples) == 0)
        return broken(dataset, "samples is missing or empty");
    info->texts = (int64_t)json_array_size(texts);
    info->count = (int64_t)json_array_size(samples);
    if (!read_integer(root, "null_text", -1, -1, info->texts - 1, &info->null_text))
        return broken(dataset, "null_text is not one of the texts");
    HD_RETURN_IF_ERROR(open_shards(dataset, folder, json_object_get(root, "shards")));
    dataset->texts = hdi_alloc_array((size_t)info->texts, sizeof *dataset->texts);
    dataset->samples = hdi_alloc_array((size_t)info->count, sizeof *dataset->samples);
    if (!dataset->texts || !dataset->samples) return out_of_memory(dataset);
    for (int64_t i = 0; i < info->texts; i++)
        HD_RETURN_IF_ERROR(parse_text(dataset, i, json_array_get(texts, (size_t)i)));
    for (int64_t i = 0; i < info->count; i++)
        HD_RETURN_IF_ERROR(parse_sample(dataset, i, json_array_get(samples, (size_t)i)));
    return HD_OK;
}

static hd_status load(hdi_video_dataset *dataset, const char *folder)
{
    char *text;
    size_t bytes;
    HD_RETURN_IF_ERROR(hdi_file_read_all(dataset->index_path, INDEX_BYTES, &text, &bytes));
    dataset->info.fingerprint = XXH3_64bits(text, bytes);
    json_error_t error;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    hdi_free(text);
    if (!root)
        return hdi_error(HD_ERROR_FORMAT, "%s: line %d column %d: %s", dataset->index_path,
                         error.line, error.column, error.text);
    const hd_status status = parse(dataset, folder, root);
    json_decref(root);
    return status;
}

hd_status hdi_video_dataset_open(const char *path, hdi_video_dataset **out)
{
    *out = NULL;
    hdi_video_dataset *dataset = hdi_alloc(sizeof *dataset);
    if (!dataset || !(dataset->index_path = hdi_path_join(path, HDI_VIDEO_DATASET_INDEX))) {
        hdi_free(dataset);
        return hdi_error(HD_ERROR_MEMORY, "%s: no memory to open it", path);
    }
    const hd_status status = load(dataset, path);
    if (status != HD_OK) {
        hdi_video_dataset_close(dataset);
        return status;
    }
    *out = dataset;
    return HD_OK;
}

void hdi_video_dataset_close(hdi_video_dataset *dataset)
{
    if (!dataset) return;
    for (int i = 0; i < dataset->shard_count; i++)
        hdi_safetensors_close(dataset->shards[i]);
    for (int64_t i = 0; dataset->texts && i < dataset->info.texts; i++)
        hdi_free(dataset->texts[i].name);
    hdi_free(dataset->shards);
    hdi_free(dataset->texts);
    hdi_free(dataset->samples);
    hdi_free(dataset->index_path);
    hdi_free(dataset);
}
