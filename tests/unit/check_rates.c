/* Predicted seconds: what a device does in a second, and what programs make of it. */
#include "program/plan.h"
#include "tests/support/hdt.h"

#include <heddle/nn.h>
#include <heddle/ops.h>

START_TEST(devices_are_found_by_what_their_makers_call_them)
{
    static const char *const same[][2] = {{"NVIDIA H100 80GB HBM3", "h100"},
                                          {"NVIDIA GeForce RTX 4090", "rtx-4090"},
                                          {"NVIDIA GeForce RTX 3090 Ti", "RTX_3090"},
                                          {"NVIDIA A100-SXM4-40GB", "a100"}};
    hd_rates one, other, last = {0};
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        hdt_assert_ok(hd_rates_find(same[i][0], &one));
        hdt_assert_ok(hd_rates_find(same[i][1], &other));
        ck_assert_double_eq(one.compute, other.compute);
        ck_assert_double_ne(one.compute, last.compute);
        ck_assert_double_gt(one.compute, one.attention);
        ck_assert_double_gt(one.attention, one.attention_gradient);
        ck_assert_double_gt(one.attention, one.narrow_attention);
        ck_assert_double_gt(one.narrow_attention, one.narrow_attention_gradient);
        ck_assert_double_gt(one.memory, one.link);
        last = one;
    }
    hdt_assert_status(hd_rates_find("a toaster", &one), HD_ERROR_ARGUMENT, "known are: h100");
    ck_assert_double_eq(one.compute, 0);
}
END_TEST

enum { ROWS = 8, WIDTH = 64 };

/* A product, then an addition of its result to itself. */
static hd_program *make_program(void)
{
    hd_program *program;
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p"}, &program));
    const hd_tensor x = hd_input(program, "x", HD_DTYPE_F32, 2, (int64_t[]){ROWS, WIDTH});
    const hd_tensor y = hd_linear(program, x, &(hd_linear_options){.name = "w", .outputs = WIDTH});
    hd_output(program, hd_add(program, y, y), "out");
    hdt_assert_ok(hd_program_finish(program));
    return program;
}

