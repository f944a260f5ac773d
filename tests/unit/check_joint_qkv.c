/* Joint query-key-value rows against the formula: RMS norm of heads, rotation on axes, joining. */
#include <heddle/diffusion.h>

#include "core/half.h"
#include "tests/support/hdt_backend.h"
#include "tests/support/hdt_interpret.h"
#include "tests/support/hdt_program.h"

enum {
    SEQUENCES = 2,
    HEADS = 3,
    DIM = 20,
    PART = HEADS * DIM,
    PACKED = 3 * PART,
    TOKENS = 13,
    MORE = 4
};

/* 13 tokens on axes of 2 x 3 x 2 places, from the fourth on: those beyond them start anew. */
static hd_rope_axes axes(hd_rope_pairing pairing)
{
    return (hd_rope_axes){.axes = 3,
                          .dims = {4, 10, 6},
                          .length = {2, 3, 2},
                          .stride = {6, 2, 1},
                          .scale = {0, 0.75, 1},
                          .theta = 256,
                          .pairing = pairing,
                          .start = 3};
}

/* What becomes of one head of queries or keys. */
static void want_head(const float *x, const float *weight, const hd_rope_axes *rope, int64_t token,
                      double *out)
{
    double square = 0;
    for (int d = 0; d < DIM; d++)
        square += (double)x[d] * (double)x[d] / DIM;
    for (int d = 0; d < DIM; d++)
        out[d] = weight ? (double)x[d] / sqrt(square + 1e-6) * (double)weight[d] : (double)x[d];
    int64_t pair = 0;
    for (int a = 0; a < rope->axes; a++) {
        const double scale = rope->scale[a] != 0 ? rope->scale[a] : 1;
        const double place =
            scale * (double)((token + rope->start) / rope->stride[a] % rope->length[a]);
        for (int64_t i = 0; i < rope->dims[a] / 2; i++, pair++) {
            const double angle = place * pow(rope->theta, -2.0 * (double)i / (double)rope->dims[a]);
            const bool halves = rope->pairing == HD_ROPE_HALVES;
            const int64_t first = halves ? pair : 2 * pair;
            const int64_t second = halves ? pair + DIM / 2 : first + 1;
            const double u = out[first], v = out[second];
            out[first] = u * cos(angle) - v * sin(angle);
            out[second] = v * cos(angle) + u * sin(angle);
        }
    }
}

static hd_tensor input(hd_program *p, const char *name, int rank, int64_t rows, int64_t columns)
{
    const int64_t dims[] = {rows, columns};
    return hd_input(p, name, HD_DTYPE_F32, rank, rank == 1 ? &columns : dims);
}

static float *fill(hdt_machine *machine, hd_tensor x, int64_t count, uint64_t seed)
{
    float *data = hdt_machine_data(machine, x);
    hdt_fill(data, count, seed);
    return data;
}

START_TEST(two_streams_are_normed_rotated_and_joined)
{
    const hd_rope_axes rope = axes(_i ? HD_ROPE_HALVES : HD_ROPE_INTERLEAVED);
    hd_program *p = hdt_program();
    const hd_qkv_stream stream[] = {
        {.qkv = input(p, "img", 2, SEQUENCES * TOKENS, PACKED),
         .query_norm = input(p, "q", 1, 1, DIM),
         .key_norm = input(p, "k", 1, 1, DIM),
         .tokens = TOKENS,
         .rope = rope},
        {.qkv = input(p, "txt", 2, SEQUENCES * MORE, PACKED), .tokens = MORE}};
    const hd_tensor y = hd_joint_qkv(p, SEQUENCES, HEADS, DIM, 0, 2, stream);
    hd_output(p, y, "y");
    hdt_assert_ok(hd_program_finish(p));
    hdt_machine *machine = hdt_machine_create(p, false);
    const float *x[] = {fill(machine, stream[0].qkv, SEQUENCES * TOKENS * PACKED, 1),
                        fill(machine, stream[1].qkv, SEQUENCES * MORE * PACKED, 2)};
    const float *norms[] = {fill(machine, stream[0].query_norm, DIM, 3),
                            fill(machine, stream[0].key_norm, DIM, 4)};
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_FORWARD, false));
    const float *out = hdt_machine_data(machine, y);
    for (int64_t r = 0; r < SEQUENCES * (TOKENS + MORE); r++) {
        const int64_t token = r % (TOKENS + MORE), s = r / (TOKENS + MORE);
        const bool is_first = token < TOKENS;
        const int64_t row = is_first ? s * TOKENS + token : s * MORE + token - TOKENS;
        const float *from = x[!is_first] + row * PACKED;
        for (int c = 0; c < 2 * PART; c += DIM) {
            double want[DIM];
            want_head(from + c, is_first ? norms[c >= PART] : NULL,
                      is_first ? &rope : &(hd_rope_axes){0}, token, want);
            /* Values are below 1; normed ones at most sqrt(DIM), in pairs. */
            for (int d = 0; d < DIM; d++)
                hdt_near("row", r, out[r * PACKED + c + d], want[d], 2 * sqrt(DIM), DIM + 8);
        }
        ck_assert(memcmp(out + r * PACKED + 2 * PART, from + 2 * PART, PART * sizeof *out) == 0);
    }
    hdt_machine_destroy(machine);
    hd_program_destroy(p);
}
END_TEST

