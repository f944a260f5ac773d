/* World and mesh of a job, and the check that all ranks were given the same settings. */
#include "jobs/setup.h"

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/number.h"
#include "core/text.h"
#include "report/format.h"
#include "runtime/gpu.h"
#include "runtime/session.h"
#include "runtime/transport.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

hd_status hdi_job_open_world(const hd_config *config, hd_comm **out)
{
    *out = NULL;
    const hd_transport transports[] = {HD_TRANSPORT_AUTO, HD_TRANSPORT_SELF, HD_TRANSPORT_MPI};
    const hd_comm_options options = {
        .transport = transports[hdi_config_enum(config->values, "run.transport")],
        .deadline_seconds = hdi_config_float(config->values, "run.deadline")};
    HD_RETURN_IF_ERROR(hd_comm_create_world(&options, out));
    hdi_log_set_rank(hd_comm_rank(*out));
    return HD_OK;
}

/* Where a job writes, on what and how it runs is each host's own business. */
static bool must_agree(const hdi_config_row *row)
{
    return strncmp(row->key, "run.", 4) != 0;
}

static void append_value(const hdi_config *values, const hdi_config_row *row, hdi_text *text)
{
    int count;
    switch (row->type) {
    case HDI_CONFIG_BOOL:
        hdi_text_append(text, hdi_config_bool(values, row->key) ? "true" : "false");
        return;
    case HDI_CONFIG_INT:
        hdi_text_printf(text, "%" PRId64, hdi_config_int(values, row->key));
        return;
    case HDI_CONFIG_BYTES:
        hdi_text_printf(text, "%" PRId64, hdi_config_bytes(values, row->key));
        return;
    case HDI_CONFIG_FLOAT: hdi_text_append_float(text, hdi_config_float(values, row->key)); return;
    case HDI_CONFIG_STRING:
    case HDI_CONFIG_ENUM: hdi_text_append_json(text, hdi_config_string(values, row->key)); return;
    case HDI_CONFIG_INT_LIST: {
        const int64_t *list = hdi_config_int_list(values, row->key, &count);
        for (int i = 0; i < count; i++)
            hdi_text_printf(text, "%" PRId64 ",", list[i]);
        return;
    }
    case HDI_CONFIG_STRING_LIST: {
        const char *const *list = hdi_config_string_list(values, row->key, &count);
        for (int i = 0; i < count; i++)
            hdi_text_append_json(text, list[i]);
        return;
    }
    }
}

/* Is `text` the same everywhere? Running out of memory on one rank fails all of them. */
static hd_status check_text(hd_comm *world, const hdi_text *text, const char *what)
{
    hd_status status =
        text->failed ? hdi_error(HD_ERROR_MEMORY, "config: out of host memory") : HD_OK;
    HD_RETURN_IF_ERROR(hd_comm_agree(world, status));
    return hd_comm_check_equal(world, text->data, text->length, what);
}

hd_status hdi_job_check_config(const hd_config *config, hd_comm *world)
{
    const int rows = hdi_config_rows(config->values);
    hdi_text text = {0};
    for (int i = 0; i < rows; i++) {
        const hdi_config_row *row = hdi_config_row_at(config->values, i);
        if (must_agree(row)) append_value(config->values, row, &text);
        hdi_text_append(&text, "\n");
    }
    hd_status status = check_text(world, &text, "the configuration");
    /* All ranks know now that they differ, so all of them look for the key. */
    bool named = false;
    for (int i = 0; i < rows && status == HD_ERROR_MISMATCH && !named; i++) {
        const hdi_config_row *row = hdi_config_row_at(config->values, i);
        if (!must_agree(row)) continue;
        hdi_text_clear(&text);
        append_value(config->values, row, &text);
        named = check_text(world, &text, row->key) != HD_OK;
    }
    hdi_text_free(&text);
    return status;
}

