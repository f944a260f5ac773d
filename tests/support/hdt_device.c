/* The device that tests run on. */
#include "tests/support/hdt_device.h"

#include <stdlib.h>

#include "comm/mpi_world.h"
#include "runtime/parking.h"
#include "runtime/session.h"
#include "tests/support/hdt_recorder.h"

const char *hdt_device(void)
{
    const char *device = getenv("HEDDLE_DEVICE");
    return device && *device ? device : "cpu";
}

bool hdt_graphs(void)
{
    const char *graphs = getenv("HEDDLE_GRAPHS");
    return graphs && *graphs && strcmp(graphs, "0") != 0;
}

/* HEDDLE_COPIES=host or peers: ranks that share a GPU do not leave exchanges to NCCL. */
static hdi_copy_engines copy_engines(void)
{
    const char *way = getenv("HEDDLE_COPIES");
    if (way && strcmp(way, "host") == 0) return HDI_COPY_ENGINES_HOST;
    return way && strcmp(way, "peers") == 0 ? HDI_COPY_ENGINES_PEERS : HDI_COPY_ENGINES_AUTO;
}

static bool is_staged;

void hdt_set_staged(bool staged)
{
    is_staged = staged;
}

static hd_device_transport transport(void)
{
    if (is_staged) return HD_DEVICE_TRANSPORT_STAGED;
    const char *name = getenv("HEDDLE_TRANSPORT");
    if (name && strcmp(name, "nccl") == 0) return HD_DEVICE_TRANSPORT_NCCL;
    if (name && strcmp(name, "staged") == 0) return HD_DEVICE_TRANSPORT_STAGED;
    return HD_DEVICE_TRANSPORT_AUTO;
}

void hdt_park(void)
{
    if (strcmp(hdt_device(), "cpu") != 0) hdt_assert_ok(hdi_parking_create(&hdt_world->parking));
}

void hdt_end_parking(void)
{
    hdi_parking_destroy(hdt_world->parking);
    hdt_world->parking = NULL;
}

hd_status hdt_open_context(hd_comm *comm, hd_mesh *mesh, hd_context **out)
{
    const hd_context_options options = {
        .device = hdt_device(), .share_gpu = true, .graphs = hdt_graphs()};
    hd_status status = hd_context_create_ranked(comm, &options, out);
    if (status == HD_OK) (*out)->copy_engines = copy_engines();
    if (status == HD_OK) status = hd_mesh_attach(mesh, *out, transport());
    if (status == HD_OK && hdt_graphs() && (*out)->backend == &hdi_backend_cpu) {
        (*out)->backend = hdt_recorder_backend(&hdi_backend_cpu);
        (*out)->attached = mesh;
    }
    return status;
}

hd_status hdt_open_place(hd_comm *comm, const hd_mesh_options *layout, hd_mesh **mesh,
                         hd_context **context)
{
    *mesh = NULL;
    *context = NULL;
    const hd_status status = hd_mesh_create(comm, layout, mesh);
    return status == HD_OK ? hdt_open_context(comm, *mesh, context) : status;
}

/* Who closes something waits first for what goes to its memory. */
static void check_quiet(const hd_mesh *mesh)
{
    for (int axis = HD_AXIS_NONE; axis < HD_AXES; axis++) {
        const hd_comm *host = hd_mesh_comm(mesh, (hd_axis)axis);
        if (host->transport != &hdi_transport_mpi) continue;
        const int count = hdi_mpi_in_flight(hdi_mpi_of(host)->world->pool, host);
        ck_assert_msg(count == 0, "comm '%s': %d operations are still under way", host->name,
                      count);
    }
}

void hdt_close_place(hd_mesh *mesh, hd_context *context)
{
    if (context) check_quiet(mesh);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
}
