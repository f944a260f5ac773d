/* A checkpoint's weights as a Hugging Face folder. */
#include "core/clock.h"
#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "io/checkpoint.h"
#include "jobs/listing.h"
#include "jobs/progress.h"
#include "models/model.h"
#include "models/weights.h"
#include "program/program.h"

#include <heddle/job.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const int64_t default_shard_bytes = INT64_C(5000000000);

typedef struct conversion {
    hdi_checkpoint *checkpoint;
    hd_model *model;
    hd_program *program; /* the whole model, which declares all parameters */
    const hd_parameter_options **parameters;
    int count;
    hdi_model_tensor *tensors; /* owned */
    int *shards;               /* of each tensor; owned */
    int tensor_count, shard_count;
    int64_t bytes;             /* of all tensors */
    const char *folder, *kind; /* "weights" or "ema" */
    hdi_teller teller;
    int64_t tensors_done, bytes_done; /* written */
} conversion;

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "convert: out of host memory");
}

static int64_t elements_of(const hd_parameter_options *parameter)
{
    int64_t elements = 1;
    for (int i = 0; i < parameter->rank; i++)
        elements *= parameter->dims[i];
    return elements;
}

/* The model that the checkpoint's state describes, built whole for its parameters' names. */
static hd_status open_model(conversion *it)
{
    const char *folder = hdi_checkpoint_folder(it->checkpoint);
    json_t *state = json_loads(hdi_checkpoint_state(it->checkpoint), 0, NULL);
    json_t *config = json_object_get(state, "model");
    hd_status status = config ? hdi_model_create(config, &it->model)
                              : hdi_error(HD_ERROR_FORMAT,
                                          "%s: its state does not say which model it holds (key "
                                          "\"model\")",
                                          folder);
    json_decref(state);
    if (status == HD_OK)
        status = hd_program_create(&(hd_program_options){.name = "convert"}, &it->program);
    if (status != HD_OK) return status;
    const hd_stage whole = hdi_model_whole(it->model, HD_PURPOSE_EVALUATE);
    hd_model_build(it->model, it->program, &whole, (hd_tensor){0});
    return hd_program_finish(it->program);
}

static bool is_listed(const conversion *it, const char *name)
{
    for (int i = 0; i < it->count; i++)
        if (strcmp(it->parameters[i]->name, name) == 0) return true;
    return false;
}

/* Each parameter once. */
static hd_status list_parameters(conversion *it)
{
    it->parameters = hdi_alloc_array((size_t)it->program->use_count + 1, sizeof *it->parameters);
    if (!it->parameters) return out_of_memory();
    for (int i = 0; i < it->program->use_count; i++) {
        const hd_parameter_options *parameter = &it->program->uses[i].options;
        if (!is_listed(it, parameter->name)) it->parameters[it->count++] = parameter;
    }
    return hdi_model_list_tensors(it->parameters, it->count, &it->tensors, &it->tensor_count);
}

/* Put the tensors into shards, in order. */
static hd_status cut_shards(conversion *it, int64_t shard_bytes)
{
    it->shards = hdi_alloc_array((size_t)it->tensor_count + 1, sizeof *it->shards);
    if (!it->shards) return out_of_memory();
    int64_t in_shard = 0;
    for (int i = 0; i < it->tensor_count; i++) {
        const int64_t bytes = it->tensors[i].elements * (int64_t)sizeof(float);
        if (i == 0 || in_shard + bytes > shard_bytes) {
            it->shard_count++;
            in_shard = 0;
        }
        in_shard += bytes;
        it->bytes += bytes;
        it->shards[i] = it->shard_count - 1;
    }
    return HD_OK;
}

static void shard_name(const conversion *it, int shard, char out[64])
{
    if (it->shard_count == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, it->shard_count);
}

