/* Data sets of videos: what is written is read, windows and all; hostile folders are refused with
 * their reason; nothing is there before it is whole. */
#include <stdio.h>
#include <unistd.h>

#include "core/file.h"
#include "core/half.h"
#include "core/memory.h"
#include "io/video_dataset.h"
#include "tests/support/hdt_safetensors.h"

enum { SAMPLES = 5, TOKENS = 3, COLUMNS = 4, POOLED = 2, MOST = 3 * 5 * 4 * 6 };

/* Sizes differ from sample to sample. */
static hdi_video_sample sample_at(int i)
{
    return (hdi_video_sample){
        .dims = {3, 1 + i, 4, 2 + i}, .text = i % 3 - 1, .fps = i == 2 ? 23.976 : 0};
}

static int64_t elements(const hdi_video_sample *sample)
{
    return sample->dims[0] * sample->dims[1] * sample->dims[2] * sample->dims[3];
}

/* Pixel values that U8 keeps exactly. */
static void fill(int i, int64_t count, float *out)
{
    for (int64_t k = 0; k < count; k++)
        out[k] = (float)((k * 37 + i * 11) % 256) / 127.5f - 1;
}

/* In the temporary folder; borrowed until the next call. */
static const char *folder_of(const char *name)
{
    static char folder[HDI_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", hdt_temp_path(name));
    return folder;
}

static void write_set(const char *folder, hd_dtype dtype, int64_t shard_bytes)
{
    hdi_video_writer *writer;
    hdt_assert_ok(hdi_video_writer_create(folder,
                                          &(hdi_video_writer_options){.is_pixels = true,
                                                                      .channels = 3,
                                                                      .text_columns = COLUMNS,
                                                                      .pooled_columns = POOLED,
                                                                      .dtype = dtype,
                                                                      .shard_bytes = shard_bytes},
                                          &writer));
    float text[TOKENS * COLUMNS], pooled[POOLED], latents[MOST];
    for (int i = 0; i < 2; i++) {
        int64_t number;
        hdt_fill(text, TOKENS * COLUMNS, 10 + (uint64_t)i);
        hdt_fill(pooled, POOLED, 20 + (uint64_t)i);
        hdt_assert_ok(hdi_video_writer_text(writer, i ? "red \"square\"\n" : NULL, TOKENS - i, text,
                                            pooled, &number));
        ck_assert_int_eq(number, i);
    }
    hdt_assert_ok(hdi_video_writer_null_text(writer, 0));
    for (int i = 0; i < SAMPLES; i++) {
        const hdi_video_sample sample = sample_at(i);
        fill(i, elements(&sample), latents);
        hdt_assert_ok(hdi_video_writer_append(writer, &sample, latents));
    }
    hdt_assert_ok(hdi_video_writer_finish(writer));
    hdi_video_writer_destroy(writer);
}

static float stored(hd_dtype dtype, float x)
{
    return hdi_is_half(dtype) ? hdi_half_to_float(dtype, hdi_half_from_float(dtype, x)) : x;
}

static const hd_dtype dtypes[] = {HD_DTYPE_F32, HD_DTYPE_BF16, HD_DTYPE_F16, HD_DTYPE_U8};

START_TEST(what_is_written_is_read_in_every_dtype_and_from_many_shards)
{
    const char *folder = folder_of("set");
    const hd_dtype dtype = dtypes[_i / 2];
    write_set(folder, dtype, _i % 2 ? 300 : 0);
    hdi_video_dataset *set;
    hdt_assert_ok(hdi_video_dataset_open(folder, &set));
    hdi_video_dataset_info info;
    hdi_video_dataset_get_info(set, &info);
    ck_assert(info.is_pixels);
    ck_assert_int_eq(info.count, SAMPLES);
    ck_assert_int_eq(info.channels, 3);
    ck_assert_int_eq(info.texts, 2);
    ck_assert_int_eq(info.text_columns, COLUMNS);
    ck_assert_int_eq(info.pooled_columns, POOLED);
    ck_assert_int_eq(info.most_text_tokens, TOKENS);
    ck_assert_int_eq(info.null_text, 0);
    hdi_name_list names;
    hdt_assert_ok(hdi_directory_list(folder, &names));
    ck_assert_msg(_i % 2 ? names.count > 3 : names.count == 2, "%d files", names.count);
    hdi_name_list_free(&names);

    float wanted[MOST], seen[MOST];
    for (int i = 0; i < SAMPLES; i++) {
        const hdi_video_sample sample = sample_at(i);
        const hdi_video_sample *read = hdi_video_dataset_sample(set, i);
        ck_assert_mem_eq(read->dims, sample.dims, sizeof sample.dims);
        ck_assert_int_eq(read->text, sample.text);
        ck_assert_double_eq(read->fps, sample.fps);
        fill(i, elements(&sample), wanted);
        const uint64_t before = hdi_alloc_count();
        hdt_assert_ok(hdi_video_dataset_read_latents(set, i, 0, sample.dims[1], seen));
        ck_assert_uint_eq(hdi_alloc_count(), before);
        for (int64_t k = 0; k < elements(&sample); k++)
            ck_assert_float_eq(seen[k], stored(dtype, wanted[k]));
    }
    float text[TOKENS * COLUMNS], pooled[POOLED];
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(hdi_video_dataset_text(set, i)->tokens, TOKENS - i);
        ck_assert_str_eq(hdi_video_dataset_text(set, i)->name, i ? "red \"square\"\n" : "");
        hdt_fill(text, TOKENS * COLUMNS, 10 + (uint64_t)i);
        hdt_fill(pooled, POOLED, 20 + (uint64_t)i);
        hdt_assert_ok(hdi_video_dataset_read_text(set, i, seen));
        ck_assert_mem_eq(seen, text, (size_t)(TOKENS - i) * COLUMNS * sizeof *text);
        hdt_assert_ok(hdi_video_dataset_read_pooled(set, i, seen));
        ck_assert_mem_eq(seen, pooled, sizeof pooled);
    }
    ck_assert_int_eq(hdi_video_dataset_find_text(set, "red \"square\"\n"), 1);
    ck_assert_int_eq(hdi_video_dataset_find_text(set, "blue"), -1);
    hdi_video_dataset_close(set);
}
END_TEST

