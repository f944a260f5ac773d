/* The golden run of STDiT3 as programs in memory of their own. */
#include "tests/support/hdt_stdit.h"

#include <jansson.h>
#include <stdlib.h>

static void *take(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)count + 1, bytes);
    ck_assert_ptr_nonnull(memory);
    return memory;
}

hdt_stdit hdt_stdit_open(void)
{
    hdt_stdit g = {0};
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path("stdit3_tiny.safetensors"), &g.file));
    json_t *config = json_loads(hdi_safetensors_metadata(g.file, "config"), 0, NULL);
    ck_assert_ptr_nonnull(config);
    json_object_set_new(config, "model_type", json_string("stdit3"));
    char *text = json_dumps(config, 0);
    hdt_assert_ok(hd_model_create_json(text, &g.model));
    free(text);
    json_decref(config);
    g.weights = hdt_extract(g.file, "weights.", "");
    g.gradients = hdt_extract(g.file, "grad.", "");
    return g;
}

void hdt_stdit_close(hdt_stdit *g)
{
    hd_model_destroy(g->model);
    hdi_safetensors_close(g->file);
    hdi_weights_close(g->weights);
    hdi_weights_close(g->gradients);
}

const hdt_stdit_scene hdt_stdit_scenes[] = {
    {"x", "in.x", "in.height", "in.width", 2, {3, 6, 8}, true, true},
    {"x_no_xmask", "in.x", "in.height", "in.width", 2, {3, 6, 8}, false, true},
    {"x_no_textmask", "in.x", "in.height", "in.width", 2, {3, 6, 8}, false, false},
    {"x_odd", "in.x_odd", "in.height_odd", "in.width_odd", 1, {2, 7, 9}, false, true},
};

hd_stage hdt_stdit_stage(const hdt_stdit *g, const hdt_stdit_scene *s, hd_purpose purpose)
{
    double *height = hdt_values(g->file, s->height, NULL),
           *width = hdt_values(g->file, s->width, NULL);
    const hd_stage stage = {.purpose = purpose,
                            .layers = HDT_STDIT_LAYERS,
                            .first = true,
                            .last = true,
                            .sequences = s->sequences,
                            .video = {.frames = s->dims[0],
                                      .height = s->dims[1],
                                      .width = s->dims[2],
                                      .text = HDT_STDIT_TEXT,
                                      .text_counts = s->text_masked,
                                      .masked_frames = s->frames_masked,
                                      .pixel_height = (int64_t)height[0],
                                      .pixel_width = (int64_t)width[0]}};
    free(height);
    free(width);
    return stage;
}

static void load(const hdt_stdit *g, const hd_program *program, hdt_machine *machine)
{
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u];
        const int64_t elements = hd_tensor_get(program, use->tensor)->elements;
        float *values = take(elements, sizeof *values);
        hdt_assert_ok(hdi_model_read_parameter(g->weights, &use->options, 0, elements, values));
        for (int64_t i = 0; i < elements; i++)
            hdt_machine_set(machine, use->tensor, i, (double)values[i]);
        free(values);
    }
}

hdt_stdit_trial hdt_stdit_start(const hdt_stdit *g, const hd_stage *stage, bool wide,
                                int64_t x_rows)
{
    hdt_stdit_trial t = {0};
    const bool training = stage->purpose == HD_PURPOSE_TRAIN;
    const int64_t dims[] = {x_rows, HDT_STDIT_HIDDEN};
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){.name = "trial", .training = training, .exact = training},
        &t.program));
    if (!stage->first) t.x = hd_input(t.program, "x", HD_DTYPE_F32, 2, dims);
    if (!stage->first && training) hd_input_needs_gradient(t.program, t.x);
    t.result = hd_model_build(g->model, t.program, stage, t.x);
    if (training && !stage->last) {
        const hd_tensor_info *info = hd_tensor_get(t.program, t.result);
        if (info) t.seed = hd_input(t.program, "seed", HD_DTYPE_F32, 2, info->dims);
    }
    if (training) hd_program_backward(t.program, t.result, t.seed);
    hdt_assert_ok(hd_program_finish(t.program));
    t.machine = hdt_machine_create(t.program, wide);
    load(g, t.program, t.machine);
    return t;
}

