/* Device memory by the driver's virtual memory calls: one piece, which other processes can map, too, or
 * where the driver has none so large many, so that a fragmented device can still give all that is free. */
#include "backend/cuda/arena.h"
#include "report/format.h"

#include <cuda.h>

/* A multiple of every granularity in use (2 MiB); the last piece is cut to what is needed. */
#define PIECE_BYTES ((size_t)64 << 20)
#define PIECE_UNIT ((size_t)2 << 20)

typedef struct driver {
    CUresult (*reserve_address)(CUdeviceptr *out, size_t bytes, size_t alignment,
                                CUdeviceptr address, unsigned long long flags);
    CUresult (*free_address)(CUdeviceptr address, size_t bytes);
    CUresult (*create)(CUmemGenericAllocationHandle *out, size_t bytes,
                       const CUmemAllocationProp *properties, unsigned long long flags);
    CUresult (*release)(CUmemGenericAllocationHandle handle);
    CUresult (*map)(CUdeviceptr address, size_t bytes, size_t offset,
                    CUmemGenericAllocationHandle handle, unsigned long long flags);
    CUresult (*unmap)(CUdeviceptr address, size_t bytes);
    CUresult (*set_access)(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access,
                           size_t count);
    CUresult (*granularity)(size_t *out, const CUmemAllocationProp *properties,
                            CUmemAllocationGranularity_flags option);
    CUresult (*range)(CUdeviceptr *base, size_t *bytes, CUdeviceptr address);
    CUresult (*attribute)(int *out, CUdevice_attribute attribute, CUdevice device);
    CUresult (*error_string)(CUresult error, const char **out);
} driver;

static bool find(const char *name, void *function)
{
    enum cudaDriverEntryPointQueryResult result;
    void *found = NULL;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    *(void **)function = found;
    return found != NULL;
}

/* The calls, found once; NULL if the driver lacks one. */
static const driver *driver_calls(void)
{
    static driver calls;
    static int known; /* 1: found, -1: not there */
    if (known == 0) {
        const bool complete =
            find("cuMemAddressReserve", &calls.reserve_address) &&
            find("cuMemAddressFree", &calls.free_address) && find("cuMemCreate", &calls.create) &&
            find("cuMemRelease", &calls.release) && find("cuMemMap", &calls.map) &&
            find("cuMemUnmap", &calls.unmap) && find("cuMemSetAccess", &calls.set_access) &&
            find("cuMemGetAllocationGranularity", &calls.granularity) &&
            find("cuMemGetAddressRange", &calls.range) &&
            find("cuDeviceGetAttribute", &calls.attribute) &&
            find("cuGetErrorString", &calls.error_string);
        known = complete ? 1 : -1;
    }
    return known > 0 ? &calls : NULL;
}

/* The way to other processes that NCCL takes within a host. */
static bool has_handles(const driver *calls, int ordinal)
{
    int supported = 0;
    return calls->attribute(&supported,
                            CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
                            ordinal) == CUDA_SUCCESS &&
           supported;
}

static CUmemAllocationProp properties_of(const driver *calls, int ordinal)
{
    CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED};
    if (has_handles(calls, ordinal))
        properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = ordinal;
    return properties;
}

bool hdi_cuda_can_map(int ordinal)
{
    const driver *calls = driver_calls();
    int supported = 0;
    size_t granularity = 0;
    if (!calls) return false;
    const CUmemAllocationProp properties = properties_of(calls, ordinal);
    if (calls->attribute(&supported, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
                         ordinal) != CUDA_SUCCESS)
        return false;
    if (calls->granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM) !=
        CUDA_SUCCESS)
        return false;
    return supported && granularity > 0 && PIECE_UNIT % granularity == 0;
}

static size_t mapped_bytes(size_t bytes)
{
    return (bytes + PIECE_UNIT - 1) / PIECE_UNIT * PIECE_UNIT;
}

