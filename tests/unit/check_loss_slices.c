/* The loss in slices of rows: the bits of all rows at once but for the weight's gradient, which is a sum over
 * slices; and never more logits than a slice has. */
#include <math.h>
#include <stdlib.h>

#include "core/half.h"
#include "ops/ops.h"
#include "ops/slices.h"
#include "program/plan.h"
#include "runtime/session.h"
#include "tests/support/hdt_program.h"

#include <heddle/nn.h>

enum { HIDDEN = 40, CLASSES = 90, MOST_ROWS = 700, MOST = MOST_ROWS * HIDDEN };

/* What a program makes; gradients as floats. */
typedef struct outcome {
    double loss[2];
    float x[MOST], weight[CLASSES * HIDDEN];
    size_t bytes;
} outcome;

typedef struct trial {
    hd_dtype dtype, gradients;
    int64_t rows;
    int slices; /* 0: not by the op that slices */
    bool evaluates;
} trial;

static void value_of(const hd_tensor_info *info, int64_t i, const float *random, void *out)
{
    if (info->dtype == HD_DTYPE_I32)
        ((int32_t *)out)[i] = i % 5 == 3 ? -1 : (int32_t)(i * 7 % CLASSES);
    else if (strcmp(info->name, HDI_LOSS_SCALE) == 0)
        ((float *)out)[i] = 64;
    else if (info->dtype == HD_DTYPE_F32)
        ((float *)out)[i] = random[i];
    else
        ((uint16_t *)out)[i] = hdi_half_from_float(info->dtype, random[i]);
}

static void fill(hd_session *session, const hd_program *p, int id)
{
    static float random[MOST];
    static double data[MOST];
    const hd_tensor_info *info = hd_tensor_get(p, (hd_tensor){id});
    if (info->role != HD_ROLE_INPUT && info->role != HD_ROLE_PARAMETER) return;
    hdt_fill(random, info->elements, 7 + (uint64_t)(info->role == HD_ROLE_INPUT));
    for (int64_t i = 0; i < info->elements; i++)
        value_of(info, i, random, data);
    hdt_assert_ok(hd_session_write(session, p, (hd_tensor){id}, 0, data));
}

static void read_floats(hd_session *session, const hd_program *p, hd_tensor tensor, float *out)
{
    static float data[MOST];
    const hd_tensor_info *info = hd_tensor_get(p, tensor);
    hdt_assert_ok(hd_session_read(session, p, tensor, 0, data));
    for (int64_t i = 0; i < info->elements; i++)
        out[i] = info->dtype == HD_DTYPE_F32
                     ? data[i]
                     : hdi_half_to_float(info->dtype, ((const uint16_t *)data)[i]);
}

static hd_program *build(const trial *t, hd_tensor *x, hd_tensor *weight, hd_tensor *loss)
{
    const int64_t dims[] = {t->rows, HIDDEN};
    hd_program *p;
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){
            .name = "p", .dtype = t->dtype, .gradients = t->gradients, .training = !t->evaluates},
        &p));
    *x = hd_input(p, "x", t->dtype, 2, dims);
    hd_input_needs_gradient(p, *x);
    const hd_tensor targets = hd_input(p, "targets", HD_DTYPE_I32, 1, &t->rows);
    *weight =
        hd_parameter(p, &(hd_parameter_options){.name = "w", .rank = 2, .dims = {CLASSES, HIDDEN}});
    *loss = t->slices ? hdi_loss_slices(p, *x, *weight, targets, 0, 0, t->slices)
                      : hd_cross_entropy(p, hd_linear_op(p, *x, *weight, (hd_tensor){0}), targets);
    if (!t->evaluates) hd_program_backward(p, *loss, (hd_tensor){0});
    hdt_assert_ok(hd_program_finish(p));
    return p;
}

