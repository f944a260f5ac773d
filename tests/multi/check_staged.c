/* ranks: 1 2 3 4 */
/* The staged transport with a device whose memory is host memory, and whose copies are late: they
 * are made when they have been asked for several times, differently often on each rank. */
#include "tests/support/hdt_device_comm.h"

#include <stdio.h>
#include <stdlib.h>

#include "comm/device.h"

enum { COPIES = 4096 };

typedef struct late_copy {
    void *out;
    const void *x;
    size_t bytes;
} late_copy;

/* Copies run in the order in which they were queued; a slot's mark is a position in the queue. */
typedef struct late_device {
    hdi_staging table;
    late_copy copies[COPIES];
    int queued, run;
    int marks[HDI_STAGED_OPERATIONS], asked[HDI_STAGED_OPERATIONS];
} late_device;

static late_device *of(hdi_staging *staging)
{
    return (late_device *)staging;
}

/* Memory of a receive that timed out stays reserved, because its message may still come: it is kept
 * reachable here. */
enum { RESERVED = 256 };
static void *reserved[RESERVED];
static int reservations;

static hd_status late_reserve(hdi_staging *staging, size_t bytes, void **out)
{
    (void)staging;
    reservations++;
    *out = malloc(bytes);
    for (int i = 0; i < RESERVED; i++) {
        if (reserved[i]) continue;
        reserved[i] = *out;
        break;
    }
    return *out ? HD_OK : HD_ERROR_MEMORY;
}

static void late_release(hdi_staging *staging, void *memory, size_t bytes)
{
    (void)staging, (void)bytes;
    for (int i = 0; i < RESERVED; i++)
        if (reserved[i] == memory) reserved[i] = NULL;
    free(memory);
}

static hd_status late_begin(hdi_staging *staging, int slot)
{
    (void)staging, (void)slot;
    return HD_OK;
}

static hd_status late_queue(hdi_staging *staging, void *out, const void *x, size_t bytes)
{
    late_device *device = of(staging);
    if (device->queued == COPIES && device->run == COPIES) device->queued = device->run = 0;
    if (device->queued == COPIES) return HD_ERROR_INTERNAL;
    device->copies[device->queued++] = (late_copy){out, x, bytes};
    return HD_OK;
}

static hd_status late_mark(hdi_staging *staging, int slot)
{
    of(staging)->marks[slot] = of(staging)->queued;
    of(staging)->asked[slot] = 0;
    return HD_OK;
}

static hd_status late_query(hdi_staging *staging, int slot, bool *done)
{
    late_device *device = of(staging);
    *done = ++device->asked[slot] > (5 * slot + hd_comm_rank(hdt_world)) % 4;
    for (; *done && device->run < device->marks[slot]; device->run++) {
        const late_copy *copy = &device->copies[device->run];
        memcpy(copy->out, copy->x, copy->bytes);
    }
    return HD_OK;
}

static void late_destroy(hdi_staging *staging)
{
    free(staging);
}

static hdi_staging *late_staging(void)
{
    late_device *device = calloc(1, sizeof *device);
    if (!device) abort();
    device->table = (hdi_staging){.reserve = late_reserve,
                                  .release = late_release,
                                  .begin = late_begin,
                                  .copy = late_queue,
                                  .mark = late_mark,
                                  .query = late_query,
                                  .destroy = late_destroy};
    return &device->table;
}

static void *host_reserve(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) abort();
    return memory;
}

static void host_copy(void *out, const void *x, size_t bytes)
{
    memcpy(out, x, bytes);
}

static const hdt_memory host_memory = {
    .reserve = host_reserve, .release = free, .put = host_copy, .get = host_copy};

static hdi_staged_group group;
static hdt_device_comm it;

static void open_staged(void)
{
    group = (hdi_staged_group){0};
    reservations = 0;
    it = (hdt_device_comm){.memory = &host_memory};
    hdt_assert_ok(hdi_comm_create_staged(hdt_world, &group, late_staging(), &it.comm));
}

static void close_staged(void)
{
    hd_comm_destroy(it.comm);
}

static const int64_t sizes[] = {1, 7, 1000, 100003};

