/* The programs of MMDiTs: the same bits from either layout of files, on any number of stages and with
 * recompute; sampling programs against the whole; files read, written and refused. */
#include <heddle/job.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/memory.h"
#include "models/model.h"
#include "models/weights.h"
#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_safetensors.h"

static int64_t elements_of(const hdt_mmdit *g)
{
    return g->dims[0] * g->dims[1] * g->dims[2] * g->dims[3];
}

static void forward_and_backward(const hdt_mmdit_run *run)
{
    hdt_assert_ok(hdt_machine_run(run->machine, HDI_PHASE_FORWARD, false));
    hdt_assert_ok(hdt_machine_run(run->machine, HDI_PHASE_BACKWARD, false));
}

/* All gradients of `part`, bit for bit those of the same names in `whole`; returns how many. */
static int compare_gradients(const hdt_mmdit_run *whole, const hdt_mmdit_run *part)
{
    for (int u = 0; u < part->program->use_count; u++) {
        const hdi_use *use = &part->program->uses[u], *same = NULL;
        for (int w = 0; w < whole->program->use_count && !same; w++)
            if (strcmp(whole->program->uses[w].name, use->name) == 0)
                same = &whole->program->uses[w];
        ck_assert_msg(same != NULL, "%s is no parameter of the whole", use->name);
        ck_assert_msg(memcmp(hdt_machine_data(part->machine, use->gradient),
                             hdt_machine_data(whole->machine, same->gradient),
                             hd_tensor_get(part->program, use->tensor)->bytes) == 0,
                      "gradient of %s differs", use->name);
    }
    return part->program->use_count;
}

static void pass_on(const hdt_mmdit_run *from, hd_tensor what, const hdt_mmdit_run *to,
                    hd_tensor where)
{
    memcpy(hdt_machine_data(to->machine, where), hdt_machine_data(from->machine, what),
           hd_tensor_get(to->program, where)->bytes);
}

START_TEST(both_layouts_of_hunyuan_give_the_same_bits)
{
    hdt_mmdit g[] = {hdt_mmdit_open(HDT_HUNYUAN, NULL),
                     hdt_mmdit_open(HDT_HUNYUAN_DIFFUSERS, NULL)};
    hdt_mmdit_run runs[2];
    ck_assert_str_eq(hd_model_layout(g[0].model), "original");
    ck_assert_str_eq(hd_model_layout(g[1].model), "diffusers");
    for (int i = 0; i < 2; i++) {
        const hd_stage stage = hdt_mmdit_stage(&g[i], HD_PURPOSE_TRAIN);
        runs[i] = hdt_mmdit_start(&g[i], &stage, false);
        forward_and_backward(&runs[i]);
    }
    ck_assert_int_eq(compare_gradients(&runs[0], &runs[1]), runs[0].program->use_count);
    for (int i = 0; i < 2; i++) {
        hdt_mmdit_stop(&runs[i]);
        hdt_mmdit_close(&g[i]);
    }
}
END_TEST

/* Cuts among double blocks, between them and single ones, among those, before the first and behind
 * the last. */
START_TEST(a_model_cut_into_stages_has_the_bits_of_the_whole)
{
    hdt_mmdit g = hdt_mmdit_open(_i % 2 ? HDT_OPEN_SORA : HDT_HUNYUAN, NULL);
    const int layers = hd_model_layers(g.model), cut = _i / 2;
    hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_TRAIN);
    hdt_mmdit_run whole = hdt_mmdit_start(&g, &stage, false), parts[2];
    forward_and_backward(&whole);
    for (int i = 0; i < 2; i++) {
        stage.first = i == 0;
        stage.last = i == 1;
        stage.first_layer = i ? cut : 0;
        stage.layers = i ? layers - cut : cut;
        parts[i] = hdt_mmdit_start(&g, &stage, false);
    }
    hdt_assert_ok(hdt_machine_run(parts[0].machine, HDI_PHASE_FORWARD, false));
    pass_on(&parts[0], parts[0].result, &parts[1], parts[1].x);
    forward_and_backward(&parts[1]);
    pass_on(&parts[1], hd_gradient(parts[1].program, parts[1].x), &parts[0], parts[0].seed);
    hdt_assert_ok(hdt_machine_run(parts[0].machine, HDI_PHASE_BACKWARD, false));
    ck_assert_mem_eq(hdt_machine_data(whole.machine, hd_tensor_find(whole.program, "loss")),
                     hdt_machine_data(parts[1].machine, hd_tensor_find(parts[1].program, "loss")),
                     2 * sizeof(double));
    const int compared =
        compare_gradients(&whole, &parts[0]) + compare_gradients(&whole, &parts[1]);
    ck_assert_int_eq(compared, whole.program->use_count);
    hdt_mmdit_stop(&whole);
    hdt_mmdit_stop(&parts[0]);
    hdt_mmdit_stop(&parts[1]);
    hdt_mmdit_close(&g);
}
END_TEST

