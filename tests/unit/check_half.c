/* 16-bit numbers: conversions, weights with remainders, and what the CPU backend makes of them. */
#include "core/half.h"
#include "tests/support/hdt_backend.h"

#include "core/random.h"

typedef struct format {
    hd_dtype dtype;
    uint16_t infinity;
} format;

static const format formats[] = {{HD_DTYPE_BF16, 0x7f80}, {HD_DTYPE_F16, 0x7c00}};

START_TEST(known_values_convert_as_the_standard_says)
{
    static const struct {
        float value;
        uint16_t bf16, f16;
    } table[] = {
        {0.0f, 0x0000, 0x0000},
        {-0.0f, 0x8000, 0x8000},
        {1.0f, 0x3f80, 0x3c00},
        {-2.0f, 0xc000, 0xc000},
        {65504.0f, 0x4780, 0x7bff},
        {65519.996f, 0x4780, 0x7bff}, /* the last that is not infinite in F16 */
        {65520.0f, 0x4780, 0x7c00},   /* a tie, and infinity is even */
        {0x1p-14f, 0x3880, 0x0400},   /* the least normal F16 */
        {0x1p-24f, 0x3380, 0x0001},   /* the least subnormal F16 */
        {0x1p-25f, 0x3300, 0x0000},   /* half of it: to even */
        {0x1.8p-24f, 0x33c0, 0x0002}, /* one and a half: to even */
        {0x1.0002p-25f, 0x3300, 0x0001},
        {0x1.004p0f, 0x3f80, 0x3c01},
        {0x1.002p0f, 0x3f80, 0x3c00},    /* F16: a tie */
        {0x1.006p0f, 0x3f80, 0x3c02},    /* F16: a tie */
        {0x1.01p0f, 0x3f80, 0x3c04},     /* BF16: a tie */
        {0x1.03p0f, 0x3f82, 0x3c0c},     /* BF16: a tie */
        {3.3961775e38f, 0x7f80, 0x7c00}, /* above the largest BF16 and half a unit */
        {INFINITY, 0x7f80, 0x7c00},
        {-INFINITY, 0xff80, 0xfc00},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        ck_assert_msg(hdi_bf16_from_float(table[i].value) == table[i].bf16, "%a: bf16 %04x",
                      (double)table[i].value, hdi_bf16_from_float(table[i].value));
        ck_assert_msg(hdi_f16_from_float(table[i].value) == table[i].f16, "%a: f16 %04x",
                      (double)table[i].value, hdi_f16_from_float(table[i].value));
    }
}
END_TEST

START_TEST(every_16_bit_number_comes_back)
{
    const format *f = &formats[_i];
    for (uint32_t x = 0; x <= 0xffff; x++) {
        const float value = hdi_half_to_float(f->dtype, (uint16_t)x);
        const uint16_t back = hdi_half_from_float(f->dtype, value);
        if ((x & 0x7fff) > f->infinity)
            ck_assert(isnan(value) && (back & 0x7fff) > f->infinity);
        else
            ck_assert_msg(back == x, "%04x is %a, which is %04x", x, (double)value, back);
    }
}
END_TEST

/* Between each number and the next: the middle goes to the even one, what is beside it to the nearer. */
START_TEST(rounding_is_to_the_nearest_and_ties_go_to_even)
{
    const format *f = &formats[_i];
    for (uint32_t x = 0; x + 1 < f->infinity; x++) {
        const float low = hdi_half_to_float(f->dtype, (uint16_t)x);
        const float high = hdi_half_to_float(f->dtype, (uint16_t)(x + 1));
        const float middle = (float)(((double)low + (double)high) / 2); /* exact */
        for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
            const float s = sign ? -1.0f : 1.0f;
            ck_assert_uint_eq(hdi_half_from_float(f->dtype, s * middle), sign | (x + (x & 1)));
            ck_assert_uint_eq(hdi_half_from_float(f->dtype, s * nextafterf(middle, low)), sign | x);
            ck_assert_uint_eq(hdi_half_from_float(f->dtype, s * nextafterf(middle, high)),
                              sign | (x + 1));
        }
    }
}
END_TEST

