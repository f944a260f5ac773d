/* ranks: 2 4 8 */
/* Exchanges by copy engines between GPUs that reach each other, straight into their memory, beside kernels;
 * on whole numbers, so every comparison is exact. Where they cannot be, that is said and nothing else. */
#include "tests/support/hdt_device.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend/cuda/cuda.h"
#include "comm/direct.h"
#include "core/clock.h"
#include "runtime/gpu.h"
#include "runtime/session.h"
#include "tests/support/hdt.h"

enum { SEND_AT = 1 << 20, RECV_AT = 48 << 20, SCRATCH_AT = 96 << 20, ARENA = 128 << 20 };

static hd_context *context;
static hd_mesh *mesh;
static hd_comm *comm;
static char *arena;
static size_t arena_bytes;
static hdi_way way;

static void reserve_arena(size_t bytes)
{
    void *memory = NULL;
    arena_bytes = bytes;
    hdt_assert_ok(context->backend->reserve(context->device, bytes, &memory));
    arena = memory;
    hdt_assert_ok(comm->transport->open_window(
        comm, arena, hdi_gpu_can_share(context->ordinal, arena, bytes), &way.window));
}

static void release_arena(void)
{
    if (way.window) comm->transport->close_window(comm, way.window);
    way.window = NULL;
    (void)hd_comm_barrier(hdt_world);
    context->backend->release(context->device, arena, arena_bytes);
}

/* Arenas of different sizes, all ranks on one axis. */
static void open_place(void)
{
    const hd_mesh_options layout = {.data = hd_comm_size(hdt_world)};
    const hd_context_options options = {.device = "cuda", .share_gpu = true};
    hdt_assert_ok(hd_mesh_create(hdt_world, &layout, &mesh));
    hdt_assert_ok(hd_context_create_ranked(hdt_world, &options, &context));
    hdt_assert_ok(hd_mesh_attach(mesh, context, HD_DEVICE_TRANSPORT_NCCL));
    comm = hd_mesh_device_comm(mesh, HD_AXIS_DATA);
    reserve_arena(ARENA + ((size_t)hd_comm_rank(hdt_world) << 22));
    if (!way.window && hd_comm_rank(hdt_world) == 0)
        printf("skipped: no exchange by copy engines here (%s)\n",
               context->shares_gpu ? "ranks share GPUs" : hd_last_error());
}

static void close_place(void)
{
    release_arena();
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    context = NULL;
    mesh = NULL;
}

static int64_t message_count(int from, int to, int64_t unit)
{
    return (from + 2 * to) % 5 == 4 ? 0 : unit + from + 3 * to;
}

static int64_t message_value(int from, int to, int64_t i)
{
    return ((int64_t)from * 64 + to) * 1000003 + i;
}

/* Elements into the receiving place of rank `to` at which what comes from `from` begins. */
static int64_t message_place(int from, int to, int64_t unit)
{
    int64_t place = to; /* nothing is at the same offset on two ranks */
    for (int r = 0; r < from; r++)
        place += message_count(r, to, unit) + 1;
    return place;
}

static hd_status finish(hd_status posted, hd_request *request, bool order)
{
    if (posted != HD_OK) return posted;
    return order ? hdi_comm_order(comm, request) : hd_comm_wait(comm, request);
}

static cudaStream_t compute(void)
{
    return context->stream->handle;
}

