/* Adaptive layer norm and gated adds on the CPU, at sizes that nothing divides: against plain loops in
 * fp64, against one another to the bit, in 16 bits. */
#include "tests/support/hdt_typed.h"

/* Groups of 15 rows for norms and of 9 for gates; 67 columns in tables of 5 vectors and a bit. */
enum {
    ROWS = 45,
    COLUMNS = 67,
    ELEMENTS = ROWS * COLUMNS,
    GROUP = 15,
    GATE_GROUP = 9,
    GROUPS = ROWS / GROUP,
    GATE_GROUPS = ROWS / GATE_GROUP,
    ENTRIES = 4,
    STRIDE = 5 * COLUMNS + 3,
    SHIFT = 1,
    SCALE = 1 + COLUMNS,
    GATE = 2 + 3 * COLUMNS
};

static const double epsilon = 1e-6;

/* Data of one call in fp32, and in a dtype whose values they are. */
typedef struct subject {
    hd_dtype dtype;
    float *x, *delta, *table, *gate_table, *gradient, *carry;
    void *typed_x, *typed_delta, *typed_table, *typed_gate_table, *typed_gradient, *typed_carry;
    int32_t *index, *gate_index;
} subject;

static subject make_subject(hd_dtype dtype, bool indexed)
{
    const int64_t table = (GATE_GROUPS + ENTRIES) * STRIDE;
    subject s = {.dtype = dtype,
                 .x = hdt_floats(ELEMENTS, 1),
                 .delta = hdt_floats(ELEMENTS, 2),
                 .table = hdt_floats(table, 3),
                 .gate_table = hdt_floats(table, 4),
                 .gradient = hdt_floats(ELEMENTS, 5),
                 .carry = hdt_floats(ELEMENTS, 6)};
    s.typed_x = hdt_typed(dtype, s.x, ELEMENTS);
    s.typed_delta = hdt_typed(dtype, s.delta, ELEMENTS);
    s.typed_table = hdt_typed(dtype, s.table, table);
    s.typed_gate_table = hdt_typed(dtype, s.gate_table, table);
    s.typed_gradient = hdt_typed(dtype, s.gradient, ELEMENTS);
    s.typed_carry = hdt_typed(dtype, s.carry, ELEMENTS);
    if (indexed) {
        s.index = hdt_ids(GROUPS, ENTRIES, 7);
        s.gate_index = hdt_ids(GATE_GROUPS, ENTRIES, 8);
    }
    return s;
}

/* The table's rows: as the kernels' callers know them. */
static hdi_modulate_args modulate_args(const subject *s)
{
    return (hdi_modulate_args){.dtype = s->dtype,
                               .rows = ROWS,
                               .columns = COLUMNS,
                               .rows_per_group = GROUP,
                               .gate_rows_per_group = GATE_GROUP,
                               .epsilon = (float)epsilon,
                               .x = s->typed_x,
                               .delta = s->typed_delta,
                               .gate = hdt_at(s->dtype, s->typed_gate_table, GATE),
                               .shift = hdt_at(s->dtype, s->typed_table, SHIFT),
                               .scale = hdt_at(s->dtype, s->typed_table, SCALE),
                               .gate_stride = STRIDE,
                               .stride = STRIDE,
                               .gate_entries = GATE_GROUPS + ENTRIES,
                               .entries = GATE_GROUPS + ENTRIES,
                               .gate_index = s->gate_index,
                               .index = s->index};
}

static double vector_at(const float *table, const int32_t *index, int64_t group, int64_t first,
                        int64_t c)
{
    return (double)table[(index ? index[group] : group) * STRIDE + first + c];
}

/* Element c of row r's sum, before it is rounded. */
static double sum_at(const subject *s, int64_t r, int64_t c)
{
    return (double)s->x[r * COLUMNS + c] +
           vector_at(s->gate_table, s->gate_index, r / GATE_GROUP, GATE, c) *
               (double)s->delta[r * COLUMNS + c];
}

