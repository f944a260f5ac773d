/* The mesh without communicators: where each rank stands, and what is refused. */
#include <heddle/mesh.h>

#include "tests/support/hdt.h"

START_TEST(tensor_is_the_fastest_axis_and_pipeline_the_slowest)
{
    const hd_mesh_options options = {.tensor = 2, .sequence = 3, .data = 2, .pipeline = 4};
    int rank = 0;
    for (int pipeline = 0; pipeline < 4; pipeline++)
        for (int data = 0; data < 2; data++)
            for (int sequence = 0; sequence < 3; sequence++)
                for (int tensor = 0; tensor < 2; tensor++) {
                    hd_mesh *mesh;
                    hdt_assert_ok(hd_mesh_create_fake(rank, 48, &options, &mesh));
                    ck_assert_int_eq(hd_mesh_rank(mesh), rank);
                    ck_assert_int_eq(hd_mesh_ranks(mesh), 48);
                    ck_assert_int_eq(hd_mesh_index(mesh, HD_AXIS_PIPELINE), pipeline);
                    ck_assert_int_eq(hd_mesh_index(mesh, HD_AXIS_DATA), data);
                    ck_assert_int_eq(hd_mesh_index(mesh, HD_AXIS_SEQUENCE), sequence);
                    ck_assert_int_eq(hd_mesh_index(mesh, HD_AXIS_TENSOR), tensor);
                    ck_assert_int_eq(hd_mesh_index(mesh, HD_AXIS_REPLICA), data * 3 + sequence);
                    ck_assert_ptr_null(hd_mesh_comm(mesh, HD_AXIS_DATA));
                    ck_assert_ptr_null(hd_mesh_comm(mesh, HD_AXIS_NONE));
                    hd_mesh_destroy(mesh);
                    rank++;
                }
}
END_TEST

START_TEST(a_peer_differs_on_one_axis_only)
{
    const hd_mesh_options options = {.tensor = 2, .data = 3, .pipeline = 2};
    for (int rank = 0; rank < 12; rank++) {
        hd_mesh *mesh;
        hdt_assert_ok(hd_mesh_create_fake(rank, 12, &options, &mesh));
        for (int axis = HD_AXIS_TENSOR; axis < HD_AXIS_REPLICA; axis++)
            for (int index = 0; index < hd_mesh_size(mesh, (hd_axis)axis); index++) {
                hd_mesh *peer;
                hdt_assert_ok(hd_mesh_create_fake(hd_mesh_peer(mesh, (hd_axis)axis, index), 12,
                                                  &options, &peer));
                for (int other = HD_AXIS_TENSOR; other < HD_AXIS_REPLICA; other++)
                    ck_assert_int_eq(hd_mesh_index(peer, (hd_axis)other),
                                     other == axis ? index : hd_mesh_index(mesh, (hd_axis)other));
                hd_mesh_destroy(peer);
            }
        hd_mesh_destroy(mesh);
    }
}
END_TEST

START_TEST(replicas_are_the_ranks_of_sequence_and_data_together)
{
    const hd_mesh_options options = {.tensor = 2, .sequence = 3, .data = 2, .pipeline = 2};
    for (int rank = 0; rank < 24; rank++) {
        hd_mesh *mesh;
        hdt_assert_ok(hd_mesh_create_fake(rank, 24, &options, &mesh));
        ck_assert_int_eq(hd_mesh_size(mesh, HD_AXIS_REPLICA), 6);
        for (int index = 0; index < 6; index++) {
            hd_mesh *peer;
            hdt_assert_ok(hd_mesh_create_fake(hd_mesh_peer(mesh, HD_AXIS_REPLICA, index), 24,
                                              &options, &peer));
            ck_assert_int_eq(hd_mesh_index(peer, HD_AXIS_REPLICA), index);
            ck_assert_int_eq(hd_mesh_index(peer, HD_AXIS_TENSOR),
                             hd_mesh_index(mesh, HD_AXIS_TENSOR));
            ck_assert_int_eq(hd_mesh_index(peer, HD_AXIS_PIPELINE),
                             hd_mesh_index(mesh, HD_AXIS_PIPELINE));
            hd_mesh_destroy(peer);
        }
        hd_mesh_destroy(mesh);
    }
}
END_TEST

