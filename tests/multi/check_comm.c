/* Ranks that move bytes: exact results for every operation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"
#include "core/memory.h"
#include "tests/support/hdt.h"

static const int64_t sizes[] = {0, 1, 2, 17, 1000, 65537, 3000000};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static int rank, size;

static void *allocate(int64_t count, size_t element)
{
    void *data = calloc((size_t)count + 1, element);
    if (!data) abort();
    return data;
}

static int expected(hd_reduce op, int64_t i)
{
    const int least = (int)(i % 1000), most = least + size - 1;
    if (op == HD_REDUCE_MIN) return least;
    return op == HD_REDUCE_MAX ? most : size * least + size * (size - 1) / 2;
}

/* Whole numbers add exactly in every dtype, so results are compared for equality. */
#define DEFINE_ALL_REDUCE(function, type, dtype)                                            \
    static void function(int64_t count, hd_reduce op)                                       \
    {                                                                                       \
        type *data = allocate(count, sizeof *data);                                         \
        for (int64_t i = 0; i < count; i++)                                                 \
            data[i] = (type)(i % 1000 + rank);                                              \
        hd_request request;                                                                 \
        hd_status posted = hd_comm_all_reduce(hdt_world, data, count, dtype, op, &request); \
        hd_status status = hdt_finish(hdt_world, posted, &request);                         \
        int64_t wrong = 0;                                                                  \
        for (int64_t i = 0; i < count; i++)                                                 \
            wrong += data[i] != (type)expected(op, i);                                      \
        free(data);                                                                         \
        hdt_assert_ok(status);                                                              \
        ck_assert_int_eq(wrong, 0);                                                         \
    }

DEFINE_ALL_REDUCE(all_reduce_f32, float, HD_DTYPE_F32)
DEFINE_ALL_REDUCE(all_reduce_f64, double, HD_DTYPE_F64)
DEFINE_ALL_REDUCE(all_reduce_i32, int32_t, HD_DTYPE_I32)
DEFINE_ALL_REDUCE(all_reduce_i64, int64_t, HD_DTYPE_I64)

START_TEST(all_reduce_combines_what_every_rank_gives)
{
    all_reduce_f32(sizes[_i], HD_REDUCE_SUM);
    all_reduce_i32(sizes[_i], HD_REDUCE_MAX);
    if (sizes[_i] > 100000) return;
    all_reduce_f64(sizes[_i], HD_REDUCE_SUM);
    all_reduce_f64(sizes[_i], HD_REDUCE_MIN);
    all_reduce_i64(sizes[_i], HD_REDUCE_SUM);
    all_reduce_f32(sizes[_i], HD_REDUCE_MAX);
    all_reduce_i32(sizes[_i], HD_REDUCE_MIN);
}
END_TEST

/* Blocks of unequal size with a gap between them; every third rank gives nothing. */
static int64_t block_count(int r, int64_t unit)
{
    return r % 3 == 2 ? 0 : unit + r;
}

START_TEST(all_gather_collects_unequal_blocks)
{
    const int64_t unit = sizes[_i] / size;
    int64_t counts[64], offsets[64], total = 0;
    for (int r = 0; r < size; r++) {
        counts[r] = block_count(r, unit);
        offsets[r] = total;
        total += counts[r] + 1;
    }
    int32_t *data = allocate(total, sizeof *data);
    for (int64_t i = 0; i < total; i++)
        data[i] = -1;
    for (int64_t i = 0; i < counts[rank]; i++)
        data[offsets[rank] + i] = (int32_t)(offsets[rank] + i);
    hd_request request;
    hd_status status = hdt_finish(
        hdt_world, hd_comm_all_gather(hdt_world, data, counts, offsets, HD_DTYPE_I32, &request),
        &request);
    int64_t wrong = 0;
    for (int r = 0; r < size; r++) {
        for (int64_t i = offsets[r]; i < offsets[r] + counts[r]; i++)
            wrong += data[i] != (int32_t)i;
        wrong += data[offsets[r] + counts[r]] != -1;
    }
    free(data);
    hdt_assert_ok(status);
    ck_assert_int_eq(wrong, 0);
}
END_TEST

/* What rank `from` sends to rank `to`: uneven, and nothing in one direction of some pairs. */
static int64_t message_count(int from, int to, int64_t unit)
{
    return (from + 2 * to) % 5 == 4 ? 0 : unit + from + 3 * to;
}

