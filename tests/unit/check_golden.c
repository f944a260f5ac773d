/* Parity with the golden runs of the reference implementations: logits, loss, every gradient, greedy
 * tokens; and what must not change a bit: recompute, pipeline cuts. */
#include <heddle/model.h>
#include <heddle/session.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "models/weights.h"
#include "ops/ops.h"
#include "tests/support/hdt.h"
#include "tests/support/hdt_interpret.h"
#include "tests/support/hdt_safetensors.h"

static void *take(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)count + 1, bytes);
    ck_assert_ptr_nonnull(memory);
    return memory;
}

/* A golden file, and two files made of it: its weights and its gradients, under their own names. */
typedef struct golden {
    hd_model *model;
    hdi_safetensors *file;
    hdi_weights *weights, *gradients;
    int64_t sequences, tokens;
} golden;

static const char *const golden_names[] = {"gpt2", "llama"};

enum { GOLDENS = 2 };

static golden open_golden(int index, const char *cut)
{
    golden g = {0};
    char name[64];
    snprintf(name, sizeof name, "%s_tiny.safetensors", golden_names[index]);
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path(name), &g.file));
    json_t *config = json_loads(hdi_safetensors_metadata(g.file, "config"), 0, NULL);
    ck_assert_ptr_nonnull(config);
    json_object_set_new(config, "model_type", json_string(golden_names[index]));
    char *text = json_dumps(config, 0);
    hdt_assert_ok(hd_model_create_json(text, &g.model));
    free(text);
    json_decref(config);
    g.weights = hdt_extract(g.file, "weights.", cut);
    g.gradients = hdt_extract(g.file, "grad.", "");
    const hdi_safetensors_tensor *ids = hdi_safetensors_find(g.file, "in.ids");
    g.sequences = ids->dims[0];
    g.tokens = ids->dims[1];
    return g;
}

static void close_golden(golden *g)
{
    hd_model_destroy(g->model);
    hdi_safetensors_close(g->file);
    hdi_weights_close(g->weights);
    hdi_weights_close(g->gradients);
}

static int32_t *golden_ids(const golden *g, const char *name, int64_t *count)
{
    const hdi_safetensors_tensor *tensor = hdi_safetensors_find(g->file, name);
    int64_t *wide = take(tensor->elements, sizeof *wide);
    int32_t *ids = take(tensor->elements, sizeof *ids);
    hdt_assert_ok(hdi_safetensors_pread(g->file, tensor, 0, tensor->bytes, wide));
    for (int64_t i = 0; i < tensor->elements; i++)
        ids[i] = (int32_t)wide[i];
    free(wide);
    *count = tensor->elements;
    return ids;
}

static double *golden_doubles(const golden *g, const char *name, int64_t *count)
{
    const hdi_safetensors_tensor *tensor = hdi_safetensors_find(g->file, name);
    double *values = take(tensor->elements, sizeof *values);
    ck_assert_int_eq(tensor->dtype, HD_DTYPE_F64);
    hdt_assert_ok(hdi_safetensors_pread(g->file, tensor, 0, tensor->bytes, values));
    *count = tensor->elements;
    return values;
}

/* A planned program of a whole model with the golden weights in it. */
typedef struct machine {
    hd_program *program;
    hd_tensor result, logits;
    hd_context *context;
    hd_plan *plan;
    hd_session *session;
} machine;

static machine start(const golden *g, const hd_stage *stage)
{
    machine m = {0};
    const bool training = stage->purpose == HD_PURPOSE_TRAIN;
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "golden", .training = training},
                                    &m.program));
    m.result = hd_model_build(g->model, m.program, stage, (hd_tensor){0});
    for (int i = 0; i < m.program->op_count; i++)
        if (m.program->ops[i]->op.kind == &hdi_op_cross_entropy)
            m.logits = hd_output(m.program, m.program->ops[i]->op.in[0], "logits");
    if (training) hd_program_backward(m.program, m.result, (hd_tensor){0});
    hdt_assert_ok(hd_program_finish(m.program));
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &m.context));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &m.plan));
    hdt_assert_ok(hd_plan_add(m.plan, m.program, NULL));
    hdt_assert_ok(hd_plan_finish(m.plan));
    hdt_assert_ok(hd_session_create(m.context, m.plan, NULL, &m.session));
    for (int u = 0; u < m.program->use_count; u++) {
        const hdi_use *use = &m.program->uses[u];
        const int64_t elements = hd_tensor_get(m.program, use->tensor)->elements;
        float *values = take(elements, sizeof *values);
        hdt_assert_ok(hdi_model_read_parameter(g->weights, &use->options, 0, elements, values));
        hdt_assert_ok(hd_session_write(m.session, m.program, use->tensor, 0, values));
        free(values);
    }
    return m;
}

