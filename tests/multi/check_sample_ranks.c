/* ranks: 1 2 4 */
/* Sampling: the same bits on every layout and after any interruption, and stages that keep busy. */
#include <math.h>
#include <stdlib.h>

#include "tests/support/hdt_generate.h"
#include "tests/support/hdt_video.h"

enum { VIDEOS = 5 };

/* Videos of different texts and seeds; the second branch has text 3, the third text 2. */
static void make_videos(hd_sampler_video videos[VIDEOS])
{
    for (int v = 0; v < VIDEOS; v++)
        videos[v] = (hd_sampler_video){
            .text = {v % 2, 3, 2}, .seed = 5 + (uint64_t)v / 2, .number = (uint64_t)v % 3};
}

/* Ways of guidance: one to three branches, of texts of both lengths. */
static const hd_sampler_run_options ways[] = {
    {.shift = 3, .embedded = 6, .embedded_rounded = true},
    {.shift = 3, .branches = 2, .guidance = 4},
    {.shift = 3, .branches = 3, .guidance = 4, .image_guidance = 2, .ramp = true}};

static int list_layouts(hd_mesh_options out[3])
{
    int count = 0;
    const int ranks = hd_comm_size(hdt_world);
    for (int pipeline = 1; pipeline <= ranks && pipeline <= HDT_VIDEO_LAYERS; pipeline *= 2)
        out[count++] = (hd_mesh_options){.data = ranks / pipeline, .pipeline = pipeline};
    return count;
}

static hd_status sample_alone(const hdt_sampling *with, float *out)
{
    hd_comm *self = hdt_open_self();
    const hd_status status = hdt_sample(self, with, out, NULL);
    hd_comm_destroy(self);
    return status;
}

START_TEST(videos_are_equal_on_every_layout)
{
    hd_sampler_video videos[VIDEOS];
    float one[VIDEOS * HDT_VIDEO_ELEMENTS], got[VIDEOS * HDT_VIDEO_ELEMENTS];
    float condition[HDT_VIDEO_ELEMENTS];
    hd_mesh_options layouts[3];
    make_videos(videos);
    for (int i = 0; i < HDT_VIDEO_ELEMENTS; i++)
        condition[i] = (float)sin(0.3 * i);
    videos[1].condition = condition;
    hdt_sampling with = {.run = ways[_i], .videos = videos, .count = VIDEOS};
    hdt_assert_ok(sample_alone(&with, one));
    for (int v = 1; v < VIDEOS; v++)
        ck_assert_mem_ne(one, one + (ptrdiff_t)v * HDT_VIDEO_ELEMENTS,
                         HDT_VIDEO_ELEMENTS * sizeof *one);
    const int count = list_layouts(layouts);
    for (int l = 0; l < count; l++) {
        for (int in_flight = 0; in_flight < 4; in_flight++) { /* 0: the default */
            with.mesh = layouts[l];
            with.run.in_flight = in_flight;
            hdt_assert_ok(hdt_sample(hdt_world, &with, got, NULL));
            ck_assert_msg(memcmp(got, one, sizeof one) == 0,
                          "data %d x pipeline %d, %d in flight: other bits", layouts[l].data,
                          layouts[l].pipeline, in_flight);
        }
    }
}
END_TEST

START_TEST(bf16_videos_are_equal_on_every_layout)
{
    hd_sampler_video videos[VIDEOS];
    float one[VIDEOS * HDT_VIDEO_ELEMENTS], got[VIDEOS * HDT_VIDEO_ELEMENTS];
    make_videos(videos);
    hdt_sampling with = {.run = ways[1], .videos = videos, .count = VIDEOS, .dtype = HD_DTYPE_BF16};
    hdt_assert_ok(sample_alone(&with, one));
    with.mesh = hdt_deepest(hdt_world, HDT_VIDEO_LAYERS);
    hdt_assert_ok(hdt_sample(hdt_world, &with, got, NULL));
    ck_assert_mem_eq(got, one, sizeof one);
}
END_TEST

/* What a killed run has left: latents of each video after some steps. */
typedef struct kept {
    int64_t step[VIDEOS];
    float latents[VIDEOS * HDT_VIDEO_ELEMENTS];
    int64_t at[VIDEOS]; /* the step to keep */
} kept;

static hd_status keep(void *user, const hd_sampler_event *event)
{
    kept *it = user;
    if (!event->is_last_stage || event->step != it->at[event->video]) return HD_OK;
    it->step[event->video] = event->step;
    memcpy(it->latents + (ptrdiff_t)event->video * HDT_VIDEO_ELEMENTS, event->latents,
           HDT_VIDEO_ELEMENTS * sizeof(float));
    return HD_OK;
}

START_TEST(videos_taken_up_anywhere_end_as_if_never_stopped)
{
    hd_sampler_video videos[VIDEOS];
    float one[VIDEOS * HDT_VIDEO_ELEMENTS], got[VIDEOS * HDT_VIDEO_ELEMENTS];
    static kept it;
    it = (kept){.at = {1, 3, 4, 2, 0}};
    make_videos(videos);
    hdt_sampling with = {.run = ways[1], .videos = videos, .count = VIDEOS};
    hdt_assert_ok(sample_alone(&with, one));
    with.run.event = keep;
    with.run.user = &it;
    hdt_assert_ok(sample_alone(&with, got)); /* every rank keeps all */
    for (int v = 0; v < VIDEOS; v++) {
        videos[v].step = it.step[v];
        ck_assert_int_eq(videos[v].step, it.at[v]);
        if (it.step[v]) videos[v].latents = it.latents + (ptrdiff_t)v * HDT_VIDEO_ELEMENTS;
    }
    with.run = ways[1];
    with.mesh = hdt_deepest(hdt_world, HDT_VIDEO_LAYERS);
    hdt_assert_ok(hdt_sample(hdt_world, &with, got, NULL));
    ck_assert_mem_eq(got, one, sizeof one);
}
END_TEST

