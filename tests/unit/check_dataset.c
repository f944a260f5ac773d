/* Datasets: sources, windows and their order. */
#include <math.h>
#include <sys/stat.h>

#include "core/memory.h"
#include "tests/support/hdt_dataset.h"

static int32_t window[4096];

static hdi_dataset_info info(void)
{
    hdi_dataset_info facts;
    hdi_dataset_get_info(dataset, &facts);
    return facts;
}

static void read_sample(hdi_dataset_split split, uint64_t seed, int64_t sample)
{
    hdt_assert_ok(hdi_dataset_window(dataset, split, seed, sample, window));
}

static uint64_t fingerprint(void)
{
    uint64_t hash = 0;
    hdt_assert_ok(hdi_dataset_fingerprint(dataset, &hash));
    return hash;
}

/* All tokens of a training epoch over `count` tokens 0, 1, 2, ...: each exactly once. */
static void check_epoch_covers(int64_t count)
{
    static unsigned char seen[65536];
    const int64_t window_tokens = info().seq_len + 1;
    memset(seen, 0, sizeof seen);
    for (int64_t sample = 0; sample < count / window_tokens; sample++) {
        read_sample(HDI_DATASET_TRAIN, 5, sample);
        for (int64_t i = 0; i < window_tokens; i++) {
            ck_assert_int_eq(window[i], window[0] + i);
            ck_assert_int_eq(seen[window[i]]++, 0);
        }
    }
    for (int64_t i = 0; i < count / window_tokens * window_tokens; i++)
        ck_assert_int_eq(seen[i], 1);
}

START_TEST(bytes_of_a_file_are_its_tokens)
{
    unsigned char bytes[256];
    for (int i = 0; i < 256; i++)
        bytes[i] = (unsigned char)i;
    write_file("bytes", bytes, sizeof bytes);
    open_well(in_folder("bytes"), 9, 256, 0);
    ck_assert_int_eq(info().tokens, 256);
    ck_assert_int_eq(info().windows[HDI_DATASET_TRAIN], 25);
    ck_assert_int_eq(info().windows[HDI_DATASET_VALIDATION], 0);
    ck_assert(info().is_bytes);
    check_epoch_covers(256);
}
END_TEST

START_TEST(shard_tokens_are_read_whatever_their_width)
{
    const bool wide = _i;
    write_shard("s.bin", wide ? 20240801 : 20240520, wide ? 7 : 1, 1000, 1000, 0);
    open_well(in_folder("s.bin"), 6, 1000, 0);
    ck_assert_int_eq(info().tokens, 1000);
    ck_assert(!info().is_bytes);
    check_epoch_covers(1000);
}
END_TEST

START_TEST(shards_of_a_pattern_or_list_follow_each_other)
{
    char list[16384];
    write_shard("t_1.bin", 20240801, 7, 500, 500, 101); /* as uint32 */
    write_shard("t_0.bin", 20240520, 1, 101, 101, 0);
    write_shard("t_2.bin", 20240520, 1, 99, 99, 601);
    open_well(in_folder("t_*.bin"), 6, 700, 0);
    ck_assert_int_eq(info().files, 3);
    check_epoch_covers(700); /* windows reach over the ends of files */
    const uint64_t by_pattern = fingerprint();
    hdi_dataset_close(dataset);

    snprintf(list, sizeof list, "%s,%s,%s", in_folder("t_0.bin"), in_folder("t_[1].bin"),
             in_folder("t_2.bin"));
    open_well(list, 6, 700, 0);
    const uint64_t by_list = fingerprint();
    ck_assert_uint_eq(by_pattern, by_list);
}
END_TEST

START_TEST(folder_gives_each_text_once_in_the_order_of_paths)
{
    write_file("b", "bbbb", 4);
    write_file("a", "aaaa", 4);
    ck_assert_int_eq(mkdir(in_folder("ab"), 0777), 0);
    write_file("ab/z", "zzzz", 4);
    write_file("empty", "", 0);
    write_file("binary", "x\0y", 3);
    ck_assert_int_eq(symlink("b", in_folder("0link")), 0);
    ck_assert_int_eq(symlink("..", in_folder("ab/loop")), 0);
    ck_assert_int_eq(symlink("nothing", in_folder("dead")), 0);
    open_well(folder, 11, 256, 0);
    ck_assert_int_eq(info().files, 3);
    ck_assert_int_eq(info().skipped, 2);
    ck_assert_int_eq(info().tokens, 12);
    read_sample(HDI_DATASET_TRAIN, 1, 0);
    for (int i = 0; i < 12; i++)
        ck_assert_int_eq(window[i], "aaaazzzzbbbb"[i]);
}
END_TEST