START_TEST(recompute_gives_the_same_bits)
{
    hdt_mmdit g = hdt_mmdit_open(_i, NULL);
    hdt_mmdit_run runs[2];
    for (int i = 0; i < 2; i++) {
        hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_TRAIN);
        stage.recompute = i;
        runs[i] = hdt_mmdit_start(&g, &stage, false);
        forward_and_backward(&runs[i]);
    }
    ck_assert_int_gt(runs[1].program->op_count, runs[0].program->op_count);
    compare_gradients(&runs[0], &runs[1]);
    hdt_mmdit_stop(&runs[0]);
    hdt_mmdit_stop(&runs[1]);
    hdt_mmdit_close(&g);
}
END_TEST

/* Step `step` of what a condition program made becomes a denoise program's inputs. */
static void take_step(const hdt_mmdit_run *condition, const hdt_mmdit_run *denoise, int64_t step)
{
    int taken = 0, wanted = 0;
    for (int i = 1; i < denoise->program->tensor_count; i++) {
        const hd_tensor_info *input = &denoise->program->tensors[i]->info;
        if (input->role != HD_ROLE_INPUT) continue;
        wanted += strncmp(input->name, "modulation.", 11) == 0 ||
                  strcmp(input->name, "text_refined") == 0;
        const hd_tensor from = hd_tensor_find(condition->program, input->name);
        const hd_tensor_info *output = hd_tensor_get(condition->program, from);
        if (!output || output->role != HD_ROLE_OUTPUT) continue;
        ck_assert_int_eq(output->dtype, input->dtype);
        ck_assert_int_eq(output->dims[output->rank - 1], input->dims[input->rank - 1]);
        const int64_t first = output->elements == input->elements ? 0 : step * input->elements;
        for (int64_t e = 0; e < input->elements; e++)
            hdt_machine_set(denoise->machine, (hd_tensor){i}, e,
                            hdt_machine_get(condition->machine, from, first + e));
        taken++;
    }
    ck_assert_int_gt(taken, 0);
    ck_assert_int_eq(taken, wanted);
}

enum { STEPS = 4 };

/* Sampling programs of `stages` stages, all steps conditioned at once. */
typedef struct pipeline {
    int stages;
    hdt_mmdit_run condition[2], denoise[2];
} pipeline;

static pipeline start_pipeline(const hdt_mmdit *g, int stages, bool wide, const double *times)
{
    pipeline p = {.stages = stages};
    const int layers = hd_model_layers(g->model);
    for (int i = 0; i < stages; i++) {
        hd_stage stage = hdt_mmdit_stage(g, HD_PURPOSE_CONDITION);
        stage.first = i == 0;
        stage.last = i == stages - 1;
        stage.first_layer = i ? 1 : 0;
        stage.layers = stages == 1 ? layers : i ? layers - 1 : 1;
        stage.video.text = g->valid;
        stage.video.text_counts = false;
        stage.video.steps = STEPS;
        p.condition[i] = hdt_mmdit_start(g, &stage, wide);
        hdt_mmdit_feed(&p.condition[i], "time", times);
        hdt_assert_ok(hdt_machine_run(p.condition[i].machine, HDI_PHASE_FORWARD, false));
        stage.purpose = HD_PURPOSE_DENOISE;
        p.denoise[i] = hdt_mmdit_start(g, &stage, wide);
        for (int u = 0; u < p.denoise[i].program->use_count; u++)
            ck_assert_ptr_null(strstr(p.denoise[i].program->uses[u].name, "mod"));
    }
    return p;
}

