/* The partition of layers into stages against brute force, and lists that users write. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/cut.h"
#include "tests/support/hdt.h"

enum { MOST_LAYERS = 10, MOST_STAGES = 5 };

typedef struct value {
    double largest, squares;
} value;

static value evaluate(const hdi_balance_options *options, const int *counts)
{
    value seen = {0};
    for (int stage = 0, layer = 0; stage < options->stages; stage++) {
        double cost = stage == 0 ? options->first_cost : 0;
        if (stage == options->stages - 1) cost += options->last_cost;
        for (int i = 0; i < counts[stage]; i++)
            cost += options->costs ? options->costs[layer++] : 1;
        if (cost > seen.largest) seen.largest = cost;
        seen.squares += cost * cost;
    }
    return seen;
}

/* Try every allowed list of counts, smallest first, and keep the first of the best. */
static void try_all(const hdi_balance_options *options, int stage, int left, int *counts,
                    value *best, int *best_counts)
{
    const bool last = stage == options->stages - 1;
    const int fewest =
        (stage == 0 && options->first_may_be_empty) || (last && options->last_may_be_empty) ? 0 : 1;
    for (int count = last && left > fewest ? left : fewest; count <= left; count++) {
        counts[stage] = count;
        if (!last) {
            try_all(options, stage + 1, left - count, counts, best, best_counts);
            continue;
        }
        const value seen = evaluate(options, counts);
        if (best->largest < 0 || seen.largest < best->largest ||
            (seen.largest == best->largest && seen.squares < best->squares)) {
            *best = seen;
            memcpy(best_counts, counts, sizeof(int) * (size_t)options->stages);
        }
    }
}

START_TEST(balance_equals_brute_force)
{
    double costs[MOST_LAYERS];
    srand((unsigned)_i + 1);
    for (int i = 0; i < MOST_LAYERS; i++)
        costs[i] = rand() % (_i % 2 ? 3 : 20); /* ties, zeros; integers, so sums are exact */
    for (int layers = 1; layers <= MOST_LAYERS; layers++)
        for (int stages = 1; stages <= MOST_STAGES; stages++)
            for (int variant = 0; variant < 8; variant++) {
                const hdi_balance_options options = {
                    .layers = layers,
                    .stages = stages,
                    .costs = variant == 7 ? NULL : costs,
                    .first_cost = variant & 1 ? rand() % 9 : 0,
                    .last_cost = variant & 2 ? rand() % 30 : 0,
                    .first_may_be_empty = variant & 4,
                    .last_may_be_empty = variant & 4,
                };
                int counts[MOST_STAGES], wanted[MOST_STAGES], seen[MOST_STAGES];
                value best = {.largest = -1};
                try_all(&options, 0, layers, counts, &best, wanted);
                const hd_status status = hdi_balance(&options, seen);
                if (best.largest < 0) {
                    hdt_assert_status(status, HD_ERROR_CONFIG, "use fewer pipeline ranks");
                    continue;
                }
                hdt_assert_ok(status);
                hdt_assert_ok(hdi_balance_check(seen, stages, &options));
                for (int stage = 0; stage < stages; stage++)
                    ck_assert_msg(seen[stage] == wanted[stage],
                                  "layers %d stages %d variant %d: stage %d has %d, want %d",
                                  layers, stages, variant, stage, seen[stage], wanted[stage]);
            }
}
END_TEST

START_TEST(equal_layers_are_spread_evenly_with_more_at_the_end)
{
    double tenths[14];
    for (int i = 0; i < 14; i++)
        tenths[i] = 0.1; /* sums of these round differently from place to place */
    int counts[4];
    hdt_assert_ok(
        hdi_balance(&(hdi_balance_options){.layers = 14, .stages = 4, .costs = tenths}, counts));
    ck_assert(counts[0] == 3 && counts[1] == 3 && counts[2] == 4 && counts[3] == 4);
}
END_TEST

START_TEST(embedding_and_head_take_the_place_of_layers)
{
    int counts[4];
    hdt_assert_ok(hdi_balance(
        &(hdi_balance_options){.layers = 14, .stages = 4, .first_cost = 1, .last_cost = 1},
        counts));
    ck_assert(counts[0] == 3 && counts[1] == 4 && counts[2] == 4 && counts[3] == 3);
    hdi_balance_options heavy = {
        .layers = 6, .stages = 3, .last_cost = 9, .last_may_be_empty = true};
    hdt_assert_ok(hdi_balance(&heavy, counts));
    ck_assert(counts[0] == 3 && counts[1] == 3 && counts[2] == 0);
}
END_TEST

/* The most expensive rank, of two with two stages each. */
static double largest_of_two(const hdi_balance_options *options, const int *counts)
{
    const double zero = options->first_cost + counts[0] + counts[2];
    const double one = options->last_cost + counts[1] + counts[3];
    return zero > one ? zero : one;
}

