/* Gradients of modulation, of rows joined, split and added, and of the squared error, against fp64. */
#include <heddle/diffusion.h>
#include <heddle/nn.h>

#include "tests/support/hdt_gradient.h"

/* Groups of 3 rows for norms, of 6 for gates; indexes name entries up to 10. */
enum { ROWS = 12, HIDDEN = 5, ENTRIES = 11, SIX = 6 * HIDDEN };

static hd_tensor matrix(hd_program *p, const char *name, int64_t rows, int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    const hd_tensor x = hd_input(p, name, HD_DTYPE_F32, 2, dims);
    hd_input_needs_gradient(p, x);
    return x;
}

static hd_tensor given(hd_program *p, const char *name, int64_t rows, int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    return hd_input(p, name, HD_DTYPE_F32, columns ? 2 : 1, dims);
}

static hd_tensor integers(hd_program *p, const char *name, int64_t count)
{
    return hd_input(p, name, HD_DTYPE_I32, 1, &count);
}

static hd_tensor x_of(hd_program *p)
{
    return matrix(p, "x", ROWS, HIDDEN);
}

/* Shift and scale side by side, entry by group. */
static hd_tensor build_norm(hd_program *p)
{
    return hd_modulated_norm(p, x_of(p),
                             &(hd_modulation){.table = matrix(p, "t", 4, SIX),
                                              .rows_per_group = 3,
                                              .shift = HIDDEN,
                                              .scale = 2 * HIDDEN},
                             0);
}

/* Scale before shift, groups that share entries. */
static hd_tensor build_norm_index(hd_program *p)
{
    return hd_modulated_norm(p, x_of(p),
                             &(hd_modulation){.table = matrix(p, "t", ENTRIES, SIX),
                                              .index = integers(p, "index", ROWS),
                                              .rows_per_group = 1,
                                              .shift = 3 * HIDDEN,
                                              .scale = HIDDEN},
                             1e-3);
}

static hd_tensor build_shift_only(hd_program *p)
{
    return hd_modulated_norm(
        p, x_of(p),
        &(hd_modulation){
            .table = matrix(p, "t", 1, 7), .rows_per_group = ROWS, .shift = 2, .scale = -1},
        0);
}

static hd_tensor build_scale_only(hd_program *p)
{
    return hd_modulated_norm(
        p, x_of(p),
        &(hd_modulation){
            .table = matrix(p, "t", 2, 7), .rows_per_group = 6, .shift = -1, .scale = 1},
        0);
}

static hd_tensor build_no_modulation(hd_program *p)
{
    return hd_modulated_norm(
        p, x_of(p),
        &(hd_modulation){
            .table = given(p, "t", 2, 7), .rows_per_group = 6, .shift = -1, .scale = -1},
        0);
}

static hd_tensor build_gated(hd_program *p)
{
    return hd_gated_add(
        p, x_of(p), matrix(p, "y", ROWS, HIDDEN),
        &(hd_modulation){.table = matrix(p, "t", 4, 7), .rows_per_group = 3, .gate = 2});
}

/* In place: x is made by an op and read by nobody else. */
static hd_tensor build_gated_index(hd_program *p)
{
    return hd_gated_add(p, hd_silu(p, x_of(p)), hd_silu(p, matrix(p, "y", ROWS, HIDDEN)),
                        &(hd_modulation){.table = matrix(p, "t", ENTRIES, SIX),
                                         .index = integers(p, "index", 2),
                                         .rows_per_group = 6,
                                         .gate = 2 * HIDDEN});
}

static hd_tensor fused(hd_program *p, hd_tensor x, hd_tensor table, hd_tensor *sum)
{
    return hd_gated_modulated_norm(p, x, matrix(p, "y", ROWS, HIDDEN),
                                   &(hd_modulation){.table = table,
                                                    .index = integers(p, "gate_index", 2),
                                                    .rows_per_group = 6,
                                                    .gate = 2 * HIDDEN},
                                   &(hd_modulation){.table = table,
                                                    .index = integers(p, "index", 4),
                                                    .rows_per_group = 3,
                                                    .shift = 3 * HIDDEN,
                                                    .scale = 4 * HIDDEN},
                                   0, sum);
}

static hd_tensor build_fused(hd_program *p)
{
    hd_tensor sum;
    const hd_tensor normed = fused(p, x_of(p), matrix(p, "t", ENTRIES, SIX), &sum);
    return hd_add(p, hd_silu(p, normed), sum);
}

static hd_tensor build_fused_sum_unused(hd_program *p)
{
    hd_tensor sum;
    return fused(p, x_of(p), matrix(p, "t", ENTRIES, SIX), &sum);
}

