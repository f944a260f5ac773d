/* Plans: put programs together, place what they share, hold all of it against the budget. */
#include "program/plan.h"

#include "core/error.h"
#include "core/memory.h"
#include "program/place.h"
#include "report/format.h"

#include <stdio.h>
#include <string.h>

const char *hd_region_name(hd_region region)
{
    static const char *const names[HD_ALL_REGIONS] = {
        [HD_REGION_WEIGHTS] = "weights",
        [HD_REGION_STREAMED] = "streamed weights",
        [HD_REGION_OPTIMIZER] = "optimizer state",
        [HD_REGION_STATE] = "tables, caches",
        [HD_REGION_GRADIENTS] = "gradients",
        [HD_REGION_IO] = "inputs, outputs",
        [HD_REGION_SAVED] = "saved activations",
        [HD_REGION_BOUNDARY] = "stage boundaries",
        [HD_REGION_TRANSIENT] = "transients",
        [HD_REGION_FOREIGN] = "foreign",
        [HD_REGION_TRANSPORT] = "transport, about",
        [HD_REGION_HOST_WEIGHTS] = "host: weights",
        [HD_REGION_HOST_OPTIMIZER] = "host: optimizer",
        [HD_REGION_HOST_GRADIENTS] = "host: gradients",
        [HD_REGION_HOST_SAVED] = "host: activations",
        [HD_REGION_HOST_STAGING] = "host: staging",
        [HD_REGION_HOST_MAILBOXES] = "host: mailboxes",
    };
    return names[region];
}

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
}

hd_status hd_plan_create(const hd_plan_options *options, hd_plan **out)
{
    *out = NULL;
    if (options->stream_slots < 0 || options->stream_slots > HD_STREAM_SLOTS ||
        options->host_blocks < 0)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "plan: %d slots for %d blocks on the host; want 0..%d slots and no "
                         "negative number",
                         options->stream_slots, options->host_blocks, HD_STREAM_SLOTS);
    *out = hdi_alloc(sizeof **out);
    if (!*out) return out_of_memory();
    (*out)->options = *options;
    if ((*out)->options.gradient_levels < 1) (*out)->options.gradient_levels = 1;
    return HD_OK;
}

hd_status hd_plan_add(hd_plan *plan, hd_program *program, const hd_plan_program_options *options)
{
    if (!program->finished)
        return hdi_error(HD_ERROR_ARGUMENT, "plan: program '%s' is not finished", program->name);
    if (plan->finished)
        return hdi_error(HD_ERROR_ARGUMENT, "plan: program '%s' is added to a finished plan",
                         program->name);
    for (int i = 0; i < plan->unit_count; i++)
        if (plan->units[i].program == program)
            return hdi_error(HD_ERROR_ARGUMENT, "plan: program '%s' is added twice", program->name);
    if (!HDI_GROW(plan->units, plan->unit_count, plan->unit_capacity)) return out_of_memory();
    hdi_unit *unit = &plan->units[plan->unit_count++];
    *unit = (hdi_unit){.program = program,
                       .options = options ? *options : (hd_plan_program_options){0}};
    int *slots[] = {&unit->options.saved_slots, &unit->options.io_slots,
                    &unit->options.boundary_slots, &unit->options.cache_slots};
    for (int i = 0; i < 4; i++)
        if (*slots[i] < 1) *slots[i] = 1;
    unit->places = hdi_alloc_array((size_t)program->tensor_count, sizeof *unit->places);
    unit->workspaces = hdi_alloc_array((size_t)program->op_count, sizeof *unit->workspaces);
    unit->workspace_bytes =
        hdi_alloc_array((size_t)program->op_count, sizeof *unit->workspace_bytes);
    unit->wait_begin = hdi_alloc_array((size_t)program->op_count + 1, sizeof *unit->wait_begin);
    if (!unit->places || !unit->workspaces || !unit->workspace_bytes || !unit->wait_begin)
        return out_of_memory();
    return HD_OK;
}

