/* The device that tests run on. */
#include "tests/support/hdt_device.h"

#include <stdlib.h>

const char *hdt_device(void)
{
    const char *device = getenv("HEDDLE_DEVICE");
    return device && *device ? device : "cpu";
}

static hd_device_transport transport(void)
{
    const char *name = getenv("HEDDLE_TRANSPORT");
    if (name && strcmp(name, "nccl") == 0) return HD_DEVICE_TRANSPORT_NCCL;
    if (name && strcmp(name, "staged") == 0) return HD_DEVICE_TRANSPORT_STAGED;
    return HD_DEVICE_TRANSPORT_AUTO;
}

hd_status hdt_open_context(hd_comm *comm, hd_mesh *mesh, hd_context **out)
{
    const hd_context_options options = {.device = hdt_device(), .share_gpu = true};
    hd_status status = hd_context_create_ranked(comm, &options, out);
    return status == HD_OK ? hd_mesh_attach(mesh, *out, transport()) : status;
}
