/* Direct exchanges straight into peers' memory, with words there that ranks write for each other. Of the turn-th
 * exchange a rank tells its peers that it is ready to receive, copies to each that is, tells it so, and waits
 * until all have told it. A message of a link does the same between two ranks, on the link's stream. */
#include "comm/nccl/copies.h"
#include "core/error.h"

/* Of the flags of each rank: words that its peers write, each in a line of its own. */
enum { WORD_STRIDE = 128 };
typedef enum word { READY, DONE, LINK_READY, LINK_DONE, CHANNEL_WORDS = 2, WORDS = 6 } word;

_Static_assert(WORDS *HDI_DIRECT_RANKS *WORD_STRIDE <= HDI_NCCL_TRIAL_AT,
               "words end before a trial's bytes");

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

static hd_status copy_all(const hdi_nccl_copies *it, const hdi_way *way,
                          const hdi_nccl_parts *parts)
{
    void *to[HDI_DIRECT_RANKS];
    const void *from[HDI_DIRECT_RANKS];
    size_t bytes[HDI_DIRECT_RANKS], count = 0;
    const hdi_nccl_window *window = way->window;
    const int ranks = window->ranks, rank = window->rank;
    for (int i = 0; i < ranks; i++) {
        const int peer = (rank + i) % ranks; /* no two ranks begin with the same */
        to[count] = peer == rank ? parts->come_to[rank] : window->memory[peer] + way->to[peer];
        from[count] = parts->from[peer];
        bytes[count] = parts->go[peer];
        if (bytes[count] && to[count] != from[count]) count++;
    }
    return hdi_nccl_copy(it, to, from, bytes, count, it->lane->stream);
}

static hd_status exchange(hdi_nccl_copies *it, const hdi_way *way, cudaEvent_t ready,
                          const hdi_nccl_parts *parts)
{
    (void)ready; /* the lane waits for it */
    it->turn++;
    HD_RETURN_IF_ERROR(meet(it, READY));
    HD_RETURN_IF_ERROR(copy_all(it, way, parts));
    return meet(it, DONE);
}

/* The words of a link are those of its channel; a channel has one link in each direction between two ranks. */
static int word_of(word which, const hdi_nccl_lane *link)
{
    return (int)which + link->channel * CHANNEL_WORDS;
}

static hd_status send_message(const hdi_nccl_copies *it, const hdi_way *way, hdi_nccl_lane *link,
                              const void *data, size_t bytes)
{
    const hdi_nccl_window *flags = it->flags, *window = way->window;
    void *to = window->memory[link->to] + way->to[link->to];
    link->turn++;
    HD_RETURN_IF_ERROR(hdi_nccl_await_word(
        link->stream, flags->memory[flags->rank] + place_of(word_of(LINK_READY, link), link->to),
        link->turn));
    HD_RETURN_IF_ERROR(hdi_nccl_copy(it, &to, &data, &bytes, 1, link->stream));
    return write_word(flags->memory[link->to] + place_of(word_of(LINK_DONE, link), link->from),
                      link->turn, link->stream);
}

static hd_status receive_message(const hdi_nccl_copies *it, hdi_nccl_lane *link, void *data,
                                 size_t bytes)
{
    (void)data, (void)bytes; /* the sender knows them */
    const hdi_nccl_window *flags = it->flags;
    link->turn++;
    HD_RETURN_IF_ERROR(
        write_word(flags->memory[link->from] + place_of(word_of(LINK_READY, link), link->to),
                   link->turn, link->stream));
    return hdi_nccl_await_word(
        link->stream, flags->memory[flags->rank] + place_of(word_of(LINK_DONE, link), link->from),
        link->turn);
}

static void write_past(const hdi_nccl_copies *it)
{
    const hdi_nccl_window *flags = it->flags;
    for (int r = 0; r < flags->ranks; r++)
        for (int which = READY; which < WORDS; which++)
            if (r != flags->rank)
                (void)write_word(flags->memory[flags->rank] + place_of(which, r),
                                 hdi_nccl_past(it->turn), it->beside);
}

static hd_status open_flags(hdi_nccl_copies *it)
{
    return hdi_nccl_window_open(it->state->host, it->state->device->ordinal, it->memory,
                                &it->flags);
}

static void close_flags(hdi_nccl_copies *it)
{
    hdi_nccl_window_close(it->flags);
    it->flags = NULL;
}

const hdi_nccl_carrier hdi_nccl_peers = {
    .open = open_flags,
    .close = close_flags,
    .exchange = exchange,
    .send = send_message,
    .receive = receive_message,
    .write_past = write_past,
};
