/* Copies between the host and the tensors of a session that the host does not wait for: through a place in
 * pinned memory that the plan has for each staged tensor of each micro-batch. */
#ifndef HDI_RUNTIME_RELAY_H
#define HDI_RUNTIME_RELAY_H

#include <heddle/session.h>

/* A copy since the last wait. */
typedef struct hdi_passing {
    size_t begin, end; /* addresses of its place on the host */
    void *to; /* borrowed: where what comes from the device goes then; NULL: it goes there */
} hdi_passing;

typedef struct hdi_relay {
    hdi_passing *passing; /* owned; room for all places of the plan */
    int count, marked;    /* the first `marked` are before the mark */
} hdi_relay;

hd_status hdi_relay_open(hd_session *session);
void hdi_relay_close(hd_session *session);

/* Where the host puts an input, then send it: it is copied behind what is queued, before what is queued next.
 * Where nothing is ever left behind a call (the CPU) the room is the tensor itself. Waits for the device only
 * if a copy since the last wait has the same place. */
hd_status hdi_relay_room(hd_session *session, const hd_program *program, hd_tensor tensor,
                         int micro_batch, void **out);
hd_status hdi_relay_send(hd_session *session, const hd_program *program, hd_tensor tensor,
                         int micro_batch);

/* Copy a tensor as it is when all that is queued now is done. `host` is borrowed and has it after the next
 * wait: hdi_session_synchronize, or hdi_relay_await_mark if the mark comes later. On the CPU, at once. */
hd_status hdi_relay_read(hd_session *session, const hd_program *program, hd_tensor tensor,
                         int micro_batch, void *host);

/* Mark how far the queue has come; wait until the device is there, while it goes on with what was queued
 * behind, and hear what it has to say. With several ranks the host's own messages move on meanwhile. */
hd_status hdi_relay_mark(hd_session *session);
hd_status hdi_relay_await_mark(hd_session *session);

#endif
