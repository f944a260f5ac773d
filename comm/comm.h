/* Transports behind the public communicator: one const table each; comm.c checks arguments, waits and
 * dispatches. */
#ifndef HDI_COMM_COMM_H
#define HDI_COMM_COMM_H

#include <heddle/comm.h>

#define HDI_COMM_CHANNELS 16

/* Where in the caller's work a posted operation belongs, for messages. The texts live as long as the
 * operation; NULL: not known. */
typedef struct hdi_comm_label {
    const char *program, *scope;
    int op; /* of the program, or the micro-batch where there is no scope */
} hdi_comm_label;

/* Posts have checked arguments. They set *out to a request, or to a zeroed one if complete. */
typedef struct hdi_transport {
    const char *name; /* "self", "mpi", "nccl" or "staged", for messages and test names */

    hd_status (*create_world)(double deadline_seconds, hd_comm **out);
    hd_status (*split)(hd_comm *comm, int color, int key, hd_comm **out);
    void (*destroy)(hd_comm *comm); /* takes a half-built one; ends with hdi_comm_delete */
    void (*abort)(hd_comm *comm, int code);
    hd_status (*local)(hd_comm *comm, int *rank, int *size); /* NULL: alone */

    hd_status (*send)(hd_comm *comm, const void *data, size_t bytes, int peer, int channel,
                      hd_request *out);
    hd_status (*recv)(hd_comm *comm, void *data, size_t bytes, int peer, int channel,
                      hd_request *out);
    hd_status (*all_reduce)(hd_comm *comm, void *inout, int64_t count, hd_dtype dtype, hd_reduce op,
                            hd_request *out);
    hd_status (*all_gather)(hd_comm *comm, void *inout, const int64_t *counts,
                            const int64_t *offsets, hd_dtype dtype, hd_request *out);
    hd_status (*all_to_all)(hd_comm *comm, const void *send, const int64_t *send_counts,
                            const int64_t *send_offsets, void *recv, const int64_t *recv_counts,
                            const int64_t *recv_offsets, hd_dtype dtype, hd_request *out);
    hd_status (*broadcast)(hd_comm *comm, void *inout, size_t bytes, int root, hd_request *out);
    hd_status (*barrier)(hd_comm *comm, hd_request *out);

    /* One look, no waiting. A request that failed is complete: its id becomes 0. */
    hd_status (*test)(hd_comm *comm, hd_request *request, bool *done);

    /* Let posted operations advance while the caller computes. NULL: they advance by themselves. */
    void (*progress)(hd_comm *comm);

    /* Transports of device memory. Posts start after what the device's stream holds at that moment.
     * order: what is queued on that stream from here on runs after the operation; the request is
     * over for its caller. NULL: wait for it. settle: wait on the host until all that was ordered on
     * the device is over. NULL: nothing outlives its request. is_quiet: nothing that any communicator
     * of the device has posted is under way there. NULL: nothing there waits for a peer. label: NULL:
     * unused. */
    hd_status (*order)(hd_comm *comm, hd_request *request);
    hd_status (*settle)(hd_comm *comm);
    bool (*is_quiet)(hd_comm *comm);
    hd_status (*watch)(hd_comm *comm); /* what has failed there, or is late; one look. NULL: OK */
    void (*label)(hd_comm *comm, const hd_request *request, const hdi_comm_label *label);
    void (*follow)(hd_comm *comm,
                   void *stream); /* as hdi_comm_follow says. NULL: nothing is queued */

    /* As hdi_comm_rehearse says. NULL: operations take no memory. */
    void (*rehearse)(hd_comm *comm, bool begins);

    /* Make this rank's `memory` known to all ranks, so that exchanges with a way (direct.h) go straight there.
     * `fits`: it can be; *window NULL: not all can. Collective. close: before the memory goes; what was
     * posted on it is over. Local. NULL: never. */
    hd_status (*open_window)(hd_comm *comm, void *memory, bool fits, void **window);
    void (*close_window)(hd_comm *comm, void *window);

    /* test itself fails with HD_ERROR_TIMEOUT: the deadline runs from when the device is ready. */
    bool keeps_deadline;

    /* The operation and the peers it still waits for, for messages. */
    void (*describe)(hd_comm *comm, const hd_request *request, char *text, size_t bytes);
} hdi_transport;

