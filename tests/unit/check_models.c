/* Models: configurations and their refusals, parameter counts, parameters in files. */
#include <heddle/model.h>

#include <math.h>

#include "core/memory.h"
#include "models/weights.h"
#include "program/program.h"
#include "tests/support/hdt.h"

static const struct {
    const char *preset;
    int64_t parameters, layers, hidden;
} counts[] = {
    {"gpt2", 124439808, 12, 768},        {"gpt2-medium", 354823168, 24, 1024},
    {"gpt2-large", 774030080, 36, 1280}, {"gpt2-xl", 1557611200, 48, 1600},
    {"llama-7b", 6738415616, 32, 4096},
};

START_TEST(presets_have_the_published_parameter_counts)
{
    hd_model *model;
    hdt_assert_ok(hd_model_create_preset(counts[_i].preset, &model));
    ck_assert_int_eq(hd_model_parameters(model), counts[_i].parameters);
    ck_assert_int_eq(hd_model_layers(model), counts[_i].layers);
    ck_assert_int_eq(hd_model_hidden(model), counts[_i].hidden);
    hd_model_destroy(model);
}
END_TEST

START_TEST(every_preset_writes_a_config_that_makes_it_again)
{
    for (int i = 0; hd_model_preset(i); i++) {
        hd_model *model, *again;
        hdt_assert_ok(hd_model_create_preset(hd_model_preset(i), &model));
        hdt_assert_ok(hd_model_create_json(hd_model_config_json(model), &again));
        ck_assert_str_eq(hd_model_config_json(model), hd_model_config_json(again));
        ck_assert_int_eq(hd_model_parameters(model), hd_model_parameters(again));
        hd_model_destroy(model);
        hd_model_destroy(again);
    }
}
END_TEST

/* What files leave out has the value of the Hugging Face classes; presets rely on it. */
START_TEST(keys_that_are_left_out_have_their_published_defaults)
{
    hd_model *model;
    hdt_assert_ok(hd_model_create_preset("gpt2", &model));
    const char *json = hd_model_config_json(model);
    ck_assert_ptr_nonnull(strstr(json, "\"layer_norm_epsilon\": 1e-05"));
    ck_assert_ptr_nonnull(strstr(json, "\"n_inner\": 3072"));
    ck_assert_ptr_nonnull(strstr(json, "\"activation_function\": \"gelu_new\""));
    ck_assert_ptr_nonnull(strstr(json, "\"tie_word_embeddings\": true"));
    hd_model_destroy(model);
    hdt_assert_ok(hd_model_create_preset("llama-7b", &model));
    json = hd_model_config_json(model);
    ck_assert_ptr_nonnull(strstr(json, "\"head_dim\": 128"));
    ck_assert_ptr_nonnull(strstr(json, "\"num_key_value_heads\": 32"));
    ck_assert_ptr_nonnull(strstr(json, "\"rope_theta\": 10000"));
    ck_assert_ptr_nonnull(strstr(json, "\"tie_word_embeddings\": false"));
    hd_model_destroy(model);
}
END_TEST

/* GPT-2's: weights 0.02, projections into the residual 0.02 / sqrt(2 * layers), biases 0, norms 1. */
START_TEST(parameters_start_as_gpt2_has_them)
{
    hd_model *model;
    hd_program *program;
    const hd_stage stage = {.layers = 4, .first = true, .last = true, .sequences = 1, .tokens = 4};
    hdt_assert_ok(hd_model_create_preset("gpt2-tiny", &model));
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p"}, &program));
    hd_model_build(model, program, &stage, (hd_tensor){0});
    hdt_assert_ok(hd_program_finish(program));
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u];
        const bool weight = use->options.rank == 2, norm = strstr(use->name, "ln_") != NULL;
        const bool bias = strstr(use->name, ".bias") != NULL;
        ck_assert_int_eq(use->options.init, weight          ? HD_INIT_NORMAL
                                            : norm && !bias ? HD_INIT_ONES
                                                            : HD_INIT_ZEROS);
        const double std = strstr(use->name, "c_proj") ? 0.02 / sqrt(8) : 0.02;
        if (weight) ck_assert_double_eq_tol(use->options.std, std, 1e-12);
    }
    hd_program_destroy(program);
    hd_model_destroy(model);
}
END_TEST

#define GPT2 "\"model_type\": \"gpt2\", \"vocab_size\": 11, \"n_positions\": 8, \"n_layer\": 1, "
#define LLAMA                                                                         \
    "\"model_type\": \"llama\", \"vocab_size\": 11, \"max_position_embeddings\": 8, " \
    "\"hidden_size\": 8, \"intermediate_size\": 12, \"num_hidden_layers\": 1, "

START_TEST(an_untied_head_has_parameters_of_its_own)
{
    hd_model *tied, *untied;
    hdt_assert_ok(hd_model_create_json("{" GPT2 "\"n_embd\": 8, \"n_head\": 2}", &tied));
    hdt_assert_ok(hd_model_create_json(
        "{" GPT2 "\"n_embd\": 8, \"n_head\": 2, \"tie_word_embeddings\": false}", &untied));
    ck_assert_int_eq(hd_model_parameters(untied), hd_model_parameters(tied) + 11 * 8);
    hd_model_destroy(tied);
    hd_model_destroy(untied);
}
END_TEST

