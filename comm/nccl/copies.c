/* Direct exchanges by copy engines, which leave all blocks to what is computed: a stream, and words of memory
 * that ranks write for each other. Of the turn-th exchange a rank tells its peers that it is ready to receive,
 * copies to each that is, tells it so, and waits until all have told it. A message of a link does the same
 * between two ranks, on the link's stream. Nothing else waits there, and an abort writes the words itself: no
 * missing peer can hold a device. */
#include <string.h>

#include "comm/nccl/nccl.h"
#include "comm/nccl/window.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"

/* Of the flags of each rank: words that its peers write, each in a line of its own, then a trial's bytes. */
enum { WORD_STRIDE = 128, TRIAL_AT = 1 << 16, TRIAL_BLOCK = 4096, DRAIN_SECONDS = 5 };
typedef enum word { READY, DONE, LINK_READY, LINK_DONE, CHANNEL_WORDS = 2, WORDS = 6 } word;

_Static_assert(WORDS *HDI_DIRECT_RANKS *WORD_STRIDE <= TRIAL_AT,
               "words end before a trial's bytes");
_Static_assert(TRIAL_AT + 2 * HDI_DIRECT_RANKS * TRIAL_BLOCK <= HDI_DIRECT_FLAG_BYTES,
               "flags have room for a trial");

struct hdi_nccl_copies {
    hdi_nccl_state *state; /* borrowed */
    hdi_nccl_lane *lane;
    hdi_nccl_window *flags; /* owned */
    cudaStream_t aside;     /* of an abort: writes words while the lane waits */
    uint32_t turn;
    bool has_batches; /* the driver takes copies together, and beside computation */
};

static size_t place_of(int which, int from)
{
    return (size_t)(which * HDI_DIRECT_RANKS + from) * WORD_STRIDE;
}

/* The words' new value is read at once, as it lies in pageable memory. */
static hd_status write_word(char *at, uint32_t value, cudaStream_t stream)
{
    return hdi_nccl_cuda_status(
        cudaMemcpyAsync(at, &value, sizeof value, cudaMemcpyHostToDevice, stream),
        "cudaMemcpyAsync");
}

/* To all peers, and then from all of them. */
static hd_status meet(const hdi_nccl_copies *it, int which)
{
    const hdi_nccl_window *flags = it->flags;
    const cudaStream_t stream = it->lane->stream;
    for (int r = 0; r < flags->ranks; r++)
        if (r != flags->rank)
            HD_RETURN_IF_ERROR(
                write_word(flags->memory[r] + place_of(which, flags->rank), it->turn, stream));
    for (int r = 0; r < flags->ranks; r++)
        if (r != flags->rank)
            HD_RETURN_IF_ERROR(hdi_nccl_await_word(
                stream, flags->memory[flags->rank] + place_of(which, r), it->turn));
    return HD_OK;
}

static hd_status copy(const hdi_nccl_copies *it, void **to, const void **from, size_t *bytes,
                      size_t count, cudaStream_t stream)
{
#if CUDART_VERSION >= 13000
    if (it->has_batches && count) {
        struct cudaMemcpyAttributes attributes = {.srcAccessOrder = cudaMemcpySrcAccessOrderStream,
                                                  .flags = cudaMemcpyFlagPreferOverlapWithCompute};
        size_t first = 0;
        return hdi_nccl_cuda_status(
            cudaMemcpyBatchAsync(to, from, bytes, count, &attributes, &first, 1, stream),
            "cudaMemcpyBatchAsync");
    }
#endif
    for (size_t i = 0; i < count; i++)
        HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
            cudaMemcpyAsync(to[i], from[i], bytes[i], cudaMemcpyDeviceToDevice, stream),
            "cudaMemcpyAsync"));
    return HD_OK;
}

static hd_status copy_all(const hdi_nccl_copies *it, const hdi_nccl_blocks *blocks)
{
    void *to[HDI_DIRECT_RANKS];
    const void *from[HDI_DIRECT_RANKS];
    size_t bytes[HDI_DIRECT_RANKS], count = 0;
    const int ranks = it->flags->ranks, rank = it->flags->rank;
    for (int i = 0; i < ranks; i++) {
        const int peer = (rank + i) % ranks; /* no two ranks begin with the same */
        if (!blocks->bytes[peer] || blocks->to[peer] == blocks->from[peer]) continue;
        to[count] = blocks->to[peer];
        from[count] = blocks->from[peer];
        bytes[count++] = blocks->bytes[peer];
    }
    return copy(it, to, from, bytes, count, it->lane->stream);
}

hd_status hdi_nccl_copy_blocks(hdi_nccl_copies *it, const hdi_nccl_blocks *blocks)
{
    it->turn++;
    HD_RETURN_IF_ERROR(meet(it, READY));
    HD_RETURN_IF_ERROR(copy_all(it, blocks));
    return meet(it, DONE);
}

