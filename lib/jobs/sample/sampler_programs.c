/* What a sampler builds: its stage's programs for each length of text, and where their inputs come
 * from. */
#include "jobs/sample/sampler.h"

#include "core/error.h"
#include "core/memory.h"
#include "jobs/stages.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "sampler: out of host memory");
}

static hd_stage stage_of(const hd_sampler *sampler, const hdi_sampler_set *set, hd_purpose purpose)
{
    hd_stage stage = {.purpose = purpose,
                      .first_layer = sampler->first_layer,
                      .layers = sampler->layers,
                      .first = sampler->stage == 0,
                      .last = hdi_sampler_is_last(sampler),
                      .sequences = 1,
                      .video = sampler->options.shape};
    stage.video.text = set->tokens;
    stage.video.text_counts = false;
    return stage;
}

static hd_status create_program(const hd_sampler *sampler, const char *name, const hd_mesh *mesh,
                                int slices, hd_program **out)
{
    return hd_program_create(
        &(hd_program_options){.name = name,
                              .dtype = sampler->options.dtype,
                              .mesh = mesh,
                              .backend = sampler->options.backend,
                              .slices = slices,
                              .sequence_groups = sampler->options.sequence_groups,
                              .tensor_groups = sampler->options.tensor_groups,
                              .rates = &sampler->options.rates},
        out);
}

static hd_tensor add_x(hd_program *program, const hdi_sampler_set *set)
{
    return hdi_tensor_add(program, "x", set->x_dtype, HD_ROLE_BOUNDARY, set->x_rank, set->x_dims);
}

static hd_status learn_x(hdi_sampler_set *set, const hd_program *program, hd_tensor out)
{
    const hd_tensor_info *x = hd_tensor_get(program, out);
    if (!x || x->rank < 1)
        return hdi_error(HD_ERROR_ARGUMENT, "sampler: the first stage returned no tensor");
    set->x_dtype = x->dtype;
    set->x_rank = x->rank;
    memcpy(set->x_dims, x->dims, sizeof set->x_dims);
    return HD_OK;
}

/* Part of the model, to learn what travels between stages and what it costs. */
static hd_status measure(const hd_sampler *sampler, hdi_sampler_set *set, const hd_mesh *mesh,
                         int first_layer, int layers, bool first, bool last, double *flops)
{
    const hd_sampler_options *o = &sampler->options;
    hd_program *program;
    HD_RETURN_IF_ERROR(create_program(sampler, "model", mesh, 1, &program));
    hd_stage stage = stage_of(sampler, set, HD_PURPOSE_DENOISE);
    stage.first_layer = first_layer;
    stage.layers = layers;
    stage.first = first;
    stage.last = last;
    const hd_tensor out =
        o->build(o->user, program, &stage, first ? (hd_tensor){0} : add_x(program, set));
    hd_status status = hd_program_finish(program);
    if (status == HD_OK && first) status = learn_x(set, program, out);
    if (status == HD_OK) {
        hd_cost cost;
        hdi_program_cost(program, HDI_PHASE_FORWARD, &cost);
        *flops = cost.flops;
    }
    hd_program_destroy(program);
    return status;
}

static hd_status cut_layers(hd_sampler *sampler)
{
    const int layers = sampler->options.layers;
    hdi_balance_options balance = {.layers = layers, .stages = sampler->stages};
    double *costs = hdi_alloc_array((size_t)layers, sizeof *costs), unused;
    hd_status status = costs ? HD_OK : out_of_memory();
    /* Of whole sequences and layers: ranks that share one have more or less of it, and must cut alike. */
    const hd_mesh *here = sampler->options.mesh;
    const bool shares =
        hd_mesh_size(here, HD_AXIS_SEQUENCE) > 1 || hd_mesh_size(here, HD_AXIS_TENSOR) > 1;
    const hd_mesh *mesh = shares ? NULL : here;
    hdi_sampler_set *set = &sampler->sets[0];
    if (status == HD_OK)
        status = measure(sampler, set, mesh, 0, 0, true, false, &balance.first_cost);
    if (status == HD_OK)
        status = measure(sampler, set, mesh, layers, 0, false, true, &balance.last_cost);
    for (int i = 0; i < layers && status == HD_OK; i++)
        status = measure(sampler, set, mesh, i, 1, false, false, &costs[i]);
    for (int s = 0; s < sampler->options.text_lengths && status == HD_OK; s++)
        status = measure(sampler, &sampler->sets[s], here, 0, 0, true, false, &unused);
    balance.costs = costs;
    if (status == HD_OK)
        status = hdi_stage_cut(&balance, sampler->options.stage_layers, sampler->stage,
                               &sampler->first_layer, &sampler->layers);
    hdi_free(costs);
    return status;
}