void hdi_plan_set_layout(hd_plan *plan, hdi_layout *layout)
{
    hdi_layout_destroy(plan->layout);
    plan->layout = layout;
}

void hd_plan_destroy(hd_plan *plan)
{
    if (!plan) return;
    for (int i = 0; i < plan->unit_count; i++) {
        hdi_free(plan->units[i].places);
        hdi_free(plan->units[i].workspaces);
        hdi_free(plan->units[i].workspace_bytes);
        hdi_free(plan->units[i].wait_begin);
        hdi_free(plan->units[i].waits);
        for (int phase = 0; phase < HDI_PHASES; phase++) {
            hdi_free(plan->units[i].streamed[phase].uses);
            hdi_free(plan->units[i].streamed[phase].fetches);
        }
    }
    hdi_residency_free(&plan->residency);
    hdi_free(plan->units);
    hdi_free(plan->states);
    hdi_layout_destroy(plan->layout);
    hdi_free(plan);
}

static hd_status plain_layout(hd_plan *plan)
{
    hd_program **programs = hdi_alloc_array((size_t)plan->unit_count, sizeof(hd_program *));
    if (!programs) return out_of_memory();
    for (int i = 0; i < plan->unit_count; i++)
        programs[i] = plan->units[i].program;
    const hd_plan_options *o = &plan->options;
    const bool cuts = o->shards > 1 && o->residency != HD_RESIDENCY_RESIDENT;
    const hdi_layout_options sharing = {.axis = HD_AXIS_SHARD,
                                        .shards = o->shards,
                                        .shard = o->shard,
                                        .bucket_elements = INT64_MAX,
                                        .cuts_blocks = true};
    hd_status status = hdi_layout_create(programs, plan->unit_count,
                                         cuts ? &sharing : &(hdi_layout_options){0}, &plan->layout);
    hdi_free(programs);
    return status;
}

/* Tables of one name but other contents, as programs of several shapes have them, are others. */
static bool is_same_table(const hdi_tensor *a, const hdi_tensor *b)
{
    if (!a->fill && !b->fill) return true;
    return a->fill == b->fill && a->info.bytes == b->info.bytes &&
           memcmp(a->fill_user, b->fill_user, sizeof a->fill_user) == 0;
}

static hdi_state *find_state(hd_plan *plan, const hdi_tensor *tensor)
{
    for (int i = 0; i < plan->state_count; i++)
        if (strcmp(plan->states[i].name, tensor->info.name) == 0 &&
            is_same_table(plan->states[i].from, tensor))
            return &plan->states[i];
    return NULL;
}

static hd_status place_state(hd_plan *plan, hdi_unit *unit, int id)
{
    const hdi_tensor *tensor = unit->program->tensors[id];
    int slots = tensor->per_slot ? unit->options.cache_slots : 1;
    size_t stride = hdi_place_round(tensor->info.bytes);
    hdi_state *state = find_state(plan, tensor);
    if (state &&
        (state->bytes != stride * (size_t)slots || state->from->info.bytes != tensor->info.bytes))
        return hdi_error(HD_ERROR_ARGUMENT,
                         "plan: state '%s' has %zu bytes x %zu slots in one program, %zu x %d in "
                         "another",
                         tensor->info.name, state->from->info.bytes,
                         state->bytes / hdi_place_round(state->from->info.bytes),
                         tensor->info.bytes, slots);
    if (!state) {
        if (!HDI_GROW(plan->states, plan->state_count, plan->state_capacity))
            return out_of_memory();
        state = &plan->states[plan->state_count++];
        *state = (hdi_state){tensor->info.name, tensor, plan->bytes[HD_REGION_STATE],
                             stride * (size_t)slots};
        plan->bytes[HD_REGION_STATE] += state->bytes;
    }
    unit->places[id] = (hdi_place_of){.region = HD_REGION_STATE,
                                      .offset = state->offset,
                                      .bytes = tensor->info.bytes,
                                      .stride = stride,
                                      .slots = slots,
                                      .placed = true};
    return HD_OK;
}

