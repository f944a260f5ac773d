/* Damaged files and failing calls: a checkpoint is whole or absent, and an older one is found. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/memory.h"
#include "core/random.h"
#include "io/block_sums.h"
#include "io/checkpoint_folder.h"
#include "tests/support/hdt_checkpoint.h"

/* The system calls of a save, taken over by this program: the fault_at-th of them from now on fails
 * with fault_errno, and with SHORT_WRITE only writes one byte. */
enum { SHORT_WRITE = -1 };
static int fault_at, fault_errno;

static bool fault_is_due(void)
{
    if (fault_at == 0 || --fault_at > 0) return false;
    if (fault_errno != SHORT_WRITE) errno = fault_errno;
    return true;
}

ssize_t write(int descriptor, const void *data, size_t bytes)
{
    if (!fault_is_due()) return syscall(SYS_write, descriptor, data, bytes);
    if (fault_errno != SHORT_WRITE) return -1;
    return syscall(SYS_write, descriptor, data, bytes > 1 ? (size_t)1 : bytes);
}

int fsync(int descriptor)
{
    if (fault_is_due() && fault_errno != SHORT_WRITE) return -1;
    return (int)syscall(SYS_fsync, descriptor);
}

int rename(const char *from, const char *to)
{
    /* rename is never interrupted, nor short. */
    if (fault_is_due() && fault_errno != SHORT_WRITE && fault_errno != EINTR) return -1;
    return (int)syscall(SYS_rename, from, to);
}

int mkdir(const char *path, mode_t mode)
{
    if (fault_is_due() && fault_errno != SHORT_WRITE && fault_errno != EINTR) return -1;
    return (int)syscall(SYS_mkdir, path, mode);
}

int close(int descriptor)
{
    const bool due = fault_is_due() && fault_errno != SHORT_WRITE;
    const int result = (int)syscall(SYS_close, descriptor);
    if (!due) return result;
    errno = fault_errno;
    return -1;
}

/* Two checkpoints, 1 and 2, to damage the newer one. */
static const char *two_checkpoints(void)
{
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(folder, 2);
    hdt_assert_ok(hdt_checkpoint_save(writer, 1));
    hdt_assert_ok(hdt_checkpoint_save(writer, 2));
    hdi_checkpoint_writer_destroy(writer);
    return folder;
}

static const char *const damaged_files[] = {"step-2/manifest.json", "step-2/rank-0.safetensors"};

START_TEST(a_missing_file_falls_back_to_the_previous_checkpoint)
{
    const char *folder = two_checkpoints();
    ck_assert_int_eq(unlink(hdt_inside(folder, damaged_files[_i])), 0);
    hdt_assert_newest(folder, 1, false, "No such file");
    hdi_checkpoint *checkpoint;
    char *warning;
    hdt_assert_status(
        hdi_checkpoint_open(hdt_inside(folder, "step-2"), NULL, &warning, &checkpoint), HD_ERROR_IO,
        "No such file");
    unlink(hdt_inside(folder, "step-1/manifest.json"));
    hdt_assert_status(hdi_checkpoint_open(folder, NULL, &warning, &checkpoint), HD_ERROR_IO,
                      "no checkpoint verifies");
}
END_TEST

START_TEST(every_cut_falls_back_to_the_previous_checkpoint)
{
    const char *folder = two_checkpoints();
    char path[HDI_PATH_BYTES + 64], *bytes;
    size_t count;
    snprintf(path, sizeof path, "%s", hdt_inside(folder, damaged_files[_i]));
    hdt_assert_ok(hdi_file_read_all(path, 1 << 20, &bytes, &count));
    int cuts = 0;
    for (size_t cut = count - 1; cuts < 60 && cut < count; cut -= 211, cuts++) {
        ck_assert_int_eq(truncate(path, (off_t)cut), 0);
        hdt_assert_newest(folder, 1, false, "step-2");
    }
    ck_assert_int_eq(truncate(path, 0), 0);
    hdt_assert_newest(folder, 1, false, "step-2");
    FILE *file = fopen(path, "wb"); /* one byte too many */
    fwrite(bytes, 1, count, file);
    fputc(0, file);
    fclose(file);
    hdt_assert_newest(folder, 1, false, "step-2");
    hdi_free(bytes);
}
END_TEST

static void flip(const char *path, int64_t bit)
{
    FILE *file = fopen(path, "r+b");
    ck_assert_ptr_nonnull(file);
    fseek(file, (long)(bit / 8), SEEK_SET);
    const int byte = fgetc(file);
    fseek(file, (long)(bit / 8), SEEK_SET);
    fputc(byte ^ (1 << bit % 8), file);
    fclose(file);
}

