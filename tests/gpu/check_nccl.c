/* ranks: 1 2 4 8 */
/* Communicators of GPU memory, by NCCL and staged: exact results on whole numbers, on as many GPUs as
 * there are; ranks share them. */
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_device_comm.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend/cuda/cuda.h"
#include "comm/comm.h"
#include "core/clock.h"
#include "runtime/session.h"

static hd_context *context;
static hd_mesh *mesh;
static hdt_device_comm it;

static void *device_reserve(size_t bytes)
{
    void *memory = NULL;
    hdt_assert_ok(hdi_cuda_status(cudaMalloc(&memory, bytes ? bytes : 1), "cudaMalloc"));
    return memory;
}

static void device_release(void *memory)
{
    (void)cudaFree(memory);
}

/* On the compute stream and not waited for: a post that does not wait for it sends old bytes. The copy
 * itself leaves pageable memory before the call returns. */
static void device_put(void *memory, const void *host, size_t bytes)
{
    (void)cudaMemcpyAsync(memory, host, bytes, cudaMemcpyHostToDevice, context->stream->handle);
}

static void device_get(void *host, const void *memory, size_t bytes)
{
    (void)hdi_comm_settle(it.comm);
    (void)cudaMemcpyAsync(host, memory, bytes, cudaMemcpyDeviceToHost, context->stream->handle);
    (void)cudaStreamSynchronize(context->stream->handle);
}

static const hdt_memory device_memory = {
    .reserve = device_reserve, .release = device_release, .put = device_put, .get = device_get};

/* All ranks on one pipeline: its communicator is the world's, with links between neighbours. */
static void open_mesh(hd_device_transport transport)
{
    const hd_mesh_options layout = {.pipeline = hd_comm_size(hdt_world)};
    const hd_context_options options = {.device = "cuda", .share_gpu = true};
    hdt_assert_ok(hd_mesh_create(hdt_world, &layout, &mesh));
    hdt_assert_ok(hd_context_create_ranked(hdt_world, &options, &context));
    hdt_assert_ok(hd_mesh_attach(mesh, context, transport));
    it = (hdt_device_comm){.comm = hd_mesh_device_comm(mesh, HD_AXIS_PIPELINE),
                           .memory = &device_memory};
}

static void open_nccl(void)
{
    open_mesh(HD_DEVICE_TRANSPORT_NCCL);
}

static void open_staged(void)
{
    open_mesh(HD_DEVICE_TRANSPORT_STAGED);
}

static void close_mesh(void)
{
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    context = NULL;
    mesh = NULL;
}

START_TEST(communicators_that_stay_serve_the_next_mesh)
{
    const hd_comm *before = it.comm;
    if (hd_comm_size(hdt_world) == 1 || !context->shares_gpu) return;
    close_mesh();
    open_nccl();
    ck_assert_ptr_eq(it.comm, before);
    hdt_assert_ok(hdt_device_all_reduce(&it, 1000, HD_DTYPE_F32, HD_REDUCE_SUM));
    hdt_assert_ok(hdt_device_ring(&it, 2, 1000));
    ck_assert_int_eq(it.wrong, 0);
}
END_TEST

static const int64_t sizes[] = {1, 1000, 100003, 1 << 20};

/* Every size with waits on the host (even) and on the device (odd). */
START_TEST(collectives_are_exact)
{
    const int64_t count = sizes[_i / 2];
    it.wrong = 0;
    it.order = _i & 1;
    hd_status status = hdt_device_all_reduce(&it, count, HD_DTYPE_F32, HD_REDUCE_SUM);
    if (status == HD_OK) status = hdt_device_all_reduce(&it, count, HD_DTYPE_F64, HD_REDUCE_SUM);
    if (status == HD_OK) status = hdt_device_all_reduce(&it, count, HD_DTYPE_F64, HD_REDUCE_MAX);
    if (status == HD_OK) status = hdt_device_all_reduce(&it, count, HD_DTYPE_I32, HD_REDUCE_MIN);
    if (status == HD_OK) status = hdt_device_all_reduce(&it, count, HD_DTYPE_I64, HD_REDUCE_SUM);
    if (status == HD_OK) status = hdt_device_all_gather(&it, count, false);
    if (status == HD_OK) status = hdt_device_all_gather(&it, count, true);
    if (status == HD_OK) status = hdt_device_all_to_all(&it, count);
    if (status == HD_OK) status = hdt_device_broadcast(&it, count);
    if (status == HD_OK && hd_comm_size(it.comm) > 1) status = hd_comm_barrier(it.comm);
    hdt_assert_ok(status);
    ck_assert_int_eq(it.wrong, 0);
}
END_TEST

