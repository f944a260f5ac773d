/* Making and ending pinned memory of several processes. */
#include "comm/nccl/pinned.h"

#include <stdatomic.h>

#include "comm/nccl/nccl.h"
#include "core/error.h"

_Static_assert(sizeof(hdi_shared_name) <= HDI_COMM_RECORD, "a name is one record");

static hd_status make(hd_comm *host, size_t bytes, hdi_shared *out)
{
    hdi_shared_name *names = host->records, name = {0};
    hd_status status = HD_OK;
    if (host->rank == 0) status = hdi_shared_create(bytes, out, &name);
    names[host->rank] = name;
    HD_RETURN_IF_ERROR(hdi_comm_gather(host, sizeof *names));
    name = names[0];
    if (status == HD_OK && host->rank != 0) status = hdi_shared_open(&name, bytes, out);
    return hd_comm_agree(host, status);
}

static hd_status pin(hdi_nccl_pinned *it)
{
    void *device = NULL;
    HD_RETURN_IF_ERROR(
        hdi_nccl_cuda_status(cudaHostRegister(it->shared.memory, it->shared.bytes,
                                              cudaHostRegisterPortable | cudaHostRegisterMapped),
                             "cudaHostRegister"));
    it->is_registered = true;
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(cudaHostGetDevicePointer(&device, it->shared.memory, 0),
                                            "cudaHostGetDevicePointer"));
    it->device = device;
    return HD_OK;
}

hd_status hdi_nccl_pinned_open(hd_comm *host, size_t common, size_t each, hdi_nccl_pinned *out)
{
    const size_t rank = (size_t)host->rank;
    HD_RETURN_IF_ERROR(make(host, common + (size_t)host->size * each, &out->shared));
    hd_status status = rank == 0 ? hdi_shared_take(&out->shared, 0, common) : HD_OK;
    if (status == HD_OK) status = hdi_shared_take(&out->shared, common + rank * each, each);
    HD_RETURN_IF_ERROR(hd_comm_agree(host, status));
    hdi_shared_hide(&out->shared);
    return hd_comm_agree(host, pin(out));
}

void hdi_nccl_pinned_close(hdi_nccl_pinned *it)
{
    if (it->is_registered) (void)cudaHostUnregister(it->shared.memory);
    hdi_shared_close(&it->shared);
    *it = (hdi_nccl_pinned){0};
}

void hdi_nccl_pinned_store(const hdi_nccl_pinned *it, size_t at, uint32_t value)
{
    char *word = (char *)it->shared.memory + at;
    atomic_store((_Atomic uint32_t *)(void *)word, value);
}
