/* The row-wise and element-wise calls of the CPU backend (norms, activations, rope, add) against
 * fp64 written naively, and in place. */
#include "backend/cpu/vector.h"
#include "tests/support/hdt_backend.h"

static const hd_backend *const cpu = &hdi_backend_cpu;

enum { ROWS = 150 };
static const int64_t widths[] = {1, 7, 65, 130, 256};

typedef struct norm_case {
    hdi_norm_kind kind;
    int64_t columns;
    bool weight, bias, residual;
} norm_case;

static norm_case norm_case_of(int index)
{
    return (norm_case){.kind = index & 1 ? HDI_RMS_NORM : HDI_LAYER_NORM,
                       .weight = index & 2,
                       .bias = index & 4,
                       .residual = index & 8,
                       .columns = widths[index / 16]};
}

/* Mean (0 for RMS) and 1 / standard deviation of a row. */
static void moments(hdi_norm_kind kind, const float *s, int64_t columns, double epsilon,
                    double *mean, double *rstd)
{
    *mean = 0;
    for (int64_t c = 0; c < columns && kind == HDI_LAYER_NORM; c++)
        *mean += (double)s[c] / (double)columns;
    double variance = 0;
    for (int64_t c = 0; c < columns; c++)
        variance += ((double)s[c] - *mean) * ((double)s[c] - *mean) / (double)columns;
    *rstd = 1 / sqrt(variance + epsilon);
}

START_TEST(norm_equals_its_definition)
{
    const norm_case n = norm_case_of(_i);
    const int64_t columns = n.columns, elements = ROWS * columns;
    float *x = hdt_floats(elements, 1);
    const float *residual = n.residual ? hdt_floats(elements, 2) : NULL;
    const float *weight = n.weight ? hdt_floats(columns, 3) : NULL;
    const float *bias = n.bias ? hdt_floats(columns, 4) : NULL;
    float *out = hdt_take((size_t)elements * sizeof *out);
    float *sum = hdt_take((size_t)elements * sizeof *sum);
    float *mean = hdt_take(ROWS * sizeof *mean), *rstd = hdt_take(ROWS * sizeof *rstd);
    hdi_norm_args args = {.kind = n.kind,
                          .dtype = HD_DTYPE_F32,
                          .rows = ROWS,
                          .columns = columns,
                          .epsilon = 0.01f,
                          .x = x,
                          .residual = residual,
                          .weight = weight,
                          .bias = bias,
                          .sum = sum,
                          .out = out,
                          .mean = n.kind == HDI_LAYER_NORM ? mean : NULL,
                          .rstd = rstd};
    hdt_same_on_threads(cpu->norm(NULL, &args), out, NULL, elements);
    for (int64_t r = 0; r < ROWS; r++) {
        double want_mean, want_rstd;
        moments(n.kind, sum + r * columns, columns, 0.01, &want_mean, &want_rstd);
        if (args.mean) hdt_near("mean", r, mean[r], want_mean, 2, columns);
        hdt_near("rstd", r, rstd[r], want_rstd, want_rstd * (1 + 4 * want_rstd), columns + 4);
        for (int64_t c = 0; c < columns; c++) {
            const int64_t at = r * columns + c;
            ck_assert(sum[at] == (residual ? x[at] + residual[at] : x[at]));
            const double normal = ((double)sum[at] - want_mean) * want_rstd;
            hdt_near("out", at, out[at],
                     normal * (weight ? (double)weight[c] : 1) + (bias ? (double)bias[c] : 0),
                     2 + 4 * want_rstd * (1 + fabs(normal)), columns + 8);
        }
    }
    args.sum = NULL; /* the same without keeping the sum, and in place */
    args.out = x;
    hdt_assert_ok(cpu->norm(NULL, &args));
    ck_assert(memcmp(x, out, (size_t)elements * sizeof *out) == 0);
}
END_TEST

