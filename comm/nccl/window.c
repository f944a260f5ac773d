/* Windows: ranks give each other handles of their memory, file descriptors that travel through sockets of
 * the host, and map what they get. */
#include "comm/nccl/window.h"

#include <cuda.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"

typedef struct driver {
    CUresult (*range)(CUdeviceptr *base, size_t *bytes, CUdeviceptr address);
    CUresult (*retain)(CUmemGenericAllocationHandle *out, void *address);
    CUresult (*release)(CUmemGenericAllocationHandle handle);
    CUresult (*give)(void *out, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                     unsigned long long flags);
    CUresult (*take)(CUmemGenericAllocationHandle *out, void *given,
                     CUmemAllocationHandleType type);
    CUresult (*reserve_address)(CUdeviceptr *out, size_t bytes, size_t alignment,
                                CUdeviceptr address, unsigned long long flags);
    CUresult (*free_address)(CUdeviceptr address, size_t bytes);
    CUresult (*map)(CUdeviceptr address, size_t bytes, size_t offset,
                    CUmemGenericAllocationHandle handle, unsigned long long flags);
    CUresult (*unmap)(CUdeviceptr address, size_t bytes);
    CUresult (*set_access)(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access,
                           size_t count);
    CUresult (*await_word)(CUstream stream, CUdeviceptr address, cuuint32_t value,
                           unsigned int flags);
    CUresult (*words)(CUstream stream, unsigned int count, CUstreamBatchMemOpParams *operations,
                      unsigned int flags);
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
        const bool complete = find("cuMemGetAddressRange", &calls.range) &&
                              find("cuMemRetainAllocationHandle", &calls.retain) &&
                              find("cuMemRelease", &calls.release) &&
                              find("cuMemExportToShareableHandle", &calls.give) &&
                              find("cuMemImportFromShareableHandle", &calls.take) &&
                              find("cuMemAddressReserve", &calls.reserve_address) &&
                              find("cuMemAddressFree", &calls.free_address) &&
                              find("cuMemMap", &calls.map) && find("cuMemUnmap", &calls.unmap) &&
                              find("cuMemSetAccess", &calls.set_access) &&
                              find("cuStreamWaitValue32", &calls.await_word) &&
                              find("cuStreamBatchMemOp", &calls.words) &&
                              find("cuGetErrorString", &calls.error_string);
        known = complete ? 1 : -1;
    }
    return known > 0 ? &calls : NULL;
}

static hd_status status_of(CUresult result, const char *what)
{
    const char *text = NULL;
    if (result == CUDA_SUCCESS) return HD_OK;
    (void)driver_calls()->error_string(result, &text);
    return hdi_error(HD_ERROR_DEVICE, "nccl: %s: %s", what, text ? text : "unknown error");
}

/* What ranks tell each other of theirs, and the name of their socket. */
typedef struct name {
    int64_t process;
    uint64_t at, bytes;
} name;

_Static_assert(sizeof(name) <= HDI_COMM_RECORD, "a name is one record");

/* While a window is being opened. */
typedef struct opening {
    hdi_nccl_window *window;
    name names[HDI_DIRECT_RANKS];
    int socket, own; /* descriptors; -1: none */
} opening;

