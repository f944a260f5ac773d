/* A training job's checkpoints: what goes in, and taking it up again on any layout. */
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "jobs/train/train.h"
#include "models/weights.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "checkpoint: out of host memory");
}

typedef struct piece_list {
    hdi_train_job *job;
    hdi_checkpoint_piece *pieces;
    int count, capacity;
} piece_list;

static hd_status fetch_source(void *user, int64_t first, int64_t count, void *out)
{
    const hdi_train_source *source = user;
    hdi_glance_at_memory(source->trainer->session->context, HDI_WORK_SAVE);
    if (!source->device) return hdi_trainer_read(source->trainer, &source->part, first, count, out);
    const hd_context *context = source->trainer->session->context;
    HD_RETURN_IF_ERROR(context->backend->copy_out(context->stream, out, source->device + first,
                                                  (size_t)count * sizeof(float)));
    return context->backend->synchronize(context->stream);
}

static hd_status add_source(hdi_train_job *job, const hdi_trainer_part *part, const float *device,
                            hdi_train_source **out)
{
    hdi_train_source *source = *out = hdi_alloc(sizeof *source);
    if (!source) return out_of_memory();
    *source = (hdi_train_source){
        .trainer = job->trainer, .part = *part, .device = device, .next = job->sources};
    job->sources = source;
    return HD_OK;
}

/* Elements of a parameter that one piece holds. `data` is an address on the device or in the host's arena;
 * NULL: the values that weights and remainders make. */
static hd_status add_piece(piece_list *list, const char *kind, const hdi_trainer_part *part,
                           const float *data, hdi_checkpoint_piece piece)
{
    const bool is_here = data && (list->job->context->backend == &hdi_backend_cpu ||
                                  hdi_session_is_host(list->job->trainer->session, data));
    hdi_train_source *source = NULL;
    if (!is_here) HD_RETURN_IF_ERROR(add_source(list->job, part, data, &source));
    piece.name = hdi_format("%s/%s", kind, part->entry->name);
    piece.dtype = HD_DTYPE_F32;
    piece.data = is_here ? data : NULL;
    piece.fetch = fetch_source;
    piece.user = source;
    if (!piece.name || !HDI_GROW(list->pieces, list->count, list->capacity)) {
        hdi_free((void *)(uintptr_t)piece.name);
        return out_of_memory();
    }
    list->pieces[list->count++] = piece;
    return HD_OK;
}

/* A part as files have it: runs of the whole, or of some of its columns. */
static hd_status add_pieces(piece_list *list, const char *kind, const hdi_trainer_part *part,
                            const float *data)
{
    const hd_parameter_options *options = part->entry->options;
    hdi_checkpoint_piece piece = {.global_elements = hdi_shard_whole(options)};
    if (hdi_shard_is_part(options) && options->shard.dim == 1) {
        piece.begin = part->begin;
        piece.count = part->count;
        piece.first = options->shard.run[0].first;
        piece.width = options->shard.run[0].count;
        piece.columns = options->dims[1];
        return add_piece(list, kind, part, data, piece);
    }
    for (int64_t at = 0; at < part->count; at += piece.count) {
        hdi_trainer_part run = *part;
        run.begin += at;
        run.m += at; /* what is saved has state */
        piece.count = hdi_shard_run(options, run.begin, &piece.begin);
        if (piece.count > part->count - at) piece.count = part->count - at;
        run.count = piece.count;
        HD_RETURN_IF_ERROR(add_piece(list, kind, &run, data ? data + at : NULL, piece));
    }
    return HD_OK;
}

static hd_status add_part(void *user, const hdi_trainer_part *part)
{
    HD_RETURN_IF_ERROR(add_pieces(user, "weights", part, part->values));
    HD_RETURN_IF_ERROR(add_pieces(user, "adam_m", part, part->m));
    HD_RETURN_IF_ERROR(add_pieces(user, "adam_v", part, part->v));
    return part->average ? add_pieces(user, "ema", part, part->average) : HD_OK;
}

hd_status hdi_train_open_writer(hdi_train_job *job)
{
    piece_list list = {.job = job};
    hd_status status = hdi_trainer_saved_parts(job->trainer, add_part, &list);
    status = hd_comm_agree(job->world, status);
    if (status == HD_OK)
        status = hdi_checkpoint_writer_create(
            job->world, job->files.checkpoints,
            (int)hdi_config_int(job->config->values, "checkpoint.keep"), list.pieces, list.count,
            &job->writer);
    for (int i = 0; i < list.count; i++)
        hdi_free((void *)(uintptr_t)list.pieces[i].name);
    hdi_free(list.pieces);
    return status;
}

