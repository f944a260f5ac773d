/* What an fp32 weight gradient adds to 16-bit gradients: one rounding for each micro-batch. */
#include "ops/ops.h"

static void round_sum_cost(const hd_op *op, hd_cost *out)
{
    out->flops = (double)op->out_info[0]->elements;
    out->bytes = hdi_tensor_bytes(op);
}

static hd_status round_sum_run(const hd_run *run)
{
    const hd_tensor_info *out = run->op->out_info[0];
    return run->backend->round_sum(run->stream, out->dtype, out->elements, run->in[0],
                                   run->accumulate, run->out[0]);
}

const hd_op_kind hdi_op_round_sum = {
    .name = "round_sum",
    .flags = HD_OP_WEIGHT_GRADIENT | HD_OP_ROUNDS,
    .shape = hdi_no_outputs,
    .cost = round_sum_cost,
    .run = round_sum_run,
};
