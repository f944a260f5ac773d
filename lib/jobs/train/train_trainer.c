/* From a configuration to a trainer. */
#include "jobs/setup.h"
#include "jobs/train/train.h"

#include "core/error.h"
#include "core/memory.h"
#include "jobs/remedy.h"

#include <inttypes.h>
#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "train: out of host memory");
}

/* Sizes of a step of a token model. */
static hd_status token_options(const hdi_config *values, const hd_model *model, const hd_mesh *mesh,
                               hd_trainer_options *out)
{
    int64_t micro_batch = hdi_config_int(values, "train.micro_batch");
    int64_t batch = hdi_config_int(values, "train.batch");
    int64_t accumulate = hdi_config_int(values, "train.accumulate");
    int64_t at_once = micro_batch * hd_mesh_size(mesh, HD_AXIS_DATA);
    if (batch > 0 && batch % at_once)
        return hdi_error(HD_ERROR_CONFIG,
                         "train.batch: seen %" PRId64
                         ", want a multiple of train.micro_batch x data "
                         "ranks = %" PRId64 " x %d",
                         batch, micro_batch, hd_mesh_size(mesh, HD_AXIS_DATA));
    if (batch > 0) accumulate = batch / at_once;
    int64_t tokens = hdi_config_int(values, "train.tokens");
    if (tokens > hd_model_max_tokens(model))
        return hdi_error(HD_ERROR_CONFIG,
                         "train.tokens: seen %" PRId64 ", the model takes at most %" PRId64, tokens,
                         hd_model_max_tokens(model));
    out->sequences = micro_batch;
    out->tokens = tokens;
    out->accumulate = (int)accumulate;
    return HD_OK;
}

/* The trainer refuses the same, but knows no settings to name. */
static hd_status check_gradients(const hdi_config *values)
{
    if (hdi_config_enum(values, "train.gradients") != HDI_JOB_GRADIENTS_BF16) return HD_OK;
    if (hdi_config_enum(values, "train.dtype") != HDI_JOB_BF16)
        return hdi_error(HD_ERROR_CONFIG,
                         "train.gradients: seen bf16 with train.dtype %s, want bf16 (gradients are "
                         "not rounded further than weights)",
                         hdi_config_string(values, "train.dtype"));
    if (hdi_config_enum(values, "layout.reduction") == HDI_REDUCTION_EXACT)
        return hdi_error(HD_ERROR_CONFIG,
                         "train.gradients: seen bf16 with layout.reduction exact, want fp32 (a sum "
                         "that is rounded at each micro-batch depends on how ranks share them)");
    return HD_OK;
}

/* The trainer refuses the same, but knows no settings to name. */
static hd_status check_blocks(const hdi_config *values, int layers, bool keeps)
{
    const int64_t blocks = hdi_config_int(values, "train.activation_blocks");
    if (blocks > layers)
        return hdi_error(HD_ERROR_CONFIG,
                         "train.activation_blocks: seen %" PRId64 ", the model has %d blocks",
                         blocks, layers);
    if (blocks && keeps)
        return hdi_error(HD_ERROR_CONFIG,
                         "train.activation_blocks: seen %" PRId64
                         " with train.activations keep, want another kind for them",
                         blocks);
    return HD_OK;
}

