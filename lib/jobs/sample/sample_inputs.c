/* What comes into a sampling: text embeddings from safetensors files or a data set, given frames. */
#include "jobs/sample/sample.h"

#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "io/safetensors.h"
#include "io/video_dataset.h"
#include "jobs/null_text.h"

#include <inttypes.h>
#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "sample: out of host memory");
}

/* "a/b/cat.safetensors" is "cat". */
static char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    return hdi_format("%.*s", dot && dot > name ? (int)(dot - name) : (int)strlen(name), name);
}

/* A class of a data set as a file's name. */
static char *file_name(const char *text, int64_t index)
{
    char *name = *text ? hdi_strdup(text) : hdi_format("text-%" PRId64, index);
    for (char *c = name; c && *c; c++)
        if (strchr("/ \t\n\\", *c)) *c = '-';
    return name;
}

/* Take over a text; `name` is owned, also on failure, and NULL for a negative text, which come after
 * all others. */
static hd_status add_text(hdi_sample_inputs *inout, char *name, const hd_sampler_text *text)
{
    const int place = inout->count + inout->negatives;
    bool ok = HDI_GROW(inout->texts, place, inout->capacity);
    if (ok && name && !HDI_GROW(inout->names, inout->count, inout->name_capacity)) ok = false;
    if (!ok) {
        hdi_free(name);
        return out_of_memory();
    }
    for (int i = 0; i < inout->count && name; i++) {
        if (strcmp(inout->names[i], name) != 0) continue;
        hd_status status =
            hdi_error(HD_ERROR_CONFIG,
                      "sample.inputs: two inputs are called \"%s\", want different names, which "
                      "the results get",
                      name);
        hdi_free(name);
        return status;
    }
    inout->texts[place] = *text;
    if (name)
        inout->names[inout->count++] = name;
    else
        inout->negatives++;
    return HD_OK;
}

static void free_text(const hd_sampler_text *text)
{
    hdi_free((void *)(uintptr_t)text->text);
    hdi_free((void *)(uintptr_t)text->pooled);
}

static hd_status read_tensor(const hdi_safetensors *file, const char *name, int64_t columns,
                             int64_t most_rows, float **out, int64_t *rows)
{
    const hdi_safetensors_tensor *tensor = hdi_safetensors_find(file, name);
    const char *path = hdi_safetensors_path(file);
    if (!tensor)
        return hdi_error(HD_ERROR_FORMAT, "%s: no tensor \"%s\", want one of %" PRId64 " columns",
                         path, name, columns);
    *rows = tensor->elements / columns;
    if (tensor->rank < 1 || tensor->dims[tensor->rank - 1] != columns || *rows < 1 ||
        *rows > most_rows)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%s\" has %" PRId64 " elements in rows of %" PRId64
                         ", want 1..%" PRId64 " rows of %" PRId64,
                         path, name, tensor->elements,
                         tensor->rank ? tensor->dims[tensor->rank - 1] : 0, most_rows, columns);
    float *values = hdi_alloc_array((size_t)tensor->elements, sizeof *values);
    if (!values) return out_of_memory();
    *out = values;
    return hdi_safetensors_read_f32(file, tensor, 0, tensor->elements, values);
}

static hd_status read_file(const char *path, const hd_video_model *model, char *name,
                           hdi_sample_inputs *inout)
{
    hdi_safetensors *file = NULL;
    float *text = NULL, *pooled = NULL;
    hd_sampler_text one = {0};
    int64_t rows;
    hd_status status = hdi_safetensors_open(path, &file);
    if (status == HD_OK)
        status =
            read_tensor(file, "text", model->text_columns, model->text_tokens, &text, &one.tokens);
    if (status == HD_OK && model->pooled_columns)
        status = read_tensor(file, "pooled", model->pooled_columns, 1, &pooled, &rows);
    hdi_safetensors_close(file);
    one.text = text;
    one.pooled = pooled;
    if (status == HD_OK)
        status = add_text(inout, name, &one);
    else
        hdi_free(name);
    if (status != HD_OK) free_text(&one);
    return status;
}

static hd_status read_class(const hdi_video_dataset *dataset, int64_t index,
                            const hdi_video_dataset_info *info, char *name,
                            hdi_sample_inputs *inout)
{
    hd_sampler_text one = {.tokens = hdi_video_dataset_text(dataset, index)->tokens};
    float *text = hdi_alloc_array((size_t)(one.tokens * info->text_columns) + 1, sizeof *text);
    float *pooled = hdi_alloc_array((size_t)info->pooled_columns + 1, sizeof *pooled);
    one.text = text;
    one.pooled = pooled;
    hd_status status =
        text && pooled ? hdi_video_dataset_read_text(dataset, index, text) : out_of_memory();
    if (status == HD_OK && info->pooled_columns)
        status = hdi_video_dataset_read_pooled(dataset, index, pooled);
    if (status == HD_OK)
        status = add_text(inout, name, &one);
    else
        hdi_free(name);
    if (status != HD_OK) free_text(&one);
    return status;
}

