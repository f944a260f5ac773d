/* Rows of which each sequence has a counted number: their mean, and counts of joined sequences. */
#include <heddle/diffusion.h>

#include "core/error.h"
#include "ops/ops.h"

#include <inttypes.h>

typedef struct mean_options {
    int64_t sequences;
} mean_options;

static hd_status mean_shape(hd_program *program, const hd_op *op)
{
    const mean_options *options = op->options;
    const int64_t any[] = {-1, -1}, sequences = options->sequences;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "x", HD_DTYPE_F32, 2, any));
    if (op->in_info[1])
        HD_RETURN_IF_ERROR(hdi_check_dims(op, 1, "counts", HD_DTYPE_I32, 1, &sequences));
    const hd_tensor_info *x = op->in_info[0];
    if (sequences < 1 || x->dims[0] % sequences)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%" PRId64 " sequences, want a divisor of the %" PRId64 " rows", sequences,
                         x->dims[0]);
    const int64_t dims[] = {sequences, x->dims[1]};
    hd_op_output(program, HD_DTYPE_F32, 2, dims);
    return HD_OK;
}

static hd_status mean_run(const hd_run *run)
{
    const mean_options *options = run->op->options;
    const hd_tensor_info *x = run->op->in_info[0];
    return run->backend->mean_rows(run->stream,
                                   &(hdi_mean_rows_args){.sequences = options->sequences,
                                                         .tokens = x->dims[0] / options->sequences,
                                                         .columns = x->dims[1],
                                                         .counts = run->in[1],
                                                         .x = run->in[0],
                                                         .out = run->out[0]});
}

static const hd_op_kind mean_rows = {
    .name = "mean_rows",
    .options_bytes = sizeof(mean_options),
    .shape = mean_shape,
    .run = mean_run,
};

hd_tensor hd_mean_rows(hd_program *program, hd_tensor x, hd_tensor counts, int64_t sequences)
{
    const hd_tensor in[] = {x, counts};
    return hd_custom_op(program, &mean_rows, &(mean_options){sequences}, 2, in);
}

typedef struct raise_options {
    int64_t more;
} raise_options;

static hd_status raise_shape(hd_program *program, const hd_op *op)
{
    const int64_t any = -1;
    HD_RETURN_IF_ERROR(hdi_check_dims(op, 0, "counts", HD_DTYPE_I32, 1, &any));
    hd_op_output(program, HD_DTYPE_I32, 1, op->in_info[0]->dims);
    return HD_OK;
}

static hd_status raise_run(const hd_run *run)
{
    const raise_options *options = run->op->options;
    return run->backend->raise_counts(
        run->stream, &(hdi_raise_counts_args){.elements = run->op->in_info[0]->dims[0],
                                              .most = INT32_MAX,
                                              .more = options->more,
                                              .counts = run->in[0],
                                              .out = run->out[0]});
}

static const hd_op_kind raise_counts = {
    .name = "raise_counts",
    .options_bytes = sizeof(raise_options),
    .shape = raise_shape,
    .run = raise_run,
};

hd_tensor hd_raise_counts(hd_program *program, hd_tensor counts, int64_t more)
{
    return hd_custom_op(program, &raise_counts, &(raise_options){more}, 1, &counts);
}