static socklen_t address_of(const name *who, struct sockaddr_un *out)
{
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    /* The first byte stays zero: a name that is in no file system, and ends with its socket. */
    const int length = snprintf(out->sun_path + 1, sizeof out->sun_path - 1,
                                "heddle-%" PRId64 "-%" PRIx64, who->process, who->at);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

static hd_status prepare(opening *it, void *memory)
{
    const driver *calls = driver_calls();
    hdi_nccl_window *window = it->window;
    if (!window) return hdi_error(HD_ERROR_MEMORY, "nccl: out of host memory");
    if (!calls) return hdi_error(HD_ERROR_UNSUPPORTED, "nccl: the driver maps no memory of others");
    name *own = &it->names[window->rank];
    CUdeviceptr base = 0;
    size_t bytes = 0;
    HD_RETURN_IF_ERROR(status_of(calls->range(&base, &bytes, (CUdeviceptr)(uintptr_t)memory),
                                 "cuMemGetAddressRange"));
    if (base != (CUdeviceptr)(uintptr_t)memory)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "nccl: the memory is %zu bytes into a piece of the driver's of %zu, want "
                         "its begin",
                         (size_t)((CUdeviceptr)(uintptr_t)memory - base), bytes);
    *own = (name){.process = getpid(), .at = (uint64_t)(uintptr_t)memory, .bytes = bytes};
    CUmemGenericAllocationHandle handle;
    HD_RETURN_IF_ERROR(status_of(calls->retain(&handle, memory), "cuMemRetainAllocationHandle"));
    const CUresult given =
        calls->give(&it->own, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    (void)calls->release(handle);
    if (given != CUDA_SUCCESS) it->own = -1;
    HD_RETURN_IF_ERROR(status_of(given, "cuMemExportToShareableHandle"));
    struct sockaddr_un address;
    const socklen_t length = address_of(own, &address);
    it->socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (it->socket < 0 || bind(it->socket, (struct sockaddr *)&address, length))
        return hdi_error(HD_ERROR_IO, "nccl: no socket for handles: %s", strerror(errno));
    return HD_OK;
}

static hd_status exchange_names(hd_comm *host, opening *it)
{
    name *names = host->records;
    names[host->rank] = it->names[host->rank];
    HD_RETURN_IF_ERROR(hdi_comm_gather(host, sizeof *names));
    memcpy(it->names, names, (size_t)host->size * sizeof *names);
    return HD_OK;
}

/* Room for one descriptor in a message. */
typedef union ancillary {
    struct cmsghdr head;
    char room[CMSG_SPACE(sizeof(int))];
} ancillary;

/* A socket takes ten messages before it is read from; there are fewer peers. */
static hd_status send_own(const opening *it, int peer)
{
    struct sockaddr_un address;
    const socklen_t length = address_of(&it->names[peer], &address);
    int rank = it->window->rank;
    ancillary extra = {.room = {0}};
    struct iovec data = {.iov_base = &rank, .iov_len = sizeof rank};
    struct msghdr message = {.msg_name = &address,
                             .msg_namelen = length,
                             .msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = extra.room,
                             .msg_controllen = sizeof extra.room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &it->own, sizeof(int));
    const ssize_t sent = sendmsg(it->socket, &message, MSG_DONTWAIT);
    if (sent != (ssize_t)sizeof rank)
        return hdi_error(HD_ERROR_IO, "nccl: no handle reaches rank %d of this host: %s", peer,
                         sent < 0 ? strerror(errno) : "cut short");
    return HD_OK;
}

static hd_status send_all(const opening *it)
{
    for (int r = 0; r < it->window->ranks; r++)
        if (r != it->window->rank) HD_RETURN_IF_ERROR(send_own(it, r));
    return HD_OK;
}

static hd_status receive(const opening *it, int *peer, int *descriptor)
{
    ancillary extra = {.room = {0}};
    struct iovec data = {.iov_base = peer, .iov_len = sizeof *peer};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = extra.room,
                             .msg_controllen = sizeof extra.room};
    *peer = *descriptor = -1;
    const ssize_t bytes = recvmsg(it->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    const char *why = bytes < 0 ? strerror(errno) : NULL;
    const struct cmsghdr *head = bytes == (ssize_t)sizeof *peer ? CMSG_FIRSTHDR(&message) : NULL;
    if (head && head->cmsg_type == SCM_RIGHTS) memcpy(descriptor, CMSG_DATA(head), sizeof(int));
    if (*descriptor >= 0 && *peer >= 0 && *peer < it->window->ranks) return HD_OK;
    if (*descriptor >= 0) (void)close(*descriptor);
    return why ? hdi_error(HD_ERROR_IO, "nccl: a rank of this host has sent no handle: %s", why)
               : hdi_error(
                     HD_ERROR_IO,
                     "nccl: seen a message of %zd bytes of rank %d, want %zu and a handle, of "
                     "a rank of this host",
                     bytes, *peer, sizeof *peer);
}

static hd_status map(hdi_nccl_window *window, int peer, size_t bytes, int descriptor)
{
    const driver *calls = driver_calls();
    CUmemGenericAllocationHandle handle;
    CUdeviceptr base = 0;
    HD_RETURN_IF_ERROR(status_of(calls->take(&handle, (void *)(intptr_t)descriptor,
                                             CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                                 "cuMemImportFromShareableHandle"));
    CUresult result = calls->reserve_address(&base, bytes, 0, 0, 0);
    const bool is_reserved = result == CUDA_SUCCESS;
    if (is_reserved) result = calls->map(base, bytes, 0, handle, 0);
    (void)calls->release(handle); /* the mapping keeps the memory */
    if (result != CUDA_SUCCESS) {
        if (is_reserved) (void)calls->free_address(base, bytes);
        return status_of(result, "cuMemMap of a peer's memory");
    }
    window->memory[peer] = (char *)(uintptr_t)base;
    window->bytes[peer] = bytes;
    const CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = window->ordinal},
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    return status_of(calls->set_access(base, bytes, &access, 1),
                     "cuMemSetAccess of a peer's memory");
}

static hd_status receive_all(const opening *it)
{
    hd_status status = HD_OK;
    for (int i = 1; i < it->window->ranks && status == HD_OK; i++) {
        int peer, descriptor;
        status = receive(it, &peer, &descriptor);
        if (status != HD_OK) break;
        status = map(it->window, peer, it->names[peer].bytes, descriptor);
        (void)close(descriptor);
    }
    return status;
}

/* Every step ends in agreement, so that nobody waits for one that has failed. */
static hd_status open_steps(hd_comm *host, opening *it, void *memory)
{
    HD_RETURN_IF_ERROR(hd_comm_agree(host, prepare(it, memory)));
    HD_RETURN_IF_ERROR(hd_comm_agree(host, exchange_names(host, it)));
    HD_RETURN_IF_ERROR(hd_comm_agree(host, send_all(it)));
    HD_RETURN_IF_ERROR(hd_comm_agree(host, receive_all(it)));
    it->window->memory[it->window->rank] = memory;
    it->window->bytes[it->window->rank] = it->names[it->window->rank].bytes;
    return HD_OK;
}

hd_status hdi_nccl_window_open(hd_comm *host, int ordinal, void *memory, hdi_nccl_window **out)
{
    *out = NULL;
    if (host->size > HDI_DIRECT_RANKS)
        return hdi_error(HD_ERROR_UNSUPPORTED, "nccl: %d ranks, want at most %d to map each other",
                         host->size, (int)HDI_DIRECT_RANKS);
    opening it = {.window = hdi_alloc(sizeof *it.window), .socket = -1, .own = -1};
    if (it.window)
        *it.window = (hdi_nccl_window){.rank = host->rank, .ranks = host->size, .ordinal = ordinal};
    const hd_status status = open_steps(host, &it, memory);
    if (it.socket >= 0) (void)close(it.socket);
    if (it.own >= 0) (void)close(it.own);
    if (status == HD_OK)
        *out = it.window;
    else
        hdi_nccl_window_close(it.window);
    return status;
}

void hdi_nccl_window_close(hdi_nccl_window *window)
{
    if (!window) return;
    for (int r = 0; r < window->ranks; r++) {
        if (r == window->rank || !window->memory[r]) continue;
        const CUdeviceptr base = (CUdeviceptr)(uintptr_t)window->memory[r];
        (void)driver_calls()->unmap(base, window->bytes[r]);
        (void)driver_calls()->free_address(base, window->bytes[r]);
    }
    hdi_free(window);
}

hd_status hdi_nccl_await_word(cudaStream_t stream, const void *address, uint32_t value)
{
    return status_of(driver_calls()->await_word(stream, (CUdeviceptr)(uintptr_t)address, value,
                                                CU_STREAM_WAIT_VALUE_GEQ),
                     "cuStreamWaitValue32");
}

static hd_status post_words(cudaStream_t stream, CUstreamBatchMemOpParams *operations, int count)
{
    const driver *calls = driver_calls();
    if (!calls) return hdi_error(HD_ERROR_UNSUPPORTED, "nccl: the driver awaits no words");
    if (count == 0) return HD_OK;
    return status_of(calls->words(stream, (unsigned int)count, operations, 0),
                     "cuStreamBatchMemOp");
}

hd_status hdi_nccl_await_words(cudaStream_t stream, const hdi_nccl_word *words, int count)
{
    CUstreamBatchMemOpParams operations[HDI_DIRECT_RANKS] = {0};
    for (int i = 0; i < count; i++) {
        operations[i].operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
        operations[i].waitValue.address = (CUdeviceptr)(uintptr_t)words[i].address;
        operations[i].waitValue.value = words[i].value;
        operations[i].waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;
    }
    return post_words(stream, operations, count);
}

/* By default a write comes behind a fence for all of the system. */
hd_status hdi_nccl_write_words(cudaStream_t stream, const hdi_nccl_word *words, int count)
{
    CUstreamBatchMemOpParams operations[HDI_DIRECT_RANKS] = {0};
    for (int i = 0; i < count; i++) {
        operations[i].operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
        operations[i].writeValue.address = (CUdeviceptr)(uintptr_t)words[i].address;
        operations[i].writeValue.value = words[i].value;
        operations[i].writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT;
    }
    return post_words(stream, operations, count);
}