/* Statistics of a row of stored values. */
static void statistics(const double *x, double *mean, double *rstd)
{
    double square = 0;
    *mean = 0;
    for (int c = 0; c < COLUMNS; c++)
        *mean += x[c] / COLUMNS;
    for (int c = 0; c < COLUMNS; c++)
        square += (x[c] - *mean) * (x[c] - *mean) / COLUMNS;
    *rstd = 1 / sqrt(square + epsilon);
}

/* dtype by dtype, without and with indexes. */
START_TEST(a_gated_add_and_its_norm_are_what_plain_loops_make)
{
    const hd_dtype dtype = hdt_dtypes[_i / 2];
    const subject s = make_subject(dtype, _i % 2);
    hdi_modulate_args args = modulate_args(&s);
    args.sum = hdt_room(dtype, ELEMENTS);
    args.out = hdt_room(dtype, ELEMENTS);
    args.mean = hdt_room(HD_DTYPE_F32, ROWS);
    args.rstd = hdt_room(HD_DTYPE_F32, ROWS);
    hdt_assert_ok(hdi_backend_cpu.modulate(hdt_stream(), &args));
    for (int64_t r = 0; r < ROWS; r++) {
        double sum[COLUMNS], mean, rstd;
        for (int64_t c = 0; c < COLUMNS; c++) {
            sum[c] = hdt_value(dtype, args.sum, r * COLUMNS + c);
            hdt_within("sum", r * COLUMNS + c, sum[c], sum_at(&s, r, c),
                       2 * hdt_tolerance(dtype, 2));
        }
        statistics(sum, &mean, &rstd);
        const double fp32 = hdt_tolerance(HD_DTYPE_F32, COLUMNS);
        hdt_within("mean", r, (double)args.mean[r], mean, 2 * fp32);
        hdt_within("rstd", r, (double)args.rstd[r], rstd, 4 * rstd * fp32);
        for (int64_t c = 0; c < COLUMNS; c++) {
            const double scale = 1 + vector_at(s.table, s.index, r / GROUP, SCALE, c);
            const double shift = vector_at(s.table, s.index, r / GROUP, SHIFT, c);
            const double wanted = (sum[c] - mean) * rstd * scale + shift;
            const double magnitude = (fabs(sum[c]) + fabs(mean) + 2) * rstd * fabs(scale);
            hdt_within("normed", r * COLUMNS + c, hdt_value(dtype, args.out, r * COLUMNS + c),
                       wanted,
                       6 * fp32 * magnitude + hdt_tolerance(dtype, 1) * (fabs(wanted) + fp32));
        }
    }
}
END_TEST

static void same_bytes(const char *what, hd_dtype dtype, const void *a, const void *b,
                       int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (memcmp(hdt_at(dtype, a, i), hdt_at(dtype, b, i), hd_dtype_bytes(dtype)) != 0)
            ck_abort_msg("%s[%lld]: %.9g in one pass, %.9g in two", what, (long long)i,
                         hdt_value(dtype, a, i), hdt_value(dtype, b, i));
}

START_TEST(one_pass_gives_the_bits_of_two)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    const subject s = make_subject(dtype, true);
    hdi_modulate_args both = modulate_args(&s), add = both, norm = both;
    both.sum = hdt_room(dtype, ELEMENTS);
    both.out = hdt_room(dtype, ELEMENTS);
    hdt_assert_ok(hdi_backend_cpu.modulate(hdt_stream(), &both));
    add.sum = hdt_room(dtype, ELEMENTS);
    add.scale = add.shift = NULL;
    hdt_assert_ok(hdi_backend_cpu.modulate(hdt_stream(), &add));
    norm.x = add.sum;
    norm.delta = norm.gate = NULL;
    norm.out = hdt_room(dtype, ELEMENTS);
    hdt_assert_ok(hdi_backend_cpu.modulate(hdt_stream(), &norm));
    same_bytes("sum", dtype, both.sum, add.sum, ELEMENTS);
    same_bytes("normed", dtype, both.out, norm.out, ELEMENTS);
    /* In the place of either input. */
    void *places[] = {s.typed_x, s.typed_delta};
    for (int i = 0; i < 2; i++) {
        void *held = hdt_room(dtype, ELEMENTS);
        const size_t bytes = ELEMENTS * hd_dtype_bytes(dtype);
        memcpy(held, places[i], bytes);
        add.sum = places[i];
        hdt_assert_ok(hdi_backend_cpu.modulate(hdt_stream(), &add));
        same_bytes("in place", dtype, both.sum, places[i], ELEMENTS);
        memcpy(places[i], held, bytes);
    }
}
END_TEST

