/* A mesh's communicators of device memory. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "comm/direct.h"
#include "comm/mesh.h"
#include "core/error.h"
#include "core/memory.h"
#include "runtime/device_choice.h"
#include "runtime/gpu.h"
#include "runtime/parking.h"
#include "runtime/session.h"

/* What a mesh is given; ends with the mesh or the context. */
typedef struct attachment {
    hd_context *context; /* these two are borrowed */
    hd_mesh *mesh;
    hdi_nccl_device *nccl;
    hdi_staged_group staged;
    hd_comm *comms[HD_AXES]; /* owned; one may stand for several axes, the world's too */
    void *flags[HD_AXES];    /* owned: memory that they meet in */
    bool is_lent;            /* nccl is the parking's, and so are communicators in the end */
} attachment;

static hdi_parking *parking_of(const attachment *it)
{
    return hd_mesh_comm(it->mesh, HD_AXIS_NONE)->parking;
}

/* Whether the communicator of an axis has links between neighbours. */
static bool has_links(const hd_mesh *mesh, int axis)
{
    const int size = hd_comm_size(hd_mesh_comm(mesh, (hd_axis)axis));
    return size == hd_mesh_size(mesh, HD_AXIS_PIPELINE) &&
           (size == hd_mesh_ranks(mesh) || axis == HD_AXIS_PIPELINE);
}

static void end_comm(const attachment *it, int axis)
{
    hd_comm *comm = it->comms[axis], *host = hd_mesh_comm(it->mesh, (hd_axis)axis);
    const bool stays = it->is_lent && hd_comm_size(comm) > 1 && !it->flags[axis];
    if (!stays || !hdi_parking_put(parking_of(it), comm, host, has_links(it->mesh, axis)))
        hd_comm_destroy(comm);
}

static void detach(void *user)
{
    attachment *it = user;
    it->context->attached = NULL;
    for (int axis = HD_AXIS_NONE; axis < HD_AXES; axis++)
        hd_mesh_comm(it->mesh, (hd_axis)axis)->rider = NULL;
    for (int axis = HD_AXES - 1; axis > HD_AXIS_NONE; axis--) {
        bool is_shared = false;
        for (int other = HD_AXIS_NONE; other < axis; other++)
            is_shared = is_shared || it->comms[other] == it->comms[axis];
        if (!is_shared) end_comm(it, axis);
    }
    end_comm(it, HD_AXIS_NONE);
    for (int axis = HD_AXIS_NONE; axis < HD_AXES; axis++)
        if (it->flags[axis])
            it->context->backend->release(it->context->device, it->flags[axis],
                                          HDI_DIRECT_FLAG_BYTES);
    if (it->is_lent)
        hdi_parking_return(parking_of(it));
    else
        hdi_gpu_nccl_close(it->nccl);
    hdi_free(it);
}

/* What NCCL reads before its first communicator. Ranks of one GPU are one host to it, which it refuses; with
 * a host each they meet over the network's sockets. Over NVLink it takes 24 blocks and more, each with
 * buffers: 1.1 GiB a lane (seen on two H200). With 8 of them it is about 0.3 GiB, and a training as fast. */
static hd_status prepare_nccl(const hd_mesh *mesh, const hd_context *context)
{
    char name[64];
    if (!context->shares_gpu)
        return context->has_budget && setenv("NCCL_MAX_CTAS", "8", 0)
                   ? hdi_error(HD_ERROR_MEMORY, "mesh_attach: out of host memory")
                   : HD_OK;
    snprintf(name, sizeof name, "heddle-%d-%ld", hd_mesh_rank(mesh), (long)getpid());
    /* They take turns on the GPU: more than one block each would only take longer to set up. */
    if (setenv("NCCL_HOSTID", name, 1) || setenv("NCCL_MAX_CTAS", "1", 0) ||
        (context->is_on_one_host && setenv("NCCL_SOCKET_IFNAME", "lo", 0)))
        return hdi_error(HD_ERROR_MEMORY, "mesh_attach: out of host memory");
    return HD_OK;
}

static hd_status create_staged(attachment *it, hd_comm *host, hd_comm **out)
{
    hdi_staging *staging = NULL;
    hd_status status = it->context->backend == &hdi_backend_cpu
                           ? hdi_staging_create_host(&staging)
                           : hdi_gpu_staging(it->context->stream, &staging);
    if (status == HD_OK) status = hdi_comm_create_staged(host, &it->staged, staging, out);
    return hd_comm_agree(host, status);
}