/* The inputs or outputs of a program, in the order of their declaration. */
static hd_status list_ports(const hd_program *program, hd_role role, hdi_sampler_port **out,
                            int *count)
{
    *count = 0;
    *out = hdi_alloc_array(HDI_SAMPLER_PORTS, sizeof **out);
    if (!*out) return out_of_memory();
    for (int i = 1; i < program->tensor_count; i++) {
        const hd_tensor_info *info = &program->tensors[i]->info;
        if (info->role != role) continue;
        if (*count == HDI_SAMPLER_PORTS)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "sampler: program '%s' has more than %d inputs or outputs",
                             program->name, HDI_SAMPLER_PORTS);
        (*out)[(*count)++] = (hdi_sampler_port){.tensor = {i}, .bytes = info->bytes};
    }
    return HD_OK;
}

typedef struct known_input {
    const char *name;
    hdi_sampler_source from;
    hd_dtype dtype;
    int64_t elements;
} known_input;

/* Inputs that the sampler fills by itself. */
static hd_status bind_known(const hd_sampler *sampler, const hdi_sampler_set *set,
                            const hd_program *program, int64_t times, hdi_sampler_port *port)
{
    const hd_video_shape *shape = &sampler->options.shape;
    const hd_video_model *model = &sampler->model;
    const int64_t patch = model->patch[0] > 0 ? model->patch[0] : 1;
    const int64_t volume = shape->frames * hdi_sampler_plane(sampler);
    const known_input known[] = {
        {"latents", HDI_FROM_LATENTS, HD_DTYPE_F32, hdi_sampler_elements(sampler)},
        {"time", HDI_FROM_TIME, HD_DTYPE_F32, times},
        {"text", HDI_FROM_TEXT, HD_DTYPE_F32, set->tokens * model->text_columns},
        {"pooled", HDI_FROM_POOLED, HD_DTYPE_F32, model->pooled_columns},
        {"guidance", HDI_FROM_GUIDANCE, HD_DTYPE_F32, 1},
        {"fps", HDI_FROM_FPS, HD_DTYPE_F32, 1},
        {"condition", HDI_FROM_CONDITION, HD_DTYPE_F32, model->condition_channels * volume},
        {"frame_entries", HDI_FROM_FRAME_ENTRIES, HD_DTYPE_I32,
         (shape->frames + patch - 1) / patch}};
    const hd_tensor_info *info = hd_tensor_get(program, port->tensor);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(known[i].name, info->name) != 0) continue;
        port->from = known[i].from;
        if (info->dtype == known[i].dtype && info->elements == known[i].elements) return HD_OK;
        return hdi_error(HD_ERROR_ARGUMENT,
                         "sampler: program '%s': input '%s' is %s with %" PRId64
                         " elements, want %s with %" PRId64,
                         program->name, info->name, hd_dtype_name(info->dtype), info->elements,
                         hd_dtype_name(known[i].dtype), known[i].elements);
    }
    return hdi_error(HD_ERROR_ARGUMENT,
                     "sampler: nothing fills the input '%s' of program '%s': neither its condition "
                     "program nor the sampler knows it",
                     info->name, program->name);
}

/* True if the condition program makes this input. */
static bool bind_stored(const hd_sampler *sampler, const hdi_sampler_set *set,
                        hdi_sampler_port *port)
{
    const hd_tensor_info *info = hd_tensor_get(set->denoise, port->tensor);
    for (int i = 0; i < set->output_count; i++) {
        const hd_tensor_info *made = hd_tensor_get(set->condition, set->outputs[i].tensor);
        if (strcmp(made->name, info->name) != 0 || made->dtype != info->dtype) continue;
        const int64_t steps = sampler->options.shape.steps;
        port->by_step = made->elements == info->elements * steps && steps > 1;
        if (!port->by_step && made->elements != info->elements) continue;
        port->from = HDI_FROM_STORE;
        port->offset = set->outputs[i].offset;
        return true;
    }
    return false;
}