START_TEST(binary_file_of_a_folder_is_known_by_a_late_nul_too)
{
    static char late[10000];
    memset(late, 'x', sizeof late);
    late[9999] = '\0';
    write_file("late", late, sizeof late);
    write_file("text", "0123456789", 10);
    open_well(folder, 4, 256, 0);
    ck_assert_int_eq(info().skipped, 1);
    ck_assert_int_eq(info().tokens, 10);
}
END_TEST

START_TEST(memory_and_file_give_equal_fingerprints)
{
    static char text[200000];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)('a' + i % 23);
    write_file("text", text, sizeof text);
    open_well(in_folder("text"), 10, 256, 0.1);
    const uint64_t from_file = fingerprint();
    hdi_dataset_close(dataset);
    open_well(folder, 10, 256, 0.1);
    const uint64_t from_folder = fingerprint();
    hdi_dataset_close(dataset);
    text[150000] ^= 1;
    write_file("text", text, sizeof text);
    open_well(folder, 10, 256, 0.1);
    const uint64_t other = fingerprint();
    ck_assert_uint_eq(from_file, from_folder);
    ck_assert_uint_ne(from_file, other);
}
END_TEST

START_TEST(order_is_a_function_of_seed_and_sample_alone)
{
    enum { WINDOWS = 101, SAMPLES = 3 * WINDOWS };
    int64_t straight[SAMPLES];
    int epochs_equal = 0, seeds_equal = 0;
    write_counting(WINDOWS * 8);
    open_well(in_folder("s.bin"), 7, 1000, 0);
    for (int64_t sample = 0; sample < SAMPLES; sample++) {
        read_sample(HDI_DATASET_TRAIN, 42, sample);
        straight[sample] = window[0];
        ck_assert_int_eq(window[0],
                         8 * hdi_dataset_window_at(dataset, HDI_DATASET_TRAIN, 42, sample));
    }
    /* Four ranks that take every fourth sample, last rank first, see the same. */
    for (int rank = 3; rank >= 0; rank--)
        for (int64_t sample = rank; sample < SAMPLES; sample += 4) {
            read_sample(HDI_DATASET_TRAIN, 42, sample);
            ck_assert_int_eq(window[0], straight[sample]);
        }
    for (int64_t sample = 0; sample < WINDOWS; sample++) {
        epochs_equal += straight[sample] == straight[sample + WINDOWS];
        read_sample(HDI_DATASET_TRAIN, 43, sample);
        seeds_equal += straight[sample] == window[0];
    }
    /* Random orders of 101 windows agree in one place on average, in ten never. */
    ck_assert_int_lt(epochs_equal, 10);
    ck_assert_int_lt(seeds_equal, 10);
}
END_TEST

START_TEST(every_epoch_visits_every_window_once)
{
    enum { WINDOWS = 37 };
    write_counting(WINDOWS * 4 + 3);
    open_well(in_folder("s.bin"), 3, 1000, 0);
    for (int64_t epoch = 0; epoch < 5; epoch++) {
        bool seen[WINDOWS] = {false};
        for (int64_t sample = 0; sample < WINDOWS; sample++) {
            int64_t at =
                hdi_dataset_window_at(dataset, HDI_DATASET_TRAIN, 9, epoch * WINDOWS + sample);
            ck_assert(at >= 0 && at < WINDOWS && !seen[at]);
            seen[at] = true;
        }
    }
}
END_TEST

