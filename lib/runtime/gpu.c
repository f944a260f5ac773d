/* The runtime's door to CUDA. */
#include "runtime/gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"

#ifdef HDI_CUDA
#include "backend/cuda/arena.h"

const hd_backend *hdi_gpu_backend(void)
{
    return &hdi_backend_cuda;
}

int hdi_gpu_count(void)
{
    /* Streams beyond the number of hardware queues wait for each other without need, and a receive
     * that waits for a peer would hold up what the peer waits for. Read when CUDA starts. */
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    return hdi_cuda_device_count();
}

hd_status hdi_gpu_uuid(int ordinal, uint8_t uuid[16])
{
    struct cudaDeviceProp properties;
    HD_RETURN_IF_ERROR(
        hdi_cuda_status(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
    memcpy(uuid, &properties.uuid, 16);
    return HD_OK;
}

hd_status hdi_gpu_name(int ordinal, char *out, size_t bytes)
{
    struct cudaDeviceProp properties;
    HD_RETURN_IF_ERROR(
        hdi_cuda_status(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
    snprintf(out, bytes, "%s", properties.name);
    return HD_OK;
}

hd_status hdi_gpu_nccl(int ordinal, hd_stream *stream, hdi_nccl_device **out)
{
    return hdi_nccl_device_create(ordinal, stream->handle, out);
}

hd_status hdi_gpu_nccl_comm(hd_comm *host, hdi_nccl_device *device, const hdi_nccl_options *options,
                            hd_comm **out)
{
    return hdi_comm_create_nccl(host, device, options, out);
}

void hdi_gpu_nccl_serve(hdi_nccl_device *device, hd_stream *stream)
{
    hdi_nccl_serve(device, stream->handle);
}

void hdi_gpu_nccl_rehost(hd_comm *comm, hd_comm *host)
{
    hdi_nccl_rehost(comm, host);
}

void hdi_gpu_nccl_close(hdi_nccl_device *device)
{
    hdi_nccl_device_destroy(device);
}

hd_status hdi_gpu_staging(hd_stream *stream, hdi_staging **out)
{
    return hdi_staging_create_cuda(stream->handle, HDI_STAGED_OPERATIONS, out);
}

void *hdi_gpu_stream(const hd_backend *backend, const hd_stream *stream)
{
    return backend == &hdi_backend_cuda ? stream->handle : NULL;
}

bool hdi_gpu_can_share(int ordinal, const void *arena, size_t bytes)
{
    return hdi_cuda_is_shareable(ordinal, arena, bytes);
}

#else

static hd_status no_gpus(void)
{
    return hdi_error(HD_ERROR_DEVICE, "this build of heddle has no GPU backend");
}

const hd_backend *hdi_gpu_backend(void)
{
    return NULL;
}

int hdi_gpu_count(void)
{
    return 0;
}

hd_status hdi_gpu_uuid(int ordinal, uint8_t uuid[16])
{
    (void)ordinal, (void)uuid;
    return no_gpus();
}

hd_status hdi_gpu_name(int ordinal, char *out, size_t bytes)
{
    (void)ordinal, (void)out, (void)bytes;
    return no_gpus();
}

hd_status hdi_gpu_nccl(int ordinal, hd_stream *stream, hdi_nccl_device **out)
{
    (void)ordinal, (void)stream, (void)out;
    return no_gpus();
}

hd_status hdi_gpu_nccl_comm(hd_comm *host, hdi_nccl_device *device, const hdi_nccl_options *options,
                            hd_comm **out)
{
    (void)host, (void)device, (void)options, (void)out;
    return no_gpus();
}

void hdi_gpu_nccl_serve(hdi_nccl_device *device, hd_stream *stream)
{
    (void)device, (void)stream;
}

void hdi_gpu_nccl_rehost(hd_comm *comm, hd_comm *host)
{
    (void)comm, (void)host;
}

void hdi_gpu_nccl_close(hdi_nccl_device *device)
{
    (void)device;
}

hd_status hdi_gpu_staging(hd_stream *stream, hdi_staging **out)
{
    (void)stream, (void)out;
    return no_gpus();
}

void *hdi_gpu_stream(const hd_backend *backend, const hd_stream *stream)
{
    (void)backend, (void)stream;
    return NULL;
}

bool hdi_gpu_can_share(int ordinal, const void *arena, size_t bytes)
{
    (void)ordinal, (void)arena, (void)bytes;
    return false;
}
#endif
