/* Attention of sequences that lie between one another, and of sequences shorter than their places:
 * what one sequence after another, alone, gives, bit for bit, forward and backward. */
#include <heddle/nn.h>

#include "core/half.h"
#include "tests/support/hdt_backend.h"
#include "tests/support/hdt_program.h"

enum {
    HEADS = 4,
    KV_HEADS = 2,
    DIM = 24,
    PACKED = (HEADS + 2 * KV_HEADS) * DIM,
    OUT = HEADS * DIM
};

static const hd_backend *const cpu = &hdi_backend_cpu;

/* Everything that one packed call reads and writes, in one dtype. */
typedef struct memory {
    hdi_attention_args args;
    size_t bytes; /* of an element */
    char *qkv, *out, *gradient, *qkv_gradient;
} memory;

static memory make(hd_dtype dtype, int64_t batch, int64_t tokens, bool causal)
{
    memory m = {.bytes = hd_dtype_bytes(dtype)};
    const size_t rows = (size_t)(batch * tokens);
    m.qkv = hdt_take(rows * PACKED * m.bytes);
    m.out = hdt_take(rows * OUT * m.bytes);
    m.gradient = hdt_take(rows * OUT * m.bytes);
    m.qkv_gradient = hdt_take(rows * PACKED * m.bytes);
    memset(m.out, 0xff, rows * OUT * m.bytes);
    memset(m.qkv_gradient, 0xff, rows * PACKED * m.bytes);
    m.args =
        (hdi_attention_args){.dtype = dtype,
                             .batch = batch,
                             .tokens = tokens,
                             .kv_tokens = tokens,
                             .heads = HEADS,
                             .kv_heads = KV_HEADS,
                             .head_dim = DIM,
                             .q_stride = PACKED,
                             .k_stride = PACKED,
                             .v_stride = PACKED,
                             .out_stride = OUT,
                             .scale = 0.3f,
                             .causal = causal,
                             .q = m.qkv,
                             .k = m.qkv + HEADS * DIM * m.bytes,
                             .v = m.qkv + (HEADS + KV_HEADS) * DIM * m.bytes,
                             .out = m.out,
                             .lse = hdt_take(rows * HEADS * sizeof(float)),
                             .out_gradient = m.gradient,
                             .q_gradient = m.qkv_gradient,
                             .k_gradient = m.qkv_gradient + HEADS * DIM * m.bytes,
                             .v_gradient = m.qkv_gradient + (HEADS + KV_HEADS) * DIM * m.bytes};
    m.args.workspace = hdt_take(cpu->attention_gradient_workspace(&m.args));
    return m;
}

static void fill(const memory *m, char *at, int64_t count, uint64_t seed)
{
    float *values = hdt_floats(count, seed);
    for (int64_t i = 0; i < count; i++) {
        const uint16_t half = m->bytes == 2 ? hdi_half_from_float(m->args.dtype, values[i]) : 0;
        memcpy(at + (size_t)i * m->bytes, m->bytes == 2 ? (void *)&half : (void *)(values + i),
               m->bytes);
    }
}

static void run(const memory *m, hd_stream *stream)
{
    hdt_assert_ok(cpu->attention(stream, &m->args));
    hdt_assert_ok(cpu->attention_gradient(stream, &m->args));
}

/* Row `to` of b becomes row `from` of a. */
static void copy_row(const memory *a, int64_t from, const memory *b, int64_t to)
{
    const size_t wide = PACKED * a->bytes, narrow = OUT * a->bytes;
    memcpy(b->qkv + (size_t)to * wide, a->qkv + (size_t)from * wide, wide);
    memcpy(b->gradient + (size_t)to * narrow, a->gradient + (size_t)from * narrow, narrow);
}

