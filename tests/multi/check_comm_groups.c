/* Groups of ranks, agreement between them, and deadlines. */
#include <heddle/mesh.h>

#include <mpi.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/hdt.h"

static int rank, size;

START_TEST(split_orders_ranks_by_key_within_a_color)
{
    hd_comm *part = NULL;
    int32_t sum = rank;
    hd_request request = {0};
    hd_status split = hd_comm_split(hdt_world, rank % 2, -rank, &part);
    hd_status status = split;
    if (split == HD_OK)
        status = hdt_finish(
            part, hd_comm_all_reduce(part, &sum, 1, HD_DTYPE_I32, HD_REDUCE_SUM, &request),
            &request);
    const int part_rank = hd_comm_rank(part), part_size = hd_comm_size(part);
    hd_comm_destroy(part);
    hdt_assert_ok(split);
    hdt_assert_ok(status);
    int members = 0, larger = 0, total = 0;
    for (int r = rank % 2; r < size; r += 2) {
        members++;
        larger += r > rank;
        total += r;
    }
    ck_assert_int_eq(part_size, members);
    ck_assert_int_eq(part_rank, larger);
    ck_assert_int_eq(sum, total);
}
END_TEST

START_TEST(one_bad_color_fails_the_split_on_all_ranks)
{
    hd_comm *part = hdt_world;
    char want[64];
    snprintf(want, sizeof want, "rank %d has color -5", size - 1);
    hd_status status = hd_comm_split(hdt_world, rank == size - 1 ? -5 : 0, 0, &part);
    hdt_assert_status(status, HD_ERROR_ARGUMENT, hd_comm_size(hdt_world) > 1 ? want : "color");
    ck_assert_ptr_null(part);
}
END_TEST

START_TEST(communicators_end_in_any_order)
{
    hd_comm *world = hdt_open_world(0), *part = NULL, *half = NULL;
    hd_status split = hd_comm_split(world, 0, 0, &part);
    if (split == HD_OK) split = hd_comm_split(part, rank % 2, 0, &half);
    hd_comm_destroy(world);
    hd_status status = split == HD_OK ? hd_comm_barrier(half) : HD_OK;
    hd_comm_destroy(part);
    if (status == HD_OK && split == HD_OK) status = hd_comm_barrier(half);
    hd_comm_destroy(half);
    int has_ended = 1;
    MPI_Finalized(&has_ended);
    hdt_assert_ok(split);
    hdt_assert_ok(status);
    ck_assert_int_eq(has_ended, 0); /* hdt_world needs MPI still */
}
END_TEST

START_TEST(mesh_axes_sum_over_their_own_lines)
{
    const hd_mesh_options layouts[] = {{.pipeline = size},
                                       {.tensor = size},
                                       {.data = 2, .pipeline = size / 2},
                                       {.data = 2, .sequence = size / 2}};
    const hd_mesh_options *options = &layouts[_i];
    if (_i >= 2 && size % 2) return;
    hd_mesh *mesh = NULL;
    hd_status created = hd_mesh_create(hdt_world, options, &mesh);
    hd_status status = created;
    int32_t sums[HD_AXES] = {0};
    for (int axis = HD_AXIS_NONE; axis < HD_AXES && status == HD_OK; axis++) {
        hd_request request;
        hd_comm *line = hd_mesh_comm(mesh, (hd_axis)axis);
        sums[axis] = rank;
        status = hdt_finish(
            line, hd_comm_all_reduce(line, &sums[axis], 1, HD_DTYPE_I32, HD_REDUCE_SUM, &request),
            &request);
    }
    int32_t want[HD_AXES] = {size * (size - 1) / 2};
    for (int axis = HD_AXIS_TENSOR; axis < HD_AXES; axis++)
        for (int i = 0; i < hd_mesh_size(mesh, (hd_axis)axis); i++)
            want[axis] += hd_mesh_peer(mesh, (hd_axis)axis, i);
    hd_mesh_destroy(mesh);
    hdt_assert_ok(created);
    hdt_assert_ok(status);
    for (int axis = 0; axis < HD_AXES; axis++)
        ck_assert_int_eq(sums[axis], want[axis]);
}
END_TEST

