/* The CUDA backend against the CPU backend: matrix products, norms, activations, embedding, rotation,
 * losses. Sizes do not divide tiles; some arrays are not aligned. */
#include "tests/gpu/hdt_gpu.h"

#include <stdlib.h>

static const struct shape {
    int64_t rows, columns;
} shapes[] = {{1, 1}, {3, 7}, {17, 129}, {65, 768}, {1500, 320}, {9, 1600}, {5, 5000}};

enum { SHAPES = sizeof shapes / sizeof *shapes };

static void absolute(hdt_pair pair)
{
    for (int64_t i = 0; i < pair.count; i++)
        pair.host[i] = fabsf(pair.host[i]);
}

/* One product on both sides; the magnitudes are those of the product of absolute values. */
static void multiply(hd_dtype dtype, hd_dtype out_dtype, const int64_t *size, int form, int offset)
{
    const bool ta = form & 1, tb = form & 2, accumulate = form & 4, biased = form & 8;
    const int64_t rows = size[0], columns = size[1], inner = size[2];
    hdt_gpu_reset();
    hdt_pair a = hdt_pair_make(dtype, rows * inner, 1, 1, offset);
    hdt_pair b = hdt_pair_make(dtype, inner * columns, 2, 1, offset);
    hdt_pair bias = hdt_pair_make(dtype, columns, 3, 1, offset);
    hdt_pair out = hdt_pair_make(out_dtype, rows * columns, 4, 1, 0);
    float *magnitudes = hdt_scratch(0, (size_t)out.count * sizeof(float));
    for (int64_t i = 0; i < out.count; i++)
        magnitudes[i] = fabsf(out.host[i]);
    for (int side = 0; side < HDT_SIDES + 1; side++) {
        const int on = side % HDT_SIDES; /* the third time: absolute values, on the CPU */
        const hdi_gemm_args args = {.dtype = hdt_side_dtype(dtype, on),
                                    .out_dtype = hdt_side_dtype(out_dtype, on),
                                    .rows = rows,
                                    .columns = columns,
                                    .inner = inner,
                                    .a = hdt_at(a, on),
                                    .b = hdt_at(b, on),
                                    .a_stride = ta ? rows : inner,
                                    .b_stride = tb ? inner : columns,
                                    .out_stride = columns,
                                    .transpose_a = ta,
                                    .transpose_b = tb,
                                    .accumulate = accumulate,
                                    .bias = biased ? hdt_at(bias, on) : NULL,
                                    .out =
                                        side == HDT_SIDES ? (void *)magnitudes : hdt_at(out, on)};
        if (side == HDT_SIDES) absolute(a), absolute(b), absolute(bias);
        HDT_CALL(on, gemm, &args);
    }
    /* A 16-bit product may be rounded before it is added to what was there. */
    const int roundings = accumulate ? 2 : 1;
    hdt_pair_check_each("gemm", out, magnitudes, out_dtype == HD_DTYPE_F32 ? 0 : roundings,
                        inner + 2);
}

START_TEST(gemm_multiplies_in_every_form)
{
    static const int64_t sizes[][3] = {{1, 1, 1}, {7, 13, 5}, {33, 65, 129}, {128, 256, 64}};
    const hd_dtype dtype = hdt_dtypes[_i];
    for (int s = 0; s < 4; s++)
        for (int form = 0; form < 16; form++)
            multiply(dtype, dtype, sizes[s], form, s == 2);
}
END_TEST

START_TEST(gemm_adds_weight_gradients_in_fp32)
{
    static const int64_t size[] = {96, 136, 520};
    for (int form = 0; form < 8; form++)
        multiply(hdt_dtypes[_i], HD_DTYPE_F32, size, form, 0);
}
END_TEST

