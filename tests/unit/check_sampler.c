/* Samplers on one rank: what they ask of a model, what a run is a function of, and plain words for what
 * cannot be sampled. */
#include <math.h>
#include <stdlib.h>

#include "core/memory.h"
#include "core/random.h"
#include "jobs/sample/sampler_walk.h"
#include "tests/support/hdt_video.h"

enum { VIDEOS = 3 };

static hd_comm *self;

static void open_self(void)
{
    hdt_assert_ok(hd_comm_create_world(&(hd_comm_options){.transport = HD_TRANSPORT_SELF}, &self));
}

static void close_self(void)
{
    hd_comm_destroy(self);
}

static void make_videos(hd_sampler_video videos[VIDEOS])
{
    for (int v = 0; v < VIDEOS; v++)
        videos[v] = (hd_sampler_video){.text = {v, 3, 2}, .seed = 5, .number = (uint64_t)v};
}

static const double no_steps[HDT_VIDEO_STEPS + 1] = {1, 1, 1, 1, 1, 1};

/* Levels that do not fall leave the noise as it was. */
START_TEST(noise_is_a_function_of_seed_number_and_place)
{
    hd_sampler_video videos[VIDEOS];
    float out[VIDEOS * HDT_VIDEO_ELEMENTS];
    make_videos(videos);
    videos[2] = videos[0]; /* the same video again, in another place of the list */
    const hdt_sampling with = {.run = {.levels = no_steps}, .videos = videos, .count = VIDEOS};
    hdt_assert_ok(hdt_sample(self, &with, out, NULL));
    for (int v = 0; v < 2; v++)
        for (int i = 0; i < HDT_VIDEO_ELEMENTS; i++)
            ck_assert_float_eq(out[v * HDT_VIDEO_ELEMENTS + i],
                               hdi_random_normal(5,
                                                 hdi_random_stream("noise of videos") + (uint64_t)v,
                                                 (uint64_t)i));
    ck_assert_mem_eq(out, out + (ptrdiff_t)2 * HDT_VIDEO_ELEMENTS,
                     HDT_VIDEO_ELEMENTS * sizeof *out);
}
END_TEST

/* Equal text and noise: every further thing that a run is given must be seen in its result. */
START_TEST(everything_that_is_given_is_read)
{
    hd_sampler_video videos[VIDEOS];
    float first[HDT_VIDEO_ELEMENTS], other[HDT_VIDEO_ELEMENTS], condition[HDT_VIDEO_ELEMENTS];
    make_videos(videos);
    for (int i = 0; i < HDT_VIDEO_ELEMENTS; i++)
        condition[i] = (float)(i % 3);
    const hd_sampler_run_options base = {
        .branches = 3, .guidance = 3, .image_guidance = 2, .embedded = 6};
    hdt_sampling with = {.run = base, .videos = videos, .count = 1};
    hdt_assert_ok(hdt_sample(self, &with, first, NULL));
    for (int change = 0; change < 9; change++) {
        with.run = base;
        make_videos(videos);
        switch (change) {
        case 0: with.run.guidance = 4; break;
        case 1: with.run.image_guidance = 3; break;
        case 2: with.run.embedded = 7; break;
        case 3: with.run.shift = 2; break;
        case 4: with.run.ramp = true; break;
        case 5: videos[0].text[0] = 2; break;
        case 6: videos[0].text[1] = 1; break;
        case 7: videos[0].condition = condition; break;
        case 8: videos[0].seed = 6; break;
        default: break;
        }
        hdt_assert_ok(hdt_sample(self, &with, other, NULL));
        ck_assert_msg(memcmp(first, other, sizeof first) != 0, "change %d changes nothing", change);
    }
}
END_TEST

