/* The public communicator: which transport, argument checks, dispatch, and waits with a deadline. */
#include "comm/direct.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/checked.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/memory.h"

hd_status hdi_comm_new(const hdi_transport *transport, int rank, int size, double deadline_seconds,
                       hd_comm **out)
{
    *out = NULL;
    hd_comm *comm = hdi_alloc(sizeof *comm);
    if (!comm) return hdi_error(HD_ERROR_MEMORY, "comm: out of host memory");
    comm->transport = transport;
    comm->rank = rank;
    comm->size = size;
    comm->deadline_seconds = deadline_seconds;
    comm->world_ranks = hdi_alloc_array((size_t)size, sizeof *comm->world_ranks);
    comm->counts = hdi_alloc_array((size_t)size, 2 * sizeof *comm->counts);
    comm->records = hdi_alloc_array((size_t)size, HDI_COMM_RECORD);
    if (!comm->world_ranks || !comm->counts || !comm->records) {
        hdi_comm_delete(comm);
        return hdi_error(HD_ERROR_MEMORY, "comm: out of host memory for %d ranks", size);
    }
    for (int r = 0; r < size; r++)
        comm->world_ranks[r] = r;
    hdi_comm_set_name(comm, "world");
    *out = comm;
    return HD_OK;
}

void hdi_comm_delete(hd_comm *comm)
{
    if (!comm) return;
    hdi_free(comm->world_ranks);
    hdi_free(comm->counts);
    hdi_free(comm->records);
    hdi_free(comm);
}

void hdi_comm_set_name(hd_comm *comm, const char *name)
{
    snprintf(comm->name, sizeof comm->name, "%s", name);
}

void hdi_comm_append(char *text, size_t bytes, const char *format, ...)
{
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, bytes - used, format, arguments);
    va_end(arguments);
}

static bool is_set(const char *variable)
{
    const char *value = getenv(variable);
    return value && *value;
}

/* A batch step of several tasks without MPI start-up would run as that many lonely ranks, each
 * sure to be the whole job: refuse it. */
static hd_status choose_transport(hd_transport wanted, const hdi_transport **out)
{
    switch (wanted) {
    case HD_TRANSPORT_SELF: *out = &hdi_transport_self; return HD_OK;
    case HD_TRANSPORT_MPI: *out = &hdi_transport_mpi; return HD_OK;
    case HD_TRANSPORT_AUTO: break;
    default: return hdi_error(HD_ERROR_ARGUMENT, "comm: unknown transport %d", (int)wanted);
    }
    if (is_set("OMPI_COMM_WORLD_SIZE") || is_set("PMIX_RANK") || is_set("PMI_RANK")) {
        *out = &hdi_transport_mpi;
        return HD_OK;
    }
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    if (tasks && atoi(tasks) > 1)
        return hdi_error(HD_ERROR_CONFIG,
                         "comm: Slurm started %s tasks in this step without MPI support; start it "
                         "with srun --mpi=pmix or with mpirun",
                         tasks);
    *out = &hdi_transport_self;
    return HD_OK;
}

hd_status hd_comm_create_world(const hd_comm_options *options, hd_comm **out)
{
    if (!out) return hdi_error(HD_ERROR_ARGUMENT, "comm_create_world: out is NULL");
    *out = NULL;
    const hd_comm_options defaults = {0};
    if (!options) options = &defaults;
    double deadline = options->deadline_seconds == 0 ? 120 : options->deadline_seconds;
    if (!(deadline > 0))
        return hdi_error(HD_ERROR_ARGUMENT, "comm_create_world: deadline is %g s, want > 0",
                         deadline);
    const hdi_transport *transport = NULL;
    HD_RETURN_IF_ERROR(choose_transport(options->transport, &transport));
    return transport->create_world(deadline, out);
}

hd_status hd_comm_split(hd_comm *comm, int color, int key, hd_comm **out)
{
    if (!comm || !out) return hdi_error(HD_ERROR_ARGUMENT, "comm_split: comm or out is NULL");
    *out = NULL;
    return comm->transport->split(comm, color, key, out);
}

