/* The CUDA backend against the CPU backend: what diffusion transformers need beside attention. Sizes do
 * not divide tiles; some arrays are not aligned. */
#include "tests/gpu/hdt_gpu.h"

/* The magnitude that lets an fp32 sum of `terms` carry `roundings` of its terms to `dtype`. */
static double widened(hd_dtype dtype, double magnitude, int roundings, int64_t terms)
{
    if (dtype == HD_DTYPE_F32) return magnitude;
    return magnitude *
           (1 + roundings * hdt_tolerance(dtype, 1) / (2 * hdt_tolerance(HD_DTYPE_F32, terms)));
}

static void check_same(const char *what, hdt_pair pair, const float *before)
{
    if (memcmp(hdt_fetch(pair), before, (size_t)pair.count * sizeof *before) != 0)
        ck_abort_msg("%s, %s: the second run has other bits", what, hd_dtype_name(pair.dtype));
}

START_TEST(sinusoids_have_angles_in_fp64)
{
    enum { ROWS = 37, COLUMNS = 258 };
    const hd_dtype dtype = hdt_dtypes[_i];
    hdt_gpu_reset();
    hdt_pair x = hdt_pair_make(HD_DTYPE_F32, ROWS, 1, 1000, 0);
    hdt_pair out = hdt_pair_zero(dtype, ROWS * COLUMNS);
    for (int side = 0; side < HDT_SIDES; side++) {
        const hdi_sinusoid_args args = {.dtype = hdt_side_dtype(dtype, side),
                                        .rows = ROWS,
                                        .columns = COLUMNS,
                                        .scale = 1000,
                                        .period = 10000,
                                        .x = hdt_at(x, side),
                                        .out = hdt_at(out, side)};
        HDT_CALL(side, sinusoid, &args);
    }
    hdt_pair_check("sinusoid", out, 1, 1, 1);
}
END_TEST

typedef struct modulation {
    int64_t rows, columns, rows_per_group, gate_rows_per_group;
    bool indexed;
    int offset; /* elements that x is away from where it would be aligned */
} modulation;

static const modulation modulations[] = {
    {6, 7, 3, 2, false, 0},          {60, 1152, 20, 30, true, 0},  {90, 1872, 90, 90, false, 0},
    {130, 3072, 65, 130, true, 0},   {33, 3071, 11, 33, true, 0},  {700, 264, 1, 700, false, 0},
    {1300, 320, 1300, 650, true, 0}, {40, 3072, 40, 40, false, 1}, {9, 8192, 3, 9, true, 0},
    {9, 12296, 9, 3, false, 0},
};

enum { MODULATIONS = sizeof modulations / sizeof *modulations, ENTRIES = 5 };

/* Two tables, [shift | scale | gate] and some columns more, with their indices. */
typedef struct tables {
    int64_t width, entries, gate_entries;
    hdt_pair table, index, gate_index;
} tables;

static tables make_tables(hd_dtype dtype, const modulation *m)
{
    const int64_t groups = m->rows / m->rows_per_group, gates = m->rows / m->gate_rows_per_group;
    tables t = {.width = 3 * m->columns + 16};
    t.entries = m->indexed ? ENTRIES : groups;
    t.gate_entries = m->indexed ? ENTRIES : gates;
    const int64_t most = t.entries > t.gate_entries ? t.entries : t.gate_entries;
    t.table = hdt_pair_make(dtype, most * t.width, 11, 1, 0);
    t.index = hdt_pair_ids(groups, ENTRIES, 12);
    t.gate_index = hdt_pair_ids(gates, ENTRIES, 13);
    return t;
}