static hd_tensor build_fused_norm_unused(hd_program *p)
{
    hd_tensor sum;
    fused(p, x_of(p), matrix(p, "t", ENTRIES, SIX), &sum);
    return hd_silu(p, sum);
}

/* Only the table wants a gradient, or only x. */
static hd_tensor build_table_alone(hd_program *p)
{
    hd_tensor sum;
    const hd_tensor x = given(p, "x", ROWS, HIDDEN), table = matrix(p, "t", 4, SIX);
    const hd_modulation by = {
        .table = table, .rows_per_group = 3, .shift = 0, .scale = HIDDEN, .gate = 2 * HIDDEN};
    const hd_tensor normed =
        hd_gated_modulated_norm(p, x, given(p, "y", ROWS, HIDDEN), &by, &by, 0, &sum);
    return hd_gated_add(p, sum, normed, &by);
}

static hd_tensor build_fixed_table(hd_program *p)
{
    hd_tensor sum;
    const hd_modulation by = {.table = given(p, "t", 4, SIX),
                              .rows_per_group = 3,
                              .shift = 0,
                              .scale = HIDDEN,
                              .gate = 2 * HIDDEN};
    const hd_tensor normed =
        hd_gated_modulated_norm(p, x_of(p), matrix(p, "y", ROWS, HIDDEN), &by, &by, 0, &sum);
    return hd_gated_add(p, sum, normed, &by);
}

/* A block as in STDiT and MMDiT: one table of six vectors, used by all. */
static hd_tensor build_block(hd_program *p)
{
    const hd_tensor time =
        hd_sinusoid(p, given(p, "time", 4, 0), &(hd_sinusoid_options){.columns = 6, .scale = 3});
    const hd_tensor vectors =
        hd_linear(p, time, &(hd_linear_options){.name = "t", .outputs = SIX, .bias = true});
    const hd_tensor table = hd_add_rows(
        p, vectors,
        hd_parameter(p, &(hd_parameter_options){.name = "s", .rank = 2, .dims = {1, SIX}}));
    const hd_modulation first = {table, .rows_per_group = 3, .shift = 0, .scale = HIDDEN,
                                 .gate = 2 * HIDDEN};
    hd_modulation second = first;
    second.shift = 3 * HIDDEN;
    second.scale = 4 * HIDDEN;
    second.gate = 5 * HIDDEN;
    hd_tensor x = x_of(p), h = hd_modulated_norm(p, x, &first, 0);
    h = hd_linear(p, h, &(hd_linear_options){.name = "a", .outputs = HIDDEN});
    h = hd_gated_modulated_norm(p, x, h, &first, &second, 0, &x);
    h = hd_linear(p, h, &(hd_linear_options){.name = "b", .outputs = HIDDEN});
    return hd_gated_add(p, x, h, &second);
}

static hd_tensor build_add_rows(hd_program *p)
{
    return hd_add_rows(p, hd_silu(p, x_of(p)), matrix(p, "t", 4, HIDDEN));
}

static hd_tensor build_add_rows_parameter(hd_program *p)
{
    const hd_tensor table =
        hd_parameter(p, &(hd_parameter_options){.name = "t", .rank = 2, .dims = {5, HIDDEN}});
    return hd_add_rows(p, x_of(p), table); /* 12 rows: the last period is cut off */
}

static hd_tensor build_join(hd_program *p)
{
    const hd_tensor parts[] = {matrix(p, "x", 6, HIDDEN), given(p, "y", 3, HIDDEN),
                               matrix(p, "z", 12, HIDDEN)};
    return hd_silu(p, hd_join_rows(p, 3, 3, parts));
}

static hd_tensor build_split(hd_program *p)
{
    hd_tensor parts[3];
    hd_split_rows(p, x_of(p), 2, 3, (const int64_t[]){2, 1, 3}, parts);
    const hd_tensor again[] = {hd_silu(p, parts[2]), parts[0], hd_gelu(p, parts[1])};
    return hd_join_rows(p, 2, 3, again);
}

/* The middle part is dropped: its gradient is zero. */
static hd_tensor build_split_dropped(hd_program *p)
{
    hd_tensor parts[3];
    hd_split_rows(p, x_of(p), 2, 3, (const int64_t[]){2, 1, 3}, parts);
    const hd_tensor again[] = {parts[2], parts[0]};
    return hd_silu(p, hd_join_rows(p, 2, 2, again));
}

