/* ranks: 1 2 4, at most 4 */
/* Generation: the same texts on every layout, nothing allocated, and plain words for what cannot be
 * generated. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#include "core/error.h"
#include "core/memory.h"
#include "jobs/generate/generator.h"
#include "tests/support/hdt_generate.h"

enum { LAYERS = 4, TOKENS = 7, PROMPTS = 5, CAPACITY = 22 };
static const char *const families[] = {"gpt2", "llama"};

/* The tiny model with first values so large that its texts do not just repeat a token. */
static hd_model *lively_model(const char *family, int layers)
{
    hd_model *model = hdt_tiny_model(family, layers);
    json_t *config = json_loads(hd_model_config_json(model), 0, NULL);
    hd_model_destroy(model);
    json_object_set_new(config, "initializer_range", json_real(0.25));
    char *text = json_dumps(config, 0);
    hdt_assert_ok(hd_model_create_json(text, &model));
    free(text);
    json_decref(config);
    return model;
}

static int32_t prompt_tokens[PROMPTS][CAPACITY];
static hd_prompt prompts[PROMPTS];

/* Prompts of different lengths, the first longer than the chunks of most tests. */
static void make_prompts(void)
{
    const int64_t lengths[PROMPTS] = {13, 1, 15, 4, 8};
    for (int p = 0; p < PROMPTS; p++) {
        for (int i = 0; i < CAPACITY; i++)
            prompt_tokens[p][i] = (p * 31 + i * i * 7 + 5) % HDT_VOCAB;
        prompts[p] = (hd_prompt){prompt_tokens[p], lengths[p]};
    }
}

static hd_status generate(hd_comm *comm, const hdt_generating *with,
                          const hd_sampling_options *sampling, int32_t *out)
{
    hdt_generator it;
    hd_status status = hdt_open_generator(comm, with, &it);
    memset(out, 0, PROMPTS * TOKENS * sizeof *out);
    if (status == HD_OK)
        status = hd_generator_run(it.generator, prompts, PROMPTS, TOKENS, sampling, out, NULL);
    hdt_close_generator(&it);
    return status;
}

static hd_status generate_alone(const hdt_generating *with, const hd_sampling_options *sampling,
                                int32_t *out)
{
    hd_comm *self = hdt_open_self();
    hd_status status = generate(self, with, sampling, out);
    hd_comm_destroy(self);
    return status;
}

enum { MOST_LAYOUTS = 5 };

/* Layouts of this many ranks; those that split layers, whose sums round otherwise, if asked for. */
static int list_layouts(bool split, hd_mesh_options out[MOST_LAYOUTS])
{
    int count = 0;
    const int ranks = hd_comm_size(hdt_world);
    for (int pipeline = 1; pipeline <= ranks; pipeline *= 2)
        out[count++] = (hd_mesh_options){.data = ranks / pipeline, .pipeline = pipeline};
    for (int pipeline = 1; split && pipeline <= ranks / 2; pipeline *= 2)
        out[count++] =
            (hd_mesh_options){.data = ranks / 2 / pipeline, .pipeline = pipeline, .tensor = 2};
    return count;
}

static const hd_sampling_options ways[] = {{0}, {.temperature = 1.5, .top_k = 20, .seed = 9}};

START_TEST(texts_are_equal_on_every_layout)
{
    const hd_sampling_options *sampling = &ways[_i % 2];
    int32_t one[PROMPTS * TOKENS], got[PROMPTS * TOKENS];
    hd_mesh_options layouts[MOST_LAYOUTS];
    make_prompts();
    hdt_generating with = {
        .model = lively_model(families[_i / 2], LAYERS), .capacity = CAPACITY, .prefill = 5};
    hdt_assert_ok(generate_alone(&with, sampling, one));
    int distinct = 0;
    for (int i = 1; i < PROMPTS * TOKENS; i++)
        distinct += one[i] != one[i - 1];
    ck_assert_int_gt(distinct, PROMPTS);
    const int count = list_layouts(true, layouts);
    for (int l = 0; l < count; l++) {
        for (int slots = 0; slots < 4; slots++) { /* 0: the default */
            with.mesh = layouts[l];
            with.slots = slots;
            hdt_assert_ok(generate(hdt_world, &with, sampling, got));
            ck_assert_msg(memcmp(got, one, sizeof one) == 0,
                          "data %d x pipeline %d x tensor %d, %d slots: other texts",
                          layouts[l].data, layouts[l].pipeline, layouts[l].tensor, slots);
        }
    }
    hd_model_destroy(with.model);
}
END_TEST