void hd_comm_destroy(hd_comm *comm)
{
    if (comm) comm->transport->destroy(comm);
}

void hd_comm_abort(hd_comm *comm, int code)
{
    if (comm) comm->transport->abort(comm, code);
}

int hd_comm_rank(const hd_comm *comm)
{
    return comm ? comm->rank : 0;
}

int hd_comm_size(const hd_comm *comm)
{
    return comm ? comm->size : 1;
}

/* What every post has in common. Leaves a complete request behind, should the post fail. */
static hd_status check_post(const char *name, const hd_comm *comm, hd_request *out)
{
    if (!comm) return hdi_error(HD_ERROR_ARGUMENT, "%s: comm is NULL", name);
    if (!out) return hdi_error(HD_ERROR_ARGUMENT, "%s: the request is NULL", name);
    *out = (hd_request){0};
    return HD_OK;
}

static hd_status check_buffer(const char *name, const void *data, bool empty)
{
    if (data || empty) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT, "%s: the data is NULL", name);
}

static hd_status check_dtype(const char *name, hd_dtype dtype)
{
    if (dtype > HD_DTYPE_NONE && dtype <= HD_DTYPE_F8_E5M2) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT, "%s: dtype %d is none", name, (int)dtype);
}

static hd_status check_peer(const char *name, const hd_comm *comm, int peer, int channel)
{
    if (peer < 0 || peer >= comm->size)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: peer is %d, want 0..%d of communicator '%s'", name,
                         peer, comm->size - 1, comm->name);
    if (peer == comm->rank)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: peer %d is this rank itself; copy instead", name,
                         peer);
    if (channel < 0 || channel >= HDI_COMM_CHANNELS)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: channel is %d, want 0..%d", name, channel,
                         HDI_COMM_CHANNELS - 1);
    return HD_OK;
}

/* Counts and offsets of one direction: not negative, and their bytes fit an int64_t. */
static hd_status check_blocks(const char *name, const hd_comm *comm, const void *data,
                              const int64_t *counts, const int64_t *offsets, hd_dtype dtype)
{
    if (!counts || !offsets)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: counts or offsets are NULL", name);
    bool empty = true;
    for (int r = 0; r < comm->size; r++) {
        int64_t end, bytes;
        if (counts[r] < 0 || offsets[r] < 0 || !hdi_add_i64(counts[r], offsets[r], &end) ||
            !hdi_mul_i64(end, (int64_t)hd_dtype_bytes(dtype), &bytes))
            return hdi_error(HD_ERROR_ARGUMENT, "%s: rank %d has count %lld at offset %lld", name,
                             r, (long long)counts[r], (long long)offsets[r]);
        if (counts[r]) empty = false;
    }
    return check_buffer(name, data, empty);
}

hd_status hd_comm_send(hd_comm *comm, const void *data, size_t bytes, int peer, int channel,
                       hd_request *out)
{
    HD_RETURN_IF_ERROR(check_post("send", comm, out));
    HD_RETURN_IF_ERROR(check_buffer("send", data, bytes == 0));
    HD_RETURN_IF_ERROR(check_peer("send", comm, peer, channel));
    return comm->transport->send(comm, data, bytes, peer, channel, out);
}

hd_status hd_comm_recv(hd_comm *comm, void *data, size_t bytes, int peer, int channel,
                       hd_request *out)
{
    HD_RETURN_IF_ERROR(check_post("recv", comm, out));
    HD_RETURN_IF_ERROR(check_buffer("recv", data, bytes == 0));
    HD_RETURN_IF_ERROR(check_peer("recv", comm, peer, channel));
    return comm->transport->recv(comm, data, bytes, peer, channel, out);
}

