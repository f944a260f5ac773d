/* ranks: 1 2 4, at most 4 */
/* Weights on the host, or in shares of ranks that have the same, in whole jobs: texts and videos of the same
 * bits as with resident weights, on every stage of a pipeline, within budgets that hold no resident
 * weights. */
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
    hd_mesh_options layout;
    hd_residency residency;
    int host_blocks;
    size_t budget;
    size_t planned, streamed, high_water; /* of denoising, on this rank */
    int blocks_on_host;
    bool gathers;
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
    it->gathers = plan->residency.gathers;
    return HD_OK;
}

static hd_status sample(sampling *it)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_sampler *sampler = NULL;
    const int64_t *dims = it->file.dims;
    hd_status status = hdt_open_place(hdt_world, &it->layout, &mesh, &context);
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

static sampling open_sampling(int model)
{
    sampling it = {.file = hdt_mmdit_open(model, NULL)};
    it.layout = hdt_deepest(hdt_world, (int)hd_model_layers(it.file.model));
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
    sampling it = open_sampling(HDT_HUNYUAN);
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

static const hd_residency shared[] = {HD_RESIDENCY_SHARDED, HD_RESIDENCY_HOST_SHARDED};

/* Of ranks that share a video's tokens, or layers, or make videos of their own; of the last, all but one idle. */
START_TEST(ranks_that_share_blocks_make_the_same_videos)
{
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options layouts[] = {
        {.sequence = ranks},
        {.sequence = ranks, .ring = 2},
        {.sequence = 2, .pipeline = ranks / 2},
        {.sequence = 2, .data = ranks / 2},
        {.tensor = 2, .data = ranks / 2},
        {.data = ranks},
    };
    sampling it = open_sampling(HDT_OPEN_SORA);
    const size_t bytes = (size_t)it.elements * sizeof *it.seen;
    float *resident = malloc(bytes);
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts && ranks > 1; l++) {
        it.layout = layouts[l];
        if (it.layout.sequence <= 1 && it.layout.data <= 1) continue;
        it.residency = HD_RESIDENCY_RESIDENT;
        memset(it.seen, 0, bytes);
        hdt_assert_ok(hd_comm_agree(hdt_world, sample(&it)));
        memcpy(resident, it.seen, bytes);
        for (int k = 0; k < 4; k++) {
            it.residency = shared[k % 2];
            it.host_blocks = k / 2; /* all, one */
            memset(it.seen, 0, bytes);
            hdt_assert_ok(hd_comm_agree(hdt_world, sample(&it)));
            const bool same =
                !memcmp(it.seen, resident, bytes); /* zeros where nobody hears of it */
            ck_assert_msg(hd_comm_agree(hdt_world, same ? HD_OK : HD_ERROR_INTERNAL) == HD_OK,
                          "layout %zu, way %d: other bits", l, k);
            ck_assert(it.gathers);
            ck_assert_uint_le(it.high_water, it.planned);
        }
    }
    free(resident);
    close_sampling(&it);
}
END_TEST

