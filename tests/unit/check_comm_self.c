/* One rank: every operation completes when it is posted. */
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "tests/support/hdt.h"

static hd_comm *comm;

static void open_world(void)
{
    hdt_assert_ok(hd_comm_create_world(&(hd_comm_options){.transport = HD_TRANSPORT_SELF}, &comm));
}

static void close_world(void)
{
    hd_comm_destroy(comm);
}

START_TEST(one_rank_is_rank_0_of_1)
{
    ck_assert_int_eq(hd_comm_rank(comm), 0);
    ck_assert_int_eq(hd_comm_size(comm), 1);
    ck_assert_int_eq(hd_comm_rank(NULL), 0);
    ck_assert_int_eq(hd_comm_size(NULL), 1);
    hd_comm_destroy(NULL);
}
END_TEST

START_TEST(auto_means_self_without_a_launcher)
{
    unsetenv("OMPI_COMM_WORLD_SIZE");
    unsetenv("PMIX_RANK");
    unsetenv("PMI_RANK");
    unsetenv("SLURM_STEP_NUM_TASKS");
    hd_comm *world;
    hdt_assert_ok(hd_comm_create_world(NULL, &world));
    ck_assert_int_eq(hd_comm_size(world), 1);
    hd_request request;
    hdt_assert_status(hd_comm_send(world, "x", 1, 0, 0, &request), HD_ERROR_ARGUMENT, "itself");
    hd_comm_destroy(world);
}
END_TEST

START_TEST(slurm_tasks_without_mpi_start_up_are_refused)
{
    unsetenv("OMPI_COMM_WORLD_SIZE");
    unsetenv("PMIX_RANK");
    unsetenv("PMI_RANK");
    setenv("SLURM_STEP_NUM_TASKS", "4", 1);
    hd_comm *world;
    hdt_assert_status(hd_comm_create_world(NULL, &world), HD_ERROR_CONFIG, "srun --mpi=pmix");
    ck_assert_ptr_null(world);
    unsetenv("SLURM_STEP_NUM_TASKS");
}
END_TEST

START_TEST(a_deadline_must_be_positive)
{
    hd_comm *world;
    hdt_assert_status(hd_comm_create_world(&(hd_comm_options){.deadline_seconds = -1}, &world),
                      HD_ERROR_ARGUMENT, "deadline");
}
END_TEST

START_TEST(collectives_complete_at_once_and_keep_the_data)
{
    int32_t data[3] = {5, 6, 7};
    const int64_t counts[] = {3}, offsets[] = {0};
    const uint64_t allocations = hdi_alloc_count();
    hd_request request = {.id = 1};
    bool done = false;
    hdt_assert_ok(hd_comm_all_reduce(comm, data, 3, HD_DTYPE_I32, HD_REDUCE_SUM, &request));
    ck_assert_int_eq(request.id, 0);
    hdt_assert_ok(hd_comm_all_gather(comm, data, counts, offsets, HD_DTYPE_I32, &request));
    ck_assert_int_eq(request.id, 0);
    hdt_assert_ok(hd_comm_broadcast(comm, data, sizeof data, 0, &request));
    ck_assert_int_eq(request.id, 0);
    hdt_assert_ok(hd_comm_test(comm, &request, &done));
    ck_assert(done);
    hdt_assert_ok(hd_comm_wait(comm, &request));
    hdt_assert_ok(hd_comm_barrier(comm));
    ck_assert_uint_eq(hdi_alloc_count(), allocations);
    ck_assert_int_eq(data[0] * 100 + data[1] * 10 + data[2], 567);
}
END_TEST

START_TEST(all_to_all_copies_to_itself)
{
    const int16_t from[] = {1, 2, 3, 4};
    int16_t to[] = {0, 0, 0, 0};
    const int64_t counts[] = {2}, from_offsets[] = {1}, to_offsets[] = {2};
    hd_request request;
    hdt_assert_ok(hd_comm_all_to_all(comm, from, counts, from_offsets, to, counts, to_offsets,
                                     HD_DTYPE_I16, &request));
    ck_assert_int_eq(to[0], 0);
    ck_assert_int_eq(to[1], 0);
    ck_assert_int_eq(to[2], 2);
    ck_assert_int_eq(to[3], 3);
}
END_TEST

START_TEST(sending_to_oneself_is_refused)
{
    int data = 0;
    hd_request request = {.id = 9};
    hdt_assert_status(hd_comm_send(comm, &data, sizeof data, 0, 0, &request), HD_ERROR_ARGUMENT,
                      "this rank itself");
    ck_assert_int_eq(request.id, 0);
    hdt_assert_status(hd_comm_recv(comm, &data, sizeof data, 0, 0, &request), HD_ERROR_ARGUMENT,
                      "this rank itself");
    hdt_assert_status(hd_comm_send(comm, &data, sizeof data, 1, 0, &request), HD_ERROR_ARGUMENT,
                      "peer is 1");
}
END_TEST

