/* Copies from pinned host memory on a stream of their own, ordered with the compute stream by events. */
#include "backend/cuda/cuda.h"

/* The copy engine serves streams in turn, piece by piece, so that a step's small inputs need not wait for
 * a whole block of weights. Pieces of 4 MiB and more keep the link's full rate. */
enum { PIECE = 16 << 20 };

static hd_status create_event(cudaEvent_t *out)
{
    return hdi_cuda_status(cudaEventCreateWithFlags(out, cudaEventDisableTiming),
                           "cudaEventCreateWithFlags");
}

hd_status hdi_cuda_open_fetches(hdi_device *device)
{
    HD_RETURN_IF_ERROR(
        hdi_cuda_status(cudaStreamCreateWithFlags(&device->fetches, cudaStreamNonBlocking),
                        "cudaStreamCreateWithFlags"));
    for (int i = 0; i < HDI_FETCH_SLOTS; i++)
        HD_RETURN_IF_ERROR(create_event(&device->fetched[i]));
    return create_event(&device->queued);
}

void hdi_cuda_wait_for_fetches(hdi_device *device)
{
    if (device->fetches) (void)cudaStreamSynchronize(device->fetches);
}

void hdi_cuda_close_fetches(hdi_device *device)
{
    hdi_cuda_wait_for_fetches(device);
    for (int i = 0; i < HDI_FETCH_SLOTS; i++)
        if (device->fetched[i]) (void)cudaEventDestroy(device->fetched[i]);
    if (device->queued) (void)cudaEventDestroy(device->queued);
    if (device->fetches) (void)cudaStreamDestroy(device->fetches);
}

hd_status hdi_cuda_fetch(hd_stream *stream, int slot, void *device_memory, const void *host,
                         size_t bytes)
{
    hdi_device *device = stream->device;
    HD_RETURN_IF_ERROR(
        hdi_cuda_status(cudaEventRecord(device->queued, stream->handle), "cudaEventRecord"));
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaStreamWaitEvent(device->fetches, device->queued, 0),
                                       "cudaStreamWaitEvent"));
    for (size_t at = 0; at < bytes; at += PIECE) {
        const size_t left = bytes - at, piece = left < PIECE ? left : PIECE;
        HD_RETURN_IF_ERROR(
            hdi_cuda_status(cudaMemcpyAsync((char *)device_memory + at, (const char *)host + at,
                                            piece, cudaMemcpyHostToDevice, device->fetches),
                            "cudaMemcpyAsync of weights"));
    }
    return hdi_cuda_status(cudaEventRecord(device->fetched[slot], device->fetches),
                           "cudaEventRecord");
}

hd_status hdi_cuda_await(hd_stream *stream, int slot)
{
    return hdi_cuda_status(cudaStreamWaitEvent(stream->handle, stream->device->fetched[slot], 0),
                           "cudaStreamWaitEvent");
}
