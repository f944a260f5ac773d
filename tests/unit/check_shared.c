/* Memory that processes share: found by its name, and nothing else in its place. */
#include "core/shared.h"
#include "tests/support/hdt.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BYTES = 3 << 16 };

static hdi_shared made;
static hdi_shared_name name;

static void make(void)
{
    hdt_assert_ok(hdi_shared_create(BYTES, &made, &name));
    hdt_assert_ok(hdi_shared_take(&made, 0, BYTES));
}

START_TEST(another_process_finds_it_and_writes_there)
{
    make();
    const pid_t child = fork();
    if (child == 0) {
        hdi_shared found;
        if (hdi_shared_open(&name, BYTES, &found) != HD_OK) _exit(1);
        memset(found.memory, 7, BYTES);
        hdi_shared_close(&found);
        _exit(0);
    }
    int status = 1;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    for (int i = 0; i < BYTES; i++)
        ck_assert_int_eq(((const char *)made.memory)[i], 7);
    hdi_shared_close(&made);
}
END_TEST

START_TEST(another_file_in_its_place_is_refused)
{
    hdi_shared other;
    make();
    hdt_assert_status(hdi_shared_open(&name, BYTES + 4096, &other), HD_ERROR_IO,
                      "is another file, of 196608 bytes");
    name.file++;
    hdt_assert_status(hdi_shared_open(&name, BYTES, &other), HD_ERROR_IO, "is another file");
    name.file--;
    hdi_shared_hide(&made);
    hdt_assert_status(hdi_shared_open(&name, BYTES, &other), HD_ERROR_IO, "/proc/");
    ck_assert_ptr_null(other.memory);
    hdi_shared_close(&made);
    hdi_shared_close(&made); /* zeroed: nothing */
}
END_TEST

START_TEST(a_limit_is_an_error_and_no_signal)
{
    struct rlimit limit = {.rlim_cur = 4096, .rlim_max = 4096};
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    hdt_assert_status(hdi_shared_create(BYTES, &made, &name), HD_ERROR_MEMORY,
                      "limited to 4096 bytes (ulimit -f), want 196608");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shared");
    TCase *memory = tcase_create("memory");
    tcase_add_test(memory, another_process_finds_it_and_writes_there);
    tcase_add_test(memory, another_file_in_its_place_is_refused);
    tcase_add_test(memory, a_limit_is_an_error_and_no_signal);
    suite_add_tcase(suite, memory);
    return hdt_main(suite);
}
