/* Which GPU a rank takes, from made-up hosts. */
#include "tests/support/hdt.h"

#include "runtime/device_choice.h"

static int choice(int local_rank, int local_size, int visible, bool share)
{
    int ordinal = -2;
    hdt_assert_ok(hdi_choose_device(local_rank, local_size, visible, share, &ordinal));
    return ordinal;
}

START_TEST(a_rank_takes_the_gpu_of_its_place_on_the_host)
{
    for (int rank = 0; rank < 4; rank++) {
        ck_assert_int_eq(choice(rank, 4, 4, false), rank);
        ck_assert_int_eq(choice(rank, 4, 8, false), rank);
    }
    ck_assert_int_eq(choice(0, 1, 3, false), 0);
}
END_TEST

START_TEST(a_rank_that_sees_one_gpu_takes_it)
{
    for (int rank = 0; rank < 4; rank++)
        ck_assert_int_eq(choice(rank, 4, 1, false), 0);
}
END_TEST

START_TEST(gpus_that_do_not_go_round_are_refused_unless_shared)
{
    int ordinal;
    hdt_assert_status(hdi_choose_device(1, 4, 2, false, &ordinal), HD_ERROR_CONFIG,
                      "4 ranks on this host see 2 GPUs");
    ck_assert_int_eq(ordinal, -1);
    const int wanted[] = {0, 1, 0, 1};
    for (int rank = 0; rank < 4; rank++)
        ck_assert_int_eq(choice(rank, 4, 2, true), wanted[rank]);
}
END_TEST

START_TEST(no_gpu_is_an_error_that_names_the_variable)
{
    int ordinal;
    hdt_assert_status(hdi_choose_device(0, 1, 0, true, &ordinal), HD_ERROR_DEVICE,
                      "CUDA_VISIBLE_DEVICES");
}
END_TEST

static hdi_device_record gpu(int number, uint64_t host)
{
    hdi_device_record record = {.host = host, .ordinal = number & 1};
    record.uuid[0] = (uint8_t)number;
    record.uuid[15] = 7;
    return record;
}

static const hdi_device_record cpu = {.ordinal = -1};

START_TEST(the_first_two_ranks_with_one_gpu_are_found)
{
    hdi_rank_pair pair;
    /* What mpirun under salloc --gpus-per-task=1 does: all ranks of a host see the same one. */
    const hdi_device_record masked[] = {gpu(0, 1), gpu(2, 2), gpu(2, 2), gpu(0, 1)};
    ck_assert(hdi_find_shared_device(masked, 4, &pair));
    ck_assert_int_eq(pair.first, 0);
    ck_assert_int_eq(pair.second, 3);
    ck_assert(!hdi_find_shared_device(masked, 2, &pair));
    ck_assert_int_eq(hdi_count_sharers(masked, 4, 3), 2);
    ck_assert_int_eq(hdi_count_sharers(masked, 2, 0), 1);
    /* The same ordinal on two hosts is two GPUs. */
    const hdi_device_record apart[] = {gpu(0, 1), gpu(1, 1), gpu(2, 2), gpu(3, 2)};
    ck_assert(!hdi_find_shared_device(apart, 4, &pair));
    ck_assert(!hdi_is_one_host(apart, 4));
    ck_assert(hdi_is_one_host(apart, 2));
    const hdi_device_record host_only[] = {cpu, cpu, cpu};
    ck_assert(!hdi_find_shared_device(host_only, 3, &pair));
    ck_assert_int_eq(hdi_count_sharers(host_only, 3, 1), 1);
}
END_TEST

START_TEST(ranks_on_gpus_and_ranks_on_the_cpu_are_found)
{
    hdi_rank_pair pair;
    const hdi_device_record mixed[] = {cpu, gpu(0, 1), cpu, gpu(1, 1)};
    ck_assert(hdi_find_mixed_devices(mixed, 4, &pair));
    ck_assert_int_eq(pair.first, 1);
    ck_assert_int_eq(pair.second, 0);
    ck_assert(!hdi_find_mixed_devices(mixed, 1, &pair));
    ck_assert(!hdi_find_mixed_devices(mixed + 3, 1, &pair));
}
END_TEST

START_TEST(a_uuid_reads_as_nvidia_smi_prints_it)
{
    uint8_t uuid[16];
    char text[HDI_UUID_TEXT];
    for (int i = 0; i < 16; i++)
        uuid[i] = (uint8_t)(i * 17);
    hdi_uuid_text(uuid, text);
    ck_assert_str_eq(text, "GPU-00112233-4455-6677-8899-aabbccddeeff");
}
END_TEST

/* Straight to peers by itself only where each rank has a GPU, and never beyond a host. */
START_TEST(copy_engines_of_ranks_that_share_a_gpu_work_when_told_to)
{
    for (hdi_copy_engines asked = HDI_COPY_ENGINES_AUTO; asked <= HDI_COPY_ENGINES_PEERS; asked++) {
        ck_assert_int_eq(hdi_choose_copy_engines(asked, true, false), asked);
        ck_assert_int_eq(hdi_choose_copy_engines(asked, true, true),
                         asked == HDI_COPY_ENGINES_AUTO ? HDI_COPY_ENGINES_OFF : asked);
        ck_assert_int_eq(hdi_choose_copy_engines(asked, false, false), HDI_COPY_ENGINES_OFF);
        ck_assert_int_eq(hdi_choose_copy_engines(asked, false, true), HDI_COPY_ENGINES_OFF);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("device_choice");
    TCase *tests = tcase_create("device_choice");
    tcase_add_test(tests, a_rank_takes_the_gpu_of_its_place_on_the_host);
    tcase_add_test(tests, a_rank_that_sees_one_gpu_takes_it);
    tcase_add_test(tests, gpus_that_do_not_go_round_are_refused_unless_shared);
    tcase_add_test(tests, no_gpu_is_an_error_that_names_the_variable);
    tcase_add_test(tests, the_first_two_ranks_with_one_gpu_are_found);
    tcase_add_test(tests, ranks_on_gpus_and_ranks_on_the_cpu_are_found);
    tcase_add_test(tests, copy_engines_of_ranks_that_share_a_gpu_work_when_told_to);
    tcase_add_test(tests, a_uuid_reads_as_nvidia_smi_prints_it);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
