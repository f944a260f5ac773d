/* Reading checkpoints: one step's folder, its pieces, and ranges gathered from them. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "io/block_sums.h"
#include "io/checkpoint_folder.h"
#include "io/manifest.h"
#include "io/safetensors.h"

typedef struct stored_piece {
    char *name; /* of the global tensor, owned */
    hd_dtype dtype;
    int64_t global_elements, begin, count; /* elements of the matrix of its columns alone, */
    int64_t first, width, columns;         /* which are these; of all: one row of all elements */
    int file;
    const hdi_safetensors_tensor *tensor;
} stored_piece;

typedef struct shard {
    hdi_safetensors *file;
    bool *verified; /* [blocks], owned */
} shard;

struct hdi_checkpoint {
    char *folder;
    hdi_manifest manifest;
    shard *shards;        /* [manifest.count] */
    stored_piece *pieces; /* by name, then begin */
    int piece_count, piece_capacity;
    hdi_checkpoint_tensor *tensors;
    int count;
    char *block; /* room for one block, owned, made when first needed */
    int block_file;
    int64_t block_index; /* what `block` holds; -1 for nothing */
};

static hd_status out_of_memory(const hdi_checkpoint *checkpoint)
{
    return hdi_error(HD_ERROR_MEMORY, "%s: no memory to open it", checkpoint->folder);
}

static int64_t block_bytes_at(const hdi_checkpoint *checkpoint, int file, int64_t block)
{
    const int64_t left = checkpoint->manifest.files[file].bytes - block * HDI_BLOCK_BYTES;
    return left < HDI_BLOCK_BYTES ? left : HDI_BLOCK_BYTES;
}

/* Read a whole block into `out` and compare its sum. */
static hd_status read_block(hdi_checkpoint *checkpoint, int file, int64_t block, void *out)
{
    const shard *stored = &checkpoint->shards[file];
    const int64_t bytes = block_bytes_at(checkpoint, file, block);
    HD_RETURN_IF_ERROR(
        hdi_safetensors_pread_file(stored->file, block * HDI_BLOCK_BYTES, bytes, out));
    const uint64_t seen = hdi_block_sum(out, (size_t)bytes);
    const uint64_t wanted = checkpoint->manifest.files[file].sums[block];
    if (seen != wanted)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: bytes %" PRId64 " to %" PRId64 " are damaged: XXH3 is %016" PRIx64
                         ", the manifest says %016" PRIx64,
                         hdi_safetensors_path(stored->file), block * HDI_BLOCK_BYTES,
                         block * HDI_BLOCK_BYTES + bytes, seen, wanted);
    stored->verified[block] = true;
    return HD_OK;
}

/* Bring a checked block into checkpoint->block. */
static hd_status load_block(hdi_checkpoint *checkpoint, int file, int64_t block)
{
    if (checkpoint->block_file == file && checkpoint->block_index == block) return HD_OK;
    if (!checkpoint->block && !(checkpoint->block = hdi_alloc((size_t)HDI_BLOCK_BYTES)))
        return out_of_memory(checkpoint);
    checkpoint->block_index = -1;
    HD_RETURN_IF_ERROR(read_block(checkpoint, file, block, checkpoint->block));
    checkpoint->block_file = file;
    checkpoint->block_index = block;
    return HD_OK;
}

/* Bytes of a shard, each from a block that was checked. A block that is wanted whole is checked in
 * place; others go through checkpoint->block the first time and are read directly after. */
static hd_status read_checked(hdi_checkpoint *checkpoint, int file, int64_t offset, int64_t bytes,
                              char *out)
{
    while (bytes > 0) {
        const int64_t block = offset / HDI_BLOCK_BYTES, skip = offset % HDI_BLOCK_BYTES;
        const int64_t block_bytes = block_bytes_at(checkpoint, file, block);
        const int64_t piece = bytes < block_bytes - skip ? bytes : block_bytes - skip;
        if (checkpoint->shards[file].verified[block] &&
            !(checkpoint->block_file == file && checkpoint->block_index == block)) {
            HD_RETURN_IF_ERROR(
                hdi_safetensors_pread_file(checkpoint->shards[file].file, offset, piece, out));
        } else if (piece == block_bytes) {
            HD_RETURN_IF_ERROR(read_block(checkpoint, file, block, out));
        } else {
            HD_RETURN_IF_ERROR(load_block(checkpoint, file, block));
            memcpy(out, checkpoint->block + skip, (size_t)piece);
        }
        offset += piece;
        bytes -= piece;
        out += piece;
    }
    return HD_OK;
}

