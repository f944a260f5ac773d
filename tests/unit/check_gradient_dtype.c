/* Gradients of BF16: what kernels make of them, how far they are from fp32's, what they cost, and what
 * is refused. */
#include "backend/backend.h"
#include "core/half.h"
#include "jobs/config.h"
#include "jobs/train/trainer.h"
#include "program/place.h"
#include "runtime/session.h"
#include "tests/support/hdt_train.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ELEMENTS = 10007, MOST_PARTS = 5, LAYERS = 2, MICRO_BATCHES = 8 };

static const hd_backend *const cpu = &hdi_backend_cpu;

static void round_all(const float *x, int64_t count, uint16_t *out)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = hdi_bf16_from_float(x[i]);
}

static void widen_all(const uint16_t *x, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = hdi_bf16_to_float(x[i]);
}

START_TEST(sums_are_made_in_fp32_and_rounded_once)
{
    static float x[MOST_PARTS * ELEMENTS], wide[MOST_PARTS * ELEMENTS], sum[ELEMENTS];
    static uint16_t half[MOST_PARTS * ELEMENTS], got[ELEMENTS], wanted[ELEMENTS];
    hdt_fill(x, MOST_PARTS * ELEMENTS, 1);
    round_all(x, MOST_PARTS * ELEMENTS, half);
    widen_all(half, MOST_PARTS * ELEMENTS, wide);
    for (int parts = 1; parts <= MOST_PARTS; parts++) {
        hdt_assert_ok(cpu->tree_sum(NULL, HD_DTYPE_BF16, half, ELEMENTS, parts, ELEMENTS, got));
        hdt_assert_ok(cpu->tree_sum(NULL, HD_DTYPE_F32, wide, ELEMENTS, parts, ELEMENTS, sum));
        round_all(sum, ELEMENTS, wanted);
        ck_assert_mem_eq(got, wanted, sizeof got);
    }
    round_all(x, ELEMENTS, wanted);
    hdt_assert_ok(cpu->round_sum(NULL, HD_DTYPE_BF16, ELEMENTS, x, false, got));
    ck_assert_mem_eq(got, wanted, sizeof got);
    for (int i = 0; i < ELEMENTS; i++)
        sum[i] = wide[i] + x[ELEMENTS + i];
    round_all(sum, ELEMENTS, wanted);
    hdt_assert_ok(cpu->round_sum(NULL, HD_DTYPE_BF16, ELEMENTS, x + ELEMENTS, true, got));
    ck_assert_mem_eq(got, wanted, sizeof got);
}
END_TEST

START_TEST(norms_and_updates_read_bf16_as_the_fp32_that_it_stands_for)
{
    enum { BLOCKS = (ELEMENTS + HDI_BLOCK_ELEMENTS - 1) / HDI_BLOCK_ELEMENTS };
    static float x[ELEMENTS], wide[ELEMENTS], m[2][ELEMENTS], v[2][ELEMENTS], master[2][ELEMENTS];
    static uint16_t half[ELEMENTS], weights[2][ELEMENTS];
    static int16_t remainder[2][ELEMENTS];
    double squares[2][BLOCKS];
    hdt_fill(x, ELEMENTS, 2);
    round_all(x, ELEMENTS, half);
    widen_all(half, ELEMENTS, wide);
    hdt_assert_ok(cpu->sum_of_squares(NULL, HD_DTYPE_F32, wide, ELEMENTS, squares[0]));
    hdt_assert_ok(cpu->sum_of_squares(NULL, HD_DTYPE_BF16, half, ELEMENTS, squares[1]));
    ck_assert_mem_eq(squares[0], squares[1], sizeof squares[0]);
    const float scalars[] = {0.01F, 0.5F, 0.1F, 0.05F, 1};
    for (int side = 0; side < 2; side++) {
        round_all(x, ELEMENTS, weights[side]);
        widen_all(half, ELEMENTS, master[side]);
        hdt_assert_ok(cpu->adamw(
            NULL, &(hdi_adamw_args){.dtype = HD_DTYPE_BF16,
                                    .elements = ELEMENTS,
                                    .weights = weights[side],
                                    .master = _i ? master[side] : NULL,
                                    .remainder = _i ? NULL : remainder[side],
                                    .m = m[side],
                                    .v = v[side],
                                    .gradient_dtype = side ? HD_DTYPE_BF16 : HD_DTYPE_F32,
                                    .gradient = side ? (const void *)half : (const void *)wide,
                                    .scalars = scalars,
                                    .beta1 = 0.9F,
                                    .beta2 = 0.95F,
                                    .epsilon = 1e-8F,
                                    .weight_decay = 0.1F}));
    }
    ck_assert_mem_eq(weights[0], weights[1], sizeof weights[0]);
    ck_assert_mem_eq(master[0], master[1], sizeof master[0]);
    ck_assert_mem_eq(remainder[0], remainder[1], sizeof remainder[0]);
    ck_assert_mem_eq(m[0], m[1], sizeof m[0]);
    ck_assert_mem_eq(v[0], v[1], sizeof v[0]);
}
END_TEST

