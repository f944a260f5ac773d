/* Sinusoids, rows, patches and squared errors on the CPU, at sizes that nothing divides: against plain
 * loops in fp64, and in 16 bits. */
#include <heddle/diffusion.h>

#include "tests/support/hdt_interpret.h"
#include "tests/support/hdt_typed.h"

enum { ROWS = 45, COLUMNS = 67, ELEMENTS = ROWS * COLUMNS };

START_TEST(sinusoids_are_cosines_then_sines)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    enum { TIMES = 3, WIDTH = 10 };
    const float times[TIMES] = {0, 0.731f, 1};
    void *out = hdt_room(dtype, TIMES * WIDTH);
    hdt_assert_ok(hdi_backend_cpu.sinusoid(hdt_stream(), &(hdi_sinusoid_args){.dtype = dtype,
                                                                              .rows = TIMES,
                                                                              .columns = WIDTH,
                                                                              .scale = 1000,
                                                                              .period = 10000,
                                                                              .x = times,
                                                                              .out = out}));
    for (int64_t i = 0; i < TIMES * WIDTH; i++) {
        const int64_t c = i % WIDTH, half = WIDTH / 2;
        const double angle =
            1000 * (double)times[i / WIDTH] * exp(-log(10000) * (double)(c % half) / (double)half);
        /* exp and pow may be a few units of 2^-53 of the angle apart. */
        hdt_within("sinusoid", i, hdt_value(dtype, out, i), c < half ? cos(angle) : sin(angle),
                   hdt_tolerance(dtype, 1) + 1000 * 16 * 0x1p-53);
    }
}
END_TEST

/* A program's output "y" from its inputs "x" and, if there is one, "z"; filled by hdt_fill. */
static void run_program(hd_program *program, hdt_machine **machine)
{
    hdt_assert_ok(hd_program_finish(program));
    *machine = hdt_machine_create(program, false);
    const char *names[] = {"x", "z"};
    for (int i = 0; i < 2; i++) {
        const hd_tensor x = hd_tensor_find(program, names[i]);
        if (x.id)
            hdt_fill(hdt_machine_data(*machine, x), hd_tensor_get(program, x)->elements,
                     (uint64_t)i + 1);
    }
    hdt_assert_ok(hdt_machine_run(*machine, HDI_PHASE_FORWARD, false));
}

static hd_program *new_program(bool training)
{
    hd_program *program;
    hdt_assert_ok(
        hd_program_create(&(hd_program_options){.name = "p", .training = training}, &program));
    return program;
}

/* Every row of a window against the place that it is of; in a grid of 5 x 7 whose sides windows do not
 * divide, one that they divide, and one that is smaller. */
