/* MLPs in slices of rows while training: the bits of all rows at once but for their weights' gradients, which
 * are sums over slices; and never more of what lies within than a slice has. */
#include <math.h>
#include <stdlib.h>

#include "nn/nn.h"
#include "parallel/activations.h"
#include "tests/support/hdt_planned.h"
#include "tests/support/hdt_program.h"

enum { HIDDEN = 24, INNER = 70, MOST_ROWS = 450, MOST = MOST_ROWS * HIDDEN };

/* What is compared: bits of the first ones, of the others nearness. */
enum { OUT, X, SCALE, SHIFT, SAME, UP = SAME, UP_BIAS, DOWN, DOWN_BIAS, RESULTS };
static const char *const names[RESULTS] = {"out",       "x",       "norm.weight", "norm.bias",
                                           "up.weight", "up.bias", "down.weight", "down.bias"};

typedef struct trial {
    hdi_mlp_kind kind;
    hd_dtype dtype, gradients;
    int64_t rows;
    int slices;
    bool again;  /* the block is computed again in the backward */
    bool leaves; /* what it saves waits on the host */
} trial;

typedef struct outcome {
    float values[RESULTS][MOST];
    int64_t counts[RESULTS];
    size_t saved, host_saved, transients;
} outcome;

static hd_tensor block(hd_program *p, const trial *t, hd_tensor x)
{
    const hd_linear_options up = {
        .name = "up", .outputs = t->kind == HDI_MLP_SWIGLU ? 2 * INNER : INNER, .bias = true};
    const hd_linear_options down = {.name = "down", .outputs = HIDDEN, .bias = true};
    hd_scope_begin(p, "block");
    if (t->again) hd_scope_recompute(p);
    const hd_tensor h = hd_layer_norm(p, x, &(hd_norm_options){.name = "norm"});
    const hd_tensor y = hdi_mlp(p, t->kind, h, &up, &down);
    const hd_tensor out = hd_add(p, x, y);
    hd_scope_end(p);
    return out;
}

static hdt_planned start(hd_context *context, const trial *t, hd_tensor *x)
{
    hdt_planned made = {0};
    const int64_t dims[] = {t->rows, HIDDEN};
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p",
                                                          .dtype = t->dtype,
                                                          .gradients = t->gradients,
                                                          .training = true,
                                                          .mlp_slices = t->slices},
                                    &made.program));
    *x = hd_input(made.program, "x", t->dtype, 2, dims);
    hd_input_needs_gradient(made.program, *x);
    const hd_tensor seed = hd_input(made.program, "seed", t->dtype, 2, dims);
    made.result = hd_output(made.program, block(made.program, t, *x), "out");
    hd_program_backward(made.program, made.result, seed);
    const hdi_activations_options host = {.how = HDI_SAVED_ON_HOST, .blocks = 1};
    if (t->leaves) hdi_activations_move(made.program, &host);
    hdt_assert_ok(hd_program_finish(made.program));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &made.plan));
    hdt_assert_ok(hd_plan_add(made.plan, made.program, NULL));
    hdt_assert_ok(hd_plan_finish(made.plan));
    hdt_assert_ok(hd_session_create(context, made.plan, NULL, &made.session));
    return made;
}

/* Rows from `first` on of what all trials take as input; weights that are alike for all. */
static void fill(const hdt_planned *p, int64_t first)
{
    static float random[MOST], part[MOST];
    for (int id = 1; id < p->program->tensor_count; id++) {
        const hd_tensor_info *info = hd_tensor_get(p->program, (hd_tensor){id});
        const bool is_input = info->role == HD_ROLE_INPUT;
        if (!is_input && info->role != HD_ROLE_PARAMETER) continue;
        uint64_t seed = 7;
        for (const char *c = info->name; *c; c++)
            seed = 31 * seed + (uint64_t)*c;
        hdt_fill(random, is_input ? MOST : info->elements, seed);
        memcpy(part, random + (is_input ? first * HIDDEN : 0),
               sizeof *part * (size_t)info->elements);
        hdt_narrow(info->dtype, part, info->elements);
        hdt_assert_ok(hd_session_write(p->session, p->program, (hd_tensor){id}, 0, part));
    }
}

static hd_tensor result(const hdt_planned *p, hd_tensor x, int index)
{
    if (index == OUT) return p->result;
    if (index == X) return hd_gradient(p->program, x);
    for (int u = 0; u < p->program->use_count; u++)
        if (strstr(p->program->uses[u].name, names[index])) return p->program->uses[u].gradient;
    ck_abort_msg("no gradient of %s", names[index]);
    return (hd_tensor){0};
}

