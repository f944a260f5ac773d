/* Writing data sets of videos. A shard's bytes go to a temporary file as they come; when it is full
 * its header is known, and both become a safetensors file. The index comes last. */
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/checked.h"
#include "core/error.h"
#include "core/file.h"
#include "core/half.h"
#include "core/memory.h"
#include "core/text.h"
#include "io/safetensors.h"
#include "io/video_dataset_files.h"

enum {
    PIECE = 16384,           /* elements converted, bytes copied at once */
    SHARD_TENSORS = 1 << 16, /* keeps headers far below the reader's limit */
    SHARD_BYTES = 512 << 20,
};

/* A tensor of the shard that is being filled. */
typedef struct pending_tensor {
    char name[48];
    hd_dtype dtype;
    int rank;
    int64_t dims[4];
} pending_tensor;

typedef struct written_text {
    char *name;
    int64_t tokens;
    int shard;
} written_text;

typedef struct written_sample {
    hdi_video_sample view;
    int shard;
} written_sample;

struct hdi_video_writer {
    char *path, *index_path, *data_path, *shard_path; /* the latter two of the shard being filled */
    hdi_video_writer_options options;
    int descriptor; /* of data_path, -1 between shards */
    int64_t bytes;  /* in it */
    int shards;     /* finished */
    pending_tensor *pending;
    int pending_count, pending_capacity;
    written_text *texts;
    int text_count, text_capacity;
    written_sample *samples;
    int sample_count, sample_capacity;
    int64_t null_text;
    bool is_finished;
};

static hd_status out_of_memory(const hdi_video_writer *writer)
{
    return hdi_error(HD_ERROR_MEMORY, "%s: no memory to write a data set", writer->path);
}

hd_status hdi_video_writer_create(const char *path, const hdi_video_writer_options *options,
                                  hdi_video_writer **out)
{
    *out = NULL;
    const hd_dtype dtype = options->dtype ? options->dtype : HD_DTYPE_F32;
    if (options->channels < 1 || options->text_columns < 0 || options->pooled_columns < 0 ||
        options->shard_bytes < 0)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: a data set of %" PRId64 " channels, %" PRId64 " and %" PRId64
                         " text columns, shards of %" PRId64 " bytes: want channels, none negative",
                         path, options->channels, options->text_columns, options->pooled_columns,
                         options->shard_bytes);
    if (dtype != HD_DTYPE_F32 && !hdi_is_half(dtype) &&
        !(dtype == HD_DTYPE_U8 && options->is_pixels))
        return hdi_error(HD_ERROR_ARGUMENT, "%s: samples of %s, want F32, F16, BF16%s", path,
                         hd_dtype_name(dtype), options->is_pixels ? " or U8" : "");
    HD_RETURN_IF_ERROR(hdi_directory_create(path));
    hdi_video_writer *writer = hdi_alloc(sizeof *writer);
    if (!writer) return hdi_error(HD_ERROR_MEMORY, "%s: no memory to write a data set", path);
    *writer = (hdi_video_writer){.options = *options, .descriptor = -1, .null_text = -1};
    writer->options.dtype = dtype;
    if (writer->options.shard_bytes == 0) writer->options.shard_bytes = SHARD_BYTES;
    writer->path = hdi_strdup(path);
    writer->index_path = hdi_path_join(path, HDI_VIDEO_DATASET_INDEX);
    hd_status status = HD_OK;
    if (!writer->path || !writer->index_path)
        status = hdi_error(HD_ERROR_MEMORY, "%s: no memory to write a data set", path);
    else if (hdi_file_exists(writer->index_path))
        status = hdi_error(HD_ERROR_IO, "%s: is there already, want a folder without a data set",
                           writer->index_path);
    if (status != HD_OK) {
        writer->is_finished = true; /* nothing in the folder is ours */
        hdi_video_writer_destroy(writer);
        return status;
    }
    *out = writer;
    return HD_OK;
}

static char *shard_path(const hdi_video_writer *writer, int shard)
{
    return hdi_format("%s/shard-%05d.safetensors", writer->path, shard);
}