typedef struct run {
    hd_model *model;
    hd_context *context;
    hd_trainer *trainer;
} run;

/* Of a family, or of a model's own JSON. */
static hd_status create(const char *model, hd_trainer_options options, run *out)
{
    *out = (run){0};
    if (*model == '{')
        hdt_assert_ok(hd_model_create_json(model, &out->model));
    else
        out->model = hdt_tiny_model(model, LAYERS);
    options.build = hd_model_build;
    options.user = out->model;
    options.layers = hd_model_layers(out->model);
    options.sequences = HDT_SEQUENCES;
    options.tokens = HDT_TOKENS;
    if (!options.dtype) options.dtype = HD_DTYPE_BF16;
    return hd_trainer_create(&options, &out->trainer);
}

static run start(const char *model, hd_trainer_options options)
{
    run it;
    hdt_assert_ok(create(model, options, &it));
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &it.context));
    hdt_assert_ok(hd_trainer_start(it.trainer, it.context, 42));
    return it;
}

static void finish(run *it)
{
    hd_trainer_destroy(it->trainer);
    hd_context_destroy(it->context);
    hd_model_destroy(it->model);
}

static const char *gradients_of(const run *it)
{
    const hd_trainer *trainer = it->trainer;
    return trainer->session->arena + trainer->plan->units[0].base[HD_REGION_GRADIENTS];
}

/* hdt_feed of one micro-batch only. */
typedef struct shifted {
    int64_t step, batch;
} shifted;

static hd_status feed_one(void *user, const char *name, int64_t global_batch, void *out,
                          size_t bytes)
{
    shifted *at = user;
    (void)global_batch;
    return hdt_feed(&at->step, name, at->batch, out, bytes);
}

/* Each micro-batch's sum is rounded once, by at most 2^-8 of itself; its fp32 terms, 48 rows of data,
 * may be summed in another order, which costs 2^-18 of what is largest in a parameter's gradient. In
 * fp32 the weights do not move at a rate of 0, so that one trainer makes all terms. */
START_TEST(a_gradient_is_rounded_once_for_each_micro_batch)
{
    const hd_trainer_options one = {.accumulate = 1},
                             all = {.accumulate = MICRO_BATCHES, .gradients = HD_DTYPE_BF16};
    run terms = start("llama", one), rounded = start("llama", all);
    const hdi_layout *layout = terms.trainer->plan->layout;
    const int64_t elements = layout->gradient_elements;
    double *sum = calloc((size_t)elements, sizeof *sum), *error = calloc((size_t)elements, 8);
    double *size = calloc((size_t)elements, sizeof *size);
    ck_assert(sum && error && size);
    hd_step_result result;
    for (int b = 0; b < MICRO_BATCHES; b++) {
        hdt_assert_ok(hd_trainer_step(terms.trainer, 0, feed_one, &(shifted){0, b}, &result));
        const float *term = (const float *)(const void *)gradients_of(&terms);
        for (int64_t i = 0; i < elements; i++) {
            sum[i] += (double)term[i];
            size[i] += fabs((double)term[i]);
            error[i] += 0x1p-8 * (fabs(sum[i]) + error[i]);
        }
    }
    hdt_assert_ok(hd_trainer_step(rounded.trainer, 0, hdt_feed, &(int64_t){0}, &result));
    const uint16_t *got = (const uint16_t *)(const void *)gradients_of(&rounded);
    ck_assert_int_eq(rounded.trainer->plan->layout->gradient_elements, elements);
    int64_t differ = 0;
    for (int e = 0; e < layout->entry_count; e++) {
        const hdi_entry *entry = &layout->entries[e];
        double largest = 0;
        for (int64_t i = entry->first; i < entry->first + entry->elements; i++)
            largest = fmax(largest, size[i]);
        ck_assert_double_gt(largest, 0);
        for (int64_t i = entry->first; i < entry->first + entry->elements; i++) {
            const double off = fabs((double)hdi_bf16_to_float(got[i]) - sum[i]);
            ck_assert_msg(off <= error[i] + 0x1p-18 * largest, "%s: %g is off by %g, want %g",
                          entry->name, sum[i], off, error[i] + 0x1p-18 * largest);
            differ += off > 0x1p-18 * largest;
        }
    }
    ck_assert_int_gt(differ, 0);
    free(sum);
    free(error);
    free(size);
    finish(&terms);
    finish(&rounded);
}
END_TEST

