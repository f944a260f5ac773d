/* Videos as safetensors files: whole or absent, each telling what it is. */
#include "jobs/sample/sample.h"

#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "core/number.h"
#include "io/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static const int64_t *dims_of(const hdi_sample_settings *settings, int64_t dims[4])
{
    dims[0] = settings->model->channels;
    dims[1] = settings->shape.frames;
    dims[2] = settings->shape.height;
    dims[3] = settings->shape.width;
    return dims;
}

static size_t bytes_of(const hdi_sample_settings *settings)
{
    int64_t dims[4];
    dims_of(settings, dims);
    return (size_t)(dims[0] * dims[1] * dims[2] * dims[3]) * sizeof(float);
}

static hd_status describe(hdi_safetensors_writer *writer, const hdi_sample_file *file,
                          const float *latents)
{
    const hdi_sample_settings *is = file->settings;
    char numbers[8][32];
    const struct {
        const char *key;
        int64_t value;
    } whole[] = {{"step", file->step},          {"steps", file->steps},
                 {"seed", (int64_t)file->seed}, {"frames", is->pixel_frames},
                 {"height", is->pixel_height},  {"width", is->pixel_width}};
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_metadata(writer, "input", file->name));
    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++) {
        snprintf(numbers[i], sizeof numbers[i], "%" PRId64, whole[i].value);
        HD_RETURN_IF_ERROR(hdi_safetensors_writer_metadata(writer, whole[i].key, numbers[i]));
    }
    snprintf(numbers[6], sizeof numbers[6], "%016" PRIx64, file->fingerprint);
    snprintf(numbers[7], sizeof numbers[7], "%016" PRIx64,
             (uint64_t)XXH3_64bits(latents, bytes_of(is)));
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_metadata(writer, "fingerprint", numbers[6]));
    return hdi_safetensors_writer_metadata(writer, "xxh3", numbers[7]);
}

static hd_status write_whole(hdi_safetensors_writer *writer, const hdi_sample_file *file,
                             const char *path, const float *latents)
{
    int64_t dims[4];
    HD_RETURN_IF_ERROR(describe(writer, file, latents));
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_tensor(writer, "latents", HD_DTYPE_F32, 4,
                                                     dims_of(file->settings, dims)));
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_prepare(writer));
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_begin(writer, path));
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_write(writer, latents, bytes_of(file->settings)));
    return hdi_safetensors_writer_end(writer);
}

hd_status hdi_sample_file_write(const char *path, const hdi_sample_file *file, const float *latents)
{
    hdi_safetensors_writer *writer = NULL;
    char *temporary = hdi_format("%s.tmp", path);
    hd_status status = temporary ? hdi_safetensors_writer_create(&writer)
                                 : hdi_error(HD_ERROR_MEMORY, "sample: out of host memory");
    if (status == HD_OK) status = write_whole(writer, file, temporary, latents);
    if (status == HD_OK) status = hdi_file_rename(temporary, path);
    hdi_safetensors_writer_destroy(writer);
    hdi_free(temporary);
    return status;
}

static bool matches(const hdi_safetensors *file, const char *key, uint64_t wanted)
{
    char text[32];
    const char *seen = hdi_safetensors_metadata(file, key);
    snprintf(text, sizeof text, "%016" PRIx64, wanted);
    return seen && strcmp(seen, text) == 0;
}

/* The latents, if they are whole. */
static bool read_latents(const hdi_safetensors *file, const hdi_sample_settings *is, float *out)
{
    const hdi_safetensors_tensor *tensor = hdi_safetensors_find(file, "latents");
    const size_t bytes = bytes_of(is);
    return tensor && tensor->dtype == HD_DTYPE_F32 && (size_t)tensor->bytes == bytes &&
           hdi_safetensors_pread(file, tensor, 0, tensor->bytes, out) == HD_OK &&
           matches(file, "xxh3", XXH3_64bits(out, bytes));
}

int64_t hdi_sample_file_read(const char *path, const hdi_sample_file *file, float *latents,
                             const char **why)
{
    *why = NULL;
    if (!hdi_file_exists(path)) return -1;
    hdi_safetensors *in;
    *why = "is damaged";
    if (hdi_safetensors_open(path, &in) != HD_OK) return -1;
    int64_t step = -1;
    float *room = latents ? NULL : hdi_alloc(bytes_of(file->settings));
    if (!latents) latents = room;
    const char *text = hdi_safetensors_metadata(in, "step");
    if (!matches(in, "fingerprint", file->fingerprint))
        *why = "is of other settings or weights";
    else if (text && hdi_parse_int(text, &step) && step >= 0 && step <= file->steps && latents &&
             read_latents(in, file->settings, latents))
        *why = NULL;
    else
        step = -1;
    hdi_free(room);
    hdi_safetensors_close(in);
    return step;
}
