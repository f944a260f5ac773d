/* The inside of a session. */
#ifndef HDI_RUNTIME_SESSION_H
#define HDI_RUNTIME_SESSION_H

#include "backend/backend.h"
#include "comm/direct.h"
#include "program/plan.h"
#include "runtime/beside.h"
#include "runtime/memory_watch.h"
#include "runtime/relay.h"
#include "runtime/replay.h"
#include "runtime/streaming.h"

#include <heddle/session.h>

struct hd_context {
    const hd_backend *backend;
    hdi_device *device; /* owned */
    hd_stream *stream;  /* borrowed from the device */
    int ordinal;
    hd_mesh *attached;   /* borrowed: carries communicators of this device's memory, or NULL */
    size_t taken_bytes;  /* of the device's memory, before communicators of it were made */
    bool shares_gpu;     /* some ranks do */
    int sharers;         /* ranks that have the device, this one included; zero means 1 */
    bool is_on_one_host; /* all ranks are */
    bool has_budget;     /* memory is counted: communicators take little of it */
    hdi_copy_engines copy_engines;
    bool graphs;        /* sessions replay what is the same in every step */
    size_t graph_bytes; /* of the device, in graphs of all sessions */
    hdi_memory_watch memory;
};

typedef struct hdi_direct hdi_direct;
typedef struct hdi_spans hdi_spans;

typedef struct hdi_posted {
    hd_request request;
    hd_comm *comm;      /* NULL: nothing posted */
    int copy;           /* of a load or store under way: 1 + its slot; 0: none */
    int flag;           /* of a release that nobody has waited for: the flag; 0: none */
    hdi_direct *direct; /* borrowed: it goes straight to its peers; NULL: as the transport likes */
} hdi_posted;

/* Bytes that communication, or a program beside, goes on with after the session has left it. */
typedef struct hdi_unfinished {
    int unit, op;
    size_t begin, end;
} hdi_unfinished;

/* What goes directly of a session's exchanges (direct.c), by axes: those that stand for others are empty. */
typedef struct hdi_windows {
    hd_comm *comms[HD_AXES]; /* borrowed */
    void *handles[HD_AXES];  /* of the arena, on them; NULL: none */
    hdi_direct *directs[HD_AXES];
} hdi_windows;

struct hd_session {
    hd_context *context;
    const hd_plan *plan;
    const hd_mesh *mesh;
    char *arena;       /* owned, on the device */
    char *host;        /* owned, pinned: the host's arena; NULL without any */
    int loads, stores; /* the last slots that copies of ops took */
    hd_stream *queue;  /* borrowed: that ops are queued on: the context's, or beside it */
    hdi_beside beside;
    hdi_posted **posted;        /* [unit][op] communication that nobody has waited for yet */
    hdi_unfinished *unfinished; /* owned; room for all that a plan can leave */
    int unfinished_count;
    size_t high_water;
    hdi_spans *spans; /* borrowed: waits of the device are measured there; NULL: they are not */
    hdi_streaming streaming;
    hdi_replay replay;
    hdi_relay relay;
    hdi_windows windows;
};

/* Equal for processes of one host. */
uint64_t hdi_host_hash(void);

/* hd_session_create with one copy of streamed weights for the ranks of a host that have the same
 * (node_copy.h). What initialize or a load puts there each of them does for its run of the bytes: agree
 * before anybody reads; what hd_session_write puts there is equal on all of them. Without a plan, NULL comes
 * out. Collective over the mesh. */
hd_status hdi_session_create_shared(hd_context *context, const hd_plan *plan, const hd_mesh *mesh,
                                    hd_session **out);

/* Let exchanges go directly (comm/direct.h) where communicators can do that, after a session has been made on
 * all ranks: `created` is what that came to here, which ranks agree on, and `session` may be NULL. Without
 * such communicators it returns `created`. Collective over the mesh. */
hd_status hdi_session_share(hd_session *session, const hd_context *context, const hd_mesh *mesh,
                            hd_status created);
void hdi_session_end_sharing(hd_session *session); /* Local */

/* The part of it for one axis whose communicator has windows; *out: the exchanges that go directly. Collective
 * over the axis. */
hd_status hdi_session_share_axis(hd_session *session, const hd_mesh *mesh, hd_axis axis, int *out);

/* Whether the axis's communicator can have windows at all; and the one of this session's arenas, opened when
 * it is first asked for. *out NULL: not to be had, on all ranks. It ends with the sharing. Collective over the
 * axis. */
bool hdi_session_has_windows(const hd_session *session, hd_axis axis);
hd_status hdi_session_window(hd_session *session, hd_axis axis, void **out);

/* What an op would post, on what communicator; nothing is. */
hd_status hdi_session_hear(hd_session *session, int unit, int op, hd_comm **out);

/* Give the exchange that is posted next its way, in the slot of a micro-batch; and take it away. Local. */
void hdi_session_set_way(hdi_direct *direct, int micro_batch, int level);
void hdi_session_clear_way(hdi_direct *direct);