START_TEST(all_to_all_exchanges_unequal_blocks)
{
    const int64_t unit = sizes[_i] / size;
    int64_t send_counts[64], send_offsets[64], recv_counts[64], recv_offsets[64];
    int64_t send_total = 0, recv_total = 0;
    for (int r = 0; r < size; r++) {
        send_counts[r] = message_count(rank, r, unit);
        recv_counts[r] = message_count(r, rank, unit);
        send_offsets[r] = send_total;
        recv_offsets[r] = recv_total;
        send_total += send_counts[r];
        recv_total += recv_counts[r];
    }
    int64_t *send = allocate(send_total, sizeof *send), *recv = allocate(recv_total, sizeof *recv);
    for (int r = 0; r < size; r++)
        for (int64_t i = 0; i < send_counts[r]; i++)
            send[send_offsets[r] + i] = i * 10000 + rank * 100 + r;
    hd_request request;
    hd_status status =
        hdt_finish(hdt_world,
                   hd_comm_all_to_all(hdt_world, send, send_counts, send_offsets, recv, recv_counts,
                                      recv_offsets, HD_DTYPE_I64, &request),
                   &request);
    int64_t wrong = 0;
    for (int r = 0; r < size; r++)
        for (int64_t i = 0; i < recv_counts[r]; i++)
            wrong += recv[recv_offsets[r] + i] != i * 10000 + r * 100 + rank;
    free(send);
    free(recv);
    hdt_assert_ok(status);
    ck_assert_int_eq(wrong, 0);
}
END_TEST

START_TEST(broadcast_copies_from_each_root)
{
    const size_t bytes = (size_t)sizes[_i];
    unsigned char *data = allocate(sizes[_i], 1);
    for (int root = 0; root < size; root++) {
        memset(data, rank == root ? root + 1 : 0, bytes);
        hd_request request;
        hd_status status = hdt_finish(
            hdt_world, hd_comm_broadcast(hdt_world, data, bytes, root, &request), &request);
        size_t wrong = 0;
        for (size_t i = 0; i < bytes; i++)
            wrong += data[i] != root + 1;
        hdt_assert_ok(status);
        ck_assert_uint_eq(wrong, 0);
    }
    free(data);
}
END_TEST

START_TEST(a_ring_of_messages_arrives)
{
    if (size == 1) return;
    const int64_t count = sizes[_i];
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    float *send = allocate(count, sizeof *send), *recv = allocate(count, sizeof *recv);
    float *want = allocate(count, sizeof *want);
    const size_t bytes = (size_t)count * sizeof *send;
    hdt_fill(send, count, (uint64_t)rank);
    hdt_fill(want, count, (uint64_t)previous);
    hd_request requests[2];
    hd_status sent = hd_comm_send(hdt_world, send, bytes, next, 3, &requests[0]);
    hd_status received = hd_comm_recv(hdt_world, recv, bytes, previous, 3, &requests[1]);
    received = hdt_finish(hdt_world, received, &requests[1]);
    sent = hdt_finish(hdt_world, sent, &requests[0]);
    const int difference = memcmp(recv, want, bytes);
    free(send);
    free(recv);
    free(want);
    hdt_assert_ok(sent);
    hdt_assert_ok(received);
    ck_assert_int_eq(difference, 0);
}
END_TEST

START_TEST(channels_keep_messages_apart)
{
    if (size == 1) return;
    enum { CHANNELS = HDI_COMM_CHANNELS };
    int send[CHANNELS], recv[CHANNELS];
    hd_request sends[CHANNELS], recvs[CHANNELS];
    hd_status status = HD_OK;
    for (int i = 0; i < CHANNELS; i++) { /* received in the opposite order of sending */
        const int channel = CHANNELS - 1 - i;
        send[i] = 1000 * rank + i;
        if (status == HD_OK)
            status =
                hd_comm_send(hdt_world, &send[i], sizeof send[i], (rank + 1) % size, i, &sends[i]);
        if (status == HD_OK)
            status = hd_comm_recv(hdt_world, &recv[channel], sizeof recv[0],
                                  (rank + size - 1) % size, channel, &recvs[i]);
    }
    for (int i = 0; i < CHANNELS && status == HD_OK; i++) {
        status = hd_comm_wait(hdt_world, &sends[i]);
        if (status == HD_OK) status = hd_comm_wait(hdt_world, &recvs[i]);
    }
    hdt_assert_ok(status);
    for (int i = 0; i < CHANNELS; i++)
        ck_assert_int_eq(recv[i], 1000 * ((rank + size - 1) % size) + i);
}
END_TEST