static void same_row(const memory *a, int64_t i, const memory *b, int64_t j)
{
    const size_t wide = PACKED * a->bytes, narrow = OUT * a->bytes;
    ck_assert_msg(memcmp(a->out + (size_t)i * narrow, b->out + (size_t)j * narrow, narrow) == 0,
                  "out: row %lld", (long long)i);
    ck_assert_msg(
        memcmp(a->qkv_gradient + (size_t)i * wide, b->qkv_gradient + (size_t)j * wide, wide) == 0,
        "gradient: row %lld", (long long)i);
}

static const struct {
    hd_dtype dtype;
    bool causal;
} kinds[] = {
    {HD_DTYPE_F32, false}, {HD_DTYPE_F32, true}, {HD_DTYPE_BF16, false}, {HD_DTYPE_F16, true}};

static hdi_device *device;

static void open_device(void)
{
    hdi_cpu_set_threads(2);
    hdt_assert_ok(cpu->open(0, &device));
}

static void close_device(void)
{
    cpu->close(device);
    hdt_free_held();
}

START_TEST(interleaved_sequences_have_the_bits_of_transposed_ones)
{
    enum { OUTER = 2, TOKENS = 67, INNER = 3, BATCH = OUTER * INNER };
    const memory a = make(kinds[_i].dtype, BATCH, TOKENS, kinds[_i].causal);
    memory b = make(kinds[_i].dtype, BATCH, TOKENS, kinds[_i].causal);
    fill(&a, a.qkv, BATCH * TOKENS * PACKED, 1);
    fill(&a, a.gradient, BATCH * TOKENS * OUT, 2);
    for (int64_t s = 0; s < BATCH; s++)
        for (int64_t t = 0; t < TOKENS; t++)
            copy_row(&a, s * TOKENS + t, &b, (s / INNER * TOKENS + t) * INNER + s % INNER);
    b.args.interleave = INNER;
    run(&a, cpu->stream(device));
    run(&b, cpu->stream(device));
    for (int64_t s = 0; s < BATCH; s++)
        for (int64_t t = 0; t < TOKENS; t++)
            same_row(&a, s * TOKENS + t, &b, (s / INNER * TOKENS + t) * INNER + s % INNER);
    ck_assert(memcmp(a.args.lse, b.args.lse, BATCH * TOKENS * HEADS * sizeof(float)) == 0);
}
END_TEST

/* And what lies behind the valid tokens, NaN among it, is never looked at. */
START_TEST(counted_sequences_have_the_bits_of_each_alone_and_zeros_behind)
{
    enum { TOKENS = 131, BATCH = 6 };
    const int32_t counts[BATCH] = {131, 1, 0, 64, 65, 90};
    const int64_t between = _i % 2 ? 3 : 1;
    const hd_dtype dtype = _i < 2 ? HD_DTYPE_F32 : HD_DTYPE_BF16;
    memory all = make(dtype, BATCH, TOKENS, false);
    fill(&all, all.qkv, BATCH * TOKENS * PACKED, 3);
    fill(&all, all.gradient, BATCH * TOKENS * OUT, 4);
    all.args.counts = counts;
    all.args.interleave = between;
    const char zeros[PACKED * sizeof(float)] = {0};
    for (int round = 0; round < 2; round++) {
        run(&all, cpu->stream(device));
        for (int64_t s = 0; s < BATCH; s++) {
            const memory one = make(dtype, 1, counts[s] ? counts[s] : 1, false);
            const int64_t first = s / between * between * TOKENS + s % between;
            for (int64_t t = 0; t < counts[s]; t++)
                copy_row(&all, first + t * between, &one, t);
            if (counts[s]) run(&one, cpu->stream(device));
            for (int64_t t = 0; t < counts[s]; t++)
                same_row(&all, first + t * between, &one, t);
            for (int64_t h = 0; h < HEADS && counts[s]; h++)
                ck_assert(memcmp(all.args.lse + (s * HEADS + h) * TOKENS,
                                 one.args.lse + h * counts[s],
                                 (size_t)counts[s] * sizeof(float)) == 0);
            for (int64_t t = counts[s]; t < TOKENS; t++) {
                const size_t row = (size_t)(first + t * between);
                ck_assert(memcmp(all.out + row * OUT * all.bytes, zeros, OUT * all.bytes) == 0);
                ck_assert(memcmp(all.qkv_gradient + row * PACKED * all.bytes, zeros,
                                 PACKED * all.bytes) == 0);
                memset(all.qkv + row * PACKED * all.bytes, 0xff, PACKED * all.bytes);
                memset(all.gradient + row * OUT * all.bytes, 0xff, OUT * all.bytes);
            }
        }
    }
}
END_TEST

