/* Video models: presets and their sizes, configurations and their refusals, stages at full size. */
#include <heddle/model.h>
#include <heddle/plan.h>

#include <math.h>
#include <stdio.h>

#include "models/model.h"
#include "program/program.h"
#include "tests/support/hdt.h"

static const struct {
    const char *preset;
    int64_t parameters, layers, hidden;
} counts[] = {
    {"hunyuan-video-13b", INT64_C(12821012544), 60, 3072},
    {"open-sora-2-11b", INT64_C(11891390528), 57, 3072},
    {"hunyuan-video-tiny", 172048, 4, 32},
    {"open-sora-2-tiny", 363152, 4, 64},
};

START_TEST(presets_have_the_published_parameter_counts)
{
    hd_model *model;
    hdt_assert_ok(hd_model_create_preset(counts[_i].preset, &model));
    ck_assert_int_eq(hd_model_parameters(model), counts[_i].parameters);
    ck_assert_int_eq(hd_model_layers(model), counts[_i].layers);
    ck_assert_int_eq(hd_model_hidden(model), counts[_i].hidden);
    ck_assert_int_eq(hd_model_vocab(model), 0);
    hd_model_destroy(model);
}
END_TEST

/* The autoencoder of 128 channels, compressing 4 x 32 x 32: patches of one latent. */
START_TEST(the_high_compression_open_sora_has_its_published_size)
{
    hd_model *model;
    hdt_assert_ok(hd_model_create_json(
        "{\"model_type\": \"open_sora_2\", \"in_channels\": 128, \"patch_size\": 1, "
        "\"cond_embed\": true, \"fused_qkv\": false, \"use_liger_rope\": true}",
        &model));
    ck_assert_int_eq(hd_model_parameters(model), INT64_C(11891971200));
    ck_assert_int_eq(hd_model_video(model)->compression[1], 32);
    hd_model_destroy(model);
}
END_TEST

START_TEST(layouts_have_the_same_parameters)
{
    static const char *const texts[][2] = {
        {"{\"model_type\": \"hunyuan_video\"}",
         "{\"_class_name\": \"HunyuanVideoTransformer3DModel\"}"},
        {"{\"model_type\": \"open_sora_2\"}",
         "{\"model_type\": \"open_sora_2\", \"fused_qkv\": false}"},
    };
    hd_model *models[2];
    hd_program *programs[2];
    for (int i = 0; i < 2; i++) {
        hdt_assert_ok(hd_model_create_json(texts[_i][i], &models[i]));
        hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p"}, &programs[i]));
        const hd_stage whole = hdi_model_whole(models[i], HD_PURPOSE_EVALUATE);
        hd_model_build(models[i], programs[i], &whole, (hd_tensor){0});
        hdt_assert_ok(hd_program_finish(programs[i]));
    }
    ck_assert_str_ne(hd_model_layout(models[0]), hd_model_layout(models[1]));
    ck_assert_int_eq(programs[0]->use_count, programs[1]->use_count);
    for (int u = 0; u < programs[0]->use_count; u++)
        ck_assert_str_eq(programs[0]->uses[u].name, programs[1]->uses[u].name);
    for (int i = 0; i < 2; i++) {
        hd_program_destroy(programs[i]);
        hd_model_destroy(models[i]);
    }
}
END_TEST

START_TEST(video_models_say_what_they_read)
{
    hd_model *model;
    hdt_assert_ok(hd_model_create_preset("open-sora-2-11b", &model));
    const hd_video_model *video = hd_model_video(model);
    ck_assert_int_eq(video->channels, 16);
    ck_assert_int_eq(video->condition_channels, 17);
    ck_assert_int_eq(video->text_tokens, 512);
    ck_assert(!video->guidance);
    hd_model_destroy(model);
    hdt_assert_ok(hd_model_create_preset("hunyuan-video-13b", &model));
    video = hd_model_video(model);
    ck_assert_int_eq(video->condition_channels, 0);
    ck_assert_int_eq(video->pooled_columns, 768);
    ck_assert_int_eq(video->compression[0], 4);
    ck_assert(video->guidance);
    hd_model_destroy(model);
    hdt_assert_ok(hd_model_create_preset("mmdit-pixel-tiny", &model));
    video = hd_model_video(model);
    ck_assert_int_eq(video->channels, 3);
    ck_assert_int_eq(video->compression[2], 1);
    hd_model_destroy(model);
    hdt_assert_ok(hd_model_create_preset("gpt2-tiny", &model));
    ck_assert_ptr_null(hd_model_video(model));
    ck_assert_ptr_null(hd_model_layout(model));
    hd_model_destroy(model);
}
END_TEST

#define HUNYUAN "{\"model_type\": \"hunyuan_video\", "
#define OPEN_SORA "{\"model_type\": \"open_sora_2\", "

