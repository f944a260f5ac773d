/* Every op's forward and backward against fp64: the forward against the reference backend, each
 * gradient against central differences of it, element by element. And: planned memory, with sharing
 * and in-place ops, gives the bits that separate memory gives. */
#include <heddle/nn.h>
#include <heddle/session.h>

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "tests/support/hdt.h"
#include "tests/support/hdt_interpret.h"

enum { SEQUENCES = 2, TOKENS = 5, ROWS = SEQUENCES * TOKENS, HIDDEN = 8, CLASSES = 11 };

static hd_tensor data(hd_program *p, const char *name, int rank, const int64_t *dims)
{
    const hd_tensor x = hd_input(p, name, HD_DTYPE_F32, rank, dims);
    hd_input_needs_gradient(p, x);
    return x;
}

static hd_tensor matrix(hd_program *p, const char *name, int64_t columns)
{
    const int64_t dims[] = {ROWS, columns};
    return data(p, name, 2, dims);
}

static hd_tensor ids(hd_program *p, const char *name)
{
    const int64_t rows = ROWS;
    return hd_input(p, name, HD_DTYPE_I32, 1, &rows);
}

static hd_tensor build_add(hd_program *p)
{
    const hd_tensor x = matrix(p, "x", HIDDEN), y = matrix(p, "y", HIDDEN);
    return hd_add(p, hd_add(p, x, y), x);
}

static hd_tensor build_linear(hd_program *p)
{
    return hd_linear(p, matrix(p, "x", HIDDEN), &(hd_linear_options){.name = "l", .outputs = 7});
}

static hd_tensor build_linear_bias(hd_program *p)
{
    const int64_t dims[] = {SEQUENCES, TOKENS, HIDDEN};
    return hd_linear(p, data(p, "x", 3, dims),
                     &(hd_linear_options){.name = "l", .outputs = 7, .bias = true});
}

static hd_tensor build_linear_parts(hd_program *p)
{
    return hd_linear(
        p, matrix(p, "x", HIDDEN),
        &(hd_linear_options){
            .name = "l", .outputs = 7, .bias = true, .parts = 2, .part = {{"a", 4}, {"b", 3}}});
}

static hd_tensor build_embedding(hd_program *p)
{
    return hd_embedding(
        p, ids(p, "ids"),
        &(hd_embedding_options){.name = "e", .entries = CLASSES, .columns = HIDDEN});
}

static hd_tensor build_positions(hd_program *p)
{
    return hd_position_embedding(
        p, matrix(p, "x", HIDDEN),
        &(hd_position_embedding_options){.name = "e", .entries = 6, .tokens = TOKENS});
}

static hd_tensor build_layer_norm(hd_program *p)
{
    return hd_layer_norm(p, matrix(p, "x", HIDDEN), &(hd_norm_options){.name = "n"});
}

static hd_tensor build_rms_norm(hd_program *p)
{
    return hd_rms_norm(p, matrix(p, "x", HIDDEN), &(hd_norm_options){.name = "n"});
}

/* The sum is used again, so that its gradient is carried into the norm's. */
static hd_tensor residual(hd_program *p, hd_norm_kind kind, bool again)
{
    hd_tensor sum;
    const hd_tensor normed = hd_residual_norm(p, matrix(p, "x", HIDDEN), matrix(p, "y", HIDDEN),
                                              &(hd_norm_options){.name = "n", .kind = kind}, &sum);
    return again ? hd_add(p, normed, sum) : normed;
}

static hd_tensor build_residual_layer_norm(hd_program *p)
{
    return residual(p, HD_NORM_LAYER, true);
}

static hd_tensor build_residual_rms_norm(hd_program *p)
{
    return residual(p, HD_NORM_RMS, true);
}

static hd_tensor build_residual_sum_unused(hd_program *p)
{
    return residual(p, HD_NORM_LAYER, false);
}

static hd_tensor build_residual_norm_unused(hd_program *p)
{
    hd_tensor sum;
    hd_residual_norm(p, matrix(p, "x", HIDDEN), matrix(p, "y", HIDDEN),
                     &(hd_norm_options){.name = "n"}, &sum);
    return hd_silu(p, sum);
}

static hd_tensor build_gelu(hd_program *p)
{
    return hd_gelu(p, matrix(p, "x", HIDDEN));
}

