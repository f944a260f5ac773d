/* Activations of 8 bits. */
#include "ops/quantize.h"

#include "core/error.h"

static hd_status no_shape(hd_program *program, const hd_op *op)
{
    (void)program;
    return hdi_error(HD_ERROR_INTERNAL, "%s: appended without outputs", op->kind->name);
}

static hd_status run_quantize(const hd_run *run)
{
    const hd_tensor_info *x = run->op->in_info[0];
    return run->backend->quantize(run->stream, &(hdi_quantize_args){x->dtype, x->elements,
                                                                    (void *)(uintptr_t)run->in[0],
                                                                    run->out[0], run->out[1]});
}

static hd_status run_dequantize(const hd_run *run)
{
    const hd_tensor_info *x = run->op->out_info[0];
    return run->backend->dequantize(run->stream,
                                    &(hdi_quantize_args){x->dtype, x->elements, run->out[0],
                                                         (void *)(uintptr_t)run->in[0],
                                                         (void *)(uintptr_t)run->in[1]});
}

const hd_op_kind hdi_op_quantize = {.name = "quantize", .shape = no_shape, .run = run_quantize};

const hd_op_kind hdi_op_dequantize = {
    .name = "dequantize", .shape = no_shape, .run = run_dequantize};
