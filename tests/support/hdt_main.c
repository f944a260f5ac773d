/* The two main functions of test programs. Each ends with one line in Check's form,
 * "100%: Checks: 12, Failures: 0, Errors: 0", which tests/run.sh sums. */
#include "tests/support/hdt_device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

hd_comm *hdt_world;

/* Check's four seconds are short for a sanitizer on a busy machine; it reads this when a test case is
 * created, which is before main functions of ours. */
__attribute__((constructor)) static void set_timeout(void)
{
    setenv("CK_DEFAULT_TIMEOUT", "60", 0);
}

#ifdef __has_feature /* clang's way */
#if __has_feature(address_sanitizer)
#define HDT_IS_SANITIZED
#endif
#endif
#ifdef __SANITIZE_ADDRESS__ /* gcc's */
#define HDT_IS_SANITIZED
#endif

#ifdef HDT_IS_SANITIZED
/* Open MPI unloads its plugins at the end. LeakSanitizer, which comes later, must still see what they
 * hold, and their names, by which tests/support/lsan.supp forgives them. */
__attribute__((visibility("default"))) int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
#endif

int hdt_run_suites(Suite **suites)
{
    SRunner *runner = srunner_create(NULL);
    for (int i = 0; suites[i]; i++)
        srunner_add_suite(runner, suites[i]);
    srunner_run_all(runner, CK_NORMAL);
    const int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

hd_comm *hdt_open_world(double deadline_seconds)
{
    const hd_comm_options options = {.transport = HD_TRANSPORT_MPI,
                                     .deadline_seconds = deadline_seconds};
    hd_comm *world = NULL;
    hdt_assert_ok(hd_comm_create_world(&options, &world));
    return world;
}

hd_status hdt_finish(hd_comm *comm, hd_status posted, hd_request *request)
{
    return posted == HD_OK ? hd_comm_wait(comm, request) : posted;
}

/* Check tells a test's name only in what it writes: its log has a line "file:line:F:case:test:..." for
 * each failure. */
static void print_failures(const char *log, int rank)
{
    char line[2048];
    FILE *file = fopen(log, "r");
    while (file && fgets(line, sizeof line, file))
        if (strstr(line, ":F:") || strstr(line, ":E:")) printf("rank %d: %s", rank, line);
    if (file) fclose(file);
    fflush(stdout);
}

/* A test has failed if it did on any rank. */
static hd_status reduce(int32_t *failed, int tests)
{
    hd_request request;
    hd_status posted =
        hd_comm_all_reduce(hdt_world, failed, tests, HD_DTYPE_I32, HD_REDUCE_MAX, &request);
    return hdt_finish(hdt_world, posted, &request);
}

static int run_on_ranks(const char *name, TCase **cases)
{
    const int rank = hd_comm_rank(hdt_world);
    Suite *suite = suite_create(name);
    for (int i = 0; cases[i]; i++)
        suite_add_tcase(suite, cases[i]);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    char log[8192]; /* the path outlives what tests ask for */
    snprintf(log, sizeof log, "%s", hdt_temp_path("check.log"));
    srunner_set_log(runner, log);
    srunner_run_all(runner, CK_SILENT);
    print_failures(log, rank);

    const int tests = srunner_ntests_run(runner);
    TestResult **results = srunner_results(runner);
    int32_t *failed = calloc((size_t)tests + 1, sizeof *failed);
    if (!failed) abort();
    for (int i = 0; i < tests; i++)
        failed[i] = tr_rtype(results[i]) != CK_PASS;
    hd_status status = reduce(failed, tests);
    int failures = 0;
    for (int i = 0; i < tests; i++)
        failures += failed[i];
    if (status != HD_OK) {
        printf("rank %d: the ranks cannot compare results: %s\n", rank, hd_last_error());
        failures++;
    } else if (rank == 0) {
        printf("%s on %d ranks\n%d%%: Checks: %d, Failures: %d, Errors: 0\n", name,
               hd_comm_size(hdt_world), tests ? 100 * (tests - failures) / tests : 100, tests,
               failures);
    }
    fflush(stdout);
    free(failed);
    free(results);
    srunner_free(runner);
    return failures;
}

int hdt_run_ranks(int argc, char **argv, const char *name, TCase **cases)
{
    (void)argc, (void)argv;
    if (hd_comm_create_world(NULL, &hdt_world) != HD_OK) {
        printf("%s: %s\n", name, hd_last_error());
        return EXIT_FAILURE;
    }
    hdt_park();
    const int failures = run_on_ranks(name, cases);
    hdt_end_parking();
    hd_comm_destroy(hdt_world);
    hdt_world = NULL;
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
