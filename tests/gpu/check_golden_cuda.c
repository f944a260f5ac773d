/* The golden models on the device of HEDDLE_DEVICE: prediction, loss and stored gradients against the
 * references' own runs, in fp32 within the tolerances of their notes, in bf16 within those of rounding. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/hdt_device.h"
#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_planned.h"
#include "tests/support/hdt_safetensors.h"
#include "tests/support/hdt_stdit.h"

static hd_context *context;

/* A golden run. */
typedef struct golden {
    const char *name, *loss_op;
    hd_model *model;
    hd_stage stage;
    const hdi_weights *weights, *gradients;
    const hd_program *inputs; /* a program of the interpreter's, fed with the golden inputs */
    const hdt_machine *machine;
    float *prediction; /* in the order of the program's; owned */
    int64_t count;
    double loss;                                          /* NAN: not stored */
    double tolerance, loss_tolerance, gradient_tolerance; /* in fp32; gradients: of their largest */
} golden;

/* How far a bf16 number may be from the fp32 one, for a magnitude of 1, after `depth` ops one upon
 * another: each rounds by about 2^-9, up or down at random, so that deviations add up as a root; of
 * the thousands of numbers compared the worst is four deviations out. Weights are rounded, too. */
static double bf16_tolerance(int depth)
{
    return 4 * ldexp(1, -9) * sqrt(depth + 1);
}

static double allowed(const hdt_planned *p, hd_tensor tensor, double fp32, double magnitude)
{
    if (p->program->dtype == HD_DTYPE_F32) return fp32;
    return magnitude * bf16_tolerance(hdt_planned_depth(p, tensor));
}

/* The worst distance and the largest number that was wanted. Once NaN, it stays. */
static void measure(const float *seen, const float *wanted, int64_t count, double divisor,
                    double *worst, double *largest)
{
    *worst = *largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const double off = fabs((double)seen[i] / divisor - (double)wanted[i]);
        if (!(off <= *worst)) *worst = off;
        *largest = fmax(*largest, fabs((double)wanted[i]));
    }
}

static void check_prediction(const golden *g, const hdt_planned *p)
{
    float *seen = hdt_planned_read(p, p->prediction);
    double worst, largest;
    ck_assert_int_eq(hd_tensor_get(p->program, p->prediction)->elements, g->count);
    measure(seen, g->prediction, g->count, 1, &worst, &largest);
    const double bound = allowed(p, p->prediction, g->tolerance, largest);
    printf("%-22s %-4s prediction off by %.2g, %.2g allowed", g->name,
           hd_dtype_name(p->program->dtype), worst, bound);
    ck_assert_msg(worst <= bound, "%s, %s: the prediction is off by %g of %g, want %g", g->name,
                  hd_dtype_name(p->program->dtype), worst, largest, bound);
    free(seen);
}

/* Returns what the loss, and so gradients, are to be divided by. */
static double check_loss(const golden *g, const hdt_planned *p)
{
    double loss[2];
    hdt_assert_ok(hd_session_read(p->session, p->program, p->result, 0, loss));
    if (isnan(g->loss)) return loss[1];
    const double off = fabs(loss[0] / loss[1] - g->loss);
    const double bound = allowed(p, p->prediction, g->loss_tolerance, fabs(g->loss));
    printf("; loss off by %.2g, %.2g allowed", off, bound);
    ck_assert_msg(off <= bound, "%s, %s: the loss is %.9g, want %.9g within %g", g->name,
                  hd_dtype_name(p->program->dtype), loss[0] / loss[1], g->loss, bound);
    return loss[1];
}

