/* Stages of jobs that only run forward: where they are cut, and how they end. */
#include "jobs/stages.h"

#include "core/error.h"
#include "core/memory.h"
#include "program/program.h"

#include <string.h>

hd_status hdi_stage_cut(const hdi_balance_options *balance, const int *given, int stage, int *first,
                        int *count)
{
    const int stages = balance->stages;
    *first = *count = 0;
    int *counts = hdi_alloc_array((size_t)stages, sizeof *counts);
    hd_status status = counts ? HD_OK : hdi_error(HD_ERROR_MEMORY, "stages: out of host memory");
    if (status == HD_OK && given) {
        status = hdi_balance_check(given, stages, balance);
        memcpy(counts, given, (size_t)stages * sizeof *counts);
    } else if (status == HD_OK) {
        status = hdi_balance(balance, counts);
    }
    for (int s = 0; s <= stage && status == HD_OK; s++) {
        *first += *count;
        *count = counts[s];
    }
    hdi_free(counts);
    return status;
}

void hdi_stage_end(hd_program *program, hd_tensor out)
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