/* The words of a link are those of its channel; a channel has one link in each direction between two ranks. */
static int word_of(word which, const hdi_nccl_lane *link)
{
    return (int)which + link->channel * CHANNEL_WORDS;
}

hd_status hdi_nccl_copy_message(const hdi_nccl_copies *it, hdi_nccl_lane *link, const void *from,
                                void *to, size_t bytes)
{
    const hdi_nccl_window *flags = it->flags;
    link->turn++;
    HD_RETURN_IF_ERROR(hdi_nccl_await_word(
        link->stream, flags->memory[flags->rank] + place_of(word_of(LINK_READY, link), link->to),
        link->turn));
    HD_RETURN_IF_ERROR(copy(it, &to, &from, &bytes, 1, link->stream));
    return write_word(flags->memory[link->to] + place_of(word_of(LINK_DONE, link), link->from),
                      link->turn, link->stream);
}

hd_status hdi_nccl_await_message(const hdi_nccl_copies *it, hdi_nccl_lane *link)
{
    const hdi_nccl_window *flags = it->flags;
    link->turn++;
    HD_RETURN_IF_ERROR(
        write_word(flags->memory[link->from] + place_of(word_of(LINK_READY, link), link->to),
                   link->turn, link->stream));
    return hdi_nccl_await_word(
        link->stream, flags->memory[flags->rank] + place_of(word_of(LINK_DONE, link), link->from),
        link->turn);
}

hdi_nccl_lane *hdi_nccl_copies_lane(const hdi_nccl_copies *it)
{
    return it->lane;
}

static void write_past(const hdi_nccl_copies *it)
{
    const hdi_nccl_window *flags = it->flags;
    for (int r = 0; r < flags->ranks; r++)
        for (int which = READY; which < WORDS; which++)
            if (r != flags->rank)
                (void)write_word(flags->memory[flags->rank] + place_of(which, r),
                                 it->turn + (UINT32_C(1) << 30), it->aside);
}

void hdi_nccl_release_copies(const hdi_nccl_copies *it)
{
    if (it && it->flags) write_past(it);
}

/* Of all streams that wait for words. */
static cudaError_t query(const hdi_nccl_copies *it)
{
    for (int i = 0; i < it->state->lane_count; i++) {
        const hdi_nccl_lane *lane = &it->state->lanes[i];
        if (!lane->stream || (lane != it->lane && !lane->turn)) continue;
        const cudaError_t error = cudaStreamQuery(lane->stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

/* A peer that comes late may write its own word over that of the abort. */
bool hdi_nccl_drain_copies(const hdi_nccl_copies *it)
{
    const double end = hdi_clock_seconds() + DRAIN_SECONDS;
    for (int64_t turn = 0; hdi_clock_seconds() < end; turn++) {
        const cudaError_t error = query(it);
        if (error != cudaErrorNotReady) return error == cudaSuccess;
        (void)cudaGetLastError();
        if (turn % 100 == 99) write_past(it);
        hdi_comm_back_off(turn, 10);
    }
    return false;
}

static char trial_value(int from, int to)
{
    return (char)(1 + from * HDI_DIRECT_RANKS + to);
}

static hd_status prepare(const hdi_nccl_state *state, hdi_nccl_copies *it)
{
    int least, greatest, version = 0;
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                                            "cudaDeviceGetStreamPriorityRange"));
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
        cudaStreamCreateWithPriority(&it->lane->stream, cudaStreamNonBlocking, greatest),
        "cudaStreamCreateWithPriority"));
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
        cudaStreamCreateWithPriority(&it->aside, cudaStreamNonBlocking, greatest),
        "cudaStreamCreateWithPriority"));
    HD_RETURN_IF_ERROR(
        hdi_nccl_cuda_status(cudaDriverGetVersion(&version), "cudaDriverGetVersion"));
    it->has_batches = version >= 12080;
    char values[HDI_DIRECT_RANKS * TRIAL_BLOCK];
    char *own = it->flags->memory[it->flags->rank];
    for (int r = 0; r < HDI_DIRECT_RANKS; r++)
        memset(values + (ptrdiff_t)r * TRIAL_BLOCK, trial_value(state->comm->rank, r), TRIAL_BLOCK);
    return hdi_nccl_cuda_status(
        cudaMemcpy(own + TRIAL_AT, values, sizeof values, cudaMemcpyHostToDevice), "cudaMemcpy");
}

