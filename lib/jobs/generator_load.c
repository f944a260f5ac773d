/* Weights of a generator: this rank's parameters from heddle's or Hugging Face's files. */
#include "jobs/generator.h"

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "io/checkpoint.h"
#include "models/weights.h"

#include <inttypes.h>
#include <stdio.h>

/* Where weights come from: one of the two. */
typedef struct source {
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

static hd_status read_entry(hd_generator *generator, source *from, const hdi_entry *entry,
                            float *values)
{
    char name[512];
    const int length = snprintf(name, sizeof name, "weights/%s", entry->name);
    if (length < 0 || (size_t)length >= sizeof name)
        return hdi_error(HD_ERROR_ARGUMENT, "parameter '%s': its name is too long", entry->name);
    HD_RETURN_IF_ERROR(check_stored(from, entry, name));
    for (int64_t at = 0; at < entry->elements; at += HDI_LOAD_ELEMENTS) {
        const int64_t left = entry->elements - at;
        const int64_t count = left < HDI_LOAD_ELEMENTS ? left : HDI_LOAD_ELEMENTS;
        if (from->weights)
            HD_RETURN_IF_ERROR(
                hdi_model_read_parameter(from->weights, entry->options, at, count, values));
        else
            HD_RETURN_IF_ERROR(
                hdi_checkpoint_read(from->checkpoint, name, at, count, HD_DTYPE_F32, values));
        HD_RETURN_IF_ERROR(
            hdi_session_write_flat(generator->session, entry->first + at, count, values));
    }
    return HD_OK;
}

static hd_status read_all(hd_generator *generator, source *from)
{
    const hdi_layout *layout = generator->plan->layout;
    int64_t largest = 1;
    for (int i = 0; i < layout->entry_count; i++)
        if (layout->entries[i].elements > largest) largest = layout->entries[i].elements;
    if (largest > HDI_LOAD_ELEMENTS) largest = HDI_LOAD_ELEMENTS;
    float *values = hdi_alloc_array((size_t)largest, sizeof *values);
    hd_status status = values ? HD_OK : hdi_error(HD_ERROR_MEMORY, "generator: out of host memory");
    for (int i = 0; i < layout->entry_count && status == HD_OK; i++)
        status = read_entry(generator, from, &layout->entries[i], values);
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

hd_status hd_generator_load(hd_generator *generator, const char *path)
{
    if (!generator->session) return hdi_error(HD_ERROR_ARGUMENT, "generator: load before start");
    hd_comm *world = hd_mesh_comm(generator->options.mesh, HD_AXIS_NONE);
    const bool checkpoint = hdi_checkpoint_exists(path);
    if (world)
        HD_RETURN_IF_ERROR(
            hd_comm_check_equal(world, &checkpoint, sizeof checkpoint, "what the path holds"));
    source from;
    hd_status status = open_source(path, world, &from);
    if (status == HD_OK) status = read_all(generator, &from);
    hdi_checkpoint_close(from.checkpoint);
    hdi_weights_close(from.weights);
    return world ? hd_comm_agree(world, status) : status;
}