START_TEST(shard_groups_are_neighbours_and_copies_lie_across)
{
    const hd_mesh_options options = {.sequence = 2, .data = 6, .pipeline = 2, .shard_group = 3};
    for (int rank = 0; rank < 24; rank++) {
        hd_mesh *mesh;
        hdt_assert_ok(hd_mesh_create_fake(rank, 24, &options, &mesh));
        ck_assert_int_eq(hd_mesh_size(mesh, HD_AXIS_SHARD), 6);
        ck_assert_int_eq(hd_mesh_size(mesh, HD_AXIS_COPY), 2);
        ck_assert_int_eq(hd_mesh_index(mesh, HD_AXIS_SHARD), rank % 6);
        ck_assert_int_eq(hd_mesh_index(mesh, HD_AXIS_COPY), rank / 6 % 2);
        for (int index = 0; index < 6; index++)
            ck_assert_int_eq(hd_mesh_peer(mesh, HD_AXIS_SHARD, index), rank / 6 * 6 + index);
        for (int index = 0; index < 2; index++)
            ck_assert_int_eq(hd_mesh_peer(mesh, HD_AXIS_COPY, index),
                             rank / 12 * 12 + index * 6 + rank % 6);
        hd_mesh_destroy(mesh);
    }
    hd_mesh *mesh;
    const int wrong[] = {1, 4, -1, 12};
    for (int i = 0; i < 4; i++)
        hdt_assert_status(hd_mesh_create_fake(
                              0, 6, &(hd_mesh_options){.data = 6, .shard_group = wrong[i]}, &mesh),
                          HD_ERROR_CONFIG, "want a divisor of it above 1");
    hdt_assert_ok(hd_mesh_create_fake(4, 6, &(hd_mesh_options){.data = 6}, &mesh));
    ck_assert_int_eq(hd_mesh_size(mesh, HD_AXIS_SHARD), 6);
    ck_assert_int_eq(hd_mesh_size(mesh, HD_AXIS_COPY), 1);
    hd_mesh_destroy(mesh);
}
END_TEST

START_TEST(sizes_of_zero_mean_one)
{
    hd_mesh *mesh;
    hdt_assert_ok(hd_mesh_create_fake(1, 2, &(hd_mesh_options){.pipeline = 2}, &mesh));
    ck_assert_int_eq(hd_mesh_size(mesh, HD_AXIS_DATA), 1);
    ck_assert_int_eq(hd_mesh_size(mesh, HD_AXIS_PIPELINE), 2);
    ck_assert_int_eq(hd_mesh_size(mesh, HD_AXIS_NONE), 1);
    ck_assert_int_eq(hd_mesh_index(mesh, HD_AXIS_NONE), 0);
    hd_mesh_destroy(mesh);
}
END_TEST

START_TEST(no_mesh_is_one_rank)
{
    ck_assert_int_eq(hd_mesh_size(NULL, HD_AXIS_DATA), 1);
    ck_assert_int_eq(hd_mesh_index(NULL, HD_AXIS_DATA), 0);
    ck_assert_int_eq(hd_mesh_rank(NULL), 0);
    ck_assert_int_eq(hd_mesh_ranks(NULL), 1);
    ck_assert_int_eq(hd_mesh_peer(NULL, HD_AXIS_DATA, 0), 0);
    ck_assert_ptr_null(hd_mesh_comm(NULL, HD_AXIS_DATA));
    hd_mesh_destroy(NULL);
}
END_TEST