static void check_split(uint32_t bits)
{
    const float x = hdi_float_from_bits(bits);
    const uint16_t weight = hdi_bf16_weight(x);
    const float back = hdi_bf16_join(weight, hdi_bf16_remainder(x));
    if (isnan(x)) {
        ck_assert(isnan(back) && isnan(hdi_bf16_to_float(weight)));
        return;
    }
    ck_assert_msg(hdi_float_bits(back) == bits, "%08x comes back as %08x", bits,
                  hdi_float_bits(back));
    const bool tie = (bits & 0xffff) == 0x8000;
    const uint16_t nearest = tie ? (uint16_t)((bits >> 16) + 1) : hdi_bf16_from_float(x);
    ck_assert_msg(weight == nearest, "%08x has weight %04x, want %04x", bits, weight, nearest);
}

START_TEST(a_weight_and_its_remainder_make_the_value_again)
{
    static const uint32_t high[] = {0, 1, 0x3f, 0x40, 0x7e, 0x7f};
    static const uint32_t low[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    for (uint32_t exponent = 0; exponent <= 0x1ff; exponent++) /* with the sign */
        for (int h = 0; h < 6; h++)
            for (int l = 0; l < 6; l++)
                check_split(exponent << 23 | high[h] << 16 | low[l]);
    for (uint64_t i = 0; i < 1 << 18; i++) {
        uint32_t words[4];
        hdi_random_words(3, 5, i, words);
        for (int w = 0; w < 4; w++)
            check_split(words[w]);
    }
}
END_TEST

enum { ELEMENTS = 17000, STEPS = 100 }; /* two chunks, the last piece not full */

/* One optimizer's memory: a master, or remainders. */
typedef struct trained {
    uint16_t *weights;
    float *master, *m, *v;
    int16_t *remainder;
} trained;

static trained start(const float *values, bool keeps_master)
{
    trained t = {.weights = hdt_take(ELEMENTS * sizeof *t.weights),
                 .m = hdt_take(ELEMENTS * sizeof *t.m),
                 .v = hdt_take(ELEMENTS * sizeof *t.v)};
    if (keeps_master)
        t.master = memcpy(hdt_take(ELEMENTS * sizeof *values), values, ELEMENTS * sizeof *values);
    else
        t.remainder = hdt_take(ELEMENTS * sizeof *t.remainder);
    hdt_assert_ok(hdi_backend_cpu.split_weights(NULL, HD_DTYPE_BF16, ELEMENTS, values, t.weights,
                                                t.remainder));
    return t;
}

static void step(const trained *t, const float *gradient, int number)
{
    const float scalars[5] = {1e-2f, 0.5f, (float)(1 - pow(0.9, number)),
                              (float)(1 - pow(0.95, number)), 1};
    hdt_assert_ok(hdi_backend_cpu.adamw(NULL, &(hdi_adamw_args){.dtype = HD_DTYPE_BF16,
                                                                .elements = ELEMENTS,
                                                                .weights = t->weights,
                                                                .master = t->master,
                                                                .remainder = t->remainder,
                                                                .m = t->m,
                                                                .v = t->v,
                                                                .gradient = gradient,
                                                                .scalars = scalars,
                                                                .beta1 = 0.9f,
                                                                .beta2 = 0.95f,
                                                                .epsilon = 1e-8f,
                                                                .weight_decay = 0.1f}));
}

START_TEST(remainders_train_as_an_fp32_master_does_bit_for_bit)
{
    hdi_cpu_set_threads(2);
    const float *values = hdt_floats(ELEMENTS, 1);
    trained a = start(values, true), b = start(values, false);
    float *joined = hdt_take(ELEMENTS * sizeof *joined);
    float *gradient = hdt_take(ELEMENTS * sizeof *gradient);
    for (int s = 1; s <= STEPS; s++) {
        hdt_fill(gradient, ELEMENTS, 100 + (uint64_t)s);
        step(&a, gradient, s);
        step(&b, gradient, s);
        hdt_assert_ok(hdi_backend_cpu.join_weights(NULL, ELEMENTS, b.weights, b.remainder, joined));
        ck_assert_msg(memcmp(joined, a.master, ELEMENTS * sizeof *joined) == 0, "step %d", s);
        ck_assert(memcmp(a.weights, b.weights, ELEMENTS * sizeof *a.weights) == 0);
        ck_assert(memcmp(a.m, b.m, ELEMENTS * sizeof *a.m) == 0);
        ck_assert(memcmp(a.v, b.v, ELEMENTS * sizeof *a.v) == 0);
    }
    ck_assert(fabsf(joined[0] - values[0]) > 1e-3f);
}
END_TEST

START_TEST(adamw_wants_something_behind_16_bit_weights)
{
    const float scalars[5] = {1, 1, 1, 1, 1};
    uint16_t weight = 0;
    hdi_adamw_args args = {.dtype = HD_DTYPE_F16,
                           .elements = 1,
                           .weights = &weight,
                           .scalars = scalars,
                           .remainder = (int16_t *)&weight};
    hdt_assert_status(hdi_backend_cpu.adamw(NULL, &args), HD_ERROR_ARGUMENT, "weights are F16");
}
END_TEST

static hdi_device *device;

static void open_device(void)
{
    hdt_assert_ok(hdi_backend_cpu.open(0, &device));
}

static void close_device(void)
{
    hdi_backend_cpu.close(device);
    hdt_free_held();
}

/* 16-bit numbers, and the same ones as floats. */
static uint16_t *halves(hd_dtype dtype, int64_t count, uint64_t seed, float *same)
{
    uint16_t *out = hdt_take((size_t)count * sizeof *out);
    hdt_fill(same, count, seed);
    for (int64_t i = 0; i < count; i++) {
        out[i] = hdi_half_from_float(dtype, same[i]);
        same[i] = hdi_half_to_float(dtype, out[i]);
    }
    return out;
}

static void same_when_rounded(hd_dtype dtype, const char *what, const uint16_t *got,
                              const float *want, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        ck_assert_msg(got[i] == hdi_half_from_float(dtype, want[i]), "%s[%lld] is %g, want %g",
                      what, (long long)i, (double)hdi_half_to_float(dtype, got[i]),
                      (double)want[i]);
}

START_TEST(gemm_computes_in_fp32_and_leaves_gaps_alone)
{
    enum { ROWS = 5, COLUMNS = 7, INNER = 9, STRIDE = 11 };
    const hd_dtype dtype = formats[_i].dtype;
    hd_stream *stream = hdi_backend_cpu.stream(device);
    float a[ROWS * INNER], b[COLUMNS * INNER], bias[COLUMNS], want[ROWS * STRIDE];
    hdi_gemm_args args = {.dtype = dtype,
                          .out_dtype = dtype,
                          .rows = ROWS,
                          .columns = COLUMNS,
                          .inner = INNER,
                          .a = halves(dtype, ROWS * INNER, 1, a),
                          .b = halves(dtype, COLUMNS * INNER, 2, b),
                          .bias = halves(dtype, COLUMNS, 3, bias),
                          .a_stride = INNER,
                          .b_stride = INNER,
                          .out_stride = STRIDE,
                          .transpose_b = true};
    uint16_t *out = halves(dtype, ROWS * STRIDE, 4, want);
    args.out = out;
    hdi_gemm_args wide = args;
    wide.dtype = wide.out_dtype = HD_DTYPE_F32;
    wide.a = a;
    wide.b = b;
    wide.bias = bias;
    wide.out = want;
    hdt_assert_ok(hdi_backend_cpu.gemm(NULL, &wide));
    hdt_assert_ok(hdi_backend_cpu.gemm(stream, &args));
    same_when_rounded(dtype, "out", out, want, ROWS * STRIDE);

    float *sum = hdt_floats(ROWS * STRIDE, 5);
    memcpy(want, sum, sizeof want);
    args.out = sum;
    args.out_dtype = HD_DTYPE_F32;
    args.accumulate = wide.accumulate = true;
    hdt_assert_ok(hdi_backend_cpu.gemm(NULL, &wide));
    hdt_assert_ok(hdi_backend_cpu.gemm(stream, &args));
    ck_assert(memcmp(sum, want, sizeof want) == 0);
}
END_TEST

START_TEST(cached_attention_of_tokens_one_by_one_is_attention_of_all)
{
    enum { TOKENS = 6, HEADS = 4, KV_HEADS = 2, DIM = 8, PACKED = (HEADS + 2 * KV_HEADS) * DIM };
    const hd_dtype dtype = formats[_i].dtype;
    hd_stream *stream = hdi_backend_cpu.stream(device);
    float qkv[TOKENS * PACKED], out[TOKENS * HEADS * DIM], *work = hdt_take(1 << 16);
    const uint16_t *packed = halves(dtype, TOKENS * PACKED, 7, qkv);
    hdi_attention_args all = {.dtype = HD_DTYPE_F32,
                              .batch = 1,
                              .tokens = TOKENS,
                              .kv_tokens = TOKENS,
                              .heads = HEADS,
                              .kv_heads = KV_HEADS,
                              .head_dim = DIM,
                              .q_stride = PACKED,
                              .k_stride = PACKED,
                              .v_stride = PACKED,
                              .out_stride = HEADS * DIM,
                              .scale = 0.3f,
                              .causal = true,
                              .q = qkv,
                              .k = qkv + HEADS * DIM,
                              .v = qkv + (HEADS + KV_HEADS) * DIM,
                              .out = out,
                              .workspace = work};
    hdt_assert_ok(hdi_backend_cpu.attention(NULL, &all));
    uint16_t *k_cache = hdt_take(TOKENS * KV_HEADS * DIM * sizeof *k_cache);
    uint16_t *v_cache = hdt_take(TOKENS * KV_HEADS * DIM * sizeof *v_cache);
    for (int32_t t = 0; t < TOKENS; t++) {
        const int32_t one = 1;
        const uint16_t *row = packed + t * PACKED;
        uint16_t got[HEADS * DIM];
        hdt_assert_ok(hdi_backend_cpu.attention_cached(
            stream, &(hdi_attention_cached_args){.dtype = dtype,
                                                 .tokens = 1,
                                                 .capacity = TOKENS,
                                                 .heads = HEADS,
                                                 .kv_heads = KV_HEADS,
                                                 .head_dim = DIM,
                                                 .q_stride = PACKED,
                                                 .k_stride = PACKED,
                                                 .v_stride = PACKED,
                                                 .out_stride = HEADS * DIM,
                                                 .scale = 0.3f,
                                                 .q = row,
                                                 .k = row + HEADS * DIM,
                                                 .v = row + (HEADS + KV_HEADS) * DIM,
                                                 .k_cache = k_cache,
                                                 .v_cache = v_cache,
                                                 .position = &t,
                                                 .count = &one,
                                                 .out = got,
                                                 .workspace = work}));
        for (int i = 0; i < HEADS * DIM; i++) {
            const float want = out[t * HEADS * DIM + i];
            const double bound = hdt_tolerance(dtype, TOKENS) + hdt_tolerance(HD_DTYPE_F32, TOKENS);
            ck_assert_double_le(fabs((double)(hdi_half_to_float(dtype, got[i]) - want)), bound);
        }
    }
}
END_TEST

START_TEST(sixteen_bit_calls_want_a_stream_and_a_dtype_that_is_a_number)
{
    float x[2] = {0};
    hdt_assert_status(hdi_backend_cpu.add(NULL, HD_DTYPE_BF16, 2, x, x, x), HD_ERROR_ARGUMENT,
                      "stream");
    hdt_assert_status(hdi_backend_cpu.add(hdi_backend_cpu.stream(device), HD_DTYPE_I16, 2, x, x, x),
                      HD_ERROR_UNSUPPORTED, "I16");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("half");
    TCase *numbers = tcase_create("numbers"), *calls = tcase_create("calls");
    tcase_add_checked_fixture(numbers, NULL, hdt_free_held);
    tcase_add_checked_fixture(calls, open_device, close_device);
    tcase_add_test(numbers, known_values_convert_as_the_standard_says);
    tcase_add_loop_test(numbers, every_16_bit_number_comes_back, 0, 2);
    tcase_add_loop_test(numbers, rounding_is_to_the_nearest_and_ties_go_to_even, 0, 2);
    tcase_add_test(numbers, a_weight_and_its_remainder_make_the_value_again);
    tcase_add_test(numbers, remainders_train_as_an_fp32_master_does_bit_for_bit);
    tcase_add_test(numbers, adamw_wants_something_behind_16_bit_weights);
    tcase_add_loop_test(calls, gemm_computes_in_fp32_and_leaves_gaps_alone, 0, 2);
    tcase_add_loop_test(calls, cached_attention_of_tokens_one_by_one_is_attention_of_all, 0, 2);
    tcase_add_test(calls, sixteen_bit_calls_want_a_stream_and_a_dtype_that_is_a_number);
    suite_add_tcase(suite, numbers);
    suite_add_tcase(suite, calls);
    return hdt_main(suite);
}
