/* ranks: 1 2 4, at most 4 */
/* Sampling with the golden models against the trajectories of the references' own samplers, on every
 * number of stages, and the same bits on each. */
#include <math.h>
#include <stdlib.h>

#include "tests/support/hdt_device.h"
#include "tests/support/hdt_generate.h"
#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_safetensors.h"

#include <heddle/sampler.h>

enum { MOST_STEPS = 12 };

/* A golden sampling: the request, and what the steps gave. */
typedef struct golden {
    hdt_mmdit file;
    int64_t elements, steps;
    int texts;
    hd_sampler_text text[HD_SAMPLER_BRANCHES];
    hd_sampler_video video;
    hd_sampler_run_options run;
    float *memory[16]; /* to be freed */
    int memories;
    float *seen; /* [steps][elements] */
    double levels[MOST_STEPS + 1];
} golden;

/* A tensor as fp32, freed with the golden. */
static float *keep(golden *g, double *values, int64_t count)
{
    float *out = calloc((size_t)count, sizeof *out);
    for (int64_t i = 0; i < count; i++)
        out[i] = (float)values[i];
    free(values);
    g->memory[g->memories++] = out;
    return out;
}

static float *read(golden *g, const char *name)
{
    int64_t count;
    double *values = hdt_values(g->file.file, name, &count);
    return keep(g, values, count);
}

static golden open_golden(int which, int64_t steps)
{
    golden g = {.file = hdt_mmdit_open(which, NULL), .steps = steps};
    const int64_t *dims = g.file.dims;
    g.elements = dims[0] * dims[1] * dims[2] * dims[3];
    g.seen = calloc((size_t)(steps * g.elements), sizeof *g.seen);
    return g;
}

static void close_golden(golden *g)
{
    for (int m = 0; m < g->memories; m++)
        free(g->memory[m]);
    free(g->seen);
    hdt_mmdit_close(&g->file);
}

static hd_status collect(void *user, const hd_sampler_event *event)
{
    golden *g = user;
    memcpy(g->seen + (event->step - 1) * g->elements, event->latents,
           (size_t)g->elements * sizeof(float));
    return HD_OK;
}

/* The steps with `comm`'s ranks as stages. The last stage and the first see the latents. Collective. */
static hd_status sample(golden *g, hd_comm *comm)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_sampler *sampler = NULL;
    const int64_t *dims = g->file.dims;
    hd_status status =
        hdt_open_place(comm, &(hd_mesh_options){.pipeline = hd_comm_size(comm)}, &mesh, &context);
    if (status == HD_OK)
        status = hd_sampler_create(
            &(hd_sampler_options){.build = hd_model_build,
                                  .user = g->file.model,
                                  .layers = hd_model_layers(g->file.model),
                                  .model = hd_model_video(g->file.model),
                                  .mesh = mesh,
                                  .backend = hd_context_backend(context),
                                  .shape = {.frames = dims[1],
                                            .height = dims[2],
                                            .width = dims[3],
                                            .masked_frames = g->video.condition != NULL,
                                            .steps = g->steps},
                                  .texts = &g->file.valid,
                                  .text_lengths = 1},
            &sampler);
    if (status == HD_OK)
        status = hd_sampler_start(sampler, context,
                                  &(hd_sampler_weights){.path = hdi_weights_path(g->file.weights)});
    g->run.event = collect;
    g->run.user = g;
    if (status == HD_OK)
        status = hd_sampler_run(sampler, g->text, g->texts, &g->video, 1, &g->run, NULL);
    hd_sampler_destroy(sampler);
    hdt_close_place(mesh, context);
    return status;
}

static bool is_end(void)
{
    const int rank = hd_comm_rank(hdt_world);
    return rank == 0 || rank == hd_comm_size(hdt_world) - 1;
}

/* With all ranks, then alone, which gives the same bits where there are any. Leaves the steps seen. */
static void sample_both_ways(golden *g)
{
    const size_t bytes = (size_t)(g->steps * g->elements) * sizeof(float);
    float *together = calloc(1, bytes);
    hdt_assert_ok(sample(g, hdt_world));
    memcpy(together, g->seen, bytes);
    hd_comm *self = hdt_open_self();
    const hd_status status = sample(g, self);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    if (is_end()) ck_assert_mem_eq(together, g->seen, bytes);
    free(together);
}

