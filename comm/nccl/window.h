/* Memory of all ranks of one host under addresses of this process, and waits of a stream for words in it. */
#ifndef HDI_COMM_NCCL_WINDOW_H
#define HDI_COMM_NCCL_WINDOW_H

#include <cuda_runtime_api.h>

#include "comm/direct.h"

typedef struct hdi_nccl_window {
    int rank, ranks, ordinal;
    char *memory[HDI_DIRECT_RANKS]; /* of each rank; this rank's is borrowed; NULL: not mapped */
    size_t bytes[HDI_DIRECT_RANKS]; /* of each; whole pieces of the driver's */
} hdi_nccl_window;

/* `memory` begins one piece made by the driver's virtual memory calls, with a handle for other processes. It
 * is mapped by all ranks of `host`, theirs here; sizes may differ. Ends in agreement. *out NULL on failure.
 * Collective. */
hd_status hdi_nccl_window_open(hd_comm *host, int ordinal, void *memory, hdi_nccl_window **out);
void hdi_nccl_window_close(hdi_nccl_window *window); /* takes NULL; nothing uses it any more */

/* What is queued on `stream` from here on runs when the word at `address` of this device is `value`, or has
 * gone past it. */
hd_status hdi_nccl_await_word(cudaStream_t stream, const void *address, uint32_t value);

/* Several at once: what follows runs when all are there; and words become their values, behind all that the
 * stream has written, for whoever reads them. At most HDI_DIRECT_RANKS. */
typedef struct hdi_nccl_word {
    void *address; /* for this device */
    uint32_t value;
} hdi_nccl_word;
hd_status hdi_nccl_await_words(cudaStream_t stream, const hdi_nccl_word *words, int count);
hd_status hdi_nccl_write_words(cudaStream_t stream, const hdi_nccl_word *words, int count);

/* A turn that nobody comes to, for an abort's words. */
static inline uint32_t hdi_nccl_past(uint32_t turn)
{
    return turn + (UINT32_C(1) << 30);
}

#endif
