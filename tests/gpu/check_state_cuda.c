/* The rest of the CUDA backend: memory, conversion, sums, AdamW, random numbers, and that results are
 * the same bits in every run. */
#include "tests/gpu/hdt_gpu.h"

#include <stdio.h>

#include "core/memory.h"
#include "core/random.h"

static const int64_t counts[] = {1, 3, 255, 4096, 4097, 1000003};

enum { COUNTS = sizeof counts / sizeof *counts };

START_TEST(add_and_convert_round_once)
{
    const hd_dtype from = hdt_dtypes[_i % 3], to = hdt_dtypes[_i / 3];
    for (int c = 0; c < COUNTS; c++) {
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_make(from, counts[c], 1, 9, c % 2);
        hdt_pair y = hdt_pair_make(from, counts[c], 2, 9, 0);
        hdt_pair out = hdt_pair_zero(to, counts[c]);
        for (int side = 0; side < HDT_SIDES; side++) {
            HDT_CALL(side, convert, hdt_side_dtype(from, side), hdt_at(x, side),
                     hdt_side_dtype(to, side), hdt_at(out, side), counts[c]);
            HDT_CALL(side, add, hdt_side_dtype(from, side), counts[c], hdt_at(x, side),
                     hdt_at(y, side), hdt_at(y, side));
        }
        hdt_pair_check("convert", out, 9, 1, 1);
        hdt_pair_check("add", y, 18, 1, 1);
    }
}
END_TEST

START_TEST(sums_are_those_of_the_cpu)
{
    for (int c = 0; c < COUNTS; c++) {
        const int64_t blocks = hdi_ceil_div(counts[c], HDI_BLOCK_ELEMENTS);
        double *out[HDT_SIDES];
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_make(HD_DTYPE_F32, counts[c], 1, 1, c % 2);
        for (int side = 0; side < HDT_SIDES; side++) {
            out[side] = hdt_scratch(side, (size_t)blocks * sizeof(double));
            HDT_CALL(side, sum_of_squares, HD_DTYPE_F32, hdt_at(x, side), counts[c], out[side]);
        }
        double *got = hdt_scratch(0, (size_t)blocks * sizeof(double));
        hdt_assert_ok(
            hdt_sides[1]->copy_out(hdt_streams[1], got, out[1], (size_t)blocks * sizeof(double)));
        hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
        for (int64_t i = 0; i < blocks; i++)
            ck_assert_double_le(fabs(got[i] - out[0][i]),
                                out[0][i] * 2 * hdt_tolerance(HD_DTYPE_F32, 128));
    }
}
END_TEST

START_TEST(trees_are_bit_equal_to_the_cpu)
{
    enum { STRIDE = 1031, LENGTH = 1029 };
    for (int parts = 1; parts <= 13; parts++) {
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_make(HD_DTYPE_F32, parts * STRIDE, 1, 1, 0);
        for (int side = 0; side < HDT_SIDES; side++)
            HDT_CALL(side, tree_sum, HD_DTYPE_F32, hdt_at(x, side), STRIDE, parts, LENGTH,
                     hdt_at(x, side));
        hdt_pair_check("tree_sum", x, 1e-30, 0, 1);
    }
}
END_TEST

