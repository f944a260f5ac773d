/* The safetensors writer: the layout is fixed first, the bytes are streamed and summed. */
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/checked.h"
#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "io/safetensors.h"

/* Written and summed piece by piece, so that the sum finds the bytes in cache. */
enum { PIECE_BYTES = 1 << 20 };

struct hdi_safetensors_writer {
    json_t *header, *metadata; /* owned by the writer until prepared, then NULL */
    int64_t data_bytes;
    char *prefix; /* header length and padded header, owned */
    size_t prefix_bytes;
    hdi_block_sums sums;
    char path[HDI_PATH_BYTES]; /* of the file being written */
    int descriptor;            /* -1 when none is */
};

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "no memory for a safetensors header");
}

hd_status hdi_safetensors_writer_create(hdi_safetensors_writer **out)
{
    *out = NULL;
    hdi_safetensors_writer *writer = hdi_alloc(sizeof *writer);
    if (!writer) return out_of_memory();
    writer->descriptor = -1;
    writer->header = json_object();
    writer->metadata = json_object();
    if (!writer->header || !writer->metadata) {
        hdi_safetensors_writer_destroy(writer);
        return out_of_memory();
    }
    *out = writer;
    return HD_OK;
}

void hdi_safetensors_writer_destroy(hdi_safetensors_writer *writer)
{
    if (!writer) return;
    hdi_safetensors_writer_cancel(writer);
    json_decref(writer->header);
    json_decref(writer->metadata);
    hdi_block_sums_destroy(&writer->sums);
    hdi_free(writer->prefix);
    hdi_free(writer);
}

static hd_status check_not_prepared(const hdi_safetensors_writer *writer, const char *name)
{
    if (writer->header) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT, "safetensors writer: \"%.200s\" comes after prepare", name);
}

hd_status hdi_safetensors_writer_metadata(hdi_safetensors_writer *writer, const char *key,
                                          const char *value)
{
    HD_RETURN_IF_ERROR(check_not_prepared(writer, key));
    json_t *text = json_string(value); /* NULL for bad UTF-8 */
    if (!text || json_object_set_new(writer->metadata, key, text) != 0)
        return hdi_error(HD_ERROR_ARGUMENT, "safetensors writer: metadata \"%.200s\" is no UTF-8",
                         key);
    return HD_OK;
}

hd_status hdi_safetensors_writer_tensor(hdi_safetensors_writer *writer, const char *name,
                                        hd_dtype dtype, int rank, const int64_t *dims)
{
    HD_RETURN_IF_ERROR(check_not_prepared(writer, name));
    if (strlen(name) > HDI_SAFETENSORS_NAME_BYTES || strcmp(name, "__metadata__") == 0)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "safetensors writer: tensor \"%.64s\" (%zu bytes): a name is at most %d "
                         "bytes and not __metadata__",
                         name, strlen(name), HDI_SAFETENSORS_NAME_BYTES);
    if (json_object_get(writer->header, name))
        return hdi_error(HD_ERROR_ARGUMENT, "safetensors writer: tensor \"%s\" is declared twice",
                         name);
    if (rank < 0 || rank > HD_MAX_DIMS || dtype == HD_DTYPE_NONE)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "safetensors writer: tensor \"%s\": %d dimensions of %s, want 0 to %d of "
                         "a dtype",
                         name, rank, hd_dtype_name(dtype), HD_MAX_DIMS);

    int64_t bytes = (int64_t)hd_dtype_bytes(dtype), end = 0;
    json_t *shape = json_array();
    for (int i = 0; i < rank; i++) {
        if (dims[i] < 0 || !hdi_mul_i64(bytes, dims[i], &bytes)) {
            json_decref(shape);
            return hdi_error(HD_ERROR_ARGUMENT,
                             "safetensors writer: tensor \"%s\": dimension %d is %" PRId64
                             ", want >= 0 and a size that fits 63 bits",
                             name, i, dims[i]);
        }
        json_array_append_new(shape, json_integer(dims[i]));
    }
    if (!hdi_add_i64(writer->data_bytes, bytes, &end)) {
        json_decref(shape);
        return hdi_error(HD_ERROR_ARGUMENT, "safetensors writer: tensor \"%s\": file too long",
                         name);
    }
    json_t *entry = json_pack("{s:s, s:o, s:[I,I]}", "dtype", hd_dtype_name(dtype), "shape", shape,
                              "data_offsets", (json_int_t)writer->data_bytes, (json_int_t)end);
    if (!entry || json_object_set_new(writer->header, name, entry) != 0)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "safetensors writer: tensor \"%s\": no UTF-8, or no memory", name);
    writer->data_bytes = end;
    return HD_OK;
}

