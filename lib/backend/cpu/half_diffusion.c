/* F16 and BF16 by way of F32, as half.c, for the ops of diffusion transformers. */
#include "backend/cpu/half_call.h"

hd_status hdi_cpu_any_sinusoid(hd_stream *stream, const hdi_sinusoid_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_sinusoid(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "sinusoid", args->dtype));
    hdi_sinusoid_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.out = target(&c, args->dtype, args->out, args->rows * args->columns);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_sinusoid(stream, &wide));
    narrow(args->dtype, wide.out, args->rows, args->columns, args->columns, args->out);
    return HD_OK;
}

/* The rows of a table that groups use, one after another; the index has then done its work. */
static const float *gather(call *c, hd_dtype dtype, const void *table, int64_t stride,
                           const int32_t *index, int64_t groups, int64_t columns)
{
    if (!table) return NULL;
    float *out = take(c, groups * columns);
    for (int64_t g = 0; g < groups && !c->failed; g++)
        hdi_cpu_widen(dtype, (const uint16_t *)table + (index ? index[g] : g) * stride, columns,
                      out + g * columns);
    return out;
}

static int64_t groups_of(int64_t rows, int64_t rows_per_group)
{
    return rows_per_group > 0 ? rows / rows_per_group : 0;
}

static void round_run(hd_dtype dtype, float *x, int64_t elements)
{
    for (int64_t i = 0; i < elements; i++)
        x[i] = hdi_half_to_float(dtype, hdi_half_from_float(dtype, x[i]));
}

/* The sum is rounded before it is normed: the backward will see the rounded one. */
hd_status hdi_cpu_any_modulate(hd_stream *stream, const hdi_modulate_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_modulate(stream, args);
    HD_RETURN_IF_ERROR(hdi_cpu_check_modulate(args));
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "modulate", args->dtype));
    const hd_dtype dtype = args->dtype;
    const int64_t rows = args->rows, columns = args->columns, elements = rows * columns;
    const int64_t groups = groups_of(rows, args->rows_per_group);
    const int64_t gate_groups = groups_of(rows, args->gate_rows_per_group);
    hdi_modulate_args add = *args;
    add.dtype = HD_DTYPE_F32;
    add.x = widen(&c, dtype, args->x, elements);
    add.delta = widen(&c, dtype, args->delta, elements);
    add.gate =
        gather(&c, dtype, args->gate, args->gate_stride, args->gate_index, gate_groups, columns);
    add.gate_stride = columns;
    add.gate_index = NULL;
    add.gate_entries = gate_groups;
    add.scale = add.shift = NULL;
    add.out = NULL;
    hdi_modulate_args norm = *args;
    norm.dtype = HD_DTYPE_F32;
    norm.delta = norm.gate = NULL;
    norm.shift = gather(&c, dtype, args->shift, args->stride, args->index, groups, columns);
    norm.scale = gather(&c, dtype, args->scale, args->stride, args->index, groups, columns);
    norm.stride = columns;
    norm.index = NULL;
    norm.entries = groups;
    norm.sum = NULL;
    float *sum = take(&c, elements);
    norm.x = add.sum = sum;
    norm.out = target(&c, dtype, args->out, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_modulate(stream, &add));
    round_run(dtype, sum, elements);
    if (args->out) HD_RETURN_IF_ERROR(hdi_cpu_modulate(stream, &norm));
    narrow(dtype, sum, rows, columns, columns, args->sum);
    narrow(dtype, norm.out, rows, columns, columns, args->out);
    return HD_OK;
}

/* First the gradient through the norm, rounded before the carry is added; then that of the gate. */
hd_status hdi_cpu_any_modulate_gradient(hd_stream *stream, const hdi_modulate_gradient_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_modulate_gradient(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "modulate gradient", args->dtype));
    const hd_dtype dtype = args->dtype;
    const int64_t rows = args->rows, columns = args->columns, elements = rows * columns;
    const float *carry = widen(&c, dtype, args->carry, elements);
    float *ds = take(&c, elements);
    hdi_modulate_gradient_args norm = *args, gate = *args;
    norm.dtype = gate.dtype = HD_DTYPE_F32;
    norm.gradient = widen(&c, dtype, args->gradient, elements);
    norm.x = args->gradient ? widen(&c, dtype, args->x, elements) : NULL;
    norm.scale = gather(&c, dtype, args->scale, args->stride, args->index,
                        groups_of(rows, args->rows_per_group), columns);
    norm.stride = columns;
    norm.index = NULL;
    norm.carry = NULL;
    norm.x_gradient = ds;
    norm.delta_gradient = NULL;
    norm.gate_sums = NULL;
    gate.gradient = gate.x_gradient = NULL;
    gate.sums = NULL;
    gate.carry = ds;
    gate.delta = args->gate_sums ? widen(&c, dtype, args->delta, elements) : NULL;
    gate.gate = args->delta_gradient
                    ? gather(&c, dtype, args->gate, args->gate_stride, args->gate_index,
                             groups_of(rows, args->gate_rows_per_group), columns)
                    : NULL;
    gate.gate_stride = columns;
    gate.gate_index = NULL;
    gate.delta_gradient = target(&c, dtype, args->delta_gradient, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    if (args->gradient) {
        HD_RETURN_IF_ERROR(hdi_cpu_modulate_gradient(stream, &norm));
        if (carry) {
            round_run(dtype, ds, elements);
            HD_RETURN_IF_ERROR(hdi_cpu_add(stream, HD_DTYPE_F32, elements, ds, carry, ds));
        }
        round_run(dtype, ds, elements);
    } else {
        HD_RETURN_IF_ERROR(
            hdi_cpu_convert(stream, HD_DTYPE_F32, carry, HD_DTYPE_F32, ds, elements));
    }
    if (args->delta_gradient || args->gate_sums)
        HD_RETURN_IF_ERROR(hdi_cpu_modulate_gradient(stream, &gate));
    narrow(dtype, ds, rows, columns, columns, args->x_gradient);
    narrow(dtype, gate.delta_gradient, rows, columns, columns, args->delta_gradient);
    return HD_OK;
}

