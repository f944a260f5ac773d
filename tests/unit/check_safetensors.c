/* safetensors files: what is written reads back, what is hostile is refused with its reason. */
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "io/safetensors.h"
#include "tests/support/hdt_safetensors.h"

static void assert_refused(const char *path, const char *fragment)
{
    hdi_safetensors *file;
    hdt_assert_status(hdi_safetensors_open(path, &file), HD_ERROR_FORMAT, fragment);
    ck_assert_ptr_null(file);
    ck_assert_msg(strstr(hd_last_error(), path) != NULL, "%s does not name the file",
                  hd_last_error());
}

static const struct {
    const char *header;
    size_t data_bytes;
    const char *fragment;
} hostile[] = {
    {" {}", 0, "does not begin with '{'"},
    {"", 0, "does not begin with '{'"},
    {"{", 0, "header byte"},
    {"{}}", 0, "end of file expected"},
    {"{\"a\":1", 0, "header byte"},
    {"{\"\xff\":{}}", 0, "unable to decode byte 0xff"},
    {"{\"a\\u0000b\":{}}", 0, "\\u0000"},
    {"{\"a\":1}", 0, "tensor \"a\": its entry is no object"},
    {"{" HDT_TENSOR("a", "\"F32\"", "[1]", "[0,4]") "," HDT_TENSOR("a", "\"F32\"", "[1]",
                                                                   "[0,4]") "}",
     4, "duplicate object key"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     "duplicate object key"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":0}}", 1,
     "its entry has 4 keys"},
    {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype is missing"},
    {"{" HDT_TENSOR("a", "7", "[1]", "[0,4]") "}", 4, "dtype is missing or no string"},
    {"{" HDT_TENSOR("a", "\"F31\"", "[1]", "[0,4]") "}", 4, "dtype \"F31\" is unknown"},
    {"{" HDT_TENSOR("a", "\"NONE\"", "[1]", "[0,0]") "}", 0, "dtype \"NONE\" is unknown"},
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "shape is missing"},
    {"{" HDT_TENSOR("a", "\"U8\"", "4", "[0,4]") "}", 4, "shape is missing or no array"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "has 9 dimensions"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[-1]", "[0,1]") "}", 1, "dimension 0 is no integer >= 0"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[1,1.0]", "[0,1]") "}", 1, "dimension 1 is no integer >= 0"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[1e0]", "[0,1]") "}", 1, "dimension 0 is no integer >= 0"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[true]", "[0,1]") "}", 1, "dimension 0 is no integer >= 0"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[\"1\"]", "[0,1]") "}", 1, "dimension 0 is no integer >= 0"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[9223372036854775808]", "[0,1]") "}", 1, "too big integer"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[4294967296,4294967296]", "[0,0]") "}", 0,
     "overflows at dimension 1"},
    {"{" HDT_TENSOR("a", "\"F32\"", "[4611686018427387904]", "[0,0]") "}", 0, "size in bytes"},
    {"{" HDT_TENSOR("a", "\"F32\"", "[0]", "[0,4]") "}", 4,
     "span 4 bytes, its shape and dtype F32 want 0"},
    {"{" HDT_TENSOR("a", "\"F32\"", "[2]", "[0,4]") "}", 4, "want 8"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[0]", "[9,9]") "}", 4,
     "[9, 9] do not lie in order within the 4 bytes"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[1]", "[0]") "}", 1, "data_offsets must be two integers"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[1]", "[0,1,1]") "}", 1, "data_offsets must be two integers"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[1]", "[-1,0]") "}", 1, "data_offsets must be two integers"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[1]", "[0,1.0]") "}", 1, "data_offsets must be two integers"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[1]", "[1,0]") "}", 1, "do not lie in order"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[5]", "[0,5]") "}", 4,
     "do not lie in order within the 4 bytes"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[2]", "[0,2]") "," HDT_TENSOR("b", "\"U8\"", "[1]",
                                                                  "[3,4]") "}",
     4, "tensor \"b\": begins at 3, want 2 (there is a gap"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[3]", "[0,3]") "," HDT_TENSOR("b", "\"U8\"", "[2]",
                                                                  "[2,4]") "}",
     4, "tensor \"b\": begins at 2, want 3 (it overlaps"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[3]", "[1,4]") "}", 4, "tensor \"a\": begins at 1, want 0"},
    {"{" HDT_TENSOR("a", "\"U8\"", "[3]", "[0,3]") "}", 4, "1 bytes follow the last tensor"},
    {"{}", 4, "4 bytes follow"},
    {"{\"__metadata__\":[]}", 0, "__metadata__ is no object"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ \"a\" is no string"},
};
enum { HOSTILE = sizeof hostile / sizeof hostile[0] };