START_TEST(adamw_steps_as_the_cpu)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    for (int c = 0; c < COUNTS; c++) {
        hdt_gpu_reset();
        hdt_pair master = hdt_pair_make(HD_DTYPE_F32, counts[c], 1, 1, c % 2);
        hdt_pair weights = hdt_pair_make(dtype, counts[c], 1, 1, 0);
        hdt_pair gradient = hdt_pair_make(HD_DTYPE_F32, counts[c], 2, 1, 0);
        hdt_pair m = hdt_pair_make(HD_DTYPE_F32, counts[c], 3, 1, 0);
        hdt_pair v = hdt_pair_make(HD_DTYPE_F32, counts[c], 4, 1, 0);
        hdt_pair scalars = hdt_pair_zero(HD_DTYPE_F32, 5);
        for (int64_t i = 0; i < counts[c]; i++)
            v.host[i] = fabsf(v.host[i]);
        const float values[] = {0.01f, 0.5f, 0.3f, 0.1f, 1};
        memcpy(scalars.host, values, sizeof values);
        hdt_assert_ok(hdt_sides[1]->copy_in(hdt_streams[1], scalars.device, values, sizeof values));
        hdt_assert_ok(hdt_sides[1]->copy_in(hdt_streams[1], v.device, v.host,
                                            (size_t)counts[c] * sizeof(float)));
        for (int side = 0; side < HDT_SIDES; side++) {
            const hdi_adamw_args args = {.dtype = hdt_side_dtype(dtype, side),
                                         .elements = counts[c],
                                         .weights = hdt_at(weights, side),
                                         .master =
                                             dtype == HD_DTYPE_F32 ? NULL : hdt_at(master, side),
                                         .m = hdt_at(m, side),
                                         .v = hdt_at(v, side),
                                         .gradient = hdt_at(gradient, side),
                                         .scalars = hdt_at(scalars, side),
                                         .beta1 = 0.9f,
                                         .beta2 = 0.95f,
                                         .epsilon = 1e-8f,
                                         .weight_decay = 0.1f};
            HDT_CALL(side, adamw, &args);
        }
        hdt_pair_check("adamw: m", m, 2, 0, 4);
        hdt_pair_check("adamw: v", v, 2, 0, 4);
        hdt_pair_check("adamw: weights", weights, 0, dtype == HD_DTYPE_F32 ? 0 : 1, 64);
        if (dtype != HD_DTYPE_F32) hdt_pair_check("adamw: master", master, 0, 0, 64);
    }
}
END_TEST

static void *fetch(const void *device, size_t bytes)
{
    void *host = hdt_scratch(0, bytes);
    hdt_assert_ok(hdt_sides[1]->copy_out(hdt_streams[1], host, device, bytes));
    hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
    return host;
}

/* Values that are ties, subnormal, infinite and NaN among the others. */
START_TEST(weights_are_split_and_joined_as_the_cpu_does)
{
    static const uint32_t special[] = {0x3f808000, 0x3f818000, 0xbf808000, 0x00000001, 0x80008000,
                                       0x7f800000, 0xff800000, 0x7f7fffff, 0x7fffffff, 0x7fc00000};
    enum { SPECIAL = sizeof special / sizeof *special };
    const int64_t count = counts[_i];
    hdt_gpu_reset();
    hdt_pair values = hdt_pair_make(HD_DTYPE_F32, count, 1, 1, 0);
    hdt_pair joined = hdt_pair_zero(HD_DTYPE_F32, count);
    memcpy(values.host, special, sizeof *special * (size_t)(count < SPECIAL ? count : SPECIAL));
    const size_t bytes = (size_t)count * sizeof(uint16_t);
    hdt_assert_ok(hdt_sides[1]->copy_in(hdt_streams[1], values.device, values.host, 2 * bytes));
    void *weights[HDT_SIDES], *remainders[HDT_SIDES];
    for (int side = 0; side < HDT_SIDES; side++) {
        weights[side] = hdt_scratch(side, bytes);
        remainders[side] = hdt_scratch(side, bytes);
        HDT_CALL(side, split_weights, HD_DTYPE_F16, count, hdt_at(values, side), weights[side],
                 NULL);
        if (side && count > SPECIAL)
            ck_assert(memcmp((uint16_t *)fetch(weights[1], bytes) + SPECIAL,
                             (uint16_t *)weights[0] + SPECIAL, bytes - 2 * SPECIAL) == 0);
    }
    for (int side = 0; side < HDT_SIDES; side++) {
        HDT_CALL(side, split_weights, HD_DTYPE_BF16, count, hdt_at(values, side), weights[side],
                 remainders[side]);
        HDT_CALL(side, join_weights, count, weights[side], remainders[side], hdt_at(joined, side));
    }
    ck_assert(memcmp(fetch(weights[1], bytes), weights[0], bytes) == 0);
    ck_assert(memcmp(fetch(remainders[1], bytes), remainders[0], bytes) == 0);
    ck_assert(memcmp(fetch(joined.device, 2 * bytes), joined.host, 2 * bytes) == 0);
}
END_TEST

