/* Stamps: events that keep their time. */
#include "backend/cuda/cuda.h"
#include "core/memory.h"

hd_status hdi_cuda_open_stamps(hdi_device *device, int count)
{
    hdi_cuda_close_stamps(device);
    device->stamps = hdi_alloc_array((size_t)count, sizeof *device->stamps);
    if (!device->stamps) return hdi_error(HD_ERROR_MEMORY, "cuda: out of host memory for stamps");
    device->stamp_count = count;
    for (int i = 0; i < count; i++)
        HD_RETURN_IF_ERROR(hdi_cuda_status(cudaEventCreate(&device->stamps[i]), "cudaEventCreate"));
    return HD_OK;
}

void hdi_cuda_close_stamps(hdi_device *device)
{
    for (int i = 0; i < device->stamp_count; i++)
        if (device->stamps[i]) (void)cudaEventDestroy(device->stamps[i]);
    hdi_free(device->stamps);
    device->stamps = NULL;
    device->stamp_count = 0;
}

hd_status hdi_cuda_stamp(hd_stream *stream, int stamp)
{
    return hdi_cuda_status(cudaEventRecord(stream->device->stamps[stamp], stream->handle),
                           "cudaEventRecord");
}

hd_status hdi_cuda_elapsed(hd_stream *stream, int from, int to, double *seconds)
{
    const cudaEvent_t *stamps = stream->device->stamps;
    float milliseconds = 0;
    HD_RETURN_IF_ERROR(hdi_cuda_status(
        cudaEventElapsedTime(&milliseconds, stamps[from], stamps[to]), "cudaEventElapsedTime"));
    *seconds = 1e-3 * (double)milliseconds;
    return HD_OK;
}
