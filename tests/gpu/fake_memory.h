/* The driver's virtual memory by files without names, which other processes can map; a handle is a descriptor. */
#ifndef FAKE_MEMORY_H
#define FAKE_MEMORY_H

#include <cuda.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct fake_range {
    char *at;
    size_t bytes;
    int descriptor;
} fake_range;
enum { FAKE_PINNED = 64, FAKE_PIECES = 64 };
static fake_range fake_pinned[FAKE_PINNED], fake_pieces[FAKE_PIECES];
static bool fake_maps; /* the driver has these calls */

/* The range of a list that `memory` lies in, or begins; NULL: of none. NULL finds room. */
static fake_range *fake_find(fake_range *list, int count, const void *memory)
{
    for (int i = 0; i < count; i++) {
        const char *at = list[i].at;
        if (memory ? at && (const char *)memory >= at && (const char *)memory < at + list[i].bytes
                   : !at)
            return &list[i];
    }
    return NULL;
}

/* A piece of device memory of this process, zeroed. */
static void *fake_reserve(size_t bytes)
{
    fake_range *room = fake_find(fake_pieces, FAKE_PIECES, NULL);
    const int descriptor = memfd_create("piece", MFD_CLOEXEC);
    if (!room || descriptor < 0 || ftruncate(descriptor, (off_t)bytes)) abort();
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (at == MAP_FAILED) abort();
    *room = (fake_range){.at = at, .bytes = bytes, .descriptor = descriptor};
    return at;
}

static void fake_free(void *memory)
{
    fake_range *found = fake_find(fake_pieces, FAKE_PIECES, memory);
    (void)munmap(found->at, found->bytes);
    (void)close(found->descriptor);
    *found = (fake_range){0};
}

static CUresult fake_address_range(CUdeviceptr *base, size_t *bytes, CUdeviceptr address)
{
    const fake_range *found = fake_find(fake_pieces, FAKE_PIECES, (const void *)(uintptr_t)address);
    if (!fake_maps || !found) return CUDA_ERROR_NOT_SUPPORTED;
    *base = (CUdeviceptr)(uintptr_t)found->at;
    *bytes = found->bytes;
    return CUDA_SUCCESS;
}

static CUresult fake_handle(CUmemGenericAllocationHandle *out, int descriptor)
{
    const int copy = dup(descriptor);
    *out = (CUmemGenericAllocationHandle)copy;
    return copy < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static CUresult fake_retain(CUmemGenericAllocationHandle *out, void *address)
{
    return fake_handle(out, fake_find(fake_pieces, FAKE_PIECES, address)->descriptor);
}

static CUresult fake_release(CUmemGenericAllocationHandle handle)
{
    return close((int)handle) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static CUresult fake_give(void *out, CUmemGenericAllocationHandle handle,
                          CUmemAllocationHandleType type, unsigned long long flags)
{
    (void)type, (void)flags;
    *(int *)out = dup((int)handle);
    return *(int *)out < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static CUresult fake_take(CUmemGenericAllocationHandle *out, void *given,
                          CUmemAllocationHandleType type)
{
    (void)type;
    return fake_handle(out, (int)(intptr_t)given);
}

static CUresult fake_reserve_address(CUdeviceptr *out, size_t bytes, size_t alignment,
                                     CUdeviceptr address, unsigned long long flags)
{
    (void)alignment, (void)address, (void)flags;
    void *at = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *out = (CUdeviceptr)(uintptr_t)at;
    return at == MAP_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

static CUresult fake_free_address(CUdeviceptr address, size_t bytes)
{
    return munmap((void *)(uintptr_t)address, bytes) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

/* A mapping is of the whole piece, and so is its end. */
static CUresult fake_map(CUdeviceptr address, size_t bytes, size_t offset,
                         CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    (void)flags;
    const void *at = mmap((void *)(uintptr_t)address, bytes, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_FIXED, (int)handle, (off_t)offset);
    return at == MAP_FAILED ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static CUresult fake_unmap(CUdeviceptr address, size_t bytes)
{
    const void *at = mmap((void *)(uintptr_t)address, bytes, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return at == MAP_FAILED ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static CUresult fake_set_access(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access,
                                size_t count)
{
    (void)address, (void)bytes, (void)access, (void)count;
    return CUDA_SUCCESS;
}

#endif