/* The first exchange of all: what each pair of devices can do is seen here. */
static hd_status try_exchange(const hdi_nccl_state *state, hdi_nccl_copies *it)
{
    const hd_comm *comm = state->comm;
    const hdi_nccl_window *flags = it->flags;
    const size_t come_at = TRIAL_AT + HDI_DIRECT_RANKS * TRIAL_BLOCK;
    char *own = flags->memory[comm->rank], values[HDI_DIRECT_RANKS * TRIAL_BLOCK];
    hdi_nccl_blocks blocks = {0};
    for (int r = 0; r < comm->size; r++) {
        blocks.from[r] = own + TRIAL_AT + (size_t)r * TRIAL_BLOCK;
        blocks.to[r] = flags->memory[r] + come_at + (size_t)comm->rank * TRIAL_BLOCK;
        blocks.bytes[r] = TRIAL_BLOCK;
    }
    const hd_status posted = hdi_nccl_copy_blocks(it, &blocks);
    HD_RETURN_IF_ERROR(hd_comm_agree(state->host, posted));
    for (const double end = hdi_clock_seconds() + DRAIN_SECONDS;;) {
        const cudaError_t error = cudaStreamQuery(it->lane->stream);
        if (error == cudaSuccess) break;
        if (error != cudaErrorNotReady || hdi_clock_seconds() > end)
            return hdi_nccl_cuda_status(error, "a trial of copies");
        (void)cudaGetLastError();
    }
    HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
        cudaMemcpy(values, own + come_at, sizeof values, cudaMemcpyDeviceToHost), "cudaMemcpy"));
    for (int r = 0; r < comm->size; r++)
        for (int i = 0; i < TRIAL_BLOCK; i++)
            if (values[r * TRIAL_BLOCK + i] != trial_value(r, comm->rank))
                return hdi_error(HD_ERROR_DEVICE,
                                 "nccl: copies of rank %d do not arrive: byte %d is %d, want %d", r,
                                 i, values[r * TRIAL_BLOCK + i], trial_value(r, comm->rank));
    return HD_OK;
}

static hd_status open_copies(hdi_nccl_state *state, void *flags, hdi_nccl_copies *it)
{
    hd_comm *host = state->host;
    HD_RETURN_IF_ERROR(hdi_nccl_window_open(host, state->device->ordinal, flags, &it->flags));
    HD_RETURN_IF_ERROR(hd_comm_agree(host, prepare(state, it)));
    return hd_comm_agree(host, try_exchange(state, it));
}

void hdi_nccl_open_copies(hdi_nccl_state *state, void *flags)
{
    hdi_nccl_copies *it = hdi_alloc(sizeof *it);
    hd_status status = it && flags ? HD_OK : hdi_error(HD_ERROR_MEMORY, "nccl: out of memory");
    status = hd_comm_agree(state->host, status);
    if (it) {
        it->state = state;
        it->lane = &state->lanes[state->lane_count++];
        *it->lane = (hdi_nccl_lane){.channel = -1};
    }
    if (status == HD_OK) status = open_copies(state, flags, it);
    state->copies = it;
    if (status == HD_OK) return;
    hdi_log(HD_LOG_DEBUG, "comm '%s': no exchange by copy engines: %s", state->comm->name,
            hd_last_error());
    hdi_nccl_close_copies(state);
    (void)cudaGetLastError();
}

void hdi_nccl_close_copies(hdi_nccl_state *state)
{
    hdi_nccl_copies *it = state->copies;
    state->copies = NULL;
    if (!it) return;
    if (it->flags && query(it) == cudaErrorNotReady) {
        write_past(it);
        (void)hdi_nccl_drain_copies(it);
    }
    if (it->aside) (void)cudaStreamDestroy(it->aside);
    hdi_nccl_window_close(it->flags);
    hdi_free(it);
}

hd_status hdi_nccl_open_window(hd_comm *comm, void *memory, bool fits, void **out)
{
    hdi_nccl_state *state = hdi_nccl_state_of(comm);
    hdi_nccl_window *window = NULL;
    *out = NULL;
    if (!state->copies) return HD_OK;
    hd_status status =
        fits ? HD_OK : hdi_error(HD_ERROR_UNSUPPORTED, "the arena is not one piece of memory");
    status = hd_comm_agree(state->host, status);
    if (status == HD_OK)
        status = hdi_nccl_window_open(state->host, state->device->ordinal, memory, &window);
    if (status != HD_OK)
        hdi_log(HD_LOG_DEBUG, "comm '%s': no exchange by copy engines: %s", comm->name,
                hd_last_error());
    *out = window;
    return HD_OK;
}

void hdi_nccl_close_window(hd_comm *comm, void *window)
{
    const hdi_nccl_copies *it = hdi_nccl_state_of(comm)->copies;
    if (it) (void)hdi_nccl_drain_copies(it);
    hdi_nccl_window_close(window);
}