static float *table(void)
{
    float *out = hdt_take(TOKENS * DIM * sizeof *out);
    for (int i = 0; i < TOKENS * DIM / 2; i++) {
        out[2 * i] = cosf(0.3f * (float)i);
        out[2 * i + 1] = sinf(0.3f * (float)i);
    }
    return out;
}

/* One stream in the middle of a joint sequence. */
static hdi_joint_qkv_args call(int64_t sequences)
{
    return (hdi_joint_qkv_args){.dtype = HD_DTYPE_F32,
                                .sequences = sequences,
                                .tokens = TOKENS,
                                .first = 2,
                                .out_tokens = TOKENS + 3,
                                .heads = HEADS,
                                .head_dim = DIM,
                                .epsilon = 1e-6f,
                                .qkv = hdt_floats(sequences * TOKENS * PACKED, 5),
                                .query_norm = hdt_floats(DIM, 6),
                                .key_norm = hdt_floats(DIM, 7),
                                .rope = {.axes = 1,
                                         .halves = true,
                                         .dims = {DIM},
                                         .length = {TOKENS},
                                         .stride = {1},
                                         .table = table()}};
}

START_TEST(threads_change_nothing_and_other_rows_are_left_alone)
{
    enum { MANY = 50, OUT_TOKENS = TOKENS + 3 };
    hdi_joint_qkv_args args = call(MANY);
    const int64_t floats = MANY * OUT_TOKENS * PACKED;
    float *out = hdt_floats(floats, 8);
    const float *before = hdt_floats(floats, 8);
    args.out = out;
    hdt_same_on_threads(hdi_backend_cpu.joint_qkv(NULL, &args), out, before, floats);
    for (int64_t r = 0; r < MANY * OUT_TOKENS; r++) {
        const bool is_ours = r % OUT_TOKENS >= 2 && r % OUT_TOKENS < 2 + TOKENS;
        const bool is_same =
            memcmp(out + r * PACKED, before + r * PACKED, PACKED * sizeof *out) == 0;
        ck_assert(is_same != is_ours);
    }
    float *partials = hdt_floats(64 * 2 * DIM, 9);
    hdi_joint_qkv_gradient_args back = {.forward = args,
                                        .partial_rows = 64,
                                        .gradient = hdt_floats(floats, 10),
                                        .qkv_gradient = hdt_floats(MANY * TOKENS * PACKED, 11),
                                        .partials = partials};
    hdt_same_on_threads(hdi_backend_cpu.joint_qkv_gradient(NULL, &back), partials, NULL,
                        64 * 2 * DIM);
    float *gradient = hdt_take((size_t)(MANY * TOKENS * PACKED) * sizeof *gradient);
    memcpy(gradient, back.qkv_gradient, (size_t)(MANY * TOKENS * PACKED) * sizeof *gradient);
    back.partials = NULL; /* another cut of the rows */
    hdt_assert_ok(hdi_backend_cpu.joint_qkv_gradient(NULL, &back));
    ck_assert(memcmp(gradient, back.qkv_gradient,
                     (size_t)(MANY * TOKENS * PACKED) * sizeof *gradient) == 0);
}
END_TEST

START_TEST(one_stream_in_place_has_the_bits_of_one_beside)
{
    hdi_joint_qkv_args args = call(SEQUENCES);
    args.first = 0;
    args.out_tokens = TOKENS;
    const size_t bytes = SEQUENCES * TOKENS * PACKED * sizeof(float);
    args.out = hdt_take(bytes);
    hdt_assert_ok(hdi_backend_cpu.joint_qkv(NULL, &args));
    float *same = memcpy(hdt_take(bytes), args.qkv, bytes);
    hdi_joint_qkv_args in_place = args;
    in_place.qkv = in_place.out = same;
    hdt_assert_ok(hdi_backend_cpu.joint_qkv(NULL, &in_place));
    ck_assert(memcmp(same, args.out, bytes) == 0);
}
END_TEST

static uint16_t *rounded(hd_dtype dtype, const float *x, int64_t count, float *back)
{
    uint16_t *out = hdt_take((size_t)count * sizeof *out);
    for (int64_t i = 0; i < count; i++) {
        out[i] = hdi_half_from_float(dtype, x[i]);
        back[i] = hdi_half_to_float(dtype, out[i]);
    }
    return out;
}

