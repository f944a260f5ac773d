/* Programs and plans as text. */
#include "program/plan.h"
#include "report/format.h"

#include <inttypes.h>
#include <stdio.h>

static void write_tensor(const hd_program *program, const hdi_unit *unit, hd_tensor handle,
                         bool *more, hd_write_fn write, void *user)
{
    const hdi_tensor *tensor = hdi_tensor_of(program, handle);
    if (!tensor || !*more) return;
    char text[512];
    int used = snprintf(text, sizeof text, " %%%d%s%.64s", handle.id, *tensor->info.name ? ":" : "",
                        tensor->info.name);
    used +=
        snprintf(text + used, sizeof text - (size_t)used, "[%s", hd_dtype_name(tensor->info.dtype));
    for (int d = 0; d < tensor->info.rank; d++)
        used +=
            snprintf(text + used, sizeof text - (size_t)used, " %" PRId64, tensor->info.dims[d]);
    used += snprintf(text + used, sizeof text - (size_t)used, "]");
    if (unit && unit->places[handle.id].placed) {
        const hdi_place_of *place = &unit->places[handle.id];
        const size_t at = unit->base[place->region] + place->offset;
        const bool host = at >= HDI_HOST_BASE;
        snprintf(text + used, sizeof text - (size_t)used, "@%s%zu", host ? "host " : "",
                 host ? at - HDI_HOST_BASE : at);
    }
    *more = write(user, text);
}

/* What a run copies in, and when. */
static bool write_uses(const hd_plan *plan, const hdi_unit *unit, hd_write_fn write, void *user)
{
    char text[512];
    hd_streaming streaming;
    hd_plan_streaming(plan, unit->program, &streaming);
    snprintf(text, sizeof text,
             "%d of %d blocks %s, %d slots: %zu bytes a run, %.3g s of copies beside "
             "%.3g s of computation, %.3g s exposed\n",
             streaming.host_blocks, streaming.blocks,
             !streaming.gathered    ? "on the host"
             : streaming.host_bytes ? "gathered from the host"
                                    : "gathered",
             streaming.slots, streaming.run_bytes, streaming.copy_seconds,
             streaming.compute_seconds, streaming.exposed_seconds);
    bool more = write(user, text);
    for (int phase = 0; phase < HDI_PHASES; phase++) {
        const hdi_stream_run *run = &unit->streamed[phase];
        for (int m = 0; m < run->use_count && more; m++) {
            const hdi_stream_use *use = &run->uses[m];
            snprintf(
                text, sizeof text, "      block '%.200s': copied before op %d, read by %d..%d\n",
                plan->residency.blocks[use->block].name, run->fetches[m], use->first, use->last);
            more = write(user, text);
        }
    }
    return more;
}

static const char *beside(uint32_t flags)
{
    if (flags & HD_OP_COMMUNICATES) return " (comm stream)";
    return flags & (HD_OP_LOADS | HD_OP_STORES) ? " (copy stream)" : "";
}

static void write_program(const hd_program *program, const hd_plan *plan, const hdi_unit *unit,
                          hd_write_fn write, void *user)
{
    char text[512];
    snprintf(text, sizeof text, "program '%s': %d ops\n", program->name, program->op_count);
    bool more = write(user, text);
    if (unit && unit->streamed[HDI_PHASE_FORWARD].use_count && more)
        more = write_uses(plan, unit, write, user);
    for (int i = 0; i < program->op_count && more; i++) {
        const hdi_op *op = program->ops[i];
        char label[256];
        hd_cost cost;
        hdi_op_cost(op, &cost);
        snprintf(text, sizeof text, "%5d %c %s%s:", i, op->phase == HDI_PHASE_FORWARD ? 'F' : 'B',
                 hdi_op_label(program, op, label, sizeof label), beside(op->op.kind->flags));
        more = write(user, text);
        for (int k = 0; k < op->op.inputs; k++)
            write_tensor(program, unit, op->op.in[k], &more, write, user);
        if (more) more = write(user, " ->");
        for (int k = 0; k < op->op.outputs; k++)
            write_tensor(program, unit, op->op.out[k], &more, write, user);
        if (unit)
            for (int w = unit->wait_begin[i]; w < unit->wait_begin[i + 1] && more; w++) {
                snprintf(text, sizeof text, " waits for %d", unit->waits[w]);
                more = write(user, text);
            }
        snprintf(text, sizeof text, "  # %.4g FLOP, %.4g bytes\n", cost.flops, cost.bytes);
        if (more) more = write(user, text);
    }
}

void hd_program_print(const hd_program *program, hd_write_fn write, void *user)
{
    write_program(program, NULL, NULL, write, user);
}

void hd_plan_print(const hd_plan *plan, hd_write_fn write, void *user)
{
    char text[256];
    bool more = true;
    for (int r = 0; r < HD_ALL_REGIONS && more; r++) {
        snprintf(text, sizeof text, "%s\n",
                 hdi_bytes_row(hd_region_name((hd_region)r), plan->bytes[r]).text);
        more = write(user, text);
    }
    snprintf(text, sizeof text, "%s\n", hdi_bytes_row("total", hd_plan_total_bytes(plan)).text);
    if (more) more = write(user, text);
    for (int u = 0; u < plan->unit_count && more; u++)
        write_program(plan->units[u].program, plan, &plan->units[u], write, user);
}
