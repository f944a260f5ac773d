/* Attention of video transformers on the GPU against the CPU backend: joint streams, sequences that lie
 * between one another, counted tokens, keys of other rows. By cuDNN where it takes the shape and by
 * the kernels for all. */
#include "tests/gpu/hdt_gpu.h"

#include <stdio.h>

typedef struct stream_sample {
    int64_t sequences, tokens, first, out_tokens, heads, head_dim;
    hdi_rope_axes rope;
    bool normed, in_place;
} stream_sample;

static const stream_sample streams[] = {
    {2,
     37,
     5,
     50,
     3,
     128,
     {3, false, {16, 56, 56}, {3, 4, 5}, {20, 5, 1}, 0, 0, 0, NULL},
     true,
     false},
    {2,
     37,
     5,
     50,
     24,
     128,
     {3, true, {44, 42, 42}, {3, 4, 5}, {20, 5, 1}, 3, 30, 7, NULL},
     true,
     false},
    {1, 65, 0, 65, 5, 72, {1, false, {72}, {65}, {1}, 0, 0, 0, NULL}, true, true},
    {2, 30, 3, 40, 2, 64, {1, true, {64}, {11}, {2}, 0, 0, 0, NULL}, true, false},
    {1, 33, 0, 33, 3, 72, {1, true, {72}, {33}, {1}, 0, 20, 0, NULL}, false, true},
    {2, 20, 2, 30, 7, 128, {0}, false, false},
    {1, 20, 0, 20, 3, 40, {0}, true, false},
    {1, 9, 0, 9, 2, 6, {1, false, {6}, {9}, {1}, 4, 5, 0, NULL}, true, false},
    {1, 9, 0, 9, 2, 256, {2, false, {128, 128}, {9, 3}, {1, 1}, 0, 0, 0, NULL}, true, false},
};

enum { STREAMS = sizeof streams / sizeof *streams, PARTS = 7 };

static void check_stream(hd_dtype dtype, const stream_sample *s, int offset)
{
    const int64_t width = 3 * s->heads * s->head_dim, rows = s->sequences * s->tokens;
    int64_t angles = 2;
    for (int a = 0; a < s->rope.axes; a++)
        angles += s->rope.length[a] * s->rope.dims[a];
    hdt_gpu_reset();
    hdt_pair x = hdt_pair_make(dtype, rows * width, 1, 1, offset);
    hdt_pair query_norm = hdt_pair_make(dtype, s->head_dim, 2, 1, 0);
    hdt_pair key_norm = hdt_pair_make(dtype, s->head_dim, 3, 1, 0);
    hdt_pair table = hdt_pair_make(HD_DTYPE_F32, angles, 4, 1, 0);
    /* Rows of other streams must stay. */
    hdt_pair out = hdt_pair_make(dtype, s->sequences * s->out_tokens * width, 5, 1, 0);
    hdt_pair gradient = hdt_pair_make(dtype, out.count, 6, 1, 0);
    hdt_pair x_gradient = s->in_place ? gradient : hdt_pair_zero(dtype, x.count);
    hdt_pair partials = hdt_pair_make(HD_DTYPE_F32, PARTS * 2 * s->head_dim, 7, 1, 0);
    const float *first = NULL;
    for (int run = 0; run < HDT_SIDES + 1; run++) {
        const int side = run > 0; /* twice on the GPU */
        if (run == 2 && s->in_place) break;
        hdi_joint_qkv_gradient_args args = {
            .forward = {.dtype = hdt_side_dtype(dtype, side),
                        .sequences = s->sequences,
                        .tokens = s->tokens,
                        .first = s->first,
                        .out_tokens = s->out_tokens,
                        .heads = s->heads,
                        .head_dim = s->head_dim,
                        .epsilon = 1e-6f,
                        .qkv = hdt_at(x, side),
                        .query_norm = s->normed ? hdt_at(query_norm, side) : NULL,
                        .key_norm = s->normed ? hdt_at(key_norm, side) : NULL,
                        .rope = s->rope,
                        .out = hdt_at(out, side)},
            .partial_rows = PARTS,
            .gradient = hdt_at(gradient, side),
            .qkv_gradient = hdt_at(x_gradient, side),
            .partials = s->normed ? hdt_at(partials, side) : NULL,
        };
        args.forward.rope.table = hdt_at(table, side);
        HDT_CALL(side, joint_qkv_gradient, &args);
        if (run == 1) first = hdt_fetch(partials);
        if (s->in_place) args.forward.out = hdt_at(x, side);
        HDT_CALL(side, joint_qkv, &args.forward);
    }
    if (s->in_place) out = x;
    /* A head's numbers are below 2 deviations; turned, below 4. Rounded as normed, weighted, turned. */
    hdt_pair_check("joint_qkv", out, 4, 4, s->head_dim + 8);
    hdt_pair_check("joint_qkv gradient", x_gradient, 0, 2, 2 * s->head_dim + 16);
    const int64_t terms = hdi_ceil_div(rows, PARTS) * s->heads;
    if (s->normed)
        hdt_pair_check("joint_qkv gradient: partials", partials, 4 * (double)terms, 0,
                       terms + s->head_dim + 8);
    if (!s->in_place) /* the rest was never written */
        ck_assert_mem_eq(hdt_fetch(partials), first, (size_t)partials.count * sizeof *first);
}

