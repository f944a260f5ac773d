/* Windows of text for token models: those of a step are read while the device computes the one before. */
#include "jobs/train/train.h"

#include "core/error.h"
#include "core/memory.h"
#include "io/dataset.h"

#include <string.h>

typedef struct token_feed {
    hdi_train_feed feed;
    hdi_dataset *dataset; /* owned */
    int64_t micro_batch, tokens;
    uint64_t seed;
    int32_t *window;         /* [tokens + 1] owned */
    hdi_dataset_split split; /* that fill reads, */
    int64_t first_sample;    /* from here on */
    int64_t step_samples;    /* of all ranks */
    int64_t *batches;        /* [most_batches] that this rank asks for in a step, in order; owned */
    int batch_count, most_batches;
    int32_t *windows;      /* [most_batches][micro_batch][tokens + 1] of them, owned, */
    int window_batches;    /* of the first so many of them, */
    int64_t windows_first; /* for the step that begins with this sample; -1: none */
} token_feed;

static hd_status start(hdi_train_feed *feed, const hd_trainer *trainer)
{
    token_feed *it = (token_feed *)feed;
    const hd_trainer_shape *shape = &trainer->shapes[0].is;
    it->step_samples =
        shape->sequences * shape->accumulate * hd_mesh_size(trainer->options.mesh, HD_AXIS_DATA);
    it->most_batches = shape->accumulate;
    it->windows_first = -1;
    it->batches = hdi_alloc_array((size_t)it->most_batches, sizeof *it->batches);
    it->windows = hdi_alloc_array((size_t)(it->most_batches * it->micro_batch * (it->tokens + 1)),
                                  sizeof *it->windows);
    return it->batches && it->windows ? HD_OK
                                      : hdi_error(HD_ERROR_MEMORY, "train: out of host memory");
}

static hd_status begin(hdi_train_feed *feed, int64_t step, int *shape)
{
    token_feed *it = (token_feed *)feed;
    (void)step;
    it->split = HDI_DATASET_TRAIN;
    it->first_sample = feed->samples;
    *shape = 0;
    return HD_OK;
}

static void end(hdi_train_feed *feed, const hd_trainer_shape *shape)
{
    (void)shape;
    feed->samples += ((token_feed *)feed)->step_samples;
}

static hd_status validate(hdi_train_feed *feed, int part, int *shape)
{
    token_feed *it = (token_feed *)feed;
    it->split = HDI_DATASET_VALIDATION;
    it->first_sample = 0;
    *shape = part == 0 ? 0 : -1;
    return HD_OK;
}

/* What cannot be read now, fill will say. */
static void ahead(hdi_train_feed *feed)
{
    token_feed *it = (token_feed *)feed;
    const int64_t first = feed->samples + it->step_samples;
    it->windows_first = -1;
    for (int b = 0; b < it->batch_count; b++)
        for (int64_t row = 0; row < it->micro_batch; row++) {
            const int64_t sample = first + it->batches[b] * it->micro_batch + row;
            int32_t *window = it->windows + (b * it->micro_batch + row) * (it->tokens + 1);
            if (hdi_dataset_window(it->dataset, HDI_DATASET_TRAIN, it->seed, sample, window))
                return;
        }
    it->windows_first = first;
    it->window_batches = it->batch_count;
}

/* Which of the step's batches of this rank it is, from now on if there is room; -1: another. */
static int index_of(token_feed *it, int64_t batch)
{
    for (int b = 0; b < it->batch_count; b++)
        if (it->batches[b] == batch) return b;
    if (it->split != HDI_DATASET_TRAIN || it->batch_count == it->most_batches) return -1;
    it->batches[it->batch_count] = batch;
    return it->batch_count++;
}

static hd_status find_window(token_feed *it, int64_t batch, int64_t row, const int32_t **out)
{
    const bool is_here = it->split == HDI_DATASET_TRAIN && it->windows_first == it->first_sample;
    const int index = index_of(it, batch);
    if (is_here && index >= 0 && index < it->window_batches) {
        *out = it->windows + (index * it->micro_batch + row) * (it->tokens + 1);
        return HD_OK;
    }
    *out = it->window;
    return hdi_dataset_window(it->dataset, it->split, it->seed,
                              it->first_sample + batch * it->micro_batch + row, it->window);
}

static hd_status fill(void *user, const char *name, int64_t global_batch, void *out, size_t bytes)
{
    token_feed *it = user;
    const int shift = strcmp(name, "targets") == 0;
    int32_t *ids = out;
    const size_t row_bytes = (size_t)it->tokens * sizeof *ids;
    for (int64_t row = 0; row < (int64_t)(bytes / row_bytes); row++) {
        const int32_t *window;
        HD_RETURN_IF_ERROR(find_window(it, global_batch, row, &window));
        memcpy(ids + row * it->tokens, window + shift, row_bytes);
    }
    return HD_OK;
}

static void destroy(hdi_train_feed *feed)
{
    token_feed *it = (token_feed *)feed;
    hdi_dataset_close(it->dataset);
    hdi_free(it->window);
    hdi_free(it->batches);
    hdi_free(it->windows);
    hdi_free(it);
}

static hd_status open_data(token_feed *it, const hdi_config *values, const hd_model *model)
{
    const char *path = hdi_config_string(values, "data.path");
    if (!*path)
        return hdi_error(HD_ERROR_CONFIG, "data.path: seen nothing, want a file or a folder");
    HD_RETURN_IF_ERROR(hdi_dataset_open(
        &(hdi_dataset_options){.path = path,
                               .seq_len = it->tokens,
                               .vocab_size = hd_model_vocab(model),
                               .validation_fraction =
                                   hdi_config_float(values, "data.validation_fraction")},
        &it->dataset));
    HD_RETURN_IF_ERROR(hdi_dataset_entropy(it->dataset, &it->feed.entropy));
    return hdi_dataset_fingerprint(it->dataset, &it->feed.fingerprint);
}

hd_status hdi_train_tokens(const hd_config *config, const hd_model *model, hdi_train_feed **out)
{
    const hdi_config *values = config->values;
    token_feed *it = hdi_alloc(sizeof *it);
    if (!it) return hdi_error(HD_ERROR_MEMORY, "train: out of host memory");
    *out = &it->feed;
    it->feed = (hdi_train_feed){.start = start,
                                .begin = begin,
                                .ahead = ahead,
                                .end = end,
                                .validate = validate,
                                .fill = fill,
                                .destroy = destroy};
    it->micro_batch = hdi_config_int(values, "train.micro_batch");
    it->tokens = hdi_config_int(values, "train.tokens");
    it->seed = (uint64_t)hdi_config_int(values, "train.seed");
    it->window = hdi_alloc_array((size_t)it->tokens + 1, sizeof *it->window);
    if (!it->window) return hdi_error(HD_ERROR_MEMORY, "train: out of host memory");
    return open_data(it, values, model);
}