static void forget_shard(hdi_video_writer *writer)
{
    if (writer->descriptor >= 0) close(writer->descriptor);
    writer->descriptor = -1;
    if (writer->data_path) unlink(writer->data_path);
    hdi_free(writer->data_path);
    hdi_free(writer->shard_path);
    writer->data_path = writer->shard_path = NULL;
}

void hdi_video_writer_destroy(hdi_video_writer *writer)
{
    if (!writer) return;
    forget_shard(writer);
    for (int i = 0; !writer->is_finished && i < writer->shards; i++) {
        char *path = shard_path(writer, i);
        if (path) unlink(path);
        hdi_free(path);
    }
    for (int i = 0; i < writer->text_count; i++)
        hdi_free(writer->texts[i].name);
    hdi_free(writer->pending);
    hdi_free(writer->texts);
    hdi_free(writer->samples);
    hdi_free(writer->path);
    hdi_free(writer->index_path);
    hdi_free(writer);
}

static hd_status open_shard(hdi_video_writer *writer)
{
    writer->shard_path = shard_path(writer, writer->shards);
    writer->data_path =
        hdi_format("%s/shard-%05d.tmp.%ld", writer->path, writer->shards, (long)getpid());
    if (!writer->shard_path || !writer->data_path) return out_of_memory(writer);
    writer->bytes = 0;
    writer->pending_count = 0;
    return hdi_file_open(writer->data_path, O_RDWR | O_CREAT | O_TRUNC, &writer->descriptor);
}

static hd_status write_shard(hdi_video_writer *writer, hdi_safetensors_writer *shard)
{
    for (int i = 0; i < writer->pending_count; i++) {
        const pending_tensor *tensor = &writer->pending[i];
        HD_RETURN_IF_ERROR(hdi_safetensors_writer_tensor(shard, tensor->name, tensor->dtype,
                                                         tensor->rank, tensor->dims));
    }
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_prepare(shard));
    char *whole = hdi_format("%s.tmp.%ld", writer->shard_path, (long)getpid());
    if (!whole) return out_of_memory(writer);
    hd_status status = hdi_safetensors_writer_begin(shard, whole);
    unsigned char buffer[PIECE];
    for (int64_t done = 0; status == HD_OK && done < writer->bytes;) {
        const int64_t left = writer->bytes - done;
        const size_t piece = left < PIECE ? (size_t)left : PIECE;
        status = hdi_file_read_at(writer->descriptor, writer->data_path, buffer, piece, done);
        if (status == HD_OK) status = hdi_safetensors_writer_write(shard, buffer, piece);
        done += (int64_t)piece;
    }
    if (status == HD_OK) status = hdi_safetensors_writer_end(shard);
    if (status == HD_OK) status = hdi_file_rename(whole, writer->shard_path);
    if (status != HD_OK) unlink(whole);
    hdi_free(whole);
    return status;
}

static hd_status close_shard(hdi_video_writer *writer)
{
    hdi_safetensors_writer *shard = NULL;
    hd_status status = hdi_safetensors_writer_create(&shard);
    if (status == HD_OK) status = write_shard(writer, shard);
    hdi_safetensors_writer_destroy(shard);
    if (status == HD_OK) writer->shards++;
    forget_shard(writer);
    return status;
}

static int64_t tensor_bytes(hd_dtype dtype, int rank, const int64_t *dims)
{
    int64_t bytes = (int64_t)hd_dtype_bytes(dtype);
    for (int i = 0; i < rank; i++)
        if (dims[i] < 0 || !hdi_mul_i64(bytes, dims[i], &bytes)) return -1;
    return bytes;
}

/* A shard with room for so many bytes more. */
static hd_status make_room(hdi_video_writer *writer, int64_t bytes)
{
    if (writer->is_finished)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: the data set is finished", writer->path);
    int64_t end;
    if (writer->descriptor >= 0 &&
        (writer->pending_count + 2 > SHARD_TENSORS || !hdi_add_i64(writer->bytes, bytes, &end) ||
         (writer->bytes > 0 && end > writer->options.shard_bytes)))
        HD_RETURN_IF_ERROR(close_shard(writer));
    return writer->descriptor < 0 ? open_shard(writer) : HD_OK;
}