START_TEST(a_window_of_frames_is_that_part_of_the_whole_and_bounds_are_kept)
{
    write_set(folder_of("set"), HD_DTYPE_U8, 0);
    hdi_video_dataset *set;
    hdt_assert_ok(hdi_video_dataset_open(folder_of("set"), &set));
    const hdi_video_sample sample = sample_at(4);
    const int64_t frames = sample.dims[1], area = sample.dims[2] * sample.dims[3];
    float whole[MOST], part[MOST + 1];
    hdt_assert_ok(hdi_video_dataset_read_latents(set, 4, 0, frames, whole));
    for (int64_t first = 0; first <= frames; first++)
        for (int64_t count = 0; count <= frames - first; count++) {
            part[3 * count * area] = 42;
            hdt_assert_ok(hdi_video_dataset_read_latents(set, 4, first, count, part));
            ck_assert_float_eq(part[3 * count * area], 42);
            for (int64_t c = 0; c < 3; c++)
                ck_assert_mem_eq(part + c * count * area, whole + (c * frames + first) * area,
                                 (size_t)(count * area) * sizeof *part);
        }
    hdt_assert_status(hdi_video_dataset_read_latents(set, 4, 1, frames, part), HD_ERROR_ARGUMENT,
                      "sample 4: asked for 5 frames from 1 on, it has 5");
    hdt_assert_status(hdi_video_dataset_read_latents(set, 4, -1, 1, part), HD_ERROR_ARGUMENT,
                      "from -1 on");
    hdt_assert_status(hdi_video_dataset_read_latents(set, SAMPLES, 0, 1, part), HD_ERROR_ARGUMENT,
                      "asked for sample 5, it has 5");
    hdt_assert_status(hdi_video_dataset_read_text(set, 2, part), HD_ERROR_ARGUMENT, "text 2");
    hdt_assert_status(hdi_video_dataset_read_pooled(set, -1, part), HD_ERROR_ARGUMENT, "text -1");
    ck_assert_ptr_null(hdi_video_dataset_sample(set, -1));
    ck_assert_ptr_null(hdi_video_dataset_text(set, 2));
    hdi_video_dataset_close(set);
}
END_TEST

