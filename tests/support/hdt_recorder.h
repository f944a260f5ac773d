/* A device without a GPU that keeps graphs: what a backend on the CPU would compute is written down while it
 * records, and computed each time the graph runs. */
#ifndef HDT_RECORDER_H
#define HDT_RECORDER_H

#include "backend/backend.h"

/* What the recorder does and what it has done. */
typedef struct hdt_recorder_state {
    hd_status end_status; /* of the end of a recording: HD_OK, or it keeps nothing */
    size_t graph_bytes;   /* that a graph takes */
    bool records;         /* now */
    int recordings;       /* begun */
    int graphs;           /* alive */
} hdt_recorder_state;
extern hdt_recorder_state hdt_recorder;

/* `base`, which is the CPU's or made from it, with graphs. One at a time in a process; its state starts
 * anew, with graphs of 1000 bytes. */
const hd_backend *hdt_recorder_backend(const hd_backend *base);

#endif
