/* What each rank has open of a program that all of them run. */
#ifndef HDT_NODE_H
#define HDT_NODE_H

#include "program/plan.h"
#include "runtime/session.h"
#include "tests/support/hdt.h"

typedef struct hdt_node {
    hd_mesh *mesh;
    hd_context *context;
    hd_program *program;
    hd_plan *plan;
    hd_session *session; /* NULL before the start */
} hdt_node;

/* Without a session yet; takes the program over. Close it whatever the status is. Collective over
 * hdt_world. */
hd_status hdt_node_open(hd_program *program, const hd_plan_options *options,
                        const hd_mesh_options *sizes, hdt_node *out);
void hdt_node_close(hdt_node *it);

/* A session with one copy of streamed weights for the ranks of a host, and first values, which all may read on
 * return; `late`: on the CPU, with the copies of hdt_late.h. Collective over hdt_world. */
hd_status hdt_node_start(hdt_node *it, bool late);
void hdt_node_stop(hdt_node *it); /* the session ends */

/* Run it from input "x" to output "y". */
hd_status hdt_node_run(const hdt_node *it, const hd_session_run_options *how, const float *x,
                       float *y);

#endif