/* `times` micro-batches, whose gradients are added. */
static void run(const trial *t, int times, outcome *out)
{
    hd_context *context;
    hd_plan *plan;
    hd_session *session;
    hd_tensor x, weight, loss;
    hd_program *p = build(t, &x, &weight, &loss);
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_ok(hd_plan_add(plan, p, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_ok(hd_session_create(context, plan, NULL, &session));
    out->bytes = hd_plan_region_bytes(plan, HD_REGION_SAVED) +
                 hd_plan_region_bytes(plan, HD_REGION_TRANSIENT);
    for (int i = 0; i < times; i++) {
        hd_session_run_options options = {.last = i == times - 1, .accumulate = i > 0};
        for (int id = 1; id < p->tensor_count; id++)
            if (p->tensors[id]->info.role != HD_ROLE_PARAMETER || i == 0) fill(session, p, id);
        hdt_assert_ok(hd_session_run(session, p, &options));
        options.phase = HD_PHASE_BACKWARD;
        if (!t->evaluates) hdt_assert_ok(hd_session_run(session, p, &options));
    }
    hdt_assert_ok(hd_session_read(session, p, loss, 0, out->loss));
    if (!t->evaluates) {
        read_floats(session, p, hd_gradient(p, x), out->x);
        read_floats(session, p, hd_gradient(p, weight), out->weight);
    }
    hd_session_destroy(session);
    hd_plan_destroy(plan);
    hd_context_destroy(context);
    hd_program_destroy(p);
}

/* Of each weight the sum of its terms' magnitudes: what its roundings are held against. */
static void term_sums(const trial *t, float *out)
{
    static float x[MOST], w[CLASSES * HIDDEN];
    hdt_fill(x, t->rows * HIDDEN, 8);
    hdt_fill(w, CLASSES * HIDDEN, 7);
    memset(out, 0, sizeof *out * CLASSES * HIDDEN);
    for (int64_t r = 0; r < t->rows; r++) {
        double p[CLASSES], sum = 0;
        for (int c = 0; c < CLASSES; c++) {
            p[c] = 0;
            for (int h = 0; h < HIDDEN; h++)
                p[c] += (double)x[r * HIDDEN + h] * (double)w[c * HIDDEN + h];
            sum += p[c] = exp(p[c]);
        }
        for (int c = 0; c < CLASSES && r % 5 != 3; c++)
            for (int h = 0; h < HIDDEN; h++)
                out[c * HIDDEN + h] += (float)(fabs(p[c] / sum - (c == r * 7 % CLASSES)) *
                                               fabs((double)x[r * HIDDEN + h]));
    }
}

/* Sums that begin anew at each slice; 16-bit gradients are rounded behind each. Logits of 16 bits are off, and
 * so are their gradients, by less than the factor of 2. */
static void check_weight(const trial *t, const outcome *seen, const outcome *want, int times)
{
    static float terms[CLASSES * HIDDEN];
    const bool cut = times > 1 || hdi_slice_begin(t->rows, t->slices, 1) < t->rows;
    const double rounds = t->gradients ? times * t->slices * ldexp(1, -8) : 0;
    const double sums = 2 * hdt_tolerance(HD_DTYPE_F32, times * t->rows + t->slices);
    const double bound = cut ? 2 * times * (sums + rounds) : 0;
    const double scale = t->dtype == HD_DTYPE_F16 ? 64 : 1;
    int64_t reached = 0;
    term_sums(t, terms);
    for (int i = 0; i < CLASSES * HIDDEN; i++) {
        const double error = fabs((double)seen->weight[i] - (double)want->weight[i]);
        ck_assert_msg(error <= bound * scale * (double)terms[i],
                      "%s, %d rows in %d slices, %d times: weight %d is off by %g, want at most %g",
                      hd_dtype_name(t->dtype), (int)t->rows, t->slices, times, i, error,
                      bound * scale * (double)terms[i]);
        reached += want->weight[i] != 0;
    }
    ck_assert_int_gt(reached, CLASSES);
}

static void check_rows(trial t)
{
    static outcome whole, sliced, twice;
    t.rows = (const int64_t[]){1, 63, 64, 65, 129, 300, MOST_ROWS}[t.rows];
    trial plain = t;
    plain.slices = 0;
    run(&plain, 1, &whole);
    for (t.slices = 1; t.slices <= 9; t.slices = 2 * t.slices + 1) {
        run(&t, 1, &sliced);
        ck_assert_msg(memcmp(sliced.loss, whole.loss, sizeof whole.loss) == 0,
                      "%s, %d rows in %d slices: loss %.17g of %g, want %.17g of %g",
                      hd_dtype_name(t.dtype), (int)t.rows, t.slices, sliced.loss[0], sliced.loss[1],
                      whole.loss[0], whole.loss[1]);
        if (t.evaluates) continue;
        ck_assert_mem_eq(sliced.x, whole.x, sizeof(float) * (size_t)(t.rows * HIDDEN));
        check_weight(&t, &sliced, &whole, 1);
        run(&t, 2, &twice);
        for (int i = 0; i < CLASSES * HIDDEN; i++)
            whole.weight[i] *= 2;
        check_weight(&t, &twice, &whole, 2);
        for (int i = 0; i < CLASSES * HIDDEN; i++)
            whole.weight[i] /= 2;
    }
}

START_TEST(loss_in_slices_has_the_bits_of_all_rows_and_its_weight_gradient_is_near)
{
    check_rows((trial){.dtype = HD_DTYPE_F32, .rows = _i});
    check_rows((trial){.dtype = HD_DTYPE_BF16, .rows = _i});
    check_rows((trial){.dtype = HD_DTYPE_F16, .rows = _i});
    check_rows((trial){.dtype = HD_DTYPE_BF16, .gradients = HD_DTYPE_BF16, .rows = _i});
}
END_TEST

START_TEST(validation_in_slices_has_the_bits_of_all_rows)
{
    check_rows((trial){.dtype = HD_DTYPE_F32, .rows = _i, .evaluates = true});
    check_rows((trial){.dtype = HD_DTYPE_BF16, .rows = _i, .evaluates = true});
}
END_TEST

/* What lies between forward and backward beside x: nothing; within the backward a slice's logits, and what is
 * made of them row by row: x's gradient and the losses. */
START_TEST(there_are_never_more_logits_than_those_of_a_slice)
{
    static outcome out;
    const int64_t longest = 128 + MOST_ROWS - 128 * 5; /* the last of five, of tiles of 64 rows */
    const trial five = {
        .dtype = HD_DTYPE_F32, .rows = MOST_ROWS, .slices = 5, .evaluates = _i == 1};
    run(&five, 1, &out);
    const size_t rows = MOST_ROWS * sizeof(float), room = 4 * 256;
    const size_t most = (size_t)(longest * CLASSES) * sizeof(float) + rows + room;
    ck_assert_uint_le(out.bytes, most + (five.evaluates ? 0 : rows * HIDDEN));
}
END_TEST

START_TEST(a_training_program_without_a_backward_is_refused_when_it_runs)
{
    hd_program *p = hdt_program();
    const int64_t dims[] = {3, HIDDEN}, rows = 3;
    const hd_tensor weight =
        hd_parameter(p, &(hd_parameter_options){.name = "w", .rank = 2, .dims = {CLASSES, HIDDEN}});
    hdi_loss_slices(p, hd_input(p, "x", HD_DTYPE_F32, 2, dims), weight,
                    hd_input(p, "targets", HD_DTYPE_I32, 1, &rows), 0, 0, 2);
    hdt_assert_ok(hd_program_finish(p));
    hdt_assert_status(p->ops[0]->op.kind->run(NULL), HD_ERROR_INTERNAL, "no backward");
    hd_program_destroy(p);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("loss slices");
    TCase *tests = tcase_create("loss slices");
    tcase_add_loop_test(
        tests, loss_in_slices_has_the_bits_of_all_rows_and_its_weight_gradient_is_near, 0, 7);
    tcase_add_loop_test(tests, validation_in_slices_has_the_bits_of_all_rows, 0, 7);
    tcase_add_loop_test(tests, there_are_never_more_logits_than_those_of_a_slice, 0, 2);
    tcase_add_test(tests, a_training_program_without_a_backward_is_refused_when_it_runs);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