static char *state_text(const hdi_train_job *job)
{
    const hd_trainer *trainer = job->trainer;
    char scale[96] = "";
    if (trainer->options.dtype == HD_DTYPE_F16)
        snprintf(scale, sizeof scale, ", \"loss_scale\": %.17g, \"clean_steps\": %" PRId64,
                 trainer->loss_scale, trainer->clean_steps);
    return hdi_format(
        "{\"format\": 1, \"step\": %" PRId64 ", \"updates\": %" PRId64 ", \"samples\": %" PRId64
        ", \"seed\": %" PRIu64 ", \"data\": {\"fingerprint\": \"%016" PRIx64 "\"}"
        "%s, \"layout\": {\"ranks\": %d, \"data\": %d, \"pipeline\": %d, \"sequence\": %d, "
        "\"tensor\": %d}, \"model\": %s}",
        trainer->steps, trainer->updates, job->feed->samples, job->seed, job->feed->fingerprint,
        scale, hd_mesh_ranks(job->mesh), hd_mesh_size(job->mesh, HD_AXIS_DATA),
        hd_mesh_size(job->mesh, HD_AXIS_PIPELINE), hd_mesh_size(job->mesh, HD_AXIS_SEQUENCE),
        hd_mesh_size(job->mesh, HD_AXIS_TENSOR), hd_model_config_json(job->model));
}

hd_status hdi_train_save(hdi_train_job *job)
{
    char *state = state_text(job);
    hd_status status =
        hd_session_drain(job->trainer->session); /* ranks may gather in it: all do it */
    if (status == HD_OK && !state) status = out_of_memory();
    status = hd_comm_agree(job->world, status);
    if (status == HD_OK) status = hdi_checkpoint_save(job->writer, job->trainer->steps, state);
    hdi_watch_memory(job->context, HDI_WORK_SAVE);
    hdi_free(state);
    if (status == HD_OK && *hdi_checkpoint_writer_warning(job->writer))
        hdi_log(HD_LOG_WARN, "checkpoint: %s", hdi_checkpoint_writer_warning(job->writer));
    return status;
}

/* The state's integers; a missing one is an error of the file. */
static hd_status read_int(const json_t *state, const char *key, const char *folder, int64_t *out)
{
    const json_t *value = json_object_get(state, key);
    if (!json_is_integer(value))
        return hdi_error(HD_ERROR_FORMAT, "%s: state has no integer '%s'", folder, key);
    *out = json_integer_value(value);
    return HD_OK;
}

/* F16's loss scale; a checkpoint of another dtype has none, and the run starts with its own. */
static hd_status read_loss_scale(hd_trainer *trainer, const json_t *state, const char *folder)
{
    const json_t *value = json_object_get(state, "loss_scale");
    if (!value || trainer->options.dtype != HD_DTYPE_F16) return HD_OK;
    double scale = json_number_value(value);
    if (!json_is_number(value) || !(scale >= 1 && scale <= 0x1p32))
        return hdi_error(HD_ERROR_FORMAT, "%s: state: loss_scale is %g, want 1 to 2^32", folder,
                         scale);
    trainer->loss_scale = scale;
    return read_int(state, "clean_steps", folder, &trainer->clean_steps);
}

static hd_status check_model(const hdi_train_job *job, const json_t *state, const char *folder)
{
    json_t *mine = json_loads(hd_model_config_json(job->model), 0, NULL);
    bool same = mine && json_equal(mine, json_object_get(state, "model"));
    json_decref(mine);
    if (same) return HD_OK;
    char *theirs = json_dumps(json_object_get(state, "model"), JSON_COMPACT | JSON_SORT_KEYS);
    hd_status status = hdi_error(
        HD_ERROR_MISMATCH,
        "%s: holds another model: %s; the configuration has %s (give another run.directory, "
        "or checkpoint.resume=never)",
        folder, theirs ? theirs : "none", hd_model_config_json(job->model));
    hdi_free_foreign(theirs);
    return status;
}

