/* Batch sizes of a training's buckets: what fits the memory, and as many micro-batches as the step's
 * tokens ask for. */
#include "jobs/train/train.h"

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"

#include <inttypes.h>

static int64_t floor_power_of_two(int64_t count)
{
    int64_t power = 1;
    while (power * 2 <= count)
        power *= 2;
    return power;
}

static bool is_exact(const hd_config *config)
{
    return hdi_config_enum(config->values, "layout.reduction") == HDI_REDUCTION_EXACT;
}

/* Micro-batches from the token budget. In exact mode their number over all ranks is a power of two
 * that does not follow from the layout. */
static hd_status count_by_tokens(const hdi_train_target *on, int64_t budget, int64_t tokens,
                                 int64_t *accumulate)
{
    const int data = hd_mesh_size(on->mesh, HD_AXIS_DATA);
    const int64_t batches = budget / tokens;
    if (!is_exact(on->config)) {
        *accumulate = batches / data > 1 ? batches / data : 1;
        return HD_OK;
    }
    const int64_t all = floor_power_of_two(batches > 1 ? batches : 1);
    *accumulate = all / data;
    if (all % data == 0) return HD_OK;
    return hdi_error(HD_ERROR_CONFIG,
                     "train.tokens_per_step: seen %" PRId64 ", with %" PRId64
                     " tokens a micro-batch that is %" PRId64
                     " of them; layout.reduction exact wants a multiple of the %d data ranks",
                     budget, tokens, all, data);
}

static hd_status set_sizes(const hdi_train_target *on, hdi_video_bucket *bucket, int64_t sequences)
{
    const hdi_config *values = on->config->values;
    const int data = hd_mesh_size(on->mesh, HD_AXIS_DATA);
    const int64_t budget = hdi_config_int(values, "train.tokens_per_step");
    const int64_t batch = hdi_config_int(values, "train.batch");
    int64_t accumulate = hdi_config_int(values, "train.accumulate");
    if (budget > 0) {
        const int64_t tokens =
            sequences * hdi_video_bucket_tokens(bucket, hd_model_video(on->model));
        HD_RETURN_IF_ERROR(count_by_tokens(on, budget, tokens, &accumulate));
    } else if (batch > 0) {
        accumulate = batch / (sequences * data);
        if (accumulate < 1 || batch % (sequences * data))
            return hdi_error(HD_ERROR_CONFIG,
                             "train.batch: seen %" PRId64 ", want a multiple of %" PRId64
                             " videos of a micro-batch x %d data ranks",
                             batch, sequences, data);
    }
    const int64_t most = 1 << 16;
    bucket->shape.sequences = sequences;
    bucket->shape.accumulate = (int)(accumulate < most ? accumulate : most);
    bucket->step_samples = sequences * bucket->shape.accumulate * data;
    return HD_OK;
}

/* Whether the bucket alone fits on every pipeline stage. */
static hd_status try_bucket(const hdi_train_target *on, hdi_video_bucket *bucket, bool *fits)
{
    const hd_mesh_options sizes = {.data = hd_mesh_size(on->mesh, HD_AXIS_DATA),
                                   .pipeline = hd_mesh_size(on->mesh, HD_AXIS_PIPELINE),
                                   .sequence = hd_mesh_size(on->mesh, HD_AXIS_SEQUENCE),
                                   .shard_group = hd_mesh_size(on->mesh, HD_AXIS_DATA) /
                                                  hd_mesh_size(on->mesh, HD_AXIS_COPY),
                                   .ring = hd_mesh_ring(on->mesh),
                                   .tensor = hd_mesh_size(on->mesh, HD_AXIS_TENSOR)};
    const int stage_ranks = sizes.data * sizes.sequence * sizes.tensor;
    const int line = hd_mesh_index(on->mesh, HD_AXIS_SEQUENCE) * sizes.tensor;
    const hdi_video_buckets alone = {.items = bucket, .count = 1};
    *fits = true;
    for (int stage = 0; stage < sizes.pipeline && *fits; stage++) {
        hd_mesh *mesh;
        hd_trainer *trainer = NULL;
        HD_RETURN_IF_ERROR(hd_mesh_create_fake(stage * stage_ranks + line +
                                                   hd_mesh_index(on->mesh, HD_AXIS_TENSOR),
                                               stage_ranks * sizes.pipeline, &sizes, &mesh));
        hdi_train_target there = *on;
        there.mesh = mesh;
        there.remedy = false;
        there.searches = NULL;
        const hd_status status = hdi_train_create(&there, &alone, &trainer);
        hd_trainer_destroy(trainer);
        hd_mesh_destroy(mesh);
        if (status != HD_OK && status != HD_ERROR_BUDGET) return status;
        *fits = status == HD_OK;
    }
    return HD_OK;
}