START_TEST(a_hostile_header_is_refused_with_its_reason)
{
    assert_refused(
        hdt_text_safetensors("hostile.safetensors", hostile[_i].header, hostile[_i].data_bytes),
        hostile[_i].fragment);
}
END_TEST

START_TEST(a_header_length_beyond_the_file_or_the_cap_is_refused)
{
    const char *path = hdt_temp_path("length");
    FILE *file = fopen(path, "wb");
    fputs("1234567", file);
    fclose(file);
    assert_refused(path, "has 7 bytes, want at least 8");
    assert_refused(hdt_raw_safetensors("length", 3, "{}", 0), "header length is 3");
    assert_refused(hdt_raw_safetensors("length", UINT64_MAX, "{}", 0),
                   "551615, the file has 2 bytes after it");
    assert_refused(hdt_raw_safetensors("length", UINT64_MAX - 7, "{}", 0),
                   "551608, the file has 2 bytes after it");
    assert_refused(hdt_raw_safetensors("length", 1ull << 63, "{}", 0),
                   "header length is 9223372036854775808");

    path = hdt_raw_safetensors("length", HDI_SAFETENSORS_HEADER_BYTES + 1, "{}", 0);
    ck_assert_int_eq(truncate(path, HDI_SAFETENSORS_HEADER_BYTES + 100), 0);
    assert_refused(path, "want at most 16777216");
}
END_TEST

START_TEST(a_long_name_is_refused)
{
    char *header = malloc(HDI_SAFETENSORS_NAME_BYTES + 100);
    for (int extra = 0; extra <= 1; extra++) {
        char name[HDI_SAFETENSORS_NAME_BYTES + 2];
        memset(name, 'x', sizeof name);
        name[HDI_SAFETENSORS_NAME_BYTES + extra] = '\0';
        sprintf(header, "{" HDT_TENSOR("%s", "\"U8\"", "[]", "[0,1]") "}", name);
        const char *path = hdt_text_safetensors("name", header, 1);
        if (extra) {
            assert_refused(path, "name has 4097 bytes, want at most 4096");
        } else {
            hdi_safetensors *file;
            hdt_assert_ok(hdi_safetensors_open(path, &file));
            hdi_safetensors_close(file);
        }
    }
    free(header);
}
END_TEST

START_TEST(what_is_no_regular_file_is_refused)
{
    hdi_safetensors *file;
    hdt_assert_status(hdi_safetensors_open(hdt_temp_dir(), &file), HD_ERROR_IO, "regular file");
    hdt_assert_status(hdi_safetensors_open("/dev/zero", &file), HD_ERROR_IO, "regular file");
    const char *pipe = hdt_temp_path("pipe");
    ck_assert_int_eq(mkfifo(pipe, 0600), 0);
    hdt_assert_status(hdi_safetensors_open(pipe, &file), HD_ERROR_IO, "regular file");
    hdt_assert_status(hdi_safetensors_open(hdt_temp_path("absent"), &file), HD_ERROR_IO,
                      "No such file");
}
END_TEST