/* `times` micro-batches of t->rows rows, from row `first` on, whose gradients are added; or, with `magnitudes`,
 * the sums of those of each alone. */
static void run(const trial *t, int64_t first, int times, bool magnitudes, outcome *out)
{
    hd_context *context;
    hd_tensor x;
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_planned p = start(context, t, &x);
    memset(out, 0, sizeof *out);
    out->saved = hd_plan_region_bytes(p.plan, HD_REGION_SAVED);
    out->host_saved = hd_plan_region_bytes(p.plan, HD_REGION_HOST_SAVED);
    out->transients = hd_plan_region_bytes(p.plan, HD_REGION_TRANSIENT);
    for (int i = 0; i < times; i++) {
        const bool last = magnitudes || i == times - 1;
        hd_session_run_options options = {.last = last, .accumulate = i > 0 && !magnitudes};
        fill(&p, first + i * t->rows);
        hdt_assert_ok(hd_session_run(p.session, p.program, &options));
        options.phase = HD_PHASE_BACKWARD;
        hdt_assert_ok(hd_session_run(p.session, p.program, &options));
        for (int r = 0; r < RESULTS && last; r++) {
            const hd_tensor tensor = result(&p, x, r);
            float *values = hdt_planned_read(&p, tensor);
            out->counts[r] = hd_tensor_get(p.program, tensor)->elements;
            for (int64_t e = 0; e < out->counts[r]; e++)
                out->values[r][e] += magnitudes ? fabsf(values[e]) : values[e];
            free(values);
        }
    }
    hdt_planned_stop(&p);
    hd_context_destroy(context);
}

static void check_bits(const trial *t, const char *what, const outcome *seen, const outcome *want,
                       int first, int end)
{
    for (int r = first; r < end; r++) {
        double largest = 0;
        for (int64_t e = 0; e < want->counts[r]; e++)
            largest = fmax(largest, fabs((double)want->values[r][e]));
        ck_assert_int_eq(seen->counts[r], want->counts[r]);
        ck_assert_double_gt(largest, 0);
        ck_assert_msg(
            memcmp(seen->values[r], want->values[r], sizeof(float) * (size_t)want->counts[r]) == 0,
            "%s, kind %d, %s, %d rows in %d slices, again %d: %s has other bits", what,
            (int)t->kind, hd_dtype_name(t->dtype), (int)t->rows, t->slices, t->again, names[r]);
    }
}

/* Both are within n + s roundings of fp32 times the sum of the terms' magnitudes, and 16-bit gradients within
 * one more of their own for each slice. A row alone is rounded as among others but for the BLAS's kernel: the
 * factor of 2 has room for that. */
static void check_near(const trial *t, const outcome *seen, const outcome *want,
                       const outcome *terms)
{
    const double rounds = t->gradients ? t->slices * ldexp(1, -8) : 0;
    const double bound = 2 * (2 * hdt_tolerance(HD_DTYPE_F32, t->rows + t->slices) + rounds);
    for (int r = SAME; r < RESULTS; r++)
        for (int64_t e = 0; e < want->counts[r]; e++) {
            const double error = fabs((double)seen->values[r][e] - (double)want->values[r][e]);
            const double most = bound * (double)terms->values[r][e];
            ck_assert_msg(error <= most,
                          "kind %d, %s, %d rows in %d slices: %s[%d] is off by %g, want at most %g",
                          (int)t->kind, hd_dtype_name(t->dtype), (int)t->rows, t->slices, names[r],
                          (int)e, error, most);
        }
}

static void check_rows(trial t)
{
    static outcome whole, sliced, terms;
    trial plain = t, single = t;
    plain.slices = single.slices = 1;
    single.rows = 1;
    run(&plain, 0, 1, false, &whole);
    run(&single, 0, (int)t.rows, true, &terms);
    for (t.slices = 2; t.slices <= 9; t.slices = 2 * t.slices + 1) {
        run(&t, 0, 1, false, &sliced);
        check_bits(&t, "in slices", &sliced, &whole, 0, SAME);
        check_near(&t, &sliced, &whole, &terms);
    }
}

static const int64_t row_counts[] = {1, 65, 129, 300};
enum { ROW_COUNTS = sizeof row_counts / sizeof row_counts[0], KINDS = 3 };

START_TEST(slices_have_the_bits_of_all_rows_and_their_weight_gradients_are_near)
{
    const hdi_mlp_kind kind = (hdi_mlp_kind)(_i % KINDS);
    const int64_t rows = row_counts[_i / KINDS];
    const bool again = _i % 2;
    check_rows((trial){.kind = kind, .dtype = HD_DTYPE_F32, .rows = rows, .again = again});
    check_rows((trial){.kind = kind, .dtype = HD_DTYPE_BF16, .rows = rows, .again = !again});
    check_rows((trial){.kind = kind, .dtype = HD_DTYPE_F16, .rows = rows, .again = again});
    check_rows((trial){.kind = kind,
                       .dtype = HD_DTYPE_BF16,
                       .gradients = HD_DTYPE_BF16,
                       .rows = rows,
                       .again = again});
}
END_TEST

