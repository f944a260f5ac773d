/* Blocks in slices: the same bits with less memory, and only where a budget asks for it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/half.h"
#include "ops/slices.h"
#include "program/plan.h"
#include "runtime/session.h"
#include "tests/support/hdt_backend.h"
#include "tests/support/hdt_interpret.h"
#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_program.h"

#include <heddle/nn.h>
#include <heddle/sampler.h>

/* A program that is under construction; run, it has values by their tensors' names. */
static hd_program *start(hd_dtype dtype, int slices)
{
    hd_program *p;
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){.name = "p", .dtype = dtype, .slices = slices}, &p));
    return p;
}

static void *take(size_t bytes)
{
    void *memory = calloc(1, bytes + 1);
    ck_assert_ptr_nonnull(memory);
    return memory;
}

static void fill(hd_session *session, const hd_program *p, int id)
{
    const hd_tensor_info *info = hd_tensor_get(p, (hd_tensor){id});
    if (info->role != HD_ROLE_INPUT && info->role != HD_ROLE_PARAMETER) return;
    uint64_t seed = 7;
    for (const char *c = info->name; *c; c++)
        seed = 31 * seed + (uint64_t)*c;
    float *values = take((size_t)info->elements * sizeof *values);
    void *data = take(info->bytes);
    hdt_fill(values, info->elements, seed);
    for (int64_t i = 0; i < info->elements; i++) {
        if (info->dtype == HD_DTYPE_F32)
            ((float *)data)[i] = values[i];
        else if (info->dtype == HD_DTYPE_I32)
            ((int32_t *)data)[i] = 3 + (int32_t)i;
        else
            ((uint16_t *)data)[i] = hdi_half_from_float(info->dtype, values[i]);
    }
    hdt_assert_ok(hd_session_write(session, p, (hd_tensor){id}, 0, data));
    free(values);
    free(data);
}