/* hdi_model_values_fn: of the checkpoint. */
static hd_status read_values(void *user, int parameter, int64_t first, int64_t count, float *out)
{
    const conversion *it = user;
    const hd_parameter_options *options = it->parameters[parameter];
    const int64_t elements = elements_of(options);
    char *name = hdi_format("%s/%s", it->kind, options->name);
    if (!name) return out_of_memory();
    const hdi_checkpoint_tensor *tensor = hdi_checkpoint_find(it->checkpoint, name);
    hd_status status =
        tensor && tensor->elements == elements
            ? hdi_checkpoint_read(it->checkpoint, name, first, count, HD_DTYPE_F32, out)
            : hdi_error(HD_ERROR_FORMAT,
                        "%s: tensor \"%s\" has %" PRId64 " elements, want %" PRId64,
                        hdi_checkpoint_folder(it->checkpoint), name, tensor ? tensor->elements : 0,
                        elements);
    hdi_free(name);
    return status;
}

static hd_status write_tensor(conversion *it, hdi_safetensors_writer *writer,
                              const hdi_model_tensor *tensor)
{
    float *values = hdi_alloc_array((size_t)tensor->elements, sizeof *values);
    hd_status status = values ? HD_OK : out_of_memory();
    if (status == HD_OK)
        status = hdi_model_fill_tensor(tensor, it->parameters, it->count, read_values, it, values);
    if (status == HD_OK)
        status =
            hdi_safetensors_writer_write(writer, values, (size_t)tensor->elements * sizeof *values);
    hdi_free(values);
    return status;
}

/* What is left is told by bytes, since tensors differ. */
static void tell(conversion *it, const hdi_model_tensor *tensor)
{
    const int64_t bytes = tensor->elements * (int64_t)sizeof(float);
    it->tensors_done++;
    it->bytes_done += bytes;
    const hd_progress progress = {
        .unit = "tensor", .step = it->tensors_done, .steps = it->tensor_count, .rate_unit = "B"};
    hdi_tell(&it->teller, &progress, bytes, it->bytes - it->bytes_done);
}

static hd_status write_tensors(conversion *it, int shard, hdi_safetensors_writer *writer,
                               const char *path)
{
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_metadata(writer, "format", "pt"));
    for (int i = 0; i < it->tensor_count; i++)
        if (it->shards[i] == shard)
            HD_RETURN_IF_ERROR(hdi_safetensors_writer_tensor(writer, it->tensors[i].name,
                                                             HD_DTYPE_F32, it->tensors[i].rank,
                                                             it->tensors[i].dims));
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_prepare(writer));
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_begin(writer, path));
    for (int i = 0; i < it->tensor_count; i++)
        if (it->shards[i] == shard) {
            HD_RETURN_IF_ERROR(write_tensor(it, writer, &it->tensors[i]));
            tell(it, &it->tensors[i]);
        }
    return hdi_safetensors_writer_end(writer);
}

/* One file, under its name only when it is whole. */
static hd_status write_shard(conversion *it, int shard)
{
    char name[64];
    shard_name(it, shard, name);
    char *path = hdi_format("%s/%s", it->folder, name);
    char *temporary = hdi_format("%s/%s.tmp", it->folder, name);
    hdi_safetensors_writer *writer = NULL;
    hd_status status = path && temporary ? hdi_safetensors_writer_create(&writer) : out_of_memory();
    if (status == HD_OK) status = write_tensors(it, shard, writer, temporary);
    if (status == HD_OK) status = hdi_file_rename(temporary, path);
    if (status != HD_OK && temporary) {
        hdi_safetensors_writer_cancel(writer);
        remove(temporary);
    }
    hdi_safetensors_writer_destroy(writer);
    hdi_free(temporary);
    hdi_free(path);
    return status;
}

static hd_status write_text(const conversion *it, const char *name, const char *text)
{
    char *path = hdi_format("%s/%s", it->folder, name);
    const hd_status status = path && text ? hdi_file_write_text(path, text) : out_of_memory();
    hdi_free(path);
    return status;
}