/* The largest power of two that fits; 1 if none does, which the whole trainer then reports. Then nothing
 * larger is tried. */
static hd_status choose(const hdi_train_target *on, hdi_video_bucket *bucket)
{
    const hdi_config *values = on->config->values;
    int64_t sequences = floor_power_of_two(hdi_config_int(values, "video.largest_micro_batch"));
    if (hdi_config_bytes(values, "memory.budget") > 0 && sequences > 1) {
        bool any_fits;
        HD_RETURN_IF_ERROR(set_sizes(on, bucket, 1));
        HD_RETURN_IF_ERROR(try_bucket(on, bucket, &any_fits));
        if (!any_fits) return HD_OK;
    }
    for (;; sequences /= 2) {
        bool fits = true;
        HD_RETURN_IF_ERROR(set_sizes(on, bucket, sequences));
        if (hdi_config_bytes(values, "memory.budget") > 0 && sequences > 1)
            HD_RETURN_IF_ERROR(try_bucket(on, bucket, &fits));
        if (fits) return HD_OK;
    }
}

/* Ranks whose devices differ take the smallest that any of them chose. */
static hd_status agree(const hdi_train_target *on, hdi_video_buckets *buckets)
{
    hd_comm *world = hd_mesh_comm(on->mesh, HD_AXIS_NONE);
    if (!world || hd_mesh_ranks(on->mesh) == 1) return HD_OK;
    int64_t *sizes = hdi_alloc_array((size_t)buckets->count, sizeof *sizes);
    hd_status status = sizes ? HD_OK : hdi_error(HD_ERROR_MEMORY, "train: out of host memory");
    for (int i = 0; i < buckets->count && sizes; i++)
        sizes[i] = -buckets->items[i].shape.sequences;
    status = hd_comm_agree(world, status);
    hd_request request = {0};
    if (status == HD_OK)
        status =
            hd_comm_all_reduce(world, sizes, buckets->count, HD_DTYPE_I64, HD_REDUCE_MAX, &request);
    if (status == HD_OK) status = hd_comm_wait(world, &request);
    for (int i = 0; i < buckets->count && status == HD_OK; i++)
        status = set_sizes(on, &buckets->items[i], -sizes[i]);
    hdi_free(sizes);
    return status;
}

static hd_status set_all(const hdi_train_target *on, hdi_video_buckets *buckets)
{
    const int64_t fixed = hdi_config_int(on->config->values, "video.micro_batch");
    if (!fixed && is_exact(on->config))
        return hdi_error(HD_ERROR_CONFIG, "video.micro_batch: seen 0, which fits it to the layout; "
                                          "layout.reduction exact wants a number");
    for (int i = 0; i < buckets->count; i++)
        HD_RETURN_IF_ERROR(fixed ? set_sizes(on, &buckets->items[i], fixed)
                                 : choose(on, &buckets->items[i]));
    return HD_OK;
}

hd_status hdi_train_buckets(const hdi_train_target *on, const hdi_video_dataset *dataset,
                            hdi_video_buckets *out)
{
    const hdi_config *values = on->config->values;
    hdi_video_buckets_options options = {
        .model = hd_model_video(on->model),
        .dataset = dataset,
        .validation_fraction = hdi_config_float(values, "data.validation_fraction"),
        .drops_text = hdi_config_float(values, "video.text_dropout") > 0,
        .own_null_text = hd_model_video(on->model)->null_text != NULL};
    int count;
    const int64_t *ratios = hdi_config_int_list(values, "video.task_ratios", &count);
    for (int i = 1; i < count; i++)
        options.masked_frames = options.masked_frames || ratios[i] > 0;
    options.sizes = hdi_config_string_list(values, "video.shapes", &options.size_count);
    *out = (hdi_video_buckets){0};
    hd_status status = hdi_video_buckets_make(&options, out);
    if (status == HD_OK) status = set_all(on, out);
    hd_comm *world = hd_mesh_comm(on->mesh, HD_AXIS_NONE);
    if (world) status = hd_comm_agree(world, status);
    if (status == HD_OK) status = agree(on, out);
    for (int i = 0; i < out->count && dataset && status == HD_OK; i++) {
        const hdi_video_bucket *bucket = &out->items[i];
        const hd_video_shape *video = &bucket->shape.video;
        hdi_log(HD_LOG_INFO,
                "bucket %" PRId64 "x%" PRId64 "x%" PRId64 ": %" PRId64 " videos, %" PRId64
                " for validation; a step takes %" PRId64 ", %" PRId64 " at a time",
                video->frames, video->height, video->width, bucket->train, bucket->validate,
                bucket->step_samples, bucket->shape.sequences);
    }
    if (status != HD_OK) hdi_video_buckets_release(out);
    return status;
}
