/* Mailboxes: their places, and exchanges through them by ranks whose streams move on in any order. */
#include "comm/mailbox.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/hdt.h"

enum { MIB = 1 << 20 };

static uint64_t state;

static size_t chance(size_t below)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (size_t)(state >> 33) % below;
}

typedef struct range {
    size_t begin, end;
} range;

static int by_begin(const void *a, const void *b)
{
    const range *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

/* Of all boxes of a communicator: words in lines of their own, slots in the outbox of whom they are from. */
START_TEST(boxes_share_no_bytes)
{
    const int ranks = 2 + _i / 2;
    const bool has_links = _i % 2;
    const hdi_mail_layout it = hdi_mail_lay(ranks, has_links);
    range *ranges = calloc((size_t)(3 * 3 * ranks * ranks), sizeof *ranges);
    size_t count = 0;
    bool inside = true;
    for (int channel = HDI_MAIL_NO_CHANNEL; channel < (has_links ? 2 : 0); channel++)
        for (int from = 0; from < ranks; from++)
            for (int i = 1; i < ranks; i++) {
                if (channel != HDI_MAIL_NO_CHANNEL && i != (channel ? ranks - 1 : 1)) continue;
                const hdi_mail_box box = {from, (from + i) % ranks, channel};
                const size_t slots = hdi_mail_slots_at(&it, box);
                const size_t end = slots + HDI_MAIL_SLOTS * hdi_mail_slot_bytes(&it, channel);
                const size_t outbox = hdi_mail_outbox_at(&it, from);
                inside = inside && slots >= outbox && end <= outbox + it.outbox_bytes;
                inside = inside && slots % HDI_MAIL_BLOCK == 0;
                ranges[count++] = (range){slots, end};
                for (int which = 0; which < HDI_MAIL_WORDS; which++) {
                    const size_t word = hdi_mail_word_at(&it, box, (hdi_mail_word)which);
                    inside = inside && word + HDI_MAIL_LINE <= it.word_bytes;
                    ranges[count++] = (range){word, word + HDI_MAIL_LINE};
                }
            }
    qsort(ranges, count, sizeof *ranges, by_begin);
    size_t overlaps = 0;
    for (size_t i = 1; i < count; i++)
        overlaps += ranges[i].begin < ranges[i - 1].end;
    const size_t last = ranges[count - 1].end;
    free(ranges);
    ck_assert(inside);
    ck_assert_uint_eq(overlaps, 0);
    ck_assert_uint_le(last, it.bytes);
    ck_assert_uint_ge(it.slot_bytes, MIB);
}
END_TEST

START_TEST(pieces_make_up_their_message)
{
    static const size_t sizes[] = {
        1, 4095, HDI_MAIL_LEAST_PIECE, HDI_MAIL_LEAST_PIECE + 1, 5000001, 64 * MIB + 7, 300 * MIB};
    const size_t bytes = sizes[_i], slot = 8 * MIB;
    const uint32_t before = UINT32_MAX - 2;
    const int64_t pieces = hdi_mail_pieces(bytes, slot);
    size_t sum = 0;
    for (int64_t i = 0; i < pieces; i++) {
        const hdi_mail_piece piece = hdi_mail_piece_of(bytes, slot, before, i);
        ck_assert_uint_eq(piece.at, sum);
        ck_assert(piece.bytes > 0 && piece.bytes <= slot);
        ck_assert_uint_eq(piece.turn, (uint32_t)(before + 1 + (uint32_t)i));
        ck_assert_int_eq(piece.slot, (int)((uint32_t)(piece.turn - 1) % HDI_MAIL_SLOTS));
        sum += piece.bytes;
    }
    ck_assert_uint_eq(sum, bytes);
    ck_assert_int_eq(hdi_mail_pieces(0, slot), 0);
}
END_TEST

/* Ranks whose memory, slots and words are here. A stream awaits the words of a round, copies piece by piece,
 * and writes its words. */
enum { RANKS = 8, EXCHANGES = 3, SLOT = 64, MOST = 24 * SLOT, QUEUE = 2 * EXCHANGES * 32 };

typedef struct step {
    bool leaves;
    int exchange, count;
    hdi_mail_piece pieces[HDI_DIRECT_RANKS];
} step;

typedef struct stream {
    step *steps; /* [QUEUE] */
    int count, next, stage;
} stream;

typedef struct host {
    int ranks;
    uint32_t words[HDI_MAIL_WORDS][RANKS][RANKS]; /* [from][to] */
    unsigned char slots[RANKS][RANKS][HDI_MAIL_SLOTS][SLOT];
    size_t bytes[EXCHANGES][RANKS][RANKS];
    unsigned char sent[EXCHANGES][RANKS][RANKS][MOST], got[EXCHANGES][RANKS][RANKS][MOST];
    stream streams[RANKS][2];
} host;

static bool has_come(const host *it, int rank, const step *now)
{
    for (int i = 0; i < now->count; i++) {
        const hdi_mail_piece *piece = &now->pieces[i];
        const uint32_t word = now->leaves ? it->words[HDI_MAIL_EMPTIED][rank][piece->peer]
                                          : it->words[HDI_MAIL_FILLED][piece->peer][rank];
        if ((int32_t)(word - hdi_mail_awaits(piece, now->leaves)) < 0) return false;
    }
    return true;
}

/* False: it waits, or has nothing to do. */
static bool advance(host *it, int rank, stream *one)
{
    if (one->next == one->count) return false;
    const step *now = &one->steps[one->next];
    if (one->stage == 0) {
        if (!has_come(it, rank, now)) return false;
    } else if (one->stage <= now->count) {
        const hdi_mail_piece *piece = &now->pieces[one->stage - 1];
        const int peer = piece->peer, e = now->exchange;
        if (now->leaves)
            memcpy(it->slots[rank][peer][piece->slot], it->sent[e][rank][peer] + piece->at,
                   piece->bytes);
        else
            memcpy(it->got[e][rank][peer] + piece->at, it->slots[peer][rank][piece->slot],
                   piece->bytes);
    } else {
        for (int i = 0; i < now->count; i++) {
            const hdi_mail_piece *piece = &now->pieces[i];
            *(now->leaves ? &it->words[HDI_MAIL_FILLED][rank][piece->peer]
                          : &it->words[HDI_MAIL_EMPTIED][piece->peer][rank]) = piece->turn;
        }
        one->next++;
        one->stage = -1;
    }
    one->stage++;
    return true;
}

static void queue(stream *one, const hdi_mail_side *side, int64_t round, int exchange)
{
    step *next = &one->steps[one->count];
    *next = (step){.leaves = side->leaves, .exchange = exchange};
    next->count = hdi_mail_round(side, round, next->pieces);
    if (next->count) one->count++;
    ck_assert_int_lt(one->count, QUEUE);
}

/* As the transport posts them; `alone`: both directions on one stream. */
static void post(host *it, int rank, uint32_t before, bool alone)
{
    uint32_t sent[RANKS], taken[RANKS];
    size_t go[RANKS], come[RANKS];
    for (int r = 0; r < it->ranks; r++)
        sent[r] = taken[r] = before;
    for (int e = 0; e < EXCHANGES; e++) {
        for (int r = 0; r < it->ranks; r++) {
            go[r] = it->bytes[e][rank][r];
            come[r] = it->bytes[e][r][rank];
        }
        const hdi_mail_side out = {.rank = rank,
                                   .ranks = it->ranks,
                                   .leaves = true,
                                   .slot_bytes = SLOT,
                                   .bytes = go,
                                   .before = sent};
        hdi_mail_side in = out;
        in.leaves = false;
        in.bytes = come;
        in.before = taken;
        for (int64_t i = 0; i < hdi_mail_rounds(&out) || i < hdi_mail_rounds(&in); i++) {
            queue(&it->streams[rank][0], &out, i, e);
            queue(&it->streams[rank][!alone], &in, i, e);
        }
        for (int r = 0; r < it->ranks; r++) {
            sent[r] += (uint32_t)hdi_mail_pieces(go[r], SLOT);
            taken[r] += (uint32_t)hdi_mail_pieces(come[r], SLOT);
        }
    }
}

static host *make_host(int ranks, uint32_t before)
{
    host *it = calloc(1, sizeof *it);
    it->ranks = ranks;
    for (int from = 0; from < ranks; from++) {
        for (int i = 0; i < 2; i++)
            it->streams[from][i].steps = calloc(QUEUE, sizeof *it->streams[from][i].steps);
        for (int to = 0; to < ranks; to++) {
            it->words[HDI_MAIL_FILLED][from][to] = it->words[HDI_MAIL_EMPTIED][from][to] = before;
            for (int e = 0; e < EXCHANGES; e++) {
                it->bytes[e][from][to] = chance(3) ? chance(MOST + 1) : 0;
                for (size_t i = 0; i < it->bytes[e][from][to]; i++)
                    it->sent[e][from][to][i] = (unsigned char)(1 + chance(255));
            }
        }
    }
    return it;
}

static void free_host(host *it)
{
    for (int r = 0; r < it->ranks; r++)
        for (int i = 0; i < 2; i++)
            free(it->streams[r][i].steps);
    free(it);
}

/* Any stream that can takes steps, some at a time; the number of ranks that are not at their end. */
static int run(host *it)
{
    for (int idle = 0; idle < 4 * RANKS * RANKS;) {
        const int rank = (int)chance((size_t)it->ranks), which = (int)chance(2);
        bool moved = false;
        for (size_t i = 0, steps = 1 + chance(40); i < steps; i++)
            moved = advance(it, rank, &it->streams[rank][which]) || moved;
        idle = moved ? 0 : idle + 1;
        if (idle < 2 * RANKS * RANKS) continue;
        for (int r = 0; r < 2 * it->ranks; r++) /* chance may have missed one */
            if (advance(it, r / 2, &it->streams[r / 2][r % 2])) idle = 0;
    }
    int unfinished = 0;
    for (int r = 0; r < it->ranks; r++)
        for (int i = 0; i < 2; i++)
            unfinished += it->streams[r][i].next != it->streams[r][i].count;
    return unfinished;
}

/* Unequal, empty, of more pieces than slots, one behind the other, round the end of the turns' numbers. */
START_TEST(exchanges_arrive_whole_whatever_streams_do)
{
    static const int numbers[] = {2, 3, 8};
    const bool alone = _i & 1;
    const uint32_t before = _i & 2 ? UINT32_MAX - 7 : 0;
    state = (uint64_t)_i + 1;
    for (int turn = 0; turn < 5; turn++) {
        host *it = make_host(numbers[_i / 4], before);
        for (int r = 0; r < it->ranks; r++)
            post(it, r, before, alone);
        const int unfinished = run(it);
        int wrong = 0;
        for (int e = 0; e < EXCHANGES; e++)
            for (int from = 0; from < it->ranks; from++)
                for (int to = 0; to < it->ranks; to++)
                    wrong += from != to && memcmp(it->sent[e][from][to], it->got[e][to][from],
                                                  it->bytes[e][from][to]) != 0;
        free_host(it);
        ck_assert_msg(unfinished == 0, "%d streams wait for ever", unfinished);
        ck_assert_msg(wrong == 0, "%d messages are wrong", wrong);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mailbox");
    TCase *tests = tcase_create("mailbox");
    tcase_add_loop_test(tests, boxes_share_no_bytes, 0, 14);
    tcase_add_loop_test(tests, pieces_make_up_their_message, 0, 7);
    tcase_add_loop_test(tests, exchanges_arrive_whole_whatever_streams_do, 0, 12);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
