/* What ring attention is made of: cuts of a sequence, attention to blocks of keys and its gradient,
 * results merged whatever the scores. */
#include "ops/ring_parts.h"
#include "tests/support/hdt_typed.h"

static const hd_backend *const cpu = &hdi_backend_cpu;

START_TEST(every_token_has_one_rank)
{
    enum { MOST = 64 };
    for (int ranks = 1; ranks <= 8; ranks++)
        for (int ring = 1; ring <= ranks; ring++)
            for (int zigzag = 0; zigzag < 2 && ranks % ring == 0; zigzag++)
                for (int64_t tokens = 2 * ranks; tokens < MOST; tokens += 7) {
                    const hdi_sequence_cut cut = {.ranks = ranks, .ring = ring, .zigzag = zigzag};
                    int owners[MOST] = {0};
                    for (int r = 0; r < ranks; r++) {
                        hdi_token_run runs[HDI_SEQUENCE_RUNS];
                        hdi_sequence_runs(&cut, tokens, r, runs);
                        const int64_t count = hdi_sequence_tokens_of(&cut, tokens, r);
                        ck_assert_int_eq(runs[0].count + runs[1].count, count);
                        ck_assert_int_ge(count, tokens / ranks - 1 - zigzag);
                        ck_assert_int_le(count, tokens / ranks + 2 + zigzag);
                        for (int i = 0; i < HDI_SEQUENCE_RUNS; i++)
                            for (int64_t t = 0; t < runs[i].count; t++)
                                owners[runs[i].first + t]++;
                    }
                    for (int64_t t = 0; t < tokens; t++)
                        ck_assert_int_eq(owners[t], 1);
                }
}
END_TEST

/* Pairs of queries and keys that a place's attention computes in one step. */
static int64_t pairs_of(hdi_ring_options *o, int place, int step)
{
    o->place = place;
    hdi_ring_at_step(o, step);
    return o->queries * o->keys;
}

START_TEST(a_zigzag_gives_all_places_the_same_work)
{
    const int places = 2 + _i;
    const int64_t tokens = 2 * places * 11;
    hdi_ring_options o = {.places = {.ranks = places, .ring = places, .zigzag = true},
                          .sequences = 1,
                          .tokens = tokens,
                          .causal = true};
    int64_t all = 0;
    for (int step = 0; step < places; step++)
        for (int place = 0; place < places; place++) {
            const int64_t pairs = pairs_of(&o, place, step);
            ck_assert_int_eq(pairs, pairs_of(&o, 0, step));
            all += step ? pairs : pairs / 2 + 11; /* a mask leaves half of the own block */
        }
    ck_assert_int_eq(all, tokens * (tokens + 1) / 2);
}
END_TEST

enum { SEQUENCES = 2, TOKENS = 5, HEADS = 3, DIM = 4, FIRST = 1, SOME = 3, PARTS = 4 };

/* Log-sum-exps whose exponentials, sums and differences are beyond what floats hold. */
static const float logs[] = {3e38F, -3e38F, 1000, 999, -1000, 0, 88, -INFINITY, 89.5F, 1e30F};

typedef struct sum {
    double lse, value;
} sum;

static sum join(sum a, sum b)
{
    const double max = fmax(a.lse, b.lse);
    if (isinf(max)) return (sum){max, 0};
    const double left = exp(a.lse - max), right = exp(b.lse - max);
    return (sum){max + log(left + right), (left * a.value + right * b.value) / (left + right)};
}

