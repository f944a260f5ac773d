/* ranks: 2 4 8 */
/* Exchanges by copy engines, beside kernels: straight into the memory of GPUs that reach each other, and through
 * the host's; on whole numbers, so every comparison is exact. What cannot be is said, no more. */
#include "tests/gpu/hdt_copies.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"

static hdt_copies *const place = &hdt_place;

static int64_t message_count(int from, int to, int64_t unit)
{
    return (from + 2 * to) % 5 == 4 ? 0 : unit + from + 3 * to;
}

static int64_t message_value(int from, int to, int64_t i)
{
    return ((int64_t)from * 64 + to) * 100000007 + i;
}

/* Elements into the receiving place of rank `to` at which what comes from `from` begins. */
static int64_t message_place(int from, int to, int64_t unit)
{
    int64_t at = to; /* nothing is at the same offset on two ranks */
    for (int r = 0; r < from; r++)
        at += message_count(r, to, unit) + 1;
    return at;
}

static hd_status finish(hd_status posted, hd_request *request, bool order)
{
    if (posted != HD_OK) return posted;
    return order ? hdi_comm_order(place->comm, request) : hd_comm_wait(place->comm, request);
}

static hd_status exchange(int64_t unit, bool order, int64_t *wrong)
{
    const int size = place->comm->size, rank = place->comm->rank;
    int64_t send_counts[8] = {0}, send_offsets[8] = {0}, recv_counts[8] = {0};
    int64_t recv_offsets[8] = {0}, sent = 0;
    for (int r = 0; r < size; r++) {
        send_counts[r] = message_count(rank, r, unit);
        recv_counts[r] = message_count(r, rank, unit);
        send_offsets[r] = sent;
        recv_offsets[r] = message_place(r, rank, unit);
        place->way.to[r] = HDT_RECV_AT + (size_t)message_place(rank, r, unit) * sizeof(int64_t);
        sent += send_counts[r];
    }
    const int64_t received = recv_offsets[size - 1] + recv_counts[size - 1] + 1;
    int64_t *send = calloc((size_t)sent + 1, sizeof *send);
    int64_t *recv = calloc((size_t)received, sizeof *recv);
    for (int r = 0; r < size; r++)
        for (int64_t i = 0; i < send_counts[r]; i++)
            send[send_offsets[r] + i] = message_value(rank, r, i);
    for (int64_t i = 0; i < received; i++)
        recv[i] = -1;
    /* On the compute stream and not waited for: a post that does not wait for it sends old bytes. */
    (void)cudaMemcpyAsync(place->arena + HDT_SEND_AT, send, (size_t)sent * sizeof *send,
                          cudaMemcpyHostToDevice, hdt_compute());
    (void)cudaMemcpyAsync(place->arena + HDT_RECV_AT, recv, (size_t)received * sizeof *recv,
                          cudaMemcpyHostToDevice, hdt_compute());
    hd_request request = {0};
    place->comm->way = &place->way;
    const hd_status posted = hd_comm_all_to_all(
        place->comm, place->arena + HDT_SEND_AT, send_counts, send_offsets,
        place->arena + HDT_RECV_AT, recv_counts, recv_offsets, HD_DTYPE_I64, &request);
    place->comm->way = NULL;
    const hd_status status = finish(posted, &request, order);
    (void)hdi_comm_settle(place->comm);
    (void)cudaMemcpyAsync(recv, place->arena + HDT_RECV_AT, (size_t)received * sizeof *recv,
                          cudaMemcpyDeviceToHost, hdt_compute());
    (void)cudaStreamSynchronize(hdt_compute());
    for (int r = 0; r < size; r++) {
        for (int64_t i = 0; i < recv_counts[r]; i++)
            *wrong += recv[recv_offsets[r] + i] != message_value(r, rank, i);
        *wrong += recv[recv_offsets[r] + recv_counts[r]] != -1;
    }
    free(send);
    free(recv);
    return status;
}

/* Some empty, none of the same bytes; in between, what goes by kernels. */
START_TEST(unequal_parts_land_where_peers_wait_for_them)
{
    const int64_t units[] = {1, 1000, 20011, 400009, (21 << 20) / place->comm->size};
    if (!place->way.window) return;
    int64_t wrong = 0;
    for (int i = 0; i < (_i < 8 ? 4 : 1); i++) {
        const hd_status status = exchange(units[_i / 2], _i & 1, &wrong);
        hdt_assert_ok(status);
        hdt_assert_ok(hd_comm_barrier(place->comm));
    }
    ck_assert_int_eq(wrong, 0);
}
END_TEST

