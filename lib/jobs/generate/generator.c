/* Generators: creation, planning and start. */
#include "jobs/generate/generator.h"

#include "core/error.h"
#include "core/half.h"
#include "core/memory.h"
#include "jobs/stages.h"

#include <inttypes.h>

/* A slot has at most four requests under way, and a world 1024. */
enum { DEFAULT_PREFILL = 32, MOST_SLOTS = 256 };

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "generator: out of host memory");
}

static hd_status check_options(hd_generator *generator, const hd_generator_options *given)
{
    hd_generator_options *o = &generator->options;
    *o = *given;
    if (o->prefill == 0) o->prefill = DEFAULT_PREFILL;
    if (!o->dtype) o->dtype = HD_DTYPE_F32;
    if (o->dtype != HD_DTYPE_F32 && !hdi_is_half(o->dtype))
        return hdi_error(HD_ERROR_ARGUMENT, "generator: dtype is %s, want F32, BF16 or F16",
                         hd_dtype_name(o->dtype));
    if (!o->build || o->layers < 1 || o->capacity < 1 || o->prefill < 1 || o->slots < 0 ||
        o->slots > MOST_SLOTS)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "generator: build %s, layers %d, capacity %" PRId64 ", prefill %" PRId64
                         ", slots %d; want a build function, layers, capacity and prefill >= 1, "
                         "slots 0..%d",
                         o->build ? "given" : "NULL", o->layers, o->capacity, o->prefill, o->slots,
                         MOST_SLOTS);
    const int sequence = hd_mesh_size(o->mesh, HD_AXIS_SEQUENCE);
    if (sequence > 1)
        return hdi_error(
            HD_ERROR_UNSUPPORTED,
            "layout.sequence %d: generation splits over data, pipeline and tensor only", sequence);
    if (o->prefill > o->capacity) o->prefill = o->capacity;
    generator->keep = (hdi_keeping){.residency = o->residency, .host_blocks = o->host_blocks};
    generator->stages = hd_mesh_size(o->mesh, HD_AXIS_PIPELINE);
    generator->stage = hd_mesh_index(o->mesh, HD_AXIS_PIPELINE);
    generator->slot_count = o->slots ? o->slots : 2 * generator->stages;
    if (generator->slot_count > MOST_SLOTS) generator->slot_count = MOST_SLOTS;
    return HD_OK;
}

/* Both programs are in one group: a slot may decode while data of another's prefill travels. */
static hd_status make_plan(hd_generator *generator, hd_residency residency)
{
    const hd_generator_options *o = &generator->options;
    const hdi_keeping *keep = &generator->keep;
    hd_plan_destroy(generator->plan);
    HD_RETURN_IF_ERROR(
        hd_plan_create(&(hd_plan_options){.budget = o->budget,
                                          .foreign = o->foreign,
                                          .pinned_share = o->backend ? o->backend->pinned_share : 0,
                                          .residency = residency,
                                          .host_blocks = keep->host_blocks,
                                          .stream_slots = keep->stream_slots,
                                          .shards = hd_mesh_size(o->mesh, HD_AXIS_SHARD),
                                          .shard = hd_mesh_index(o->mesh, HD_AXIS_SHARD)},
                       &generator->plan));
    const hd_plan_program_options use = {.cache_slots = generator->slot_count,
                                         .boundary_slots = generator->slot_count};
    for (int pass = 0; pass < HDI_PASSES; pass++)
        if (generator->programs[pass].program)
            HD_RETURN_IF_ERROR(
                hd_plan_add(generator->plan, generator->programs[pass].program, &use));
    return hd_plan_finish(generator->plan);
}

/* As many sequences in flight as fit, by halving. A token's pass is too short to hide copies of weights,
 * so that these are the last to give way. */
static hd_status plan_slots(hd_generator *generator)
{
    const hd_residency wanted = generator->keep.residency;
    for (;;) {
        hd_status status =
            make_plan(generator, wanted == HD_RESIDENCY_AUTO ? HD_RESIDENCY_RESIDENT : wanted);
        if (status == HD_ERROR_BUDGET && wanted == HD_RESIDENCY_AUTO && generator->slot_count == 1)
            status = make_plan(generator, wanted);
        if (status == HD_OK) return HD_OK;
        if (status != HD_ERROR_BUDGET) return status;
        if (generator->slot_count == 1)
            return hdi_error_context(status,
                                     "generator with one sequence of %" PRId64
                                     " tokens in flight (fewer tokens, a smaller prefill or more "
                                     "pipeline stages need less)",
                                     generator->options.capacity);
        generator->slot_count /= 2;
    }
}

hd_status hd_generator_create(const hd_generator_options *options, hd_generator **out)
{
    *out = NULL;
    hd_generator *generator = hdi_alloc(sizeof *generator);
    if (!generator) return out_of_memory();
    hd_status status = check_options(generator, options);
    if (status == HD_OK) status = hdi_generator_measure(generator);
    if (status == HD_OK && generator->options.prefill > 1)
        status = hdi_generator_build(generator, HDI_PASS_PREFILL);
    if (status == HD_OK) status = hdi_generator_build(generator, HDI_PASS_DECODE);
    if (status == HD_OK) status = plan_slots(generator);
    if (status != HD_OK) {
        hd_generator_destroy(generator);
        return status;
    }
    *out = generator;
    return HD_OK;
}

