/* ranks: 1 2 4, at most 4 */
/* Generation against the reference implementations, by the generator and by the whole job. */
#include <heddle/job.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "jobs/generate/generator.h"
#include "tests/support/hdt_generate.h"

static const char *const families[] = {"gpt2", "llama"};
static const hd_sampling_options greedy;

/* A golden file: its model, and a Hugging Face folder with its weights. */
typedef struct golden {
    hdi_safetensors *file;
    hd_model *model;
    char folder[HDI_PATH_BYTES];
} golden;

static hd_status copy_tensors(const golden *it, hdi_safetensors_writer *writer, bool write)
{
    for (int i = 0; i < hdi_safetensors_count(it->file); i++) {
        const hdi_safetensors_tensor *tensor = hdi_safetensors_get(it->file, i);
        if (strncmp(tensor->name, "weights.", 8) != 0) continue;
        if (!write) {
            HD_RETURN_IF_ERROR(hdi_safetensors_writer_tensor(
                writer, tensor->name + 8, tensor->dtype, tensor->rank, tensor->dims));
            continue;
        }
        char *bytes = hdi_alloc((size_t)tensor->bytes);
        hd_status status = hdi_safetensors_pread(it->file, tensor, 0, tensor->bytes, bytes);
        if (status == HD_OK)
            status = hdi_safetensors_writer_write(writer, bytes, (size_t)tensor->bytes);
        hdi_free(bytes);
        HD_RETURN_IF_ERROR(status);
    }
    return HD_OK;
}

static hd_status write_folder(const golden *it)
{
    char path[HDI_PATH_BYTES + 32];
    HD_RETURN_IF_ERROR(hdi_directory_create(it->folder));
    snprintf(path, sizeof path, "%s/config.json", it->folder);
    HD_RETURN_IF_ERROR(hdi_file_write_text(path, hd_model_config_json(it->model)));
    snprintf(path, sizeof path, "%s/model.safetensors", it->folder);
    hdi_safetensors_writer *writer;
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_create(&writer));
    hd_status status = copy_tensors(it, writer, false);
    if (status == HD_OK) status = hdi_safetensors_writer_prepare(writer);
    if (status == HD_OK) status = hdi_safetensors_writer_begin(writer, path);
    if (status == HD_OK) status = copy_tensors(it, writer, true);
    if (status == HD_OK) status = hdi_safetensors_writer_end(writer);
    hdi_safetensors_writer_destroy(writer);
    return status;
}

static golden open_golden(const char *family)
{
    golden it = {0};
    char name[64];
    snprintf(name, sizeof name, "%s_tiny.safetensors", family);
    snprintf(it.folder, sizeof it.folder, "%s/%s", hdt_shared_temp_dir(), family);
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path(name), &it.file));
    json_t *config = json_loads(hdi_safetensors_metadata(it.file, "config"), 0, NULL);
    json_object_set_new(config, "model_type", json_string(family));
    char *text = json_dumps(config, 0);
    hdt_assert_ok(hd_model_create_json(text, &it.model));
    free(text);
    json_decref(config);
    hdt_assert_ok(hd_comm_agree(hdt_world, hd_comm_rank(hdt_world) ? HD_OK : write_folder(&it)));
    return it;
}

static void close_golden(golden *it)
{
    hd_model_destroy(it->model);
    hdi_safetensors_close(it->file);
}

/* Whole numbers of a golden tensor. */
static int64_t read_ids(const golden *it, const char *name, int32_t *out)
{
    int64_t wide[256];
    const hdi_safetensors_tensor *tensor = hdi_safetensors_find(it->file, name);
    ck_assert_int_le(tensor->elements, 256);
    hdt_assert_ok(hdi_safetensors_pread(it->file, tensor, 0, tensor->bytes, wide));
    for (int64_t i = 0; i < tensor->elements; i++)
        out[i] = (int32_t)wide[i];
    return tensor->elements;
}

/* The golden models have three layers. */
static hd_mesh_options golden_layout(void)
{
    const int ranks = hd_comm_size(hdt_world);
    return (hd_mesh_options){.data = ranks > 2 ? ranks / 2 : 1, .pipeline = ranks > 1 ? 2 : 1};
}

START_TEST(greedy_texts_are_those_of_the_reference)
{
    golden from = open_golden(families[_i]);
    int32_t prompt[256], wanted[256], got[256];
    const int64_t length = read_ids(&from, "in.prompt", prompt);
    const int64_t tokens = read_ids(&from, "out.generated", wanted) - length;
    const hd_prompt twice[] = {{prompt, length}, {prompt, length}};
    for (int64_t prefill = 1; prefill <= 16; prefill += 5) {
        const hdt_generating with = {.model = from.model,
                                     .weights = from.folder,
                                     .capacity = length + tokens,
                                     .prefill = prefill,
                                     .mesh = golden_layout()};
        hdt_generator it;
        hdt_assert_ok(hdt_open_generator(hdt_world, &with, &it));
        hdt_assert_ok(hd_generator_run(it.generator, twice, 2, tokens, &greedy, got, NULL));
        ck_assert_mem_eq(got, wanted + length, (size_t)tokens * sizeof *got);
        ck_assert_mem_eq(got + tokens, wanted + length, (size_t)tokens * sizeof *got);
        hdt_close_generator(&it);
    }
    close_golden(&from);
}
END_TEST

