/* Samplers: creation and start, and the run's two phases. */
#include "jobs/sample/sampler.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/memory.h"
#include "jobs/stages.h"
#include "optim/flow.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <xxhash.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "sampler: out of host memory");
}

static hd_status check_options(const hd_sampler_options *o)
{
    const hd_video_shape *shape = &o->shape;
    if (!o->build || !o->model || o->layers < 1)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "sampler: build %s, video model %s, layers %d; want a build function, a "
                         "model and layers >= 1",
                         o->build ? "given" : "NULL", o->model ? "given" : "NULL", o->layers);
    if (shape->frames < 1 || shape->height < 1 || shape->width < 1 || shape->steps < 1 ||
        shape->frames > INT32_MAX || shape->height > INT32_MAX || shape->width > INT32_MAX ||
        o->model->channels < 1 || o->model->channels > INT32_MAX)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "sampler: %" PRId64 " frames of %" PRId64 " x %" PRId64 ", %" PRId64
                         " channels, %" PRId64 " steps; want at least 1 of each",
                         shape->frames, shape->height, shape->width, o->model->channels,
                         shape->steps);
    if (!o->texts || o->text_lengths < 1)
        return hdi_error(HD_ERROR_ARGUMENT, "sampler: no text lengths, want at least one");
    for (int i = 0; i < o->text_lengths; i++) {
        bool again = false;
        for (int j = 0; j < i; j++)
            again = again || o->texts[i] == o->texts[j];
        if (o->texts[i] < 1 || again)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "sampler: text length %d is %" PRId64
                             ", want lengths from 1 on, all different",
                             i, o->texts[i]);
    }
    return HD_OK;
}

hd_status hdi_sampler_create(const hd_sampler_options *options, size_t *least, hd_sampler **out)
{
    *out = NULL;
    *least = 0;
    HD_RETURN_IF_ERROR(check_options(options));
    hd_sampler *sampler = hdi_alloc(sizeof *sampler);
    if (!sampler) return out_of_memory();
    sampler->options = *options;
    sampler->model = *options->model;
    sampler->options.model = &sampler->model;
    sampler->keep_condition = sampler->keep_denoise =
        (hdi_keeping){.residency = options->residency, .host_blocks = options->host_blocks};
    sampler->stages = hd_mesh_size(options->mesh, HD_AXIS_PIPELINE);
    sampler->stage = hd_mesh_index(options->mesh, HD_AXIS_PIPELINE);
    sampler->sets = hdi_alloc_array((size_t)options->text_lengths, sizeof *sampler->sets);
    hd_status status = sampler->sets ? HD_OK : out_of_memory();
    for (int s = 0; s < options->text_lengths && status == HD_OK; s++)
        sampler->sets[s].tokens = options->texts[s];
    if (status == HD_OK) status = hdi_sampler_build_conditions(sampler);
    if (status == HD_OK) status = hdi_sampler_plan(sampler, least);
    if (status != HD_OK) {
        hd_sampler_destroy(sampler);
        return status;
    }
    *out = sampler;
    return HD_OK;
}

hd_status hd_sampler_create(const hd_sampler_options *options, hd_sampler **out)
{
    size_t least;
    return hdi_sampler_create(options, &least, out);
}

void hd_sampler_destroy(hd_sampler *sampler)
{
    if (!sampler) return;
    hd_plan_destroy(sampler->condition);
    hd_plan_destroy(sampler->denoise);
    for (int s = 0; s < sampler->options.text_lengths && sampler->sets; s++) {
        hdi_sampler_set *set = &sampler->sets[s];
        hd_program_destroy(set->condition);
        hd_program_destroy(set->denoise);
        hdi_free(set->inputs);
        hdi_free(set->condition_inputs);
        hdi_free(set->outputs);
    }
    hdi_free(sampler->sets);
    hdi_free((void *)(uintptr_t)sampler->weights.path);
    hdi_free(sampler);
}

const hd_plan *hd_sampler_plan(const hd_sampler *sampler, hd_purpose phase)
{
    return phase == HD_PURPOSE_CONDITION ? sampler->condition : sampler->denoise;
}

double hd_sampler_flops(const hd_sampler *sampler, hd_purpose phase, int text_length)
{
    const hdi_sampler_set *set = &sampler->sets[text_length];
    const hd_program *program = phase == HD_PURPOSE_CONDITION ? set->condition : set->denoise;
    hd_cost cost = {0};
    if (program) hdi_program_cost(program, HDI_PHASE_FORWARD, &cost);
    return cost.flops;
}

