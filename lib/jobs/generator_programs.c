/* What a generator builds: parts of the model to learn its shapes and costs, then its own stage. */
#include "jobs/generator.h"

#include "core/error.h"
#include "core/memory.h"
#include "parallel/balance.h"

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

static hd_status learn_vocab(hdi_generator_facts *facts, const hd_program *program)
{
    const hd_tensor_info *logits = hd_tensor_get(program, hd_tensor_find(program, "logits"));
    if (!logits || logits->dtype != HD_DTYPE_F32 || logits->elements < 1)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "generator: the last stage has no output named 'logits' of dtype F32");
    facts->vocab = logits->elements;
    return HD_OK;
}

static hd_status measure_part(hd_generator *generator, part kind, double *flops)
{
    const hd_generator_options *o = &generator->options;
    hdi_generator_facts *facts = &generator->facts;
    hd_program *program;
    HD_RETURN_IF_ERROR(hd_program_create(
        &(hd_program_options){.name = "census", .mesh = o->mesh, .backend = o->backend}, &program));
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
    if (status == HD_OK && kind == PART_LAST) status = learn_vocab(facts, program);
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
    const int layers = o->layers, stages = generator->stages;
    double *costs = hdi_alloc_array((size_t)layers, sizeof *costs);
    int *counts = hdi_alloc_array((size_t)stages, sizeof *counts);
    hd_status status =
        costs && counts ? HD_OK : hdi_error(HD_ERROR_MEMORY, "generator: out of host memory");
    for (int i = 0; i < layers && status == HD_OK; i++)
        costs[i] = flops[PART_LAYER];
    const hdi_balance_options balance = {.layers = layers,
                                         .stages = stages,
                                         .costs = costs,
                                         .first_cost = flops[PART_FIRST],
                                         .last_cost = flops[PART_LAST]};
    if (status == HD_OK && o->stage_layers) {
        status = hdi_balance_check(o->stage_layers, stages, &balance);
        memcpy(counts, o->stage_layers, (size_t)stages * sizeof *counts);
    } else if (status == HD_OK) {
        status = hdi_balance(&balance, counts);
    }
    hdi_generator_facts *facts = &generator->facts;
    for (int s = 0; s <= generator->stage && status == HD_OK; s++) {
        facts->first_layer += facts->layers;
        facts->layers = counts[s];
    }
    hdi_free(costs);
    hdi_free(counts);
    return status;
}

hd_status hdi_generator_measure(hd_generator *generator)
{
    double flops[PARTS];
    for (part kind = PART_FIRST; kind < PARTS; kind++)
        HD_RETURN_IF_ERROR(measure_part(generator, kind, &flops[kind]));
    return cut_layers(generator, flops);
}

/* The stage's last activation becomes the tensor that travels. */
static void make_boundary(hd_program *program, hd_tensor out)
{
    hdi_tensor *tensor = hdi_tensor_of(program, out);
    if (!tensor) return;
    if (tensor->info.role != HD_ROLE_ACTIVATION) {
        hd_program_fail(program, HD_ERROR_ARGUMENT,
                        "a stage must end in a tensor made by an op, not in its input");
        return;
    }
    tensor->info.role = HD_ROLE_BOUNDARY;
    tensor->keep = true;
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
    if (!last) {
        make_boundary(it->program, out);
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