static const struct {
    const char *json;
    hd_status status;
    const char *text;
} refusals[] = {
    {"{\"_class_name\": \"FluxTransformer2DModel\"}", HD_ERROR_CONFIG,
     "\"model_type\" is \"FluxTransformer2DModel\", want one of"},
    {HUNYUAN "\"num_layers\": 0}", HD_ERROR_CONFIG, "\"num_layers\" is 0, want an integer"},
    {HUNYUAN "\"out_channels\": 8}", HD_ERROR_UNSUPPORTED,
     "\"out_channels\" is 8, want \"in_channels\", 16"},
    {HUNYUAN "\"qk_norm\": \"layer_norm\"}", HD_ERROR_UNSUPPORTED,
     "\"qk_norm\" is \"layer_norm\", want \"rms_norm\""},
    {HUNYUAN "\"image_condition_type\": \"latent_concat\"}", HD_ERROR_UNSUPPORTED,
     "\"image_condition_type\" is set"},
    {HUNYUAN "\"rope_axes_dim\": [16, 56]}", HD_ERROR_CONFIG,
     "\"rope_axes_dim\" is a list, want a list of 3 integers > 0"},
    {HUNYUAN "\"rope_axes_dim\": [16, 56, 54]}", HD_ERROR_CONFIG,
     "turn 126 columns in all, want those of a head, 128"},
    {HUNYUAN "\"rope_axes_dim\": [17, 55, 56]}", HD_ERROR_CONFIG,
     "rope axis 0 turns 17 columns, want an even number"},
    {HUNYUAN "\"rope_theta\": 1}", HD_ERROR_CONFIG, "theta is 1, want a number > 1"},
    {HUNYUAN "\"layout\": \"fused\"}", HD_ERROR_CONFIG,
     "\"layout\" is \"fused\", want \"original\" or \"diffusers\""},
    {HUNYUAN "\"mlp_ratio\": 1e-9}", HD_ERROR_CONFIG, "\"mlp_ratio\" is 1e-09"},
    {OPEN_SORA "\"hidden_size\": 3071}", HD_ERROR_CONFIG,
     "\"hidden_size\" is 3071, want a multiple of \"num_heads\", 24"},
    {OPEN_SORA "\"in_channels\": 62}", HD_ERROR_CONFIG,
     "\"in_channels\" is 62, want a multiple of \"patch_size\" squared, 2 squared"},
    {OPEN_SORA "\"qkv_bias\": false}", HD_ERROR_UNSUPPORTED, "\"qkv_bias\" is false"},
};

START_TEST(bad_configs_are_refused_with_key_seen_and_wanted)
{
    hd_model *model;
    hdt_assert_status(hd_model_create_json(refusals[_i].json, &model), refusals[_i].status,
                      refusals[_i].text);
    ck_assert_ptr_null(model);
}
END_TEST

#define TINY                                            \
    {                                                   \
        .frames = 1, .height = 2, .width = 2, .text = 3 \
    }

static const struct {
    hd_stage stage;
    const char *text;
} bad_stages[] = {
    {{HD_PURPOSE_TRAIN, .first_layer = 3, .layers = 2, .first = true, .sequences = 1,
      .video = TINY},
     "layers 3 to 4, the model has 4"},
    {{HD_PURPOSE_TRAIN, .layers = 1, .first = true, .sequences = 1, .tokens = 4},
     "want at least one of each"},
    {{HD_PURPOSE_TRAIN, .layers = 1, .first = true, .sequences = 1,
      .video = {.frames = 1, .height = 2, .width = 2, .text = 257}},
     "at most 256 text tokens"},
    {{HD_PURPOSE_DENOISE, .layers = 1, .first = true, .sequences = 2, .video = TINY},
     "to sample one sequence"},
    {{HD_PURPOSE_CONDITION, .layers = 1, .first = true, .sequences = 1, .video = TINY},
     "0 steps; want at least one"},
    {{HD_PURPOSE_GENERATE, .layers = 1, .first = true, .sequences = 1, .video = TINY},
     "want a model of tokens"},
    {{HD_PURPOSE_TRAIN, .first_layer = 2, .layers = 2, .sequences = 2, .video = TINY},
     "want [10, 32]"},
    {{HD_PURPOSE_DENOISE, .first_layer = 2, .layers = 2, .sequences = 1, .video = TINY},
     "want [4, 32]"},
};

START_TEST(stages_that_do_not_fit_the_model_are_refused)
{
    hd_model *model;
    hd_program *program;
    hdt_assert_ok(hd_model_create_preset("hunyuan-video-tiny", &model));
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p"}, &program));
    hd_model_build(model, program, &bad_stages[_i].stage, (hd_tensor){0});
    hdt_assert_status(hd_program_finish(program), HD_ERROR_ARGUMENT, bad_stages[_i].text);
    hd_program_destroy(program);
    hd_model_destroy(model);
}
END_TEST