static void multiply_with_gelu(hd_dtype dtype, hdi_gemm_gelu gelu, const int64_t *size)
{
    const bool forward = gelu == HDI_GEMM_GELU;
    const int64_t rows = size[0], columns = size[1], inner = size[2], count = rows * columns;
    hdt_gpu_reset();
    hdt_pair a = hdt_pair_make(dtype, rows * inner, 1, 1, 0);
    hdt_pair b = hdt_pair_make(dtype, inner * columns, 2, 1, 0);
    hdt_pair bias = hdt_pair_make(dtype, columns, 3, 1, 0);
    hdt_pair pre = hdt_pair_make(dtype, count, 4, 3, 0), out = hdt_pair_zero(dtype, count);
    float *magnitudes = hdt_scratch(0, (size_t)count * sizeof(float));
    for (int side = 0; side < HDT_SIDES + 1; side++) {
        const int on = side % HDT_SIDES; /* the third time: absolute values, on the CPU */
        hdi_gemm_args args = {.dtype = hdt_side_dtype(dtype, on),
                              .out_dtype = hdt_side_dtype(dtype, on),
                              .rows = rows,
                              .columns = columns,
                              .inner = inner,
                              .a = hdt_at(a, on),
                              .b = hdt_at(b, on),
                              .a_stride = inner,
                              .b_stride = forward ? inner : columns,
                              .out_stride = columns,
                              .transpose_b = forward,
                              .bias = forward ? hdt_at(bias, on) : NULL,
                              .out = hdt_at(out, on),
                              .gelu = gelu,
                              .pre = hdt_at(pre, on)};
        if (side == 0) hdt_assert_ok(hdi_gemm_then_gelu(hdt_sides[0], hdt_streams[0], &args));
        if (side == 1) HDT_CALL(1, gemm_gelu, &args);
        if (side < HDT_SIDES) continue;
        absolute(a), absolute(b), absolute(bias);
        args.out = magnitudes;
        HDT_CALL(0, gemm, &args);
    }
    if (forward) hdt_pair_check_each("gemm_gelu: pre", pre, magnitudes, 1, inner + 2);
    for (int64_t i = 0; i < count; i++)
        magnitudes[i] *= 1.13f; /* the steepest slope of GELU */
    /* The product's rounding, the result's, and tanh in 11 bits. */
    hdt_pair_check_each("gemm_gelu: out", out, magnitudes, 3, inner + 34);
}

/* At the second size two kernels take longer than one; at the first there is only the way of two. */
START_TEST(gemm_and_gelu_are_one)
{
    static const int64_t sizes[][3] = {{33, 65, 129}, {128, 256, 64}};
    for (int s = 0; s < 2; s++) {
        multiply_with_gelu(hdt_dtypes[_i], HDI_GEMM_GELU, sizes[s]);
        multiply_with_gelu(hdt_dtypes[_i], HDI_GEMM_GELU_GRADIENT, sizes[s]);
    }
}
END_TEST

START_TEST(column_sum_sums_rows)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    for (int s = 0; s < 2 * SHAPES; s++) {
        const int64_t columns = shapes[s / 2].columns, stride = columns + s % 2 * 3;
        const int64_t rows = s % 2 ? 4097 : shapes[s / 2].rows;
        if (rows * stride > 4000000) continue;
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_make(dtype, rows * stride, 1, 1, 0);
        hdt_pair out = hdt_pair_make(s % 2 ? dtype : HD_DTYPE_F32, columns, 2, 1, 0);
        for (int side = 0; side < HDT_SIDES; side++) {
            const hdi_column_sum_args args = {
                .dtype = hdt_side_dtype(dtype, side),
                .out_dtype = hdt_side_dtype(out.dtype, side),
                .rows = rows,
                .columns = columns,
                .x_stride = stride,
                .x = hdt_at(x, side),
                .out = hdt_at(out, side),
                .accumulate = s % 2,
                .workspace =
                    hdt_scratch(side, hdt_sides[side]->column_sum_workspace(rows, columns))};
            HDT_CALL(side, column_sum, &args);
        }
        hdt_pair_check("column_sum", out, (double)rows, 1, rows);
    }
}
END_TEST

