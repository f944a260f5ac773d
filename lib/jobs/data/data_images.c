/* PNG images as clips of one frame; the scaling that images and arrays of them share. */
#include "jobs/data/data.h"

#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "report/png.h"

/* Pixel `at` of an axis covers begin .. end of the source. */
typedef struct span {
    double begin, end;
} span;

static span span_of(int64_t at, double first, double step)
{
    return (span){first + (double)at * step, first + (double)(at + 1) * step};
}

static double overlap(span it, int64_t pixel)
{
    const double begin = it.begin > (double)pixel ? it.begin : (double)pixel;
    const double end = it.end < (double)(pixel + 1) ? it.end : (double)(pixel + 1);
    return end > begin ? end - begin : 0;
}

static float average(const float *pixels, int64_t height, int64_t width, span rows, span columns)
{
    double sum = 0, weight = 0;
    for (int64_t y = (int64_t)rows.begin; y < height && (double)y < rows.end; y++)
        for (int64_t x = (int64_t)columns.begin; x < width && (double)x < columns.end; x++) {
            const double cover = overlap(rows, y) * overlap(columns, x);
            sum += cover * (double)pixels[y * width + x];
            weight += cover;
        }
    return (float)(weight > 0 ? sum / weight : 0);
}

void hdi_data_resize(const float *pixels, int64_t height, int64_t width, int64_t wanted_height,
                     int64_t wanted_width, float *out)
{
    const double by_height = (double)height / (double)wanted_height;
    const double by_width = (double)width / (double)wanted_width;
    const double step = by_height < by_width ? by_height : by_width;
    const double top = ((double)height - step * (double)wanted_height) / 2;
    const double left = ((double)width - step * (double)wanted_width) / 2;
    for (int64_t c = 0; c < 3; c++)
        for (int64_t y = 0; y < wanted_height; y++)
            for (int64_t x = 0; x < wanted_width; x++)
                out[(c * wanted_height + y) * wanted_width + x] = average(
                    pixels + c * height * width, height, width, span_of(y, top > 0 ? top : 0, step),
                    span_of(x, left > 0 ? left : 0, step));
}

static hd_status append_image(hdi_data_job *job, const hdi_data_file *file)
{
    float *pixels;
    int64_t height, width;
    HD_RETURN_IF_ERROR(hdi_png_read(file->path, &pixels, &height, &width));
    const int64_t wanted_height = job->options->height ? job->options->height : height;
    const int64_t wanted_width = job->options->width ? job->options->width : width;
    const size_t count = 3 * (size_t)wanted_height * (size_t)wanted_width;
    float *scaled = hdi_alloc_array(count, sizeof *scaled);
    hd_status status = HD_OK;
    if (!scaled) {
        status = hdi_error(HD_ERROR_MEMORY, "%s: no memory for it", file->path);
    } else {
        if (wanted_height == height && wanted_width == width)
            memcpy(scaled, pixels, count * sizeof *scaled);
        else
            hdi_data_resize(pixels, height, width, wanted_height, wanted_width, scaled);
        for (size_t i = 0; i < count; i++)
            scaled[i] = 2 * scaled[i] - 1;
        status = hdi_data_append(job, 1, wanted_height, wanted_width, file->class_index, 0, scaled);
    }
    hdi_free(scaled);
    hdi_free(pixels);
    return status;
}

hd_status hdi_data_images(hdi_data_job *job)
{
    static const char *const endings[] = {"png", NULL};
    hdi_data_files files = {0};
    hd_status status = hdi_data_find_files(job, endings, &files);
    if (status == HD_OK) status = hdi_data_begin_pixels(job);
    for (int i = 0; i < files.count && status == HD_OK; i++)
        status = append_image(job, &files.files[i]);
    hdi_data_files_free(&files);
    return status;
}