START_TEST(streams_are_normed_turned_and_joined)
{
    for (int s = 0; s < STREAMS; s++)
        for (int offset = 0; offset < 2; offset++)
            check_stream(hdt_dtypes[_i], &streams[s], offset);
}
END_TEST

typedef struct sample {
    int64_t batch, heads, tokens, head_dim, interleave;
    bool causal, counted;
} sample;

static const sample samples[] = {
    {14, 2, 30, 72, 7, false, false},   {318, 2, 30, 72, 159, false, false},
    {3, 2, 1590, 72, 0, false, false},  {4, 1, 65, 128, 2, true, false},
    {70000, 1, 3, 8, 0, false, false},  {1, 2, 2561, 128, 0, false, false},
    {4, 3, 130, 128, 0, false, true},   {3, 2, 77, 72, 0, false, true},
    {4, 2, 100, 64, 2, false, true},    {3, 2, 90, 64, 0, true, true},
    {1, 24, 1025, 64, 0, false, false},
};

enum { SAMPLES = sizeof samples / sizeof *samples };

typedef struct problem {
    hdt_pair qkv, out, lse, out_gradient, gradient, counts;
} problem;

/* Queries, keys and values in one matrix. What is written holds something before. */
static problem make_problem(hd_dtype dtype, const sample *s)
{
    static const int32_t full[] = {0, 1}; /* a sequence with one token, and one with all */
    const int64_t width = s->heads * s->head_dim, rows = s->batch * s->tokens;
    problem p = {.qkv = hdt_pair_make(dtype, rows * 3 * width, 1, 2, 0),
                 .out = hdt_pair_make(dtype, rows * width, 2, 1, 0),
                 .lse = hdt_pair_zero(HD_DTYPE_F32, s->batch * s->heads * s->tokens),
                 .out_gradient = hdt_pair_make(dtype, rows * width, 3, 1, 0)};
    p.gradient = hdt_pair_make(dtype, p.qkv.count, 4, 1, 0);
    if (!s->counted) return p;
    int32_t counts[8];
    for (int64_t b = 0; b < s->batch; b++)
        counts[b] = b < 2 ? (full[b] ? (int32_t)s->tokens : 1) : (int32_t)(s->tokens / 3 * (b - 1));
    p.counts = hdt_pair_ints(s->batch, counts);
    return p;
}

static hdi_attention_args args_of(const sample *s, const problem *p, int side, bool exact)
{
    const int64_t width = s->heads * s->head_dim;
    return (hdi_attention_args){
        .dtype = hdt_side_dtype(p->qkv.dtype, side),
        .batch = s->batch,
        .tokens = s->tokens,
        .kv_tokens = s->tokens,
        .heads = s->heads,
        .kv_heads = s->heads,
        .head_dim = s->head_dim,
        .q_stride = 3 * width,
        .k_stride = 3 * width,
        .v_stride = 3 * width,
        .out_stride = width,
        .scale = 0.2f,
        .causal = s->causal,
        .exact = exact,
        .interleave = s->interleave,
        .counts = s->counted ? hdt_at(p->counts, side) : NULL,
        .q = hdt_at(p->qkv, side),
        .k = hdt_element(p->qkv, side, width),
        .v = hdt_element(p->qkv, side, 2 * width),
        .out = hdt_at(p->out, side),
        .lse = hdt_at(p->lse, side),
        .out_gradient = hdt_at(p->out_gradient, side),
        .q_gradient = hdt_at(p->gradient, side),
        .k_gradient = hdt_element(p->gradient, side, width),
        .v_gradient = hdt_element(p->gradient, side, 2 * width),
    };
}