START_TEST(legal_corner_cases_are_accepted)
{
    hdi_safetensors *file;
    hdt_assert_ok(hdi_safetensors_open(hdt_text_safetensors("legal", "{}  ", 0), &file));
    ck_assert_int_eq(hdi_safetensors_count(file), 0);
    ck_assert_ptr_null(hdi_safetensors_find(file, "a"));
    hdi_safetensors_close(file);
    /* An empty tensor between others, a scalar, tensors not in the order of their bytes. */
    hdt_assert_ok(hdi_safetensors_open(
        hdt_text_safetensors(
            "legal",
            "{\"__metadata__\":{\"k\":\"v\"}," HDT_TENSOR(
                "b", "\"U8\"", "[]", "[4,5]") "," HDT_TENSOR("e", "\"F64\"", "[7,0]",
                                                             "[4,4]") "," HDT_TENSOR("a", "\"F32\"",
                                                                                     "[1,1]",
                                                                                     "[0,4]") "}",
            5),
        &file));
    ck_assert_int_eq(hdi_safetensors_count(file), 3);
    ck_assert_str_eq(hdi_safetensors_get(file, 0)->name, "a");
    ck_assert_str_eq(hdi_safetensors_get(file, 1)->name, "e");
    const hdi_safetensors_tensor *scalar = hdi_safetensors_find(file, "b");
    ck_assert_int_eq(scalar->rank, 0);
    ck_assert_int_eq(scalar->elements, 1);
    unsigned char byte;
    hdt_assert_ok(hdi_safetensors_pread(file, scalar, 0, 1, &byte));
    ck_assert_int_eq(byte, 4);
    ck_assert_str_eq(hdi_safetensors_metadata(file, "k"), "v");
    ck_assert_ptr_null(hdi_safetensors_metadata(file, "w"));
    hdi_safetensors_close(file);
}
END_TEST

/* Write three tensors, in pieces of `piece` bytes; gives the file's path. */
static const char *write_three(const char *name, size_t piece, uint64_t *out_sum)
{
    hdi_safetensors_writer *writer;
    hdt_assert_ok(hdi_safetensors_writer_create(&writer));
    hdt_assert_ok(hdi_safetensors_writer_metadata(writer, "format", "pt"));
    hdt_assert_ok(hdi_safetensors_writer_tensor(writer, "one", HD_DTYPE_F32, 2, (int64_t[]){3, 5}));
    hdt_assert_ok(hdi_safetensors_writer_tensor(writer, "quote\"\\\xc3\xa9", HD_DTYPE_BF16, 1,
                                                (int64_t[]){7}));
    hdt_assert_ok(hdi_safetensors_writer_tensor(writer, "none", HD_DTYPE_I64, 1, (int64_t[]){0}));
    hdt_assert_ok(hdi_safetensors_writer_prepare(writer));
    const char *path = hdt_temp_path(name);
    char data[60 + 14];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)(i * 37);
    for (int again = 0; again < 2; again++) { /* the same writer twice, without a new allocation */
        const uint64_t allocations = hdi_alloc_count();
        hdt_assert_ok(hdi_safetensors_writer_begin(writer, path));
        for (size_t done = 0; done < sizeof data; done += piece)
            hdt_assert_ok(hdi_safetensors_writer_write(
                writer, data + done, piece < sizeof data - done ? piece : sizeof data - done));
        hdt_assert_status(hdi_safetensors_writer_write(writer, data, 1), HD_ERROR_ARGUMENT,
                          "room for 0");
        hdt_assert_ok(hdi_safetensors_writer_end(writer));
        ck_assert_uint_eq(hdi_alloc_count(), allocations);
    }
    int64_t sums;
    *out_sum = hdi_safetensors_writer_sums(writer, &sums)[0];
    ck_assert_int_eq(sums, 1);
    ck_assert_int_eq(hdi_safetensors_writer_bytes(writer) % 2, 0);
    hdi_safetensors_writer_destroy(writer);
    return path;
}

START_TEST(what_is_written_reads_back)
{
    uint64_t sum;
    const char *path = write_three("three", (size_t[]){1, 7, 60, 1000}[_i], &sum);
    char *bytes;
    size_t count;
    hdt_assert_ok(hdi_file_read_all(path, 1 << 20, &bytes, &count));
    ck_assert_uint_eq(hdi_block_sum(bytes, count), sum);
    hdi_free(bytes);

    hdi_safetensors *file;
    hdt_assert_ok(hdi_safetensors_open(path, &file));
    ck_assert_int_eq(hdi_safetensors_data_offset(file) % 8, 0);
    ck_assert_int_eq(hdi_safetensors_count(file), 3);
    ck_assert_str_eq(hdi_safetensors_metadata(file, "format"), "pt");
    const hdi_safetensors_tensor *quoted = hdi_safetensors_find(file, "quote\"\\\xc3\xa9");
    ck_assert_ptr_nonnull(quoted);
    ck_assert_int_eq(quoted->dtype, HD_DTYPE_BF16);
    ck_assert_int_eq(quoted->begin, 60);
    unsigned char got[14];
    hdt_assert_ok(hdi_safetensors_pread(file, quoted, 2, 12, got));
    for (int i = 0; i < 12; i++)
        ck_assert_int_eq(got[i], (unsigned char)((62 + i) * 37));
    hdt_assert_status(hdi_safetensors_pread(file, quoted, 2, 13, got), HD_ERROR_ARGUMENT,
                      "asked for 13 bytes at 2, it has 14");
    hdt_assert_status(hdi_safetensors_pread(file, quoted, -1, 1, got), HD_ERROR_ARGUMENT, "at -1");
    hdt_assert_status(hdi_safetensors_pread(file, quoted, INT64_MAX, INT64_MAX, got),
                      HD_ERROR_ARGUMENT, "asked for");
    hdi_safetensors_close(file);
}
END_TEST

