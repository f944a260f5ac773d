/* Contexts: one device of this process. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "comm/mesh.h"
#include "core/error.h"
#include "core/memory.h"
#include "runtime/device_choice.h"
#include "runtime/gpu.h"
#include "runtime/session.h"

/* What a device's name means here; "auto" is the GPU if there is one. */
hd_status hd_backend_find(const char *device, const hd_backend **out)
{
    const char *name = device ? device : "auto";
    *out = &hdi_backend_cpu;
    if (strcmp(name, "cpu") == 0) return HD_OK;
    const bool is_auto = strcmp(name, "auto") == 0;
    if (!is_auto && strcmp(name, "cuda"))
        return hdi_error(HD_ERROR_DEVICE, "device '%s': want auto, cpu or cuda", name);
    if (!is_auto && !hdi_gpu_backend())
        return hdi_error(HD_ERROR_DEVICE, "device '%s': this build has 'cpu' only", name);
    if (hdi_gpu_backend() && (!is_auto || hdi_gpu_count() > 0)) *out = hdi_gpu_backend();
    return HD_OK;
}

static hd_status open_context(const hd_backend *backend, int ordinal,
                              const hd_context_options *options, hd_context **out)
{
    *out = NULL;
    hd_context *context = hdi_alloc(sizeof *context);
    if (!context) return hdi_error(HD_ERROR_MEMORY, "context: out of host memory");
    context->backend = backend;
    context->ordinal = ordinal;
    context->graphs = options->graphs;
    if (backend == &hdi_backend_cpu)
        hdi_cpu_set_threads(options->threads > 0 ? options->threads : 1);
    hd_status status = backend->open(ordinal, &context->device);
    if (status != HD_OK) {
        hd_context_destroy(context);
        return status;
    }
    context->stream = backend->stream(context->device);
    *out = context;
    return HD_OK;
}

hd_status hd_context_create(const hd_context_options *options, hd_context **out)
{
    const hd_context_options defaults = {0};
    *out = NULL;
    if (!options) options = &defaults;
    const hd_backend *backend;
    HD_RETURN_IF_ERROR(hd_backend_find(options->device, &backend));
    return open_context(backend, options->ordinal, options, out);
}

uint64_t hdi_host_hash(void)
{
    char text[512] = "";
    gethostname(text, sizeof text - 1);
    const size_t length = strlen(text);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r"); /* containers may share a name */
    size_t read = file ? fread(text + length, 1, sizeof text - 1 - length, file) : 0;
    if (file) fclose(file);
    return XXH3_64bits(text, length + read);
}

static hd_status choose(hd_comm *comm, const hd_context_options *options,
                        const hd_backend **backend, hdi_device_record *record)
{
    int local_rank, local_size;
    HD_RETURN_IF_ERROR(hdi_comm_local(comm, &local_rank, &local_size));
    HD_RETURN_IF_ERROR(hd_backend_find(options->device, backend));
    if (*backend == &hdi_backend_cpu) return HD_OK;
    int ordinal;
    HD_RETURN_IF_ERROR(
        hdi_choose_device(local_rank, local_size, hdi_gpu_count(), options->share_gpu, &ordinal));
    HD_RETURN_IF_ERROR(hdi_gpu_uuid(ordinal, record->uuid));
    record->ordinal = ordinal;
    return HD_OK;
}

/* The name of the host that `rank` is on. Collective. */
static hd_status host_of(hd_comm *comm, int rank, char *name, size_t bytes)
{
    memset(name, 0, bytes);
    gethostname(name, bytes - 1);
    hd_request request;
    HD_RETURN_IF_ERROR(hd_comm_broadcast(comm, name, bytes, rank, &request));
    return hd_comm_wait(comm, &request);
}

/* All ranks see the same records, so all say the same. */
static hd_status check_records(hd_comm *comm, const hdi_device_record *records, bool share)
{
    hdi_rank_pair pair;
    char host[256], uuid[HDI_UUID_TEXT];
    const int ranks = hd_comm_size(comm);
    if (hdi_find_mixed_devices(records, ranks, &pair)) {
        HD_RETURN_IF_ERROR(host_of(comm, pair.second, host, sizeof host));
        return hdi_error(HD_ERROR_MISMATCH,
                         "rank %d is on a GPU, rank %d on the CPU of host %s; give all of them "
                         "run.device=cpu or run.device=cuda",
                         pair.first, pair.second, host);
    }
    if (share || !hdi_find_shared_device(records, ranks, &pair)) return HD_OK;
    hdi_uuid_text(records[pair.second].uuid, uuid);
    HD_RETURN_IF_ERROR(host_of(comm, pair.second, host, sizeof host));
    return hdi_error(HD_ERROR_MISMATCH,
                     "ranks %d and %d both have %s of host %s; give each rank its own GPU "
                     "(CUDA_VISIBLE_DEVICES, --gpus-per-task), or share it for a test "
                     "(run.share_gpu=true, --share-gpu)",
                     pair.first, pair.second, uuid, host);
}

_Static_assert(sizeof(hdi_device_record) <= HDI_COMM_RECORD, "a device record is one record");

hd_status hd_context_create_ranked(hd_comm *comm, const hd_context_options *options,
                                   hd_context **out)
{
    const hd_context_options defaults = {0};
    *out = NULL;
    if (!comm) return hdi_error(HD_ERROR_ARGUMENT, "context_create_ranked: comm is NULL");
    if (!options) options = &defaults;
    const hd_backend *backend = NULL;
    hdi_device_record own = {.ordinal = -1, .host = hdi_host_hash()};
    HD_RETURN_IF_ERROR(hd_comm_agree(comm, choose(comm, options, &backend, &own)));
    hdi_device_record *records = comm->records;
    records[hd_comm_rank(comm)] = own;
    HD_RETURN_IF_ERROR(hdi_comm_gather(comm, sizeof *records));
    const int ranks = hd_comm_size(comm);
    hdi_rank_pair pair;
    const bool shares = hdi_find_shared_device(records, ranks, &pair);
    const int sharers = hdi_count_sharers(records, ranks, hd_comm_rank(comm));
    const bool one_host = hdi_is_one_host(records, ranks);
    HD_RETURN_IF_ERROR(check_records(comm, records, options->share_gpu));
    hd_status status = open_context(backend, own.ordinal > 0 ? own.ordinal : 0, options, out);
    if (status == HD_OK) {
        (*out)->shares_gpu = shares;
        (*out)->sharers = sharers;
        (*out)->is_on_one_host = one_host;
    }
    status = hd_comm_agree(comm, status);
    if (status == HD_OK) return HD_OK;
    hd_context_destroy(*out);
    *out = NULL;
    return status;
}

void hd_context_destroy(hd_context *context)
{
    if (!context) return;
    if (context->attached) hdi_mesh_detach(context->attached);
    if (context->device) context->backend->close(context->device);
    hdi_free(context);
}

const char *hd_context_device(const hd_context *context)
{
    return context->backend->name;
}

const hd_backend *hd_context_backend(const hd_context *context)
{
    return context->backend;
}