static hd_status build_condition(hd_sampler *sampler, hdi_sampler_set *set)
{
    const hd_sampler_options *o = &sampler->options;
    char name[64];
    snprintf(name, sizeof name, "condition-%" PRId64, set->tokens);
    HD_RETURN_IF_ERROR(create_program(sampler, name, o->mesh, 1, &set->condition));
    const hd_stage stage = stage_of(sampler, set, HD_PURPOSE_CONDITION);
    o->build(o->user, set->condition, &stage, (hd_tensor){0});
    HD_RETURN_IF_ERROR(hd_program_finish(set->condition));
    HD_RETURN_IF_ERROR(
        list_ports(set->condition, HD_ROLE_OUTPUT, &set->outputs, &set->output_count));
    if (set->output_count == 0) {
        hd_program_destroy(set->condition);
        set->condition = NULL;
        return HD_OK;
    }
    for (int i = 0; i < set->output_count; i++) {
        set->outputs[i].offset = set->store_bytes;
        set->store_bytes += set->outputs[i].bytes;
    }
    HD_RETURN_IF_ERROR(list_ports(set->condition, HD_ROLE_INPUT, &set->condition_inputs,
                                  &set->condition_input_count));
    for (int i = 0; i < set->condition_input_count; i++)
        HD_RETURN_IF_ERROR(
            bind_known(sampler, set, set->condition, o->shape.steps, &set->condition_inputs[i]));
    return HD_OK;
}

static hd_status build_denoise(hd_sampler *sampler, hdi_sampler_set *set)
{
    const hd_sampler_options *o = &sampler->options;
    char name[64];
    snprintf(name, sizeof name, "denoise-%" PRId64, set->tokens);
    HD_RETURN_IF_ERROR(create_program(sampler, name, o->mesh, sampler->slices, &set->denoise));
    const hd_stage stage = stage_of(sampler, set, HD_PURPOSE_DENOISE);
    if (!stage.first) set->x = add_x(set->denoise, set);
    const hd_tensor out = o->build(o->user, set->denoise, &stage, set->x);
    const int sequence = hd_mesh_size(o->mesh, HD_AXIS_SEQUENCE);
    if (sequence > 1 && !set->denoise->splits_sequences)
        hd_program_fail(set->denoise, HD_ERROR_UNSUPPORTED,
                        "layout.sequence is %d, but this model does not split its sequences",
                        sequence);
    const int tensor = hd_mesh_size(o->mesh, HD_AXIS_TENSOR);
    if (tensor > 1 && !set->denoise->splits_layers)
        hd_program_fail(set->denoise, HD_ERROR_UNSUPPORTED,
                        "layout.tensor is %d, but this model does not split its layers", tensor);
    if (!stage.last) {
        hdi_stage_end(set->denoise, out);
        set->out = out;
    }
    HD_RETURN_IF_ERROR(hd_program_finish(set->denoise));
    HD_RETURN_IF_ERROR(list_ports(set->denoise, HD_ROLE_INPUT, &set->inputs, &set->input_count));
    for (int i = 0; i < set->input_count; i++)
        if (!bind_stored(sampler, set, &set->inputs[i]))
            HD_RETURN_IF_ERROR(bind_known(sampler, set, set->denoise, 1, &set->inputs[i]));
    if (!stage.last) return HD_OK;
    set->velocity = hd_tensor_find(set->denoise, "velocity");
    const hd_tensor_info *velocity = hd_tensor_get(set->denoise, set->velocity);
    if (velocity && velocity->dtype == HD_DTYPE_F32 &&
        velocity->elements == hdi_sampler_elements(sampler))
        return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT,
                     "sampler: the last stage has no output 'velocity' F32 of %" PRId64 " elements",
                     hdi_sampler_elements(sampler));
}

hd_status hdi_sampler_build_conditions(hd_sampler *sampler)
{
    HD_RETURN_IF_ERROR(cut_layers(sampler));
    for (int s = 0; s < sampler->options.text_lengths; s++)
        HD_RETURN_IF_ERROR(build_condition(sampler, &sampler->sets[s]));
    return HD_OK;
}

hd_status hdi_sampler_build_denoising(hd_sampler *sampler, int slices)
{
    sampler->slices = slices;
    for (int s = 0; s < sampler->options.text_lengths; s++) {
        hdi_sampler_set *set = &sampler->sets[s];
        hd_program_destroy(set->denoise);
        hdi_free(set->inputs);
        set->denoise = NULL;
        set->inputs = NULL;
        HD_RETURN_IF_ERROR(build_denoise(sampler, set));
    }
    return HD_OK;
}
