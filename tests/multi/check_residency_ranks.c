/* ranks: 1 2 4 */
/* Weights on the host in whole jobs: texts and videos of the same bits as with resident weights, on every
 * stage of a pipeline, within budgets that hold no resident weights. */
#include <stdlib.h>

#include "core/error.h"
#include "core/memory.h"
#include "program/plan.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_generate.h"
#include "tests/support/hdt_mmdit.h"
#include "tests/support/hdt_video.h"

enum { VIDEOS = 3, PROMPTS = 3, TOKENS = 6, LAYERS = 8, CAPACITY = 20, STEPS = 3 };

/* The largest of all ranks. */
static size_t most(size_t value)
{
    int64_t all = (int64_t)value;
    hd_request request;
    hdt_assert_ok(hdt_finish(
        hdt_world, hd_comm_all_reduce(hdt_world, &all, 1, HD_DTYPE_I64, HD_REDUCE_MAX, &request),
        &request));
    return (size_t)all;
}

START_TEST(videos_have_the_same_bits)
{
    float resident[VIDEOS * HDT_VIDEO_ELEMENTS], got[VIDEOS * HDT_VIDEO_ELEMENTS];
    hd_sampler_video videos[VIDEOS];
    for (int v = 0; v < VIDEOS; v++) /* texts of both lengths: two programs in turn */
        videos[v] = (hd_sampler_video){.text = {v % 2, 3, 2}, .seed = 5, .number = (uint64_t)v};
    hdt_sampling with = {.run = {.shift = 3, .branches = 2, .guidance = 4},
                         .videos = videos,
                         .count = VIDEOS,
                         .dtype = _i ? HD_DTYPE_BF16 : HD_DTYPE_F32,
                         .mesh = hdt_deepest(hdt_world, HDT_VIDEO_LAYERS)};
    hdt_assert_ok(hdt_sample(hdt_world, &with, resident, NULL));
    with.residency = HD_RESIDENCY_HOST;
    for (with.host_blocks = 0; with.host_blocks <= HDT_VIDEO_LAYERS; with.host_blocks++) {
        hdt_assert_ok(hdt_sample(hdt_world, &with, got, NULL));
        ck_assert_msg(memcmp(got, resident, sizeof got) == 0, "%d host blocks: other bits",
                      with.host_blocks);
    }
}
END_TEST

/* A sampling with golden weights. */
typedef struct sampling {
    hdt_mmdit file;
    float *text, *seen; /* seen: [elements], on the ends of the pipeline */
    int64_t elements;
    hd_residency residency;
    int host_blocks;
    size_t budget;
    size_t planned, streamed, high_water; /* of denoising, on this rank */
    int blocks_on_host;
} sampling;

static hd_status keep_last(void *user, const hd_sampler_event *event)
{
    sampling *it = user;
    if (event->step == event->steps)
        memcpy(it->seen, event->latents, (size_t)it->elements * sizeof *it->seen);
    return HD_OK;
}

static hd_status run_sampler(sampling *it, hd_sampler *sampler, hd_context *context)
{
    const hd_sampler_text text = {.text = it->text, .tokens = it->file.valid};
    const hd_sampler_video video = {.seed = 2};
    const hd_sampler_run_options run = {.embedded = 6, .event = keep_last, .user = it};
    hd_sampler_result result = {0};
    HD_RETURN_IF_ERROR(hd_sampler_start(
        sampler, context, &(hd_sampler_weights){.path = hdi_weights_path(it->file.weights)}));
    HD_RETURN_IF_ERROR(hd_sampler_run(sampler, &text, 1, &video, 1, &run, &result));
    const hd_plan *plan = hd_sampler_plan(sampler, HD_PURPOSE_DENOISE);
    it->planned = hd_plan_total_bytes(plan);
    it->streamed = hd_plan_region_bytes(plan, HD_REGION_STREAMED);
    it->high_water = result.high_water;
    it->blocks_on_host = plan->residency.host_blocks;
    return HD_OK;
}

