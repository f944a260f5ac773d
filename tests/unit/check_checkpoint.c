/* Checkpoints on one rank: what is saved reads back, what is old goes. */
#include <stdio.h>

#include "core/memory.h"
#include "core/random.h"
#include "tests/support/hdt_checkpoint.h"

START_TEST(any_range_reads_back_from_any_pieces)
{
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(folder, 0);
    hdt_assert_ok(hdt_checkpoint_save(writer, 7));
    hdi_checkpoint_writer_destroy(writer);
    hdt_assert_newest(folder, 7, true, NULL);
    hdt_assert_newest(hdt_inside(folder, "step-7/"), 7, true, NULL);

    hdi_checkpoint *checkpoint;
    char *warning;
    hdt_assert_ok(hdi_checkpoint_open(folder, NULL, &warning, &checkpoint));
    ck_assert_int_eq(hdi_checkpoint_count(checkpoint), 3);
    ck_assert_int_eq(hdi_checkpoint_find(checkpoint, "weights/a")->pieces, 3);
    ck_assert_int_eq(hdi_checkpoint_find(checkpoint, "empty")->elements, 0);
    ck_assert_ptr_null(hdi_checkpoint_find(checkpoint, "weights"));
    for (int i = 0; i < 200; i++) {
        const uint64_t index = (uint64_t)i, begin = hdi_random_permute(1, 0, index, HDT_ELEMENTS);
        const uint64_t most = HDT_ELEMENTS - begin;
        const uint64_t count = hdi_random_permute(1, 1, index % most, most);
        float got[HDT_ELEMENTS + 1];
        got[count] = -1;
        hdt_assert_ok(hdi_checkpoint_read(checkpoint, "weights/a", (int64_t)begin, (int64_t)count,
                                          HD_DTYPE_F32, got));
        ck_assert_mem_eq(got, hdt_weights + begin, count * sizeof *got);
        ck_assert_float_eq(got[count], -1);
    }
    float none;
    hdt_assert_ok(hdi_checkpoint_read(checkpoint, "empty", 0, 0, HD_DTYPE_F32, &none));
    hdt_assert_status(hdi_checkpoint_read(checkpoint, "b", 0, 1, HD_DTYPE_F32, &none),
                      HD_ERROR_FORMAT, "has no tensor \"b\"");
    hdt_assert_status(hdi_checkpoint_read(checkpoint, "flags", 0, 1, HD_DTYPE_F32, &none),
                      HD_ERROR_FORMAT, "tensor \"flags\": is U8, want F32");
    hdt_assert_status(hdi_checkpoint_read(checkpoint, "flags", 1, HDT_BYTES, HD_DTYPE_U8, &none),
                      HD_ERROR_ARGUMENT, "asked for 700 elements at 1");
    hdi_checkpoint_close(checkpoint);
}
END_TEST

START_TEST(the_newest_are_kept_and_latest_names_the_last)
{
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(folder, 2);
    for (int64_t step = 9; step <= 12; step++)
        hdt_assert_ok(
            hdt_checkpoint_save(writer, step)); /* 10 is newer than 9, though not by name */
    ck_assert_str_eq(hdi_checkpoint_writer_warning(writer), "");
    ck_assert(!hdt_is_inside(folder, "step-9") && !hdt_is_inside(folder, "step-10"));
    ck_assert(hdt_is_inside(folder, "step-11") && hdt_is_inside(folder, "step-12"));
    ck_assert(!hdt_is_inside(folder, "step-10.del") && !hdt_is_inside(folder, "step-12.tmp"));
    char *latest;
    size_t bytes;
    hdt_assert_ok(hdi_file_read_all(hdt_inside(folder, "latest"), 100, &latest, &bytes));
    ck_assert_str_eq(latest, "step-12\n");
    hdi_free(latest);

    hdt_assert_ok(hdt_checkpoint_save(writer, 3)); /* older by number, but just saved */
    ck_assert(hdt_is_inside(folder, "step-3") && hdt_is_inside(folder, "step-12"));
    hdi_checkpoint_writer_destroy(writer);
    hdt_assert_newest(folder, 12, true, NULL);
}
END_TEST