/* The magnitude that lets an fp32 result carry two roundings of its inputs to `dtype`. */
static double widened(hd_dtype dtype, double magnitude, int64_t terms)
{
    if (dtype == HD_DTYPE_F32) return magnitude;
    return magnitude * (1 + hdt_tolerance(dtype, 1) / hdt_tolerance(HD_DTYPE_F32, terms));
}

START_TEST(norms_go_forward_and_back)
{
    const hd_dtype dtype = hdt_dtypes[_i % 3];
    const hdi_norm_kind kind = _i / 3 ? HDI_RMS_NORM : HDI_LAYER_NORM;
    for (int s = 1; s < SHAPES; s++) {
        const int64_t rows = shapes[s].rows, columns = shapes[s].columns, parts = rows / 2 + 1;
        const int64_t count = rows * columns;
        const bool plain = s % 2;
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_make(dtype, count, 1, 1, s == 4);
        hdt_pair residual = hdt_pair_make(dtype, count, 2, 1, 0);
        hdt_pair weight = hdt_pair_make(dtype, columns, 3, 1, 0);
        hdt_pair bias = hdt_pair_make(dtype, columns, 4, 1, 0);
        hdt_pair sum = hdt_pair_zero(dtype, count), out = hdt_pair_zero(dtype, count);
        hdt_pair mean = hdt_pair_zero(HD_DTYPE_F32, rows), rstd = mean;
        rstd = hdt_pair_zero(HD_DTYPE_F32, rows);
        hdt_pair gradient = hdt_pair_make(dtype, count, 5, 1, 0);
        hdt_pair carry = hdt_pair_make(dtype, count, 6, 1, 0);
        hdt_pair partials = hdt_pair_zero(HD_DTYPE_F32, parts * 2 * columns);
        for (int side = 0; side < HDT_SIDES; side++) {
            const hdi_norm_args args = {.kind = kind,
                                        .dtype = hdt_side_dtype(dtype, side),
                                        .rows = rows,
                                        .columns = columns,
                                        .epsilon = 1e-5f,
                                        .x = hdt_at(x, side),
                                        .residual = plain ? NULL : hdt_at(residual, side),
                                        .weight = plain ? NULL : hdt_at(weight, side),
                                        .bias = kind == HDI_LAYER_NORM ? hdt_at(bias, side) : NULL,
                                        .sum = hdt_at(sum, side),
                                        .out = hdt_at(out, side),
                                        .mean = kind == HDI_LAYER_NORM ? hdt_at(mean, side) : NULL,
                                        .rstd = hdt_at(rstd, side)};
            HDT_CALL(side, norm, &args);
        }
        hdt_pair_check("norm: sum", sum, 2, 1, 1);
        hdt_pair_check("norm: rstd", rstd, widened(dtype, 4, columns + 8), 0, columns + 8);
        hdt_pair_check("norm: out", out, 0, plain ? 1 : 3, columns + 8);
        for (int side = 0; side < HDT_SIDES; side++) {
            /* The carry is where the result goes. */
            const hdi_norm_gradient_args args = {.kind = kind,
                                                 .dtype = hdt_side_dtype(dtype, side),
                                                 .rows = rows,
                                                 .columns = columns,
                                                 .partial_rows = parts,
                                                 .gradient = hdt_at(gradient, side),
                                                 .x = hdt_at(plain ? x : sum, side),
                                                 .weight = plain ? NULL : hdt_at(weight, side),
                                                 .carry = hdt_at(carry, side),
                                                 .mean = hdt_at(mean, side),
                                                 .rstd = hdt_at(rstd, side),
                                                 .x_gradient = hdt_at(carry, side),
                                                 .partials = hdt_at(partials, side)};
            HDT_CALL(side, norm_gradient, &args);
        }
        hdt_pair_check("norm gradient", carry, 0, 3, 2 * columns + 16);
        float largest = 1;
        for (int64_t i = 0; i < rows; i++)
            largest = fmaxf(largest, rstd.host[i]);
        hdt_pair_check("norm gradient: partials", partials,
                       widened(dtype, 4 * (double)largest, columns + 40), 0, columns + 40);
    }
}
END_TEST

