/* Reading samples and texts of an open data set straight into the caller's memory. */
#include <inttypes.h>
#include <string.h>

#include "core/error.h"
#include "io/video_dataset_files.h"

void hdi_video_dataset_get_info(const hdi_video_dataset *dataset, hdi_video_dataset_info *out)
{
    *out = dataset->info;
}

const hdi_video_sample *hdi_video_dataset_sample(const hdi_video_dataset *dataset, int64_t sample)
{
    return sample >= 0 && sample < dataset->info.count ? &dataset->samples[sample].view : NULL;
}

const hdi_video_text *hdi_video_dataset_text(const hdi_video_dataset *dataset, int64_t text)
{
    return text >= 0 && text < dataset->info.texts ? &dataset->texts[text].view : NULL;
}

int64_t hdi_video_dataset_find_text(const hdi_video_dataset *dataset, const char *name)
{
    for (int64_t i = 0; i < dataset->info.texts; i++)
        if (strcmp(dataset->texts[i].name, name) == 0) return i;
    return -1;
}

static hd_status read_bytes_as_pixels(const hdi_safetensors *file,
                                      const hdi_safetensors_tensor *tensor, int64_t first,
                                      int64_t count, float *out)
{
    unsigned char buffer[16384];
    while (count > 0) {
        const int64_t piece = count < (int64_t)sizeof buffer ? count : (int64_t)sizeof buffer;
        HD_RETURN_IF_ERROR(hdi_safetensors_pread(file, tensor, first, piece, buffer));
        for (int64_t i = 0; i < piece; i++)
            out[i] = (float)buffer[i] / 127.5f - 1;
        first += piece;
        count -= piece;
        out += piece;
    }
    return HD_OK;
}

hd_status hdi_video_dataset_read_latents(const hdi_video_dataset *dataset, int64_t sample,
                                         int64_t first_frame, int64_t frames, float *out)
{
    if (sample < 0 || sample >= dataset->info.count)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: asked for sample %" PRId64 ", it has %" PRId64,
                         dataset->index_path, sample, dataset->info.count);
    const hdi_video_sample_entry *entry = &dataset->samples[sample];
    const int64_t *dims = entry->view.dims, area = dims[2] * dims[3];
    if (first_frame < 0 || frames < 0 || first_frame > dims[1] || frames > dims[1] - first_frame)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: sample %" PRId64 ": asked for %" PRId64 " frames from %" PRId64
                         " on, it has %" PRId64,
                         dataset->index_path, sample, frames, first_frame, dims[1]);
    const hdi_safetensors *file = dataset->shards[entry->shard];
    const bool whole = frames == dims[1];
    const int64_t runs = whole ? 1 : dims[0];
    const int64_t count = whole ? entry->tensor->elements : frames * area;
    for (int64_t run = 0; run < runs; run++) {
        const int64_t first = (run * dims[1] + first_frame) * area;
        HD_RETURN_IF_ERROR(
            entry->tensor->dtype == HD_DTYPE_U8
                ? read_bytes_as_pixels(file, entry->tensor, first, count, out + run * count)
                : hdi_safetensors_read_f32(file, entry->tensor, first, count, out + run * count));
    }
    return HD_OK;
}

static hd_status check_text(const hdi_video_dataset *dataset, int64_t text)
{
    if (text >= 0 && text < dataset->info.texts) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT, "%s: asked for text %" PRId64 ", it has %" PRId64,
                     dataset->index_path, text, dataset->info.texts);
}

hd_status hdi_video_dataset_read_text(const hdi_video_dataset *dataset, int64_t text, float *out)
{
    HD_RETURN_IF_ERROR(check_text(dataset, text));
    const hdi_video_text_entry *entry = &dataset->texts[text];
    return hdi_safetensors_read_f32(dataset->shards[entry->shard], entry->tensor, 0,
                                    entry->tensor->elements, out);
}

hd_status hdi_video_dataset_read_pooled(const hdi_video_dataset *dataset, int64_t text, float *out)
{
    HD_RETURN_IF_ERROR(check_text(dataset, text));
    const hdi_video_text_entry *entry = &dataset->texts[text];
    if (!entry->pooled) return HD_OK;
    return hdi_safetensors_read_f32(dataset->shards[entry->shard], entry->pooled, 0,
                                    entry->pooled->elements, out);
}