/* One step of 1 with velocity v: x + v and x - v, each rounded once. */
START_TEST(velocities_may_point_either_way)
{
    static const double one_step[] = {1, 0, 0, 0, 0, 0};
    hd_sampler_video videos[VIDEOS];
    float noise[HDT_VIDEO_ELEMENTS], there[HDT_VIDEO_ELEMENTS], back[HDT_VIDEO_ELEMENTS];
    make_videos(videos);
    hdt_sampling with = {.run = {.levels = no_steps}, .videos = videos, .count = 1};
    hdt_assert_ok(hdt_sample(self, &with, noise, NULL));
    with.run.levels = one_step;
    hdt_assert_ok(hdt_sample(self, &with, there, NULL));
    with.run.towards_data = true;
    hdt_assert_ok(hdt_sample(self, &with, back, NULL));
    float largest = 0;
    for (int i = 0; i < HDT_VIDEO_ELEMENTS; i++)
        largest = fmaxf(largest, fabsf(there[i]) + fabsf(back[i]));
    for (int i = 0; i < HDT_VIDEO_ELEMENTS; i++)
        ck_assert_float_eq_tol(there[i] + back[i], 2 * noise[i], largest * 0x1p-23f);
    ck_assert_mem_ne(there, back, sizeof there);
}
END_TEST

/* One step, guided by the third branch alone. */
static void third_branch(const hd_video_model *model, const float *condition, float *out)
{
    static const double one_step[] = {1, 0, 0, 0, 0, 0};
    hd_sampler_video videos[VIDEOS];
    make_videos(videos);
    videos[0].condition = condition;
    const hdt_sampling with = {
        .run = {.branches = 3, .levels = one_step}, .model = model, .videos = videos, .count = 1};
    hdt_assert_ok(hdt_sample(self, &with, out, NULL));
}

START_TEST(the_third_branch_sees_masks_at_most)
{
    enum { MASKS = HDT_VIDEO_ELEMENTS / 2 };
    float out[4][HDT_VIDEO_ELEMENTS], condition[HDT_VIDEO_ELEMENTS] = {0};
    hd_video_model by_mask = hdt_video_model;
    by_mask.condition_masks = 1;
    by_mask.given_by_mask = true;
    third_branch(&by_mask, condition, out[0]);
    for (int i = 0; i < HDT_VIDEO_ELEMENTS; i++)
        condition[i] = 1;
    third_branch(&by_mask, condition, out[1]);
    for (int i = MASKS; i < HDT_VIDEO_ELEMENTS; i++)
        condition[i] = 2;
    third_branch(&by_mask, condition, out[2]);
    third_branch(NULL, condition, out[3]);
    ck_assert_mem_ne(out[0], out[1], sizeof out[0]);
    ck_assert_mem_eq(out[1], out[2], sizeof out[0]);
    ck_assert_mem_eq(out[0], out[3], sizeof out[0]);
}
END_TEST

START_TEST(given_frames_stay_what_they_are)
{
    static const bool mask[HDT_VIDEO_FRAMES] = {false, true, false};
    hd_sampler_video videos[VIDEOS];
    float out[HDT_VIDEO_ELEMENTS], given[HDT_VIDEO_ELEMENTS];
    for (int i = 0; i < HDT_VIDEO_ELEMENTS; i++)
        given[i] = (float)i;
    make_videos(videos);
    videos[0].given = given;
    videos[0].given_frames = mask;
    const hdt_sampling with = {.videos = videos, .count = 1};
    hdt_assert_ok(hdt_sample(self, &with, out, NULL));
    const int plane = HDT_VIDEO_HEIGHT * HDT_VIDEO_WIDTH;
    for (int i = 0; i < HDT_VIDEO_ELEMENTS; i++)
        ck_assert_int_eq(out[i] == given[i], mask[i / plane % HDT_VIDEO_FRAMES]);
}
END_TEST

/* What a run of a sampler of one's own gave. */
typedef struct watched {
    uint64_t first, last; /* allocations when steps ended */
    int64_t events;
} watched;