START_TEST(a_set_is_there_only_when_it_is_whole)
{
    const char *folder = folder_of("half");
    const hdi_video_writer_options options = {.channels = 1, .shard_bytes = 8};
    const hdi_video_sample sample = {.dims = {1, 1, 2, 2}, .text = -1};
    hdi_video_writer *writer;
    hdt_assert_ok(hdi_video_writer_create(folder, &options, &writer));
    hdt_assert_status(hdi_video_writer_finish(writer), HD_ERROR_ARGUMENT, "at least one sample");
    for (int i = 0; i < 3; i++)
        hdt_assert_ok(hdi_video_writer_append(writer, &sample, (float[4]){0}));
    hdi_video_dataset *set;
    hdt_assert_status(hdi_video_dataset_open(folder, &set), HD_ERROR_IO, "index.json");
    hdi_video_writer_destroy(writer);
    hdi_name_list names;
    hdt_assert_ok(hdi_directory_list(folder, &names));
    ck_assert_int_eq(names.count, 0);
    hdi_name_list_free(&names);

    write_set(folder, HD_DTYPE_F32, 0);
    hdt_assert_status(hdi_video_writer_create(folder, &options, &writer), HD_ERROR_IO,
                      "is there already");
    hdt_assert_ok(hdi_video_dataset_open(folder, &set));
    hdi_video_dataset_close(set);
}
END_TEST

START_TEST(a_writer_refuses_what_does_not_fit)
{
    hdi_video_writer *writer;
    const char *folder = folder_of("refused");
    hdt_assert_status(hdi_video_writer_create(folder, &(hdi_video_writer_options){0}, &writer),
                      HD_ERROR_ARGUMENT, "want channels");
    hdt_assert_status(
        hdi_video_writer_create(
            folder, &(hdi_video_writer_options){.channels = 1, .dtype = HD_DTYPE_U8}, &writer),
        HD_ERROR_ARGUMENT, "samples of U8, want F32, F16, BF16");
    hdt_assert_ok(
        hdi_video_writer_create(folder, &(hdi_video_writer_options){.channels = 2}, &writer));
    float latents[4] = {0};
    hdi_video_sample sample = {.dims = {1, 1, 2, 2}, .text = -1};
    hdt_assert_status(hdi_video_writer_append(writer, &sample, latents), HD_ERROR_ARGUMENT,
                      "want 2 channels");
    sample = (hdi_video_sample){.dims = {2, INT64_MAX, INT64_MAX, 2}, .text = -1};
    hdt_assert_status(hdi_video_writer_append(writer, &sample, latents), HD_ERROR_ARGUMENT,
                      "want 2 channels");
    sample = (hdi_video_sample){.dims = {2, 1, 1, 2}, .text = 0};
    hdt_assert_status(hdi_video_writer_append(writer, &sample, latents), HD_ERROR_ARGUMENT,
                      "text 0 is none of the 0 added");
    hdt_assert_status(hdi_video_writer_null_text(writer, 0), HD_ERROR_ARGUMENT, "text 0");
    int64_t number;
    hdt_assert_status(hdi_video_writer_text(writer, "", -1, latents, NULL, &number),
                      HD_ERROR_ARGUMENT, "-1 tokens");
    hdi_video_writer_destroy(writer);
}
END_TEST

/* A good folder of one sample [1, 2, 1, 2] (F32) with one text of 1 token x 2 columns. */
#define HEAD \
    "{\"version\":1,\"kind\":\"latents\",\"channels\":1,\"text_columns\":2,\"shards\":[\"a.st\"],"
#define TEXTS "\"texts\":[{\"shard\":0,\"tokens\":1,\"name\":\"x\"}],"
#define SAMPLE(keys) "\"samples\":[{\"shard\":0," keys "}]}"
#define GOOD SAMPLE("\"dims\":[1,2,1,2],\"text\":0")

