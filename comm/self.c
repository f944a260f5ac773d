/* The transport of one rank: everything is complete when it is posted. */
#include <string.h>

#include "comm/comm.h"
#include "core/error.h"

static hd_status self_create_world(double deadline_seconds, hd_comm **out)
{
    return hdi_comm_new(&hdi_transport_self, 0, 1, deadline_seconds, out);
}

hd_status hdi_comm_create_alone(hd_comm *parent, hd_comm **out)
{
    HD_RETURN_IF_ERROR(hdi_comm_new(&hdi_transport_self, 0, 1, parent->deadline_seconds, out));
    (*out)->world_ranks[0] = parent->world_ranks[parent->rank];
    return HD_OK;
}

static hd_status self_split(hd_comm *comm, int color, int key, hd_comm **out)
{
    (void)key;
    if (color < 0) return hdi_error(HD_ERROR_ARGUMENT, "comm_split: color is %d, want >= 0", color);
    HD_RETURN_IF_ERROR(hdi_comm_create_alone(comm, out));
    hdi_comm_set_name(*out, "split");
    return HD_OK;
}

/* The job is this process, which the library does not end. */
static void self_abort(hd_comm *comm, int code)
{
    (void)comm, (void)code;
}

static hd_status self_send(hd_comm *comm, const void *data, size_t bytes, int peer, int channel,
                           hd_request *out)
{
    (void)comm, (void)data, (void)bytes, (void)channel, (void)out;
    return hdi_error(HD_ERROR_ARGUMENT, "send: there is no peer %d, this is the only rank", peer);
}

static hd_status self_recv(hd_comm *comm, void *data, size_t bytes, int peer, int channel,
                           hd_request *out)
{
    (void)comm, (void)data, (void)bytes, (void)channel, (void)out;
    return hdi_error(HD_ERROR_ARGUMENT, "recv: there is no peer %d, this is the only rank", peer);
}

static hd_status self_all_reduce(hd_comm *comm, void *inout, int64_t count, hd_dtype dtype,
                                 hd_reduce op, hd_request *out)
{
    (void)comm, (void)inout, (void)count, (void)dtype, (void)op, (void)out;
    return HD_OK;
}

static hd_status self_all_gather(hd_comm *comm, void *inout, const int64_t *counts,
                                 const int64_t *offsets, hd_dtype dtype, hd_request *out)
{
    (void)comm, (void)inout, (void)counts, (void)offsets, (void)dtype, (void)out;
    return HD_OK;
}

static hd_status self_all_to_all(hd_comm *comm, const void *send, const int64_t *send_counts,
                                 const int64_t *send_offsets, void *recv,
                                 const int64_t *recv_counts, const int64_t *recv_offsets,
                                 hd_dtype dtype, hd_request *out)
{
    (void)comm, (void)recv_counts, (void)out;
    const size_t element = hd_dtype_bytes(dtype);
    if (send_counts[0])
        memmove((char *)recv + (size_t)recv_offsets[0] * element,
                (const char *)send + (size_t)send_offsets[0] * element,
                (size_t)send_counts[0] * element);
    return HD_OK;
}

static hd_status self_broadcast(hd_comm *comm, void *inout, size_t bytes, int root, hd_request *out)
{
    (void)comm, (void)inout, (void)bytes, (void)root, (void)out;
    return HD_OK;
}

static hd_status self_barrier(hd_comm *comm, hd_request *out)
{
    (void)comm, (void)out;
    return HD_OK;
}

static hd_status self_test(hd_comm *comm, hd_request *request, bool *done)
{
    (void)comm, (void)done;
    int32_t id = request->id;
    request->id = 0;
    return hdi_error(HD_ERROR_ARGUMENT, "comm_test: request %d was not posted here", (int)id);
}

static void self_describe(hd_comm *comm, const hd_request *request, char *text, size_t bytes)
{
    (void)comm, (void)request;
    if (bytes) text[0] = '\0';
}

const hdi_transport hdi_transport_self = {
    .name = "self",
    .create_world = self_create_world,
    .split = self_split,
    .destroy = hdi_comm_delete,
    .abort = self_abort,
    .send = self_send,
    .recv = self_recv,
    .all_reduce = self_all_reduce,
    .all_gather = self_all_gather,
    .all_to_all = self_all_to_all,
    .broadcast = self_broadcast,
    .barrier = self_barrier,
    .test = self_test,
    .describe = self_describe,
};
