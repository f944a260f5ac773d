/* Every op's forward and backward against fp64: the forward against the reference backend, each
 * gradient against central differences of it, element by element. And: planned memory, with sharing
 * and in-place ops, gives the bits that separate memory gives. */
#include <heddle/nn.h>

#include "tests/support/hdt_gradient.h"

enum { SEQUENCES = 2, TOKENS = 5, ROWS = SEQUENCES * TOKENS, HIDDEN = 8, CLASSES = 11 };

static hd_tensor data(hd_program *p, const char *name, int rank, const int64_t *dims)
{
    const hd_tensor x = hd_input(p, name, HD_DTYPE_F32, rank, dims);
    hd_input_needs_gradient(p, x);
    return x;
}

static hd_tensor matrix(hd_program *p, const char *name, int64_t columns)
{
    const int64_t dims[] = {ROWS, columns};
    return data(p, name, 2, dims);
}

static hd_tensor ids(hd_program *p, const char *name)
{
    const int64_t rows = ROWS;
    return hd_input(p, name, HD_DTYPE_I32, 1, &rows);
}

static hd_tensor build_add(hd_program *p)
{
    const hd_tensor x = matrix(p, "x", HIDDEN), y = matrix(p, "y", HIDDEN);
    return hd_add(p, hd_add(p, x, y), x);
}

static hd_tensor build_linear(hd_program *p)
{
    return hd_linear(p, matrix(p, "x", HIDDEN), &(hd_linear_options){.name = "l", .outputs = 7});
}

static hd_tensor build_linear_bias(hd_program *p)
{
    const int64_t dims[] = {SEQUENCES, TOKENS, HIDDEN};
    return hd_linear(p, data(p, "x", 3, dims),
                     &(hd_linear_options){.name = "l", .outputs = 7, .bias = true});
}

static hd_tensor build_linear_parts(hd_program *p)
{
    return hd_linear(
        p, matrix(p, "x", HIDDEN),
        &(hd_linear_options){.name = "l",
                             .outputs = 7,
                             .bias = true,
                             .parts = 2,
                             .part = {{.name = "a", .outputs = 4}, {.name = "b", .outputs = 3}}});
}

static hd_tensor build_embedding(hd_program *p)
{
    return hd_embedding(
        p, ids(p, "ids"),
        &(hd_embedding_options){.name = "e", .entries = CLASSES, .columns = HIDDEN});
}

static hd_tensor build_positions(hd_program *p)
{
    return hd_position_embedding(
        p, matrix(p, "x", HIDDEN),
        &(hd_position_embedding_options){.name = "e", .entries = 6, .tokens = TOKENS});
}

static hd_tensor build_layer_norm(hd_program *p)
{
    return hd_layer_norm(p, matrix(p, "x", HIDDEN), &(hd_norm_options){.name = "n"});
}

static hd_tensor build_rms_norm(hd_program *p)
{
    return hd_rms_norm(p, matrix(p, "x", HIDDEN), &(hd_norm_options){.name = "n"});
}

/* The sum is used again, so that its gradient is carried into the norm's. */
static hd_tensor residual(hd_program *p, hd_norm_kind kind, bool again)
{
    hd_tensor sum;
    const hd_tensor normed = hd_residual_norm(p, matrix(p, "x", HIDDEN), matrix(p, "y", HIDDEN),
                                              &(hd_norm_options){.name = "n", .kind = kind}, &sum);
    return again ? hd_add(p, normed, sum) : normed;
}

static hd_tensor build_residual_layer_norm(hd_program *p)
{
    return residual(p, HD_NORM_LAYER, true);
}

static hd_tensor build_residual_rms_norm(hd_program *p)
{
    return residual(p, HD_NORM_RMS, true);
}

static hd_tensor build_residual_sum_unused(hd_program *p)
{
    return residual(p, HD_NORM_LAYER, false);
}

static hd_tensor build_residual_norm_unused(hd_program *p)
{
    hd_tensor sum;
    hd_residual_norm(p, matrix(p, "x", HIDDEN), matrix(p, "y", HIDDEN),
                     &(hd_norm_options){.name = "n"}, &sum);
    return hd_silu(p, sum);
}

static hd_tensor build_gelu(hd_program *p)
{
    return hd_gelu(p, matrix(p, "x", HIDDEN));
}

static hd_tensor build_gelu_tanh(hd_program *p)
{
    return hd_gelu_tanh(p, matrix(p, "x", HIDDEN));
}

static hd_tensor build_gelu_mlp(hd_program *p)
{
    const hd_linear_options up = {"up", 12, .bias = true}, down = {"down", 5, .bias = true};
    return hd_gelu_mlp(p, matrix(p, "x", HIDDEN), &up, &down);
}

static hd_tensor build_silu(hd_program *p)
{
    return hd_silu(p, matrix(p, "x", HIDDEN));
}

static hd_tensor build_swiglu(hd_program *p)
{
    return hd_swiglu(p, matrix(p, "x", HIDDEN));
}

static hd_tensor rope(hd_program *p, hd_rope_pairing pairing)
{
    return hd_rope(
        p, matrix(p, "x", 16),
        &(hd_rope_options){
            .pairing = pairing, .heads = 3, .head_dim = 4, .tokens = TOKENS, .theta = 100});
}

static hd_tensor build_rope_halves(hd_program *p)
{
    return rope(p, HD_ROPE_HALVES);
}

static hd_tensor build_rope_interleaved(hd_program *p)
{
    return rope(p, HD_ROPE_INTERLEAVED);
}