START_TEST(activations_go_forward_and_back_in_place)
{
    const hd_dtype dtype = hdt_dtypes[_i % 3];
    const hdi_activation kind = (hdi_activation)(_i / 3);
    for (int s = 0; s < SHAPES; s++) {
        const int64_t rows = shapes[s].rows, columns = shapes[s].columns, count = rows * columns;
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_make(dtype, count, 1, 9, s == 3);
        hdt_pair gated = hdt_pair_make(dtype, 2 * count, 2, 9, 0);
        hdt_pair gradient = hdt_pair_make(dtype, count, 3, 1, 0);
        hdt_pair gradient_2 = hdt_pair_make(dtype, count, 4, 1, 0);
        hdt_pair out = hdt_pair_zero(dtype, count), back = hdt_pair_zero(dtype, 2 * count);
        for (int side = 0; side < HDT_SIDES; side++) {
            hdi_activation_args args = {.kind = kind,
                                        .dtype = hdt_side_dtype(dtype, side),
                                        .elements = count,
                                        .x = hdt_at(x, side),
                                        .gradient = hdt_at(gradient, side),
                                        .out = hdt_at(gradient, side)};
            HDT_CALL(side, activation_gradient, &args);
            args.out = hdt_at(x, side);
            HDT_CALL(side, activation, &args);
            const hdi_gated_args gate = {.kind = kind,
                                         .dtype = hdt_side_dtype(dtype, side),
                                         .rows = rows,
                                         .columns = columns,
                                         .x = hdt_at(gated, side),
                                         .gradient = hdt_at(gradient_2, side),
                                         .out = hdt_at(out, side),
                                         .x_gradient = hdt_at(back, side)};
            HDT_CALL(side, gated, &gate);
            HDT_CALL(side, gated_gradient, &gate);
        }
        /* 16 fp32 roundings in a function and its slope; approximate exp and 1 / x in 16 bits. */
        hdt_pair_check("activation", x, 9, 1, 16);
        hdt_pair_check("activation gradient", gradient, 9, 1, 32);
        hdt_pair_check("gated", out, 81, 1, 16);
        hdt_pair_check("gated gradient", back, 81, 1, 32);
    }
}
END_TEST

START_TEST(embedding_looks_up_and_sums_back)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    static const int64_t sizes[][3] = {{3, 7, 5}, {700, 129, 3}, {5000, 64, 300}, {4100, 8, 70000}};
    for (int s = 0; s < 4; s++) {
        const int64_t rows = sizes[s][0], columns = sizes[s][1], entries = sizes[s][2];
        hdt_gpu_reset();
        hdt_pair ids = hdt_pair_ids(rows, (int32_t)entries, 1), second = hdt_pair_ids(rows, 3, 2);
        hdt_pair table = hdt_pair_make(dtype, entries * columns, 3, 1, 0);
        hdt_pair other = hdt_pair_make(dtype, 3 * columns, 4, 1, 0);
        hdt_pair out = hdt_pair_zero(dtype, rows * columns);
        hdt_pair gradient = hdt_pair_make(dtype, rows * columns, 5, 1, 0);
        hdt_pair sums = hdt_pair_make(HD_DTYPE_F32, entries * columns, 6, 1, 0);
        for (int side = 0; side < HDT_SIDES; side++) {
            const hdi_embedding_args args = {.dtype = hdt_side_dtype(dtype, side),
                                             .rows = rows,
                                             .columns = columns,
                                             .entries = entries,
                                             .second_entries = 3,
                                             .ids = hdt_at(ids, side),
                                             .second_ids = hdt_at(second, side),
                                             .table = hdt_at(table, side),
                                             .second_table = s % 2 ? hdt_at(other, side) : NULL,
                                             .out = hdt_at(out, side)};
            HDT_CALL(side, embedding, &args);
            const hdi_embedding_gradient_args back = {
                .dtype = hdt_side_dtype(dtype, side),
                .rows = rows,
                .columns = columns,
                .entries = entries,
                .ids = hdt_at(ids, side),
                .gradient = hdt_at(gradient, side),
                .table_gradient = hdt_at(sums, side),
                .accumulate = s % 2,
                .workspace = hdt_scratch(
                    side, hdt_sides[side]->embedding_gradient_workspace(rows, entries))};
            HDT_CALL(side, embedding_gradient, &back);
        }
        hdt_pair_check("embedding", out, 2, 1, 1);
        hdt_pair_check("embedding gradient", sums, (double)rows / (double)entries * 4 + 8, 0,
                       rows / entries * 4 + 8);
    }
}
END_TEST