/* Logits of the first prompt on one rank; *planned are the bytes of weights. */
static void first_logits(hd_model *model, hd_dtype dtype, float *logits, size_t *planned)
{
    int32_t token;
    hdt_generator it;
    hd_comm *self = hdt_open_self();
    hdt_assert_ok(hdt_open_generator(
        self, &(hdt_generating){.model = model, .capacity = CAPACITY, .dtype = dtype}, &it));
    hdt_assert_ok(hd_generator_run(it.generator, prompts, 1, 1, &ways[0], &token, NULL));
    memcpy(logits, it.generator->logits, HDT_VOCAB * sizeof *logits);
    *planned = hd_plan_region_bytes(hd_generator_plan(it.generator), HD_REGION_WEIGHTS);
    hdt_close_generator(&it);
    hd_comm_destroy(self);
}

static const hd_dtype halves[] = {HD_DTYPE_BF16, HD_DTYPE_F16};

/* A layer rounds its stream and what it adds to it about ten times, each time by a half of the last
 * bit; logits may be off by that share of the largest. */
START_TEST(sixteen_bits_are_those_of_every_layout_and_near_fp32)
{
    const hd_dtype dtype = halves[_i % 2];
    const double roundings = 10 * LAYERS + 4, last_bit = dtype == HD_DTYPE_BF16 ? 0x1p-8 : 0x1p-11;
    int32_t one[PROMPTS * TOKENS], got[PROMPTS * TOKENS];
    float wide[HDT_VOCAB], half[HDT_VOCAB];
    size_t wide_bytes, half_bytes;
    hd_mesh_options layouts[MOST_LAYOUTS];
    make_prompts();
    hdt_generating with = {.model = lively_model(families[_i / 2], LAYERS),
                           .capacity = CAPACITY,
                           .prefill = 5,
                           .dtype = dtype};
    first_logits(with.model, HD_DTYPE_F32, wide, &wide_bytes);
    first_logits(with.model, dtype, half, &half_bytes);
    ck_assert_uint_le(half_bytes, wide_bytes / 2 + 256);
    double largest = 0, off = 0;
    for (int i = 0; i < HDT_VOCAB; i++) {
        largest = fmax(largest, fabs((double)wide[i]));
        off = fmax(off, fabs((double)half[i] - (double)wide[i]));
    }
    ck_assert_double_gt(off, 0);
    ck_assert_double_le(off, roundings * last_bit * largest);
    hdt_assert_ok(generate_alone(&with, &ways[1], one));
    const int count = list_layouts(false, layouts);
    for (int l = 0; l < count; l++) {
        with.mesh = layouts[l];
        hdt_assert_ok(generate(hdt_world, &with, &ways[1], got));
        ck_assert_mem_eq(got, one, sizeof one);
    }
    hd_model_destroy(with.model);
}
END_TEST

START_TEST(a_dtype_without_logits_is_refused)
{
    hdt_generator it;
    const hdt_generating with = {.model = lively_model("gpt2", LAYERS),
                                 .capacity = CAPACITY,
                                 .dtype = HD_DTYPE_I32,
                                 .mesh = {.pipeline = hd_comm_size(hdt_world)}};
    hdt_assert_status(hdt_open_generator(hdt_world, &with, &it), HD_ERROR_ARGUMENT,
                      "generator: dtype is I32, want F32, BF16 or F16");
    hdt_close_generator(&it);
    hd_model_destroy(with.model);
}
END_TEST

START_TEST(chunks_of_prompts_do_not_change_greedy_texts)
{
    const int64_t chunks[] = {1, 3, 32};
    int32_t one[PROMPTS * TOKENS], got[PROMPTS * TOKENS];
    make_prompts();
    hdt_generating with = {.model = lively_model(families[_i], LAYERS),
                           .capacity = CAPACITY,
                           .prefill = CAPACITY,
                           .mesh = {.pipeline = hd_comm_size(hdt_world)}};
    hdt_assert_ok(generate(hdt_world, &with, &ways[0], one));
    for (int c = 0; c < 3; c++) {
        with.prefill = chunks[c];
        hdt_assert_ok(generate(hdt_world, &with, &ways[0], got));
        ck_assert_mem_eq(got, one, sizeof one);
    }
    hd_model_destroy(with.model);
}
END_TEST