START_TEST(a_damaged_checkpoint_does_not_count_among_the_kept)
{
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(folder, 2);
    hdt_assert_ok(hdt_checkpoint_save(writer, 1));
    hdi_checkpoint_writer_destroy(writer);
    hdt_assert_ok(hdi_directory_create(hdt_inside(folder, "step-5")));
    writer = hdt_checkpoint_writer(folder, 2);
    hdt_assert_ok(hdt_checkpoint_save(writer, 2));
    ck_assert(hdt_is_inside(folder, "step-1") && hdt_is_inside(folder, "step-2"));
    hdt_assert_newest(folder, 2, true, "step-5");
    hdt_assert_ok(hdt_checkpoint_save(writer, 6));
    hdt_assert_ok(hdt_checkpoint_save(writer, 7));
    ck_assert(!hdt_is_inside(folder, "step-2") && !hdt_is_inside(folder, "step-5"));
    hdi_checkpoint_writer_destroy(writer);
}
END_TEST

START_TEST(a_step_can_be_saved_again)
{
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(folder, 2);
    hdt_assert_ok(hdt_checkpoint_save(writer, 4));
    hdt_checkpoint_fill(5);
    hdt_assert_ok(hdi_checkpoint_save(writer, 4, "{\"again\":true}"));
    ck_assert(!hdt_is_inside(folder, "step-4.old") && !hdt_is_inside(folder, "step-4.del"));
    hdi_checkpoint_writer_destroy(writer);
    hdi_checkpoint *checkpoint;
    char *warning;
    hdt_assert_ok(hdi_checkpoint_open(folder, NULL, &warning, &checkpoint));
    ck_assert_str_eq(hdi_checkpoint_state(checkpoint), "{\"again\":true}");
    hdi_checkpoint_close(checkpoint);
}
END_TEST

START_TEST(left_overs_are_ignored_by_readers_and_removed_by_writers)
{
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(folder, 2);
    hdt_assert_ok(hdt_checkpoint_save(writer, 1));
    hdt_assert_ok(hdt_checkpoint_save(writer, 2));
    hdt_assert_ok(hdt_checkpoint_save(writer, 3));
    hdi_checkpoint_writer_destroy(writer);
    char to[HDI_PATH_BYTES + 64];
    hdt_assert_ok(hdi_directory_create(hdt_inside(folder, "step-9.tmp")));
    snprintf(to, sizeof to, "%s/step-8.del", folder);
    hdt_assert_ok(hdi_file_rename(hdt_inside(folder, "step-3"), to));
    snprintf(to, sizeof to, "%s/step-2.old", folder); /* died between the two renames of a save */
    hdt_assert_ok(hdi_file_rename(hdt_inside(folder, "step-2"), to));
    hdt_assert_ok(hdi_file_write_text(hdt_inside(folder, "latest"), "step-8\n"));
    hdt_assert_ok(hdi_directory_create(hdt_inside(folder, "step-007")));
    hdt_assert_newest(folder, 2, true, NULL);

    hdi_checkpoint_writer_destroy(hdt_checkpoint_writer(folder, 2));
    ck_assert(!hdt_is_inside(folder, "step-9.tmp") && !hdt_is_inside(folder, "step-8.del"));
    ck_assert(!hdt_is_inside(folder, "step-2.old") && hdt_is_inside(folder, "step-2"));
    ck_assert(hdt_is_inside(folder, "step-007")); /* not ours */
    hdt_assert_newest(folder, 2, true, NULL);
}
END_TEST

