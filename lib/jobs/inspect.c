/* What is in a file or folder: safetensors, checkpoints, runs. */
#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "io/checkpoint.h"
#include "io/weights_index.h"
#include "jobs/listing.h"
#include "models/model.h"
#include "report/format.h"
#include "report/metrics.h"

#include <heddle/job.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

enum {
    NAME_BYTES = 512,
    NAME_COLUMNS = 48, /* widest column of names; longer ones push their line to the right */
    DIMS_BYTES = 192
};

/* Checkpoints above this size are not read through: their headers and sizes are checked. */
static const int64_t read_through_bytes = INT64_C(4) << 30;

static int name_columns(size_t length, int widest)
{
    const int columns = length < NAME_COLUMNS ? (int)length : NAME_COLUMNS;
    return columns > widest ? columns : widest;
}

static void list_tensors(hdi_listing *to, const hdi_weights *weights)
{
    char name[NAME_BYTES], dims[DIMS_BYTES];
    int widest = 4;
    for (int i = 0; i < hdi_weights_count(weights); i++)
        widest = name_columns(strlen(hdi_weights_get(weights, i, NULL)->name), widest);
    hdi_list(to, "%-*s  %-8s %-20s %14s\n", widest, "name", "dtype", "shape", "bytes");
    for (int i = 0; i < hdi_weights_count(weights) && !to->stopped; i++) {
        const hdi_safetensors_tensor *tensor = hdi_weights_get(weights, i, NULL);
        hdi_list(to, "%-*s  %-8s %-20s %14" PRId64 "\n", widest,
                 hdi_list_safe(tensor->name, name, sizeof name), hd_dtype_name(tensor->dtype),
                 hdi_list_dims(tensor->rank, tensor->dims, dims, sizeof dims), tensor->bytes);
    }
}

static void list_metadata(hdi_listing *to, const hdi_safetensors *file)
{
    char key[NAME_BYTES], value[NAME_BYTES];
    for (int i = 0; i < hdi_safetensors_metadata_count(file); i++) {
        const char *raw_key, *raw_value;
        hdi_safetensors_metadata_get(file, i, &raw_key, &raw_value);
        hdi_list(to, "metadata %s = %s\n", hdi_list_safe(raw_key, key, sizeof key),
                 hdi_list_safe(raw_value, value, sizeof value));
    }
}

static hd_status inspect_weights(hdi_listing *to, const char *path)
{
    hdi_weights *weights;
    HD_RETURN_IF_ERROR(hdi_weights_open(path, &weights));
    int64_t elements = 0, bytes = 0;
    for (int i = 0; i < hdi_weights_count(weights); i++) {
        elements += hdi_weights_get(weights, i, NULL)->elements;
        bytes += hdi_weights_get(weights, i, NULL)->bytes;
    }
    hdi_list(to, "%s: safetensors, %d file%s, %d tensors, %" PRId64 " elements, %s\n", path,
             hdi_weights_file_count(weights), hdi_weights_file_count(weights) == 1 ? "" : "s",
             hdi_weights_count(weights), elements, hdi_bytes((size_t)bytes).text);
    const char *family, *layout;
    if (hdi_model_layout_of(weights, &family, &layout))
        hdi_list(to, "names of %s, layout %s\n", family, layout);
    for (int i = 0; i < hdi_weights_file_count(weights); i++)
        list_metadata(to, hdi_weights_file(weights, i));
    list_tensors(to, weights);
    hdi_weights_close(weights);
    return HD_OK;
}

/* The state that a job saved, one line for each of its keys. */
static void list_state(hdi_listing *to, const char *text)
{
    json_t *state = json_loads(text, 0, NULL);
    const char *key;
    json_t *value;
    json_object_foreach(state, key, value)
    {
        char name[NAME_BYTES];
        char *shown = json_dumps(value, JSON_ENCODE_ANY);
        hdi_list(to, "state %s = %s\n", hdi_list_safe(key, name, sizeof name), shown ? shown : "?");
        hdi_free_foreign(shown);
    }
    json_decref(state);
}

