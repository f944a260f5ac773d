/* The same elements under other dims. */
#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>
#include <string.h>

typedef struct reshape_options {
    int rank;
    int64_t dims[HD_MAX_DIMS];
} reshape_options;

static hd_status reshape_shape(hd_program *program, const hd_op *op)
{
    const reshape_options *options = op->options;
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "x", HD_DTYPE_NONE));
    const hd_tensor_info *x = op->in_info[0];
    int64_t elements = 1;
    for (int i = 0; i < options->rank; i++)
        elements *= options->dims[i];
    char seen[HDI_SHAPE_TEXT];
    if (options->rank < 1 || elements != x->elements)
        return hdi_error(HD_ERROR_ARGUMENT, "x is %s, want dims of %" PRId64 " elements",
                         hdi_shape_text(x, seen), elements);
    hd_op_output(program, x->dtype, options->rank, options->dims);
    return HD_OK;
}

static void reshape_backward(hd_backward *context, const hd_op *op)
{
    const hd_tensor_info *x = op->in_info[0];
    hd_backward_give(context, 0,
                     hd_reshape(hd_backward_program(context),
                                hd_backward_output_gradient(context, 0), x->rank, x->dims));
}

static void reshape_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = hdi_tensor_bytes(op);
}

static hd_status reshape_run(const hd_run *run)
{
    if (run->out[0] == run->in[0]) return HD_OK;
    return run->backend->copy(run->stream, run->out[0], run->in[0], run->op->in_info[0]->bytes);
}

static const hd_op_kind reshape = {
    .name = "reshape",
    .options_bytes = sizeof(reshape_options),
    .shape = reshape_shape,
    .backward = reshape_backward,
    .cost = reshape_cost,
    .in_place = 1,
    .run = reshape_run,
};

hd_tensor hd_reshape(hd_program *program, hd_tensor x, int rank, const int64_t *dims)
{
    reshape_options options;
    memset(&options, 0, sizeof options);
    if (rank > HD_MAX_DIMS)
        return hd_program_fail(program, HD_ERROR_ARGUMENT, "reshape: %d dims, want at most %d",
                               rank, HD_MAX_DIMS);
    options.rank = rank;
    for (int i = 0; i < rank; i++)
        options.dims[i] = dims[i];
    return hd_custom_op(program, &reshape, &options, 1, &x);
}
