/* Gates, where ranks share a GPU: it runs one process at a time, and a kernel of NCCL that waits for a peer uses
 * up the time in which that peer would come. So an operation begins when all that take part in it have come to
 * it: until then its stream waits for words in memory of the host, which takes no time from anybody. Each rank
 * writes, for each of its lanes, how many operations it has come to; words are compared as "at least". */
#include "comm/nccl/nccl.h"
#include "comm/nccl/pinned.h"
#include "comm/nccl/window.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"

enum { LINE = 128, TRIAL_SECONDS = 5, CHANNELS = 2 };

struct hdi_nccl_gate {
    hdi_nccl_pinned words;
};

/* A link is numbered by its channel and where it begins, as both its ends know it. */
static size_t place_of(const hdi_nccl_state *state, const hdi_nccl_lane *lane, int rank)
{
    const int ranks = state->comm->size;
    const ptrdiff_t number = lane->channel < 0
                                 ? lane - state->lanes
                                 : HDI_NCCL_FIRST_LINK + lane->channel * ranks + lane->from;
    return (size_t)(number * ranks + rank) * LINE;
}

static bool is_peer(const hdi_nccl_state *state, const hdi_nccl_lane *lane, int rank)
{
    return rank != state->comm->rank &&
           (lane->channel < 0 || rank == lane->from || rank == lane->to);
}

hd_status hdi_nccl_meet(const hdi_nccl_state *state, hdi_nccl_lane *lane)
{
    const int rank = state->comm->rank;
    char *words = state->gate->words.device;
    hdi_nccl_word awaited[HDI_DIRECT_RANKS];
    int count = 0;
    lane->met++;
    const hdi_nccl_word own = {words + place_of(state, lane, rank), lane->met};
    for (int r = 0; r < state->comm->size; r++)
        if (is_peer(state, lane, r))
            awaited[count++] = (hdi_nccl_word){words + place_of(state, lane, r), lane->met};
    HD_RETURN_IF_ERROR(hdi_nccl_write_words(lane->stream, &own, 1));
    return hdi_nccl_await_words(lane->stream, awaited, count);
}

void hdi_nccl_release_gate(const hdi_nccl_state *state)
{
    if (!state->gate) return;
    for (int i = 0; i < state->lane_count; i++) {
        const hdi_nccl_lane *lane = &state->lanes[i];
        for (int r = 0; r < state->comm->size && lane->met; r++)
            if (is_peer(state, lane, r))
                hdi_nccl_pinned_store(&state->gate->words, place_of(state, lane, r),
                                      hdi_nccl_past(lane->met));
    }
}

static hd_status meet_everywhere(hdi_nccl_state *state)
{
    for (int i = 0; i < state->lane_count; i++)
        if (state->lanes[i].nccl) HD_RETURN_IF_ERROR(hdi_nccl_meet(state, &state->lanes[i]));
    return HD_OK;
}

static hd_status await_all(const hdi_nccl_state *state)
{
    const double end = hdi_clock_seconds() + TRIAL_SECONDS;
    for (int i = 0; i < state->lane_count; i++)
        for (int64_t turn = 0; state->lanes[i].nccl; turn++) {
            const cudaError_t error = cudaStreamQuery(state->lanes[i].stream);
            if (error == cudaSuccess) break;
            if (error != cudaErrorNotReady || hdi_clock_seconds() > end)
                return hdi_nccl_cuda_status(error, "a trial of gates");
            (void)cudaGetLastError();
            hdi_comm_back_off(turn, 100);
        }
    return HD_OK;
}

/* The first meeting says whether the driver takes waits for words at all. */
static hd_status open_gate(hdi_nccl_state *state)
{
    hd_comm *host = state->host;
    hd_status status = state->gate ? HD_OK : hdi_error(HD_ERROR_MEMORY, "nccl: out of host memory");
    if (host->size > HDI_DIRECT_RANKS)
        status = hdi_error(HD_ERROR_UNSUPPORTED, "nccl: %d ranks, want at most %d at a gate",
                           host->size, (int)HDI_DIRECT_RANKS);
    HD_RETURN_IF_ERROR(hd_comm_agree(host, status));
    const size_t places = (size_t)((HDI_NCCL_FIRST_LINK + CHANNELS * host->size) * host->size);
    HD_RETURN_IF_ERROR(hdi_nccl_pinned_open(host, places * LINE, 0, &state->gate->words));
    HD_RETURN_IF_ERROR(hd_comm_agree(host, meet_everywhere(state)));
    return hd_comm_agree(host, await_all(state));
}

void hdi_nccl_open_gate(hdi_nccl_state *state)
{
    state->gate = hdi_alloc(sizeof *state->gate);
    if (open_gate(state) == HD_OK) return;
    hdi_log(HD_LOG_DEBUG, "comm '%s': operations begin without meeting: %s", state->comm->name,
            hd_last_error());
    hdi_nccl_release_gate(state);
    (void)await_all(state);
    hdi_nccl_close_gate(state);
    (void)cudaGetLastError();
}

void hdi_nccl_close_gate(hdi_nccl_state *state)
{
    hdi_nccl_gate *it = state->gate;
    state->gate = NULL;
    if (it) hdi_nccl_pinned_close(&it->words);
    hdi_free(it);
}