START_TEST(pieces_that_do_not_tile_a_tensor_are_refused)
{
    static const struct { /* of the second piece */
        hd_dtype dtype;
        int64_t global_elements, begin, count;
        const char *fragment;
    } cases[] = {
        {HD_DTYPE_F32, 100, 51, 49, "elements 50 to 51 are in no piece"},
        {HD_DTYPE_F32, 100, 50, 49, "elements 99 to 100 are in no piece"},
        {HD_DTYPE_F32, 100, 49, 51, "elements 49 to 50 are in two pieces"},
        {HD_DTYPE_F32, 101, 50, 51, "100 x F32 elsewhere"},
        {HD_DTYPE_I32, 100, 50, 50, "100 x F32 elsewhere"},
    };
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(folder, 1);
    hdt_assert_ok(hdt_checkpoint_save(writer, 1));
    hdi_checkpoint_writer_destroy(writer);
    hdi_checkpoint_piece bad[2];
    bad[0] = (hdi_checkpoint_piece){.name = "weights/a",
                                    .dtype = HD_DTYPE_F32,
                                    .global_elements = 100,
                                    .count = 50,
                                    .data = hdt_weights};
    bad[1] = bad[0];
    bad[1].dtype = cases[_i].dtype;
    bad[1].global_elements = cases[_i].global_elements;
    bad[1].begin = cases[_i].begin;
    bad[1].count = cases[_i].count;
    hdt_assert_ok(hdi_checkpoint_writer_create(NULL, folder, 1, bad, 2, &writer));
    hdt_assert_status(hdi_checkpoint_save(writer, 2, "{}"), HD_ERROR_FORMAT, cases[_i].fragment);
    hdi_checkpoint_writer_destroy(writer);
    ck_assert(!hdt_is_inside(folder, "step-2.tmp"));
    hdt_assert_newest(folder, 1, true, NULL);

    bad[1].begin = 60;
    bad[1].count = 60;
    hdt_assert_status(hdi_checkpoint_writer_create(NULL, folder, 1, bad, 2, &writer),
                      HD_ERROR_ARGUMENT, "60 elements at 60");
}
END_TEST

/* Columns of a matrix of 7 rows of 5: what ranks of a tensor axis write. */
enum { ROWS = 7, COLUMNS = 5 };

static hdi_checkpoint_piece column_piece(int64_t begin, int64_t count, int64_t first, int64_t width,
                                         const float *data)
{
    return (hdi_checkpoint_piece){.name = "m",
                                  .dtype = HD_DTYPE_F32,
                                  .global_elements = ROWS * COLUMNS,
                                  .begin = begin,
                                  .count = count,
                                  .first = first,
                                  .width = width,
                                  .columns = COLUMNS,
                                  .data = data};
}

START_TEST(columns_of_a_matrix_are_read_as_the_whole)
{
    float left[ROWS * 2], right[ROWS * 3], seen[ROWS * COLUMNS];
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++)
            *(c < 2 ? &left[r * 2 + c] : &right[r * 3 + c - 2]) = (float)(r * COLUMNS + c);
    const hdi_checkpoint_piece pieces[] = {column_piece(4, ROWS * 3 - 4, 2, 3, right + 4),
                                           column_piece(0, ROWS * 2, 0, 2, left),
                                           column_piece(0, 4, 2, 3, right)};
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer;
    hdi_checkpoint *checkpoint;
    char *warning;
    hdt_assert_ok(hdi_checkpoint_writer_create(NULL, folder, 1, pieces, 3, &writer));
    hdt_assert_ok(hdi_checkpoint_save(writer, 1, "{}"));
    hdi_checkpoint_writer_destroy(writer);
    hdt_assert_ok(hdi_checkpoint_open(folder, NULL, &warning, &checkpoint));
    for (int64_t begin = 0; begin < ROWS * COLUMNS; begin++)
        for (int64_t count = 0; begin + count <= ROWS * COLUMNS; count++) {
            hdt_assert_ok(hdi_checkpoint_read(checkpoint, "m", begin, count, HD_DTYPE_F32, seen));
            for (int64_t i = 0; i < count; i++)
                ck_assert_float_eq(seen[i], (float)(begin + i));
        }
    hdi_checkpoint_close(checkpoint);
}
END_TEST