static hdi_modulate_args modulate_args(const modulation *m, const tables *t, int side)
{
    return (hdi_modulate_args){
        .dtype = hdt_side_dtype(t->table.dtype, side),
        .rows = m->rows,
        .columns = m->columns,
        .rows_per_group = m->rows_per_group,
        .gate_rows_per_group = m->gate_rows_per_group,
        .epsilon = 1e-5f,
        .shift = hdt_at(t->table, side),
        .scale = hdt_element(t->table, side, m->columns),
        .gate = hdt_element(t->table, side, 2 * m->columns),
        .stride = t->width,
        .gate_stride = t->width,
        .entries = t->entries,
        .gate_entries = t->gate_entries,
        .index = m->indexed ? hdt_at(t->index, side) : NULL,
        .gate_index = m->indexed ? hdt_at(t->gate_index, side) : NULL,
    };
}

static bool too_wide(hd_dtype dtype, const modulation *m)
{
    return m->columns * (int64_t)hd_dtype_bytes(dtype) > 32768;
}

static void check_modulate(hd_dtype dtype, const modulation *m)
{
    const int64_t count = m->rows * m->columns;
    hdt_gpu_reset();
    const tables t = make_tables(dtype, m);
    hdt_pair x = hdt_pair_make(dtype, count, 1, 1, m->offset);
    hdt_pair delta = hdt_pair_make(dtype, count, 2, 1, 0);
    hdt_pair sum = hdt_pair_zero(dtype, count), out = hdt_pair_zero(dtype, count);
    hdt_pair plain = hdt_pair_zero(dtype, count), added = hdt_pair_zero(dtype, count);
    hdt_pair mean = hdt_pair_zero(HD_DTYPE_F32, m->rows);
    hdt_pair rstd = hdt_pair_zero(HD_DTYPE_F32, m->rows);
    for (int side = 0; side < HDT_SIDES; side++) {
        hdi_modulate_args args = modulate_args(m, &t, side);
        args.x = hdt_at(x, side), args.delta = hdt_at(delta, side);
        args.sum = hdt_at(sum, side), args.out = hdt_at(out, side);
        HDT_CALL(side, modulate, &args);
        args.sum = hdt_at(added, side), args.out = NULL;
        HDT_CALL(side, modulate, &args);
        args.delta = args.gate = args.shift = args.sum = NULL;
        args.out = hdt_at(plain, side);
        args.mean = hdt_at(mean, side), args.rstd = hdt_at(rstd, side);
        HDT_CALL(side, modulate, &args);
    }
    hdt_pair_check("gated add and norm: sum", sum, 2, 1, 2);
    hdt_pair_check("gated add", added, 2, 1, 2);
    hdt_pair_check("modulated norm: mean", mean, 1, 0, m->columns);
    hdt_pair_check("modulated norm: rstd", rstd, 0, 0, 2 * m->columns + 8);
    hdt_pair_check("modulated norm without shift", plain, 0, 1, m->columns + 8);
    hdt_pair_check("gated add and norm", out, 0, 4, m->columns + 8);
}

START_TEST(rows_are_modulated)
{
    for (int i = 0; i < MODULATIONS; i++)
        if (!too_wide(hdt_dtypes[_i], &modulations[i]))
            check_modulate(hdt_dtypes[_i], &modulations[i]);
}
END_TEST

/* parts: what is asked for. */
enum { THROUGH_NORM = 1, CARRY = 2, GATED = 4, IN_PLACE = 8 };