static hd_status sample(sampling *it)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_sampler *sampler = NULL;
    const int64_t *dims = it->file.dims;
    const hd_mesh_options layout = hdt_deepest(hdt_world, (int)hd_model_layers(it->file.model));
    hd_status status = hdt_open_place(hdt_world, &layout, &mesh, &context);
    if (status == HD_OK)
        status = hd_sampler_create(
            &(hd_sampler_options){
                .build = hd_model_build,
                .user = it->file.model,
                .layers = hd_model_layers(it->file.model),
                .model = hd_model_video(it->file.model),
                .mesh = mesh,
                .backend = hd_context_backend(context),
                .shape = {.frames = dims[1], .height = dims[2], .width = dims[3], .steps = STEPS},
                .texts = &it->file.valid,
                .text_lengths = 1,
                .residency = it->residency,
                .host_blocks = it->host_blocks,
                .budget = it->budget},
            &sampler);
    if (status == HD_OK) status = run_sampler(it, sampler, context);
    hd_sampler_destroy(sampler);
    hdt_close_place(mesh, context);
    return status;
}

static sampling open_sampling(void)
{
    sampling it = {.file = hdt_mmdit_open(HDT_HUNYUAN, NULL)};
    const int64_t *dims = it.file.dims,
                  words = it.file.valid * hd_model_video(it.file.model)->text_columns;
    it.elements = dims[0] * dims[1] * dims[2] * dims[3];
    it.text = calloc((size_t)words, sizeof *it.text);
    it.seen = calloc((size_t)it.elements, sizeof *it.seen);
    hdt_fill(it.text, words, 4);
    return it;
}

static void close_sampling(sampling *it)
{
    free(it->text);
    free(it->seen);
    hdt_mmdit_close(&it->file);
}

START_TEST(videos_of_an_mmdit_have_the_same_bits)
{
    sampling it = open_sampling();
    const size_t bytes = (size_t)it.elements * sizeof *it.seen;
    float *resident = malloc(bytes);
    hdt_assert_ok(sample(&it));
    memcpy(resident, it.seen, bytes);
    ck_assert_uint_eq(it.streamed, 0);
    it.residency = HD_RESIDENCY_HOST;
    for (it.host_blocks = 0; it.host_blocks < 3; it.host_blocks++) { /* all, one, two */
        memset(it.seen, 0, bytes);
        const hd_status status = sample(&it);
        const int rank = hd_comm_rank(hdt_world), last = hd_comm_size(hdt_world) - 1;
        hdt_assert_ok(status);
        ck_assert_uint_gt(it.streamed, 0);
        ck_assert_uint_le(it.high_water, it.planned);
        if (rank == 0 || rank == last) ck_assert_mem_eq(it.seen, resident, bytes);
    }
    free(resident);
    close_sampling(&it);
}
END_TEST

START_TEST(budgets_of_samplers_are_kept)
{
    sampling it = open_sampling();
    const size_t bytes = (size_t)it.elements * sizeof *it.seen;
    float *resident = malloc(bytes);
    hdt_assert_ok(sample(&it));
    memcpy(resident, it.seen, bytes);
    const size_t whole = most(it.planned);
    it.residency = HD_RESIDENCY_HOST;
    hdt_assert_ok(sample(&it));
    const size_t least = most(it.planned);
    it.residency = HD_RESIDENCY_AUTO;
    const size_t budgets[] = {whole, (whole + least) / 2, least};
    int fewest = 0;
    for (int b = 0; b < 3; b++) {
        it.budget = budgets[b];
        const hd_status status = sample(&it);
        const int rank = hd_comm_rank(hdt_world), last = hd_comm_size(hdt_world) - 1;
        hdt_assert_ok(status);
        ck_assert_uint_le(it.planned, it.budget);
        ck_assert_uint_le(it.high_water, it.budget);
        ck_assert_int_ge(it.blocks_on_host, fewest);
        fewest = it.blocks_on_host;
        if (b == 0) ck_assert_int_eq(fewest, 0);
        if (rank == 0 || rank == last) ck_assert_mem_eq(it.seen, resident, bytes);
    }
    free(resident);
    close_sampling(&it);
}
END_TEST

