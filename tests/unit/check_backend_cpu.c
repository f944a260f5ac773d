/* Every call of the CPU backend but attention, against fp64 written naively, on sizes that do not
 * divide its blocks. */
#include "core/random.h"
#include "tests/support/hdt_backend.h"

static const hd_backend *const cpu = &hdi_backend_cpu;

/* Products of numbers below 1 in magnitude plus at most two addends. */
START_TEST(gemm_equals_the_sum_of_products)
{
    static const int64_t sizes[][3] = {{1, 1, 1},      {1, 257, 64},    {7, 5, 3},
                                       {65, 130, 24},  {300, 500, 130}, {130, 65, 1030},
                                       {641, 257, 96}, {5, 9, 0}};
    const int64_t rows = sizes[_i / 16][0], columns = sizes[_i / 16][1], inner = sizes[_i / 16][2];
    const bool transpose_a = _i & 1, transpose_b = _i & 2, accumulate = _i & 4, bias = _i & 8;
    hdi_gemm_args args = {
        .dtype = HD_DTYPE_F32,
        .out_dtype = HD_DTYPE_F32,
        .rows = rows,
        .columns = columns,
        .inner = inner,
        .a_stride = (transpose_a ? rows : inner) + 3,
        .b_stride = (transpose_b ? inner : columns) + 1,
        .out_stride = columns + 2,
        .transpose_a = transpose_a,
        .transpose_b = transpose_b,
        .accumulate = accumulate,
    };
    const float *a = hdt_floats((transpose_a ? inner : rows) * args.a_stride + 1, 1);
    const float *b = hdt_floats((transpose_b ? columns : inner) * args.b_stride + 1, 2);
    float *out = hdt_take((size_t)(rows * args.out_stride) * sizeof(float));
    const float *before = hdt_floats(rows * args.out_stride, 3);
    const float *bias_row = bias ? hdt_floats(columns, 4) : NULL;
    args.a = a;
    args.b = b;
    args.out = out;
    args.bias = bias_row;
    hdt_same_on_threads(cpu->gemm(NULL, &args), out, before, rows * args.out_stride);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < args.out_stride; c++) {
            const int64_t at = r * args.out_stride + c;
            if (c >= columns) {
                ck_assert(out[at] == before[at]);
                continue;
            }
            double want = accumulate ? (double)before[at] : 0;
            if (bias_row) want += (double)bias_row[c];
            double magnitude = 2;
            for (int64_t i = 0; i < inner; i++) {
                const float left = a[transpose_a ? i * args.a_stride + r : r * args.a_stride + i];
                const float right = b[transpose_b ? c * args.b_stride + i : i * args.b_stride + c];
                want += (double)left * (double)right;
                magnitude += fabs((double)left * (double)right);
            }
            hdt_near("out", at, out[at], want, magnitude, inner + 2);
        }
}
END_TEST

START_TEST(gemm_does_not_depend_on_alignment)
{
    enum { ROWS = 70, COLUMNS = 65, INNER = 300 };
    hdi_gemm_args args = {.dtype = HD_DTYPE_F32,
                          .out_dtype = HD_DTYPE_F32,
                          .rows = ROWS,
                          .columns = COLUMNS,
                          .inner = INNER,
                          .a_stride = INNER,
                          .b_stride = COLUMNS,
                          .out_stride = COLUMNS};
    float *out[2];
    for (int shift = 0; shift < 2; shift++) {
        float *a = (float *)hdt_take((ROWS * INNER + 1) * sizeof *a) + shift;
        float *b = (float *)hdt_take((INNER * COLUMNS + 1) * sizeof *b) + shift;
        out[shift] = (float *)hdt_take((ROWS * COLUMNS + 1) * sizeof(float)) + shift;
        hdt_fill(a, ROWS * INNER, 1);
        hdt_fill(b, INNER * COLUMNS, 2);
        args.a = a;
        args.b = b;
        args.out = out[shift];
        hdt_assert_ok(cpu->gemm(NULL, &args));
    }
    ck_assert(memcmp(out[0], out[1], ROWS * COLUMNS * sizeof(float)) == 0);
}
END_TEST