START_TEST(sizes_that_do_not_multiply_to_the_ranks_are_refused)
{
    hd_mesh *mesh;
    const hd_mesh_options six = {.data = 2, .pipeline = 3};
    hdt_assert_status(hd_mesh_create_fake(0, 4, &six, &mesh), HD_ERROR_CONFIG,
                      "layout data 2 x pipeline 3 x sequence 1 x tensor 1 = 6, ranks 4");
    ck_assert_ptr_null(mesh);
    hdt_assert_status(hd_mesh_create_fake(0, 1, &(hd_mesh_options){.tensor = -1}, &mesh),
                      HD_ERROR_CONFIG, "tensor is -1");
    const int huge = 1 << 30;
    const hd_mesh_options overflow = {
        .tensor = huge, .sequence = huge, .data = huge, .pipeline = huge, .ring = 1};
    hdt_assert_status(hd_mesh_create_fake(0, 4, &overflow, &mesh), HD_ERROR_CONFIG, "overflow");
    hdt_assert_status(hd_mesh_create_fake(6, 6, &six, &mesh), HD_ERROR_ARGUMENT, "rank is 6");
}
END_TEST

START_TEST(a_ring_divides_the_sequence_axis)
{
    hd_mesh *mesh;
    hd_mesh_options options = {.sequence = 6, .data = 2, .ring = 3};
    hdt_assert_ok(hd_mesh_create_fake(7, 12, &options, &mesh));
    ck_assert_int_eq(hd_mesh_ring(mesh), 3);
    ck_assert_int_eq(hd_mesh_size(mesh, HD_AXIS_SEQUENCE), 6);
    hd_mesh_destroy(mesh);
    options.ring = 4;
    hdt_assert_status(hd_mesh_create_fake(0, 12, &options, &mesh), HD_ERROR_CONFIG,
                      "ring is 4, want a divisor of layout.sequence 6");
    options.ring = -1;
    hdt_assert_status(hd_mesh_create_fake(0, 12, &options, &mesh), HD_ERROR_CONFIG, "ring is -1");
    ck_assert_int_eq(hd_mesh_ring(NULL), 1);
}
END_TEST

START_TEST(axes_have_names)
{
    ck_assert_str_eq(hd_axis_name(HD_AXIS_TENSOR), "tensor");
    ck_assert_str_eq(hd_axis_name(HD_AXIS_SEQUENCE), "sequence");
    ck_assert_str_eq(hd_axis_name(HD_AXIS_DATA), "data");
    ck_assert_str_eq(hd_axis_name(HD_AXIS_PIPELINE), "pipeline");
    ck_assert_str_eq(hd_axis_name(HD_AXES), "none");
}
END_TEST

START_TEST(a_mesh_of_one_rank_has_communicators)
{
    hd_comm *comm;
    hd_mesh *mesh;
    hdt_assert_ok(hd_comm_create_world(&(hd_comm_options){.transport = HD_TRANSPORT_SELF}, &comm));
    hdt_assert_ok(hd_mesh_create(comm, &(hd_mesh_options){0}, &mesh));
    ck_assert_ptr_eq(hd_mesh_comm(mesh, HD_AXIS_NONE), comm);
    ck_assert_int_eq(hd_comm_size(hd_mesh_comm(mesh, HD_AXIS_PIPELINE)), 1);
    hd_mesh_destroy(mesh);
    hdt_assert_status(hd_mesh_create(comm, &(hd_mesh_options){.data = 2}, &mesh), HD_ERROR_CONFIG,
                      "ranks 1");
    hd_comm_destroy(comm);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mesh");
    TCase *tests = tcase_create("mesh");
    tcase_add_test(tests, tensor_is_the_fastest_axis_and_pipeline_the_slowest);
    tcase_add_test(tests, a_peer_differs_on_one_axis_only);
    tcase_add_test(tests, replicas_are_the_ranks_of_sequence_and_data_together);
    tcase_add_test(tests, shard_groups_are_neighbours_and_copies_lie_across);
    tcase_add_test(tests, sizes_of_zero_mean_one);
    tcase_add_test(tests, no_mesh_is_one_rank);
    tcase_add_test(tests, sizes_that_do_not_multiply_to_the_ranks_are_refused);
    tcase_add_test(tests, a_ring_divides_the_sequence_axis);
    tcase_add_test(tests, axes_have_names);
    tcase_add_test(tests, a_mesh_of_one_rank_has_communicators);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