static void stop(machine *m)
{
    hd_session_destroy(m->session);
    hd_plan_destroy(m->plan);
    hd_context_destroy(m->context);
    hd_program_destroy(m->program);
}

static void run(machine *m, hd_phase phase)
{
    hdt_assert_ok(hd_session_run(m->session, m->program,
                                 &(hd_session_run_options){.phase = phase, .last = true}));
}

static void write_named(machine *m, const char *name, const void *values)
{
    hdt_assert_ok(
        hd_session_write(m->session, m->program, hd_tensor_find(m->program, name), 0, values));
}

static hd_stage whole(const golden *g, hd_purpose purpose)
{
    return (hd_stage){.purpose = purpose,
                      .layers = hd_model_layers(g->model),
                      .first = true,
                      .last = true,
                      .sequences = g->sequences,
                      .tokens = g->tokens};
}

/* Feed the golden ids; the target of a token is the next one, the last has none. */
static void feed(machine *m, const golden *g)
{
    int64_t count;
    int32_t *ids = golden_ids(g, "in.ids", &count);
    write_named(m, "tokens", ids);
    for (int64_t i = 0; i < count; i++)
        ids[i] = (i + 1) % g->tokens ? ids[i + 1] : -1;
    write_named(m, "targets", ids);
    free(ids);
}

START_TEST(logits_and_loss_equal_the_reference)
{
    for (int purpose = HD_PURPOSE_TRAIN; purpose <= HD_PURPOSE_EVALUATE; purpose++) {
        golden g = open_golden(_i, "");
        const hd_stage stage = whole(&g, (hd_purpose)purpose);
        machine m = start(&g, &stage);
        feed(&m, &g);
        run(&m, HD_PHASE_FORWARD);
        int64_t count, one;
        double *wanted = golden_doubles(&g, "out64.logits", &count), worst = 0, loss[2];
        double *wanted_loss = golden_doubles(&g, "out64.loss", &one);
        float *seen = take(count, sizeof *seen);
        hdt_assert_ok(hd_session_read(m.session, m.program, m.logits, 0, seen));
        hdt_assert_ok(hd_session_read(m.session, m.program, m.result, 0, loss));
        for (int64_t i = 0; i < count; i++) {
            ck_assert(isfinite(seen[i])); /* fmax passes over NaN */
            worst = fmax(worst, fabs((double)seen[i] - wanted[i]));
        }
        ck_assert_double_le(worst, 3e-5);
        ck_assert_double_eq(loss[1], (double)(g.sequences * (g.tokens - 1)));
        ck_assert_double_le(fabs(loss[0] / loss[1] - wanted_loss[0]), 5e-6);
        free(wanted);
        free(wanted_loss);
        free(seen);
        stop(&m);
        close_golden(&g);
    }
}
END_TEST

START_TEST(every_gradient_equals_the_reference)
{
    golden g = open_golden(_i, "");
    const hd_stage stage = whole(&g, HD_PURPOSE_TRAIN);
    machine m = start(&g, &stage);
    feed(&m, &g);
    run(&m, HD_PHASE_FORWARD);
    run(&m, HD_PHASE_BACKWARD);
    const double tokens = (double)(g.sequences * (g.tokens - 1));
    for (int u = 0; u < m.program->use_count; u++) {
        const hdi_use *use = &m.program->uses[u];
        const int64_t elements = hd_tensor_get(m.program, use->tensor)->elements;
        float *wanted = take(elements, sizeof *wanted), *seen = take(elements, sizeof *seen);
        double largest = 0, worst = 0;
        hdt_assert_ok(hdi_model_read_parameter(g.gradients, &use->options, 0, elements, wanted));
        hdt_assert_ok(hd_session_read(m.session, m.program, use->gradient, 0, seen));
        for (int64_t i = 0; i < elements; i++) {
            ck_assert(isfinite(seen[i])); /* fmax passes over NaN */
            largest = fmax(largest, fabs((double)wanted[i]));
            worst = fmax(worst, fabs((double)seen[i] / tokens - (double)wanted[i]));
        }
        ck_assert_msg(worst <= 1e-5 * largest, "gradient of %s is off by %g of %g", use->name,
                      worst, largest);
        free(wanted);
        free(seen);
    }
    stop(&m);
    close_golden(&g);
}
END_TEST

static int32_t largest_logit(machine *m, int64_t vocab)
{
    float *logits = take(vocab, sizeof *logits);
    hdt_assert_ok(
        hd_session_read(m->session, m->program, hd_tensor_find(m->program, "logits"), 0, logits));
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    free(logits);
    return best;
}