static void put_flat(hdi_unit *unit, int id, hd_region region, int64_t first)
{
    const hdi_tensor *tensor = unit->program->tensors[id];
    unit->places[id] = (hdi_place_of){.region = region,
                                      .offset = (size_t)first * hd_dtype_bytes(tensor->info.dtype),
                                      .bytes = tensor->info.bytes,
                                      .slots = 1,
                                      .placed = true};
}

static hd_status place_parameter(hd_plan *plan, hdi_unit *unit, int id)
{
    const hdi_tensor *tensor = unit->program->tensors[id];
    const hdi_residency *residency = &plan->residency;
    const int entry = hdi_layout_find(plan->layout, tensor->info.name);
    if (entry < 0)
        return hdi_error(HD_ERROR_INTERNAL, "plan: parameter '%s' has no place in the layout",
                         tensor->info.name);
    put_flat(unit, id, HD_REGION_WEIGHTS, plan->layout->entries[entry].first);
    hdi_place_of *place = &unit->places[id];
    if (hdi_residency_host(residency, entry)) {
        place->region = HD_REGION_STREAMED;
        place->offset = residency->homes[entry].in_block;
        place->slots = residency->slots;
        place->stride = residency->slot_bytes;
    } else if (residency->host_blocks) {
        place->offset = residency->homes[entry].offset;
    } else {
        const size_t end =
            (size_t)plan->layout->weights_elements * hd_dtype_bytes(tensor->info.dtype);
        if (plan->bytes[HD_REGION_WEIGHTS] < end) plan->bytes[HD_REGION_WEIGHTS] = end;
    }
    return HD_OK;
}

static hd_status place_parameters(hd_plan *plan)
{
    for (int u = 0; u < plan->unit_count; u++) {
        hdi_unit *unit = &plan->units[u];
        for (int i = 1; i < unit->program->tensor_count; i++) {
            const hdi_tensor *tensor = unit->program->tensors[i];
            if (tensor->flat == HDI_FLAT_NONE && tensor->info.role == HD_ROLE_PARAMETER)
                HD_RETURN_IF_ERROR(place_parameter(plan, unit, i));
        }
    }
    return HD_OK;
}

static hd_region flat_region(const hdi_tensor *tensor)
{
    switch (tensor->flat) {
    case HDI_FLAT_GRADIENTS: return tensor->host ? HD_REGION_HOST_GRADIENTS : HD_REGION_GRADIENTS;
    case HDI_FLAT_OPTIMIZER: return tensor->host ? HD_REGION_HOST_OPTIMIZER : HD_REGION_OPTIMIZER;
    case HDI_FLAT_WEIGHTS: return tensor->host ? HD_REGION_HOST_WEIGHTS : HD_REGION_WEIGHTS;
    case HDI_FLAT_NONE: break;
    }
    return HD_REGION_WEIGHTS;
}

/* Gradients, states and ranges of flat storage: places in the regions that all programs share. */
static hd_status place_shared(hd_plan *plan, int index)
{
    hdi_unit *unit = &plan->units[index];
    const hd_program *program = unit->program;
    for (int i = 1; i < program->tensor_count; i++) {
        const hdi_tensor *tensor = program->tensors[i];
        if (tensor->flat != HDI_FLAT_NONE) {
            put_flat(unit, i, flat_region(tensor), tensor->flat_first);
        } else if (tensor->info.role == HD_ROLE_GRADIENT && !tensor->within.id) {
            int64_t first = hdi_layout_gradient(plan->layout, index, (hd_tensor){i});
            if (first < 0)
                return hdi_error(HD_ERROR_INTERNAL,
                                 "plan: gradient %d of program '%s' has no place in the layout", i,
                                 program->name);
            put_flat(unit, i, HD_REGION_GRADIENTS, first);
        } else if (tensor->info.role == HD_ROLE_STATE) {
            HD_RETURN_IF_ERROR(place_state(plan, unit, i));
        }
    }
    return HD_OK;
}