static hd_status take_state(hdi_train_job *job, const hdi_checkpoint *checkpoint)
{
    const char *folder = hdi_checkpoint_folder(checkpoint);
    json_error_t error;
    json_t *state = json_loads(hdi_checkpoint_state(checkpoint), JSON_REJECT_DUPLICATES, &error);
    int64_t seed = 0;
    hd_status status = json_is_object(state)
                           ? HD_OK
                           : hdi_error(HD_ERROR_FORMAT, "%s: state: %s", folder, error.text);
    if (status == HD_OK) status = check_model(job, state, folder);
    if (status == HD_OK) status = read_int(state, "step", folder, &job->trainer->steps);
    if (status == HD_OK) status = read_int(state, "updates", folder, &job->trainer->updates);
    if (status == HD_OK) status = read_loss_scale(job->trainer, state, folder);
    if (status == HD_OK) status = read_int(state, "samples", folder, &job->feed->samples);
    if (status == HD_OK) status = read_int(state, "seed", folder, &seed);
    if (status == HD_OK && (uint64_t)seed != job->seed)
        status =
            hdi_error(HD_ERROR_MISMATCH,
                      "%s: was made with train.seed %" PRId64 ", the configuration has %" PRIu64,
                      folder, seed, job->seed);
    char mine[32];
    snprintf(mine, sizeof mine, "%016" PRIx64, job->feed->fingerprint);
    const char *theirs =
        json_string_value(json_object_get(json_object_get(state, "data"), "fingerprint"));
    if (status == HD_OK && (!theirs || strcmp(theirs, mine) != 0))
        hdi_log(HD_LOG_WARN, "%s: was trained on other data (fingerprint %s, now %s)", folder,
                theirs ? theirs : "none", mine);
    json_decref(state);
    return status;
}

typedef struct reader {
    hdi_checkpoint *checkpoint;
    hd_trainer *trainer;
    bool lacks_average; /* wanted, but not in the checkpoint */
} reader;

static hd_status copy_in(const hd_session *session, float *place, const float *values,
                         int64_t count)
{
    const hd_context *context = session->context;
    if (hdi_session_is_host(session, place)) {
        memcpy(place, values, (size_t)count * sizeof *values);
        return HD_OK;
    }
    HD_RETURN_IF_ERROR(
        context->backend->copy_in(context->stream, place, values, (size_t)count * sizeof *values));
    return context->backend->synchronize(context->stream);
}

/* A tensor of a checkpoint. */
typedef struct named_tensor {
    hdi_checkpoint *checkpoint;
    const char *name;
} named_tensor;

static hd_status read_whole(void *user, int64_t first, int64_t count, void *out)
{
    const named_tensor *from = user;
    return hdi_checkpoint_read(from->checkpoint, from->name, first, count, HD_DTYPE_F32, out);
}

/* Read one range of a tensor to where it lives, through a host piece of bounded size; `state` is
 * the place of a moment, NULL for the weights' values. */
static hd_status read_range(const reader *r, const char *kind, const hdi_trainer_part *part,
                            float *state)
{
    enum { PIECE = 1 << 20 };
    char *name = hdi_format("%s/%s", kind, part->entry->name);
    float *values = hdi_alloc_array(PIECE, sizeof *values);
    named_tensor from = {r->checkpoint, name};
    hd_status status = name && values ? HD_OK : out_of_memory();
    for (int64_t done = 0; done < part->count && status == HD_OK; done += PIECE) {
        int64_t count = part->count - done < PIECE ? part->count - done : PIECE;
        status = hdi_shard_read(part->entry->options, part->begin + done, count, sizeof *values,
                                read_whole, &from, values);
        if (status == HD_OK)
            status = state ? copy_in(r->trainer->session, state + done, values, count)
                           : hdi_trainer_write(r->trainer, part->entry, part->begin + done, count,
                                               values);
    }
    hdi_free(values);
    hdi_free(name);
    return status;
}

static hd_status has_average(const reader *r, const hdi_trainer_part *part, bool *has)
{
    char *name = hdi_format("ema/%s", part->entry->name);
    if (!name) return out_of_memory();
    *has = hdi_checkpoint_find(r->checkpoint, name) != NULL;
    hdi_free(name);
    return HD_OK;
}

static hd_status read_part(void *user, const hdi_trainer_part *part)
{
    reader *r = user;
    bool has = false;
    HD_RETURN_IF_ERROR(read_range(r, "weights", part, NULL));
    if (!part->m) return HD_OK;
    HD_RETURN_IF_ERROR(read_range(r, "adam_m", part, part->m));
    HD_RETURN_IF_ERROR(read_range(r, "adam_v", part, part->v));
    if (!part->average) return HD_OK;
    HD_RETURN_IF_ERROR(has_average(r, part, &has));
    r->lacks_average = r->lacks_average || !has;
    return has ? read_range(r, "ema", part, part->average) : HD_OK;
}