static hd_tensor tensor(hd_program *p, const char *name, hd_dtype dtype, int rank, int64_t rows,
                        int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    return hd_input(p, name, dtype, rank, dims);
}

static hd_status refuse(hd_program *p)
{
    const hd_status status = hd_program_finish(p);
    hd_program_destroy(p);
    return status;
}

START_TEST(layouts_that_make_no_sense_are_refused)
{
    hd_program *p = hdt_program();
    hd_attention_options options = {.heads = 2, .tokens = 3, .interleave = 2};
    hd_attention(p, tensor(p, "x", HD_DTYPE_F32, 2, 9, 24), &options);
    hdt_assert_status(refuse(p), HD_ERROR_ARGUMENT, "qkv has 9 rows");
    p = hdt_program();
    options.interleave = -1;
    hd_attention(p, tensor(p, "x", HD_DTYPE_F32, 2, 12, 24), &options);
    hdt_assert_status(refuse(p), HD_ERROR_ARGUMENT, "interleave -1");
    p = hdt_program();
    options.interleave = 0;
    options.counts = tensor(p, "counts", HD_DTYPE_I32, 1, 3, 0);
    hd_attention(p, tensor(p, "x", HD_DTYPE_F32, 2, 12, 24), &options);
    hdt_assert_status(refuse(p), HD_ERROR_ARGUMENT, "counts is I32 [3], want I32 [4]");
    p = hdt_program();
    options.counts = tensor(p, "counts", HD_DTYPE_I32, 1, 4, 0);
    options.causal = true;
    hd_attention(p, tensor(p, "x", HD_DTYPE_F32, 2, 12, 24), &options);
    hdt_assert_status(refuse(p), HD_ERROR_UNSUPPORTED, "counts are given and causal is set");
    p = hdt_program();
    hd_attention_cached(p, tensor(p, "x", HD_DTYPE_F32, 2, 3, 24),
                        &(hd_attention_options){.heads = 2, .tokens = 3, .interleave = 3});
    hdt_assert_status(refuse(p), HD_ERROR_UNSUPPORTED, "interleave is 3");
}
END_TEST

START_TEST(what_a_linear_map_adds_to_has_the_shape_of_its_result)
{
    hd_program *p = hdt_program();
    hd_linear(p, tensor(p, "x", HD_DTYPE_F32, 2, 4, 8),
              &(hd_linear_options){
                  .name = "l", .outputs = 5, .add = tensor(p, "y", HD_DTYPE_F32, 2, 4, 6)});
    hdt_assert_status(refuse(p), HD_ERROR_ARGUMENT,
                      "what is added to is F32 [4, 6], want F32 [4, 5]");
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("attention_layouts");
    tcase_add_checked_fixture(tests, open_device, close_device);
    tcase_add_loop_test(tests, interleaved_sequences_have_the_bits_of_transposed_ones, 0, 4);
    tcase_add_loop_test(tests, counted_sequences_have_the_bits_of_each_alone_and_zeros_behind, 0,
                        4);
    tcase_add_test(tests, layouts_that_make_no_sense_are_refused);
    tcase_add_test(tests, what_a_linear_map_adds_to_has_the_shape_of_its_result);
    Suite *suite = suite_create("attention_layouts");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
