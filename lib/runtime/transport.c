/* Counting the lanes that attaching NCCL to a mesh will make. */
#include "runtime/transport.h"

enum { LANES_OF_A_COMMUNICATOR = 2, LINKS = 4 };

int hdi_transport_lanes(const hd_mesh *mesh)
{
    const int ranks = hd_mesh_ranks(mesh);
    const int sequence = hd_mesh_size(mesh, HD_AXIS_SEQUENCE);
    const int data = hd_mesh_size(mesh, HD_AXIS_DATA);
    if (ranks < 2) return 0;
    int lanes = LANES_OF_A_COMMUNICATOR; /* the world's, which is an axis of all ranks, too */
    for (int axis = HD_AXIS_TENSOR; axis < HD_AXES; axis++) {
        const int size = hd_mesh_size(mesh, (hd_axis)axis);
        const bool stands_for_one = axis == HD_AXIS_REPLICA && (sequence == 1 || data == 1);
        if (size > 1 && size < ranks && !stands_for_one) lanes += LANES_OF_A_COMMUNICATOR;
    }
    return lanes + (hd_mesh_size(mesh, HD_AXIS_PIPELINE) > 1 ? LINKS : 0);
}
