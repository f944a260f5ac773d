/* Buckets: grouping, the share kept for validation, and the draw of a step's bucket. */
#include "jobs/train/video_buckets.h"

#include "core/error.h"
#include "core/memory.h"
#include "core/random.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "buckets: out of host memory");
}

void hdi_video_buckets_release(hdi_video_buckets *buckets)
{
    for (int i = 0; i < buckets->count; i++)
        hdi_free(buckets->items[i].samples);
    hdi_free(buckets->items);
    *buckets = (hdi_video_buckets){0};
}

static hdi_video_bucket *find(hdi_video_buckets *buckets, const int64_t size[3])
{
    for (int i = 0; i < buckets->count; i++) {
        const hd_video_shape *video = &buckets->items[i].shape.video;
        if (video->frames == size[0] && video->height == size[1] && video->width == size[2])
            return &buckets->items[i];
    }
    return NULL;
}

static hd_status add(hdi_video_buckets *buckets, const int64_t size[3], hdi_video_bucket **out)
{
    if (!HDI_GROW(buckets->items, buckets->count, buckets->capacity)) return out_of_memory();
    *out = &buckets->items[buckets->count++];
    **out =
        (hdi_video_bucket){.shape.video = {.frames = size[0], .height = size[1], .width = size[2]}};
    return HD_OK;
}

static hd_status take_sizes(const hdi_video_buckets_options *options, hdi_video_buckets *out)
{
    for (int i = 0; i < options->size_count; i++) {
        const char *text = options->sizes[i];
        int64_t size[3];
        int read = 0;
        const int found = sscanf(text, "%" SCNd64 "x%" SCNd64 "x%" SCNd64 "%n", &size[0], &size[1],
                                 &size[2], &read);
        const int64_t most = 1 << 20;
        bool good = found == 3 && !text[read];
        for (int k = 0; k < 3 && good; k++)
            good = size[k] >= 1 && size[k] <= most;
        if (!good)
            return hdi_error(
                HD_ERROR_CONFIG,
                "video.shapes: seen '%s', want frames x height x width of the latents, "
                "as in 33x32x56",
                text);
        hdi_video_bucket *bucket;
        if (!find(out, size)) HD_RETURN_IF_ERROR(add(out, size, &bucket));
    }
    return HD_OK;
}

