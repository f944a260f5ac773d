/* device: none */
/* The file of GEMM algorithms: what is kept comes back, damage is noticed and harmless. */
#include "tests/support/hdt.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "backend/cuda/gemm_cache.h"
#include "core/file.h"
#include "core/memory.h"

static hdi_gemm_record record_of(int number)
{
    hdi_gemm_record record;
    for (int i = 0; i < HDI_GEMM_KEY_WORDS; i++)
        record.key[i] = 1000 * number + i - 500;
    for (int i = 0; i < HDI_GEMM_ALGORITHM_WORDS; i++)
        record.algorithm[i] = UINT64_MAX / (uint64_t)(number + i + 1);
    return record;
}

/* A new cache of this test's folder with what its file holds. */
static void open_cache(hdi_gemm_cache *cache)
{
    setenv("HEDDLE_CACHE", hdt_temp_path("cache"), 1);
    hdi_gemm_cache_open(cache, "NVIDIA Test/1 80GB", 130000);
    hdi_gemm_cache_load(cache);
}

/* A file with three records. */
static void write_cache(void)
{
    hdi_gemm_cache cache;
    open_cache(&cache);
    hdi_gemm_cache_lock(&cache);
    for (int i = 0; i < 3; i++) {
        const hdi_gemm_record record = record_of(i);
        hdt_assert_ok(hdi_gemm_cache_add(&cache, &record));
    }
    hdi_gemm_cache_close(&cache);
}

START_TEST(what_was_kept_is_found_by_the_next_process)
{
    hdi_gemm_cache cache;
    write_cache();
    open_cache(&cache);
    ck_assert_int_eq(cache.count, 3);
    for (int i = 0; i < 3; i++) {
        const hdi_gemm_record want = record_of(i), *got = hdi_gemm_cache_find(&cache, want.key);
        ck_assert_ptr_nonnull(got);
        ck_assert_mem_eq(got, &want, sizeof want);
    }
    const hdi_gemm_record other = record_of(9);
    ck_assert_ptr_null(hdi_gemm_cache_find(&cache, other.key));
    ck_assert_ptr_nonnull(strstr(cache.path, "gemm-NVIDIA-Test-1-80GB-130000.txt"));
    hdi_gemm_cache_close(&cache);
}
END_TEST

/* Every byte of the file changed, and every length that it could be cut to. */
START_TEST(a_damaged_file_counts_as_empty)
{
    hdi_gemm_cache cache;
    char *text = NULL;
    size_t length = 0;
    write_cache();
    open_cache(&cache);
    hdt_assert_ok(hdi_file_read_all(cache.path, 1 << 20, &text, &length));
    for (size_t i = 0; i < length - 1; i++) { /* the last newline is not missed */
        FILE *file = fopen(cache.path, "w");
        ck_assert_ptr_nonnull(file);
        text[i] ^= 1;
        fwrite(text, 1, _i ? i : length, file);
        fclose(file);
        text[i] ^= 1;
        hdi_gemm_cache_load(&cache);
        ck_assert_msg(cache.count == 0, "byte %zu: %d records", i, cache.count);
    }
    const hdi_gemm_record record = record_of(5);
    hdt_assert_ok(hdi_gemm_cache_add(&cache, &record));
    hdi_gemm_cache_load(&cache);
    ck_assert_int_eq(cache.count, 1);
    hdi_free(text);
    hdi_gemm_cache_close(&cache);
}
END_TEST

START_TEST(without_a_folder_the_cache_lives_in_memory)
{
    hdi_gemm_cache cache;
    setenv("HEDDLE_CACHE", "/proc/no/such/folder", 1);
    hdi_gemm_cache_open(&cache, "GPU", 1);
    hdi_gemm_cache_load(&cache);
    hdi_gemm_cache_lock(&cache);
    const hdi_gemm_record record = record_of(1);
    hdt_assert_ok(hdi_gemm_cache_add(&cache, &record));
    ck_assert_ptr_nonnull(hdi_gemm_cache_find(&cache, record.key));
    hdi_gemm_cache_close(&cache);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gemm cache");
    TCase *cases = tcase_create("file");
    tcase_add_test(cases, what_was_kept_is_found_by_the_next_process);
    tcase_add_loop_test(cases, a_damaged_file_counts_as_empty, 0, 2);
    tcase_add_test(cases, without_a_folder_the_cache_lives_in_memory);
    suite_add_tcase(suite, cases);
    return hdt_main(suite);
}