static double seconds_of(hd_program *program, const hd_rates *rates)
{
    hd_plan *plan;
    double seconds;
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){.rates = *rates}, &plan));
    hdt_assert_ok(hd_plan_add(plan, program, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_ok(hd_plan_seconds(plan, program, &seconds));
    hd_plan_destroy(plan);
    return seconds;
}

START_TEST(an_op_takes_as_long_as_its_flops_or_its_bytes)
{
    hd_program *program = make_program();
    const double flops = 2.0 * ROWS * WIDTH * WIDTH;
    hd_cost cost;
    hdi_program_cost(program, HDI_PHASE_FORWARD, &cost);
    double extra = cost.flops - flops; /* of the addition */
    ck_assert_double_le(extra, 2 * ROWS * WIDTH);
    ck_assert_double_eq_tol(seconds_of(program, &(hd_rates){.compute = 1e3}), cost.flops / 1e3,
                            1e-9 * flops);
    ck_assert_double_eq_tol(seconds_of(program, &(hd_rates){.compute = 1e30, .memory = 7}),
                            cost.bytes / 7, 1e-9 * cost.bytes);
    ck_assert_double_eq_tol(seconds_of(program, &(hd_rates){0}), cost.flops / 100e12, 1e-20);
    hd_program_destroy(program);
}
END_TEST

/* Only the product is written when its FLOPs are done; each of the two ops is launched. */
START_TEST(a_product_is_written_after_its_flops_and_ops_are_launched)
{
    hd_program *program = make_program();
    const double flops = 2.0 * ROWS * WIDTH * WIDTH, written = ROWS * WIDTH * sizeof(float);
    const hd_rates rates = {.compute = 1, .memory = 1, .launch = 3};
    const hdi_op *product = program->ops[0], *addition = program->ops[1];
    hd_cost cost;
    ck_assert_int_eq(program->op_count, 2);
    ck_assert_double_eq(hdi_op_seconds(product, &rates), flops + written + 3);
    hdi_op_cost(addition, &cost);
    ck_assert_double_eq(hdi_op_seconds(addition, &rates), cost.bytes + 3);
    hd_program_destroy(program);
}
END_TEST

/* Seconds by an op's FLOPs, with heads of so many columns. */
static double attention_share(int64_t columns, bool causal, bool gradient, const hd_rates *rates)
{
    hd_program *program;
    hdt_assert_ok(
        hd_program_create(&(hd_program_options){.name = "p", .training = true}, &program));
    const hd_tensor x = hd_input(program, "x", HD_DTYPE_F32, 2, (int64_t[]){ROWS, WIDTH});
    const hd_tensor qkv =
        hd_linear(program, x, &(hd_linear_options){.name = "w", .outputs = 3 * columns});
    const hd_tensor out = hd_attention(
        program, qkv,
        &(hd_attention_options){.heads = 1, .head_dim = columns, .tokens = ROWS, .causal = causal});
    const hd_tensor targets = hd_input(program, "targets", HD_DTYPE_I32, 1, (int64_t[]){ROWS});
    const hd_tensor loss = hd_cross_entropy(program, out, targets);
    hd_program_backward(program, loss, (hd_tensor){0});
    hdt_assert_ok(hd_program_finish(program));
    double share = 0;
    for (int i = 0; i < program->op_count; i++) {
        const hdi_op *op = program->ops[i];
        hd_cost cost;
        hdi_op_cost(op, &cost);
        if ((op->op.kind->flags & HD_OP_ATTENDS) && (op->phase == HDI_PHASE_BACKWARD) == gradient)
            share = hdi_op_seconds(op, rates) / cost.flops;
    }
    hd_program_destroy(program);
    return share;
}

static const hd_rates by_heads = {.compute = 1e-9,
                                  .attention = 4,
                                  .attention_gradient = 2,
                                  .narrow_attention = 2,
                                  .narrow_attention_gradient = 1};

START_TEST(attention_has_rates_of_its_own_by_the_width_of_heads)
{
    static const struct {
        int64_t columns;
        double rate, gradient_rate;
    } wanted[] = {{256, 4, 2}, {128, 4, 2}, {96, 3, 1.5}, {64, 2, 1}, {32, 1, 0.5}};
    hd_rates alike = by_heads;
    alike.narrow_attention = alike.narrow_attention_gradient = 0;
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        const int64_t columns = wanted[i].columns;
        const double seen = attention_share(columns, false, false, &by_heads);
        const double gradient = attention_share(columns, false, true, &by_heads);
        ck_assert_double_eq_tol(seen, 1 / wanted[i].rate, 1e-12);
        ck_assert_double_eq_tol(gradient, 1 / wanted[i].gradient_rate, 1e-12);
        ck_assert_double_eq_tol(attention_share(columns, false, false, &alike), 0.25, 1e-12);
        ck_assert_double_eq_tol(attention_share(columns, false, true, &alike), 0.5, 1e-12);
    }
}
END_TEST

/* A causal mask leaves queries half of the keys to see. */
START_TEST(a_query_takes_as_long_as_some_keys_more)
{
    hd_rates rates = by_heads;
    rates.query = 2.0 * ROWS;
    rates.query_gradient = 3.0 * ROWS;
    ck_assert_double_eq_tol(attention_share(128, false, false, &rates), 3 * 0.25, 1e-12);
    ck_assert_double_eq_tol(attention_share(128, true, false, &rates), 5 * 0.25, 1e-12);
    ck_assert_double_eq_tol(attention_share(128, false, true, &rates), 4 * 0.5, 1e-12);
    ck_assert_double_eq_tol(attention_share(128, true, true, &rates), 7 * 0.5, 1e-12);
}
END_TEST

START_TEST(a_program_of_another_plan_is_refused)
{
    hd_program *program = make_program(), *other = make_program();
    hd_plan *plan;
    double seconds;
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_ok(hd_plan_add(plan, program, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_status(hd_plan_seconds(plan, other, &seconds), HD_ERROR_ARGUMENT, "does not hold");
    hd_plan_destroy(plan);
    hd_program_destroy(program);
    hd_program_destroy(other);
}
END_TEST

int main(void)
{
    TCase *rates = tcase_create("rates");
    tcase_add_test(rates, devices_are_found_by_what_their_makers_call_them);
    tcase_add_test(rates, an_op_takes_as_long_as_its_flops_or_its_bytes);
    tcase_add_test(rates, a_product_is_written_after_its_flops_and_ops_are_launched);
    tcase_add_test(rates, attention_has_rates_of_its_own_by_the_width_of_heads);
    tcase_add_test(rates, a_query_takes_as_long_as_some_keys_more);
    tcase_add_test(rates, a_program_of_another_plan_is_refused);
    Suite *suite = suite_create("rates");
    suite_add_tcase(suite, rates);
    return hdt_main(suite);
}