hd_status hd_comm_all_reduce(hd_comm *comm, void *inout, int64_t count, hd_dtype dtype,
                             hd_reduce op, hd_request *out)
{
    HD_RETURN_IF_ERROR(check_post("all_reduce", comm, out));
    HD_RETURN_IF_ERROR(check_dtype("all_reduce", dtype));
    if (dtype != HD_DTYPE_F32 && dtype != HD_DTYPE_F64 && dtype != HD_DTYPE_I32 &&
        dtype != HD_DTYPE_I64)
        return hdi_error(HD_ERROR_ARGUMENT, "all_reduce: dtype is %s, want F32, F64, I32 or I64",
                         hd_dtype_name(dtype));
    if (op != HD_REDUCE_SUM && op != HD_REDUCE_MAX && op != HD_REDUCE_MIN)
        return hdi_error(HD_ERROR_ARGUMENT, "all_reduce: unknown reduction %d", (int)op);
    int64_t bytes;
    if (count < 0 || !hdi_mul_i64(count, (int64_t)hd_dtype_bytes(dtype), &bytes))
        return hdi_error(HD_ERROR_ARGUMENT, "all_reduce: count is %lld", (long long)count);
    HD_RETURN_IF_ERROR(check_buffer("all_reduce", inout, count == 0));
    if (comm->hears || count == 0) return HD_OK;
    return comm->transport->all_reduce(comm, inout, count, dtype, op, out);
}

hd_status hd_comm_all_gather(hd_comm *comm, void *inout, const int64_t *counts,
                             const int64_t *offsets, hd_dtype dtype, hd_request *out)
{
    HD_RETURN_IF_ERROR(check_post("all_gather", comm, out));
    HD_RETURN_IF_ERROR(check_dtype("all_gather", dtype));
    HD_RETURN_IF_ERROR(check_blocks("all_gather", comm, inout, counts, offsets, dtype));
    if (!comm->hears) return comm->transport->all_gather(comm, inout, counts, offsets, dtype, out);
    hdi_hear_all_gather(comm, inout, counts, offsets, dtype);
    return HD_OK;
}

hd_status hd_comm_all_to_all(hd_comm *comm, const void *send, const int64_t *send_counts,
                             const int64_t *send_offsets, void *recv, const int64_t *recv_counts,
                             const int64_t *recv_offsets, hd_dtype dtype, hd_request *out)
{
    HD_RETURN_IF_ERROR(check_post("all_to_all", comm, out));
    HD_RETURN_IF_ERROR(check_dtype("all_to_all", dtype));
    HD_RETURN_IF_ERROR(check_blocks("all_to_all", comm, send, send_counts, send_offsets, dtype));
    HD_RETURN_IF_ERROR(check_blocks("all_to_all", comm, recv, recv_counts, recv_offsets, dtype));
    if (send_counts[comm->rank] != recv_counts[comm->rank])
        return hdi_error(
            HD_ERROR_ARGUMENT, "all_to_all: rank %d sends itself %lld elements and expects %lld",
            comm->rank, (long long)send_counts[comm->rank], (long long)recv_counts[comm->rank]);
    if (!comm->hears)
        return comm->transport->all_to_all(comm, send, send_counts, send_offsets, recv, recv_counts,
                                           recv_offsets, dtype, out);
    hdi_hear_all_to_all(comm, send_counts, recv, recv_counts, recv_offsets, dtype);
    return HD_OK;
}

hd_status hd_comm_broadcast(hd_comm *comm, void *inout, size_t bytes, int root, hd_request *out)
{
    HD_RETURN_IF_ERROR(check_post("broadcast", comm, out));
    HD_RETURN_IF_ERROR(check_buffer("broadcast", inout, bytes == 0));
    if (root < 0 || root >= comm->size)
        return hdi_error(HD_ERROR_ARGUMENT, "broadcast: root is %d, want 0..%d", root,
                         comm->size - 1);
    return bytes ? comm->transport->broadcast(comm, inout, bytes, root, out) : HD_OK;
}

hd_status hd_comm_test(hd_comm *comm, hd_request *request, bool *done)
{
    if (!comm || !request || !done)
        return hdi_error(HD_ERROR_ARGUMENT, "comm_test: comm, request or done is NULL");
    *done = true;
    return request->id ? comm->transport->test(comm, request, done) : HD_OK;
}

/* A waiting rank must not take the core from one that computes: look again at once for a while, then
 * offer the core, then sleep. */
