/* Models from configurations and presets. */
#include "models/model.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "models/weights.h"
#include "program/program.h"

#include <string.h>

static const hdi_model_family *const families[] = {
    &hdi_gpt2, &hdi_llama, &hdi_hunyuan_video, &hdi_open_sora_2, &hdi_mmdit_pixels, &hdi_stdit3,
};

enum { FAMILIES = sizeof families / sizeof families[0] };

const char *hd_model_preset(int index)
{
    for (int f = 0; f < FAMILIES; f++) {
        const hdi_model_preset *preset = families[f]->presets;
        for (; preset && preset->name; preset++)
            if (index-- == 0) return preset->name;
    }
    return NULL;
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

hd_stage hdi_model_whole(const hd_model *model, hd_purpose purpose)
{
    const hdi_model_facts *facts = &model->facts;
    hd_stage stage = {.purpose = purpose,
                      .layers = (int)facts->layers,
                      .first = true,
                      .last = true,
                      .sequences = 1};
    if (facts->is_video)
        stage.video = (hd_video_shape){.frames = facts->video.patch[0],
                                       .height = facts->video.patch[1],
                                       .width = facts->video.patch[2],
                                       .text = 1,
                                       .masked_frames = facts->video.condition_channels > 0 ||
                                                        facts->video.frame_times,
                                       .steps = 1};
    else
        stage.tokens = 1;
    return stage;
}

/* Build the model once, as small as it gets: a configuration that cannot be built is refused here,
 * and the parameters are counted as they will be declared. */
static hd_status count_parameters(hd_model *model)
{
    hd_program *program;
    HD_RETURN_IF_ERROR(
        hd_program_create(&(hd_program_options){.name = model->family->type}, &program));
    const hd_stage whole = hdi_model_whole(model, HD_PURPOSE_EVALUATE);
    hd_model_build(model, program, &whole, (hd_tensor){0});
    hd_status status = hd_program_finish(program);
    if (status == HD_OK) status = sum_parameters(program, &model->parameters);
    hd_program_destroy(program);
    return status;
}

/* What the configuration says, and its text, anew. */
static hd_status describe(hd_model *model)
{
    hdi_text text = {0};
    model->family->write(model->config, &text);
    char *json = hdi_text_take(&text);
    if (!json) return hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
    hdi_free(model->json);
    model->json = json;
    model->facts = (hdi_model_facts){0};
    model->family->describe(model->config, &model->facts);
    return HD_OK;
}

static hd_status unknown_family(const char *type)
{
    hdi_text names = {0};
    for (int i = 0; i < FAMILIES; i++)
        hdi_text_printf(&names, "%s\"%s\"", i ? ", " : "", families[i]->type);
    const hd_status status = hdi_error(
        HD_ERROR_CONFIG, "model config: \"model_type\" is %s%s%s, want one of %s", type ? "\"" : "",
        type ? type : "missing", type ? "\"" : "", names.data ? names.data : "");
    hdi_text_free(&names);
    return status;
}

static hd_status find_family(const json_t *object, const hdi_model_family **out)
{
    const char *type = NULL, *class_name = NULL;
    if (!json_is_object(object))
        return hdi_error(HD_ERROR_CONFIG, "model config: it is no object, want one");
    HD_RETURN_IF_ERROR(hdi_model_read_string(object, "model_type", &type));
    HD_RETURN_IF_ERROR(hdi_model_read_string(object, "_class_name", &class_name));
    const char *said = type ? type : class_name;
    for (int i = 0; i < FAMILIES; i++) {
        *out = families[i];
        if (said && strcmp(families[i]->type, said) == 0) return HD_OK;
        if (said && families[i]->class_name && strcmp(families[i]->class_name, said) == 0)
            return HD_OK;
    }
    return unknown_family(said);
}

static hd_status fill(hd_model *model, const json_t *object)
{
    HD_RETURN_IF_ERROR(find_family(object, &model->family));
    model->config = hdi_alloc(model->family->config_bytes);
    if (!model->config) return hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
    HD_RETURN_IF_ERROR(model->family->read(object, model->config));
    HD_RETURN_IF_ERROR(describe(model));
    return count_parameters(model);
}

hd_status hdi_model_create(const json_t *object, hd_model **out)
{
    *out = NULL;
    hd_model *model = hdi_alloc(sizeof *model);
    if (!model) return hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
    const hd_status status = fill(model, object);
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
    for (int f = 0; f < FAMILIES; f++) {
        const hdi_model_preset *preset = families[f]->presets;
        for (; preset && preset->name; preset++) {
            if (strcmp(preset->name, name) == 0) {
                hdi_text_free(&names);
                return hd_model_create_json(preset->json, out);
            }
            hdi_text_printf(&names, "%s%s", names.data ? ", " : "", preset->name);
        }
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
    hdi_free(model->config);
    hdi_free(model);
}

/* Every tensor that is missing or has another shape is named in the error; those that the model does
 * not read are told in the log. */
static hd_status check_weights(const hd_model *model, const hdi_weights *weights)
{
    hd_program *program;
    HD_RETURN_IF_ERROR(
        hd_program_create(&(hd_program_options){.name = model->family->type}, &program));
    const hd_stage whole = hdi_model_whole(model, HD_PURPOSE_EVALUATE);
    hd_model_build((void *)(uintptr_t)model, program, &whole, (hd_tensor){0});
    hd_status status = hd_program_finish(program);
    const hd_parameter_options **all = hdi_alloc_array((size_t)program->use_count + 1, sizeof *all);
    if (status == HD_OK && !all) status = hdi_error(HD_ERROR_MEMORY, "model: out of host memory");
    for (int i = 0; all && i < program->use_count; i++)
        all[i] = &program->uses[i].options;
    hdi_text unused = {0};
    if (status == HD_OK) status = hdi_model_check_parameters(weights, all, program->use_count);
    if (status == HD_OK)
        status = hdi_model_unused_tensors(weights, all, program->use_count, &unused);
    if (status == HD_OK && unused.data)
        hdi_log(HD_LOG_WARN, "%s: tensors that a %s does not read: %s", hdi_weights_path(weights),
                model->family->type, unused.data);
    hdi_text_free(&unused);
    hdi_free(all);
    hd_program_destroy(program);
    return status;
}

hd_status hdi_model_match(hd_model *model, const hdi_weights *weights)
{
    if (model->family->match) {
        HD_RETURN_IF_ERROR(model->family->match(model->config, weights));
        HD_RETURN_IF_ERROR(describe(model));
    }
    return check_weights(model, weights);
}

hd_status hd_model_match_weights(hd_model *model, const char *path)
{
    hdi_weights *weights;
    HD_RETURN_IF_ERROR(hdi_weights_open(path, &weights));
    const hd_status status = hdi_model_match(model, weights);
    hdi_weights_close(weights);
    return status;
}

bool hdi_model_layout_of(const hdi_weights *weights, const char **family, const char **layout)
{
    for (int i = 0; i < FAMILIES; i++) {
        *family = families[i]->type;
        *layout = families[i]->layout_of ? families[i]->layout_of(weights) : NULL;
        if (*layout) return true;
    }
    return false;
}

const char *hd_model_type(const hd_model *model)
{
    return model->family->type;
}

const char *hd_model_layout(const hd_model *model)
{
    return model->facts.layout;
}

int hd_model_layers(const hd_model *model)
{
    return (int)model->facts.layers;
}

int64_t hd_model_vocab(const hd_model *model)
{
    return model->facts.vocab;
}

int64_t hd_model_hidden(const hd_model *model)
{
    return model->facts.hidden;
}

int64_t hd_model_max_tokens(const hd_model *model)
{
    return model->facts.max_tokens;
}

int64_t hd_model_parameters(const hd_model *model)
{
    return model->parameters;
}

const char *hd_model_config_json(const hd_model *model)
{
    return model->json;
}

const hd_video_model *hd_model_video(const hd_model *model)
{
    return model->facts.is_video ? &model->facts.video : NULL;
}

void hdi_model_describe_tokens(const void *config, hdi_model_facts *out)
{
    const hdi_model_config *from = config;
    out->layers = from->layers;
    out->hidden = from->hidden;
    out->vocab = from->vocab;
    out->max_tokens = from->max_tokens;
}

hd_tensor hd_model_build(void *model, hd_program *program, const hd_stage *stage, hd_tensor x)
{
    const hd_model *built = model;
    return built->family->build(built->config, program, stage, x);
}