static hd_tensor build_attention_causal(hd_program *p)
{
    return hd_attention(p, matrix(p, "x", 24),
                        &(hd_attention_options){.heads = 2, .tokens = TOKENS, .causal = true});
}

static hd_tensor build_attention_full(hd_program *p)
{
    return hd_attention(p, matrix(p, "x", 24),
                        &(hd_attention_options){.heads = 2, .tokens = TOKENS, .scale = 0.7});
}

static hd_tensor build_attention_grouped(hd_program *p)
{
    return hd_attention(
        p, matrix(p, "x", 32),
        &(hd_attention_options){.heads = 4, .kv_heads = 2, .tokens = TOKENS, .causal = true});
}

static hd_tensor build_cross_entropy(hd_program *p)
{
    return hd_cross_entropy(p, matrix(p, "x", CLASSES), ids(p, "targets"));
}

static hd_tensor build_gpt_block(hd_program *p)
{
    hd_tensor x = matrix(p, "x", HIDDEN), h;
    h = hd_layer_norm(p, x, &(hd_norm_options){.name = "ln_1"});
    h = hd_linear(p, h, &(hd_linear_options){.name = "qkv", .outputs = 3 * HIDDEN, .bias = true});
    h = hd_attention(p, h, &(hd_attention_options){.heads = 2, .tokens = TOKENS, .causal = true});
    h = hd_linear(p, h, &(hd_linear_options){.name = "out", .outputs = HIDDEN, .bias = true});
    h = hd_residual_norm(p, x, h, &(hd_norm_options){.name = "ln_2"}, &x);
    h = hd_gelu(p, hd_linear(p, h, &(hd_linear_options){.name = "up", .outputs = 12}));
    h = hd_linear(p, h, &(hd_linear_options){.name = "down", .outputs = HIDDEN, .bias = true});
    return hd_add(p, x, h);
}

static hd_tensor build_llama_block(hd_program *p)
{
    hd_tensor x = matrix(p, "x", HIDDEN), h;
    h = hd_rms_norm(p, x, &(hd_norm_options){.name = "ln_1"});
    h = hd_linear(p, h, &(hd_linear_options){.name = "qkv", .outputs = 16});
    h = hd_rope(p, h, &(hd_rope_options){.heads = 3, .head_dim = 4, .tokens = TOKENS});
    h = hd_attention(
        p, h, &(hd_attention_options){.heads = 2, .kv_heads = 1, .tokens = TOKENS, .causal = true});
    h = hd_linear(p, h, &(hd_linear_options){.name = "out", .outputs = HIDDEN});
    h = hd_residual_norm(p, x, h, &(hd_norm_options){.name = "ln_2", .kind = HD_NORM_RMS}, &x);
    h = hd_swiglu(p, hd_linear(p, h, &(hd_linear_options){.name = "up", .outputs = 12}));
    h = hd_linear(p, h, &(hd_linear_options){.name = "down", .outputs = HIDDEN});
    return hd_add(p, x, h);
}

/* One parameter looked up, then used as a head: its gradient is the sum of both uses'. */
static hd_tensor build_tied(hd_program *p)
{
    hd_tensor x =
        hd_embedding(p, ids(p, "ids"),
                     &(hd_embedding_options){.name = "e", .entries = CLASSES, .columns = HIDDEN});
    x = hd_silu(p, x);
    x = hd_linear(p, x, &(hd_linear_options){.weight = "/e.weight", .outputs = CLASSES});
    return hd_cross_entropy(p, x, ids(p, "targets"));
}

static const hdt_gradient_case cases[] = {
    {"add", build_add, 2},
    {"linear", build_linear, ROWS},
    {"linear with bias, three dims", build_linear_bias, ROWS},
    {"linear in parts", build_linear_parts, ROWS},
    {"embedding", build_embedding, ROWS},
    {"position embedding", build_positions, ROWS},
    {"layer norm", build_layer_norm, 3 * HIDDEN},
    {"rms norm", build_rms_norm, 3 * HIDDEN},
    {"residual layer norm", build_residual_layer_norm, 3 * HIDDEN},
    {"residual rms norm", build_residual_rms_norm, 3 * HIDDEN},
    {"residual norm, sum unused", build_residual_sum_unused, 3 * HIDDEN},
    {"residual norm, norm unused", build_residual_norm_unused, 2},
    {"gelu", build_gelu, 4},
    {"gelu tanh", build_gelu_tanh, 4},
    {"gelu between linear maps", build_gelu_mlp, 8 * HIDDEN},
    {"silu", build_silu, 4},
    {"swiglu", build_swiglu, 4},
    {"rope halves", build_rope_halves, 2},
    {"rope interleaved", build_rope_interleaved, 2},
    {"attention causal", build_attention_causal, 4 * TOKENS},
    {"attention full", build_attention_full, 4 * TOKENS},
    {"attention grouped", build_attention_grouped, 8 * TOKENS},
    {"cross entropy", build_cross_entropy, 2 * CLASSES},
    {"gpt block", build_gpt_block, 16 * HIDDEN},
    {"llama block", build_llama_block, 16 * HIDDEN},
    {"tied parameter", build_tied, 8 * HIDDEN},
};

enum { CASES = sizeof cases / sizeof cases[0] };

START_TEST(a_parameter_used_twice_has_the_sum_of_both_gradients_in_exact_mode)
{
    hdt_check_gradients(&cases[CASES - 1], true);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradients");
    TCase *tests = tcase_create("gradients");
    hdt_add_gradient_tests(tests, cases, CASES);
    tcase_add_test(tests, a_parameter_used_twice_has_the_sum_of_both_gradients_in_exact_mode);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
