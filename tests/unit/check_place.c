/* Placement: spans that are alive together never share bytes, and little is wasted. */
#include "core/random.h"
#include "program/place.h"

#include "tests/support/hdt.h"

enum { MOST = 200, POSITIONS = 60 };

static int random_spans(uint64_t seed, hdi_span *spans)
{
    uint32_t words[4];
    hdi_random_words(seed, 0, 0, words);
    int count = 1 + (int)(words[0] % MOST);
    for (int i = 0; i < count; i++) {
        hdi_random_words(seed, 1, (uint64_t)i, words);
        int first = (int)(words[0] % POSITIONS);
        spans[i] = (hdi_span){.bytes = words[1] % 8 == 0 ? 0 : words[1] % 100000,
                              .first = first,
                              .last = first + (int)(words[2] % 8)};
    }
    return count;
}

static size_t peak_of(const hdi_span *spans, int count)
{
    size_t peak = 0;
    for (int at = 0; at < POSITIONS + 8; at++) {
        size_t live = 0;
        for (int i = 0; i < count; i++)
            if (spans[i].first <= at && at <= spans[i].last)
                live += hdi_place_round(spans[i].bytes);
        if (live > peak) peak = live;
    }
    return peak;
}

START_TEST(spans_that_live_together_share_no_bytes)
{
    for (uint64_t seed = 0; seed < 100; seed++) {
        hdi_span spans[MOST];
        int count = random_spans(seed, spans);
        size_t bytes, highest = 0;
        hdt_assert_ok(hdi_place(spans, count, &bytes));
        for (int i = 0; i < count; i++) {
            size_t end = spans[i].offset + hdi_place_round(spans[i].bytes);
            ck_assert_uint_eq(spans[i].offset % HDI_PLACE_ALIGNMENT, 0);
            if (end > highest) highest = end;
            for (int j = 0; j < i; j++) {
                bool together = spans[i].first <= spans[j].last && spans[j].first <= spans[i].last;
                bool apart = spans[j].offset + spans[j].bytes <= spans[i].offset ||
                             spans[i].offset + spans[i].bytes <= spans[j].offset;
                ck_assert_msg(!together || apart, "seed %d: spans %d and %d", (int)seed, j, i);
            }
        }
        ck_assert_uint_eq(bytes, highest);
    }
}
END_TEST

START_TEST(little_more_than_the_peak_is_used)
{
    double total = 0, peaks = 0;
    for (uint64_t seed = 0; seed < 100; seed++) {
        hdi_span spans[MOST];
        int count = random_spans(seed, spans);
        size_t bytes, peak = peak_of(spans, count);
        hdt_assert_ok(hdi_place(spans, count, &bytes));
        ck_assert_uint_ge(bytes, peak);
        ck_assert_uint_le(bytes, peak + peak / 3);
        total += (double)bytes;
        peaks += (double)peak;
    }
    ck_assert_double_le(total, 1.1 * peaks);
}
END_TEST

START_TEST(the_same_spans_get_the_same_places)
{
    hdi_span first[MOST], second[MOST];
    int count = random_spans(3, first);
    for (int i = 0; i < count; i++)
        first[i].bytes = 1 + first[i].bytes % 3; /* many equal ones */
    memcpy(second, first, sizeof first);
    size_t bytes;
    hdt_assert_ok(hdi_place(first, count, &bytes));
    hdt_assert_ok(hdi_place(second, count, &bytes));
    for (int i = 0; i < count; i++)
        ck_assert_uint_eq(first[i].offset, second[i].offset);
}
END_TEST

START_TEST(spans_one_after_another_share_one_place)
{
    hdi_span spans[10];
    for (int i = 0; i < 10; i++)
        spans[i] = (hdi_span){.bytes = 1000, .first = i, .last = i};
    size_t bytes;
    hdt_assert_ok(hdi_place(spans, 10, &bytes));
    ck_assert_uint_eq(bytes, 1024);
}
END_TEST

START_TEST(the_tightest_hole_is_taken)
{
    /* Largest first, so they lie one above the other; those of 10 and 3 blocks end at position 3 and
     * leave holes. */
    enum { BLOCK = HDI_PLACE_ALIGNMENT };
    hdi_span spans[] = {{20 * BLOCK, 0, 9, 0}, {10 * BLOCK, 0, 3, 0}, {9 * BLOCK, 0, 9, 0},
                        {3 * BLOCK, 0, 3, 0},  {2 * BLOCK, 0, 9, 0},  {1 * BLOCK, 5, 9, 0}};
    size_t bytes;
    hdt_assert_ok(hdi_place(spans, 6, &bytes));
    ck_assert_uint_eq(bytes, 44 * BLOCK);
    ck_assert_uint_eq(spans[5].offset, spans[3].offset);
}
END_TEST

START_TEST(nothing_takes_nothing)
{
    size_t bytes = 1;
    hdt_assert_ok(hdi_place(NULL, 0, &bytes));
    ck_assert_uint_eq(bytes, 0);
    ck_assert_uint_eq(hdi_place_round(0), 0);
    ck_assert_uint_eq(hdi_place_round(1), 256);
    ck_assert_uint_eq(hdi_place_round(256), 256);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("place");
    TCase *tests = tcase_create("place");
    tcase_add_test(tests, spans_that_live_together_share_no_bytes);
    tcase_add_test(tests, little_more_than_the_peak_is_used);
    tcase_add_test(tests, the_same_spans_get_the_same_places);
    tcase_add_test(tests, spans_one_after_another_share_one_place);
    tcase_add_test(tests, the_tightest_hole_is_taken);
    tcase_add_test(tests, nothing_takes_nothing);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