/* Grids and FLOPs of a step as the model's makers' figures give them: 13.59e9 S + 737280 S^2. */
static const struct {
    int64_t frames, height, width, tokens;
} videos[] = {
    {33, 90, 160, 118800}, {33, 68, 120, 67320}, {21, 68, 120, 42840}, {33, 64, 48, 25344}};

static int64_t parameters_of(const hd_program *program)
{
    int64_t elements = 0;
    for (int u = 0; u < program->use_count; u++)
        elements += hd_tensor_get(program, program->uses[u].tensor)->elements;
    return elements;
}

/* A stage of the model, planned in BF16; how many parameters it has and what a run of it costs. */
static int64_t plan_stage(hd_model *model, const hd_stage *stage, hd_cost *cost, size_t *bytes)
{
    hd_program *program;
    hd_plan *plan;
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){.name = "full size", .dtype = HD_DTYPE_BF16}, &program));
    hd_model_build(model, program, stage, (hd_tensor){0});
    hdt_assert_ok(hd_program_finish(program));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_ok(hd_plan_add(plan, program, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    *bytes = hd_plan_region_bytes(plan, HD_REGION_WEIGHTS);
    hdi_program_cost(program, HDI_PHASE_FORWARD, cost);
    const int64_t parameters = parameters_of(program);
    hd_plan_destroy(plan);
    hd_program_destroy(program);
    return parameters;
}

START_TEST(the_13b_model_is_planned_at_every_resolution)
{
    hd_model *model;
    hdt_assert_ok(hd_model_create_preset("hunyuan-video-13b", &model));
    hd_stage stage = hdi_model_whole(model, HD_PURPOSE_DENOISE);
    stage.video = (hd_video_shape){.frames = videos[_i].frames,
                                   .height = videos[_i].height,
                                   .width = videos[_i].width,
                                   .text = 256,
                                   .steps = 50};
    hd_cost cost;
    size_t bytes;
    /* Without modulation, refiner and embedders: 18.12 GB are left. */
    ck_assert_int_eq(plan_stage(model, &stage, &cost, &bytes), INT64_C(9062202432));
    ck_assert_uint_ge(bytes, 2 * (size_t)9062202432);
    ck_assert_uint_lt(bytes, 2 * (size_t)9062202432 + (1 << 20));
    const double tokens = (double)(videos[_i].tokens + 256);
    const double wanted = 13.59e9 * tokens + 737280 * tokens * tokens;
    ck_assert_double_le(fabs(cost.flops / wanted - 1), 0.01);
    stage.purpose = HD_PURPOSE_CONDITION;
    ck_assert_int_eq(plan_stage(model, &stage, &cost, &bytes),
                     INT64_C(12821012544) - INT64_C(9062202432));
    hd_model_destroy(model);
}
END_TEST

/* Nothing moves a stream before training has opened its gate: the last layer starts at zero too. */
START_TEST(blocks_start_as_the_identity)
{
    hd_model *model;
    hd_program *program;
    hdt_assert_ok(hd_model_create_preset("open-sora-2-tiny", &model));
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p"}, &program));
    const hd_stage whole = hdi_model_whole(model, HD_PURPOSE_EVALUATE);
    hd_model_build(model, program, &whole, (hd_tensor){0});
    hdt_assert_ok(hd_program_finish(program));
    int zeros = 0;
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u];
        const bool weight = strstr(use->name, ".weight") && use->options.rank == 2;
        const bool gate = strstr(use->name, "mod") || strstr(use->name, "final_layer.linear") ||
                          strstr(use->name, "cond_in");
        const hd_init wanted = weight && gate               ? HD_INIT_ZEROS
                               : weight                     ? HD_INIT_NORMAL
                               : strstr(use->name, ".bias") ? HD_INIT_ZEROS
                                                            : HD_INIT_ONES;
        ck_assert_msg(use->options.init == wanted, "%s", use->name);
        zeros += weight && gate;
    }
    ck_assert_int_eq(zeros, 2 * 2 + 2 + 2 + 1);
    hd_program_destroy(program);
    hd_model_destroy(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("video_models");
    TCase *tests = tcase_create("video_models");
    tcase_add_loop_test(tests, presets_have_the_published_parameter_counts, 0,
                        (int)(sizeof counts / sizeof counts[0]));
    tcase_add_test(tests, the_high_compression_open_sora_has_its_published_size);
    tcase_add_loop_test(tests, layouts_have_the_same_parameters, 0, 2);
    tcase_add_test(tests, video_models_say_what_they_read);
    tcase_add_loop_test(tests, bad_configs_are_refused_with_key_seen_and_wanted, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_loop_test(tests, stages_that_do_not_fit_the_model_are_refused, 0,
                        (int)(sizeof bad_stages / sizeof bad_stages[0]));
    tcase_add_loop_test(tests, the_13b_model_is_planned_at_every_resolution, 0,
                        (int)(sizeof videos / sizeof videos[0]));
    tcase_add_test(tests, blocks_start_as_the_identity);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
