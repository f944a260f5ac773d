/* Direct exchanges through mailboxes (comm/mailbox.h), for GPUs that do not reach each other's memory: copy engines put pieces into pinned memory of the host that all ranks map, and take them out
 * of it, on a stream for each direction. Words lie there, too. */
#include "comm/nccl/copies.h"

#include "comm/mailbox.h"
#include "comm/nccl/pinned.h"
#include "core/error.h"
#include "core/memory.h"

struct hdi_nccl_mail {
    hdi_mail_layout layout;
    hdi_nccl_pinned pinned;
    cudaEvent_t given; /* all that an exchange takes from this rank has been put there */
    uint32_t sent[HDI_DIRECT_RANKS], taken[HDI_DIRECT_RANKS]; /* pieces of exchanges */
};

static hdi_mail_box box_of(const hdi_nccl_copies *it, int peer, bool leaves)
{
    const int rank = it->state->comm->rank;
    return leaves ? (hdi_mail_box){rank, peer, HDI_MAIL_NO_CHANNEL}
                  : (hdi_mail_box){peer, rank, HDI_MAIL_NO_CHANNEL};
}

static hdi_mail_box box_of_link(const hdi_nccl_lane *link)
{
    return (hdi_mail_box){link->from, link->to, link->channel};
}

static hdi_nccl_word word_of(const hdi_nccl_mail *mail, hdi_mail_box box, hdi_mail_word which,
                             uint32_t value)
{
    return (hdi_nccl_word){mail->pinned.device + hdi_mail_word_at(&mail->layout, box, which),
                           value};
}

static char *slot_of(const hdi_nccl_mail *mail, hdi_mail_box box, int slot)
{
    return (char *)mail->pinned.shared.memory + hdi_mail_slots_at(&mail->layout, box) +
           (size_t)slot * hdi_mail_slot_bytes(&mail->layout, box.channel);
}

/* A piece on its way between the device and its slot. */
typedef struct carried {
    hdi_mail_box box;
    hdi_mail_piece piece;
    char *at; /* of its message, on the device */
} carried;

static hd_status carry(const hdi_nccl_mail *mail, const carried *pieces, int count, bool leaves,
                       cudaStream_t stream)
{
    hdi_nccl_word before[HDI_DIRECT_RANKS], behind[HDI_DIRECT_RANKS];
    const hdi_mail_word awaited = leaves ? HDI_MAIL_EMPTIED : HDI_MAIL_FILLED;
    const hdi_mail_word told = leaves ? HDI_MAIL_FILLED : HDI_MAIL_EMPTIED;
    for (int i = 0; i < count; i++) {
        const hdi_mail_piece *piece = &pieces[i].piece;
        before[i] = word_of(mail, pieces[i].box, awaited, hdi_mail_awaits(piece, leaves));
        behind[i] = word_of(mail, pieces[i].box, told, piece->turn);
    }
    HD_RETURN_IF_ERROR(hdi_nccl_await_words(stream, before, count));
    for (int i = 0; i < count; i++) {
        char *slot = slot_of(mail, pieces[i].box, pieces[i].piece.slot);
        HD_RETURN_IF_ERROR(hdi_nccl_cuda_status(
            cudaMemcpyAsync(leaves ? slot : pieces[i].at, leaves ? pieces[i].at : slot,
                            pieces[i].piece.bytes,
                            leaves ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice, stream),
            "cudaMemcpyAsync"));
    }
    return hdi_nccl_write_words(stream, behind, count);
}

static hd_status carry_round(const hdi_nccl_copies *it, const hdi_mail_side *side, int64_t round,
                             const hdi_nccl_parts *parts)
{
    hdi_mail_piece pieces[HDI_DIRECT_RANKS];
    carried all[HDI_DIRECT_RANKS];
    const int count = hdi_mail_round(side, round, pieces);
    for (int i = 0; i < count; i++) {
        const int peer = pieces[i].peer;
        char *message = side->leaves ? (char *)(uintptr_t)parts->from[peer] : parts->come_to[peer];
        all[i] = (carried){box_of(it, peer, side->leaves), pieces[i], message + pieces[i].at};
    }
    return carry(it->mail, all, count, side->leaves, side->leaves ? it->beside : it->lane->stream);
}

static hd_status copy_own(const hdi_nccl_copies *it, const hdi_nccl_parts *parts)
{
    const int rank = it->state->comm->rank;
    void *to = parts->come_to[rank];
    const void *from = parts->from[rank];
    size_t bytes = parts->go[rank];
    return bytes && to != from ? hdi_nccl_copy(it, &to, &from, &bytes, 1, it->beside) : HD_OK;
}

/* Round after round, so that a driver that puts both streams behind each other still comes to an end. What leaves
 * waits for its exchange to be ready only, and so may go before what the one before still waits for. */
