/* What the whole model consists of: found by building the part before the layers, each layer, and
 * the part after them, as programs of their own. */
#include "jobs/train/trainer.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "parallel/cut.h"

#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
}

const hdi_global_parameter *hdi_census_find(const hdi_census *census, const char *name)
{
    const int found = hdi_names_find(&census->by_name, name);
    return found < 0 ? NULL : &census->parameters[found];
}

void hdi_census_release(hdi_census *census)
{
    for (int i = 0; i < census->count; i++) {
        hdi_free(census->parameters[i].name);
        hdi_free(census->parameters[i].stages);
    }
    hdi_free(census->parameters);
    hdi_names_free(&census->by_name);
    hdi_free(census->layer_costs);
    hdi_free(census->stage_layers);
}

/* One part of the model: what stands before the layers, one layer, or what stands after them. */
typedef struct part {
    hd_program *program;
    hd_tensor out;
} part;

/* `mesh` NULL: of whole sequences and layers, so that what all ranks must agree on, such as costs, is the same on
 * those that have more of them and those that have fewer. */
static hd_status build_part(hd_trainer *trainer, const hdi_trainer_shape *shape, int layer,
                            bool first, bool last, const hd_mesh *mesh, part *out)
{
    const hd_trainer_options *options = &trainer->options;
    *out = (part){0};
    HD_RETURN_IF_ERROR(hd_program_create(
        &(hd_program_options){
            .name = "model", .dtype = options->dtype, .mesh = mesh, .backend = options->backend},
        &out->program));
    hd_tensor x = {0};
    if (!first)
        x = hdi_tensor_add(out->program, "x", shape->x_dtype, HD_ROLE_BOUNDARY, shape->x_rank,
                           shape->x_dims);
    hd_stage stage = {.purpose = HD_PURPOSE_EVALUATE,
                      .first_layer = first ? 0 : layer,
                      .layers = first || last ? 0 : 1,
                      .first = first,
                      .last = last,
                      .sequences = shape->is.sequences,
                      .tokens = shape->is.tokens,
                      .video = shape->is.video};
    out->out = options->build(options->user, out->program, &stage, x);
    return hd_program_finish(out->program);
}

static hd_status count_uses(hdi_census *census, const hd_program *program, int stage)
{
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u];
        hdi_global_parameter *found =
            (hdi_global_parameter *)(uintptr_t)hdi_census_find(census, use->name);
        if (!found) {
            if (!HDI_GROW(census->parameters, census->count, census->capacity))
                return out_of_memory();
            found = &census->parameters[census->count];
            *found =
                (hdi_global_parameter){.name = hdi_strdup(use->name),
                                       .elements = hd_tensor_get(program, use->tensor)->elements,
                                       .first_block = census->blocks};
            if (!found->name || !hdi_names_put(&census->by_name, found->name, census->count)) {
                hdi_free(found->name);
                return out_of_memory();
            }
            census->count++;
            census->blocks += hdi_ceil_div(found->elements, HDI_BLOCK_ELEMENTS_LAYOUT);
        }
        int64_t elements = hd_tensor_get(program, use->tensor)->elements;
        if (elements != found->elements)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "trainer: parameter '%s' has %lld elements in one stage, %lld in "
                             "another",
                             use->name, (long long)found->elements, (long long)elements);
        bool known = found->stage_count && found->stages[found->stage_count - 1] == stage;
        if (known) continue;
        if (!HDI_GROW(found->stages, found->stage_count, found->stage_capacity))
            return out_of_memory();
        found->stages[found->stage_count++] = stage;
    }
    return HD_OK;
}

/* What passes between stages has one shape all the way. */
static hd_status check_x(const hdi_trainer_shape *shape, int layer, const part *built)
{
    const hd_tensor_info *x = hd_tensor_get(built->program, built->out);
    bool same = x && x->dtype == shape->x_dtype && x->rank == shape->x_rank &&
                memcmp(x->dims, shape->x_dims, sizeof shape->x_dims) == 0;
    if (same) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT,
                     "trainer: layer %d returns %s, want a tensor of the shape that it was given",
                     layer, x ? "another shape" : "no tensor");
}

static double part_cost(const hd_program *program)
{
    hd_cost cost;
    hdi_program_cost(program, HDI_PHASE_FORWARD, &cost);
    return cost.flops;
}

