/* Counting the lanes that attaching NCCL to a mesh will make. */
#include "runtime/transport.h"

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