static int64_t rows_of(const stored_piece *piece)
{
    return piece->global_elements / piece->columns;
}

/* "name[begin:end/elements]" or "name[begin:end/elements,first+width/columns]", exactly as the writer
 * spells it. */
static bool parse_piece_name(const hdi_safetensors_tensor *tensor, stored_piece *out)
{
    const char *range = strrchr(tensor->name, '[');
    int64_t end;
    int length = 0;
    if (!range || sscanf(range, "[%" SCNd64 ":%" SCNd64 "/%" SCNd64 "%n", &out->begin, &end,
                         &out->global_elements, &length) != 3)
        return false;
    range += length;
    if (strcmp(range, "]") == 0) {
        out->width = out->columns = out->global_elements > 0 ? out->global_elements : 1;
    } else {
        length = 0;
        if (sscanf(range, ",%" SCNd64 "+%" SCNd64 "/%" SCNd64 "]%n", &out->first, &out->width,
                   &out->columns, &length) != 3 ||
            length == 0 || range[length] != '\0' || out->first < 0 || out->width < 1 ||
            out->width > out->columns || out->first > out->columns - out->width ||
            out->global_elements % out->columns)
            return false;
    }
    if (out->begin < 0 || end < out->begin || end > rows_of(out) * out->width) return false;
    out->count = end - out->begin;
    return tensor->rank == 1 && tensor->dims[0] == out->count;
}

static hd_status add_pieces(hdi_checkpoint *checkpoint, int file)
{
    const hdi_safetensors *source = checkpoint->shards[file].file;
    for (int i = 0; i < hdi_safetensors_count(source); i++) {
        const hdi_safetensors_tensor *tensor = hdi_safetensors_get(source, i);
        stored_piece piece = {.dtype = tensor->dtype, .file = file, .tensor = tensor};
        if (!parse_piece_name(tensor, &piece))
            return hdi_error(HD_ERROR_FORMAT,
                             "%s: tensor \"%s\" is not named name[begin:end/elements] (or "
                             "...,first+width/columns]) for what it holds",
                             hdi_safetensors_path(source), tensor->name);
        piece.name = hdi_strdup(tensor->name);
        if (!piece.name ||
            !HDI_GROW(checkpoint->pieces, checkpoint->piece_count, checkpoint->piece_capacity)) {
            hdi_free(piece.name);
            return out_of_memory(checkpoint);
        }
        *strrchr(piece.name, '[') = '\0';
        checkpoint->pieces[checkpoint->piece_count++] = piece;
    }
    return HD_OK;
}

static hd_status open_shard(hdi_checkpoint *checkpoint, int file)
{
    shard *stored = &checkpoint->shards[file];
    const int64_t bytes = checkpoint->manifest.files[file].bytes;
    char name[32];
    hdi_manifest_file_name(file, name);
    char *path = hdi_path_join(checkpoint->folder, name);
    stored->verified = hdi_alloc((size_t)hdi_block_count(bytes));
    hd_status status = path && stored->verified ? hdi_safetensors_open(path, &stored->file)
                                                : out_of_memory(checkpoint);
    hdi_free(path);
    HD_RETURN_IF_ERROR(status);
    if (hdi_safetensors_file_bytes(stored->file) != bytes)
        return hdi_error(HD_ERROR_FORMAT, "%s: has %" PRId64 " bytes, the manifest says %" PRId64,
                         hdi_safetensors_path(stored->file),
                         hdi_safetensors_file_bytes(stored->file), bytes);
    const int64_t header_bytes = hdi_safetensors_data_offset(stored->file);
    for (int64_t b = 0; b * HDI_BLOCK_BYTES < header_bytes; b++)
        HD_RETURN_IF_ERROR(load_block(checkpoint, file, b));
    return add_pieces(checkpoint, file);
}