static hd_status watch(void *user, const hd_sampler_event *event)
{
    watched *it = user;
    (void)event;
    it->last = hdi_alloc_count();
    if (it->events++ == 0) it->first = it->last;
    return HD_OK;
}

START_TEST(steps_allocate_nothing_and_stay_in_the_plan)
{
    hd_sampler_video videos[VIDEOS];
    make_videos(videos);
    hd_sampler_options options = hdt_video_options(NULL);
    options.shape.steps = 14;
    hd_context *context;
    hd_sampler *sampler;
    hd_sampler_result result;
    watched seen = {0};
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_sampler_create(&options, &sampler));
    hdt_assert_ok(hd_sampler_start(sampler, context, &(hd_sampler_weights){.seed = 1}));
    hdt_assert_ok(hd_sampler_run(
        sampler, hdt_video_texts(), HDT_VIDEO_TEXTS, videos, VIDEOS,
        &(hd_sampler_run_options){
            .branches = 2, .guidance = 2, .oscillate = true, .event = watch, .user = &seen},
        &result));
    ck_assert_uint_eq(seen.first, seen.last);
    ck_assert_int_eq(seen.events, (int64_t)VIDEOS * 14);
    /* Steps 11 and 13 rest from guidance: one pass instead of two. */
    ck_assert_int_eq(result.passes, (int64_t)VIDEOS * (2 * 14 - 2));
    const hd_plan *first = hd_sampler_plan(sampler, HD_PURPOSE_CONDITION);
    const hd_plan *second = hd_sampler_plan(sampler, HD_PURPOSE_DENOISE);
    ck_assert_uint_gt(result.condition_high_water, 0);
    ck_assert_uint_gt(result.high_water, 0);
    ck_assert_uint_le(result.condition_high_water, hd_plan_arena_bytes(first));
    ck_assert_uint_le(result.high_water, hd_plan_arena_bytes(second));
    hd_sampler_destroy(sampler);
    hd_context_destroy(context);
}
END_TEST

/* A model of one's own that wants more than there is, or gives less. */
static hd_tensor build_greedy(void *user, hd_program *program, const hd_stage *stage, hd_tensor x)
{
    const hd_tensor out = hdt_video_build(NULL, program, stage, x);
    if (stage->purpose == HD_PURPOSE_DENOISE && stage->first)
        hd_input(program, user, HD_DTYPE_F32, 1, (int64_t[]){4});
    return out;
}

static hd_tensor build_mute(void *user, hd_program *program, const hd_stage *stage, hd_tensor x)
{
    hd_stage changed = *stage;
    (void)user;
    changed.last = stage->last && stage->purpose != HD_PURPOSE_DENOISE;
    return hdt_video_build(NULL, program, &changed, x);
}

START_TEST(models_that_cannot_be_sampled_are_told)
{
    hd_sampler *sampler;
    hd_sampler_options options = hdt_video_options(NULL);
    options.build = build_greedy;
    options.user = "mood";
    hdt_assert_status(hd_sampler_create(&options, &sampler), HD_ERROR_ARGUMENT,
                      "nothing fills the input 'mood'");
    options.user = "fps";
    hdt_assert_status(hd_sampler_create(&options, &sampler), HD_ERROR_ARGUMENT,
                      "input 'fps' is F32 with 4 elements, want F32 with 1");
    options.build = build_mute;
    hdt_assert_status(hd_sampler_create(&options, &sampler), HD_ERROR_ARGUMENT,
                      "no output 'velocity'");
    const int64_t twice[] = {3, 3};
    options = hdt_video_options(NULL);
    options.texts = twice;
    hdt_assert_status(hd_sampler_create(&options, &sampler), HD_ERROR_ARGUMENT,
                      "text length 1 is 3");
    options = hdt_video_options(NULL);
    options.shape.steps = 0;
    hdt_assert_status(hd_sampler_create(&options, &sampler), HD_ERROR_ARGUMENT, "0 steps");
    options = hdt_video_options(NULL);
    options.budget = 1000;
    hdt_assert_status(hd_sampler_create(&options, &sampler), HD_ERROR_BUDGET, "conditions");
    ck_assert_ptr_null(sampler);
}
END_TEST