START_TEST(validation_is_the_end_and_keeps_its_order)
{
    int32_t first[10];
    write_counting(405);
    open_well(in_folder("s.bin"), 3, 1000, 0.1); /* 101 windows */
    ck_assert_int_eq(info().windows[HDI_DATASET_TRAIN], 91);
    ck_assert_int_eq(info().windows[HDI_DATASET_VALIDATION], 10);
    int64_t sum = 0;
    for (int64_t sample = 0; sample < 10; sample++) {
        read_sample(HDI_DATASET_VALIDATION, 1, sample);
        first[sample] = window[0];
        ck_assert_int_ge(window[0], 91 * 4);
        sum += window[0] / 4 - 91;
    }
    ck_assert_int_eq(sum, 45);
    for (int64_t sample = 0; sample < 10; sample++) {
        read_sample(HDI_DATASET_VALIDATION, 2, sample + 10);
        ck_assert_int_eq(window[0], first[sample]);
    }
    for (int64_t sample = 0; sample < 91; sample++) {
        read_sample(HDI_DATASET_TRAIN, 1, sample);
        ck_assert_int_lt(window[3], 91 * 4);
    }
}
END_TEST

START_TEST(validation_has_a_window_and_leaves_one)
{
    write_file("text", "0123456789abcdef", 16);
    open_well(in_folder("text"), 3, 256, 0.0001);
    ck_assert_int_eq(info().windows[HDI_DATASET_VALIDATION], 1);
    hdi_dataset_close(dataset);
    open_well(in_folder("text"), 3, 256, 0.9999);
    ck_assert_int_eq(info().windows[HDI_DATASET_TRAIN], 1);
    ck_assert_int_eq(info().windows[HDI_DATASET_VALIDATION], 3);
}
END_TEST

START_TEST(entropy_is_that_of_the_training_tokens)
{
    double entropy;
    write_file("text", "aabcaabcaabcaabczzzz", 20);
    open_well(in_folder("text"), 3, 256, 0.2); /* the z's are validation */
    hdt_assert_ok(hdi_dataset_entropy(dataset, &entropy));
    double wanted = 0.5 * log(2) + 0.25 * log(4) + 0.25 * log(4);
    ck_assert_double_le(fabs(entropy - wanted), 4 * 0x1p-52 * wanted); /* three terms, rounded */
}
END_TEST

START_TEST(windows_allocate_nothing)
{
    write_counting(1000);
    open_well(in_folder("s.bin"), 7, 1000, 0.1);
    uint64_t before = hdi_alloc_count();
    for (int64_t sample = 0; sample < 100; sample++)
        read_sample(HDI_DATASET_TRAIN, 1, sample);
    ck_assert_uint_eq(hdi_alloc_count(), before);
}
END_TEST

START_TEST(large_data_is_sampled_up_to_its_end)
{
    /* Sparse files of 2^27 bytes, all zeros but for the last one. */
    uint64_t hashes[2];
    for (int i = 0; i < 2; i++) {
        double entropy;
        write_file("large", "", 0);
        ck_assert_int_eq(truncate(in_folder("large"), (1 << 27) - 1), 0);
        FILE *file = fopen(in_folder("large"), "ab");
        fputc('x' + i, file);
        fclose(file);
        open_well(in_folder("large"), 1023, 256, 0);
        hashes[i] = fingerprint();
        hdt_assert_ok(hdi_dataset_entropy(dataset, &entropy));
        ck_assert_double_gt(entropy, 0);
        ck_assert_double_lt(entropy, 1e-5);
        hdi_dataset_close(dataset);
    }
    dataset = NULL;
    ck_assert_uint_ne(hashes[0], hashes[1]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("dataset");
    TCase *tests = tcase_create("dataset");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, bytes_of_a_file_are_its_tokens);
    tcase_add_loop_test(tests, shard_tokens_are_read_whatever_their_width, 0, 2);
    tcase_add_test(tests, shards_of_a_pattern_or_list_follow_each_other);
    tcase_add_test(tests, folder_gives_each_text_once_in_the_order_of_paths);
    tcase_add_test(tests, binary_file_of_a_folder_is_known_by_a_late_nul_too);
    tcase_add_test(tests, memory_and_file_give_equal_fingerprints);
    tcase_add_test(tests, order_is_a_function_of_seed_and_sample_alone);
    tcase_add_test(tests, every_epoch_visits_every_window_once);
    tcase_add_test(tests, validation_is_the_end_and_keeps_its_order);
    tcase_add_test(tests, validation_has_a_window_and_leaves_one);
    tcase_add_test(tests, entropy_is_that_of_the_training_tokens);
    tcase_add_test(tests, windows_allocate_nothing);
    tcase_add_test(tests, large_data_is_sampled_up_to_its_end);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
