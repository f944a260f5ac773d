/* `heddle data`: makes a data set of images, videos, arrays or generated shapes. */
#include "jobs/data/data.h"

#include <inttypes.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "jobs/class_text.h"

enum { TEXT_COLUMNS = 32, SIDE = 24, FRAMES = 8, SAMPLES = 1024, FPS = 8, MOST_SIDE = 1 << 14 };

hd_status hdi_data_begin_pixels(hdi_data_job *job)
{
    const int64_t columns = job->classes.count ? job->options->text_columns : 0;
    const hdi_video_writer_options options = {.is_pixels = true,
                                              .channels = 3,
                                              .text_columns = columns,
                                              .pooled_columns = columns,
                                              .dtype = HD_DTYPE_U8,
                                              .shard_bytes = job->options->shard_bytes};
    HD_RETURN_IF_ERROR(hdi_video_writer_create(job->options->output, &options, &job->writer));
    if (columns == 0) return HD_OK;
    int64_t tokens = 1;
    for (int i = 0; i < job->classes.count; i++)
        if (hdi_class_words(job->classes.names[i]) > tokens)
            tokens = hdi_class_words(job->classes.names[i]);
    float *text = hdi_alloc_array((size_t)(tokens * columns), sizeof *text);
    float *pooled = hdi_alloc_array((size_t)columns, sizeof *pooled);
    hd_status status =
        text && pooled ? HD_OK : hdi_error(HD_ERROR_MEMORY, "no memory for texts of classes");
    for (int i = -1; i < job->classes.count && status == HD_OK; i++) {
        const char *name = i < 0 ? "" : job->classes.names[i];
        int64_t number;
        hdi_class_embed(name, tokens, columns, text, pooled);
        status = hdi_video_writer_text(job->writer, name, tokens, text, pooled, &number);
    }
    if (status == HD_OK) status = hdi_video_writer_null_text(job->writer, 0);
    hdi_free(text);
    hdi_free(pooled);
    return status;
}

hd_status hdi_data_append(hdi_data_job *job, int64_t frames, int64_t height, int64_t width,
                          int class_index, double fps, const float *pixels)
{
    const hdi_video_sample sample = {.dims = {3, frames, height, width},
                                     .text = class_index < 0 ? -1 : class_index + 1,
                                     .fps = fps};
    job->samples++;
    return hdi_video_writer_append(job->writer, &sample, pixels);
}

static bool ends_with(const char *name, const char *const *endings)
{
    const char *dot = strrchr(name, '.');
    for (; dot && *endings; endings++)
        if (strcasecmp(dot + 1, *endings) == 0) return true;
    return false;
}

static hd_status add_file(hdi_data_files *out, const char *path, int class_index)
{
    char *copy = hdi_strdup(path);
    if (!copy || !HDI_GROW(out->files, out->count, out->capacity)) {
        hdi_free(copy);
        return hdi_error(HD_ERROR_MEMORY, "%s: no memory for a list of files", path);
    }
    out->files[out->count++] = (hdi_data_file){copy, class_index};
    return HD_OK;
}

static hd_status class_of(hdi_data_job *job, const char *name, int *out)
{
    for (*out = 0; *out < job->classes.count; ++*out)
        if (strcmp(job->classes.names[*out], name) == 0) return HD_OK;
    char *copy = hdi_strdup(name);
    if (!copy || !HDI_GROW(job->classes.names, job->classes.count, job->classes.capacity)) {
        hdi_free(copy);
        return hdi_error(HD_ERROR_MEMORY, "%s: no memory for a list of classes", name);
    }
    job->classes.names[job->classes.count++] = copy;
    return HD_OK;
}

/* Files of a folder, and of its sub-folders if it has no class itself. */
static hd_status find_in_folder(hdi_data_job *job, const char *const *endings, const char *folder,
                                int class_index, hdi_data_files *out)
{
    hdi_name_list names;
    HD_RETURN_IF_ERROR(hdi_directory_list(folder, &names));
    hd_status status = HD_OK;
    for (int i = 0; i < names.count && status == HD_OK; i++) {
        char *path = hdi_path_join(folder, names.names[i]);
        if (!path)
            status = hdi_error(HD_ERROR_MEMORY, "%s: no memory for a list of files", folder);
        else if (hdi_is_directory(path) && class_index < 0) {
            int own;
            status = class_of(job, names.names[i], &own);
            if (status == HD_OK) status = find_in_folder(job, endings, path, own, out);
        } else if (!hdi_is_directory(path) && ends_with(path, endings))
            status = add_file(out, path, class_index);
        hdi_free(path);
    }
    hdi_name_list_free(&names);
    return status;
}

