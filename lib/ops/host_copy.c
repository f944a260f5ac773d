/* Copies between the device and pinned host memory. */
#include "ops/host_copy.h"

#include "backend/backend.h"
#include "core/error.h"
#include "program/plan.h"

static hd_status no_shape(hd_program *program, const hd_op *op)
{
    (void)program;
    return hdi_error(HD_ERROR_INTERNAL, "%s: appended without outputs", op->kind->name);
}

static void cost_moved(const hd_op *op, hd_cost *out)
{
    const bool loads = op->kind->flags & HD_OP_LOADS;
    for (int k = 0; k < op->outputs; k++)
        out->bytes += (double)(loads ? op->in_info[k] : op->out_info[k])->bytes;
}

static void cost_nothing(const hd_op *op, hd_cost *out)
{
    (void)op, (void)out;
}

static hd_status run_load(const hd_run *run)
{
    for (int k = 0; k < run->op->outputs; k++)
        HD_RETURN_IF_ERROR(run->backend->fetch(run->stream, run->slot, run->out[k], run->in[k],
                                               run->op->in_info[k]->bytes));
    return HD_OK;
}

static hd_status run_store(const hd_run *run)
{
    for (int k = 0; k < run->op->outputs; k++)
        HD_RETURN_IF_ERROR(run->backend->store(run->stream, run->slot, run->out[k], run->in[k],
                                               run->op->out_info[k]->bytes));
    return HD_OK;
}

static hd_status run_nothing(const hd_run *run)
{
    (void)run;
    return HD_OK;
}

const hd_op_kind hdi_op_load = {
    .name = "load", .flags = HD_OP_LOADS, .shape = no_shape, .cost = cost_moved, .run = run_load};

const hd_op_kind hdi_op_store = {.name = "store",
                                 .flags = HD_OP_STORES,
                                 .shape = no_shape,
                                 .cost = cost_moved,
                                 .run = run_store};

const hd_op_kind hdi_op_hold = {
    .name = "hold", .shape = no_shape, .cost = cost_nothing, .run = run_nothing};

const hd_op_kind hdi_op_release = {.name = "release",
                                   .options_bytes = sizeof(hdi_release_options),
                                   .flags = HD_OP_RELEASES,
                                   .shape = no_shape,
                                   .cost = cost_nothing,
                                   .run = run_nothing};
