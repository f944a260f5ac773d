/* Attention on the GPU against the CPU backend, by cuDNN where it takes the shape and by the kernels
 * for all; the cache; the exact backward. */
#include "tests/gpu/hdt_gpu.h"

typedef struct sample {
    int64_t batch, heads, kv_heads, tokens, kv_tokens, head_dim;
    bool causal;
} sample;

static const sample samples[] = {
    {2, 3, 3, 65, 65, 64, true},   {1, 4, 2, 130, 130, 40, true},  {3, 2, 1, 33, 77, 128, false},
    {1, 2, 2, 70, 200, 16, true},  {2, 1, 1, 5, 3, 8, true},       {1, 2, 2, 129, 129, 72, false},
    {1, 6, 2, 300, 300, 64, true}, {1, 2, 1, 100, 100, 256, true}, {2, 3, 3, 1, 9, 24, false},
    {1, 1, 1, 64, 64, 7, true},
};

enum { SAMPLES = sizeof samples / sizeof *samples };

typedef struct problem {
    hdt_pair qkv, out, lse, out_gradient, gradient;
    int64_t kv_offset; /* keys have more rows than queries: they lie behind them */
} problem;

/* Queries, keys and values in one matrix if they have as many rows, else in two parts of one. */
static problem make_problem(hd_dtype dtype, const sample *s)
{
    const int64_t q = s->heads * s->head_dim, kv = 2 * s->kv_heads * s->head_dim;
    const int64_t rows = s->batch * s->tokens;
    problem p = {.qkv = hdt_pair_make(dtype, rows * q + s->batch * s->kv_tokens * kv, 1, 2, 0),
                 .out = hdt_pair_zero(dtype, rows * q),
                 .lse = hdt_pair_zero(HD_DTYPE_F32, s->batch * s->heads * s->tokens),
                 .out_gradient = hdt_pair_make(dtype, rows * q, 2, 1, 0),
                 .kv_offset = rows * q};
    p.gradient = hdt_pair_zero(dtype, p.qkv.count);
    return p;
}

static hdi_attention_args args_of(const sample *s, const problem *p, int side, bool exact)
{
    const int64_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    return (hdi_attention_args){
        .dtype = hdt_side_dtype(p->qkv.dtype, side),
        .batch = s->batch,
        .tokens = s->tokens,
        .kv_tokens = s->kv_tokens,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
        .q_stride = q,
        .k_stride = 2 * kv,
        .v_stride = 2 * kv,
        .out_stride = q,
        .scale = 0.3f,
        .causal = s->causal,
        .exact = exact,
        .q = hdt_at(p->qkv, side),
        .k = hdt_element(p->qkv, side, p->kv_offset),
        .v = hdt_element(p->qkv, side, p->kv_offset + kv),
        .out = hdt_at(p->out, side),
        .lse = hdt_at(p->lse, side),
        .out_gradient = hdt_at(p->out_gradient, side),
        .q_gradient = hdt_at(p->gradient, side),
        .k_gradient = hdt_element(p->gradient, side, p->kv_offset),
        .v_gradient = hdt_element(p->gradient, side, p->kv_offset + kv),
    };
}

static void check_sample(hd_dtype dtype, const sample *s, bool tiled, bool exact)
{
    hdt_gpu_reset();
    const problem p = make_problem(dtype, s);
    for (int side = 0; side < HDT_SIDES; side++) {
        hdi_attention_args args = args_of(s, &p, side, exact);
        hdt_run_attention(side, &args, false, tiled);
        hdt_run_attention(side, &args, true, tiled);
    }
    /* Probabilities are rounded to the dtype by cuDNN, and so are outputs; sums of at most kv_tokens
     * terms of size 2. Gradients pass through two more products and through the rounded output. */
    const int64_t terms = s->kv_tokens + s->head_dim + 32;
    const int64_t group = s->heads / s->kv_heads;
    hdt_pair_check("attention", p.out, 2, 3, terms);
    hdt_pair_check("attention: lse", p.lse, 32, 0, terms);
    hdt_pair_check("attention gradient", p.gradient, 0, 8, 4 * terms * group);
}

START_TEST(attention_is_that_of_the_cpu)
{
    for (int s = 0; s < SAMPLES; s++)
        for (int exact = 0; exact < 2; exact++)
            check_sample(hdt_dtypes[_i % 3], &samples[s], _i / 3, exact);
}
END_TEST

START_TEST(exact_gradients_are_equal_from_run_to_run)
{
    static const sample large = {4, 8, 4, 1024, 1024, 64, true};
    const hd_dtype dtype = hdt_dtypes[_i];
    hdt_gpu_reset();
    const problem p = make_problem(dtype, &large);
    hdi_attention_args args = args_of(&large, &p, 1, true);
    hdt_run_attention(1, &args, false, false);
    hdt_run_attention(1, &args, true, false);
    const float *first = hdt_fetch(p.gradient);
    for (int again = 0; again < 5; again++) {
        HDT_CALL(1, attention_gradient, &args);
        const float *next = hdt_fetch(p.gradient);
        ck_assert_int_eq(memcmp(first, next, (size_t)p.gradient.count * sizeof *first), 0);
    }
}
END_TEST