START_TEST(windows_have_their_places_over_all_frames)
{
    static const int64_t sides[][2] = {{2, 3}, {5, 7}, {1, 4}, {9, 2}, {9, 9}};
    enum { SEQUENCES = 2, FRAMES = 3, HEIGHT = 5, WIDTH = 7, WIDE = 3 };
    const hd_window_options options = {.sequences = SEQUENCES,
                                       .frames = FRAMES,
                                       .height = HEIGHT,
                                       .width = WIDTH,
                                       .window_height = sides[_i][0],
                                       .window_width = sides[_i][1]};
    hd_program *program = new_program(false);
    const int64_t dims[] = {SEQUENCES * FRAMES * HEIGHT * WIDTH, WIDE};
    const hd_tensor x = hd_input(program, "x", HD_DTYPE_F32, 2, dims);
    hd_tensor parts[HD_WINDOW_PARTS];
    int64_t tokens[HD_WINDOW_PARTS], rows = 0;
    const int count = hd_split_windows(program, x, &options, parts, tokens);
    const hd_tensor y = hd_join_windows(program, parts, &options);
    hdt_machine *machine;
    run_program(program, &machine);
    const float *from = hdt_machine_data(machine, x);
    ck_assert_mem_eq(hdt_machine_data(machine, y), from, hd_tensor_get(program, y)->bytes);
    for (int i = 0; i < count; i++) {
        const float *row = hdt_machine_data(machine, parts[i]);
        const int64_t part_rows = hd_tensor_get(program, parts[i])->dims[0];
        rows += part_rows;
        ck_assert_int_eq(part_rows % tokens[i], 0);
        for (int64_t r = 0; r < part_rows; r++, row += WIDE) {
            /* The row's place, found by its values, is in the window of the first one. */
            int64_t at = 0, first = 0;
            const float *start = row - r % tokens[i] * WIDE;
            while (memcmp(from + at * WIDE, row, WIDE * sizeof *row) != 0)
                at++;
            while (memcmp(from + first * WIDE, start, WIDE * sizeof *row) != 0)
                first++;
            const int64_t place = at % (HEIGHT * WIDTH), corner = first % (HEIGHT * WIDTH);
            ck_assert_int_eq(at / (FRAMES * HEIGHT * WIDTH), first / (FRAMES * HEIGHT * WIDTH));
            ck_assert_int_eq(corner / WIDTH % sides[_i][0], 0);
            ck_assert_int_eq(corner % WIDTH % sides[_i][1], 0);
            ck_assert_int_eq(place / WIDTH / sides[_i][0], corner / WIDTH / sides[_i][0]);
            ck_assert_int_eq(place % WIDTH / sides[_i][1], corner % WIDTH / sides[_i][1]);
            ck_assert(at >= first);
        }
    }
    ck_assert_int_eq(rows, dims[0]);
    hdt_machine_destroy(machine);
    hd_program_destroy(program);
}
END_TEST

START_TEST(rows_split_and_joined_are_the_rows_again)
{
    enum { SEQUENCES = 3, TOKENS = 11, WIDTH = 7 };
    hd_program *program = new_program(false);
    const int64_t dims[] = {SEQUENCES * TOKENS, WIDTH};
    const hd_tensor x = hd_input(program, "x", HD_DTYPE_F32, 2, dims);
    hd_tensor parts[4];
    static const int64_t tokens[] = {4, 1, 5, 1};
    hd_split_rows(program, x, SEQUENCES, 4, tokens, parts);
    const hd_tensor y = hd_join_rows(program, SEQUENCES, 4, parts);
    hdt_machine *machine;
    run_program(program, &machine);
    const float *from = hdt_machine_data(machine, x);
    ck_assert_mem_eq(hdt_machine_data(machine, y), from,
                     sizeof(float) * SEQUENCES * TOKENS * WIDTH);
    for (int part = 0, before = 0; part < 4; before += (int)tokens[part++])
        for (int64_t s = 0; s < SEQUENCES; s++)
            ck_assert_mem_eq((float *)hdt_machine_data(machine, parts[part]) +
                                 s * tokens[part] * WIDTH,
                             from + (s * TOKENS + before) * WIDTH,
                             sizeof(float) * (size_t)(tokens[part] * WIDTH));
    hdt_machine_destroy(machine);
    hd_program_destroy(program);
}
END_TEST

