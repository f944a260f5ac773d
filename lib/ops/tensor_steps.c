/* What pieces of rows on the tensor axis are moved by: steps, of which each rank takes the same part in
 * all, and copies within a rank. */
#include "backend/backend.h"
#include "core/error.h"
#include "ops/sequence.h"
#include "ops/tensor_axis.h"

/* The pass that appends these gives them outputs that exist. */
static hd_status no_shape(hd_program *program, const hd_op *op)
{
    (void)program;
    return hdi_error(HD_ERROR_INTERNAL, "%s: appended without outputs", op->kind->name);
}

static void step_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = (double)op->out_info[0]->bytes;
}

/* Sending and receiving are posted together, so two ranks cannot wait for each other. */
static hd_status step_run(const hd_run *run)
{
    const hdi_tensor_step *o = run->op->options;
    int64_t send[HDI_SEQUENCE_RANKS] = {0}, receive[HDI_SEQUENCE_RANKS] = {0};
    const int64_t none[HDI_SEQUENCE_RANKS] = {0};
    send[o->to] = run->op->in_info[0]->elements;
    receive[o->from] = run->op->out_info[0]->elements;
    *run->posted_on = hd_mesh_device_comm(run->mesh, o->collective.axis);
    return hd_comm_all_to_all(*run->posted_on, run->in[0], send, none, run->out[0], receive, none,
                              run->op->in_info[0]->dtype, run->request);
}

const hd_op_kind hdi_op_tensor_step = {
    .name = "tensor_step",
    .options_bytes = sizeof(hdi_tensor_step),
    .flags = HD_OP_COMMUNICATES,
    .shape = no_shape,
    .cost = step_cost,
    .run = step_run,
};

static hd_status place_run(const hd_run *run)
{
    return run->backend->copy(run->stream, run->out[0], run->in[0], run->op->out_info[0]->bytes);
}

const hd_op_kind hdi_op_tensor_place = {
    .name = "tensor_place", .shape = no_shape, .run = place_run};
