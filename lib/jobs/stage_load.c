/* Weights of a stage: this rank's parameters from heddle's or Hugging Face's files. */
#include "jobs/stages.h"

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "io/checkpoint.h"
#include "models/weights.h"
#include "runtime/session.h"

#include <inttypes.h>
#include <stdio.h>

/* Host memory of a parameter's piece while weights are loaded. */
enum { LOAD_ELEMENTS = 1 << 24 };

/* Where weights come from: one of the two. */
typedef struct source {
    const char *kind;           /* of a checkpoint's tensors */
    hdi_checkpoint *checkpoint; /* owned */
    hdi_weights *weights;       /* owned */
} source;

static hd_status check_stored(source *from, const hdi_entry *entry, const char *name)
{
    if (from->weights) return hdi_model_check_parameter(from->weights, entry->options);
    const hdi_checkpoint_tensor *tensor = hdi_checkpoint_find(from->checkpoint, name);
    const char *folder = hdi_checkpoint_folder(from->checkpoint);
    if (!tensor)
        return hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\" is missing: it holds another model",
                         folder, name);
    if (tensor->elements != entry->elements)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%s\" has %" PRId64 " elements, want %" PRId64, folder, name,
                         tensor->elements, entry->elements);
    return HD_OK;
}

static hd_status read_entry(hd_session *session, source *from, const hdi_entry *entry,
                            float *values)
{
    char name[512];
    const int length = snprintf(name, sizeof name, "%s/%s", from->kind, entry->name);
    if (length < 0 || (size_t)length >= sizeof name)
        return hdi_error(HD_ERROR_ARGUMENT, "parameter '%s': its name is too long", entry->name);
    HD_RETURN_IF_ERROR(check_stored(from, entry, name));
    for (int64_t at = 0; at < entry->elements; at += LOAD_ELEMENTS) {
        const int64_t left = entry->elements - at;
        const int64_t count = left < LOAD_ELEMENTS ? left : LOAD_ELEMENTS;
        if (from->weights)
            HD_RETURN_IF_ERROR(
                hdi_model_read_parameter(from->weights, entry->options, at, count, values));
        else
            HD_RETURN_IF_ERROR(
                hdi_checkpoint_read(from->checkpoint, name, at, count, HD_DTYPE_F32, values));
        HD_RETURN_IF_ERROR(hdi_session_write_flat(session, entry->first + at, count, values));
    }
    return HD_OK;
}

static hd_status read_all(hd_session *session, const hdi_layout *layout, source *from)
{
    int64_t largest = 1;
    for (int i = 0; i < layout->entry_count; i++)
        if (layout->entries[i].elements > largest) largest = layout->entries[i].elements;
    if (largest > LOAD_ELEMENTS) largest = LOAD_ELEMENTS;
    float *values = hdi_alloc_array((size_t)largest, sizeof *values);
    hd_status status = values ? HD_OK : hdi_error(HD_ERROR_MEMORY, "weights: out of host memory");
    for (int i = 0; i < layout->entry_count && status == HD_OK; i++)
        status = read_entry(session, from, &layout->entries[i], values);
    hdi_free(values);
    return status;
}

static hd_status open_source(const char *path, hd_comm *world, source *out)
{
    *out = (source){0};
    if (!hdi_checkpoint_exists(path)) return hdi_weights_open(path, &out->weights);
    char *warning = NULL;
    hd_status status = world
                           ? hdi_checkpoint_open_all(world, path, NULL, &warning, &out->checkpoint)
                           : hdi_checkpoint_open(path, NULL, &warning, &out->checkpoint);
    if (warning) hdi_log(HD_LOG_WARN, "%s", warning);
    hdi_free(warning);
    return status;
}

hd_status hdi_stage_load(hd_session *session, const hdi_layout *layout, hd_comm *world,
                         const char *path, const char *kind)
{
    const bool checkpoint = hdi_checkpoint_exists(path);
    if (world)
        HD_RETURN_IF_ERROR(
            hd_comm_check_equal(world, &checkpoint, sizeof checkpoint, "what the path holds"));
    source from;
    hd_status status = open_source(path, world, &from);
    from.kind = kind;
    if (status == HD_OK && session) status = read_all(session, layout, &from);
    hdi_checkpoint_close(from.checkpoint);
    hdi_weights_close(from.weights);
    return world ? hd_comm_agree(world, status) : status;
}