/* By order of columns. Frames 5 in 2, height 3 in 2, width 7 in 3: none is divided. */
START_TEST(patches_hold_the_video_zeros_beyond_it_and_go_back)
{
    enum { S = 2, C = 3, T = 5, H = 3, W = 7, VOLUME = 12, DEEP = 3, DOWN = 2, ACROSS = 3 };
    hd_patch_options options = {.sequences = S,
                                .channels = C,
                                .frames = T,
                                .height = H,
                                .width = W,
                                .patch = {2, 2, 3},
                                .order = _i ? HD_PATCH_CHANNELS_LAST : HD_PATCH_CHANNELS_FIRST};
    hd_program *program = new_program(false);
    const int64_t dims[] = {S, C, T, H, W};
    const hd_tensor x = hd_input(program, "x", HD_DTYPE_F32, 5, dims);
    const hd_tensor rows = hd_patchify(program, x, &options);
    const hd_tensor y = hd_unpatchify(program, rows, &options);
    hdt_machine *machine;
    run_program(program, &machine);
    const hd_tensor_info *info = hd_tensor_get(program, rows);
    ck_assert_int_eq(info->dims[0], S * DEEP * DOWN * ACROSS);
    ck_assert_int_eq(info->dims[1], C * VOLUME);
    const float *video = hdt_machine_data(machine, x), *row = hdt_machine_data(machine, rows);
    for (int64_t i = 0; i < info->elements; i++) {
        const int64_t column = i % (C * VOLUME), r = i / (C * VOLUME);
        const int64_t channel = _i ? column % C : column / VOLUME;
        const int64_t within = _i ? column / C : column % VOLUME;
        const int64_t w = r % ACROSS * 3 + within % 3, h = r / ACROSS % DOWN * 2 + within / 3 % 2;
        const int64_t t = r / (ACROSS * DOWN) % DEEP * 2 + within / 6;
        const int64_t s = r / (ACROSS * DOWN * DEEP);
        const bool inside = w < W && h < H && t < T;
        const float wanted = inside ? video[(((s * C + channel) * T + t) * H + h) * W + w] : 0;
        ck_assert_msg(row[i] == wanted, "element %lld is %g, want %g", (long long)i, (double)row[i],
                      (double)wanted);
    }
    ck_assert_mem_eq(hdt_machine_data(machine, y), video, hd_tensor_get(program, x)->bytes);
    hdt_machine_destroy(machine);
    hd_program_destroy(program);
}
END_TEST

START_TEST(the_first_of_more_channels_are_kept)
{
    enum { C = 2, MORE = 5, PATCHES = 6, VOLUME = 4 };
    hd_program *program = new_program(false);
    const int64_t dims[] = {PATCHES, MORE * VOLUME};
    const hd_tensor x = hd_input(program, "x", HD_DTYPE_F32, 2, dims);
    const hd_tensor y = hd_unpatchify(program, x,
                                      &(hd_patch_options){.sequences = 1,
                                                          .channels = C,
                                                          .frames = 1,
                                                          .height = 4,
                                                          .width = 6,
                                                          .patch = {1, 2, 2},
                                                          .order = HD_PATCH_CHANNELS_LAST});
    hdt_machine *machine;
    run_program(program, &machine);
    const float *row = hdt_machine_data(machine, x), *video = hdt_machine_data(machine, y);
    for (int c = 0; c < C; c++)
        for (int h = 0; h < 4; h++)
            for (int w = 0; w < 6; w++) {
                const int patch = h / 2 * 3 + w / 2, within = h % 2 * 2 + w % 2;
                ck_assert_float_eq(video[(c * 4 + h) * 6 + w],
                                   row[patch * MORE * VOLUME + within * MORE + c]);
            }
    hdt_machine_destroy(machine);
    hd_program_destroy(program);
}
END_TEST

START_TEST(patches_and_casts_round_to_16_bits_once)
{
    const hd_dtype dtype = hdt_dtypes[1 + _i];
    enum { C = 3, H = 5, W = 4, PIXELS = C * H * W, PADDED = C * 6 * 4 };
    float *video = hdt_floats(PIXELS, 1), *wide = hdt_take(PADDED * sizeof *wide);
    float *back = hdt_take(PIXELS * sizeof *back);
    uint16_t *rows = hdt_take(PADDED * sizeof *rows);
    hdi_patch_args args = {.dtype = HD_DTYPE_F32,
                           .sequences = 1,
                           .channels = C,
                           .frames = 1,
                           .height = H,
                           .width = W,
                           .patch = {1, 2, 2},
                           .row_columns = 4 * C,
                           .x = video,
                           .out = wide};
    hdt_assert_ok(hdi_backend_cpu.patchify(hdt_stream(), &args));
    args.dtype = dtype;
    args.out = rows;
    hdt_assert_ok(hdi_backend_cpu.patchify(hdt_stream(), &args));
    for (int i = 0; i < PADDED; i++)
        ck_assert_uint_eq(rows[i], hdi_half_from_float(dtype, wide[i]));
    args.x = rows;
    args.out = back;
    hdt_assert_ok(hdi_backend_cpu.unpatchify(hdt_stream(), &args));
    for (int i = 0; i < PIXELS; i++)
        ck_assert_float_eq(back[i], hdi_half_to_float(dtype, hdi_half_from_float(dtype, video[i])));
}
END_TEST

