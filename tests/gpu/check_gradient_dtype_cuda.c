/* Gradients of BF16 on the GPU: the bits of the CPU backend where sums have one order. */
#include "tests/gpu/hdt_gpu.h"

#include "core/checked.h"
#include "core/half.h"

static const int64_t counts[] = {1, 3, 255, 4096, 4097, 1000003};

enum { COUNTS = sizeof counts / sizeof *counts };

/* The same bytes on both sides. `offset` bytes are left before the device's copy. */
typedef struct both {
    size_t bytes;
    void *at[HDT_SIDES];
} both;

static both make_both(const void *x, size_t bytes, size_t offset)
{
    both made = {bytes, {hdt_scratch(0, bytes), (char *)hdt_scratch(1, bytes + offset) + offset}};
    memcpy(made.at[0], x, bytes);
    hdt_assert_ok(hdt_sides[1]->copy_in(hdt_streams[1], made.at[1], made.at[0], bytes));
    hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
    return made;
}

static both make_floats(int64_t count, uint64_t seed, size_t offset)
{
    float *x = hdt_scratch(0, (size_t)count * sizeof *x);
    hdt_fill(x, count, seed);
    return make_both(x, (size_t)count * sizeof *x, offset);
}

static both make_gradients(int64_t count, uint64_t seed, size_t offset)
{
    float *x = hdt_scratch(0, (size_t)count * sizeof *x);
    uint16_t *rounded = hdt_scratch(0, (size_t)count * sizeof *rounded);
    hdt_fill(x, count, seed);
    for (int64_t i = 0; i < count; i++)
        rounded[i] = hdi_bf16_from_float(x[i]);
    return make_both(rounded, (size_t)count * sizeof *rounded, offset);
}

static const void *fetch(both x)
{
    void *host = hdt_scratch(0, x.bytes);
    hdt_assert_ok(hdt_sides[1]->copy_out(hdt_streams[1], host, x.at[1], x.bytes));
    hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
    return host;
}

static void check_bits(const char *what, both x)
{
    ck_assert_msg(memcmp(fetch(x), x.at[0], x.bytes) == 0, "%s of %zu bytes", what, x.bytes);
}

START_TEST(sums_are_rounded_as_the_cpu_does)
{
    for (int c = 0; c < COUNTS; c++) {
        hdt_gpu_reset();
        const size_t offset = c % 2 ? sizeof(uint16_t) : 0;
        const both x = make_floats(counts[c], 1, 2 * offset);
        const both sum = make_gradients(counts[c], 2, offset);
        for (int adds = 0; adds < 2; adds++) {
            for (int side = 0; side < HDT_SIDES; side++)
                HDT_CALL(side, round_sum, HD_DTYPE_BF16, counts[c], x.at[side], adds, sum.at[side]);
            check_bits("round_sum", sum);
        }
    }
}
END_TEST

START_TEST(trees_are_bit_equal_to_the_cpu)
{
    enum { STRIDE = 1032, LENGTH = 1029 };
    for (int parts = 1; parts <= 13; parts++) {
        hdt_gpu_reset();
        const both x = make_gradients(parts * STRIDE, 1, parts % 2 ? sizeof(uint16_t) : 0);
        for (int side = 0; side < HDT_SIDES; side++)
            HDT_CALL(side, tree_sum, HD_DTYPE_BF16, x.at[side], STRIDE, parts, LENGTH, x.at[side]);
        check_bits("tree_sum", x);
    }
}
END_TEST

START_TEST(squares_are_those_of_the_cpu)
{
    for (int c = 0; c < COUNTS; c++) {
        hdt_gpu_reset();
        const int64_t blocks = hdi_ceil_div(counts[c], HDI_BLOCK_ELEMENTS);
        const both x = make_gradients(counts[c], 1, c % 2 ? sizeof(uint16_t) : 0);
        double *zeros = hdt_scratch(0, (size_t)blocks * sizeof *zeros);
        const both out = make_both(zeros, (size_t)blocks * sizeof *zeros, 0);
        for (int side = 0; side < HDT_SIDES; side++)
            HDT_CALL(side, sum_of_squares, HD_DTYPE_BF16, x.at[side], counts[c], out.at[side]);
        const double *got = fetch(out), *wanted = out.at[0];
        for (int64_t i = 0; i < blocks; i++)
            ck_assert_double_le(fabs(got[i] - wanted[i]),
                                wanted[i] * 2 * hdt_tolerance(HD_DTYPE_F32, 128));
    }
}
END_TEST

