/* The tests' own video model. */
#include "tests/support/hdt_video.h"

#include <heddle/diffusion.h>
#include <heddle/nn.h>

#include <math.h>
#include <stdio.h>

#include "runtime/session.h"
#include "tests/support/hdt_device.h"

enum { HIDDEN = 8, HEADS = 2, PATCH = 2, PATCH_COLUMNS = HDT_VIDEO_CHANNELS * PATCH * PATCH };
enum { IMAGE_ROWS = HDT_VIDEO_FRAMES * HDT_VIDEO_HEIGHT / PATCH * HDT_VIDEO_WIDTH / PATCH };

const hd_video_model hdt_video_model = {.channels = HDT_VIDEO_CHANNELS,
                                        .patch = {1, PATCH, PATCH},
                                        .compression = {1, 1, 1},
                                        .text_columns = HDT_VIDEO_TEXT,
                                        .text_tokens = 5,
                                        .pooled_columns = HDT_VIDEO_POOLED,
                                        .condition_channels = HDT_VIDEO_CHANNELS,
                                        .guidance = true};

static const hd_patch_options patches = {.sequences = 1,
                                         .channels = HDT_VIDEO_CHANNELS,
                                         .frames = HDT_VIDEO_FRAMES,
                                         .height = HDT_VIDEO_HEIGHT,
                                         .width = HDT_VIDEO_WIDTH,
                                         .patch = {1, PATCH, PATCH}};

static hd_tensor input(hd_program *program, const char *name, int64_t rows, int64_t columns)
{
    return hd_input(program, name, HD_DTYPE_F32, columns ? 2 : 1, (int64_t[]){rows, columns});
}

static hd_tensor linear(hd_program *program, hd_tensor x, const char *name, int64_t outputs)
{
    return hd_linear(
        program, x,
        &(hd_linear_options){.name = name, .outputs = outputs, .bias = true, .std = 0.4});
}

/* The vector of each step: time, pooled text and guidance. */
static hd_tensor vectors(hd_program *program, const hd_stage *stage)
{
    const hd_sinusoid_options waves = {.columns = HIDDEN, .scale = 10, .period = 20};
    const hd_tensor time =
        hd_sinusoid(program, input(program, "time", stage->video.steps, 0), &waves);
    const hd_tensor guidance = hd_sinusoid(program, input(program, "guidance", 1, 0), &waves);
    const hd_tensor pooled = linear(
        program, hd_cast(program, input(program, "pooled", 1, HDT_VIDEO_POOLED)), "pooled", HIDDEN);
    const hd_tensor steps = hd_add_rows(program, linear(program, time, "time", HIDDEN),
                                        hd_add(program, guidance, pooled));
    return hd_silu(program, steps);
}

/* "modulation.N" [steps, 3 * hidden] of each block, and on the first stage the text's rows. */
static hd_tensor build_condition(hd_program *program, const hd_stage *stage)
{
    const hd_tensor vector = vectors(program, stage);
    for (int i = stage->first_layer; i < stage->first_layer + stage->layers; i++) {
        char name[32], layer[32];
        snprintf(name, sizeof name, "modulation.%d", i);
        snprintf(layer, sizeof layer, "block.%d.modulation", i);
        hd_output(program, linear(program, vector, layer, 3 * (int64_t)HIDDEN), name);
    }
    if (stage->first) {
        const hd_tensor text =
            hd_cast(program, input(program, "text", stage->video.text, HDT_VIDEO_TEXT));
        hd_output(program, linear(program, text, "text", HIDDEN), "text_rows");
    }
    return (hd_tensor){0};
}

static hd_tensor block(hd_program *program, const hd_stage *stage, int layer, hd_dtype dtype,
                       hd_tensor x)
{
    char name[32];
    snprintf(name, sizeof name, "modulation.%d", layer);
    const int64_t rows = IMAGE_ROWS + stage->video.text;
    const hd_modulation by = {
        .table = hd_input(program, name, dtype, 2, (int64_t[]){1, 3 * (int64_t)HIDDEN}),
        .rows_per_group = rows,
        .shift = 0,
        .scale = HIDDEN,
        .gate = 2 * (int64_t)HIDDEN};
    hd_scope_begin(program, "block.%d", layer);
    const hd_tensor normed = hd_modulated_norm(program, x, &by, 0);
    const hd_tensor seen =
        hd_attention(program, linear(program, normed, "qkv", 3 * (int64_t)HIDDEN),
                     &(hd_attention_options){.heads = HEADS, .tokens = rows});
    x = hd_gated_add(program, x, linear(program, seen, "out", HIDDEN), &by);
    hd_scope_end(program);
    return x;
}

static hd_tensor read_latents(hd_program *program, const char *name)
{
    const int64_t dims[] = {1, HDT_VIDEO_CHANNELS, HDT_VIDEO_FRAMES, HDT_VIDEO_HEIGHT,
                            HDT_VIDEO_WIDTH};
    return linear(program,
                  hd_patchify(program, hd_input(program, name, HD_DTYPE_F32, 5, dims), &patches),
                  name, HIDDEN);
}

