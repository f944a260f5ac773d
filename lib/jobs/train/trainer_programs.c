/* A chunk's program: forward as the model builds it, boundaries, and the backward when training. */
#include "jobs/train/trainer.h"

#include "core/error.h"
#include "core/memory.h"
#include "jobs/stages.h"
#include "parallel/activations.h"

#include <limits.h>
#include <string.h>

static void add_backward(hd_program *program, const hdi_trainer_shape *shape, bool last,
                         hdi_pipeline_chunk *chunk)
{
    if (!last) {
        hdi_stage_end(program, chunk->out);
        chunk->out_gradient = hdi_tensor_add(program, "out.gradient", shape->x_dtype,
                                             HD_ROLE_BOUNDARY, shape->x_rank, shape->x_dims);
    }
    hd_program_backward(program, chunk->out, chunk->out_gradient);
    chunk->x_gradient = hd_gradient(program, chunk->x);
    if (chunk->x.id && !chunk->x_gradient.id && program->status == HD_OK)
        hd_program_fail(program, HD_ERROR_ARGUMENT, "no gradient reaches the stage's input");
}

static int chunk_layers(const hd_trainer *trainer, int chunk)
{
    return trainer->census.stage_layers[chunk * trainer->pipeline + trainer->stage];
}

/* Of the blocks whose activations are not kept those of this chunk. Earlier chunks come first: more of their
 * micro-batches are in flight. */
static int chunk_blocks(const hd_trainer *trainer, int chunk)
{
    const int layers = chunk_layers(trainer, chunk);
    int rest = trainer->options.activation_blocks;
    if (!rest) return layers;
    for (int c = 0; c < chunk; c++)
        rest -= chunk_layers(trainer, c);
    return rest < 0 ? 0 : rest < layers ? rest : layers;
}

int hdi_trainer_layers(const hd_trainer *trainer)
{
    int layers = 0;
    for (int c = 0; c < trainer->chunks; c++)
        layers += chunk_layers(trainer, c);
    return layers;
}

/* With one micro-batch in flight the last block's backward follows its forward: what it saved would come
 * back at once. */
static void move_activations(const hd_trainer *trainer, const hdi_trainer_shape *shape, int chunk,
                             hd_program *program)
{
    const hd_activations how = trainer->options.activations;
    const int in_flight = hdi_schedule_slots(shape->schedule, chunk, HDI_BUFFER_ACTIVATIONS);
    const int blocks = chunk_blocks(trainer, chunk);
    const bool all = blocks == chunk_layers(trainer, chunk), again = trainer->options.recompute;
    hdi_activations_options options = {.again_only = again && !all,
                                       .blocks = again || all ? INT_MAX : blocks};
    if (how == HD_ACTIVATIONS_INT8) {
        options.how = HDI_SAVED_AS_INT8;
        hdi_activations_move(program, &options);
    } else if (how == HD_ACTIVATIONS_HOST || how == HD_ACTIVATIONS_RECOMPUTE_HOST) {
        options.how = HDI_SAVED_ON_HOST;
        options.keep_last = in_flight <= 1;
        hdi_activations_move(program, &options);
    }
}

/* "train.STAGE", or of further shapes "train.STAGE of shape N". */
static char *program_name(bool train, int stage, int shape)
{
    const char *purpose = train ? "train" : "validate";
    return shape ? hdi_format("%s.%d of shape %d", purpose, stage, shape)
                 : hdi_format("%s.%d", purpose, stage);
}

hd_status hdi_trainer_build_chunk(hd_trainer *trainer, int shape_index, int chunk_index,
                                  hd_purpose purpose, hdi_pipeline_chunk *out)
{
    const hd_trainer_options *options = &trainer->options;
    const hdi_trainer_shape *shape = &trainer->shapes[shape_index];
    const hdi_census *census = &trainer->census;
    int stages = trainer->pipeline * trainer->chunks;
    int stage_index = chunk_index * trainer->pipeline + trainer->stage, first_layer = 0;
    for (int s = 0; s < stage_index; s++)
        first_layer += census->stage_layers[s];
    bool train = purpose == HD_PURPOSE_TRAIN, last = stage_index == stages - 1;
    char *name = program_name(train, stage_index, shape_index);
    if (!name) return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
    hd_program *program = NULL;
    hd_status status =
        hd_program_create(&(hd_program_options){.name = name,
                                                .dtype = options->dtype,
                                                .gradients = options->gradients,
                                                .mesh = options->mesh,
                                                .backend = options->backend,
                                                .training = train,
                                                .exact = options->exact,
                                                .slices = options->slices,
                                                .mlp_slices = options->mlp_slices,
                                                .sequence_groups = options->sequence_groups,
                                                .tensor_groups = options->tensor_groups,
                                                .rates = &options->rates},
                          &program);
    hdi_free(name);
    if (status != HD_OK) return status;
    out->program = program;
    if (stage_index > 0) {
        out->x = hdi_tensor_add(program, "x", shape->x_dtype, HD_ROLE_BOUNDARY, shape->x_rank,
                                shape->x_dims);
        if (train) hd_input_needs_gradient(program, out->x);
    }
    hd_stage stage = {.purpose = purpose,
                      .first_layer = first_layer,
                      .layers = census->stage_layers[stage_index],
                      .first = stage_index == 0,
                      .last = last,
                      .sequences = shape->is.sequences,
                      .tokens = shape->is.tokens,
                      .video = shape->is.video,
                      .recompute = options->recompute,
                      .kept_layers =
                          chunk_layers(trainer, chunk_index) - chunk_blocks(trainer, chunk_index)};
    out->out = options->build(options->user, program, &stage, out->x);
    if (train) {
        add_backward(program, shape, last, out);
        move_activations(trainer, shape, chunk_index, program);
    } else if (!last)
        hdi_stage_end(program, out->out);
    if (last) out->out = (hd_tensor){0};
    const int sequence = hd_mesh_size(options->mesh, HD_AXIS_SEQUENCE);
    if (sequence > 1 && !program->splits_sequences)
        hd_program_fail(program, HD_ERROR_UNSUPPORTED,
                        "layout.sequence is %d, but this model does not split its sequences",
                        sequence);
    const int tensor = hd_mesh_size(options->mesh, HD_AXIS_TENSOR);
    if (tensor > 1 && !program->splits_layers)
        hd_program_fail(program, HD_ERROR_UNSUPPORTED,
                        "layout.tensor is %d, but this model does not split its layers", tensor);
    return program->status == HD_OK ? HD_OK : hd_program_finish(program);
}

void hdi_trainer_set_staged(const hd_trainer *trainer, hd_program *program)
{
    const hd_backend *backend = trainer->options.backend;
    if (!backend || !backend->is_idle) return;
    for (int i = 1; i < program->tensor_count; i++) {
        const hd_tensor_info *info = &program->tensors[i]->info;
        const bool result = info->role == HD_ROLE_OUTPUT && info->name &&
                            (!strcmp(info->name, "loss") || !strcmp(info->name, "squares"));
        program->tensors[i]->staged = info->role == HD_ROLE_INPUT || result;
    }
}

bool hdi_trainer_reads(const hd_trainer *trainer, int shape, const char *name)
{
    for (int c = 0; c < trainer->chunks; c++) {
        const hd_program *program = trainer->shapes[shape].train[c].program;
        hd_tensor found = hd_tensor_find(program, name);
        if (found.id && hd_tensor_get(program, found)->role == HD_ROLE_INPUT) return true;
    }
    return false;
}
