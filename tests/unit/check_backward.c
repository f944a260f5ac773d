/* The shape of a backward: which gradient ops there are, what is summed, what runs again. */
#include "program/program.h"

#include <heddle/nn.h>
#include <heddle/ops.h>
#include <heddle/plan.h>

#include "tests/support/hdt_interpret.h"
#include "tests/support/hdt_program.h"

static hd_program *p;

static void make(void)
{
    p = hdt_program();
}

static void drop(void)
{
    hd_program_destroy(p);
}

static double run_gradient(hd_tensor of)
{
    hdt_machine *machine = hdt_machine_create(p, false);
    hdt_machine_set(machine, hd_tensor_find(p, "x"), 0, 3);
    hdt_machine_set(machine, hd_tensor_find(p, "seed"), 0, 1);
    for (int u = 0; u < p->use_count; u++)
        hdt_machine_set(machine, p->uses[u].tensor, 0, 5);
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_FORWARD, false));
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_BACKWARD, false));
    double value = hdt_machine_get(machine, hd_gradient(p, of), 0);
    hdt_machine_destroy(machine);
    return value;
}

static hd_tensor marked_x(void)
{
    hd_tensor x = hdt_vector(p, "x", 1);
    hd_input_needs_gradient(p, x);
    return x;
}

START_TEST(data_and_weight_gradients_are_ops_of_their_own)
{
    hd_tensor x = marked_x(), w = hdt_weight(p, "w", 1);
    hd_tensor y = hdt_mul(p, x, w);
    ck_assert_int_eq(hd_gradient(p, w).id, 0);
    hd_program_backward(p, y, hdt_vector(p, "seed", 1));
    hdt_assert_ok(hd_program_finish(p));
    ck_assert_int_eq(hdt_count_ops(p, "mul_data"), 1);
    ck_assert_int_eq(hdt_count_ops(p, "mul_weight"), 1);
    ck_assert_double_eq(run_gradient(x), 5);
    ck_assert_double_eq(run_gradient(w), 3);
    ck_assert_int_eq((int)hd_tensor_get(p, hd_gradient(p, w))->role, HD_ROLE_GRADIENT);
    ck_assert_int_eq((int)hd_tensor_get(p, hd_gradient(p, x))->role, HD_ROLE_OUTPUT);
}
END_TEST

START_TEST(no_data_gradient_is_made_that_nobody_wants)
{
    hd_tensor x = hdt_vector(p, "x", 1), w = hdt_weight(p, "w", 1);
    hd_program_backward(p, hdt_mul(p, x, w), hdt_vector(p, "seed", 1));
    hdt_assert_ok(hd_program_finish(p));
    ck_assert_int_eq(hdt_count_ops(p, "mul_data"), 0);
    ck_assert_int_eq(hd_gradient(p, x).id, 0);
}
END_TEST

START_TEST(a_tensor_used_twice_has_the_sum_of_its_gradients)
{
    hd_tensor x = marked_x(), w = hdt_weight(p, "w", 1);
    hd_tensor h = hdt_double(p, x);
    hd_program_backward(p, hdt_mul(p, hdt_mul(p, h, w), h), hdt_vector(p, "seed", 1));
    hdt_assert_ok(hd_program_finish(p));
    ck_assert_int_eq(hdt_count_ops(p, "add"), 1);
    ck_assert_double_eq(run_gradient(x), 2 * 2 * 5 * 2 * 3); /* y = w (2x)^2 */
}
END_TEST

START_TEST(uses_of_a_weight_share_a_gradient_unless_exact)
{
    hd_program *exact;
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){.name = "e", .training = true, .exact = true}, &exact));
    hd_program *both[] = {p, exact};
    for (int i = 0; i < 2; i++) {
        hd_tensor x = hdt_vector(both[i], "x", 1);
        hd_tensor a = hdt_weight(both[i], "w", 1), b = hdt_weight(both[i], "w", 1);
        hd_tensor y = hdt_mul(both[i], hdt_mul(both[i], x, a), b);
        hd_program_backward(both[i], y, hdt_vector(both[i], "seed", 1));
        hdt_assert_ok(hd_program_finish(both[i]));
        ck_assert_int_eq(hd_gradient(both[i], a).id == hd_gradient(both[i], b).id, i == 0);
    }
    ck_assert_double_eq(run_gradient(p->uses[0].tensor), 2 * 3 * 5); /* of x w^2 */
    hd_program_destroy(exact);
}
END_TEST