/* Run it as planned; `count` outputs as floats, one after another. */
static float *run(hd_program *p, const hd_tensor *outputs, int count, int64_t *elements)
{
    hd_context *context;
    hd_plan *plan;
    hd_session *session;
    hdt_assert_ok(hd_program_finish(p));
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_ok(hd_plan_add(plan, p, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_ok(hd_session_create(context, plan, NULL, &session));
    for (int i = 1; i < p->tensor_count; i++)
        fill(session, p, i);
    hdt_assert_ok(hd_session_run(session, p, &(hd_session_run_options){.last = true}));
    hdt_assert_ok(hd_session_drain(session));
    *elements = 0;
    for (int i = 0; i < count; i++)
        *elements += hd_tensor_get(p, outputs[i])->elements;
    float *out = take((size_t)*elements * sizeof *out), *to = out;
    for (int i = 0; i < count; i++) {
        const hd_tensor_info *info = hd_tensor_get(p, outputs[i]);
        void *data = take(info->bytes);
        hdt_assert_ok(hd_session_read(session, p, outputs[i], 0, data));
        for (int64_t e = 0; e < info->elements; e++, to++)
            *to = info->dtype == HD_DTYPE_F32
                      ? ((float *)data)[e]
                      : hdi_half_to_float(info->dtype, ((uint16_t *)data)[e]);
        free(data);
    }
    hd_session_destroy(session);
    hd_plan_destroy(plan);
    hd_context_destroy(context);
    hd_program_destroy(p);
    return out;
}

/* Frees what was seen. */
static void check_same(float *seen, const float *want, int64_t count, hd_dtype dtype, int slices)
{
    int64_t differ = 0;
    double most = 0;
    for (int64_t i = 0; i < count; i++) {
        ck_assert(isfinite(want[i]));
        differ += seen[i] != want[i];
        most = fmax(most, fabs((double)seen[i] - want[i]));
    }
    ck_assert_msg(differ == 0, "%s, %d slices: %d of %d differ, by up to %g", hd_dtype_name(dtype),
                  slices, (int)differ, (int)count, most);
    free(seen);
}

enum { HIDDEN = 40, INNER = 100 };

static float *run_mlp(hd_dtype dtype, int64_t rows, int slices, int64_t *count)
{
    const int64_t dims[] = {rows, HIDDEN};
    hd_program *p = start(dtype, slices);
    const hd_linear_options up = {.name = "up", .outputs = INNER, .bias = true};
    const hd_linear_options down = {.name = "down", .outputs = HIDDEN, .bias = rows % 2 == 0};
    const hd_tensor y = hd_gelu_mlp(p, hd_input(p, "x", dtype, 2, dims), &up, &down);
    hd_output(p, y, "y");
    ck_assert_int_eq(hdt_count_ops(p, "mlp_slices"), slices > 1);
    return run(p, &y, 1, count);
}

/* Rows around the tiles that slices are cut at: no slice has so few that the BLAS would take another
 * kernel for it than for all rows. */
START_TEST(mlp_in_slices_of_rows_has_the_bits_of_all_at_once)
{
    static const int64_t rows[] = {1, 2, 63, 64, 65, 68, 129, 700, 1111};
    static const hd_dtype dtypes[] = {HD_DTYPE_F32, HD_DTYPE_BF16, HD_DTYPE_F16};
    for (int d = 0; d < 3; d++) {
        int64_t count, same;
        float *want = run_mlp(dtypes[d], rows[_i], 1, &count);
        for (int slices = 2; slices <= 33; slices = 2 * slices - 1) {
            float *seen = run_mlp(dtypes[d], rows[_i], slices, &same);
            ck_assert_int_eq(same, count);
            check_same(seen, want, count, dtypes[d], slices);
        }
        free(want);
    }
}
END_TEST

enum { HEADS = 5, DIM = 16, PART = HEADS * DIM, SEQUENCES = 2, TOKENS = 41, MORE = 33 };

static hd_tensor vector(hd_program *p, const char *name, int s, int64_t columns)
{
    char text[32];
    snprintf(text, sizeof text, "%s%d", name, s);
    return hd_parameter(p, &(hd_parameter_options){.name = text, .rank = 1, .dims = {columns}});
}

/* Attention of one or two streams; groups 0: the ops apart. */
static float *run_attention(hd_dtype dtype, int streams, int groups, bool counted, int64_t *count)
{
    hd_program *p = start(dtype, 1);
    hdi_attention_slices from = {.sequences = SEQUENCES,
                                 .heads = HEADS,
                                 .head_dim = DIM,
                                 .streams = streams,
                                 .groups = groups};
    const int64_t tokens[] = {TOKENS, streams > 1 ? MORE : 0}, sequences = SEQUENCES;
    if (counted) from.counts = hd_input(p, "counts", HD_DTYPE_I32, 1, &sequences);
    for (int s = 0; s < streams; s++) {
        char name[32], of_map[32];
        snprintf(of_map, sizeof of_map, "map%d", s);
        const int64_t dims[] = {SEQUENCES * tokens[s], HIDDEN};
        const hd_linear_options map = {
            .name = of_map, .outputs = 3 * (int64_t)PART, .bias = s == 0};
        snprintf(name, sizeof name, "x%d", s);
        from.stream[s] =
            (hd_qkv_stream){.qkv = hd_input(p, name, dtype, 2, dims), .tokens = tokens[s]};
        if (s == 0) {
            from.stream[s].query_norm = vector(p, "q", s, DIM);
            from.stream[s].key_norm = vector(p, "k", s, DIM);
            from.stream[s].rope = (hd_rope_axes){
                .axes = 2, .dims = {4, 12}, .length = {3, 14}, .stride = {14, 1}, .theta = 256};
        }
        if (groups) {
            const int64_t weight[] = {3 * (int64_t)PART, HIDDEN};
            snprintf(name, sizeof name, "map%d.weight", s);
            from.map[s].weight = hd_parameter(
                p,
                &(hd_parameter_options){.name = name, .rank = 2, .dims = {weight[0], weight[1]}});
            snprintf(name, sizeof name, "map%d.bias", s);
            if (s == 0)
                from.map[s].bias = hd_parameter(
                    p, &(hd_parameter_options){.name = name, .rank = 1, .dims = {weight[0]}});
        } else {
            from.stream[s].qkv = hd_linear(p, from.stream[s].qkv, &map);
        }
    }
    hd_tensor out[2] = {{0}};
    if (groups) {
        hdi_attention_sliced(p, &from, out);
    } else {
        const hd_tensor joint = hd_joint_qkv(p, SEQUENCES, HEADS, DIM, 0, streams, from.stream);
        const hd_attention_options options = {.heads = HEADS,
                                              .head_dim = DIM,
                                              .tokens = tokens[0] + tokens[1],
                                              .counts = from.counts};
        out[0] = hd_attention(p, joint, &options);
        if (streams > 1) hd_split_rows(p, out[0], SEQUENCES, 2, tokens, out);
    }
    hd_output(p, out[0], "y0");
    if (streams > 1) hd_output(p, out[1], "y1");
    return run(p, out, streams, count);
}

/* Five heads in groups of 5, 3, 2 and 1: the last group is shorter, or not. The BLAS has kernels of its
 * own for a few rows, whose sums have another order, so there are more rows than those take. */
START_TEST(attention_by_groups_of_heads_has_the_bits_of_all_heads)
{
    const hd_dtype dtype = _i % 2 ? HD_DTYPE_BF16 : HD_DTYPE_F32;
    const int streams = 1 + _i / 2 % 2;
    const bool counted = _i >= 4;
    int64_t count, same;
    float *want = run_attention(dtype, streams, 0, counted, &count);
    for (int groups = 1; groups <= 9; groups++) {
        float *seen = run_attention(dtype, streams, groups, counted, &same);
        ck_assert_int_eq(same, count);
        check_same(seen, want, count, dtype, groups);
    }
    free(want);
}
END_TEST

START_TEST(golden_models_in_slices_are_as_near_the_reference_and_the_same_bits)
{
    hdt_mmdit g = hdt_mmdit_open(_i, NULL);
    const int64_t count = g.dims[0] * g.dims[1] * g.dims[2] * g.dims[3];
    const hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_EVALUATE);
    double *wanted = hdt_mmdit_latents(&g, "out64.x"), *seen[4];
    for (int s = 0; s < 4; s++) {
        g.slices = 1 + s;
        hdt_mmdit_run it = hdt_mmdit_start(&g, &stage, false);
        const int blocks = hd_model_layers(g.model);
        ck_assert_int_eq(hdt_count_ops(it.program, "attention_slices"), s ? blocks : 0);
        hdt_assert_ok(hdt_machine_run(it.machine, HDI_PHASE_FORWARD, false));
        seen[s] = hdt_mmdit_prediction(&g, &it);
        hdt_mmdit_stop(&it);
        ck_assert_double_le(hdt_mmdit_distance(seen[s], wanted, count), g.tolerance);
        ck_assert_mem_eq(seen[s], seen[0], (size_t)count * sizeof(double));
    }
    for (int s = 0; s < 4; s++)
        free(seen[s]);
    free(wanted);
    hdt_mmdit_close(&g);
}
END_TEST

START_TEST(training_is_not_sliced)
{
    hdt_mmdit g = hdt_mmdit_open(HDT_HUNYUAN, NULL);
    g.slices = 4;
    const hd_stage stage = hdt_mmdit_stage(&g, HD_PURPOSE_TRAIN);
    hdt_mmdit_run it = hdt_mmdit_start(&g, &stage, false);
    ck_assert_int_eq(hdt_count_ops(it.program, "attention_slices"), 0);
    ck_assert_int_eq(hdt_count_ops(it.program, "mlp_slices"), 0);
    hdt_mmdit_stop(&it);
    hdt_mmdit_close(&g);
}
END_TEST

/* Samplers of the tiny HunyuanVideo on videos whose activations are far more than a block's weights. */
enum { FRAMES = 3, SIDE = 28, ELEMENTS = 4 * FRAMES * SIDE * SIDE, STEPS = 2 };
static hdt_mmdit golden;
static float latents[ELEMENTS];

static void open_golden(void)
{
    golden = hdt_mmdit_open(HDT_HUNYUAN, NULL);
}

static void close_golden(void)
{
    hdt_mmdit_close(&golden);
}

static hd_sampler_options sampling(size_t budget, hd_residency residency, int slices)
{
    return (hd_sampler_options){
        .build = hd_model_build,
        .user = golden.model,
        .layers = hd_model_layers(golden.model),
        .model = hd_model_video(golden.model),
        .shape = {.frames = FRAMES, .height = SIDE, .width = SIDE, .steps = STEPS},
        .texts = &golden.valid,
        .text_lengths = 1,
        .budget = budget,
        .residency = residency,
        .slices = slices};
}

static hd_sampler *plan(size_t budget, hd_residency residency, int slices)
{
    const hd_sampler_options options = sampling(budget, residency, slices);
    hd_sampler *sampler;
    hdt_assert_ok(hd_sampler_create(&options, &sampler));
    return sampler;
}

/* Bytes of denoising. */
static size_t planned(size_t budget, hd_residency residency, int slices)
{
    hd_sampler *sampler = plan(budget, residency, slices);
    const size_t bytes = hd_plan_total_bytes(hd_sampler_plan(sampler, HD_PURPOSE_DENOISE));
    hd_sampler_destroy(sampler);
    return bytes;
}

static int chosen(size_t budget)
{
    hd_sampler *sampler = plan(budget, HD_RESIDENCY_AUTO, 0);
    const int slices = hd_sampler_slices(sampler);
    if (budget)
        ck_assert_uint_le(hd_plan_total_bytes(hd_sampler_plan(sampler, HD_PURPOSE_DENOISE)),
                          budget);
    hd_sampler_destroy(sampler);
    return slices;
}

START_TEST(slices_are_taken_only_when_weights_on_the_host_are_not_enough)
{
    const size_t all = planned(0, HD_RESIDENCY_AUTO, 0), most = planned(0, HD_RESIDENCY_HOST, 1);
    const size_t sliced = planned(0, HD_RESIDENCY_HOST, 2);
    ck_assert_uint_lt(most, all);
    ck_assert_uint_lt(sliced, most);
    ck_assert_int_eq(chosen(0), 1);
    ck_assert_int_eq(chosen(all), 1);
    ck_assert_int_eq(chosen(most), 1);
    ck_assert_int_eq(chosen(most - 1), 2);
    ck_assert_int_eq(chosen(sliced), 2);
    /* Two heads are two groups at most; rather than wait for copies in vain, no slices at all. */
    ck_assert_int_eq(chosen(sliced - 1), 1);
}
END_TEST

START_TEST(a_refusal_names_the_smallest_budget)
{
    hd_sampler_options options = sampling(1, HD_RESIDENCY_AUTO, 0);
    hd_sampler *sampler;
    hdt_assert_status(hd_sampler_create(&options, &sampler), HD_ERROR_BUDGET, "a budget of ");
    const size_t least = strtoull(strstr(hd_last_error(), "a budget of ") + 12, NULL, 10);
    options.budget = least - 1;
    hdt_assert_status(hd_sampler_create(&options, &sampler), HD_ERROR_BUDGET, "would do");
    options.budget = least;
    hdt_assert_ok(hd_sampler_create(&options, &sampler));
    ck_assert_int_gt(hd_sampler_slices(sampler), 1);
    hd_sampler_destroy(sampler);
}
END_TEST

static hd_status keep(void *user, const hd_sampler_event *event)
{
    memcpy(user, event->latents, sizeof latents);
    return HD_OK;
}

/* In latents; returns what of the plan was touched. */
static void sample(size_t budget, int slices)
{
    hd_context *context;
    hd_sampler *sampler = plan(budget, HD_RESIDENCY_AUTO, slices);
    hd_sampler_result result;
    const hd_sampler_text text = {.text = hdt_floats(golden.valid * 24, 5),
                                  .tokens = golden.valid,
                                  .pooled = hdt_floats(12, 6)};
    const hd_sampler_video video = {.seed = 3};
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_sampler_start(
        sampler, context, &(hd_sampler_weights){.path = hdi_weights_path(golden.weights)}));
    hdt_assert_ok(hd_sampler_run(
        sampler, &text, 1, &video, 1,
        &(hd_sampler_run_options){.embedded = 6, .event = keep, .user = latents}, &result));
    const hd_plan *denoise = hd_sampler_plan(sampler, HD_PURPOSE_DENOISE);
    ck_assert_uint_le(result.high_water, hd_plan_arena_bytes(denoise));
    ck_assert_uint_gt(result.high_water + 4096, hd_plan_arena_bytes(denoise));
    if (budget) ck_assert_uint_le(hd_plan_total_bytes(denoise), budget);
    hd_sampler_destroy(sampler);
    hd_context_destroy(context);
}