/* The part of a parameter that a golden gradient holds; returns the distance over what is allowed. */
static double check_part(const golden *g, const hdt_planned *p, const hdi_use *use, int part,
                         const float *seen, double divisor)
{
    const hdi_model_part it = hdi_model_part_of(&use->options, part);
    hd_parameter_options alone = use->options;
    alone.dims[0] = it.rows;
    if (alone.parts) {
        alone.parts = 1;
        alone.part[0] = use->options.part[part];
    }
    const int64_t count = it.rows * it.columns;
    float *wanted = calloc((size_t)count, sizeof *wanted);
    double worst, largest;
    hdt_assert_ok(hdi_model_read_parameter(g->gradients, &alone, 0, count, wanted));
    measure(seen, wanted, count, divisor, &worst, &largest);
    const double bound = allowed(p, use->gradient, g->gradient_tolerance * largest, largest);
    ck_assert_msg(worst <= bound, "%s, %s: the gradient of %s is off by %g of %g, want %g", g->name,
                  hd_dtype_name(p->program->dtype), it.name, worst, largest, bound);
    free(wanted);
    return worst / bound;
}

static bool is_repeated(const hd_program *program, int use)
{
    for (int u = 0; u < use; u++)
        if (strcmp(program->uses[u].name, program->uses[use].name) == 0) return true;
    return false;
}

static void check_gradients(const golden *g, const hdt_planned *p, double divisor)
{
    int64_t compared = 0, stored = 0;
    double worst = 0;
    for (int u = 0; u < p->program->use_count; u++) {
        const hdi_use *use = &p->program->uses[u];
        if (!use->gradient.id || is_repeated(p->program, u)) continue; /* frozen; tied */
        float *seen = hdt_planned_read(p, use->gradient);
        int64_t first = 0;
        for (int i = 0; i < hdi_model_part_count(&use->options); i++) {
            const hdi_model_part it = hdi_model_part_of(&use->options, i);
            if (hdi_weights_find(g->gradients, it.name, NULL)) {
                worst = fmax(worst, check_part(g, p, use, i, seen + first, divisor));
                compared += it.rows * it.columns;
            }
            first += it.rows * it.columns;
        }
        free(seen);
    }
    for (int i = 0; i < hdi_weights_count(g->gradients); i++)
        stored += hdi_weights_get(g->gradients, i, NULL)->elements;
    ck_assert_int_eq(compared, stored);
    printf("; worst gradient at %.0f %% of what is allowed", 100 * worst);
}

static void check(const golden *g)
{
    static const hd_dtype dtypes[] = {HD_DTYPE_F32, HD_DTYPE_BF16};
    for (int d = 0; d < 2; d++) {
        hdt_planned p =
            hdt_planned_start(context, g->model, &g->stage, dtypes[d], g->loss_op, g->weights);
        hdt_planned_feed(&p, g->inputs, g->machine);
        hdt_planned_run(&p, HD_PHASE_FORWARD);
        check_prediction(g, &p);
        const double divisor = check_loss(g, &p);
        if (g->stage.purpose == HD_PURPOSE_TRAIN) {
            hdt_planned_run(&p, HD_PHASE_BACKWARD);
            check_gradients(g, &p, divisor);
        }
        printf("\n");
        hdt_planned_stop(&p);
    }
    free(g->prediction);
}

static double value_of(const hdi_safetensors *file, const char *name)
{
    double *values = hdt_values(file, name, NULL);
    const double value = values[0];
    free(values);
    return value;
}

/* The program's rows are frames, (channel, y, x) each. */
static float *mmdit_prediction(const hdt_mmdit *m, int64_t *count)
{
    const int64_t area = m->dims[2] * m->dims[3];
    *count = m->dims[0] * m->dims[1] * area;
    double *wanted = hdt_mmdit_latents(m, "out64.x");
    float *out = calloc((size_t)*count, sizeof *out);
    for (int64_t e = 0; e < *count; e++) {
        const int64_t frame = e / area % m->dims[1], channel = e / area / m->dims[1];
        out[(frame * m->dims[0] + channel) * area + e % area] = (float)wanted[e];
    }
    free(wanted);
    return out;
}