static hd_status check_dataset(const char *path, const hdi_video_dataset_info *info,
                               const hd_video_model *model)
{
    if (info->text_columns == model->text_columns &&
        (info->pooled_columns == model->pooled_columns || !model->pooled_columns))
        return HD_OK;
    return hdi_error(HD_ERROR_FORMAT,
                     "%s: texts of %" PRId64 " and %" PRId64 " pooled columns, want %" PRId64
                     " and %" PRId64 " as the model reads them",
                     path, info->text_columns, info->pooled_columns, model->text_columns,
                     model->pooled_columns);
}

/* All texts of a data set but the empty one, or that one alone, if there is one. */
static hd_status read_dataset(const char *path, const hd_video_model *model, bool empty_one,
                              hdi_sample_inputs *inout)
{
    hdi_video_dataset *dataset;
    hdi_video_dataset_info info;
    HD_RETURN_IF_ERROR(hdi_video_dataset_open(path, &dataset));
    hdi_video_dataset_get_info(dataset, &info);
    hd_status status = check_dataset(path, &info, model);
    for (int64_t t = 0; t < info.texts && status == HD_OK; t++) {
        if ((t == info.null_text) != empty_one) continue;
        char *name = empty_one ? NULL : file_name(hdi_video_dataset_text(dataset, t)->name, t);
        status = read_class(dataset, t, &info, name, inout);
    }
    hdi_video_dataset_close(dataset);
    return status;
}

static bool is_dataset(const char *path)
{
    char *index = hdi_path_join(path, "index.json");
    const bool is = index && hdi_file_exists(index);
    hdi_free(index);
    return is;
}

static hd_status read_folder(const char *path, const hd_video_model *model,
                             hdi_sample_inputs *inout)
{
    static const char ending[] = ".safetensors";
    hdi_name_list names;
    HD_RETURN_IF_ERROR(hdi_directory_list(path, &names));
    hd_status status = HD_OK;
    for (int i = 0; i < names.count && status == HD_OK; i++) {
        const size_t length = strlen(names.names[i]);
        if (length < sizeof ending ||
            strcmp(names.names[i] + length - (sizeof ending - 1), ending) != 0)
            continue;
        char *file = hdi_path_join(path, names.names[i]);
        status = file ? read_file(file, model, base_name(file), inout) : out_of_memory();
        hdi_free(file);
    }
    hdi_name_list_free(&names);
    return status;
}

/* The weights' text for none, for each input as many of its rows as that has. */
static hd_status take_null_text(const hd_video_model *model, const char *weights,
                                hdi_sample_inputs *inout)
{
    if (!weights) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_null_text_read(model, weights, 0, &inout->null_text));
    for (int i = 0; i < inout->count && inout->null_text; i++) {
        const hd_sampler_text text = {.text = inout->null_text, .tokens = inout->texts[i].tokens};
        if (text.tokens > model->text_tokens)
            return hdi_error(HD_ERROR_CONFIG,
                             "sample.inputs: \"%s\" has %" PRId64
                             " text tokens, want at most the model's %" PRId64,
                             inout->names[i], text.tokens, model->text_tokens);
        HD_RETURN_IF_ERROR(add_text(inout, NULL, &text));
    }
    return HD_OK;
}

/* Where none is given: the data set's that the inputs are of, or that of the weights. */
static hd_status find_negative(const char *first, const hd_video_model *model, const char *weights,
                               hdi_sample_inputs *out)
{
    if (is_dataset(first)) HD_RETURN_IF_ERROR(read_dataset(first, model, true, out));
    if (out->negatives == 0) HD_RETURN_IF_ERROR(take_null_text(model, weights, out));
    if (out->negatives > 0) return HD_OK;
    return hdi_error(HD_ERROR_CONFIG,
                     "sample.negative: empty, but this model is guided by a negative text; give "
                     "the embedding of one (of the empty prompt), or set sample.guidance to 1");
}

static hd_status read_negative(const hd_config *config, const char *first,
                               const hd_video_model *model, const char *weights,
                               hdi_sample_inputs *out)
{
    const char *path = hdi_config_string(config->values, "sample.negative");
    if (!*path) return find_negative(first, model, weights, out);
    if (!hdi_is_directory(path)) return read_file(path, model, NULL, out);
    if (is_dataset(path)) {
        HD_RETURN_IF_ERROR(read_dataset(path, model, true, out));
        if (out->negatives > 0) return HD_OK;
        return hdi_error(HD_ERROR_CONFIG,
                         "sample.negative: %s has no text for the empty prompt; give one, or "
                         "set sample.guidance to 1",
                         path);
    }
    const int count = out->count;
    for (int i = 0; i < count; i++) {
        char *file = hdi_format("%s/%s.safetensors", path, out->names[i]);
        const hd_status status = file ? read_file(file, model, NULL, out) : out_of_memory();
        hdi_free(file);
        HD_RETURN_IF_ERROR(status);
    }
    return HD_OK;
}

