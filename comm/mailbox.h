/* Mailboxes: how messages pass through memory that the ranks of a host share. For each two ranks and direction
 * there is a box of some slots. A message is cut into pieces: each waits until its slot has been emptied, is
 * put there, and then the box's word says so; the receiver takes it out, and another word says that. Here is
 * which piece goes where and when; the transport moves it. */
#ifndef HDI_COMM_MAILBOX_H
#define HDI_COMM_MAILBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "comm/direct.h"

enum {
    HDI_MAIL_SLOTS = 4,               /* of a box */
    HDI_MAIL_EXCHANGES = 32 << 20,    /* bytes of all slots into which a rank's exchanges go */
    HDI_MAIL_LINK = 8 << 20,          /* and of those of each of its links */
    HDI_MAIL_LEAST_PIECE = 256 << 10, /* smaller ones take longer to announce than to copy */
    HDI_MAIL_PIECES = 16,    /* of a message, more or less: the first and the last travel alone */
    HDI_MAIL_BLOCK = 4096,   /* what pieces and places are multiples of */
    HDI_MAIL_LINE = 128,     /* bytes between words */
    HDI_MAIL_NO_CHANNEL = -1 /* of boxes of exchanges; others are of links */
};

_Static_assert((HDI_MAIL_SLOTS & (HDI_MAIL_SLOTS - 1)) == 0, "slots go on as turns pass 2^32");

typedef struct hdi_mail_box {
    int from, to, channel;
} hdi_mail_box;

/* Of a box: the turn of the last piece that was put there, and taken out. */
typedef enum hdi_mail_word { HDI_MAIL_FILLED, HDI_MAIL_EMPTIED, HDI_MAIL_WORDS } hdi_mail_word;

/* Where things are in the shared memory: the words, then what each rank sends through, whole blocks. */
typedef struct hdi_mail_layout {
    int ranks;
    bool has_links;
    size_t slot_bytes, link_slot_bytes;
    size_t word_bytes, outbox_bytes, bytes;
} hdi_mail_layout;

hdi_mail_layout hdi_mail_lay(int ranks, bool has_links);
size_t hdi_mail_outbox_at(const hdi_mail_layout *it, int rank);
size_t hdi_mail_slots_at(const hdi_mail_layout *it, hdi_mail_box box);
size_t hdi_mail_word_at(const hdi_mail_layout *it, hdi_mail_box box, hdi_mail_word which);
static inline size_t hdi_mail_slot_bytes(const hdi_mail_layout *it, int channel)
{
    return channel == HDI_MAIL_NO_CHANNEL ? it->slot_bytes : it->link_slot_bytes;
}

/* A part of a message. It is put there when the emptied word has come to what it awaits, and taken out when the
 * filled word has come to its turn; words are compared as "at least" round 2^32. */
typedef struct hdi_mail_piece {
    int peer;
    int slot;
    uint32_t turn;    /* in its box, the first is 1 */
    size_t at, bytes; /* of the message */
} hdi_mail_piece;

static inline uint32_t hdi_mail_awaits(const hdi_mail_piece *piece, bool leaves)
{
    return leaves ? piece->turn - HDI_MAIL_SLOTS : piece->turn;
}

/* How many pieces a message makes, and one of them, when `before` have gone through its box. */
int64_t hdi_mail_pieces(size_t bytes, size_t slot_bytes);
hdi_mail_piece hdi_mail_piece_of(size_t bytes, size_t slot_bytes, uint32_t before, int64_t index);

/* One rank's messages to all, or from all, in an exchange. In round k go the k-th pieces; a rank that does round
 * after round, what leaves before what comes, waits for no peer that waits for it. */
typedef struct hdi_mail_side {
    int rank, ranks;
    bool leaves;
    size_t slot_bytes;
    const size_t *bytes;    /* [ranks]; the own is not looked at */
    const uint32_t *before; /* [ranks] */
} hdi_mail_side;

int64_t hdi_mail_rounds(const hdi_mail_side *side);
int hdi_mail_round(const hdi_mail_side *side, int64_t round, hdi_mail_piece out[HDI_DIRECT_RANKS]);

#endif