static unsigned char pixel_byte(float x)
{
    const float level = (x + 1) * 127.5f;
    return !(level > 0) ? 0 : level >= 255 ? 255 : (unsigned char)(level + 0.5f);
}

static void convert(hd_dtype dtype, const float *data, size_t count, unsigned char *out)
{
    for (size_t i = 0; i < count; i++) {
        if (dtype == HD_DTYPE_U8) {
            out[i] = pixel_byte(data[i]);
        } else {
            const uint16_t half = hdi_half_from_float(dtype, data[i]);
            memcpy(out + 2 * i, &half, sizeof half);
        }
    }
}

static hd_status put_tensor(hdi_video_writer *writer, const char *prefix, int64_t number,
                            const char *suffix, hd_dtype dtype, int rank, const int64_t *dims,
                            const float *data)
{
    if (!HDI_GROW(writer->pending, writer->pending_count, writer->pending_capacity))
        return out_of_memory(writer);
    pending_tensor *tensor = &writer->pending[writer->pending_count];
    *tensor = (pending_tensor){.dtype = dtype, .rank = rank};
    snprintf(tensor->name, sizeof tensor->name, "%s%" PRId64 "%s", prefix, number, suffix);
    memcpy(tensor->dims, dims, (size_t)rank * sizeof *dims);
    const size_t element = hd_dtype_bytes(dtype);
    size_t count = (size_t)tensor_bytes(dtype, rank, dims) / element;
    unsigned char buffer[2 * PIECE];
    while (count > 0) {
        const size_t piece = count < PIECE ? count : PIECE;
        if (dtype != HD_DTYPE_F32) convert(dtype, data, piece, buffer);
        HD_RETURN_IF_ERROR(hdi_file_write_at(writer->descriptor, writer->data_path,
                                             dtype == HD_DTYPE_F32 ? (const void *)data : buffer,
                                             piece * element, writer->bytes));
        writer->bytes += (int64_t)(piece * element);
        data += piece;
        count -= piece;
    }
    writer->pending_count++;
    return HD_OK;
}

hd_status hdi_video_writer_text(hdi_video_writer *writer, const char *name, int64_t tokens,
                                const float *text, const float *pooled, int64_t *out)
{
    const int64_t dims[2] = {tokens, writer->options.text_columns};
    const int64_t pooled_columns = writer->options.pooled_columns;
    const int64_t bytes = tensor_bytes(HD_DTYPE_F32, 2, dims);
    const int64_t pooled_bytes = tensor_bytes(HD_DTYPE_F32, 1, &pooled_columns);
    int64_t total;
    if (tokens > INT32_MAX || bytes < 0 || pooled_bytes < 0 ||
        !hdi_add_i64(bytes, pooled_bytes, &total))
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: a text of %" PRId64 " tokens of %" PRId64 " columns is impossible",
                         writer->path, tokens, dims[1]);
    HD_RETURN_IF_ERROR(make_room(writer, total));
    if (!HDI_GROW(writer->texts, writer->text_count, writer->text_capacity))
        return out_of_memory(writer);
    const int number = writer->text_count;
    HD_RETURN_IF_ERROR(put_tensor(writer, "text.", number, "", HD_DTYPE_F32, 2, dims, text));
    if (pooled_columns > 0)
        HD_RETURN_IF_ERROR(
            put_tensor(writer, "pooled.", number, "", HD_DTYPE_F32, 1, &pooled_columns, pooled));
    char *copy = hdi_strdup(name ? name : "");
    if (!copy) return out_of_memory(writer);
    writer->texts[writer->text_count++] = (written_text){copy, tokens, writer->shards};
    *out = number;
    return HD_OK;
}

static hd_status check_text(const hdi_video_writer *writer, int64_t text, int64_t least)
{
    if (text >= least && text < writer->text_count) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT, "%s: text %" PRId64 " is none of the %d added",
                     writer->path, text, writer->text_count);
}

hd_status hdi_video_writer_null_text(hdi_video_writer *writer, int64_t text)
{
    HD_RETURN_IF_ERROR(check_text(writer, text, 0));
    writer->null_text = text;
    return HD_OK;
}

