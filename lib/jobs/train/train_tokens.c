/* Windows of text for token models. */
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
    int data_ranks;
} token_feed;

static hd_status start(hdi_train_feed *feed, const hd_trainer *trainer)
{
    token_feed *it = (token_feed *)feed;
    it->data_ranks = hd_mesh_size(trainer->options.mesh, HD_AXIS_DATA);
    return HD_OK;
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
    feed->samples += shape->sequences * shape->accumulate * ((token_feed *)feed)->data_ranks;
}

static hd_status validate(hdi_train_feed *feed, int part, int *shape)
{
    token_feed *it = (token_feed *)feed;
    it->split = HDI_DATASET_VALIDATION;
    it->first_sample = 0;
    *shape = part == 0 ? 0 : -1;
    return HD_OK;
}

static hd_status fill(void *user, const char *name, int64_t global_batch, void *out, size_t bytes)
{
    const token_feed *it = user;
    const int shift = strcmp(name, "targets") == 0;
    int32_t *ids = out;
    size_t row_bytes = (size_t)it->tokens * sizeof *ids;
    for (int64_t row = 0; row < (int64_t)(bytes / row_bytes); row++) {
        int64_t sample = it->first_sample + global_batch * it->micro_batch + row;
        HD_RETURN_IF_ERROR(
            hdi_dataset_window(it->dataset, it->split, it->seed, sample, it->window));
        memcpy(ids + row * it->tokens, it->window + shift, row_bytes);
    }
    return HD_OK;
}

static void destroy(hdi_train_feed *feed)
{
    token_feed *it = (token_feed *)feed;
    hdi_dataset_close(it->dataset);
    hdi_free(it->window);
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