static const struct {
    const char *index, *fragment;
} bad_indices[] = {
    {"{", "line 1"},
    {"[]", "is no object"},
    {"{}", "version is missing"},
    {"{\"version\":\"1\"}", "version is missing or no integer"},
    {"{\"version\":1,\"knd\":1}", "unknown key \"knd\""},
    {"{\"version\":1,\"version\":1}", "duplicate object key"},
    {"{\"version\":1,\"kind\":\"films\"}", "kind is \"films\", want pixels or latents"},
    {"{\"version\":1,\"kind\":\"latents\",\"channels\":0}", "channels is no integer"},
    {"{\"version\":1,\"kind\":\"latents\",\"channels\":1,\"text_columns\":-1}", "text_columns"},
    {HEAD TEXTS "\"samples\":[]}", "samples is missing or empty"},
    {HEAD "\"texts\":{},\"samples\":[1]}", "texts is no list"},
    {HEAD TEXTS "\"null_text\":1," GOOD, "null_text is not one of the texts"},
    {HEAD TEXTS "\"samples\":[1]}", "sample 0 is no object"},
    {HEAD "\"texts\":[1]," GOOD, "text 0 is no object"},
    {HEAD "\"texts\":[{\"shard\":0,\"tokens\":1,\"name\":1}]," GOOD, "or its name no text"},
    {HEAD "\"texts\":[{\"shard\":1,\"tokens\":1}]," GOOD, "text 0: wants a shard from 0 to 0"},
    {HEAD "\"texts\":[{\"shard\":0,\"tokens\":9999999999}]," GOOD, "text 0: wants a shard"},
    {HEAD "\"texts\":[{\"shard\":0,\"tokens\":2}]," GOOD, "\"text.0\": is [1, 2], "},
    {HEAD "\"texts\":[{\"shard\":0,\"tokens\":1,\"x\":1}]," GOOD, "text 0: unknown key \"x\""},
    {HEAD TEXTS SAMPLE("\"dims\":[1,2,1]"), "dims is no list"},
    {HEAD TEXTS SAMPLE("\"dims\":[1,2,1,0]"), "dims[3] is no integer from 1"},
    {HEAD TEXTS SAMPLE("\"dims\":[1,2,1,4294967296]"), "dims[3] is no integer from 1"},
    {HEAD TEXTS SAMPLE("\"dims\":[1,2,1,2.0]"), "dims[3] is no integer from 1"},
    {HEAD TEXTS SAMPLE("\"dims\":[2,2,1,2]"), "sample 0: has 2 channels, the data set 1"},
    {HEAD TEXTS SAMPLE("\"dims\":[1,2,2,1]"), "\"0.latents\": is [1, 2, 1, 2], "},
    {HEAD TEXTS SAMPLE("\"dims\":[1,2,1,2],\"text\":1"), "its text is not one of 1"},
    {HEAD TEXTS SAMPLE("\"dims\":[1,2,1,2],\"fps\":-1"), "fps is no number >= 0"},
    {HEAD TEXTS SAMPLE("\"dims\":[1,2,1,2],\"fps\":\"8\""), "fps is no number >= 0"},
    {HEAD TEXTS "\"samples\":[{\"shard\":0,\"dims\":[1,2,1,2]},{\"shard\":0,\"dims\":[1,2,1,2]}]}",
     "tensor \"1.latents\" is missing"},
    {HEAD TEXTS "\"samples\":[{\"shard\":-1,\"dims\":[1,2,1,2]}]}", "wants a shard from 0 to 0"},
    {"{\"version\":1,\"kind\":\"latents\",\"channels\":1,\"text_columns\":2,\"pooled_columns\":2,"
     "\"shards\":[\"a.st\"]," TEXTS GOOD,
     "tensor \"pooled.0\" is missing"},
    {"{\"version\":1,\"kind\":\"latents\",\"channels\":1," TEXTS GOOD, "shards is missing"},
#define SHARD(name) \
    "{\"version\":1,\"kind\":\"latents\",\"channels\":1,\"shards\":[" name "]," TEXTS GOOD
    {SHARD("\"../a.st\""), "want the plain name"},
    {SHARD("\"..\""), "want the plain name"},
    {SHARD("\"\""), "want the plain name"},
    {SHARD("1"), "want the plain name"},
    {SHARD("\"link.st\""), "out of its folder"},
    {SHARD("\"words.st\""), "header"},
    {"{\"version\":1,\"kind\":\"latents\",\"channels\":1,\"text_columns\":2,\"shards\":[\"i.st\"]"
     "," TEXTS GOOD,
     "dtype is I32, want F32, F16 or BF16"},
    {"{\"version\":1,\"kind\":\"latents\",\"channels\":1,\"text_columns\":2,\"shards\":[\"u.st\"]"
     "," TEXTS GOOD,
     "dtype is U8, want F32, F16 or BF16"},
};
enum { BAD_INDICES = sizeof bad_indices / sizeof bad_indices[0] };