START_TEST(a_writer_refuses_what_a_reader_would)
{
    hdi_safetensors_writer *writer;
    hdt_assert_ok(hdi_safetensors_writer_create(&writer));
    const int64_t one = 1, negative = -1, huge[] = {INT64_MAX, 2};
    hdt_assert_ok(hdi_safetensors_writer_tensor(writer, "a", HD_DTYPE_U8, 1, &one));
    hdt_assert_status(hdi_safetensors_writer_tensor(writer, "a", HD_DTYPE_U8, 1, &one),
                      HD_ERROR_ARGUMENT, "declared twice");
    hdt_assert_status(hdi_safetensors_writer_tensor(writer, "b", HD_DTYPE_U8, 1, &negative),
                      HD_ERROR_ARGUMENT, "dimension 0 is -1");
    hdt_assert_status(hdi_safetensors_writer_tensor(writer, "b", HD_DTYPE_U8, 2, huge),
                      HD_ERROR_ARGUMENT, "dimension 1 is 2");
    hdt_assert_status(hdi_safetensors_writer_tensor(writer, "b", HD_DTYPE_U8, 9, huge),
                      HD_ERROR_ARGUMENT, "9 dimensions");
    hdt_assert_status(hdi_safetensors_writer_tensor(writer, "\xff", HD_DTYPE_U8, 1, &one),
                      HD_ERROR_ARGUMENT, "UTF-8");
    hdt_assert_status(hdi_safetensors_writer_tensor(writer, "__metadata__", HD_DTYPE_U8, 1, &one),
                      HD_ERROR_ARGUMENT, "__metadata__");
    hdt_assert_ok(hdi_safetensors_writer_prepare(writer));
    hdt_assert_status(hdi_safetensors_writer_tensor(writer, "c", HD_DTYPE_U8, 1, &one),
                      HD_ERROR_ARGUMENT, "comes after prepare");
    hdt_assert_ok(hdi_safetensors_writer_begin(writer, hdt_temp_path("short")));
    hdt_assert_status(hdi_safetensors_writer_end(writer), HD_ERROR_ARGUMENT, "1 bytes of tensors");
    hdi_safetensors_writer_destroy(writer);
}
END_TEST