/* The bound is what fp32 runs of the reference keep to: tests/golden's files say 5e-6 for these. */
START_TEST(cached_logits_are_the_uncached_ones_of_the_reference)
{
    golden from = open_golden(families[_i]);
    const hdi_safetensors_tensor *logits = hdi_safetensors_find(from.file, "out64.logits");
    const int64_t tokens = logits->dims[1], vocab = logits->dims[2];
    int32_t ids[256], next;
    double wanted[512];
    read_ids(&from, "in.ids", ids);
    hd_comm *self = hdt_open_self();
    for (int64_t prefill = 1; prefill <= 11; prefill += 5) {
        const hdt_generating with = {.model = from.model,
                                     .weights = from.folder,
                                     .capacity = tokens + 1,
                                     .prefill = prefill};
        hdt_generator it;
        hdt_assert_ok(hdt_open_generator(self, &with, &it));
        for (int64_t row = 0; row < tokens; row += 4) {
            const hd_prompt prompt = {ids, row + 1};
            hdt_assert_ok(hd_generator_run(it.generator, &prompt, 1, 1, &greedy, &next, NULL));
            hdt_assert_ok(
                hdi_safetensors_pread(from.file, logits, row * vocab * 8, vocab * 8, wanted));
            for (int64_t i = 0; i < vocab; i++)
                ck_assert_double_le(fabs((double)it.generator->logits[i] - wanted[i]), 3e-5);
        }
        hdt_close_generator(&it);
    }
    hd_comm_destroy(self);
    close_golden(&from);
}
END_TEST

/* A checkpoint of the golden weights, from a generator that holds all of them. */
static hd_status write_checkpoint(const golden *from, const char *folder)
{
    const hdi_checkpoint_piece none = {0};
    hdi_checkpoint_piece pieces[64];
    char names[64][128];
    hd_comm *self = NULL;
    hdt_generator it;
    HD_RETURN_IF_ERROR(
        hd_comm_create_world(&(hd_comm_options){.transport = HD_TRANSPORT_SELF}, &self));
    const hdt_generating with = {.model = from->model, .weights = from->folder, .capacity = 8};
    hd_status status = hdt_open_generator(self, &with, &it);
    hdi_checkpoint_writer *writer = NULL;
    const hdi_layout *layout = status == HD_OK ? it.generator->plan->layout : NULL;
    for (int i = 0; layout && i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        pieces[i] = none;
        snprintf(names[i], sizeof names[i], "weights/%s", entry->name);
        pieces[i].name = names[i];
        pieces[i].dtype = HD_DTYPE_F32;
        pieces[i].global_elements = pieces[i].count = entry->elements;
        pieces[i].data = (const float *)(const void *)it.generator->session->arena + entry->first;
    }
    if (layout)
        status =
            hdi_checkpoint_writer_create(NULL, folder, 1, pieces, layout->entry_count, &writer);
    char *state = hdi_format("{\"model\": %s}", hd_model_config_json(from->model));
    if (status == HD_OK) status = hdi_checkpoint_save(writer, 2, state);
    hdi_free(state);
    hdi_checkpoint_writer_destroy(writer);
    hdt_close_generator(&it);
    hd_comm_destroy(self);
    return status;
}

static bool keep_text(void *user, const char *text)
{
    hdi_text_append(user, text);
    return true;
}

/* The last that was told. */
static int64_t told, told_of;

static bool watch(void *user, const hd_progress *progress)
{
    (void)user;
    told = progress->step == told + 1 ? progress->step : -1; /* one at a time */
    told_of = progress->steps;
    return true;
}

static hd_status run_job(const char *path, const char *ids, const char *pipeline, const char *dtype,
                         hdi_text *text)
{
    hd_config *config;
    HD_RETURN_IF_ERROR(hd_config_create(&config));
    hd_status status = hd_config_set(config, "generate.checkpoint", path);
    if (status == HD_OK) status = hd_config_set(config, "generate.ids", ids);
    if (status == HD_OK) status = hd_config_set(config, "generate.tokens", "16");
    if (status == HD_OK) status = hd_config_set(config, "generate.temperature", "0");
    if (status == HD_OK) status = hd_config_set(config, "layout.pipeline", pipeline);
    if (status == HD_OK) status = hd_config_set(config, "generate.dtype", dtype);
    told = told_of = 0;
    if (status == HD_OK) status = hd_generate_run(config, watch, keep_text, text);
    hd_config_destroy(config);
    return status;
}

