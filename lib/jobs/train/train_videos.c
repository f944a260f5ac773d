/* Videos for video models: the data set, its buckets, and rectified flow. */
#include "jobs/train/train.h"

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "jobs/null_text.h"
#include "jobs/train/flow_feed.h"

#include <math.h>

typedef struct video_feed {
    hdi_train_feed feed;
    const hd_config *config;     /* borrowed */
    const hd_video_model *model; /* borrowed */
    hdi_video_dataset *dataset;  /* owned */
    hdi_video_buckets buckets;   /* owned */
    float *null_text;            /* owned; NULL: the data set's, or none */
    hdi_flow_feed *inputs;       /* owned */
    int data_ranks;
    int validated; /* next bucket that may have samples for it */
} video_feed;

static hdi_flow_options flow_options(const hdi_config *values, const hd_video_model *model)
{
    hdi_flow_options flow = {
        .seed = (uint64_t)hdi_config_int(values, "train.seed"),
        .uniform_time = hdi_config_enum(values, "video.times") == HDI_JOB_TIMES_UNIFORM,
        .time_mean = hdi_config_float(values, "video.time_mean"),
        .time_std = hdi_config_float(values, "video.time_std"),
        .shift = (hdi_flow_shift_kind)hdi_config_enum(values, "video.time_shift"),
        .shift_factor = hdi_config_float(values, "video.time_shift_factor"),
        .sigma_min = hdi_config_float(values, "video.sigma_min"),
        .towards_data = model->towards_data,
        .text_dropout = hdi_config_float(values, "video.text_dropout")};
    int count;
    const int64_t *ratios = hdi_config_int_list(values, "video.task_ratios", &count);
    for (int i = 0; i < count && i < HDI_FLOW_TASKS; i++)
        flow.task_ratio[i] = (double)ratios[i];
    return flow;
}

/* What this rank's stages read, of any shape. */
static unsigned inputs_read(const hd_trainer *trainer)
{
    unsigned reads = 0;
    for (int s = 0; s < trainer->shape_count; s++)
        for (int i = 0; i < HDI_FLOW_INPUTS; i++)
            if (hdi_trainer_reads(trainer, s, hdi_flow_input_name((hdi_flow_input)i)))
                reads |= 1U << i;
    return reads;
}

static hd_status start(hdi_train_feed *feed, const hd_trainer *trainer)
{
    video_feed *it = (video_feed *)feed;
    const hdi_config *values = it->config->values;
    it->data_ranks = hd_mesh_size(trainer->options.mesh, HD_AXIS_DATA);
    return hdi_flow_feed_create(
        &(hdi_flow_feed_options){
            .source = {.dataset = it->dataset,
                       .buckets = &it->buckets,
                       .model = it->model,
                       .null_text = it->null_text,
                       .flow = flow_options(values, it->model),
                       .guidance = hdi_config_float(values, "video.guidance"),
                       .given_loss = hdi_config_bool(values, "video.given_loss")},
            .reads = inputs_read(trainer),
            .deal = hdi_trainer_deal(trainer),
            .validate_batches = trainer->options.validate_batches,
            .first_step = trainer->steps,
            .end_step = hdi_config_int(values, "train.steps")},
        &it->inputs);
}

static hd_status begin(hdi_train_feed *feed, int64_t step, int *shape)
{
    return hdi_flow_feed_begin(((video_feed *)feed)->inputs, step, shape);
}

static void end(hdi_train_feed *feed, const hd_trainer_shape *shape)
{
    video_feed *it = (video_feed *)feed;
    hdi_flow_feed_end(it->inputs);
    feed->samples += shape->sequences * shape->accumulate * it->data_ranks;
}

static hd_status validate(hdi_train_feed *feed, int part, int *shape)
{
    video_feed *it = (video_feed *)feed;
    if (part == 0) it->validated = 0;
    while (it->validated < it->buckets.count && !it->buckets.items[it->validated].validate)
        it->validated++;
    *shape = it->validated < it->buckets.count ? it->validated++ : -1;
    return *shape < 0 ? HD_OK : hdi_flow_feed_validate(it->inputs, *shape);
}

static hd_status fill(void *user, const char *name, int64_t global_batch, void *out, size_t bytes)
{
    return hdi_flow_feed_fill(((video_feed *)user)->inputs, name, global_batch, out, bytes);
}

static double tokens(const hdi_train_feed *feed, int shape)
{
    const video_feed *it = (const video_feed *)feed;
    const hdi_video_bucket *bucket = &it->buckets.items[shape];
    return (double)(bucket->step_samples * hdi_video_bucket_tokens(bucket, it->model));
}

static void destroy(hdi_train_feed *feed)
{
    video_feed *it = (video_feed *)feed;
    hdi_flow_feed_destroy(it->inputs);
    hdi_video_buckets_release(&it->buckets);
    hdi_free(it->null_text);
    hdi_video_dataset_close(it->dataset);
    hdi_free(it);
}

static hd_status open_data(video_feed *it)
{
    const char *path = hdi_config_string(it->config->values, "data.path");
    hdi_video_dataset_info info;
    if (!*path)
        return hdi_error(HD_ERROR_CONFIG, "data.path: seen nothing, want a folder of videos");
    HD_RETURN_IF_ERROR(hdi_video_dataset_open(path, &it->dataset));
    hdi_video_dataset_get_info(it->dataset, &info);
    it->feed.fingerprint = info.fingerprint;
    if (info.null_text < 0)
        HD_RETURN_IF_ERROR(hdi_null_text_read(
            it->model, hdi_config_string(it->config->values, "model.weights"),
            (uint64_t)hdi_config_int(it->config->values, "train.seed"), &it->null_text));
    if (info.null_text < 0 && !it->null_text && it->model->text_columns &&
        hdi_config_float(it->config->values, "video.text_dropout") > 0)
        hdi_log(HD_LOG_WARN, "%s: it has no null text; where the text is dropped there is none",
                path);
    return HD_OK;
}

hd_status hdi_train_videos(const hdi_train_target *on, hdi_train_feed **out_feed,
                           hd_trainer **out_trainer)
{
    hd_comm *world = hd_mesh_comm(on->mesh, HD_AXIS_NONE);
    video_feed *it = hdi_alloc(sizeof *it);
    hd_status status = it ? HD_OK : hdi_error(HD_ERROR_MEMORY, "train: out of host memory");
    if (it) {
        *out_feed = &it->feed;
        it->config = on->config;
        it->model = hd_model_video(on->model);
        it->feed = (hdi_train_feed){.entropy = (double)NAN,
                                    .start = start,
                                    .begin = begin,
                                    .end = end,
                                    .validate = validate,
                                    .fill = fill,
                                    .tokens = tokens,
                                    .destroy = destroy};
        status = open_data(it);
    }
    HD_RETURN_IF_ERROR(hd_comm_agree(world, status)); /* before the ranks talk about sizes */
    HD_RETURN_IF_ERROR(hdi_train_buckets(on, it->dataset, &it->buckets));
    return hdi_train_create(on, &it->buckets, out_trainer);
}