static hd_tensor build_gelu_tanh(hd_program *p)
{
    return hd_gelu_tanh(p, matrix(p, "x", HIDDEN));
}

static hd_tensor build_gelu_mlp(hd_program *p)
{
    const hd_linear_options up = {"up", 12, .bias = true}, down = {"down", 5, .bias = true};
    return hd_gelu_mlp(p, matrix(p, "x", HIDDEN), &up, &down);
}

static hd_tensor build_silu(hd_program *p)
{
    return hd_silu(p, matrix(p, "x", HIDDEN));
}

static hd_tensor build_swiglu(hd_program *p)
{
    return hd_swiglu(p, matrix(p, "x", HIDDEN));
}

static hd_tensor rope(hd_program *p, hd_rope_pairing pairing)
{
    return hd_rope(
        p, matrix(p, "x", 16),
        &(hd_rope_options){
            .pairing = pairing, .heads = 3, .head_dim = 4, .tokens = TOKENS, .theta = 100});
}

static hd_tensor build_rope_halves(hd_program *p)
{
    return rope(p, HD_ROPE_HALVES);
}

static hd_tensor build_rope_interleaved(hd_program *p)
{
    return rope(p, HD_ROPE_INTERLEAVED);
}

static hd_tensor build_attention_causal(hd_program *p)
{
    return hd_attention(p, matrix(p, "x", 24),
                        &(hd_attention_options){.heads = 2, .tokens = TOKENS, .causal = true});
}

static hd_tensor build_attention_full(hd_program *p)
{
    return hd_attention(p, matrix(p, "x", 24),
                        &(hd_attention_options){.heads = 2, .tokens = TOKENS, .scale = 0.7});
}

static hd_tensor build_attention_grouped(hd_program *p)
{
    return hd_attention(
        p, matrix(p, "x", 32),
        &(hd_attention_options){.heads = 4, .kv_heads = 2, .tokens = TOKENS, .causal = true});
}

static hd_tensor build_cross_entropy(hd_program *p)
{
    return hd_cross_entropy(p, matrix(p, "x", CLASSES), ids(p, "targets"));
}

static hd_tensor build_gpt_block(hd_program *p)
{
    hd_tensor x = matrix(p, "x", HIDDEN), h;
    h = hd_layer_norm(p, x, &(hd_norm_options){.name = "ln_1"});
    h = hd_linear(p, h, &(hd_linear_options){.name = "qkv", .outputs = 3 * HIDDEN, .bias = true});
    h = hd_attention(p, h, &(hd_attention_options){.heads = 2, .tokens = TOKENS, .causal = true});
    h = hd_linear(p, h, &(hd_linear_options){.name = "out", .outputs = HIDDEN, .bias = true});
    h = hd_residual_norm(p, x, h, &(hd_norm_options){.name = "ln_2"}, &x);
    h = hd_gelu(p, hd_linear(p, h, &(hd_linear_options){.name = "up", .outputs = 12}));
    h = hd_linear(p, h, &(hd_linear_options){.name = "down", .outputs = HIDDEN, .bias = true});
    return hd_add(p, x, h);
}

static hd_tensor build_llama_block(hd_program *p)
{
    hd_tensor x = matrix(p, "x", HIDDEN), h;
    h = hd_rms_norm(p, x, &(hd_norm_options){.name = "ln_1"});
    h = hd_linear(p, h, &(hd_linear_options){.name = "qkv", .outputs = 16});
    h = hd_rope(p, h, &(hd_rope_options){.heads = 3, .head_dim = 4, .tokens = TOKENS});
    h = hd_attention(
        p, h, &(hd_attention_options){.heads = 2, .kv_heads = 1, .tokens = TOKENS, .causal = true});
    h = hd_linear(p, h, &(hd_linear_options){.name = "out", .outputs = HIDDEN});
    h = hd_residual_norm(p, x, h, &(hd_norm_options){.name = "ln_2", .kind = HD_NORM_RMS}, &x);
    h = hd_swiglu(p, hd_linear(p, h, &(hd_linear_options){.name = "up", .outputs = 12}));
    h = hd_linear(p, h, &(hd_linear_options){.name = "down", .outputs = HIDDEN});
    return hd_add(p, x, h);
}