/* The step is that with the fp32 numbers that the gradient stands for, bit for bit. */
START_TEST(adamw_reads_bf16_as_the_fp32_that_it_stands_for)
{
    const int64_t count = counts[_i];
    const float values[] = {0.01f, 0.5f, 0.3f, 0.1f, 1};
    hdt_gpu_reset();
    const both half = make_gradients(count, 1, _i % 2 ? sizeof(uint16_t) : 0);
    float *wide = hdt_scratch(0, (size_t)count * sizeof *wide);
    for (int64_t i = 0; i < count; i++)
        wide[i] = hdi_bf16_to_float(((const uint16_t *)half.at[0])[i]);
    const both widened = make_both(wide, (size_t)count * sizeof *wide, 0);
    const both scalars = make_both(values, sizeof values, 0);
    enum { WEIGHTS, REMAINDERS, M, V, STATES };
    both state[2][STATES];
    for (int kind = 0; kind < 2; kind++) {
        float *zeros = hdt_scratch(0, (size_t)count * sizeof *zeros);
        state[kind][WEIGHTS] = make_gradients(count, 2, 0);
        state[kind][REMAINDERS] = make_both(zeros, (size_t)count * sizeof(int16_t), 0);
        state[kind][M] = make_floats(count, 3, 0);
        state[kind][V] = make_both(zeros, (size_t)count * sizeof(float), 0);
        HDT_CALL(1, adamw,
                 &(hdi_adamw_args){.dtype = HD_DTYPE_BF16,
                                   .elements = count,
                                   .weights = state[kind][WEIGHTS].at[1],
                                   .remainder = state[kind][REMAINDERS].at[1],
                                   .m = state[kind][M].at[1],
                                   .v = state[kind][V].at[1],
                                   .gradient_dtype = kind ? HD_DTYPE_BF16 : HD_DTYPE_F32,
                                   .gradient = kind ? half.at[1] : widened.at[1],
                                   .scalars = scalars.at[1],
                                   .beta1 = 0.9f,
                                   .beta2 = 0.95f,
                                   .epsilon = 1e-8f,
                                   .weight_decay = 0.1f});
    }
    for (int k = 0; k < STATES; k++)
        ck_assert_int_eq(memcmp(fetch(state[0][k]), fetch(state[1][k]), state[0][k].bytes), 0);
}
END_TEST

/* The product adds to a BF16 gradient with sums in fp32 and one rounding. */
START_TEST(a_product_adds_to_a_gradient)
{
    enum { ROWS = 200, COLUMNS = 136, INNER = 333 };
    hdt_gpu_reset();
    hdt_pair a = hdt_pair_make(HD_DTYPE_BF16, INNER * ROWS, 1, 1, 0);
    hdt_pair b = hdt_pair_make(HD_DTYPE_BF16, INNER * COLUMNS, 2, 1, 0);
    hdt_pair out = hdt_pair_make(HD_DTYPE_BF16, ROWS * COLUMNS, 3, 9, 0);
    for (int side = 0; side < HDT_SIDES; side++)
        HDT_CALL(side, gemm,
                 &(hdi_gemm_args){.dtype = hdt_side_dtype(HD_DTYPE_BF16, side),
                                  .out_dtype = hdt_side_dtype(HD_DTYPE_BF16, side),
                                  .rows = ROWS,
                                  .columns = COLUMNS,
                                  .inner = INNER,
                                  .a = hdt_at(a, side),
                                  .b = hdt_at(b, side),
                                  .a_stride = ROWS,
                                  .b_stride = COLUMNS,
                                  .out_stride = COLUMNS,
                                  .transpose_a = true,
                                  .accumulate = true,
                                  .out = hdt_at(out, side)});
    hdt_pair_check("gemm that adds to BF16", out, INNER, 1, INNER);
}
END_TEST

int main(void)
{
    TCase *cases = tcase_create("bf16");
    tcase_add_test(cases, sums_are_rounded_as_the_cpu_does);
    tcase_add_test(cases, trees_are_bit_equal_to_the_cpu);
    tcase_add_test(cases, squares_are_those_of_the_cpu);
    tcase_add_loop_test(cases, adamw_reads_bf16_as_the_fp32_that_it_stands_for, 0, COUNTS);
    tcase_add_test(cases, a_product_adds_to_a_gradient);
    return hdt_main_gpu("cuda gradient dtype", cases);
}