static float round_to(hd_dtype dtype, double x)
{
    return hdi_half_to_float(dtype, hdi_half_from_float(dtype, (float)x));
}

/* Without rotation the result is round(round(x * rstd) * weight) exactly, but where fp32 is so near
 * to a tie that it falls to the other side: one unit of the dtype then, times the weight. */
START_TEST(sixteen_bits_round_before_and_after_the_weight)
{
    const hd_dtype dtype = _i ? HD_DTYPE_F16 : HD_DTYPE_BF16;
    hdi_device *device;
    hdt_assert_ok(hdi_backend_cpu.open(0, &device));
    hd_stream *stream = hdi_backend_cpu.stream(device);
    hdi_joint_qkv_args args = call(SEQUENCES);
    enum { FLOATS = SEQUENCES * TOKENS * PACKED };
    float *x = hdt_take(FLOATS * sizeof *x), *norms = hdt_take(2 * DIM * sizeof *norms);
    args.dtype = dtype;
    args.first = 0;
    args.out_tokens = TOKENS;
    args.rope.axes = 0;
    args.qkv = rounded(dtype, args.qkv, FLOATS, x);
    args.query_norm = rounded(dtype, args.query_norm, DIM, norms);
    args.key_norm = rounded(dtype, args.key_norm, DIM, norms + DIM);
    uint16_t *out = args.out = hdt_take(FLOATS * sizeof *out);
    hdt_assert_ok(hdi_backend_cpu.joint_qkv(stream, &args));
    int64_t others = 0;
    for (int64_t i = 0; i < FLOATS; i++) {
        const int64_t column = i % PACKED;
        const float got = hdi_half_to_float(dtype, out[i]);
        if (column >= 2 * PART) {
            ck_assert(got == x[i]);
            continue;
        }
        const float *head = x + i - column % DIM;
        double square = 0;
        for (int d = 0; d < DIM; d++)
            square += (double)head[d] * (double)head[d] / DIM;
        const float normed = round_to(dtype, (double)x[i] / sqrt(square + 1e-6));
        const float weight = norms[(column >= PART ? DIM : 0) + column % DIM];
        const double want = (double)round_to(dtype, (double)normed * (double)weight);
        others += (double)got != want;
        ck_assert_double_le(fabs((double)got - want), 2 * hdt_tolerance(dtype, 1) * fabs(want));
    }
    ck_assert_int_le(others, FLOATS / 500);

    /* With it, and back: the fp32 call on the same numbers, within the roundings on the way. */
    args.rope.axes = 1;
    hdt_assert_ok(hdi_backend_cpu.joint_qkv(stream, &args));
    hdi_joint_qkv_args wide = args;
    wide.dtype = HD_DTYPE_F32;
    wide.qkv = x;
    wide.query_norm = norms;
    wide.key_norm = norms + DIM;
    float *want = wide.out = hdt_take(FLOATS * sizeof *want);
    hdt_assert_ok(hdi_backend_cpu.joint_qkv(NULL, &wide));
    const double unit = hdt_tolerance(dtype, 1);
    for (int64_t i = 0; i < FLOATS; i++) /* heads are below sqrt(DIM), in pairs, rounded thrice */
        ck_assert_double_le(fabs((double)(hdi_half_to_float(dtype, out[i]) - want[i])),
                            3 * unit * 2 * sqrt(DIM));

    float *gradient = hdt_take(FLOATS * sizeof *gradient), *back = hdt_floats(FLOATS, 12);
    float partials[2][2][2 * DIM];
    uint16_t *got = hdt_take(FLOATS * sizeof *got);
    const hdi_joint_qkv_gradient_args narrow = {
        .forward = args,
        .partial_rows = 2,
        .gradient = rounded(dtype, hdt_floats(FLOATS, 12), FLOATS, gradient),
        .qkv_gradient = got,
        .partials = partials[0][0]};
    const hdi_joint_qkv_gradient_args full = {.forward = wide,
                                              .partial_rows = 2,
                                              .gradient = gradient,
                                              .qkv_gradient = back,
                                              .partials = partials[1][0]};
    hdt_assert_ok(hdi_backend_cpu.joint_qkv_gradient(stream, &narrow));
    hdt_assert_ok(hdi_backend_cpu.joint_qkv_gradient(NULL, &full));
    for (int64_t i = 0; i < FLOATS; i++)
        ck_assert(got[i] == hdi_half_from_float(dtype, back[i]));
    ck_assert(memcmp(partials[0], partials[1], sizeof partials[0]) == 0);
    hdi_backend_cpu.close(device);
}
END_TEST

