/* What all tests share: main functions for one process and for ranks, assertions, tolerances, files,
 * data. Check's own macros do the rest. */
#ifndef HDT_H
#define HDT_H

#include <check.h>
#include <string.h>

#include <heddle/mesh.h>

/* Run suites in this process (Check forks each test); the value is main's. */
#define hdt_main(...) hdt_run_suites((Suite *[]){__VA_ARGS__, NULL})
int hdt_run_suites(Suite **suites);

/* Run test cases on all ranks, without forks: assert after what is collective, never before, so that a
 * rank that fails leaves no peer waiting. Rank 0 prints, and each rank that failed; all exit alike. */
#define hdt_main_ranks(argc, argv, name, ...) \
    hdt_run_ranks((argc), (argv), (name), (TCase *[]){__VA_ARGS__, NULL})
int hdt_run_ranks(int argc, char **argv, const char *name, TCase **cases);

/* All ranks, while hdt_main_ranks runs; NULL in hdt_main. */
extern hd_comm *hdt_world;

/* A world of a test's own over MPI, with a deadline that a test can wait for; 0: the default.
 * Collective. */
hd_comm *hdt_open_world(double deadline_seconds);

/* Wait for what was posted: the status of whichever failed. */
hd_status hdt_finish(hd_comm *comm, hd_status posted, hd_request *request);

#define hdt_assert_ok(expr)                                                                    \
    do {                                                                                       \
        const hd_status hdt_status_ = (expr);                                                  \
        if (hdt_status_ != HD_OK)                                                              \
            ck_abort_msg("%s: %s: %s", #expr, hd_status_string(hdt_status_), hd_last_error()); \
    } while (0)

/* The call fails with `wanted` and a text that contains `fragment`. */
#define hdt_assert_status(expr, wanted, fragment)                                                  \
    do {                                                                                           \
        const hd_status hdt_status_ = (expr);                                                      \
        if (hdt_status_ != (wanted))                                                               \
            ck_abort_msg("%s: status is '%s' (%s), want '%s'", #expr,                              \
                         hd_status_string(hdt_status_), hd_last_error(),                           \
                         hd_status_string(wanted));                                                \
        if (!strstr(hd_last_error(), (fragment)))                                                  \
            ck_abort_msg("%s: text is '%s', want '%s' in it", #expr, hd_last_error(), (fragment)); \
    } while (0)

/* The error, relative to the sum of the terms' magnitudes, that a sum of `terms` products may have
 * when it is accumulated in fp32 (fp64 for F64) and stored as `dtype`. 0 for integers. */
double hdt_tolerance(hd_dtype dtype, int64_t terms);

/* tests/golden/<name>, and any file of the source tree: below $HEDDLE_SOURCE, else the current
 * directory. Borrowed; valid for the next few calls. */
const char *hdt_golden_path(const char *name);
const char *hdt_source_path(const char *path);

/* The longest pipeline of a model of so many layers that divides the ranks; the rest are data. */
hd_mesh_options hdt_deepest(const hd_comm *comm, int layers);

/* A directory for this process alone, removed at its exit. Borrowed. */
const char *hdt_temp_dir(void);

/* The same for all ranks of hdt_world. Collective. */
const char *hdt_shared_temp_dir(void);

/* A path in hdt_temp_dir(). Borrowed; valid for the next few calls. */
const char *hdt_temp_path(const char *name);

/* The same data for the same seed everywhere: uniform in [-1, 1), and whole numbers in
 * [-range, range], whose sums are exact. */
void hdt_fill(float *data, int64_t count, uint64_t seed);
void hdt_fill_whole(float *data, int64_t count, int range, uint64_t seed);

#endif
