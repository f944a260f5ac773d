/* The CUDA device: opening, memory, copies. All work goes to one stream of the device. */
#include "backend/cuda/cuda.h"

#include <cublasLt.h>
#include <inttypes.h>
#include <string.h>

#include "backend/cuda/arena.h"
#include "core/memory.h"

static int planned_architecture;

hd_status hdi_cuda_status(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return HD_OK;
    const hd_status status = error == cudaErrorMemoryAllocation ? HD_ERROR_MEMORY : HD_ERROR_DEVICE;
    return hdi_error(status, "cuda: %s: %s (%s)", what, cudaGetErrorString(error),
                     cudaGetErrorName(error));
}

int hdi_cuda_device_count(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    (void)cudaGetLastError(); /* no driver is no error of later calls */
    return 0;
}

int hdi_cuda_architecture(void)
{
    return planned_architecture;
}

void hdi_cuda_set_architecture(int architecture)
{
    planned_architecture = architecture;
}

size_t hdi_cuda_foreign_bytes(const hdi_device *device)
{
    return device->blas_workspace ? HDI_CUDA_BLAS_WORKSPACE : 0;
}

static hd_status check_ordinal(int ordinal)
{
    int count = 0;
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaGetDeviceCount(&count), "cudaGetDeviceCount"));
    if (ordinal >= 0 && ordinal < count) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT, "cuda: device %d is wanted, this process sees %d", ordinal,
                     count);
}

static hd_status read_attributes(hdi_device *device)
{
    int major = 0, minor = 0;
    HD_RETURN_IF_ERROR(hdi_cuda_status(
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device->ordinal),
        "cudaDeviceGetAttribute"));
    HD_RETURN_IF_ERROR(hdi_cuda_status(
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device->ordinal),
        "cudaDeviceGetAttribute"));
    device->architecture = 10 * major + minor;
    if (device->architecture < 80)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "cuda: device %d has compute capability %d.%d, want 8.0 or later",
                         device->ordinal, major, minor);
    planned_architecture = device->architecture;
    return hdi_cuda_status(cudaDeviceGetAttribute(&device->processors,
                                                  cudaDevAttrMultiProcessorCount, device->ordinal),
                           "cudaDeviceGetAttribute");
}

static hd_status open_parts(hdi_device *device)
{
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaSetDevice(device->ordinal), "cudaSetDevice"));
    HD_RETURN_IF_ERROR(read_attributes(device));
    HD_RETURN_IF_ERROR(
        hdi_cuda_status(cudaStreamCreateWithFlags(&device->stream.handle, cudaStreamNonBlocking),
                        "cudaStreamCreateWithFlags"));
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaEventCreate(&device->begin), "cudaEventCreate"));
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaEventCreate(&device->end), "cudaEventCreate"));
    HD_RETURN_IF_ERROR(
        hdi_cuda_status(cudaEventCreateWithFlags(&device->marked, cudaEventDisableTiming),
                        "cudaEventCreateWithFlags"));
    HD_RETURN_IF_ERROR(hdi_cuda_status(
        cudaHostAlloc((void **)&device->fault, sizeof *device->fault, cudaHostAllocPortable),
        "cudaHostAlloc"));
    memset(device->fault, 0, sizeof *device->fault);
    HD_RETURN_IF_ERROR(hdi_cuda_open_fetches(&device->stream));
    device->virtual_memory = hdi_cuda_can_map(device->ordinal);
    cublasLtHandle_t blas = NULL;
    const cublasStatus_t status = cublasLtCreate(&blas);
    if (status != CUBLAS_STATUS_SUCCESS)
        return hdi_error(HD_ERROR_DEVICE, "cuda: cublasLtCreate: %s",
                         cublasLtGetStatusString(status));
    device->blas = blas;
    return hdi_cuda_status(cudaMalloc(&device->blas_workspace, HDI_CUDA_BLAS_WORKSPACE),
                           "cudaMalloc of the GEMM workspace");
}