/* Read the newest checkpoint that verifies; *damaged if its content turned out to be bad. */
static hd_status take_up(hdi_train_job *job, bool verify, bool *damaged)
{
    char *warning = NULL;
    reader r = {.trainer = job->trainer};
    *damaged = false;
    hd_status status = hdi_checkpoint_open_all(job->world, job->files.checkpoints,
                                               &(hdi_checkpoint_options){.verify_all = verify},
                                               &warning, &r.checkpoint);
    if (warning) hdi_log(HD_LOG_WARN, "%s", warning);
    hdi_free(warning);
    if (status == HD_OK) status = hd_comm_agree(job->world, take_state(job, r.checkpoint));
    if (status == HD_OK) {
        status = hdi_trainer_loaded_parts(job->trainer, read_part, &r);
        if (status == HD_OK && r.lacks_average) status = hdi_trainer_reset_average(job->trainer);
        status = hd_comm_agree(job->world, status);
        *damaged = status != HD_OK;
    }
    hdi_checkpoint_close(r.checkpoint);
    return status;
}

hd_status hdi_train_resume(hdi_train_job *job)
{
    const hdi_config *values = job->config->values;
    const char *resume = hdi_config_string(values, "checkpoint.resume");
    if (strcmp(resume, "never") == 0) return HD_OK;
    int exists = hdi_checkpoint_exists(job->files.checkpoints);
    hd_request request;
    HD_RETURN_IF_ERROR(hd_comm_broadcast(job->world, &exists, sizeof exists, 0, &request));
    HD_RETURN_IF_ERROR(hd_comm_wait(job->world, &request));
    if (!exists && strcmp(resume, "require") == 0)
        return hdi_error(HD_ERROR_IO, "%s: holds no checkpoint, and checkpoint.resume is 'require'",
                         job->files.checkpoints);
    if (!exists) return HD_OK;
    const bool verify = hdi_config_bool(values, "checkpoint.verify");
    bool damaged;
    hd_status status = take_up(job, verify, &damaged);
    if (damaged && !verify) {
        /* Sums of what is read are checked on the way. One that fails makes it worth to check
         * everything, and to choose again. */
        hdi_log(HD_LOG_WARN, "checking every byte of the checkpoints: %s", hd_last_error());
        status = take_up(job, true, &damaged);
    }
    if (status == HD_OK)
        hdi_log(HD_LOG_INFO, "resumed from step %" PRId64 " in %s", job->trainer->steps,
                job->files.checkpoints);
    return status;
}

typedef struct weights_reader {
    hdi_weights *weights;
    hd_trainer *trainer;
    const hd_parameter_options *parameter; /* that is read now */
} weights_reader;

static hd_status read_parameter(void *user, int64_t first, int64_t count, void *out)
{
    const weights_reader *r = user;
    return hdi_model_read_parameter(r->weights, r->parameter, first, count, out);
}

static hd_status read_weights(void *user, const hdi_trainer_part *part)
{
    enum { PIECE = 1 << 20 };
    weights_reader *r = user;
    r->parameter = part->entry->options;
    float *values = hdi_alloc_array(PIECE, sizeof *values);
    hd_status status = values ? HD_OK : out_of_memory();
    for (int64_t done = 0; done < part->count && status == HD_OK; done += PIECE) {
        int64_t count = part->count - done < PIECE ? part->count - done : PIECE;
        status = hdi_shard_read(r->parameter, part->begin + done, count, sizeof *values,
                                read_parameter, r, values);
        if (status == HD_OK)
            status = hdi_trainer_write(r->trainer, part->entry, part->begin + done, count, values);
    }
    hdi_free(values);
    return status;
}

hd_status hdi_train_load_weights(hdi_train_job *job)
{
    const char *path = hdi_config_string(job->config->values, "model.weights");
    if (!*path || job->trainer->steps > 0) return HD_OK;
    weights_reader r = {.trainer = job->trainer};
    hd_status status = hdi_weights_open(path, &r.weights);
    if (status == HD_OK) status = hdi_trainer_loaded_parts(job->trainer, read_weights, &r);
    hdi_weights_close(r.weights);
    if (status == HD_OK) status = hdi_trainer_reset_average(job->trainer);
    return hd_comm_agree(job->world, status);
}