START_TEST(column_sum_adds_rows)
{
    enum { ROWS = 133, COLUMNS = 150, STRIDE = 157 };
    const float *x = hdt_floats(ROWS * STRIDE, 1), *before = hdt_floats(COLUMNS, 2);
    float *out = hdt_take(COLUMNS * sizeof *out);
    hdi_column_sum_args args = {.dtype = HD_DTYPE_F32,
                                .out_dtype = HD_DTYPE_F32,
                                .rows = ROWS,
                                .columns = COLUMNS,
                                .x_stride = STRIDE,
                                .x = x,
                                .out = out,
                                .accumulate = _i};
    args.workspace = hdt_take(cpu->column_sum_workspace(ROWS, COLUMNS));
    hdt_same_on_threads(cpu->column_sum(NULL, &args), out, before, COLUMNS);
    for (int64_t c = 0; c < COLUMNS; c++) {
        double want = _i ? (double)before[c] : 0, magnitude = fabs(want);
        for (int64_t r = 0; r < ROWS; r++) {
            want += (double)x[r * STRIDE + c];
            magnitude += fabs((double)x[r * STRIDE + c]);
        }
        hdt_near("out", c, out[c], want, magnitude, ROWS + 1);
    }
}
END_TEST

enum { IDS = 300, WIDTH = 130, ENTRIES = 257, PLACES = 40 };

START_TEST(embedding_copies_or_adds_table_rows)
{
    const float *table = hdt_floats(ENTRIES * WIDTH, 1), *second = hdt_floats(PLACES * WIDTH, 2);
    float *out = hdt_take(IDS * WIDTH * sizeof *out);
    int32_t *ids = hdt_ids(IDS, ENTRIES, 3);
    const int32_t *second_ids = hdt_ids(IDS, PLACES, 4);
    hdi_embedding_args args = {.dtype = HD_DTYPE_F32,
                               .rows = IDS,
                               .columns = WIDTH,
                               .entries = ENTRIES,
                               .second_entries = PLACES,
                               .ids = ids,
                               .second_ids = _i ? second_ids : NULL,
                               .table = table,
                               .second_table = _i ? second : NULL,
                               .out = out};
    hdt_same_on_threads(cpu->embedding(NULL, &args), out, NULL, IDS * WIDTH);
    for (int64_t r = 0; r < IDS; r++)
        for (int64_t c = 0; c < WIDTH; c++) {
            const float other = _i ? second[second_ids[r] * WIDTH + c] : 0;
            ck_assert(out[r * WIDTH + c] == table[ids[r] * WIDTH + c] + other);
        }
    ids[17] = ENTRIES;
    hdt_assert_status(cpu->embedding(NULL, &args), HD_ERROR_ARGUMENT, "id 257 in row 17");
    ids[17] = -1;
    hdt_assert_status(cpu->embedding(NULL, &args), HD_ERROR_ARGUMENT, "id -1 in row 17");
}
END_TEST

START_TEST(embedding_gradient_adds_rows_in_order)
{
    const float *gradient = hdt_floats(IDS * WIDTH, 1), *before = hdt_floats(ENTRIES * WIDTH, 2);
    const int32_t *ids = hdt_ids(IDS, 50, 3); /* most entries are named by no row */
    float *table = hdt_take(ENTRIES * WIDTH * sizeof *table);
    float *want = hdt_take(ENTRIES * WIDTH * sizeof *want);
    hdi_embedding_gradient_args args = {.dtype = HD_DTYPE_F32,
                                        .rows = IDS,
                                        .columns = WIDTH,
                                        .entries = ENTRIES,
                                        .ids = ids,
                                        .gradient = gradient,
                                        .table_gradient = table,
                                        .accumulate = _i};
    args.workspace = hdt_take(cpu->embedding_gradient_workspace(IDS, ENTRIES));
    hdt_same_on_threads(cpu->embedding_gradient(NULL, &args), table, before, ENTRIES * WIDTH);
    if (_i) memcpy(want, before, ENTRIES * WIDTH * sizeof *want);
    for (int64_t r = 0; r < IDS; r++)
        for (int64_t c = 0; c < WIDTH; c++)
            want[ids[r] * WIDTH + c] += gradient[r * WIDTH + c];
    ck_assert(memcmp(want, table, ENTRIES * WIDTH * sizeof *want) == 0);
}
END_TEST

/* Uniform logits in [-8, 8): exponentials of the differences to the maximum err by a few roundings
 * of the difference. */
