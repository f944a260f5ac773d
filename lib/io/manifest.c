/* The checkpoint manifest: text with a sum of itself in front. */
#include "io/manifest.h"

#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "io/block_sums.h"

static const char format_name[] = "heddle checkpoint";
enum { FORMAT_VERSION = 1, MANIFEST_BYTES = 256 << 20 };

/* {"xxh3": "0123456789abcdef" */
enum { SUM_PREFIX_BYTES = 27 };

void hdi_manifest_file_name(int rank, char out[32])
{
    snprintf(out, 32, "rank-%d.safetensors", rank);
}

hd_status hdi_manifest_reserve(hdi_manifest_text *text, size_t bytes)
{
    if (text->capacity >= bytes) return HD_OK;
    char *grown = hdi_realloc_array(text->data, text->capacity, bytes, 1);
    if (!grown) return hdi_error(HD_ERROR_MEMORY, "no memory for a manifest of %zu bytes", bytes);
    text->data = grown;
    text->capacity = bytes;
    return HD_OK;
}

size_t hdi_manifest_bound(const hdi_manifest *manifest)
{
    size_t bytes = 512;
    for (int i = 0; i < manifest->count; i++)
        bytes += 96 + 20 * (size_t)hdi_block_count(manifest->files[i].bytes);
    return bytes;
}

/* Room was reserved, so nothing is cut. */
static void HD_PRINTF(2, 3) append(hdi_manifest_text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length =
        vsnprintf(text->data + text->length, text->capacity - text->length, format, arguments);
    va_end(arguments);
    if (length > 0) text->length += (size_t)length;
}

static void sum_prefix(const char *data, size_t length, char out[SUM_PREFIX_BYTES + 1])
{
    const uint64_t sum = hdi_block_sum(data + SUM_PREFIX_BYTES, length - SUM_PREFIX_BYTES);
    snprintf(out, SUM_PREFIX_BYTES + 1, "{\"xxh3\": \"%016" PRIx64 "\"", sum);
}

hd_status hdi_manifest_format(const hdi_manifest *manifest, hdi_manifest_text *inout)
{
    json_error_t error;
    json_t *state = json_loads(manifest->state, JSON_REJECT_DUPLICATES, &error);
    const char *problem = !state                  ? error.text
                          : json_is_object(state) ? NULL
                                                  : "it is of another type";
    json_decref(state);
    if (problem)
        return hdi_error(HD_ERROR_ARGUMENT, "the state of a checkpoint is no JSON object: %s",
                         problem);

    HD_RETURN_IF_ERROR(
        hdi_manifest_reserve(inout, hdi_manifest_bound(manifest) + strlen(manifest->state) + 1));
    inout->length = 0;
    append(inout,
           "%*s,\n \"format\": \"%s\", \"version\": %d, \"step\": %" PRId64
           ", \"block_bytes\": %" PRId64 ",\n \"state\": ",
           SUM_PREFIX_BYTES, "", format_name, FORMAT_VERSION, manifest->step,
           (int64_t)HDI_BLOCK_BYTES);
    append(inout, "%s,\n \"files\": [", manifest->state);
    for (int i = 0; i < manifest->count; i++) {
        const hdi_manifest_file *file = &manifest->files[i];
        char name[32];
        hdi_manifest_file_name(i, name);
        append(inout, "%s\n  {\"name\": \"%s\", \"bytes\": %" PRId64 ", \"sums\": [", i ? "," : "",
               name, file->bytes);
        for (int64_t b = 0; b < hdi_block_count(file->bytes); b++)
            append(inout, "%s\"%016" PRIx64 "\"", b ? "," : "", file->sums[b]);
        append(inout, "]}");
    }
    append(inout, "]}\n");

    char prefix[SUM_PREFIX_BYTES + 1];
    sum_prefix(inout->data, inout->length, prefix);
    memcpy(inout->data, prefix, SUM_PREFIX_BYTES);
    return HD_OK;
}

static hd_status broken(const char *path, const char *what)
{
    return hdi_error(HD_ERROR_FORMAT, "%s: %s", path, what);
}

static bool parse_sum(const json_t *value, uint64_t *out)
{
    const char *text = json_string_value(value);
    if (!text || strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16) return false;
    *out = strtoull(text, NULL, 16);
    return true;
}

