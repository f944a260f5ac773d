/* The builder: errors that stick, names, lookups, costs, prints. */
#include "program/program.h"

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

START_TEST(the_first_error_is_kept_and_names_op_scope_and_shapes)
{
    hd_tensor x = hdt_vector(p, "x", 4), short_one = hdt_vector(p, "s", 3);
    hd_scope_begin(p, "h.%d", 7);
    hd_scope_begin(p, "attn");
    hd_tensor bad = hdt_mul(p, x, short_one);
    ck_assert_int_eq(bad.id, 0);
    ck_assert_int_eq(hdt_double(p, x).id, 0); /* even on good input */
    hd_program_fail(p, HD_ERROR_UNSUPPORTED, "a later error");
    hd_scope_end(p);
    hd_scope_end(p);
    ck_assert_int_eq(hd_output(p, bad, "y").id, 0);
    hd_program_backward(p, bad, (hd_tensor){0});
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT,
                      "program 'p', scope h.7.attn: mul: input 1 has 3 elements, want 4");
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "mul: input 1"); /* and again */
}
END_TEST

START_TEST(layer_code_can_fail_a_program)
{
    ck_assert_int_eq(hd_program_fail(p, HD_ERROR_CONFIG, "heads is %d", 5).id, 0);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_CONFIG, "heads is 5");
}
END_TEST

START_TEST(parameters_are_named_by_their_scopes_unless_absolute)
{
    hd_scope_begin(p, "h");
    hd_scope_begin(p, "%d", 3);
    hd_tensor a = hdt_weight(p, "w", 2), b = hdt_weight(p, "/shared", 2);
    hd_tensor parts = hd_parameter(
        p, &(hd_parameter_options){.name = "qkv",
                                   .rank = 1,
                                   .dims = {5},
                                   .parts = 2,
                                   .part = {{.name = "q", .rows = 2}, {.name = "/kv", .rows = 3}}});
    hd_scope_end(p);
    hd_scope_end(p);
    ck_assert_str_eq(hd_tensor_get(p, a)->name, "h.3.w");
    ck_assert_str_eq(hd_tensor_get(p, b)->name, "shared");
    const hdi_use *use = &p->uses[hdi_tensor_of(p, parts)->use];
    ck_assert_str_eq(use->name, "h.3.qkv");
    ck_assert_str_eq(use->options.part[0].name, "h.3.q");
    ck_assert_str_eq(use->options.part[1].name, "kv");
    hdt_assert_ok(hd_program_finish(p));
}
END_TEST

START_TEST(a_name_may_be_used_again_with_the_same_dims)
{
    hd_tensor a = hdt_weight(p, "w", 4), b = hdt_weight(p, "w", 4);
    ck_assert_int_ne(a.id, b.id);
    hdt_assert_ok(hd_program_finish(p));
}
END_TEST

START_TEST(a_name_with_other_dims_is_refused)
{
    hdt_weight(p, "w", 4);
    hdt_weight(p, "w", 5);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT,
                      "parameter 'w' is declared twice with different dims");
}
END_TEST

static const struct {
    hd_parameter_options options;
    const char *text;
} bad_parameters[] = {
    {{.name = NULL, .rank = 1, .dims = {2}}, "(NULL)"},
    {{.name = "w", .rank = 0}, "rank is 0"},
    {{.name = "w", .rank = HD_MAX_DIMS + 1}, "rank is 9"},
    {{.name = "w", .rank = 2, .dims = {3, 0}}, "dim 1 is 0"},
    {{.name = "w", .rank = 2, .dims = {3, -4}}, "dim 1 is -4"},
    {{.name = "w", .rank = 1, .dims = {3}, .parts = 1, .part = {{.name = "a", .rows = 2}}},
     "2 rows"},
    {{.name = "w", .rank = 1, .dims = {3}, .parts = HD_MAX_PARTS + 1}, "5 parts"},
    {{.name = "w", .rank = 1, .dims = {3}, .parts = -1}, "-1 parts"},
    {{.name = "w", .rank = 1, .dims = {3}, .parts = 2, .part = {{.name = "a", .rows = 3}}},
     "part 1"},
    {{.name = "w", .rank = 3, .dims = {INT64_C(1) << 31, INT64_C(1) << 31, 4}}, "out of range"},
    {{.name = "w", .rank = 2, .dims = {INT64_C(1) << 31, INT64_C(1) << 31}}, "2^48 bytes"},
};

