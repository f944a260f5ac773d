/* STDiT3's stages, sampling programs, planned memory, weights and configuration. */
#include <heddle/session.h>
#include <heddle/trainer.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "jobs/train/trainer.h"
#include "tests/support/hdt_stdit.h"

static void *take(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)count + 1, bytes);
    ck_assert_ptr_nonnull(memory);
    return memory;
}

static void pass_on(const hdt_stdit_trial *from, hd_tensor source, const hdt_stdit_trial *to,
                    hd_tensor target)
{
    const size_t bytes = hd_tensor_get(from->program, source)->bytes;
    ck_assert_uint_eq(bytes, hd_tensor_get(to->program, target)->bytes);
    memcpy(hdt_machine_data(to->machine, target), hdt_machine_data(from->machine, source), bytes);
}

/* 1.2 with and without given frames, and with odd sizes; 1.3 with and without given frames. */
static const hdt_stdit_scene *open_scene(int index, hdt_stdit *out)
{
    static const int scenes[] = {0, 1, 3, 0, 2};
    *out = index < 3 ? hdt_stdit_open() : hdt_stdit_open_v13();
    return &(index < 3 ? hdt_stdit_scenes : hdt_stdit_v13_scenes)[scenes[index]];
}

/* Cut behind layers 1, 2 and 3. */
START_TEST(a_model_cut_into_stages_has_the_bits_of_the_whole)
{
    hdt_stdit g;
    const hdt_stdit_scene *s = open_scene(_i / 3, &g);
    const hd_stage whole = hdt_stdit_stage(&g, s, HD_PURPOSE_TRAIN);
    hd_stage halves[] = {whole, whole};
    halves[0].layers = halves[1].first_layer = 1 + _i % 3;
    halves[1].layers = HDT_STDIT_LAYERS - halves[0].layers;
    halves[0].last = halves[1].first = false;
    hdt_stdit_trial all = hdt_stdit_start(&g, &whole, false, 0), parts[2];
    parts[0] = hdt_stdit_start(&g, &halves[0], false, 0);
    parts[1] = hdt_stdit_start(&g, &halves[1], false,
                               hd_tensor_get(parts[0].program, parts[0].result)->dims[0]);
    hdt_stdit_feed(&all, &g, s, 0, s->sequences);
    hdt_stdit_feed(&parts[0], &g, s, 0, s->sequences);
    hdt_stdit_feed(&parts[1], &g, s, 0, s->sequences);
    hdt_stdit_run(&all, HDI_PHASE_FORWARD);
    hdt_stdit_run(&all, HDI_PHASE_BACKWARD);
    hdt_stdit_run(&parts[0], HDI_PHASE_FORWARD);
    pass_on(&parts[0], parts[0].result, &parts[1], parts[1].x);
    hdt_stdit_run(&parts[1], HDI_PHASE_FORWARD);
    hdt_stdit_run(&parts[1], HDI_PHASE_BACKWARD);
    pass_on(&parts[1], hd_gradient(parts[1].program, parts[1].x), &parts[0], parts[0].seed);
    hdt_stdit_run(&parts[0], HDI_PHASE_BACKWARD);
    ck_assert_mem_eq(hdt_machine_data(parts[1].machine, parts[1].result),
                     hdt_machine_data(all.machine, all.result), 2 * sizeof(double));
    int at = 0;
    for (int i = 0; i < 2; i++) {
        for (int u = 0; u < parts[i].program->use_count; u++, at++) {
            const hdi_use *use = &parts[i].program->uses[u], *same = &all.program->uses[at];
            ck_assert_str_eq(use->name, same->name);
            ck_assert_int_eq(use->gradient.id == 0, use->options.frozen);
            if (!use->gradient.id) continue;
            ck_assert_msg(memcmp(hdt_machine_data(parts[i].machine, use->gradient),
                                 hdt_machine_data(all.machine, same->gradient),
                                 hd_tensor_get(all.program, same->gradient)->bytes) == 0,
                          "the gradient of %s is another", use->name);
        }
    }
    ck_assert_int_eq(at, all.program->use_count);
    hdt_stdit_stop(&all);
    hdt_stdit_stop(&parts[0]);
    hdt_stdit_stop(&parts[1]);
    hdt_stdit_close(&g);
}
END_TEST

