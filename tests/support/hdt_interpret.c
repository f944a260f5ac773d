/* The interpreter of tests. */
#include "tests/support/hdt_interpret.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct hdt_machine {
    const hd_program *program;
    bool wide;
    void **data;  /* [tensor] */
    bool *shared; /* [tensor]: the memory is another tensor's */
};

static void *zeros(size_t bytes)
{
    const size_t room = (bytes / HDT_MACHINE_ALIGNMENT + 1) * HDT_MACHINE_ALIGNMENT;
    void *memory = aligned_alloc(HDT_MACHINE_ALIGNMENT, room);
    if (!memory) abort();
    return memset(memory, 0, room);
}

static size_t bytes_of(const hdt_machine *machine, const hd_tensor_info *info)
{
    return machine->wide && info->dtype == HD_DTYPE_F32 ? 2 * info->bytes : info->bytes;
}

static void fill_table(hdt_machine *machine, int id)
{
    const hdi_tensor *tensor = machine->program->tensors[id];
    float *values = zeros(tensor->info.bytes);
    tensor->fill((void *)(uintptr_t)tensor->fill_user, values);
    for (int64_t i = 0; i < tensor->info.elements; i++)
        hdt_machine_set(machine, (hd_tensor){id}, i, (double)values[i]);
    free(values);
}

hdt_machine *hdt_machine_create(const hd_program *program, bool wide)
{
    const size_t count = (size_t)program->tensor_count;
    hdt_machine *machine = zeros(sizeof *machine);
    *machine = (hdt_machine){program, wide, zeros(count * sizeof(void *)), zeros(count)};
    for (int i = 1; i < program->tensor_count; i++) {
        const hdi_tensor *tensor = program->tensors[i];
        for (int j = 1; j < i && tensor->info.role == HD_ROLE_PARAMETER; j++) {
            if (strcmp(program->tensors[j]->info.name, tensor->info.name) != 0) continue;
            machine->data[i] = machine->data[j];
            machine->shared[i] = true;
        }
        if (!machine->data[i]) machine->data[i] = zeros(bytes_of(machine, &tensor->info));
        if (tensor->fill) fill_table(machine, i);
    }
    return machine;
}

void hdt_machine_destroy(hdt_machine *machine)
{
    for (int i = 1; i < machine->program->tensor_count; i++)
        if (!machine->shared[i]) free(machine->data[i]);
    free(machine->data);
    free(machine->shared);
    free(machine);
}

void *hdt_machine_data(const hdt_machine *machine, hd_tensor tensor)
{
    return machine->data[tensor.id];
}

static bool holds_doubles(const hdt_machine *machine, hd_tensor tensor)
{
    return machine->wide || machine->program->tensors[tensor.id]->info.dtype == HD_DTYPE_F64;
}

double hdt_machine_get(const hdt_machine *machine, hd_tensor tensor, int64_t element)
{
    const void *data = machine->data[tensor.id];
    return holds_doubles(machine, tensor) ? ((const double *)data)[element]
                                          : (double)((const float *)data)[element];
}

void hdt_machine_set(hdt_machine *machine, hd_tensor tensor, int64_t element, double value)
{
    void *data = machine->data[tensor.id];
    if (holds_doubles(machine, tensor))
        ((double *)data)[element] = value;
    else
        ((float *)data)[element] = (float)value;
}

static hd_status run_op(hdt_machine *machine, const hdi_op *op, bool accumulate)
{
    hd_run run = {.op = &op->op,
                  .backend = machine->wide ? &hdt_reference : &hdi_backend_cpu,
                  .accumulate = accumulate || !op->first_writer};
    for (int k = 0; k < op->op.inputs; k++)
        run.in[k] = op->op.in[k].id ? machine->data[op->op.in[k].id] : NULL;
    for (int k = 0; k < op->op.outputs; k++) {
        run.out[k] = machine->data[op->op.out[k].id];
        if (op->op.out_info[k]->role != HD_ROLE_GRADIENT) /* all ones: a NaN of any float */
            memset(run.out[k], 0xff, bytes_of(machine, op->op.out_info[k]));
    }
    const size_t workspace = op->op.kind->workspace ? op->op.kind->workspace(&op->op) : 0;
    if (workspace) {
        run.workspace = zeros(2 * workspace);
        memset(run.workspace, 0xff, 2 * workspace);
    }
    hd_status status = op->op.kind->run(&run);
    free(run.workspace);
    return status;
}

hd_status hdt_machine_run(hdt_machine *machine, hdi_phase phase, bool accumulate)
{
    hd_status status = HD_OK;
    for (int i = 0; i < machine->program->op_count && status == HD_OK; i++)
        if (machine->program->ops[i]->phase == phase)
            status = run_op(machine, machine->program->ops[i], accumulate);
    return status;
}