START_TEST(collectives_are_exact)
{
    const int64_t count = sizes[_i];
    it.wrong = 0;
    hd_status status = hdt_device_all_reduce(&it, count, HD_DTYPE_F32, HD_REDUCE_SUM);
    if (status == HD_OK) status = hdt_device_all_reduce(&it, count, HD_DTYPE_F64, HD_REDUCE_MAX);
    if (status == HD_OK) status = hdt_device_all_reduce(&it, count, HD_DTYPE_I64, HD_REDUCE_MIN);
    if (status == HD_OK) status = hdt_device_all_gather(&it, count, false);
    if (status == HD_OK) status = hdt_device_all_gather(&it, count, true);
    if (status == HD_OK) status = hdt_device_all_to_all(&it, count);
    if (status == HD_OK) status = hdt_device_broadcast(&it, count);
    hdt_assert_ok(status);
    ck_assert_int_eq(it.wrong, 0);
}
END_TEST

START_TEST(many_messages_are_in_flight_at_once)
{
    it.wrong = 0;
    hd_status status = hdt_device_ring(&it, 16, sizes[_i]);
    hdt_assert_ok(status);
    ck_assert_int_eq(it.wrong, 0);
}
END_TEST

/* Waiting on one communicator drives the operations of the other, which peers may need first. */
START_TEST(a_wait_drives_the_other_communicators_of_the_rank)
{
    hd_comm *other_host = NULL, *other = NULL;
    const int rank = hd_comm_rank(hdt_world);
    hdt_assert_ok(hd_comm_split(hdt_world, 0, rank, &other_host));
    hdt_assert_ok(hdi_comm_create_staged(other_host, &group, late_staging(), &other));
    int32_t first = rank, second = 2 * rank;
    hd_request on_first, on_second;
    hd_status status =
        hd_comm_all_reduce(it.comm, &first, 1, HD_DTYPE_I32, HD_REDUCE_SUM, &on_first);
    if (status == HD_OK)
        status = hd_comm_all_reduce(other, &second, 1, HD_DTYPE_I32, HD_REDUCE_SUM, &on_second);
    const bool turn = rank & 1;
    if (status == HD_OK)
        status = hd_comm_wait(turn ? it.comm : other, turn ? &on_first : &on_second);
    if (status == HD_OK)
        status = hd_comm_wait(turn ? other : it.comm, turn ? &on_second : &on_first);
    hd_comm_destroy(other);
    hd_comm_destroy(other_host);
    hdt_assert_ok(status);
    const int size = hd_comm_size(hdt_world);
    ck_assert_int_eq(first, size * (size - 1) / 2);
    ck_assert_int_eq(second, size * (size - 1));
}
END_TEST

START_TEST(a_missing_peer_is_a_timeout_that_names_the_operation_and_its_place)
{
    const int size = hd_comm_size(hdt_world), rank = hd_comm_rank(hdt_world);
    hd_status status = HD_OK;
    char text[512] = "";
    if (size > 1 && rank == 0) {
        it.comm->deadline_seconds = 0.2;
        int64_t data = 0;
        hd_request request;
        status = hd_comm_recv(it.comm, &data, sizeof data, 1, 5, &request);
        hdi_comm_set_label(it.comm, &request,
                           &(hdi_comm_label){.program = "stage", .scope = "layer.3", .op = 17});
        if (status == HD_OK) status = hd_comm_wait(it.comm, &request);
        snprintf(text, sizeof text, "%s", hd_last_error());
        it.comm->deadline_seconds = hdt_world->deadline_seconds;
    }
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    if (size == 1 || rank != 0) return;
    ck_assert_int_eq(status, HD_ERROR_TIMEOUT);
    ck_assert_ptr_nonnull(strstr(text, "recv of 8 bytes on channel 5"));
    ck_assert_ptr_nonnull(strstr(text, "in 'stage', op 17 (layer.3)"));
}
END_TEST

