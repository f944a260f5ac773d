/* Models from configurations and presets. */
#include "models/model.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "program/program.h"

#include <string.h>

static const hdi_model_family *const families[] = {&hdi_gpt2, &hdi_llama};

enum { FAMILIES = sizeof families / sizeof families[0] };

static const struct {
    const char *name, *json;
} presets[] = {
    {"gpt2-tiny", "{\"model_type\": \"gpt2\", \"vocab_size\": 256, \"n_positions\": 256, "
                  "\"n_embd\": 128, \"n_layer\": 4, \"n_head\": 4}"},
    {"gpt2", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_positions\": 1024, "
             "\"n_embd\": 768, \"n_layer\": 12, \"n_head\": 12}"},
    {"gpt2-medium", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_positions\": 1024, "
                    "\"n_embd\": 1024, \"n_layer\": 24, \"n_head\": 16}"},
    {"gpt2-large", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_positions\": 1024, "
                   "\"n_embd\": 1280, \"n_layer\": 36, \"n_head\": 20}"},
    {"gpt2-xl", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_positions\": 1024, "
                "\"n_embd\": 1600, \"n_layer\": 48, \"n_head\": 25}"},
    {"llama-tiny", "{\"model_type\": \"llama\", \"vocab_size\": 256, \"hidden_size\": 128, "
                   "\"intermediate_size\": 352, \"num_hidden_layers\": 4, "
                   "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
                   "\"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-5}"},
    {"llama-160m", "{\"model_type\": \"llama\", \"vocab_size\": 32000, \"hidden_size\": 768, "
                   "\"intermediate_size\": 3072, \"num_hidden_layers\": 12, "
                   "\"num_attention_heads\": 12, \"max_position_embeddings\": 2048, "
                   "\"rms_norm_eps\": 1e-6}"},
    {"llama-7b", "{\"model_type\": \"llama\", \"vocab_size\": 32000, \"hidden_size\": 4096, "
                 "\"intermediate_size\": 11008, \"num_hidden_layers\": 32, "
                 "\"num_attention_heads\": 32, \"max_position_embeddings\": 4096, "
                 "\"rms_norm_eps\": 1e-5}"},
};

enum { PRESETS = sizeof presets / sizeof presets[0] };

const char *hd_model_preset(int index)
{
    return index >= 0 && index < PRESETS ? presets[index].name : NULL;
}

static hd_status sum_parameters(const hd_program *program, int64_t *out)
{
    *out = 0;
    for (int i = 0; i < program->use_count; i++) {
        bool seen = false;
        for (int j = 0; j < i && !seen; j++)
            seen = strcmp(program->uses[j].name, program->uses[i].name) == 0;
        const int64_t elements = hd_tensor_get(program, program->uses[i].tensor)->elements;
        if (!seen && !hdi_add_i64(*out, elements, out))
            return hdi_error(HD_ERROR_CONFIG, "model config: more than 2^63 parameters");
    }
    return HD_OK;
}

/* Build the model once, for one token: a configuration that cannot be built is refused here, and
 * the parameters are counted as they will be declared. */
static hd_status count_parameters(hd_model *model)
{
    hd_program *program;
    HD_RETURN_IF_ERROR(
        hd_program_create(&(hd_program_options){.name = model->family->type}, &program));
    const hd_stage whole = {.purpose = HD_PURPOSE_EVALUATE,
                            .layers = (int)model->config.layers,
                            .first = true,
                            .last = true,
                            .sequences = 1,
                            .tokens = 1};
    model->family->build(&model->config, program, &whole, (hd_tensor){0});
    hd_status status = hd_program_finish(program);
    if (status == HD_OK) status = sum_parameters(program, &model->parameters);
    hd_program_destroy(program);
    return status;
}

static hd_status find_family(const json_t *object, const hdi_model_family **out)
{
    const char *type = NULL;
    if (!json_is_object(object))
        return hdi_error(HD_ERROR_CONFIG, "model config: it is no object, want one");
    HD_RETURN_IF_ERROR(hdi_model_read_string(object, "model_type", &type));
    for (int i = 0; i < FAMILIES && type; i++) {
        *out = families[i];
        if (strcmp(families[i]->type, type) == 0) return HD_OK;
    }
    return hdi_error(HD_ERROR_CONFIG,
                     "model config: \"model_type\" is %s%s%s, want \"gpt2\" or \"llama\"",
                     type ? "\"" : "", type ? type : "missing", type ? "\"" : "");
}

hd_status hdi_model_create(const json_t *object, hd_model **out)
{
    *out = NULL;
    hd_model *model = hdi_alloc(sizeof *model);
    if (!model) return hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
    hd_status status = find_family(object, &model->family);
    if (status == HD_OK) status = model->family->read(object, &model->config);
    if (status == HD_OK) status = count_parameters(model);
    if (status == HD_OK) {
        hdi_text text = {0};
        model->family->write(&model->config, &text);
        model->json = hdi_text_take(&text);
        if (!model->json) status = hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
    }
    if (status != HD_OK) {
        hd_model_destroy(model);
        return status;
    }
    *out = model;
    return HD_OK;
}

hd_status hd_model_create_json(const char *text, hd_model **out)
{
    *out = NULL;
    json_error_t error;
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!object)
        return hdi_error(HD_ERROR_CONFIG, "model config: line %d, column %d: %s", error.line,
                         error.column, error.text);
    hd_status status = hdi_model_create(object, out);
    json_decref(object);
    return status;
}

hd_status hd_model_create_preset(const char *name, hd_model **out)
{
    *out = NULL;
    hdi_text names = {0};
    for (int i = 0; i < PRESETS; i++) {
        if (strcmp(presets[i].name, name) == 0) {
            hdi_text_free(&names);
            return hd_model_create_json(presets[i].json, out);
        }
        hdi_text_printf(&names, "%s%s", i ? ", " : "", presets[i].name);
    }
    hd_status status = hdi_error(HD_ERROR_CONFIG, "model preset '%s' is unknown, want one of %s",
                                 name, names.data ? names.data : "");
    hdi_text_free(&names);
    return status;
}

void hd_model_destroy(hd_model *model)
{
    if (!model) return;
    hdi_free(model->json);
    hdi_free(model);
}

const char *hd_model_type(const hd_model *model)
{
    return model->family->type;
}

int hd_model_layers(const hd_model *model)
{
    return (int)model->config.layers;
}

int64_t hd_model_vocab(const hd_model *model)
{
    return model->config.vocab;
}

int64_t hd_model_hidden(const hd_model *model)
{
    return model->config.hidden;
}

int64_t hd_model_max_tokens(const hd_model *model)
{
    return model->config.max_tokens;
}

int64_t hd_model_parameters(const hd_model *model)
{
    return model->parameters;
}

const char *hd_model_config_json(const hd_model *model)
{
    return model->json;
}

hd_tensor hd_model_build(void *model, hd_program *program, const hd_stage *stage, hd_tensor x)
{
    const hd_model *built = model;
    hdi_model_config config = built->config;
    return built->family->build(&config, program, stage, x);
}
