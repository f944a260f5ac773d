/* Attention of queries to packed keys: each sequence alone is attention, whatever lies beside it. */
#include <heddle/diffusion.h>

#include "core/half.h"
#include "tests/support/hdt_backend.h"
#include "tests/support/hdt_program.h"

enum { HEADS = 3, DIM = 20, COLUMNS = HEADS * DIM, TOKENS = 70, SEQUENCES = 4, KV_ROWS = 100 };

static const hd_backend *const cpu = &hdi_backend_cpu;

/* Rows 0 to 2 and 93 to 99 are nobody's; sequence 1 has none. */
static const int32_t offsets[SEQUENCES + 1] = {3, 8, 8, 9, 93};

static hdi_cross_attention_args make(bool packed)
{
    const int64_t rows = SEQUENCES * TOKENS;
    float *kv = hdt_floats(KV_ROWS * 2 * COLUMNS, 2), *back = hdt_floats(KV_ROWS * 2 * COLUMNS, 3);
    hdi_cross_attention_args args = {.dtype = HD_DTYPE_F32,
                                     .sequences = SEQUENCES,
                                     .tokens = TOKENS,
                                     .kv_rows = KV_ROWS,
                                     .heads = HEADS,
                                     .head_dim = DIM,
                                     .q_stride = COLUMNS + 1,
                                     .k_stride = 2 * COLUMNS,
                                     .v_stride = 2 * COLUMNS,
                                     .out_stride = COLUMNS + 1,
                                     .scale = 0.3f,
                                     .offsets = packed ? offsets : NULL,
                                     .q = hdt_floats(rows * (COLUMNS + 1), 1),
                                     .k = kv,
                                     .v = kv + COLUMNS,
                                     .out = hdt_floats(rows * (COLUMNS + 1), 4),
                                     .lse = hdt_floats(rows * HEADS, 5),
                                     .out_gradient = hdt_floats(rows * (COLUMNS + 1), 6),
                                     .q_gradient = hdt_floats(rows * (COLUMNS + 1), 7),
                                     .k_gradient = back,
                                     .v_gradient = back + COLUMNS};
    hdi_cpu_set_threads(3);
    args.workspace = hdt_take(cpu->cross_attention_gradient_workspace(&args));
    return args;
}

/* The keys of a sequence. */
static void keys_of(const hdi_cross_attention_args *args, int64_t s, int64_t *first, int64_t *end)
{
    *first = args->offsets ? args->offsets[s] : s * (KV_ROWS / SEQUENCES);
    *end = args->offsets ? args->offsets[s + 1] : *first + KV_ROWS / SEQUENCES;
}

START_TEST(results_equal_softmax_of_scores_in_plain_loops)
{
    hdi_cross_attention_args a = make(_i);
    const int64_t floats = SEQUENCES * TOKENS * a.out_stride;
    const float *before = hdt_floats(floats, 4);
    hdt_same_on_threads(cpu->cross_attention(NULL, &a), (float *)a.out, before, floats);
    for (int64_t i = 0; i < SEQUENCES * TOKENS * HEADS; i++) {
        const int64_t row = i / HEADS, column = i % HEADS * DIM, s = row / TOKENS;
        const float *q = (const float *)a.q + row * a.q_stride + column;
        const float *out = (const float *)a.out + row * a.out_stride + column;
        double sum = 0, want[DIM] = {0};
        int64_t first, end;
        keys_of(&a, s, &first, &end);
        for (int64_t k = first; k < end; k++) {
            const float *key = (const float *)a.k + k * a.k_stride + column;
            const float *value = (const float *)a.v + k * a.v_stride + column;
            double score = 0;
            for (int d = 0; d < DIM; d++)
                score += (double)a.scale * (double)q[d] * (double)key[d];
            sum += exp(score);
            for (int d = 0; d < DIM; d++)
                want[d] += exp(score) * (double)value[d];
        }
        /* A score errs by the rounding of DIM products, its exponential by as much relatively. */
        for (int d = 0; d < DIM; d++)
            hdt_near("out", row, out[d], sum > 0 ? want[d] / sum : 0, sum > 0 ? 2 : 0,
                     2 * DIM + KV_ROWS + 8);
        const float lse = a.lse[(s * HEADS + i % HEADS) * TOKENS + row % TOKENS];
        if (sum > 0)
            hdt_near("lse", row, lse, log(sum), 2 + fabs(log(sum)), 2 * DIM + KV_ROWS + 8);
        else
            ck_assert(isinf(lse) && lse < 0);
    }
    for (int64_t r = 0; r < SEQUENCES * TOKENS; r++)
        ck_assert(((float *)a.out)[(r + 1) * a.out_stride - 1] ==
                  before[(r + 1) * a.out_stride - 1]);
}
END_TEST

