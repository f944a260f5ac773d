/* Communicators that wait for a mesh. They are kept in the order in which they came, which two ranks that
 * share several of them agree on: so they end in one order, too. */
#include "runtime/parking.h"

#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "runtime/gpu.h"

typedef struct parked {
    hd_comm *comm; /* owned */
    bool links;
    struct parked *next;
} parked;

struct hdi_parking {
    hdi_nccl_device *device; /* owned; NULL: none yet */
    bool is_lent, is_spent;  /* something failed: the device with all that it has must go */
    parked *first;
};

hd_status hdi_parking_create(hdi_parking **out)
{
    *out = hdi_alloc(sizeof **out);
    return *out ? HD_OK : hdi_error(HD_ERROR_MEMORY, "parking: out of host memory");
}

static void clear(hdi_parking *parking)
{
    for (parked *it = parking->first, *next; it; it = next) {
        next = it->next;
        hd_comm_destroy(it->comm);
        hdi_free(it);
    }
    hdi_gpu_nccl_close(parking->device);
    *parking = (hdi_parking){0};
}

void hdi_parking_destroy(hdi_parking *parking)
{
    if (parking) clear(parking);
    hdi_free(parking);
}

hd_status hdi_parking_lend(hdi_parking *parking, const hd_context *context, hdi_nccl_device **out)
{
    *out = NULL;
    if (!parking || parking->is_lent) return HD_OK;
    if (parking->device)
        hdi_gpu_nccl_serve(parking->device, context->stream);
    else
        HD_RETURN_IF_ERROR(hdi_gpu_nccl(context->ordinal, context->stream, &parking->device));
    parking->is_lent = true;
    *out = parking->device;
    return HD_OK;
}

void hdi_parking_return(hdi_parking *parking)
{
    parking->is_lent = false;
    if (parking->is_spent) clear(parking);
}

/* Whether all ranks say so. */
static bool agree(hd_comm *host, bool own)
{
    int32_t all = own;
    hd_request request = {0};
    hd_status status = hd_comm_all_reduce(host, &all, 1, HD_DTYPE_I32, HD_REDUCE_MIN, &request);
    if (status == HD_OK) status = hd_comm_wait(host, &request);
    return status == HD_OK && all;
}

static bool is_of(const parked *it, const hd_comm *host, bool links)
{
    return it->links == links && it->comm->size == host->size &&
           memcmp(it->comm->world_ranks, host->world_ranks,
                  (size_t)host->size * sizeof *host->world_ranks) == 0;
}

hd_comm *hdi_parking_take(hdi_parking *parking, hd_comm *host, bool links)
{
    parked **link = &parking->first;
    while (*link && !is_of(*link, host, links))
        link = &(*link)->next;
    parked *it = *link;
    hd_comm *comm = NULL;
    if (it) {
        comm = it->comm;
        *link = it->next;
        hdi_free(it);
    }
    if (!agree(host, comm != NULL)) {
        hd_comm_destroy(comm);
        return NULL;
    }
    hdi_gpu_nccl_rehost(comm, host);
    return comm;
}

bool hdi_parking_put(hdi_parking *parking, hd_comm *comm, hd_comm *host, bool links)
{
    parked *it = hdi_alloc(sizeof *it);
    if (!agree(host, it && hdi_comm_settle(comm) == HD_OK && hdi_comm_watch(comm) == HD_OK)) {
        hdi_free(it);
        parking->is_spent = true;
        return false;
    }
    *it = (parked){.comm = comm, .links = links};
    comm->rider = NULL;
    parked **end = &parking->first;
    while (*end)
        end = &(*end)->next;
    *end = it;
    return true;
}