START_TEST(bad_arguments_are_named)
{
    int32_t data[2] = {0};
    const int64_t good[] = {2}, bad[] = {-1}, zero[] = {0};
    hd_request request;
    hdt_assert_status(hd_comm_all_reduce(comm, data, -1, HD_DTYPE_I32, HD_REDUCE_SUM, &request),
                      HD_ERROR_ARGUMENT, "count is -1");
    hdt_assert_status(hd_comm_all_reduce(comm, data, 1, HD_DTYPE_BF16, HD_REDUCE_SUM, &request),
                      HD_ERROR_ARGUMENT, "dtype is BF16");
    hdt_assert_status(hd_comm_all_reduce(comm, data, 1, HD_DTYPE_I32, (hd_reduce)7, &request),
                      HD_ERROR_ARGUMENT, "reduction 7");
    hdt_assert_status(hd_comm_all_reduce(comm, NULL, 1, HD_DTYPE_I32, HD_REDUCE_SUM, &request),
                      HD_ERROR_ARGUMENT, "data is NULL");
    hdt_assert_status(hd_comm_all_reduce(NULL, data, 1, HD_DTYPE_I32, HD_REDUCE_SUM, &request),
                      HD_ERROR_ARGUMENT, "comm is NULL");
    hdt_assert_status(hd_comm_all_reduce(comm, data, 1, HD_DTYPE_I32, HD_REDUCE_SUM, NULL),
                      HD_ERROR_ARGUMENT, "request is NULL");
    hdt_assert_status(hd_comm_all_gather(comm, data, bad, zero, HD_DTYPE_I32, &request),
                      HD_ERROR_ARGUMENT, "count -1");
    hdt_assert_status(hd_comm_all_gather(comm, data, good, bad, HD_DTYPE_I32, &request),
                      HD_ERROR_ARGUMENT, "offset -1");
    hdt_assert_status(hd_comm_all_gather(comm, data, good, zero, HD_DTYPE_NONE, &request),
                      HD_ERROR_ARGUMENT, "dtype 0");
    hdt_assert_status(
        hd_comm_all_to_all(comm, data, good, zero, data, zero, zero, HD_DTYPE_I32, &request),
        HD_ERROR_ARGUMENT, "itself 2 elements");
    hdt_assert_status(hd_comm_broadcast(comm, data, 4, 1, &request), HD_ERROR_ARGUMENT,
                      "root is 1");
    hdt_assert_status(hd_comm_wait(comm, &(hd_request){.id = 12345}), HD_ERROR_ARGUMENT,
                      "request 12345");
}
END_TEST

START_TEST(a_split_is_one_rank_again)
{
    hd_comm *part;
    hdt_assert_ok(hd_comm_split(comm, 3, 1, &part));
    ck_assert_int_eq(hd_comm_size(part), 1);
    hdt_assert_ok(hd_comm_barrier(part));
    hd_comm_destroy(part);
    hdt_assert_status(hd_comm_split(comm, -1, 0, &part), HD_ERROR_ARGUMENT, "color is -1");
    ck_assert_ptr_null(part);
}
END_TEST

START_TEST(one_rank_agrees_with_itself)
{
    hdt_assert_ok(hd_comm_check_equal(comm, "abc", 3, "letters"));
    hdt_assert_ok(hd_comm_agree(comm, HD_OK));
    hd_request request;
    hd_status failure = hd_comm_broadcast(comm, NULL, 4, 0, &request);
    hdt_assert_status(hd_comm_agree(comm, failure), HD_ERROR_ARGUMENT, "data is NULL");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("comm_self");
    TCase *tests = tcase_create("self");
    tcase_add_checked_fixture(tests, open_world, close_world);
    tcase_add_test(tests, one_rank_is_rank_0_of_1);
    tcase_add_test(tests, auto_means_self_without_a_launcher);
    tcase_add_test(tests, slurm_tasks_without_mpi_start_up_are_refused);
    tcase_add_test(tests, a_deadline_must_be_positive);
    tcase_add_test(tests, collectives_complete_at_once_and_keep_the_data);
    tcase_add_test(tests, all_to_all_copies_to_itself);
    tcase_add_test(tests, sending_to_oneself_is_refused);
    tcase_add_test(tests, bad_arguments_are_named);
    tcase_add_test(tests, a_split_is_one_rank_again);
    tcase_add_test(tests, one_rank_agrees_with_itself);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