static void run_both(int side, hdi_attention_args *args, bool tiled)
{
    hdt_run_attention(side, args, false, tiled);
    hdt_run_attention(side, args, true, tiled);
}

/* Rows behind the counts are zero, not nearly. */
static void check_zeros(const char *what, const sample *s, const problem *p, hdt_pair x)
{
    const float *got = hdt_fetch(x);
    const int32_t *counts = (const int32_t *)(void *)p->counts.host;
    const int64_t columns = x.count / (s->batch * s->tokens);
    const int64_t between = s->interleave > 1 ? s->interleave : 1;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t t = counts[b]; t < s->tokens; t++)
            for (int64_t c = 0; c < columns; c++) {
                const int64_t row = b / between * s->tokens * between + t * between + b % between;
                if (got[row * columns + c] != 0)
                    ck_abort_msg("%s, %s: sequence %lld, token %lld of %d, column %lld is %g", what,
                                 hd_dtype_name(x.dtype), (long long)b, (long long)t, counts[b],
                                 (long long)c, (double)got[row * columns + c]);
            }
}

static void check_sample(hd_dtype dtype, const sample *s, bool tiled, bool exact)
{
    char what[128];
    hdt_gpu_reset();
    const problem p = make_problem(dtype, s);
    for (int side = 0; side < HDT_SIDES; side++) {
        hdi_attention_args args = args_of(s, &p, side, exact);
        run_both(side, &args, tiled);
    }
    snprintf(what, sizeof what, "%lld x %lld tokens, heads of %lld, %lld between%s%s%s",
             (long long)s->batch, (long long)s->tokens, (long long)s->head_dim,
             (long long)s->interleave, s->counted ? ", counted" : "", tiled ? ", own kernels" : "",
             exact ? ", exact" : "");
    /* As in check_attention_cuda.c. */
    const int64_t terms = s->tokens + s->head_dim + 32;
    hdt_pair_check(what, p.out, 2, 3, terms);
    if (s->counted) check_zeros(what, s, &p, p.out);
    if (!s->counted || tiled) hdt_pair_check(what, p.lse, 32, 0, terms);
    strncat(what, ": gradient", sizeof what - strlen(what) - 1);
    hdt_pair_check(what, p.gradient, 0, 8, 4 * terms);
    if (s->counted) check_zeros(what, s, &p, p.gradient);
}

START_TEST(attention_within_videos_is_that_of_the_cpu)
{
    for (int s = 0; s < SAMPLES; s++) {
        check_sample(hdt_dtypes[_i % 3], &samples[s], _i / 3, false);
        if (samples[s].batch < 1000) check_sample(hdt_dtypes[_i % 3], &samples[s], _i / 3, true);
    }
}
END_TEST

/* One head is a slice of the exact backward, as for the longest sequences. */
START_TEST(exact_gradients_are_equal_from_run_to_run)
{
    static const sample large = {1, 8, 6001, 64, 0, false, false};
    const hd_dtype dtype = hdt_dtypes[1 + _i];
    hdt_gpu_reset();
    const problem p = make_problem(dtype, &large);
    hdi_attention_args args = args_of(&large, &p, 1, true);
    run_both(1, &args, false);
    const float *first = hdt_fetch(p.gradient);
    HDT_CALL(1, attention_gradient, &args);
    ck_assert_mem_eq(first, hdt_fetch(p.gradient), (size_t)p.gradient.count * sizeof *first);
    args.exact = false; /* all heads at once */
    hdt_pair fast = p.gradient;
    fast.host = hdt_fetch(p.gradient);
    HDT_CALL(1, attention_gradient, &args);
    hdt_pair_check("the slices' gradient and the whole", fast, 0, 8, 4 * (6001 + 64 + 32));
}
END_TEST

typedef struct cross_sample {
    int64_t sequences, tokens, kv_rows, heads, head_dim;
    int32_t offsets[5]; /* all 0: none */
    int64_t most_keys;
} cross_sample;

