/* The CUDA backend against the CPU backend: parts of a table and of the classes, which ranks of a tensor
 * axis have. */
#include "tests/gpu/hdt_gpu.h"

START_TEST(parts_of_a_vocabulary_are_looked_up_and_summed_back)
{
    enum { ROWS = 900, FIRST = 70, ENTRIES = 41, LIMIT = 150 };
    const hd_dtype dtype = hdt_dtypes[_i % 3];
    const int64_t columns = _i / 3 ? 72 : 7;
    hdt_gpu_reset();
    hdt_pair ids = hdt_pair_ids(ROWS, LIMIT, 1);
    hdt_pair table = hdt_pair_make(dtype, ENTRIES * columns, 2, 1, 0);
    hdt_pair out = hdt_pair_make(dtype, ROWS * columns, 3, 1, 0);
    hdt_pair gradient = hdt_pair_make(dtype, ROWS * columns, 4, 1, 0);
    hdt_pair sums = hdt_pair_make(HD_DTYPE_F32, ENTRIES * columns, 5, 1, 0);
    for (int side = 0; side < HDT_SIDES; side++) {
        const hdi_embedding_args args = {.dtype = hdt_side_dtype(dtype, side),
                                         .rows = ROWS,
                                         .columns = columns,
                                         .entries = ENTRIES,
                                         .first = FIRST,
                                         .limit = LIMIT,
                                         .ids = hdt_at(ids, side),
                                         .table = hdt_at(table, side),
                                         .out = hdt_at(out, side)};
        HDT_CALL(side, embedding, &args);
        const hdi_embedding_gradient_args back = {
            .dtype = hdt_side_dtype(dtype, side),
            .rows = ROWS,
            .columns = columns,
            .entries = ENTRIES,
            .first = FIRST,
            .limit = LIMIT,
            .ids = hdt_at(ids, side),
            .gradient = hdt_at(gradient, side),
            .table_gradient = hdt_at(sums, side),
            .workspace =
                hdt_scratch(side, hdt_sides[side]->embedding_gradient_workspace(ROWS, ENTRIES))};
        HDT_CALL(side, embedding_gradient, &back);
    }
    hdt_pair_check("embedding of a part", out, 1, 1, 1);
    hdt_pair_check("embedding gradient of a part", sums, ROWS / LIMIT * 4 + 8, 0,
                   ROWS / LIMIT * 4 + 8);
}
END_TEST

START_TEST(cross_entropy_of_parts_has_the_loss_of_all)
{
    enum { ROWS = 65, PARTS = 3 };
    static const int64_t firsts[PARTS + 1] = {0, 1000, 1001, 5000};
    const hd_dtype dtype = hdt_dtypes[_i];
    hdt_gpu_reset();
    hdt_pair targets = hdt_pair_ids(ROWS, (int32_t)firsts[PARTS], 2), logits[PARTS];
    hdt_pair scale = hdt_pair_make(HD_DTYPE_F32, 1, 3, 1, 0);
    hdt_pair loss = hdt_pair_zero(HD_DTYPE_F32, ROWS);
    hdt_pair statistics = hdt_pair_zero(HD_DTYPE_F32, PARTS * ROWS * 3);
    for (int p = 0; p < PARTS; p++)
        logits[p] = hdt_pair_make(dtype, ROWS * (firsts[p + 1] - firsts[p]), 4 + (uint64_t)p, 8, 0);
    for (int side = 0; side < HDT_SIDES; side++)
        for (int step = 0; step < 2; step++)
            for (int p = 0; p < PARTS; p++) {
                float *all = hdt_at(statistics, side);
                hdi_cross_entropy_args args = {.dtype = hdt_side_dtype(dtype, side),
                                               .rows = ROWS,
                                               .classes = firsts[p + 1] - firsts[p],
                                               .logits_stride = firsts[p + 1] - firsts[p],
                                               .first = firsts[p],
                                               .limit = firsts[PARTS],
                                               .parts = PARTS,
                                               .statistics = step ? all : all + p * ROWS * 3,
                                               .logits = hdt_at(logits[p], side),
                                               .targets = hdt_at(targets, side),
                                               .scale = hdt_at(scale, side),
                                               .loss = hdt_at(loss, side),
                                               .gradient = hdt_at(logits[p], side)};
                if (step == 0)
                    HDT_CALL(side, cross_entropy_part, &args);
                else
                    HDT_CALL(side, cross_entropy, &args);
            }
    hdt_pair_check("cross_entropy of parts: loss", loss, 24, 0, firsts[PARTS] + 16);
    for (int p = 0; p < PARTS; p++)
        hdt_pair_check("cross_entropy of parts: gradient", logits[p], 2, 1, firsts[PARTS] + 16);
}
END_TEST

int main(void)
{
    TCase *ops = tcase_create("ops");
    tcase_add_loop_test(ops, parts_of_a_vocabulary_are_looked_up_and_summed_back, 0, 6);
    tcase_add_loop_test(ops, cross_entropy_of_parts_has_the_loss_of_all, 0, 3);
    return hdt_main_gpu("cuda parts", ops);
}