/* One sequence as self-contained attention with as many keys as it has. */
static hdi_attention_args alone(const hdi_cross_attention_args *a, int64_t s)
{
    int64_t first, end;
    keys_of(a, s, &first, &end);
    const int64_t row = s * TOKENS * a->q_stride, key = first * a->k_stride;
    float *back = hdt_take((size_t)(end - first) * 2 * COLUMNS * sizeof *back);
    hdi_attention_args one = {
        .dtype = HD_DTYPE_F32,
        .batch = 1,
        .tokens = TOKENS,
        .kv_tokens = end - first,
        .heads = HEADS,
        .kv_heads = HEADS,
        .head_dim = DIM,
        .q_stride = a->q_stride,
        .k_stride = a->k_stride,
        .v_stride = a->v_stride,
        .out_stride = a->out_stride,
        .scale = a->scale,
        .q = (const float *)a->q + row,
        .k = (const float *)a->k + key,
        .v = (const float *)a->v + key,
        .out = hdt_take((size_t)(TOKENS * a->out_stride) * sizeof(float)),
        .lse = hdt_take(TOKENS * HEADS * sizeof(float)),
        .out_gradient = (const float *)a->out_gradient + row,
        .q_gradient = hdt_take((size_t)(TOKENS * a->q_stride) * sizeof(float)),
        .k_gradient = back,
        .v_gradient = back + COLUMNS,
    };
    one.workspace = hdt_take(cpu->attention_gradient_workspace(&one));
    return one;
}

START_TEST(a_packed_sequence_has_the_bits_of_attention_alone_and_other_keys_no_gradient)
{
    hdi_cross_attention_args a = make(true);
    hdt_assert_ok(cpu->cross_attention(NULL, &a));
    float *kv_gradient = a.k_gradient;
    hdt_same_on_threads(cpu->cross_attention_gradient(NULL, &a), kv_gradient, NULL,
                        KV_ROWS * 2 * COLUMNS);
    for (int64_t s = 0; s < SEQUENCES; s++) {
        int64_t first, end;
        keys_of(&a, s, &first, &end);
        const float *out = (const float *)a.out + s * TOKENS * a.out_stride;
        const float *q_gradient = (const float *)a.q_gradient + s * TOKENS * a.q_stride;
        const hdi_attention_args one = alone(&a, s);
        if (end > first) {
            hdt_assert_ok(cpu->attention(NULL, &one));
            hdt_assert_ok(cpu->attention_gradient(NULL, &one));
        }
        for (int64_t t = 0; t < TOKENS; t++) {
            const size_t bytes = COLUMNS * sizeof(float);
            ck_assert(memcmp(out + t * a.out_stride, (const float *)one.out + t * a.out_stride,
                             bytes) == 0);
            ck_assert(memcmp(q_gradient + t * a.q_stride,
                             (const float *)one.q_gradient + t * a.q_stride, bytes) == 0);
        }
        ck_assert(memcmp(kv_gradient + first * 2 * COLUMNS, one.k_gradient,
                         (size_t)(end - first) * 2 * COLUMNS * sizeof(float)) == 0);
    }
    for (int64_t i = 0; i < KV_ROWS * 2 * COLUMNS; i++)
        if (i / (2 * COLUMNS) < offsets[0] || i / (2 * COLUMNS) >= offsets[SEQUENCES])
            ck_assert(kv_gradient[i] == 0);
}
END_TEST

/* Whatever a device holds there, only rows of kv are touched. */
START_TEST(offsets_out_of_bounds_read_nothing_beyond_the_keys)
{
    const int32_t wild[SEQUENCES + 1] = {-7, 4, 2, 2000000000, -1};
    hdi_cross_attention_args a = make(true);
    a.offsets = wild;
    hdt_assert_ok(cpu->cross_attention(NULL, &a));
    hdi_cpu_set_threads(1);
    hdt_assert_ok(cpu->cross_attention_gradient(NULL, &a));
}
END_TEST

static uint16_t *rounded(hd_dtype dtype, const void *x, int64_t count, float *back)
{
    uint16_t *out = hdt_take((size_t)count * sizeof *out);
    for (int64_t i = 0; i < count; i++) {
        out[i] = hdi_half_from_float(dtype, ((const float *)x)[i]);
        back[i] = hdi_half_to_float(dtype, out[i]);
    }
    return out;
}

