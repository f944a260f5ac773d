/* MMDiTs of golden files: models, weights, inputs. */
#include "tests/support/hdt_mmdit.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "models/weights.h"
#include "tests/support/hdt_safetensors.h"

/* Tolerances are those of the golden files' notes, for sinusoids whose angles are formed in fp64. */
static const struct {
    const char *file, *type;
    double tolerance, gradient_tolerance;
} files[] = {
    {"hunyuan_tiny_original", "hunyuan_video", 3e-5, 5e-5},
    {"hunyuan_tiny_diffusers", "hunyuan_video", 3e-5, 5e-5},
    {"opensora2_tiny", "open_sora_2", 4e-5, 4e-5},
    {"opensora2_fused_tiny", "open_sora_2", 4e-5, 4e-5},
};

static void *take(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)count + 1, bytes);
    ck_assert_ptr_nonnull(memory);
    return memory;
}

static bool is_hunyuan(const hdt_mmdit *g)
{
    return g->which <= HDT_HUNYUAN_DIFFUSERS;
}

/* Both files of HunyuanVideo hold the same network: diffusers' keys describe it. */
static hd_model *make_model(const hdt_mmdit *g, const char *edit)
{
    hdi_safetensors *file;
    char name[64];
    const int source = is_hunyuan(g) ? HDT_HUNYUAN_DIFFUSERS : g->which;
    snprintf(name, sizeof name, "%s.safetensors", files[source].file);
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path(name), &file));
    json_t *config = json_loads(hdi_safetensors_metadata(file, "config"), 0, NULL);
    json_object_set_new(config, "model_type", json_string(files[g->which].type));
    json_t *edits = edit ? json_loads(edit, 0, NULL) : NULL;
    if (edits) json_object_update(config, edits);
    json_decref(edits);
    char *text = json_dumps(config, 0);
    hd_model *model;
    hdt_assert_ok(hd_model_create_json(text, &model));
    free(text);
    json_decref(config);
    hdi_safetensors_close(file);
    return model;
}

hdt_mmdit hdt_mmdit_open(int which, const char *edit)
{
    hdt_mmdit g = {.which = which,
                   .tolerance = files[which].tolerance,
                   .gradient_tolerance = files[which].gradient_tolerance};
    char name[64];
    snprintf(name, sizeof name, "%s.safetensors", files[which].file);
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path(name), &g.file));
    g.model = make_model(&g, edit);
    g.weights = hdt_extract(g.file, "weights.", "");
    g.gradients = hdt_extract(g.file, "grad.", "");
    hdt_assert_ok(hd_model_match_weights(g.model, hdi_weights_path(g.weights)));
    memcpy(g.dims, hdi_safetensors_find(g.file, "in.latents")->dims + 1, sizeof g.dims);
    g.text = hdi_safetensors_find(g.file, is_hunyuan(&g) ? "in.text" : "in.txt")->dims[1];
    g.valid = g.text;
    if (is_hunyuan(&g)) {
        double *mask = hdt_values(g.file, "in.text_mask", NULL);
        g.valid = 0;
        for (int64_t i = 0; i < g.text; i++)
            g.valid += mask[i] > 0;
        free(mask);
    }
    return g;
}

void hdt_mmdit_close(hdt_mmdit *g)
{
    hd_model_destroy(g->model);
    hdi_safetensors_close(g->file);
    hdi_weights_close(g->weights);
    hdi_weights_close(g->gradients);
}

hd_stage hdt_mmdit_stage(const hdt_mmdit *g, hd_purpose purpose)
{
    return (hd_stage){.purpose = purpose,
                      .layers = hd_model_layers(g->model),
                      .first = true,
                      .last = true,
                      .sequences = 1,
                      .video = {.frames = g->dims[1],
                                .height = g->dims[2],
                                .width = g->dims[3],
                                .text = g->text,
                                .text_counts = g->valid < g->text,
                                .masked_frames = g->which == HDT_OPEN_SORA,
                                .steps = 1}};
}

static int64_t latent_elements(const hdt_mmdit *g)
{
    return g->dims[0] * g->dims[1] * g->dims[2] * g->dims[3];
}

/* Open-Sora's files pack patches of 2 x 2: [tokens, (channel, y, x)]. */
double *hdt_mmdit_latents(const hdt_mmdit *g, const char *name)
{
    int64_t count;
    double *packed = hdt_values(g->file, name, &count);
    ck_assert_int_eq(count, latent_elements(g));
    if (is_hunyuan(g)) return packed;
    double *out = take(count, sizeof *out);
    const int64_t height = g->dims[2] / 2, width = g->dims[3] / 2;
    for (int64_t i = 0; i < count; i++) {
        const int64_t x = i % g->dims[3], y = i / g->dims[3] % g->dims[2];
        const int64_t frame = i / g->dims[3] / g->dims[2] % g->dims[1];
        const int64_t channel = i / g->dims[3] / g->dims[2] / g->dims[1];
        const int64_t token = (frame * height + y / 2) * width + x / 2;
        out[i] = packed[token * 4 * g->dims[0] + channel * 4 + y % 2 * 2 + x % 2];
    }
    free(packed);
    return out;
}

bool hdt_mmdit_feed(const hdt_mmdit_run *run, const char *input, const double *values)
{
    const hd_tensor tensor = hd_tensor_find(run->program, input);
    const hd_tensor_info *info = hd_tensor_get(run->program, tensor);
    if (!info) return false;
    if (info->dtype == HD_DTYPE_I32)
        for (int64_t i = 0; i < info->elements; i++)
            ((int32_t *)hdt_machine_data(run->machine, tensor))[i] = (int32_t)values[i];
    else
        for (int64_t i = 0; i < info->elements; i++)
            hdt_machine_set(run->machine, tensor, i, values[i]);
    return true;
}