START_TEST(videos_that_cannot_be_sampled_are_told)
{
    hd_sampler_video videos[VIDEOS];
    float out[VIDEOS * HDT_VIDEO_ELEMENTS], bad[HDT_VIDEO_ELEMENTS] = {NAN};
    hdt_sampling with = {.videos = videos, .count = VIDEOS};
    make_videos(videos);
    videos[1].text[0] = HDT_VIDEO_TEXTS;
    hdt_assert_status(hdt_sample(self, &with, out, NULL), HD_ERROR_ARGUMENT,
                      "video 1: text of branch 0 is 4, want 0..3");
    make_videos(videos);
    videos[2].step = HDT_VIDEO_STEPS + 1;
    hdt_assert_status(hdt_sample(self, &with, out, NULL), HD_ERROR_ARGUMENT,
                      "video 2: 6 steps are done, want 0..5");
    make_videos(videos);
    videos[1].latents = bad;
    hdt_assert_status(hdt_sample(self, &with, out, NULL), HD_ERROR_ARGUMENT,
                      "video 1: its latents are not finite");
    make_videos(videos);
    with.run.branches = 4;
    hdt_assert_status(hdt_sample(self, &with, out, NULL), HD_ERROR_ARGUMENT, "4 branches");
}
END_TEST

START_TEST(texts_of_other_lengths_and_early_runs_are_told)
{
    hd_sampler_video videos[VIDEOS];
    make_videos(videos);
    static const int64_t length = 3;
    hd_sampler_options options = hdt_video_options(NULL);
    options.texts = &length;
    options.text_lengths = 1;
    hd_context *context;
    hd_sampler *sampler;
    const hd_sampler_run_options run = {0};
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_sampler_create(&options, &sampler));
    hdt_assert_status(hd_sampler_run(sampler, hdt_video_texts(), 1, videos, 1, &run, NULL),
                      HD_ERROR_ARGUMENT, "run before start");
    hdt_assert_ok(hd_sampler_start(sampler, context, &(hd_sampler_weights){0}));
    hdt_assert_status(hd_sampler_run(sampler, hdt_video_texts(), 2, videos, 1, &run, NULL),
                      HD_ERROR_ARGUMENT, "text 1 has 5 tokens");
    hdt_assert_ok(hd_sampler_run(sampler, hdt_video_texts(), 1, videos, 1, &run, NULL));
    hd_sampler_destroy(sampler);
    hd_context_destroy(context);
}
END_TEST

/* Stages together cost what one rank costs, and hold all layers once. */
START_TEST(stages_add_up_to_the_whole)
{
    hd_sampler *sampler;
    hd_sampler_options options = hdt_video_options(NULL);
    hdt_assert_ok(hd_sampler_create(&options, &sampler));
    const double whole = hd_sampler_flops(sampler, HD_PURPOSE_DENOISE, 1);
    hd_sampler_destroy(sampler);
    double sum = 0;
    int layers = 0;
    for (int r = 0; r < 4; r++) {
        hd_mesh *mesh;
        int first, count;
        hdt_assert_ok(hd_mesh_create_fake(r, 4, &(hd_mesh_options){.pipeline = 4}, &mesh));
        options = hdt_video_options(mesh);
        hdt_assert_ok(hd_sampler_create(&options, &sampler));
        sum += hd_sampler_flops(sampler, HD_PURPOSE_DENOISE, 1);
        hd_sampler_layers(sampler, &first, &count);
        ck_assert_int_eq(first, layers);
        layers += count;
        hd_sampler_destroy(sampler);
        hd_mesh_destroy(mesh);
    }
    ck_assert_double_eq(sum, whole);
    ck_assert_int_eq(layers, HDT_VIDEO_LAYERS);
}
END_TEST