START_TEST(ranks_that_want_different_layouts_are_told)
{
    if (size == 1) return;
    hd_mesh *mesh = NULL;
    const hd_mesh_options odd = {.tensor = size}, usual = {.data = size};
    hd_status status = hd_mesh_create(hdt_world, rank == 1 ? &odd : &usual, &mesh);
    hdt_assert_status(status, HD_ERROR_MISMATCH, "the layout differs");
    ck_assert_ptr_null(mesh);
}
END_TEST

START_TEST(check_equal_names_the_ranks_that_differ)
{
    int32_t value = 42, length = 4;
    hd_status equal = hd_comm_check_equal(hdt_world, &value, sizeof value, "the answer");
    if (rank == size - 1) value = 43;
    hd_status differs = hd_comm_check_equal(hdt_world, &value, sizeof value, "the answer");
    char text[512] = "", want[128];
    strncat(text, hd_last_error(), sizeof text - 1);
    value = 42;
    if (rank == size - 1) length = 3;
    hd_status shorter = hd_comm_check_equal(hdt_world, &value, (size_t)length, "the answer");
    char text_shorter[512] = "";
    strncat(text_shorter, hd_last_error(), sizeof text_shorter - 1);
    hd_status same_text = hd_comm_check_equal(hdt_world, text, sizeof text, "the message");
    hdt_assert_ok(equal);
    if (size == 1) return;
    ck_assert_int_eq(differs, HD_ERROR_MISMATCH);
    snprintf(want, sizeof want,
             "the answer differs between the %d ranks of 'world': rank 0 "
             "disagrees with %d",
             size, size - 1);
    ck_assert_str_eq(text, want);
    hdt_assert_ok(same_text);
    ck_assert_int_eq(shorter, HD_ERROR_MISMATCH);
    ck_assert_ptr_nonnull(strstr(text_shorter, "rank 0 has 4 bytes"));
}
END_TEST

START_TEST(agree_gives_every_rank_the_first_failure)
{
    hd_status good = hd_comm_agree(hdt_world, HD_OK);
    hd_request request;
    hd_status status = HD_OK;
    if (rank == size - 1) status = hd_comm_broadcast(hdt_world, NULL, 9, 0, &request);
    status = hd_comm_agree(hdt_world, status);
    hdt_assert_ok(good);
    ck_assert_int_eq(status, rank == size - 1 ? HD_ERROR_ARGUMENT : HD_ERROR_COMM);
    const char *text = hd_last_error();
    ck_assert_ptr_nonnull(strstr(text, "broadcast: the data is NULL"));
    char want[64];
    snprintf(want, sizeof want, "rank %d of 'world' failed: bad argument", size - 1);
    if (rank < size - 1) ck_assert_ptr_nonnull(strstr(text, want));
}
END_TEST

START_TEST(a_message_that_never_comes_is_a_timeout_that_names_it)
{
    if (size == 1) return;
    hd_comm *world = hdt_open_world(1);
    hd_request request = {0};
    int32_t data = 0, answer = 7;
    char text[512] = "";
    hd_status late = HD_OK, status;
    double start = MPI_Wtime(), seconds = 0;
    if (rank == 0) {
        status = hd_comm_recv(world, &data, sizeof data, 1, 3, &request);
        late = status == HD_OK ? hd_comm_wait(world, &request) : status;
        seconds = MPI_Wtime() - start;
        strncat(text, hd_last_error(), sizeof text - 1);
    }
    hd_status together = hd_comm_barrier(hdt_world);
    /* The receive is still posted, so that the message can come after all. */
    hd_request send = {0};
    status = rank == 1 ? hd_comm_send(world, &answer, sizeof answer, 0, 3, &send) : HD_OK;
    status = hdt_finish(world, status, &send);
    if (rank == 0 && status == HD_OK) status = hd_comm_wait(world, &request);
    hd_comm_destroy(world);
    hdt_assert_ok(together);
    hdt_assert_ok(status);
    if (rank > 0) return;
    ck_assert_int_eq(late, HD_ERROR_TIMEOUT);
    char want[256];
    snprintf(want, sizeof want,
             "comm 'world', rank 0 of %d: recv of 4 bytes on channel 3, waiting for rank 1: no "
             "answer within the deadline of 1 s",
             size);
    ck_assert_str_eq(text, want);
    ck_assert(seconds >= 1 && seconds < 3);
    ck_assert_int_eq(data, 7);
}
END_TEST