void hdt_stdit_stop(hdt_stdit_trial *t)
{
    hdt_machine_destroy(t->machine);
    hd_program_destroy(t->program);
}

void hdt_stdit_set(const hdt_stdit_trial *t, const char *name, const double *values, int64_t count)
{
    const hd_tensor input = hd_tensor_find(t->program, name);
    if (!input.id) return;
    ck_assert_int_eq(hd_tensor_get(t->program, input)->elements, count);
    for (int64_t i = 0; i < count; i++) {
        if (hd_tensor_get(t->program, input)->dtype == HD_DTYPE_I32)
            ((int32_t *)hdt_machine_data(t->machine, input))[i] = (int32_t)values[i];
        else
            hdt_machine_set(t->machine, input, i, values[i]);
    }
}

/* Valid rows of the sequences' texts one below another, and where each begins. */
static void feed_text(const hdt_stdit_trial *t, const hdt_stdit *g, const hdt_stdit_scene *s,
                      int64_t first, int64_t sequences)
{
    double *text = hdt_values(g->file, "in.y", NULL), *mask = hdt_values(g->file, "in.mask", NULL);
    double *packed = take(sequences * HDT_STDIT_TEXT * HDT_STDIT_COLUMNS, sizeof *packed),
           offsets[3] = {0};
    int64_t rows = 0;
    for (int64_t i = 0; i < sequences; i++) {
        for (int64_t r = (first + i) * HDT_STDIT_TEXT; r < (first + i + 1) * HDT_STDIT_TEXT; r++)
            if (!s->text_masked || mask[r] != 0)
                memcpy(packed + rows++ * HDT_STDIT_COLUMNS, text + r * HDT_STDIT_COLUMNS,
                       HDT_STDIT_COLUMNS * sizeof *text);
        offsets[i + 1] = (double)rows;
    }
    const hd_tensor input = hd_tensor_find(t->program, "text");
    if (input.id) hdt_stdit_set(t, "text", packed, hd_tensor_get(t->program, input)->elements);
    hdt_stdit_set(t, "text_offsets", offsets, sequences + 1);
    free(text);
    free(mask);
    free(packed);
}

void hdt_stdit_feed(const hdt_stdit_trial *t, const hdt_stdit *g, const hdt_stdit_scene *s,
                    int64_t first, int64_t sequences)
{
    int64_t count;
    const int64_t size = HDT_STDIT_CHANNELS * s->dims[0] * s->dims[1] * s->dims[2];
    double *values = hdt_values(g->file, s->video, NULL);
    hdt_stdit_set(t, "latents", values + first * size, sequences * size);
    free(values);
    values = hdt_values(g->file, "in.target", &count);
    if (count >= (first + sequences) * size)
        hdt_stdit_set(t, "target", values + first * size, sequences * size);
    free(values);
    values = hdt_values(g->file, "in.fps", NULL);
    hdt_stdit_set(t, "fps", values + first, sequences);
    free(values);
    values = hdt_values(g->file, "in.timestep", NULL);
    for (int i = 0; i < 2; i++)
        values[i] /= 1000;
    const hd_tensor time = hd_tensor_find(t->program, "time");
    if (time.id && hd_tensor_get(t->program, time)->elements == sequences)
        hdt_stdit_set(t, "time", values + first, sequences);
    free(values);
    double *given = hdt_values(g->file, "in.x_mask", NULL), ones[6] = {1, 1, 1, 1, 1, 1},
           entries[6];
    for (int64_t i = 0; i < sequences * s->dims[0]; i++) {
        const int64_t sequence = i / s->dims[0];
        entries[i] = (double)(given[first * s->dims[0] + i] != 0 ? sequence : sequences + sequence);
    }
    hdt_stdit_set(t, "frame_entries", entries, sequences * s->dims[0]);
    hdt_stdit_set(t, "loss_weight", ones, sequences * s->dims[0]);
    free(given);
    feed_text(t, g, s, first, sequences);
}

void hdt_stdit_run(const hdt_stdit_trial *t, hdi_phase phase)
{
    hdt_assert_ok(hdt_machine_run(t->machine, phase, false));
}