/* Stages and one more video keep a pipeline busy; rounds of so many differ by one video at most. */
START_TEST(no_video_is_left_to_run_alone)
{
    const hdi_guidance one = {.branches = 1};
    ck_assert_int_eq(hdi_walk_in_flight(&one, 1, 5), 1);
    ck_assert_int_eq(hdi_walk_in_flight(&one, 2, 4), 4);
    ck_assert_int_eq(hdi_walk_in_flight(&one, 2, 0), 1);
    for (int stages = 2; stages <= 8; stages++)
        for (int videos = 1; videos <= 60; videos++) {
            const int slots = hdi_walk_in_flight(&one, stages, videos);
            const int rounds = (videos + slots - 1) / slots;
            ck_assert_int_ge(slots, videos < stages + 1 ? videos : stages + 1);
            ck_assert_msg(slots * rounds - videos < rounds, "%d stages: %d videos, %d at a time",
                          stages, videos, slots);
            ck_assert_int_le(slots, 2 * stages + 1);
        }
}
END_TEST

/* Whatever a line has to do: videos that are done, begun or new, steps that rest from guidance. */
START_TEST(passes_are_counted_before_they_are_made)
{
    enum { MANY = 5, STEPS = 20 };
    hd_sampler_video videos[MANY];
    hdi_walk_slot slots[MANY];
    for (int v = 0; v < MANY; v++)
        videos[v] = (hd_sampler_video){.step = v % 2 ? v * 4 : STEPS * (v == 2)};
    for (int trial = 0; trial < 3 * 3 * 2 * 3; trial++) {
        const int branches = 1 + trial % 3, stride = 1 + trial / 3 % 3, in_flight = 1 + trial / 18;
        hdi_walk walk = {.videos = videos,
                         .count = MANY,
                         .stride = stride,
                         .steps = STEPS,
                         .guidance = {.branches = branches,
                                      .text = 4,
                                      .image = 3,
                                      .oscillate = trial / 9 % 2,
                                      .ramp = branches == 3},
                         .slots = slots,
                         .slot_count = in_flight};
        for (int first = 0; first < stride; first++) {
            int64_t passes = 0;
            hdi_pass pass;
            hdi_walk_begin(&walk, first);
            while (hdi_walk_next(&walk, &pass))
                passes++;
            ck_assert_int_eq(hdi_walk_passes(&walk, first), passes);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sampler");
    TCase *runs = tcase_create("runs");
    tcase_add_checked_fixture(runs, open_self, close_self);
    tcase_add_test(runs, noise_is_a_function_of_seed_number_and_place);
    tcase_add_test(runs, everything_that_is_given_is_read);
    tcase_add_test(runs, velocities_may_point_either_way);
    tcase_add_test(runs, given_frames_stay_what_they_are);
    tcase_add_test(runs, the_third_branch_sees_masks_at_most);
    tcase_add_test(runs, steps_allocate_nothing_and_stay_in_the_plan);
    TCase *errors = tcase_create("errors");
    tcase_add_checked_fixture(errors, open_self, close_self);
    tcase_add_test(errors, models_that_cannot_be_sampled_are_told);
    tcase_add_test(errors, videos_that_cannot_be_sampled_are_told);
    tcase_add_test(errors, texts_of_other_lengths_and_early_runs_are_told);
    TCase *plans = tcase_create("plans");
    tcase_add_test(plans, stages_add_up_to_the_whole);
    tcase_add_test(plans, no_video_is_left_to_run_alone);
    tcase_add_test(plans, passes_are_counted_before_they_are_made);
    suite_add_tcase(suite, runs);
    suite_add_tcase(suite, errors);
    suite_add_tcase(suite, plans);
    return hdt_main(suite);
}