START_TEST(small_budgets_carry_one_pass_at_a_time_and_give_the_same_bits)
{
    hd_sampler_video videos[VIDEOS];
    float one[VIDEOS * HDT_VIDEO_ELEMENTS], got[VIDEOS * HDT_VIDEO_ELEMENTS];
    make_videos(videos);
    hdt_sampling with = {.run = ways[1], .videos = videos, .count = VIDEOS};
    with.mesh = hdt_deepest(hdt_world, HDT_VIDEO_LAYERS);
    hdt_assert_ok(hdt_sample(hdt_world, &with, one, NULL));

    hd_mesh *mesh = NULL;
    hdt_assert_ok(
        hd_mesh_create_fake(hd_comm_rank(hdt_world), hd_comm_size(hdt_world), &with.mesh, &mesh));
    hd_sampler_options options = hdt_video_options(mesh);
    hd_sampler *sampler = NULL;
    hdt_assert_ok(hd_sampler_create(&options, &sampler));
    const hd_plan *plan = hd_sampler_plan(sampler, HD_PURPOSE_DENOISE);
    const size_t needed = hd_plan_total_bytes(plan);
    const size_t travels = hd_plan_region_bytes(plan, HD_REGION_BOUNDARY);
    hd_sampler_destroy(sampler);
    options.budget = needed - travels / 2;
    hdt_assert_ok(hd_sampler_create(&options, &sampler));
    ck_assert_uint_le(hd_plan_total_bytes(hd_sampler_plan(sampler, HD_PURPOSE_DENOISE)),
                      options.budget);
    hd_sampler_destroy(sampler);
    hd_mesh_destroy(mesh);
    with.budget = needed - travels / 2;
    hdt_assert_ok(hdt_sample(hdt_world, &with, got, NULL));
    ck_assert_mem_eq(got, one, sizeof one);
}
END_TEST

/* Those in the middle, too, which no event reaches. */
START_TEST(every_rank_reads_what_is_in_use_in_both_phases)
{
    hd_sampler_video videos[VIDEOS];
    float got[VIDEOS * HDT_VIDEO_ELEMENTS];
    hdi_memory_watch memory = {0};
    make_videos(videos);
    const hdt_sampling with = {.run = ways[0],
                               .videos = videos,
                               .count = VIDEOS,
                               .mesh = hdt_deepest(hdt_world, HDT_VIDEO_LAYERS),
                               .memory = &memory};
    hdt_assert_ok(hdt_sample(hdt_world, &with, got, NULL));
    ck_assert_uint_gt(memory.most[HDI_WORK_CONDITIONS], 0);
    ck_assert_uint_gt(memory.most[HDI_WORK_STEPS], 0);
}
END_TEST

/* Each rank computes for some of the time, and all passes are somebody's. */
START_TEST(ranks_say_how_busy_they_were)
{
    hd_sampler_video videos[VIDEOS];
    float got[VIDEOS * HDT_VIDEO_ELEMENTS];
    make_videos(videos);
    const hdt_sampling with = {.run = ways[2],
                               .videos = videos,
                               .count = VIDEOS,
                               .mesh = hdt_deepest(hdt_world, HDT_VIDEO_LAYERS)};
    hd_sampler_result result = {0};
    hdt_assert_ok(hdt_sample(hdt_world, &with, got, &result));
    int64_t passes = result.passes; /* of this data line, said by each of its stages */
    hd_request request;
    hdt_assert_ok(hdt_finish(
        hdt_world, hd_comm_all_reduce(hdt_world, &passes, 1, HD_DTYPE_I64, HD_REDUCE_SUM, &request),
        &request));
    ck_assert_int_eq(passes, (int64_t)VIDEOS * HDT_VIDEO_STEPS * 3 * with.mesh.pipeline);
    ck_assert_double_gt(result.busy_seconds, 0);
    ck_assert_double_le(result.busy_seconds, result.seconds);
}
END_TEST

START_TEST(ranks_that_want_different_videos_all_stop)
{
    hd_sampler_video videos[VIDEOS];
    float got[VIDEOS * HDT_VIDEO_ELEMENTS];
    make_videos(videos);
    videos[2].seed = (uint64_t)hd_comm_rank(hdt_world);
    const hdt_sampling with = {.run = ways[0],
                               .videos = videos,
                               .count = VIDEOS,
                               .mesh = hdt_deepest(hdt_world, HDT_VIDEO_LAYERS)};
    const hd_status status = hdt_sample(hdt_world, &with, got, NULL);
    if (hd_comm_size(hdt_world) == 1)
        hdt_assert_ok(status);
    else
        hdt_assert_status(status, HD_ERROR_MISMATCH, "what to sample");
}
END_TEST

int main(int argc, char **argv)
{
    TCase *bits = tcase_create("bits");
    tcase_add_loop_test(bits, videos_are_equal_on_every_layout, 0, 3);
    tcase_add_test(bits, bf16_videos_are_equal_on_every_layout);
    tcase_add_test(bits, videos_taken_up_anywhere_end_as_if_never_stopped);
    tcase_add_test(bits, small_budgets_carry_one_pass_at_a_time_and_give_the_same_bits);
    TCase *calls = tcase_create("calls");
    tcase_add_test(calls, every_rank_reads_what_is_in_use_in_both_phases);
    tcase_add_test(calls, ranks_say_how_busy_they_were);
    tcase_add_test(calls, ranks_that_want_different_videos_all_stop);
    return hdt_main_ranks(argc, argv, "sampling", bits, calls);
}