static hd_status exchange(int64_t unit, bool order, int64_t *wrong)
{
    const int size = comm->size, rank = comm->rank;
    int64_t send_counts[8] = {0}, send_offsets[8] = {0}, recv_counts[8] = {0};
    int64_t recv_offsets[8] = {0}, sent = 0;
    for (int r = 0; r < size; r++) {
        send_counts[r] = message_count(rank, r, unit);
        recv_counts[r] = message_count(r, rank, unit);
        send_offsets[r] = sent;
        recv_offsets[r] = message_place(r, rank, unit);
        way.to[r] = RECV_AT + (size_t)message_place(rank, r, unit) * sizeof(int64_t);
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
    (void)cudaMemcpyAsync(arena + SEND_AT, send, (size_t)sent * sizeof *send,
                          cudaMemcpyHostToDevice, compute());
    (void)cudaMemcpyAsync(arena + RECV_AT, recv, (size_t)received * sizeof *recv,
                          cudaMemcpyHostToDevice, compute());
    hd_request request = {0};
    comm->way = &way;
    const hd_status posted =
        hd_comm_all_to_all(comm, arena + SEND_AT, send_counts, send_offsets, arena + RECV_AT,
                           recv_counts, recv_offsets, HD_DTYPE_I64, &request);
    comm->way = NULL;
    const hd_status status = finish(posted, &request, order);
    (void)hdi_comm_settle(comm);
    (void)cudaMemcpyAsync(recv, arena + RECV_AT, (size_t)received * sizeof *recv,
                          cudaMemcpyDeviceToHost, compute());
    (void)cudaStreamSynchronize(compute());
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
    static const int64_t units[] = {1, 1000, 20011, 400009};
    if (!way.window) return;
    int64_t wrong = 0;
    for (int i = 0; i < 4; i++) {
        const hd_status status = exchange(units[_i / 2], _i & 1, &wrong);
        hdt_assert_ok(status);
        hdt_assert_ok(hd_comm_barrier(comm));
    }
    ck_assert_int_eq(wrong, 0);
}
END_TEST

START_TEST(gathered_parts_are_whole)
{
    if (!way.window) return;
    enum { UNIT = 300007 };
    int64_t counts[8], offsets[8], total = 0, wrong = 0;
    for (int r = 0; r < comm->size; r++) {
        counts[r] = r % 3 == 2 ? 0 : UNIT + r;
        offsets[r] = total;
        total += counts[r] + 1;
    }
    int32_t *host = calloc((size_t)total, sizeof *host);
    for (int64_t i = 0; i < total; i++)
        host[i] = i >= offsets[comm->rank] && i < offsets[comm->rank] + counts[comm->rank]
                      ? (int32_t)i
                      : -1;
    for (int r = 0; r < comm->size; r++)
        way.to[r] = RECV_AT + (size_t)offsets[comm->rank] * sizeof *host;
    (void)cudaMemcpyAsync(arena + RECV_AT, host, (size_t)total * sizeof *host,
                          cudaMemcpyHostToDevice, compute());
    hd_request request = {0};
    comm->way = &way;
    const hd_status posted =
        hd_comm_all_gather(comm, arena + RECV_AT, counts, offsets, HD_DTYPE_I32, &request);
    comm->way = NULL;
    const hd_status status = finish(posted, &request, true);
    (void)hdi_comm_settle(comm);
    (void)cudaMemcpyAsync(host, arena + RECV_AT, (size_t)total * sizeof *host,
                          cudaMemcpyDeviceToHost, compute());
    (void)cudaStreamSynchronize(compute());
    for (int r = 0; r < comm->size; r++)
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
    if (!way.window) return;
    enum { ROUNDS = 16, COUNT = 1 << 18 };
    const size_t block = COUNT * sizeof(float), all = block * (size_t)comm->size;
    const hd_backend *backend = context->backend;
    int64_t counts[8], offsets[8];
    char *kept = NULL, *want = malloc(block), *got = malloc(block);
    hdt_assert_ok(hdi_cuda_status(cudaMalloc((void **)&kept, all * ROUNDS), "cudaMalloc"));
    for (int r = 0; r < comm->size; r++) {
        counts[r] = COUNT;
        offsets[r] = (int64_t)r * COUNT;
        way.to[r] = RECV_AT + block * (size_t)comm->rank;
    }
    hd_status status = HD_OK;
    for (int i = 0; i < ROUNDS && status == HD_OK; i++) {
        hd_request request = {0};
        for (int k = 0; k < (comm->rank == 0 ? 8 : 1) && status == HD_OK; k++)
            status =
                backend->fill_normal(context->stream, HD_DTYPE_F32, arena + SEND_AT,
                                     (int64_t)COUNT * comm->size, 7, (uint64_t)comm->rank, i, 1);
        comm->way = &way;
        if (status == HD_OK)
            status = hd_comm_all_to_all(comm, arena + SEND_AT, counts, offsets, arena + RECV_AT,
                                        counts, offsets, HD_DTYPE_F32, &request);
        comm->way = NULL;
        if (status == HD_OK)
            status = backend->fill_normal(context->stream, HD_DTYPE_F32, arena + SCRATCH_AT, COUNT,
                                          9, 9, i, 1);
        if (status == HD_OK) status = hdi_comm_order(comm, &request);
        (void)cudaMemcpyAsync(kept + all * (size_t)i, arena + RECV_AT, all,
                              cudaMemcpyDeviceToDevice, compute());
    }
    if (status == HD_OK) status = hdi_comm_settle(comm);
    (void)cudaStreamSynchronize(compute());
    int wrong = 0;
    for (int i = 0; i < ROUNDS && status == HD_OK; i++)
        for (int r = 0; r < comm->size; r++) {
            (void)backend->fill_normal(context->stream, HD_DTYPE_F32, arena + SEND_AT,
                                       (int64_t)COUNT * comm->size, 7, (uint64_t)r, i, 1);
            (void)cudaMemcpyAsync(want, arena + SEND_AT + block * (size_t)comm->rank, block,
                                  cudaMemcpyDeviceToHost, compute());
            (void)cudaMemcpyAsync(got, kept + all * (size_t)i + block * (size_t)r, block,
                                  cudaMemcpyDeviceToHost, compute());
            (void)cudaStreamSynchronize(compute());
            wrong += memcmp(want, got, block) != 0;
        }
    (void)cudaFree(kept);
    free(want);
    free(got);
    hdt_assert_ok(status);
    ck_assert_msg(wrong == 0, "%d of %d blocks", wrong, ROUNDS * comm->size);
}
END_TEST

START_TEST(a_window_may_be_made_anew_over_other_memory)
{
    if (!way.window) return;
    int64_t wrong = 0;
    for (int i = 0; i < 3; i++) {
        release_arena();
        reserve_arena(ARENA + ((size_t)(comm->size - comm->rank + i) << 22));
        hd_status status = way.window ? exchange(20011, true, &wrong) : HD_OK;
        hdt_assert_ok(status);
        ck_assert_ptr_nonnull(way.window);
    }
    ck_assert_int_eq(wrong, 0);
}
END_TEST

/* Rank 0 stays away: the others say so within the deadline and some seconds, and their GPUs are free. */
START_TEST(a_missing_peer_is_a_timeout_and_leaves_the_device_free)
{
    enum { LATEST_SECONDS = 15 };
    if (!way.window) return;
    hd_status status = HD_OK;
    double seconds = 0;
    char text[1024] = "";
    int64_t wrong = 0;
    if (comm->rank != 0) {
        comm->deadline_seconds = 1;
        const double begin = hdi_clock_seconds();
        int64_t counts[8], offsets[8];
        for (int r = 0; r < comm->size; r++) {
            counts[r] = 100000;
            offsets[r] = (int64_t)r * 100000;
            way.to[r] = RECV_AT + (size_t)comm->rank * 400000;
        }
        hd_request request = {0};
        comm->way = &way;
        status = hd_comm_all_to_all(comm, arena + SEND_AT, counts, offsets, arena + RECV_AT, counts,
                                    offsets, HD_DTYPE_F32, &request);
        comm->way = NULL;
        if (status == HD_OK) status = hdi_comm_order(comm, &request);
        if (status == HD_OK) status = hdi_comm_settle(comm);
        snprintf(text, sizeof text, "%s", hd_last_error());
        wrong = cudaStreamSynchronize(compute()) != cudaSuccess;
        seconds = hdi_clock_seconds() - begin;
    }
    const hd_status together = hd_comm_barrier(hdt_world);
    hdt_assert_ok(together);
    if (comm->rank == 0) return;
    ck_assert_int_eq(status, HD_ERROR_TIMEOUT);
    ck_assert_msg(strstr(text, "all_to_all of") != NULL, "%s", text);
    ck_assert_int_eq(wrong, 0);
    ck_assert_double_lt(seconds, LATEST_SECONDS);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("copies");
    tcase_add_unchecked_fixture(tests, open_place, close_place);
    tcase_add_loop_test(tests, unequal_parts_land_where_peers_wait_for_them, 0, 8);
    tcase_add_test(tests, gathered_parts_are_whole);
    tcase_add_test(tests, many_exchanges_beside_kernels_keep_their_order);
    tcase_add_test(tests, a_window_may_be_made_anew_over_other_memory);
    TCase *faults = tcase_create("faults");
    tcase_add_unchecked_fixture(faults, open_place, close_place);
    tcase_add_test(faults, a_missing_peer_is_a_timeout_and_leaves_the_device_free);
    return hdt_main_ranks(argc, argv, "copies", tests, faults);
}