START_TEST(norm_gradient_equals_the_analytic_one)
{
    const norm_case n = norm_case_of(_i);
    const bool with_carry = n.residual, with_partials = n.bias;
    const int64_t columns = n.columns, elements = ROWS * columns;
    enum { PARTS = 16 }; /* 150 rows: the last parts are short and empty */
    const float *x = hdt_floats(elements, 1), *gradient = hdt_floats(elements, 2);
    const float *weight = n.weight ? hdt_floats(columns, 3) : NULL;
    const float *carry = hdt_floats(elements, 4);
    float *mean = hdt_take(ROWS * sizeof *mean), *rstd = hdt_take(ROWS * sizeof *rstd);
    float *out = hdt_take((size_t)elements * sizeof *out);
    hdi_norm_args forward = {.kind = n.kind,
                             .dtype = HD_DTYPE_F32,
                             .rows = ROWS,
                             .columns = columns,
                             .epsilon = 0.01f,
                             .x = x,
                             .out = out,
                             .mean = n.kind == HDI_LAYER_NORM ? mean : NULL,
                             .rstd = rstd};
    hdt_assert_ok(cpu->norm(NULL, &forward));
    float *partials = hdt_floats(PARTS * 2 * columns, 5);
    hdi_norm_gradient_args args = {.kind = n.kind,
                                   .dtype = HD_DTYPE_F32,
                                   .rows = ROWS,
                                   .columns = columns,
                                   .partial_rows = PARTS,
                                   .gradient = gradient,
                                   .x = x,
                                   .weight = weight,
                                   .carry = with_carry ? out : NULL, /* in place */
                                   .mean = forward.mean,
                                   .rstd = rstd,
                                   .x_gradient = out,
                                   .partials = with_partials ? partials : NULL};
    hdt_same_on_threads(cpu->norm_gradient(NULL, &args), out, carry, elements);

    double *sums = hdt_take(2 * (size_t)columns * sizeof *sums);
    double steepest = 0;
    for (int64_t r = 0; r < ROWS; r++) {
        double m, s, center = 0, slope = 0;
        moments(n.kind, x + r * columns, columns, 0.01, &m, &s);
        steepest = fmax(steepest, s);
        for (int64_t c = 0; c < columns; c++) {
            const double g = (double)gradient[r * columns + c];
            const double normal = ((double)x[r * columns + c] - m) * s;
            const double weighted = g * (weight ? (double)weight[c] : 1);
            center += weighted / (double)columns;
            slope += weighted * normal / (double)columns;
            sums[c] += g * normal;
            sums[columns + c] += g;
        }
        if (n.kind == HDI_RMS_NORM) center = 0;
        for (int64_t c = 0; c < columns; c++) {
            const int64_t at = r * columns + c;
            const double weighted = (double)gradient[at] * (weight ? (double)weight[c] : 1);
            const double normal = ((double)x[at] - m) * s;
            const double want =
                (with_carry ? (double)carry[at] : 0) + s * (weighted - center - normal * slope);
            /* normal is at most 2 s and carries the errors of mean and rstd (times 4 s). */
            hdt_near("x_gradient", at, out[at], want, 2 + s * (2 + 4 * s * s) * (1 + 4 * s),
                     2 * columns + 12);
        }
    }
    for (int64_t c = 0; c < 2 * columns && with_partials; c++) {
        double got = 0;
        for (int64_t p = 0; p < PARTS; p++)
            got += (double)partials[p * 2 * columns + c];
        hdt_near("partials", c, (float)got, sums[c], ROWS * 2 * steepest * (1 + 4 * steepest),
                 columns + 16);
    }
}
END_TEST

enum { ELEMENTS = 2 * 16384 + 77 };

START_TEST(exp_is_within_two_ulp)
{
    for (int i = 0; i <= 700000; i++) {
        const float x = -87.2f + (float)i * 2.5e-4f; /* to 87.8 */
        const double want = exp((double)x);
        const float rounded = (float)want;
        const double ulp = (double)nextafterf(rounded, INFINITY) - (double)rounded;
        if (!(fabs((double)hdi_exp(x) - want) <= 2 * ulp))
            ck_abort_msg("exp(%.9g) is %.9g, want %.12g", (double)x, (double)hdi_exp(x), want);
    }
    ck_assert(hdi_exp(0) == 1 && hdi_exp(-INFINITY) == 0 && hdi_exp(-88) == 0);
    ck_assert(isnan(hdi_exp(NAN)) && isfinite(hdi_exp(INFINITY)));
}
END_TEST

START_TEST(reductions_take_every_element)
{
    for (int count = 0; count < 100; count++) {
        float x[100], y[100];
        int sum = 0, dot = 0, squares = 0, max = -100;
        hdt_fill_whole(x, count, 9, 1); /* whole numbers: sums are exact */
        hdt_fill_whole(y, count, 9, 2);
        for (int i = 0; i < count; i++) {
            const int a = (int)x[i];
            sum += a;
            dot += a * (int)y[i];
            squares += (a - 2) * (a - 2);
            max = a > max ? a : max;
        }
        ck_assert(hdi_sum(x, count) == (float)sum && hdi_dot(x, y, count) == (float)dot);
        ck_assert(hdi_sum_of_squares(x, 2, count) == (float)squares);
        ck_assert(hdi_max(x, count) == (count ? (float)max : -FLT_MAX));
    }
}
END_TEST