void hd_generator_destroy(hd_generator *generator)
{
    if (!generator) return;
    hd_session_destroy(generator->session);
    hd_plan_destroy(generator->plan);
    for (int pass = 0; pass < HDI_PASSES; pass++)
        hd_program_destroy(generator->programs[pass].program);
    hdi_free(generator->slots);
    hdi_free(generator->logits);
    hdi_free(generator->rounded);
    hdi_free(generator->heap);
    hdi_free(generator->ids);
    hdi_free(generator);
}

const hd_plan *hd_generator_plan(const hd_generator *generator)
{
    return generator->plan;
}

int64_t hd_generator_vocab(const hd_generator *generator)
{
    return generator->facts.vocab;
}

int hd_generator_slots(const hd_generator *generator)
{
    return generator->slot_count;
}

hd_session *hd_generator_session(hd_generator *generator)
{
    return generator->session;
}

/* Stages hold different layers, so the budget may leave them room for different numbers of
 * sequences; all go by the smallest. */
static hd_status agree_on_slots(hd_generator *generator)
{
    hd_comm *world = hd_mesh_comm(generator->options.mesh, HD_AXIS_NONE);
    int32_t slots = generator->slot_count;
    if (!world) return HD_OK;
    hd_request request;
    HD_RETURN_IF_ERROR(hd_comm_all_reduce(world, &slots, 1, HD_DTYPE_I32, HD_REDUCE_MIN, &request));
    HD_RETURN_IF_ERROR(hd_comm_wait(world, &request));
    generator->slot_count = slots;
    return HD_OK;
}

static hd_status agree_on_weights(hd_generator *generator)
{
    bool changes = false;
    if (generator->options.residency != HD_RESIDENCY_AUTO) return HD_OK;
    HD_RETURN_IF_ERROR(
        hdi_stage_agree(generator->options.mesh, generator->plan, &generator->keep, &changes));
    return changes ? plan_slots(generator) : HD_OK;
}

static hd_status make_room(hd_generator *generator)
{
    if (generator->session) return hdi_error(HD_ERROR_ARGUMENT, "generator: started already");
    const size_t vocab = (size_t)generator->facts.vocab;
    generator->slots = hdi_alloc_array((size_t)generator->slot_count, sizeof *generator->slots);
    generator->logits = hdi_alloc_array(vocab, sizeof *generator->logits);
    generator->rounded = hdi_alloc_array(vocab, sizeof *generator->rounded);
    generator->heap = hdi_alloc_array(vocab, sizeof *generator->heap);
    generator->ids = hdi_alloc_array((size_t)generator->options.prefill, sizeof *generator->ids);
    if (!generator->slots || !generator->logits || !generator->rounded || !generator->heap ||
        !generator->ids)
        return out_of_memory();
    return HD_OK;
}

/* A rank without room takes part in what is collective. */
static hd_status start_here(hd_generator *generator, hd_context *context, uint64_t seed)
{
    const hd_status status = make_room(generator);
    hd_session *session;
    const hd_status created = hdi_session_create_shared(
        context, status == HD_OK ? generator->plan : NULL, generator->options.mesh, &session);
    HD_RETURN_IF_ERROR(status);
    HD_RETURN_IF_ERROR(created);
    generator->session = session;
    return hd_session_initialize(generator->session, seed);
}

static hd_status rehearse(const hd_generator *generator)
{
    hdi_stage_traffic traffic[HDI_PASSES];
    for (int pass = 0; pass < HDI_PASSES; pass++) {
        const hdi_generator_program *it = &generator->programs[pass];
        traffic[pass] = (hdi_stage_traffic){
            .program = it->program, .x = it->x, .out = it->out, .count = generator->slot_count};
    }
    return hdi_stage_rehearse(generator->session, traffic, HDI_PASSES);
}

hd_status hd_generator_start(hd_generator *generator, hd_context *context, uint64_t seed)
{
    const hd_backend *planned =
        generator->options.backend ? generator->options.backend : &hdi_backend_cpu;
    if (planned != context->backend)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "generator: planned for %s, started on %s; give "
                         "hd_generator_options.backend what hd_context_backend says",
                         planned->name, context->backend->name);
    hd_comm *world = hd_mesh_comm(generator->options.mesh, HD_AXIS_NONE);
    if (world) HD_RETURN_IF_ERROR(hd_comm_agree(world, agree_on_weights(generator)));
    hd_status status = start_here(generator, context, seed);
    if (world) status = hd_comm_agree(world, status);
    if (status == HD_OK) status = agree_on_slots(generator);
    return status == HD_OK ? rehearse(generator) : status;
}

hd_status hd_generator_load(hd_generator *generator, const char *path)
{
    if (!generator->session) return hdi_error(HD_ERROR_ARGUMENT, "generator: load before start");
    return hdi_stage_load(generator->session, generator->plan->layout,
                          hd_mesh_comm(generator->options.mesh, HD_AXIS_NONE), path, "weights");
}