static const char *const families[] = {"gpt2", "llama"};

START_TEST(gradients_take_half_the_bytes)
{
    run wide, half;
    hdt_assert_ok(create(families[_i], (hd_trainer_options){0}, &wide));
    hdt_assert_ok(create(families[_i], (hd_trainer_options){.gradients = HD_DTYPE_BF16}, &half));
    const size_t elements = (size_t)wide.trainer->plan->layout->gradient_elements;
    ck_assert_uint_ge(elements, (size_t)hd_model_parameters(wide.model));
    ck_assert_uint_eq(hd_plan_region_bytes(hd_trainer_plan(wide.trainer), HD_REGION_GRADIENTS),
                      hdi_place_round(4 * elements));
    ck_assert_uint_eq(hd_plan_region_bytes(hd_trainer_plan(half.trainer), HD_REGION_GRADIENTS),
                      hdi_place_round(2 * elements));
    ck_assert_uint_lt(hd_plan_arena_bytes(hd_trainer_plan(half.trainer)),
                      hd_plan_arena_bytes(hd_trainer_plan(wide.trainer)));
    const hd_program *program = half.trainer->shapes[0].train[0].program;
    int products = 0;
    for (int i = 0; i < program->op_count; i++) {
        const hd_op *op = &program->ops[i]->op;
        if (strcmp(op->kind->name, "linear_weight_gradient") != 0) continue;
        ck_assert_int_eq(op->out_info[0]->role, HD_ROLE_GRADIENT); /* without an fp32 copy */
        products++;
    }
    ck_assert_int_gt(products, 0);
    finish(&wide);
    finish(&half);
}
END_TEST

/* Sums over data ranks travel as what they are. */
START_TEST(collectives_move_half_the_bytes)
{
    double moved[2] = {0};
    for (int side = 0; side < 2; side++) {
        hd_mesh *mesh;
        run it;
        hdt_assert_ok(hd_mesh_create_fake(1, 4, &(hd_mesh_options){.data = 4}, &mesh));
        hdt_assert_ok(create("llama",
                             (hd_trainer_options){.mesh = mesh,
                                                  .shard_state = true,
                                                  .gradients = side ? HD_DTYPE_BF16 : HD_DTYPE_F32},
                             &it));
        const hd_program *program = it.trainer->shapes[0].train[0].program;
        for (int i = 0; i < program->op_count; i++)
            if (program->ops[i]->op.kind->flags & HD_OP_COMMUNICATES)
                moved[side] += (double)(program->ops[i]->op.in_info[0]->bytes +
                                        program->ops[i]->op.out_info[0]->bytes);
        finish(&it);
        hd_mesh_destroy(mesh);
    }
    ck_assert_double_gt(moved[0], 0);
    ck_assert_double_eq(moved[1], moved[0] / 2);
}
END_TEST

typedef struct gathered {
    hd_trainer *trainer;
    float *values;
    int64_t count, most;
} gathered;

static hd_status gather(void *user, const hdi_trainer_part *part)
{
    gathered *all = user;
    ck_assert_int_le(all->count + part->count, all->most);
    hdt_assert_ok(hdi_trainer_read(all->trainer, part, 0, part->count, all->values + all->count));
    all->count += part->count;
    return HD_OK;
}

static gathered values_of(const run *it)
{
    gathered all = {.trainer = it->trainer, .most = hd_model_parameters(it->model)};
    all.values = calloc((size_t)all.most, sizeof(float));
    ck_assert_ptr_nonnull(all.values);
    hdt_assert_ok(hdi_trainer_saved_parts(it->trainer, gather, &all));
    ck_assert_int_eq(all.count, all.most);
    return all;
}

static hd_status negate(void *user, const hdi_trainer_part *part)
{
    gathered *all = user;
    float *values = all->values + all->count;
    for (int64_t i = 0; i < part->count; i++)
        values[i] = -values[i];
    all->count += part->count;
    return hdi_trainer_write(all->trainer, part->entry, part->begin, part->count, values);
}