/* What a stage's condition program made, into the inputs of its denoise program: row run `step`
 * where there is one for each step. */
static int hand_over(const hdt_stdit_trial *from, const hdt_stdit_trial *to, int64_t step,
                     int64_t steps)
{
    int taken = 0;
    for (int i = 1; i < to->program->tensor_count; i++) {
        const hd_tensor_info *input = hd_tensor_get(to->program, (hd_tensor){i});
        if (input->role != HD_ROLE_INPUT) continue;
        const hd_tensor made = hd_tensor_find(from->program, input->name);
        const hd_tensor_info *info = hd_tensor_get(from->program, made);
        if (!info || info->role != HD_ROLE_OUTPUT) continue;
        ck_assert_int_eq(info->dtype, input->dtype);
        const bool each = info->elements == steps * input->elements && steps > 1;
        ck_assert(each || info->elements == input->elements);
        memcpy(hdt_machine_data(to->machine, (hd_tensor){i}),
               (const char *)hdt_machine_data(from->machine, made) +
                   (each ? (size_t)step * input->bytes : 0),
               input->bytes);
        taken++;
    }
    return taken;
}

static int64_t tokens_of(const hdt_stdit_scene *s)
{
    return s->dims[0] * s->dims[1] * s->dims[2] / 4;
}

/* One step of one video, on two stages. Ends with "velocity" in *out. */
static void denoise(const hdt_stdit *g, const hdt_stdit_scene *s, int64_t sequence, int64_t steps,
                    hdt_stdit_trial *out)
{
    double *mask = hdt_values(g->file, "in.mask", NULL),
           *time = hdt_values(g->file, "in.timestep", NULL);
    double times[] = {0.9, 0.5, 0.1};
    times[steps - 1] = time[sequence] / 1000;
    hdt_stdit_trial before = {0};
    for (int half = 0; half < 2; half++) {
        hd_stage stage = hdt_stdit_stage(g, s, HD_PURPOSE_CONDITION);
        stage.sequences = 1;
        stage.first_layer = half ? 2 : 0;
        stage.layers = 2;
        stage.first = !half;
        stage.last = half;
        stage.video.steps = steps;
        stage.video.text = 0;
        for (int i = 0; i < HDT_STDIT_TEXT; i++)
            stage.video.text += mask[sequence * HDT_STDIT_TEXT + i] != 0;
        stage.video.text_counts = false;
        hdt_stdit_trial condition = hdt_stdit_start(g, &stage, false, 0);
        hdt_stdit_feed(&condition, g, s, sequence, 1);
        hdt_stdit_set(&condition, "time", times, steps);
        hdt_stdit_run(&condition, HDI_PHASE_FORWARD);
        stage.purpose = HD_PURPOSE_DENOISE;
        hdt_stdit_trial step = hdt_stdit_start(g, &stage, false, tokens_of(s));
        hdt_stdit_feed(&step, g, s, sequence, 1);
        const bool timed = s->frames_masked && hd_model_video(g->model)->frame_times;
        ck_assert_int_eq(hand_over(&condition, &step, steps - 1, steps),
                         (timed ? 2 : 1) * (half + 1) + 1);
        if (half) pass_on(&before, before.result, &step, step.x);
        hdt_stdit_run(&step, HDI_PHASE_FORWARD);
        hdt_stdit_stop(&condition);
        if (half) hdt_stdit_stop(&before);
        before = step;
    }
    *out = before;
    free(mask);
    free(time);
}

START_TEST(sampling_programs_equal_evaluation_and_the_reference)
{
    hdt_stdit g;
    const hdt_stdit_scene *s = open_scene(_i % 2 + (_i < 4 ? 0 : 3), &g);
    const int64_t sequence = _i / 2 % 2, size = HDT_STDIT_CHANNELS * 4 * tokens_of(s);
    char name[64];
    snprintf(name, sizeof name, "out64.%s", s->out);
    double *wanted = hdt_values(g.file, name, NULL);
    double *evaluated = take(size, sizeof *evaluated);
    for (int64_t steps = 1; steps <= 3; steps += 2) {
        hdt_stdit_trial t;
        denoise(&g, s, sequence, steps, &t);
        const hd_tensor velocity = hd_tensor_find(t.program, "velocity");
        double worst = 0;
        for (int64_t i = 0; i < size; i++) {
            const double seen = hdt_machine_get(t.machine, velocity, i);
            ck_assert(isfinite(seen));
            worst = fmax(worst, fabs(seen - wanted[2 * sequence * size + i]));
            if (steps == 1) evaluated[i] = seen;
            ck_assert_double_le(fabs(seen - evaluated[i]), 1e-5);
        }
        ck_assert_msg(worst <= 5e-5, "%s, %d steps: off by %g", s->out, (int)steps, worst);
        hdt_stdit_stop(&t);
    }
    free(wanted);
    free(evaluated);
    hdt_stdit_close(&g);
}
END_TEST