static int compare_pieces(const void *left, const void *right)
{
    const stored_piece *a = left, *b = right;
    const int order = strcmp(a->name, b->name);
    if (order != 0) return order;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return (a->count > b->count) - (a->count < b->count);
}

/* Where pieces of some columns end, of which `last` is the last: all rows must have been there. */
static hd_status check_end(const hdi_checkpoint *checkpoint, const stored_piece *last)
{
    const int64_t end = last->begin + last->count, wanted = rows_of(last) * last->width;
    if (end == wanted) return HD_OK;
    return hdi_error(HD_ERROR_FORMAT,
                     "%s: tensor \"%s\": elements %" PRId64 " to %" PRId64 " are in no piece",
                     checkpoint->folder, last->name, end, wanted);
}

/* Columns from `from` on follow those of `last`, NULL if they are the first. */
static hd_status check_columns(const hdi_checkpoint *checkpoint, const char *name,
                               const stored_piece *last, int64_t from, int64_t columns)
{
    if (last) HD_RETURN_IF_ERROR(check_end(checkpoint, last));
    const int64_t end = last ? last->first + last->width : 0;
    if (from == end) return HD_OK;
    return hdi_error(HD_ERROR_FORMAT,
                     "%s: tensor \"%s\": columns %" PRId64 " to %" PRId64 " of %" PRId64
                     " are in %s",
                     checkpoint->folder, name, from < end ? from : end, from < end ? end : from,
                     columns, from < end ? "two pieces" : "no piece");
}

/* A piece of a tensor behind `last`, NULL for the first. */
static hd_status check_piece(const hdi_checkpoint *checkpoint, const hdi_checkpoint_tensor *tensor,
                             const stored_piece *last, const stored_piece *piece)
{
    const char *file = hdi_safetensors_path(checkpoint->shards[piece->file].file);
    if (piece->dtype != tensor->dtype || piece->global_elements != tensor->elements)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%s\": is %" PRId64 " x %s here, %" PRId64 " x %s elsewhere",
                         file, piece->name, piece->global_elements, hd_dtype_name(piece->dtype),
                         tensor->elements, hd_dtype_name(tensor->dtype));
    const bool same = last && last->first == piece->first;
    if (last && (last->columns != piece->columns || (same && last->width != piece->width)))
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%s\": columns %" PRId64 " + %" PRId64 " of %" PRId64
                         " here, %" PRId64 " + %" PRId64 " of %" PRId64 " elsewhere",
                         file, piece->name, piece->first, piece->width, piece->columns, last->first,
                         last->width, last->columns);
    if (!same)
        HD_RETURN_IF_ERROR(
            check_columns(checkpoint, piece->name, last, piece->first, piece->columns));
    const int64_t end = same ? last->begin + last->count : 0;
    if (piece->begin == end) return HD_OK;
    return hdi_error(
        HD_ERROR_FORMAT, "%s: tensor \"%s\": elements %" PRId64 " to %" PRId64 " are in %s", file,
        piece->name, piece->begin < end ? piece->begin : end,
        piece->begin < end ? end : piece->begin, piece->begin < end ? "two pieces" : "no piece");
}

