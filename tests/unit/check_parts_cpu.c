/* Parts of a vocabulary: tables and classes that ranks share, against the whole. */
#include "backend/cpu/cpu.h"
#include "tests/support/hdt_backend.h"

#include <math.h>

static const hd_backend *const cpu = &hdi_backend_cpu;

enum { ROWS = 61, WIDTH = 70, ALL = 257, PARTS = 3 };

/* Unequal parts: the first of `part`, of PARTS the end. */
static int64_t first_of(int part)
{
    static const int64_t firsts[PARTS + 1] = {0, 100, 101, ALL};
    return firsts[part];
}

START_TEST(parts_of_a_table_add_up_to_its_rows)
{
    const float *table = hdt_floats(ALL * WIDTH, 1), *gradient = hdt_floats(ROWS * WIDTH, 2);
    int32_t *ids = hdt_ids(ROWS, ALL, 3);
    ids[0] = 100; /* the only entry of its part */
    float *whole = hdt_take(ROWS * WIDTH * sizeof *whole),
          *out = hdt_take(ROWS * WIDTH * sizeof *out), *sum = hdt_take(ROWS * WIDTH * sizeof *sum),
          *sums = hdt_take(ALL * WIDTH * sizeof *sums),
          *part_sums = hdt_take(ALL * WIDTH * sizeof *part_sums);
    hdi_embedding_args args = {.dtype = HD_DTYPE_F32,
                               .rows = ROWS,
                               .columns = WIDTH,
                               .entries = ALL,
                               .ids = ids,
                               .table = table,
                               .out = whole};
    hdi_embedding_gradient_args back = {.dtype = HD_DTYPE_F32,
                                        .rows = ROWS,
                                        .columns = WIDTH,
                                        .entries = ALL,
                                        .ids = ids,
                                        .gradient = gradient,
                                        .table_gradient = sums};
    hdt_assert_ok(cpu->embedding(NULL, &args));
    hdt_assert_ok(cpu->embedding_gradient(NULL, &back));
    for (int p = 0; p < PARTS; p++) {
        args.first = back.first = first_of(p);
        args.entries = back.entries = first_of(p + 1) - first_of(p);
        args.limit = back.limit = ALL;
        args.table = table + args.first * WIDTH;
        args.out = out;
        back.table_gradient = part_sums + args.first * WIDTH;
        hdt_assert_ok(cpu->embedding(NULL, &args));
        hdt_assert_ok(cpu->embedding_gradient(NULL, &back));
        for (int64_t i = 0; i < ROWS * WIDTH; i++)
            sum[i] += out[i];
    }
    ck_assert(memcmp(sum, whole, ROWS * WIDTH * sizeof *sum) == 0);
    ck_assert(memcmp(part_sums, sums, ALL * WIDTH * sizeof *sums) == 0);
    ids[5] = ALL;
    hdt_assert_status(cpu->embedding(NULL, &args), HD_ERROR_ARGUMENT, "want 0 to 256");
    hdt_assert_status(cpu->embedding_gradient(NULL, &back), HD_ERROR_ARGUMENT, "want 0 to 256");
}
END_TEST

/* Uniform logits in [-8, 8). Sums of parts are rounded to fp32 once more. */
START_TEST(parts_of_the_classes_have_the_loss_of_all)
{
    float *logits = hdt_floats(ROWS * ALL, 1), *own = hdt_take(ROWS * ALL * sizeof *own);
    float *statistics = hdt_take(PARTS * ROWS * 3 * sizeof *statistics);
    float *loss = hdt_take(ROWS * sizeof *loss);
    int32_t *targets = hdt_ids(ROWS, ALL, 2);
    const float scale = 0.25f;
    for (int64_t i = 0; i < ROWS * ALL; i++)
        logits[i] *= 8;
    targets[3] = -1;
    targets[4] = 100;
    for (int step = 0; step < 2; step++)
        for (int p = 0; p < PARTS; p++) {
            const int64_t first = first_of(p), classes = first_of(p + 1) - first;
            for (int64_t r = 0; r < ROWS; r++)
                memcpy(own + r * classes, logits + r * ALL + first, (size_t)classes * sizeof *own);
            hdi_cross_entropy_args args = {.dtype = HD_DTYPE_F32,
                                           .rows = ROWS,
                                           .classes = classes,
                                           .logits_stride = classes,
                                           .first = first,
                                           .limit = ALL,
                                           .logits = own,
                                           .targets = targets};
            if (step == 0) {
                args.statistics = statistics + p * ROWS * 3;
                hdt_assert_ok(cpu->cross_entropy_part(NULL, &args));
                continue;
            }
            args.parts = PARTS;
            args.statistics = statistics;
            args.scale = &scale;
            args.loss = loss;
            args.gradient = own;
            hdt_assert_ok(cpu->cross_entropy(NULL, &args));
            for (int64_t r = 0; r < ROWS; r++) {
                const float *x = logits + r * ALL;
                const bool counts = targets[r] >= 0;
                double sum = 0;
                for (int64_t c = 0; c < ALL; c++)
                    sum += exp((double)x[c]);
                hdt_near("loss", r, loss[r], counts ? log(sum) - (double)x[targets[r]] : 0, 2 * 16,
                         8);
                for (int64_t c = 0; c < classes; c++) {
                    const double slope =
                        exp((double)x[first + c]) / sum - (first + c == targets[r]);
                    hdt_near("gradient", r * ALL + first + c, own[r * classes + c],
                             counts ? slope * (double)scale : 0, (double)scale, 64);
                }
            }
            const int32_t fifth = targets[5];
            targets[5] = ALL;
            hdt_assert_status(cpu->cross_entropy_part(NULL, &args), HD_ERROR_ARGUMENT, "in row 5");
            hdt_assert_status(cpu->cross_entropy(NULL, &args), HD_ERROR_ARGUMENT, "in row 5");
            targets[5] = fifth;
        }
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("parts");
    tcase_add_checked_fixture(tests, NULL, hdt_free_held);
    tcase_add_test(tests, parts_of_a_table_add_up_to_its_rows);
    tcase_add_test(tests, parts_of_the_classes_have_the_loss_of_all);
    Suite *suite = suite_create("parts_cpu");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