/* Two sums and a message around the ring, of one size, `rounds` times. */
static hd_status exchange(int rounds, float *sums, float *message)
{
    const int rank = hd_comm_rank(hdt_world), size = hd_comm_size(hdt_world);
    const int below = (rank + size - 1) % size, above = (rank + 1) % size;
    const size_t bytes = sizeof *message;
    hd_status status = HD_OK;
    for (int i = 0; i < rounds && status == HD_OK; i++) {
        hd_request requests[4] = {{0}};
        if (size > 1) status = hd_comm_recv(it.comm, message + 1, bytes, below, 0, &requests[0]);
        if (size > 1 && status == HD_OK)
            status = hd_comm_send(it.comm, message, bytes, above, 0, &requests[1]);
        for (int k = 0; k < 2 && status == HD_OK; k++)
            status = hd_comm_all_reduce(it.comm, sums + k, 1, HD_DTYPE_F32, HD_REDUCE_SUM,
                                        &requests[2 + k]);
        for (int k = 0; k < 4 && status == HD_OK; k++)
            if (requests[k].id) status = hd_comm_wait(it.comm, &requests[k]);
    }
    return status;
}

START_TEST(what_was_rehearsed_takes_no_memory_and_has_moved_nothing)
{
    const int size = hd_comm_size(hdt_world);
    const float rank = (float)hd_comm_rank(hdt_world), ranks = (float)size;
    float sums[2] = {rank, 1}, message[2] = {rank, -1}, forgotten = 7;
    hd_request request;
    ck_assert(hdi_comm_rehearse(it.comm, true));
    hd_status status = exchange(HDI_STAGED_OPERATIONS, sums, message);
    if (status == HD_OK)
        status = hd_comm_all_reduce(it.comm, &forgotten, 1, HD_DTYPE_F32, HD_REDUCE_SUM, &request);
    hdi_comm_rehearse(it.comm, false);
    const bool moved_nothing =
        sums[0] == rank && sums[1] == 1 && message[1] == -1 && forgotten == 7;
    const int taken = reservations;
    const hd_status again = exchange(3, sums, message);
    hdt_assert_ok(status);
    hdt_assert_ok(again);
    ck_assert(moved_nothing);
    ck_assert_int_eq(taken, size > 1 ? 4 : 2);
    ck_assert_int_eq(reservations, taken);
    ck_assert_float_eq(sums[1], ranks * ranks * ranks);
    if (size > 1) ck_assert_float_eq(message[1], rank > 0 ? rank - 1 : ranks - 1);
}
END_TEST

START_TEST(more_than_is_ever_in_flight_can_be_rehearsed)
{
    float values[HDI_STAGED_OPERATIONS + 5] = {0};
    hd_request requests[HDI_STAGED_OPERATIONS + 5];
    hd_status status = HD_OK;
    ck_assert(hdi_comm_rehearse(it.comm, true));
    for (int i = 0; i < HDI_STAGED_OPERATIONS + 5 && status == HD_OK; i++)
        status =
            hd_comm_all_reduce(it.comm, &values[i], 1, HD_DTYPE_F32, HD_REDUCE_SUM, &requests[i]);
    for (int i = 0; i < HDI_STAGED_OPERATIONS + 5 && status == HD_OK; i++)
        status = hd_comm_wait(it.comm, &requests[i]);
    hdi_comm_rehearse(it.comm, false);
    hdt_assert_ok(status);
    ck_assert(!hdi_comm_rehearse(hdt_world, true));
}
END_TEST

START_TEST(a_split_is_refused)
{
    hd_comm *split = NULL;
    hd_status status = hd_comm_split(it.comm, 0, 0, &split);
    hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "device memory");
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("staged");
    tcase_add_checked_fixture(tests, open_staged, close_staged);
    tcase_add_loop_test(tests, collectives_are_exact, 0, 4);
    tcase_add_loop_test(tests, many_messages_are_in_flight_at_once, 0, 4);
    tcase_add_test(tests, a_wait_drives_the_other_communicators_of_the_rank);
    tcase_add_test(tests, a_missing_peer_is_a_timeout_that_names_the_operation_and_its_place);
    tcase_add_test(tests, what_was_rehearsed_takes_no_memory_and_has_moved_nothing);
    tcase_add_test(tests, more_than_is_ever_in_flight_can_be_rehearsed);
    tcase_add_test(tests, a_split_is_refused);
    return hdt_main_ranks(argc, argv, "staged", tests);
}
