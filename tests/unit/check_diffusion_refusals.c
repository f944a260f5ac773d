/* What the ops of diffusion transformers refuse: the message has what was seen and what is wanted. */
#include <heddle/diffusion.h>

#include "tests/support/hdt.h"

static hd_program *new_program(bool training)
{
    hd_program *program;
    hdt_assert_ok(
        hd_program_create(&(hd_program_options){.name = "p", .training = training}, &program));
    return program;
}

static hd_tensor data(hd_program *p, const char *name, int64_t rows, int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    return hd_input(p, name, HD_DTYPE_F32, 2, dims);
}

static hd_tensor modulated(hd_program *p, int64_t entries, int64_t rows_per_group, int64_t scale)
{
    return hd_modulated_norm(p, data(p, "x", 12, 5),
                             &(hd_modulation){data(p, "t", entries, 14),
                                              .rows_per_group = rows_per_group, .scale = scale},
                             0);
}

static hd_tensor bad_groups(hd_program *p)
{
    return modulated(p, 4, 5, 5);
}

static hd_tensor bad_entries(hd_program *p)
{
    return modulated(p, 2, 4, 5);
}

static hd_tensor bad_window(hd_program *p)
{
    return modulated(p, 3, 4, 10);
}

static hd_tensor bad_gate(hd_program *p)
{
    const hd_tensor x = data(p, "x", 12, 5);
    return hd_gated_add(p, x, x,
                        &(hd_modulation){data(p, "t", 3, 5), .rows_per_group = 4, .gate = -1});
}

static hd_tensor bad_index(hd_program *p)
{
    const int64_t two = 2;
    const hd_tensor x = data(p, "x", 12, 5), index = hd_input(p, "i", HD_DTYPE_I32, 1, &two);
    return hd_gated_add(
        p, x, x, &(hd_modulation){data(p, "t", 3, 5), index, .rows_per_group = 4, .gate = 0});
}

static hd_tensor bad_table(hd_program *p)
{
    return hd_add_rows(p, data(p, "x", 12, 5), data(p, "t", 3, 4));
}

static hd_tensor bad_join(hd_program *p)
{
    const hd_tensor parts[] = {data(p, "x", 12, 5), data(p, "y", 9, 5)};
    return hd_join_rows(p, 4, 2, parts);
}

static hd_tensor bad_split(hd_program *p)
{
    hd_tensor parts[2];
    hd_split_rows(p, data(p, "x", 12, 5), 2, 2, (const int64_t[]){2, 3}, parts);
    return parts[1];
}

static hd_tensor bad_parts(hd_program *p)
{
    const hd_tensor x = data(p, "x", 12, 5), parts[] = {x, x, x, x, x};
    return hd_join_rows(p, 4, 5, parts);
}

static hd_tensor bad_columns(hd_program *p)
{
    return hd_unpatchify(
        p, data(p, "x", 6, 12),
        &(hd_patch_options){1, 2, 1, 4, 6, .patch = {1, 2, 2}, .order = HD_PATCH_CHANNELS_FIRST});
}

static hd_tensor bad_patch(hd_program *p)
{
    return hd_unpatchify(p, data(p, "x", 6, 12),
                         &(hd_patch_options){1, 2, 1, 4, 6, .patch = {1, 0, 2}});
}

static hd_tensor bad_sinusoid(hd_program *p)
{
    const int64_t rows = 3;
    return hd_sinusoid(p, hd_input(p, "x", HD_DTYPE_F32, 1, &rows),
                       &(hd_sinusoid_options){.columns = 7});
}

static hd_tensor bad_target(hd_program *p)
{
    return hd_squared_error(p, data(p, "x", 12, 5), data(p, "t", 12, 4), (hd_tensor){0});
}

static const struct {
    hd_tensor (*build)(hd_program *program);
    const char *text;
} refusals[] = {
    {bad_groups, "table: groups of 5 rows, want a divisor of the 12 rows"},
    {bad_entries, "table has 2 entries for 3 groups, want one each"},
    {bad_window, "modulated_norm: scale starts at column 10, want 5 columns within 14"},
    {bad_gate, "gated_add: gate starts at column -1, want 5 columns within 5"},
    {bad_index, "index is I32 [2], want I32 [3]"},
    {bad_table, "add_rows: table is F32 [3, 4], want F32 [any, 5]"},
    {bad_join, "join_rows: a part is F32 [9, 5], want F32 [8, 5]"},
    {bad_split, "split_rows: x is F32 [12, 5], want"},
    {bad_parts, "join_rows: 5 parts of 4 sequences, want 1 to 4"},
    {bad_columns, "unpatchify: x has 12 columns, want 8"},
    {bad_patch, "patches [1, 0, 2], want all above 0"},
    {bad_sinusoid, "sinusoid: 7 columns, want an even number"},
    {bad_target, "squared_error: target is F32 [12, 4], want F32 [12, 5]"},
};

START_TEST(bad_shapes_are_refused_with_seen_and_wanted)
{
    hd_program *program = new_program(false);
    ck_assert_int_eq(refusals[_i].build(program).id, 0);
    hdt_assert_status(hd_program_finish(program), HD_ERROR_ARGUMENT, refusals[_i].text);
    hd_program_destroy(program);
}
END_TEST

START_TEST(a_parameter_as_table_is_refused_in_training_only)
{
    for (int training = 0; training < 2; training++) {
        hd_program *program = new_program(training);
        const hd_tensor table =
            hd_parameter(program, &(hd_parameter_options){.name = "t", .rank = 2, .dims = {1, 10}});
        hd_modulated_norm(program, data(program, "x", 12, 5),
                          &(hd_modulation){table, .rows_per_group = 12, .scale = 5}, 0);
        if (training)
            hdt_assert_status(hd_program_finish(program), HD_ERROR_UNSUPPORTED,
                              "the table is the parameter 't'");
        else
            hdt_assert_ok(hd_program_finish(program));
        hd_program_destroy(program);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("diffusion_refusals");
    TCase *tests = tcase_create("refusals");
    tcase_add_loop_test(tests, bad_shapes_are_refused_with_seen_and_wanted, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(tests, a_parameter_as_table_is_refused_in_training_only);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
