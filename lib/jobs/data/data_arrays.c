/* Arrays in safetensors files: what text encoders and VAEs gave elsewhere. A file holds either one
 * batch, "latents" (or "pixels") [samples, channels, frames, height, width] with "text" [samples,
 * tokens, columns], "text_counts" [samples] and "pooled" [samples, columns], or samples by number,
 * "0.latents" [channels, frames, height, width], "0.text" [tokens, columns], "0.pooled" [columns],
 * "1.latents" and so on; texts and pooled may be missing. "null_text" [tokens, columns] and
 * "null_pooled" [columns] stand for the empty prompt. */
#include "jobs/data/data.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/number.h"
#include "io/safetensors.h"

/* Texts that were stored, by their hash. */
typedef struct known_text {
    XXH128_hash_t hash;
    int64_t number; /* plus 1; 0: a free place */
} known_text;

typedef struct arrays {
    hdi_data_job *job;
    hdi_safetensors *file;
    bool is_pixels;
    double fps;
    int64_t text_columns, pooled_columns;
    float *latents, *text, *pooled; /* grown as needed */
    size_t latents_room, text_room, pooled_room;
    known_text *known; /* [places], a power of two */
    size_t places, used;
} arrays;

/* A tensor of a sample: in a batch a part of one, else whole. */
typedef struct part {
    const hdi_safetensors_tensor *tensor;
    int64_t first; /* element */
    int64_t dims[4];
    int rank;
} part;

static bool find_part(const arrays *it, const char *name, int64_t sample, bool is_batch, int rank,
                      part *out, hd_status *status)
{
    char numbered[96];
    snprintf(numbered, sizeof numbered, "%" PRId64 ".%s", sample, name);
    const hdi_safetensors_tensor *tensor =
        hdi_safetensors_find(it->file, is_batch ? name : numbered);
    *out = (part){.tensor = tensor, .rank = rank};
    if (!tensor) return false;
    const int skip = is_batch ? 1 : 0;
    if (tensor->rank != rank + skip || (is_batch && sample >= tensor->dims[0])) {
        *status = hdi_error(HD_ERROR_FORMAT,
                            "%s: tensor \"%s\": has %d dimensions, want %d%s%" PRId64 " samples",
                            hdi_safetensors_path(it->file), tensor->name, tensor->rank, rank + skip,
                            is_batch ? ", and more than " : "; sample ", sample);
        return false;
    }
    int64_t elements = 1;
    for (int i = 0; i < rank; i++) {
        out->dims[i] = tensor->dims[i + skip];
        elements *= out->dims[i]; /* a part of tensor->elements, which did not overflow */
    }
    out->first = is_batch ? sample * elements : 0;
    return true;
}

static int64_t part_elements(const part *it)
{
    int64_t elements = 1;
    for (int i = 0; i < it->rank; i++)
        elements *= it->dims[i];
    return elements;
}

static hd_status make_room(float **data, size_t *room, int64_t wanted)
{
    if ((size_t)wanted <= *room) return HD_OK;
    float *grown = hdi_realloc_array(*data, *room, (size_t)wanted, sizeof **data);
    if (!grown)
        return hdi_error(HD_ERROR_MEMORY, "data: no memory for %" PRId64 " numbers", wanted);
    *data = grown;
    *room = (size_t)wanted;
    return HD_OK;
}

static hd_status read_part(const arrays *it, const part *from, float **data, size_t *room)
{
    const int64_t count = part_elements(from);
    HD_RETURN_IF_ERROR(make_room(data, room, count));
    if (from->tensor->dtype != HD_DTYPE_U8)
        return hdi_safetensors_read_f32(it->file, from->tensor, from->first, count, *data);
    if (!it->is_pixels)
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": dtype is U8, which pixels may have",
                         hdi_safetensors_path(it->file), from->tensor->name);
    unsigned char *bytes = (unsigned char *)*data;
    HD_RETURN_IF_ERROR(hdi_safetensors_pread(it->file, from->tensor, from->first, count, bytes));
    for (int64_t i = count - 1; i >= 0; i--)
        (*data)[i] = (float)bytes[i] / 127.5f - 1;
    return HD_OK;
}

