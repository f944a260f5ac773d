/* Gradients of the attention of diffusion transformers, and of what feeds it, against fp64. */
#include <heddle/diffusion.h>
#include <heddle/nn.h>

#include "tests/support/hdt_gradient.h"

enum { SEQUENCES = 2, TOKENS = 5, ROWS = SEQUENCES * TOKENS, HEADS = 2, DIM = 8, PACKED = 48 };

static hd_tensor matrix(hd_program *p, const char *name, int64_t rows, int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    const hd_tensor x = hd_input(p, name, HD_DTYPE_F32, 2, dims);
    hd_input_needs_gradient(p, x);
    return x;
}

static hd_tensor integers(hd_program *p, const char *name, int64_t count)
{
    return hd_input(p, name, HD_DTYPE_I32, 1, &count);
}

static hd_tensor weight(hd_program *p, const char *name)
{
    return hd_parameter(p, &(hd_parameter_options){.name = name, .rank = 1, .dims = {DIM}});
}

/* Two, four and two columns on axes of 2, 3 and 2 places. */
static hd_rope_axes axes(hd_rope_pairing pairing)
{
    return (hd_rope_axes){.axes = 3,
                          .dims = {2, 4, 2},
                          .length = {2, 3, 2},
                          .stride = {6, 2, 1},
                          .scale = {1, 0.5, 0},
                          .theta = 20,
                          .pairing = pairing};
}

static hd_tensor joint(hd_program *p, int streams, hd_rope_pairing pairing)
{
    const hd_qkv_stream stream[] = {
        {.qkv = matrix(p, "x", ROWS, PACKED),
         .query_norm = weight(p, "q.weight"),
         .key_norm = weight(p, "k.weight"),
         .tokens = TOKENS,
         .rope = axes(pairing)},
        {.qkv = streams > 1 ? matrix(p, "y", SEQUENCES * 3, PACKED) : (hd_tensor){0},
         .query_norm = weight(p, "q2.weight"),
         .key_norm = weight(p, "k2.weight"),
         .tokens = 3}};
    return hd_joint_qkv(p, SEQUENCES, HEADS, DIM, 0, streams, stream);
}

static hd_tensor build_one_stream(hd_program *p)
{
    return joint(p, 1, HD_ROPE_INTERLEAVED);
}

static hd_tensor build_two_streams(hd_program *p)
{
    return joint(p, 2, HD_ROPE_HALVES);
}

static hd_tensor build_streams_without_norm(hd_program *p)
{
    const hd_qkv_stream stream[] = {
        {.qkv = matrix(p, "x", ROWS, PACKED), .tokens = TOKENS, .rope = axes(HD_ROPE_HALVES)},
        {.qkv = matrix(p, "y", ROWS, PACKED), .tokens = TOKENS}};
    return hd_joint_qkv(p, SEQUENCES, HEADS, DIM, 1e-5, 2, stream);
}

/* Attention of the joint rows, so that the gradient comes from an op that is not the seed. */
static hd_tensor build_joint_attention(hd_program *p)
{
    return hd_attention(p, joint(p, 2, HD_ROPE_INTERLEAVED),
                        &(hd_attention_options){.heads = HEADS, .tokens = TOKENS + 3});
}

static hd_tensor build_interleaved(hd_program *p)
{
    return hd_attention(
        p, matrix(p, "x", 12, 24),
        &(hd_attention_options){.heads = 2, .tokens = 3, .interleave = 2, .causal = true});
}

static hd_tensor build_counts(hd_program *p)
{
    return hd_attention(p, matrix(p, "x", ROWS, 32),
                        &(hd_attention_options){.heads = 4,
                                                .kv_heads = 2,
                                                .tokens = TOKENS,
                                                .counts = integers(p, "counts", SEQUENCES)});
}

static hd_tensor build_interleaved_counts(hd_program *p)
{
    return hd_attention(p, matrix(p, "x", ROWS, 24),
                        &(hd_attention_options){.heads = 2,
                                                .tokens = TOKENS,
                                                .interleave = 2,
                                                .counts = integers(p, "counts", SEQUENCES)});
}

static hd_tensor build_cross(hd_program *p)
{
    return hd_cross_attention(
        p, matrix(p, "x", 6, 8), matrix(p, "y", 4, 16), (hd_tensor){0},
        &(hd_cross_attention_options){.heads = 2, .head_dim = 4, .tokens = 3, .scale = 0.7});
}

static hd_tensor build_cross_packed(hd_program *p)
{
    return hd_cross_attention(
        p, matrix(p, "x", 6, 8), matrix(p, "y", 7, 16), integers(p, "offsets", 3),
        &(hd_cross_attention_options){.heads = 2, .head_dim = 4, .tokens = 3});
}

/* A single-stream block's second map: two products into one tensor, plus a residual. */
static hd_tensor build_linear_add(hd_program *p)
{
    const hd_tensor x = matrix(p, "x", ROWS, DIM), y = matrix(p, "y", ROWS, 6);
    const hd_tensor z = matrix(p, "z", ROWS, 7);
    const hd_tensor first =
        hd_linear(p, x, &(hd_linear_options){.name = "a", .outputs = 7, .bias = true});
    const hd_tensor second =
        hd_linear(p, y, &(hd_linear_options){.name = "b", .outputs = 7, .add = first});
    return hd_linear(
        p, x,
        &(hd_linear_options){.name = "c", .outputs = 7, .bias = true, .add = hd_add(p, second, z)});
}

/* What is added to is read again: the sum must not take its place. */
static hd_tensor build_linear_add_kept(hd_program *p)
{
    const hd_tensor x = matrix(p, "x", ROWS, DIM), kept = hd_silu(p, x);
    const hd_tensor sum =
        hd_linear(p, x, &(hd_linear_options){.name = "a", .outputs = DIM, .add = kept});
    return hd_add(p, hd_silu(p, sum), kept);
}

static const hdt_gradient_case cases[] = {
    {"joint qkv, one stream", build_one_stream, 4 * DIM + SEQUENCES *TOKENS *HEADS},
    {"joint qkv, two streams", build_two_streams, 4 * DIM + SEQUENCES *TOKENS *HEADS},
    {"joint qkv, no norm", build_streams_without_norm, 4},
    {"joint qkv into attention", build_joint_attention, 16 * DIM + ROWS *HEADS},
    {"attention interleaved", build_interleaved, 12},
    {"attention with counts", build_counts, 8 * TOKENS},
    {"attention interleaved with counts", build_interleaved_counts, 4 * TOKENS},
    {"cross attention", build_cross, 16},
    {"cross attention, packed", build_cross_packed, 16},
    {"linear add", build_linear_add, 3 * DIM},
    {"linear add to what is kept", build_linear_add_kept, 3 * DIM},
};
enum { CASES = sizeof cases / sizeof cases[0] };

int main(void)
{
    Suite *suite = suite_create("attention_gradients");
    TCase *tests = tcase_create("attention_gradients");
    hdt_add_gradient_tests(tests, cases, CASES);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
