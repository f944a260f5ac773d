/* Proof on the plan, made without the code that laid it out: replay each program on a model of the
 * arena and see that every op reads what was meant for it.
 *
 * Each tensor that lives in scratch owns its bytes from its producer to its last reader. An op may
 * write bytes of a live tensor only if it is that tensor's last reader and the bytes are exactly
 * the same (in place). A posted communication holds its bytes until an op waits for it. What lies within
 * a tensor lives as long as that: who reads the one may read bytes of the other. */
#include "core/error.h"
#include "core/memory.h"
#include "program/plan.h"

typedef struct replay {
    const hd_plan *plan;
    const hdi_unit *unit;
    int *last_read;  /* [tensor] op index, -1 */
    int *first_part; /* [tensor] the first one within it; 0: none */
    int *next_part;  /* [tensor] the next one within the same; 0: none */
    int *live;       /* ids of tensors whose bytes hold something that is still wanted */
    int live_count;
    bool *written; /* [tensor] */
    int *users;    /* ops that use gradients and do not make them, in their order */
    int user_count;
} replay;

static hd_status broken(const replay *r, int op, const char *what, int id)
{
    char label[256];
    const hd_program *program = r->unit->program;
    return hdi_error(HD_ERROR_INTERNAL, "verifier: program '%s', op %d (%s): %s tensor %d '%s'",
                     program->name, op,
                     hdi_op_label(program, program->ops[op], label, sizeof label), what, id,
                     id ? program->tensors[id]->info.name : "workspace");
}

static bool scratch(const hdi_unit *unit, int id)
{
    hd_region region = unit->places[id].region;
    return region == HD_REGION_SAVED || region == HD_REGION_TRANSIENT || region == HD_REGION_IO ||
           region == HD_REGION_BOUNDARY;
}

/* May op write tensor `id` over `other`, which it reads? */
static bool in_place(const hd_op *op, int id, int other)
{
    for (int k = 0; k < op->inputs; k++) {
        if (op->in[k].id != other) continue;
        if (op->kind->in_place >> k & 1) return op->outputs > 0 && op->out[0].id == id;
        if (op->kind->second_in_place >> k & 1) return op->outputs > 1 && op->out[1].id == id;
    }
    return false;
}

/* The tensor that has `id`'s bytes. */
static int whole_of(const replay *r, int id)
{
    const int whole = id ? r->unit->program->tensors[id]->within.id : 0;
    return whole ? whole : id;
}

/* What an op updates in place, it has read, and with it its parts and what overlaps it in its whole. */
static bool updates_whole(const replay *r, const hd_op *op, int id, int other)
{
    return id && (op->kind->flags & HD_OP_UPDATES) &&
           r->unit->program->tensors[other]->within.id == whole_of(r, id);
}

/* Nothing that is still wanted may lie in [begin, end), written by op `index` as tensor `id`. */
static hd_status check_write(const replay *r, int index, int id, size_t begin, size_t end)
{
    const hd_op *op = &r->unit->program->ops[index]->op;
    const size_t room =
        begin < HDI_HOST_BASE ? r->plan->arena_bytes : HDI_HOST_BASE + r->plan->host_arena_bytes;
    if (end > room) return broken(r, index, "writes past the arena:", id);
    for (int i = 0; i < r->live_count; i++) {
        int other = r->live[i];
        size_t other_begin, other_end;
        if (other == id || !hdi_unit_range(r->plan, r->unit, other, &other_begin, &other_end))
            continue;
        if (begin >= other_end || other_begin >= end) continue;
        if (id && r->unit->program->tensors[id]->within.id == other) continue;
        if (updates_whole(r, op, id, other)) continue;
        const int whole = whole_of(r, other);
        bool allowed = id && in_place(op, id, whole) && r->last_read[other] == index &&
                       hdi_unit_range(r->plan, r->unit, whole, &other_begin, &other_end) &&
                       begin == other_begin && end == other_end;
        if (!allowed) return broken(r, index, "overwrites live", other);
    }
    return HD_OK;
}

static void let_die(replay *r, int index)
{
    int kept = 0;
    for (int i = 0; i < r->live_count; i++) {
        int id = r->live[i];
        bool wanted = r->last_read[id] > index || r->unit->program->tensors[id]->keep;
        if (wanted) r->live[kept++] = id;
    }
    r->live_count = kept;
}