START_TEST(the_job_writes_the_texts_from_checkpoints_and_hugging_face_folders)
{
    golden from = open_golden(families[_i]);
    int32_t prompt[256], wanted[256];
    const int64_t length = read_ids(&from, "in.prompt", prompt);
    read_ids(&from, "out.generated", wanted);
    char run[HDI_PATH_BYTES + 32], folder[HDI_PATH_BYTES + 64];
    snprintf(run, sizeof run, "%s-run", from.folder);
    snprintf(folder, sizeof folder, "%s/checkpoints", run);
    hdt_assert_ok(hd_comm_agree(hdt_world,
                                hd_comm_rank(hdt_world) ? HD_OK : write_checkpoint(&from, folder)));
    hdi_text ids = {0}, expected = {0};
    for (int64_t i = 0; i < length; i++)
        hdi_text_printf(&ids, "%s%d", i ? "," : "", prompt[i]);
    hdi_text_printf(&expected, "=== prompt 1 of 1\n%s -> ", ids.data);
    for (int64_t i = length; i < length + 16; i++)
        hdi_text_printf(&expected, "%s%d", i > length ? "," : "", wanted[i]);
    hdi_text_append(&expected, "\n");
    char file[HDI_PATH_BYTES + 32];
    snprintf(file, sizeof file, "%s/model.safetensors", from.folder);
    const char *const paths[] = {from.folder, file, run, folder};
    const char *pipeline = hd_comm_size(hdt_world) > 1 ? "2" : "1";
    hdi_text texts[4] = {0};
    hd_status status = HD_OK;
    for (int i = 0; i < 4 && status == HD_OK; i++)
        status = run_job(paths[i], ids.data, pipeline, "auto", &texts[i]);
    hdi_text rounded = {0};
    if (status == HD_OK) status = run_job(from.folder, ids.data, pipeline, "bf16", &rounded);
    hdt_assert_ok(status);
    ck_assert_int_eq(told, hd_comm_rank(hdt_world) == 0 ? 16 : 0);
    ck_assert_int_eq(told_of, told);
    if (hd_comm_rank(hdt_world) == 0) /* other tokens, perhaps, of the same prompt */
        ck_assert_int_eq(strncmp(rounded.data, expected.data, strcspn(expected.data, ">")), 0);
    hdi_text_free(&rounded);
    for (int i = 0; i < 4; i++) {
        if (hd_comm_rank(hdt_world) == 0)
            ck_assert_str_eq(texts[i].data, expected.data);
        else
            ck_assert_ptr_null(texts[i].data);
        hdi_text_free(&texts[i]);
    }
    hdi_text_free(&ids);
    hdi_text_free(&expected);
    close_golden(&from);
}
END_TEST

START_TEST(the_job_says_what_is_wrong)
{
    golden from = open_golden("gpt2");
    hdi_text text = {0};
    char ids[3 * 64 + 1] = "1";
    const int ranks = hd_comm_size(hdt_world);
    hdt_assert_status(run_job("/nowhere/at/all", ids, "1", "auto", &text), HD_ERROR_IO,
                      "/nowhere/at/all");
    hdt_assert_status(run_job(from.folder, "999", "1", "auto", &text), HD_ERROR_ARGUMENT,
                      "token 0 is 999, want 0..256");
    hdt_assert_status(run_job(from.folder, ids, "3", "auto", &text), HD_ERROR_CONFIG,
                      ranks == 1   ? "the 1 rank;"
                      : ranks == 2 ? "the 2 ranks;"
                                   : "the 4 ranks;");
    for (int i = 1; i < 60; i++)
        strcat(ids, ",1");
    hdt_assert_status(run_job(from.folder, ids, "1", "auto", &text), HD_ERROR_CONFIG,
                      "16 after a prompt of 60 tokens exceed the 64");
    ck_assert_ptr_null(text.data);
    close_golden(&from);
}
END_TEST

START_TEST(ranks_with_different_configurations_all_stop_and_name_the_key)
{
    hdi_text text = {0};
    const int rank = hd_comm_rank(hdt_world);
    golden from = open_golden("gpt2");
    hd_status status = run_job(from.folder, rank == 1 ? "1,2" : "1,3", "1", "auto", &text);
    if (hd_comm_size(hdt_world) == 1)
        hdt_assert_ok(status);
    else
        hdt_assert_status(status, HD_ERROR_MISMATCH, "generate.ids differs");
    hdi_text_free(&text);
    close_golden(&from);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *golden_case = tcase_create("golden");
    tcase_add_loop_test(golden_case, greedy_texts_are_those_of_the_reference, 0, 2);
    tcase_add_loop_test(golden_case, cached_logits_are_the_uncached_ones_of_the_reference, 0, 2);
    TCase *jobs = tcase_create("jobs");
    tcase_add_loop_test(jobs, the_job_writes_the_texts_from_checkpoints_and_hugging_face_folders, 0,
                        2);
    tcase_add_test(jobs, the_job_says_what_is_wrong);
    tcase_add_test(jobs, ranks_with_different_configurations_all_stop_and_name_the_key);
    return hdt_main_ranks(argc, argv, "generation golden", golden_case, jobs);
}
