/* What communicators of device memory take of it. */
#ifndef HDI_RUNTIME_TRANSPORT_H
#define HDI_RUNTIME_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>

#include <heddle/mesh.h>

/* About the bytes of one NCCL lane: an estimate. NCCL takes 4 to 10 MiB for each channel, on its own
 * choice of 1 to 24 or more channels, some of them with the first message; this is four of 8 MiB. */
enum { HDI_TRANSPORT_LANE_BYTES = 32 << 20 };

/* Lanes that a rank of the mesh, which may be fake, has once NCCL is attached (attach.c): two for each
 * communicator of several ranks, and four links to pipeline neighbours. Local. */
int hdi_transport_lanes(const hd_mesh *mesh);

/* All of them, an estimate. Local. */
static inline size_t hdi_transport_bytes(const hd_mesh *mesh)
{
    return (size_t)hdi_transport_lanes(mesh) * HDI_TRANSPORT_LANE_BYTES;
}

/* Bytes of a rank's share of the mailboxes of a mesh: of an attached one, those that its communicators have; with
 * `all`, of a mesh that may be fake, what they would have. Local. */
size_t hdi_mailbox_bytes(const hd_mesh *mesh, bool all);

#endif
