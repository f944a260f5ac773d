/* The model that weights belong to. */
#include "jobs/job_model.h"

#include "core/error.h"
#include "core/file.h"
#include "core/half.h"
#include "core/memory.h"
#include "io/checkpoint.h"
#include "io/weights_index.h"
#include "models/model.h"

#include <string.h>

enum { LARGEST_CONFIG = 1 << 20 };

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
}

/* The model that a checkpoint's state describes. */
static hd_status model_of_checkpoint(const char *path, hd_model **out)
{
    hdi_checkpoint *checkpoint;
    char *warning = NULL;
    HD_RETURN_IF_ERROR(hdi_checkpoint_open(path, NULL, &warning, &checkpoint));
    hdi_free(warning); /* loading the weights tells it again */
    json_t *state = json_loads(hdi_checkpoint_state(checkpoint), 0, NULL);
    const json_t *model = json_object_get(state, "model");
    hd_status status = model ? hdi_model_create(model, out)
                             : hdi_error(HD_ERROR_FORMAT, "its state has no \"model\", want the "
                                                          "configuration of one");
    if (status != HD_OK) hdi_error_context(status, "%s", hdi_checkpoint_folder(checkpoint));
    json_decref(state);
    hdi_checkpoint_close(checkpoint);
    return status;
}

/* The config.json in the folder, or beside the file. */
static char *config_path(const char *path)
{
    if (hdi_is_directory(path)) return hdi_path_join(path, "config.json");
    const char *slash = strrchr(path, '/');
    return hdi_format("%.*sconfig.json", slash ? (int)(slash + 1 - path) : 0, path);
}

/* Files of Hugging Face come with a config.json unless the configuration names a model. */
static hd_status model_of_files(const hd_config *config, const char *path, const char *key,
                                hd_model **out)
{
    if (!hdi_file_exists(path))
        return hdi_error(HD_ERROR_IO,
                         "%s: no such file or folder; want a run, a checkpoint, a Hugging Face "
                         "folder or a safetensors file (%s)",
                         path, key);
    const hdi_config *values = config->values;
    if (*hdi_config_string(values, "model.preset") || *hdi_config_string(values, "model.config"))
        return hdi_job_model(config, out);
    char *beside = config_path(path), *text = NULL;
    if (!beside) return out_of_memory();
    hd_status status = HD_OK;
    size_t bytes;
    if (!hdi_file_exists(beside))
        status = hdi_error(HD_ERROR_IO,
                           "%s holds no checkpoint, and there is no %s; give model.config or "
                           "model.preset",
                           path, beside);
    if (status == HD_OK) status = hdi_file_read_all(beside, LARGEST_CONFIG, &text, &bytes);
    if (status == HD_OK) {
        status = hd_model_create_json(text, out);
        if (status != HD_OK) hdi_error_context(status, "%s", beside);
    }
    hdi_free(text);
    hdi_free(beside);
    return status;
}

hd_status hdi_job_model_of(const hd_config *config, const char *path, const char *key,
                           hd_model **out)
{
    *out = NULL;
    if (hdi_checkpoint_exists(path)) return model_of_checkpoint(path, out);
    HD_RETURN_IF_ERROR(model_of_files(config, path, key, out));
    const hd_status status = hd_model_match_weights(*out, path);
    if (status == HD_OK) return HD_OK;
    hd_model_destroy(*out);
    *out = NULL;
    return status;
}

hd_status hdi_job_stored_dtype(const char *path, hd_dtype *out)
{
    *out = HD_DTYPE_F32;
    if (hdi_checkpoint_exists(path)) return HD_OK;
    hdi_weights *weights;
    HD_RETURN_IF_ERROR(hdi_weights_open(path, &weights));
    int64_t most = 0;
    for (int i = 0; i < hdi_weights_count(weights); i++) {
        const hdi_safetensors_tensor *tensor = hdi_weights_get(weights, i, NULL);
        if (tensor->elements <= most) continue;
        most = tensor->elements;
        *out = hdi_is_half(tensor->dtype) ? tensor->dtype : HD_DTYPE_F32;
    }
    hdi_weights_close(weights);
    return HD_OK;
}