static hd_status learn_first(hd_trainer *trainer, hdi_trainer_shape *shape, const hd_mesh *mesh,
                             part *built)
{
    HD_RETURN_IF_ERROR(build_part(trainer, shape, 0, true, false, mesh, built));
    const hd_tensor_info *x = hd_tensor_get(built->program, built->out);
    if (!x) return hdi_error(HD_ERROR_ARGUMENT, "trainer: the first stage returned no tensor");
    shape->x_dtype = x->dtype;
    shape->x_rank = x->rank;
    memcpy(shape->x_dims, x->dims, sizeof shape->x_dims);
    return HD_OK;
}

/* What passes between stages on this rank. That is all that is asked of further shapes; their programs
 * are held against those of the first. */
static hd_status learn_shapes(hd_trainer *trainer)
{
    for (int s = 0; s < trainer->shape_count; s++) {
        part built = {0};
        hd_status status = learn_first(trainer, &trainer->shapes[s], trainer->options.mesh, &built);
        hd_program_destroy(built.program);
        HD_RETURN_IF_ERROR(status);
    }
    return HD_OK;
}

static hd_status learn_parts(hd_trainer *trainer, part *parts)
{
    hdi_census *census = &trainer->census;
    hdi_trainer_shape *shape = &trainer->shapes[0];
    int layers = trainer->options.layers;
    const hd_mesh *mesh = trainer->options.mesh;
    if (hd_mesh_size(mesh, HD_AXIS_SEQUENCE) > 1 || hd_mesh_size(mesh, HD_AXIS_TENSOR) > 1)
        mesh = NULL;
    HD_RETURN_IF_ERROR(learn_first(trainer, shape, mesh, &parts[0]));
    census->first_cost = part_cost(parts[0].program);
    for (int i = 0; i < layers; i++) {
        HD_RETURN_IF_ERROR(build_part(trainer, shape, i, false, false, mesh, &parts[1 + i]));
        HD_RETURN_IF_ERROR(check_x(shape, i, &parts[1 + i]));
        census->layer_costs[i] = part_cost(parts[1 + i].program);
    }
    HD_RETURN_IF_ERROR(build_part(trainer, shape, layers, false, true, mesh, &parts[1 + layers]));
    census->last_cost = part_cost(parts[1 + layers].program);
    return HD_OK;
}

static hd_status cut_stages(hd_trainer *trainer)
{
    hdi_census *census = &trainer->census;
    int stages = trainer->pipeline * trainer->chunks;
    hdi_balance_options balance = {.layers = trainer->options.layers,
                                   .stages = stages,
                                   .costs = census->layer_costs,
                                   .first_cost = census->first_cost,
                                   .last_cost = census->last_cost};
    census->stage_layers = hdi_alloc_array((size_t)stages, sizeof(int));
    if (!census->stage_layers) return out_of_memory();
    if (!trainer->options.stage_layers)
        return hdi_cut(&balance, &trainer->shapes[0].schedule->options, census->stage_layers);
    HD_RETURN_IF_ERROR(hdi_balance_check(trainer->options.stage_layers, stages, &balance));
    memcpy(census->stage_layers, trainer->options.stage_layers, (size_t)stages * sizeof(int));
    return HD_OK;
}

static hd_status count_all(hd_trainer *trainer, const part *parts)
{
    hdi_census *census = &trainer->census;
    int stages = trainer->pipeline * trainer->chunks, layer = 0;
    HD_RETURN_IF_ERROR(count_uses(census, parts[0].program, 0));
    for (int s = 0; s < stages; s++)
        for (int i = 0; i < census->stage_layers[s]; i++)
            HD_RETURN_IF_ERROR(count_uses(census, parts[1 + layer++].program, s));
    return count_uses(census, parts[1 + layer].program, stages - 1);
}

hd_status hdi_census_take(hd_trainer *trainer)
{
    int count = trainer->options.layers + 2;
    part *parts = hdi_alloc_array((size_t)count, sizeof *parts);
    trainer->census.layer_costs = hdi_alloc_array((size_t)count, sizeof(double));
    if (!parts || !trainer->census.layer_costs) {
        hdi_free(parts);
        return out_of_memory();
    }
    hd_status status = learn_parts(trainer, parts);
    if (status == HD_OK) status = learn_shapes(trainer);
    if (status == HD_OK) status = cut_stages(trainer);
    if (status == HD_OK) status = count_all(trainer, parts);
    for (int i = 0; i < count; i++)
        hd_program_destroy(parts[i].program);
    hdi_free(parts);
    return status;
}