/* Nearly all of it is one embedding, twice as large as what passes at a time. */
static const char embedding_model[] =
    "{\"model_type\":\"gpt2\",\"vocab_size\":5000,\"n_positions\":24,\"n_embd\":16,"
    "\"n_layer\":1,\"n_head\":1}";

static const hd_master masters[] = {HD_MASTER_F32, HD_MASTER_REMAINDER};

/* All values pass through the bytes of gradients, which hold half of them. */
START_TEST(values_pass_through_fewer_bytes_than_they_have)
{
    run wide = start(embedding_model, (hd_trainer_options){.master = masters[_i]});
    run half = start(
        embedding_model,
        (hd_trainer_options){.master = masters[_i], .ema_decay = 0.5F, .gradients = HD_DTYPE_BF16});
    gathered wanted = values_of(&wide), got = values_of(&half);
    ck_assert_mem_eq(got.values, wanted.values, (size_t)wanted.count * sizeof(float));
    got.count = 0;
    hdt_assert_ok(hdi_trainer_loaded_parts(half.trainer, negate, &got));
    gathered written = values_of(&half);
    for (int64_t i = 0; i < wanted.count; i++)
        ck_assert_float_eq(written.values[i], -wanted.values[i]);
    free(wanted.values);
    free(got.values);
    free(written.values);
    finish(&wide);
    finish(&half);
}
END_TEST

START_TEST(what_cannot_be_is_refused)
{
    run it;
    const hd_trainer_options exact = {.gradients = HD_DTYPE_BF16, .exact = true};
    hdt_assert_status(create("gpt2", exact, &it), HD_ERROR_UNSUPPORTED,
                      "reduction exact with gradients of BF16");
    finish(&it);
    const hd_dtype dtypes[] = {HD_DTYPE_F32, HD_DTYPE_F16};
    for (int i = 0; i < 2; i++) {
        const hd_trainer_options other = {.gradients = HD_DTYPE_BF16, .dtype = dtypes[i]};
        char text[80];
        snprintf(text, sizeof text, "want weights of BF16, seen %s", hd_dtype_name(dtypes[i]));
        hdt_assert_status(create("gpt2", other, &it), HD_ERROR_UNSUPPORTED, text);
        finish(&it);
    }
    hdt_assert_status(create("gpt2", (hd_trainer_options){.gradients = HD_DTYPE_F16}, &it),
                      HD_ERROR_ARGUMENT, "gradients are F16, want F32 or BF16");
    finish(&it);
    hd_program *program;
    hdt_assert_status(
        hd_program_create(
            &(hd_program_options){.name = "p", .training = true, .gradients = HD_DTYPE_BF16},
            &program),
        HD_ERROR_UNSUPPORTED, "gradients are BF16, want F32, or BF16 for a dtype");
}
END_TEST

START_TEST(settings_that_cannot_be_are_refused_by_name)
{
    static const char *const settings[][2][2] = {
        {{"train.dtype", "f16"}, {"layout.reduction", "fast"}},
        {{"train.dtype", "bf16"}, {"layout.reduction", "exact"}},
    };
    static const char *const fragments[] = {
        "train.gradients: seen bf16 with train.dtype f16",
        "train.gradients: seen bf16 with layout.reduction exact"};
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    const char *const model[] = {"model.layers", "model.hidden", "model.heads"};
    for (int k = 0; k < 3; k++)
        hdt_assert_ok(hd_config_set(config, model[k], "2"));
    hdt_assert_ok(hd_config_set(config, "train.gradients", "bf16"));
    for (int k = 0; k < 2; k++)
        hdt_assert_ok(hd_config_set(config, settings[_i][k][0], settings[_i][k][1]));
    hdt_assert_status(hd_plan_run(config, 1, NULL, false, NULL, NULL), HD_ERROR_CONFIG,
                      fragments[_i]);
    hd_config_destroy(config);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gradient_dtype");
    TCase *tests = tcase_create("bf16");
    tcase_add_test(tests, sums_are_made_in_fp32_and_rounded_once);
    tcase_add_loop_test(tests, norms_and_updates_read_bf16_as_the_fp32_that_it_stands_for, 0, 2);
    tcase_add_test(tests, a_gradient_is_rounded_once_for_each_micro_batch);
    tcase_add_loop_test(tests, gradients_take_half_the_bytes, 0, 2);
    tcase_add_test(tests, collectives_move_half_the_bytes);
    tcase_add_loop_test(tests, values_pass_through_fewer_bytes_than_they_have, 0, 2);
    tcase_add_test(tests, what_cannot_be_is_refused);
    tcase_add_loop_test(tests, settings_that_cannot_be_are_refused_by_name, 0, 2);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
