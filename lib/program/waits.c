/* Order between computation and what runs beside it, communication and copies: an op waits for every
 * posted operation that touches the bytes it touches, unless both only read. */
#include "core/error.h"
#include "core/memory.h"
#include "program/plan.h"

typedef struct touch {
    size_t begin, end;
    bool writes;
} touch;

enum { MOST_TOUCHES = HD_OP_INPUTS + HD_OP_OUTPUTS + 1 };

static int touches_of(const hd_plan *plan, const hdi_unit *unit, int index, touch *out)
{
    const hd_op *op = &unit->program->ops[index]->op;
    int count = 0;
    for (int k = 0; k < op->inputs; k++)
        if (hdi_unit_range(plan, unit, op->in[k].id, &out[count].begin, &out[count].end))
            out[count++].writes = false;
    for (int k = 0; k < op->outputs; k++)
        if (hdi_unit_range(plan, unit, op->out[k].id, &out[count].begin, &out[count].end))
            out[count++].writes = true;
    if (unit->workspace_bytes[index]) {
        size_t begin = unit->base[HD_REGION_TRANSIENT] + unit->workspaces[index];
        out[count++] = (touch){begin, begin + unit->workspace_bytes[index], true};
    }
    return count;
}

static bool conflict(const touch *a, int a_count, const touch *b, int b_count)
{
    for (int i = 0; i < a_count; i++)
        for (int j = 0; j < b_count; j++)
            if ((a[i].writes || b[j].writes) && a[i].begin < b[j].end && b[j].begin < a[i].end)
                return true;
    return false;
}

hd_status hdi_unit_waits(const hd_plan *plan, int index)
{
    hdi_unit *unit = &plan->units[index];
    const hd_program *program = unit->program;
    int *pending = hdi_alloc_array((size_t)program->op_count, sizeof *pending);
    if (!pending) return hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
    int pending_count = 0;
    hd_status status = HD_OK;
    for (int i = 0; i < program->op_count && status == HD_OK; i++) {
        unit->wait_begin[i] = unit->wait_count;
        touch mine[MOST_TOUCHES], theirs[MOST_TOUCHES];
        int count = pending_count ? touches_of(plan, unit, i, mine) : 0, kept = 0;
        for (int k = 0; k < pending_count; k++) {
            int their_count = touches_of(plan, unit, pending[k], theirs);
            if (!conflict(mine, count, theirs, their_count)) {
                pending[kept++] = pending[k];
                continue;
            }
            if (!HDI_GROW(unit->waits, unit->wait_count, unit->wait_capacity)) {
                status = hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
                break;
            }
            unit->waits[unit->wait_count++] = pending[k];
        }
        pending_count = kept;
        if (hdi_op_is_posted(&program->ops[i]->op)) pending[pending_count++] = i;
    }
    unit->wait_begin[program->op_count] = unit->wait_count;
    hdi_free(pending);
    return status;
}