static hd_status check_dataset(const hd_video_model *model, const hdi_video_dataset *dataset)
{
    hdi_video_dataset_info info;
    hdi_video_dataset_get_info(dataset, &info);
    const struct {
        const char *what;
        int64_t seen, wanted;
    } pairs[] = {{"channels", info.channels, model->channels},
                 {"text columns", info.text_columns, model->text_columns},
                 {"pooled columns", info.pooled_columns, model->pooled_columns}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        if (pairs[i].wanted && pairs[i].seen != pairs[i].wanted)
            return hdi_error(HD_ERROR_MISMATCH,
                             "data.path: samples have %" PRId64 " %s, the model wants %" PRId64,
                             pairs[i].seen, pairs[i].what, pairs[i].wanted);
    if (info.count < 1) return hdi_error(HD_ERROR_CONFIG, "data.path: it holds no samples");
    if (info.most_text_tokens > model->text_tokens && model->text_columns)
        return hdi_error(HD_ERROR_MISMATCH,
                         "data.path: a text has %" PRId64 " tokens, the model takes %" PRId64,
                         info.most_text_tokens, model->text_tokens);
    return HD_OK;
}

static hd_status put_sample(hdi_video_bucket *bucket, int64_t sample)
{
    if (bucket->train == bucket->capacity) {
        const int64_t capacity = bucket->capacity ? 2 * bucket->capacity : 16;
        int64_t *grown = hdi_realloc_array(bucket->samples, (size_t)bucket->capacity,
                                           (size_t)capacity, sizeof *grown);
        if (!grown) return out_of_memory();
        bucket->samples = grown;
        bucket->capacity = capacity;
    }
    bucket->samples[bucket->train++] = sample;
    return HD_OK;
}

static hd_status group(const hdi_video_buckets_options *options, hdi_video_buckets *out)
{
    const bool open = options->size_count == 0;
    const hdi_video_sample *sample;
    for (int64_t i = 0; (sample = hdi_video_dataset_sample(options->dataset, i)) != NULL; i++) {
        const int64_t *size = sample->dims + 1;
        hdi_video_bucket *bucket = find(out, size);
        if (!bucket && !open) continue;
        if (!bucket) HD_RETURN_IF_ERROR(add(out, size, &bucket));
        HD_RETURN_IF_ERROR(put_sample(bucket, i));
    }
    for (int i = 0; i < out->count; i++) {
        const hd_video_shape *video = &out->items[i].shape.video;
        if (!out->items[i].train)
            return hdi_error(HD_ERROR_CONFIG,
                             "video.shapes: data.path has no sample of %" PRId64 "x%" PRId64
                             "x%" PRId64,
                             video->frames, video->height, video->width);
    }
    return HD_OK;
}

/* A bucket's samples in an order that has nothing to do with theirs in the data set, the last of them
 * kept for validation. */
static hd_status split(hdi_video_bucket *bucket, double fraction)
{
    const int64_t count = bucket->train;
    int64_t *mixed = hdi_alloc_array((size_t)count, sizeof *mixed);
    if (!mixed) return out_of_memory();
    const uint64_t stream = hdi_random_stream("video.validation");
    for (int64_t i = 0; i < count; i++)
        mixed[i] = bucket->samples[hdi_random_permute(0, stream, (uint64_t)i, (uint64_t)count)];
    hdi_free(bucket->samples);
    bucket->samples = mixed;
    bucket->capacity = count;
    if (fraction > 0 && count > 1) {
        bucket->validate = (int64_t)((double)count * fraction);
        if (bucket->validate < 1) bucket->validate = 1;
        bucket->train = count - bucket->validate;
    }
    return HD_OK;
}

/* Whether every text that may come has `most` tokens. */
static bool is_even(const hdi_video_buckets_options *options, const hdi_video_bucket *bucket,
                    int64_t null_text, int64_t most)
{
    for (int64_t i = 0; i < bucket->train + bucket->validate; i++) {
        int64_t text = hdi_video_dataset_sample(options->dataset, bucket->samples[i])->text;
        if (text < 0) text = null_text;
        const hdi_video_text *found = hdi_video_dataset_text(options->dataset, text);
        if (found ? found->tokens != most : !options->own_null_text) return false;
    }
    const hdi_video_text *null = hdi_video_dataset_text(options->dataset, null_text);
    return !options->drops_text || (null ? null->tokens == most : options->own_null_text);
}

static void set_text(const hdi_video_buckets_options *options, hdi_video_bucket *bucket)
{
    hd_video_shape *video = &bucket->shape.video;
    video->masked_frames = options->masked_frames; /* of all alike: programs use the same weights */
    video->text = options->model->text_tokens;
    video->text_counts = true;
    if (!options->dataset) return;
    hdi_video_dataset_info info;
    hdi_video_dataset_get_info(options->dataset, &info);
    video->text = info.most_text_tokens > 0 ? info.most_text_tokens : 1;
    video->text_counts = !is_even(options, bucket, info.null_text, video->text);
}

static int larger_first(const void *left, const void *right)
{
    const hd_video_shape *a = &((const hdi_video_bucket *)left)->shape.video;
    const hd_video_shape *b = &((const hdi_video_bucket *)right)->shape.video;
    const int64_t sizes[][2] = {
        {a->frames * a->height * a->width, b->frames * b->height * b->width},
        {a->frames, b->frames},
        {a->height, b->height}};
    for (int i = 0; i < 3; i++)
        if (sizes[i][0] != sizes[i][1]) return sizes[i][0] > sizes[i][1] ? -1 : 1;
    return 0;
}

hd_status hdi_video_buckets_make(const hdi_video_buckets_options *options, hdi_video_buckets *out)
{
    *out = (hdi_video_buckets){0};
    hd_status status = HD_OK;
    if (options->dataset) status = check_dataset(options->model, options->dataset);
    if (status == HD_OK) status = take_sizes(options, out);
    if (status == HD_OK && options->dataset) status = group(options, out);
    for (int i = 0; i < out->count && options->dataset && status == HD_OK; i++)
        status = split(&out->items[i], options->validation_fraction);
    if (status == HD_OK && out->count == 0)
        status = hdi_error(HD_ERROR_CONFIG,
                           "video.shapes: seen nothing and no data.path, want one of them");
    if (status != HD_OK) {
        hdi_video_buckets_release(out);
        return status;
    }
    for (int i = 0; i < out->count; i++)
        set_text(options, &out->items[i]);
    qsort(out->items, (size_t)out->count, sizeof *out->items, larger_first);
    return HD_OK;
}

int64_t hdi_video_bucket_tokens(const hdi_video_bucket *bucket, const hd_video_model *model)
{
    const hd_video_shape *video = &bucket->shape.video;
    const int64_t sizes[] = {video->frames, video->height, video->width};
    int64_t patches = 1;
    for (int i = 0; i < 3; i++)
        patches *= (sizes[i] + model->patch[i] - 1) / model->patch[i];
    return patches + (model->text_columns ? video->text : 0);
}

int64_t hdi_video_bucket_sample(const hdi_video_bucket *bucket, uint64_t seed, int64_t index)
{
    const hd_video_shape *video = &bucket->shape.video;
    char name[96];
    snprintf(name, sizeof name, "video.order %" PRId64 "x%" PRId64 "x%" PRId64, video->frames,
             video->height, video->width);
    const uint64_t epoch = (uint64_t)(index / bucket->train);
    return bucket
        ->samples[hdi_random_permute(seed, hdi_random_stream(name) + epoch,
                                     (uint64_t)(index % bucket->train), (uint64_t)bucket->train)];
}

hd_status hdi_video_sampler_create(const hdi_video_buckets *buckets, uint64_t seed,
                                   hdi_video_sampler *out)
{
    *out = (hdi_video_sampler){.buckets = buckets, .seed = seed};
    out->taken = hdi_alloc_array((size_t)buckets->count, sizeof *out->taken);
    return out->taken ? HD_OK : out_of_memory();
}

void hdi_video_sampler_release(hdi_video_sampler *sampler)
{
    hdi_free(sampler->taken);
    *sampler = (hdi_video_sampler){0};
}

static int draw_bucket(const hdi_video_sampler *sampler, int64_t step)
{
    const hdi_video_buckets *buckets = sampler->buckets;
    double sum = 0;
    for (int i = 0; i < buckets->count; i++)
        sum += (double)buckets->items[i].train / (double)buckets->items[i].step_samples;
    double left = sum * (double)hdi_random_uniform(sampler->seed, hdi_random_stream("video.bucket"),
                                                   (uint64_t)step);
    int chosen = 0;
    while (chosen < buckets->count - 1) {
        left -= (double)buckets->items[chosen].train / (double)buckets->items[chosen].step_samples;
        if (left < 0) break;
        chosen++;
    }
    return chosen;
}

void hdi_video_sampler_at(hdi_video_sampler *sampler, int64_t step, int *bucket, int64_t *first)
{
    const hdi_video_buckets *buckets = sampler->buckets;
    if (step < sampler->step) {
        sampler->step = 0;
        memset(sampler->taken, 0, (size_t)buckets->count * sizeof *sampler->taken);
    }
    for (;; sampler->step++) {
        *bucket = draw_bucket(sampler, sampler->step);
        *first = sampler->taken[*bucket];
        if (sampler->step == step) return;
        sampler->taken[*bucket] += buckets->items[*bucket].step_samples;
    }
}
