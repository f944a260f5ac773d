/* What ops and layers refuse: the message has the op, the scope, what was seen and what is wanted. */
#include <heddle/nn.h>

#include "tests/support/hdt.h"

enum { ROWS = 10, TOKENS = 5 };

static hd_tensor data(hd_program *p, const char *name, int64_t rows, int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    return hd_input(p, name, HD_DTYPE_F32, 2, dims);
}

static hd_tensor matrix(hd_program *p, const char *name, int64_t columns)
{
    return data(p, name, ROWS, columns);
}

static hd_tensor bad_add(hd_program *p)
{
    return hd_add(p, matrix(p, "x", 8), matrix(p, "y", 7));
}

static hd_tensor bad_linear(hd_program *p)
{
    return hd_linear_op(p, matrix(p, "x", 8), data(p, "w", 4, 9), (hd_tensor){0});
}

static hd_tensor bad_ids(hd_program *p)
{
    return hd_embedding(p, matrix(p, "x", 8),
                        &(hd_embedding_options){.name = "e", .entries = 3, .columns = 4});
}

static hd_tensor bad_positions(hd_program *p)
{
    return hd_position_embedding(
        p, matrix(p, "x", 8),
        &(hd_position_embedding_options){.name = "e", .entries = 4, .tokens = TOKENS});
}

static hd_tensor bad_norm(hd_program *p)
{
    hd_tensor sum;
    return hd_residual_norm(p, matrix(p, "x", 8), matrix(p, "y", 4),
                            &(hd_norm_options){.name = "n"}, &sum);
}

static hd_tensor bad_swiglu(hd_program *p)
{
    return hd_swiglu(p, matrix(p, "x", 7));
}

static hd_tensor bad_rope(hd_program *p)
{
    return hd_rope(p, matrix(p, "x", 8),
                   &(hd_rope_options){.heads = 3, .head_dim = 4, .tokens = TOKENS});
}

static hd_tensor bad_heads(hd_program *p)
{
    return hd_attention(p, matrix(p, "x", 32),
                        &(hd_attention_options){.heads = 4, .kv_heads = 3, .tokens = TOKENS});
}

static hd_tensor bad_rows(hd_program *p)
{
    return hd_attention(p, matrix(p, "x", 24), &(hd_attention_options){.heads = 2, .tokens = 4});
}

static hd_tensor bad_targets(hd_program *p)
{
    const int64_t rows = 3;
    return hd_cross_entropy(p, matrix(p, "x", 8), hd_input(p, "t", HD_DTYPE_I32, 1, &rows));
}

static hd_tensor bad_handle(hd_program *p)
{
    hd_scope_begin(p, "block");
    return hd_silu(p, (hd_tensor){0});
}

static const struct {
    hd_tensor (*build)(hd_program *program);
    const char *text;
} refusals[] = {
    {bad_add, "add: y is F32 [10, 7], want F32 [10, 8]"},
    {bad_linear, "linear: weight is F32 [4, 9], want F32 [any, 8]"},
    {bad_ids, "embedding: ids is F32 [10, 8], want I32"},
    {bad_positions, "10 rows of sequences of 5 tokens, want positions below 4"},
    {bad_norm, "norm: delta is F32 [10, 4], want F32 [10, 8]"},
    {bad_swiglu, "swiglu: x has 7 columns, want an even number"},
    {bad_rope, "rope: x has 8 columns, want 3 heads of 4"},
    {bad_heads, "heads 4, kv_heads 3"},
    {bad_rows, "attention: qkv has 10 rows, want a multiple of 4 tokens"},
    {bad_targets, "cross_entropy: targets is I32 [3], want I32 [10]"},
    {bad_handle, "scope block: activation: x is an invalid tensor"},
};

START_TEST(bad_shapes_are_refused_with_seen_and_wanted)
{
    hd_program *program;
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "bad"}, &program));
    ck_assert_int_eq(refusals[_i].build(program).id, 0);
    hdt_assert_status(hd_program_finish(program), HD_ERROR_ARGUMENT, refusals[_i].text);
    hd_program_destroy(program);
}
END_TEST

START_TEST(a_split_layer_wants_this_ranks_columns)
{
    hd_mesh *mesh;
    hd_program *program;
    hdt_assert_ok(hd_mesh_create_fake(0, 2, &(hd_mesh_options){.tensor = 2}, &mesh));
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p", .mesh = mesh}, &program));
    hd_linear(program, matrix(program, "x", 8),
              &(hd_linear_options){.name = "l",
                                   .outputs = 8,
                                   .split = HD_SPLIT_ROWS,
                                   .split_runs = 1,
                                   .split_run = {{14, 2}}});
    hdt_assert_status(hd_program_finish(program), HD_ERROR_ARGUMENT,
                      "linear 'l': x has 8 columns, 8 outputs, in 1 runs of 14 in all");
    hd_program_destroy(program);
    hd_mesh_destroy(mesh);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ops");
    TCase *tests = tcase_create("ops");
    tcase_add_loop_test(tests, bad_shapes_are_refused_with_seen_and_wanted, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_test(tests, a_split_layer_wants_this_ranks_columns);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