START_TEST(embedding_sums_back_over_a_period)
{
    enum { ROWS = 700, PERIOD = 96, ENTRIES = 100 };
    const hd_dtype dtype = hdt_dtypes[_i % 3];
    const int64_t columns = _i / 3 ? 72 : 7;
    int32_t values[ROWS];
    for (int32_t r = 0; r < ROWS; r++)
        values[r] = r % PERIOD;
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        hdt_gpu_reset();
        hdt_pair ids = hdt_pair_ints(ROWS, values);
        hdt_pair gradient = hdt_pair_make(dtype, ROWS * columns, 1, 1, 0);
        hdt_pair sums = hdt_pair_make(HD_DTYPE_F32, ENTRIES * columns, 2, 1, 0);
        for (int side = 0; side < HDT_SIDES; side++) {
            const hdi_embedding_gradient_args args = {.dtype = hdt_side_dtype(dtype, side),
                                                      .rows = ROWS,
                                                      .columns = columns,
                                                      .entries = ENTRIES,
                                                      .period = PERIOD,
                                                      .ids = hdt_at(ids, side),
                                                      .gradient = hdt_at(gradient, side),
                                                      .table_gradient = hdt_at(sums, side),
                                                      .accumulate = accumulate};
            HDT_CALL(side, embedding_gradient, &args);
        }
        const int64_t terms = ROWS / PERIOD + 2;
        hdt_pair_check("embedding gradient of positions", sums, (double)terms, 0, terms);
    }
}
END_TEST

START_TEST(rope_rotates_and_back)
{
    const hd_dtype dtype = hdt_dtypes[_i % 3];
    const hdi_rope_pairing pairing = (hdi_rope_pairing)(_i / 3);
    static const int64_t sizes[][3] = {{5, 1, 2}, {70, 3, 10}, {33, 4, 64}};
    for (int s = 0; s < 3; s++) {
        const int64_t rows = sizes[s][0], heads = sizes[s][1], head_dim = sizes[s][2];
        const int64_t stride = heads * head_dim + s * 8;
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_make(dtype, rows * stride, 1, 1, s == 1);
        hdt_pair table = hdt_pair_make(HD_DTYPE_F32, rows * head_dim, 2, 1, 0);
        hdt_pair positions = hdt_pair_ids(rows, (int32_t)rows, 3);
        for (int side = 0; side < HDT_SIDES; side++) {
            hdi_rope_args args = {.pairing = pairing,
                                  .dtype = hdt_side_dtype(dtype, side),
                                  .rows = rows,
                                  .heads = heads,
                                  .head_dim = head_dim,
                                  .x_stride = stride,
                                  .period = rows - 1,
                                  .table = hdt_at(table, side),
                                  .x = hdt_at(x, side),
                                  .out = hdt_at(x, side),
                                  .inverse = s == 2};
            HDT_CALL(side, rope, &args);
            args.positions = hdt_at(positions, side);
            HDT_CALL(side, rope, &args);
        }
        hdt_pair_check("rope", x, 4, 2, 4);
    }
}
END_TEST

