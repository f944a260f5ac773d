/* Datasets that are refused: damaged shards, files that change, options that cannot be. */
#include <math.h>
#include <sys/stat.h>

#include "tests/support/hdt_dataset.h"

static int32_t window[16];

/* Shards with one fault each. */
static const struct {
    int32_t magic, version, promised;
    int count;
    const char *text;
} bad_shards[] = {
    {20240521, 1, 100, 100, "magic 20240521 at byte 0, wanted 20240520"},
    {0, 0, 0, 100, "magic 0 at byte 0"},
    {20240520, 2, 100, 100, "version 2 at byte 4, wanted 1"},
    {20240801, 1, 100, 100, "version 1 at byte 4, wanted 7"},
    {20240520, 1, 101, 100, "has 1224 bytes, wanted 1226 for the 101 tokens"},
    {20240520, 1, 99, 100, "has 1224 bytes, wanted 1222"},
    {20240801, 7, 101, 100, "has 1424 bytes, wanted 1428"},
    {20240520, 1, -1, 100, "-1 tokens at byte 8"},
    {20240520, 1, INT32_MIN, 100, "-2147483648 tokens at byte 8"},
    {20240801, 7, INT32_MAX, 100, "wanted 8589935612 for"},
    {20240520, 1, 0, 0, "0 tokens at byte 8, wanted at least 1"},
};

START_TEST(shard_with_a_fault_is_refused)
{
    write_shard("s.bin", bad_shards[_i].magic, bad_shards[_i].version, bad_shards[_i].promised,
                bad_shards[_i].count, 0);
    hdt_assert_status(open_path(in_folder("s.bin"), 3, 1000, 0), HD_ERROR_FORMAT,
                      bad_shards[_i].text);
    ck_assert_ptr_nonnull(strstr(hd_last_error(), "s.bin: "));
}
END_TEST

START_TEST(shard_shorter_than_its_header_is_refused)
{
    write_file("s.bin", "short", 5);
    hdt_assert_status(open_path(in_folder("s.bin"), 3, 1000, 0), HD_ERROR_FORMAT,
                      "has 5 bytes, wanted a header of 1024");
}
END_TEST

START_TEST(token_beyond_the_vocabulary_is_refused_at_its_first_use)
{
    const bool wide = _i;
    hd_status status = HD_OK;
    write_shard("s.bin", wide ? 20240801 : 20240520, wide ? 7 : 1, 100, 100, 0);
    open_well(in_folder("s.bin"), 9, 73, 0);
    for (int64_t sample = 0; sample < 10 && status == HD_OK; sample++) {
        int64_t at = hdi_dataset_window_at(dataset, HDI_DATASET_TRAIN, 1, sample);
        status = hdi_dataset_window(dataset, HDI_DATASET_TRAIN, 1, sample, window);
        ck_assert_int_eq(status == HD_OK, at < 7); /* window 7 holds 70 to 79 */
    }
    ck_assert_int_eq(status, HD_ERROR_FORMAT);
    uint64_t hash;
    hdt_assert_status(hdi_dataset_fingerprint(dataset, &hash), HD_ERROR_FORMAT,
                      wide ? "s.bin: token 73 at byte 1316, wanted"
                           : "s.bin: token 73 at byte 1170, wanted");
}
END_TEST

START_TEST(huge_token_is_refused_and_not_taken_for_a_negative_one)
{
    uint64_t hash;
    write_shard("s.bin", 20240801, 7, 100, 100, UINT32_MAX - 50);
    open_well(in_folder("s.bin"), 9, INT32_MAX, 0);
    hdt_assert_status(hdi_dataset_fingerprint(dataset, &hash), HD_ERROR_FORMAT,
                      "token 4294967245 at byte 1024");
}
END_TEST

START_TEST(file_that_shrinks_is_named_with_the_offset)
{
    uint64_t hash;
    write_counting(100);
    open_well(in_folder("s.bin"), 9, 1000, 0);
    ck_assert_int_eq(truncate(in_folder("s.bin"), 1100), 0);
    hdt_assert_status(hdi_dataset_fingerprint(dataset, &hash), HD_ERROR_IO,
                      "s.bin: ends at byte 1100");
    ck_assert_ptr_nonnull(strstr(hd_last_error(), "it had 1224 bytes when it was opened"));
}
END_TEST