/* Make the tensors from the sorted pieces, which must tile each of them once. */
static hd_status build_tensors(hdi_checkpoint *checkpoint)
{
    checkpoint->tensors =
        hdi_alloc_array((size_t)checkpoint->piece_count, sizeof *checkpoint->tensors);
    if (!checkpoint->tensors) return out_of_memory(checkpoint);
    if (checkpoint->piece_count == 0) return HD_OK;
    qsort(checkpoint->pieces, (size_t)checkpoint->piece_count, sizeof *checkpoint->pieces,
          compare_pieces);
    hdi_checkpoint_tensor *tensor = NULL;
    const stored_piece *last = NULL; /* of the tensor */
    for (int i = 0; i < checkpoint->piece_count; i++) {
        const stored_piece *piece = &checkpoint->pieces[i];
        if (!tensor || strcmp(tensor->name, piece->name) != 0) {
            if (last)
                HD_RETURN_IF_ERROR(
                    check_columns(checkpoint, last->name, last, last->columns, last->columns));
            tensor = &checkpoint->tensors[checkpoint->count++];
            *tensor =
                (hdi_checkpoint_tensor){piece->name, piece->dtype, piece->global_elements, i, 0};
            last = NULL;
        }
        HD_RETURN_IF_ERROR(check_piece(checkpoint, tensor, last, piece));
        last = piece;
        tensor->pieces++;
    }
    return check_columns(checkpoint, last->name, last, last->columns, last->columns);
}

static hd_status load(hdi_checkpoint *checkpoint)
{
    char *path = hdi_path_join(checkpoint->folder, HDI_MANIFEST_NAME);
    hd_status status =
        path ? hdi_manifest_read(path, &checkpoint->manifest) : out_of_memory(checkpoint);
    hdi_free(path);
    HD_RETURN_IF_ERROR(status);

    const char *slash = strrchr(checkpoint->folder, '/');
    const hdi_step_name name = hdi_step_name_parse(slash ? slash + 1 : checkpoint->folder);
    if (name.kind != HDI_STEP_NONE && name.step != checkpoint->manifest.step)
        return hdi_error(HD_ERROR_FORMAT, "%s: its manifest is of step %" PRId64,
                         checkpoint->folder, checkpoint->manifest.step);
    checkpoint->shards =
        hdi_alloc_array((size_t)checkpoint->manifest.count, sizeof *checkpoint->shards);
    if (!checkpoint->shards) return out_of_memory(checkpoint);
    for (int i = 0; i < checkpoint->manifest.count; i++)
        HD_RETURN_IF_ERROR(open_shard(checkpoint, i));
    return build_tensors(checkpoint);
}

hd_status hdi_checkpoint_open_step(const char *folder, const hdi_checkpoint_options *options,
                                   hdi_checkpoint **out)
{
    *out = NULL;
    hdi_checkpoint *checkpoint = hdi_alloc(sizeof *checkpoint);
    if (!checkpoint || !(checkpoint->folder = hdi_strdup(folder))) {
        hdi_free(checkpoint);
        return hdi_error(HD_ERROR_MEMORY, "%s: no memory to open it", folder);
    }
    checkpoint->block_index = -1;
    hd_status status = load(checkpoint);
    if (status == HD_OK && options && options->verify_all)
        status = hdi_checkpoint_verify(checkpoint);
    if (status != HD_OK) {
        hdi_checkpoint_close(checkpoint);
        return status;
    }
    *out = checkpoint;
    return HD_OK;
}

void hdi_checkpoint_close(hdi_checkpoint *checkpoint)
{
    if (!checkpoint) return;
    for (int i = 0; checkpoint->shards && i < checkpoint->manifest.count; i++) {
        hdi_safetensors_close(checkpoint->shards[i].file);
        hdi_free(checkpoint->shards[i].verified);
    }
    for (int i = 0; i < checkpoint->piece_count; i++)
        hdi_free(checkpoint->pieces[i].name);
    hdi_free(checkpoint->shards);
    hdi_free(checkpoint->pieces);
    hdi_free(checkpoint->tensors);
    hdi_free(checkpoint->block);
    hdi_free(checkpoint->folder);
    hdi_manifest_destroy(&checkpoint->manifest);
    hdi_free(checkpoint);
}