/* The mask's channel, then those of the given latents, as the golden `cond` packs them. */
static double *condition(const hdt_mmdit *g)
{
    int64_t mask, given;
    double *masks = hdt_values(g->file, "in.masks", &mask);
    double *latents = hdt_values(g->file, "in.masked_ref", &given);
    double *out = take(mask + given, sizeof *out);
    memcpy(out, masks, (size_t)mask * sizeof *out);
    memcpy(out + mask, latents, (size_t)given * sizeof *out);
    free(masks);
    free(latents);
    return out;
}

static void feed_and_free(const hdt_mmdit_run *run, const char *input, double *values)
{
    hdt_mmdit_feed(run, input, values);
    free(values);
}

/* Of one sequence. */
static void feed_golden(const hdt_mmdit *g, const hdt_mmdit_run *run)
{
    const bool hunyuan = is_hunyuan(g);
    const double count = (double)g->valid;
    double one[64], *time = hdt_values(g->file, hunyuan ? "in.timestep" : "in.timesteps", NULL);
    for (int i = 0; i < 64; i++) /* steps to condition are as many */
        one[i] = hunyuan ? time[0] / 1000 : time[0];
    hdt_mmdit_feed(run, "time", one);
    free(time);
    feed_and_free(run, "latents", hdt_values(g->file, "in.latents", NULL));
    feed_and_free(run, "target", hdt_mmdit_latents(g, "in.target"));
    feed_and_free(run, "text", hdt_values(g->file, hunyuan ? "in.text" : "in.txt", NULL));
    feed_and_free(run, "pooled", hdt_values(g->file, hunyuan ? "in.pooled" : "in.y_vec", NULL));
    hdt_mmdit_feed(run, "text_counts", &count);
    if (hdi_safetensors_find(g->file, "in.guidance")) {
        double *guidance = hdt_values(g->file, "in.guidance", NULL);
        if (!hunyuan) guidance[0] *= 1000;
        feed_and_free(run, "guidance", guidance);
    }
    if (g->which == HDT_OPEN_SORA) feed_and_free(run, "condition", condition(g));
    for (int i = 0; i < 64; i++)
        one[i] = 1;
    hdt_mmdit_feed(run, "loss_weight", one);
}

static void load(const hdt_mmdit *g, const hdt_mmdit_run *run)
{
    for (int u = 0; u < run->program->use_count; u++) {
        const hdi_use *use = &run->program->uses[u];
        const int64_t elements = hd_tensor_get(run->program, use->tensor)->elements;
        float *values = take(elements, sizeof *values);
        hdt_assert_ok(hdi_model_read_parameter(g->weights, &use->options, 0, elements, values));
        for (int64_t i = 0; i < elements; i++)
            hdt_machine_set(run->machine, use->tensor, i, (double)values[i]);
        free(values);
    }
}

/* Rows that travel in training: image, text and conditioning; to denoise without the latter. */
static int64_t boundary_rows(const hdt_mmdit *g, const hd_stage *stage)
{
    return g->dims[1] * (g->dims[2] / 2) * (g->dims[3] / 2) + stage->video.text +
           (stage->purpose != HD_PURPOSE_DENOISE);
}

hdt_mmdit_run hdt_mmdit_start(const hdt_mmdit *g, const hd_stage *stage, bool wide)
{
    hdt_mmdit_run run = {0};
    const bool training = stage->purpose == HD_PURPOSE_TRAIN;
    const int64_t dims[] = {boundary_rows(g, stage), hd_model_hidden(g->model)};
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){
            .name = "mmdit", .training = training, .exact = training, .slices = g->slices},
        &run.program));
    if (!stage->first && stage->purpose != HD_PURPOSE_CONDITION) {
        run.x = hd_input(run.program, "x", HD_DTYPE_F32, 2, dims);
        if (training) hd_input_needs_gradient(run.program, run.x);
    }
    run.result = hd_model_build(g->model, run.program, stage, run.x);
    if (training && !stage->last) run.seed = hd_input(run.program, "seed", HD_DTYPE_F32, 2, dims);
    if (training) hd_program_backward(run.program, run.result, run.seed);
    hdt_assert_ok(hd_program_finish(run.program));
    run.machine = hdt_machine_create(run.program, wide);
    load(g, &run);
    if (stage->sequences == 1) feed_golden(g, &run);
    return run;
}

void hdt_mmdit_stop(hdt_mmdit_run *run)
{
    hdt_machine_destroy(run->machine);
    hd_program_destroy(run->program);
}

/* What the loss compares: frames as rows, (channel, y, x) each. */
double *hdt_mmdit_prediction(const hdt_mmdit *g, const hdt_mmdit_run *run)
{
    double *out = take(latent_elements(g), sizeof *out);
    const int64_t area = g->dims[2] * g->dims[3];
    for (int i = 0; i < run->program->op_count; i++) {
        const hd_op *op = &run->program->ops[i]->op;
        if (strcmp(op->kind->name, "squared_error") != 0) continue;
        for (int64_t e = 0; e < latent_elements(g); e++) {
            const int64_t frame = e / area % g->dims[1], channel = e / area / g->dims[1];
            const int64_t at = (frame * g->dims[0] + channel) * area + e % area;
            out[e] = hdt_machine_get(run->machine, op->in[0], at);
        }
        return out;
    }
    ck_abort_msg("the program has no loss");
    return out;
}

double hdt_mmdit_distance(const double *seen, const double *wanted, int64_t count)
{
    double worst = 0;
    for (int64_t i = 0; i < count; i++) {
        ck_assert(isfinite(seen[i]));
        worst = fmax(worst, fabs(seen[i] - wanted[i]));
    }
    return worst;
}