START_TEST(budgets_of_samplers_are_kept)
{
    sampling it = open_sampling(HDT_HUNYUAN);
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
    int32_t out[PROMPTS * TOKENS], again[PROMPTS * TOKENS]; /* again: of a second run */
    size_t planned, high_water;
    uint64_t allocations; /* of the run */
    int blocks_on_host;
    bool gathers;
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
    if (status == HD_OK)
        status = hd_generator_run(it.generator, prompts, PROMPTS, TOKENS, &by, got->again, NULL);
    if (status == HD_OK) {
        const hd_plan *plan = hd_generator_plan(it.generator);
        got->planned = hd_plan_total_bytes(plan);
        got->high_water = hd_session_high_water(hd_generator_session(it.generator));
        got->blocks_on_host = plan->residency.host_blocks;
        got->gathers = plan->residency.gathers;
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
    hdt_set_staged(strcmp(hdt_device(), "cpu") == 0);
    const hd_status status = generate(&with, &got);
    hdt_set_staged(false);
    hdt_assert_ok(status);
    ck_assert_mem_eq(got.out, resident.out, sizeof got.out);
    if (strcmp(hdt_device(), "cpu") == 0) ck_assert_uint_eq(got.allocations, 0);
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

/* Three prompts of different lengths on two lines or four: one of which has none. */
START_TEST(ranks_that_share_blocks_write_the_same_texts)
{
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options layouts[] = {
        {.data = ranks}, {.data = ranks / 2, .pipeline = 2}, {.data = ranks / 2, .tensor = 2}};
    generated resident, got;
    make_prompts();
    hdt_generating with = {.model = hdt_tiny_model(_i ? "llama" : "gpt2", LAYERS),
                           .capacity = CAPACITY,
                           .prefill = 4,
                           .slots = 2};
    for (int l = 0; l < 3 && ranks > 1; l++) {
        with.mesh = layouts[l];
        if (with.mesh.data < 2) continue;
        with.residency = HD_RESIDENCY_RESIDENT;
        hdt_assert_ok(generate(&with, &resident));
        for (int k = 0; k < 4; k++) {
            with.residency = shared[k % 2];
            with.host_blocks = k / 2 * 3; /* all, three */
            hdt_assert_ok(hd_comm_agree(hdt_world, generate(&with, &got)));
            ck_assert_mem_eq(got.out, resident.out, sizeof got.out);
            ck_assert_mem_eq(got.again, resident.out, sizeof got.out);
            ck_assert(got.gathers);
            ck_assert_uint_le(got.high_water, got.planned);
        }
    }
    hd_model_destroy(with.model);
}
END_TEST

/* Rank 0 has room for all weights, the others for the less the higher their number. */
START_TEST(ranks_with_other_budgets_agree)
{
    const int ranks = hd_comm_size(hdt_world), rank = hd_comm_rank(hdt_world);
    generated resident, least, got;
    make_prompts();
    hdt_generating with = {.model = hdt_tiny_model("llama", LAYERS),
                           .capacity = CAPACITY,
                           .prefill = 4,
                           .slots = 1,
                           .mesh = {.data = ranks}};
    hdt_assert_ok(generate(&with, &resident));
    with.residency = ranks > 1 ? HD_RESIDENCY_SHARDED : HD_RESIDENCY_HOST;
    hdt_assert_ok(hd_comm_agree(hdt_world, generate(&with, &least)));
    ck_assert_uint_lt(least.planned, resident.planned);
    with.residency = HD_RESIDENCY_AUTO;
    with.budget = resident.planned - (resident.planned - most(least.planned)) / (size_t)ranks *
                                         (size_t)(ranks > 1 ? rank : 1);
    const hd_status status = hd_comm_agree(hdt_world, generate(&with, &got));
    hd_model_destroy(with.model);
    hdt_assert_ok(status);
    ck_assert_mem_eq(got.out, resident.out, sizeof got.out);
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &got.blocks_on_host, sizeof got.blocks_on_host,
                                      "the blocks that are shared"));
    ck_assert_int_gt(got.blocks_on_host, 0);
    ck_assert_int_eq(got.gathers, ranks > 1);
    ck_assert_uint_le(got.planned, with.budget);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *videos = tcase_create("videos");
    tcase_add_loop_test(videos, videos_have_the_same_bits, 0, 2);
    tcase_add_test(videos, videos_of_an_mmdit_have_the_same_bits);
    tcase_add_test(videos, ranks_that_share_blocks_make_the_same_videos);
    tcase_add_test(videos, budgets_of_samplers_are_kept);
    TCase *texts = tcase_create("texts");
    tcase_add_loop_test(texts, texts_are_equal_within_any_budget, 0, 2);
    tcase_add_loop_test(texts, ranks_that_share_blocks_write_the_same_texts, 0, 2);
    tcase_add_test(texts, ranks_with_other_budgets_agree);
    return hdt_main_ranks(argc, argv, "residency", videos, texts);
}
