/* What the runtime must know of GPUs beyond the backend's table. Without CUDA in the build there are
 * none. */
#ifndef HDI_RUNTIME_GPU_H
#define HDI_RUNTIME_GPU_H

#include "backend/backend.h"
#include "comm/device.h"

/* NULL without CUDA in the build. */
const hd_backend *hdi_gpu_backend(void);

/* GPUs that this process sees. */
int hdi_gpu_count(void);

/* Which GPU an ordinal means, whatever other processes call it. */
hd_status hdi_gpu_uuid(int ordinal, uint8_t uuid[16]);

/* What its maker calls it. */
hd_status hdi_gpu_name(int ordinal, char *out, size_t bytes);

/* Transports for memory that `stream` works on. */
hd_status hdi_gpu_nccl(int ordinal, hd_stream *stream, hdi_nccl_device **out);
hd_status hdi_gpu_nccl_comm(hd_comm *host, hdi_nccl_device *device, const hdi_nccl_options *options,
                            hd_comm **out);
void hdi_gpu_nccl_serve(hdi_nccl_device *device, hd_stream *stream);
void hdi_gpu_nccl_rehost(hd_comm *comm, hd_comm *host);
void hdi_gpu_nccl_close(hdi_nccl_device *device); /* takes NULL */
hd_status hdi_gpu_staging(hd_stream *stream, hdi_staging **out);

/* What a stream is to those transports; NULL of other backends than the GPUs'. */
void *hdi_gpu_stream(const hd_backend *backend, const hd_stream *stream);

/* Whether ranks with other GPUs of the host can be given an arena of this one. */
bool hdi_gpu_can_share(int ordinal, const void *arena, size_t bytes);

#endif
