/* Hearing what ranks would exchange, and deciding what can go directly. */
#include "comm/direct.h"

#include <stdint.h>
#include <string.h>

#include "core/error.h"

_Static_assert(sizeof(hdi_landing) == HDI_LANDING_NUMBERS * sizeof(int64_t),
               "landings travel as numbers");

void hdi_hear_all_gather(hd_comm *comm, const void *inout, const int64_t *counts,
                         const int64_t *offsets, hd_dtype dtype)
{
    const size_t element = hd_dtype_bytes(dtype);
    *comm->hears = (hdi_heard){.is_exchange = comm->size <= HDI_DIRECT_RANKS};
    for (int r = 0; r < comm->size && comm->hears->is_exchange; r++) {
        comm->hears->come_to[r] = (const char *)inout + (size_t)offsets[r] * element;
        comm->hears->come[r] = (size_t)counts[r] * element;
        comm->hears->go[r] = (size_t)counts[comm->rank] * element;
    }
}

void hdi_hear_all_to_all(hd_comm *comm, const int64_t *send_counts, const void *recv,
                         const int64_t *recv_counts, const int64_t *recv_offsets, hd_dtype dtype)
{
    const size_t element = hd_dtype_bytes(dtype);
    *comm->hears = (hdi_heard){.is_exchange = comm->size <= HDI_DIRECT_RANKS};
    for (int r = 0; r < comm->size && comm->hears->is_exchange; r++) {
        comm->hears->come_to[r] = (const char *)recv + (size_t)recv_offsets[r] * element;
        comm->hears->come[r] = (size_t)recv_counts[r] * element;
        comm->hears->go[r] = (size_t)send_counts[r] * element;
    }
}

bool hdi_heard_fits(const hdi_heard *heard, int rank, int ranks, const void *memory, size_t bytes)
{
    size_t others = 0;
    if (!heard->is_exchange) return false;
    for (int r = 0; r < ranks; r++) {
        if (r == rank) continue;
        const uintptr_t begin = (uintptr_t)heard->come_to[r];
        others += heard->go[r];
        if (heard->come[r] &&
            (begin < (uintptr_t)memory || begin + heard->come[r] > (uintptr_t)memory + bytes))
            return false;
    }
    return others >= HDI_DIRECT_LEAST;
}

bool hdi_landings_match(const hdi_landing *theirs, const size_t *go, int rank, int ranks)
{
    for (int r = 0; r < ranks; r++)
        if (r != rank && (theirs[r].bytes != (int64_t)go[r] || theirs[r].slots < 1)) return false;
    return true;
}

hd_status hdi_direct_least(hd_comm *host, int64_t *inout, int64_t count)
{
    hd_request request;
    HD_RETURN_IF_ERROR(
        hd_comm_all_reduce(host, inout, count, HD_DTYPE_I64, HD_REDUCE_MIN, &request));
    return hd_comm_wait(host, &request);
}

hd_status hdi_direct_agree(hd_comm *host, int64_t count, const hdi_landing *own,
                           hdi_landing *theirs, const size_t *go, int64_t *fits)
{
    const int ranks = host->size;
    int64_t alike[2] = {count, -count}, counts[HDI_DIRECT_RANKS], offsets[HDI_DIRECT_RANKS];
    HD_RETURN_IF_ERROR(hdi_direct_least(host, alike, 2));
    if (alike[0] != -alike[1] || count == 0 || ranks > HDI_DIRECT_RANKS) {
        memset(fits, 0, (size_t)count * sizeof *fits);
        return HD_OK;
    }
    for (int r = 0; r < ranks; r++) {
        counts[r] = count * HDI_LANDING_NUMBERS;
        offsets[r] = r * counts[r];
    }
    hd_request request;
    HD_RETURN_IF_ERROR(hd_comm_all_to_all(host, own, counts, offsets, theirs, counts, offsets,
                                          HD_DTYPE_I64, &request));
    HD_RETURN_IF_ERROR(hd_comm_wait(host, &request));
    for (int64_t i = 0; i < count; i++) {
        hdi_landing of_one[HDI_DIRECT_RANKS];
        for (int r = 0; r < ranks; r++)
            of_one[r] = theirs[r * count + i];
        fits[i] = fits[i] && hdi_landings_match(of_one, go + i * ranks, host->rank, ranks);
    }
    return hdi_direct_least(host, fits, count);
}