static hd_status create_nccl(attachment *it, hd_comm *host, int axis)
{
    const hd_context *context = it->context;
    hdi_nccl_options options = {.links = has_links(it->mesh, axis),
                                .copies = hdi_choose_copy_engines(context->copy_engines,
                                                                  context->is_on_one_host,
                                                                  context->shares_gpu)};
    if (options.copies != HDI_COPY_ENGINES_OFF &&
        context->backend->reserve(context->device, HDI_DIRECT_FLAG_BYTES, &it->flags[axis]) ==
            HD_OK)
        options.flags = it->flags[axis];
    if (it->is_lent && options.copies == HDI_COPY_ENGINES_OFF)
        it->comms[axis] = hdi_parking_take(parking_of(it), host, options.links);
    if (it->comms[axis]) return HD_OK;
    return hdi_gpu_nccl_comm(host, it->nccl, &options, &it->comms[axis]);
}

/* An axis of one rank needs copies only; an axis of all ranks is the world; axes with one communicator
 * on the host have one here. */
static hd_status create_comms(attachment *it, const hd_mesh *mesh, bool by_nccl)
{
    const int ranks = hd_mesh_ranks(mesh);
    for (int axis = HD_AXIS_NONE; axis < HD_AXES; axis++) {
        hd_comm *host = hd_mesh_comm(mesh, (hd_axis)axis);
        const int size = hd_comm_size(host);
        const bool is_world = size == ranks;
        if (axis != HD_AXIS_NONE && is_world) {
            it->comms[axis] = it->comms[HD_AXIS_NONE];
            continue;
        }
        for (int other = HD_AXIS_TENSOR; other < axis; other++)
            if (hd_mesh_comm(mesh, (hd_axis)other) == host) it->comms[axis] = it->comms[other];
        if (it->comms[axis]) continue;
        if (size > 1 && by_nccl)
            HD_RETURN_IF_ERROR(create_nccl(it, host, axis));
        else
            HD_RETURN_IF_ERROR(create_staged(it, host, &it->comms[axis]));
    }
    return HD_OK;
}

static hd_status fill(attachment *it, const hd_mesh *mesh, hd_device_transport transport)
{
    hd_comm *world = hd_mesh_comm(mesh, HD_AXIS_NONE);
    const hd_context *context = it->context;
    const bool by_nccl = transport != HD_DEVICE_TRANSPORT_STAGED && hd_mesh_ranks(mesh) > 1;
    hd_status status = HD_OK;
    if (by_nccl) status = prepare_nccl(mesh, context);
    if (by_nccl && status == HD_OK) status = hdi_parking_lend(world->parking, context, &it->nccl);
    it->is_lent = it->nccl != NULL;
    if (by_nccl && status == HD_OK && !it->nccl)
        status = hdi_gpu_nccl(context->ordinal, context->stream, &it->nccl);
    HD_RETURN_IF_ERROR(hd_comm_agree(world, status));
    return create_comms(it, mesh, by_nccl);
}

hd_status hd_mesh_attach(hd_mesh *mesh, hd_context *context, hd_device_transport transport)
{
    if (!mesh || !context || !hd_mesh_comm(mesh, HD_AXIS_NONE))
        return hdi_error(HD_ERROR_ARGUMENT, "mesh_attach: mesh or context is NULL, or a fake mesh");
    if (context->attached ||
        hd_mesh_device_comm(mesh, HD_AXIS_NONE) != hd_mesh_comm(mesh, HD_AXIS_NONE))
        return hdi_error(HD_ERROR_ARGUMENT, "mesh_attach: mesh or context is attached already");
    const bool is_cpu = context->backend == &hdi_backend_cpu;
    if (is_cpu && transport == HD_DEVICE_TRANSPORT_AUTO) return HD_OK;
    if (is_cpu && transport == HD_DEVICE_TRANSPORT_NCCL)
        return hdi_error(HD_ERROR_CONFIG, "device transport nccl: this context is on the CPU; want "
                                          "auto or staged");
    attachment *it = hdi_alloc(sizeof *it);
    hd_status status = it ? HD_OK : hdi_error(HD_ERROR_MEMORY, "mesh_attach: out of host memory");
    status = hd_comm_agree(hd_mesh_comm(mesh, HD_AXIS_NONE), status);
    if (status == HD_OK) {
        it->context = context;
        it->mesh = mesh;
        status = fill(it, mesh, transport);
    }
    if (status != HD_OK) {
        if (it) {
            it->context = context;
            it->mesh = mesh;
            detach(it);
        }
        return status;
    }
    /* A rank that waits on the host must still move on what its peers wait for on the device, and one
     * that waits on the device what they wait for on the host. */
    for (int axis = HD_AXIS_NONE; axis < HD_AXES; axis++) {
        hd_comm *host = hd_mesh_comm(mesh, (hd_axis)axis);
        host->rider = it->comms[axis];
        if (it->comms[axis] && it->comms[axis] != host) it->comms[axis]->rider = host;
    }
    hdi_mesh_device device = {.detach = detach, .user = it};
    for (int axis = HD_AXIS_NONE; axis < HD_AXES; axis++)
        device.comms[axis] = it->comms[axis];
    hdi_mesh_attach(mesh, &device);
    context->attached = mesh;
    return HD_OK;
}