static double value_of(hdi_activation kind, double x)
{
    if (kind == HDI_SILU) return x / (1 + exp(-x));
    if (kind == HDI_GELU_ERF) return 0.5 * x * erfc(-x / sqrt(2));
    return x / (1 + exp(-2 * sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
}

static double slope_of(hdi_activation kind, double x)
{
    const double pi = acos(-1);
    if (kind == HDI_GELU_ERF) return 0.5 * erfc(-x / sqrt(2)) + x * exp(-x * x / 2) / sqrt(2 * pi);
    const double u = kind == HDI_SILU ? x : 2 * sqrt(2 / pi) * (x + 0.044715 * x * x * x);
    const double u_slope = kind == HDI_SILU ? 1 : 2 * sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x);
    const double s = 1 / (1 + exp(-u));
    return s + x * s * (1 - s) * u_slope;
}

/* About 8 roundings, of values no larger than 1 + |x|: all over [-12, 12) and near 0. */
START_TEST(activations_equal_their_definitions)
{
    const hdi_activation kind = (hdi_activation)_i;
    float *x = hdt_floats(ELEMENTS, 1), *gradient = hdt_floats(ELEMENTS, 2);
    for (int64_t i = 0; i < ELEMENTS; i++)
        x[i] *= i % 5 ? 12 : 1e-3f;
    float *out = hdt_take(ELEMENTS * sizeof *out), *slopes = hdt_take(ELEMENTS * sizeof *slopes);
    hdi_activation_args args = {
        .kind = kind, .dtype = HD_DTYPE_F32, .elements = ELEMENTS, .x = x, .out = out};
    hdt_same_on_threads(cpu->activation(NULL, &args), out, NULL, ELEMENTS);
    args.gradient = gradient;
    args.out = slopes;
    hdt_same_on_threads(cpu->activation_gradient(NULL, &args), slopes, NULL, ELEMENTS);
    for (int64_t i = 0; i < ELEMENTS; i++) {
        const double at = (double)x[i];
        hdt_near("out", i, out[i], value_of(kind, at), fabs(at), 8);
        hdt_near("gradient", i, slopes[i], (double)gradient[i] * slope_of(kind, at),
                 fabs((double)gradient[i]) * (1 + fabs(at)), 8);
    }
    args.out = gradient; /* in place: over the gradient, then over x */
    hdt_assert_ok(cpu->activation_gradient(NULL, &args));
    ck_assert(memcmp(gradient, slopes, ELEMENTS * sizeof *slopes) == 0);
    args.out = x;
    hdt_assert_ok(cpu->activation(NULL, &args));
    ck_assert(memcmp(x, out, ELEMENTS * sizeof *out) == 0);
}
END_TEST

START_TEST(activations_keep_nan_and_saturate)
{
    const float x[4] = {NAN, 200, -200, 0};
    float out[4];
    hdi_activation_args args = {
        .kind = (hdi_activation)_i, .dtype = HD_DTYPE_F32, .elements = 4, .x = x, .out = out};
    hdt_assert_ok(cpu->activation(NULL, &args));
    ck_assert(isnan(out[0]) && out[1] == 200 && fabsf(out[2]) < 1e-30f && out[3] == 0);
}
END_TEST

START_TEST(gated_activation_and_its_gradient)
{
    const int64_t columns = _i % 2 ? 1100 : 65, wide = 2 * columns;
    const hdi_activation kind = (hdi_activation)(_i / 2);
    float *x = hdt_floats(ROWS * wide, 1);
    const float *gradient = hdt_floats(ROWS * columns, 2);
    float *out = hdt_take((size_t)(ROWS * columns) * sizeof *out);
    float *x_gradient = hdt_take((size_t)(ROWS * wide) * sizeof *x_gradient);
    hdi_gated_args args = {.kind = kind,
                           .dtype = HD_DTYPE_F32,
                           .rows = ROWS,
                           .columns = columns,
                           .x = x,
                           .gradient = gradient,
                           .out = out,
                           .x_gradient = x_gradient};
    hdt_same_on_threads(cpu->gated(NULL, &args), out, NULL, ROWS * columns);
    hdt_same_on_threads(cpu->gated_gradient(NULL, &args), x_gradient, NULL, ROWS * wide);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t c = 0; c < columns; c++) {
            const double gate = (double)x[r * wide + c], up = (double)x[r * wide + columns + c];
            const double g = (double)gradient[r * columns + c];
            hdt_near("out", r, out[r * columns + c], value_of(kind, gate) * up, 1, 8);
            hdt_near("gate", r, x_gradient[r * wide + c], g * up * slope_of(kind, gate), 2, 8);
            hdt_near("up", r, x_gradient[r * wide + columns + c], g * value_of(kind, gate), 1, 8);
        }
    args.x_gradient = x; /* in place */
    hdt_assert_ok(cpu->gated_gradient(NULL, &args));
    ck_assert(memcmp(x, x_gradient, (size_t)(ROWS * wide) * sizeof *x) == 0);
}
END_TEST

