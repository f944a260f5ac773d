/* Checkpoints of many ranks: saved in one layout, read in any other, and never half saved. */
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#include "core/file.h"
#include "core/memory.h"
#include "io/checkpoint.h"
#include "tests/support/hdt.h"

enum { ELEMENTS = 10007 }; /* divides by no number of ranks */
static float data[ELEMENTS];

static int64_t begin_of(int rank, int ranks)
{
    return (int64_t)ELEMENTS * rank / ranks;
}

static hdi_checkpoint_piece own_piece(int64_t step)
{
    const int rank = hd_comm_rank(hdt_world), ranks = hd_comm_size(hdt_world);
    const int64_t begin = begin_of(rank, ranks);
    for (int i = 0; i < ELEMENTS; i++)
        data[i] = (float)(i + step);
    return (hdi_checkpoint_piece){.name = "w",
                                  .dtype = HD_DTYPE_F32,
                                  .global_elements = ELEMENTS,
                                  .begin = begin,
                                  .count = begin_of(rank + 1, ranks) - begin,
                                  .data = data + begin};
}

static const char *folder_of(const char *test)
{
    static char folder[HDI_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s/%s", hdt_shared_temp_dir(), test);
    return folder;
}

START_TEST(every_rank_reads_any_range_of_what_all_wrote)
{
    const char *folder = folder_of("any");
    hdi_checkpoint_piece piece = own_piece(3);
    hdi_checkpoint_writer *writer = NULL;
    hdi_checkpoint *checkpoint = NULL;
    char *warning = NULL;
    hd_status status = hdi_checkpoint_writer_create(hdt_world, folder, 1, &piece, 1, &writer);
    if (status == HD_OK) status = hdi_checkpoint_save(writer, 3, "{\"a\":1}");
    own_piece(4);
    if (status == HD_OK) status = hdi_checkpoint_save(writer, 4, "{\"a\":2}");
    hdi_checkpoint_writer_destroy(writer);
    if (status == HD_OK)
        status = hdi_checkpoint_open_all(hdt_world, folder, NULL, &warning, &checkpoint);

    hdt_assert_ok(status);
    ck_assert_ptr_null(warning);
    ck_assert_int_eq(hdi_checkpoint_step(checkpoint), 4);
    ck_assert_str_eq(hdi_checkpoint_state(checkpoint), "{\"a\":2}");
    ck_assert_int_eq(hdi_checkpoint_file_count(checkpoint), hd_comm_size(hdt_world));
    for (int parts = 1; parts <= 9; parts++) /* the layouts of other numbers of ranks */
        for (int part = 0; part < parts; part++) {
            float got[ELEMENTS];
            const int64_t begin = begin_of(part, parts), end = begin_of(part + 1, parts);
            hdt_assert_ok(
                hdi_checkpoint_read(checkpoint, "w", begin, end - begin, HD_DTYPE_F32, got));
            ck_assert_mem_eq(got, data + begin, (size_t)(end - begin) * sizeof *got);
        }
    hdi_checkpoint_close(checkpoint);
}
END_TEST

START_TEST(one_rank_that_cannot_write_fails_the_save_on_all)
{
    const char *folder = folder_of("fails");
    const int rank = hd_comm_rank(hdt_world), last = hd_comm_size(hdt_world) - 1;
    hdi_checkpoint_piece piece = own_piece(1);
    hdi_checkpoint_writer *writer = NULL;
    hdi_checkpoint *checkpoint = NULL;
    char *warning = NULL;
    hd_status created = hdi_checkpoint_writer_create(hdt_world, folder, 2, &piece, 1, &writer);
    hd_status first = created == HD_OK ? hdi_checkpoint_save(writer, 1, "{}") : created;

    /* A hole in the last rank's piece is found before rank 0 commits. */
    hdi_checkpoint_writer_destroy(writer);
    if (rank == last) piece.count--;
    created = hdi_checkpoint_writer_create(hdt_world, folder, 2, &piece, 1, &writer);
    hd_status hole = created == HD_OK ? hdi_checkpoint_save(writer, 2, "{}") : created;
    hdi_checkpoint_writer_destroy(writer);

    /* A bad piece on the last rank stops all ranks alike. */
    if (rank == last) piece.begin = -1;
    hd_status bad = hdi_checkpoint_writer_create(hdt_world, folder, 2, &piece, 1, &writer);
    char text[512];
    snprintf(text, sizeof text, "%s", hd_last_error());
    hd_status opened = hdi_checkpoint_open_all(hdt_world, folder, NULL, &warning, &checkpoint);

    hdt_assert_ok(first);
    ck_assert_int_ne(hole, HD_OK);
    ck_assert_int_ne(bad, HD_OK);
    ck_assert_ptr_null(writer);
    ck_assert_ptr_nonnull(strstr(text, "checkpoint piece \"w\""));
    hdt_assert_ok(opened);
    ck_assert_int_eq(hdi_checkpoint_step(checkpoint), 1);
    char attempt[HDI_PATH_BYTES + 32];
    snprintf(attempt, sizeof attempt, "%s/step-2.tmp", folder);
    ck_assert(!hdi_file_exists(attempt));
    hdi_checkpoint_close(checkpoint);
}
END_TEST

START_TEST(all_ranks_open_what_rank_0_chose)
{
    const char *folder = folder_of("chooses");
    hdi_checkpoint_piece piece = own_piece(0);
    hdi_checkpoint_writer *writer = NULL;
    hdi_checkpoint *checkpoint = NULL, *none = NULL;
    char *warning = NULL, *no_warning = NULL;
    hd_status status = hdi_checkpoint_writer_create(hdt_world, folder, 2, &piece, 1, &writer);
    if (status == HD_OK) status = hdi_checkpoint_save(writer, 1, "{}");
    if (status == HD_OK) status = hdi_checkpoint_save(writer, 2, "{}");
    hdi_checkpoint_writer_destroy(writer);
    char victim[HDI_PATH_BYTES + 64];
    snprintf(victim, sizeof victim, "%s/step-2/rank-%d.safetensors", folder,
             hd_comm_size(hdt_world) - 1);
    if (hd_comm_rank(hdt_world) == 0) hdi_remove_tree(victim);
    hd_status opened = hdi_checkpoint_open_all(hdt_world, folder, NULL, &warning, &checkpoint);
    snprintf(victim, sizeof victim, "%s/absent", folder);
    hd_status absent = hdi_checkpoint_open_all(hdt_world, victim, NULL, &no_warning, &none);

    hdt_assert_ok(status);
    hdt_assert_ok(opened);
    ck_assert_int_eq(hdi_checkpoint_step(checkpoint), 1);
    ck_assert((warning != NULL) == (hd_comm_rank(hdt_world) == 0));
    ck_assert_int_ne(absent, HD_OK);
    hdi_free(warning);
    hdi_checkpoint_close(checkpoint);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("checkpoint");
    tcase_add_test(tests, every_rank_reads_any_range_of_what_all_wrote);
    tcase_add_test(tests, one_rank_that_cannot_write_fails_the_save_on_all);
    tcase_add_test(tests, all_ranks_open_what_rank_0_chose);
    return hdt_main_ranks(argc, argv, "checkpoint", tests);
}
