/* Which exchanges go directly: what a rank says of its part, and what all must have said. */
#include "comm/direct.h"
#include "tests/support/hdt.h"

enum { KIB = 1024, MEMORY = 4096 * KIB, RANKS = 3, SELF = 1 };

static char memory[MEMORY];

/* Rank 1 of three: 100 KiB come from each peer and 200 KiB go to each. */
static hdi_heard plain(void)
{
    hdi_heard heard = {.is_exchange = true};
    for (int r = 0; r < RANKS; r++) {
        heard.come_to[r] = memory + (ptrdiff_t)r * 200 * KIB;
        heard.come[r] = 100 * KIB;
        heard.go[r] = 200 * KIB;
    }
    return heard;
}

START_TEST(an_exchange_fits_if_all_that_comes_is_in_the_memory)
{
    hdi_heard heard = plain();
    ck_assert(hdi_heard_fits(&heard, SELF, RANKS, memory, MEMORY));
    ck_assert(hdi_heard_fits(&heard, SELF, RANKS, memory, 500 * KIB));
    ck_assert(!hdi_heard_fits(&heard, SELF, RANKS, memory, 500 * KIB - 1));
    ck_assert(!hdi_heard_fits(&heard, SELF, RANKS, memory + 1, MEMORY - 1));
    heard.come[0] = 0; /* then it does not matter where */
    ck_assert(hdi_heard_fits(&heard, SELF, RANKS, memory + 1, MEMORY - 1));
    heard.come_to[SELF] = NULL; /* nor where its own part is */
    ck_assert(hdi_heard_fits(&heard, SELF, RANKS, memory + 1, MEMORY - 1));
    heard.is_exchange = false;
    ck_assert(!hdi_heard_fits(&heard, SELF, RANKS, memory, MEMORY));
}
END_TEST

START_TEST(little_to_others_does_not_fit_whatever_stays_here)
{
    hdi_heard heard = plain();
    heard.go[0] = HDI_DIRECT_LEAST - 1;
    heard.go[SELF] = MEMORY;
    heard.go[2] = 0;
    ck_assert(!hdi_heard_fits(&heard, SELF, RANKS, memory, MEMORY));
    heard.go[2] = 1;
    ck_assert(hdi_heard_fits(&heard, SELF, RANKS, memory, MEMORY));
}
END_TEST

START_TEST(peers_must_wait_for_as_much_as_goes_to_them)
{
    const hdi_heard heard = plain();
    hdi_landing theirs[RANKS];
    for (int r = 0; r < RANKS; r++)
        theirs[r] = (hdi_landing){.at = 64 * r, .bytes = 200 * KIB, .slots = 1};
    ck_assert(hdi_landings_match(theirs, heard.go, SELF, RANKS));
    theirs[SELF].bytes = 7; /* not a peer */
    ck_assert(hdi_landings_match(theirs, heard.go, SELF, RANKS));
    theirs[2].slots = 0;
    ck_assert(!hdi_landings_match(theirs, heard.go, SELF, RANKS));
    theirs[2].slots = 1;
    theirs[0].bytes++;
    ck_assert(!hdi_landings_match(theirs, heard.go, SELF, RANKS));
}
END_TEST

START_TEST(slots_take_turns_and_levels_add_up)
{
    const hdi_landing it = {.at = 1000, .slots = 3, .stride = 10, .level_stride = 5000};
    ck_assert_uint_eq(hdi_landing_at(&it, 0, 0), 1000);
    ck_assert_uint_eq(hdi_landing_at(&it, 2, 0), 1020);
    ck_assert_uint_eq(hdi_landing_at(&it, 7, 2), 11010);
}
END_TEST

START_TEST(what_is_heard_is_what_would_be_posted)
{
    hd_comm *world;
    hdi_heard heard = {0};
    hdt_assert_ok(hd_comm_create_world(&(hd_comm_options){.transport = HD_TRANSPORT_SELF}, &world));
    float from[8] = {0}, into[8] = {0};
    const int64_t three = 3, two = 2, one = 1;
    hd_request request = {.id = 1};
    world->hears = &heard;
    hd_status status =
        hd_comm_all_to_all(world, from, &three, &one, into, &three, &two, HD_DTYPE_F32, &request);
    ck_assert_int_eq(request.id, 0);
    ck_assert(heard.is_exchange && heard.come_to[0] == (char *)(into + 2));
    ck_assert_uint_eq(heard.come[0], 3 * sizeof(float));
    ck_assert_uint_eq(heard.go[0], 3 * sizeof(float));
    if (status == HD_OK)
        status = hd_comm_all_gather(world, into, &three, &one, HD_DTYPE_F32, &request);
    ck_assert(heard.is_exchange && heard.come_to[0] == (char *)(into + 1));
    heard = (hdi_heard){0};
    if (status == HD_OK)
        status = hd_comm_all_reduce(world, into, 8, HD_DTYPE_F32, HD_REDUCE_SUM, &request);
    ck_assert(!heard.is_exchange);
    hd_comm_destroy(world);
    hdt_assert_ok(status);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("direct");
    tcase_add_test(tests, an_exchange_fits_if_all_that_comes_is_in_the_memory);
    tcase_add_test(tests, little_to_others_does_not_fit_whatever_stays_here);
    tcase_add_test(tests, peers_must_wait_for_as_much_as_goes_to_them);
    tcase_add_test(tests, slots_take_turns_and_levels_add_up);
    tcase_add_test(tests, what_is_heard_is_what_would_be_posted);
    Suite *suite = suite_create("direct");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
