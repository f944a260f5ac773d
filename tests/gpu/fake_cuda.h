/* CUDA's streams by threads, for tests of communication on a machine without a GPU: in the program whose source
 * includes this, calls come here instead of to CUDA. Device memory is host memory. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/gpu/fake_memory.h"

enum { FAKE_RANKS = 8, FAKE_STREAMS = 256 };

static bool fake_reach;             /* GPUs reach each other's memory */
static char fake_bus_id[32] = "00"; /* of this process's GPU */

typedef struct fake_event {
    atomic_long done, recorded;
} fake_event;

typedef enum fake_kind { FAKE_COPY, FAKE_WORDS, FAKE_RECORD, FAKE_AWAIT, FAKE_CALL } fake_kind;

typedef struct fake_work fake_work;
struct fake_work {
    fake_kind kind;
    void *to;
    const void *from;
    size_t bytes;
    int count; /* of words */
    CUstreamBatchMemOpParams words[FAKE_RANKS];
    fake_event *event;
    long number;
    void *early; /* what was read at once; owned */
    void (*call)(void *user, long number);
    void *user;
    fake_work *next;
};

typedef struct fake_stream {
    pthread_mutex_t mutex;
    pthread_cond_t more;
    fake_work *first, *last;
    long posted, done;
    bool is_over;
    unsigned seed;
} fake_stream;
static fake_stream *fake_streams[FAKE_STREAMS];
static int fake_stream_count;

static void fake_do_words(const fake_work *it)
{
    for (int i = 0; i < it->count; i++) {
        const CUstreamBatchMemOpParams *one = &it->words[i];
        _Atomic uint32_t *word = (_Atomic uint32_t *)(uintptr_t)one->waitValue.address;
        if (one->operation == CU_STREAM_MEM_OP_WRITE_VALUE_32)
            atomic_store(word, one->writeValue.value);
        else
            while ((int32_t)(atomic_load(word) - one->waitValue.value) < 0)
                usleep(20);
    }
}

static void fake_run(const fake_work *it)
{
    switch (it->kind) {
    case FAKE_COPY: memcpy(it->to, it->from, it->bytes); break;
    case FAKE_WORDS: fake_do_words(it); break;
    case FAKE_RECORD: it->event->done = it->number; break;
    case FAKE_AWAIT:
        while (it->event->done < it->number)
            usleep(20);
        break;
    case FAKE_CALL: it->call(it->user, it->number); break;
    }
}

static fake_work *fake_next(fake_stream *it)
{
    pthread_mutex_lock(&it->mutex);
    while (!it->first && !it->is_over)
        pthread_cond_wait(&it->more, &it->mutex);
    fake_work *work = it->first;
    if (work) it->first = work->next;
    pthread_mutex_unlock(&it->mutex);
    return work;
}

/* Now and then a stream stands still for a while. */
static void *fake_stream_main(void *user)
{
    fake_stream *it = user;
    for (fake_work *work = fake_next(it); work; work = fake_next(it)) {
        if (rand_r(&it->seed) % 20 == 0) usleep((unsigned)rand_r(&it->seed) % 1000);
        fake_run(work);
        free(work->early);
        free(work);
        pthread_mutex_lock(&it->mutex);
        it->done++;
        pthread_mutex_unlock(&it->mutex);
    }
    return NULL;
}

static cudaError_t fake_put(void *stream, fake_work what)
{
    fake_stream *it = stream;
    fake_work *work = malloc(sizeof *work);
    *work = what;
    pthread_mutex_lock(&it->mutex);
    *(it->first ? &it->last->next : &it->first) = work;
    it->last = work;
    it->posted++;
    pthread_cond_signal(&it->more);
    pthread_mutex_unlock(&it->mutex);
    return cudaSuccess;
}

static bool fake_is_idle(const fake_stream *constant)
{
    fake_stream *it = (fake_stream *)(uintptr_t)constant;
    pthread_mutex_lock(&it->mutex);
    const bool is_idle = it->done == it->posted;
    pthread_mutex_unlock(&it->mutex);
    return is_idle;
}

/* As cudaDeviceSynchronize; false: something waits for ever. */
static bool fake_synchronize(double seconds)
{
    for (int turn = 0; turn < (int)(seconds * 1000); turn++) {
        bool is_idle = true;
        for (int i = 0; i < fake_stream_count; i++)
            is_idle = is_idle && fake_is_idle(fake_streams[i]);
        if (is_idle) return true;
        usleep(1000);
    }
    return false;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority)
{
    (void)flags, (void)priority;
    if (fake_stream_count == FAKE_STREAMS) return cudaErrorMemoryAllocation;
    fake_stream *it = calloc(1, sizeof *it);
    pthread_t thread;
    pthread_mutex_init(&it->mutex, NULL);
    pthread_cond_init(&it->more, NULL);
    it->seed = (unsigned)getpid() + (unsigned)fake_stream_count;
    pthread_create(&thread, NULL, fake_stream_main, it);
    pthread_detach(thread);
    fake_streams[fake_stream_count++] = it;
    *out = (cudaStream_t)(void *)it;
    return cudaSuccess;
}

