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
} hd_context_options;

/* One device of this process. Local. */
HD_API hd_status hd_context_create(const hd_context_options *options, hd_context **out);
HD_API void hd_context_destroy(hd_context *context); /* takes NULL; after its sessions */
HD_API const char *hd_context_device(const hd_context *context);

/* Reserve the arena of a finished plan, make tables and clear states. `context`, `plan` and `mesh`
 * (NULL: one rank) are borrowed and must outlive the session. Local. */
HD_API hd_status hd_session_create(hd_context *context, const hd_plan *plan, const hd_mesh *mesh,
                                   hd_session **out);
HD_API void hd_session_destroy(hd_session *session); /* takes NULL */

/* Fill every parameter by its declared initialiser: a function of (seed, global name, element).
 * Local. */
HD_API hd_status hd_session_initialize(hd_session *session, uint64_t seed);

/* Copy a whole tensor of a program from or to host memory; `micro_batch` chooses the slot. Done
 * when the call returns. Local. */
HD_API hd_status hd_session_write(hd_session *session, const hd_program *program, hd_tensor tensor,
                                  int micro_batch, const void *host);
HD_API hd_status hd_session_read(hd_session *session, const hd_program *program, hd_tensor tensor,
                                 int micro_batch, void *host);

typedef enum hd_phase { HD_PHASE_FORWARD, HD_PHASE_BACKWARD } hd_phase;

/* One run of one phase of a program. */
typedef struct hd_session_run_options {
    hd_phase phase;
    int micro_batch; /* chooses the slots */
    bool accumulate; /* backward: add to the gradients of earlier micro-batches */
    bool last;       /* backward: the step's last micro-batch; gradients travel now */
    int level;       /* backward: gradient level that the micro-batch writes */
    int folds;       /* backward: how often it is then joined with the level below */
} hd_session_run_options;

/* Queue the ops of a phase. Communication may still be under way on return: hd_session_drain.
 * Collective if the program communicates. HD_ERROR_* names the op. */
HD_API hd_status hd_session_run(hd_session *session, const hd_program *program,
                                const hd_session_run_options *options);

/* Wait for all communication and computation. */
HD_API hd_status hd_session_drain(hd_session *session);

/* The highest byte of the arena that any op has touched, rounded as the plan rounds. Local. */
HD_API size_t hd_session_high_water(const hd_session *session);

#ifdef __cplusplus
}
#endif
#endif