START_TEST(every_float_type_reads_as_fp32)
{
    static const uint16_t bf16[] = {0x3f80, 0xc000, 0x7f80, 0x0001, 0x8000};
    static const uint16_t f16[] = {0x3c00, 0xc000, 0x7c00, 0x0001, 0x83ff, 0x7bff};
    static const double f64[] = {1.0, -2.5, 1e300, 0.1};
    static const float f32[] = {1.5f, -0.0f};
    static const float wanted[] = {1,     -2,   (float)INFINITY, 0x1p-133f,       -0.0f, /* bf16 */
                                   1,     -2,   (float)INFINITY, 0x1p-24f,        -1023 * 0x1p-24f,
                                   65504, 1,    -2.5f,           (float)INFINITY, 0.1f,
                                   1.5f,  -0.0f};
    hdi_safetensors_writer *writer;
    hdt_assert_ok(hdi_safetensors_writer_create(&writer));
    static const struct {
        const char *name;
        hd_dtype dtype;
        int64_t count;
        const void *data;
    } types[] = {{"bf16", HD_DTYPE_BF16, 5, bf16},
                 {"f16", HD_DTYPE_F16, 6, f16},
                 {"f64", HD_DTYPE_F64, 4, f64},
                 {"f32", HD_DTYPE_F32, 2, f32},
                 {"i32", HD_DTYPE_I32, 2, f32}};
    for (int i = 0; i < 5; i++)
        hdt_assert_ok(hdi_safetensors_writer_tensor(writer, types[i].name, types[i].dtype, 1,
                                                    &types[i].count));
    hdt_assert_ok(hdi_safetensors_writer_prepare(writer));
    const char *path = hdt_temp_path("floats");
    hdt_assert_ok(hdi_safetensors_writer_begin(writer, path));
    for (int i = 0; i < 5; i++)
        hdt_assert_ok(hdi_safetensors_writer_write(
            writer, types[i].data, (size_t)types[i].count * hd_dtype_bytes(types[i].dtype)));
    hdt_assert_ok(hdi_safetensors_writer_end(writer));
    hdi_safetensors_writer_destroy(writer);

    hdi_safetensors *file;
    hdt_assert_ok(hdi_safetensors_open(path, &file));
    const float *next = wanted;
    for (int i = 0; i < 4; i++) {
        const hdi_safetensors_tensor *tensor = hdi_safetensors_find(file, types[i].name);
        float got[8];
        hdt_assert_ok(hdi_safetensors_read_f32(file, tensor, 0, types[i].count, got));
        ck_assert_mem_eq(got, next, (size_t)types[i].count * sizeof *got);
        hdt_assert_ok(hdi_safetensors_read_f32(file, tensor, 1, 1, got));
        ck_assert_mem_eq(got, next + 1, sizeof *got);
        hdt_assert_status(hdi_safetensors_read_f32(file, tensor, 1, types[i].count, got),
                          HD_ERROR_ARGUMENT, "elements at 1");
        next += types[i].count;
    }
    float got[2];
    hdt_assert_status(hdi_safetensors_read_f32(file, hdi_safetensors_find(file, "i32"), 0, 2, got),
                      HD_ERROR_UNSUPPORTED, "dtype is I32");
    hdi_safetensors_close(file);
}
END_TEST

START_TEST(a_golden_file_opens)
{
    hdi_safetensors *file;
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path("gpt2_tiny.safetensors"), &file));
    const hdi_safetensors_tensor *table =
        hdi_safetensors_find(file, "weights.transformer.wte.weight");
    ck_assert_ptr_nonnull(table);
    ck_assert_int_eq(table->dims[0], 257);
    ck_assert_int_eq(table->dims[1], 64);
    ck_assert_ptr_nonnull(hdi_safetensors_metadata(file, "config"));
    hdi_safetensors_close(file);
}
END_TEST

START_TEST(a_file_that_shrinks_gives_an_error)
{
    const char *path =
        hdt_text_safetensors("shrinks", "{" HDT_TENSOR("a", "\"U8\"", "[100]", "[0,100]") "}", 100);
    hdi_safetensors *file;
    hdt_assert_ok(hdi_safetensors_open(path, &file));
    ck_assert_int_eq(truncate(path, 80), 0);
    char got[100];
    hdt_assert_status(hdi_safetensors_pread(file, hdi_safetensors_get(file, 0), 0, 100, got),
                      HD_ERROR_IO, "ends at byte 80");
    hdi_safetensors_close(file);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("safetensors");
    TCase *reader = tcase_create("reader");
    tcase_add_loop_test(reader, a_hostile_header_is_refused_with_its_reason, 0, HOSTILE);
    tcase_add_test(reader, a_header_length_beyond_the_file_or_the_cap_is_refused);
    tcase_add_test(reader, a_long_name_is_refused);
    tcase_add_test(reader, what_is_no_regular_file_is_refused);
    tcase_add_test(reader, legal_corner_cases_are_accepted);
    tcase_add_test(reader, every_float_type_reads_as_fp32);
    tcase_add_test(reader, a_golden_file_opens);
    tcase_add_test(reader, a_file_that_shrinks_gives_an_error);
    suite_add_tcase(suite, reader);
    TCase *writer = tcase_create("writer");
    tcase_add_loop_test(writer, what_is_written_reads_back, 0, 4);
    tcase_add_test(writer, a_writer_refuses_what_a_reader_would);
    suite_add_tcase(suite, writer);
    return hdt_main(suite);
}
