/* Copies from and to pinned host memory on streams of their own, ordered with the compute stream by
 * events. */
#include "backend/cuda/cuda.h"

/* The copy engine serves streams in turn, piece by piece, so that a step's small inputs need not wait for
 * a whole block of weights. Pieces of 4 MiB and more keep the link's full rate. */
enum { PIECE = 16 << 20 };

static hd_status create_event(cudaEvent_t *out)
{
    return hdi_cuda_status(cudaEventCreateWithFlags(out, cudaEventDisableTiming),
                           "cudaEventCreateWithFlags");
}

static hd_status create_stream(cudaStream_t *out)
{
    return hdi_cuda_status(cudaStreamCreateWithFlags(out, cudaStreamNonBlocking),
                           "cudaStreamCreateWithFlags");
}

hd_status hdi_cuda_open_fetches(hdi_device *device)
{
    HD_RETURN_IF_ERROR(create_stream(&device->fetches));
    HD_RETURN_IF_ERROR(create_stream(&device->stores));
    for (int i = 0; i < HDI_FETCH_SLOTS; i++)
        HD_RETURN_IF_ERROR(create_event(&device->fetched[i]));
    for (int i = 0; i < HDI_STORE_SLOTS; i++)
        HD_RETURN_IF_ERROR(create_event(&device->stored[i]));
    return create_event(&device->queued);
}

void hdi_cuda_wait_for_fetches(hdi_device *device)
{
    if (device->fetches) (void)cudaStreamSynchronize(device->fetches);
    if (device->stores) (void)cudaStreamSynchronize(device->stores);
}

void hdi_cuda_close_fetches(hdi_device *device)
{
    hdi_cuda_wait_for_fetches(device);
    for (int i = 0; i < HDI_FETCH_SLOTS; i++)
        if (device->fetched[i]) (void)cudaEventDestroy(device->fetched[i]);
    for (int i = 0; i < HDI_STORE_SLOTS; i++)
        if (device->stored[i]) (void)cudaEventDestroy(device->stored[i]);
    if (device->queued) (void)cudaEventDestroy(device->queued);
    if (device->fetches) (void)cudaStreamDestroy(device->fetches);
    if (device->stores) (void)cudaStreamDestroy(device->stores);
}

/* Copy on `own`, after all that is queued on `stream`, and leave `done` behind it. */
static hd_status copy_beside(const hd_stream *stream, cudaStream_t own, cudaEvent_t done, void *out,
                             const void *x, size_t bytes, enum cudaMemcpyKind kind)
{
    cudaEvent_t queued = stream->device->queued;
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaEventRecord(queued, stream->handle), "cudaEventRecord"));
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaStreamWaitEvent(own, queued, 0), "cudaStreamWaitEvent"));
    for (size_t at = 0; at < bytes; at += PIECE) {
        const size_t left = bytes - at, piece = left < PIECE ? left : PIECE;
        HD_RETURN_IF_ERROR(hdi_cuda_status(
            cudaMemcpyAsync((char *)out + at, (const char *)x + at, piece, kind, own),
            "cudaMemcpyAsync beside computation"));
    }
    return hdi_cuda_status(cudaEventRecord(done, own), "cudaEventRecord");
}

hd_status hdi_cuda_fetch(hd_stream *stream, int slot, void *device_memory, const void *host,
                         size_t bytes)
{
    const hdi_device *device = stream->device;
    return copy_beside(stream, device->fetches, device->fetched[slot], device_memory, host, bytes,
                       cudaMemcpyHostToDevice);
}

hd_status hdi_cuda_store(hd_stream *stream, int slot, void *host, const void *device_memory,
                         size_t bytes)
{
    const hdi_device *device = stream->device;
    return copy_beside(stream, device->stores, device->stored[slot], host, device_memory, bytes,
                       cudaMemcpyDeviceToHost);
}

static hd_status wait_for(const hd_stream *stream, cudaEvent_t event)
{
    return hdi_cuda_status(cudaStreamWaitEvent(stream->handle, event, 0), "cudaStreamWaitEvent");
}

hd_status hdi_cuda_await(hd_stream *stream, int slot)
{
    return wait_for(stream, stream->device->fetched[slot]);
}

hd_status hdi_cuda_await_store(hd_stream *stream, int slot)
{
    return wait_for(stream, stream->device->stored[slot]);
}