static void list_checkpoint_tensors(hdi_listing *to, const hdi_checkpoint *checkpoint)
{
    char name[NAME_BYTES];
    int widest = 4;
    for (int i = 0; i < hdi_checkpoint_count(checkpoint); i++)
        widest = name_columns(strlen(hdi_checkpoint_get(checkpoint, i)->name), widest);
    hdi_list(to, "%-*s  %-8s %14s %14s %7s\n", widest, "name", "dtype", "elements", "bytes",
             "pieces");
    for (int i = 0; i < hdi_checkpoint_count(checkpoint) && !to->stopped; i++) {
        const hdi_checkpoint_tensor *tensor = hdi_checkpoint_get(checkpoint, i);
        hdi_list(to, "%-*s  %-8s %14" PRId64 " %14" PRId64 " %7d\n", widest,
                 hdi_list_safe(tensor->name, name, sizeof name), hd_dtype_name(tensor->dtype),
                 tensor->elements, tensor->elements * (int64_t)hd_dtype_bytes(tensor->dtype),
                 tensor->pieces);
    }
}

static hd_status inspect_checkpoint(hdi_listing *to, const char *path)
{
    char *warning = NULL;
    hdi_checkpoint *checkpoint;
    hd_status status = hdi_checkpoint_open(path, NULL, &warning, &checkpoint);
    if (warning) hdi_list(to, "warning: %s\n", warning);
    hdi_free(warning);
    if (status != HD_OK) return status;

    const int files = hdi_checkpoint_file_count(checkpoint);
    hdi_list(to, "%s: checkpoint of step %" PRId64 ", written by %d rank%s, %d tensors, %s\n",
             hdi_checkpoint_folder(checkpoint), hdi_checkpoint_step(checkpoint), files,
             files == 1 ? "" : "s", hdi_checkpoint_count(checkpoint),
             hdi_bytes((size_t)hdi_checkpoint_bytes(checkpoint)).text);
    if (hdi_checkpoint_bytes(checkpoint) <= read_through_bytes) {
        status = hdi_checkpoint_verify(checkpoint);
        if (status == HD_OK) hdi_list(to, "verified: every block has the sum that was saved\n");
    } else {
        hdi_list(to, "verified: manifest, sizes and headers; too large to read through here\n");
    }
    if (status == HD_OK) {
        list_state(to, hdi_checkpoint_state(checkpoint));
        list_checkpoint_tensors(to, checkpoint);
    }
    hdi_checkpoint_close(checkpoint);
    return status;
}

/* The newest numbers of metrics.jsonl. */
static hd_status list_metrics(hdi_listing *to, const char *path)
{
    static const char *const fields[] = {"step",
                                         "loss",
                                         "validation_loss",
                                         "grad_norm",
                                         "learning_rate",
                                         "tokens_per_second",
                                         "exposed_copies_seconds",
                                         "exposed_communication_seconds",
                                         "exposed_host_seconds",
                                         "exposed_of_seconds"};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        double value;
        bool found;
        HD_RETURN_IF_ERROR(hdi_metrics_last(path, fields[i], &value, &found));
        if (found) hdi_list(to, "last %s = %.9g\n", fields[i], value);
    }
    return HD_OK;
}

static hd_status inspect_run(hdi_listing *to, const char *path, const char *metrics)
{
    hdi_list(to, "%s: run\n", path);
    HD_RETURN_IF_ERROR(list_metrics(to, metrics));
    if (hdi_checkpoint_exists(path)) return inspect_checkpoint(to, path);
    hdi_list(to, "no checkpoint yet\n");
    return HD_OK;
}

hd_status hd_inspect_run(const char *path, hd_write_fn write, void *user)
{
    if (!path || !write) return hdi_error(HD_ERROR_ARGUMENT, "inspect: path or write is NULL");
    hdi_listing to = {.write = write, .user = user};
    char *metrics = hdi_path_join(path, "metrics.jsonl");
    if (!metrics) return hdi_error(HD_ERROR_MEMORY, "inspect: out of host memory");
    hd_status status;
    if (!hdi_file_exists(path))
        status = hdi_error(HD_ERROR_IO, "%s: there is no such file or folder", path);
    else if (hdi_file_exists(metrics))
        status = inspect_run(&to, path, metrics);
    else if (hdi_checkpoint_exists(path))
        status = inspect_checkpoint(&to, path);
    else
        status = inspect_weights(&to, path);
    hdi_free(metrics);
    return status == HD_OK ? hdi_list_end(&to) : status;
}