/* The prompt in pieces of at most four tokens, padded, then a token at a time. */
START_TEST(greedy_generation_with_a_cache_equals_the_reference)
{
    golden g = open_golden(_i, "");
    enum { PIECE = 4 };
    int64_t length, prompt;
    int32_t *wanted = golden_ids(&g, "out.generated", &length);
    free(golden_ids(&g, "in.prompt", &prompt));
    hd_stage stage = whole(&g, HD_PURPOSE_GENERATE);
    stage.sequences = 1;
    stage.tokens = PIECE;
    stage.capacity = length;
    machine m = start(&g, &stage);
    for (int32_t position = 0, count; position < length - 1; position += count) {
        int32_t piece[PIECE] = {0};
        count = position < prompt ? (int32_t)prompt - position : 1;
        if (count > PIECE) count = PIECE;
        memcpy(piece, wanted + position, (size_t)count * sizeof *piece);
        write_named(&m, "tokens", piece);
        write_named(&m, "position", &position);
        write_named(&m, "count", &count);
        run(&m, HD_PHASE_FORWARD);
        const int32_t next = position + count;
        if (next >= prompt)
            ck_assert_int_eq(largest_logit(&m, hd_model_vocab(g.model)), wanted[next]);
    }
    free(wanted);
    stop(&m);
    close_golden(&g);
}
END_TEST

/* All gradients of a training program, one after another. */
static float *all_gradients(machine *m, int64_t *count)
{
    *count = 0;
    for (int u = 0; u < m->program->use_count; u++)
        *count += hd_tensor_get(m->program, m->program->uses[u].tensor)->elements;
    float *values = take(*count, sizeof *values), *next = values;
    for (int u = 0; u < m->program->use_count; u++) {
        const hdi_use *use = &m->program->uses[u];
        hdt_assert_ok(hd_session_read(m->session, m->program, use->gradient, 0, next));
        next += hd_tensor_get(m->program, use->tensor)->elements;
    }
    return values;
}

START_TEST(recompute_gives_the_same_bits_in_less_memory)
{
    golden g = open_golden(_i, "");
    float *gradients[2];
    size_t saved[2];
    int64_t count = 0;
    for (int recompute = 0; recompute < 2; recompute++) {
        hd_stage stage = whole(&g, HD_PURPOSE_TRAIN);
        stage.recompute = recompute;
        machine m = start(&g, &stage);
        feed(&m, &g);
        run(&m, HD_PHASE_FORWARD);
        run(&m, HD_PHASE_BACKWARD);
        gradients[recompute] = all_gradients(&m, &count);
        saved[recompute] = hd_plan_region_bytes(m.plan, HD_REGION_SAVED);
        stop(&m);
    }
    ck_assert_mem_eq(gradients[0], gradients[1], (size_t)count * sizeof(float));
    ck_assert_uint_lt(saved[1], saved[0] / 2);
    free(gradients[0]);
    free(gradients[1]);
    close_golden(&g);
}
END_TEST

/* One stage of a training model in memory of its own, with the golden weights. `seed` is invalid for
 * the last stage, whose result is the loss. */
typedef struct piece {
    hd_program *program;
    hd_tensor x, result, seed;
    hdt_machine *machine;
} piece;

static piece start_piece(const golden *g, int first_layer, int layers)
{
    piece p = {0};
    hd_stage stage = whole(g, HD_PURPOSE_TRAIN);
    stage.first_layer = first_layer;
    stage.layers = layers;
    stage.first = first_layer == 0;
    stage.last = first_layer + layers == hd_model_layers(g->model);
    const int64_t dims[] = {g->sequences * g->tokens, hd_model_hidden(g->model)};
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){.name = "piece", .training = true, .exact = true}, &p.program));
    if (!stage.first) {
        p.x = hd_input(p.program, "x", HD_DTYPE_F32, 2, dims);
        hd_input_needs_gradient(p.program, p.x);
    }
    p.result = hd_model_build(g->model, p.program, &stage, p.x);
    if (!stage.last) p.seed = hd_input(p.program, "seed", HD_DTYPE_F32, 2, dims);
    hd_program_backward(p.program, p.result, p.seed);
    hdt_assert_ok(hd_program_finish(p.program));
    p.machine = hdt_machine_create(p.program, false);
    for (int u = 0; u < p.program->use_count; u++) {
        const hdi_use *use = &p.program->uses[u];
        hdt_assert_ok(hdi_model_read_parameter(g->weights, &use->options, 0,
                                               hd_tensor_get(p.program, use->tensor)->elements,
                                               hdt_machine_data(p.machine, use->tensor)));
    }
    int64_t count;
    int32_t *ids = golden_ids(g, "in.ids", &count);
    if (stage.first)
        memcpy(hdt_machine_data(p.machine, hd_tensor_find(p.program, "tokens")), ids,
               (size_t)count * sizeof *ids);
    if (stage.last)
        memcpy(hdt_machine_data(p.machine, hd_tensor_find(p.program, "targets")), ids,
               (size_t)count * sizeof *ids);
    free(ids);
    return p;
}