/* Which blocks are not resident. With a budget: the fewest that it allows, all that is not weights being
 * the same for every number of them. */
static hd_status decide_residency(hd_plan *plan)
{
    const hd_plan_options *o = &plan->options;
    const int slots = o->stream_slots ? o->stream_slots : 2;
    if (plan->layout->weights_sharded && o->residency != HD_RESIDENCY_RESIDENT)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "plan: weights are sharded over %d ranks and wanted on "
                         "the host; want one of the two",
                         plan->layout->shards);
    if (plan->layout->weights_sharded || plan->layout->host_blocks)
        return hdi_residency_laid_out(plan, slots);
    if (o->residency == HD_RESIDENCY_RESIDENT) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_residency_find(plan));
    if (o->residency != HD_RESIDENCY_AUTO)
        return hdi_residency_keep(plan, o->residency, o->host_blocks, slots);
    hdi_residency_choose(plan, 0, slots);
    if (!o->budget) return HD_OK;
    hdi_plan_lay_out_arena(plan);
    const size_t rest = hd_plan_total_bytes(plan) - plan->bytes[HD_REGION_WEIGHTS];
    hdi_plan_lay_out_host(plan);
    return hdi_residency_fit(plan, rest, slots);
}

static hd_status check_budget(const hd_plan *plan)
{
    size_t need = hd_plan_total_bytes(plan);
    if (!plan->options.budget || need <= plan->options.budget) return HD_OK;
    char table[1024] = "";
    size_t used = 0, largest = 0;
    int worst = 0;
    for (int r = 0; r < HD_REGIONS; r++) {
        if (!plan->bytes[r]) continue;
        int length = snprintf(table + used, sizeof table - used, "\n  %s",
                              hdi_bytes_row(hd_region_name((hd_region)r), plan->bytes[r]).text);
        used += (size_t)length;
        if (plan->bytes[r] > largest) {
            largest = plan->bytes[r];
            worst = r;
        }
    }
    char least[192] = "";
    if (plan->options.residency == HD_RESIDENCY_AUTO)
        snprintf(least, sizeof least,
                 "\nno smaller budget would do: the weights of all %d blocks are on the host, with "
                 "room for one of them",
                 plan->residency.host_blocks);
    if (plan->least_weights)
        snprintf(least, sizeof least,
                 "\nwith all blocks on the host (residency host, or auto) a budget of %s would do",
                 hdi_bytes(need - plan->bytes[HD_REGION_WEIGHTS] - plan->bytes[HD_REGION_STREAMED] +
                           plan->least_weights)
                     .text);
    return hdi_error(HD_ERROR_BUDGET,
                     "does not fit: needs %s, the budget is %s, %s too little; the largest region "
                     "is %s with %s%s%s",
                     hdi_bytes(need).text, hdi_bytes(plan->options.budget).text,
                     hdi_bytes(need - plan->options.budget).text, hd_region_name((hd_region)worst),
                     hdi_bytes(largest).text, table, least);
}

/* Forget what an attempt that failed left behind. */
static void start_again(hd_plan *plan)
{
    memset(plan->bytes, 0, sizeof plan->bytes);
    plan->state_count = 0;
    for (int i = 0; i < plan->unit_count; i++) {
        hdi_unit *unit = &plan->units[i];
        memset(unit->bytes, 0, sizeof unit->bytes);
        memset(unit->places, 0, (size_t)unit->program->tensor_count * sizeof *unit->places);
        unit->peak_bytes = 0;
        unit->wait_count = 0;
    }
}