START_TEST(impossible_parameters_are_refused)
{
    hd_parameter(p, &bad_parameters[_i].options);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, bad_parameters[_i].text);
}
END_TEST

START_TEST(overflowing_and_negative_dims_are_refused)
{
    const int64_t dims[][2] = {{INT64_MAX, 2}, {-1, 2}, {INT64_C(1) << 47, 1}};
    hd_input(p, "x", HD_DTYPE_F32, 2, dims[_i]);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "tensor 'x'");
}
END_TEST

START_TEST(inputs_states_and_outputs_are_found_by_name)
{
    hd_tensor x = hdt_vector(p, "x", 4), state = hd_state(p, "m", HD_DTYPE_F32, 1, &(int64_t){4});
    hd_tensor weight = hdt_weight(p, "w", 4);
    hd_tensor y = hd_output(p, hdt_double(p, x), "y");
    ck_assert_int_eq(hd_tensor_find(p, "x").id, x.id);
    ck_assert_int_eq(hd_tensor_find(p, "m").id, state.id);
    ck_assert_int_eq(hd_tensor_find(p, "y").id, y.id);
    ck_assert_int_ne(weight.id, 0);
    ck_assert_int_eq(hd_tensor_find(p, "w").id, 0);
    ck_assert_int_eq(hd_tensor_find(p, "").id, 0);
    ck_assert_int_eq(hd_tensor_find(p, "z").id, 0);
    ck_assert_int_eq((int)hd_tensor_get(p, y)->role, HD_ROLE_OUTPUT);
    ck_assert_ptr_null(hd_tensor_get(p, (hd_tensor){0}));
    ck_assert_ptr_null(hd_tensor_get(p, (hd_tensor){-3}));
    ck_assert_ptr_null(hd_tensor_get(p, (hd_tensor){1000}));
}
END_TEST

START_TEST(an_input_is_declared_once)
{
    hdt_vector(p, "x", 4);
    hdt_vector(p, "x", 4);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "tensor 'x' is declared twice");
}
END_TEST

START_TEST(an_input_is_no_output)
{
    hd_output(p, hdt_vector(p, "x", 4), "y");
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "output 'y'");
}
END_TEST

START_TEST(two_outputs_have_two_names)
{
    hd_tensor x = hdt_vector(p, "x", 4);
    hd_output(p, hdt_double(p, x), "y");
    hd_output(p, hdt_double(p, x), "y");
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "output 'y'");
}
END_TEST

START_TEST(scopes_must_be_closed_and_opened)
{
    hd_scope_begin(p, "open");
    if (_i == 0) {
        hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "scope 'open' is still open");
        return;
    }
    hd_scope_end(p);
    hd_scope_end(p);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "never begun");
}
END_TEST

START_TEST(a_handle_of_another_program_is_refused)
{
    hd_program *other = hdt_program();
    hd_tensor foreign = {0};
    for (int i = 0; i < 5; i++)
        foreign = hd_state(other, (char[]){(char)('a' + i), 0}, HD_DTYPE_F32, 1, &(int64_t){4});
    hdt_mul(p, hdt_vector(p, "x", 4), foreign);
    hd_program_destroy(other);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT,
                      "mul: input 1 is of another program");
}
END_TEST

START_TEST(results_are_counted)
{
    hd_tensor first = hdt_both_signs(p, hdt_vector(p, "x", 4)), second = hd_op_result(p, 1);
    ck_assert_int_eq(hd_op_result(p, 0).id, first.id);
    ck_assert_int_ne(second.id, first.id);
    ck_assert_int_eq(hd_op_result(p, 2).id, 0);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "both_signs: result 2 of 2");
}
END_TEST