START_TEST(neighbours_exchange_many_messages_at_once)
{
    it.wrong = 0;
    it.order = _i & 1;
    hd_status status = hdt_device_ring(&it, 12, sizes[_i / 2]);
    hdt_assert_ok(status);
    ck_assert_int_eq(it.wrong, 0);
}
END_TEST

/* The same sums bit for bit, twenty times. */
START_TEST(sums_of_fractions_repeat_bit_for_bit)
{
    enum { COUNT = 50000 };
    const size_t bytes = COUNT * sizeof(float);
    float *given = malloc(bytes), *first = malloc(bytes), *again = malloc(bytes);
    hdt_fill(given, COUNT, (uint64_t)hd_comm_rank(hdt_world));
    float *data = device_reserve(bytes);
    hd_status status = HD_OK;
    int different = 0;
    for (int run = 0; run < 20 && status == HD_OK; run++) {
        hd_request request = {0};
        device_put(data, given, bytes);
        status = hdt_finish(
            it.comm,
            hd_comm_all_reduce(it.comm, data, COUNT, HD_DTYPE_F32, HD_REDUCE_SUM, &request),
            &request);
        device_get(run == 0 ? first : again, data, bytes);
        different += run > 0 && memcmp(first, again, bytes);
    }
    device_release(data);
    free(given);
    free(first);
    free(again);
    hdt_assert_ok(status);
    ck_assert_int_eq(different, 0);
}
END_TEST

/* Rank 0 sends on the device what rank 1 waits for only when it has rank 1's long message, which MPI moves
 * inside its calls. */
START_TEST(waits_on_the_device_move_messages_of_the_host)
{
    enum { LONG = 16 << 20, SHORT = 4096 };
    const int rank = hd_comm_rank(hdt_world);
    hd_comm *host = hd_mesh_comm(mesh, HD_AXIS_PIPELINE);
    void *message = calloc(1, LONG), *data = device_reserve(SHORT);
    hd_request across = {0}, there = {0};
    hd_status status = HD_OK;
    it.comm->deadline_seconds = host->deadline_seconds = 20;
    if (hd_comm_size(hdt_world) > 1 && rank == 1) {
        status = hd_comm_send(host, message, LONG, 0, 0, &across);
        if (status == HD_OK) status = hd_comm_recv(it.comm, data, SHORT, 0, 0, &there);
        if (status == HD_OK) status = hd_comm_wait(it.comm, &there);
        if (status == HD_OK) status = hd_comm_wait(host, &across);
    } else if (hd_comm_size(hdt_world) > 1 && rank == 0) {
        status = hd_comm_recv(host, message, LONG, 1, 0, &across);
        if (status == HD_OK) status = hd_comm_wait(host, &across);
        if (status == HD_OK) status = hd_comm_send(it.comm, data, SHORT, 1, 0, &there);
        if (status == HD_OK) status = hd_comm_wait(it.comm, &there);
    }
    device_release(data);
    free(message);
    hdt_assert_ok(status);
}
END_TEST

START_TEST(sends_beyond_the_neighbours_are_refused)
{
    if (hd_comm_size(hdt_world) < 4 || it.comm->transport->order == NULL) return;
    const int rank = hd_comm_rank(hdt_world);
    hd_request request;
    hd_status status =
        hd_comm_send(it.comm, &request, 4, (rank + 2) % hd_comm_size(hdt_world), 0, &request);
    hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "no link");
}
END_TEST

/* Rank 1 waits for a message that rank 0 sends later. */
START_TEST(a_device_is_quiet_while_nothing_is_under_way)
{
    const int rank = hd_comm_rank(hdt_world);
    const bool takes_part = hd_comm_size(hdt_world) > 1 && rank < 2;
    hd_request request = {0};
    hd_status status = HD_OK;
    void *data = device_reserve(4096);
    const bool before = hdi_comm_is_quiet(it.comm);
    if (takes_part && rank == 1) status = hd_comm_recv(it.comm, data, 4096, 0, 0, &request);
    const bool waiting = hdi_comm_is_quiet(it.comm);
    const hd_status together = hd_comm_barrier(hdt_world);
    if (takes_part && rank == 0) status = hd_comm_send(it.comm, data, 4096, 1, 0, &request);
    if (takes_part && status == HD_OK) status = hdi_comm_order(it.comm, &request);
    if (status == HD_OK) status = hdi_comm_settle(it.comm);
    const bool after = hdi_comm_is_quiet(it.comm);
    device_release(data);
    hdt_assert_ok(together);
    hdt_assert_ok(status);
    ck_assert(before && after);
    ck_assert(waiting == !(takes_part && rank == 1));
}
END_TEST

