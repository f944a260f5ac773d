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
    const int64_t elements = hdi_shard_whole(entry->options);
    if (tensor->elements != elements)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: tensor \"%s\" has %" PRId64 " elements, want %" PRId64, folder, name,
                         tensor->elements, elements);
    return HD_OK;
}

/* A parameter as `dtype`, which is the file's or F32. */
typedef struct stored {
    const source *from;
    const hd_parameter_options *options;
    const char *name;
    hd_dtype dtype;
} stored;

static hd_status read_whole(void *user, int64_t first, int64_t count, void *out)
{
    const stored *it = user;
    if (it->from->weights)
        return hdi_model_copy_parameter(it->from->weights, it->options, it->dtype, first, count,
                                        out);
    return hdi_checkpoint_read(it->from->checkpoint, it->name, first, count, it->dtype, out);
}

/* Values that need no rounding go where they belong, on the host without a copy between; others become
 * fp32 first. `room` holds LOAD_ELEMENTS. */
static hd_status read_entry(hd_session *session, source *from, const hdi_entry *entry, float *room)
{
    char name[512];
    const int length = snprintf(name, sizeof name, "%s/%s", from->kind, entry->name);
    if (length < 0 || (size_t)length >= sizeof name)
        return hdi_error(HD_ERROR_ARGUMENT, "parameter '%s': its name is too long", entry->name);
    HD_RETURN_IF_ERROR(check_stored(from, entry, name));
    const hd_dtype own = hdi_session_weights_dtype(session);
    const bool straight =
        own == HD_DTYPE_F32 ||
        (from->weights && hdi_model_is_stored_as(from->weights, entry->options, own));
    stored as = {from, entry->options, name, straight ? own : HD_DTYPE_F32};
    int64_t first = entry->first, elements = entry->elements; /* of which this rank keeps these */
    hdi_session_clip(session, entry, &first, &elements);
    const int64_t begin = first - entry->first, end = begin + elements;
    for (int64_t at = begin; at < end; at += LOAD_ELEMENTS) {
        const int64_t left = end - at;
        const int64_t count = left < LOAD_ELEMENTS ? left : LOAD_ELEMENTS;
        char *host = NULL;
        if (straight)
            HD_RETURN_IF_ERROR(hdi_session_host_weights(session, entry->first + at, &host));
        HD_RETURN_IF_ERROR(hdi_shard_read(entry->options, at, count, hd_dtype_bytes(as.dtype),
                                          read_whole, &as, host ? (void *)host : room));
        if (!straight)
            HD_RETURN_IF_ERROR(hdi_session_write_flat(session, entry->first + at, count, room));
        else if (!host)
            HD_RETURN_IF_ERROR(hdi_session_write_weights(session, entry->first + at, count, room));
    }
    return HD_OK;
}

/* Room from the device's backend: copies from it to a GPU take no detour. */
static hd_status read_all(hd_session *session, const hdi_layout *layout, source *from)
{
    const hd_context *context = session->context;
    int64_t largest = 1;
    for (int i = 0; i < layout->entry_count; i++)
        if (layout->entries[i].elements > largest) largest = layout->entries[i].elements;
    if (largest > LOAD_ELEMENTS) largest = LOAD_ELEMENTS;
    const size_t bytes = (size_t)largest * sizeof(float);
    void *room;
    HD_RETURN_IF_ERROR(context->backend->reserve_host(context->device, bytes, &room));
    hd_status status = HD_OK;
    for (int i = 0; i < layout->entry_count && status == HD_OK; i++) {
        status = hdi_streaming_forget(session, i);
        if (status == HD_OK && hdi_streaming_is_mine(session, i))
            status = read_entry(session, from, &layout->entries[i], room);
    }
    context->backend->release_host(context->device, room, bytes);
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
