/* Device memory mapped under one range of addresses, through the driver's virtual memory
 * calls. They are found at run time, so that the driver need not be there when heddle is linked. */
#ifndef HDI_BACKEND_CUDA_ARENA_H
#define HDI_BACKEND_CUDA_ARENA_H

#include "backend/cuda/cuda.h"

bool hdi_cuda_can_map(int ordinal);

/* `bytes` rounded up to pieces, not zeroed. A failure leaves nothing mapped. */
hd_status hdi_cuda_map(int ordinal, size_t bytes, void **out);

/* Takes what hdi_cuda_map gave, with the same bytes. */
void hdi_cuda_unmap(void *arena, size_t bytes);

/* Whether it is one piece, of which other processes can be given a handle. */
bool hdi_cuda_is_shareable(int ordinal, const void *arena, size_t bytes);

#endif
