/* The inside of a session. */
#ifndef HDI_RUNTIME_SESSION_H
#define HDI_RUNTIME_SESSION_H

#include "backend/backend.h"
#include "program/plan.h"

#include <heddle/session.h>

struct hd_context {
    const hd_backend *backend;
    hdi_device *device; /* owned */
    hd_stream *stream;  /* borrowed from the device */
};

typedef struct hdi_posted {
    hd_request request;
    hd_comm *comm; /* NULL: nothing posted */
} hdi_posted;

struct hd_session {
    hd_context *context;
    const hd_plan *plan;
    const hd_mesh *mesh;
    char *arena;         /* owned, on the device */
    hdi_posted **posted; /* [unit][op] communication that nobody has waited for yet */
    size_t high_water;
};

/* Index of a program in the session's plan; -1 if it is not there. */
int hdi_session_unit(const hd_session *session, const hd_program *program);

/* Device address of a tensor in the slot of a micro-batch (level 0). */
void *hdi_session_address(const hd_session *session, int unit, hd_tensor tensor, int micro_batch);

/* Make `elements` fp32 values at flat weight position `first` the weights there, converting to
 * the weights' dtype. */
hd_status hdi_session_write_flat(hd_session *session, hd_dtype dtype, int64_t first,
                                 int64_t elements, const float *values);

#endif