START_TEST(sixteen_bits_are_the_fp32_call_rounded_once)
{
    const hd_dtype dtype = _i ? HD_DTYPE_F16 : HD_DTYPE_BF16;
    enum { ROW_FLOATS = SEQUENCES * TOKENS * (COLUMNS + 1), KV_FLOATS = KV_ROWS * 2 * COLUMNS };
    hdi_device *device;
    hdt_assert_ok(cpu->open(0, &device));
    hdi_cross_attention_args wide = make(true), narrow = wide;
    narrow.dtype = dtype;
    const uint16_t *kv = rounded(dtype, wide.k, KV_FLOATS, (float *)(uintptr_t)wide.k);
    narrow.q = rounded(dtype, wide.q, ROW_FLOATS, (float *)(uintptr_t)wide.q);
    narrow.k = kv;
    narrow.v = kv + COLUMNS;
    narrow.out = rounded(dtype, wide.out, ROW_FLOATS, wide.out);
    narrow.out_gradient =
        rounded(dtype, wide.out_gradient, ROW_FLOATS, (float *)(uintptr_t)wide.out_gradient);
    narrow.q_gradient = rounded(dtype, wide.q_gradient, ROW_FLOATS, wide.q_gradient);
    uint16_t *back = rounded(dtype, wide.k_gradient, KV_FLOATS, wide.k_gradient);
    narrow.k_gradient = back;
    narrow.v_gradient = back + COLUMNS;
    hdt_assert_ok(cpu->cross_attention(NULL, &wide));
    hdt_assert_ok(cpu->cross_attention(cpu->stream(device), &narrow));
    for (int64_t i = 0; i < ROW_FLOATS; i++)
        ck_assert(((uint16_t *)narrow.out)[i] ==
                  hdi_half_from_float(dtype, ((float *)wide.out)[i]));
    rounded(dtype, wide.out, ROW_FLOATS, wide.out); /* the backward sees the rounded result */
    hdt_assert_ok(cpu->cross_attention_gradient(NULL, &wide));
    hdt_assert_ok(cpu->cross_attention_gradient(cpu->stream(device), &narrow));
    for (int64_t i = 0; i < ROW_FLOATS; i++)
        ck_assert(((uint16_t *)narrow.q_gradient)[i] ==
                  hdi_half_from_float(dtype, ((float *)wide.q_gradient)[i]));
    for (int64_t i = 0; i < KV_FLOATS; i++)
        ck_assert(back[i] == hdi_half_from_float(dtype, ((float *)wide.k_gradient)[i]));
    cpu->close(device);
}
END_TEST

static hd_tensor tensor(hd_program *p, const char *name, hd_dtype dtype, int rank, int64_t rows,
                        int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    return hd_input(p, name, dtype, rank, dims);
}

static hd_status refuse(int64_t kv_rows, int64_t kv_columns, int64_t ends, int64_t tokens,
                        int64_t most_keys)
{
    hd_program *p = hdt_program();
    const hd_tensor none = {0};
    hd_cross_attention(p, tensor(p, "q", HD_DTYPE_F32, 2, 6, 8),
                       tensor(p, "kv", HD_DTYPE_F32, 2, kv_rows, kv_columns),
                       ends ? tensor(p, "offsets", HD_DTYPE_I32, 1, ends, 0) : none,
                       &(hd_cross_attention_options){
                           .heads = 2, .head_dim = 4, .tokens = tokens, .most_keys = most_keys});
    const hd_status status = hd_program_finish(p);
    hd_program_destroy(p);
    return status;
}

START_TEST(more_keys_than_said_are_an_error)
{
    hdi_cross_attention_args a = make(true);
    a.most_keys = 84;
    hdt_assert_ok(cpu->cross_attention(NULL, &a));
    hdt_assert_ok(cpu->cross_attention_gradient(NULL, &a));
    a.most_keys = 83;
    hdt_assert_status(cpu->cross_attention(NULL, &a), HD_ERROR_ARGUMENT,
                      "84 keys of sequence 3, want at most 83");
    hdt_assert_status(cpu->cross_attention_gradient(NULL, &a), HD_ERROR_ARGUMENT, "84 keys");
}
END_TEST

START_TEST(bad_shapes_are_refused_with_what_was_seen)
{
    hdt_assert_status(refuse(4, 8, 0, 3, 0), HD_ERROR_ARGUMENT,
                      "kv is F32 [4, 8], want F32 [any, 16]");
    hdt_assert_status(refuse(4, 16, 0, 4, 0), HD_ERROR_ARGUMENT, "q has 6 rows");
    hdt_assert_status(refuse(5, 16, 0, 3, 0), HD_ERROR_ARGUMENT, "kv has 5 rows");
    hdt_assert_status(refuse(5, 16, 2, 3, 0), HD_ERROR_ARGUMENT,
                      "offsets is I32 [2], want I32 [3]");
    hdt_assert_status(refuse(4, 16, 0, 0, 0), HD_ERROR_ARGUMENT, "tokens 0");
    hdt_assert_status(refuse(4, 16, 3, 3, -1), HD_ERROR_ARGUMENT, "most_keys -1");
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("cross_attention");
    tcase_add_checked_fixture(tests, NULL, hdt_free_held);
    tcase_add_loop_test(tests, results_equal_softmax_of_scores_in_plain_loops, 0, 2);
    tcase_add_test(tests,
                   a_packed_sequence_has_the_bits_of_attention_alone_and_other_keys_no_gradient);
    tcase_add_test(tests, offsets_out_of_bounds_read_nothing_beyond_the_keys);
    tcase_add_loop_test(tests, sixteen_bits_are_the_fp32_call_rounded_once, 0, 2);
    tcase_add_test(tests, more_keys_than_said_are_an_error);
    tcase_add_test(tests, bad_shapes_are_refused_with_what_was_seen);
    Suite *suite = suite_create("cross_attention");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