START_TEST(many_requests_in_flight_need_no_memory)
{
    enum { MANY = 500 };
    static int32_t sums[MANY], recv[MANY], send[MANY];
    static hd_request reductions[MANY], sends[MANY], recvs[MANY];
    const uint64_t allocations = hdi_alloc_count();
    hd_status status = HD_OK;
    for (int i = 0; i < MANY; i++) {
        send[i] = rank * MANY + i;
        sums[i] = i;
        sends[i] = recvs[i] = (hd_request){0};
    }
    for (int i = 0; i < 300 && status == HD_OK; i++) {
        status =
            hd_comm_all_reduce(hdt_world, &sums[i], 1, HD_DTYPE_I32, HD_REDUCE_SUM, &reductions[i]);
        if (size == 1 || status != HD_OK) continue;
        status = hd_comm_send(hdt_world, &send[i], 4, (rank + 1) % size, 0, &sends[i]);
        if (status == HD_OK)
            status = hd_comm_recv(hdt_world, &recv[i], 4, (rank + size - 1) % size, 0, &recvs[i]);
    }
    for (int i = 299; i >= 0 && status == HD_OK; i--) { /* in another order than posted */
        status = hd_comm_wait(hdt_world, &reductions[i]);
        if (status == HD_OK) status = hd_comm_wait(hdt_world, &recvs[i]);
        if (status == HD_OK) status = hd_comm_wait(hdt_world, &sends[i]);
    }
    hdt_assert_ok(status);
    ck_assert_uint_eq(hdi_alloc_count(), allocations);
    for (int i = 0; i < 300; i++) {
        ck_assert_int_eq(sums[i], size * i);
        if (size > 1) ck_assert_int_eq(recv[i], (rank + size - 1) % size * MANY + i);
    }
}
END_TEST

START_TEST(too_many_requests_are_refused_and_destroy_withdraws_receives)
{
    if (size == 1) return;
    enum { MOST = 1024 };
    static char data[MOST + 1];
    static hd_request requests[MOST + 1];
    hd_comm *world = hdt_open_world(0);
    const int peer = (rank + 1) % size;
    int posted = 0;
    while (posted <= MOST &&
           hd_comm_recv(world, &data[posted], 1, peer, 5, &requests[posted]) == HD_OK)
        posted++;
    const bool is_named = strstr(hd_last_error(), "1024 requests are in flight") != NULL;
    hd_comm_destroy(world);
    ck_assert_int_eq(posted, MOST);
    ck_assert(is_named);
    ck_assert_int_eq(requests[MOST].id, 0);
}
END_TEST

START_TEST(a_request_is_known_once)
{
    hd_request request, copy;
    bool done = false;
    int32_t value = 1;
    hd_status posted =
        hd_comm_all_reduce(hdt_world, &value, 1, HD_DTYPE_I32, HD_REDUCE_SUM, &request);
    copy = request;
    hd_status first = hdt_finish(hdt_world, posted, &request);
    const int32_t id_when_done = request.id;
    hd_status again = hd_comm_wait(hdt_world, &request);
    /* The next operation takes the same place in the pool. */
    posted = hd_comm_all_reduce(hdt_world, &value, 1, HD_DTYPE_I32, HD_REDUCE_SUM, &request);
    hd_status stale = hd_comm_test(hdt_world, &copy, &done);
    const bool is_named = strstr(hd_last_error(), "not in flight") != NULL;
    hd_status second = hdt_finish(hdt_world, posted, &request);
    hdt_assert_ok(first);
    hdt_assert_ok(again);
    hdt_assert_ok(second);
    ck_assert_int_eq(id_when_done, 0);
    ck_assert_int_eq(stale, HD_ERROR_ARGUMENT);
    ck_assert(is_named);
}
END_TEST