START_TEST(videos_made_in_slices_are_the_same_bits_in_the_memory_that_was_planned)
{
    static float whole[ELEMENTS];
    sample(0, 1);
    memcpy(whole, latents, sizeof whole);
    for (int i = 0; i < ELEMENTS; i++)
        ck_assert(isfinite(whole[i]));
    for (int slices = 2; slices <= 4; slices++) {
        memset(latents, 0, sizeof latents);
        sample(0, slices);
        ck_assert_mem_eq(latents, whole, sizeof whole);
    }
    sample(planned(0, HD_RESIDENCY_HOST, 1) - 1, 0);
    ck_assert_mem_eq(latents, whole, sizeof whole);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("slices");
    TCase *ops = tcase_create("ops"), *samplers = tcase_create("samplers");
    tcase_add_loop_test(ops, mlp_in_slices_of_rows_has_the_bits_of_all_at_once, 0, 9);
    tcase_add_loop_test(ops, attention_by_groups_of_heads_has_the_bits_of_all_heads, 0, 8);
    tcase_add_loop_test(ops, golden_models_in_slices_are_as_near_the_reference_and_the_same_bits, 0,
                        HDT_MMDITS);
    tcase_add_test(ops, training_is_not_sliced);
    tcase_add_checked_fixture(samplers, open_golden, close_golden);
    tcase_add_checked_fixture(samplers, NULL, hdt_free_held);
    tcase_add_test(samplers, slices_are_taken_only_when_weights_on_the_host_are_not_enough);
    tcase_add_test(samplers, a_refusal_names_the_smallest_budget);
    tcase_add_test(samplers,
                   videos_made_in_slices_are_the_same_bits_in_the_memory_that_was_planned);
    suite_add_tcase(suite, ops);
    suite_add_tcase(suite, samplers);
    return hdt_main(suite);
}