static hd_status train_options(const hd_config *config, hd_model *model, const hd_mesh *mesh,
                               hd_trainer_options *out)
{
    const hdi_config *values = config->values;
    const char *schedule = hdi_config_string(values, "layout.schedule");
    const int dtype = hdi_config_enum(values, "train.dtype");
    const int master = hdi_config_enum(values, "optimizer.master");
    if (master == HDI_JOB_MASTER_REMAINDER && dtype != HDI_JOB_BF16)
        return hdi_error(HD_ERROR_CONFIG,
                         "optimizer.master: seen remainder with train.dtype %s, want bf16",
                         hdi_config_string(values, "train.dtype"));
    const hd_activations activations = (hd_activations)hdi_config_enum(values, "train.activations");
    const bool recompute = hdi_config_enum(values, "layout.recompute") == HDI_RECOMPUTE_LAYER;
    if (recompute && activations != HD_ACTIVATIONS_KEEP &&
        activations != HD_ACTIVATIONS_RECOMPUTE && activations != HD_ACTIVATIONS_RECOMPUTE_HOST)
        return hdi_error(HD_ERROR_CONFIG,
                         "layout.recompute: seen layer with train.activations %s, want none",
                         hdi_config_string(values, "train.activations"));
    const int mlp_slices = (int)hdi_config_int(values, "train.mlp_slices");
    int slices = (int)hdi_config_int(values, "train.slices");
    if (hd_model_video(model)) slices = 1; /* they have no logits to slice */
    HD_RETURN_IF_ERROR(check_blocks(values, hd_model_layers(model),
                                    activations == HD_ACTIVATIONS_KEEP && !recompute));
    HD_RETURN_IF_ERROR(check_gradients(values));
    const hd_dtype gradients = hdi_config_enum(values, "train.gradients") == HDI_JOB_GRADIENTS_BF16
                                   ? HD_DTYPE_BF16
                                   : HD_DTYPE_F32;
    const hd_dtype dtypes[] = {
        [HDI_JOB_F32] = HD_DTYPE_F32, [HDI_JOB_BF16] = HD_DTYPE_BF16, [HDI_JOB_F16] = HD_DTYPE_F16};
    const hd_master masters[] = {[HDI_JOB_MASTER_AUTO] = HD_MASTER_AUTO,
                                 [HDI_JOB_MASTER_FP32] = HD_MASTER_F32,
                                 [HDI_JOB_MASTER_REMAINDER] = HD_MASTER_REMAINDER};
    *out = (hd_trainer_options){
        .build = hd_model_build,
        .user = model,
        .layers = hd_model_layers(model),
        .mesh = mesh,
        .schedule = strcmp(schedule, "auto") ? schedule : NULL,
        .chunks = (int)hdi_config_int(values, "layout.chunks"),
        .exact = hdi_config_enum(values, "layout.reduction") == HDI_REDUCTION_EXACT,
        .shard_state = hdi_config_enum(values, "layout.shard_state") % HDI_SHARDINGS,
        .slices = slices ? slices : HD_SLICES_AUTO,
        .mlp_slices = mlp_slices ? mlp_slices : HD_SLICES_AUTO,
        .activations = activations,
        .recompute = recompute,
        .activation_blocks = (int)hdi_config_int(values, "train.activation_blocks"),
        .sequence_groups = (int)hdi_config_int(values, "layout.sequence_groups"),
        .tensor_groups = (int)hdi_config_int(values, "layout.tensor_groups"),
        .budget = (size_t)hdi_config_bytes(values, "memory.budget"),
        .bucket_elements =
            hdi_config_bytes(values, "layout.bucket") / (int64_t)hd_dtype_bytes(gradients),
        .dtype = dtypes[dtype],
        .gradients = gradients,
        .master = masters[master],
        .residency = (hd_residency)hdi_config_enum(values, "train.residency"),
        .gradient_residency = (hd_residency)hdi_config_enum(values, "train.gradient_residency"),
        .optimizer_residency = (hd_residency)hdi_config_enum(values, "optimizer.residency"),
        .in_turn = !hdi_config_bool(values, "optimizer.overlap"),
        .adamw = {.beta1 = (float)hdi_config_float(values, "optimizer.beta1"),
                  .beta2 = (float)hdi_config_float(values, "optimizer.beta2"),
                  .epsilon = (float)hdi_config_float(values, "optimizer.epsilon"),
                  .weight_decay = (float)hdi_config_float(values, "optimizer.weight_decay"),
                  .decay_all = hdi_config_enum(values, "optimizer.decay") == HDI_DECAY_ALL},
        .clip_norm = (float)hdi_config_float(values, "train.clip"),
        .ema_decay = (float)hdi_config_float(values, "train.ema"),
        .ema_warmup = hdi_config_bool(values, "train.ema_warmup"),
        .validate_batches = (int)hdi_config_int(values, "train.validate_batches")};
    if (hdi_config_float(values, "data.validation_fraction") == 0) out->validate_batches = 0;
    return hd_model_video(model) ? HD_OK : token_options(values, model, mesh, out);
}

/* Layers of each stage as the configuration lists them; *stages is owned, NULL: balanced. */
static hd_status listed_stages(const hd_config *config, int wanted, int **stages)
{
    int count;
    const int64_t *list = hdi_config_int_list(config->values, "layout.stages", &count);
    *stages = NULL;
    if (!count) return HD_OK;
    if (count != wanted)
        return hdi_error(HD_ERROR_CONFIG,
                         "layout.stages: seen %d entries, want one per virtual stage: %d", count,
                         wanted);
    *stages = hdi_alloc_array((size_t)count, sizeof **stages);
    if (!*stages) return out_of_memory();
    for (int i = 0; i < count; i++)
        (*stages)[i] = (int)list[i];
    return HD_OK;
}

static hd_status create(const hdi_train_target *on, const hd_trainer_options *options,
                        hd_trainer **out)
{
    if (on->searches)
        return hdi_searches_create_trainer(on->searches, options, on->activations, out);
    return on->activations ? hdi_trainer_adopt(options, on->activations, out)
                           : hd_trainer_create(options, out);
}

hd_status hdi_train_create(const hdi_train_target *on, const hdi_video_buckets *buckets,
                           hd_trainer **out)
{
    hd_trainer_options options;
    hd_trainer_shape *shapes = NULL;
    int *stages = NULL;
    HD_RETURN_IF_ERROR(train_options(on->config, on->model, on->mesh, &options));
    options.backend = on->backend;
    options.foreign = on->foreign;
    options.transport = on->transport;
    options.mailboxes = hdi_job_mailboxes(on->config, on->mesh, on->backend);
    HD_RETURN_IF_ERROR(hdi_job_rates(on->config, on->backend, &options.rates));
    hd_status status = listed_stages(
        on->config, hd_mesh_size(on->mesh, HD_AXIS_PIPELINE) * options.chunks, &stages);
    if (buckets && status == HD_OK) {
        shapes = hdi_alloc_array((size_t)buckets->count, sizeof *shapes);
        if (!shapes) status = out_of_memory();
        for (int i = 0; i < buckets->count && shapes; i++)
            shapes[i] = buckets->items[i].shape;
        options.shapes = shapes;
        options.shape_count = buckets->count;
    }
    options.stage_layers = stages;
    if (status == HD_OK) status = create(on, &options, out);
    if (status == HD_OK && on->in_turn) status = hdi_trainer_take_turns(out);
    if (status == HD_ERROR_BUDGET && on->remedy) status = hdi_remedy_add(on->config, &options);
    hdi_free(stages);
    hdi_free(shapes);
    return status;
}