int hd_sampler_slices(const hd_sampler *sampler)
{
    return sampler->slices;
}

void hd_sampler_layers(const hd_sampler *sampler, int *first, int *count)
{
    *first = sampler->first_layer;
    *count = sampler->layers;
}

hdi_sampler_set *hdi_sampler_set_of(const hd_sampler *sampler, int64_t tokens)
{
    for (int s = 0; s < sampler->options.text_lengths; s++)
        if (sampler->sets[s].tokens == tokens) return &sampler->sets[s];
    return NULL;
}

hd_status hd_sampler_start(hd_sampler *sampler, hd_context *context,
                           const hd_sampler_weights *weights)
{
    const hd_backend *planned =
        sampler->options.backend ? sampler->options.backend : &hdi_backend_cpu;
    hd_status status = HD_OK;
    if (planned != context->backend)
        status = hdi_error(HD_ERROR_ARGUMENT,
                           "sampler: planned for %s, started on %s; give "
                           "hd_sampler_options.backend what hd_context_backend says",
                           planned->name, context->backend->name);
    hdi_free((void *)(uintptr_t)sampler->weights.path);
    sampler->weights = *weights;
    if (weights->path) {
        sampler->weights.path = hdi_strdup(weights->path);
        if (!sampler->weights.path && status == HD_OK) status = out_of_memory();
    }
    sampler->context = context;
    hd_comm *world = hd_mesh_comm(sampler->options.mesh, HD_AXIS_NONE);
    if (!world) return status;
    HD_RETURN_IF_ERROR(hd_comm_agree(world, status));
    return hd_comm_agree(world, hdi_sampler_agree(sampler));
}

hd_status hdi_sampler_open_session(const hd_sampler *sampler, const hd_plan *plan, hd_session **out)
{
    const hd_mesh *mesh = sampler->options.mesh;
    hd_comm *world = hd_mesh_comm(mesh, HD_AXIS_NONE);
    *out = NULL;
    hd_status status = hdi_session_create_shared(sampler->context, plan, mesh, out);
    status = hdi_session_share(*out, sampler->context, mesh, status);
    if (status == HD_OK && plan && !sampler->weights.path)
        status = hd_session_initialize(*out, sampler->weights.seed);
    if (world) status = hd_comm_agree(world, status);
    if (status == HD_OK && sampler->weights.path)
        status = hdi_stage_load(*out, plan ? plan->layout : NULL, world, sampler->weights.path,
                                sampler->weights.average ? "ema" : "weights");
    return status;
}

static hd_status check_video(const hdi_sampler_call *it, int index)
{
    const hd_sampler_video *video = &it->videos[index];
    const int64_t steps = it->sampler->options.shape.steps;
    for (int b = 0; b < hdi_sampler_branches(it->options); b++)
        if (video->text[b] < 0 || video->text[b] >= it->text_count)
            return hdi_error(HD_ERROR_ARGUMENT, "video %d: text of branch %d is %d, want 0..%d",
                             index, b, video->text[b], it->text_count - 1);
    if (video->step < 0 || video->step > steps)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "video %d: %" PRId64 " steps are done, want 0..%" PRId64, index,
                         video->step, steps);
    return HD_OK;
}

static hd_status check_call(const hdi_sampler_call *it)
{
    const hd_sampler *sampler = it->sampler;
    const hd_sampler_run_options *o = it->options;
    if (!sampler->context) return hdi_error(HD_ERROR_ARGUMENT, "sampler: run before start");
    if (it->text_count < 1 || it->video_count < 1 || o->branches < 0 ||
        o->branches > HD_SAMPLER_BRANCHES || o->in_flight < 0 || !(o->shift >= 0) ||
        !isfinite(o->shift) || !isfinite(o->guidance) || !isfinite(o->image_guidance))
        return hdi_error(
            HD_ERROR_ARGUMENT,
            "sampler: %d texts, %d videos, %d branches, %d in flight, shift %g, "
            "guidance %g and %g; want texts, videos, 1..%d branches and finite numbers",
            it->text_count, it->video_count, o->branches, o->in_flight, o->shift, o->guidance,
            o->image_guidance, HD_SAMPLER_BRANCHES);
    for (int t = 0; t < it->text_count; t++)
        if (!it->texts[t].text || !hdi_sampler_set_of(sampler, it->texts[t].tokens))
            return hdi_error(HD_ERROR_ARGUMENT,
                             "text %d has %" PRId64
                             " tokens, which is none of the lengths that were planned",
                             t, it->texts[t].tokens);
    for (int v = 0; v < it->video_count; v++)
        HD_RETURN_IF_ERROR(check_video(it, v));
    return HD_OK;
}