START_TEST(cross_entropy_gives_loss_and_gradient_in_place)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    for (int s = 1; s < SHAPES; s++) {
        const int64_t rows = shapes[s].rows, classes = shapes[s].columns, stride = classes + s % 3;
        hdt_gpu_reset();
        hdt_pair logits = hdt_pair_make(dtype, rows * stride, 1, 8, 0);
        hdt_pair targets = hdt_pair_ids(rows, (int32_t)classes, 2);
        hdt_pair scale = hdt_pair_make(HD_DTYPE_F32, 1, 3, 1, 0);
        hdt_pair loss = hdt_pair_zero(HD_DTYPE_F32, rows);
        const int32_t ignored = -1;
        memcpy(targets.host, &ignored, sizeof ignored);
        hdt_assert_ok(
            hdt_sides[1]->copy_in(hdt_streams[1], targets.device, &ignored, sizeof ignored));
        double *sums[HDT_SIDES];
        for (int side = 0; side < HDT_SIDES; side++) {
            sums[side] = hdt_scratch(side, 2 * sizeof(double));
            const hdi_cross_entropy_args args = {.dtype = hdt_side_dtype(dtype, side),
                                                 .rows = rows,
                                                 .classes = classes,
                                                 .logits_stride = stride,
                                                 .logits = hdt_at(logits, side),
                                                 .targets = hdt_at(targets, side),
                                                 .scale = hdt_at(scale, side),
                                                 .loss = hdt_at(loss, side),
                                                 .gradient = hdt_at(logits, side)};
            HDT_CALL(side, cross_entropy, &args);
            HDT_CALL(side, loss_sum, hdt_at(loss, side), hdt_at(targets, side), rows, sums[side]);
        }
        double got[2];
        hdt_assert_ok(hdt_sides[1]->copy_out(hdt_streams[1], got, sums[1], sizeof got));
        hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
        hdt_pair_check("cross_entropy: loss", loss, 24, 0, classes + 16);
        ck_assert_double_eq(got[1], sums[0][1]);
        ck_assert_double_le(fabs(got[0] - sums[0][0]),
                            24 * (double)rows * 2 * hdt_tolerance(HD_DTYPE_F32, classes + 16));
        /* Columns past the classes keep their logits, up to 8. */
        hdt_pair_check("cross_entropy: gradient", logits, stride > classes ? 8 : 2, 1,
                       classes + 16);
    }
}
END_TEST

START_TEST(bad_ids_are_reported_and_read_nothing)
{
    const int32_t bad[] = {1, 7, 2};
    hdt_gpu_reset();
    hdt_pair ids = hdt_pair_ints(3, bad), table = hdt_pair_make(HD_DTYPE_F32, 5 * 4, 1, 1, 0);
    hdt_pair out = hdt_pair_zero(HD_DTYPE_F32, 3 * 4);
    const hdi_embedding_args args = {.dtype = HD_DTYPE_F32,
                                     .rows = 3,
                                     .columns = 4,
                                     .entries = 5,
                                     .ids = ids.device,
                                     .table = table.device,
                                     .out = out.device};
    HDT_CALL(1, embedding, &args);
    hdt_assert_status(hdt_sides[1]->synchronize(hdt_streams[1]), HD_ERROR_ARGUMENT,
                      "id 7 in row 1, want below 5");
    hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
}
END_TEST

int main(void)
{
    TCase *ops = tcase_create("ops");
    tcase_add_loop_test(ops, gemm_multiplies_in_every_form, 0, 3);
    tcase_add_loop_test(ops, gemm_adds_weight_gradients_in_fp32, 0, 3);
    tcase_add_loop_test(ops, gemm_and_gelu_are_one, 0, 3);
    tcase_add_loop_test(ops, column_sum_sums_rows, 0, 3);
    tcase_add_loop_test(ops, norms_go_forward_and_back, 0, 6);
    tcase_add_loop_test(ops, activations_go_forward_and_back_in_place, 0, 9);
    tcase_add_loop_test(ops, embedding_looks_up_and_sums_back, 0, 3);
    tcase_add_loop_test(ops, embedding_sums_back_over_a_period, 0, 6);
    tcase_add_loop_test(ops, rope_rotates_and_back, 0, 6);
    tcase_add_loop_test(ops, cross_entropy_gives_loss_and_gradient_in_place, 0, 3);
    tcase_add_test(ops, bad_ids_are_reported_and_read_nothing);
    return hdt_main_gpu("cuda backend", ops);
}