void hdi_comm_back_off(int64_t look, int spins)
{
    const int yields = 16, short_naps = 32;
    if (look < spins) return;
    if (look < spins + yields) {
        sched_yield();
        return;
    }
    const long nanoseconds = look < spins + yields + short_naps ? 20000 : 50000;
    nanosleep(&(struct timespec){.tv_nsec = nanoseconds}, NULL);
}

hd_status hd_comm_wait(hd_comm *comm, hd_request *request)
{
    if (!comm || !request)
        return hdi_error(HD_ERROR_ARGUMENT, "comm_wait: comm or request is NULL");
    double deadline = 0;
    for (int64_t look = 0;; look++) {
        bool done;
        HD_RETURN_IF_ERROR(hd_comm_test(comm, request, &done));
        if (done) return HD_OK;
        hdi_comm_progress(comm->rider);
        if (look < comm->spins) continue;
        if (comm->transport->keeps_deadline) {
            hdi_comm_back_off(look, comm->spins);
            continue;
        }
        double now = hdi_clock_seconds();
        if (deadline == 0) deadline = now + comm->deadline_seconds;
        if (now >= deadline) break;
        hdi_comm_back_off(look, comm->spins);
    }
    char text[1024];
    comm->transport->describe(comm, request, text, sizeof text);
    return hdi_error(HD_ERROR_TIMEOUT,
                     "comm '%s', rank %d of %d: %s: no answer within the deadline of %g s",
                     comm->name, comm->rank, comm->size, text, comm->deadline_seconds);
}

hd_status hd_comm_barrier(hd_comm *comm)
{
    hd_request request;
    HD_RETURN_IF_ERROR(check_post("barrier", comm, &request));
    HD_RETURN_IF_ERROR(comm->transport->barrier(comm, &request));
    return hd_comm_wait(comm, &request);
}

void hdi_comm_progress(hd_comm *comm)
{
    if (comm && comm->transport->progress) comm->transport->progress(comm);
}

hd_status hdi_comm_order(hd_comm *comm, hd_request *request)
{
    if (!request->id) return HD_OK;
    if (comm->transport->order) return comm->transport->order(comm, request);
    return hd_comm_wait(comm, request);
}

hd_status hdi_comm_settle(hd_comm *comm)
{
    return comm && comm->transport->settle ? comm->transport->settle(comm) : HD_OK;
}

void hdi_comm_follow(hd_comm *comm, void *stream)
{
    if (comm && comm->transport->follow) comm->transport->follow(comm, stream);
}

bool hdi_comm_is_quiet(hd_comm *comm)
{
    return !comm || !comm->transport->is_quiet || comm->transport->is_quiet(comm);
}

hd_status hdi_comm_watch(hd_comm *comm)
{
    return comm && comm->transport->watch ? comm->transport->watch(comm) : HD_OK;
}

bool hdi_comm_rehearse(hd_comm *comm, bool begins)
{
    if (!comm || !comm->transport->rehearse) return false;
    comm->transport->rehearse(comm, begins);
    return true;
}

void hdi_comm_set_label(hd_comm *comm, const hd_request *request, const hdi_comm_label *label)
{
    if (request->id && comm->transport->label) comm->transport->label(comm, request, label);
}

hd_status hdi_comm_local(hd_comm *comm, int *rank, int *size)
{
    if (comm && comm->transport->local) return comm->transport->local(comm, rank, size);
    *rank = 0;
    *size = 1;
    return HD_OK;
}

hd_status hdi_comm_gather(hd_comm *comm, size_t record_bytes)
{
    int64_t *offsets = comm->counts + comm->size;
    for (int r = 0; r < comm->size; r++) {
        comm->counts[r] = (int64_t)record_bytes;
        offsets[r] = r * (int64_t)record_bytes;
    }
    hd_request request = {0};
    HD_RETURN_IF_ERROR(comm->transport->all_gather(comm, comm->records, comm->counts, offsets,
                                                   HD_DTYPE_U8, &request));
    return hd_comm_wait(comm, &request);
}