hd_status hdi_video_writer_append(hdi_video_writer *writer, const hdi_video_sample *sample,
                                  const float *latents)
{
    const int64_t bytes = tensor_bytes(writer->options.dtype, 4, sample->dims);
    bool fits = bytes > 0 && sample->dims[0] == writer->options.channels;
    for (int i = 0; i < 4; i++)
        fits = fits && sample->dims[i] <= INT32_MAX;
    if (!fits || !(sample->fps >= 0) || !isfinite(sample->fps))
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: a sample of %" PRId64 " x %" PRId64 " x %" PRId64 " x %" PRId64
                         " at %g frames a second, want %" PRId64 " channels and no size of 0",
                         writer->path, sample->dims[0], sample->dims[1], sample->dims[2],
                         sample->dims[3], sample->fps, writer->options.channels);
    HD_RETURN_IF_ERROR(check_text(writer, sample->text, -1));
    HD_RETURN_IF_ERROR(make_room(writer, bytes));
    if (!HDI_GROW(writer->samples, writer->sample_count, writer->sample_capacity))
        return out_of_memory(writer);
    HD_RETURN_IF_ERROR(put_tensor(writer, "", writer->sample_count, ".latents",
                                  writer->options.dtype, 4, sample->dims, latents));
    writer->samples[writer->sample_count++] = (written_sample){*sample, writer->shards};
    return HD_OK;
}

static void print_index(const hdi_video_writer *writer, hdi_text *out)
{
    hdi_text_printf(out,
                    "{\"version\": %d, \"kind\": \"%s\", \"channels\": %" PRId64
                    ", \"text_columns\": %" PRId64 ", \"pooled_columns\": %" PRId64 ",\n",
                    HDI_VIDEO_DATASET_VERSION, writer->options.is_pixels ? "pixels" : "latents",
                    writer->options.channels, writer->options.text_columns,
                    writer->options.pooled_columns);
    if (writer->null_text >= 0)
        hdi_text_printf(out, "\"null_text\": %" PRId64 ",\n", writer->null_text);
    hdi_text_append(out, "\"shards\": [");
    for (int i = 0; i < writer->shards; i++)
        hdi_text_printf(out, "%s\"shard-%05d.safetensors\"", i ? ", " : "", i);
    hdi_text_append(out, "],\n\"texts\": [");
    for (int i = 0; i < writer->text_count; i++) {
        const written_text *text = &writer->texts[i];
        hdi_text_printf(out,
                        "%s\n{\"shard\": %d, \"tokens\": %" PRId64 ", \"name\": ", i ? "," : "",
                        text->shard, text->tokens);
        hdi_text_append_json(out, text->name);
        hdi_text_append(out, "}");
    }
    hdi_text_append(out, "],\n\"samples\": [");
    for (int i = 0; i < writer->sample_count; i++) {
        const hdi_video_sample *sample = &writer->samples[i].view;
        hdi_text_printf(out,
                        "%s\n{\"shard\": %d, \"dims\": [%" PRId64 ", %" PRId64 ", %" PRId64
                        ", %" PRId64 "]",
                        i ? "," : "", writer->samples[i].shard, sample->dims[0], sample->dims[1],
                        sample->dims[2], sample->dims[3]);
        if (sample->text >= 0) hdi_text_printf(out, ", \"text\": %" PRId64, sample->text);
        if (sample->fps > 0) {
            hdi_text_append(out, ", \"fps\": ");
            hdi_text_append_float(out, sample->fps);
        }
        hdi_text_append(out, "}");
    }
    hdi_text_append(out, "]}\n");
}

hd_status hdi_video_writer_finish(hdi_video_writer *writer)
{
    if (writer->is_finished || writer->sample_count == 0)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: a data set %s", writer->path,
                         writer->is_finished ? "is finished once" : "needs at least one sample");
    if (writer->descriptor >= 0) HD_RETURN_IF_ERROR(close_shard(writer));
    hdi_text text = {0};
    print_index(writer, &text);
    char *index = hdi_text_take(&text);
    hdi_text_free(&text);
    if (!index) return out_of_memory(writer);
    hd_status status = hdi_directory_sync(writer->path);
    if (status == HD_OK) status = hdi_file_write_text(writer->index_path, index);
    hdi_free(index);
    if (status == HD_OK) writer->is_finished = true;
    return status;
}