static hd_status failed(const driver *calls, CUresult result, const char *what, size_t bytes,
                        size_t mapped)
{
    const char *text = NULL;
    (void)calls->error_string(result, &text);
    return hdi_error(result == CUDA_ERROR_OUT_OF_MEMORY ? HD_ERROR_MEMORY : HD_ERROR_DEVICE,
                     "cuda: %s: %s; of what is planned, %s, only %s could be had", what,
                     text ? text : "unknown error", hdi_bytes(bytes).text, hdi_bytes(mapped).text);
}

/* Map pieces of at most `most` bytes over the whole range; *mapped is how far it came. */
static hd_status map_pieces(const driver *calls, int ordinal, CUdeviceptr base, size_t bytes,
                            size_t most, size_t *mapped)
{
    const CUmemAllocationProp properties = properties_of(calls, ordinal);
    for (*mapped = 0; *mapped < bytes;) {
        const size_t left = bytes - *mapped, piece = left < most ? left : most;
        CUmemGenericAllocationHandle handle;
        CUresult result = calls->create(&handle, piece, &properties, 0);
        if (result != CUDA_SUCCESS) return failed(calls, result, "cuMemCreate", bytes, *mapped);
        result = calls->map(base + *mapped, piece, 0, handle, 0);
        (void)calls->release(handle); /* the mapping keeps the memory until it is unmapped */
        if (result != CUDA_SUCCESS) return failed(calls, result, "cuMemMap", bytes, *mapped);
        *mapped += piece;
    }
    const CUmemAccessDesc access = {.location = properties.location,
                                    .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    const CUresult result = calls->set_access(base, bytes, &access, 1);
    return result == CUDA_SUCCESS ? HD_OK : failed(calls, result, "cuMemSetAccess", bytes, *mapped);
}

/* A range is unmapped as it was mapped: at once, or piece by piece. */
static void unmap_pieces(const driver *calls, CUdeviceptr base, size_t mapped)
{
    if (mapped == 0 || calls->unmap(base, mapped) == CUDA_SUCCESS) return;
    for (size_t done = 0; done < mapped;) {
        const size_t left = mapped - done, piece = left < PIECE_BYTES ? left : PIECE_BYTES;
        (void)calls->unmap(base + done, piece);
        done += piece;
    }
}

hd_status hdi_cuda_map(int ordinal, size_t bytes, void **out)
{
    const driver *calls = driver_calls();
    const size_t total = mapped_bytes(bytes);
    CUdeviceptr base = 0;
    size_t mapped = 0;
    *out = NULL;
    if (!calls) return hdi_error(HD_ERROR_DEVICE, "cuda: the driver has no virtual memory calls");
    const CUresult result = calls->reserve_address(&base, total, PIECE_UNIT, 0, 0);
    if (result != CUDA_SUCCESS) return failed(calls, result, "cuMemAddressReserve", total, 0);
    hd_status status = map_pieces(calls, ordinal, base, total, total, &mapped);
    if (status == HD_ERROR_MEMORY && mapped == 0)
        status = map_pieces(calls, ordinal, base, total, PIECE_BYTES, &mapped);
    if (status != HD_OK) {
        unmap_pieces(calls, base, mapped);
        (void)calls->free_address(base, total);
        return status;
    }
    *out = (void *)(uintptr_t)base;
    return HD_OK;
}

void hdi_cuda_unmap(void *arena, size_t bytes)
{
    const driver *calls = driver_calls();
    const size_t total = mapped_bytes(bytes);
    if (!calls || !arena) return;
    unmap_pieces(calls, (CUdeviceptr)(uintptr_t)arena, total);
    (void)calls->free_address((CUdeviceptr)(uintptr_t)arena, total);
}

bool hdi_cuda_is_shareable(int ordinal, const void *arena, size_t bytes)
{
    const driver *calls = driver_calls();
    const CUdeviceptr base = (CUdeviceptr)(uintptr_t)arena;
    CUdeviceptr first = 0;
    size_t piece = 0;
    return arena && hdi_cuda_can_map(ordinal) && has_handles(calls, ordinal) &&
           calls->range(&first, &piece, base) == CUDA_SUCCESS && first == base && piece >= bytes;
}