static hdi_modulate_gradient_args gradient_args(const subject *s, const hdi_modulate_args *forward)
{
    hdi_modulate_gradient_args args = {.dtype = s->dtype,
                                       .rows = ROWS,
                                       .columns = COLUMNS,
                                       .rows_per_group = GROUP,
                                       .gate_rows_per_group = GATE_GROUP,
                                       .gradient = s->typed_gradient,
                                       .carry = s->typed_carry,
                                       .x = forward->sum,
                                       .delta = s->typed_delta,
                                       .gate = forward->gate,
                                       .scale = forward->scale,
                                       .gate_stride = STRIDE,
                                       .stride = STRIDE,
                                       .gate_entries = forward->gate_entries,
                                       .entries = forward->entries,
                                       .gate_index = s->gate_index,
                                       .index = s->index,
                                       .mean = forward->mean,
                                       .rstd = forward->rstd,
                                       .x_gradient = hdt_room(s->dtype, ELEMENTS),
                                       .delta_gradient = hdt_room(s->dtype, ELEMENTS),
                                       .sums = hdt_room(HD_DTYPE_F32, GROUPS * 2 * COLUMNS),
                                       .gate_sums = hdt_room(HD_DTYPE_F32, GATE_GROUPS * COLUMNS)};
    args.workspace = hdt_take(hdi_backend_cpu.modulate_gradient_workspace(&args));
    return args;
}

static hdi_modulate_args forward_of(const subject *s)
{
    hdi_modulate_args forward = modulate_args(s);
    forward.sum = hdt_room(s->dtype, ELEMENTS);
    forward.out = hdt_room(s->dtype, ELEMENTS);
    forward.mean = hdt_room(HD_DTYPE_F32, ROWS);
    forward.rstd = hdt_room(HD_DTYPE_F32, ROWS);
    hdt_assert_ok(hdi_backend_cpu.modulate(hdt_stream(), &forward));
    return forward;
}

START_TEST(one_gradient_pass_gives_the_bits_of_three)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    const subject s = make_subject(dtype, true);
    const hdi_modulate_args forward = forward_of(&s);
    const hdi_modulate_gradient_args all = gradient_args(&s, &forward);
    hdt_assert_ok(hdi_backend_cpu.modulate_gradient(hdt_stream(), &all));
    hdi_modulate_gradient_args norm = gradient_args(&s, &forward);
    norm.carry = norm.gate = norm.delta = NULL;
    norm.delta_gradient = NULL;
    norm.gate_sums = NULL;
    hdt_assert_ok(hdi_backend_cpu.modulate_gradient(hdt_stream(), &norm));
    void *ds = hdt_room(dtype, ELEMENTS);
    hdt_assert_ok(
        hdi_backend_cpu.add(hdt_stream(), dtype, ELEMENTS, norm.x_gradient, s.typed_carry, ds));
    hdi_modulate_gradient_args gate = gradient_args(&s, &forward);
    gate.gradient = gate.scale = gate.x = NULL;
    gate.carry = ds;
    gate.x_gradient = NULL;
    gate.sums = NULL;
    hdt_assert_ok(hdi_backend_cpu.modulate_gradient(hdt_stream(), &gate));
    same_bytes("x gradient", dtype, all.x_gradient, ds, ELEMENTS);
    same_bytes("delta gradient", dtype, all.delta_gradient, gate.delta_gradient, ELEMENTS);
    same_bytes("sums", HD_DTYPE_F32, all.sums, norm.sums, GROUPS * 2 * COLUMNS);
    same_bytes("gate sums", HD_DTYPE_F32, all.gate_sums, gate.gate_sums, GATE_GROUPS * COLUMNS);
}
END_TEST