static hd_status parse_file(const char *path, int rank, const json_t *entry, hdi_manifest_file *out)
{
    char wanted[32];
    hdi_manifest_file_name(rank, wanted);
    const char *name = json_string_value(json_object_get(entry, "name"));
    if (!name || strcmp(name, wanted) != 0)
        return hdi_error(HD_ERROR_FORMAT, "%s: file %d is named \"%.64s\", want \"%s\"", path, rank,
                         name ? name : "", wanted);
    const json_t *bytes = json_object_get(entry, "bytes"), *sums = json_object_get(entry, "sums");
    out->bytes = json_integer_value(bytes);
    if (!json_is_integer(bytes) || out->bytes < 8 || !json_is_array(sums) ||
        (uint64_t)hdi_block_count(out->bytes) != json_array_size(sums))
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: %s: bytes and the number of sums do not agree, or are missing", path,
                         wanted);
    out->sums = hdi_alloc_array(json_array_size(sums), sizeof *out->sums);
    if (!out->sums) return hdi_error(HD_ERROR_MEMORY, "%s: no memory for the sums", path);
    for (size_t b = 0; b < json_array_size(sums); b++)
        if (!parse_sum(json_array_get(sums, b), &out->sums[b]))
            return hdi_error(HD_ERROR_FORMAT, "%s: %s: sum %zu is not 16 hexadecimal digits", path,
                             wanted, b);
    return HD_OK;
}

static hd_status parse(const char *path, const json_t *root, hdi_manifest *out)
{
    const char *format = json_string_value(json_object_get(root, "format"));
    if (!format || strcmp(format, format_name) != 0)
        return broken(path, "is not the manifest of a heddle checkpoint");
    const json_int_t version = json_integer_value(json_object_get(root, "version"));
    if (version != FORMAT_VERSION)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "%s: format version is %" JSON_INTEGER_FORMAT ", want %d", path, version,
                         FORMAT_VERSION);
    if (json_integer_value(json_object_get(root, "block_bytes")) != HDI_BLOCK_BYTES)
        return broken(path, "block_bytes is not 16 MiB");
    const json_t *step = json_object_get(root, "step"), *state = json_object_get(root, "state");
    const json_t *files = json_object_get(root, "files");
    if (!json_is_integer(step) || json_integer_value(step) < 0)
        return broken(path, "step is no integer >= 0");
    if (!json_is_object(state)) return broken(path, "state is no object");
    if (json_array_size(files) == 0 || json_array_size(files) > INT_MAX)
        return broken(path, "files is no list of files");
    out->step = json_integer_value(step);
    char *text = json_dumps(state, JSON_COMPACT);
    out->state = text ? hdi_strdup(text) : NULL;
    hdi_free_foreign(text);
    out->files = hdi_alloc_array(json_array_size(files), sizeof *out->files);
    if (!out->state || !out->files) return hdi_error(HD_ERROR_MEMORY, "%s: no memory for it", path);
    out->count = (int)json_array_size(files);
    for (int i = 0; i < out->count; i++)
        HD_RETURN_IF_ERROR(parse_file(path, i, json_array_get(files, (size_t)i), &out->files[i]));
    return HD_OK;
}

hd_status hdi_manifest_read(const char *path, hdi_manifest *out)
{
    *out = (hdi_manifest){0};
    char *data;
    size_t bytes;
    HD_RETURN_IF_ERROR(hdi_file_read_all(path, MANIFEST_BYTES, &data, &bytes));

    hd_status status = HD_OK;
    char prefix[SUM_PREFIX_BYTES + 1];
    if (bytes > SUM_PREFIX_BYTES) sum_prefix(data, bytes, prefix);
    json_t *root = NULL;
    json_error_t error;
    if (bytes <= SUM_PREFIX_BYTES || memcmp(data, prefix, SUM_PREFIX_BYTES) != 0)
        status = broken(path, "its sum does not match its bytes: damaged or cut");
    else if (!(root = json_loadb(data, bytes, JSON_REJECT_DUPLICATES, &error)))
        status = hdi_error(HD_ERROR_FORMAT, "%s: line %d column %d: %s", path, error.line,
                           error.column, error.text);
    else
        status = parse(path, root, out);
    json_decref(root);
    hdi_free(data);
    if (status != HD_OK) hdi_manifest_destroy(out);
    return status;
}

void hdi_manifest_destroy(hdi_manifest *manifest)
{
    for (int i = 0; i < manifest->count; i++)
        hdi_free(manifest->files[i].sums);
    hdi_free(manifest->files);
    hdi_free(manifest->state);
    *manifest = (hdi_manifest){0};
}