START_TEST(merged_results_are_right_whatever_the_scores)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    const int32_t counts[] = {TOKENS, 3};
    const int64_t rows = SEQUENCES * TOKENS, columns = HEADS * DIM;
    float *out = hdt_floats(rows * columns, 1), *lse = hdt_floats(rows * HEADS, 2);
    sum *want = hdt_take((size_t)(rows * columns) * sizeof *want);
    for (int part = 0; part < PARTS; part++) {
        const int64_t first = part ? FIRST : 0, count = part ? SOME : TOKENS;
        float *x = hdt_floats(SEQUENCES * count * columns, 3 + (uint64_t)part);
        float *x_lse = hdt_floats(SEQUENCES * HEADS * count, 9);
        const void *given = hdt_typed(dtype, x, SEQUENCES * count * columns);
        for (int64_t i = 0; i < SEQUENCES * HEADS * count; i++)
            x_lse[i] = logs[(i * 7 + part * 3 + i / 5) % 10];
        hdt_assert_ok(
            cpu->merge_attention(hdt_stream(), &(hdi_merge_attention_args){.dtype = dtype,
                                                                           .sequences = SEQUENCES,
                                                                           .tokens = TOKENS,
                                                                           .heads = HEADS,
                                                                           .head_dim = DIM,
                                                                           .first = first,
                                                                           .count = count,
                                                                           .begins = part == 0,
                                                                           .counts = counts,
                                                                           .x = given,
                                                                           .x_lse = x_lse,
                                                                           .out = out,
                                                                           .lse = lse}));
        for (int64_t i = 0; i < SEQUENCES * count * columns; i++) {
            const int64_t s = i / (count * columns), t = i / columns % count, h = i / DIM % HEADS;
            sum *one = &want[((s * TOKENS + first + t) * columns) + i % columns];
            const double next = first + t < counts[s] ? (double)x_lse[(s * HEADS + h) * count + t]
                                                      : (double)-INFINITY;
            *one = join(part ? *one : (sum){-INFINITY, 0}, (sum){next, (double)x[i]});
        }
    }
    for (int64_t i = 0; i < rows * columns; i++) {
        const int64_t s = i / (TOKENS * columns), t = i / columns % TOKENS, h = i / DIM % HEADS;
        const float got = lse[(s * HEADS + h) * TOKENS + t];
        if (t >= counts[s])
            ck_assert(got == INFINITY && out[i] == 0);
        else if (isinf(want[i].lse))
            ck_assert(got == -INFINITY && out[i] == 0);
        else
            hdt_near("lse", i, got, want[i].lse, 1 + fabs(want[i].lse), 4 * PARTS);
        hdt_near("out", i, out[i], want[i].value, 1, 8 * PARTS);
    }
}
END_TEST

START_TEST(blocks_are_added_where_they_belong)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    enum { BLOCKS = 3, WIDE = 7, STRIDE = 11 };
    float *out = hdt_floats(BLOCKS * STRIDE, 1), *before = hdt_floats(BLOCKS * STRIDE, 1);
    float *x = hdt_floats(BLOCKS * WIDE, 2);
    const void *given = hdt_typed(dtype, x, BLOCKS * WIDE);
    hdt_assert_ok(cpu->add_blocks(hdt_stream(), &(hdi_add_blocks_args){.dtype = dtype,
                                                                       .blocks = BLOCKS,
                                                                       .elements = WIDE,
                                                                       .stride = STRIDE,
                                                                       .x = given,
                                                                       .out = out}));
    for (int i = 0; i < BLOCKS * STRIDE; i++) {
        const int block = i / STRIDE, at = i % STRIDE;
        ck_assert_float_eq(out[i], before[i] + (at < WIDE ? x[block * WIDE + at] : 0));
    }
}
END_TEST

START_TEST(counts_of_a_part_are_what_of_it_is_valid)
{
    const int32_t counts[] = {0, 4, 5, 7, 8, 20}, want[] = {3, 3, 4, 6, 6, 6};
    int32_t out[6];
    hdt_assert_ok(cpu->raise_counts(
        NULL, &(hdi_raise_counts_args){
                  .elements = 6, .first = 4, .most = 3, .more = 3, .counts = counts, .out = out}));
    ck_assert_mem_eq(out, want, sizeof want);
}
END_TEST