/* model.safetensors.index.json: which tensor is in which shard. */
static hd_status write_index(const conversion *it)
{
    hdi_text text = {0};
    hdi_text_printf(&text, "{\n  \"metadata\": {\"total_size\": %" PRId64 "},\n  \"weight_map\": {",
                    it->bytes);
    const char *separator = "";
    for (int i = 0; i < it->tensor_count; i++) {
        char file[64];
        shard_name(it, it->shards[i], file);
        hdi_text_printf(&text, "%s\n    ", separator);
        hdi_text_append_json(&text, it->tensors[i].name);
        hdi_text_printf(&text, ": \"%s\"", file);
        separator = ",";
    }
    hdi_text_append(&text, "\n  }\n}\n");
    char *index = hdi_text_take(&text);
    const hd_status status = write_text(it, "model.safetensors.index.json", index);
    hdi_free(index);
    return status;
}

/* Whether the checkpoint holds what is asked for at all. */
static hd_status check_kind(const conversion *it)
{
    char *name = hdi_format("%s/%s", it->kind, it->count ? it->parameters[0]->name : "");
    if (!name) return out_of_memory();
    const bool has = hdi_checkpoint_find(it->checkpoint, name) != NULL;
    hdi_free(name);
    if (has || strcmp(it->kind, "ema") != 0) return HD_OK;
    return hdi_error(HD_ERROR_CONFIG,
                     "%s: holds no average of the weights: it was saved with train.ema 0",
                     hdi_checkpoint_folder(it->checkpoint));
}

static hd_status check_folder(const char *folder)
{
    static const char *const names[] = {"config.json", "model.safetensors",
                                        "model.safetensors.index.json"};
    HD_RETURN_IF_ERROR(hdi_directory_create(folder));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *path = hdi_path_join(folder, names[i]);
        if (!path) return out_of_memory();
        const bool exists = hdi_file_exists(path);
        hdi_free(path);
        if (exists)
            return hdi_error(HD_ERROR_IO, "%s: holds a %s already, want a folder without a model",
                             folder, names[i]);
    }
    return HD_OK;
}

/* config.json comes last: a folder with one is whole. */
static hd_status write_folder(conversion *it)
{
    for (int shard = 0; shard < it->shard_count; shard++)
        HD_RETURN_IF_ERROR(write_shard(it, shard));
    if (it->shard_count > 1) HD_RETURN_IF_ERROR(write_index(it));
    return write_text(it, "config.json", hd_model_config_json(it->model));
}

hd_status hd_convert_run(const char *checkpoint, const char *directory,
                         const hd_convert_options *options, hd_write_fn write, void *user)
{
    const int64_t shard_bytes = options ? options->shard_bytes : 0;
    if (!checkpoint || !directory || !write || shard_bytes < 0)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "convert: a path is NULL, write is, or shard_bytes < 0");
    hdi_listing to = {.write = write, .user = user};
    conversion it = {.folder = directory,
                     .kind = options && options->ema ? "ema" : "weights",
                     .teller = {.progress = options ? options->progress : NULL, .user = user}};
    char *warning = NULL;
    hd_status status = hdi_checkpoint_open(checkpoint, NULL, &warning, &it.checkpoint);
    if (warning) hdi_list(&to, "warning: %s\n", warning);
    hdi_free(warning);
    if (status == HD_OK) status = open_model(&it);
    if (status == HD_OK) status = list_parameters(&it);
    if (status == HD_OK) status = check_kind(&it);
    if (status == HD_OK) status = cut_shards(&it, shard_bytes ? shard_bytes : default_shard_bytes);
    if (status == HD_OK) status = check_folder(directory);
    it.teller.last = hdi_clock_seconds();
    if (status == HD_OK) status = write_folder(&it);
    if (status == HD_OK)
        hdi_list(&to, "%s: step %" PRId64 " of %s, %d parameters, %" PRId64 " bytes in %d file%s\n",
                 directory, hdi_checkpoint_step(it.checkpoint), hd_model_type(it.model), it.count,
                 it.bytes, it.shard_count, it.shard_count == 1 ? "" : "s");
    hdi_free(it.parameters);
    hdi_free(it.tensors);
    hdi_free(it.shards);
    hd_program_destroy(it.program);
    hd_model_destroy(it.model);
    hdi_checkpoint_close(it.checkpoint);
    return status == HD_OK ? hdi_list_end(&to) : status;
}