START_TEST(what_is_generated_is_a_function_of_seed_and_prompt_number)
{
    int32_t one[PROMPTS * TOKENS], got[PROMPTS * TOKENS];
    make_prompts();
    prompts[3] = prompts[1]; /* equal prompts, different numbers */
    hd_sampling_options sampling = {.temperature = 1, .seed = 1};
    hdt_generating with = {.model = lively_model("gpt2", LAYERS),
                           .capacity = CAPACITY,
                           .mesh = {.data = hd_comm_size(hdt_world)}};
    hdt_assert_ok(generate(hdt_world, &with, &sampling, one));
    ck_assert_mem_ne(one + (ptrdiff_t)1 * TOKENS, one + (ptrdiff_t)3 * TOKENS,
                     TOKENS * sizeof *one);
    sampling.seed = 2;
    hdt_assert_ok(generate(hdt_world, &with, &sampling, got));
    ck_assert_mem_ne(got, one, sizeof one);
    hd_model_destroy(with.model);
}
END_TEST

START_TEST(texts_end_at_the_end_token)
{
    int32_t whole[PROMPTS * TOKENS], cut[PROMPTS * TOKENS];
    make_prompts();
    hd_sampling_options sampling = {.temperature = 1, .seed = 4};
    hdt_generating with = {.model = lively_model("llama", LAYERS),
                           .capacity = CAPACITY,
                           .mesh = {.pipeline = hd_comm_size(hdt_world)}};
    hdt_assert_ok(generate(hdt_world, &with, &sampling, whole));
    sampling.stop = true;
    sampling.end = whole[2 * TOKENS + 3];
    hdt_assert_ok(generate(hdt_world, &with, &sampling, cut));
    for (int p = 0; p < PROMPTS; p++) {
        bool ended = false;
        for (int i = 0; i < TOKENS; i++) {
            const int at = p * TOKENS + i;
            ck_assert_int_eq(cut[at], ended ? sampling.end : whole[at]);
            ended = ended || whole[at] == sampling.end;
        }
    }
    hd_model_destroy(with.model);
}
END_TEST

START_TEST(runs_allocate_nothing_and_stay_in_the_plan)
{
    int32_t out[PROMPTS * TOKENS];
    make_prompts();
    const hdt_generating with = {.model = lively_model("llama", LAYERS),
                                 .capacity = CAPACITY,
                                 .prefill = 4,
                                 .mesh = {.pipeline = hd_comm_size(hdt_world)}};
    hdt_generator it;
    hd_generator_result result = {0};
    hd_status status = hdt_open_generator(hdt_world, &with, &it);
    uint64_t before = hdi_alloc_count(), after = before;
    if (status == HD_OK)
        status = hd_generator_run(it.generator, prompts, PROMPTS, TOKENS, &ways[1], out, &result);
    after = hdi_alloc_count();
    hdt_assert_ok(status);
    ck_assert_uint_eq(after, before);
    ck_assert_uint_gt(hd_session_high_water(hd_generator_session(it.generator)), 0);
    ck_assert_uint_le(hd_session_high_water(hd_generator_session(it.generator)),
                      hd_plan_arena_bytes(hd_generator_plan(it.generator)));
    ck_assert_int_eq(result.tokens, PROMPTS * TOKENS);
    ck_assert_double_gt(result.busy_seconds, 0);
    ck_assert_double_le(result.busy_seconds, result.seconds);
    hdt_close_generator(&it);
    hd_model_destroy(with.model);
}
END_TEST

START_TEST(small_budgets_hold_fewer_sequences_and_give_the_same_texts)
{
    int32_t one[PROMPTS * TOKENS], got[PROMPTS * TOKENS];
    make_prompts();
    hdt_generating with = {.model = lively_model("gpt2", LAYERS),
                           .capacity = CAPACITY,
                           .prefill = 4,
                           .slots = 1,
                           .mesh = {.pipeline = hd_comm_size(hdt_world)}};
    hdt_generator it;
    hdt_assert_ok(generate(hdt_world, &with, &ways[1], one));
    hdt_assert_ok(hdt_open_generator(hdt_world, &with, &it));
    size_t one_slot = hd_plan_total_bytes(hd_generator_plan(it.generator));
    hdt_close_generator(&it);

    int64_t most = (int64_t)one_slot; /* of all stages */
    hd_request request;
    hdt_assert_ok(hdt_finish(
        hdt_world, hd_comm_all_reduce(hdt_world, &most, 1, HD_DTYPE_I64, HD_REDUCE_MAX, &request),
        &request));
    with.slots = 8;
    with.budget = (size_t)most;
    hdt_assert_ok(hdt_open_generator(hdt_world, &with, &it));
    ck_assert_int_eq(hd_generator_slots(it.generator), 1);
    hdt_close_generator(&it);
    hdt_assert_ok(generate(hdt_world, &with, &ways[1], got));
    ck_assert_mem_eq(got, one, sizeof one);

    with.budget = one_slot - 1;
    hd_generator *generator = NULL;
    hd_mesh *mesh = NULL;
    hdt_assert_ok(
        hd_mesh_create_fake(hd_comm_rank(hdt_world), hd_comm_size(hdt_world), &with.mesh, &mesh));
    hdt_assert_status(hd_generator_create(&(hd_generator_options){.build = hd_model_build,
                                                                  .user = with.model,
                                                                  .layers = LAYERS,
                                                                  .mesh = mesh,
                                                                  .capacity = CAPACITY,
                                                                  .prefill = 4,
                                                                  .budget = with.budget},
                                          &generator),
                      HD_ERROR_BUDGET, "one sequence of 22 tokens");
    hd_mesh_destroy(mesh);
    hd_model_destroy(with.model);
}
END_TEST

