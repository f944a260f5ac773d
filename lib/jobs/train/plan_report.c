/* plan.json (regions, programs, costs) and plan.svg (bytes along a step). */
#include "jobs/train/plan_report.h"

#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "report/memory_map.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
}

static void write_regions(const hd_plan *plan, hdi_text *text)
{
    hdi_text_append(text, "  \"regions\": {");
    for (int r = 0; r < HD_ALL_REGIONS; r++)
        hdi_text_printf(text, "%s\"%s\": %zu", r ? ", " : "", hd_region_name((hd_region)r),
                        plan->bytes[r]);
    hdi_text_printf(
        text, "},\n  \"arena_bytes\": %zu,\n  \"total_bytes\": %zu,\n  \"host_bytes\": %zu,\n",
        plan->arena_bytes, hd_plan_total_bytes(plan), hd_plan_host_bytes(plan));
}

static void write_programs(const hd_plan *plan, hdi_text *text)
{
    hdi_text_append(text, "  \"programs\": [");
    for (int u = 0; u < plan->unit_count; u++) {
        const hdi_unit *unit = &plan->units[u];
        hd_cost forward, backward;
        hdi_program_cost(unit->program, HDI_PHASE_FORWARD, &forward);
        hdi_program_cost(unit->program, HDI_PHASE_BACKWARD, &backward);
        hdi_text_printf(text,
                        "%s\n    {\"name\": \"%s\", \"ops\": %d, \"forward_flops\": ", u ? "," : "",
                        unit->program->name, unit->program->op_count);
        hdi_text_append_float(text, forward.flops);
        hdi_text_append(text, ", \"backward_flops\": ");
        hdi_text_append_float(text, backward.flops);
        hdi_text_printf(text, ", \"saved_bytes\": %zu, \"transient_bytes\": %zu}",
                        unit->bytes[HD_REGION_SAVED], unit->bytes[HD_REGION_TRANSIENT]);
    }
    hdi_text_append(text, "\n  ]\n}\n");
}

static hd_status write_json(const hd_trainer *trainer, const char *path)
{
    hdi_text text = {0};
    hdi_text_printf(&text,
                    "{\n  \"rank\": %d,\n  \"ranks\": %d,\n  \"pipeline_stage\": %d,\n"
                    "  \"micro_batches\": %d,\n",
                    hd_mesh_rank(trainer->options.mesh), hd_mesh_ranks(trainer->options.mesh),
                    trainer->stage, trainer->shapes[0].is.accumulate);
    write_regions(trainer->plan, &text);
    write_programs(trainer->plan, &text);
    char *taken = hdi_text_take(&text);
    hd_status status = taken ? hdi_file_write_text(path, taken) : out_of_memory();
    hdi_free(taken);
    return status;
}

/* Positions of the picture: every op of the step's programs, one after the other. */
typedef struct positions {
    int64_t count, capacity;
    size_t *bytes[HD_REGIONS];
    const char **names;
    hdi_memory_phase phases[2 * HDI_MEMORY_MAP_REGIONS];
    int phase_count;
} positions;

static void live_transients(const hdi_unit *unit, size_t *out)
{
    const hd_program *program = unit->program;
    int *last = hdi_alloc_array((size_t)program->tensor_count, sizeof *last);
    if (!last) return;
    for (int i = 0; i < program->op_count; i++)
        for (int k = 0; k < program->ops[i]->op.inputs; k++)
            last[program->ops[i]->op.in[k].id] = i;
    for (int t = 1; t < program->tensor_count; t++) {
        const hdi_tensor *tensor = program->tensors[t];
        if (!unit->places[t].placed || unit->places[t].region != HD_REGION_TRANSIENT ||
            tensor->producer < 0)
            continue;
        int end = last[t] > tensor->producer ? last[t] : tensor->producer;
        for (int i = tensor->producer; i <= end; i++)
            out[i] += tensor->info.bytes;
    }
    for (int i = 0; i < program->op_count; i++)
        out[i] += unit->workspace_bytes[i];
    hdi_free(last);
}