hd_status hdi_cpu_any_modulation_gradient(hd_stream *stream,
                                          const hdi_modulation_gradient_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_modulation_gradient(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "modulation gradient", args->dtype));
    hdi_modulation_gradient_args wide = *args;
    const int64_t elements = args->entries * args->table_columns;
    wide.dtype = HD_DTYPE_F32;
    wide.table_gradient = target(&c, args->dtype, args->table_gradient, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_modulation_gradient(stream, &wide));
    narrow(args->dtype, wide.table_gradient, 1, elements, elements, args->table_gradient);
    return HD_OK;
}

hd_status hdi_cpu_any_add_rows(hd_stream *stream, const hdi_add_rows_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_add_rows(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "add_rows", args->dtype));
    const int64_t elements = args->rows * args->columns;
    hdi_add_rows_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.x = widen(&c, args->dtype, args->x, elements);
    wide.table = widen(&c, args->dtype, args->table, args->period * args->columns);
    wide.out = target(&c, args->dtype, args->out, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_add_rows(stream, &wide));
    narrow(args->dtype, wide.out, 1, elements, elements, args->out);
    return HD_OK;
}

hd_status hdi_cpu_any_add_rows_gradient(hd_stream *stream, const hdi_add_rows_gradient_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_add_rows_gradient(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "add_rows gradient", args->dtype));
    const int64_t elements = args->period * args->columns;
    hdi_add_rows_gradient_args wide = *args;
    wide.dtype = wide.out_dtype = HD_DTYPE_F32;
    wide.gradient = widen(&c, args->dtype, args->gradient, args->rows * args->columns);
    wide.table_gradient = target(&c, args->out_dtype, args->table_gradient, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    if (args->accumulate && wide.table_gradient != args->table_gradient)
        hdi_cpu_widen(args->out_dtype, args->table_gradient, elements, wide.table_gradient);
    HD_RETURN_IF_ERROR(hdi_cpu_add_rows_gradient(stream, &wide));
    narrow(args->out_dtype, wide.table_gradient, 1, elements, elements, args->table_gradient);
    return HD_OK;
}

static int64_t row_elements(const hdi_patch_args *args)
{
    return args->sequences * hdi_ceil_div(args->frames, args->patch[0]) *
           hdi_ceil_div(args->height, args->patch[1]) * hdi_ceil_div(args->width, args->patch[2]) *
           args->row_columns;
}

hd_status hdi_cpu_any_patchify(hd_stream *stream, const hdi_patch_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_patchify(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "patchify", args->dtype));
    const int64_t elements = row_elements(args);
    hdi_patch_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.out = target(&c, args->dtype, args->out, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_patchify(stream, &wide));
    narrow(args->dtype, wide.out, 1, elements, elements, args->out);
    return HD_OK;
}

hd_status hdi_cpu_any_unpatchify(hd_stream *stream, const hdi_patch_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_unpatchify(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "unpatchify", args->dtype));
    hdi_patch_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.x = widen(&c, args->dtype, args->x, row_elements(args));
    HD_RETURN_IF_ERROR(ready(&c));
    return hdi_cpu_unpatchify(stream, &wide);
}

hd_status hdi_cpu_any_squared_error(hd_stream *stream, const hdi_squared_error_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_squared_error(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "squared_error", args->dtype));
    const int64_t elements = args->rows * args->columns;
    hdi_squared_error_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.prediction = widen(&c, args->dtype, args->prediction, elements);
    wide.gradient = target(&c, args->dtype, args->gradient, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_squared_error(stream, &wide));
    narrow(args->dtype, wide.gradient, 1, elements, elements, args->gradient);
    return HD_OK;
}