hd_status hdi_checkpoint_verify(hdi_checkpoint *checkpoint)
{
    for (int file = 0; file < checkpoint->manifest.count; file++) {
        const int64_t blocks = hdi_block_count(checkpoint->manifest.files[file].bytes);
        for (int64_t b = 0; b < blocks; b++) {
            checkpoint->block_index = -1; /* what was read before proves nothing about the disk */
            HD_RETURN_IF_ERROR(load_block(checkpoint, file, b));
        }
    }
    return HD_OK;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* What a piece has of a tensor's elements begin to end, row by row. */
static hd_status read_piece(hdi_checkpoint *checkpoint, const stored_piece *piece, int64_t begin,
                            int64_t end, char *out)
{
    const int64_t bytes = (int64_t)hd_dtype_bytes(piece->dtype), held = piece->begin + piece->count;
    const int64_t offset =
        hdi_safetensors_data_offset(checkpoint->shards[piece->file].file) + piece->tensor->begin;
    int64_t row = larger(begin / piece->columns, piece->begin / piece->width);
    for (; row * piece->columns < end && row * piece->width < held; row++) {
        /* From a place in the piece's columns alone to one in the tensor. */
        const int64_t shift = row * piece->columns + piece->first - row * piece->width;
        const int64_t from = larger(begin, shift + larger(piece->begin, row * piece->width));
        const int64_t to = smaller(end, shift + smaller(held, (row + 1) * piece->width));
        if (from >= to) continue;
        HD_RETURN_IF_ERROR(read_checked(checkpoint, piece->file,
                                        offset + (from - shift - piece->begin) * bytes,
                                        (to - from) * bytes, out + (from - begin) * bytes));
    }
    return HD_OK;
}

hd_status hdi_checkpoint_read(hdi_checkpoint *checkpoint, const char *name, int64_t begin,
                              int64_t count, hd_dtype dtype, void *out)
{
    const hdi_checkpoint_tensor *tensor = hdi_checkpoint_find(checkpoint, name);
    if (!tensor)
        return hdi_error(HD_ERROR_FORMAT, "%s: has no tensor \"%s\"", checkpoint->folder, name);
    if (tensor->dtype != dtype)
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": is %s, want %s", checkpoint->folder,
                         name, hd_dtype_name(tensor->dtype), hd_dtype_name(dtype));
    if (begin < 0 || count < 0 || begin > tensor->elements || count > tensor->elements - begin)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: tensor \"%s\": asked for %" PRId64 " elements at %" PRId64
                         ", it has %" PRId64,
                         checkpoint->folder, name, count, begin, tensor->elements);
    for (int i = tensor->first_piece; i < tensor->first_piece + tensor->pieces; i++) {
        hd_status status =
            read_piece(checkpoint, &checkpoint->pieces[i], begin, begin + count, out);
        if (status != HD_OK) return hdi_error_context(status, "tensor \"%s\"", name);
    }
    return HD_OK;
}

const char *hdi_checkpoint_folder(const hdi_checkpoint *checkpoint)
{
    return checkpoint->folder;
}

int64_t hdi_checkpoint_step(const hdi_checkpoint *checkpoint)
{
    return checkpoint->manifest.step;
}

const char *hdi_checkpoint_state(const hdi_checkpoint *checkpoint)
{
    return checkpoint->manifest.state;
}

int hdi_checkpoint_file_count(const hdi_checkpoint *checkpoint)
{
    return checkpoint->manifest.count;
}

int64_t hdi_checkpoint_bytes(const hdi_checkpoint *checkpoint)
{
    int64_t bytes = 0; /* sizes of files that are open: their sum fits */
    for (int i = 0; i < checkpoint->manifest.count; i++)
        bytes += checkpoint->manifest.files[i].bytes;
    return bytes;
}

int hdi_checkpoint_count(const hdi_checkpoint *checkpoint)
{
    return checkpoint->count;
}

const hdi_checkpoint_tensor *hdi_checkpoint_get(const hdi_checkpoint *checkpoint, int index)
{
    return &checkpoint->tensors[index];
}

static int compare_tensors(const void *left, const void *right)
{
    const hdi_checkpoint_tensor *a = left, *b = right;
    return strcmp(a->name, b->name);
}

const hdi_checkpoint_tensor *hdi_checkpoint_find(const hdi_checkpoint *checkpoint, const char *name)
{
    const hdi_checkpoint_tensor key = {.name = name};
    return bsearch(&key, checkpoint->tensors, (size_t)checkpoint->count,
                   sizeof *checkpoint->tensors, compare_tensors);
}