/* Prompt of `count` tokens at `position` of a cache of 700. */
static void check_cached(hd_dtype dtype, int64_t tokens, int32_t count, int32_t position,
                         int64_t head_dim)
{
    enum { HEADS = 6, KV_HEADS = 2, CAPACITY = 700 };
    const int64_t q = HEADS * head_dim, kv = KV_HEADS * head_dim;
    hdt_gpu_reset();
    hdt_pair qkv = hdt_pair_make(dtype, tokens * (q + 2 * kv), 1, 2, 0);
    hdt_pair k_cache = hdt_pair_make(dtype, CAPACITY * kv, 2, 2, 0);
    hdt_pair v_cache = hdt_pair_make(dtype, CAPACITY * kv, 3, 2, 0);
    hdt_pair place = hdt_pair_ints(1, &position), length = hdt_pair_ints(1, &count);
    hdt_pair out = hdt_pair_zero(dtype, tokens * q);
    for (int side = 0; side < HDT_SIDES; side++) {
        hdi_attention_cached_args args = {.dtype = hdt_side_dtype(dtype, side),
                                          .tokens = tokens,
                                          .capacity = CAPACITY,
                                          .heads = HEADS,
                                          .kv_heads = KV_HEADS,
                                          .head_dim = head_dim,
                                          .q_stride = q + 2 * kv,
                                          .k_stride = q + 2 * kv,
                                          .v_stride = q + 2 * kv,
                                          .out_stride = q,
                                          .scale = 0.3f,
                                          .q = hdt_at(qkv, side),
                                          .k = hdt_element(qkv, side, q),
                                          .v = hdt_element(qkv, side, q + kv),
                                          .k_cache = hdt_at(k_cache, side),
                                          .v_cache = hdt_at(v_cache, side),
                                          .position = hdt_at(place, side),
                                          .count = hdt_at(length, side),
                                          .out = hdt_at(out, side)};
        args.workspace = hdt_scratch(side, hdt_sides[side]->attention_cached_workspace(&args));
        HDT_CALL(side, attention_cached, &args);
    }
    out.count = count * q; /* the rest is undefined */
    hdt_pair_check("cached attention", out, 2, 2, CAPACITY + head_dim + 32);
    hdt_pair_check("cached keys", k_cache, 1e-30, 0, 1);
    hdt_pair_check("cached values", v_cache, 1e-30, 0, 1);
}

START_TEST(cached_attention_is_that_of_the_cpu)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    check_cached(dtype, 1, 1, 0, 64);
    check_cached(dtype, 1, 1, 699, 64);
    check_cached(dtype, 5, 3, 300, 40);
    check_cached(dtype, 100, 77, 0, 64);
    check_cached(dtype, 100, 100, 250, 128);
}
END_TEST

START_TEST(a_full_cache_is_reported)
{
    const int32_t position = 8, count = 3;
    hdt_gpu_reset();
    hdt_pair x = hdt_pair_make(HD_DTYPE_F32, 4 * 8, 1, 1, 0),
             cache = hdt_pair_zero(HD_DTYPE_F32, 80);
    hdt_pair place = hdt_pair_ints(1, &position), length = hdt_pair_ints(1, &count);
    hdi_attention_cached_args args = {.dtype = HD_DTYPE_F32,
                                      .tokens = 4,
                                      .capacity = 10,
                                      .heads = 1,
                                      .kv_heads = 1,
                                      .head_dim = 8,
                                      .q_stride = 8,
                                      .k_stride = 8,
                                      .v_stride = 8,
                                      .out_stride = 8,
                                      .q = x.device,
                                      .k = x.device,
                                      .v = x.device,
                                      .k_cache = cache.device,
                                      .v_cache = cache.device,
                                      .position = place.device,
                                      .count = length.device,
                                      .out = hdt_scratch(1, 4 * 8 * sizeof(float))};
    args.workspace = hdt_scratch(1, hdt_sides[1]->attention_cached_workspace(&args));
    HDT_CALL(1, attention_cached, &args);
    hdt_assert_status(hdt_sides[1]->synchronize(hdt_streams[1]), HD_ERROR_ARGUMENT,
                      "3 tokens at position 8");
}
END_TEST

int main(void)
{
    TCase *cases = tcase_create("attention");
    tcase_add_loop_test(cases, attention_is_that_of_the_cpu, 0, 6);
    tcase_add_loop_test(cases, exact_gradients_are_equal_from_run_to_run, 0, 3);
    tcase_add_loop_test(cases, cached_attention_is_that_of_the_cpu, 0, 3);
    tcase_add_test(cases, a_full_cache_is_reported);
    return hdt_main_gpu("cuda attention", cases);
}