/* One op of a run, queued; what it has to wait for in its own program has been. */
hd_status hdi_session_run_op(hd_session *session, int unit, int op, int streamed,
                             const hd_session_run_options *options);

/* What is queued next comes behind all that an op has posted or releases; nothing if that is over. */
hd_status hdi_session_wait_for(hd_session *session, int unit, int op);

/* What an op has posted, or releases, goes on behind its program until somebody touches its bytes. */
void hdi_session_leave(hd_session *session, int unit, int op,
                       const hd_session_run_options *options);

/* Raise the high-water mark. */
static inline void hdi_session_touch(hd_session *session, size_t begin, size_t bytes)
{
    if (begin + bytes > session->high_water) session->high_water = begin + bytes;
}

/* What an address of the plan is. */
static inline char *hdi_session_at(const hd_session *session, size_t address)
{
    return address < HDI_HOST_BASE ? session->arena + address
                                   : session->host + (address - HDI_HOST_BASE);
}

/* Is it host memory of the session's arena there? */
bool hdi_session_is_host(const hd_session *session, const void *memory);

/* Index of a program in the session's plan; -1 if it is not there. */
int hdi_session_unit(const hd_session *session, const hd_program *program);

/* The same of a tensor that has a place, for a micro-batch; HD_ERROR_ARGUMENT if it has none. */
hd_status hdi_session_find(const hd_session *session, const hd_program *program, hd_tensor tensor,
                           int micro_batch, int *unit);

/* Device address of a tensor in the slot of a micro-batch (level 0). */
void *hdi_session_address(const hd_session *session, int unit, hd_tensor tensor, int micro_batch);

/* Address in the plan of a tensor of an op in such a run, and its bytes; weights from the host are in the
 * slot `streamed`. */
size_t hdi_session_place(const hd_session *session, int unit, hd_tensor tensor, int streamed,
                         const hd_session_run_options *options, size_t *bytes);

/* Is something that programs before have left under way at an address of the plan? */
bool hdi_session_is_unfinished(const hd_session *session, size_t at, size_t bytes);

/* It ends before what is queued next. */
hd_status hdi_session_await(hd_session *session, size_t at, size_t bytes);

/* hdi_session_address, once what is under way there has ended before what is queued next. */
hd_status hdi_session_reach(hd_session *session, int unit, hd_tensor tensor, int micro_batch,
                            char **out);

/* All communication that nobody has waited for ends before what is queued next. */
hd_status hdi_session_order(hd_session *session);

/* Wait for what has been queued, communication that it waits for included, with its deadline. With several
 * ranks the host's own messages move on meanwhile: a peer may need one before it can go on. */
hd_status hdi_session_settle(hd_session *session);

/* The same, and what the device has to say about it. */
hd_status hdi_session_synchronize(hd_session *session);

/* To weights, on the device or in the host's arena; done on return. */
hd_status hdi_session_put(hd_session *session, char *place, const void *data, size_t bytes);

/* Make `elements` fp32 values at flat weight position `first` the weights there, rounded to the
 * weights' dtype as training rounds them. */
hd_status hdi_session_write_flat(hd_session *session, int64_t first, int64_t elements,
                                 const float *values);

/* Where the weight at flat position `first` is, on the device or, of those that programs update there, on
 * the host; of sharded ones, this rank's only. */
char *hdi_session_weights_at(const hd_session *session, int64_t first);

/* Clip flat [*first, *first + *count) of an entry to what this rank has of its weights. */
void hdi_session_clip(const hd_session *session, const hdi_entry *entry, int64_t *first,
                      int64_t *count);

/* The dtype of all weights. */
hd_dtype hdi_session_weights_dtype(const hd_session *session);

/* Where to write the weights at flat position `first` themselves: host memory of an entry that streams, which
 * the slots forget; NULL for one that is resident. */
hd_status hdi_session_host_weights(hd_session *session, int64_t first, char **out);

/* `elements` weights, in their own dtype, to an entry on the device; of a sharded one, this rank's of them. */
hd_status hdi_session_write_weights(hd_session *session, int64_t first, int64_t elements,
                                    const void *weights);

/* Put first values, of `dtype`, of a parameter's elements begin .. begin + count at a place on the
 * device. */
hd_status hdi_session_fill(hd_session *session, const hdi_entry *entry, int64_t begin,
                           int64_t count, uint64_t seed, hd_dtype dtype, char *place);

/* Run every op that does not communicate once, on an arena of zeros. A device loads kernels and times
 * algorithms when it first meets them, and waits for all its streams to do so: a receive that already
 * spins there would wait for ever. Leaves zeros again. */
hd_status hdi_session_warm_up(hd_session *session);

/* Where communication takes host memory (the staged transport): let all of it that the plan's programs
 * post take what it will need, so that no step does. Moves nothing. Local. */
hd_status hdi_session_rehearse(hd_session *session);

#endif