/* Partial sums are over rows and heads, queries apart from keys. */
START_TEST(norm_gradients_are_sums_over_rows_and_heads)
{
    hdi_joint_qkv_args args = call(SEQUENCES);
    args.rope.axes = 0;
    args.first = 0;
    args.out_tokens = TOKENS;
    enum { FLOATS = SEQUENCES * TOKENS * PACKED, ROWS = SEQUENCES * TOKENS, PARTS = 5 };
    const float *x = args.qkv, *gradient = hdt_floats(FLOATS, 13);
    float *partials = hdt_floats(PARTS * 2 * DIM, 14);
    const hdi_joint_qkv_gradient_args back = {.forward = args,
                                              .partial_rows = PARTS,
                                              .gradient = gradient,
                                              .qkv_gradient = hdt_take(FLOATS * sizeof(float)),
                                              .partials = partials};
    hdt_assert_ok(hdi_backend_cpu.joint_qkv_gradient(NULL, &back));
    double want[2 * DIM] = {0};
    for (int64_t h = 0; h < ROWS * 2 * HEADS; h++) {
        const int64_t at = h / (2 * HEADS) * PACKED + h % (2 * HEADS) * DIM;
        double square = 0;
        for (int d = 0; d < DIM; d++)
            square += (double)x[at + d] * (double)x[at + d] / DIM;
        for (int d = 0; d < DIM; d++)
            want[(h % (2 * HEADS) < HEADS ? 0 : DIM) + d] +=
                (double)gradient[at + d] * (double)x[at + d] / sqrt(square + 1e-6);
    }
    for (int c = 0; c < 2 * DIM; c++) {
        double got = 0;
        for (int part = 0; part < PARTS; part++)
            got += (double)partials[part * 2 * DIM + c];
        hdt_near("norm gradient", c, (float)got, want[c], ROWS * HEADS * sqrt(DIM),
                 ROWS * HEADS + DIM);
    }
}
END_TEST

static hd_status refuse(int streams, hd_qkv_stream first, hd_qkv_stream second, hd_program *p)
{
    hd_joint_qkv(p, 2, 2, 8, 0, streams, (hd_qkv_stream[]){first, second});
    const hd_status status = hd_program_finish(p);
    hd_program_destroy(p);
    return status;
}

START_TEST(bad_streams_are_refused_with_what_was_seen)
{
    const hd_qkv_stream none = {0};
    hd_program *p = hdt_program();
    hdt_assert_status(
        refuse(1, (hd_qkv_stream){.qkv = input(p, "x", 2, 6, 47), .tokens = 3}, none, p),
        HD_ERROR_ARGUMENT, "qkv is F32 [6, 47], want F32 [6, 48]");
    p = hdt_program();
    hdt_assert_status(
        refuse(1, (hd_qkv_stream){.qkv = input(p, "x", 2, 6, 48), .tokens = 4}, none, p),
        HD_ERROR_ARGUMENT, "want F32 [8, 48]");
    p = hdt_program();
    hdt_assert_status(refuse(1, (hd_qkv_stream){.qkv = input(p, "x", 2, 6, 48)}, none, p),
                      HD_ERROR_ARGUMENT, "0 tokens");
    p = hdt_program();
    hdt_assert_status(refuse(1,
                             (hd_qkv_stream){.qkv = input(p, "x", 2, 6, 48),
                                             .tokens = 3,
                                             .query_norm = input(p, "n", 1, 1, 8)},
                             none, p),
                      HD_ERROR_ARGUMENT, "a norm of queries only");
    p = hdt_program();
    hdt_assert_status(refuse(3, none, none, p), HD_ERROR_ARGUMENT, "3 streams");
    p = hdt_program();
    hdt_assert_status(refuse(1,
                             (hd_qkv_stream){.qkv = input(p, "x", 2, 6, 48),
                                             .tokens = 3,
                                             .rope = {.axes = 2,
                                                      .dims = {4, 2},
                                                      .length = {2, 2},
                                                      .stride = {2, 1},
                                                      .theta = 9}},
                             none, p),
                      HD_ERROR_ARGUMENT, "add up to head_dim 8");
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("joint_qkv");
    tcase_add_checked_fixture(tests, NULL, hdt_free_held);
    tcase_add_loop_test(tests, two_streams_are_normed_rotated_and_joined, 0, 2);
    tcase_add_test(tests, threads_change_nothing_and_other_rows_are_left_alone);
    tcase_add_test(tests, one_stream_in_place_has_the_bits_of_one_beside);
    tcase_add_loop_test(tests, sixteen_bits_round_before_and_after_the_weight, 0, 2);
    tcase_add_test(tests, norm_gradients_are_sums_over_rows_and_heads);
    tcase_add_test(tests, bad_streams_are_refused_with_what_was_seen);
    Suite *suite = suite_create("joint_qkv");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
