/* Operations in flight under MPI. */
#include "comm/mpi_requests.h"

#include "core/error.h"
#include "core/memory.h"

/* Room in each operation for messages that must go in several pieces. */
enum { EXTRA_PARTS = 64, GENERATIONS = INT32_MAX / HDI_MPI_REQUESTS };

hd_status hdi_mpi_pool_create(int ranks, hdi_mpi_pool **out)
{
    *out = NULL;
    hdi_mpi_pool *pool = hdi_alloc(sizeof *pool);
    if (!pool) return hdi_error(HD_ERROR_MEMORY, "comm: out of host memory");
    pool->parts_each = 2 * ranks + EXTRA_PARTS;
    pool->parts =
        hdi_alloc_array((size_t)HDI_MPI_REQUESTS * (size_t)pool->parts_each, sizeof *pool->parts);
    if (!pool->parts) {
        hdi_mpi_pool_destroy(pool);
        return hdi_error(HD_ERROR_MEMORY, "comm: out of host memory for %d requests of %d ranks",
                         HDI_MPI_REQUESTS, ranks);
    }
    for (int i = 0; i < HDI_MPI_REQUESTS; i++) {
        pool->operations[i].part = pool->parts + (size_t)i * (size_t)pool->parts_each;
        pool->operations[i].next_free = i + 1;
    }
    *out = pool;
    return HD_OK;
}

void hdi_mpi_pool_destroy(hdi_mpi_pool *pool)
{
    if (!pool) return;
    hdi_free(pool->parts);
    hdi_free(pool);
}

hd_status hdi_mpi_status(int code, const hd_comm *comm, const char *what)
{
    if (code == MPI_SUCCESS) return HD_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    MPI_Error_string(code, text, &length);
    return hdi_error(HD_ERROR_COMM, "comm '%s', rank %d of %d: %s: %s", comm->name, comm->rank,
                     comm->size, what, text);
}

MPI_Datatype hdi_mpi_type(hd_dtype dtype)
{
    switch (dtype) {
    case HD_DTYPE_F32: return MPI_FLOAT;
    case HD_DTYPE_F64: return MPI_DOUBLE;
    case HD_DTYPE_I32: return MPI_INT32_T;
    default: return MPI_INT64_T;
    }
}

MPI_Op hdi_mpi_op(hd_reduce op)
{
    switch (op) {
    case HD_REDUCE_MAX: return MPI_MAX;
    case HD_REDUCE_MIN: return MPI_MIN;
    default: return MPI_SUM;
    }
}

hd_status hdi_mpi_begin(hdi_mpi_pool *pool, hd_comm *comm, const char *name, size_t bytes,
                        int channel, hdi_mpi_operation **out)
{
    const int index = pool->first_free;
    if (index == HDI_MPI_REQUESTS)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s on '%s': %d requests are in flight already; wait for some first", name,
                         comm->name, HDI_MPI_REQUESTS);
    hdi_mpi_operation *operation = &pool->operations[index];
    pool->first_free = operation->next_free;
    *operation = (hdi_mpi_operation){
        .comm = comm,
        .name = name,
        .bytes = bytes,
        .channel = channel,
        .generation = operation->generation % (GENERATIONS - 1) + 1,
        .part = operation->part,
    };
    *out = operation;
    return HD_OK;
}

hd_status hdi_mpi_add(hdi_mpi_pool *pool, hdi_mpi_operation *operation, size_t bytes, int peer,
                      bool receives, MPI_Request **out)
{
    if (operation->parts == pool->parts_each)
        return hdi_error(
            HD_ERROR_UNSUPPORTED, "%s of %zu bytes on '%s': more than %d MPI messages; cut it",
            operation->name, operation->bytes, operation->comm->name, pool->parts_each);
    hdi_mpi_part *part = &operation->part[operation->parts++];
    *part = (hdi_mpi_part){
        .request = MPI_REQUEST_NULL, .bytes = bytes, .peer = peer, .receives = receives};
    *out = &part->request;
    return HD_OK;
}

static void release(hdi_mpi_pool *pool, hdi_mpi_operation *operation)
{
    operation->comm = NULL;
    operation->next_free = pool->first_free;
    pool->first_free = (int)(operation - pool->operations);
}