static const struct {
    const char *json;
    hd_status status;
    const char *text;
} refusals[] = {
    {"{", HD_ERROR_CONFIG, "model config: line 1"},
    {"[]", HD_ERROR_CONFIG, "it is no object"},
    {"{}", HD_ERROR_CONFIG, "\"model_type\" is missing, want one of \"gpt2\", \"llama\""},
    {"{\"model_type\": \"bert\"}", HD_ERROR_CONFIG, "\"model_type\" is \"bert\", want"},
    {"{\"model_type\": 3}", HD_ERROR_CONFIG, "\"model_type\" is 3, want a string"},
    {"{" GPT2 "\"n_head\": 2}", HD_ERROR_CONFIG, "\"n_embd\" is missing, want an integer > 0"},
    {"{" GPT2 "\"n_embd\": \"8\", \"n_head\": 2}", HD_ERROR_CONFIG, "\"n_embd\" is \"8\", want an"},
    {"{" GPT2 "\"n_embd\": 8.5, \"n_head\": 2}", HD_ERROR_CONFIG, "\"n_embd\" is 8.5, want an"},
    {"{" GPT2 "\"n_embd\": 0, \"n_head\": 2}", HD_ERROR_CONFIG, "\"n_embd\" is 0, want an"},
    {"{" GPT2 "\"n_embd\": 8, \"n_embd\": 9, \"n_head\": 2}", HD_ERROR_CONFIG, "duplicate"},
    {"{" GPT2 "\"n_embd\": 9, \"n_head\": 2}", HD_ERROR_CONFIG,
     "\"n_embd\" is 9, want a multiple of \"n_head\", 2"},
    {"{" GPT2 "\"n_embd\": 8, \"n_head\": 2, \"layer_norm_epsilon\": -1}", HD_ERROR_CONFIG,
     "\"layer_norm_epsilon\" is -1, want a number > 0"},
    {"{" GPT2 "\"n_embd\": 8, \"n_head\": 2, \"tie_word_embeddings\": 1}", HD_ERROR_CONFIG,
     "\"tie_word_embeddings\" is 1, want true or false"},
    {"{" GPT2 "\"n_embd\": 8, \"n_head\": 2, \"activation_function\": \"relu\"}",
     HD_ERROR_UNSUPPORTED, "\"activation_function\" is \"relu\", want \"gelu_new\""},
    {"{" GPT2 "\"n_embd\": 8, \"n_head\": 2, \"scale_attn_by_inverse_layer_idx\": true}",
     HD_ERROR_UNSUPPORTED, "\"scale_attn_by_inverse_layer_idx\" is true"},
    {"{" LLAMA "\"num_attention_heads\": 4, \"num_key_value_heads\": 3}", HD_ERROR_CONFIG,
     "\"num_key_value_heads\" is 3, want a divisor of \"num_attention_heads\", 4"},
    {"{" LLAMA "\"num_attention_heads\": 8}", HD_ERROR_CONFIG, "\"head_dim\" is 1, want an even"},
    {"{" LLAMA "\"num_attention_heads\": 2, \"hidden_act\": \"gelu\"}", HD_ERROR_UNSUPPORTED,
     "\"hidden_act\" is \"gelu\", want \"silu\""},
    {"{" LLAMA "\"num_attention_heads\": 2, \"rope_scaling\": {\"rope_type\": \"yarn\"}}",
     HD_ERROR_UNSUPPORTED, "\"rope_type\" is \"yarn\", want \"default\""},
    {"{" LLAMA "\"num_attention_heads\": 2, \"attention_bias\": true}", HD_ERROR_UNSUPPORTED,
     "\"attention_bias\" is true"},
};

START_TEST(bad_configs_are_refused_with_key_seen_and_wanted)
{
    hd_model *model;
    hdt_assert_status(hd_model_create_json(refusals[_i].json, &model), refusals[_i].status,
                      refusals[_i].text);
    ck_assert_ptr_null(model);
}
END_TEST

START_TEST(an_unknown_preset_is_refused_with_the_list)
{
    hd_model *model;
    hdt_assert_status(hd_model_create_preset("gpt5", &model), HD_ERROR_CONFIG,
                      "model preset 'gpt5' is unknown, want one of gpt2-tiny, gpt2,");
}
END_TEST

static const struct {
    hd_stage stage;
    const char *text;
} bad_stages[] = {
    {{HD_PURPOSE_TRAIN, .first_layer = 3, .layers = 2, .first = true, .sequences = 1, .tokens = 4},
     "layers 3 to 4, the model has 4"},
    {{HD_PURPOSE_TRAIN, .layers = 1, .first = true, .sequences = 1, .tokens = 257},
     "want at least one of each, at most 256 tokens"},
    {{HD_PURPOSE_GENERATE, .layers = 1, .first = true, .sequences = 2, .tokens = 4, .capacity = 8},
     "to generate one sequence"},
    {{HD_PURPOSE_TRAIN, .layers = 1, .sequences = 1, .tokens = 4}, "want [4, 128]"},
};