START_TEST(every_flipped_bit_falls_back_to_the_previous_checkpoint)
{
    const char *folder = two_checkpoints();
    for (int i = 0; i < 250; i++) {
        char path[HDI_PATH_BYTES + 64];
        snprintf(path, sizeof path, "%s", hdt_inside(folder, damaged_files[_i]));
        struct stat info;
        ck_assert_int_eq(stat(path, &info), 0);
        const int64_t bits = 8 * (int64_t)info.st_size;
        /* The first bytes are the most delicate: each bit of them, then any. */
        const int64_t bit =
            i < 120 ? i : (int64_t)hdi_random_permute(5, 0, (uint64_t)i, (uint64_t)bits);
        flip(path, bit);
        hdt_assert_newest(folder, 1, false, "step-2");
        flip(path, bit);
    }
    hdt_assert_newest(folder, 2, true, NULL);
}
END_TEST

START_TEST(verify_looks_at_the_disk_again)
{
    const char *folder = two_checkpoints();
    hdi_checkpoint *checkpoint;
    char *warning;
    hdt_assert_ok(hdi_checkpoint_open(folder, NULL, &warning, &checkpoint));
    hdt_assert_ok(hdi_checkpoint_verify(checkpoint));
    flip(hdt_inside(folder, "step-2/rank-0.safetensors"), 8 * 5000);
    hdt_assert_status(hdi_checkpoint_verify(checkpoint), HD_ERROR_FORMAT, "are damaged");
    hdi_checkpoint_close(checkpoint);
}
END_TEST

static hd_status fetch_floats(void *user, int64_t first, int64_t count, void *out)
{
    memcpy(out, (const float *)user + first, (size_t)count * sizeof(float));
    return HD_OK;
}

/* The tensor is fetched in several parts as it is written. */
START_TEST(damage_far_behind_the_header_is_found_when_it_is_read)
{
    enum { LARGE = 10 << 20 };
    float *large = calloc(LARGE, sizeof *large);
    ck_assert_ptr_nonnull(large);
    for (int i = 0; i < LARGE; i++)
        large[i] = (float)i;
    const hdi_checkpoint_piece piece = {.name = "large",
                                        .dtype = HD_DTYPE_F32,
                                        .global_elements = LARGE,
                                        .count = LARGE,
                                        .fetch = fetch_floats,
                                        .user = large};
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer;
    hdt_assert_ok(hdi_checkpoint_writer_create(NULL, folder, 2, &piece, 1, &writer));
    hdt_assert_ok(hdi_checkpoint_save(writer, 1, "{}"));
    hdt_assert_ok(hdi_checkpoint_save(writer, 2, "{}"));
    hdi_checkpoint_writer_destroy(writer);
    flip(hdt_inside(folder, "step-2/rank-0.safetensors"), 8 * (HDI_BLOCK_BYTES + 12345) + 3);

    hdi_checkpoint *checkpoint;
    char *warning;
    hdt_assert_ok(hdi_checkpoint_open(folder, NULL, &warning, &checkpoint));
    ck_assert_int_eq(hdi_checkpoint_step(checkpoint), 2);
    float *got = calloc(LARGE, sizeof *got);
    ck_assert_ptr_nonnull(got);
    hdt_assert_ok(hdi_checkpoint_read(checkpoint, "large", 0, 4 << 20 >> 1, HD_DTYPE_F32, got));
    ck_assert_mem_eq(got, large, (4 << 20 >> 1) * sizeof *got);
    hdt_assert_status(hdi_checkpoint_read(checkpoint, "large", 5 << 20, 10, HD_DTYPE_F32, got),
                      HD_ERROR_FORMAT, "tensor \"large\"");
    ck_assert_ptr_nonnull(strstr(hd_last_error(), "bytes 16777216 to 33554432 are damaged"));
    hdt_assert_ok(hdi_checkpoint_read(checkpoint, "large", 9 << 20, 1000, HD_DTYPE_F32, got));
    ck_assert_mem_eq(got, large + (9 << 20), 1000 * sizeof *got);
    hdt_assert_status(hdi_checkpoint_verify(checkpoint), HD_ERROR_FORMAT, "are damaged");
    hdi_checkpoint_close(checkpoint);

    hdt_assert_ok(hdi_checkpoint_open(folder, &(hdi_checkpoint_options){.verify_all = true},
                                      &warning, &checkpoint));
    ck_assert_int_eq(hdi_checkpoint_step(checkpoint), 1);
    ck_assert_ptr_nonnull(strstr(warning, "step-2/rank-0.safetensors: bytes 16777216"));
    hdi_free(warning);
    hdt_assert_ok(hdi_checkpoint_read(checkpoint, "large", 0, LARGE, HD_DTYPE_F32, got));
    ck_assert_mem_eq(got, large, LARGE * sizeof *got);
    hdi_checkpoint_close(checkpoint);
    free(got);
    free(large);
}
END_TEST

