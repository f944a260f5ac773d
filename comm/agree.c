/* Ranks that make sure they agree: on data, and on whether anything failed. */
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "comm/comm.h"
#include "core/error.h"

typedef struct digest {
    uint64_t hash, bytes;
} digest;

_Static_assert(sizeof(digest) <= HDI_COMM_RECORD, "a digest is one record");

/* All ranks see the same digests, so all reach the same verdict with the same text. */
hd_status hd_comm_check_equal(hd_comm *comm, const void *data, size_t bytes, const char *what)
{
    if (!comm || !what || (!data && bytes))
        return hdi_error(HD_ERROR_ARGUMENT, "check_equal: comm, data or what is NULL");
    digest *digests = comm->records;
    digests[comm->rank] = (digest){.hash = XXH3_64bits(data, bytes), .bytes = bytes};
    HD_RETURN_IF_ERROR(hdi_comm_gather(comm, sizeof *digests));

    char ranks[512] = "", sizes[128] = "";
    for (int r = 1; r < comm->size; r++) {
        if (digests[r].hash == digests[0].hash && digests[r].bytes == digests[0].bytes) continue;
        hdi_comm_append(ranks, sizeof ranks, "%s%d", *ranks ? ", " : "", r);
        if (digests[r].bytes != digests[0].bytes && !*sizes)
            snprintf(sizes, sizeof sizes, " (rank 0 has %llu bytes, rank %d has %llu)",
                     (unsigned long long)digests[0].bytes, r, (unsigned long long)digests[r].bytes);
    }
    if (!*ranks) return HD_OK;
    return hdi_error(HD_ERROR_MISMATCH,
                     "%s differs between the %d ranks of '%s': rank 0 disagrees with %s%s", what,
                     comm->size, comm->name, ranks, sizes);
}

/* The first failing rank and its status; none is comm->size. */
static int first_failure(const hd_comm *comm, int32_t *status)
{
    const int32_t *statuses = comm->records;
    int rank = 0;
    while (rank < comm->size && statuses[rank] == HD_OK)
        rank++;
    *status = rank < comm->size ? statuses[rank] : HD_OK;
    return rank;
}

hd_status hd_comm_agree(hd_comm *comm, hd_status status)
{
    if (!comm) return hdi_error(HD_ERROR_ARGUMENT, "agree: comm is NULL");
    char own[sizeof comm->text];
    snprintf(own, sizeof own, "%s", hd_last_error());
    ((int32_t *)comm->records)[comm->rank] = (int32_t)status;

    /* A rank that has failed itself reports its own text, whatever becomes of the exchange. */
    int32_t first_status = HD_OK;
    int first = comm->size;
    hd_status exchange = hdi_comm_gather(comm, sizeof(int32_t));
    if (exchange == HD_OK) first = first_failure(comm, &first_status);
    if (first < comm->size) {
        hd_request request;
        if (first == comm->rank) memcpy(comm->text, own, sizeof own);
        exchange = hd_comm_broadcast(comm, comm->text, sizeof comm->text, first, &request);
        if (exchange == HD_OK) exchange = hd_comm_wait(comm, &request);
    }
    if (status != HD_OK) return hdi_error(status, "%s", own);
    if (first == comm->size) return exchange;
    return hdi_error(HD_ERROR_COMM, "rank %d of '%s' failed: %s: %s", first, comm->name,
                     hd_status_string((hd_status)first_status),
                     exchange == HD_OK ? comm->text : "its text did not arrive");
}
