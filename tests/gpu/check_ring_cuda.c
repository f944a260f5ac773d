/* What ring attention asks of the GPU, against the CPU backend: attention to a block of keys with
 * counts of their own, its gradient from another's result and log-sum-exp, merging, sums of blocks. */
#include "tests/gpu/hdt_gpu.h"

#include <stdio.h>
#include <string.h>

typedef struct sample {
    int64_t batch, heads, kv_heads, tokens, kv_tokens, head_dim;
    bool causal, counted;
} sample;

static const sample samples[] = {
    {2, 3, 3, 130, 200, 64, false, true},   {3, 2, 2, 200, 77, 128, false, true},
    {2, 4, 2, 129, 129, 128, false, false}, {1, 4, 2, 300, 300, 64, true, false},
    {1, 2, 2, 65, 300, 72, false, false},   {2, 2, 1, 40, 33, 40, false, true},
};
enum { SAMPLES = sizeof samples / sizeof *samples };

static const char *what_of(const sample *s, bool tiled, char out[128])
{
    snprintf(out, 128, "%lld x %lld tokens to %lld, heads of %lld%s%s%s", (long long)s->batch,
             (long long)s->tokens, (long long)s->kv_tokens, (long long)s->head_dim,
             s->causal ? ", causal" : "", s->counted ? ", counted" : "",
             tiled ? ", own kernels" : "");
    return out;
}

static hdt_pair counts_of(int64_t batch, int64_t tokens, int64_t less)
{
    int32_t counts[8];
    for (int64_t b = 0; b < batch; b++)
        counts[b] = (int32_t)(tokens - less * b);
    return hdt_pair_ints(batch, counts);
}

/* The gradient is asked for with a log-sum-exp that others have raised by log(2), as if as many keys
 * again had been seen elsewhere, and a result that is not the block's. */
static void check_block(hd_dtype dtype, const sample *s, bool tiled)
{
    hdt_gpu_reset();
    const int64_t query = s->heads * s->head_dim, key = s->kv_heads * s->head_dim;
    const int64_t rows = s->batch * s->tokens, kv_rows = s->batch * s->kv_tokens;
    const hdt_pair q = hdt_pair_make(dtype, rows * query, 1, 2, 0);
    const hdt_pair kv = hdt_pair_make(dtype, kv_rows * 2 * key, 2, 2, 0);
    const hdt_pair gradient = hdt_pair_make(dtype, rows * query, 3, 1, 0);
    const hdt_pair other = hdt_pair_make(dtype, rows * query, 4, 1, 0);
    const hdt_pair raised = hdt_pair_zero(HD_DTYPE_F32, s->batch * s->heads * s->tokens);
    const hdt_pair out = hdt_pair_zero(dtype, rows * query),
                   lse = hdt_pair_zero(HD_DTYPE_F32, raised.count);
    const hdt_pair q_gradient = hdt_pair_make(dtype, rows * query, 5, 1, 0);
    const hdt_pair kv_gradient = hdt_pair_make(dtype, kv_rows * 2 * key, 6, 1, 0);
    const hdt_pair counts = counts_of(s->batch, s->tokens, 37);
    const hdt_pair kv_counts = counts_of(s->batch, s->kv_tokens - 1, 13);
    for (int side = 0; side < HDT_SIDES; side++) {
        hdi_attention_args args = {.dtype = hdt_side_dtype(dtype, side),
                                   .batch = s->batch,
                                   .tokens = s->tokens,
                                   .kv_tokens = s->kv_tokens,
                                   .heads = s->heads,
                                   .kv_heads = s->kv_heads,
                                   .head_dim = s->head_dim,
                                   .q_stride = query,
                                   .k_stride = 2 * key,
                                   .v_stride = 2 * key,
                                   .out_stride = query,
                                   .scale = 0.2f,
                                   .causal = s->causal,
                                   .counts = s->counted ? hdt_at(counts, side) : NULL,
                                   .kv_counts = s->counted ? hdt_at(kv_counts, side) : NULL,
                                   .q = hdt_at(q, side),
                                   .k = hdt_at(kv, side),
                                   .v = hdt_element(kv, side, key),
                                   .out = hdt_at(out, side),
                                   .lse = hdt_at(lse, side)};
        hdt_run_attention(side, &args, false, tiled);
        if (side == 0) {
            for (int64_t i = 0; i < lse.count; i++)
                raised.host[i] = isinf(lse.host[i]) ? INFINITY : lse.host[i] + 0.6931472f;
            hdt_assert_ok(hdt_sides[1]->copy_in(hdt_streams[1], raised.device, raised.host,
                                                (size_t)raised.count * sizeof(float)));
            hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
        }
        args.out = hdt_at(other, side);
        args.lse = hdt_at(raised, side);
        args.out_gradient = hdt_at(gradient, side);
        args.q_gradient = hdt_at(q_gradient, side);
        args.k_gradient = hdt_at(kv_gradient, side);
        args.v_gradient = hdt_element(kv_gradient, side, key);
        hdt_run_attention(side, &args, true, tiled);
    }
    char what[128];
    what_of(s, tiled, what);
    /* As in check_attention_cuda.c; what cuDNN leaves in the log-sum-exp of others' rows is not said. */
    const int64_t terms = s->kv_tokens + s->head_dim + 32;
    hdt_pair_check(what, out, 2, 3, terms);
    if (!s->counted || tiled) hdt_pair_check(what, lse, 32, 0, terms);
    strncat(what, ": gradient", sizeof what - strlen(what) - 1);
    hdt_pair_check(what, q_gradient, 0, 8, 4 * terms);
    hdt_pair_check(what, kv_gradient, 0, 8, 4 * (terms + s->tokens * s->heads / s->kv_heads));
}