static hd_status list_lengths(hdi_sample_inputs *out)
{
    const int texts = out->count + out->negatives;
    out->lengths = hdi_alloc_array((size_t)texts, sizeof *out->lengths);
    if (!out->lengths) return out_of_memory();
    for (int t = 0; t < texts; t++) {
        bool known = false;
        for (int l = 0; l < out->length_count; l++)
            known = known || out->lengths[l] == out->texts[t].tokens;
        if (!known) out->lengths[out->length_count++] = out->texts[t].tokens;
    }
    return HD_OK;
}

hd_status hdi_sample_inputs_read(const hd_config *config, const hd_video_model *model,
                                 const char *weights, bool wants_negative, hdi_sample_inputs *out)
{
    int count;
    const char *const *paths = hdi_config_string_list(config->values, "sample.inputs", &count);
    for (int i = 0; i < count; i++) {
        if (is_dataset(paths[i]))
            HD_RETURN_IF_ERROR(read_dataset(paths[i], model, false, out));
        else if (hdi_is_directory(paths[i]))
            HD_RETURN_IF_ERROR(read_folder(paths[i], model, out));
        else
            HD_RETURN_IF_ERROR(read_file(paths[i], model, base_name(paths[i]), out));
    }
    if (out->count == 0)
        return hdi_error(HD_ERROR_CONFIG,
                         "sample.inputs: no texts, want safetensors files with tensors \"text\" "
                         "and \"pooled\", a folder of them, or a data set with texts");
    if (wants_negative) HD_RETURN_IF_ERROR(read_negative(config, paths[0], model, weights, out));
    return list_lengths(out);
}

/* Beside the latents, such models read which frames are given, in one mask or in several alike, then
 * those frames. */
static hd_status make_condition(const hdi_sample_settings *settings, hdi_sample_inputs *inout)
{
    const int64_t channels = settings->model->channels, frames = settings->shape.frames;
    const int64_t masks = settings->model->condition_masks;
    const int64_t plane = settings->shape.height * settings->shape.width;
    if (settings->model->condition_channels == 0) return HD_OK;
    inout->condition =
        hdi_alloc_array((size_t)((masks + channels) * frames * plane), sizeof(float));
    if (!inout->condition) return out_of_memory();
    for (int64_t c = 0; c < masks + channels; c++)
        for (int64_t f = 0; f < frames; f++) {
            float *out = inout->condition + (c * frames + f) * plane;
            if (!inout->given_frames[f]) continue;
            for (int64_t i = 0; i < plane && c < masks; i++)
                out[i] = 1;
            if (c >= masks)
                memcpy(out, inout->given + ((c - masks) * frames + f) * plane,
                       (size_t)plane * sizeof *out);
        }
    return HD_OK;
}

hd_status hdi_sample_inputs_read_given(const char *path, const hdi_sample_settings *settings,
                                       hdi_sample_inputs *inout)
{
    const int64_t frames = settings->shape.frames;
    const int64_t rows = settings->model->channels * frames * settings->shape.height;
    hdi_safetensors *file = NULL;
    float *mask = NULL;
    int64_t got = 0, masks = 0;
    HD_RETURN_IF_ERROR(hdi_safetensors_open(path, &file));
    hd_status status =
        read_tensor(file, "latents", settings->shape.width, rows, &inout->given, &got);
    if (status == HD_OK && got != rows)
        status =
            hdi_error(HD_ERROR_FORMAT,
                      "%s: \"latents\" has %" PRId64 " rows of pixels, want %" PRId64 ": %" PRId64
                      " channels, %" PRId64 " frames, height %" PRId64,
                      path, got, rows, settings->model->channels, frames, settings->shape.height);
    if (status == HD_OK) status = read_tensor(file, "mask", frames, 1, &mask, &masks);
    if (status == HD_OK) {
        inout->given_frames = hdi_alloc_array((size_t)frames, sizeof *inout->given_frames);
        if (!inout->given_frames) status = out_of_memory();
    }
    for (int64_t f = 0; f < frames && status == HD_OK; f++)
        inout->given_frames[f] = mask[f] > 0.5f;
    if (status == HD_OK) status = make_condition(settings, inout);
    hdi_free(mask);
    hdi_safetensors_close(file);
    return status;
}

void hdi_sample_inputs_free(hdi_sample_inputs *inputs)
{
    for (int t = 0; t < inputs->count + inputs->negatives && inputs->texts; t++)
        if (inputs->texts[t].text != inputs->null_text) free_text(&inputs->texts[t]);
    for (int i = 0; i < inputs->count; i++)
        hdi_free(inputs->names[i]);
    hdi_free(inputs->texts);
    hdi_free(inputs->names);
    hdi_free(inputs->lengths);
    hdi_free(inputs->null_text);
    hdi_free(inputs->given);
    hdi_free(inputs->condition);
    hdi_free(inputs->given_frames);
    *inputs = (hdi_sample_inputs){0};
}
