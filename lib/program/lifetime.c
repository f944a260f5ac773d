/* Lifetimes of a program's tensors, in-place reuse, and their places within its scratch. */
#include "core/error.h"
#include "core/memory.h"
#include "program/place.h"
#include "program/plan.h"

/* What the placer knows of one tensor. Tensors that share bytes by in-place ops form a chain whose
 * storage belongs to `owner`. */
typedef struct lifetime {
    int owner;
    int first, last; /* positions: producer and last reader; -1 if unused */
    bool saved;      /* made in the forward, read in the backward */
} lifetime;

static bool is_activation(const hdi_tensor *tensor)
{
    return tensor->info.role == HD_ROLE_ACTIVATION;
}

/* The tensor whose bytes a tensor has. */
static int holder(const hd_program *program, int id)
{
    return id && program->tensors[id]->within.id ? program->tensors[id]->within.id : id;
}

static void find_lifetimes(const hd_program *program, lifetime *lives)
{
    for (int i = 1; i < program->tensor_count; i++)
        lives[i] = (lifetime){.owner = i, .first = -1, .last = -1};
    for (int i = 0; i < program->op_count; i++) {
        const hdi_op *op = program->ops[i];
        for (int k = 0; k < op->op.outputs; k++) {
            lifetime *life = &lives[holder(program, op->op.out[k].id)];
            if (life->first < 0) life->first = i;
            if (life->last < i) life->last = i;
        }
        for (int k = 0; k < op->op.inputs; k++) {
            const int id = holder(program, op->op.in[k].id);
            lifetime *life = &lives[id];
            const int producer = id ? program->tensors[id]->producer : -1;
            life->last = i;
            if (producer >= 0 && program->ops[producer]->phase == HDI_PHASE_FORWARD &&
                op->phase == HDI_PHASE_BACKWARD)
                life->saved = true;
        }
    }
}

/* Whether two tensors have bytes in common, in place or not. */
static bool is_shared(const hd_program *program, int id, int other)
{
    if (id == other || !id || !other) return id == other;
    if (holder(program, id) != holder(program, other)) return false;
    const hdi_tensor *a = program->tensors[id], *b = program->tensors[other];
    const int64_t a_first = a->within.id ? a->within_first : 0;
    const int64_t b_first = b->within.id ? b->within_first : 0;
    return a_first < b_first + b->info.elements && b_first < a_first + a->info.elements;
}

static void extend(lifetime *life, int last)
{
    if (life->last < last) life->last = last;
}

/* A posted operation still reads and writes its tensors until somebody waits for it: until the
 * next op that touches one of them, or the end of the program. */
static void extend_communication(const hd_program *program, lifetime *lives)
{
    for (int i = 0; i < program->op_count; i++) {
        const hdi_op *op = program->ops[i];
        if (!(op->op.kind->flags & HD_OP_COMMUNICATES)) continue;
        int over = program->op_count - 1;
        for (int j = i + 1; j < program->op_count && over == program->op_count - 1; j++)
            for (int k = 0; k < program->ops[j]->op.inputs; k++)
                for (int o = 0; o < op->op.outputs; o++)
                    if (is_shared(program, program->ops[j]->op.in[k].id, op->op.out[o].id))
                        over = j;
        for (int k = 0; k < op->op.inputs; k++)
            extend(&lives[holder(program, op->op.in[k].id)], over);
        for (int k = 0; k < op->op.outputs; k++)
            extend(&lives[holder(program, op->op.out[k].id)], over);
    }
}