/* Its work goes on, as CUDA has it. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    fake_stream *it = (fake_stream *)(void *)stream;
    pthread_mutex_lock(&it->mutex);
    it->is_over = true;
    pthread_cond_signal(&it->more);
    pthread_mutex_unlock(&it->mutex);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    return fake_is_idle((fake_stream *)(void *)stream) ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    (void)flags;
    *out = (cudaEvent_t)calloc(1, sizeof(fake_event));
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    (void)event; /* streams may still use it */
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    fake_event *it = (fake_event *)(void *)event;
    return fake_put(stream,
                    (fake_work){.kind = FAKE_RECORD, .event = it, .number = ++it->recorded});
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    fake_event *it = (fake_event *)(void *)event;
    (void)flags;
    return fake_put(stream, (fake_work){.kind = FAKE_AWAIT, .event = it, .number = it->recorded});
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    const fake_event *it = (const fake_event *)(void *)event;
    return it->done >= it->recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    (void)kind;
    memcpy(to, from, bytes);
    return cudaSuccess;
}

/* Host memory that is not pinned is read at once. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    fake_work work = {.kind = FAKE_COPY, .to = to, .from = from, .bytes = bytes};
    if (kind == cudaMemcpyHostToDevice && !fake_find(fake_pinned, FAKE_PINNED, from)) {
        work.from = work.early = malloc(bytes);
        memcpy(work.early, from, bytes);
    }
    return fake_put(stream, work);
}

cudaError_t cudaDriverGetVersion(int *out)
{
    *out = 12000; /* without copies in batches */
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    *out = calloc(1, bytes);
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    memset(memory, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned flags)
{
    fake_range *room = fake_find(fake_pinned, FAKE_PINNED, NULL);
    (void)flags;
    if (!room || (uintptr_t)memory % 4096) return cudaErrorInvalidValue;
    *room = (fake_range){.at = memory, .bytes = bytes};
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    fake_range *found = fake_find(fake_pinned, FAKE_PINNED, memory);
    if (!found) return cudaErrorInvalidValue;
    *found = (fake_range){0};
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **out, void *memory, unsigned flags)
{
    (void)flags;
    *out = memory;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int ordinal)
{
    return ordinal ? cudaErrorInvalidDevice : cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = *greatest = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *out, int bytes, int ordinal)
{
    (void)ordinal;
    (void)snprintf(out, (size_t)bytes, "%s", fake_bus_id);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetByPCIBusId(int *out, const char *name)
{
    *out = strcmp(name, fake_bus_id) != 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *out, int ordinal, int peer)
{
    *out = fake_reach && ordinal != peer;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorNotReady ? "not ready" : "a made-up failure";
}

const char *cudaGetErrorName(cudaError_t error)
{
    return cudaGetErrorString(error);
}

static CUresult fake_words(CUstream stream, unsigned count, CUstreamBatchMemOpParams *words,
                           unsigned flags)
{
    fake_work work = {.kind = FAKE_WORDS, .count = (int)count};
    (void)flags;
    memcpy(work.words, words, count * sizeof *words);
    return fake_put(stream, work) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

static CUresult fake_await_word(CUstream stream, CUdeviceptr address, cuuint32_t value,
                                unsigned flags)
{
    CUstreamBatchMemOpParams one = {0};
    one.waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    one.waitValue.address = address;
    one.waitValue.value = value;
    return fake_words(stream, 1, &one, flags);
}

static CUresult fake_text(CUresult result, const char **out)
{
    (void)result;
    *out = "not of this driver";
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result)
{
    const struct {
        const char *name;
        void (*call)(void);
    } calls[] = {{"cuStreamBatchMemOp", (void (*)(void))fake_words},
                 {"cuStreamWaitValue32", (void (*)(void))fake_await_word},
                 {"cuGetErrorString", (void (*)(void))fake_text},
                 {"cuMemGetAddressRange", (void (*)(void))fake_address_range},
                 {"cuMemRetainAllocationHandle", (void (*)(void))fake_retain},
                 {"cuMemRelease", (void (*)(void))fake_release},
                 {"cuMemExportToShareableHandle", (void (*)(void))fake_give},
                 {"cuMemImportFromShareableHandle", (void (*)(void))fake_take},
                 {"cuMemAddressReserve", (void (*)(void))fake_reserve_address},
                 {"cuMemAddressFree", (void (*)(void))fake_free_address},
                 {"cuMemMap", (void (*)(void))fake_map},
                 {"cuMemUnmap", (void (*)(void))fake_unmap},
                 {"cuMemSetAccess", (void (*)(void))fake_set_access}};
    (void)version, (void)flags;
    *out = NULL;
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
        if (strcmp(name, calls[i].name) == 0) *out = (void *)(uintptr_t)calls[i].call;
    *result = *out ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

#endif