START_TEST(gathered_parts_are_whole)
{
    if (!place->way.window) return;
    enum { UNIT = 300007 };
    int64_t counts[8], offsets[8], total = 0, wrong = 0;
    for (int r = 0; r < place->comm->size; r++) {
        counts[r] = r % 3 == 2 ? 0 : UNIT + r;
        offsets[r] = total;
        total += counts[r] + 1;
    }
    int32_t *host = calloc((size_t)total, sizeof *host);
    for (int64_t i = 0; i < total; i++)
        host[i] = i >= offsets[place->comm->rank] &&
                          i < offsets[place->comm->rank] + counts[place->comm->rank]
                      ? (int32_t)i
                      : -1;
    for (int r = 0; r < place->comm->size; r++)
        place->way.to[r] = HDT_RECV_AT + (size_t)offsets[place->comm->rank] * sizeof *host;
    (void)cudaMemcpyAsync(place->arena + HDT_RECV_AT, host, (size_t)total * sizeof *host,
                          cudaMemcpyHostToDevice, hdt_compute());
    hd_request request = {0};
    place->comm->way = &place->way;
    const hd_status posted = hd_comm_all_gather(place->comm, place->arena + HDT_RECV_AT, counts,
                                                offsets, HD_DTYPE_I32, &request);
    place->comm->way = NULL;
    const hd_status status = finish(posted, &request, true);
    (void)hdi_comm_settle(place->comm);
    (void)cudaMemcpyAsync(host, place->arena + HDT_RECV_AT, (size_t)total * sizeof *host,
                          cudaMemcpyDeviceToHost, hdt_compute());
    (void)cudaStreamSynchronize(hdt_compute());
    for (int r = 0; r < place->comm->size; r++)
        for (int64_t i = offsets[r]; i <= offsets[r] + counts[r]; i++)
            wrong += host[i] != (i < offsets[r] + counts[r] ? (int32_t)i : -1);
    free(host);
    hdt_assert_ok(status);
    ck_assert_int_eq(wrong, 0);
}
END_TEST

/* Rank 0 computes longer. The same place receives in each round, so who writes before a peer has read what
 * came before is seen; nobody waits on the host. */
START_TEST(many_exchanges_beside_kernels_keep_their_order)
{
    if (!place->way.window) return;
    enum { ROUNDS = 16, COUNT = 1 << 18 };
    const size_t block = COUNT * sizeof(float), all = block * (size_t)place->comm->size;
    const hd_backend *backend = place->context->backend;
    int64_t counts[8], offsets[8];
    char *kept = NULL, *want = malloc(block), *got = malloc(block);
    hdt_assert_ok(hdi_cuda_status(cudaMalloc((void **)&kept, all * ROUNDS), "cudaMalloc"));
    for (int r = 0; r < place->comm->size; r++) {
        counts[r] = COUNT;
        offsets[r] = (int64_t)r * COUNT;
        place->way.to[r] = HDT_RECV_AT + block * (size_t)place->comm->rank;
    }
    hd_status status = HD_OK;
    for (int i = 0; i < ROUNDS && status == HD_OK; i++) {
        hd_request request = {0};
        for (int k = 0; k < (place->comm->rank == 0 ? 8 : 1) && status == HD_OK; k++)
            status = backend->fill_normal(
                place->context->stream, HD_DTYPE_F32, place->arena + HDT_SEND_AT,
                (int64_t)COUNT * place->comm->size, 7, (uint64_t)place->comm->rank, i, 1);
        place->comm->way = &place->way;
        if (status == HD_OK)
            status = hd_comm_all_to_all(place->comm, place->arena + HDT_SEND_AT, counts, offsets,
                                        place->arena + HDT_RECV_AT, counts, offsets, HD_DTYPE_F32,
                                        &request);
        place->comm->way = NULL;
        if (status == HD_OK)
            status = backend->fill_normal(place->context->stream, HD_DTYPE_F32,
                                          place->arena + HDT_SCRATCH_AT, COUNT, 9, 9, i, 1);
        if (status == HD_OK) status = hdi_comm_order(place->comm, &request);
        (void)cudaMemcpyAsync(kept + all * (size_t)i, place->arena + HDT_RECV_AT, all,
                              cudaMemcpyDeviceToDevice, hdt_compute());
    }
    if (status == HD_OK) status = hdi_comm_settle(place->comm);
    (void)cudaStreamSynchronize(hdt_compute());
    int wrong = 0;
    for (int i = 0; i < ROUNDS && status == HD_OK; i++)
        for (int r = 0; r < place->comm->size; r++) {
            (void)backend->fill_normal(place->context->stream, HD_DTYPE_F32,
                                       place->arena + HDT_SEND_AT,
                                       (int64_t)COUNT * place->comm->size, 7, (uint64_t)r, i, 1);
            (void)cudaMemcpyAsync(want,
                                  place->arena + HDT_SEND_AT + block * (size_t)place->comm->rank,
                                  block, cudaMemcpyDeviceToHost, hdt_compute());
            (void)cudaMemcpyAsync(got, kept + all * (size_t)i + block * (size_t)r, block,
                                  cudaMemcpyDeviceToHost, hdt_compute());
            (void)cudaStreamSynchronize(hdt_compute());
            wrong += memcmp(want, got, block) != 0;
        }
    (void)cudaFree(kept);
    free(want);
    free(got);
    hdt_assert_ok(status);
    ck_assert_msg(wrong == 0, "%d of %d blocks", wrong, ROUNDS * place->comm->size);
}
END_TEST

