/* Counting the lanes that attaching NCCL to a mesh will make, and what its communicators pin. */
#include "runtime/transport.h"

#include "comm/mailbox.h"
#include "comm/mesh.h"

enum { LANES_OF_A_COMMUNICATOR = 2, LINKS = 4 };

int hdi_transport_lanes(const hd_mesh *mesh)
{
    const int ranks = hd_mesh_ranks(mesh);
    if (ranks < 2) return 0;
    int lanes = LANES_OF_A_COMMUNICATOR; /* the world's, which is an axis of all ranks, too */
    for (int axis = HD_AXIS_TENSOR; axis < HD_AXES; axis++) {
        const int size = hd_mesh_size(mesh, (hd_axis)axis);
        const bool is_first = (int)hdi_mesh_same_line(mesh, (hd_axis)axis) == axis;
        if (size > 1 && size < ranks && is_first) lanes += LANES_OF_A_COMMUNICATOR;
    }
    return lanes + (hd_mesh_size(mesh, HD_AXIS_PIPELINE) > 1 ? LINKS : 0);
}

static size_t mailbox_bytes_of(const hd_mesh *mesh, hd_axis axis, int size, bool has_links,
                               bool all)
{
    if (size > HDI_DIRECT_RANKS || (!all && !hd_mesh_device_comm(mesh, axis)->through_host))
        return 0;
    return hdi_mail_lay(size, has_links).bytes / (size_t)size;
}

size_t hdi_mailbox_bytes(const hd_mesh *mesh, bool all)
{
    const int ranks = hd_mesh_ranks(mesh), stages = hd_mesh_size(mesh, HD_AXIS_PIPELINE);
    if (ranks < 2) return 0;
    size_t bytes = mailbox_bytes_of(mesh, HD_AXIS_NONE, ranks, stages == ranks, all);
    for (int axis = HD_AXIS_TENSOR; axis < HD_AXES; axis++) {
        const int size = hd_mesh_size(mesh, (hd_axis)axis);
        const bool is_first = (int)hdi_mesh_same_line(mesh, (hd_axis)axis) == axis;
        if (size > 1 && size < ranks && is_first)
            bytes += mailbox_bytes_of(mesh, (hd_axis)axis, size, axis == HD_AXIS_PIPELINE, all);
    }
    return bytes;
}
