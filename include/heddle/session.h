/* Sessions: a plan's arena on one device, and the walk over its programs. */
#ifndef HEDDLE_SESSION_H
#define HEDDLE_SESSION_H

#include <heddle/plan.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hd_context hd_context;
typedef struct hd_session hd_session;

typedef struct hd_context_options {
    const char *device; /* "cpu", "cuda" or "auto"; NULL means "auto" */
    int ordinal;        /* of the GPU on this host */
    int threads;        /* of the CPU backend; zero means 1 */
    bool share_gpu;     /* hd_context_create_ranked: several ranks may have one GPU, for tests */
    bool graphs; /* CUDA: sessions queue at once, as graphs, what is the same in every step: up to
                    256 MiB of the device, the same bits */
} hd_context_options;

/* One device of this process. `options` may be NULL: the defaults. Local. */
HD_API hd_status hd_context_create(const hd_context_options *options, hd_context **out);
HD_API void hd_context_destroy(hd_context *context); /* takes NULL; after its sessions */
HD_API const char *hd_context_device(const hd_context *context);

/* The backend that a device's name ("cpu", "cuda", "auto"; NULL: "auto") means on this machine, for
 * plans that nobody runs here. Static. Local. */
HD_API hd_status hd_backend_find(const char *device, const hd_backend **out);

/* What plans for this device must be made with: workspaces follow from it. Static. Local. */
HD_API const hd_backend *hd_context_backend(const hd_context *context);

/* hd_context_create on the GPU that falls to this rank: the only one that it sees, or the one of its place among
 * the ranks of its host; options->ordinal is not read. HD_ERROR_MISMATCH, on all ranks, if two of
 * them have one GPU (unless options->share_gpu) or only some have any; it names ranks and host.
 * Collective. */
HD_API hd_status hd_context_create_ranked(hd_comm *comm, const hd_context_options *options,
                                          hd_context **out);

/* How bytes get from one rank's device to another's. */
typedef enum hd_device_transport {
    HD_DEVICE_TRANSPORT_AUTO,  /* nccl between GPUs; on the CPU the ranks' own */
    HD_DEVICE_TRANSPORT_NCCL,  /* from GPU to GPU; sends are between neighbours of the pipeline */
    HD_DEVICE_TRANSPORT_STAGED /* through pinned host memory and the ranks' own transport */
} hd_device_transport;

/* Give a mesh communicators for what lies in the context's memory: hd_mesh_device_comm. Ends with
 * either of the two, sessions first. Collective over the mesh. */
HD_API hd_status hd_mesh_attach(hd_mesh *mesh, hd_context *context, hd_device_transport transport);

/* Reserve the arena of a finished plan, and pinned host memory for weights that stay there; make
 * tables and clear states. `context`, `plan` and `mesh` (NULL: one rank) are borrowed and must
 * outlive the session. Local. */
HD_API hd_status hd_session_create(hd_context *context, const hd_plan *plan, const hd_mesh *mesh,
                                   hd_session **out);

/* Takes NULL. Waits for what is on its way to its memory: where that comes from ranks that have stopped, up to their
 * communicators' deadline. Of a program that runs beside others, what is not queued yet is left out. */
HD_API void hd_session_destroy(hd_session *session);

/* Fill every parameter by its declared initialiser: a function of (seed, global name, element).
 * Local. */
HD_API hd_status hd_session_initialize(hd_session *session, uint64_t seed);

/* Copy a whole tensor of a program from or to host memory; `micro_batch` chooses the slot. Done
 * when the call returns. Of a parameter that is sharded over ranks each writes its part, and none can
 * read it: HD_ERROR_UNSUPPORTED. Local; Collective, on the same tensor, where a program that communicates goes on
 * beside others and may not have released it. */
HD_API hd_status hd_session_write(hd_session *session, const hd_program *program, hd_tensor tensor,
                                  int micro_batch, const void *host);
HD_API hd_status hd_session_read(hd_session *session, const hd_program *program, hd_tensor tensor,
                                 int micro_batch, void *host);

typedef enum hd_phase { HD_PHASE_FORWARD, HD_PHASE_BACKWARD } hd_phase;

/* One run of one phase of a program. */
typedef struct hd_session_run_options {
    hd_phase phase;
    int micro_batch;        /* chooses the slots */
    bool accumulate;        /* backward: add to the gradients of earlier micro-batches */
    bool last;              /* backward: the step's last micro-batch; gradients travel now */
    int level;              /* backward: gradient level that the micro-batch writes */
    int folds;              /* backward: how often it is then joined with the level below */
    const hd_program *next; /* what runs next, whose first weights that pass through slots are
                               fetched already; NULL: the same program again */
    hd_phase next_phase;    /* of `next` */
    bool no_next;           /* the weights may change before anything runs: fetch nothing ahead */
    bool idle; /* only take part in what other ranks gather in their run of the phase: no op runs */
} hd_session_run_options;

/* Queue the ops of a phase. Communication, or all of a program that the plan runs beside others, may still be
 * under way on return: whatever runs, reads or writes where it goes waits for it first, and hd_session_drain
 * for all.
 * Collective if the program communicates. HD_ERROR_* names the op. */
HD_API hd_status hd_session_run(hd_session *session, const hd_program *program,
                                const hd_session_run_options *options);

/* Wait for all communication and computation. Local, but for a program that communicates beside others. */
HD_API hd_status hd_session_drain(hd_session *session);

/* The highest byte of the arena that any op has touched, rounded as the plan rounds. Local. */
HD_API size_t hd_session_high_water(const hd_session *session);

#ifdef __cplusplus
}
#endif
#endif