START_TEST(an_output_without_gradient_counts_as_nothing)
{
    hd_tensor x = marked_x();
    hdt_both_signs(p, x);
    hd_program_backward(p, hd_op_result(p, 1), hdt_vector(p, "seed", 1));
    hdt_assert_ok(hd_program_finish(p));
    ck_assert_double_eq(run_gradient(x), -1);
}
END_TEST

START_TEST(what_the_loss_does_not_reach_has_no_gradient)
{
    hd_tensor x = marked_x(), aside = hdt_weight(p, "aside", 1);
    hdt_mul(p, x, aside);
    hd_program_backward(p, hdt_double(p, x), hdt_vector(p, "seed", 1));
    hdt_assert_ok(hd_program_finish(p));
    ck_assert_int_eq(hd_gradient(p, aside).id, 0);
    ck_assert_double_eq(run_gradient(x), 2);
}
END_TEST

static const hd_op_kind *offered;

static void back_offered(hd_backward *context, const hd_op *op)
{
    hd_tensor gradient = hd_backward_output_gradient(context, 0);
    hd_backward_weight(context, 1, offered, NULL, 1, &gradient);
    (void)op;
}

static hd_status shape_of_first(hd_program *program, const hd_op *op)
{
    hd_op_output(program, HD_DTYPE_F32, 1, op->in_info[0]->dims);
    return HD_OK;
}

static hd_status run_nothing(const hd_run *run)
{
    (void)run;
    return HD_OK;
}

static const hd_op_kind offers = {
    .name = "offers", .shape = shape_of_first, .backward = back_offered, .run = run_nothing};

static const struct {
    hd_op_kind kind;
    const char *text;
} bad_weight_ops[] = {
    {{.name = "unflagged", .shape = shape_of_first, .run = run_nothing},
     "unflagged: hd_backward_weight wants"},
    {{.name = "declares",
      .flags = HD_OP_WEIGHT_GRADIENT,
      .shape = shape_of_first,
      .run = run_nothing},
     "outside a shape rule"},
};

START_TEST(bad_weight_gradient_records_are_refused)
{
    const hd_tensor in[] = {hdt_vector(p, "x", 1), hdt_weight(p, "w", 1)};
    offered = &bad_weight_ops[_i].kind;
    hd_program_backward(p, hd_custom_op(p, &offers, NULL, 2, in), hdt_vector(p, "seed", 1));
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, bad_weight_ops[_i].text);
}
END_TEST

START_TEST(a_weight_gradient_is_of_a_parameter)
{
    hd_tensor x = marked_x();
    const hd_tensor in[] = {hdt_double(p, x), hdt_double(p, x)};
    offered = &bad_weight_ops[1].kind;
    hd_program_backward(p, hd_custom_op(p, &offers, NULL, 2, in), hdt_vector(p, "seed", 1));
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "wants a parameter input");
}
END_TEST

START_TEST(a_backward_is_made_once_with_a_seed_that_fits)
{
    hd_tensor y = hdt_double(p, marked_x());
    if (_i == 0) {
        hd_program_backward(p, y, hdt_vector(p, "seed", 2));
        hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "seed has 2 elements of F32");
    } else if (_i == 1) {
        hd_program_backward(p, y, (hd_tensor){99});
        hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "another program");
    } else {
        hd_tensor seed = hdt_vector(p, "seed", 1);
        hd_program_backward(p, y, seed);
        hd_program_backward(p, y, seed);
        hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "has one already");
    }
}
END_TEST

START_TEST(only_a_program_for_training_has_a_backward)
{
    hd_program *other;
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "q"}, &other));
    hd_tensor y = hdt_double(other, hdt_vector(other, "x", 1));
    hd_program_backward(other, y, (hd_tensor){0});
    hd_status status = hd_program_finish(other);
    hd_program_destroy(other);
    hdt_assert_status(status, HD_ERROR_ARGUMENT, "made for training");
}
END_TEST

/* x -> [double, mul w1, (inner: double, mul w2)] -> double; the scope in brackets runs again. */
static void build_recomputed(hd_tensor *x, hd_tensor w[2], bool outer, bool inner)
{
    *x = marked_x();
    hd_scope_begin(p, "outer");
    if (outer) hd_scope_recompute(p);
    w[0] = hdt_weight(p, "w1", 1);
    hd_tensor h = hdt_mul(p, hdt_double(p, *x), w[0]);
    hd_scope_begin(p, "inner");
    if (inner) hd_scope_recompute(p);
    w[1] = hdt_weight(p, "w2", 1);
    h = hdt_mul(p, hdt_double(p, h), w[1]);
    hd_scope_end(p);
    hd_scope_end(p);
    hd_program_backward(p, hdt_double(p, h), hdt_vector(p, "seed", 1));
    hdt_assert_ok(hd_program_finish(p));
}