/* One parameter looked up, then used as a head: its gradient is the sum of both uses'. */
static hd_tensor build_tied(hd_program *p)
{
    hd_tensor x =
        hd_embedding(p, ids(p, "ids"),
                     &(hd_embedding_options){.name = "e", .entries = CLASSES, .columns = HIDDEN});
    x = hd_silu(p, x);
    x = hd_linear(p, x, &(hd_linear_options){.weight = "/e.weight", .outputs = CLASSES});
    return hd_cross_entropy(p, x, ids(p, "targets"));
}

static const struct {
    const char *name;
    hd_tensor (*build)(hd_program *program);
    int64_t terms; /* of the longest sum of products on the way to one gradient */
} cases[] = {
    {"add", build_add, 2},
    {"linear", build_linear, ROWS},
    {"linear with bias, three dims", build_linear_bias, ROWS},
    {"linear in parts", build_linear_parts, ROWS},
    {"embedding", build_embedding, ROWS},
    {"position embedding", build_positions, ROWS},
    {"layer norm", build_layer_norm, 3 * HIDDEN},
    {"rms norm", build_rms_norm, 3 * HIDDEN},
    {"residual layer norm", build_residual_layer_norm, 3 * HIDDEN},
    {"residual rms norm", build_residual_rms_norm, 3 * HIDDEN},
    {"residual norm, sum unused", build_residual_sum_unused, 3 * HIDDEN},
    {"residual norm, norm unused", build_residual_norm_unused, 2},
    {"gelu", build_gelu, 4},
    {"gelu tanh", build_gelu_tanh, 4},
    {"gelu between linear maps", build_gelu_mlp, 8 * HIDDEN},
    {"silu", build_silu, 4},
    {"swiglu", build_swiglu, 4},
    {"rope halves", build_rope_halves, 2},
    {"rope interleaved", build_rope_interleaved, 2},
    {"attention causal", build_attention_causal, 4 * TOKENS},
    {"attention full", build_attention_full, 4 * TOKENS},
    {"attention grouped", build_attention_grouped, 8 * TOKENS},
    {"cross entropy", build_cross_entropy, 2 * CLASSES},
    {"gpt block", build_gpt_block, 16 * HIDDEN},
    {"llama block", build_llama_block, 16 * HIDDEN},
    {"tied parameter", build_tied, 8 * HIDDEN},
};

enum { CASES = sizeof cases / sizeof cases[0] };

typedef struct subject {
    hd_program *program;
    hd_tensor y, seed; /* seed is invalid for losses */
} subject;

static subject make_subject(int index, bool exact)
{
    subject made = {0};
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){.name = cases[index].name, .training = true, .exact = exact},
        &made.program));
    made.y = cases[index].build(made.program);
    const hd_tensor_info *info = hd_tensor_get(made.program, made.y);
    if (info && info->dtype == HD_DTYPE_F32) {
        made.seed = hd_input(made.program, "seed", HD_DTYPE_F32, info->rank, info->dims);
        hd_output(made.program, made.y, "y");
    }
    hd_program_backward(made.program, made.y, made.seed);
    hdt_assert_ok(hd_program_finish(made.program));
    return made;
}

static bool is_leaf(const hd_program *program, int id)
{
    const hd_role role = program->tensors[id]->info.role;
    return role == HD_ROLE_INPUT || role == HD_ROLE_PARAMETER;
}

/* The same numbers for the same tensor everywhere; weights are around 1, as norms have them. */
static void values_of(const hd_program *program, int id, void *out)
{
    const hd_tensor_info *info = &program->tensors[id]->info;
    if (info->dtype == HD_DTYPE_I32) {
        for (int64_t i = 0; i < info->elements; i++)
            ((int32_t *)out)[i] = (int32_t)((3 * i * i + i) % CLASSES);
        if (strcmp(info->name, "targets") == 0) ((int32_t *)out)[1] = ((int32_t *)out)[4] = -1;
        return;
    }
    uint64_t seed = 7;
    for (const char *c = info->name; *c; c++)
        seed = 31 * seed + (unsigned char)*c;
    hdt_fill(out, info->elements, seed);
    for (int64_t i = 0; i < info->elements && info->role == HD_ROLE_PARAMETER; i++)
        ((float *)out)[i] = info->rank == 1 ? 1 + ((float *)out)[i] / 2 : ((float *)out)[i];
}