hd_status hdi_job_mesh_options(const hd_config *config, int ranks, hd_mesh_options *out)
{
    const int64_t data = hdi_config_int(config->values, "layout.data");
    const int64_t pipeline = hdi_config_int(config->values, "layout.pipeline");
    const int64_t sequence = hdi_config_int(config->values, "layout.sequence");
    const int64_t tensor = hdi_config_int(config->values, "layout.tensor");
    const int64_t ring = hdi_config_int(config->values, "layout.ring");
    const int64_t others = pipeline * sequence * tensor; /* below 2^36 by the schema's limits */
    if (data == 0 && ranks % others)
        return hdi_error(HD_ERROR_CONFIG,
                         "layout: pipeline %" PRId64 " x sequence %" PRId64 " x tensor %" PRId64
                         " = %" PRId64
                         " does not divide the %d rank%s; start a multiple of %" PRId64
                         " ranks (heddle-run -np %" PRId64 " ...) or make these axes smaller",
                         pipeline, sequence, tensor, others, ranks, ranks == 1 ? "" : "s", others,
                         others * (ranks / others + 1));
    if (data && data * others != ranks)
        return hdi_error(HD_ERROR_CONFIG,
                         "layout: data %" PRId64 " x pipeline %" PRId64 " x sequence %" PRId64
                         " x tensor %" PRId64 " = %" PRId64
                         ", but there %s %d rank%s; start %" PRId64
                         " ranks (heddle-run -np %" PRId64
                         " ...) or set layout.data to 0, which takes what the other axes leave",
                         data, pipeline, sequence, tensor, data * others, ranks == 1 ? "is" : "are",
                         ranks, ranks == 1 ? "" : "s", data * others, data * others);
    *out =
        (hd_mesh_options){.data = (int)(ranks / others),
                          .pipeline = (int)pipeline,
                          .sequence = (int)sequence,
                          .ring = (int)ring,
                          .shard_group = (int)hdi_config_int(config->values, "layout.shard_group"),
                          .tensor = (int)tensor};
    return HD_OK;
}

hd_status hdi_job_open_mesh(const hd_config *config, hd_comm *world, hd_mesh **out)
{
    *out = NULL;
    HD_RETURN_IF_ERROR(hdi_job_check_config(config, world));
    hd_mesh_options options;
    HD_RETURN_IF_ERROR(hdi_job_mesh_options(config, hd_comm_size(world), &options));
    return hd_mesh_create(world, &options, out);
}

/* Where rates choose how rows travel, all ranks must choose alike. */
static hd_status check_rates(const hd_config *config, hd_comm *world, const hd_backend *backend)
{
    if (hdi_config_int(config->values, "layout.tensor") == 1 ||
        hdi_config_int(config->values, "layout.tensor_groups") > 0)
        return HD_OK;
    hd_rates rates;
    HD_RETURN_IF_ERROR(hd_comm_agree(world, hdi_job_rates(config, backend, &rates)));
    const hd_status status = hd_comm_check_equal(world, &rates, sizeof rates, "the device's speed");
    return status == HD_OK
               ? HD_OK
               : hdi_error_context(status,
                                   "layout.tensor_groups is 0, want run.rates of one device "
                                   "on all ranks, or a number of groups");
}

hd_status hdi_job_open_device(const hd_config *config, hd_comm *world, hd_mesh *mesh,
                              hd_context **out)
{
    const hd_device_transport transports[] = {HD_DEVICE_TRANSPORT_AUTO, HD_DEVICE_TRANSPORT_NCCL,
                                              HD_DEVICE_TRANSPORT_STAGED};
    const hd_context_options options = {.device = hdi_config_string(config->values, "run.device"),
                                        .threads = hdi_job_threads(config),
                                        .share_gpu =
                                            hdi_config_bool(config->values, "run.share_gpu"),
                                        .graphs = hdi_config_bool(config->values, "run.graphs")};
    HD_RETURN_IF_ERROR(hd_context_create_ranked(world, &options, out));
    hdi_memory_info before;
    if ((*out)->backend != &hdi_backend_cpu &&
        (*out)->backend->memory_info((*out)->device, &before) == HD_OK)
        (*out)->taken_bytes = before.total_bytes - before.free_bytes;
    (*out)->copy_engines = (hdi_copy_engines)hdi_config_enum(config->values, "run.copy_engines");
    const size_t budget = (size_t)hdi_config_bytes(config->values, "memory.budget");
    (*out)->has_budget = budget > 0;
    if ((*out)->backend != &hdi_backend_cpu)
        (*out)->memory.budget = budget; /* else all programs' */
    HD_RETURN_IF_ERROR(hd_mesh_attach(
        mesh, *out, transports[hdi_config_enum(config->values, "run.device_transport")]));
    return check_rates(config, world, (*out)->backend);
}

int hdi_job_threads(const hd_config *config)
{
    int64_t threads = hdi_config_int(config->values, "run.threads");
    const char *given = getenv("OMP_NUM_THREADS");
    if (threads == 0 && given && hdi_parse_int(given, &threads) && (threads < 1 || threads > 4096))
        threads = 0;
    return threads > 0 ? (int)threads : 1;
}

size_t hdi_job_transport(const hd_config *config, const hd_mesh *mesh, const hd_backend *backend)
{
    const bool is_staged =
        hdi_config_enum(config->values, "run.device_transport") == HD_DEVICE_TRANSPORT_STAGED;
    return !backend || backend == &hdi_backend_cpu || is_staged ? 0 : hdi_transport_bytes(mesh);
}