hd_status hdi_cuda_open(int ordinal, hdi_device **out)
{
    *out = NULL;
    HD_RETURN_IF_ERROR(check_ordinal(ordinal));
    hdi_device *device = hdi_alloc(sizeof *device);
    if (!device) return hdi_error(HD_ERROR_MEMORY, "cuda: out of host memory for a device");
    device->ordinal = ordinal;
    device->stream.device = device;
    const hd_status status = open_parts(device);
    if (status != HD_OK) {
        hdi_cuda_close(device);
        return status;
    }
    *out = device;
    return HD_OK;
}

/* What was not made is NULL; nothing here can be mended, so errors are dropped. */
void hdi_cuda_close(hdi_device *device)
{
    if (!device) return;
    if (device->stream.handle) (void)cudaStreamSynchronize(device->stream.handle);
    hdi_cuda_close_fetches(device);
    hdi_cuda_close_stamps(device);
    hdi_cuda_close_attentions(device);
    hdi_cuda_close_gemms(device);
    if (device->blas_workspace) (void)cudaFree(device->blas_workspace);
    if (device->blas) (void)cublasLtDestroy(device->blas);
    if (device->fault) (void)cudaFreeHost(device->fault);
    if (device->begin) (void)cudaEventDestroy(device->begin);
    if (device->end) (void)cudaEventDestroy(device->end);
    if (device->marked) (void)cudaEventDestroy(device->marked);
    if (device->stream.handle) (void)cudaStreamDestroy(device->stream.handle);
    (void)cudaGetLastError();
    hdi_free(device);
}

hd_stream *hdi_cuda_stream(hdi_device *device)
{
    return &device->stream;
}

hd_status hdi_cuda_memory_info(hdi_device *device, hdi_memory_info *out)
{
    (void)device;
    return hdi_cuda_status(cudaMemGetInfo(&out->free_bytes, &out->total_bytes), "cudaMemGetInfo");
}

hd_status hdi_cuda_reserve(hdi_device *device, size_t bytes, void **out)
{
    *out = NULL;
    if (bytes == 0) return HD_OK;
    if (device->virtual_memory)
        HD_RETURN_IF_ERROR(hdi_cuda_map(device->ordinal, bytes, out));
    else
        HD_RETURN_IF_ERROR(hdi_cuda_status(cudaMalloc(out, bytes), "cudaMalloc of the arena"));
    hd_status status = hdi_cuda_zero(&device->stream, *out, bytes);
    if (status == HD_OK) status = hdi_cuda_synchronize(&device->stream);
    if (status == HD_OK) return HD_OK;
    hdi_cuda_release(device, *out, bytes);
    *out = NULL;
    return status;
}

void hdi_cuda_release(hdi_device *device, void *arena, size_t bytes)
{
    if (!arena) return;
    (void)cudaStreamSynchronize(device->stream.handle);
    hdi_cuda_wait_for_fetches(device);
    if (device->virtual_memory)
        hdi_cuda_unmap(arena, bytes);
    else
        (void)cudaFree(arena);
}

hd_status hdi_cuda_reserve_host(hdi_device *device, size_t bytes, void **out)
{
    (void)device;
    *out = NULL;
    if (bytes == 0) return HD_OK;
    HD_RETURN_IF_ERROR(
        hdi_cuda_status(cudaHostAlloc(out, bytes, cudaHostAllocPortable), "cudaHostAlloc"));
    memset(*out, 0, bytes);
    return HD_OK;
}

void hdi_cuda_release_host(hdi_device *device, void *memory, size_t bytes)
{
    (void)bytes;
    if (!memory) return;
    hdi_cuda_wait_for_fetches(device);
    (void)cudaFreeHost(memory);
}

hd_status hdi_cuda_register_host(hdi_device *device, void *memory, size_t bytes)
{
    (void)device;
    return hdi_cuda_status(cudaHostRegister(memory, bytes, cudaHostRegisterPortable),
                           "cudaHostRegister");
}

void hdi_cuda_unregister_host(hdi_device *device, void *memory, size_t bytes)
{
    (void)bytes;
    hdi_cuda_wait_for_fetches(device);
    (void)cudaHostUnregister(memory);
}