START_TEST(there_is_no_result_before_the_first_op)
{
    ck_assert_int_eq(hd_op_result(p, 0).id, 0);
    hdt_assert_ok(hd_program_finish(p));
}
END_TEST

START_TEST(outputs_are_declared_in_shape_rules_only)
{
    hd_op_output(p, HD_DTYPE_F32, 1, &(int64_t){4});
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "outside a shape rule");
}
END_TEST

START_TEST(a_record_needs_shape_and_run)
{
    const hd_op_kind empty = {.name = "empty"};
    hd_custom_op(p, &empty, NULL, 0, NULL);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "empty: the record lacks");
}
END_TEST

START_TEST(costs_add_up_per_phase)
{
    hd_tensor x = hdt_vector(p, "x", 4), w = hdt_weight(p, "w", 4);
    hd_input_needs_gradient(p, x);
    hd_tensor y = hd_output(p, hdt_double(p, hdt_double(p, hdt_mul(p, x, w))), "y");
    hd_program_backward(p, y, hdt_vector(p, "seed", 4));
    hdt_assert_ok(hd_program_finish(p));
    hd_cost forward, backward;
    hdi_program_cost(p, HDI_PHASE_FORWARD, &forward);
    hdi_program_cost(p, HDI_PHASE_BACKWARD, &backward);
    /* A record without a cost counts the bytes of its tensors: mul has three of 16 bytes. */
    ck_assert_double_eq(forward.flops, 6);
    ck_assert_double_eq(forward.bytes, 2 * 5 + 48);
    ck_assert_double_eq(backward.flops, 6);
    ck_assert_double_eq(backward.bytes, 2 * 5 + 2 * 48);
}
END_TEST

START_TEST(a_program_prints_ops_scopes_shapes_and_costs)
{
    hd_scope_begin(p, "block");
    hd_output(p, hdt_double(p, hdt_vector(p, "x", 4)), "y");
    hd_scope_end(p);
    static hdt_text text;
    hd_program_print(p, hdt_collect, &text);
    ck_assert_str_eq(text.text, "program 'p': 1 ops\n"
                                "    0 F block: double: %1:x[F32 4] -> %2:y[F32 4]"
                                "  # 3 FLOP, 5 bytes\n");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("program");
    TCase *tests = tcase_create("program");
    tcase_add_checked_fixture(tests, make, drop);
    tcase_add_test(tests, the_first_error_is_kept_and_names_op_scope_and_shapes);
    tcase_add_test(tests, layer_code_can_fail_a_program);
    tcase_add_test(tests, parameters_are_named_by_their_scopes_unless_absolute);
    tcase_add_test(tests, a_name_may_be_used_again_with_the_same_dims);
    tcase_add_test(tests, a_name_with_other_dims_is_refused);
    tcase_add_loop_test(tests, impossible_parameters_are_refused, 0,
                        (int)(sizeof bad_parameters / sizeof bad_parameters[0]));
    tcase_add_loop_test(tests, overflowing_and_negative_dims_are_refused, 0, 3);
    tcase_add_test(tests, inputs_states_and_outputs_are_found_by_name);
    tcase_add_test(tests, an_input_is_declared_once);
    tcase_add_test(tests, an_input_is_no_output);
    tcase_add_test(tests, two_outputs_have_two_names);
    tcase_add_loop_test(tests, scopes_must_be_closed_and_opened, 0, 2);
    tcase_add_test(tests, a_handle_of_another_program_is_refused);
    tcase_add_test(tests, results_are_counted);
    tcase_add_test(tests, there_is_no_result_before_the_first_op);
    tcase_add_test(tests, outputs_are_declared_in_shape_rules_only);
    tcase_add_test(tests, a_record_needs_shape_and_run);
    tcase_add_test(tests, costs_add_up_per_phase);
    tcase_add_test(tests, a_program_prints_ops_scopes_shapes_and_costs);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