static void fill_machine(hdt_machine *machine, const hd_program *program)
{
    for (int i = 1; i < program->tensor_count; i++) {
        const hd_tensor_info *info = &program->tensors[i]->info;
        if (!is_leaf(program, i)) continue;
        float *values = calloc((size_t)info->elements, sizeof *values);
        ck_assert_ptr_nonnull(values);
        values_of(program, i, values);
        if (info->dtype == HD_DTYPE_I32)
            memcpy(hdt_machine_data(machine, (hd_tensor){i}), values, info->bytes);
        else
            for (int64_t k = 0; k < info->elements; k++)
                hdt_machine_set(machine, (hd_tensor){i}, k, (double)values[k]);
        free(values);
    }
}

/* The scalar that is differentiated: the loss, or the sum of seed * y. */
static double scalar(hdt_machine *machine, const subject *s)
{
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_FORWARD, false));
    if (!s->seed.id) return hdt_machine_get(machine, s->y, 0);
    double sum = 0;
    for (int64_t i = 0; i < hd_tensor_get(s->program, s->y)->elements; i++)
        sum += hdt_machine_get(machine, s->seed, i) * hdt_machine_get(machine, s->y, i);
    return sum;
}

/* The gradient of a leaf: of all uses together for a parameter; 0 if the loss does not depend on it. */
static double gradient_of(const hdt_machine *machine, const hd_program *program, int id,
                          int64_t element)
{
    const hdi_tensor *tensor = program->tensors[id];
    if (tensor->use < 0)
        return hdt_machine_get(machine, hd_gradient(program, (hd_tensor){id}), element);
    double sum = 0;
    int counted[8], count = 0;
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u];
        bool seen = strcmp(use->name, tensor->info.name) != 0 || !use->gradient.id;
        for (int i = 0; i < count; i++)
            seen = seen || counted[i] == use->gradient.id;
        if (seen) continue;
        counted[count++] = use->gradient.id;
        sum += hdt_machine_get(machine, use->gradient, element);
    }
    return sum;
}

static double difference(hdt_machine *wide, const subject *s, hd_tensor leaf, int64_t element)
{
    const double h = 1e-4, value = hdt_machine_get(wide, leaf, element);
    hdt_machine_set(wide, leaf, element, value + h);
    const double above = scalar(wide, s);
    hdt_machine_set(wide, leaf, element, value - h);
    const double below = scalar(wide, s);
    hdt_machine_set(wide, leaf, element, value);
    return (above - below) / (2 * h);
}

static bool wants_gradient(const hd_program *program, int id)
{
    const hdi_tensor *tensor = program->tensors[id];
    return is_leaf(program, id) && tensor->info.dtype == HD_DTYPE_F32 && tensor->needs_gradient;
}

/* Largest magnitude first: errors are relative to it, as every element sums like terms. */
static void compare_leaf(const subject *s, hdt_machine *wide, const hdt_machine *narrow, int id,
                         double tolerance)
{
    const hd_tensor_info *info = &s->program->tensors[id]->info;
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < info->elements; i++) {
        const double wanted = difference(wide, s, (hd_tensor){id}, i);
        const double seen = gradient_of(narrow, s->program, id, i);
        ck_assert_msg(isfinite(seen), "%s: gradient of %s has no element %" PRId64,
                      s->program->name, info->name, i);
        largest = fmax(largest, fabs(wanted));
        worst = fmax(worst, fabs(seen - wanted));
    }
    const double truncation = 1e-8; /* h^2, times derivatives near 1 */
    ck_assert_msg(worst <= tolerance * largest + truncation,
                  "%s: gradient of %s is off by %g, want at most %g of %g", s->program->name,
                  info->name, worst, tolerance, largest);
}