/* Gradients of all programs share flat storage, so they have one dtype. */
static hd_status find_gradient_dtype(const hd_plan *plan, hd_dtype *out)
{
    *out = HD_DTYPE_NONE;
    for (int u = 0; u < plan->unit_count; u++) {
        const hd_program *program = plan->units[u].program;
        for (int i = 1; i < program->tensor_count; i++) {
            const hd_tensor_info *info = &program->tensors[i]->info;
            if (info->role != HD_ROLE_GRADIENT) continue;
            if (*out == HD_DTYPE_NONE) *out = info->dtype;
            if (*out != info->dtype)
                return hdi_error(HD_ERROR_ARGUMENT,
                                 "plan: program '%s' has gradients of %s, one before it of %s; "
                                 "want one dtype",
                                 program->name, hd_dtype_name(info->dtype), hd_dtype_name(*out));
        }
    }
    return HD_OK;
}

hd_status hd_plan_finish(hd_plan *plan)
{
    if (plan->finished) return HD_OK;
    if (plan->unit_count == 0) return hdi_error(HD_ERROR_ARGUMENT, "plan: it has no programs");
    start_again(plan);
    if (!plan->layout) HD_RETURN_IF_ERROR(plain_layout(plan));
    hd_dtype gradients;
    HD_RETURN_IF_ERROR(find_gradient_dtype(plan, &gradients));
    plan->gradient_level_bytes =
        hdi_place_round((size_t)plan->layout->gradient_elements * hd_dtype_bytes(gradients));
    for (int i = 0; i < plan->unit_count; i++) {
        HD_RETURN_IF_ERROR(hdi_unit_place(&plan->units[i]));
        HD_RETURN_IF_ERROR(place_shared(plan, i));
    }
    HD_RETURN_IF_ERROR(decide_residency(plan));
    HD_RETURN_IF_ERROR(place_parameters(plan));
    for (int i = 0; i < plan->unit_count; i++)
        for (int t = 1; t < plan->units[i].program->tensor_count; t++) {
            const hdi_place_of *place = &plan->units[i].places[t];
            size_t end = place->offset + place->bytes;
            const bool state = place->region == HD_REGION_OPTIMIZER ||
                               place->region == HD_REGION_HOST_OPTIMIZER ||
                               place->region == HD_REGION_HOST_GRADIENTS;
            if (place->placed && state && plan->bytes[place->region] < end)
                plan->bytes[place->region] = end;
        }
    hdi_plan_lay_out_arena(plan);
    hdi_plan_lay_out_host(plan);
    HD_RETURN_IF_ERROR(check_budget(plan));
    for (int i = 0; i < plan->unit_count; i++) {
        HD_RETURN_IF_ERROR(hdi_unit_waits(plan, i));
        HD_RETURN_IF_ERROR(hdi_unit_uses(plan, i));
    }
    HD_RETURN_IF_ERROR(hdi_plan_verify(plan));
    plan->finished = true;
    return HD_OK;
}

size_t hd_plan_region_bytes(const hd_plan *plan, hd_region region)
{
    return plan->bytes[region];
}

size_t hd_plan_arena_bytes(const hd_plan *plan)
{
    return plan->arena_bytes;
}

size_t hd_plan_total_bytes(const hd_plan *plan)
{
    return plan->arena_bytes + plan->bytes[HD_REGION_FOREIGN] + plan->bytes[HD_REGION_TRANSPORT];
}

size_t hdi_plan_address(const hd_plan *plan, int index, hd_tensor tensor, int micro_batch,
                        int level)
{
    const hdi_unit *unit = &plan->units[index];
    const hdi_place_of *place = &unit->places[tensor.id];
    size_t address = unit->base[place->region] + place->offset +
                     (size_t)(micro_batch % place->slots) * place->stride;
    if (place->region == HD_REGION_GRADIENTS && !unit->program->tensors[tensor.id]->level_zero)
        address += (size_t)level * plan->gradient_level_bytes;
    return address;
}

bool hdi_unit_range(const hd_plan *plan, const hdi_unit *unit, int id, size_t *begin, size_t *end)
{
    if (id <= 0 || !unit->places[id].placed || !unit->places[id].bytes) return false;
    *begin = hdi_plan_address(plan, (int)(unit - plan->units), (hd_tensor){id}, 0, 0);
    *end = *begin + unit->places[id].bytes;
    return true;
}
