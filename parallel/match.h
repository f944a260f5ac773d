/* Do the collectives of all ranks match? Checked on plans, before anything runs. */
#ifndef HDI_PARALLEL_MATCH_H
#define HDI_PARALLEL_MATCH_H

#include "program/plan.h"

/* One communication op as its peers must see it. */
typedef struct hdi_call {
    const hd_op_kind *kind;
    hd_axis axis;
    int64_t elements;
    hd_dtype dtype;
    const int64_t *send, *recv; /* elements to and from each rank of the axis, or NULL; borrowed
                                   from the program, as what follows */
    const char *program, *what; /* for messages */
} hdi_call;

typedef struct hdi_calls {
    hdi_call *calls; /* owned */
    int count, capacity;
} hdi_calls;

/* Append the communication ops of one phase of a program, in order. */
hd_status hdi_calls_add(hdi_calls *calls, const hd_program *program, hdi_phase phase);

/* Append the gatherings of sharded weights that a run of a phase makes by itself. */
hd_status hdi_calls_add_gathers(hdi_calls *calls, const hd_plan *plan, const hd_program *program,
                                hdi_phase phase);
void hdi_calls_free(hdi_calls *calls);

/* Compare every rank's calls [rank] with those of the others on each axis: kind, elements, dtype,
 * and that what one sends is what the other receives. meshes[rank] may be fake. HD_ERROR_INTERNAL names axis, ranks, position and both calls. */
hd_status hdi_calls_match(const hdi_calls *calls, hd_mesh *const *meshes, int ranks);

#endif