/* Tensor `id` is read by op `index`: what makes its bytes, whole or in parts, has been. */
static hd_status check_read(const replay *r, int index, int id)
{
    const hd_program *program = r->unit->program;
    if (!r->unit->places[id].placed) return broken(r, index, "reads unplaced", id);
    const int whole = whole_of(r, id);
    const int producer = program->tensors[whole]->producer;
    size_t begin = 0, end = 0, part_begin, part_end, made = 0;
    hdi_unit_range(r->plan, r->unit, id, &begin, &end);
    bool in_parts = false;
    for (int part = r->first_part[whole]; part; part = r->next_part[part]) {
        const hdi_tensor *tensor = program->tensors[part];
        const bool is_gradient = tensor->info.role == HD_ROLE_GRADIENT;
        if ((!is_gradient && r->written[whole]) || (tensor->producer < 0 && !is_gradient) ||
            !hdi_unit_range(r->plan, r->unit, part, &part_begin, &part_end))
            continue;
        in_parts = in_parts || !is_gradient;
        if (part_begin >= end || begin >= part_end) continue;
        if (!r->written[part]) return broken(r, index, "reads, before it is written,", part);
        made += (part_end < end ? part_end : end) - (part_begin > begin ? part_begin : begin);
    }
    if (in_parts && made != end - begin)
        return broken(r, index, "reads, of which not all is written,", id);
    if (producer >= 0 && !in_parts && !r->written[whole])
        return broken(r, index, "reads unwritten", id);
    /* Between the phases other micro-batches run and use the transients. */
    if (producer >= 0 && program->ops[producer]->phase != program->ops[index]->phase &&
        r->unit->places[id].region == HD_REGION_TRANSIENT)
        return broken(r, index, "reads, made in another phase but not saved,", id);
    return HD_OK;
}

static hd_status replay_op(replay *r, int index)
{
    const hd_program *program = r->unit->program;
    const hd_op *op = &program->ops[index]->op;
    for (int k = 0; k < op->inputs; k++)
        if (op->in[k].id) HD_RETURN_IF_ERROR(check_read(r, index, op->in[k].id));
    if (r->unit->workspace_bytes[index]) {
        size_t begin = r->unit->base[HD_REGION_TRANSIENT] + r->unit->workspaces[index];
        HD_RETURN_IF_ERROR(
            check_write(r, index, 0, begin, begin + r->unit->workspace_bytes[index]));
    }
    for (int k = 0; k < op->outputs; k++) {
        int id = op->out[k].id;
        size_t begin, end;
        if (!r->unit->places[id].placed) return broken(r, index, "writes unplaced", id);
        if (!hdi_unit_range(r->plan, r->unit, id, &begin, &end)) continue;
        HD_RETURN_IF_ERROR(check_write(r, index, id, begin, end));
        if (scratch(r->unit, id) && !r->written[id]) r->live[r->live_count++] = id;
        r->written[id] = true;
    }
    let_die(r, index);
    return HD_OK;
}

static bool has_gradients(const replay *r, int id)
{
    const hd_program *program = r->unit->program;
    if (id && program->tensors[id]->flat == HDI_FLAT_GRADIENTS) return true;
    for (int part = r->first_part[id]; part; part = r->next_part[part])
        if (program->tensors[part]->info.role == HD_ROLE_GRADIENT) return true;
    return false;
}

static void list_users(replay *r)
{
    const hd_program *program = r->unit->program;
    for (int i = 0; i < program->op_count; i++) {
        const hd_op *op = &program->ops[i]->op;
        bool uses = false;
        if (op->kind->flags & (HD_OP_WEIGHT_GRADIENT | HD_OP_LOADS)) continue;
        for (int k = 0; k < op->inputs + op->outputs && !uses; k++)
            uses = has_gradients(r, k < op->inputs ? op->in[k].id : op->out[k - op->inputs].id);
        if (uses) r->users[r->user_count++] = i;
    }
}

/* A gradient is complete when something else first touches it: no weight gradient may come later. */
static hd_status check_gradient_complete(const replay *r, int index)
{
    const hd_program *program = r->unit->program;
    size_t begin, end, other_begin, other_end;
    int gradient = program->ops[index]->op.out[0].id;
    if (!hdi_unit_range(r->plan, r->unit, gradient, &begin, &end)) return HD_OK;
    for (int u = 0; u < r->user_count && r->users[u] < index; u++) {
        const hd_op *op = &program->ops[r->users[u]]->op;
        for (int k = 0; k < op->inputs + op->outputs; k++) {
            int id = k < op->inputs ? op->in[k].id : op->out[k - op->inputs].id;
            if (id && program->tensors[gradient]->within.id == id)
                return broken(r, index, "adds to a gradient that has been used,", gradient);
            if (program->tensors[id] && program->tensors[id]->flat == HDI_FLAT_GRADIENTS &&
                hdi_unit_range(r->plan, r->unit, id, &other_begin, &other_end) &&
                begin < other_end && other_begin < end)
                return broken(r, index, "adds to a gradient that has been used,", gradient);
        }
    }
    return HD_OK;
}

static bool overlaps(const replay *r, int id, size_t begin, size_t end)
{
    size_t other_begin, other_end;
    return hdi_unit_range(r->plan, r->unit, id, &other_begin, &other_end) && begin < other_end &&
           other_begin < end;
}