static void stop_piece(piece *p)
{
    hdt_machine_destroy(p->machine);
    hd_program_destroy(p->program);
}

static void pass_on(const piece *from, hd_tensor source, const piece *to, hd_tensor target)
{
    memcpy(hdt_machine_data(to->machine, target), hdt_machine_data(from->machine, source),
           hd_tensor_get(from->program, source)->bytes);
}

/* In exact mode each use of a parameter has a gradient, tied ones too: both ways list the same. */
START_TEST(a_model_cut_into_stages_has_the_bits_of_the_whole)
{
    golden g = open_golden(_i, "");
    piece all = start_piece(&g, 0, 3), parts[] = {start_piece(&g, 0, 1), start_piece(&g, 1, 2)};
    hdt_assert_ok(hdt_machine_run(all.machine, HDI_PHASE_FORWARD, false));
    hdt_assert_ok(hdt_machine_run(all.machine, HDI_PHASE_BACKWARD, false));
    hdt_assert_ok(hdt_machine_run(parts[0].machine, HDI_PHASE_FORWARD, false));
    pass_on(&parts[0], parts[0].result, &parts[1], parts[1].x);
    hdt_assert_ok(hdt_machine_run(parts[1].machine, HDI_PHASE_FORWARD, false));
    hdt_assert_ok(hdt_machine_run(parts[1].machine, HDI_PHASE_BACKWARD, false));
    pass_on(&parts[1], hd_gradient(parts[1].program, parts[1].x), &parts[0], parts[0].seed);
    hdt_assert_ok(hdt_machine_run(parts[0].machine, HDI_PHASE_BACKWARD, false));
    int at = 0;
    for (int i = 0; i < 2; i++) {
        for (int u = 0; u < parts[i].program->use_count; u++, at++) {
            const hdi_use *use = &parts[i].program->uses[u], *same = &all.program->uses[at];
            ck_assert_str_eq(use->name, same->name);
            ck_assert_mem_eq(hdt_machine_data(parts[i].machine, use->gradient),
                             hdt_machine_data(all.machine, same->gradient),
                             hd_tensor_get(all.program, same->gradient)->bytes);
        }
    }
    ck_assert_int_eq(at, all.program->use_count);
    stop_piece(&all);
    stop_piece(&parts[0]);
    stop_piece(&parts[1]);
    close_golden(&g);
}
END_TEST

START_TEST(published_gpt2_files_without_the_prefix_are_read)
{
    golden g = open_golden(0, ""), bare = open_golden(0, "transformer.");
    const hd_stage stage = whole(&g, HD_PURPOSE_EVALUATE);
    hd_program *program;
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p"}, &program));
    hd_model_build(g.model, program, &stage, (hd_tensor){0});
    const hd_parameter_options *all[256];
    ck_assert_int_lt(program->use_count, 256);
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u];
        const int64_t elements = hd_tensor_get(program, use->tensor)->elements;
        float *one = take(elements, sizeof *one), *two = take(elements, sizeof *two);
        hdt_assert_ok(hdi_model_check_parameter(bare.weights, &use->options));
        hdt_assert_ok(hdi_model_read_parameter(g.weights, &use->options, 0, elements, one));
        hdt_assert_ok(hdi_model_read_parameter(bare.weights, &use->options, 0, elements, two));
        ck_assert_mem_eq(one, two, (size_t)elements * sizeof *one);
        free(one);
        free(two);
        all[u] = &use->options;
    }
    hdi_text unused = {0};
    hdt_assert_ok(hdi_model_unused_tensors(bare.weights, all, program->use_count, &unused));
    ck_assert_ptr_null(unused.data);
    hdt_assert_ok(hdi_model_unused_tensors(bare.weights, all + 2, program->use_count - 2, &unused));
    ck_assert_str_eq(unused.data, "wpe.weight");
    hdi_text_free(&unused);
    hd_program_destroy(program);
    close_golden(&g);
    close_golden(&bare);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("golden");
    TCase *tests = tcase_create("golden");
    tcase_add_loop_test(tests, logits_and_loss_equal_the_reference, 0, GOLDENS);
    tcase_add_loop_test(tests, every_gradient_equals_the_reference, 0, GOLDENS);
    tcase_add_loop_test(tests, greedy_generation_with_a_cache_equals_the_reference, 0, GOLDENS);
    tcase_add_loop_test(tests, recompute_gives_the_same_bits_in_less_memory, 0, GOLDENS);
    tcase_add_loop_test(tests, a_model_cut_into_stages_has_the_bits_of_the_whole, 0, GOLDENS);
    tcase_add_test(tests, published_gpt2_files_without_the_prefix_are_read);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
