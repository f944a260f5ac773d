/* Copies beside the GPU's compute stream: each begins behind what was queued before it and is there for
 * what is queued after the wait. */

#include "tests/gpu/hdt_gpu.h"

enum { ELEMENTS = (24 << 18) + 12345, SLOTS = 2, SOURCES = 3, USES = 9 };

static const size_t bytes = ELEMENTS * sizeof(int32_t);
static hdi_device *device;
static hd_stream *stream;

static int32_t *reserve_host(void)
{
    void *memory = NULL;
    hdt_assert_ok(hdi_cuda_reserve_host(device, bytes, &memory));
    return memory;
}

static void begin(void)
{
    hdt_assert_ok(hdi_cuda_open(0, &device));
    stream = hdi_cuda_stream(device);
}

static void end(void)
{
    hdi_cuda_close(device);
}

/* The way out of a slot takes as long as the next copy into it: neither may overtake. */
START_TEST(copies_wait_for_readers_and_readers_for_copies)
{
    int32_t *source[SOURCES], *seen[USES];
    void *arena = NULL;
    hdt_assert_ok(hdi_cuda_reserve(device, SLOTS * bytes, &arena));
    for (int s = 0; s < SOURCES; s++) {
        source[s] = reserve_host();
        for (int i = 0; i < ELEMENTS; i++)
            source[s][i] = i * SOURCES + s;
    }
    for (int u = 0; u < USES; u++)
        seen[u] = reserve_host();
    for (int u = 0; u < USES; u++) {
        char *slot = (char *)arena + (size_t)(u % SLOTS) * bytes;
        hdt_assert_ok(hdi_cuda_fetch(stream, u % SLOTS, slot, source[u % SOURCES], bytes));
        hdt_assert_ok(hdi_cuda_await(stream, u % SLOTS));
        hdt_assert_ok(hdi_cuda_copy_out(stream, seen[u], slot, bytes));
    }
    hdt_assert_ok(hdi_cuda_synchronize(stream));
    for (int u = 0; u < USES; u++)
        ck_assert_msg(memcmp(seen[u], source[u % SOURCES], bytes) == 0, "use %d: other bits", u);
    for (int u = 0; u < USES; u++)
        hdi_cuda_release_host(device, seen[u], bytes);
    for (int s = 0; s < SOURCES; s++)
        hdi_cuda_release_host(device, source[s], bytes);
    hdi_cuda_release(device, arena, SLOTS * bytes);
}
END_TEST

START_TEST(memory_goes_when_copies_are_over)
{
    for (int round = 0; round < 4; round++) {
        void *arena = NULL;
        hdt_assert_ok(hdi_cuda_reserve(device, bytes, &arena));
        int32_t *source = reserve_host();
        hdt_assert_ok(hdi_cuda_fetch(stream, 0, arena, source, bytes));
        hdi_cuda_release(device, arena, bytes);
        hdi_cuda_release_host(device, source, bytes);
        hdt_assert_ok(hdi_cuda_synchronize(stream));
    }
}
END_TEST

/* Round and round: out to the host and in again while the next is made, as optimizer state passes. A
 * store must not begin before what it copies, nor a slot be filled before it has gone. */
START_TEST(stores_wait_for_writers_and_writers_for_stores)
{
    int32_t *source[USES], *kept[USES];
    void *arena = NULL;
    hdt_assert_ok(hdi_cuda_reserve(device, SLOTS * bytes, &arena));
    for (int u = 0; u < USES; u++) {
        source[u] = reserve_host();
        kept[u] = reserve_host();
        for (int i = 0; i < ELEMENTS; i++)
            source[u][i] = i * USES + u;
    }
    for (int u = 0; u < USES; u++) {
        char *slot = (char *)arena + (size_t)(u % SLOTS) * bytes;
        if (u >= SLOTS) hdt_assert_ok(hdi_cuda_await_store(stream, u % SLOTS));
        hdt_assert_ok(hdi_cuda_fetch(stream, u, slot, source[u], bytes));
        hdt_assert_ok(hdi_cuda_await(stream, u));
        hdt_assert_ok(hdi_cuda_store(stream, u % SLOTS, kept[u], slot, bytes));
    }
    for (int s = 0; s < SLOTS; s++)
        hdt_assert_ok(hdi_cuda_await_store(stream, s));
    hdt_assert_ok(hdi_cuda_synchronize(stream));
    for (int u = 0; u < USES; u++)
        ck_assert_msg(memcmp(kept[u], source[u], bytes) == 0, "use %d: other bits", u);
    for (int u = 0; u < USES; u++) {
        hdi_cuda_release_host(device, source[u], bytes);
        hdi_cuda_release_host(device, kept[u], bytes);
    }
    hdi_cuda_release(device, arena, SLOTS * bytes);
}
END_TEST

