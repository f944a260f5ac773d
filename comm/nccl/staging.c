/* The staged transport's copies by CUDA: pinned host memory, one stream, events for the slots. */
#include <cuda_runtime_api.h>
#include <stddef.h>

#include "comm/device.h"
#include "core/error.h"
#include "core/memory.h"

typedef struct cuda_staging {
    hdi_staging table;                   /* first: the address of both is the same */
    cudaStream_t compute, queue, stream; /* queue: that copies begin behind */
    cudaEvent_t *begun, *marked;         /* [slots] */
    int slots;
} cuda_staging;

static cuda_staging *of(hdi_staging *staging)
{
    return (cuda_staging *)staging;
}

static hd_status cuda_status(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return HD_OK;
    return hdi_error(error == cudaErrorMemoryAllocation ? HD_ERROR_MEMORY : HD_ERROR_DEVICE,
                     "staged: %s: %s (%s)", what, cudaGetErrorString(error),
                     cudaGetErrorName(error));
}

static hd_status reserve(hdi_staging *staging, size_t bytes, void **out)
{
    (void)staging;
    *out = NULL;
    return cuda_status(cudaHostAlloc(out, bytes, cudaHostAllocPortable), "cudaHostAlloc");
}

static void release(hdi_staging *staging, void *memory, size_t bytes)
{
    (void)staging, (void)bytes;
    if (memory) (void)cudaFreeHost(memory);
}

static hd_status begin(hdi_staging *staging, int slot)
{
    cuda_staging *s = of(staging);
    HD_RETURN_IF_ERROR(cuda_status(cudaEventRecord(s->begun[slot], s->queue), "cudaEventRecord"));
    return cuda_status(cudaStreamWaitEvent(s->stream, s->begun[slot], 0), "cudaStreamWaitEvent");
}

static hd_status copy(hdi_staging *staging, void *out, const void *x, size_t bytes)
{
    if (bytes == 0 || out == x) return HD_OK;
    return cuda_status(cudaMemcpyAsync(out, x, bytes, cudaMemcpyDefault, of(staging)->stream),
                       "cudaMemcpyAsync");
}

static hd_status mark(hdi_staging *staging, int slot)
{
    cuda_staging *s = of(staging);
    return cuda_status(cudaEventRecord(s->marked[slot], s->stream), "cudaEventRecord");
}

static hd_status query(hdi_staging *staging, int slot, bool *done)
{
    const cudaError_t error = cudaEventQuery(of(staging)->marked[slot]);
    *done = error == cudaSuccess;
    if (error == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return HD_OK;
    }
    return cuda_status(error, "cudaEventQuery");
}

static void follow(hdi_staging *staging, void *stream)
{
    cuda_staging *s = of(staging);
    s->queue = stream ? (cudaStream_t)stream : s->compute;
}

static void destroy(hdi_staging *staging)
{
    cuda_staging *s = of(staging);
    if (s->stream) (void)cudaStreamSynchronize(s->stream);
    for (int i = 0; s->begun && s->marked && i < s->slots; i++) {
        if (s->begun[i]) (void)cudaEventDestroy(s->begun[i]);
        if (s->marked[i]) (void)cudaEventDestroy(s->marked[i]);
    }
    if (s->stream) (void)cudaStreamDestroy(s->stream);
    hdi_free(s->begun);
    hdi_free(s->marked);
    hdi_free(s);
}

static hd_status fill(cuda_staging *s)
{
    s->begun = hdi_alloc_array((size_t)s->slots, sizeof *s->begun);
    s->marked = hdi_alloc_array((size_t)s->slots, sizeof *s->marked);
    if (!s->begun || !s->marked) return hdi_error(HD_ERROR_MEMORY, "staged: out of host memory");
    HD_RETURN_IF_ERROR(cuda_status(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking),
                                   "cudaStreamCreate"));
    for (int i = 0; i < s->slots; i++) {
        HD_RETURN_IF_ERROR(cuda_status(
            cudaEventCreateWithFlags(&s->begun[i], cudaEventDisableTiming), "cudaEventCreate"));
        HD_RETURN_IF_ERROR(cuda_status(
            cudaEventCreateWithFlags(&s->marked[i], cudaEventDisableTiming), "cudaEventCreate"));
    }
    return HD_OK;
}

hd_status hdi_staging_create_cuda(void *compute_stream, int slots, hdi_staging **out)
{
    *out = NULL;
    cuda_staging *s = hdi_alloc(sizeof *s);
    if (!s) return hdi_error(HD_ERROR_MEMORY, "staged: out of host memory");
    *s = (cuda_staging){.table = {.reserve = reserve,
                                  .release = release,
                                  .begin = begin,
                                  .copy = copy,
                                  .mark = mark,
                                  .query = query,
                                  .follow = follow,
                                  .destroy = destroy},
                        .compute = compute_stream,
                        .queue = compute_stream,
                        .slots = slots};
    const hd_status status = fill(s);
    if (status != HD_OK) {
        destroy(&s->table);
        return status;
    }
    *out = &s->table;
    return HD_OK;
}