hd_status hdi_safetensors_writer_prepare(hdi_safetensors_writer *writer)
{
    HD_RETURN_IF_ERROR(check_not_prepared(writer, "prepare"));
    if (json_object_size(writer->metadata) > 0 &&
        json_object_set(writer->header, "__metadata__", writer->metadata) != 0)
        return out_of_memory();
    char *text = json_dumps(writer->header, JSON_COMPACT);
    if (!text) return out_of_memory();

    /* Spaces after the header put the data on a multiple of 8 bytes. */
    const size_t text_bytes = strlen(text), padded = (text_bytes + 7) / 8 * 8;
    writer->prefix_bytes = 8 + padded;
    writer->prefix = hdi_alloc(writer->prefix_bytes);
    hd_status status = HD_OK;
    int64_t file_bytes;
    if (!writer->prefix)
        status = out_of_memory();
    else if (padded > HDI_SAFETENSORS_HEADER_LIMIT)
        status = hdi_error(HD_ERROR_ARGUMENT,
                           "safetensors writer: the header has %zu bytes, want at most %d", padded,
                           HDI_SAFETENSORS_HEADER_LIMIT);
    else if (!hdi_add_i64(writer->data_bytes, (int64_t)writer->prefix_bytes, &file_bytes))
        status = hdi_error(HD_ERROR_ARGUMENT, "safetensors writer: file too long");
    else
        status = hdi_block_sums_create(file_bytes, &writer->sums);
    if (status == HD_OK) {
        for (int i = 0; i < 8; i++)
            writer->prefix[i] = (char)((uint64_t)padded >> 8 * i & 255);
        memcpy(writer->prefix + 8, text, text_bytes);
        memset(writer->prefix + 8 + text_bytes, ' ', padded - text_bytes);
        json_decref(writer->header);
        json_decref(writer->metadata);
        writer->header = writer->metadata = NULL;
    }
    hdi_free_foreign(text);
    return status;
}

int64_t hdi_safetensors_writer_bytes(const hdi_safetensors_writer *writer)
{
    return (int64_t)writer->prefix_bytes + writer->data_bytes;
}

static hd_status write_summed(hdi_safetensors_writer *writer, const void *data, size_t bytes)
{
    const char *cursor = data;
    while (bytes > 0) {
        const size_t piece = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
        HD_RETURN_IF_ERROR(hdi_file_write(writer->descriptor, writer->path, cursor, piece));
        hdi_block_sums_add(&writer->sums, cursor, piece);
        cursor += piece;
        bytes -= piece;
    }
    return HD_OK;
}

hd_status hdi_safetensors_writer_begin(hdi_safetensors_writer *writer, const char *path)
{
    hdi_safetensors_writer_cancel(writer);
    if (writer->header)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: the safetensors writer is not prepared", path);
    if (strlen(path) >= sizeof writer->path)
        return hdi_error(HD_ERROR_IO, "%.200s...: path of %zu bytes, want fewer than %zu", path,
                         strlen(path), sizeof writer->path);
    memcpy(writer->path, path, strlen(path) + 1);
    HD_RETURN_IF_ERROR(hdi_file_open(path, O_WRONLY | O_CREAT | O_TRUNC, &writer->descriptor));
    hdi_block_sums_begin(&writer->sums);
    return write_summed(writer, writer->prefix, writer->prefix_bytes);
}

hd_status hdi_safetensors_writer_write(hdi_safetensors_writer *writer, const void *data,
                                       size_t bytes)
{
    if (writer->descriptor < 0)
        return hdi_error(HD_ERROR_ARGUMENT, "safetensors writer: write comes before begin");
    const int64_t room = hdi_safetensors_writer_bytes(writer) - writer->sums.bytes;
    if (bytes > (uint64_t)room)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: given %zu bytes, the declared tensors have room for %" PRId64,
                         writer->path, bytes, room);
    return write_summed(writer, data, bytes);
}

hd_status hdi_safetensors_writer_end(hdi_safetensors_writer *writer)
{
    if (writer->descriptor < 0)
        return hdi_error(HD_ERROR_ARGUMENT, "safetensors writer: end comes before begin");
    hd_status status = HD_OK;
    const int64_t missing = hdi_safetensors_writer_bytes(writer) - writer->sums.bytes;
    if (missing != 0)
        status = hdi_error(HD_ERROR_ARGUMENT, "%s: %" PRId64 " bytes of tensors were not given",
                           writer->path, missing);
    hdi_block_sums_end(&writer->sums);
    if (status == HD_OK) status = hdi_file_sync(writer->descriptor, writer->path);
    if (status == HD_OK) {
        status = hdi_file_close(writer->descriptor, writer->path);
        writer->descriptor = -1;
    }
    hdi_safetensors_writer_cancel(writer);
    return status;
}

void hdi_safetensors_writer_cancel(hdi_safetensors_writer *writer)
{
    if (writer->descriptor >= 0) close(writer->descriptor);
    writer->descriptor = -1;
}

const uint64_t *hdi_safetensors_writer_sums(const hdi_safetensors_writer *writer,
                                            int64_t *out_count)
{
    *out_count = writer->sums.count;
    return writer->sums.sums;
}