/* Valid tokens of a sample's text, at most `tokens`. */
static hd_status read_count(const arrays *it, int64_t sample, int64_t tokens, int64_t *out)
{
    *out = tokens;
    const hdi_safetensors_tensor *counts = hdi_safetensors_find(it->file, "text_counts");
    if (!counts) return HD_OK;
    int32_t narrow = 0;
    if ((counts->dtype != HD_DTYPE_I64 && counts->dtype != HD_DTYPE_I32) || counts->rank != 1 ||
        sample >= counts->dims[0])
        return hdi_error(HD_ERROR_FORMAT, "%s: text_counts is no list of I64 or I32, one a sample",
                         hdi_safetensors_path(it->file));
    if (counts->dtype == HD_DTYPE_I64) {
        HD_RETURN_IF_ERROR(hdi_safetensors_pread(it->file, counts, 8 * sample, 8, out));
    } else {
        HD_RETURN_IF_ERROR(hdi_safetensors_pread(it->file, counts, 4 * sample, 4, &narrow));
        *out = narrow;
    }
    if (*out >= 0 && *out <= tokens) return HD_OK;
    return hdi_error(HD_ERROR_FORMAT,
                     "%s: text_counts[%" PRId64 "] is %" PRId64 ", want 0 to %" PRId64,
                     hdi_safetensors_path(it->file), sample, *out, tokens);
}

static hd_status grow_known(arrays *it)
{
    if (2 * it->used < it->places) return HD_OK;
    const size_t places = it->places ? 2 * it->places : 256;
    known_text *grown = hdi_alloc_array(places, sizeof *grown);
    if (!grown) return hdi_error(HD_ERROR_MEMORY, "data: no memory for texts");
    for (size_t i = 0; i < it->places; i++) {
        if (!it->known[i].number) continue;
        size_t at = it->known[i].hash.low64 & (places - 1);
        while (grown[at].number)
            at = (at + 1) & (places - 1);
        grown[at] = it->known[i];
    }
    hdi_free(it->known);
    it->known = grown;
    it->places = places;
    return HD_OK;
}

/* Store it->text [tokens, columns] and it->pooled, unless they are stored already. */
static hd_status store_text(arrays *it, int64_t tokens, int64_t *out)
{
    HD_RETURN_IF_ERROR(grow_known(it));
    const XXH128_hash_t pooled =
        XXH3_128bits(it->pooled, (size_t)it->pooled_columns * sizeof *it->pooled);
    const XXH128_hash_t hash = XXH3_128bits_withSeed(
        it->text, (size_t)(tokens * it->text_columns) * sizeof *it->text, pooled.low64);
    size_t at = hash.low64 & (it->places - 1);
    for (; it->known[at].number; at = (at + 1) & (it->places - 1))
        if (XXH128_isEqual(it->known[at].hash, hash)) {
            *out = it->known[at].number - 1;
            return HD_OK;
        }
    HD_RETURN_IF_ERROR(
        hdi_video_writer_text(it->job->writer, NULL, tokens, it->text, it->pooled, out));
    it->known[at] = (known_text){hash, *out + 1};
    it->used++;
    return HD_OK;
}

static hd_status check_columns(const arrays *it, const part *text, int64_t wanted)
{
    const int64_t seen = text->tensor ? text->dims[text->rank - 1] : 0;
    if (seen == wanted) return HD_OK;
    return hdi_error(
        HD_ERROR_FORMAT, "%s: %s of %" PRId64 " columns, the first sample has %" PRId64,
        hdi_safetensors_path(it->file), text->rank == 2 ? "a text" : "pooled text", seen, wanted);
}

/* Text and pooled text, of whichever there are; -1 if there are none. */
static hd_status add_text(arrays *it, part *text, part *pooled, int64_t tokens, int64_t *out)
{
    *out = -1;
    if (!text->tensor && !pooled->tensor) return HD_OK;
    text->rank = 2, pooled->rank = 1;
    HD_RETURN_IF_ERROR(check_columns(it, text, it->text_columns));
    HD_RETURN_IF_ERROR(check_columns(it, pooled, it->pooled_columns));
    if (text->tensor) HD_RETURN_IF_ERROR(read_part(it, text, &it->text, &it->text_room));
    if (pooled->tensor) HD_RETURN_IF_ERROR(read_part(it, pooled, &it->pooled, &it->pooled_room));
    return store_text(it, text->tensor ? tokens : 0, out);
}

static hd_status find_texts(const arrays *it, int64_t sample, bool is_batch, part *text,
                            part *pooled)
{
    hd_status status = HD_OK;
    find_part(it, "text", sample, is_batch, 2, text, &status);
    if (status == HD_OK) find_part(it, "pooled", sample, is_batch, 1, pooled, &status);
    return status;
}

/* The set is begun when the first sample tells its sizes. */
static hd_status begin(arrays *it, const part *latents, const part *text, const part *pooled)
{
    const hd_dtype dtype = latents->tensor->dtype;
    if (it->job->writer) return HD_OK;
    it->text_columns = text->tensor ? text->dims[1] : 0;
    it->pooled_columns = pooled->tensor ? pooled->dims[0] : 0;
    return hdi_video_writer_create(
        it->job->options->output,
        &(hdi_video_writer_options){.is_pixels = it->is_pixels,
                                    .channels = latents->dims[0],
                                    .text_columns = it->text_columns,
                                    .pooled_columns = it->pooled_columns,
                                    .dtype = dtype == HD_DTYPE_F64 ? HD_DTYPE_F32 : dtype,
                                    .shard_bytes = it->job->options->shard_bytes},
        &it->job->writer);
}