static void add_program(positions *all, const hd_plan *plan, int index, char (*labels)[96])
{
    const hdi_unit *unit = &plan->units[index];
    const hd_program *program = unit->program;
    int previous = -1;
    live_transients(unit, all->bytes[HD_REGION_TRANSIENT] + all->count);
    for (int i = 0; i < program->op_count; i++) {
        int64_t at = all->count + i;
        if ((int)program->ops[i]->phase != previous &&
            all->phase_count < (int)(sizeof all->phases / sizeof all->phases[0])) {
            previous = (int)program->ops[i]->phase;
            const char *name = program->name;
            if (previous == HDI_PHASE_BACKWARD)
                name = "backward";
            else if (strncmp(name, "train", 5) == 0)
                name = "forward";
            all->phases[all->phase_count++] = (hdi_memory_phase){.name = name, .begin = at};
        }
        hdi_op_label(program, program->ops[i], labels[at], sizeof labels[at]);
        all->names[at] = labels[at];
        for (int r = 0; r < HD_REGIONS; r++)
            if (r != HD_REGION_TRANSIENT) all->bytes[r][at] = plan->bytes[r];
        if (unit->options.group) {
            all->bytes[HD_REGION_GRADIENTS][at] = 0;
            for (int r = HD_REGION_IO; r <= HD_REGION_BOUNDARY; r++)
                all->bytes[r][at] = unit->bytes[r];
        }
    }
    all->count += program->op_count;
}

static hd_status draw(const hd_plan *plan, const char *path, positions *all, char (*labels)[96])
{
    for (int u = 0; u < plan->unit_count; u++)
        add_program(all, plan, u, labels);
    hdi_memory_region regions[HD_REGIONS];
    int count = 0;
    for (int r = 0; r < HD_REGIONS; r++)
        if (plan->bytes[r])
            regions[count++] =
                (hdi_memory_region){.name = hd_region_name((hd_region)r), .bytes = all->bytes[r]};
    return hdi_memory_map_write(path, &(hdi_memory_map){.title = "memory plan of one step",
                                                        .regions = regions,
                                                        .region_count = count,
                                                        .positions = all->count,
                                                        .position_names = all->names,
                                                        .phases = all->phases,
                                                        .phase_count = all->phase_count,
                                                        .budget = plan->options.budget});
}

static hd_status write_picture(const hd_trainer *trainer, const char *path)
{
    const hd_plan *plan = trainer->plan;
    positions all = {0};
    for (int u = 0; u < plan->unit_count; u++)
        all.capacity += plan->units[u].program->op_count;
    size_t count = (size_t)all.capacity;
    char(*labels)[96] = hdi_alloc_array(count, sizeof *labels);
    all.names = hdi_alloc_array(count, sizeof(char *));
    bool ok = labels && all.names;
    for (int r = 0; r < HD_REGIONS && ok; r++)
        ok = (all.bytes[r] = hdi_alloc_array(count, sizeof(size_t))) != NULL;
    hd_status status = ok ? draw(plan, path, &all, labels) : out_of_memory();
    for (int r = 0; r < HD_REGIONS; r++)
        hdi_free(all.bytes[r]);
    hdi_free(all.names);
    hdi_free(labels);
    return status;
}

hd_status hdi_plan_report_write(const hd_trainer *trainer, const char *directory)
{
    char *json = hdi_path_join(directory, "plan.json"),
         *picture = hdi_path_join(directory, "plan.svg");
    hd_status status = json && picture ? HD_OK : out_of_memory();
    if (status == HD_OK) status = write_json(trainer, json);
    if (status == HD_OK) status = write_picture(trainer, picture);
    hdi_free(json);
    hdi_free(picture);
    return status;
}