START_TEST(cross_entropy_and_its_gradient)
{
    enum { ROWS = 150, STRIDE = 610 };
    static const int64_t class_counts[] = {1, 2, 65, 257, 600};
    const int64_t classes = class_counts[_i];
    float *logits = hdt_floats(ROWS * STRIDE, 1);
    for (int64_t i = 0; i < ROWS * STRIDE; i++)
        logits[i] *= 8;
    float *before = hdt_take(ROWS * STRIDE * sizeof *before);
    memcpy(before, logits, ROWS * STRIDE * sizeof *before);
    int32_t *targets = hdt_ids(ROWS, (int32_t)classes, 2);
    targets[3] = -1;
    targets[77] = -100;
    const float scale = 0.25f;
    float *loss = hdt_take(ROWS * sizeof *loss), *alone = hdt_take(ROWS * sizeof *alone);
    hdi_cross_entropy_args args = {.dtype = HD_DTYPE_F32,
                                   .rows = ROWS,
                                   .classes = classes,
                                   .logits_stride = STRIDE,
                                   .logits = logits,
                                   .targets = targets,
                                   .scale = &scale,
                                   .loss = alone};
    hdt_same_on_threads(cpu->cross_entropy(NULL, &args), alone, NULL, ROWS);
    args.loss = loss;
    args.gradient = logits; /* in place */
    hdt_same_on_threads(cpu->cross_entropy(NULL, &args), logits, before, ROWS * STRIDE);
    ck_assert(memcmp(loss, alone, ROWS * sizeof *loss) == 0);
    double total = 0;
    for (int64_t r = 0; r < ROWS; r++) {
        const float *x = before + r * STRIDE;
        double sum = 0;
        for (int64_t c = 0; c < classes; c++)
            sum += exp((double)x[c]);
        const bool counts = targets[r] >= 0;
        const double want = counts ? log(sum) - (double)x[targets[r]] : 0;
        hdt_near("loss", r, loss[r], want, 2 * 16, 8);
        total += (double)loss[r];
        for (int64_t c = 0; c < STRIDE; c++) {
            if (c >= classes) {
                ck_assert(logits[r * STRIDE + c] == x[c]);
                continue;
            }
            const double slope = exp((double)x[c]) / sum - (c == targets[r]);
            hdt_near("gradient", r * STRIDE + c, logits[r * STRIDE + c],
                     counts ? slope * (double)scale : 0, (double)scale, 64);
        }
    }
    double got[2];
    hdt_assert_ok(cpu->loss_sum(NULL, loss, targets, ROWS, got));
    ck_assert(got[0] == total && got[1] == ROWS - 2);
    args.logits = before;
    args.scale = NULL; /* 1 */
    hdt_assert_ok(cpu->cross_entropy(NULL, &args));
    double sum = 0;
    for (int64_t c = 0; c < classes; c++)
        sum += exp((double)before[c]);
    hdt_near("gradient", 0, logits[0], exp((double)before[0]) / sum - (targets[0] == 0), 1, 64);
    targets[5] = (int32_t)classes;
    hdt_assert_status(cpu->cross_entropy(NULL, &args), HD_ERROR_ARGUMENT, "in row 5");
}
END_TEST

START_TEST(sum_of_squares_is_one_sum_for_each_block)
{
    enum { ELEMENTS = 2 * HDI_BLOCK_ELEMENTS + 77 };
    const float *x = hdt_floats(ELEMENTS, 1);
    double got[3], first[3];
    for (int threads = 1; threads <= 3; threads++) {
        hdi_cpu_set_threads(threads);
        hdt_assert_ok(cpu->sum_of_squares(NULL, HD_DTYPE_F32, x, ELEMENTS, got));
        if (threads == 1) memcpy(first, got, sizeof got);
        ck_assert(memcmp(first, got, sizeof got) == 0);
    }
    for (int64_t block = 0; block < 3; block++) {
        double want = 0;
        for (int64_t i = block * HDI_BLOCK_ELEMENTS;
             i < ELEMENTS && i < (block + 1) * HDI_BLOCK_ELEMENTS; i++)
            want += (double)x[i] * (double)x[i];
        ck_assert_double_le(fabs(got[block] - want), hdt_tolerance(HD_DTYPE_F32, 1024) * want);
    }
}
END_TEST