/* Ranks that were asked for different videos would wait for each other. */
static hd_status check_equal(const hdi_sampler_call *it, hd_comm *world)
{
    const hd_sampler_run_options *o = it->options;
    const double numbers[] = {it->text_count,    it->video_count,     o->shift,
                              o->towards_data,   o->branches,         o->guidance,
                              o->image_guidance, o->oscillate,        o->ramp,
                              o->embedded,       o->embedded_rounded, o->fps,
                              o->in_flight};
    uint64_t hash = XXH3_64bits_withSeed(numbers, sizeof numbers, 0);
    hash = XXH3_64bits_withSeed(
        it->levels, (size_t)(it->sampler->options.shape.steps + 1) * sizeof(double), hash);
    for (int t = 0; t < it->text_count; t++) {
        const hd_sampler_text *text = &it->texts[t];
        const int64_t elements = text->tokens * it->sampler->model.text_columns;
        hash = XXH3_64bits_withSeed(text->text, (size_t)elements * sizeof(float), hash);
    }
    for (int v = 0; v < it->video_count; v++) {
        const hd_sampler_video *video = &it->videos[v];
        const int64_t facts[] = {video->text[0],       video->text[1],         video->text[2],
                                 (int64_t)video->seed, (int64_t)video->number, video->step};
        hash = XXH3_64bits_withSeed(facts, sizeof facts, hash);
    }
    return hd_comm_check_equal(world, &hash, sizeof hash, "what to sample");
}

static hd_status make_levels(hdi_sampler_call *it)
{
    const int64_t steps = it->sampler->options.shape.steps;
    it->levels = hdi_alloc_array((size_t)steps + 1, sizeof *it->levels);
    if (!it->levels) return out_of_memory();
    if (it->options->levels)
        memcpy(it->levels, it->options->levels, ((size_t)steps + 1) * sizeof *it->levels);
    else
        hdi_flow_levels(steps, it->options->shift > 0 ? it->options->shift : 1, it->levels);
    return HD_OK;
}

static hd_status prepare(hdi_sampler_call *it)
{
    HD_RETURN_IF_ERROR(check_call(it));
    HD_RETURN_IF_ERROR(make_levels(it));
    it->stores = hdi_alloc_array((size_t)it->text_count, sizeof *it->stores);
    return it->stores ? HD_OK : out_of_memory();
}

static hd_status run_call(hdi_sampler_call *it)
{
    hd_comm *world = hd_mesh_comm(it->sampler->options.mesh, HD_AXIS_NONE);
    hd_status status = prepare(it);
    if (world) status = hd_comm_agree(world, status);
    if (status == HD_OK && world) status = check_equal(it, world);
    HD_RETURN_IF_ERROR(status);

    double begin = hdi_clock_seconds();
    HD_RETURN_IF_ERROR(hdi_sampler_make_conditions(it));
    it->result.condition_seconds = hdi_clock_seconds() - begin;

    begin = hdi_clock_seconds();
    HD_RETURN_IF_ERROR(hdi_sampler_open_session(it->sampler, it->sampler->denoise, &it->session));
    it->result.load_seconds = hdi_clock_seconds() - begin;
    return hdi_sampler_take_steps(it);
}

hd_status hd_sampler_run(hd_sampler *sampler, const hd_sampler_text *texts, int text_count,
                         const hd_sampler_video *videos, int video_count,
                         const hd_sampler_run_options *options, hd_sampler_result *result)
{
    hdi_sampler_call it = {.sampler = sampler,
                           .texts = texts,
                           .text_count = text_count,
                           .videos = videos,
                           .video_count = video_count,
                           .options = options};
    const hd_status status = run_call(&it);
    if (it.session) it.result.high_water = hd_session_high_water(it.session);
    hd_session_destroy(it.session);
    for (int t = 0; t < text_count && it.stores; t++)
        hdi_free(it.stores[t]);
    hdi_free(it.stores);
    hdi_free(it.levels);
    if (result) *result = it.result;
    return status;
}