START_TEST(stages_that_do_not_fit_the_model_are_refused)
{
    hd_model *model;
    hd_program *program;
    hdt_assert_ok(hd_model_create_preset(_i % 2 ? "gpt2-tiny" : "llama-tiny", &model));
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p"}, &program));
    hd_model_build(model, program, &bad_stages[_i].stage, (hd_tensor){0});
    hdt_assert_status(hd_program_finish(program), HD_ERROR_ARGUMENT, bad_stages[_i].text);
    hd_program_destroy(program);
    hd_model_destroy(model);
}
END_TEST

static hd_status values_of(void *user, int parameter, int64_t first, int64_t count, float *out)
{
    ck_assert_int_eq(parameter, 0);
    memcpy(out, (const float *)user + first, (size_t)count * sizeof *out);
    return HD_OK;
}

/* Two parts, transposed in the file or not; every range of elements equals that of the whole. */
START_TEST(any_slice_of_a_parameter_written_in_parts_reads_back)
{
    const hd_parameter_options parameter = {
        .name = "p",
        .rank = 2,
        .dims = {7, 5},
        .parts = 2,
        .part = {{.name = "a", .rows = 3, .transposed = _i & 1},
                 {.name = "b", .rows = 4, .transposed = _i >> 1}},
    };
    float values[35], seen[35];
    for (int i = 0; i < 35; i++)
        values[i] = (float)i;
    hdi_safetensors_writer *writer;
    hdi_weights *weights;
    const char *path = hdt_temp_path("parts.safetensors");
    hdt_assert_ok(hdi_safetensors_writer_create(&writer));
    const hd_parameter_options *const all[] = {&parameter};
    hdi_model_tensor *tensors;
    int stored_tensors;
    hdt_assert_ok(hdi_model_list_tensors(all, 1, &tensors, &stored_tensors));
    for (int t = 0; t < stored_tensors; t++)
        hdt_assert_ok(hdi_safetensors_writer_tensor(writer, tensors[t].name, HD_DTYPE_F32,
                                                    tensors[t].rank, tensors[t].dims));
    hdt_assert_ok(hdi_safetensors_writer_prepare(writer));
    hdt_assert_ok(hdi_safetensors_writer_begin(writer, path));
    for (int t = 0; t < stored_tensors; t++) {
        hdt_assert_ok(hdi_model_fill_tensor(&tensors[t], all, 1, values_of, values, seen));
        hdt_assert_ok(
            hdi_safetensors_writer_write(writer, seen, (size_t)tensors[t].elements * sizeof *seen));
    }
    hdi_free(tensors);
    hdt_assert_ok(hdi_safetensors_writer_end(writer));
    hdi_safetensors_writer_destroy(writer);
    hdt_assert_ok(hdi_weights_open(path, &weights));
    for (int first = 0; first < 35; first++) {
        for (int count = 0; count <= 35 - first; count++) {
            hdt_assert_ok(hdi_model_read_parameter(weights, &parameter, first, count, seen));
            ck_assert_mem_eq(seen, values + first, (size_t)count * sizeof *seen);
        }
    }
    const int64_t stored[] = {_i & 1 ? 5 : 3, _i & 1 ? 3 : 5};
    ck_assert_mem_eq(hdi_weights_find(weights, "a", NULL)->dims, stored, sizeof stored);
    hd_parameter_options other = parameter;
    other.dims[1] = 6;
    hdt_assert_status(hdi_model_check_parameter(weights, &other), HD_ERROR_FORMAT,
                      _i & 1 ? "\"a\" is [5, 3], want [6, 3]" : "\"a\" is [3, 5], want [3, 6]");
    other = parameter;
    other.part[1].name = "c";
    hdt_assert_status(hdi_model_read_parameter(weights, &other, 0, 35, seen), HD_ERROR_FORMAT,
                      "tensor \"c\" is missing, want one [");
    hdt_assert_status(hdi_model_read_parameter(weights, &parameter, 30, 6, seen), HD_ERROR_ARGUMENT,
                      "asked for 6 elements at 30, it has 35");
    hdi_weights_close(weights);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("models");
    TCase *tests = tcase_create("models");
    tcase_add_loop_test(tests, presets_have_the_published_parameter_counts, 0,
                        (int)(sizeof counts / sizeof counts[0]));
    tcase_add_test(tests, every_preset_writes_a_config_that_makes_it_again);
    tcase_add_test(tests, keys_that_are_left_out_have_their_published_defaults);
    tcase_add_test(tests, parameters_start_as_gpt2_has_them);
    tcase_add_test(tests, an_untied_head_has_parameters_of_its_own);
    tcase_add_loop_test(tests, bad_configs_are_refused_with_key_seen_and_wanted, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(tests, an_unknown_preset_is_refused_with_the_list);
    tcase_add_loop_test(tests, stages_that_do_not_fit_the_model_are_refused, 0,
                        (int)(sizeof bad_stages / sizeof bad_stages[0]));
    tcase_add_loop_test(tests, any_slice_of_a_parameter_written_in_parts_reads_back, 0, 4);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