/* The program's own plan, where tensors share bytes and ops work in place. */
START_TEST(planned_memory_gives_the_same_bits)
{
    hdt_stdit g;
    const hdt_stdit_scene *s = open_scene(_i < 2 ? 0 : 3, &g);
    hd_stage stage = hdt_stdit_stage(&g, s, HD_PURPOSE_TRAIN);
    stage.recompute = _i % 2;
    hdt_stdit_trial t = hdt_stdit_start(&g, &stage, false, 0);
    hdt_stdit_feed(&t, &g, s, 0, 2);
    hd_context *context;
    hd_plan *plan;
    hd_session *session;
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_ok(hd_plan_add(plan, t.program, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_ok(hd_session_create(context, plan, NULL, &session));
    for (int i = 1; i < t.program->tensor_count; i++) {
        const hd_tensor tensor = {i};
        const hd_role role = hd_tensor_get(t.program, tensor)->role;
        if (role == HD_ROLE_INPUT || role == HD_ROLE_PARAMETER)
            hdt_assert_ok(hd_session_write(session, t.program, tensor, 0,
                                           hdt_machine_data(t.machine, tensor)));
    }
    for (int phase = 0; phase < 2; phase++) {
        hdt_stdit_run(&t, (hdi_phase)phase);
        hdt_assert_ok(hd_session_run(
            session, t.program,
            &(hd_session_run_options){.phase = phase ? HD_PHASE_BACKWARD : HD_PHASE_FORWARD,
                                      .last = true}));
    }
    for (int u = 0; u < t.program->use_count; u++) {
        const hdi_use *use = &t.program->uses[u];
        if (!use->gradient.id) continue;
        const size_t bytes = hd_tensor_get(t.program, use->gradient)->bytes;
        void *seen = take((int64_t)bytes, 1);
        hdt_assert_ok(hd_session_read(session, t.program, use->gradient, 0, seen));
        ck_assert_msg(memcmp(seen, hdt_machine_data(t.machine, use->gradient), bytes) == 0,
                      "the gradient of %s is another", use->name);
        free(seen);
    }
    hd_session_destroy(session);
    hd_plan_destroy(plan);
    hd_context_destroy(context);
    hdt_stdit_stop(&t);
    hdt_stdit_close(&g);
}
END_TEST

/* Noise as latents, target and text; the sequences' texts have all their rows. */
static hd_status feed_noise(void *user, const char *name, int64_t global_batch, void *out,
                            size_t bytes)
{
    const int64_t *step = user;
    const int64_t count = (int64_t)(bytes / sizeof(float));
    int32_t *ids = out;
    hdt_fill(out, count, (uint64_t)(*step * 100 + global_batch * 10) + strlen(name));
    for (int64_t i = 0; i < count && strcmp(name, "time") == 0; i++)
        ((float *)out)[i] = 0.25F + 0.5F * (float)i;
    for (int64_t i = 0; i < count && strcmp(name, "loss_weight") == 0; i++)
        ((float *)out)[i] = 1;
    for (int64_t i = 0; i < count && strcmp(name, "frame_entries") == 0; i++)
        ids[i] = (int32_t)(i % 4);
    for (int64_t i = 0; i < count && strcmp(name, "text_places") == 0; i++)
        ids[i] = (int32_t)(i % HDT_STDIT_TEXT);
    for (int64_t i = 0; i < count && strcmp(name, "text_offsets") == 0; i++)
        ids[i] = (int32_t)(i * HDT_STDIT_TEXT);
    return HD_OK;
}

typedef struct kept {
    double sums[2]; /* of the buffers' values */
    double others;
} kept;

static hd_status add_up(void *user, const hdi_trainer_part *part)
{
    kept *sums = user;
    const char *const names[] = {"y_embedder.y_embedding", "rope.freqs"};
    for (int64_t i = 0; i < part->count; i++) {
        double *sum = &sums->others;
        for (int k = 0; k < 2; k++)
            if (strcmp(part->entry->name, names[k]) == 0) sum = &sums->sums[k];
        *sum += (double)(i + 1) * (double)part->values[i];
    }
    return HD_OK;
}

START_TEST(training_learns_and_leaves_buffers_alone)
{
    hdt_stdit g;
    const hdt_stdit_scene *s = open_scene(_i ? 3 : 0, &g);
    hd_trainer_shape shape = {.sequences = 2};
    shape.video = hdt_stdit_stage(&g, s, HD_PURPOSE_TRAIN).video;
    hd_context *context;
    hd_trainer *trainer;
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(
        hd_trainer_create(&(hd_trainer_options){.build = hd_model_build,
                                                .user = g.model,
                                                .layers = HDT_STDIT_LAYERS,
                                                .backend = hd_context_backend(context),
                                                .shapes = &shape,
                                                .shape_count = 1,
                                                .adamw = {.weight_decay = 0.1F, .decay_all = true},
                                                .clip_norm = 1},
                          &trainer));
    hdt_assert_ok(hd_trainer_start(trainer, context, 1));
    kept before = {0}, after = {0};
    int64_t step = 0;
    hd_step_result first, last;
    hdt_assert_ok(hd_trainer_step(trainer, 1e-3, feed_noise, &step, &first));
    hdt_assert_ok(hdi_trainer_saved_parts(trainer, add_up, &before));
    for (int i = 0; i < 20; i++)
        hdt_assert_ok(hd_trainer_step(trainer, 1e-3, feed_noise, &step, &last));
    hdt_assert_ok(hdi_trainer_saved_parts(trainer, add_up, &after));
    ck_assert(isfinite(last.grad_norm) && !last.skipped);
    ck_assert_double_lt(last.loss, 0.9 * first.loss);
    ck_assert_double_ne(before.sums[0], 0);
    ck_assert_double_eq(before.sums[0], after.sums[0]);
    ck_assert_double_eq(before.sums[1], after.sums[1]);
    /* The frequencies of heads of 16 columns, or of 3 axes of 8, as the sum takes them. */
    const int frequencies = _i ? 4 : 8;
    double rotary = 0;
    for (int i = 0; i < frequencies; i++)
        rotary += (i + 1) * (double)(float)pow(10000, -(double)i / frequencies);
    ck_assert_double_eq(before.sums[1], rotary);
    ck_assert_double_ne(before.others, after.others);
    hd_trainer_destroy(trainer);
    hd_context_destroy(context);
    hdt_stdit_close(&g);
}
END_TEST

START_TEST(every_published_tensor_is_read)
{
    hdt_stdit g;
    const hdt_stdit_scene *s = open_scene(_i, &g);
    const hd_stage stage = hdt_stdit_stage(&g, s, HD_PURPOSE_EVALUATE);
    hdt_stdit_trial t = hdt_stdit_start(&g, &stage, false, 0);
    const hd_parameter_options *all[256];
    ck_assert_int_le(t.program->use_count, 256);
    for (int u = 0; u < t.program->use_count; u++) {
        all[u] = &t.program->uses[u].options;
        hdt_assert_ok(hdi_model_check_parameter(g.weights, all[u]));
    }
    hdi_text unused = {0};
    hdt_assert_ok(hdi_model_unused_tensors(g.weights, all, t.program->use_count, &unused));
    ck_assert_ptr_null(unused.data);
    const hd_video_model *video = hd_model_video(g.model);
    hdi_safetensors *file;
    const hdi_safetensors_tensor *null_text = hdi_weights_find(g.weights, video->null_text, &file);
    ck_assert_ptr_nonnull(null_text);
    ck_assert_int_eq(null_text->dims[0], video->text_tokens);
    ck_assert_int_eq(null_text->dims[1], video->text_columns);
    ck_assert(video->towards_data && video->text_packed && video->fps);
    ck_assert_int_eq(video->frame_times, _i < 3);
    ck_assert_int_eq(video->given_by_mask, _i >= 3);
    ck_assert_int_eq(video->condition_channels, _i < 3 ? 0 : 2 * HDT_STDIT_CHANNELS);
    hdt_stdit_stop(&t);
    hdt_stdit_close(&g);
}
END_TEST

START_TEST(published_models_have_their_numbers_of_parameters)
{
    static const struct {
        const char *published, *tiny;
        int64_t parameters, of_tiny;
    } all[] = {{"open-sora-1.2-xl", "stdit3-tiny", 1208872772, 276568},
               {"open-sora-1.3-xl", "stdit3-v13-tiny", 1209188492, 0}};
    hd_model *model, *again;
    hdt_assert_ok(hd_model_create_preset(all[_i].published, &model));
    ck_assert_int_eq(hd_model_parameters(model), all[_i].parameters);
    ck_assert_int_eq(hd_model_layers(model), 56);
    hdt_assert_ok(hd_model_create_json(hd_model_config_json(model), &again));
    ck_assert_str_eq(hd_model_config_json(again), hd_model_config_json(model));
    hd_model_destroy(again);
    hd_model_destroy(model);
    hdt_stdit g = _i ? hdt_stdit_open_v13() : hdt_stdit_open();
    hdt_assert_ok(hd_model_create_preset(all[_i].tiny, &model));
    ck_assert_str_eq(hd_model_config_json(model), hd_model_config_json(g.model));
    ck_assert_int_eq(hd_model_parameters(model), hd_model_parameters(g.model));
    if (all[_i].of_tiny) ck_assert_int_eq(hd_model_parameters(model), all[_i].of_tiny);
    hd_model_destroy(model);
    hdt_stdit_close(&g);
}
END_TEST

START_TEST(variants_that_are_not_computed_are_refused_by_name)
{
    static const struct {
        const char *keys, *wanted;
        hd_status status;
    } all[] = {
        {"\"kernel_size\": [8, 8, 4]", "want [height, width, -1]", HD_ERROR_UNSUPPORTED},
        {"\"kernel_size\": [0, 8, -1]", "want [height, width, -1]", HD_ERROR_UNSUPPORTED},
        {"\"kernel_size\": [8, 8, -1]", "want a multiple of 6", HD_ERROR_CONFIG},
        {"\"use_spatial_rope\": true", "want both or none", HD_ERROR_CONFIG},
        {"\"skip_temporal\": true", "\"skip_temporal\"", HD_ERROR_UNSUPPORTED},
        {"\"drop_path\": 0.1", "\"drop_path\" is 0.1, want 0", HD_ERROR_UNSUPPORTED},
        {"\"skip_y_embedder\": true", "\"skip_y_embedder\"", HD_ERROR_UNSUPPORTED},
        {"\"patch_size\": [1, 2]", "\"patch_size\" is a list", HD_ERROR_CONFIG},
        {"\"mlp_ratio\": 1e12", "\"mlp_ratio\"", HD_ERROR_CONFIG},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        char text[256];
        hd_model *model;
        snprintf(text, sizeof text,
                 "{\"model_type\": \"stdit3\", \"depth\": 1, \"hidden_size\": 64, "
                 "\"num_heads\": 4, %s}",
                 all[i].keys);
        hdt_assert_status(hd_model_create_json(text, &model), all[i].status, all[i].wanted);
    }
}
END_TEST

int main(void)
{
    TCase *stages = tcase_create("stages"), *shape = tcase_create("shape");
    tcase_add_loop_test(stages, a_model_cut_into_stages_has_the_bits_of_the_whole, 0, 15);
    tcase_add_loop_test(stages, sampling_programs_equal_evaluation_and_the_reference, 0, 8);
    tcase_add_loop_test(stages, planned_memory_gives_the_same_bits, 0, 4);
    tcase_add_loop_test(stages, training_learns_and_leaves_buffers_alone, 0, 2);
    tcase_add_loop_test(shape, every_published_tensor_is_read, 0, 4);
    tcase_add_loop_test(shape, published_models_have_their_numbers_of_parameters, 0, 2);
    tcase_add_test(shape, variants_that_are_not_computed_are_refused_by_name);
    Suite *suite = suite_create("stdit");
    suite_add_tcase(suite, stages);
    suite_add_tcase(suite, shape);
    return hdt_main(suite);
}