/* In fp32, in the order of the rows: what as many micro-batches of a slice's rows come to. */
START_TEST(weight_gradients_are_the_sums_of_those_of_micro_batches_of_a_slice)
{
    static outcome sliced, batches;
    trial t = {.kind = (hdi_mlp_kind)_i, .dtype = HD_DTYPE_F32, .rows = 4 * 64, .slices = 4};
    for (int again = 0; again < 2; again++) {
        trial one = t;
        one.rows = 64;
        one.slices = 1;
        t.again = again;
        run(&t, 0, 1, false, &sliced);
        run(&one, 0, 4, false, &batches);
        check_bits(&t, "as micro-batches", &sliced, &batches, SAME, RESULTS);
    }
}
END_TEST

/* Between forward and backward there is what the norm gives, if that is not made again, and its statistics.
 * In the backward there are a slice's columns within, of which one tensor more is made at a time than is left
 * behind, and rows of x's columns: the norm's, its gradient, x's. */
START_TEST(there_is_never_more_within_than_a_slice_has)
{
    static outcome out;
    const int64_t longest = 128; /* of three, of 384 rows */
    const trial t = {.kind = (hdi_mlp_kind)(_i % KINDS),
                     .dtype = HD_DTYPE_F32,
                     .rows = 3 * longest,
                     .slices = 3,
                     .again = _i >= KINDS};
    const int64_t wide = t.kind == HDI_MLP_SWIGLU ? 4 * INNER : 2 * INNER;
    const size_t rows = (size_t)t.rows * sizeof(float), room = (size_t)(16 * 256);
    run(&t, 0, 1, false, &out);
    ck_assert_uint_le(out.saved, (t.again ? 0 : rows * (HIDDEN + 2)) + room);
    ck_assert_uint_le(out.transients, (size_t)(longest * (wide + INNER)) * sizeof(float) +
                                          rows * (t.again ? 3 * HIDDEN + 2 : 2 * HIDDEN) + room);
    const size_t sliced = out.saved + out.transients;
    trial whole = t;
    whole.slices = 1;
    run(&whole, 0, 1, false, &out);
    ck_assert_uint_gt(out.saved + out.transients, sliced + rows * INNER / 2);
}
END_TEST

/* Rows that slices read come back with what they are rows of. */
START_TEST(what_slices_read_leaves_for_the_host_as_a_whole)
{
    static outcome kept, out;
    trial t = {.kind = (hdi_mlp_kind)_i, .dtype = HD_DTYPE_F32, .rows = 300, .slices = 3};
    run(&t, 0, 1, false, &kept);
    t.leaves = true;
    run(&t, 0, 1, false, &out);
    check_bits(&t, "from the host", &out, &kept, 0, RESULTS);
    const size_t rows = (size_t)t.rows * sizeof(float);
    ck_assert_uint_ge(out.host_saved, rows * HIDDEN);
    ck_assert_uint_le(out.saved + rows * HIDDEN, kept.saved);
}
END_TEST

START_TEST(rows_of_more_dims_are_refused)
{
    const int64_t dims[] = {3, 5, HIDDEN};
    const hd_linear_options up = {.name = "up", .outputs = INNER};
    const hd_linear_options down = {.name = "down", .outputs = HIDDEN};
    hd_program *p;
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){.name = "p", .training = true, .mlp_slices = 2}, &p));
    hd_gelu_mlp(p, hd_input(p, "x", HD_DTYPE_F32, 3, dims), &up, &down);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "x has rank 3, want [rows, inputs]");
    hd_program_destroy(p);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mlp slices");
    TCase *tests = tcase_create("mlp slices");
    tcase_add_loop_test(tests, slices_have_the_bits_of_all_rows_and_their_weight_gradients_are_near,
                        0, KINDS * ROW_COUNTS);
    tcase_add_loop_test(tests, weight_gradients_are_the_sums_of_those_of_micro_batches_of_a_slice,
                        0, KINDS);
    tcase_add_loop_test(tests, there_is_never_more_within_than_a_slice_has, 0, 2 * KINDS);
    tcase_add_loop_test(tests, what_slices_read_leaves_for_the_host_as_a_whole, 0, KINDS);
    tcase_add_test(tests, rows_of_more_dims_are_refused);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
