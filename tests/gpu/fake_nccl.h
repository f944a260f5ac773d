/* NCCL's kernels on streams that are threads: as with fake_cuda.h calls come here. A kernel ends when those of all
 * its ranks have begun; data are not its concern. */
#ifndef FAKE_NCCL_H
#define FAKE_NCCL_H

#include <nccl.h>

#include "tests/gpu/fake_cuda.h"

enum { FAKE_MEETINGS = 512 };

/* Of one NCCL communicator of several processes: how many of its kernels a rank has begun. */
typedef struct fake_meeting {
    atomic_int began[FAKE_RANKS];
} fake_meeting;

/* What processes share; tests make it. */
typedef struct fake_host {
    atomic_int meetings;
    fake_meeting of[FAKE_MEETINGS];
} fake_host_memory;
static fake_host_memory *fake_host;

struct ncclComm {
    int size, rank, number, kernels;
    atomic_bool is_aborted;
};

static void fake_kernel(void *user, long number)
{
    const ncclComm_t comm = user;
    fake_meeting *meeting = &fake_host->of[comm->number];
    meeting->began[comm->rank] = (int)number;
    for (int r = 0; r < comm->size; r++)
        while (!comm->is_aborted && meeting->began[r] < number)
            usleep(50);
}

/* Of a group of sends and receives there is one kernel. */
static int fake_depth;
static ncclComm_t fake_grouped;
static cudaStream_t fake_grouped_stream;

static ncclResult_t fake_post(ncclComm_t comm, cudaStream_t stream)
{
    fake_grouped = comm;
    fake_grouped_stream = stream;
    if (fake_depth) return ncclSuccess;
    (void)fake_put(stream, (fake_work){.kind = FAKE_CALL,
                                       .call = fake_kernel,
                                       .user = comm,
                                       .number = ++comm->kernels});
    fake_grouped = NULL;
    return ncclSuccess;
}

/* NCCL's header leaves their arguments open. */
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);

ncclResult_t ncclGroupStart(void)
{
    fake_depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    fake_depth--;
    return fake_depth || !fake_grouped ? ncclSuccess : fake_post(fake_grouped, fake_grouped_stream);
}

ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    (void)data, (void)count, (void)type, (void)peer;
    return fake_post(comm, stream);
}

ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return ncclSend(data, count, type, peer, comm, stream);
}

ncclResult_t ncclAllReduce(const void *in, void *out, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    (void)out, (void)op;
    return ncclSend(in, count, type, 0, comm, stream);
}

ncclResult_t ncclBroadcast(const void *in, void *out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    (void)out;
    return ncclSend(in, count, type, root, comm, stream);
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *out)
{
    const int number = atomic_fetch_add(&fake_host->meetings, 1);
    memcpy(out->internal, &number, sizeof number);
    return number < FAKE_MEETINGS ? ncclSuccess : ncclInternalError;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    (void)config;
    ncclComm_t it = calloc(1, sizeof *it);
    it->size = size;
    it->rank = rank;
    memcpy(&it->number, id.internal, sizeof it->number);
    *out = it;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *out)
{
    (void)comm;
    *out = ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    (void)comm;
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    free(comm);
    return ncclSuccess;
}

/* It frees memory, and so waits for all that is on the device. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    comm->is_aborted = true;
    return fake_synchronize(60) ? ncclSuccess : ncclInternalError;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclSuccess ? "no error" : "a made-up failure";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "";
}

#endif
