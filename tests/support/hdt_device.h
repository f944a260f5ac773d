/* The device that tests of several ranks run on: HEDDLE_DEVICE (cpu, cuda), where ranks share GPUs, and
 * HEDDLE_TRANSPORT (auto, nccl, staged) between devices. */
#ifndef HDT_DEVICE_H
#define HDT_DEVICE_H

#include "tests/support/hdt.h"

#include <heddle/session.h>

/* "cpu" unless HEDDLE_DEVICE says otherwise. Borrowed. */
const char *hdt_device(void);

/* This rank's context, and communicators of its memory for the mesh. Destroy the context before or
 * after the mesh. Collective over `comm`. */
hd_status hdt_open_context(hd_comm *comm, hd_mesh *mesh, hd_context **out);

#endif