/* Does op `index` write bytes in [begin, end), or, with `reading`, read them? */
static hd_status check_untouched(const replay *r, int index, size_t begin, size_t end, bool reading)
{
    const hd_op *op = &r->unit->program->ops[index]->op;
    for (int k = 0; k < op->outputs; k++)
        if (overlaps(r, op->out[k].id, begin, end))
            return broken(r, index, "writes, unordered with posted communication,", op->out[k].id);
    for (int k = 0; reading && k < op->inputs; k++)
        if (overlaps(r, op->in[k].id, begin, end))
            return broken(r, index, "reads, unordered with posted communication,", op->in[k].id);
    size_t scratch_begin = r->unit->base[HD_REGION_TRANSIENT] + r->unit->workspaces[index];
    if (scratch_begin < end && begin < scratch_begin + r->unit->workspace_bytes[index])
        return broken(r, index, "writes, unordered with posted communication,", 0);
    return HD_OK;
}

/* Between a posted operation and the first op that waits for it, nobody may write what it reads or
 * touch what it writes. */
static hd_status check_posted(const replay *r, int posted)
{
    const hd_program *program = r->unit->program;
    const hd_op *op = &program->ops[posted]->op;
    for (int i = posted + 1; i < program->op_count; i++) {
        for (int w = r->unit->wait_begin[i]; w < r->unit->wait_begin[i + 1]; w++)
            if (r->unit->waits[w] == posted) return HD_OK;
        for (int k = 0; k < op->inputs + op->outputs; k++) {
            bool written = k >= op->inputs;
            int id = written ? op->out[k - op->inputs].id : op->in[k].id;
            size_t begin, end;
            if (hdi_unit_range(r->plan, r->unit, id, &begin, &end))
                HD_RETURN_IF_ERROR(check_untouched(r, i, begin, end, written));
        }
    }
    return HD_OK;
}

static void list_parts(replay *r)
{
    const hd_program *program = r->unit->program;
    for (int i = program->tensor_count - 1; i > 0; i--) {
        const int whole = program->tensors[i]->within.id;
        if (!whole) continue;
        r->next_part[i] = r->first_part[whole];
        r->first_part[whole] = i;
    }
}

static hd_status verify_unit(const hd_plan *plan, const hdi_unit *unit)
{
    const hd_program *program = unit->program;
    size_t count = (size_t)program->tensor_count;
    replay r = {.plan = plan, .unit = unit};
    r.last_read = hdi_alloc_array(count, sizeof *r.last_read);
    r.first_part = hdi_alloc_array(count, sizeof *r.first_part);
    r.next_part = hdi_alloc_array(count, sizeof *r.next_part);
    r.live = hdi_alloc_array(count, sizeof *r.live);
    r.written = hdi_alloc_array(count, sizeof *r.written);
    r.users = hdi_alloc_array((size_t)program->op_count + 1, sizeof *r.users);
    hd_status status = r.last_read && r.first_part && r.next_part && r.live && r.written && r.users
                           ? HD_OK
                           : hdi_error(HD_ERROR_MEMORY, "verifier: out of host memory");
    if (status == HD_OK) {
        list_parts(&r);
        list_users(&r);
        for (int i = 0; i < program->tensor_count; i++)
            r.last_read[i] = -1;
        for (int i = 0; i < program->op_count; i++)
            for (int k = 0; k < program->ops[i]->op.inputs; k++)
                r.last_read[program->ops[i]->op.in[k].id] = i;
        for (int to = 0; to < 2; to++) /* the whole lives as long as its parts, these as that */
            for (int i = 1; i < program->tensor_count; i++) {
                const int from = to ? whole_of(&r, i) : i, last = to ? i : whole_of(&r, i);
                if (r.last_read[last] < r.last_read[from]) r.last_read[last] = r.last_read[from];
            }
        for (int i = 1; i < program->tensor_count; i++) {
            hd_role role = program->tensors[i]->info.role;
            bool from_outside = program->tensors[i]->producer < 0 &&
                                (role == HD_ROLE_INPUT || role == HD_ROLE_BOUNDARY);
            if (from_outside && unit->places[i].placed) r.live[r.live_count++] = i;
        }
    }
    for (int i = 0; i < program->op_count && status == HD_OK; i++)
        status = replay_op(&r, i);
    for (int i = 0; i < program->op_count && status == HD_OK; i++) {
        uint32_t flags = program->ops[i]->op.kind->flags;
        if (hdi_op_is_posted(&program->ops[i]->op)) status = check_posted(&r, i);
        if (status == HD_OK && flags & HD_OP_WEIGHT_GRADIENT)
            status = check_gradient_complete(&r, i);
    }
    hdi_free(r.last_read);
    hdi_free(r.first_part);
    hdi_free(r.next_part);
    hdi_free(r.live);
    hdi_free(r.written);
    hdi_free(r.users);
    return status;
}

hd_status hdi_plan_verify(const hd_plan *plan)
{
    for (int i = 0; i < plan->unit_count; i++)
        HD_RETURN_IF_ERROR(verify_unit(plan, &plan->units[i]));
    HD_RETURN_IF_ERROR(hdi_plan_verify_residency(plan));
    HD_RETURN_IF_ERROR(hdi_plan_verify_beside(plan));
    return hdi_plan_verify_regions(plan);
}
