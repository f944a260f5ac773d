/* One copy, in host memory, of the weights that several ranks of a host stream. */
#ifndef HDI_RUNTIME_NODE_COPY_H
#define HDI_RUNTIME_NODE_COPY_H

#include "core/shared.h"
#include "program/plan.h"

#include <heddle/session.h>

/* The memory, and this rank's place among those that share it. Zeroed: the rank has a copy of its own. */
typedef struct hdi_node_copy {
    hdi_shared shared;
    bool registered; /* with the device, for copies at full speed */
    int place, ranks;
} hdi_node_copy;

/* Share the copy among the ranks of each host that stream the same blocks: equal places on the pipeline and
 * the tensor axis, and equal plans. Where the system does not let them, the log says so and each takes its
 * own. `plan` may be NULL. Fails on all ranks, or on none. Collective over the mesh. */
hd_status hdi_node_copy_open(hd_context *context, const hd_mesh *mesh, const hd_plan *plan,
                             hdi_node_copy *out);

/* No copy to the device may be under way. Local; takes a zeroed one. */
void hdi_node_copy_close(const hd_context *context, hdi_node_copy *copy);

/* True if this rank is the one that writes what begins at `offset`: each writes a run of the bytes. */
bool hdi_node_copy_is_mine(const hdi_node_copy *copy, size_t offset);

#endif