START_TEST(a_window_may_be_made_anew_over_other_memory)
{
    if (!place->way.window) return;
    int64_t wrong = 0;
    for (int i = 0; i < 3; i++) {
        hdt_copies_release();
        hdt_copies_reserve(HDT_ARENA + ((size_t)(place->comm->size - place->comm->rank + i) << 22));
        hd_status status = place->way.window ? exchange(20011, true, &wrong) : HD_OK;
        hdt_assert_ok(status);
        ck_assert_ptr_nonnull(place->way.window);
    }
    ck_assert_int_eq(wrong, 0);
}
END_TEST

/* Rank 0 stays away: the others say so within the deadline and some seconds, and their GPUs are free. */
START_TEST(a_missing_peer_is_a_timeout_and_leaves_the_device_free)
{
    enum { LATEST_SECONDS = 15 };
    if (!place->way.window) return;
    hd_status status = HD_OK;
    double seconds = 0;
    char text[1024] = "";
    int64_t wrong = 0;
    if (place->comm->rank != 0) {
        place->comm->deadline_seconds = 1;
        const double begin = hdi_clock_seconds();
        int64_t counts[8], offsets[8];
        for (int r = 0; r < place->comm->size; r++) {
            counts[r] = 100000;
            offsets[r] = (int64_t)r * 100000;
            place->way.to[r] = HDT_RECV_AT + (size_t)place->comm->rank * 400000;
        }
        hd_request request = {0};
        place->comm->way = &place->way;
        status =
            hd_comm_all_to_all(place->comm, place->arena + HDT_SEND_AT, counts, offsets,
                               place->arena + HDT_RECV_AT, counts, offsets, HD_DTYPE_F32, &request);
        place->comm->way = NULL;
        hd_request message = {0};
        place->comm->way = &place->way;
        if (status == HD_OK)
            status = hd_comm_recv(place->comm, place->arena + HDT_SCRATCH_AT, 1 << 20,
                                  (place->comm->rank + place->comm->size - 1) % place->comm->size,
                                  0, &message);
        place->comm->way = NULL;
        if (status == HD_OK) status = hdi_comm_order(place->comm, &request);
        if (status == HD_OK) status = hdi_comm_order(place->comm, &message);
        if (status == HD_OK) status = hdi_comm_settle(place->comm);
        snprintf(text, sizeof text, "%s", hd_last_error());
        wrong = cudaStreamSynchronize(hdt_compute()) != cudaSuccess;
        seconds = hdi_clock_seconds() - begin;
    }
    const hd_status together = hd_comm_barrier(hdt_world);
    hdt_assert_ok(together);
    if (place->comm->rank == 0) return;
    ck_assert_int_eq(status, HD_ERROR_TIMEOUT);
    ck_assert_msg(strstr(text, "all_to_all of") != NULL, "%s", text);
    ck_assert_int_eq(wrong, 0);
    ck_assert_double_lt(seconds, LATEST_SECONDS);
}
END_TEST

static TCase *cases(const char *name, void (*open)(void))
{
    TCase *tests = tcase_create(name);
    tcase_add_unchecked_fixture(tests, open, hdt_copies_close);
    tcase_add_loop_test(tests, unequal_parts_land_where_peers_wait_for_them, 0, 10);
    tcase_add_test(tests, gathered_parts_are_whole);
    tcase_add_test(tests, many_exchanges_beside_kernels_keep_their_order);
    tcase_add_test(tests, a_window_may_be_made_anew_over_other_memory);
    return tests;
}

static TCase *faults(const char *name, void (*open)(void))
{
    TCase *tests = tcase_create(name);
    tcase_add_unchecked_fixture(tests, open, hdt_copies_close);
    tcase_add_test(tests, a_missing_peer_is_a_timeout_and_leaves_the_device_free);
    return tests;
}

int main(int argc, char **argv)
{
    return hdt_main_ranks(argc, argv, "copies", cases("peers", hdt_copies_open_peers),
                          cases("host", hdt_copies_open_host),
                          faults("peers' faults", hdt_copies_open_peers),
                          faults("host's faults", hdt_copies_open_host));
}