START_TEST(remainders_train_as_an_fp32_master_does_bit_for_bit)
{
    enum { STEPS = 20 };
    const int64_t count = counts[_i];
    const size_t bytes = (size_t)count * sizeof(float);
    const hd_backend *gpu = hdt_sides[1];
    hd_stream *stream = hdt_streams[1];
    hdt_gpu_reset();
    hdt_pair master = hdt_pair_make(HD_DTYPE_F32, count, 1, 1, 0);
    float *joined = hdt_scratch(1, bytes), *scalars = hdt_scratch(1, 5 * sizeof(float));
    float *m[2], *v[2];
    void *weights[2];
    int16_t *remainder = hdt_scratch(1, bytes / 2);
    for (int kind = 0; kind < 2; kind++) {
        m[kind] = hdt_scratch(1, bytes);
        v[kind] = hdt_scratch(1, bytes);
        weights[kind] = hdt_scratch(1, bytes / 2);
        hdt_assert_ok(gpu->split_weights(stream, HD_DTYPE_BF16, count, master.device, weights[kind],
                                         kind ? remainder : NULL));
    }
    for (int step = 1; step <= STEPS; step++) {
        const float values[] = {0.01f, 0.5f, (float)(1 - pow(0.9, step)),
                                (float)(1 - pow(0.95, step)), 1};
        hdt_pair gradient = hdt_pair_make(HD_DTYPE_F32, count, 10 + (uint64_t)step, 1, 0);
        hdt_assert_ok(gpu->copy_in(stream, scalars, values, sizeof values));
        for (int kind = 0; kind < 2; kind++)
            hdt_assert_ok(
                gpu->adamw(stream, &(hdi_adamw_args){.dtype = HD_DTYPE_BF16,
                                                     .elements = count,
                                                     .weights = weights[kind],
                                                     .master = kind ? NULL : master.device,
                                                     .remainder = kind ? remainder : NULL,
                                                     .m = m[kind],
                                                     .v = v[kind],
                                                     .gradient = gradient.device,
                                                     .scalars = scalars,
                                                     .beta1 = 0.9f,
                                                     .beta2 = 0.95f,
                                                     .epsilon = 1e-8f,
                                                     .weight_decay = 0.1f}));
    }
    hdt_assert_ok(gpu->join_weights(stream, count, weights[1], remainder, joined));
    ck_assert(memcmp(fetch(joined, bytes), fetch(master.device, bytes), bytes) == 0);
    ck_assert(memcmp(fetch(weights[0], bytes / 2), fetch(weights[1], bytes / 2), bytes / 2) == 0);
    ck_assert(memcmp(fetch(v[0], bytes), fetch(v[1], bytes), bytes) == 0);
}
END_TEST

START_TEST(normal_numbers_are_those_of_the_counter)
{
    enum { COUNT = 1 << 20 };
    hdt_gpu_reset();
    hdt_pair out = hdt_pair_zero(HD_DTYPE_F32, COUNT);
    HDT_CALL(1, fill_normal, HD_DTYPE_F32, out.device, COUNT, 42, 7, 1000, 0.02f);
    const float *got = hdt_fetch(out);
    int different = 0;
    for (int64_t i = 0; i < COUNT; i++) {
        const float want = 0.02f * hdi_random_normal(42, 7, (uint64_t)(1000 + i));
        different += got[i] != want;
        ck_assert_float_le(fabsf(got[i] - want), fabsf(want) * 0x1p-22f);
    }
    ck_assert_int_le(different, 1); /* about one in 10^8 */
}
END_TEST

START_TEST(rows_and_positions_come_from_the_device)
{
    const int32_t first = 5, count = 4;
    const hd_dtype dtype = hdt_dtypes[_i];
    hdt_gpu_reset();
    hdt_pair start = hdt_pair_ints(1, &first), length = hdt_pair_ints(1, &count);
    hdt_pair out = hdt_pair_ids(300, 2, 1), x = hdt_pair_make(dtype, 9 * 301, 2, 1, 0);
    hdt_pair row = hdt_pair_zero(dtype, 301);
    for (int side = 0; side < HDT_SIDES; side++) {
        HDT_CALL(side, positions,
                 &(hdi_positions_args){.rows = 300,
                                       .period = 70,
                                       .limit = 60,
                                       .first = hdt_at(start, side),
                                       .out = hdt_at(out, side)});
        HDT_CALL(side, select_row,
                 &(hdi_select_row_args){.dtype = hdt_side_dtype(dtype, side),
                                        .rows = 9,
                                        .columns = 301,
                                        .x = hdt_at(x, side),
                                        .count = hdt_at(length, side),
                                        .out = hdt_at(row, side)});
    }
    const float *got = hdt_fetch(out);
    ck_assert_int_eq(memcmp(got, out.host, 300 * sizeof(int32_t)), 0);
    hdt_pair_check("select_row", row, 1e-30, 0, 1);
}
END_TEST