START_TEST(rope_rotates_pairs_and_back)
{
    enum { HEADS = 3, BESIDE = 4, PERIOD = 37 };
    static const int64_t head_dims[] = {16, 24, 80};
    const int64_t head_dim = head_dims[_i / 4], half = head_dim / 2;
    const int64_t stride = HEADS * head_dim + BESIDE, elements = ROWS * stride;
    const bool given = _i & 1;
    const hdi_rope_pairing pairing = _i & 2 ? HDI_ROPE_INTERLEAVED : HDI_ROPE_HALVES;
    const float *x = hdt_floats(elements, 1);
    const int32_t *positions = hdt_ids(ROWS, PERIOD, 2);
    float *table = hdt_take((size_t)(PERIOD * head_dim) * sizeof *table);
    for (int64_t i = 0; i < PERIOD * half; i++) {
        const double angle = (double)(i / half) * pow(100, -(double)(i % half) / (double)half);
        table[2 * i] = (float)cos(angle);
        table[2 * i + 1] = (float)sin(angle);
    }
    float *out = hdt_take((size_t)elements * sizeof *out);
    hdi_rope_args args = {.pairing = pairing,
                          .dtype = HD_DTYPE_F32,
                          .rows = ROWS,
                          .heads = HEADS,
                          .head_dim = head_dim,
                          .x_stride = stride,
                          .period = PERIOD,
                          .table = table,
                          .positions = given ? positions : NULL,
                          .x = out, /* in place */
                          .out = out};
    hdt_same_on_threads(cpu->rope(NULL, &args), out, x, elements);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t h = 0; h < HEADS; h++)
            for (int64_t i = 0; i < half; i++) {
                const int64_t at = r * stride + h * head_dim;
                const int64_t a = at + (pairing == HDI_ROPE_HALVES ? i : 2 * i);
                const int64_t b = at + (pairing == HDI_ROPE_HALVES ? half + i : 2 * i + 1);
                const float *entry = table + ((given ? positions[r] : r % PERIOD) * half + i) * 2;
                const double cosine = (double)entry[0], sine = (double)entry[1];
                const double first = (double)x[a], second = (double)x[b];
                hdt_near("first", a, out[a], first * cosine - second * sine, 2, 3);
                hdt_near("second", b, out[b], second * cosine + first * sine, 2, 3);
            }
    args.inverse = true;
    hdt_assert_ok(cpu->rope(NULL, &args));
    for (int64_t i = 0; i < elements; i++)
        if (i % stride >= HEADS * head_dim)
            ck_assert(out[i] == x[i]);
        else
            hdt_near("back", i, out[i], (double)x[i], 4, 8);
}
END_TEST

START_TEST(add_adds_also_in_place)
{
    const float *y = hdt_floats(ELEMENTS, 2), *before = hdt_floats(ELEMENTS, 1);
    float *x = hdt_floats(ELEMENTS, 1);
    hdt_same_on_threads(cpu->add(NULL, HD_DTYPE_F32, ELEMENTS, x, y, x), x, before, ELEMENTS);
    for (int64_t i = 0; i < ELEMENTS; i++)
        ck_assert(x[i] == before[i] + y[i]);
    hdt_assert_ok(cpu->convert(NULL, HD_DTYPE_F32, y, HD_DTYPE_F32, x, ELEMENTS));
    ck_assert(memcmp(x, y, ELEMENTS * sizeof *x) == 0);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("rows");
    tcase_add_checked_fixture(tests, NULL, hdt_free_held);
    tcase_add_loop_test(tests, norm_equals_its_definition, 0, 16 * 5);
    tcase_add_loop_test(tests, norm_gradient_equals_the_analytic_one, 0, 16 * 5);
    tcase_add_loop_test(tests, activations_equal_their_definitions, 0, 3);
    tcase_add_loop_test(tests, activations_keep_nan_and_saturate, 0, 3);
    tcase_add_loop_test(tests, gated_activation_and_its_gradient, 0, 6);
    tcase_add_loop_test(tests, rope_rotates_pairs_and_back, 0, 12);
    tcase_add_test(tests, exp_is_within_two_ulp);
    tcase_add_test(tests, reductions_take_every_element);
    tcase_add_test(tests, add_adds_also_in_place);
    Suite *suite = suite_create("backend_cpu_rows");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
