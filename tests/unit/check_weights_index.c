/* Folders of weights: shards read as one, hostile indices are refused with their reason. */
#include <stdio.h>
#include <unistd.h>

#include "core/file.h"
#include "io/weights_index.h"
#include "jobs/job_model.h"
#include "tests/support/hdt_safetensors.h"

/* A folder with two shards, "one" (4 bytes) and "two" (4 bytes), and this index. */
static const char *sharded(const char *index)
{
    static char folder[HDI_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", hdt_temp_path("sharded"));
    hdt_assert_ok(hdi_directory_create(folder));
    hdt_text_safetensors("sharded/a.safetensors",
                         "{" HDT_TENSOR("one", "\"F32\"", "[1]", "[0,4]") "}", 4);
    hdt_text_safetensors("sharded/b.safetensors",
                         "{" HDT_TENSOR("two", "\"U8\"", "[4]", "[0,4]") "}", 4);
    hdt_text_safetensors("outside.safetensors", "{" HDT_TENSOR("two", "\"U8\"", "[4]", "[0,4]") "}",
                         4);
    hdt_assert_ok(
        hdi_file_write_text(hdt_temp_path("sharded/model.safetensors.index.json"), index));
    return folder;
}

START_TEST(a_sharded_folder_reads_as_one)
{
    const char *folder = sharded("{\"metadata\":{\"total_size\":8},\"weight_map\":{"
                                 "\"one\":\"a.safetensors\",\"two\":\"b.safetensors\"}}");
    char index[HDI_PATH_BYTES + 32];
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", folder);
    for (int direct = 0; direct < 2; direct++) {
        hdi_weights *weights;
        hdt_assert_ok(hdi_weights_open(direct ? index : folder, &weights));
        ck_assert_int_eq(hdi_weights_file_count(weights), 2);
        ck_assert_int_eq(hdi_weights_count(weights), 2);
        hdi_safetensors *file;
        ck_assert_ptr_null(hdi_weights_find(weights, "three", &file));
        const hdi_safetensors_tensor *two = hdi_weights_find(weights, "two", &file);
        ck_assert_ptr_nonnull(two);
        unsigned char got[4];
        hdt_assert_ok(hdi_safetensors_pread(file, two, 0, 4, got));
        ck_assert_int_eq(got[3], 3);
        hdi_weights_close(weights);
    }
}
END_TEST

START_TEST(a_folder_with_one_file_and_a_direct_path_work)
{
    char folder[HDI_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", hdt_temp_path("single"));
    hdt_assert_ok(hdi_directory_create(folder));
    hdi_weights *weights;
    hdt_assert_status(hdi_weights_open(folder, &weights), HD_ERROR_IO, "has neither");
    const char *path = hdt_text_safetensors("single/model.safetensors", "{}", 0);
    hdt_assert_ok(hdi_weights_open(folder, &weights));
    hdi_weights_close(weights);
    hdt_assert_ok(hdi_weights_open(path, &weights));
    ck_assert_int_eq(hdi_weights_count(weights), 0);
    ck_assert_ptr_null(hdi_weights_find(weights, "a", NULL));
    hdi_weights_close(weights);
}
END_TEST

#define MAP(map) "{\"weight_map\":{" map "}}"
static const struct {
    const char *index, *fragment;
} bad_indices[] = {
    {"{", "line 1"},
    {"[]", "weight_map is missing"},
    {"{\"weight_map\":[]}", "weight_map is missing or no object"},
    {MAP("\"one\":1"), "its shard is no string"},
    {MAP("\"one\":\"a.safetensors\",\"one\":\"b.safetensors\""), "duplicate object key"},
    {MAP("\"one\":\"../outside.safetensors\""), "is not the plain name"},
    {MAP("\"one\":\"/etc/passwd\""), "is not the plain name"},
    {MAP("\"one\":\"..\""), "is not the plain name"},
    {MAP("\"one\":\"\""), "is not the plain name"},
    {MAP("\"two\":\"link.safetensors\""), "out of its folder"},
    {MAP("\"one\":\"b.safetensors\""), "tensor \"one\" is not in its shard b.safetensors"},
    {MAP("\"one\":\"a.safetensors\",\"two\":\"a.safetensors\""), "tensor \"two\" is not in"},
    {MAP("\"one\":\"a.safetensors\",\"three\":\"b.safetensors\""), "\"three\" is not in its shard"},
    {MAP("\"one\":\"a.safetensors\",\"two\":\"c.safetensors\""), "\"one\" is in "},
    {MAP("\"one\":\"c.safetensors\""), "tensor \"two\" of c.safetensors is not in weight_map"},
    {"{\"metadata\":{\"total_size\":9},\"weight_map\":{\"one\":\"a.safetensors\"}}",
     "metadata.total_size is 9, the tensors have 4 bytes"},
    {"{\"metadata\":{\"total_size\":\"4\"},\"weight_map\":{\"one\":\"a.safetensors\"}}",
     "metadata.total_size is no integer"},
};
enum { BAD_INDICES = sizeof bad_indices / sizeof bad_indices[0] };

START_TEST(a_bad_index_is_refused_with_its_reason)
{
    const char *folder = sharded(bad_indices[_i].index);
    hdt_text_safetensors("sharded/c.safetensors",
                         "{" HDT_TENSOR("one", "\"U8\"", "[1]", "[0,1]") "," HDT_TENSOR(
                             "two", "\"U8\"", "[1]", "[1,2]") "}",
                         2);
    unlink(hdt_temp_path("sharded/link.safetensors"));
    ck_assert_int_eq(symlink("../outside.safetensors", hdt_temp_path("sharded/link.safetensors")),
                     0);
    hdi_weights *weights;
    hdt_assert_status(hdi_weights_open(folder, &weights), HD_ERROR_FORMAT,
                      bad_indices[_i].fragment);
    ck_assert_ptr_null(weights);
}
END_TEST

START_TEST(a_hugging_face_cache_may_link_to_its_blobs)
{
    hdt_assert_ok(hdi_directory_create(hdt_temp_path("cache/snapshots/abc")));
    hdt_assert_ok(hdi_directory_create(hdt_temp_path("cache/blobs")));
    hdt_text_safetensors("cache/blobs/1234", "{" HDT_TENSOR("one", "\"U8\"", "[1]", "[0,1]") "}",
                         1);
    ck_assert_int_eq(
        symlink("../../blobs/1234", hdt_temp_path("cache/snapshots/abc/a.safetensors")), 0);
    hdt_assert_ok(
        hdi_file_write_text(hdt_temp_path("cache/snapshots/abc/model.safetensors.index.json"),
                            MAP("\"one\":\"a.safetensors\"")));
    hdi_weights *weights;
    hdt_assert_ok(hdi_weights_open(hdt_temp_path("cache/snapshots/abc"), &weights));
    hdi_weights_close(weights);
}
END_TEST

START_TEST(the_largest_tensor_says_what_dtype_a_model_has)
{
    static const struct {
        const char *name, *header;
        hd_dtype dtype;
    } files[] = {
        {"half.safetensors",
         "{" HDT_TENSOR("a", "\"F32\"", "[2]", "[0,8]") "," HDT_TENSOR("b", "\"BF16\"", "[8]",
                                                                       "[8,24]") "}",
         HD_DTYPE_BF16},
        {"wide.safetensors",
         "{" HDT_TENSOR("a", "\"F16\"", "[2]", "[0,4]") "," HDT_TENSOR("b", "\"F32\"", "[5]",
                                                                       "[4,24]") "}",
         HD_DTYPE_F32},
    };
    for (int i = 0; i < 2; i++) {
        hd_dtype dtype;
        hdt_assert_ok(
            hdi_job_stored_dtype(hdt_text_safetensors(files[i].name, files[i].header, 24), &dtype));
        ck_assert_int_eq(dtype, files[i].dtype);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("weights index");
    TCase *index = tcase_create("index");
    tcase_add_test(index, a_sharded_folder_reads_as_one);
    tcase_add_test(index, a_folder_with_one_file_and_a_direct_path_work);
    tcase_add_loop_test(index, a_bad_index_is_refused_with_its_reason, 0, BAD_INDICES);
    tcase_add_test(index, a_hugging_face_cache_may_link_to_its_blobs);
    tcase_add_test(index, the_largest_tensor_says_what_dtype_a_model_has);
    suite_add_tcase(suite, index);
    return hdt_main(suite);
}