static hd_status exchange(hdi_nccl_copies *it, const hdi_way *way, cudaEvent_t ready,
                          const hdi_nccl_parts *parts)
{
    (void)way;
    hdi_nccl_mail *mail = it->mail;
    const hd_comm *comm = it->state->comm;
    hdi_mail_side out = {.rank = comm->rank,
                         .ranks = comm->size,
                         .leaves = true,
                         .slot_bytes = mail->layout.slot_bytes,
                         .bytes = parts->go,
                         .before = mail->sent};
    hdi_mail_side in = out;
    in.leaves = false;
    in.bytes = parts->come;
    in.before = mail->taken;
    const int64_t leave = hdi_mail_rounds(&out), come = hdi_mail_rounds(&in);
    HD_RETURN_IF_ERROR(
        hdi_nccl_cuda_status(cudaStreamWaitEvent(it->beside, ready, 0), "cudaStreamWaitEvent"));
    for (int64_t i = 0; i < leave || i < come; i++) {
        HD_RETURN_IF_ERROR(carry_round(it, &out, i, parts));
        HD_RETURN_IF_ERROR(carry_round(it, &in, i, parts));
    }
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank) continue;
        mail->sent[r] += (uint32_t)hdi_mail_pieces(parts->go[r], out.slot_bytes);
        mail->taken[r] += (uint32_t)hdi_mail_pieces(parts->come[r], in.slot_bytes);
    }
    HD_RETURN_IF_ERROR(copy_own(it, parts));
    HD_RETURN_IF_ERROR(
        hdi_nccl_cuda_status(cudaEventRecord(mail->given, it->beside), "cudaEventRecord"));
    return hdi_nccl_cuda_status(cudaStreamWaitEvent(it->lane->stream, mail->given, 0),
                                "cudaStreamWaitEvent");
}

static hd_status carry_message(const hdi_nccl_copies *it, hdi_nccl_lane *link, char *data,
                               size_t bytes, bool leaves)
{
    const size_t slot_bytes = it->mail->layout.link_slot_bytes;
    const int64_t pieces = hdi_mail_pieces(bytes, slot_bytes);
    for (int64_t i = 0; i < pieces; i++) {
        const hdi_mail_piece piece = hdi_mail_piece_of(bytes, slot_bytes, link->turn, i);
        const carried one = {box_of_link(link), piece, data + piece.at};
        HD_RETURN_IF_ERROR(carry(it->mail, &one, 1, leaves, link->stream));
    }
    link->turn += (uint32_t)pieces;
    return HD_OK;
}

static hd_status send_message(const hdi_nccl_copies *it, const hdi_way *way, hdi_nccl_lane *link,
                              const void *data, size_t bytes)
{
    (void)way;
    return carry_message(it, link, (char *)(uintptr_t)data, bytes, true);
}

static hd_status receive_message(const hdi_nccl_copies *it, hdi_nccl_lane *link, void *data,
                                 size_t bytes)
{
    return carry_message(it, link, data, bytes, false);
}

static void store(const hdi_nccl_mail *mail, hdi_mail_box box, bool leaves, uint32_t turn)
{
    const hdi_mail_word awaited = leaves ? HDI_MAIL_EMPTIED : HDI_MAIL_FILLED;
    hdi_nccl_pinned_store(&mail->pinned, hdi_mail_word_at(&mail->layout, box, awaited),
                          hdi_nccl_past(turn));
}

static void write_past(const hdi_nccl_copies *it)
{
    const hd_comm *comm = it->state->comm;
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank) continue;
        store(it->mail, box_of(it, r, true), true, it->mail->sent[r]);
        store(it->mail, box_of(it, r, false), false, it->mail->taken[r]);
    }
    for (int i = HDI_NCCL_FIRST_LINK; i < it->state->lane_count; i++) {
        const hdi_nccl_lane *lane = &it->state->lanes[i];
        if (lane->channel >= 0)
            store(it->mail, box_of_link(lane), lane->from == comm->rank, lane->turn);
    }
}

static hd_status open_mail(hdi_nccl_copies *it)
{
    hd_comm *host = it->state->host;
    hdi_nccl_mail *mail = hdi_alloc(sizeof *mail);
    it->mail = mail;
    hd_status status = mail ? HD_OK : hdi_error(HD_ERROR_MEMORY, "nccl: out of host memory");
    if (host->size > HDI_DIRECT_RANKS)
        status = hdi_error(HD_ERROR_UNSUPPORTED, "nccl: %d ranks, want at most %d with mailboxes",
                           host->size, (int)HDI_DIRECT_RANKS);
    HD_RETURN_IF_ERROR(hd_comm_agree(host, status));
    bool has_links = false;
    for (int i = 0; i < it->state->lane_count; i++)
        has_links = has_links || it->state->lanes[i].channel >= 0;
    mail->layout = hdi_mail_lay(host->size, has_links);
    it->host_bytes = mail->layout.bytes;
    HD_RETURN_IF_ERROR(hdi_nccl_pinned_open(host, mail->layout.word_bytes,
                                            mail->layout.outbox_bytes, &mail->pinned));
    status = hdi_nccl_cuda_status(cudaEventCreateWithFlags(&mail->given, cudaEventDisableTiming),
                                  "cudaEventCreate");
    return hd_comm_agree(host, status);
}

static void close_mail(hdi_nccl_copies *it)
{
    hdi_nccl_mail *mail = it->mail;
    it->mail = NULL;
    if (!mail) return;
    if (mail->given) (void)cudaEventDestroy(mail->given);
    hdi_nccl_pinned_close(&mail->pinned);
    hdi_free(mail);
}

const hdi_nccl_carrier hdi_nccl_mails = {
    .through_host = true,
    .open = open_mail,
    .close = close_mail,
    .exchange = exchange,
    .send = send_message,
    .receive = receive_message,
    .write_past = write_past,
};
