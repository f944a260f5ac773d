/* What a generator builds: parts of the model to learn its shapes and costs, then its own stage. */
#include "jobs/generate/generator.h"

#include "core/error.h"
#include "core/memory.h"
#include "jobs/stages.h"

#include <string.h>

/* Parts of the model whose costs decide where the layers are cut. */
typedef enum part { PART_FIRST, PART_LAYER, PART_LAST, PARTS } part;

static hd_tensor add_x(hd_program *program, const hdi_generator_facts *facts, int64_t tokens)
{
    int64_t dims[HD_MAX_DIMS];
    memcpy(dims, facts->x_dims, sizeof dims);
    dims[0] *= tokens;
    return hdi_tensor_add(program, "x", facts->x_dtype, HD_ROLE_BOUNDARY, facts->x_rank, dims);
}

static hd_status learn_x(hdi_generator_facts *facts, const hd_program *program, hd_tensor out)
{
    const hd_tensor_info *x = hd_tensor_get(program, out);
    if (!x || x->rank < 1)
        return hdi_error(HD_ERROR_ARGUMENT, "generator: the first stage returned no tensor");
    facts->x_dtype = x->dtype;
    facts->x_rank = x->rank;
    memcpy(facts->x_dims, x->dims, sizeof facts->x_dims);
    return HD_OK;
}

static hd_status learn_vocab(hdi_generator_facts *facts, const hd_program *program, hd_dtype dtype)
{
    const hd_tensor_info *logits = hd_tensor_get(program, hd_tensor_find(program, "logits"));
    if (!logits || logits->dtype != dtype || logits->elements < 1)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "generator: the last stage has no output named 'logits' of dtype %s",
                         hd_dtype_name(dtype));
    facts->vocab = logits->elements;
    return HD_OK;
}

static hd_status measure_part(hd_generator *generator, part kind, double *flops)
{
    const hd_generator_options *o = &generator->options;
    hdi_generator_facts *facts = &generator->facts;
    /* Of whole layers: ranks that share one have more or less of it, and must cut alike. */
    const hd_mesh *mesh = hd_mesh_size(o->mesh, HD_AXIS_TENSOR) > 1 ? NULL : o->mesh;
    hd_program *program;
    HD_RETURN_IF_ERROR(hd_program_create(
        &(hd_program_options){
            .name = "model", .dtype = o->dtype, .mesh = mesh, .backend = o->backend},
        &program));
    const hd_tensor x = kind == PART_FIRST ? (hd_tensor){0} : add_x(program, facts, 1);
    const hd_stage stage = {.purpose = HD_PURPOSE_GENERATE,
                            .first_layer = kind == PART_LAST ? o->layers : 0,
                            .layers = kind == PART_LAYER ? 1 : 0,
                            .first = kind == PART_FIRST,
                            .last = kind == PART_LAST,
                            .sequences = 1,
                            .tokens = 1,
                            .capacity = o->capacity};
    const hd_tensor out = o->build(o->user, program, &stage, x);
    hd_status status = hd_program_finish(program);
    if (status == HD_OK && kind == PART_FIRST) status = learn_x(facts, program, out);
    if (status == HD_OK && kind == PART_LAST) status = learn_vocab(facts, program, o->dtype);
    if (status == HD_OK) {
        hd_cost cost;
        hdi_program_cost(program, HDI_PHASE_FORWARD, &cost);
        *flops = cost.flops;
    }
    hd_program_destroy(program);
    return status;
}

/* All layers are taken to cost what the first one does. */
static hd_status cut_layers(hd_generator *generator, const double flops[PARTS])
{
    const hd_generator_options *o = &generator->options;
    double *costs = hdi_alloc_array((size_t)o->layers, sizeof *costs);
    if (!costs) return hdi_error(HD_ERROR_MEMORY, "generator: out of host memory");
    for (int i = 0; i < o->layers; i++)
        costs[i] = flops[PART_LAYER];
    const hd_status status = hdi_stage_cut(&(hdi_balance_options){.layers = o->layers,
                                                                  .stages = generator->stages,
                                                                  .costs = costs,
                                                                  .first_cost = flops[PART_FIRST],
                                                                  .last_cost = flops[PART_LAST]},
                                           o->stage_layers, generator->stage,
                                           &generator->facts.first_layer, &generator->facts.layers);
    hdi_free(costs);
    return status;
}

hd_status hdi_generator_measure(hd_generator *generator)
{
    double flops[PARTS];
    for (part kind = PART_FIRST; kind < PARTS; kind++)
        HD_RETURN_IF_ERROR(measure_part(generator, kind, &flops[kind]));
    return cut_layers(generator, flops);
}

hd_status hdi_generator_build(hd_generator *generator, hdi_generator_pass pass)
{
    const hd_generator_options *o = &generator->options;
    const hdi_generator_facts *facts = &generator->facts;
    hdi_generator_program *it = &generator->programs[pass];
    const bool first = generator->stage == 0, last = hdi_generator_is_last(generator);
    it->tokens = pass == HDI_PASS_PREFILL ? o->prefill : 1;
    HD_RETURN_IF_ERROR(hd_program_create(
        &(hd_program_options){.name = pass == HDI_PASS_PREFILL ? "prefill" : "decode",
                              .dtype = o->dtype,
                              .mesh = o->mesh,
                              .backend = o->backend},
        &it->program));
    if (!first) it->x = add_x(it->program, facts, it->tokens);
    const hd_stage stage = {.purpose = HD_PURPOSE_GENERATE,
                            .first_layer = facts->first_layer,
                            .layers = facts->layers,
                            .first = first,
                            .last = last,
                            .sequences = 1,
                            .tokens = it->tokens,
                            .capacity = o->capacity};
    const hd_tensor out = o->build(o->user, it->program, &stage, it->x);
    const int tensor = hd_mesh_size(o->mesh, HD_AXIS_TENSOR);
    if (tensor > 1 && !it->program->splits_layers)
        hd_program_fail(it->program, HD_ERROR_UNSUPPORTED,
                        "layout.tensor is %d, but this model does not split its layers", tensor);
    if (!last) {
        hdi_stage_end(it->program, out);
        it->out = out;
    }
    HD_RETURN_IF_ERROR(hd_program_finish(it->program));
    it->ids = hd_tensor_find(it->program, "tokens");
    it->position = hd_tensor_find(it->program, "position");
    it->count = hd_tensor_find(it->program, "count");
    it->logits = hd_tensor_find(it->program, "logits");
    if (first && !it->ids.id)
        return hdi_error(HD_ERROR_ARGUMENT, "generator: the first stage has no input 'tokens'");
    return HD_OK;
}