static void check_modulate_gradient(hd_dtype dtype, const modulation *m, int parts)
{
    const int64_t count = m->rows * m->columns, groups = m->rows / m->rows_per_group;
    const int64_t gates = m->rows / m->gate_rows_per_group;
    hdt_gpu_reset();
    const tables t = make_tables(dtype, m);
    hdt_pair x = hdt_pair_make(dtype, count, 1, 1, m->offset);
    hdt_pair delta = hdt_pair_make(dtype, count, 2, 1, 0);
    hdt_pair gradient = hdt_pair_make(dtype, count, 3, 1, 0);
    hdt_pair carry = hdt_pair_make(dtype, count, 4, 1, 0);
    hdt_pair mean = hdt_pair_zero(HD_DTYPE_F32, m->rows);
    hdt_pair rstd = hdt_pair_zero(HD_DTYPE_F32, m->rows);
    hdt_pair normed = hdt_pair_zero(dtype, count);
    hdt_pair x_gradient = hdt_pair_zero(dtype, count), delta_gradient = x_gradient;
    if (parts & IN_PLACE) x_gradient = parts & THROUGH_NORM ? gradient : carry;
    delta_gradient = hdt_pair_zero(dtype, count);
    hdt_pair sums = hdt_pair_zero(HD_DTYPE_F32, groups * 2 * m->columns);
    hdt_pair gate_sums = hdt_pair_zero(HD_DTYPE_F32, gates * m->columns);
    const float *first[2] = {NULL, NULL};
    for (int run = 0; run < HDT_SIDES + 1; run++) {
        const int side = run > 0;                /* twice on the GPU */
        if (run == 2 && parts & IN_PLACE) break; /* its input is gone */
        hdi_modulate_args forward = modulate_args(m, &t, side);
        forward.x = hdt_at(x, side), forward.out = hdt_at(normed, side), forward.delta = NULL;
        forward.mean = hdt_at(mean, side), forward.rstd = hdt_at(rstd, side);
        HDT_CALL(side, modulate, &forward);
        const bool through = parts & THROUGH_NORM, gated = parts & GATED;
        hdi_modulate_gradient_args args = {
            .dtype = forward.dtype,
            .rows = m->rows,
            .columns = m->columns,
            .rows_per_group = m->rows_per_group,
            .gate_rows_per_group = m->gate_rows_per_group,
            .gradient = through ? hdt_at(gradient, side) : NULL,
            .carry = parts & CARRY ? hdt_at(carry, side) : NULL,
            .x = through ? hdt_at(x, side) : NULL,
            .delta = gated ? hdt_at(delta, side) : NULL,
            .gate = gated ? forward.gate : NULL,
            .scale = through ? forward.scale : NULL,
            .stride = t.width,
            .gate_stride = t.width,
            .entries = t.entries,
            .gate_entries = t.gate_entries,
            .index = forward.index,
            .gate_index = forward.gate_index,
            .mean = through ? forward.mean : NULL,
            .rstd = through ? forward.rstd : NULL,
            .x_gradient = through ? hdt_at(x_gradient, side) : NULL,
            .delta_gradient = gated ? hdt_at(delta_gradient, side) : NULL,
            .sums = through ? hdt_at(sums, side) : NULL,
            .gate_sums = gated ? hdt_at(gate_sums, side) : NULL,
        };
        args.workspace = hdt_scratch(side, hdt_sides[side]->modulate_gradient_workspace(&args));
        HDT_CALL(side, modulate_gradient, &args);
        if (run == 1) first[0] = hdt_fetch(sums), first[1] = hdt_fetch(gate_sums);
    }
    float largest = 1;
    for (int64_t i = 0; i < m->rows; i++)
        largest = fmaxf(largest, rstd.host[i]);
    const int64_t rows = m->rows_per_group, gate_rows = m->gate_rows_per_group;
    const int64_t terms = 2 * m->columns + 16;
    if (parts & THROUGH_NORM) {
        hdt_pair_check("modulate gradient: x", x_gradient, 0, 3, terms);
        hdt_pair_check("modulate gradient: sums", sums, 4 * (double)rows, 0, rows + m->columns + 8);
    }
    if (parts & GATED) {
        /* ds is up to 1 + 8 rstd, rounded twice. */
        const double size = (1 + 8 * (double)largest) * (double)gate_rows;
        hdt_pair_check("modulate gradient: delta", delta_gradient, 0, 4, terms);
        hdt_pair_check("modulate gradient: gate's sums", gate_sums,
                       widened(dtype, size, 2, gate_rows + terms), 0, gate_rows + terms);
    }
    if (parts & IN_PLACE) return;
    check_same("modulate gradient: sums", sums, first[0]);
    check_same("modulate gradient: gate's sums", gate_sums, first[1]);
}