static const char *hostile(const char *index)
{
    const char *folder = folder_of("hostile");
    hdt_assert_ok(hdi_directory_create(folder));
#define FILE_OF(dtype, bytes)                                                                    \
    "{" HDT_TENSOR("0.latents", dtype, "[1,2,1,2]",                                              \
                   "[0," bytes                                                                   \
                   "]") ","                                                                      \
                        "\"text.0\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[" bytes \
                        ","
    hdt_text_safetensors("hostile/a.st", FILE_OF("\"F32\"", "16") "24]}}", 24);
    hdt_text_safetensors("hostile/i.st", FILE_OF("\"I32\"", "16") "24]}}", 24);
    hdt_text_safetensors("hostile/u.st", FILE_OF("\"U8\"", "4") "12]}}", 12);
    hdt_text_safetensors("hostile/words.st", "words", 0);
    hdt_assert_ok(hdi_directory_create(hdt_temp_path("outside"))); /* as long a name */
    hdt_text_safetensors("outside/a.st", "{}", 0);
    unlink(hdt_temp_path("hostile/link.st"));
    ck_assert_int_eq(symlink("../outside/a.st", hdt_temp_path("hostile/link.st")), 0);
    hdt_assert_ok(hdi_file_write_text(hdt_temp_path("hostile/index.json"), index));
    return folder;
}

START_TEST(a_hostile_index_is_refused_with_its_reason)
{
    hdi_video_dataset *set;
    hdt_assert_status(hdi_video_dataset_open(hostile(bad_indices[_i].index), &set), HD_ERROR_FORMAT,
                      bad_indices[_i].fragment);
    ck_assert_ptr_null(set);
}
END_TEST

START_TEST(a_good_index_beside_them_opens_and_a_newer_one_or_a_lost_shard_does_not)
{
    hdi_video_dataset *set;
    hdt_assert_ok(hdi_video_dataset_open(hostile(HEAD TEXTS GOOD), &set));
    const char *path = hdt_temp_path("hostile/a.st");
    ck_assert_int_eq(truncate(path, 60), 0);
    float out[4];
    hdt_assert_status(hdi_video_dataset_read_latents(set, 0, 0, 2, out), HD_ERROR_IO, "a.st");
    hdi_video_dataset_close(set);
    hdt_assert_status(hdi_video_dataset_open(hostile("{\"version\":2}"), &set),
                      HD_ERROR_UNSUPPORTED, "version is 2, want 1");
    hdt_assert_status(hdi_video_dataset_open(hostile(SHARD("\"lost.st\"")), &set), HD_ERROR_IO,
                      "lost.st");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("video data set");
    TCase *files = tcase_create("files");
    tcase_add_loop_test(files, what_is_written_is_read_in_every_dtype_and_from_many_shards, 0, 8);
    tcase_add_test(files, a_window_of_frames_is_that_part_of_the_whole_and_bounds_are_kept);
    tcase_add_test(files, a_set_is_there_only_when_it_is_whole);
    tcase_add_test(files, a_writer_refuses_what_does_not_fit);
    tcase_add_loop_test(files, a_hostile_index_is_refused_with_its_reason, 0, BAD_INDICES);
    tcase_add_test(files, a_good_index_beside_them_opens_and_a_newer_one_or_a_lost_shard_does_not);
    suite_add_tcase(suite, files);
    return hdt_main(suite);
}