START_TEST(added_rows_and_their_gradient_are_what_plain_loops_make)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    enum { PERIOD = 7, TERMS = (ROWS + PERIOD - 1) / PERIOD };
    float *x = hdt_floats(ELEMENTS, 1), *table = hdt_floats(PERIOD * COLUMNS, 2);
    void *typed_x = hdt_typed(dtype, x, ELEMENTS),
         *typed_table = hdt_typed(dtype, table, PERIOD * COLUMNS);
    void *out = hdt_room(dtype, ELEMENTS), *gradient = hdt_room(dtype, PERIOD * COLUMNS);
    float *weight_gradient = hdt_take(PERIOD * COLUMNS * sizeof *weight_gradient);
    hdt_assert_ok(hdi_backend_cpu.add_rows(hdt_stream(), &(hdi_add_rows_args){.dtype = dtype,
                                                                              .rows = ROWS,
                                                                              .columns = COLUMNS,
                                                                              .period = PERIOD,
                                                                              .x = typed_x,
                                                                              .table = typed_table,
                                                                              .out = out}));
    for (int64_t i = 0; i < ELEMENTS; i++)
        hdt_within("row", i, hdt_value(dtype, out, i),
                   (double)x[i] + (double)table[i % (PERIOD * COLUMNS)],
                   2 * hdt_tolerance(dtype, 1));
    hdi_add_rows_gradient_args args = {.dtype = dtype,
                                       .out_dtype = dtype,
                                       .rows = ROWS,
                                       .columns = COLUMNS,
                                       .period = PERIOD,
                                       .gradient = typed_x,
                                       .table_gradient = gradient};
    hdt_assert_ok(hdi_backend_cpu.add_rows_gradient(hdt_stream(), &args));
    args.out_dtype = HD_DTYPE_F32;
    args.table_gradient = weight_gradient;
    hdt_assert_ok(hdi_backend_cpu.add_rows_gradient(hdt_stream(), &args));
    args.accumulate = true;
    hdt_assert_ok(hdi_backend_cpu.add_rows_gradient(hdt_stream(), &args));
    for (int64_t i = 0; i < PERIOD * COLUMNS; i++) {
        double sum = 0;
        for (int64_t k = i; k < ELEMENTS; k += PERIOD * COLUMNS)
            sum += (double)x[k];
        hdt_within("gradient", i, hdt_value(dtype, gradient, i), sum,
                   TERMS * hdt_tolerance(dtype, TERMS));
        hdt_near("accumulated", i, weight_gradient[i], 2 * sum, 2 * TERMS, 2 * TERMS);
    }
}
END_TEST

START_TEST(a_squared_error_is_what_plain_loops_make)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    float *prediction = hdt_floats(ELEMENTS, 1), *target = hdt_floats(ELEMENTS, 2);
    float *weight = hdt_floats(ROWS, 3), scale = 8;
    void *typed_prediction = hdt_typed(dtype, prediction, ELEMENTS);
    void *gradient = hdt_room(dtype, ELEMENTS);
    double loss[2], wanted[2] = {0}, magnitude = 0;
    weight[5] = 0;
    hdi_squared_error_args args = {
        .dtype = dtype,
        .rows = ROWS,
        .columns = COLUMNS,
        .prediction = typed_prediction,
        .target = target,
        .weight = weight,
        .scale = &scale,
        .loss = loss,
        .gradient = gradient,
        .workspace = hdt_take(hdi_backend_cpu.squared_error_workspace(ROWS, COLUMNS))};
    hdt_assert_ok(hdi_backend_cpu.squared_error(hdt_stream(), &args));
    for (int64_t i = 0; i < ELEMENTS; i++) {
        const double error = (double)prediction[i] - (double)target[i];
        const double w = (double)weight[i / COLUMNS];
        wanted[0] += w * error * error;
        wanted[1] += w;
        magnitude += fabs(w) * error * error;
        hdt_within("gradient", i, hdt_value(dtype, gradient, i), 16 * w * error,
                   16 * fabs(w) * fabs(error) * (hdt_tolerance(dtype, 3)) + 0x1p-25);
    }
    /* The difference is rounded to fp32, the rest is fp64. */
    hdt_within("loss", 0, loss[0], wanted[0], 3 * magnitude * 0x1p-24);
    hdt_within("loss", 1, loss[1], wanted[1], ELEMENTS * 0x1p-50);
    args.gradient = typed_prediction;
    hdt_assert_ok(hdi_backend_cpu.squared_error(hdt_stream(), &args));
    ck_assert_mem_eq(typed_prediction, gradient, ELEMENTS * hd_dtype_bytes(dtype));
}
END_TEST

