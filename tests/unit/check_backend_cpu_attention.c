/* Attention of the CPU backend, forward, backward and cached, against fp64 written naively. */
#include "tests/support/hdt_backend.h"

typedef struct shape {
    int64_t batch, tokens, kv_tokens, heads, kv_heads, head_dim;
    bool causal;
} shape;

static const shape shapes[] = {
    {2, 1, 1, 2, 2, 16, true},     {1, 7, 7, 3, 1, 24, true},      {2, 65, 65, 4, 2, 64, true},
    {1, 130, 130, 2, 2, 80, true}, {1, 65, 130, 2, 1, 16, true},   {1, 130, 70, 2, 2, 24, true},
    {2, 65, 130, 2, 2, 24, false}, {1, 200, 200, 4, 4, 16, false},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static const hd_backend *const cpu = &hdi_backend_cpu;

/* Columns beside the heads, so that strides differ from widths. */
enum { BESIDE = 5 };

static hdi_attention_args make(const shape *s)
{
    hdi_attention_args args = {
        .dtype = HD_DTYPE_F32,
        .batch = s->batch,
        .tokens = s->tokens,
        .kv_tokens = s->kv_tokens,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
        .q_stride = s->heads * s->head_dim + BESIDE,
        .k_stride = s->kv_heads * s->head_dim + BESIDE,
        .v_stride = s->kv_heads * s->head_dim + 2 * BESIDE,
        .out_stride = s->heads * s->head_dim + 1,
        .scale = 0.3f,
        .causal = s->causal,
    };
    args.q = hdt_floats(s->batch * s->tokens * args.q_stride, 1);
    args.k = hdt_floats(s->batch * s->kv_tokens * args.k_stride, 2);
    args.v = hdt_floats(s->batch * s->kv_tokens * args.v_stride, 3);
    args.out = hdt_floats(s->batch * s->tokens * args.out_stride, 4);
    args.lse = hdt_floats(s->batch * s->heads * s->tokens, 5);
    hdi_cpu_set_threads(3);
    args.workspace = hdt_take(cpu->attention_workspace(&args));
    return args;
}

/* One query in fp64: probabilities [kv_tokens], its output; returns the log-sum-exp. */
static double reference_query(const hdi_attention_args *a, int64_t b, int64_t h, int64_t t,
                              double *probabilities, double *out)
{
    const int64_t kv_head = h * a->kv_heads / a->heads;
    const int64_t visible = a->causal ? t + a->kv_tokens - a->tokens + 1 : a->kv_tokens;
    const float *q = (const float *)a->q + (b * a->tokens + t) * a->q_stride + h * a->head_dim;
    double sum = 0;
    for (int64_t j = 0; j < a->kv_tokens; j++) {
        const float *k = (const float *)a->k + (b * a->kv_tokens + j) * a->k_stride;
        double score = 0;
        for (int64_t d = 0; d < a->head_dim; d++)
            score += (double)q[d] * (double)k[kv_head * a->head_dim + d];
        probabilities[j] = j < visible ? exp((double)a->scale * score) : 0;
        sum += probabilities[j];
    }
    memset(out, 0, (size_t)a->head_dim * sizeof *out);
    for (int64_t j = 0; j < a->kv_tokens && sum > 0; j++) {
        const float *v = (const float *)a->v + (b * a->kv_tokens + j) * a->v_stride;
        probabilities[j] /= sum;
        for (int64_t d = 0; d < a->head_dim; d++)
            out[d] += probabilities[j] * (double)v[kv_head * a->head_dim + d];
    }
    return log(sum);
}

/* All data are in [-1, 1): a score errs by the rounding of head_dim products, its exponential by as
 * much relatively, and a mean over keys of values in [-1, 1] adds the rounding of the keys. */
static int64_t terms_of(const hdi_attention_args *a)
{
    return 2 * a->head_dim + a->kv_tokens + 8;
}

START_TEST(attention_equals_softmax_of_scores)
{
    const shape *s = &shapes[_i];
    hdi_attention_args a = make(s);
    const int64_t floats = a.batch * a.tokens * a.out_stride;
    float *before = hdt_floats(floats, 9);
    hdt_same_on_threads(cpu->attention(NULL, &a), (float *)a.out, before, floats);
    double *probabilities = hdt_take((size_t)a.kv_tokens * sizeof(double));
    double *want = hdt_take((size_t)a.head_dim * sizeof(double));
    for (int64_t b = 0; b < a.batch; b++)
        for (int64_t h = 0; h < a.heads; h++)
            for (int64_t t = 0; t < a.tokens; t++) {
                const double lse = reference_query(&a, b, h, t, probabilities, want);
                const int64_t row = (b * a.tokens + t) * a.out_stride;
                const float *out = (const float *)a.out + row + h * a.head_dim;
                for (int64_t d = 0; d < a.head_dim; d++)
                    hdt_near("out", t, out[d], want[d], 2, terms_of(&a));
                const float got = a.lse[(b * a.heads + h) * a.tokens + t];
                if (isinf(lse))
                    ck_assert(isinf(got) && got < 0);
                else
                    hdt_near("lse", t, got, lse, 2 + fabs(lse), terms_of(&a));
            }
    for (int64_t r = 0; r < a.batch * a.tokens; r++) /* the column beside the heads is not ours */
        ck_assert(((float *)a.out)[(r + 1) * a.out_stride - 1] ==
                  before[(r + 1) * a.out_stride - 1]);

    float *out = hdt_take((size_t)floats * sizeof(float)); /* and without lse: the same */
    memcpy(out, a.out, (size_t)floats * sizeof(float));
    a.lse = NULL;
    hdt_assert_ok(cpu->attention(NULL, &a));
    ck_assert(memcmp(out, a.out, (size_t)floats * sizeof(float)) == 0);
}
END_TEST

static int64_t largest(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

START_TEST(attention_gradient_equals_the_analytic_one)
{
    const shape *s = &shapes[_i];
    hdi_attention_args a = make(s);
    const int64_t q_floats = a.batch * a.tokens * a.q_stride;
    const int64_t k_floats = a.batch * a.kv_tokens * a.k_stride;
    const int64_t v_floats = a.batch * a.kv_tokens * a.v_stride;
    hdt_assert_ok(cpu->attention(NULL, &a));
    a.out_gradient = hdt_floats(a.batch * a.tokens * a.out_stride, 6);
    float *gradients = hdt_floats(q_floats + k_floats + v_floats, 7);
    float *before = hdt_floats(q_floats + k_floats + v_floats, 7);
    a.q_gradient = gradients;
    a.k_gradient = gradients + q_floats;
    a.v_gradient = gradients + q_floats + k_floats;
    a.workspace = hdt_take(cpu->attention_gradient_workspace(&a));
    hdt_same_on_threads(cpu->attention_gradient(NULL, &a), gradients, before,
                        q_floats + k_floats + v_floats);

    double *q_want = hdt_take((size_t)q_floats * sizeof(double));
    double *k_want = hdt_take((size_t)k_floats * sizeof(double));
    double *v_want = hdt_take((size_t)v_floats * sizeof(double));
    double *probabilities = hdt_take((size_t)a.kv_tokens * sizeof(double));
    double *slopes = hdt_take((size_t)a.kv_tokens * sizeof(double));
    double *out = hdt_take((size_t)a.head_dim * sizeof(double));
    double weight = 0; /* most probability that a key gets from all queries */
    double *key_weight = hdt_take((size_t)(a.batch * a.kv_tokens * a.kv_heads) * sizeof(double));
    for (int64_t b = 0; b < a.batch; b++)
        for (int64_t h = 0; h < a.heads; h++)
            for (int64_t t = 0; t < a.tokens; t++) {
                if (isinf(reference_query(&a, b, h, t, probabilities, out))) continue;
                const int64_t kv = h * a.kv_heads / a.heads * a.head_dim;
                const int64_t row = b * a.tokens + t;
                const float *g =
                    (const float *)a.out_gradient + row * a.out_stride + h * a.head_dim;
                const float *q = (const float *)a.q + row * a.q_stride + h * a.head_dim;
                double center = 0;
                for (int64_t d = 0; d < a.head_dim; d++)
                    center += (double)g[d] * out[d];
                for (int64_t j = 0; j < a.kv_tokens; j++) {
                    const int64_t key = b * a.kv_tokens + j;
                    const float *v = (const float *)a.v + key * a.v_stride + kv;
                    const float *k = (const float *)a.k + key * a.k_stride + kv;
                    slopes[j] = -center;
                    for (int64_t d = 0; d < a.head_dim; d++)
                        slopes[j] += (double)g[d] * (double)v[d];
                    slopes[j] *= probabilities[j] * (double)a.scale;
                    for (int64_t d = 0; d < a.head_dim; d++) {
                        q_want[row * a.q_stride + h * a.head_dim + d] += slopes[j] * (double)k[d];
                        k_want[key * a.k_stride + kv + d] += slopes[j] * (double)q[d];
                        v_want[key * a.v_stride + kv + d] += probabilities[j] * (double)g[d];
                    }
                    double *sum = &key_weight[key * a.kv_heads + kv / a.head_dim];
                    *sum += probabilities[j];
                    weight = fmax(weight, *sum);
                }
            }
    /* A slope is a probability times at most 2 * head_dim, times the scale. */
    const int64_t terms = 2 * terms_of(&a) + largest(a.tokens * a.heads / a.kv_heads, a.kv_tokens);
    const double slope = 2 * (double)a.head_dim * (double)a.scale;
    for (int64_t i = 0; i < q_floats; i++) {
        if (i % a.q_stride >= a.heads * a.head_dim)
            ck_assert(gradients[i] == before[i]);
        else
            hdt_near("q_gradient", i, gradients[i], q_want[i], slope, terms);
    }
    for (int64_t i = 0; i < k_floats; i++)
        if (i % a.k_stride < a.kv_heads * a.head_dim)
            hdt_near("k_gradient", i, gradients[q_floats + i], k_want[i], slope * weight, terms);
    for (int64_t i = 0; i < v_floats; i++)
        if (i % a.v_stride < a.kv_heads * a.head_dim)
            hdt_near("v_gradient", i, gradients[q_floats + k_floats + i], v_want[i], weight, terms);
}
END_TEST

/* Feeding a sequence piece by piece gives what attention gives for the whole. */
START_TEST(cached_attention_equals_attention_of_the_whole_sequence)
{
    enum { TOTAL = 150, CAPACITY = 160 };
    const int32_t pieces[] = {1, 70, 7, 72};
    const shape s = {1, TOTAL, TOTAL, 4, 2, 24, true};
    hdi_attention_args whole = make(&s);
    hdt_assert_ok(cpu->attention(NULL, &whole));

    hdi_attention_cached_args a = {
        .dtype = HD_DTYPE_F32,
        .tokens = 75,
        .capacity = CAPACITY,
        .heads = 4,
        .kv_heads = 2,
        .head_dim = 24,
        .q_stride = whole.q_stride,
        .k_stride = whole.k_stride,
        .v_stride = whole.v_stride,
        .out_stride = whole.out_stride,
        .scale = whole.scale,
        .k_cache = hdt_floats(CAPACITY * 48, 20),
        .v_cache = hdt_floats(CAPACITY * 48, 21),
    };
    a.workspace = hdt_take(cpu->attention_cached_workspace(&a));
    float *out = hdt_take((size_t)(TOTAL + 75) * (size_t)whole.out_stride * sizeof(float));
    int32_t position = 0, count = 0;
    a.position = &position;
    a.count = &count;
    for (int i = 0; i < 4; position += pieces[i++]) {
        count = pieces[i];
        a.q = (const float *)whole.q + position * a.q_stride;
        a.k = (const float *)whole.k + position * a.k_stride;
        a.v = (const float *)whole.v + position * a.v_stride;
        a.out = out + position * a.out_stride;
        hdt_same_on_threads(cpu->attention_cached(NULL, &a), (float *)a.out, NULL,
                            count * a.out_stride);
    }
    for (int64_t t = 0; t < TOTAL; t++)
        for (int64_t c = 0; c < 96; c++)
            hdt_near("out", t, out[t * a.out_stride + c],
                     (double)((float *)whole.out)[t * a.out_stride + c], 4, terms_of(&whole));
    for (int64_t t = 0; t < TOTAL; t++)
        ck_assert(memcmp((float *)a.k_cache + t * 48, (const float *)whole.k + t * a.k_stride,
                         48 * sizeof(float)) == 0);
    position = CAPACITY - 3;
    count = 4;
    hdt_assert_status(cpu->attention_cached(NULL, &a), HD_ERROR_ARGUMENT, "capacity of 160");
}
END_TEST

/* The workspace holds one block of queries of a head for each thread, not tokens x tokens. */
START_TEST(attention_workspace_grows_with_the_keys_only)
{
    hdi_attention_args args = {.batch = 8, .tokens = 1024, .kv_tokens = 1024, .heads = 16};
    hdi_cpu_set_threads(1);
    const size_t bytes = cpu->attention_workspace(&args);
    ck_assert_uint_eq(bytes, 64 * 1024 * sizeof(float));
    args.tokens *= 16;
    ck_assert_uint_eq(cpu->attention_workspace(&args), bytes);
    args.kv_tokens *= 16;
    ck_assert_uint_eq(cpu->attention_workspace(&args), 16 * bytes);
    ck_assert_uint_eq(cpu->attention_gradient_workspace(&args), 32 * bytes);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("attention");
    tcase_add_checked_fixture(tests, NULL, hdt_free_held);
    tcase_add_loop_test(tests, attention_equals_softmax_of_scores, 0, SHAPES);
    tcase_add_loop_test(tests, attention_gradient_equals_the_analytic_one, 0, SHAPES);
    tcase_add_test(tests, cached_attention_equals_attention_of_the_whole_sequence);
    tcase_add_test(tests, attention_workspace_grows_with_the_keys_only);
    Suite *suite = suite_create("backend_cpu_attention");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