START_TEST(mmdits_equal_the_reference)
{
    static const char *const names[] = {"hunyuan", "hunyuan, diffusers", "opensora2",
                                        "opensora2, fused"};
    hdt_mmdit m = hdt_mmdit_open(_i, NULL);
    golden g = {.name = names[_i],
                .loss_op = "squared_error",
                .model = m.model,
                .stage = hdt_mmdit_stage(&m, HD_PURPOSE_TRAIN),
                .weights = m.weights,
                .gradients = m.gradients,
                .loss = value_of(m.file, "out64.loss"),
                .tolerance = m.tolerance,
                .loss_tolerance = m.tolerance,
                .gradient_tolerance = m.gradient_tolerance};
    g.prediction = mmdit_prediction(&m, &g.count);
    hdt_mmdit_run run = hdt_mmdit_start(&m, &g.stage, false);
    g.inputs = run.program;
    g.machine = run.machine;
    check(&g);
    hdt_mmdit_stop(&run);
    hdt_mmdit_close(&m);
}
END_TEST

/* Patches: frame, y, x; in a patch y, x, channel. Places that odd sizes leave over are taken from
 * `padding`, the interpreter's. */
static float *stdit_prediction(const hdt_stdit *m, const hdt_stdit_scene *s,
                               const hdt_stdit_trial *t, int64_t *count)
{
    enum { CHANNELS = 8 };
    char name[64];
    snprintf(name, sizeof name, "out64.%s", s->out);
    double *wanted = hdt_values(m->file, name, NULL);
    hd_tensor patches = {0};
    for (int i = 0; i < t->program->op_count; i++)
        if (strcmp(t->program->ops[i]->op.kind->name, "patches_to_frames") == 0)
            patches = t->program->ops[i]->op.in[0];
    *count = hd_tensor_get(t->program, patches)->elements;
    float *out = calloc((size_t)*count, sizeof *out);
    for (int64_t i = 0; i < *count; i++)
        out[i] = (float)hdt_machine_get(t->machine, patches, i);
    const int64_t frames = s->dims[0], height = s->dims[1], width = s->dims[2];
    const int64_t across = (width + 1) / 2, places = (height + 1) / 2 * across;
    for (int64_t e = 0; e < s->sequences * CHANNELS * frames * height * width; e++) {
        const int64_t x = e % width, y = e / width % height, f = e / width / height % frames;
        const int64_t c = e / width / height / frames % CHANNELS;
        const int64_t b = e / width / height / frames / CHANNELS;
        const int64_t row = (b * frames + f) * places + y / 2 * across + x / 2;
        out[(row * 4 + y % 2 * 2 + x % 2) * CHANNELS + c] = (float)wanted[e];
    }
    free(wanted);
    return out;
}

/* 1.2's runs, then 1.3's; the first of each has gradients. */
START_TEST(stdit_equals_the_reference)
{
    const bool is_v13 = _i >= HDT_STDIT_SCENES;
    const int scene = is_v13 ? _i - HDT_STDIT_SCENES : _i;
    const hdt_stdit_scene *s = &(is_v13 ? hdt_stdit_v13_scenes : hdt_stdit_scenes)[scene];
    hdt_stdit m = is_v13 ? hdt_stdit_open_v13() : hdt_stdit_open();
    golden g = {.name = s->out,
                .loss_op = "patches_to_frames",
                .model = m.model,
                .stage = hdt_stdit_stage(&m, s, scene ? HD_PURPOSE_EVALUATE : HD_PURPOSE_TRAIN),
                .weights = m.weights,
                .gradients = m.gradients,
                .loss = scene ? NAN : value_of(m.file, "out64.loss"),
                .tolerance = 5e-5,
                .loss_tolerance = 5e-5,
                .gradient_tolerance = 4e-5};
    hdt_stdit_trial t = hdt_stdit_start(&m, &g.stage, false, 0);
    hdt_stdit_feed(&t, &m, s, 0, s->sequences);
    hdt_stdit_run(&t, HDI_PHASE_FORWARD);
    g.prediction = stdit_prediction(&m, s, &t, &g.count);
    g.inputs = t.program;
    g.machine = t.machine;
    check(&g);
    hdt_stdit_stop(&t);
    hdt_stdit_close(&m);
}
END_TEST