START_TEST(evaluation_makes_no_gradient_and_saves_no_statistics)
{
    const int64_t dims[] = {6, 4}, table[] = {1, 8};
    for (int training = 0; training < 2; training++) {
        hd_program *program = new_program(training);
        const hd_tensor x = hd_input(program, "x", HD_DTYPE_F32, 2, dims);
        const hd_modulation by = {.table = hd_input(program, "z", HD_DTYPE_F32, 2, table),
                                  .rows_per_group = 6,
                                  .shift = 0,
                                  .scale = 4};
        const hd_tensor normed = hd_modulated_norm(program, x, &by, 0);
        ck_assert_int_eq(program->ops[0]->op.outputs, training ? 3 : 1);
        const hd_tensor loss = hd_squared_error(program, normed, x, (hd_tensor){0});
        ck_assert_int_eq(program->ops[1]->op.outputs, training ? 2 : 1);
        ck_assert_int_eq(hd_tensor_find(program, "loss").id, loss.id);
        hdt_assert_ok(hd_program_finish(program));
        hd_program_destroy(program);
    }
}
END_TEST

START_TEST(f16_losses_are_scaled_by_an_input_in_training)
{
    for (int training = 0; training < 2; training++) {
        hd_program *program;
        hdt_assert_ok(hd_program_create(
            &(hd_program_options){.name = "p", .dtype = HD_DTYPE_F16, .training = training},
            &program));
        const int64_t dims[] = {6, 4};
        const hd_tensor x = hd_input(program, "x", HD_DTYPE_F32, 2, dims);
        hd_squared_error(program, hd_cast(program, x), x, (hd_tensor){0});
        ck_assert_int_eq(hd_tensor_find(program, "loss_scale").id != 0, training);
        hdt_assert_ok(hd_program_finish(program));
        hd_program_destroy(program);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("diffusion_ops");
    TCase *calls = tcase_create("calls"), *programs = tcase_create("programs");
    tcase_add_checked_fixture(calls, hdt_open_typed, hdt_close_typed);
    tcase_add_loop_test(calls, sinusoids_are_cosines_then_sines, 0, 3);
    tcase_add_loop_test(calls, patches_and_casts_round_to_16_bits_once, 0, 2);
    tcase_add_loop_test(calls, added_rows_and_their_gradient_are_what_plain_loops_make, 0, 3);
    tcase_add_loop_test(calls, a_squared_error_is_what_plain_loops_make, 0, 3);
    tcase_add_test(programs, rows_split_and_joined_are_the_rows_again);
    tcase_add_loop_test(programs, windows_have_their_places_over_all_frames, 0, 5);
    tcase_add_loop_test(programs, patches_hold_the_video_zeros_beyond_it_and_go_back, 0, 2);
    tcase_add_test(programs, the_first_of_more_channels_are_kept);
    tcase_add_test(programs, evaluation_makes_no_gradient_and_saves_no_statistics);
    tcase_add_test(programs, f16_losses_are_scaled_by_an_input_in_training);
    suite_add_tcase(suite, calls);
    suite_add_tcase(suite, programs);
    return hdt_main(suite);
}
