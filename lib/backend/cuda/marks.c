/* Marks: events that keep their time. */
#include "backend/cuda/cuda.h"
#include "core/memory.h"

hd_status hdi_cuda_open_marks(hdi_device *device, int count)
{
    hdi_cuda_close_marks(device);
    device->marks = hdi_alloc_array((size_t)count, sizeof *device->marks);
    if (!device->marks) return hdi_error(HD_ERROR_MEMORY, "cuda: out of host memory for marks");
    device->mark_count = count;
    for (int i = 0; i < count; i++)
        HD_RETURN_IF_ERROR(hdi_cuda_status(cudaEventCreate(&device->marks[i]), "cudaEventCreate"));
    return HD_OK;
}

void hdi_cuda_close_marks(hdi_device *device)
{
    for (int i = 0; i < device->mark_count; i++)
        if (device->marks[i]) (void)cudaEventDestroy(device->marks[i]);
    hdi_free(device->marks);
    device->marks = NULL;
    device->mark_count = 0;
}

hd_status hdi_cuda_mark(hd_stream *stream, int mark)
{
    return hdi_cuda_status(cudaEventRecord(stream->device->marks[mark], stream->handle),
                           "cudaEventRecord");
}

hd_status hdi_cuda_elapsed(hd_stream *stream, int from, int to, double *seconds)
{
    const cudaEvent_t *marks = stream->device->marks;
    float milliseconds = 0;
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaEventElapsedTime(&milliseconds, marks[from], marks[to]),
                                       "cudaEventElapsedTime"));
    *seconds = 1e-3 * (double)milliseconds;
    return HD_OK;
}
