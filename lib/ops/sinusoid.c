/* Sinusoids of scalars (time steps), and F32 inputs in the program's dtype. */
#include <heddle/diffusion.h>

#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>

typedef struct sinusoid_options {
    int64_t columns;
    double scale, period;
    hd_dtype dtype;
} sinusoid_options;

static hd_status sinusoid_shape(hd_program *program, const hd_op *op)
{
    const sinusoid_options *options = op->options;
    const int64_t any = -1;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "x", HD_DTYPE_F32, 1, &any));
    if (options->columns < 2 || options->columns % 2)
        return hdi_error(HD_ERROR_ARGUMENT, "%" PRId64 " columns, want an even number of them",
                         options->columns);
    if (!(options->period > 0))
        return hdi_error(HD_ERROR_ARGUMENT, "period is %g, want > 0", options->period);
    const int64_t dims[] = {op->in_info[0]->dims[0], options->columns};
    hd_op_output(program, options->dtype, 2, dims);
    return HD_OK;
}

static hd_status sinusoid_run(const hd_run *run)
{
    const sinusoid_options *options = run->op->options;
    return run->backend->sinusoid(run->stream,
                                  &(hdi_sinusoid_args){.dtype = options->dtype,
                                                       .rows = run->op->in_info[0]->dims[0],
                                                       .columns = options->columns,
                                                       .scale = options->scale,
                                                       .period = options->period,
                                                       .x = run->in[0],
                                                       .out = run->out[0]});
}

static const hd_op_kind sinusoid = {
    .name = "sinusoid",
    .options_bytes = sizeof(sinusoid_options),
    .shape = sinusoid_shape,
    .run = sinusoid_run,
};

hd_tensor hd_sinusoid(hd_program *program, hd_tensor x, const hd_sinusoid_options *options)
{
    const sinusoid_options all = {.columns = options->columns,
                                  .scale = options->scale == 0 ? 1 : options->scale,
                                  .period = options->period == 0 ? 10000 : options->period,
                                  .dtype = program->dtype};
    return hd_custom_op(program, &sinusoid, &all, 1, &x);
}

typedef struct cast_options {
    hd_dtype dtype;
} cast_options;

static hd_status cast_shape(hd_program *program, const hd_op *op)
{
    const cast_options *options = op->options;
    HD_RETURN_IF_ERROR(hdi_check_input(op, 0, "x", HD_DTYPE_F32));
    hd_op_output(program, options->dtype, op->in_info[0]->rank, op->in_info[0]->dims);
    return HD_OK;
}

static hd_status cast_run(const hd_run *run)
{
    const cast_options *options = run->op->options;
    return run->backend->convert(run->stream, HD_DTYPE_F32, run->in[0], options->dtype, run->out[0],
                                 run->op->out_info[0]->elements);
}

static const hd_op_kind cast = {
    .name = "cast",
    .options_bytes = sizeof(cast_options),
    .shape = cast_shape,
    .run = cast_run,
};

hd_tensor hd_cast(hd_program *program, hd_tensor x)
{
    const cast_options options = {program->dtype};
    const hd_tensor_info *info = hd_tensor_get(program, x);
    if (info && info->dtype == HD_DTYPE_F32 && program->dtype == HD_DTYPE_F32) return x;
    return hd_custom_op(program, &cast, &options, 1, &x);
}