hd_status hdi_data_find_files(hdi_data_job *job, const char *const *endings, hdi_data_files *out)
{
    for (int i = 0; i < job->options->input_count; i++) {
        const char *input = job->options->inputs[i];
        HD_RETURN_IF_ERROR(hdi_is_directory(input) ? find_in_folder(job, endings, input, -1, out)
                                                   : add_file(out, input, -1));
    }
    if (out->count > 0) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT, "%s: no files that end in .%s, nor in its sub-folders",
                     job->options->input_count ? job->options->inputs[0] : "no input", endings[0]);
}

void hdi_data_files_free(hdi_data_files *files)
{
    for (int i = 0; i < files->count; i++)
        hdi_free(files->files[i].path);
    hdi_free(files->files);
    *files = (hdi_data_files){0};
}

static hd_status check(const hd_data_options *options)
{
    if (options->width < 0 || options->width > MOST_SIDE || options->height < 0 ||
        options->height > MOST_SIDE || options->frames < 0 || options->frames > MOST_SIDE ||
        options->stride < 0 || options->samples < 0 || options->samples > INT32_MAX ||
        options->text_columns < 0 || options->text_columns > MOST_SIDE ||
        options->shard_bytes < 0 || !(options->fps >= 0) || options->fps > 1000)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "data: %" PRId64 " frames of %" PRId64 " x %" PRId64
                         " pixels, stride %" PRId64 ", %" PRId64 " samples, %" PRId64
                         " text columns, %g frames a second: none "
                         "may be negative, sides and frames at most %d, 1000 frames a second",
                         options->frames, options->height, options->width, options->stride,
                         options->samples, options->text_columns, options->fps, MOST_SIDE);
    if ((options->width == 0) != (options->height == 0))
        return hdi_error(HD_ERROR_ARGUMENT,
                         "data: width is %" PRId64 " and height %" PRId64 ", want both or neither",
                         options->width, options->height);
    if (!options->output || !*options->output)
        return hdi_error(HD_ERROR_ARGUMENT, "data: want a folder for the data set");
    return HD_OK;
}

static hd_status finish(hdi_data_job *job)
{
    HD_RETURN_IF_ERROR(hdi_video_writer_finish(job->writer));
    hdi_list(job->listing, "%" PRId64 " samples", job->samples);
    if (job->classes.count) hdi_list(job->listing, " of %d classes", job->classes.count);
    hdi_list(job->listing, " are in %s\n", job->options->output);
    return hdi_list_end(job->listing);
}

hd_status hd_data_run(const hd_data_options *options, hd_write_fn write, void *user)
{
    static const struct {
        const char *name;
        hd_status (*run)(hdi_data_job *job);
    } kinds[] = {{"shapes", hdi_data_shapes},
                 {"images", hdi_data_images},
                 {"videos", hdi_data_videos},
                 {"arrays", hdi_data_arrays}};
    HD_RETURN_IF_ERROR(check(options));
    hd_data_options filled = *options;
    const bool is_shapes = options->kind && strcmp(options->kind, "shapes") == 0;
    if (!filled.text_columns) filled.text_columns = TEXT_COLUMNS;
    if (!filled.samples && is_shapes) filled.samples = SAMPLES;
    if (!filled.frames) filled.frames = FRAMES;
    if (!filled.stride) filled.stride = 1;
    if (!filled.width && is_shapes) filled.width = filled.height = SIDE;
    if (!(filled.fps > 0) && is_shapes) filled.fps = FPS;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (!options->kind || strcmp(kinds[i].name, options->kind) != 0) continue;
        hdi_listing listing = {.write = write, .user = user};
        hdi_data_job job = {.options = &filled, .listing = &listing};
        hd_status status = kinds[i].run(&job);
        if (status == HD_OK) status = finish(&job);
        hdi_video_writer_destroy(job.writer);
        hdi_name_list_free(&job.classes);
        return status;
    }
    return hdi_error(HD_ERROR_ARGUMENT,
                     "data: kind is \"%s\", want shapes, images, videos or arrays",
                     options->kind ? options->kind : "");
}