/* Let an output of an op take the place of one of the inputs `allowed` if that dies there. */
static void share_output(const hd_program *program, lifetime *lives, int index, int output,
                         uint32_t allowed)
{
    const hd_op *op = &program->ops[index]->op;
    if (!allowed || op->outputs <= output) return;
    const hdi_tensor *out = program->tensors[op->out[output].id];
    if (!is_activation(out) || out->within.id) return;
    for (int k = 0; k < op->inputs; k++) {
        if (!(allowed >> k & 1) || !op->in[k].id) continue;
        const hdi_tensor *in = program->tensors[op->in[k].id];
        lifetime *life = &lives[op->in[k].id];
        bool dies = is_activation(in) && !in->within.id && life->last == index && !life->saved &&
                    in->info.bytes == out->info.bytes && in->producer >= 0 &&
                    program->ops[in->producer]->phase == program->ops[index]->phase;
        for (int other = 0; other < op->inputs; other++)
            dies = dies && (other == k || op->in[other].id != op->in[k].id);
        if (!dies) continue;
        lives[op->out[output].id].owner = life->owner;
        return;
    }
}

/* No input is allowed to both outputs. */
static void share_in_place(const hd_program *program, lifetime *lives)
{
    for (int i = 0; i < program->op_count; i++) {
        const hd_op_kind *kind = program->ops[i]->op.kind;
        share_output(program, lives, i, 0, kind->in_place);
        share_output(program, lives, i, 1, kind->second_in_place & ~kind->in_place);
    }
    for (int i = 1; i < program->tensor_count; i++) {
        lifetime *life = &lives[i], *owner = &lives[life->owner];
        if (life->owner == i) continue;
        owner->saved = owner->saved || life->saved;
        if (owner->last < life->last) owner->last = life->last;
    }
}

static void put(hdi_unit *unit, int id, hd_region region, int slots)
{
    const hdi_tensor *tensor = unit->program->tensors[id];
    unit->places[id] = (hdi_place_of){.region = region,
                                      .offset = unit->bytes[region],
                                      .bytes = tensor->info.bytes,
                                      .slots = slots,
                                      .placed = true};
    unit->bytes[region] += hdi_place_round(tensor->info.bytes);
}

/* Boundary tensors differ in how many copies they need, so each keeps its copies together. */
static void put_boundary(hdi_unit *unit, int id)
{
    const hdi_tensor *tensor = unit->program->tensors[id];
    int slots = tensor->slots ? tensor->slots : unit->options.boundary_slots;
    put(unit, id, HD_REGION_BOUNDARY, slots);
    unit->places[id].stride = hdi_place_round(tensor->info.bytes);
    unit->bytes[HD_REGION_BOUNDARY] += unit->places[id].stride * (size_t)(slots - 1);
}

/* Inputs, outputs, boundaries and saved activations: each has bytes of its own in a slot. */
static void place_slots(hdi_unit *unit, const lifetime *lives)
{
    const hd_program *program = unit->program;
    for (int i = 1; i < program->tensor_count; i++) {
        switch (program->tensors[i]->info.role) {
        case HD_ROLE_INPUT:
        case HD_ROLE_OUTPUT: put(unit, i, HD_REGION_IO, unit->options.io_slots); break;
        case HD_ROLE_BOUNDARY: put_boundary(unit, i); break;
        case HD_ROLE_ACTIVATION:
            if (program->tensors[i]->host)
                put(unit, i, HD_REGION_HOST_SAVED, unit->options.saved_slots);
            else if (lives[i].owner == i && lives[i].saved)
                put(unit, i, HD_REGION_SAVED, unit->options.saved_slots);
            break;
        case HD_ROLE_PARAMETER:
        case HD_ROLE_GRADIENT:
        case HD_ROLE_STATE: break;
        }
    }
    const hd_region regions[] = {HD_REGION_IO, HD_REGION_SAVED, HD_REGION_HOST_SAVED};
    const int slots[] = {unit->options.io_slots, unit->options.saved_slots,
                         unit->options.saved_slots};
    for (int r = 0; r < 3; r++) {
        for (int i = 1; i < program->tensor_count; i++)
            if (unit->places[i].placed && unit->places[i].region == regions[r])
                unit->places[i].stride = unit->bytes[regions[r]];
        unit->bytes[regions[r]] *= (size_t)slots[r];
    }
}

