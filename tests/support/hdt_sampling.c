/* Sampling on layouts. */
#include "tests/support/hdt_sampling.h"

#include "program/program.h"
#include "tests/support/hdt_device.h"

void hdt_sampling_of_mmdit(hdt_sampling *it, const hdt_mmdit *file)
{
    *it = (hdt_sampling){.model = file->model,
                         .weights = hdi_weights_path(file->weights),
                         .dims = file->dims,
                         .tokens = file->valid};
}

void hdt_sampling_of_stdit(hdt_sampling *it, const hdt_stdit *file)
{
    static const int64_t dims[] = {HDT_STDIT_CHANNELS, 3, 10, 10};
    *it = (hdt_sampling){.model = file->model,
                         .weights = hdi_weights_path(file->weights),
                         .dims = dims,
                         .tokens = HDT_STDIT_TEXT,
                         .masked = true};
}

static hd_status keep_last(void *user, const hd_sampler_event *event)
{
    hdt_sampling *it = user;
    if (event->is_last_stage && event->step == event->steps)
        memcpy(it->seen, event->latents, it->bytes);
    return HD_OK;
}

int64_t hdt_sampling_fill(hdt_sampling *it)
{
    const int64_t *dims = it->dims, values = dims[1] * dims[2] * dims[3];
    const hd_video_model *model = hd_model_video(it->model);
    const int64_t text = it->tokens * model->text_columns;
    const int64_t condition = model->condition_channels * values;
    ck_assert_int_le(dims[0] * values, HDT_SAMPLING_VALUES);
    ck_assert_int_le(condition, 2 * HDT_SAMPLING_VALUES);
    ck_assert_uint_le((size_t)text, sizeof it->text / sizeof *it->text);
    hdt_fill(it->text, text, 4);
    hdt_fill(it->condition, condition, 6);
    it->bytes = (size_t)(dims[0] * values) * sizeof *it->seen;
    return dims[0] * values;
}

/* Layers that start as zeros would hide what goes into them. */
static hd_tensor build_random(void *model, hd_program *program, const hd_stage *stage, hd_tensor x)
{
    const hd_tensor out = hd_model_build(model, program, stage, x);
    for (int i = 0; i < program->use_count; i++) {
        hd_parameter_options *options = &program->uses[i].options;
        options->init = HD_INIT_NORMAL;
        options->std = 0.3;
    }
    return out;
}

static hd_status create(const hdt_sampling *it, const hd_mesh *mesh, const hd_context *context,
                        const hdt_sampling_way *way, hd_sampler **out)
{
    const int64_t *dims = it->dims;
    return hd_sampler_create(
        &(hd_sampler_options){.build = it->weights ? hd_model_build : build_random,
                              .user = (void *)(uintptr_t)it->model,
                              .layers = hd_model_layers(it->model),
                              .model = hd_model_video(it->model),
                              .mesh = mesh,
                              .backend = hd_context_backend(context),
                              .shape = {.frames = dims[1],
                                        .height = dims[2],
                                        .width = dims[3],
                                        .masked_frames = it->masked,
                                        .steps = 3},
                              .texts = &it->tokens,
                              .text_lengths = 1,
                              .residency = way->residency,
                              .slices = way->slices,
                              .sequence_groups = way->sequence_groups,
                              .tensor_groups = way->tensor_groups},
        out);
}

hd_status hdt_sampling_run(hdt_sampling *it, hd_comm *comm, const hd_mesh_options *layout,
                           const hdt_sampling_way *way)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_sampler *sampler = NULL;
    bool given[16] = {false};
    ck_assert_int_le(it->dims[1], 16);
    given[it->dims[1] - 1] = it->masked;
    const hd_sampler_text text = {.text = it->text, .tokens = it->tokens};
    const hd_sampler_video video = {.seed = 2, .condition = it->condition, .given_frames = given};
    const hd_sampler_run_options options = {
        .embedded = 6, .fps = 24, .event = keep_last, .user = it};
    memset(it->seen, 0, it->bytes);
    hd_status status = hdt_open_place(comm, layout, &mesh, &context);
    if (status == HD_OK) status = create(it, mesh, context, way, &sampler);
    if (status == HD_OK)
        it->region =
            hd_plan_region_bytes(hd_sampler_plan(sampler, HD_PURPOSE_DENOISE), HD_REGION_WEIGHTS);
    if (status == HD_OK)
        status = hd_sampler_start(sampler, context, &(hd_sampler_weights){.path = it->weights});
    if (status == HD_OK) status = hd_sampler_run(sampler, &text, 1, &video, 1, &options, NULL);
    hd_sampler_destroy(sampler);
    hdt_close_place(mesh, context);
    return status;
}

void hdt_sampling_alone(hdt_sampling *it, const hdt_sampling_way *way)
{
    hd_comm *self = NULL;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    const hd_status status = hdt_sampling_run(it, self, &(hd_mesh_options){0}, way);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
}