static hd_status append(arrays *it, const char *name, int64_t sample, bool is_batch,
                        bool *out_found)
{
    hd_status status = HD_OK;
    part latents, text, pooled;
    *out_found = find_part(it, name, sample, is_batch, 4, &latents, &status);
    if (!*out_found) return status;
    HD_RETURN_IF_ERROR(find_texts(it, sample, is_batch, &text, &pooled));
    HD_RETURN_IF_ERROR(begin(it, &latents, &text, &pooled));
    int64_t tokens = text.dims[0];
    if (is_batch && text.tensor) HD_RETURN_IF_ERROR(read_count(it, sample, tokens, &tokens));
    hdi_video_sample added = {.fps = it->fps};
    HD_RETURN_IF_ERROR(add_text(it, &text, &pooled, tokens, &added.text));
    memcpy(added.dims, latents.dims, sizeof added.dims);
    HD_RETURN_IF_ERROR(read_part(it, &latents, &it->latents, &it->latents_room));
    it->job->samples++;
    return hdi_video_writer_append(it->job->writer, &added, it->latents);
}

static hd_status add_null_text(arrays *it)
{
    const part text = {.tensor = hdi_safetensors_find(it->file, "null_text"), .rank = 2};
    const part pooled = {.tensor = hdi_safetensors_find(it->file, "null_pooled"), .rank = 1};
    part parts[2] = {text, pooled};
    for (int i = 0; i < 2; i++) {
        if (!parts[i].tensor) continue;
        if (parts[i].tensor->rank != parts[i].rank)
            return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\": has %d dimensions, want %d",
                             hdi_safetensors_path(it->file), parts[i].tensor->name,
                             parts[i].tensor->rank, parts[i].rank);
        memcpy(parts[i].dims, parts[i].tensor->dims, (size_t)parts[i].rank * sizeof *parts[i].dims);
    }
    int64_t number;
    HD_RETURN_IF_ERROR(add_text(it, &parts[0], &parts[1], parts[0].dims[0], &number));
    return number < 0 ? HD_OK : hdi_video_writer_null_text(it->job->writer, number);
}

static hd_status append_file(arrays *it)
{
    static const char *const names[] = {"latents", "pixels"};
    const int64_t before = it->job->samples;
    for (int kind = 0; kind < 2 && it->job->samples == before; kind++) {
        const bool is_batch = hdi_safetensors_find(it->file, names[kind]) != NULL;
        const int64_t batch = is_batch ? hdi_safetensors_find(it->file, names[kind])->dims[0] : 0;
        if (it->job->writer && it->is_pixels != (kind == 1)) continue;
        it->is_pixels = kind == 1;
        bool found = true;
        for (int64_t i = 0; found && (!is_batch || i < batch); i++)
            HD_RETURN_IF_ERROR(append(it, names[kind], i, is_batch, &found));
    }
    if (it->job->samples == before)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: has neither \"latents\" nor \"0.latents\" (for pixels: \"pixels\" or "
                         "\"0.pixels\"), or not the kind of the files before it",
                         hdi_safetensors_path(it->file));
    return add_null_text(it);
}

static hd_status append_all(arrays *it, const hdi_data_files *files)
{
    for (int i = 0; i < files->count; i++) {
        HD_RETURN_IF_ERROR(hdi_safetensors_open(files->files[i].path, &it->file));
        const char *fps = hdi_safetensors_metadata(it->file, "fps");
        it->fps = it->job->options->fps;
        hd_status status = HD_OK;
        if (fps && (!hdi_parse_float(fps, &it->fps) || it->fps < 0))
            status = hdi_error(HD_ERROR_FORMAT, "%s: metadata fps is \"%.32s\", want a number",
                               files->files[i].path, fps);
        if (status == HD_OK) status = append_file(it);
        hdi_safetensors_close(it->file);
        it->file = NULL;
        HD_RETURN_IF_ERROR(status);
    }
    return HD_OK;
}

hd_status hdi_data_arrays(hdi_data_job *job)
{
    static const char *const endings[] = {"safetensors", NULL};
    arrays it = {.job = job};
    hdi_data_files files = {0};
    hd_status status = hdi_data_find_files(job, endings, &files);
    if (status == HD_OK) status = append_all(&it, &files);
    /* Folders have no classes here: texts come with the arrays. */
    hdi_name_list_free(&job->classes);
    job->classes = (hdi_name_list){0};
    hdi_data_files_free(&files);
    hdi_free(it.latents);
    hdi_free(it.text);
    hdi_free(it.pooled);
    hdi_free(it.known);
    return status;
}