/* torch.optim.AdamW's rule in fp64. */
START_TEST(adamw_follows_the_rule)
{
    enum { ELEMENTS = 20011 };
    const bool with_master = _i & 1, apply = !(_i & 2);
    float *all = hdt_floats(4 * ELEMENTS, 1), *v = all + 2 * ELEMENTS;
    for (int64_t i = 0; i < ELEMENTS; i++)
        v[i] = fabsf(v[i]);
    float *before = hdt_take(4 * ELEMENTS * sizeof *before);
    memcpy(before, all, 4 * ELEMENTS * sizeof *before);
    const float *gradient = hdt_floats(ELEMENTS, 2);
    const float scalars[5] = {0.01f, 0.5f, 0.271f, 0.003f, apply ? 1.0f : 0.0f};
    hdi_adamw_args args = {.dtype = HD_DTYPE_F32,
                           .elements = ELEMENTS,
                           .weights = all,
                           .m = all + ELEMENTS,
                           .v = v,
                           .master = with_master ? all + 3 * ELEMENTS : NULL,
                           .gradient = gradient,
                           .scalars = scalars,
                           .beta1 = 0.9f,
                           .beta2 = 0.999f,
                           .epsilon = 0.01f,
                           .weight_decay = 0.1f};
    hdt_same_on_threads(cpu->adamw(NULL, &args), all, before, 4 * ELEMENTS);
    for (int64_t i = 0; i < ELEMENTS && apply; i++) {
        const double g = (double)gradient[i] * 0.5, beta1 = (double)args.beta1;
        const double beta2 = (double)args.beta2, rate = (double)scalars[0];
        const double old = (double)before[(with_master ? 3 : 0) * ELEMENTS + i];
        const double m = beta1 * (double)before[ELEMENTS + i] + (1 - beta1) * g;
        const double square = beta2 * (double)before[2 * ELEMENTS + i] + (1 - beta2) * g * g;
        const double step = rate * (m / (double)scalars[2]) /
                            (sqrt(square / (double)scalars[3]) + (double)args.epsilon);
        const double want = old * (1 - rate * (double)args.weight_decay) - step;
        hdt_near("m", i, args.m[i], m, 2, 4);
        hdt_near("v", i, args.v[i], square, square, 6);
        /* m carries an absolute error, which the step divides by the root. */
        hdt_near("weights", i, all[i], want,
                 fabs(old) + fabs(step) + 2 * fabs(step) / fmax(fabs(m), 1e-30), 12);
        if (with_master) ck_assert(args.master[i] == all[i]);
    }
    if (!apply) ck_assert(memcmp(all, before, 4 * ELEMENTS * sizeof *all) == 0);
}
END_TEST

START_TEST(fill_normal_equals_the_counter_based_numbers)
{
    enum { ELEMENTS = 5001 };
    float *out = hdt_take(ELEMENTS * sizeof *out);
    const int64_t first = (INT64_C(1) << 33) + 5;
    hdt_same_on_threads(cpu->fill_normal(NULL, HD_DTYPE_F32, out, ELEMENTS, 42, 7, first, 0.02f),
                        out, NULL, ELEMENTS);
    for (int64_t i = 0; i < ELEMENTS; i++)
        ck_assert(out[i] == 0.02f * hdi_random_normal(42, 7, (uint64_t)(first + i)));
}
END_TEST

START_TEST(device_memory_is_aligned_and_zeroed)
{
    hdi_device *device;
    hdt_assert_ok(cpu->open(0, &device));
    hdi_memory_info info;
    hdt_assert_ok(cpu->memory_info(device, &info));
    ck_assert(info.free_bytes > 0 && info.free_bytes <= info.total_bytes);
    enum { BYTES = 100001 };
    void *arena;
    hdt_assert_ok(cpu->reserve(device, BYTES, &arena));
    ck_assert_uint_eq((uintptr_t)arena % 4096, 0);
    for (int i = 0; i < BYTES; i++)
        ck_assert(((char *)arena)[i] == 0);
    hd_stream *stream = cpu->stream(device);
    const float values[3] = {1, 2, 3};
    float back[3];
    hdt_assert_ok(cpu->copy_in(stream, arena, values, sizeof values));
    hdt_assert_ok(cpu->copy(stream, (float *)arena + 3, arena, sizeof values));
    hdt_assert_ok(cpu->zero(stream, arena, sizeof(float)));
    hdt_assert_ok(cpu->copy_out(stream, back, (float *)arena + 3, sizeof back));
    hdt_assert_ok(cpu->synchronize(stream));
    ck_assert(memcmp(values, back, sizeof back) == 0 && *(float *)arena == 0);
    cpu->release(device, arena, BYTES);
    hdt_assert_status(cpu->reserve(device, SIZE_MAX / 2, &arena), HD_ERROR_MEMORY, "refused");
    hdt_assert_status(cpu->convert(stream, HD_DTYPE_I32, back, HD_DTYPE_F32, back, 1),
                      HD_ERROR_UNSUPPORTED, "I32");
    cpu->close(device);
    cpu->close(NULL);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("calls");
    tcase_add_checked_fixture(tests, NULL, hdt_free_held);
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, gemm_equals_the_sum_of_products, 0, 8 * 16);
    tcase_add_test(tests, gemm_does_not_depend_on_alignment);
    tcase_add_loop_test(tests, column_sum_adds_rows, 0, 2);
    tcase_add_loop_test(tests, embedding_copies_or_adds_table_rows, 0, 2);
    tcase_add_loop_test(tests, embedding_gradient_adds_rows_in_order, 0, 2);
    tcase_add_loop_test(tests, cross_entropy_and_its_gradient, 0, 5);
    tcase_add_test(tests, sum_of_squares_is_one_sum_for_each_block);
    tcase_add_loop_test(tests, adamw_follows_the_rule, 0, 4);
    tcase_add_test(tests, fill_normal_equals_the_counter_based_numbers);
    tcase_add_test(tests, device_memory_is_aligned_and_zeroed);
    Suite *suite = suite_create("backend_cpu");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
