/* What every job does first: the world, the mesh, and ranks that agree on the configuration. */
#ifndef HDI_JOBS_SETUP_H
#define HDI_JOBS_SETUP_H

#include "backend/backend.h"
#include "jobs/config.h"

#include <heddle/mesh.h>
#include <heddle/plan.h>
#include <heddle/session.h>

/* The communicator of all ranks by run.transport and run.deadline; log lines are led by its rank
 * from here on. Owned by the caller. Collective. */
hd_status hdi_job_open_world(const hd_config *config, hd_comm **out);

/* HD_ERROR_MISMATCH on all ranks, naming the key and the ranks, unless the configuration is the
 * same everywhere; what may differ from host to host (run.*) is passed over. Collective. */
hd_status hdi_job_check_config(const hd_config *config, hd_comm *world);

/* Sizes of the axes for `ranks` ranks: layout.data = 0 becomes what the other axes leave.
 * HD_ERROR_CONFIG names the sizes, the ranks, and what would fit. Local. */
hd_status hdi_job_mesh_options(const hd_config *config, int ranks, hd_mesh_options *out);

/* Check the configuration, then make the mesh. `world` is borrowed and must outlive it; the mesh is
 * owned by the caller. Collective. */
hd_status hdi_job_open_mesh(const hd_config *config, hd_comm *world, hd_mesh **out);

/* This rank's device, and communicators of its memory for the mesh. Both are owned by the caller, who
 * destroys the context first or last. Collective. */
hd_status hdi_job_open_device(const hd_config *config, hd_comm *world, hd_mesh *mesh,
                              hd_context **out);

/* Threads of the CPU backend: run.threads, else OMP_NUM_THREADS, else 1. Local. */
int hdi_job_threads(const hd_config *config);

/* About the bytes of the device that communicators of a mesh, which may be fake, will take. 0 on the
 * CPU and where messages go through host memory. Local. */
size_t hdi_job_transport(const hd_config *config, const hd_mesh *mesh, const hd_backend *backend);

/* Bytes of pinned host memory that communicators of a mesh have for this rank; of a fake one only if
 * run.copy_engines=host says that they will. Local. */
size_t hdi_job_mailboxes(const hd_config *config, const hd_mesh *mesh, const hd_backend *backend);

/* Bytes of an attached device that are not the arena's: *out what was in use when nothing of ours was
 * there yet, and what libraries load later; *transport as above, or what attaching took if that is more. 0 on the CPU. Local. */
hd_status hdi_job_foreign(const hd_config *config, const hd_mesh *mesh, const hd_context *context,
                          size_t *out, size_t *transport);

/* What run.rates asks to predict seconds by: zeros where nothing is. Local. */
hd_status hdi_job_rates(const hd_config *config, const hd_backend *backend, hd_rates *out);

/* Put what the rank with the most planned, and had in use in each kind of work, into *planned and
 * context->memory of all. Collective. */
hd_status hdi_job_most_memory(hd_comm *world, hd_context *context, size_t *planned);

/* Log the plan's bytes beside the most that the context saw in use; nothing if it was never read. Local. */
void hdi_job_log_memory(const hd_context *context, size_t planned);

#endif