enum { BEGUN, COMPUTED, WAITED, STAMPS };

static double between(int from, int to)
{
    double seconds;
    hdt_assert_ok(hdi_cuda_elapsed(stream, from, to, &seconds));
    return seconds;
}

/* Copies, beside so many rounds of computation, and the wait for them. */
static void compute_beside(char *arena, const int32_t *source, int rounds)
{
    hdt_assert_ok(hdi_cuda_stamp(stream, BEGUN));
    for (int f = 0; f < USES; f++)
        hdt_assert_ok(hdi_cuda_fetch(stream, f, arena, source, bytes));
    for (int i = 0; i < rounds; i++)
        hdt_assert_ok(
            hdi_cuda_fill_normal(stream, HD_DTYPE_F32, arena + bytes, ELEMENTS, 1, 2, i, 1));
    hdt_assert_ok(hdi_cuda_stamp(stream, COMPUTED));
    hdt_assert_ok(hdi_cuda_await(stream, USES - 1));
    hdt_assert_ok(hdi_cuda_stamp(stream, WAITED));
    hdt_assert_ok(hdi_cuda_synchronize(stream));
}

/* A stamp before and one after a wait: all that a copy takes if nothing is computed meanwhile, and of a copy
 * under longer computation next to nothing. */
START_TEST(stamps_around_a_wait_tell_what_of_a_copy_is_exposed)
{
    enum { ROUNDS = 20, MORE = 3 };
    int32_t *source = reserve_host();
    void *arena = NULL;
    hdt_assert_ok(hdi_cuda_reserve(device, SLOTS * bytes, &arena));
    hdt_assert_ok(hdi_cuda_open_stamps(device, STAMPS));
    compute_beside(arena, source, ROUNDS); /* loads the kernel */
    compute_beside(arena, source, 0);
    const double copies = between(BEGUN, WAITED), exposed = between(COMPUTED, WAITED);
    ck_assert_msg(exposed > 0.8 * copies, "%.0f us exposed of copies of %.0f us", 1e6 * exposed,
                  1e6 * copies);
    compute_beside(arena, source, ROUNDS);
    const int rounds = (int)(MORE * ROUNDS * copies / between(BEGUN, COMPUTED)) + ROUNDS;
    compute_beside(arena, source, rounds);
    ck_assert_msg(between(BEGUN, COMPUTED) > copies && between(COMPUTED, WAITED) < 0.1 * copies,
                  "%.0f us exposed of copies of %.0f us beside %.0f us of computation",
                  1e6 * between(COMPUTED, WAITED), 1e6 * copies, 1e6 * between(BEGUN, COMPUTED));
    hdi_cuda_release_host(device, source, bytes);
    hdi_cuda_release(device, arena, SLOTS * bytes);
}
END_TEST

/* Plain copies take pinned host memory on either side. */
START_TEST(copy_takes_pinned_memory)
{
    int32_t *source = reserve_host(), *kept = reserve_host();
    void *arena = NULL;
    hdt_assert_ok(hdi_cuda_reserve(device, bytes, &arena));
    for (int i = 0; i < ELEMENTS; i++)
        source[i] = i;
    hdt_assert_ok(hdi_cuda_copy(stream, arena, source, bytes));
    hdt_assert_ok(hdi_cuda_copy(stream, kept, arena, bytes));
    hdt_assert_ok(hdi_cuda_synchronize(stream));
    ck_assert_mem_eq(kept, source, bytes);
    hdi_cuda_release_host(device, source, bytes);
    hdi_cuda_release_host(device, kept, bytes);
    hdi_cuda_release(device, arena, bytes);
}
END_TEST

int main(void)
{
    TCase *cases = tcase_create("copies");
    tcase_add_checked_fixture(cases, begin, end);
    tcase_add_test(cases, copies_wait_for_readers_and_readers_for_copies);
    tcase_add_test(cases, stores_wait_for_writers_and_writers_for_stores);
    tcase_add_test(cases, copy_takes_pinned_memory);
    tcase_add_test(cases, stamps_around_a_wait_tell_what_of_a_copy_is_exposed);
    tcase_add_test(cases, memory_goes_when_copies_are_over);
    return hdt_main_gpu("cuda copies", cases);
}
