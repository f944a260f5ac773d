/* What communicators of device memory will take, from the mesh alone. */
#include "runtime/transport.h"
#include "tests/support/hdt.h"

static const struct {
    hd_mesh_options sizes;
    int ranks, lanes;
} meshes[] = {
    {{.data = 1}, 1, 0},
    {{.data = 2}, 2, 2},
    {{.pipeline = 2}, 2, 2 + 4},
    {{.data = 2, .pipeline = 2}, 4, 3 * 2 + 4},
    {{.sequence = 2}, 2, 2},
    {{.data = 2, .sequence = 2}, 4, 3 * 2},
    {{.data = 2, .sequence = 2, .pipeline = 2}, 8, 5 * 2 + 4},
};

START_TEST(each_communicator_of_several_ranks_has_two_lanes_and_neighbours_four_links)
{
    for (int rank = 0; rank < meshes[_i].ranks; rank++) {
        hd_mesh *mesh;
        hdt_assert_ok(hd_mesh_create_fake(rank, meshes[_i].ranks, &meshes[_i].sizes, &mesh));
        ck_assert_int_eq(hdi_transport_lanes(mesh), meshes[_i].lanes);
        ck_assert_uint_eq(hdi_transport_bytes(mesh),
                          (size_t)meshes[_i].lanes * HDI_TRANSPORT_LANE_BYTES);
        hd_mesh_destroy(mesh);
    }
}
END_TEST

/* 32 MiB for each communicator and 16 for links, but for some words and what does not divide. */
START_TEST(a_rank_has_a_share_of_the_mailboxes_of_each_communicator)
{
    const int links = meshes[_i].sizes.pipeline > 1, lanes = meshes[_i].lanes - 4 * links;
    const double mib = 1 << 20;
    for (int rank = 0; rank < meshes[_i].ranks; rank++) {
        hd_mesh *mesh;
        hdt_assert_ok(hd_mesh_create_fake(rank, meshes[_i].ranks, &meshes[_i].sizes, &mesh));
        const double bytes = (double)hdi_mailbox_bytes(mesh, true) / mib;
        hd_mesh_destroy(mesh);
        ck_assert_double_eq_tol(bytes, lanes / 2 * 32 + links * 16, 0.2);
    }
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("lanes");
    tcase_add_loop_test(tests,
                        each_communicator_of_several_ranks_has_two_lanes_and_neighbours_four_links,
                        0, sizeof meshes / sizeof meshes[0]);
    tcase_add_loop_test(tests, a_rank_has_a_share_of_the_mailboxes_of_each_communicator, 0,
                        sizeof meshes / sizeof meshes[0]);
    Suite *suite = suite_create("lanes");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