/* Fail the k-th system call of a save, for all k: the save either reports it and leaves the folder
 * as it was, or it had committed already. */
START_TEST(every_failing_call_leaves_a_sound_checkpoint)
{
    static const int errors[] = {EIO, ENOSPC, EINTR, SHORT_WRITE};
    const bool harmless = errors[_i] == EINTR || errors[_i] == SHORT_WRITE;
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(folder, 1);
    hdt_assert_ok(hdt_checkpoint_save(writer, 1));
    int64_t newest = 1;
    int failed = 0, k = 1;
    for (bool reached = true; reached && k < 300; k++) {
        /* Every third k saves the newest step again. */
        const int64_t step = k % 3 == 0 ? newest : newest + 1;
        fault_errno = errors[_i];
        fault_at = k;
        const hd_status status = hdt_checkpoint_save(writer, step);
        reached = fault_at == 0;
        fault_at = 0;
        if (status == HD_OK) {
            newest = step;
        } else {
            failed++;
            ck_assert_msg(!harmless, "k %d: %s", k, hd_last_error());
            hdt_assert_status(status, HD_ERROR_IO, strerror(errors[_i]));
            hdi_step_list list;
            hdt_assert_ok(hdi_step_list_read(folder, &list));
            for (int i = 0; i < list.count; i++)
                ck_assert_int_ne(list.steps[i].kind, HDI_STEP_TEMPORARY);
            hdi_free(list.steps);
        }
        hdi_checkpoint *checkpoint;
        char *warning;
        hdt_assert_ok(hdi_checkpoint_open(folder, NULL, &warning, &checkpoint));
        /* A folder sync that fails after the rename leaves a whole new checkpoint. */
        ck_assert(hdi_checkpoint_step(checkpoint) == newest ||
                  (status != HD_OK && hdi_checkpoint_step(checkpoint) == step));
        newest = hdi_checkpoint_step(checkpoint);
        hdi_checkpoint_close(checkpoint);
        hdi_free(warning);
        hdt_assert_newest(folder, newest, true, NULL);
    }
    hdi_checkpoint_writer_destroy(writer);
    ck_assert_int_lt(k, 300);
    ck_assert_int_gt(k, 15);
    ck_assert(harmless ? failed == 0 : failed > 8);
}
END_TEST

START_TEST(a_full_disk_leaves_the_old_checkpoint)
{
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(folder, 1);
    hdt_assert_ok(hdt_checkpoint_save(writer, 1));
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old;
    getrlimit(RLIMIT_FSIZE, &old);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){(rlim_t)(700 * (_i + 1)), old.rlim_max});
    const hd_status status = hdt_checkpoint_save(writer, 2);
    setrlimit(RLIMIT_FSIZE, &old);
    hdt_assert_status(status, HD_ERROR_IO, "File too large");
    ck_assert(!hdt_is_inside(folder, "step-2.tmp") && !hdt_is_inside(folder, "step-2"));
    hdt_assert_newest(folder, 1, true, NULL);
    hdt_assert_ok(hdt_checkpoint_save(writer, 2));
    hdt_assert_newest(folder, 2, true, NULL);
    hdi_checkpoint_writer_destroy(writer);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("checkpoint damage");
    TCase *damaged = tcase_create("damaged");
    tcase_add_loop_test(damaged, a_missing_file_falls_back_to_the_previous_checkpoint, 0, 2);
    tcase_add_loop_test(damaged, every_cut_falls_back_to_the_previous_checkpoint, 0, 2);
    tcase_add_loop_test(damaged, every_flipped_bit_falls_back_to_the_previous_checkpoint, 0, 2);
    tcase_add_test(damaged, verify_looks_at_the_disk_again);
    tcase_add_test(damaged, damage_far_behind_the_header_is_found_when_it_is_read);
    suite_add_tcase(suite, damaged);
    TCase *faults = tcase_create("faults");
    tcase_add_loop_test(faults, every_failing_call_leaves_a_sound_checkpoint, 0, 4);
    tcase_add_loop_test(faults, a_full_disk_leaves_the_old_checkpoint, 0, 5);
    suite_add_tcase(suite, faults);
    return hdt_main(suite);
}
