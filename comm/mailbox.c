/* Places of boxes and pieces of messages. */
#include "comm/mailbox.h"

enum { CHANNELS = 2 };

static size_t round_up(size_t bytes)
{
    return (bytes + HDI_MAIL_BLOCK - 1) / HDI_MAIL_BLOCK * HDI_MAIL_BLOCK;
}

static size_t slot_of(size_t all, int boxes)
{
    return all / (size_t)(boxes * HDI_MAIL_SLOTS) / HDI_MAIL_BLOCK * HDI_MAIL_BLOCK;
}

hdi_mail_layout hdi_mail_lay(int ranks, bool has_links)
{
    hdi_mail_layout it = {.ranks = ranks,
                          .has_links = has_links,
                          .slot_bytes = slot_of(HDI_MAIL_EXCHANGES, ranks - 1),
                          .link_slot_bytes = has_links ? slot_of(HDI_MAIL_LINK, 1) : 0};
    const size_t words = (size_t)((1 + CHANNELS) * ranks * ranks * HDI_MAIL_WORDS);
    it.word_bytes = round_up(words * HDI_MAIL_LINE);
    it.outbox_bytes =
        HDI_MAIL_SLOTS * ((size_t)(ranks - 1) * it.slot_bytes + CHANNELS * it.link_slot_bytes);
    it.bytes = it.word_bytes + (size_t)ranks * it.outbox_bytes;
    return it;
}

size_t hdi_mail_outbox_at(const hdi_mail_layout *it, int rank)
{
    return it->word_bytes + (size_t)rank * it->outbox_bytes;
}

size_t hdi_mail_slots_at(const hdi_mail_layout *it, hdi_mail_box box)
{
    const size_t outbox = hdi_mail_outbox_at(it, box.from);
    const int place = box.to < box.from ? box.to : box.to - 1;
    if (box.channel == HDI_MAIL_NO_CHANNEL)
        return outbox + (size_t)place * HDI_MAIL_SLOTS * it->slot_bytes;
    return outbox + HDI_MAIL_SLOTS * ((size_t)(it->ranks - 1) * it->slot_bytes +
                                      (size_t)box.channel * it->link_slot_bytes);
}

size_t hdi_mail_word_at(const hdi_mail_layout *it, hdi_mail_box box, hdi_mail_word which)
{
    const int number = ((box.channel + 1) * it->ranks + box.from) * it->ranks + box.to;
    return (size_t)(number * HDI_MAIL_WORDS + (int)which) * HDI_MAIL_LINE;
}

static size_t piece_bytes(size_t bytes, size_t slot_bytes)
{
    size_t piece = round_up(bytes / HDI_MAIL_PIECES);
    if (piece < HDI_MAIL_LEAST_PIECE) piece = HDI_MAIL_LEAST_PIECE;
    return piece < slot_bytes ? piece : slot_bytes;
}

int64_t hdi_mail_pieces(size_t bytes, size_t slot_bytes)
{
    const size_t piece = piece_bytes(bytes, slot_bytes);
    return (int64_t)((bytes + piece - 1) / piece);
}

hdi_mail_piece hdi_mail_piece_of(size_t bytes, size_t slot_bytes, uint32_t before, int64_t index)
{
    const size_t piece = piece_bytes(bytes, slot_bytes), at = (size_t)index * piece;
    const uint32_t earlier = before + (uint32_t)index;
    return (hdi_mail_piece){.slot = (int)(earlier % HDI_MAIL_SLOTS),
                            .turn = earlier + 1,
                            .at = at,
                            .bytes = bytes - at < piece ? bytes - at : piece};
}

int64_t hdi_mail_rounds(const hdi_mail_side *side)
{
    int64_t most = 0;
    for (int r = 0; r < side->ranks; r++) {
        const int64_t pieces = hdi_mail_pieces(side->bytes[r], side->slot_bytes);
        if (r != side->rank && pieces > most) most = pieces;
    }
    return most;
}

/* No two ranks begin with the same peer. */
int hdi_mail_round(const hdi_mail_side *side, int64_t round, hdi_mail_piece out[HDI_DIRECT_RANKS])
{
    int count = 0;
    for (int i = 1; i < side->ranks; i++) {
        const int peer = (side->rank + (side->leaves ? i : side->ranks - i)) % side->ranks;
        const size_t bytes = side->bytes[peer];
        if (round >= hdi_mail_pieces(bytes, side->slot_bytes)) continue;
        out[count] = hdi_mail_piece_of(bytes, side->slot_bytes, side->before[peer], round);
        out[count++].peer = peer;
    }
    return count;
}
