/* Replay: runs of ops that are the same in every step are kept as graphs of the device, each of which is
 * queued by one call. A device without graphs walks all ops. */
#ifndef HDI_RUNTIME_REPLAY_H
#define HDI_RUNTIME_REPLAY_H

#include "backend/backend.h"
#include "program/plan.h"

#include <heddle/session.h>

/* Ops [begin, end) of a unit as one run of it queues them, and all that their addresses and arguments
 * follow from. No padding: compared as bytes. */
typedef struct hdi_segment {
    int unit, begin, end;
    int streamed; /* slot of weights that pass through slots */
    int micro_batch, level, folds;
    int accumulate, last;
} hdi_segment;

/* A segment that was seen. */
typedef struct hdi_replayed {
    hdi_segment segment;
    hdi_graph graph; /* owned */
    bool is_refused; /* it cannot be kept, or there was no room for it */
} hdi_replayed;

typedef struct hdi_replay {
    hdi_replayed *seen; /* [HDI_REPLAY_SEGMENTS], owned; NULL: nothing is replayed */
    int count;
    int next;         /* which comes next, if this step is like the one before */
    int waiting;      /* graphs that are recorded and not loaded */
    size_t bytes;     /* of the device, in loaded graphs */
    int64_t launches; /* of graphs */
} hdi_replay;

/* Segments of fewer ops are not worth it: a graph takes as long to queue as two or three kernels. */
enum { HDI_REPLAY_SEGMENTS = 2048, HDI_REPLAY_LEAST_OPS = 3 };

/* Device memory that the graphs of a context may take. */
#define HDI_REPLAY_BYTES ((size_t)256 << 20)

static inline hdi_phase hdi_phase_of(hd_phase phase)
{
    return phase == HD_PHASE_BACKWARD ? HDI_PHASE_BACKWARD : HDI_PHASE_FORWARD;
}

/* Is the op queued in such a run? */
static inline bool hdi_op_runs(const hdi_op *op, const hd_session_run_options *options)
{
    return op->phase == hdi_phase_of(options->phase) && (!op->last_only || options->last) &&
           (!op->adds_only || options->accumulate);
}

/* End of the longest segment that begins at op `begin`, which runs: none of its ops goes on after it or
 * varies, and before none but the first is there anything to wait for or, from op `until` on, to fetch.
 * `begin` if the op cannot be replayed. */
int hdi_segment_end(const hdi_unit *unit, int begin, int until,
                    const hd_session_run_options *options);

/* Make room for what will be seen, if the context wants graphs and its device has them. */
hd_status hdi_replay_open(hd_session *session);
void hdi_replay_close(hd_session *session);

/* Lengthen the segment of the one op `begin` to all that is replayed with it, and find it; NULL: walk it.
 * What is under way on bytes of a later op ends it, so that nothing waits earlier than it would in a walk. */
hdi_replayed *hdi_replay_find(hd_session *session, hdi_segment *segment, int until,
                              const hd_session_run_options *options);

/* A segment that is seen again is recorded: true if so, and what is queued until end is not run. */
bool hdi_replay_begin(hd_session *session, hdi_replayed *it);
void hdi_replay_end(hd_session *session, hdi_replayed *it, hd_status recorded);

/* Load what is recorded, where nothing on the device waits for a peer: loading may wait for the device. */
void hdi_replay_load(hd_session *session);

/* Queue a loaded segment. */
hd_status hdi_replay_run(hd_session *session, const hdi_replayed *it);

#endif
