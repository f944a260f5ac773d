/* A place for tests of copies between ranks: a context on the GPU, a mesh, an arena and the way to those of peers. */
#ifndef HDT_COPIES_H
#define HDT_COPIES_H

#include <cuda_runtime_api.h>

#include "backend/cuda/cuda.h"
#include "comm/direct.h"
#include "runtime/session.h"
#include "tests/support/hdt.h"

/* Of an arena: what goes, what comes, and what kernels write. */
enum {
    HDT_SEND_AT = 1 << 20,
    HDT_RECV_AT = 192 << 20,
    HDT_SCRATCH_AT = 384 << 20,
    HDT_ARENA = 400 << 20
};

typedef struct hdt_copies {
    hd_context *context;
    hd_mesh *mesh;
    hd_comm *comm;
    char *arena;
    size_t arena_bytes;
    hdi_way way; /* no window: exchanges do not go this way */
} hdt_copies;
extern hdt_copies hdt_place;

/* The communicator of an axis of this layout, of ranks that may share GPUs; no window where copies cannot go that way.
 * Collective. */
void hdt_copies_open(const hd_mesh_options *layout, hd_axis axis, bool through_host);
/* Of the stages of a pipeline of all ranks. */
void hdt_copies_open_peers(void);
void hdt_copies_open_host(void);
void hdt_copies_close(void);

/* The arena and its window alone. Collective. */
void hdt_copies_reserve(size_t bytes);
void hdt_copies_release(void);

static inline cudaStream_t hdt_compute(void)
{
    return hdt_place.context->stream->handle;
}

#endif
