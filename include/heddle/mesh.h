/* The mesh: ranks arranged on named axes, fastest first: tensor, sequence, data, pipeline. */
#ifndef HEDDLE_MESH_H
#define HEDDLE_MESH_H

#include <heddle/comm.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Axes in order of speed: neighbours on the tensor axis have neighbouring ranks. */
typedef enum hd_axis {
    HD_AXIS_NONE = 0,
    HD_AXIS_TENSOR,
    HD_AXIS_SEQUENCE,
    HD_AXIS_DATA,
    HD_AXIS_PIPELINE,
    HD_AXIS_REPLICA, /* sequence and data as one: the ranks that have the same parameters */
    HD_AXIS_SHARD, /* of those the neighbours, a shard group's, that share one copy of sharded state, */
    HD_AXIS_COPY, /* and the ranks that have the same shard */
    HD_AXES       /* one past the last */
} hd_axis;

typedef struct hd_mesh hd_mesh;

typedef struct hd_mesh_options {
    int tensor, sequence, data, pipeline; /* sizes; zero means 1 */
    int shard_group; /* data ranks of a shard group, at least 2; zero means all of them */
    int ring;        /* rings of so many ranks within `sequence`, which it divides; zero means 1 */
} hd_mesh_options;

/* Cut `comm` into one communicator per axis. Collective over `comm`, which is borrowed and must
 * outlive the mesh. The sizes must multiply to the communicator's size. */
HD_API hd_status hd_mesh_create(hd_comm *comm, const hd_mesh_options *options, hd_mesh **out);

/* The mesh as `rank` of `ranks` would see it, without communicators: for planning. Local. */
HD_API hd_status hd_mesh_create_fake(int rank, int ranks, const hd_mesh_options *options,
                                     hd_mesh **out);
HD_API void hd_mesh_destroy(hd_mesh *mesh); /* takes NULL */

/* Size of an axis, and this rank's place on it; 1 and 0 for a NULL mesh. Local. */
HD_API int hd_mesh_size(const hd_mesh *mesh, hd_axis axis);
HD_API int hd_mesh_index(const hd_mesh *mesh, hd_axis axis);

/* Ranks of a ring on the sequence axis; rank i of the axis is at place i / (sequence / ring) of its own.
 * 1 for a NULL mesh. Local. */
HD_API int hd_mesh_ring(const hd_mesh *mesh);

/* World rank, and world rank of the peer that differs only in being at `index` on `axis`. Local. */
HD_API int hd_mesh_rank(const hd_mesh *mesh);
HD_API int hd_mesh_ranks(const hd_mesh *mesh);
HD_API int hd_mesh_peer(const hd_mesh *mesh, hd_axis axis, int index);

/* The communicator of this rank's line along `axis`, or of the world for HD_AXIS_NONE; borrowed.
 * NULL on a fake mesh. Local. */
HD_API hd_comm *hd_mesh_comm(const hd_mesh *mesh, hd_axis axis);

/* The communicator that moves what lies in the memory of the device that hd_mesh_attach gave the mesh;
 * without one, or on the CPU, hd_mesh_comm's. Borrowed. Local. */
HD_API hd_comm *hd_mesh_device_comm(const hd_mesh *mesh, hd_axis axis);

/* "data", "pipeline", ... Local. */
HD_API const char *hd_axis_name(hd_axis axis);

#ifdef __cplusplus
}
#endif
#endif