/* Queries of two sequences, and keys that come in two blocks. */
enum { QUERIES = 70, LEFT = 65, RIGHT = 33, KEYS = LEFT + RIGHT, WIDTH = HEADS * DIM };

static hdi_attention_args attend(const float *q, const float *k, const float *v, int64_t keys,
                                 float scale)
{
    hdi_attention_args a = {.dtype = HD_DTYPE_F32,
                            .batch = 1,
                            .tokens = QUERIES,
                            .kv_tokens = keys,
                            .heads = HEADS,
                            .kv_heads = HEADS,
                            .head_dim = DIM,
                            .q_stride = WIDTH,
                            .k_stride = WIDTH,
                            .v_stride = WIDTH,
                            .out_stride = WIDTH,
                            .scale = scale,
                            .q = q,
                            .k = k,
                            .v = v};
    a.out = hdt_take(QUERIES * WIDTH * sizeof(float));
    a.lse = hdt_take(QUERIES * HEADS * sizeof(float));
    a.workspace = hdt_take(cpu->attention_workspace(&a));
    return a;
}

static void merge(const hdi_attention_args *block, bool begins, float *out, float *lse)
{
    hdt_assert_ok(
        cpu->merge_attention(hdt_stream(), &(hdi_merge_attention_args){.dtype = HD_DTYPE_F32,
                                                                       .sequences = 1,
                                                                       .tokens = QUERIES,
                                                                       .heads = HEADS,
                                                                       .head_dim = DIM,
                                                                       .count = QUERIES,
                                                                       .begins = begins,
                                                                       .x = block->out,
                                                                       .x_lse = block->lse,
                                                                       .out = out,
                                                                       .lse = lse}));
}

/* Gradients of a block, given the result and the log-sum-exp of all keys. */
static void differentiate(hdi_attention_args *a, float *out, float *lse, const float *gradient)
{
    a->out = out;
    a->lse = lse;
    a->out_gradient = gradient;
    a->q_gradient = hdt_take(QUERIES * WIDTH * sizeof(float));
    a->k_gradient = hdt_take(KEYS * WIDTH * sizeof(float));
    a->v_gradient = hdt_take(KEYS * WIDTH * sizeof(float));
    a->workspace = hdt_take(cpu->attention_gradient_workspace(a));
    hdt_assert_ok(cpu->attention_gradient(NULL, a));
}

/* Scores of up to 4, and up to 4000. */
START_TEST(blocks_and_their_gradients_make_up_the_whole)
{
    const float scale = _i ? 1000 : 1;
    const float *q = hdt_floats(QUERIES * WIDTH, 1), *k = hdt_floats(KEYS * WIDTH, 2),
                *v = hdt_floats(KEYS * WIDTH, 3), *gradient = hdt_floats(QUERIES * WIDTH, 4);
    hdi_attention_args whole = attend(q, k, v, KEYS, scale), block[2];
    float *out = hdt_floats(QUERIES * WIDTH, 5), *lse = hdt_floats(QUERIES * HEADS, 6);
    hdt_assert_ok(cpu->attention(NULL, &whole));
    for (int b = 0; b < 2; b++) {
        block[b] = attend(q, k + b * LEFT * WIDTH, v + b * LEFT * WIDTH, b ? RIGHT : LEFT, scale);
        hdt_assert_ok(cpu->attention(NULL, &block[b]));
        merge(&block[b], b == 0, out, lse);
    }
    /* A score errs by the rounding of its products, and its exponential by as much. */
    const double score = DIM * (double)scale;
    const int64_t terms = DIM + KEYS + 16;
    for (int64_t i = 0; i < QUERIES * WIDTH; i++)
        hdt_near("out", i, out[i], (double)((float *)whole.out)[i], 1 + score, terms);
    differentiate(&whole, whole.out, whole.lse, gradient);
    for (int b = 0; b < 2; b++)
        differentiate(&block[b], out, lse, gradient);
    const double slope = 2 * score * (1 + score), weight = QUERIES;
    const float *q_want = whole.q_gradient, *k_want = whole.k_gradient, *v_want = whole.v_gradient;
    for (int64_t i = 0; i < QUERIES * WIDTH; i++)
        hdt_near("q_gradient", i,
                 ((float *)block[0].q_gradient)[i] + ((float *)block[1].q_gradient)[i],
                 (double)q_want[i], slope, terms);
    for (int64_t i = 0; i < KEYS * WIDTH; i++) {
        const hdi_attention_args *one = &block[i >= LEFT * WIDTH];
        const int64_t at = i >= LEFT * WIDTH ? i - LEFT * WIDTH : i;
        hdt_near("k_gradient", i, ((float *)one->k_gradient)[at], (double)k_want[i], slope * weight,
                 terms);
        hdt_near("v_gradient", i, ((float *)one->v_gradient)[at], (double)v_want[i],
                 (1 + score) * weight, terms);
    }
}
END_TEST

