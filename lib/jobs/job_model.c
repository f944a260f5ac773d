/* A model from the keys of the configuration. */
#include "jobs/job_model.h"

#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "io/checkpoint.h"

#include <jansson.h>
#include <string.h>

enum { LARGEST_CONFIG = 1 << 20 };

/* A size of the configuration, and what each family calls it. */
static const struct {
    const char *key, *gpt2, *llama;
} sizes[] = {
    {"model.layers", "n_layer", "num_hidden_layers"},
    {"model.hidden", "n_embd", "hidden_size"},
    {"model.heads", "n_head", "num_attention_heads"},
    {"model.kv_heads", NULL, "num_key_value_heads"},
    {"model.intermediate", "n_inner", "intermediate_size"},
    {"model.vocab", "vocab_size", "vocab_size"},
    {"model.max_tokens", "n_positions", "max_position_embeddings"},
};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static hd_status read_file(const char *path, char **text)
{
    char *joined = hdi_is_directory(path) ? hdi_path_join(path, "config.json") : hdi_strdup(path);
    if (!joined) return hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
    char *data = NULL;
    size_t bytes = 0;
    hd_status status = hdi_file_read_all(joined, LARGEST_CONFIG, &data, &bytes);
    if (status == HD_OK && memchr(data, '\0', bytes))
        status = hdi_error(HD_ERROR_FORMAT, "%s: holds a NUL byte, want JSON text", joined);
    if (status == HD_OK) {
        *text = hdi_format("%.*s", (int)bytes, data);
        if (!*text) status = hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
    }
    hdi_free(data);
    hdi_free(joined);
    return status;
}

/* A model of sizes alone: what a family needs beyond what the configuration may say. */
static hd_status plain_text(const hdi_config *values, char **text)
{
    bool llama = strcmp(hdi_config_string(values, "model.family"), "llama") == 0;
    int64_t hidden = hdi_config_int(values, "model.hidden"),
            heads = hdi_config_int(values, "model.heads");
    if (hdi_config_int(values, "model.layers") < 1 || hidden < 1 || heads < 1)
        return hdi_error(
            HD_ERROR_CONFIG,
            "model: want model.preset, model.config, or model.layers, model.hidden and "
            "model.heads; seen neither of the first two, and %lld, %lld, %lld",
            (long long)hdi_config_int(values, "model.layers"), (long long)hidden, (long long)heads);
    long long tokens = (long long)hdi_config_int(values, "train.tokens");
    if (llama)
        *text = hdi_format(
            "{\"model_type\":\"llama\",\"vocab_size\":256,\"max_position_embeddings\":%lld,"
            "\"num_key_value_heads\":%lld,\"intermediate_size\":%lld,"
            "\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":false}",
            tokens, (long long)heads, (long long)((hidden * 8 / 3 + 63) / 64 * 64));
    else
        *text =
            hdi_format("{\"model_type\":\"gpt2\",\"vocab_size\":256,\"n_positions\":%lld}", tokens);
    return *text ? HD_OK : hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
}

static hd_status base_text(const hdi_config *values, char **text)
{
    const char *preset = hdi_config_string(values, "model.preset");
    const char *path = hdi_config_string(values, "model.config");
    if (*preset && *path)
        return hdi_error(
            HD_ERROR_CONFIG,
            "model: both model.preset ('%s') and model.config ('%s') are given, want one", preset,
            path);
    if (*path) return read_file(path, text);
    if (!*preset) return plain_text(values, text);
    hd_model *model;
    HD_RETURN_IF_ERROR(hd_model_create_preset(preset, &model));
    *text = hdi_strdup(hd_model_config_json(model));
    hd_model_destroy(model);
    return *text ? HD_OK : hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
}

static hd_status apply_sizes(const hdi_config *values, json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "model_type"));
    bool llama = type && strcmp(type, "llama") == 0, gpt2 = type && strcmp(type, "gpt2") == 0;
    for (int i = 0; i < SIZES; i++) {
        int64_t value = hdi_config_int(values, sizes[i].key);
        const char *name = llama ? sizes[i].llama : gpt2 ? sizes[i].gpt2 : NULL;
        if (value < 1) continue;
        if (!name)
            return hdi_error(HD_ERROR_CONFIG,
                             "%s: seen %lld, but family %s has no such size: give model.config",
                             sizes[i].key, (long long)value, type ? type : "of that config");
        if (json_object_set_new(object, name, json_integer(value)))
            return hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
    }
    return HD_OK;
}

/* Published weights say themselves how they are laid out; heddle's own have one layout. */
static hd_status match_weights(const hdi_config *values, hd_model *model)
{
    const char *path = hdi_config_string(values, "model.weights");
    if (!*path || !hdi_file_exists(path) || hdi_checkpoint_exists(path)) return HD_OK;
    return hd_model_match_weights(model, path);
}

hd_status hdi_job_model(const hd_config *config, hd_model **out)
{
    *out = NULL;
    char *text = NULL;
    HD_RETURN_IF_ERROR(base_text(config->values, &text));
    json_error_t error;
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    hdi_free(text);
    if (!json_is_object(object)) {
        json_decref(object);
        return hdi_error(HD_ERROR_FORMAT, "model.config: line %d: %s", error.line, error.text);
    }
    hd_status status = apply_sizes(config->values, object);
    char *changed = status == HD_OK ? json_dumps(object, JSON_SORT_KEYS) : NULL;
    json_decref(object);
    if (status != HD_OK) return status;
    if (!changed) return hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
    status = hd_model_create_json(changed, out);
    hdi_free_foreign(changed);
    if (status == HD_OK) status = match_weights(config->values, *out);
    if (status == HD_OK) return HD_OK;
    hd_model_destroy(*out);
    *out = NULL;
    return status;
}