static void run_step(pipeline *p, int64_t step, const double *latents, double *velocity,
                     int64_t count)
{
    for (int i = 0; i < p->stages; i++) {
        const hdt_mmdit_run *run = &p->denoise[i];
        take_step(&p->condition[i], run, step);
        hdt_mmdit_feed(run, "latents", latents);
        if (i)
            for (int64_t e = 0; e < hd_tensor_get(run->program, run->x)->elements; e++)
                hdt_machine_set(
                    run->machine, run->x, e,
                    hdt_machine_get(p->denoise[i - 1].machine, p->denoise[i - 1].result, e));
        hdt_assert_ok(hdt_machine_run(run->machine, HDI_PHASE_FORWARD, false));
    }
    const hdt_mmdit_run *last = &p->denoise[p->stages - 1];
    for (int64_t e = 0; e < count; e++)
        velocity[e] = hdt_machine_get(last->machine, hd_tensor_find(last->program, "velocity"), e);
}

static void stop_pipeline(pipeline *p)
{
    for (int i = 0; i < p->stages; i++) {
        hdt_mmdit_stop(&p->condition[i]);
        hdt_mmdit_stop(&p->denoise[i]);
    }
}

START_TEST(conditioning_all_steps_at_once_gives_each_steps_velocity)
{
    hdt_mmdit g = hdt_mmdit_open(_i, NULL);
    const double times[STEPS] = {1, 0.75, 0.5, 0.125};
    const int64_t count = elements_of(&g);
    double *latents = hdt_values(g.file, "in.latents", NULL);
    double *velocity = calloc((size_t)count, sizeof *velocity);
    pipeline one = start_pipeline(&g, 1, true, times), two = start_pipeline(&g, 2, true, times);
    hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_EVALUATE);
    hdt_mmdit_run whole = hdt_mmdit_start(&g, &stage, true);
    for (int64_t step = 0; step < STEPS; step++) {
        hdt_mmdit_feed(&whole, "time", &times[step]);
        hdt_assert_ok(hdt_machine_run(whole.machine, HDI_PHASE_FORWARD, false));
        double *wanted = hdt_mmdit_prediction(&g, &whole);
        run_step(&one, step, latents, velocity, count);
        ck_assert_double_le(hdt_mmdit_distance(velocity, wanted, count), 1e-11);
        run_step(&two, step, latents, velocity, count);
        ck_assert_double_le(hdt_mmdit_distance(velocity, wanted, count), 1e-11);
        free(wanted);
    }
    stop_pipeline(&one);
    stop_pipeline(&two);
    hdt_mmdit_stop(&whole);
    free(latents);
    free(velocity);
    hdt_mmdit_close(&g);
}
END_TEST

/* Four Euler steps from the golden latents, sigmas 1 to 0 shifted by 7. */
START_TEST(four_steps_of_sampling_follow_the_reference)
{
    hdt_mmdit g = hdt_mmdit_open(HDT_HUNYUAN_DIFFUSERS, NULL);
    double sigmas[STEPS + 1];
    for (int i = 0; i <= STEPS; i++) {
        const double sigma = 1 - (double)i / STEPS;
        sigmas[i] = 7 * sigma / (1 + 6 * sigma);
    }
    const int64_t count = elements_of(&g);
    double *latents = hdt_values(g.file, "in.latents", NULL);
    double *wanted = hdt_values(g.file, "out64.sampler", NULL);
    double *velocity = calloc((size_t)count, sizeof *velocity);
    pipeline p = start_pipeline(&g, 1, false, sigmas);
    for (int64_t step = 0; step < STEPS; step++) {
        run_step(&p, step, latents, velocity, count);
        for (int64_t e = 0; e < count; e++)
            latents[e] += velocity[e] * (sigmas[step + 1] - sigmas[step]);
        ck_assert_double_le(hdt_mmdit_distance(latents, wanted + step * count, count), g.tolerance);
    }
    stop_pipeline(&p);
    free(latents);
    free(wanted);
    free(velocity);
    hdt_mmdit_close(&g);
}
END_TEST

/* The same run with other inputs, and fewer valid tokens of text where they are counted. */
static void disturb(const hdt_mmdit_run *run)
{
    for (int i = 1; i < run->program->tensor_count; i++) {
        const hd_tensor_info *info = &run->program->tensors[i]->info;
        if (info->role != HD_ROLE_INPUT) continue;
        for (int64_t e = 0; e < info->elements && info->dtype == HD_DTYPE_F32; e++)
            hdt_machine_set(run->machine, (hd_tensor){i}, e,
                            0.7 * hdt_machine_get(run->machine, (hd_tensor){i}, e) + 0.1);
        if (info->dtype == HD_DTYPE_I32)
            ((int32_t *)hdt_machine_data(run->machine, (hd_tensor){i}))[0] = 4;
    }
}