START_TEST(modulation_goes_back)
{
    static const int parts[] = {THROUGH_NORM | CARRY | GATED, THROUGH_NORM, CARRY | GATED,
                                THROUGH_NORM | CARRY | IN_PLACE, THROUGH_NORM | GATED};
    for (int i = 0; i < MODULATIONS; i++)
        for (int p = 0; p < 5; p++)
            if (!too_wide(hdt_dtypes[_i], &modulations[i]))
                check_modulate_gradient(hdt_dtypes[_i], &modulations[i], parts[p]);
}
END_TEST

START_TEST(a_bad_entry_is_reported)
{
    const int32_t bad[] = {0, 7};
    const modulation m = {4, 8, 2, 2, true, 0};
    hdt_gpu_reset();
    tables t = make_tables(HD_DTYPE_F32, &m);
    t.index = hdt_pair_ints(2, bad);
    hdt_pair x = hdt_pair_make(HD_DTYPE_F32, 32, 1, 1, 0);
    hdi_modulate_args args = modulate_args(&m, &t, 1);
    args.x = x.device, args.out = x.device;
    HDT_CALL(1, modulate, &args);
    hdt_assert_status(hdt_sides[1]->synchronize(hdt_streams[1]), HD_ERROR_ARGUMENT,
                      "modulate: entry 7");
}
END_TEST

START_TEST(sums_of_groups_go_into_the_tables_gradient)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    enum { GROUPS = 9, COLUMNS = 37, WIDTH = 90, FIRST = 40, STRIDE = 80 };
    for (int indexed = 0; indexed < 2; indexed++) {
        const int64_t entries = indexed ? ENTRIES : GROUPS + 1;
        hdt_gpu_reset();
        hdt_pair sums = hdt_pair_make(HD_DTYPE_F32, GROUPS * STRIDE, 1, 1, 0);
        hdt_pair index = hdt_pair_ids(GROUPS, ENTRIES, 2);
        hdt_pair table = hdt_pair_make(dtype, entries * WIDTH, 3, 1, 0);
        for (int side = 0; side < HDT_SIDES; side++) {
            const hdi_modulation_gradient_args args = {.dtype = hdt_side_dtype(dtype, side),
                                                       .groups = GROUPS,
                                                       .columns = COLUMNS,
                                                       .entries = entries,
                                                       .table_columns = WIDTH,
                                                       .first = FIRST,
                                                       .sums = hdt_at(sums, side),
                                                       .sums_stride = STRIDE,
                                                       .index =
                                                           indexed ? hdt_at(index, side) : NULL,
                                                       .table_gradient = hdt_at(table, side)};
            HDT_CALL(side, modulation_gradient, &args);
        }
        hdt_pair_check("modulation gradient", table, GROUPS, 1, GROUPS);
    }
}
END_TEST

START_TEST(rows_of_a_table_are_added_and_summed_back)
{
    static const int64_t sizes[][3] = {{12, 7, 4}, {65, 1152, 30}, {300, 264, 1}, {50, 40, 50}};
    const hd_dtype dtype = hdt_dtypes[_i];
    for (int s = 0; s < 8; s++) {
        const int64_t rows = sizes[s / 2][0], columns = sizes[s / 2][1], period = sizes[s / 2][2];
        const bool accumulate = s % 2;
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_make(dtype, rows * columns, 1, 1, 0);
        hdt_pair table = hdt_pair_make(dtype, period * columns, 2, 1, 0);
        hdt_pair out = hdt_pair_zero(dtype, rows * columns);
        hdt_pair sums = hdt_pair_make(accumulate ? HD_DTYPE_F32 : dtype, period * columns, 3, 1, 0);
        for (int side = 0; side < HDT_SIDES; side++) {
            const hdi_add_rows_args args = {.dtype = hdt_side_dtype(dtype, side),
                                            .rows = rows,
                                            .columns = columns,
                                            .period = period,
                                            .x = hdt_at(x, side),
                                            .table = hdt_at(table, side),
                                            .out = hdt_at(out, side)};
            HDT_CALL(side, add_rows, &args);
            const hdi_add_rows_gradient_args back = {.dtype = args.dtype,
                                                     .out_dtype = hdt_side_dtype(sums.dtype, side),
                                                     .rows = rows,
                                                     .columns = columns,
                                                     .period = period,
                                                     .gradient = hdt_at(x, side),
                                                     .table_gradient = hdt_at(sums, side),
                                                     .accumulate = accumulate};
            HDT_CALL(side, add_rows_gradient, &back);
        }
        const int64_t terms = rows / period + 2;
        hdt_pair_check("add_rows", out, 2, 1, 1);
        hdt_pair_check("add_rows gradient", sums, (double)terms, 1, terms);
    }
}
END_TEST