START_TEST(columns_that_do_not_tile_a_matrix_are_refused)
{
    static const struct {
        int64_t begin, count, first, width;
        const char *fragment;
    } cases[] = {
        {0, ROWS * 2, 3, 2, "columns 2 to 3 of 5 are in no piece"},
        {0, ROWS * 4, 1, 4, "columns 1 to 2 of 5 are in two pieces"},
        {0, ROWS * 2, 2, 2, "columns 4 to 5 of 5 are in no piece"},
        {0, ROWS * 3 - 1, 2, 3, "elements 20 to 21 are in no piece"},
        {1, ROWS * 3 - 1, 2, 3, "elements 0 to 1 are in no piece"},
        {0, 3, 0, 3, "columns 0 + 2 of 5 here"},
    };
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer;
    const hdi_checkpoint_piece pieces[] = {column_piece(0, ROWS * 2, 0, 2, hdt_weights),
                                           column_piece(cases[_i].begin, cases[_i].count,
                                                        cases[_i].first, cases[_i].width,
                                                        hdt_weights)};
    hdt_assert_ok(hdi_checkpoint_writer_create(NULL, folder, 1, pieces, 2, &writer));
    hdt_assert_status(hdi_checkpoint_save(writer, 2, "{}"), HD_ERROR_FORMAT, cases[_i].fragment);
    hdi_checkpoint_writer_destroy(writer);
    const hdi_checkpoint_piece wide = column_piece(0, ROWS * 2, 4, 2, hdt_weights);
    hdt_assert_status(hdi_checkpoint_writer_create(NULL, folder, 1, &wide, 1, &writer),
                      HD_ERROR_ARGUMENT, "columns 4 + 2 of 5");
}
END_TEST

START_TEST(a_state_that_is_no_object_is_refused)
{
    static const char *const states[] = {NULL, "", "[1]", "{\"a\":1,\"a\":2}", "{} x"};
    const char *folder = hdt_checkpoint_folder();
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(folder, 1);
    for (int i = 0; i < 5; i++)
        hdt_assert_status(hdi_checkpoint_save(writer, 1, states[i]), HD_ERROR_ARGUMENT, "state");
    hdt_assert_status(hdi_checkpoint_save(writer, -1, "{}"), HD_ERROR_ARGUMENT, "step -1");
    hdi_checkpoint_writer_destroy(writer);
    char *warning;
    hdi_checkpoint *checkpoint;
    hdt_assert_status(hdi_checkpoint_open(folder, NULL, &warning, &checkpoint), HD_ERROR_IO,
                      "has no checkpoint");
    ck_assert(!hdi_checkpoint_exists(folder));
}
END_TEST

START_TEST(a_second_save_allocates_nothing)
{
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(hdt_checkpoint_folder(), 1);
    hdt_assert_ok(hdt_checkpoint_save(writer, 1));
    const uint64_t allocations = hdi_alloc_count();
    hdt_assert_ok(hdt_checkpoint_save(writer, 2));
    hdt_assert_ok(hdt_checkpoint_save(writer, 3));
    ck_assert_uint_eq(hdi_alloc_count(), allocations);
    hdi_checkpoint_writer_destroy(writer);
}
END_TEST

START_TEST(a_run_folder_stands_for_its_checkpoints)
{
    char run[HDI_PATH_BYTES];
    snprintf(run, sizeof run, "%s", hdt_temp_path("run"));
    hdi_checkpoint_writer *writer = hdt_checkpoint_writer(hdt_inside(run, "checkpoints"), 1);
    ck_assert(!hdi_checkpoint_exists(run));
    hdt_assert_ok(hdt_checkpoint_save(writer, 1));
    hdi_checkpoint_writer_destroy(writer);
    ck_assert(hdi_checkpoint_exists(run));
    hdt_assert_newest(run, 1, true, NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("checkpoint");
    TCase *whole = tcase_create("whole");
    tcase_add_test(whole, any_range_reads_back_from_any_pieces);
    tcase_add_test(whole, the_newest_are_kept_and_latest_names_the_last);
    tcase_add_test(whole, a_damaged_checkpoint_does_not_count_among_the_kept);
    tcase_add_test(whole, a_step_can_be_saved_again);
    tcase_add_test(whole, left_overs_are_ignored_by_readers_and_removed_by_writers);
    tcase_add_loop_test(whole, pieces_that_do_not_tile_a_tensor_are_refused, 0, 5);
    tcase_add_test(whole, a_state_that_is_no_object_is_refused);
    tcase_add_test(whole, columns_of_a_matrix_are_read_as_the_whole);
    tcase_add_loop_test(whole, columns_that_do_not_tile_a_matrix_are_refused, 0, 6);
    tcase_add_test(whole, a_second_save_allocates_nothing);
    tcase_add_test(whole, a_run_folder_stands_for_its_checkpoints);
    suite_add_tcase(suite, whole);
    return hdt_main(suite);
}