typedef struct hdi_heard hdi_heard;
typedef struct hdi_way hdi_way;
typedef struct hdi_parking hdi_parking;

extern const hdi_transport hdi_transport_self;
extern const hdi_transport hdi_transport_mpi;

struct hd_comm {
    const hdi_transport *transport;
    char name[32]; /* "world", "pipeline", ... for messages */
    int rank, size;
    double deadline_seconds;
    int spins;        /* looks at a request before a waiting rank starts to give its core away */
    int *world_ranks; /* of each rank; owned */
    int64_t *counts;  /* counts, then offsets, of hdi_comm_gather; owned */
    void *records;    /* size x HDI_COMM_RECORD bytes of control messages; owned */
    char text[1024];  /* of the rank that failed, while ranks agree */
    hdi_heard *hears; /* borrowed: collectives are noted there, not made; NULL: they are made */
    hdi_way *way;     /* borrowed: of the exchange that is posted now; NULL: the transport's own */
    void *state;      /* the transport's; owned */

    bool through_host; /* exchanges with a way pass through host memory */

    hd_comm
        *rider; /* borrowed, or NULL: moves on whenever somebody waits here; peers may need it */

    hdi_parking
        *parking; /* borrowed, of a world: its meshes' device communicators stay there; or NULL */
};

#define HDI_COMM_RECORD 32

/* A communicator without transport state: for transports. world_ranks starts as 0, 1, 2, ... */
hd_status hdi_comm_new(const hdi_transport *transport, int rank, int size, double deadline_seconds,
                       hd_comm **out);
void hdi_comm_delete(hd_comm *comm); /* takes NULL; not the transport's state */

/* A communicator of the calling rank alone, in the place of a split that has one rank. Local. */
hd_status hdi_comm_create_alone(hd_comm *parent, hd_comm **out);

/* The name that messages use; cut to what fits. */
void hdi_comm_set_name(hd_comm *comm, const char *name);

/* Call now and then during long computations: MPI moves bytes only inside its calls. Local; takes
 * NULL. */
void hdi_comm_progress(hd_comm *comm);

/* As the transport's slots of these names say; NULL slots are provided for. settle, is_quiet and watch take
 * NULL. */
hd_status hdi_comm_order(hd_comm *comm, hd_request *request);
hd_status hdi_comm_settle(hd_comm *comm);
bool hdi_comm_is_quiet(hd_comm *comm);
hd_status hdi_comm_watch(hd_comm *comm);
void hdi_comm_set_label(hd_comm *comm, const hd_request *request, const hdi_comm_label *label);

/* From here on all communicators that move with this one post after what `stream` of their device holds, and
 * order holds back what is queued there; NULL: the stream that they were made for. Borrowed. Local; takes a
 * NULL communicator. */
void hdi_comm_follow(hd_comm *comm, void *stream);

/* A rehearsal: operations that are posted here, and on the communicators that move with this one, take the
 * host memory that they will need again, until they are waited for or the rehearsal ends; nothing moves.
 * False: operations here take none, there is no rehearsal. Local. */
bool hdi_comm_rehearse(hd_comm *comm, bool begins);

/* What a rank does before it looks for the `look`-th time: nothing for `spins` looks, then it offers its
 * core, then it sleeps a little. */
void hdi_comm_back_off(int64_t look, int spins);

/* This rank's place among the ranks that share memory with it, and their number. Collective. */
hd_status hdi_comm_local(hd_comm *comm, int *rank, int *size);

/* Every rank's record of `record_bytes`, at most HDI_COMM_RECORD, in rank order in comm->records,
 * where the caller has put its own at rank x record_bytes. Waits; allocates nothing. Collective. */
hd_status hdi_comm_gather(hd_comm *comm, size_t record_bytes);

/* Append to a text buffer of `bytes`; cut when full. */
void hdi_comm_append(char *text, size_t bytes, const char *format, ...) HD_PRINTF(3, 4);

/* For tests: no single MPI message of this world's communicators above so many bytes. */
void hdi_comm_mpi_set_piece(hd_comm *comm, size_t bytes);

#endif