START_TEST(missing_and_empty_paths_are_named)
{
    hdt_assert_status(open_path(in_folder("none"), 3, 256, 0), HD_ERROR_IO, "/none: cannot open");
    hdt_assert_status(open_path(in_folder("*.bin"), 3, 256, 0), HD_ERROR_IO,
                      "/*.bin: matches no file");
    hdt_assert_status(open_path("", 3, 256, 0), HD_ERROR_CONFIG, "no path");
    hdt_assert_status(open_path(folder, 3, 256, 0), HD_ERROR_FORMAT, "no text below it");
    write_file("empty", "", 0);
    hdt_assert_status(open_path(in_folder("empty"), 3, 256, 0), HD_ERROR_FORMAT,
                      "/empty: is empty");
    hdt_assert_status(open_path(folder, 3, 256, 0), HD_ERROR_FORMAT, "no text below it");
    ck_assert_int_eq(mkfifo(in_folder("pipe"), 0666), 0);
    hdt_assert_status(open_path(in_folder("pipe"), 3, 256, 0), HD_ERROR_IO,
                      "wanted a regular file");
}
END_TEST

START_TEST(folder_of_shards_gets_a_hint)
{
    write_counting(100);
    hdt_assert_status(open_path(folder, 3, 1000, 0), HD_ERROR_FORMAT, "1 binary files skipped");
    ck_assert_ptr_nonnull(strstr(hd_last_error(), "*.bin'"));
}
END_TEST

START_TEST(data_too_short_for_a_window_says_how_much_is_wanted)
{
    write_file("text", "0123456789", 10);
    hdt_assert_status(open_path(in_folder("text"), 10, 256, 0), HD_ERROR_CONFIG,
                      "seen 10 tokens, wanted at least 11 for 1 window of seq_len + 1 = 11");
    hdt_assert_status(open_path(in_folder("text"), 9, 256, 0.1), HD_ERROR_CONFIG,
                      "seen 10 tokens, wanted at least 20 for 2 windows");
    open_well(in_folder("text"), 9, 256, 0);
    hdi_dataset_info facts;
    hdi_dataset_get_info(dataset, &facts);
    ck_assert_int_eq(facts.windows[HDI_DATASET_TRAIN], 1);
}
END_TEST

START_TEST(options_that_cannot_be_are_refused)
{
    write_file("text", "0123456789", 10);
    write_counting(100);
    char mixed[16384];
    snprintf(mixed, sizeof mixed, "%s,%s", in_folder("text"), in_folder("s.bin"));
    hdt_assert_status(open_path(mixed, 3, 256, 0), HD_ERROR_CONFIG, "cannot mix");
    hdt_assert_status(open_path(in_folder("text"), 0, 256, 0), HD_ERROR_ARGUMENT, "seq_len is 0");
    hdt_assert_status(open_path(in_folder("text"), 3, 255, 0), HD_ERROR_CONFIG, "at least 256");
    hdt_assert_status(open_path(in_folder("text"), 3, 0, 0), HD_ERROR_ARGUMENT, "vocab_size is 0");
    hdt_assert_status(open_path(in_folder("text"), 3, 256, 1), HD_ERROR_ARGUMENT, "fraction is 1");
    hdt_assert_status(open_path(in_folder("text"), 3, 256, (double)NAN), HD_ERROR_ARGUMENT, "nan");
    open_well(in_folder("text"), 3, 256, 0);
    ck_assert_int_eq(hdi_dataset_window(dataset, HDI_DATASET_TRAIN, 1, -1, window),
                     HD_ERROR_ARGUMENT);
    ck_assert_int_eq(hdi_dataset_window(dataset, HDI_DATASET_VALIDATION, 1, 0, window),
                     HD_ERROR_ARGUMENT);
}
END_TEST

#define COUNT(array) (int)(sizeof(array) / sizeof((array)[0]))

int main(void)
{
    Suite *suite = suite_create("dataset_faults");
    TCase *tests = tcase_create("dataset_faults");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, shard_with_a_fault_is_refused, 0, COUNT(bad_shards));
    tcase_add_test(tests, shard_shorter_than_its_header_is_refused);
    tcase_add_loop_test(tests, token_beyond_the_vocabulary_is_refused_at_its_first_use, 0, 2);
    tcase_add_test(tests, huge_token_is_refused_and_not_taken_for_a_negative_one);
    tcase_add_test(tests, file_that_shrinks_is_named_with_the_offset);
    tcase_add_test(tests, missing_and_empty_paths_are_named);
    tcase_add_test(tests, folder_of_shards_gets_a_hint);
    tcase_add_test(tests, data_too_short_for_a_window_says_how_much_is_wanted);
    tcase_add_test(tests, options_that_cannot_be_are_refused);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