/* With most_keys on cuDNN, without by the own kernels. */
static const cross_sample crossings[] = {
    {2, 130, 154, 3, 72, {0}, 0},
    {3, 65, 23, 2, 128, {0}, 0}, /* two rows of no sequence */
    {1, 700, 300, 2, 72, {0}, 0},
    {3, 100, 200, 2, 72, {0, 77, 77, 180}, 0}, /* a sequence without keys, and keys of none */
    {2, 33, 90, 2, 40, {5, 60, 90}, 0},
    {4, 65, 260, 1, 128, {0, 64, 65, 129, 260}, 0},
    {3, 100, 200, 2, 72, {0, 77, 77, 180}, 103},
    {2, 33, 90, 2, 40, {5, 60, 90}, 90},
    {4, 65, 260, 1, 128, {0, 64, 65, 129, 260}, 131}, /* places for 256 keys */
    {4, 257, 600, 3, 72, {0, 1, 1, 300, 413}, 300},
    {1, 1300, 300, 16, 72, {0, 219}, 300},
    {2, 90, 300, 2, 64, {7, 135, 263}, 128}, /* tiles are full */
    {2, 50, 40, 1, 64, {0, 0, 0}, 20},       /* no keys at all */
    {2, 50, 60, 3, 20, {3, 20, 60}, 40},     /* heads that cuDNN does not take */
};

enum { CROSSINGS = sizeof crossings / sizeof *crossings };

typedef struct crossing {
    hdt_pair q, kv, out, lse, offsets, out_gradient, q_gradient, kv_gradient;
} crossing;

/* What is written holds something before. Packed keys need no alignment. */
static crossing make_crossing(hd_dtype dtype, const cross_sample *s)
{
    const int64_t width = s->heads * s->head_dim, rows = s->sequences * s->tokens;
    crossing c = {.q = hdt_pair_make(dtype, rows * width, 1, 2, 0),
                  .kv = hdt_pair_make(dtype, s->kv_rows * 2 * width, 2, 2, s->most_keys > 0),
                  .out = hdt_pair_make(dtype, rows * width, 3, 1, 0),
                  .lse = hdt_pair_zero(HD_DTYPE_F32, rows * s->heads),
                  .offsets = hdt_pair_ints(s->sequences + 1, s->offsets),
                  .out_gradient = hdt_pair_make(dtype, rows * width, 4, 1, 0),
                  .q_gradient = hdt_pair_make(dtype, rows * width, 5, 1, 0)};
    c.kv_gradient = hdt_pair_make(dtype, c.kv.count, 6, 1, s->most_keys > 0);
    return c;
}

static bool is_packed(const cross_sample *s)
{
    return s->most_keys > 0 || s->offsets[s->sequences] > 0;
}

static hdi_cross_attention_args crossing_args(const cross_sample *s, const crossing *c, int side,
                                              bool exact)
{
    const int64_t width = s->heads * s->head_dim;
    return (hdi_cross_attention_args){
        .dtype = hdt_side_dtype(c->q.dtype, side),
        .sequences = s->sequences,
        .tokens = s->tokens,
        .kv_rows = s->kv_rows,
        .heads = s->heads,
        .head_dim = s->head_dim,
        .q_stride = width,
        .k_stride = 2 * width,
        .v_stride = 2 * width,
        .out_stride = width,
        .scale = 0.2f,
        .exact = exact,
        .most_keys = s->most_keys,
        .offsets = is_packed(s) ? hdt_at(c->offsets, side) : NULL,
        .q = hdt_at(c->q, side),
        .k = hdt_at(c->kv, side),
        .v = hdt_element(c->kv, side, width),
        .out = hdt_at(c->out, side),
        .lse = hdt_at(c->lse, side),
        .out_gradient = hdt_at(c->out_gradient, side),
        .q_gradient = hdt_at(c->q_gradient, side),
        .k_gradient = hdt_at(c->kv_gradient, side),
        .v_gradient = hdt_element(c->kv_gradient, side, width),
    };
}

static void run_crossing(int side, hdi_cross_attention_args *args)
{
    args->workspace = hdt_scratch(side, hdt_sides[side]->cross_attention_workspace(args));
    HDT_CALL(side, cross_attention, args);
    args->workspace = hdt_scratch(side, hdt_sides[side]->cross_attention_gradient_workspace(args));
    HDT_CALL(side, cross_attention_gradient, args);
}

