/* ranks: 2 4, at most 4 */
/* Videos sampled by ranks that share their sequences are those of one rank. */
#include "tests/support/hdt_device.h"

#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_stdit.h"

#include <heddle/model.h>
#include <heddle/sampler.h>
#include <math.h>

/* A video of golden weights, as the rank that hears of its steps has it. */
typedef struct sampling {
    const hd_model *model;
    const char *weights;
    const int64_t *dims; /* channels, frames, height, width */
    int64_t tokens;      /* of the text */
    bool masked;         /* the last frame is given */
    float text[512], seen[4096], condition[8192];
    size_t bytes;
} sampling;

static hd_status keep_last(void *user, const hd_sampler_event *event)
{
    sampling *it = user;
    if (event->is_last_stage && event->step == event->steps)
        memcpy(it->seen, event->latents, it->bytes);
    return HD_OK;
}

static hd_status sample(sampling *it, hd_comm *comm, const hd_mesh_options *layout, int groups,
                        int slices)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_sampler *sampler = NULL;
    const int64_t *dims = it->dims;
    bool given[16] = {false};
    given[dims[1] - 1] = it->masked;
    const hd_sampler_text text = {.text = it->text, .tokens = it->tokens};
    const hd_sampler_video video = {.seed = 2, .condition = it->condition, .given_frames = given};
    const hd_sampler_run_options options = {
        .embedded = 6, .fps = 24, .event = keep_last, .user = it};
    hd_status status = hd_mesh_create(comm, layout, &mesh);
    if (status == HD_OK) status = hdt_open_context(comm, mesh, &context);
    if (status == HD_OK)
        status = hd_sampler_create(&(hd_sampler_options){.build = hd_model_build,
                                                         .user = (void *)(uintptr_t)it->model,
                                                         .layers = hd_model_layers(it->model),
                                                         .model = hd_model_video(it->model),
                                                         .mesh = mesh,
                                                         .backend = hd_context_backend(context),
                                                         .shape = {.frames = dims[1],
                                                                   .height = dims[2],
                                                                   .width = dims[3],
                                                                   .masked_frames = it->masked,
                                                                   .steps = 3},
                                                         .texts = &it->tokens,
                                                         .text_lengths = 1,
                                                         .slices = slices,
                                                         .sequence_groups = groups},
                                   &sampler);
    if (status == HD_OK)
        status = hd_sampler_start(sampler, context, &(hd_sampler_weights){.path = it->weights});
    if (status == HD_OK) status = hd_sampler_run(sampler, &text, 1, &video, 1, &options, NULL);
    hd_sampler_destroy(sampler);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    return status;
}

/* Of as many sequence ranks as there may be heads for, of pipelines of two, and in rings. */
static void compare_videos(sampling *it, int heads, bool rings, double bound)
{
    const int ranks = hd_comm_size(hdt_world);
    static float alone[sizeof it->seen / sizeof *it->seen],
        in_one[sizeof it->seen / sizeof *it->seen];
    const int64_t *dims = it->dims, elements = dims[0] * dims[1] * dims[2] * dims[3];
    const hd_video_model *model = hd_model_video(it->model);
    ck_assert_int_le(elements, (int64_t)(sizeof it->seen / sizeof *it->seen));
    ck_assert_int_le(model->condition_channels * dims[1] * dims[2] * dims[3],
                     (int64_t)(sizeof it->condition / sizeof *it->condition));
    it->bytes = (size_t)elements * sizeof *it->seen;
    hdt_fill(it->text, it->tokens * model->text_columns, 4);
    hdt_fill(it->condition, model->condition_channels * dims[1] * dims[2] * dims[3], 6);
    hd_comm *self = NULL;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    hd_status status = sample(it, self, &(hd_mesh_options){0}, 1, 1);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    memcpy(alone, it->seen, it->bytes);
    const hd_mesh_options layouts[] = {{.sequence = 2, .pipeline = ranks / 2},
                                       {.sequence = ranks},
                                       {.sequence = ranks, .ring = ranks},
                                       {.sequence = ranks, .ring = 2}};
    enum { LAYOUTS = sizeof layouts / sizeof *layouts };
    double error[LAYOUTS] = {0};
    bool differs = false; /* where heads change places in two groups */
    for (int l = 0; l < LAYOUTS && status == HD_OK; l++) {
        const int ring = layouts[l].ring ? layouts[l].ring : 1;
        if (layouts[l].sequence / ring > heads || (ring > 1 && !rings)) continue;
        const bool hears = hd_comm_rank(hdt_world) == ranks - layouts[l].sequence;
        memset(it->seen, 0, it->bytes);
        status = sample(it, hdt_world, &layouts[l], 1, 1);
        memcpy(in_one, it->seen, it->bytes);
        if (status == HD_OK) status = sample(it, hdt_world, &layouts[l], 2, 1);
        differs = differs || memcmp(in_one, it->seen, it->bytes) != 0;
        if (status == HD_OK) status = sample(it, hdt_world, &layouts[l], 2, 2);
        for (int64_t i = 0; hears && i < elements; i++)
            error[l] = fmax(error[l], fmax(fabs((double)it->seen[i] - (double)alone[i]),
                                           fabs((double)in_one[i] - (double)alone[i])));
    }
    hdt_assert_ok(status);
    ck_assert(!differs);
    for (int l = 0; l < LAYOUTS; l++)
        ck_assert_msg(error[l] <= bound, "sequence %d, ring %d: latents are off by %g, want %g",
                      layouts[l].sequence, layouts[l].ring, error[l], bound);
}

/* The golden models have two heads, or four. */
START_TEST(videos_are_those_of_one_rank)
{
    static sampling it;
    const int models[] = {HDT_HUNYUAN, HDT_OPEN_SORA};
    hdt_mmdit file = hdt_mmdit_open(models[_i], NULL);
    it = (sampling){.model = file.model,
                    .weights = hdi_weights_path(file.weights),
                    .dims = file.dims,
                    .tokens = file.valid};
    compare_videos(&it, models[_i] == HDT_HUNYUAN ? 2 : 4, true, file.tolerance);
    hdt_mmdit_close(&file);
}
END_TEST

START_TEST(videos_of_spatial_and_temporal_blocks_too)
{
    static sampling it;
    static const int64_t dims[] = {HDT_STDIT_CHANNELS, 3, 10, 10};
    hdt_stdit file = _i ? hdt_stdit_open_v13() : hdt_stdit_open();
    it = (sampling){.model = file.model,
                    .weights = hdi_weights_path(file.weights),
                    .dims = dims,
                    .tokens = HDT_STDIT_TEXT,
                    .masked = true};
    compare_videos(&it, _i ? 2 : 4, false, 5e-5);
    hdt_stdit_close(&file);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("sequence_videos");
    tcase_add_loop_test(tests, videos_are_those_of_one_rank, 0, 2);
    tcase_add_loop_test(tests, videos_of_spatial_and_temporal_blocks_too, 0, 2);
    return hdt_main_ranks(argc, argv, "sequence_videos", tests);
}