START_TEST(blocks_are_copied_whatever_their_size)
{
    static const struct {
        int64_t blocks;
        size_t bytes, x_stride, out_stride, x_first, out_first;
    } cases[] = {{5, 4096, 6144, 4096, 1024, 0},
                 {1, 777, 1, 1, 3, 9},
                 {9, 12, 20, 36, 4, 8},
                 {7, 13, 15, 99, 1, 2}};
    enum { WORDS = 16384 };
    for (int c = 0; c < 4; c++) {
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_ids(WORDS, 1 << 30, 1), out = hdt_pair_ids(WORDS, 1 << 30, 2);
        for (int side = 0; side < HDT_SIDES; side++) {
            const hdi_copy_blocks_args args = {.blocks = cases[c].blocks,
                                               .block_bytes = cases[c].bytes,
                                               .x_stride = cases[c].x_stride,
                                               .out_stride = cases[c].out_stride,
                                               .x = (char *)hdt_at(x, side) + cases[c].x_first,
                                               .out =
                                                   (char *)hdt_at(out, side) + cases[c].out_first};
            HDT_CALL(side, copy_blocks, &args);
        }
        ck_assert_mem_eq(hdt_fetch(out), out.host, WORDS * sizeof(float));
    }
}
END_TEST

/* A transposed grid of blocks, of sizes that 16 and 4 divide or not. */
START_TEST(blocks_on_a_grid_are_copied)
{
    static const size_t sizes[] = {48, 12, 7};
    enum { WORDS = 8192 };
    for (int c = 0; c < 3; c++) {
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_ids(WORDS, 1 << 30, 1), out = hdt_pair_ids(WORDS, 1 << 30, 2);
        const size_t b = sizes[c];
        for (int side = 0; side < HDT_SIDES; side++) {
            const hdi_copy_grid_args args = {.count = {2, 3, 5, 4, 3},
                                             .x_stride = {180 * b, b, 3 * b, 15 * b, 60 * b},
                                             .out_stride = {200 * b, 60 * b, 12 * b, 3 * b, b},
                                             .block_bytes = b,
                                             .x = hdt_at(x, side),
                                             .out = hdt_at(out, side)};
            HDT_CALL(side, copy_grid, &args);
        }
        ck_assert_mem_eq(hdt_fetch(out), out.host, WORDS * sizeof(float));
    }
}
END_TEST

START_TEST(patches_become_rows_and_videos_again)
{
    static const hdi_patch_args shapes[] = {
        {.sequences = 2, .channels = 4, .frames = 3, .height = 6, .width = 10, .patch = {1, 2, 2}},
        {.sequences = 1, .channels = 3, .frames = 5, .height = 7, .width = 9, .patch = {2, 2, 4}},
    };
    const hd_dtype dtype = hdt_dtypes[_i];
    for (int form = 0; form < 8; form++) {
        hdi_patch_args args = shapes[form / 4];
        const int64_t volume = args.patch[0] * args.patch[1] * args.patch[2];
        const int64_t rows = args.sequences * hdi_ceil_div(args.frames, args.patch[0]) *
                             hdi_ceil_div(args.height, args.patch[1]) *
                             hdi_ceil_div(args.width, args.patch[2]);
        args.channels_last = form % 2;
        args.row_columns = volume * (form / 2 % 2 ? 2 * args.channels : args.channels);
        hdt_gpu_reset();
        hdt_pair video = hdt_pair_make(
            HD_DTYPE_F32, args.sequences * args.channels * args.frames * args.height * args.width,
            1, 1, 0);
        hdt_pair x = hdt_pair_make(dtype, rows * args.row_columns, 2, 1, 0);
        hdt_pair patches = hdt_pair_zero(dtype, rows * args.row_columns), back = video;
        back = hdt_pair_zero(HD_DTYPE_F32, video.count);
        for (int side = 0; side < HDT_SIDES; side++) {
            args.dtype = hdt_side_dtype(dtype, side);
            args.x = hdt_at(video, side), args.out = hdt_at(patches, side);
            HDT_CALL(side, patchify, &args);
            args.x = hdt_at(x, side), args.out = hdt_at(back, side);
            HDT_CALL(side, unpatchify, &args);
        }
        hdt_pair_check("patchify", patches, 1, 1, 1);
        hdt_pair_check("unpatchify", back, 1e-30, 0, 1);
    }
}
END_TEST