size_t hdi_job_mailboxes(const hd_config *config, const hd_mesh *mesh, const hd_backend *backend)
{
    if (!backend || backend == &hdi_backend_cpu) return 0;
    const bool is_fake = !hd_mesh_comm(mesh, HD_AXIS_NONE);
    const bool is_staged =
        hdi_config_enum(config->values, "run.device_transport") == HD_DEVICE_TRANSPORT_STAGED;
    const bool are_asked_for =
        hdi_config_enum(config->values, "run.copy_engines") == HDI_COPY_ENGINES_HOST;
    if (is_fake && (is_staged || !are_asked_for)) return 0;
    return hdi_mailbox_bytes(mesh, is_fake);
}

/* What was taken before, of which ranks that share a device take as much as each other, and memory.margin for
 * what is taken later: kernels, which CUDA loads when they are first called, the rounding of the arena, and
 * 16 MiB while a product is timed that adds to its result (ADR 0035). */
hd_status hdi_job_foreign(const hd_config *config, const hd_mesh *mesh, const hd_context *context,
                          size_t *out, size_t *transport)
{
    *out = 0;
    *transport = hdi_job_transport(config, mesh, context->backend);
    if (context->backend == &hdi_backend_cpu) return HD_OK;
    hdi_memory_info info;
    HD_RETURN_IF_ERROR(context->backend->memory_info(context->device, &info));
    const size_t sharers = context->sharers > 1 ? (size_t)context->sharers : 1;
    size_t taken = info.total_bytes - info.free_bytes;
    if (*transport && taken > context->taken_bytes) {
        const size_t attached = (taken - context->taken_bytes) / sharers;
        taken = context->taken_bytes;
        if (attached > *transport) *transport = attached;
    }
    *out = taken / sharers + (size_t)hdi_config_bytes(config->values, "memory.margin") +
           (context->graphs ? HDI_REPLAY_BYTES : 0);
    return HD_OK;
}

hd_status hdi_job_most_memory(hd_comm *world, hd_context *context, size_t *planned)
{
    enum { PLANNED = HDI_WORKS, COUNT };
    size_t *most = context->memory.most;
    int64_t bytes[COUNT];
    for (int w = 0; w < HDI_WORKS; w++)
        bytes[w] = (int64_t)most[w];
    bytes[PLANNED] = (int64_t)*planned;
    hd_request request;
    HD_RETURN_IF_ERROR(
        hd_comm_all_reduce(world, bytes, COUNT, HD_DTYPE_I64, HD_REDUCE_MAX, &request));
    HD_RETURN_IF_ERROR(hd_comm_wait(world, &request));
    for (int w = 0; w < HDI_WORKS; w++)
        most[w] = (size_t)bytes[w];
    *planned = (size_t)bytes[PLANNED];
    return HD_OK;
}

void hdi_job_log_memory(const hd_context *context, size_t planned)
{
    const hdi_memory_watch *watch = &context->memory;
    hdi_text works = {0};
    if (watch->total == 0) return;
    if (context->backend == &hdi_backend_cpu) { /* what other programs use there says nothing */
        hdi_log(HD_LOG_INFO,
                "memory: planned %s of the host, on the rank that needs most; the program and its "
                "libraries come on top",
                hdi_bytes(planned).text);
        return;
    }
    for (int w = 0; w < HDI_WORKS; w++)
        if (watch->most[w])
            hdi_text_printf(&works, ", %s in %s", hdi_bytes(watch->most[w]).text,
                            hdi_work_name((hdi_work)w));
    hdi_log(HD_LOG_INFO,
            "memory: planned %s of the device, on the rank that needs most; most in use there, "
            "other programs included, %s of %s: %s",
            hdi_bytes(planned).text, hdi_bytes(hdi_memory_most(watch)).text,
            hdi_bytes(watch->total).text, works.data ? works.data + 2 : "");
    hdi_text_free(&works);
}

hd_status hdi_job_rates(const hd_config *config, const hd_backend *backend, hd_rates *out)
{
    const char *device = hdi_config_string(config->values, "run.rates");
    char name[256];
    *out = (hd_rates){0};
    if (strcmp(device, "none") == 0) return HD_OK;
    if (strcmp(device, "auto") != 0) {
        const hd_status status = hd_rates_find(device, out);
        return status == HD_OK ? HD_OK : hdi_error(HD_ERROR_CONFIG, "run.%s", hd_last_error());
    }
    if (backend != hdi_gpu_backend() || !backend) return HD_OK;
    /* Not known, or planned where there is none: not predicted. */
    if (hdi_gpu_name(0, name, sizeof name) != HD_OK || hd_rates_find(name, out) != HD_OK)
        *out = (hd_rates){0};
    return HD_OK;
}
