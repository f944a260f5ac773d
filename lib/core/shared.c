/* Memory of several processes: files in memory, found through /proc. */
#include "core/shared.h"

#include "core/error.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static hd_status refused(hd_status status, const char *what, size_t bytes)
{
    return hdi_error(status, "shared memory of %zu bytes: %s: %s", bytes, what, strerror(errno));
}

/* Beyond this limit the system would send a signal that ends the process. */
static hd_status check_limit(size_t bytes)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
        bytes <= limit.rlim_cur)
        return HD_OK;
    return hdi_error(HD_ERROR_MEMORY,
                     "shared memory is limited to %" PRIu64 " bytes (ulimit -f), want %zu",
                     (uint64_t)limit.rlim_cur, bytes);
}

static hd_status map(size_t bytes, hdi_shared *shared)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, shared->descriptor, 0);
    if (memory == MAP_FAILED) return refused(HD_ERROR_MEMORY, "mmap", bytes);
    shared->memory = memory;
    shared->bytes = bytes;
    return HD_OK;
}

static hd_status make(size_t bytes, hdi_shared *shared, hdi_shared_name *name)
{
    struct stat facts;
    HD_RETURN_IF_ERROR(check_limit(bytes));
    shared->descriptor = memfd_create("heddle", MFD_CLOEXEC);
    shared->can_be_found = shared->descriptor >= 0;
    if (!shared->can_be_found) return refused(HD_ERROR_IO, "memfd_create", bytes);
    if (ftruncate(shared->descriptor, (off_t)bytes) != 0)
        return refused(HD_ERROR_MEMORY, "ftruncate", bytes);
    if (fstat(shared->descriptor, &facts) != 0) return refused(HD_ERROR_IO, "fstat", bytes);
    *name = (hdi_shared_name){.process = (int32_t)getpid(),
                              .descriptor = shared->descriptor,
                              .device = facts.st_dev,
                              .file = facts.st_ino};
    return map(bytes, shared);
}

/* Another process's number may mean a stranger here: what is found must be the very same file. */
static hd_status find(const hdi_shared_name *name, size_t bytes, hdi_shared *shared)
{
    char path[64];
    struct stat facts;
    snprintf(path, sizeof path, "/proc/%" PRId32 "/fd/%" PRId32, name->process, name->descriptor);
    HD_RETURN_IF_ERROR(check_limit(bytes));
    shared->descriptor = open(path, O_RDWR | O_CLOEXEC);
    shared->can_be_found = shared->descriptor >= 0;
    if (!shared->can_be_found) return refused(HD_ERROR_IO, path, bytes);
    if (fstat(shared->descriptor, &facts) != 0) return refused(HD_ERROR_IO, path, bytes);
    if (facts.st_dev != name->device || facts.st_ino != name->file || facts.st_size != (off_t)bytes)
        return hdi_error(HD_ERROR_IO,
                         "shared memory of %zu bytes: %s is another file, of %" PRId64 " bytes",
                         bytes, path, (int64_t)facts.st_size);
    return map(bytes, shared);
}

hd_status hdi_shared_create(size_t bytes, hdi_shared *out, hdi_shared_name *name)
{
    *out = (hdi_shared){0};
    const hd_status status = make(bytes, out, name);
    if (status != HD_OK) hdi_shared_close(out);
    return status;
}

hd_status hdi_shared_open(const hdi_shared_name *name, size_t bytes, hdi_shared *out)
{
    *out = (hdi_shared){0};
    const hd_status status = find(name, bytes, out);
    if (status != HD_OK) hdi_shared_close(out);
    return status;
}

hd_status hdi_shared_take(const hdi_shared *shared, size_t first, size_t bytes)
{
    while (bytes && fallocate(shared->descriptor, 0, (off_t)first, (off_t)bytes) != 0)
        if (errno != EINTR) return refused(HD_ERROR_MEMORY, "fallocate", shared->bytes);
    return HD_OK;
}

void hdi_shared_hide(hdi_shared *shared)
{
    if (shared->can_be_found) close(shared->descriptor);
    shared->can_be_found = false;
}

void hdi_shared_close(hdi_shared *shared)
{
    hdi_shared_hide(shared);
    if (shared->memory) munmap(shared->memory, shared->bytes);
    *shared = (hdi_shared){0};
}