START_TEST(squared_errors_are_summed_in_fp64)
{
    static const int64_t sizes[][2] = {{1, 1}, {7, 13}, {1500, 64}, {2049, 33}};
    const hd_dtype dtype = hdt_dtypes[_i];
    for (int s = 0; s < 8; s++) {
        const int64_t rows = sizes[s / 2][0], columns = sizes[s / 2][1], count = rows * columns;
        const bool weighted = s % 2;
        double *loss[HDT_SIDES], got[2];
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_make(dtype, count, 1, 1, 0);
        hdt_pair target = hdt_pair_make(HD_DTYPE_F32, count, 2, 1, 0);
        hdt_pair weight = hdt_pair_make(HD_DTYPE_F32, rows, 3, 1, 0);
        hdt_pair scale = hdt_pair_make(HD_DTYPE_F32, 1, 4, 1, 0);
        hdt_pair gradient = hdt_pair_zero(dtype, count);
        for (int side = 0; side < HDT_SIDES; side++) {
            loss[side] = hdt_scratch(side, 2 * sizeof(double));
            const hdi_squared_error_args args = {
                .dtype = hdt_side_dtype(dtype, side),
                .rows = rows,
                .columns = columns,
                .prediction = hdt_at(x, side),
                .target = hdt_at(target, side),
                .weight = weighted ? hdt_at(weight, side) : NULL,
                .scale = weighted ? hdt_at(scale, side) : NULL,
                .loss = loss[side],
                .gradient = hdt_at(gradient, side),
                .workspace =
                    hdt_scratch(side, hdt_sides[side]->squared_error_workspace(rows, columns))};
            HDT_CALL(side, squared_error, &args);
        }
        hdt_pair_check("squared_error gradient", gradient, 4, 1, 4);
        hdt_assert_ok(hdt_sides[1]->copy_out(hdt_streams[1], got, loss[1], sizeof got));
        hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
        for (int i = 0; i < 2; i++)
            ck_assert_double_eq_tol(got[i], loss[0][i],
                                    4 * (double)count * hdt_tolerance(HD_DTYPE_F64, count));
    }
}
END_TEST

int main(void)
{
    TCase *cases = tcase_create("diffusion");
    tcase_add_loop_test(cases, sinusoids_have_angles_in_fp64, 0, 3);
    tcase_add_loop_test(cases, rows_are_modulated, 0, 3);
    tcase_add_loop_test(cases, modulation_goes_back, 0, 3);
    tcase_add_test(cases, a_bad_entry_is_reported);
    tcase_add_loop_test(cases, sums_of_groups_go_into_the_tables_gradient, 0, 3);
    tcase_add_loop_test(cases, rows_of_a_table_are_added_and_summed_back, 0, 3);
    tcase_add_test(cases, blocks_are_copied_whatever_their_size);
    tcase_add_test(cases, blocks_on_a_grid_are_copied);
    tcase_add_loop_test(cases, patches_become_rows_and_videos_again, 0, 3);
    tcase_add_loop_test(cases, squared_errors_are_summed_in_fp64, 0, 3);
    return hdt_main_gpu("cuda diffusion", cases);
}