START_TEST(prompts_that_cannot_be_generated_from_are_told)
{
    int32_t out[PROMPTS * TOKENS], bad[] = {0, HDT_VOCAB};
    make_prompts();
    const hdt_generating with = {.model = lively_model("gpt2", LAYERS),
                                 .capacity = CAPACITY,
                                 .mesh = {.pipeline = hd_comm_size(hdt_world)}};
    hdt_generator it;
    hdt_assert_ok(hdt_open_generator(hdt_world, &with, &it));
    const hd_prompt too_long = {prompt_tokens[0], CAPACITY - TOKENS + 1}, empty = {bad, 0},
                    unknown = {bad, 2};
    const hd_prompt *wrong[] = {&too_long, &empty, &unknown};
    const char *texts[] = {"prompt 2: 16 tokens and 7 to generate exceed the capacity of 22",
                           "prompt 2 is empty", "prompt 2: token 1 is 97, want 0..96"};
    for (int i = 0; i < 3; i++) {
        make_prompts();
        prompts[2] = *wrong[i];
        hdt_assert_status(
            hd_generator_run(it.generator, prompts, PROMPTS, TOKENS, &ways[0], out, NULL),
            HD_ERROR_ARGUMENT, texts[i]);
    }
    make_prompts();
    const hd_sampling_options cold = {.temperature = -1};
    hdt_assert_status(hd_generator_run(it.generator, prompts, PROMPTS, TOKENS, &cold, out, NULL),
                      HD_ERROR_ARGUMENT, "temperature -1");
    /* After all that it still works. */
    hdt_assert_ok(hd_generator_run(it.generator, prompts, PROMPTS, TOKENS, &ways[0], out, NULL));
    hdt_close_generator(&it);
    hd_model_destroy(with.model);
}
END_TEST

START_TEST(ranks_that_want_different_texts_all_stop)
{
    int32_t out[PROMPTS * TOKENS];
    make_prompts();
    const hdt_generating with = {.model = lively_model("gpt2", LAYERS),
                                 .capacity = CAPACITY,
                                 .mesh = {.pipeline = hd_comm_size(hdt_world)}};
    hdt_generator it;
    hdt_assert_ok(hdt_open_generator(hdt_world, &with, &it));
    const hd_sampling_options sampling = {.temperature = 1,
                                          .seed = (uint64_t)hd_comm_rank(hdt_world)};
    hd_status status =
        hd_generator_run(it.generator, prompts, PROMPTS, TOKENS, &sampling, out, NULL);
    if (hd_comm_size(hdt_world) == 1)
        hdt_assert_ok(status);
    else
        hdt_assert_status(status, HD_ERROR_MISMATCH, "what to generate");
    hdt_close_generator(&it);
    hd_model_destroy(with.model);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *texts = tcase_create("texts");
    tcase_add_loop_test(texts, texts_are_equal_on_every_layout, 0, 4);
    tcase_add_loop_test(texts, sixteen_bits_are_those_of_every_layout_and_near_fp32, 0, 4);
    tcase_add_test(texts, a_dtype_without_logits_is_refused);
    tcase_add_loop_test(texts, chunks_of_prompts_do_not_change_greedy_texts, 0, 2);
    tcase_add_test(texts, what_is_generated_is_a_function_of_seed_and_prompt_number);
    tcase_add_test(texts, texts_end_at_the_end_token);
    TCase *plans = tcase_create("plans");
    tcase_add_test(plans, runs_allocate_nothing_and_stay_in_the_plan);
    tcase_add_test(plans, small_budgets_hold_fewer_sequences_and_give_the_same_texts);
    TCase *errors = tcase_create("errors");
    tcase_add_test(errors, prompts_that_cannot_be_generated_from_are_told);
    tcase_add_test(errors, ranks_that_want_different_texts_all_stop);
    return hdt_main_ranks(argc, argv, "generation", texts, plans, errors);
}