/* The gradient's own values are held against differences by check_diffusion_gradients. */
START_TEST(sums_over_groups_are_what_plain_loops_make_in_16_bits_too)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    const subject s = make_subject(dtype, true);
    const hdi_modulate_args forward = forward_of(&s);
    const hdi_modulate_gradient_args args = gradient_args(&s, &forward);
    hdt_assert_ok(hdi_backend_cpu.modulate_gradient(hdt_stream(), &args));
    for (int64_t c = 0; c < COLUMNS; c++) {
        for (int64_t g = 0; g < GROUPS; g++) {
            double shift = 0, scale = 0, magnitude = 0;
            for (int64_t r = g * GROUP; r < (g + 1) * GROUP; r++) {
                const double gradient = (double)s.gradient[r * COLUMNS + c];
                const double normed =
                    (hdt_value(dtype, args.x, r * COLUMNS + c) - (double)args.mean[r]) *
                    (double)args.rstd[r];
                shift += gradient;
                scale += gradient * normed;
                magnitude += fabs(gradient) * (1 + fabs(normed));
            }
            hdt_near("shift sum", c, args.sums[g * 2 * COLUMNS + c], shift, magnitude, GROUP);
            hdt_near("scale sum", c, args.sums[(g * 2 + 1) * COLUMNS + c], scale, 2 * magnitude,
                     GROUP + 3);
        }
        for (int64_t g = 0; g < GATE_GROUPS; g++) {
            double gate = 0, magnitude = 0;
            for (int64_t r = g * GATE_GROUP; r < (g + 1) * GATE_GROUP; r++) {
                const double term = (double)s.delta[r * COLUMNS + c] *
                                    hdt_value(dtype, args.x_gradient, r * COLUMNS + c);
                gate += term;
                magnitude += fabs(term);
            }
            hdt_near("gate sum", c, args.gate_sums[g * COLUMNS + c], gate, magnitude, GATE_GROUP);
        }
    }
}
END_TEST

START_TEST(threads_do_not_change_a_bit)
{
    enum { TALL = 700, WIDE = 130 };
    float *x = hdt_floats(TALL * WIDE, 1), *table = hdt_floats(3 * WIDE, 2);
    float *out = hdt_take(TALL * WIDE * sizeof *out);
    float *mean = hdt_take(TALL * sizeof *mean), *rstd = hdt_take(TALL * sizeof *rstd);
    const hdi_modulate_args forward = {.dtype = HD_DTYPE_F32,
                                       .rows = TALL,
                                       .columns = WIDE,
                                       .rows_per_group = TALL,
                                       .epsilon = (float)epsilon,
                                       .x = x,
                                       .shift = table,
                                       .scale = table + WIDE,
                                       .entries = 1,
                                       .out = out,
                                       .mean = mean,
                                       .rstd = rstd};
    hdt_same_on_threads(hdi_backend_cpu.modulate(NULL, &forward), out, NULL, TALL * WIDE);
    hdi_modulate_gradient_args args = {.dtype = HD_DTYPE_F32,
                                       .rows = TALL,
                                       .columns = WIDE,
                                       .rows_per_group = TALL,
                                       .gradient = out,
                                       .x = x,
                                       .scale = table + WIDE,
                                       .mean = mean,
                                       .rstd = rstd,
                                       .x_gradient = hdt_take(TALL * WIDE * sizeof *out),
                                       .sums = hdt_take(2 * WIDE * sizeof *out)};
    args.workspace = hdt_take(hdi_backend_cpu.modulate_gradient_workspace(&args));
    hdt_same_on_threads(hdi_backend_cpu.modulate_gradient(NULL, &args), args.sums, NULL, 2 * WIDE);
    double loss[2];
    const hdi_squared_error_args error = {
        .dtype = HD_DTYPE_F32,
        .rows = TALL,
        .columns = WIDE,
        .prediction = x,
        .target = out,
        .loss = loss,
        .workspace = hdt_take(hdi_backend_cpu.squared_error_workspace(TALL, WIDE))};
    hdt_same_on_threads(hdi_backend_cpu.squared_error(NULL, &error), (float *)(void *)loss, NULL,
                        4);
}
END_TEST

