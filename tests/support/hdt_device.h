/* The device that tests of several ranks run on: HEDDLE_DEVICE (cpu, cuda), where ranks share GPUs,
 * HEDDLE_TRANSPORT (auto, nccl, staged) between devices, and HEDDLE_GRAPHS (0, 1), whether sessions replay: on
 * the CPU, graphs of hdt_recorder.h. */
#ifndef HDT_DEVICE_H
#define HDT_DEVICE_H

#include "tests/support/hdt.h"

#include <heddle/session.h>

/* "cpu" unless HEDDLE_DEVICE says otherwise. Borrowed. */
const char *hdt_device(void);

/* False unless HEDDLE_GRAPHS says otherwise. */
bool hdt_graphs(void);

/* Contexts from here on have the staged transport, or again what HEDDLE_TRANSPORT says. For the CPU, whose
 * places do not stay. */
void hdt_set_staged(bool staged);

/* This rank's context, and communicators of its memory for the mesh. Destroy the context before or
 * after the mesh. Collective over `comm`. */
hd_status hdt_open_context(hd_comm *comm, hd_mesh *mesh, hd_context **out);

/* A mesh and this rank's context on it. Close it whatever the status is. Collective over `comm`. */
hd_status hdt_open_place(hd_comm *comm, const hd_mesh_options *layout, hd_mesh **mesh,
                         hd_context **context);
void hdt_close_place(hd_mesh *mesh, hd_context *context);

/* On a GPU, where communicators take half a second to start, those of hdt_world's meshes stay for the next
 * ones, from here on; and end. Collective over hdt_world. */
void hdt_park(void);
void hdt_end_parking(void);

#endif