START_TEST(recompute_clones_what_the_backward_reads_and_no_more)
{
    /* y = 8 w1 w2 x. With the outer scope marked, double(x), mul w1, and the inner double run again:
     * the inner mul's output is read by nobody in the backward. Forward intermediates of the scope
     * are then read in the forward only. An inner mark alone clones only the inner double. */
    const bool outer = _i & 1, inner = _i & 2;
    hd_tensor x, w[2];
    build_recomputed(&x, w, outer, inner);
    int again = 0;
    for (int i = 0; i < p->op_count; i++)
        again += p->ops[i]->recomputed;
    ck_assert_int_eq(again, outer ? 3 : inner ? 1 : 0);
    for (int i = 0; i < p->op_count; i++) {
        const hdi_op *op = p->ops[i];
        for (int k = 0; k < op->op.inputs && outer; k++) {
            int producer = p->tensors[op->op.in[k].id]->producer;
            ck_assert(op->phase == HDI_PHASE_FORWARD || producer < 0 ||
                      p->ops[producer]->phase == HDI_PHASE_BACKWARD);
        }
    }
    ck_assert_double_eq(run_gradient(x), 8 * 25);
    ck_assert_double_eq(run_gradient(w[0]), 8 * 5 * 3);
    ck_assert_double_eq(run_gradient(w[1]), 8 * 5 * 3);
}
END_TEST

/* Of what is computed again four times as wide as the rest, two are there at a time: the gradient of what
 * entered the second map has its bytes. */
START_TEST(the_gradient_of_what_is_wide_takes_its_bytes)
{
    enum { ROWS = 256, WIDTH = 16, WIDE = 4 * WIDTH };
    const hd_linear_options up = {.name = "up", .outputs = WIDE, .bias = true};
    const hd_linear_options down = {.name = "down", .outputs = WIDTH, .bias = true};
    const int64_t dims[] = {ROWS, WIDTH};
    hd_plan *plan;
    const hd_tensor x = hd_input(p, "x", HD_DTYPE_F32, 2, dims);
    hd_input_needs_gradient(p, x);
    hd_scope_begin(p, "block");
    hd_scope_recompute(p);
    const hd_tensor y =
        _i ? hd_linear(p, hd_silu(p, hd_linear(p, x, &up)), &down) : hd_gelu_mlp(p, x, &up, &down);
    hd_scope_end(p);
    hd_program_backward(p, y, hd_input(p, "seed", HD_DTYPE_F32, 2, dims));
    hdt_assert_ok(hd_program_finish(p));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_ok(hd_plan_add(plan, p, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    const size_t transients = hd_plan_region_bytes(plan, HD_REGION_TRANSIENT);
    hd_plan_destroy(plan);
    ck_assert_uint_ge(transients, 2 * ROWS * WIDE * sizeof(float));
    ck_assert_uint_lt(transients, 3 * ROWS * WIDE * sizeof(float));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("backward");
    TCase *tests = tcase_create("backward");
    tcase_add_checked_fixture(tests, make, drop);
    tcase_add_test(tests, data_and_weight_gradients_are_ops_of_their_own);
    tcase_add_test(tests, no_data_gradient_is_made_that_nobody_wants);
    tcase_add_test(tests, a_tensor_used_twice_has_the_sum_of_its_gradients);
    tcase_add_test(tests, uses_of_a_weight_share_a_gradient_unless_exact);
    tcase_add_test(tests, an_output_without_gradient_counts_as_nothing);
    tcase_add_test(tests, what_the_loss_does_not_reach_has_no_gradient);
    tcase_add_loop_test(tests, bad_weight_gradient_records_are_refused, 0, 2);
    tcase_add_test(tests, a_weight_gradient_is_of_a_parameter);
    tcase_add_loop_test(tests, a_backward_is_made_once_with_a_seed_that_fits, 0, 3);
    tcase_add_test(tests, only_a_program_for_training_has_a_backward);
    tcase_add_loop_test(tests, the_gradient_of_what_is_wide_takes_its_bytes, 0, 2);
    tcase_add_loop_test(tests, recompute_clones_what_the_backward_reads_and_no_more, 0, 4);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