/* The same call three times gives the same bits. */
START_TEST(sums_are_the_same_bits_in_every_run)
{
    enum { ROWS = 5000, COLUMNS = 320, ENTRIES = 50 };
    const hd_dtype dtype = hdt_dtypes[_i];
    hdt_gpu_reset();
    hdt_pair x = hdt_pair_make(dtype, ROWS * COLUMNS, 1, 1, 0);
    hdt_pair ids = hdt_pair_ids(ROWS, ENTRIES, 2);
    hdt_pair out = hdt_pair_zero(HD_DTYPE_F32, ENTRIES * COLUMNS);
    hdt_pair square = hdt_pair_zero(HD_DTYPE_F32, COLUMNS * COLUMNS);
    const hdi_embedding_gradient_args embedding = {
        .dtype = dtype,
        .rows = ROWS,
        .columns = COLUMNS,
        .entries = ENTRIES,
        .ids = ids.device,
        .gradient = x.device,
        .table_gradient = out.device,
        .workspace = hdt_scratch(1, hdt_sides[1]->embedding_gradient_workspace(ROWS, ENTRIES))};
    const hdi_gemm_args gemm = {.dtype = dtype,
                                .out_dtype = HD_DTYPE_F32,
                                .rows = COLUMNS,
                                .columns = COLUMNS,
                                .inner = ROWS,
                                .a = x.device,
                                .b = x.device,
                                .a_stride = COLUMNS,
                                .b_stride = COLUMNS,
                                .out_stride = COLUMNS,
                                .transpose_a = true,
                                .out = square.device};
    const float *first = NULL, *first_square = NULL;
    for (int again = 0; again < 3; again++) {
        HDT_CALL(1, embedding_gradient, &embedding);
        HDT_CALL(1, gemm, &gemm);
        const float *next = hdt_fetch(out), *next_square = hdt_fetch(square);
        if (!first) first = next, first_square = next_square;
        ck_assert_int_eq(memcmp(first, next, ENTRIES * COLUMNS * sizeof *first), 0);
        ck_assert_int_eq(memcmp(first_square, next_square, COLUMNS * COLUMNS * sizeof *first), 0);
    }
}
END_TEST

START_TEST(an_arena_is_zeroed_and_comes_back)
{
    enum { BYTES = (64 << 20) + (2 << 20) + 12345 };
    hdi_device *device = NULL;
    hdi_memory_info before, during, after;
    void *arena = NULL, *pinned = NULL;
    hdt_gpu_reset();
    hdt_assert_ok(hdi_backend_cuda.open(0, &device));
    hdt_assert_ok(hdi_backend_cuda.memory_info(device, &before));
    hdt_assert_ok(hdi_backend_cuda.reserve(device, BYTES, &arena));
    hdt_assert_ok(hdi_backend_cuda.memory_info(device, &during));
    hdt_assert_ok(hdi_backend_cuda.reserve_host(device, BYTES, &pinned));
    memset(pinned, 1, BYTES);
    hd_stream *stream = hdi_backend_cuda.stream(device);
    hdt_assert_ok(hdi_backend_cuda.copy_out(stream, pinned, arena, BYTES));
    hdt_assert_ok(hdi_backend_cuda.synchronize(stream));
    for (int64_t i = 0; i < BYTES; i++)
        if (((const char *)pinned)[i]) ck_abort_msg("byte %lld is not 0", (long long)i);
    ck_assert_uint_ge(before.free_bytes - during.free_bytes, BYTES);
    hdi_backend_cuda.release_host(device, pinned, BYTES);
    hdi_backend_cuda.release(device, arena, BYTES);
    hdt_assert_ok(hdi_backend_cuda.memory_info(device, &after));
    /* The driver may keep a page table for the pinned memory. */
    ck_assert_uint_ge(after.free_bytes + (2 << 20), before.free_bytes);
    void *too_much = NULL;
    hdt_assert_status(hdi_backend_cuda.reserve(device, before.total_bytes * 2, &too_much),
                      HD_ERROR_MEMORY, "cuda");
    ck_assert_ptr_null(too_much);
    hdi_backend_cuda.close(device);
}
END_TEST

static size_t free_bytes(hdi_device *device)
{
    hdi_memory_info now;
    hdt_assert_ok(hdi_backend_cuda.memory_info(device, &now));
    return now.free_bytes;
}