START_TEST(attention_to_a_block_is_that_of_the_cpu)
{
    for (int s = 0; s < SAMPLES; s++)
        check_block(hdt_dtypes[_i % 3], &samples[s], _i / 3);
}
END_TEST

/* Scores beyond what exponentials hold, nothing seen, tokens that do not count, part of the tokens. */
START_TEST(merged_results_are_those_of_the_cpu)
{
    enum { SEQUENCES = 3, TOKENS = 37, HEADS = 3, DIM = 72, FIRST = 9 };
    static const float logs[] = {3e38f, -3e38f, 1000, 999, -1000, 0, 88, -INFINITY, 89.5f, 1e30f};
    static const int32_t valid[] = {TOKENS, 20, 1};
    const hd_dtype dtype = hdt_dtypes[_i];
    const int64_t columns = HEADS * DIM;
    hdt_gpu_reset();
    const hdt_pair counts = hdt_pair_ints(SEQUENCES, valid);
    const hdt_pair out = hdt_pair_make(HD_DTYPE_F32, SEQUENCES * TOKENS * columns, 1, 1, 0);
    const hdt_pair lse = hdt_pair_make(HD_DTYPE_F32, SEQUENCES * TOKENS * HEADS, 2, 1, 0);
    for (int part = 0; part < 4; part++) {
        const int64_t first = part ? FIRST : 0, count = TOKENS - first;
        const hdt_pair x =
            hdt_pair_make(dtype, SEQUENCES * count * columns, 3 + (uint64_t)part, 1, 0);
        const hdt_pair x_lse = hdt_pair_zero(HD_DTYPE_F32, SEQUENCES * count * HEADS);
        for (int64_t i = 0; i < x_lse.count; i++)
            x_lse.host[i] = logs[(i * 7 + part * 3 + i / 5) % 10];
        hdt_assert_ok(hdt_sides[1]->copy_in(hdt_streams[1], x_lse.device, x_lse.host,
                                            (size_t)x_lse.count * sizeof(float)));
        for (int side = 0; side < HDT_SIDES; side++)
            HDT_CALL(side, merge_attention,
                     &(hdi_merge_attention_args){.dtype = hdt_side_dtype(dtype, side),
                                                 .sequences = SEQUENCES,
                                                 .tokens = TOKENS,
                                                 .heads = HEADS,
                                                 .head_dim = DIM,
                                                 .first = first,
                                                 .count = count,
                                                 .begins = part == 0,
                                                 .counts = hdt_at(counts, side),
                                                 .x = hdt_at(x, side),
                                                 .x_lse = hdt_at(x_lse, side),
                                                 .out = hdt_at(out, side),
                                                 .lse = hdt_at(lse, side)});
        hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
    }
    hdt_pair_check("merged results", out, 1, 0, 64);
    const float *got = hdt_fetch(lse);
    for (int64_t i = 0; i < lse.count; i++)
        ck_assert_msg(got[i] == lse.host[i] ||
                          fabsf(got[i] - lse.host[i]) <= 4e-7f * fabsf(lse.host[i]) + 4e-7f,
                      "log-sum-exp %lld is %g, want %g", (long long)i, (double)got[i],
                      (double)lse.host[i]);
}
END_TEST

START_TEST(blocks_are_added_as_on_the_cpu)
{
    static const int64_t sizes[][3] = {{3, 70, 99}, {2, 64, 64}, {1, 4096, 4096}, {5, 8, 24}};
    const hd_dtype dtype = hdt_dtypes[_i];
    for (int s = 0; s < 4; s++)
        for (int offset = 0; offset < 2; offset++) {
            hdt_gpu_reset();
            const hdt_pair x = hdt_pair_make(dtype, sizes[s][0] * sizes[s][1], 1, 1, offset);
            const hdt_pair out = hdt_pair_make(HD_DTYPE_F32, sizes[s][0] * sizes[s][2], 2, 1, 0);
            for (int side = 0; side < HDT_SIDES; side++)
                HDT_CALL(side, add_blocks,
                         &(hdi_add_blocks_args){.dtype = hdt_side_dtype(dtype, side),
                                                .blocks = sizes[s][0],
                                                .elements = sizes[s][1],
                                                .stride = sizes[s][2],
                                                .x = hdt_at(x, side),
                                                .out = hdt_at(out, side)});
            ck_assert_mem_eq(hdt_fetch(out), out.host, (size_t)out.count * sizeof(float));
        }
}
END_TEST

int main(void)
{
    TCase *cases = tcase_create("ring");
    tcase_add_loop_test(cases, attention_to_a_block_is_that_of_the_cpu, 0, 6);
    tcase_add_loop_test(cases, merged_results_are_those_of_the_cpu, 0, 3);
    tcase_add_loop_test(cases, blocks_are_added_as_on_the_cpu, 0, 3);
    return hdt_main_gpu("cuda ring", cases);
}
