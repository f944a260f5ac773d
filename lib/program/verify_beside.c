/* Proof on the plan of programs that run beside others: what those touch, too, is released behind its last
 * use, and all that was posted on it is over by then. Made from the addresses of tensors. */
#include "core/error.h"
#include "core/memory.h"
#include "program/plan.h"

#include <stdlib.h>

typedef struct range {
    size_t begin, end;
} range;

/* Ascending and apart, once they are joined. */
typedef struct ranges {
    range *items;
    int count, capacity;
} ranges;

static int earlier(const void *left, const void *right)
{
    const range *a = left, *b = right;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

static hd_status add(ranges *list, range item)
{
    if (!HDI_GROW(list->items, list->count, list->capacity))
        return hdi_error(HD_ERROR_MEMORY, "verifier: out of host memory");
    list->items[list->count++] = item;
    return HD_OK;
}

/* Bytes of a program's tensors, in all slots and gradient levels, and workspaces. */
static hd_status add_unit(const hd_plan *plan, const hdi_unit *unit, ranges *list)
{
    const size_t levels = (size_t)(plan->options.gradient_levels - 1) * plan->gradient_level_bytes;
    for (int id = 1; id < unit->program->tensor_count; id++) {
        range item;
        const hdi_place_of *place = &unit->places[id];
        if (!hdi_unit_range(plan, unit, id, &item.begin, &item.end)) continue;
        item.end += (size_t)(place->slots - 1) * place->stride;
        if (place->region == HD_REGION_GRADIENTS) item.end += levels;
        HD_RETURN_IF_ERROR(add(list, item));
    }
    for (int i = 0; i < unit->program->op_count; i++) {
        const size_t begin = unit->base[HD_REGION_TRANSIENT] + unit->workspaces[i];
        if (unit->workspace_bytes[i])
            HD_RETURN_IF_ERROR(add(list, (range){begin, begin + unit->workspace_bytes[i]}));
    }
    return HD_OK;
}

static void join(ranges *list)
{
    int kept = 0;
    if (list->count) qsort(list->items, (size_t)list->count, sizeof *list->items, earlier);
    for (int i = 0; i < list->count; i++) {
        range *last = kept ? &list->items[kept - 1] : NULL;
        if (!last || last->end < list->items[i].begin)
            list->items[kept++] = list->items[i];
        else if (last->end < list->items[i].end)
            last->end = list->items[i].end;
    }
    list->count = kept;
}

static bool overlaps(const ranges *list, const range *item)
{
    int low = 0, high = list->count; /* the first that ends behind the item's begin */
    while (low < high) {
        const int middle = (low + high) / 2;
        if (list->items[middle].end > item->begin)
            high = middle;
        else
            low = middle + 1;
    }
    return low < list->count && list->items[low].begin < item->end;
}

static hd_status broken(const hdi_unit *unit, int op, const char *what, int id)
{
    char label[256];
    const hd_program *program = unit->program;
    return hdi_error(HD_ERROR_INTERNAL,
                     "verifier: program '%s' runs beside others, op %d (%s): %s tensor %d '%s'",
                     program->name, op,
                     hdi_op_label(program, program->ops[op], label, sizeof label), what, id,
                     id ? program->tensors[id]->info.name : "workspace");
}

bool hdi_releases_block(const hd_plan *plan, const hd_op *op, int block)
{
    const hdi_release_options *o = op->kind->flags & HD_OP_RELEASES ? op->options : NULL;
    for (int b = o ? o->low : 0; o && b <= o->high; b++)
        if (plan->layout->buckets[b].block == block) return true;
    return false;
}

/* Do a bucket's weights pass through slots? And where they are kept: no tensors of other programs. */
static bool passes(const hd_plan *plan, int bucket, range *kept)
{
    if (!plan->residency.host_blocks || plan->layout->buckets[bucket].block < 0) return false;
    hdi_residency_kept(plan, bucket, &kept->begin, &kept->end);
    return kept->begin < kept->end;
}

/* Is all of a range among what an op releases, and named there where it passes through slots? */
static bool releases(const hd_plan *plan, const hdi_unit *unit, const hd_op *op, const range *item)
{
    bool has = false;
    range part;
    for (int k = 0; k < op->inputs && op->kind->flags & HD_OP_RELEASES; k++)
        has = has || (hdi_unit_range(plan, unit, op->in[k].id, &part.begin, &part.end) &&
                      part.begin <= item->begin && item->end <= part.end);
    for (int b = 0; b < plan->layout->bucket_count && has; b++)
        if (passes(plan, b, &part) && part.begin < item->end && item->begin < part.end)
            has = hdi_releases_bucket(op, b);
    return has;
}

/* The last release behind op `index` of all of a range; op_count: none. Who touches bytes waits for each release
 * that has some of them. */
static int release_of(const hd_plan *plan, const hdi_unit *unit, int index, const range *item)
{
    const hd_program *program = unit->program;
    for (int i = program->op_count - 1; i > index; i--)
        if (releases(plan, unit, &program->ops[i]->op, item)) return i;
    return program->op_count;
}

static hd_status add_kept(const hd_plan *plan, ranges *list)
{
    for (int b = 0; b < plan->layout->bucket_count; b++) {
        range item;
        if (passes(plan, b, &item)) HD_RETURN_IF_ERROR(add(list, item));
    }
    return HD_OK;
}

/* The op that waits for what op `index` has posted; op_count: only the program's end. */
static int waiter_of(const hdi_unit *unit, int index)
{
    for (int i = index + 1; i < unit->program->op_count; i++)
        for (int w = unit->wait_begin[i]; w < unit->wait_begin[i + 1]; w++)
            if (unit->waits[w] == index) return i;
    return unit->program->op_count;
}

static hd_status check_op(const hd_plan *plan, const hdi_unit *unit, int index,
                          const ranges *others)
{
    const hd_op *op = &unit->program->ops[index]->op;
    for (int k = 0; k < op->inputs + op->outputs; k++) {
        const int id = (k < op->inputs ? op->in[k] : op->out[k - op->inputs]).id;
        range item;
        if (op->kind->flags & HD_OP_RELEASES) continue;
        if (!hdi_unit_range(plan, unit, id, &item.begin, &item.end) || !overlaps(others, &item))
            continue;
        const int release = release_of(plan, unit, index, &item);
        if (release == unit->program->op_count)
            return broken(unit, index, "shares, and does not release,", id);
        if (hdi_op_is_posted(op) && waiter_of(unit, index) > release)
            return broken(unit, index, "releases, before it is done with,", id);
    }
    return HD_OK;
}

static hd_status verify_unit(const hd_plan *plan, const hdi_unit *unit, const ranges *others)
{
    const hd_program *program = unit->program;
    int releases = 0;
    if (unit->streamed[HDI_PHASE_FORWARD].use_count || unit->streamed[HDI_PHASE_BACKWARD].use_count)
        return broken(unit, 0, "uses weights that pass through slots:", 0);
    for (int i = 0; i < program->op_count; i++) {
        releases += (program->ops[i]->op.kind->flags & HD_OP_RELEASES) != 0;
        HD_RETURN_IF_ERROR(check_op(plan, unit, i, others));
    }
    if (releases <= HDI_RELEASES) return HD_OK;
    return hdi_error(HD_ERROR_INTERNAL, "verifier: program '%s' releases %d times, want at most %d",
                     program->name, releases, HDI_RELEASES);
}

hd_status hdi_plan_verify_beside(const hd_plan *plan)
{
    for (int u = 0; u < plan->unit_count; u++) {
        if (!plan->units[u].options.beside) continue;
        ranges others = {0};
        hd_status status = HD_OK;
        for (int v = 0; v < plan->unit_count && status == HD_OK; v++)
            if (v != u) status = add_unit(plan, &plan->units[v], &others);
        if (status == HD_OK) status = add_kept(plan, &others);
        join(&others);
        if (status == HD_OK) status = verify_unit(plan, &plan->units[u], &others);
        hdi_free(others.items);
        HD_RETURN_IF_ERROR(status);
    }
    return HD_OK;
}
