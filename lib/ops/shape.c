/* What shape rules share: checks with the shapes seen and wanted, rows and columns. */
#include "ops/ops.h"

#include "core/error.h"

#include <inttypes.h>
#include <stdio.h>

const hd_backend *hdi_op_backend(const hd_op *op)
{
    return op->backend ? op->backend : &hdi_backend_cpu;
}

int64_t hdi_rows(const hd_tensor_info *info)
{
    int64_t rows = 1;
    for (int i = 0; i < info->rank - 1; i++)
        rows *= info->dims[i];
    return rows;
}

int64_t hdi_columns(const hd_tensor_info *info)
{
    return info->rank ? info->dims[info->rank - 1] : 1;
}

static const char *dims_text(const char *dtype, int rank, const int64_t *dims,
                             char out[HDI_SHAPE_TEXT])
{
    int used = snprintf(out, HDI_SHAPE_TEXT, "%s [", dtype);
    for (int i = 0; i < rank && used < HDI_SHAPE_TEXT; i++) {
        const size_t left = (size_t)(HDI_SHAPE_TEXT - used);
        used += dims[i] < 0 ? snprintf(out + used, left, "%sany", i ? ", " : "")
                            : snprintf(out + used, left, "%s%" PRId64, i ? ", " : "", dims[i]);
    }
    if (used < HDI_SHAPE_TEXT) snprintf(out + used, (size_t)(HDI_SHAPE_TEXT - used), "]");
    return out;
}

const char *hdi_shape_text(const hd_tensor_info *info, char out[HDI_SHAPE_TEXT])
{
    return dims_text(hd_dtype_name(info->dtype), info->rank, info->dims, out);
}

static bool is_compute_dtype(hd_dtype dtype)
{
    return dtype == HD_DTYPE_F32 || dtype == HD_DTYPE_F16 || dtype == HD_DTYPE_BF16;
}

hd_status hdi_check_input(const hd_op *op, int index, const char *what, hd_dtype dtype)
{
    const hd_tensor_info *info = index < op->inputs ? op->in_info[index] : NULL;
    if (!info) return hdi_error(HD_ERROR_ARGUMENT, "%s is an invalid tensor", what);
    const bool right = dtype ? info->dtype == dtype : is_compute_dtype(info->dtype);
    char seen[HDI_SHAPE_TEXT];
    if (!right || info->rank < 1)
        return hdi_error(HD_ERROR_ARGUMENT, "%s is %s, want %s with at least one dim", what,
                         hdi_shape_text(info, seen),
                         dtype ? hd_dtype_name(dtype) : "F32, F16 or BF16");
    return HD_OK;
}

hd_status hdi_check_dims(const hd_op *op, int index, const char *what, hd_dtype dtype, int rank,
                         const int64_t *dims)
{
    HD_RETURN_IF_ERROR(hdi_check_input(op, index, what, dtype));
    const hd_tensor_info *info = op->in_info[index];
    bool equal = info->rank == rank;
    for (int i = 0; i < rank && equal; i++)
        equal = dims[i] < 0 || dims[i] == info->dims[i];
    if (equal) return HD_OK;
    char seen[HDI_SHAPE_TEXT], wanted[HDI_SHAPE_TEXT];
    return hdi_error(HD_ERROR_ARGUMENT, "%s is %s, want %s", what, hdi_shape_text(info, seen),
                     dims_text(hd_dtype_name(info->dtype), rank, dims, wanted));
}

void hdi_output_like(hd_program *program, const hd_tensor_info *info, int64_t columns)
{
    int64_t dims[HD_MAX_DIMS];
    for (int i = 0; i < info->rank; i++)
        dims[i] = info->dims[i];
    dims[info->rank - 1] = columns;
    hd_op_output(program, info->dtype, info->rank, dims);
}

hd_status hdi_no_outputs(hd_program *program, const hd_op *op)
{
    (void)program;
    (void)op;
    return HD_OK;
}

double hdi_tensor_bytes(const hd_op *op)
{
    double bytes = 0;
    for (int i = 0; i < op->inputs; i++)
        if (op->in_info[i]) bytes += (double)op->in_info[i]->bytes;
    for (int i = 0; i < op->outputs; i++)
        if (op->out_info[i]) bytes += (double)op->out_info[i]->bytes;
    return bytes;
}