START_TEST(chunks_of_a_rank_are_balanced_together)
{
    for (int head = 0; head < 8; head++)
        for (int layers = 4; layers < 16; layers++) {
            const hdi_balance_options options = {
                .layers = layers, .stages = 4, .ranks = 2, .last_cost = head, .first_cost = 1};
            int counts[4], tried[4];
            hdt_assert_ok(hdi_balance(&options, counts));
            hdt_assert_ok(hdi_balance_check(counts, 4, &options));
            for (tried[0] = 1; tried[0] < layers; tried[0]++)
                for (tried[1] = 1; tried[1] < layers; tried[1]++)
                    for (tried[2] = 1; tried[2] < layers; tried[2]++) {
                        tried[3] = layers - tried[0] - tried[1] - tried[2];
                        if (tried[3] < 1) continue;
                        ck_assert_msg(largest_of_two(&options, counts) <=
                                          largest_of_two(&options, tried),
                                      "%d layers, head %d: %d,%d,%d,%d is better than %d,%d,%d,%d",
                                      layers, head, tried[0], tried[1], tried[2], tried[3],
                                      counts[0], counts[1], counts[2], counts[3]);
                    }
        }
}
END_TEST

/* 12 layers and a head of 4.9 of them: even stages leave a rank 2 layers more than the other, and even
 * ranks are faster. */
START_TEST(the_cut_is_what_the_schedule_is_faster_with)
{
    static const int wanted[][4] = {{8, 4}, {4, 3, 4, 1}};
    for (int chunks = 1; chunks <= 2; chunks++) {
        const hdi_schedule_options schedule = {.kind = chunks > 1 ? HDI_SCHEDULE_INTERLEAVED
                                                                  : HDI_SCHEDULE_ONE_F_ONE_B,
                                               .stages = 2,
                                               .micro_batches = 16,
                                               .chunks = chunks};
        int counts[4];
        hdt_assert_ok(
            hdi_cut(&(hdi_balance_options){.layers = 12, .last_cost = 4.9}, &schedule, counts));
        for (int s = 0; s < 2 * chunks; s++)
            ck_assert_msg(counts[s] == wanted[chunks - 1][s], "%d chunks: stage %d has %d, not %d",
                          chunks, s, counts[s], wanted[chunks - 1][s]);
    }
}
END_TEST

START_TEST(bad_costs_are_refused)
{
    int counts[2];
    const double costs[] = {1, -1};
    hdt_assert_status(
        hdi_balance(&(hdi_balance_options){.layers = 2, .stages = 2, .costs = costs}, counts),
        HD_ERROR_ARGUMENT, "layer 1 is -1");
    hdt_assert_status(hdi_balance(&(hdi_balance_options){.layers = 2, .stages = 0}, counts),
                      HD_ERROR_ARGUMENT, "at least 1 stage");
}
END_TEST

START_TEST(lists_of_layers_are_read_and_checked)
{
    static const struct {
        const char *text, *error;
    } cases[] = {
        {"3,4,2,1", NULL},
        {"3, 4, 2, 1", NULL},
        {"3,4,3", "3 entries, want one for each of 4"},
        {"3,4,1,1,1", "5 entries"},
        {"3,4,2,2", "add up to 11, the model has 10"},
        {"3,4,0,3", "entry 2 is 0, want at least 1"},
        {"3,x,2,1", "entry 1 of \"3,x,2,1\""},
        {"3,,2,1", "entry 1"},
        {"3,4,2,1,", "entry 4"},
        {"", "entry 0"},
        {"3,4,2,-1", "entry 3"},
        {"3,4,2,99999999999999999999", "entry 3"},
        {"3 4,2,1", "entry 0"},
    };
    int counts[4];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const hd_status status = hdi_balance_parse(
            cases[i].text, &(hdi_balance_options){.layers = 10, .stages = 4}, counts);
        if (cases[i].error)
            hdt_assert_status(status, HD_ERROR_CONFIG, cases[i].error);
        else
            hdt_assert_ok(status);
    }
    hdi_balance_options empty_end = {.layers = 10, .stages = 4, .last_may_be_empty = true};
    hdt_assert_ok(hdi_balance_parse("3,4,3,0", &empty_end, counts));
    ck_assert(counts[0] == 3 && counts[1] == 4 && counts[2] == 3 && counts[3] == 0);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("balance");
    tcase_add_loop_test(tests, balance_equals_brute_force, 0, 20);
    tcase_add_test(tests, equal_layers_are_spread_evenly_with_more_at_the_end);
    tcase_add_test(tests, embedding_and_head_take_the_place_of_layers);
    tcase_add_test(tests, chunks_of_a_rank_are_balanced_together);
    tcase_add_test(tests, the_cut_is_what_the_schedule_is_faster_with);
    tcase_add_test(tests, bad_costs_are_refused);
    tcase_add_test(tests, lists_of_layers_are_read_and_checked);
    Suite *suite = suite_create("balance");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