START_TEST(a_collective_that_a_rank_misses_names_that_rank)
{
    if (size < 3) return;
    hd_comm *world = hdt_open_world(0.3);
    hd_request request = {0};
    int64_t counts[64], offsets[64];
    static int32_t data[64];
    for (int r = 0; r < size; r++) {
        counts[r] = 1;
        offsets[r] = r;
    }
    hd_status late = HD_OK;
    char text[512] = "";
    if (rank != 1) {
        hd_status posted = hd_comm_all_gather(world, data, counts, offsets, HD_DTYPE_I32, &request);
        late = posted == HD_OK ? hd_comm_wait(world, &request) : posted;
        strncat(text, hd_last_error(), sizeof text - 1);
    }
    hd_status together = hd_comm_barrier(hdt_world);
    hd_status status = HD_OK;
    if (rank == 1)
        status = hd_comm_all_gather(world, data, counts, offsets, HD_DTYPE_I32, &request);
    if (status == HD_OK) status = hd_comm_wait(world, &request);
    hd_comm_destroy(world);
    hdt_assert_ok(together);
    hdt_assert_ok(status);
    if (rank == 1) return;
    ck_assert_int_eq(late, HD_ERROR_TIMEOUT);
    ck_assert_ptr_nonnull(strstr(text, "all_gather of 4 bytes, waiting for rank 1:"));
}
END_TEST

/* A split's message gives world ranks too, since those are what mpirun and logs show. */
START_TEST(a_timeout_on_an_axis_names_the_axis_and_the_world_rank)
{
    if (size < 4) return;
    hd_comm *world = hdt_open_world(0.2);
    hd_mesh *mesh = NULL;
    hd_status status =
        hd_mesh_create(world, &(hd_mesh_options){.data = 2, .pipeline = size / 2}, &mesh);
    char text[512] = "";
    hd_request request = {0};
    int32_t data;
    hd_status late = HD_OK;
    if (status == HD_OK && rank == 1) {
        hd_comm *line = hd_mesh_comm(mesh, HD_AXIS_PIPELINE);
        late = hd_comm_recv(line, &data, sizeof data, 1, 0, &request);
        if (late == HD_OK) late = hd_comm_wait(line, &request);
        strncat(text, hd_last_error(), sizeof text - 1);
    }
    hd_mesh_destroy(mesh); /* withdraws the receive */
    hd_comm_destroy(world);
    hdt_assert_ok(status);
    if (rank != 1) return;
    ck_assert_int_eq(late, HD_ERROR_TIMEOUT);
    ck_assert_ptr_nonnull(strstr(text, "comm 'pipeline', rank 0 of"));
    ck_assert_ptr_nonnull(strstr(text, "waiting for rank 1 (world rank 3)"));
}
END_TEST

static void note_place(void)
{
    rank = hd_comm_rank(hdt_world);
    size = hd_comm_size(hdt_world);
}

int main(int argc, char **argv)
{
    TCase *groups = tcase_create("groups");
    tcase_add_unchecked_fixture(groups, note_place, NULL);
    tcase_add_test(groups, split_orders_ranks_by_key_within_a_color);
    tcase_add_test(groups, one_bad_color_fails_the_split_on_all_ranks);
    tcase_add_test(groups, communicators_end_in_any_order);
    tcase_add_loop_test(groups, mesh_axes_sum_over_their_own_lines, 0, 4);
    tcase_add_test(groups, ranks_that_want_different_layouts_are_told);

    TCase *faults = tcase_create("faults");
    tcase_add_unchecked_fixture(faults, note_place, NULL);
    tcase_add_test(faults, check_equal_names_the_ranks_that_differ);
    tcase_add_test(faults, agree_gives_every_rank_the_first_failure);
    tcase_add_test(faults, a_message_that_never_comes_is_a_timeout_that_names_it);
    tcase_add_test(faults, a_collective_that_a_rank_misses_names_that_rank);
    tcase_add_test(faults, a_timeout_on_an_axis_names_the_axis_and_the_world_rank);
    return hdt_main_ranks(argc, argv, "comm_groups", groups, faults);
}