/* Made by the device, and registered with it. */
START_TEST(pinned_memory_takes_no_more_of_the_device_than_its_share)
{
    const size_t bytes = (size_t)4 << 30, piece = (size_t)2 << 20;
    const size_t most = bytes / hdi_backend_cuda.pinned_share + piece;
    hdi_device *device = NULL;
    void *pinned = _i ? hdi_map(bytes) : NULL;
    hdt_gpu_reset();
    hdt_assert_ok(hdi_backend_cuda.open(0, &device));
    const size_t before = free_bytes(device);
    if (_i)
        hdt_assert_ok(hdi_backend_cuda.register_host(device, pinned, bytes));
    else
        hdt_assert_ok(hdi_backend_cuda.reserve_host(device, bytes, &pinned));
    const size_t during = free_bytes(device), taken = before > during ? before - during : 0;
    if (_i) {
        hdi_backend_cuda.unregister_host(device, pinned, bytes);
        hdi_unmap(pinned, bytes);
    } else {
        hdi_backend_cuda.release_host(device, pinned, bytes);
    }
    hdi_backend_cuda.close(device);
    printf("%s 4 GiB take %zu bytes of the device, planned are %zu\n", _i ? "registered" : "pinned",
           taken, most);
    ck_assert_uint_le(taken, most);
}
END_TEST

START_TEST(a_device_that_is_not_there_is_refused)
{
    hdi_device *device = NULL;
    hdt_assert_status(hdi_backend_cuda.open(99, &device), HD_ERROR_ARGUMENT, "device 99");
    ck_assert_ptr_null(device);
}
END_TEST

/* Codes and scales are the CPU's bits, and so is what comes back. */
START_TEST(int8_is_bit_equal_to_the_cpu)
{
    const hd_dtype dtype = hdt_dtypes[_i];
    for (int c = 0; c < COUNTS; c++) {
        const int64_t scales = hdi_ceil_div(counts[c], HDI_QUANTIZE_ELEMENTS);
        int8_t *codes[HDT_SIDES];
        hdt_gpu_reset();
        hdt_pair x = hdt_pair_make(dtype, counts[c], 1, 3, 0),
                 scale = hdt_pair_zero(HD_DTYPE_F32, scales);
        for (int side = 0; side < HDT_SIDES; side++) {
            codes[side] = hdt_scratch(side, (size_t)counts[c]);
            const hdi_quantize_args args = {hdt_side_dtype(dtype, side), counts[c], hdt_at(x, side),
                                            codes[side], hdt_at(scale, side)};
            HDT_CALL(side, quantize, &args);
            HDT_CALL(side, dequantize, &args);
        }
        int8_t *got = hdt_scratch(0, (size_t)counts[c]);
        hdt_assert_ok(hdt_sides[1]->copy_out(hdt_streams[1], got, codes[1], (size_t)counts[c]));
        hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
        ck_assert_mem_eq(got, codes[0], (size_t)counts[c]);
        hdt_pair_check("scales", scale, 0, 0, 0);
        hdt_pair_check("dequantize", x, 3, 1, 1);
    }
}
END_TEST

int main(void)
{
    TCase *cases = tcase_create("state");
    tcase_add_loop_test(cases, add_and_convert_round_once, 0, 9);
    tcase_add_loop_test(cases, int8_is_bit_equal_to_the_cpu, 0, 3);
    tcase_add_test(cases, sums_are_those_of_the_cpu);
    tcase_add_test(cases, trees_are_bit_equal_to_the_cpu);
    tcase_add_loop_test(cases, adamw_steps_as_the_cpu, 0, 3);
    tcase_add_loop_test(cases, weights_are_split_and_joined_as_the_cpu_does, 0, COUNTS);
    tcase_add_loop_test(cases, remainders_train_as_an_fp32_master_does_bit_for_bit, 0, COUNTS);
    tcase_add_test(cases, normal_numbers_are_those_of_the_counter);
    tcase_add_loop_test(cases, rows_and_positions_come_from_the_device, 0, 3);
    tcase_add_loop_test(cases, sums_are_the_same_bits_in_every_run, 0, 3);
    tcase_add_test(cases, an_arena_is_zeroed_and_comes_back);
    tcase_add_loop_test(cases, pinned_memory_takes_no_more_of_the_device_than_its_share, 0, 2);
    tcase_add_test(cases, a_device_that_is_not_there_is_refused);
    return hdt_main_gpu("cuda state", cases);
}