static double distance(const float *seen, const double *wanted, int64_t count)
{
    double most = 0;
    for (int64_t i = 0; i < count; i++)
        most = fmax(most, fabs((double)seen[i] - wanted[i]));
    return most;
}

/* Latents after each of 4 steps, shift 7, guidance 6 as the reference rounds it. */
START_TEST(hunyuan_video_takes_the_references_steps)
{
    golden g = open_golden(_i ? HDT_HUNYUAN_DIFFUSERS : HDT_HUNYUAN, 4);
    g.texts = 1;
    g.text[0] = (hd_sampler_text){
        .text = read(&g, "in.text"), .tokens = g.file.valid, .pooled = read(&g, "in.pooled")};
    g.video.latents = read(&g, "in.latents");
    g.run = (hd_sampler_run_options){.shift = 7, .embedded = 6, .embedded_rounded = true};
    sample_both_ways(&g);
    hdi_safetensors *file;
    hdt_assert_ok(
        hdi_safetensors_open(hdt_golden_path("hunyuan_tiny_diffusers.safetensors"), &file));
    int64_t count;
    double *exact = hdt_values(file, "out64.sampler", &count);
    ck_assert_int_eq(count, g.steps * g.elements);
    ck_assert_double_le(distance(g.seen, exact, count), 3e-5);
    free(exact);
    hdi_safetensors_close(file);
    close_golden(&g);
}
END_TEST

/* The condition: which frames are given, then their latents. */
static float *make_condition(golden *g)
{
    const int64_t masks = g->elements / g->file.dims[0];
    double *mask = hdt_values(g->file.file, "in.masks", NULL);
    double *frames = hdt_values(g->file.file, "in.masked_ref", NULL);
    mask = realloc(mask, (size_t)(masks + g->elements) * sizeof *mask);
    memcpy(mask + masks, frames, (size_t)g->elements * sizeof *mask);
    free(frames);
    return keep(g, mask, masks + g->elements);
}

/* 12 steps from a given frame, three branches, oscillating, image guidance along the frames. */
START_TEST(open_sora_2_takes_the_references_steps)
{
    golden g = open_golden(HDT_OPEN_SORA, MOST_STEPS);
    const hd_video_model *model = hd_model_video(g.file.model);
    float *text = read(&g, "in.sampler.txt"), *pooled = read(&g, "in.sampler.y_vec");
    g.texts = HD_SAMPLER_BRANCHES;
    for (int b = 0; b < HD_SAMPLER_BRANCHES; b++) {
        g.text[b] = (hd_sampler_text){.text = text + b * g.file.text * model->text_columns,
                                      .tokens = g.file.text,
                                      .pooled = pooled + b * model->pooled_columns};
        g.video.text[b] = b;
    }
    double *levels = hdt_values(g.file.file, "in.sampler.timesteps", NULL);
    memcpy(g.levels, levels, sizeof g.levels);
    free(levels);
    g.video.latents = keep(&g, hdt_mmdit_latents(&g.file, "in.img"), g.elements);
    g.video.condition = make_condition(&g);
    g.run = (hd_sampler_run_options){.levels = g.levels,
                                     .branches = 3,
                                     .guidance = 7.5,
                                     .image_guidance = 3,
                                     .oscillate = true,
                                     .ramp = true};
    sample_both_ways(&g);
    double *wanted = hdt_mmdit_latents(&g.file, "out64.sampler");
    ck_assert_double_le(distance(g.seen + (MOST_STEPS - 1) * g.elements, wanted, g.elements), 2e-4);
    free(wanted);
    close_golden(&g);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *trajectories = tcase_create("trajectories");
    tcase_add_loop_test(trajectories, hunyuan_video_takes_the_references_steps, 0, 2);
    tcase_add_test(trajectories, open_sora_2_takes_the_references_steps);
    return hdt_main_ranks(argc, argv, "golden samplers", trajectories);
}