START_TEST(a_table_gradient_is_the_sum_of_its_groups_and_zero_elsewhere)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    enum { MANY = 7, FIRST = 3, WIDTH = 2 * COLUMNS + 5 };
    float *sums = hdt_floats(MANY * 2 * COLUMNS, 1);
    static const int32_t index[MANY] = {1, 3, 1, 1, 0, 3, 1};
    void *out = hdt_room(dtype, ENTRIES * WIDTH);
    memset(out, 0xff, ENTRIES * WIDTH * hd_dtype_bytes(dtype));
    hdt_assert_ok(hdi_backend_cpu.modulation_gradient(
        hdt_stream(), &(hdi_modulation_gradient_args){.dtype = dtype,
                                                      .groups = MANY,
                                                      .columns = COLUMNS,
                                                      .entries = ENTRIES,
                                                      .table_columns = WIDTH,
                                                      .first = FIRST,
                                                      .sums = sums,
                                                      .sums_stride = 2 * COLUMNS,
                                                      .index = index,
                                                      .table_gradient = out}));
    for (int64_t i = 0; i < ENTRIES * WIDTH; i++) {
        const int64_t entry = i / WIDTH, c = i % WIDTH - FIRST;
        double wanted = 0, magnitude = 0;
        for (int64_t g = 0; g < MANY && c >= 0 && c < COLUMNS; g++) {
            if (index[g] != entry) continue;
            wanted += (double)sums[g * 2 * COLUMNS + c];
            magnitude += fabs((double)sums[g * 2 * COLUMNS + c]);
        }
        hdt_within("table gradient", i, hdt_value(dtype, out, i), wanted,
                   magnitude * hdt_tolerance(dtype, MANY));
    }
}
END_TEST

START_TEST(an_entry_beyond_the_table_fails_the_run)
{
    const subject s = make_subject(hdt_dtypes[_i], true);
    hdi_modulate_args args = modulate_args(&s);
    args.sum = hdt_room(s.dtype, ELEMENTS);
    s.gate_index[3] = GATE_GROUPS + ENTRIES;
    hdt_assert_status(hdi_backend_cpu.modulate(hdt_stream(), &args), HD_ERROR_ARGUMENT,
                      "entry 9 for group 3, want 0 to 8");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("modulation");
    TCase *calls = tcase_create("calls");
    tcase_add_checked_fixture(calls, hdt_open_typed, hdt_close_typed);
    tcase_add_loop_test(calls, a_gated_add_and_its_norm_are_what_plain_loops_make, 0, 6);
    tcase_add_loop_test(calls, one_pass_gives_the_bits_of_two, 0, 3);
    tcase_add_loop_test(calls, one_gradient_pass_gives_the_bits_of_three, 0, 3);
    tcase_add_loop_test(calls, sums_over_groups_are_what_plain_loops_make_in_16_bits_too, 0, 3);
    tcase_add_test(calls, threads_do_not_change_a_bit);
    tcase_add_loop_test(calls, a_table_gradient_is_the_sum_of_its_groups_and_zero_elsewhere, 0, 3);
    tcase_add_loop_test(calls, an_entry_beyond_the_table_fails_the_run, 0, 3);
    suite_add_tcase(suite, calls);
    return hdt_main(suite);
}