static void check_crossing(hd_dtype dtype, const cross_sample *s, bool exact)
{
    char what[128];
    hdt_gpu_reset();
    const crossing c = make_crossing(dtype, s);
    for (int side = 0; side < HDT_SIDES; side++) {
        hdi_cross_attention_args args = crossing_args(s, &c, side, exact);
        run_crossing(side, &args);
    }
    snprintf(what, sizeof what, "%lld x %lld queries to %lld keys%s, %lld each at most",
             (long long)s->sequences, (long long)s->tokens, (long long)s->kv_rows,
             is_packed(s) ? ", packed" : "", (long long)s->most_keys);
    const int64_t terms = s->kv_rows + s->head_dim + 32, each = s->tokens * s->heads;
    hdt_pair_check(what, c.out, 2, 3, terms);
    for (int64_t i = 0; i < s->sequences; i++) {
        const hdt_pair lse = {HD_DTYPE_F32, each, c.lse.host + i * each,
                              hdt_element(c.lse, 1, i * each)};
        if (!is_packed(s) || s->offsets[i + 1] > s->offsets[i])
            hdt_pair_check(what, lse, 32, 0, terms);
    }
    strncat(what, ": gradient", sizeof what - strlen(what) - 1);
    hdt_pair_check(what, c.q_gradient, 0, 8, 4 * terms);
    hdt_pair_check(what, c.kv_gradient, 0, 8, 4 * (s->tokens + terms));
}

START_TEST(attention_across_is_that_of_the_cpu)
{
    for (int s = 0; s < CROSSINGS; s++)
        for (int exact = 0; exact < 2; exact++)
            check_crossing(hdt_dtypes[_i], &crossings[s], exact);
}
END_TEST

START_TEST(exact_gradients_across_are_equal_from_run_to_run)
{
    static const cross_sample large = {2, 6001, 600, 8, 72, {0, 219, 519}, 300};
    hdt_gpu_reset();
    const crossing c = make_crossing(hdt_dtypes[1 + _i], &large);
    hdi_cross_attention_args args = crossing_args(&large, &c, 1, true);
    run_crossing(1, &args);
    const float *q = hdt_fetch(c.q_gradient), *kv = hdt_fetch(c.kv_gradient);
    run_crossing(1, &args);
    ck_assert_mem_eq(q, hdt_fetch(c.q_gradient), (size_t)c.q_gradient.count * sizeof *q);
    ck_assert_mem_eq(kv, hdt_fetch(c.kv_gradient), (size_t)c.kv_gradient.count * sizeof *kv);
}
END_TEST

static void report_crossing(hd_dtype dtype, cross_sample s, const char *text)
{
    hdt_gpu_reset();
    const crossing c = make_crossing(dtype, &s);
    hdi_cross_attention_args args = crossing_args(&s, &c, 1, false);
    args.workspace = hdt_scratch(1, hdt_sides[1]->cross_attention_workspace(&args));
    HDT_CALL(1, cross_attention, &args);
    hdt_assert_status(hdt_sides[1]->synchronize(hdt_streams[1]), HD_ERROR_ARGUMENT, text);
}

/* By both ways. */
START_TEST(keys_that_are_not_there_or_too_many_are_reported)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    report_crossing(dtype, (cross_sample){1, 2, 8, 1, 8, {0, 9}, 0}, "cross attention: offset 9");
    report_crossing(dtype, (cross_sample){1, 2, 8, 1, 8, {0, 9}, 8}, "cross attention: offset 9");
    report_crossing(dtype, (cross_sample){1, 2, 8, 1, 8, {0, 7}, 6},
                    "cross attention: number of keys 7");
}
END_TEST

int main(void)
{
    TCase *cases = tcase_create("video attention");
    tcase_add_loop_test(cases, streams_are_normed_turned_and_joined, 0, 3);
    tcase_add_loop_test(cases, attention_within_videos_is_that_of_the_cpu, 0, 6);
    tcase_add_loop_test(cases, exact_gradients_are_equal_from_run_to_run, 0, 2);
    tcase_add_loop_test(cases, attention_across_is_that_of_the_cpu, 0, 3);
    tcase_add_loop_test(cases, exact_gradients_across_are_equal_from_run_to_run, 0, 2);
    tcase_add_loop_test(cases, keys_that_are_not_there_or_too_many_are_reported, 0, 3);
    return hdt_main_gpu("cuda video attention", cases);
}