/* Valid queries and valid keys: the result is that of those alone, and zeros. */
START_TEST(queries_and_keys_have_counts_of_their_own)
{
    const int32_t queries = 41, keys = _i ? 50 : 7;
    const float *q = hdt_floats(QUERIES * WIDTH, 1), *k = hdt_floats(KEYS * WIDTH, 2),
                *v = hdt_floats(KEYS * WIDTH, 3), *gradient = hdt_floats(QUERIES * WIDTH, 4);
    hdi_attention_args few = attend(q, k, v, keys, 1), counted = attend(q, k, v, KEYS, 1);
    few.tokens = queries;
    counted.counts = &queries;
    counted.kv_counts = &keys;
    hdt_assert_ok(cpu->attention(NULL, &few));
    hdt_assert_ok(cpu->attention(NULL, &counted));
    for (int64_t h = 0; h < HEADS; h++)
        ck_assert_mem_eq(counted.lse + h * QUERIES, few.lse + h * queries,
                         (size_t)queries * sizeof(float));
    const struct {
        const float *got, *want;
        int64_t rows, all;
    } out = {counted.out, few.out, queries, QUERIES};
    differentiate(&few, few.out, few.lse, gradient);
    differentiate(&counted, counted.out, counted.lse, gradient);
    const struct {
        const float *got, *want;
        int64_t rows, all;
    } check[] = {{out.got, out.want, queries, QUERIES},
                 {counted.q_gradient, few.q_gradient, queries, QUERIES},
                 {counted.k_gradient, few.k_gradient, keys, KEYS},
                 {counted.v_gradient, few.v_gradient, keys, KEYS}};
    for (int i = 0; i < 4; i++) {
        ck_assert_mem_eq(check[i].got, check[i].want,
                         (size_t)(check[i].rows * WIDTH) * sizeof(float));
        for (int64_t at = check[i].rows * WIDTH; at < check[i].all * WIDTH; at++)
            ck_assert_float_eq(check[i].got[at], 0);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ring kernels");
    TCase *cuts = tcase_create("cuts"), *calls = tcase_create("calls");
    tcase_add_test(cuts, every_token_has_one_rank);
    tcase_add_loop_test(cuts, a_zigzag_gives_all_places_the_same_work, 0, 7);
    tcase_add_checked_fixture(calls, hdt_open_typed, hdt_close_typed);
    tcase_add_loop_test(calls, merged_results_are_right_whatever_the_scores, 0, 3);
    tcase_add_loop_test(calls, blocks_are_added_where_they_belong, 0, 3);
    tcase_add_test(calls, counts_of_a_part_are_what_of_it_is_valid);
    tcase_add_loop_test(calls, blocks_and_their_gradients_make_up_the_whole, 0, 2);
    tcase_add_loop_test(calls, queries_and_keys_have_counts_of_their_own, 0, 2);
    suite_add_tcase(suite, cuts);
    suite_add_tcase(suite, calls);
    return hdt_main(suite);
}