/* A receive can be withdrawn and a send goes on without us; MPI forbids both for a collective. */
static bool give_up(hdi_mpi_pool *pool, hdi_mpi_operation *operation)
{
    bool clean = true;
    for (int i = operation->first_pending; i < operation->parts; i++) {
        hdi_mpi_part *part = &operation->part[i];
        int done = 0;
        if (part->request == MPI_REQUEST_NULL) continue;
        if (MPI_Test(&part->request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done) continue;
        if (part->request == MPI_REQUEST_NULL) continue; /* a test that fails may free it */
        if (part->peer < 0) {
            clean = false;
            continue;
        }
        if (part->receives) MPI_Cancel(&part->request);
        MPI_Request_free(&part->request);
    }
    release(pool, operation);
    return clean;
}

hd_status hdi_mpi_end(hdi_mpi_pool *pool, hdi_mpi_operation *operation, hd_status posted,
                      hd_request *out)
{
    if (posted != HD_OK) {
        give_up(pool, operation);
    } else if (operation->parts == 0) {
        release(pool, operation);
    } else {
        const int index = (int)(operation - pool->operations);
        out->id = operation->generation * HDI_MPI_REQUESTS + index;
    }
    return posted;
}

static hdi_mpi_operation *find(hdi_mpi_pool *pool, const hd_comm *comm, const hd_request *request)
{
    if (request->id < HDI_MPI_REQUESTS) return NULL;
    hdi_mpi_operation *operation = &pool->operations[request->id % HDI_MPI_REQUESTS];
    const bool is_current =
        operation->comm == comm && operation->generation == request->id / HDI_MPI_REQUESTS;
    return is_current ? operation : NULL;
}

static hd_status check_arrival(const hdi_mpi_operation *operation, const hdi_mpi_part *part,
                               const MPI_Status *status)
{
    if (!part->receives) return HD_OK;
    int bytes;
    MPI_Get_count(status, MPI_BYTE, &bytes);
    if ((size_t)bytes == part->bytes) return HD_OK;
    return hdi_error(HD_ERROR_COMM, "comm '%s', rank %d of %d: %s: rank %d sent %d bytes, want %zu",
                     operation->comm->name, operation->comm->rank, operation->comm->size,
                     operation->name, part->peer, bytes, part->bytes);
}

static hd_status test_part(const hdi_mpi_operation *operation, hdi_mpi_part *part, int *done)
{
    MPI_Status arrival;
    *done = 0;
    int code = MPI_Test(&part->request, done, &arrival);
    if (code != MPI_SUCCESS) {
        /* MPI has ended the request, but for some errors leaves the handle. */
        part->request = MPI_REQUEST_NULL;
        char what[96] = "";
        hdi_comm_append(what, sizeof what, part->peer < 0 ? "%s" : "%s with rank %d",
                        operation->name, part->peer);
        return hdi_mpi_status(code, operation->comm, what);
    }
    return *done ? check_arrival(operation, part, &arrival) : HD_OK;
}

hd_status hdi_mpi_test(hdi_mpi_pool *pool, hd_comm *comm, hd_request *request, bool *done)
{
    hdi_mpi_operation *operation = find(pool, comm, request);
    if (!operation) {
        const int32_t id = request->id;
        request->id = 0;
        return hdi_error(HD_ERROR_ARGUMENT, "comm '%s': request %d is not in flight here",
                         comm->name, (int)id);
    }
    while (operation->first_pending < operation->parts) {
        int part_done;
        hd_status status =
            test_part(operation, &operation->part[operation->first_pending], &part_done);
        if (status != HD_OK) {
            give_up(pool, operation);
            request->id = 0;
            return status;
        }
        if (!part_done) {
            *done = false;
            return HD_OK;
        }
        operation->first_pending++;
    }
    release(pool, operation);
    request->id = 0;
    *done = true;
    return HD_OK;
}

static void append_rank(const hd_comm *comm, int peer, char *text, size_t bytes)
{
    hdi_comm_append(text, bytes, "%d", peer);
    if (comm->world_ranks[peer] != peer)
        hdi_comm_append(text, bytes, " (world rank %d)", comm->world_ranks[peer]);
}

static bool waits_for(hdi_mpi_operation *operation, int peer)
{
    for (int i = operation->first_pending; i < operation->parts; i++) {
        hdi_mpi_part *part = &operation->part[i];
        int has_ended = 1;
        if (part->peer != peer && part->peer >= 0) continue;
        /* Looks without ending the request: that is hdi_mpi_test's, which checks what came. */
        MPI_Request_get_status(part->request, &has_ended, MPI_STATUS_IGNORE);
        if (!has_ended) return true;
    }
    return false;
}

void hdi_mpi_describe(hdi_mpi_pool *pool, hd_comm *comm, const hd_request *request, char *text,
                      size_t bytes)
{
    text[0] = '\0';
    hdi_mpi_operation *operation = find(pool, comm, request);
    if (!operation) return;
    hdi_comm_append(text, bytes, "%s", operation->name);
    if (operation->bytes) hdi_comm_append(text, bytes, " of %zu bytes", operation->bytes);
    if (operation->channel >= 0) hdi_comm_append(text, bytes, " on channel %d", operation->channel);
    /* MPI does not tell whose part of its own collectives is missing. */
    const bool is_collective = operation->part[operation->first_pending].peer < 0;
    const char *separator = is_collective ? ", waiting for some of ranks " : ", waiting for rank ";
    for (int peer = 0; peer < comm->size; peer++) {
        if (peer == comm->rank || !waits_for(operation, peer)) continue;
        hdi_comm_append(text, bytes, "%s", separator);
        append_rank(comm, peer, text, bytes);
        separator = ", ";
    }
}

int hdi_mpi_in_flight(const hdi_mpi_pool *pool, const hd_comm *comm)
{
    int count = 0;
    for (int i = 0; i < HDI_MPI_REQUESTS; i++)
        count += pool->operations[i].comm == comm;
    return count;
}

bool hdi_mpi_drain(hdi_mpi_pool *pool, const hd_comm *comm)
{
    bool clean = true;
    for (int i = 0; i < HDI_MPI_REQUESTS; i++)
        if (pool->operations[i].comm == comm) clean &= give_up(pool, &pool->operations[i]);
    return clean;
}
