/* Trainings by a configuration. */
#include "tests/support/hdt_job.h"

#include "tests/support/hdt_device.h"

#include <stdio.h>
#include <string.h>

enum { TEXT_BYTES = 6000, PATH_BYTES = 4200, DIRECTORIES = 8 };

/* Words in an order that a model can learn a little from. */
static void write_text(const char *path)
{
    static const char *const words[] = {"warp ", "weft ", "heddle ", "shed ", "reed.\n"};
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    for (int bytes = 0, i = 0; bytes < TEXT_BYTES; i++)
        bytes += fprintf(file, "%s", words[(i * i + i / 7) % 5]);
    ck_assert_int_eq(fclose(file), 0);
}

const char *hdt_job_text(void)
{
    static char path[PATH_BYTES];
    if (*path) return path;
    snprintf(path, sizeof path, "%s/text", hdt_shared_temp_dir());
    if (hd_comm_rank(hdt_world) == 0) write_text(path);
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    return path;
}

const char *hdt_job_directory(void)
{
    static char paths[DIRECTORIES][PATH_BYTES];
    static int runs;
    char *path = paths[runs % DIRECTORIES];
    snprintf(path, PATH_BYTES, "%s/run-%d", hdt_shared_temp_dir(), runs++);
    return path;
}

void hdt_set(hd_config *config, const char *key, const char *value)
{
    hdt_assert_ok(hd_config_set(config, key, value));
}

int hdt_set_words(hd_config *config, const char *settings)
{
    char words[1024], *rest;
    int ranks = 0;
    ck_assert_uint_lt(strlen(settings), sizeof words);
    snprintf(words, sizeof words, "%s", settings);
    for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *value = strchr(word, '=');
        if (!value) {
            (void)sscanf(rest, "%d ranks", &ranks);
            break;
        }
        *value = '\0';
        hdt_set(config, word, value + 1);
    }
    return ranks;
}

void hdt_set_number(hd_config *config, const char *key, int64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    hdt_set(config, key, text);
}

void hdt_set_table(hd_config *config, const char *const settings[][2], size_t count)
{
    for (size_t i = 0; i < count; i++)
        hdt_set(config, settings[i][0], settings[i][1]);
}

hd_config *hdt_job_config(const char *data, const char *directory, bool is_alone)
{
    hd_config *config;
    const char *const settings[][2] = {
        {"data.path", data},          {"run.directory", directory},
        {"run.device", hdt_device()}, {"run.transport", is_alone ? "self" : "auto"},
        {"run.share_gpu", "true"},    {"run.graphs", hdt_graphs() ? "true" : "false"},
    };
    hdt_assert_ok(hd_config_create(&config));
    hdt_set_all(config, settings);
    return config;
}

void hdt_take_refusal(hd_status status, char out[HDT_REFUSAL])
{
    if (status != HD_ERROR_BUDGET) hdt_assert_ok(status);
    snprintf(out, HDT_REFUSAL, "%s", status == HD_OK ? "" : hd_last_error());
}

void hdt_set_layout(hd_config *config, const hdt_job_layout *layout)
{
    const struct {
        const char *key;
        int value;
    } settings[] = {
        {"layout.data", layout->data},
        {"layout.pipeline", layout->pipeline},
        {"layout.chunks", layout->chunks},
        {"layout.sequence", layout->sequence},
        {"layout.ring", layout->ring},
        {"layout.tensor", layout->tensor},
        {"layout.shard_state", layout->shard_state},
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        if (settings[i].value > 0) hdt_set_number(config, settings[i].key, settings[i].value);
    if (!layout->waits) return;
    hdt_set(config, "train.activations", "recompute-host");
    hdt_set(config, "train.gradient_residency", "host");
    hdt_set(config, "train.residency", "host"); /* and with it the optimizer's state */
}

hd_status hdt_job_train(hd_config *config, hd_train_result *result)
{
    const hd_status status = hd_train_run(config, NULL, NULL, result);
    hd_config_destroy(config);
    return status;
}