static void check_case(int index, bool exact)
{
    const subject s = make_subject(index, exact);
    hdt_machine *narrow = hdt_machine_create(s.program, false);
    hdt_machine *wide = hdt_machine_create(s.program, true);
    fill_machine(narrow, s.program);
    fill_machine(wide, s.program);
    const double wanted = scalar(wide, &s), seen = scalar(narrow, &s);
    const double tolerance = 4 * hdt_tolerance(HD_DTYPE_F32, cases[index].terms);
    const int64_t outputs = hd_tensor_get(s.program, s.y)->elements;
    ck_assert_msg(fabs(seen - wanted) <= tolerance * (fabs(wanted) + (double)outputs),
                  "%s: forward gives %.9g, want %.9g", cases[index].name, seen, wanted);
    hdt_assert_ok(hdt_machine_run(narrow, HDI_PHASE_BACKWARD, false));
    for (int i = 1; i < s.program->tensor_count; i++)
        if (wants_gradient(s.program, i)) compare_leaf(&s, wide, narrow, i, tolerance);
    hdt_machine_destroy(narrow);
    hdt_machine_destroy(wide);
    hd_program_destroy(s.program);
}

START_TEST(gradients_equal_differences_in_fp64)
{
    check_case(_i, false);
}
END_TEST

START_TEST(a_parameter_used_twice_has_the_sum_of_both_gradients_in_exact_mode)
{
    check_case(CASES - 1, true);
}
END_TEST

START_TEST(accumulating_adds_a_second_run_to_the_first)
{
    const subject s = make_subject(_i, false);
    hdt_machine *machine = hdt_machine_create(s.program, false);
    fill_machine(machine, s.program);
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_FORWARD, false));
    for (int run = 0; run < 2; run++) {
        hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_BACKWARD, run == 1));
        for (int u = 0; u < s.program->use_count; u++) {
            const hd_tensor gradient = s.program->uses[u].gradient;
            static double first[16][1024];
            if (!gradient.id) continue;
            const int64_t elements = hd_tensor_get(s.program, gradient)->elements;
            for (int64_t i = 0; i < elements; i++) {
                const double seen = hdt_machine_get(machine, gradient, i);
                if (run == 0) first[u][i] = seen;
                /* Sums in another order: at most a few roundings apart. */
                ck_assert_double_le(fabs(seen - (run + 1) * first[u][i]),
                                    1e-6 * (1 + fabs(first[u][i])));
            }
        }
    }
    hdt_machine_destroy(machine);
    hd_program_destroy(s.program);
}
END_TEST

START_TEST(planned_memory_gives_the_bits_of_separate_memory)
{
    const subject s = make_subject(_i, _i % 2);
    hdt_machine *machine = hdt_machine_create(s.program, false);
    fill_machine(machine, s.program);
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_FORWARD, false));
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_BACKWARD, false));
    hd_context *context;
    hd_plan *plan;
    hd_session *session;
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_ok(hd_plan_add(plan, s.program, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_ok(hd_session_create(context, plan, NULL, &session));
    for (int i = 1; i < s.program->tensor_count; i++)
        if (is_leaf(s.program, i))
            hdt_assert_ok(hd_session_write(session, s.program, (hd_tensor){i}, 0,
                                           hdt_machine_data(machine, (hd_tensor){i})));
    hdt_assert_ok(
        hd_session_run(session, s.program, &(hd_session_run_options){.phase = HD_PHASE_FORWARD}));
    hdt_assert_ok(hd_session_run(
        session, s.program, &(hd_session_run_options){.phase = HD_PHASE_BACKWARD, .last = true}));
    for (int i = 1; i < s.program->tensor_count; i++) {
        const hd_tensor_info *info = &s.program->tensors[i]->info;
        if (info->role != HD_ROLE_OUTPUT && info->role != HD_ROLE_GRADIENT) continue;
        char *seen = calloc(1, info->bytes);
        ck_assert_ptr_nonnull(seen);
        hdt_assert_ok(hd_session_read(session, s.program, (hd_tensor){i}, 0, seen));
        ck_assert_mem_eq(seen, hdt_machine_data(machine, (hd_tensor){i}), info->bytes);
        free(seen);
    }
    hd_session_destroy(session);
    hd_plan_destroy(plan);
    hd_context_destroy(context);
    hdt_machine_destroy(machine);
    hd_program_destroy(s.program);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradients");
    TCase *tests = tcase_create("gradients");
    tcase_add_loop_test(tests, gradients_equal_differences_in_fp64, 0, CASES);
    tcase_add_test(tests, a_parameter_used_twice_has_the_sum_of_both_gradients_in_exact_mode);
    tcase_add_loop_test(tests, accumulating_adds_a_second_run_to_the_first, 0, CASES);
    tcase_add_loop_test(tests, planned_memory_gives_the_bits_of_separate_memory, 0, CASES);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