/* Inputs of two sequences are those of one after those of the other. */
static void join_inputs(const hdt_mmdit_run parts[2], const hdt_mmdit_run *both)
{
    for (int i = 1; i < both->program->tensor_count; i++) {
        const hd_tensor_info *info = &both->program->tensors[i]->info;
        if (info->role != HD_ROLE_INPUT) continue;
        char *data = hdt_machine_data(both->machine, (hd_tensor){i});
        const size_t bytes = info->dtype == HD_DTYPE_F32 ? info->bytes : info->bytes / 2;
        for (int p = 0; p < 2; p++)
            memcpy(data + (size_t)p * bytes,
                   hdt_machine_data(parts[p].machine, hd_tensor_find(parts[p].program, info->name)),
                   bytes);
    }
}

START_TEST(sequences_of_a_batch_do_not_see_each_other)
{
    hdt_mmdit g = hdt_mmdit_open(_i, NULL);
    hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_EVALUATE);
    hdt_mmdit_run parts[] = {hdt_mmdit_start(&g, &stage, true), hdt_mmdit_start(&g, &stage, true)};
    const hd_tensor name = hd_tensor_find(parts[0].program, "loss");
    disturb(&parts[1]);
    for (int i = 0; i < 2; i++)
        hdt_assert_ok(hdt_machine_run(parts[i].machine, HDI_PHASE_FORWARD, false));
    stage.sequences = 2;
    hdt_mmdit_run both = hdt_mmdit_start(&g, &stage, true);
    join_inputs(parts, &both);
    hdt_assert_ok(hdt_machine_run(both.machine, HDI_PHASE_FORWARD, false));
    const double one = hdt_machine_get(parts[0].machine, name, 0);
    const double other = hdt_machine_get(parts[1].machine, name, 0);
    ck_assert_double_gt(fabs(one - other), 1e-3 * one);
    ck_assert_double_eq_tol(hdt_machine_get(both.machine, name, 0), one + other, 1e-11 * one);
    hdt_mmdit_stop(&parts[0]);
    hdt_mmdit_stop(&parts[1]);
    hdt_mmdit_stop(&both);
    hdt_mmdit_close(&g);
}
END_TEST

/* hdi_model_values_fn: of a machine's parameters, by their place in the program. */
static hd_status values_of(void *user, int parameter, int64_t first, int64_t count, float *out)
{
    const hdt_mmdit_run *run = user;
    const float *values = hdt_machine_data(run->machine, run->program->uses[parameter].tensor);
    memcpy(out, values + first, (size_t)count * sizeof *out);
    return HD_OK;
}

START_TEST(parameters_written_in_a_layout_are_the_files_tensors)
{
    hdt_mmdit g = hdt_mmdit_open(_i, NULL);
    const hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_EVALUATE);
    hdt_mmdit_run run = hdt_mmdit_start(&g, &stage, false);
    const hd_parameter_options *all[512];
    const int uses = run.program->use_count;
    ck_assert_int_lt(uses, 512);
    for (int u = 0; u < uses; u++)
        all[u] = &run.program->uses[u].options;
    hdi_model_tensor *tensors;
    int count;
    hdt_assert_ok(hdi_model_list_tensors(all, uses, &tensors, &count));
    ck_assert_int_eq(count, hdi_weights_count(g.weights));
    for (int t = 0; t < count; t++) {
        hdi_safetensors *file;
        const hdi_safetensors_tensor *stored = hdi_weights_find(g.weights, tensors[t].name, &file);
        ck_assert_msg(stored != NULL, "%s is not in the file", tensors[t].name);
        ck_assert_int_eq(stored->rank, tensors[t].rank);
        ck_assert_mem_eq(stored->dims, tensors[t].dims,
                         (size_t)stored->rank * sizeof *stored->dims);
        const size_t bytes = (size_t)stored->elements * sizeof(float);
        float *written = calloc(1, bytes), *wanted = calloc(1, bytes);
        hdt_assert_ok(hdi_model_fill_tensor(&tensors[t], all, uses, values_of, &run, written));
        hdt_assert_ok(hdi_safetensors_read_f32(file, stored, 0, stored->elements, wanted));
        ck_assert_msg(memcmp(written, wanted, bytes) == 0, "%s differs", tensors[t].name);
        free(written);
        free(wanted);
    }
    hdi_free(tensors);
    hdt_mmdit_stop(&run);
    hdt_mmdit_close(&g);
}
END_TEST

