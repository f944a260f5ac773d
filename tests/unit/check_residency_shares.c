/* Shares of blocks that ranks gather from each other: which way of keeping weights a budget gets, and what is
 * refused. */
#include <stdio.h>

#include "tests/support/hdt_blocks.h"
#include "tests/support/hdt_plans.h"

enum { BLOCKS = 10, WIDTH = 128 }; /* shares of a matrix are halves */

static hdt_plans planned;

static void use(int number, int first, int count)
{
    planned.programs[number] = hdt_matrices_program(
        &(hdt_matrices){.rows = 1, .width = WIDTH, .first = first, .count = count});
    planned.program_count = number + 1;
}

static void begin(void)
{
    use(0, 0, BLOCKS);
}

static void drop(void)
{
    hdt_drop_plans(&planned);
}

static hd_residency kept(void)
{
    const hdi_residency *it = &planned.plan->residency;
    if (!it->host_blocks) return HD_RESIDENCY_RESIDENT;
    if (!it->gathers) return HD_RESIDENCY_HOST;
    return it->host_bytes ? HD_RESIDENCY_HOST_SHARDED : HD_RESIDENCY_SHARDED;
}

/* Of two ranks, at links and between ranks so fast: what blocks that do not fit become, from budgets for the
 * most resident bytes down. */
START_TEST(what_does_not_fit_goes_over_the_fastest_link)
{
    static const struct {
        double link, peer;
        hd_residency kinds[4];
        int count;
    } cases[] = {
        {25e9, 0, {HD_RESIDENCY_RESIDENT, HD_RESIDENCY_SHARDED, HD_RESIDENCY_HOST}, 3},
        {25e9, 25e9, {HD_RESIDENCY_RESIDENT, HD_RESIDENCY_SHARDED, HD_RESIDENCY_HOST}, 3},
        {25e9,
         300e9,
         {HD_RESIDENCY_RESIDENT, HD_RESIDENCY_SHARDED, HD_RESIDENCY_HOST_SHARDED,
          HD_RESIDENCY_HOST},
         4},
        {25e9, 10e9, {HD_RESIDENCY_RESIDENT, HD_RESIDENCY_HOST}, 2},
    };
    const hd_plan_options resident = {.residency = HD_RESIDENCY_RESIDENT};
    const hd_plan_options least = {.residency = HD_RESIDENCY_HOST, .stream_slots = 1};
    hdt_make_plan(&planned, &resident);
    const size_t most_bytes = hd_plan_total_bytes(planned.plan);
    hdt_drop_plan(&planned);
    hdt_make_plan(&planned, &least);
    const size_t least_bytes = hd_plan_total_bytes(planned.plan);
    hdt_drop_plan(&planned);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int at = 0, room = 2;
        bool seen[4] = {false};
        for (size_t budget = most_bytes; budget >= least_bytes; budget -= 4096) {
            hdt_make_plan(&planned, &(hd_plan_options){
                                        .residency = HD_RESIDENCY_AUTO,
                                        .budget = budget,
                                        .shards = 2,
                                        .rates = {.link = cases[c].link, .peer = cases[c].peer}});
            const int slots = planned.plan->residency.slots;
            ck_assert_uint_le(hd_plan_total_bytes(planned.plan), budget);
            if (planned.plan->residency.host_blocks > 1 && slots < room) {
                room = slots; /* then all kinds once more, each with less room for blocks */
                at = 0;
            }
            while (at < cases[c].count && cases[c].kinds[at] != kept())
                at++;
            ck_assert_int_lt(at, cases[c].count);
            seen[at] = true;
            hdt_drop_plan(&planned);
        }
        for (int k = 0; k < cases[c].count; k++)
            ck_assert_msg(seen[k], "case %zu, kind %d: never chosen", c, k);
    }
}
END_TEST

START_TEST(shares_of_blocks_are_refused_with_the_reason)
{
    hd_plan_options options = {.residency = HD_RESIDENCY_SHARDED, .shards = 1};
    hdt_assert_status(hdt_try_plan(&planned, &options), HD_ERROR_UNSUPPORTED,
                      "shards of 1 rank, want at least 2");
    hdt_drop_plan(&planned);
    options.shards = 2;
    options.budget = 1;
    hdt_assert_status(hdt_try_plan(&planned, &options), HD_ERROR_BUDGET, "does not fit");
    hdt_drop_plan(&planned);
    hdt_make_plan(&planned, &(hd_plan_options){.residency = HD_RESIDENCY_HOST, .stream_slots = 1});
    char text[128];
    snprintf(text, sizeof text,
             "with all blocks on the host (residency host, or auto) a budget of %zu",
             hd_plan_total_bytes(planned.plan));
    hdt_drop_plan(&planned);
    hdt_assert_status(hdt_try_plan(&planned, &options), HD_ERROR_BUDGET, text);
    hdt_drop_plan(&planned);
    use(1, 2, 3);
    options.budget = 0;
    hdt_assert_status(hdt_try_plan(&planned, &options), HD_ERROR_UNSUPPORTED, "read other blocks");
    hdt_drop_plan(&planned);
    options.residency = HD_RESIDENCY_AUTO; /* ranks need not go together to the host */
    hdt_make_plan(&planned, &(hd_plan_options){.residency = HD_RESIDENCY_RESIDENT});
    options.budget = hd_plan_total_bytes(planned.plan) - 256;
    hdt_drop_plan(&planned);
    hdt_make_plan(&planned, &options);
    ck_assert_int_eq((int)kept(), (int)HD_RESIDENCY_HOST);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("residency shares");
    TCase *tests = tcase_create("residency shares");
    tcase_add_checked_fixture(tests, begin, drop);
    tcase_add_test(tests, what_does_not_fit_goes_over_the_fastest_link);
    tcase_add_test(tests, shares_of_blocks_are_refused_with_the_reason);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