static hd_status find_peak(hdi_unit *unit, const hdi_span *spans, int count)
{
    const size_t ops = (size_t)unit->program->op_count;
    size_t *begin = hdi_alloc_array(2 * (ops + 1), sizeof *begin), live = 0;
    if (!begin) return hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
    size_t *end = begin + ops + 1;
    for (int s = 0; s < count; s++) {
        begin[spans[s].first] += spans[s].bytes;
        end[spans[s].last + 1] += spans[s].bytes;
    }
    for (size_t i = 0; i < ops; i++) {
        live += begin[i] - end[i];
        if (live <= unit->peak_bytes) continue;
        unit->peak_bytes = live;
        unit->peak_op = (int)i;
    }
    hdi_free(begin);
    return HD_OK;
}

static hd_status place_transients(hdi_unit *unit, const lifetime *lives)
{
    const hd_program *program = unit->program;
    int limit = program->tensor_count + program->op_count, count = 0;
    hdi_span *spans = hdi_alloc_array((size_t)limit, sizeof *spans);
    int *whose = hdi_alloc_array((size_t)limit, sizeof *whose);
    hd_status status =
        spans && whose ? HD_OK : hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
    for (int i = 1; i < program->tensor_count && status == HD_OK; i++) {
        const lifetime *life = &lives[i];
        if (!is_activation(program->tensors[i]) || program->tensors[i]->host || life->owner != i ||
            life->saved || life->first < 0)
            continue;
        whose[count] = i;
        spans[count++] = (hdi_span){program->tensors[i]->info.bytes, life->first, life->last, 0};
    }
    int tensors = count;
    for (int i = 0; i < program->op_count && status == HD_OK; i++) {
        const hd_op *op = &program->ops[i]->op;
        size_t bytes = op->kind->workspace ? op->kind->workspace(op) : 0;
        unit->workspace_bytes[i] = bytes;
        if (!bytes) continue;
        whose[count] = i;
        spans[count++] = (hdi_span){bytes, i, i, 0};
    }
    if (status == HD_OK) status = hdi_place(spans, count, &unit->bytes[HD_REGION_TRANSIENT]);
    for (int s = 0; s < count && status == HD_OK; s++) {
        if (s < tensors)
            unit->places[whose[s]] = (hdi_place_of){.region = HD_REGION_TRANSIENT,
                                                    .offset = spans[s].offset,
                                                    .bytes = spans[s].bytes,
                                                    .slots = 1,
                                                    .placed = true};
        else
            unit->workspaces[whose[s]] = spans[s].offset;
    }
    if (status == HD_OK) status = find_peak(unit, spans, count);
    hdi_free(spans);
    hdi_free(whose);
    return status;
}

hd_status hdi_unit_place(hdi_unit *unit)
{
    const hd_program *program = unit->program;
    lifetime *lives = hdi_alloc_array((size_t)program->tensor_count, sizeof *lives);
    if (!lives) return hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
    find_lifetimes(program, lives);
    extend_communication(program, lives);
    share_in_place(program, lives);
    place_slots(unit, lives);
    hd_status status = place_transients(unit, lives);
    for (int i = 1; i < program->tensor_count && status == HD_OK; i++)
        if (is_activation(program->tensors[i]) && lives[i].owner != i && lives[i].first >= 0)
            unit->places[i] = unit->places[lives[i].owner];
    for (int i = 1; i < program->tensor_count && status == HD_OK; i++) {
        const hdi_tensor *tensor = program->tensors[i];
        if (!tensor->within.id) continue;
        unit->places[i] = unit->places[tensor->within.id];
        unit->places[i].offset += (size_t)tensor->within_first * hd_dtype_bytes(tensor->info.dtype);
        unit->places[i].bytes = tensor->info.bytes;
    }
    hdi_free(lives);
    return status;
}