/* `user`: the dtype of the program, or NULL for F32. */
hd_tensor hdt_video_build(void *user, hd_program *program, const hd_stage *stage, hd_tensor x)
{
    const hd_dtype dtype = user ? *(const hd_dtype *)user : HD_DTYPE_F32;
    if (stage->purpose == HD_PURPOSE_CONDITION) return build_condition(program, stage);
    if (stage->first) {
        const hd_tensor parts[] = {
            hd_add(program, read_latents(program, "latents"), read_latents(program, "condition")),
            hd_input(program, "text_rows", dtype, 2, (int64_t[]){stage->video.text, HIDDEN})};
        x = hd_join_rows(program, 1, 2, parts);
    }
    for (int i = stage->first_layer; i < stage->first_layer + stage->layers; i++)
        x = block(program, stage, i, dtype, x);
    if (!stage->last) return x;
    hd_tensor split[2];
    hd_split_rows(program, x, 1, 2, (int64_t[]){IMAGE_ROWS, stage->video.text}, split);
    const hd_tensor out = linear(program, split[0], "final", PATCH_COLUMNS);
    return hd_output(program, hd_unpatchify(program, out, &patches), "velocity");
}

hd_sampler_options hdt_video_options(const hd_mesh *mesh)
{
    static const int64_t lengths[] = {3, 5};
    return (hd_sampler_options){.build = hdt_video_build,
                                .layers = HDT_VIDEO_LAYERS,
                                .model = &hdt_video_model,
                                .mesh = mesh,
                                .shape = {.frames = HDT_VIDEO_FRAMES,
                                          .height = HDT_VIDEO_HEIGHT,
                                          .width = HDT_VIDEO_WIDTH,
                                          .steps = HDT_VIDEO_STEPS},
                                .texts = lengths,
                                .text_lengths = 2};
}

const hd_sampler_text *hdt_video_texts(void)
{
    static float text[HDT_VIDEO_TEXTS][5 * HDT_VIDEO_TEXT], pooled[HDT_VIDEO_POOLED];
    static hd_sampler_text texts[HDT_VIDEO_TEXTS];
    for (int t = 0; t < HDT_VIDEO_TEXTS; t++) {
        for (int i = 0; i < 5 * HDT_VIDEO_TEXT; i++)
            text[t][i] = (float)sin(1.7 * i + 3.1 * t);
        texts[t] = (hd_sampler_text){.text = text[t], .tokens = t % 2 ? 5 : 3};
    }
    for (int i = 0; i < HDT_VIDEO_POOLED; i++)
        pooled[i] = (float)cos(i);
    texts[0].pooled = pooled; /* the others' are zeros */
    return texts;
}

typedef struct collector {
    float *out;
} collector;

static hd_status collect(void *user, const hd_sampler_event *event)
{
    const collector *into = user;
    if (event->is_last_stage && event->step == event->steps)
        memcpy(into->out + (int64_t)event->video * HDT_VIDEO_ELEMENTS, event->latents,
               HDT_VIDEO_ELEMENTS * sizeof(float));
    return HD_OK;
}

/* Each video is on one rank, the others add zeros. */
static hd_status gather(hd_comm *comm, int count, float *out)
{
    hd_request request;
    return hdt_finish(comm,
                      hd_comm_all_reduce(comm, out, (int64_t)count * HDT_VIDEO_ELEMENTS,
                                         HD_DTYPE_F32, HD_REDUCE_SUM, &request),
                      &request);
}

static hd_status sample_on(const hd_mesh *mesh, hd_context *context, const hdt_sampling *with,
                           float *out, hd_sampler_result *result)
{
    hd_dtype dtype = with->dtype ? with->dtype : HD_DTYPE_F32;
    hd_sampler_options options = hdt_video_options(mesh);
    options.user = &dtype;
    options.dtype = dtype;
    options.backend = hd_context_backend(context);
    options.budget = with->budget;
    if (with->model) options.model = with->model;
    options.residency = with->residency;
    options.host_blocks = with->host_blocks;
    hd_sampler *sampler = NULL;
    collector into = {out};
    hd_sampler_run_options run = with->run;
    if (!run.event) {
        run.event = collect;
        run.user = &into;
    }
    hd_status status = hd_sampler_create(&options, &sampler);
    if (status == HD_OK)
        status = hd_sampler_start(sampler, context,
                                  &(hd_sampler_weights){.path = with->weights, .seed = 3});
    if (status == HD_OK)
        status = hd_sampler_run(sampler, hdt_video_texts(), HDT_VIDEO_TEXTS, with->videos,
                                with->count, &run, result);
    hd_sampler_destroy(sampler);
    return status;
}

hd_status hdt_sample(hd_comm *comm, const hdt_sampling *with, float *out, hd_sampler_result *result)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    memset(out, 0, (size_t)with->count * HDT_VIDEO_ELEMENTS * sizeof *out);
    hd_status status = hdt_open_place(comm, &with->mesh, &mesh, &context);
    if (status == HD_OK) status = sample_on(mesh, context, with, out, result);
    if (with->memory && context) *with->memory = context->memory;
    hdt_close_place(mesh, context);
    return status == HD_OK ? gather(comm, with->count, out) : status;
}