/* Rank 0 stays away: the others report the operation with its place, within the deadline and some
 * seconds, and their GPUs are free afterwards. */
START_TEST(a_missing_peer_is_a_timeout_that_names_the_operation)
{
    enum { LATEST_SECONDS = 15 };
    const int rank = hd_comm_rank(hdt_world);
    char text[1024] = "";
    hd_status status = HD_OK, later = HD_OK;
    double seconds = 0;
    void *data = device_reserve(4096);
    if (hd_comm_size(hdt_world) > 1 && rank != 0) {
        it.comm->deadline_seconds = 1;
        const double begin = hdi_clock_seconds();
        hd_request request = {0};
        status = hd_comm_all_reduce(it.comm, data, 1024, HD_DTYPE_F32, HD_REDUCE_SUM, &request);
        hdi_comm_set_label(it.comm, &request,
                           &(hdi_comm_label){.program = "train", .scope = "layer.3", .op = 17});
        if (status == HD_OK) status = hdi_comm_order(it.comm, &request);
        if (status == HD_OK) status = hdi_comm_settle(it.comm);
        snprintf(text, sizeof text, "%s", hd_last_error());
        (void)cudaStreamSynchronize(context->stream->handle);
        later = hd_comm_all_reduce(it.comm, data, 1024, HD_DTYPE_F32, HD_REDUCE_SUM, &request);
        seconds = hdi_clock_seconds() - begin;
    }
    hd_status together = hd_comm_barrier(hdt_world);
    device_release(data);
    hdt_assert_ok(together);
    if (hd_comm_size(hdt_world) == 1 || rank == 0) return;
    ck_assert_int_eq(status, HD_ERROR_TIMEOUT);
    ck_assert_msg(strstr(text, "all_reduce of 4096 bytes in 'train', op 17 (layer.3)") != NULL,
                  "%s", text);
    ck_assert_int_eq(later, HD_ERROR_TIMEOUT);
    ck_assert_double_lt(seconds, LATEST_SECONDS);
}
END_TEST

START_TEST(two_ranks_with_one_gpu_are_refused_by_name)
{
    hd_context *none = NULL;
    const int size = hd_comm_size(hdt_world);
    hd_status status =
        hd_context_create_ranked(hdt_world, &(hd_context_options){.device = "cuda"}, &none);
    int gpus = hdi_cuda_device_count();
    hd_context_destroy(none);
    if (size <= gpus) {
        hdt_assert_ok(status);
    } else if (gpus == 1) {
        hdt_assert_status(status, HD_ERROR_MISMATCH, "ranks 0 and 1 both have GPU-");
        ck_assert_ptr_nonnull(strstr(hd_last_error(), "--share-gpu"));
    } else {
        ck_assert_int_eq(status, HD_ERROR_CONFIG);
    }
}
END_TEST

static TCase *transport_case(const char *name, SFun open)
{
    TCase *tests = tcase_create(name);
    tcase_add_checked_fixture(tests, open, close_mesh);
    tcase_add_loop_test(tests, collectives_are_exact, 0, 8);
    tcase_add_loop_test(tests, neighbours_exchange_many_messages_at_once, 0, 8);
    tcase_add_test(tests, waits_on_the_device_move_messages_of_the_host);
    tcase_add_test(tests, sends_beyond_the_neighbours_are_refused);
    return tests;
}

int main(int argc, char **argv)
{
    TCase *choice = tcase_create("choice");
    tcase_add_test(choice, two_ranks_with_one_gpu_are_refused_by_name);
    TCase *nccl = tcase_create("nccl only");
    tcase_add_checked_fixture(nccl, open_nccl, close_mesh);
    tcase_add_test(nccl, communicators_that_stay_serve_the_next_mesh);
    tcase_add_test(nccl, sums_of_fractions_repeat_bit_for_bit);
    tcase_add_test(nccl, a_device_is_quiet_while_nothing_is_under_way);
    tcase_add_test(nccl, a_missing_peer_is_a_timeout_that_names_the_operation);
    return hdt_main_ranks(argc, argv, "nccl", choice, transport_case("nccl", open_nccl),
                          transport_case("staged", open_staged), nccl);
}