START_TEST(any_slice_of_a_block_of_a_larger_tensor_is_read)
{
    hdt_mmdit g = hdt_mmdit_open(_i, NULL);
    const hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_EVALUATE);
    hdt_mmdit_run run = hdt_mmdit_start(&g, &stage, false);
    for (int u = 0; u < run.program->use_count; u++) {
        const hdi_use *use = &run.program->uses[u];
        const int64_t elements = hd_tensor_get(run.program, use->tensor)->elements;
        const float *whole = hdt_machine_data(run.machine, use->tensor);
        for (int64_t first = 0; first < elements; first += 701) {
            float slice[1000];
            const int64_t count = elements - first < 1000 ? elements - first : 1000;
            hdt_assert_ok(hdi_model_read_parameter(g.weights, &use->options, first, count, slice));
            ck_assert_mem_eq(slice, whole + first, (size_t)count * sizeof *slice);
        }
    }
    hdt_mmdit_stop(&run);
    hdt_mmdit_close(&g);
}
END_TEST

/* hd_write_fn: keeps the beginning. */
static bool keep(void *user, const char *text)
{
    char *kept = user;
    const size_t used = strlen(kept), bytes = strlen(text), room = 1023 - used;
    memcpy(kept + used, text, bytes < room ? bytes : room);
    return true;
}

START_TEST(inspect_names_the_layout_of_a_file)
{
    static const char *const wanted[] = {
        "names of hunyuan_video, layout original\n", "names of hunyuan_video, layout diffusers\n",
        "names of open_sora_2, layout separate\n", "names of open_sora_2, layout fused\n"};
    hdt_mmdit g = hdt_mmdit_open(_i, NULL);
    char text[1024] = "";
    hdt_assert_ok(hd_inspect_run(hdi_weights_path(g.weights), keep, text));
    ck_assert_msg(strstr(text, wanted[_i]) != NULL, "%s", text);
    hdt_mmdit_close(&g);
}
END_TEST

START_TEST(weights_of_another_model_are_refused_with_all_that_is_wrong)
{
    hdt_mmdit hunyuan = hdt_mmdit_open(HDT_HUNYUAN, NULL);
    hdt_mmdit open_sora = hdt_mmdit_open(HDT_OPEN_SORA, NULL);
    hdt_assert_status(hdi_model_match(hunyuan.model, open_sora.weights), HD_ERROR_FORMAT,
                      "holds neither \"double_blocks.0.img_attn_qkv.weight\" (layout original) nor "
                      "\"transformer_blocks.0.attn.add_q_proj.weight\" (layout diffusers)");
    hd_model *larger;
    hdt_assert_ok(hd_model_create_preset("hunyuan-video-13b", &larger));
    hdt_assert_status(hdi_model_match(larger, hunyuan.weights), HD_ERROR_FORMAT,
                      "tensor \"time_in.mlp.0.weight\" is [32, 256], want [3072, 256]");
    ck_assert_ptr_nonnull(strstr(hd_last_error(), "more like these"));
    hd_model_destroy(larger);
    const char *family, *layout;
    ck_assert(hdi_model_layout_of(open_sora.weights, &family, &layout));
    ck_assert_str_eq(family, "open_sora_2");
    ck_assert_str_eq(layout, "separate");
    hdt_mmdit_close(&hunyuan);
    hdt_mmdit_close(&open_sora);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mmdit_programs");
    TCase *tests = tcase_create("mmdit_programs");
    tcase_add_test(tests, both_layouts_of_hunyuan_give_the_same_bits);
    tcase_add_loop_test(tests, a_model_cut_into_stages_has_the_bits_of_the_whole, 0, 10);
    tcase_add_loop_test(tests, recompute_gives_the_same_bits, 0, HDT_MMDITS);
    tcase_add_loop_test(tests, conditioning_all_steps_at_once_gives_each_steps_velocity, 0,
                        HDT_MMDITS);
    tcase_add_loop_test(tests, sequences_of_a_batch_do_not_see_each_other, 0, HDT_MMDITS);
    tcase_add_test(tests, four_steps_of_sampling_follow_the_reference);
    tcase_add_loop_test(tests, parameters_written_in_a_layout_are_the_files_tensors, 0, HDT_MMDITS);
    tcase_add_loop_test(tests, any_slice_of_a_block_of_a_larger_tensor_is_read, 0, HDT_MMDITS);
    tcase_add_loop_test(tests, inspect_names_the_layout_of_a_file, 0, HDT_MMDITS);
    tcase_add_test(tests, weights_of_another_model_are_refused_with_all_that_is_wrong);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