/* The target of a token is the next one of its sequence; the last has none. */
static void feed_tokens(const hdi_safetensors *file, int64_t tokens, const hd_program *program,
                        const hdt_machine *machine)
{
    int64_t count;
    double *ids = hdt_values(file, "in.ids", &count);
    int32_t *in = hdt_machine_data(machine, hd_tensor_find(program, "tokens"));
    int32_t *out = hdt_machine_data(machine, hd_tensor_find(program, "targets"));
    for (int64_t i = 0; i < count; i++) {
        in[i] = (int32_t)ids[i];
        out[i] = (i + 1) % tokens ? (int32_t)ids[i + 1] : -1;
    }
    free(ids);
}

static hd_model *token_model(const hdi_safetensors *file, const char *family)
{
    json_t *config = json_loads(hdi_safetensors_metadata(file, "config"), 0, NULL);
    json_object_set_new(config, "model_type", json_string(family));
    char *text = json_dumps(config, 0);
    hd_model *model;
    hdt_assert_ok(hd_model_create_json(text, &model));
    free(text);
    json_decref(config);
    return model;
}

START_TEST(token_models_equal_the_reference)
{
    const char *family = _i ? "llama" : "gpt2";
    char name[64];
    hdi_safetensors *file;
    snprintf(name, sizeof name, "%s_tiny.safetensors", family);
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path(name), &file));
    hdi_weights *weights = hdt_extract(file, "weights.", ""),
                *gradients = hdt_extract(file, "grad.", "");
    const hdi_safetensors_tensor *ids = hdi_safetensors_find(file, "in.ids");
    golden g = {.name = family,
                .loss_op = "cross_entropy",
                .model = token_model(file, family),
                .weights = weights,
                .gradients = gradients,
                .loss = value_of(file, "out64.loss"),
                .tolerance = 3e-5,
                .loss_tolerance = 5e-6,
                .gradient_tolerance = 1e-5};
    g.stage = (hd_stage){.purpose = HD_PURPOSE_TRAIN,
                         .layers = hd_model_layers(g.model),
                         .first = true,
                         .last = true,
                         .sequences = ids->dims[0],
                         .tokens = ids->dims[1]};
    double *logits = hdt_values(file, "out64.logits", &g.count);
    g.prediction = calloc((size_t)g.count, sizeof *g.prediction);
    for (int64_t i = 0; i < g.count; i++)
        g.prediction[i] = (float)logits[i];
    free(logits);
    hd_program *program;
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "inputs"}, &program));
    hd_model_build(g.model, program, &g.stage, (hd_tensor){0});
    hdt_assert_ok(hd_program_finish(program));
    hdt_machine *machine = hdt_machine_create(program, false);
    feed_tokens(file, g.stage.tokens, program, machine);
    g.inputs = program;
    g.machine = machine;
    check(&g);
    hdt_machine_destroy(machine);
    hd_program_destroy(program);
    hd_model_destroy(g.model);
    hdi_weights_close(weights);
    hdi_weights_close(gradients);
    hdi_safetensors_close(file);
}
END_TEST

int main(void)
{
    setenv("CK_FORK", "no", 1); /* a CUDA context does not survive a fork */
    if (hd_context_create(&(hd_context_options){.device = hdt_device()}, &context) != HD_OK) {
        printf("%s\n", hd_last_error());
        return EXIT_FAILURE;
    }
    Suite *suite = suite_create("golden on a device");
    TCase *cases = tcase_create("golden");
    tcase_set_timeout(cases, 120);
    tcase_add_loop_test(cases, token_models_equal_the_reference, 0, 2);
    tcase_add_loop_test(cases, mmdits_equal_the_reference, 0, HDT_MMDITS);
    tcase_add_loop_test(cases, stdit_equals_the_reference, 0,
                        HDT_STDIT_SCENES + HDT_STDIT_V13_SCENES);
    suite_add_tcase(suite, cases);
    const int result = hdt_main(suite);
    hd_context_destroy(context);
    return result;
}