static hd_prompt prompts[PROMPTS];
static void make_prompts(void)
{
    static int32_t tokens[PROMPTS][CAPACITY];
    for (int p = 0; p < PROMPTS; p++) {
        for (int i = 0; i < CAPACITY; i++)
            tokens[p][i] = (p * 31 + i * i * 7 + 5) % HDT_VOCAB;
        prompts[p] = (hd_prompt){tokens[p], 5 + 4 * p};
    }
}

/* What a generator planned, and its texts. */
typedef struct generated {
    int32_t out[PROMPTS * TOKENS];
    size_t planned, high_water;
    uint64_t allocations; /* of the run */
    int blocks_on_host;
} generated;

static hd_status generate(const hdt_generating *with, generated *got)
{
    hdt_generator it;
    const hd_sampling_options by = {.temperature = 1.5, .top_k = 20, .seed = 9};
    *got = (generated){0};
    hd_status status = hdt_open_generator(hdt_world, with, &it);
    const uint64_t before = hdi_alloc_count();
    if (status == HD_OK)
        status = hd_generator_run(it.generator, prompts, PROMPTS, TOKENS, &by, got->out, NULL);
    got->allocations = hdi_alloc_count() - before;
    if (status == HD_OK) {
        const hd_plan *plan = hd_generator_plan(it.generator);
        got->planned = hd_plan_total_bytes(plan);
        got->high_water = hd_session_high_water(hd_generator_session(it.generator));
        got->blocks_on_host = plan->residency.host_blocks;
    }
    hdt_close_generator(&it);
    return status;
}

START_TEST(texts_are_equal_within_any_budget)
{
    static const char *const families[] = {"gpt2", "llama"};
    generated resident, got;
    make_prompts();
    hdt_generating with = {.model = hdt_tiny_model(families[_i], LAYERS),
                           .capacity = CAPACITY,
                           .prefill = 4,
                           .slots = 1,
                           .mesh = hdt_deepest(hdt_world, LAYERS)};
    hdt_assert_ok(generate(&with, &resident));
    const size_t whole = most(resident.planned);
    with.residency = HD_RESIDENCY_HOST;
    with.host_blocks = 1;
    hdt_assert_ok(generate(&with, &got));
    ck_assert_mem_eq(got.out, resident.out, sizeof got.out);
    with.host_blocks = 0;
    hdt_assert_ok(generate(&with, &got));
    ck_assert_mem_eq(got.out, resident.out, sizeof got.out);
    /* A GPU keeps what it learns about a matrix product when it first meets it. */
    if (strcmp(hdt_device(), "cpu") == 0) ck_assert_uint_eq(got.allocations, 0);
    const size_t least = most(got.planned);
    with.residency = HD_RESIDENCY_AUTO;
    with.slots = 4; /* sequences give way before weights do */
    const size_t budgets[] = {whole, (whole + least) / 2, least};
    for (int b = 0; b < 3; b++) {
        with.budget = budgets[b];
        hdt_assert_ok(generate(&with, &got));
        ck_assert_mem_eq(got.out, resident.out, sizeof got.out);
        ck_assert_uint_le(got.planned, with.budget);
        ck_assert_uint_le(got.high_water, got.planned);
        if (b == 0) ck_assert_int_eq(got.blocks_on_host, 0);
        if (resident.planned > with.budget) ck_assert_int_gt(got.blocks_on_host, 0);
    }
    hd_model_destroy(with.model);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *videos = tcase_create("videos");
    tcase_add_loop_test(videos, videos_have_the_same_bits, 0, 2);
    tcase_add_test(videos, videos_of_an_mmdit_have_the_same_bits);
    tcase_add_test(videos, budgets_of_samplers_are_kept);
    TCase *texts = tcase_create("texts");
    tcase_add_loop_test(texts, texts_are_equal_within_any_budget, 0, 2);
    return hdt_main_ranks(argc, argv, "residency", videos, texts);
}