/* Windows of four sizes, whose rows are told apart by what becomes of them. */
static hd_tensor windows(hd_program *p, bool drops)
{
    const hd_window_options options = {.sequences = 2,
                                       .frames = 2,
                                       .height = 3,
                                       .width = 5,
                                       .window_height = 2,
                                       .window_width = 3};
    hd_tensor parts[HD_WINDOW_PARTS];
    hd_split_windows(p, hd_silu(p, matrix(p, "x", 60, HIDDEN)), &options, parts, NULL);
    parts[0] = hd_gelu(p, parts[0]);
    parts[2] = hd_silu(p, parts[2]);
    parts[3] = drops ? given(p, "y", 8, HIDDEN) : parts[3];
    return hd_join_windows(p, parts, &options);
}

static hd_tensor build_windows(hd_program *p)
{
    return windows(p, false);
}

static hd_tensor build_windows_dropped(hd_program *p)
{
    return windows(p, true);
}

static hd_tensor build_squared_error(hd_program *p)
{
    return hd_squared_error(p, hd_silu(p, x_of(p)), given(p, "target", ROWS, HIDDEN),
                            (hd_tensor){0});
}

static hd_tensor build_weighted_error(hd_program *p)
{
    return hd_squared_error(p, x_of(p), given(p, "target", ROWS, HIDDEN),
                            given(p, "weight", ROWS, 0));
}

/* From latents to the loss. */
static hd_tensor build_flow(hd_program *p)
{
    const int64_t dims[] = {2, 3, 2, 3, 5};
    hd_patch_options patches = {.sequences = 2,
                                .channels = 3,
                                .frames = 2,
                                .height = 3,
                                .width = 5,
                                .patch = {1, 2, 2},
                                .order = HD_PATCH_CHANNELS_LAST};
    const hd_tensor latents = hd_input(p, "latents", HD_DTYPE_F32, 5, dims);
    const hd_tensor target = hd_input(p, "target", HD_DTYPE_F32, 5, dims);
    const hd_tensor x = hd_linear(p, hd_patchify(p, hd_cast(p, latents), &patches),
                                  &(hd_linear_options){.name = "in", .outputs = 12, .bias = true});
    return hd_squared_error(p, x, hd_patchify(p, target, &patches), given(p, "weight", 24, 0));
}

/* Frames, each with a weight, out of patches of odd sizes, one of whose channels nobody reads. */
static hd_tensor build_frames(hd_program *p)
{
    const int64_t dims[] = {2, 2, 2, 3, 5}, rows[] = {24, 12};
    const hd_patch_options patches = {.sequences = 2,
                                      .channels = 2,
                                      .frames = 2,
                                      .height = 3,
                                      .width = 5,
                                      .patch = {1, 2, 2},
                                      .order = HD_PATCH_CHANNELS_LAST};
    const hd_tensor target = hd_input(p, "target", HD_DTYPE_F32, 5, dims);
    const hd_tensor x = hd_reshape(p, hd_silu(p, matrix(p, "x", 12, 24)), 2, rows);
    return hd_squared_error(p, hd_patches_to_frames(p, x, &patches),
                            hd_frame_rows(p, target, &patches), given(p, "weight", 4, 0));
}

static const hdt_gradient_case cases[] = {
    {"modulated norm", build_norm, 4 * HIDDEN},
    {"modulated norm, index", build_norm_index, 4 * HIDDEN},
    {"modulated norm, shift only", build_shift_only, 4 * HIDDEN},
    {"modulated norm, scale only", build_scale_only, 4 * HIDDEN},
    {"modulated norm by nothing", build_no_modulation, 3 * HIDDEN},
    {"gated add", build_gated, ROWS},
    {"gated add in place, index", build_gated_index, ROWS},
    {"gated modulated norm", build_fused, 6 * HIDDEN},
    {"gated modulated norm, sum unused", build_fused_sum_unused, 6 * HIDDEN},
    {"gated modulated norm, norm unused", build_fused_norm_unused, ROWS},
    {"the table alone", build_table_alone, 6 * HIDDEN},
    {"a table without gradient", build_fixed_table, 6 * HIDDEN},
    {"block", build_block, 24 * HIDDEN},
    {"add rows", build_add_rows, ROWS},
    {"add rows of a parameter", build_add_rows_parameter, ROWS},
    {"join rows", build_join, 4},
    {"split rows", build_split, 4},
    {"split rows, one part dropped", build_split_dropped, 4},
    {"windows", build_windows, 6},
    {"windows, one size dropped", build_windows_dropped, 6},
    {"squared error", build_squared_error, 8},
    {"squared error, weighted", build_weighted_error, 4},
    {"patches to squared error", build_flow, 24 + 12},
    {"frames to squared error", build_frames, 30},
};
enum { CASES = sizeof cases / sizeof cases[0] };

int main(void)
{
    Suite *suite = suite_create("diffusion_gradients");
    TCase *tests = tcase_create("diffusion_gradients");
    hdt_add_gradient_tests(tests, cases, CASES);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
