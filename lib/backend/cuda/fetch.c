/* Copies from and to pinned host memory on streams of their own, ordered with the compute stream by
 * events; and the second compute stream, which has copies of its own. */
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

hd_status hdi_cuda_open_fetches(hd_stream *stream)
{
    HD_RETURN_IF_ERROR(create_stream(&stream->fetches));
    HD_RETURN_IF_ERROR(create_stream(&stream->stores));
    for (int i = 0; i < HDI_FETCH_SLOTS; i++)
        HD_RETURN_IF_ERROR(create_event(&stream->fetched[i]));
    for (int i = 0; i < HDI_STORE_SLOTS; i++)
        HD_RETURN_IF_ERROR(create_event(&stream->stored[i]));
    return create_event(&stream->queued);
}

void hdi_cuda_wait_for_fetches(hdi_device *device)
{
    if (device->side.handle) (void)cudaStreamSynchronize(device->side.handle);
    const hd_stream *const streams[] = {&device->stream, &device->side};
    for (int i = 0; i < 2; i++) {
        if (streams[i]->fetches) (void)cudaStreamSynchronize(streams[i]->fetches);
        if (streams[i]->stores) (void)cudaStreamSynchronize(streams[i]->stores);
    }
}

static void destroy_event(cudaEvent_t event)
{
    if (event) (void)cudaEventDestroy(event);
}

static void destroy_stream(cudaStream_t stream)
{
    if (stream) (void)cudaStreamDestroy(stream);
}

void hdi_cuda_close_fetches(hdi_device *device)
{
    const hd_stream *const streams[] = {&device->stream, &device->side};
    hdi_cuda_wait_for_fetches(device);
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < HDI_FETCH_SLOTS; i++)
            destroy_event(streams[s]->fetched[i]);
        for (int i = 0; i < HDI_STORE_SLOTS; i++)
            destroy_event(streams[s]->stored[i]);
        destroy_event(streams[s]->queued);
        destroy_stream(streams[s]->fetches);
        destroy_stream(streams[s]->stores);
    }
    for (int i = 0; i < HDI_FLAGS; i++)
        destroy_event(device->flags[i]);
    destroy_stream(device->side.handle);
}

/* Its kernels are short and few, and copies wait for them: they go before those of the other stream. */
hd_status hdi_cuda_side_stream(hdi_device *device, hd_stream **out)
{
    hd_stream *side = &device->side;
    int least, greatest;
    *out = side;
    if (side->handle) return HD_OK;
    side->device = device;
    HD_RETURN_IF_ERROR(hdi_cuda_open_fetches(side));
    for (int i = 0; i < HDI_FLAGS; i++)
        HD_RETURN_IF_ERROR(create_event(&device->flags[i]));
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                                       "cudaDeviceGetStreamPriorityRange"));
    return hdi_cuda_status(
        cudaStreamCreateWithPriority(&side->handle, cudaStreamNonBlocking, greatest),
        "cudaStreamCreateWithPriority");
}

/* Copy on `own`, after all that is queued on `stream`, and leave `done` behind it. */
static hd_status copy_beside(const hd_stream *stream, cudaStream_t own, cudaEvent_t done, void *out,
                             const void *x, size_t bytes, enum cudaMemcpyKind kind)
{
    cudaEvent_t queued = stream->queued;
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
    return copy_beside(stream, stream->fetches, stream->fetched[slot], device_memory, host, bytes,
                       cudaMemcpyHostToDevice);
}

hd_status hdi_cuda_store(hd_stream *stream, int slot, void *host, const void *device_memory,
                         size_t bytes)
{
    return copy_beside(stream, stream->stores, stream->stored[slot], host, device_memory, bytes,
                       cudaMemcpyDeviceToHost);
}

static hd_status wait_for(const hd_stream *stream, cudaEvent_t event)
{
    return hdi_cuda_status(cudaStreamWaitEvent(stream->handle, event, 0), "cudaStreamWaitEvent");
}

hd_status hdi_cuda_await(hd_stream *stream, int slot)
{
    return wait_for(stream, stream->fetched[slot]);
}

hd_status hdi_cuda_await_store(hd_stream *stream, int slot)
{
    return wait_for(stream, stream->stored[slot]);
}

hd_status hdi_cuda_raise_flag(hd_stream *stream, int flag)
{
    return hdi_cuda_status(cudaEventRecord(stream->device->flags[flag], stream->handle),
                           "cudaEventRecord");
}

hd_status hdi_cuda_await_flag(hd_stream *stream, int flag)
{
    return wait_for(stream, stream->device->flags[flag]);
}