static hd_status queue_copy(hd_stream *stream, void *out, const void *x, size_t bytes,
                            enum cudaMemcpyKind kind)
{
    if (bytes == 0 || out == x) return HD_OK;
    return hdi_cuda_status(cudaMemcpyAsync(out, x, bytes, kind, stream->handle), "cudaMemcpyAsync");
}

hd_status hdi_cuda_copy_in(hd_stream *stream, void *device_memory, const void *host, size_t bytes)
{
    return queue_copy(stream, device_memory, host, bytes, cudaMemcpyHostToDevice);
}

hd_status hdi_cuda_copy_out(hd_stream *stream, void *host, const void *device_memory, size_t bytes)
{
    return queue_copy(stream, host, device_memory, bytes, cudaMemcpyDeviceToHost);
}

hd_status hdi_cuda_copy(hd_stream *stream, void *out, const void *x, size_t bytes)
{
    return queue_copy(stream, out, x, bytes, cudaMemcpyDefault); /* pinned host memory, too */
}

hd_status hdi_cuda_zero(hd_stream *stream, void *out, size_t bytes)
{
    if (bytes == 0) return HD_OK;
    return hdi_cuda_status(cudaMemsetAsync(out, 0, bytes, stream->handle), "cudaMemsetAsync");
}

static hd_status fault_status(const hdi_cuda_fault *fault)
{
    static const char *const what[] = {
        [HDI_FAULT_EMBEDDING] = "embedding: id",
        [HDI_FAULT_SECOND_EMBEDDING] = "embedding, second table: id",
        [HDI_FAULT_EMBEDDING_GRADIENT] = "embedding gradient: id",
        [HDI_FAULT_TARGET] = "cross_entropy: target",
        [HDI_FAULT_POSITION] = "rope: position",
        [HDI_FAULT_FIRST_POSITION] = "positions: first position",
        [HDI_FAULT_MODULATION] = "modulate: entry",
        [HDI_FAULT_OFFSET] = "cross attention: offset",
        [HDI_FAULT_KEYS] = "cross attention: number of keys",
    };
    if (fault->kind == HDI_FAULT_CACHE)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "cached attention: %" PRId32 " tokens at position %" PRId64
                         " do not fit a capacity of %" PRId64 " or the call's tokens",
                         fault->value, fault->row, fault->limit);
    return hdi_error(
        HD_ERROR_ARGUMENT, "%s %" PRId32 " in row %" PRId64 ", want below %" PRId64 "%s",
        what[fault->kind], fault->value, fault->row, fault->limit,
        fault->kind == HDI_FAULT_TARGET ? " (negative: ignored)" : " and not negative");
}

hd_status hdi_cuda_is_idle(hd_stream *stream, bool *idle)
{
    const cudaError_t error = cudaStreamQuery(stream->handle);
    *idle = error == cudaSuccess;
    if (error != cudaErrorNotReady) return hdi_cuda_status(error, "cudaStreamQuery");
    (void)cudaGetLastError();
    return HD_OK;
}

/* What the device has to say about what is done. */
static hd_status take_fault(const hdi_device *device)
{
    hdi_cuda_fault *fault = device->fault;
    if (fault->kind == HDI_FAULT_NONE) return HD_OK;
    const hd_status status = fault_status(fault);
    memset(fault, 0, sizeof *fault);
    return status;
}

hd_status hdi_cuda_mark(hd_stream *stream)
{
    return hdi_cuda_status(cudaEventRecord(stream->device->marked, stream->handle),
                           "cudaEventRecord");
}

hd_status hdi_cuda_is_past(hd_stream *stream, bool *past)
{
    const cudaError_t error = cudaEventQuery(stream->device->marked);
    *past = error == cudaSuccess;
    if (*past) return take_fault(stream->device);
    if (error != cudaErrorNotReady) return hdi_cuda_status(error, "cudaEventQuery");
    (void)cudaGetLastError();
    return HD_OK;
}

hd_status hdi_cuda_synchronize(hd_stream *stream)
{
    HD_RETURN_IF_ERROR(
        hdi_cuda_status(cudaStreamSynchronize(stream->handle), "cudaStreamSynchronize"));
    return take_fault(stream->device);
}