START_TEST(large_messages_travel_in_pieces)
{
    hd_comm *world = hdt_open_world(0);
    hdi_comm_mpi_set_piece(world, 1000);
    enum { COUNT = 2600 };
    static int32_t sums[COUNT], ring_send[COUNT], ring_recv[COUNT], shared[COUNT], all[64 * 600];
    int64_t counts[64], offsets[64];
    for (int i = 0; i < COUNT; i++) {
        sums[i] = i + rank;
        ring_send[i] = i * 10 + rank;
        shared[i] = rank == 0 ? 7 * i : 0;
    }
    for (int r = 0; r < size; r++) {
        counts[r] = 600;
        offsets[r] = r * 600;
    }
    for (int i = 0; i < 600; i++)
        all[rank * 600 + i] = rank * 1000 + i;
    hd_request requests[5] = {{0}};
    hd_status posted[5] = {
        hd_comm_all_reduce(world, sums, COUNT, HD_DTYPE_I32, HD_REDUCE_SUM, &requests[0]),
        hd_comm_broadcast(world, shared, sizeof shared, 0, &requests[1]),
        hd_comm_all_gather(world, all, counts, offsets, HD_DTYPE_I32, &requests[2]),
    };
    if (size > 1) {
        posted[3] =
            hd_comm_send(world, ring_send, sizeof ring_send, (rank + 1) % size, 1, &requests[3]);
        posted[4] = hd_comm_recv(world, ring_recv, sizeof ring_recv, (rank + size - 1) % size, 1,
                                 &requests[4]);
    }
    for (int i = 0; i < 5; i++)
        posted[i] = hdt_finish(world, posted[i], &requests[i]);
    /* 100 bytes at most in one message, and at most 64 + 2 x ranks messages. */
    hdi_comm_mpi_set_piece(world, 100);
    hd_status refused = hd_comm_broadcast(world, shared, sizeof shared, 0, &requests[0]);
    char text[256] = "";
    strncat(text, hd_last_error(), sizeof text - 1);
    hd_comm_destroy(world);

    for (int i = 0; i < 5; i++)
        hdt_assert_ok(posted[i]);
    for (int i = 0; i < COUNT; i++) {
        ck_assert_int_eq(sums[i], size * i + size * (size - 1) / 2);
        ck_assert_int_eq(shared[i], 7 * i);
        if (size > 1) ck_assert_int_eq(ring_recv[i], i * 10 + (rank + size - 1) % size);
    }
    for (int i = 0; i < size * 600; i++)
        ck_assert_int_eq(all[i], i / 600 * 1000 + i % 600);
    ck_assert_int_eq(refused, HD_ERROR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(text, "MPI messages; cut it"));
}
END_TEST

START_TEST(a_message_of_another_size_is_an_error)
{
    if (size == 1) return;
    char data[16] = "", text[256] = "";
    hd_request request = {0};
    hd_status status = HD_OK;
    if (rank == 0) status = hd_comm_send(hdt_world, data, 8, 1, 2, &request);
    if (rank == 1) status = hd_comm_recv(hdt_world, data, 16, 0, 2, &request);
    status = hdt_finish(hdt_world, status, &request);
    strncat(text, hd_last_error(), sizeof text - 1);
    if (rank == 1) {
        ck_assert_int_eq(status, HD_ERROR_COMM);
        ck_assert_ptr_nonnull(strstr(text, "rank 0 sent 8 bytes, want 16"));
    } else {
        ck_assert_int_eq(status, HD_OK);
    }
}
END_TEST

START_TEST(a_message_too_large_for_its_receiver_is_an_error)
{
    if (size == 1) return;
    char data[16] = "", text[512] = "";
    hd_request request = {0};
    hd_status status = HD_OK;
    if (rank == 0) status = hd_comm_send(hdt_world, data, 16, 1, 2, &request);
    if (rank == 1) status = hd_comm_recv(hdt_world, data, 8, 0, 2, &request);
    status = hdt_finish(hdt_world, status, &request);
    strncat(text, hd_last_error(), sizeof text - 1);
    if (rank == 1) {
        ck_assert_int_eq(status, HD_ERROR_COMM);
        ck_assert_ptr_nonnull(strstr(text, "recv with rank 0"));
        ck_assert_ptr_nonnull(strstr(text, "MPI_ERR_TRUNCATE"));
    } else {
        ck_assert_int_eq(status, HD_OK);
    }
}
END_TEST

static void note_place(void)
{
    rank = hd_comm_rank(hdt_world);
    size = hd_comm_size(hdt_world);
}

int main(int argc, char **argv)
{
    TCase *data = tcase_create("data");
    tcase_add_unchecked_fixture(data, note_place, NULL);
    tcase_add_loop_test(data, all_reduce_combines_what_every_rank_gives, 0, SIZES);
    tcase_add_loop_test(data, all_gather_collects_unequal_blocks, 0, SIZES);
    tcase_add_loop_test(data, all_to_all_exchanges_unequal_blocks, 0, SIZES);
    tcase_add_loop_test(data, broadcast_copies_from_each_root, 0, SIZES);
    tcase_add_loop_test(data, a_ring_of_messages_arrives, 0, SIZES);
    tcase_add_test(data, channels_keep_messages_apart);
    tcase_add_test(data, many_requests_in_flight_need_no_memory);
    tcase_add_test(data, too_many_requests_are_refused_and_destroy_withdraws_receives);
    tcase_add_test(data, a_request_is_known_once);
    tcase_add_test(data, large_messages_travel_in_pieces);
    tcase_add_test(data, a_message_of_another_size_is_an_error);
    tcase_add_test(data, a_message_too_large_for_its_receiver_is_an_error);

    return hdt_main_ranks(argc, argv, "comm", data);
}
