/* F16 and BF16 by way of F32: inputs are widened into scratch, the F32 kernel computes, outputs are
 * rounded. This is the reference that 16-bit devices are held against, not a fast path: the scratch
 * belongs to the device, outside any plan, and grows when a shape is first met. */
#include "backend/cpu/half_call.h"

hd_status hdi_cpu_any_gemm(hd_stream *stream, const hdi_gemm_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_gemm(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "gemm", args->dtype));
    const int64_t rows = args->rows, columns = args->columns, inner = args->inner;
    const int64_t a =
        args->transpose_a ? span(inner, rows, args->a_stride) : span(rows, inner, args->a_stride);
    const int64_t b = args->transpose_b ? span(columns, inner, args->b_stride)
                                        : span(inner, columns, args->b_stride);
    const int64_t out = span(rows, columns, args->out_stride);
    hdi_gemm_args wide = *args;
    wide.dtype = wide.out_dtype = HD_DTYPE_F32;
    wide.a = widen(&c, args->dtype, args->a, a);
    wide.b = widen(&c, args->dtype, args->b, b);
    wide.bias = widen(&c, args->dtype, args->bias, columns);
    wide.out = target(&c, args->out_dtype, args->out, out);
    HD_RETURN_IF_ERROR(ready(&c));
    if (args->accumulate && wide.out != args->out)
        hdi_cpu_widen(args->out_dtype, args->out, out, wide.out);
    HD_RETURN_IF_ERROR(hdi_cpu_gemm(stream, &wide));
    narrow(args->out_dtype, wide.out, rows, columns, args->out_stride, args->out);
    return HD_OK;
}

hd_status hdi_cpu_any_column_sum(hd_stream *stream, const hdi_column_sum_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_column_sum(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "column_sum", args->dtype));
    hdi_column_sum_args wide = *args;
    wide.dtype = wide.out_dtype = HD_DTYPE_F32;
    wide.x = widen(&c, args->dtype, args->x, span(args->rows, args->columns, args->x_stride));
    wide.out = target(&c, args->out_dtype, args->out, args->columns);
    HD_RETURN_IF_ERROR(ready(&c));
    if (args->accumulate && wide.out != args->out)
        hdi_cpu_widen(args->out_dtype, args->out, args->columns, wide.out);
    HD_RETURN_IF_ERROR(hdi_cpu_column_sum(stream, &wide));
    narrow(args->out_dtype, wide.out, 1, args->columns, args->columns, args->out);
    return HD_OK;
}

hd_status hdi_cpu_any_embedding(hd_stream *stream, const hdi_embedding_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_embedding(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "embedding", args->dtype));
    const int64_t columns = args->columns;
    hdi_embedding_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.table = widen(&c, args->dtype, args->table, args->entries * columns);
    wide.second_table = widen(&c, args->dtype, args->second_table, args->second_entries * columns);
    wide.out = target(&c, args->dtype, args->out, args->rows * columns);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_embedding(stream, &wide));
    narrow(args->dtype, wide.out, args->rows, columns, columns, args->out);
    return HD_OK;
}

hd_status hdi_cpu_any_embedding_gradient(hd_stream *stream, const hdi_embedding_gradient_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_embedding_gradient(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "embedding gradient", args->dtype));
    hdi_embedding_gradient_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.gradient = widen(&c, args->dtype, args->gradient, args->rows * args->columns);
    HD_RETURN_IF_ERROR(ready(&c));
    return hdi_cpu_embedding_gradient(stream, &wide);
}

/* The sum is rounded before it is normed: the backward will see the rounded one. */
hd_status hdi_cpu_any_norm(hd_stream *stream, const hdi_norm_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_norm(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "norm", args->dtype));
    const int64_t columns = args->columns, elements = args->rows * columns;
    const float *x = widen(&c, args->dtype, args->x, elements);
    const float *residual = widen(&c, args->dtype, args->residual, elements);
    hdi_norm_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.weight = widen(&c, args->dtype, args->weight, columns);
    wide.bias = widen(&c, args->dtype, args->bias, columns);
    float *sum = take(&c, elements);
    wide.out = target(&c, args->dtype, args->out, elements);
    wide.x = sum;
    wide.residual = wide.sum = NULL;
    HD_RETURN_IF_ERROR(ready(&c));
    for (int64_t i = 0; i < elements; i++) {
        const uint16_t rounded =
            hdi_half_from_float(args->dtype, residual ? x[i] + residual[i] : x[i]);
        sum[i] = hdi_half_to_float(args->dtype, rounded);
    }
    HD_RETURN_IF_ERROR(hdi_cpu_norm(stream, &wide));
    narrow(args->dtype, sum, args->rows, columns, columns, args->sum);
    narrow(args->dtype, wide.out, args->rows, columns, columns, args->out);
    return HD_OK;
}

/* The gradient is rounded before the carry is added to it, as an add of the two would see it. */
hd_status hdi_cpu_any_norm_gradient(hd_stream *stream, const hdi_norm_gradient_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_norm_gradient(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "norm gradient", args->dtype));
    const int64_t columns = args->columns, elements = args->rows * columns;
    hdi_norm_gradient_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.gradient = widen(&c, args->dtype, args->gradient, elements);
    wide.x = widen(&c, args->dtype, args->x, elements);
    wide.weight = widen(&c, args->dtype, args->weight, columns);
    const float *carry = widen(&c, args->dtype, args->carry, elements);
    wide.carry = NULL;
    float *through = take(&c, elements);
    wide.x_gradient = through;
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_norm_gradient(stream, &wide));
    for (int64_t i = 0; carry && i < elements; i++) {
        const uint16_t rounded = hdi_half_from_float(args->dtype, through[i]);
        through[i] = hdi_half_to_float(args->dtype, rounded) + carry[i];
    }
    narrow(args->dtype, through, args->rows, columns, columns, args->x_gradient);
    return HD_OK;
}

typedef hd_status (*activation_kernel)(hd_stream *stream, const hdi_activation_args *args);

static hd_status activate(hd_stream *stream, const hdi_activation_args *args,
                          activation_kernel kernel)
{
    if (args->dtype == HD_DTYPE_F32) return kernel(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "activation", args->dtype));
    const int64_t elements = args->elements;
    hdi_activation_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.x = widen(&c, args->dtype, args->x, elements);
    wide.gradient = widen(&c, args->dtype, args->gradient, elements);
    wide.out = target(&c, args->dtype, args->out, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(kernel(stream, &wide));
    narrow(args->dtype, wide.out, 1, elements, elements, args->out);
    return HD_OK;
}

hd_status hdi_cpu_any_activation(hd_stream *stream, const hdi_activation_args *args)
{
    return activate(stream, args, hdi_cpu_activation);
}

hd_status hdi_cpu_any_activation_gradient(hd_stream *stream, const hdi_activation_args *args)
{
    return activate(stream, args, hdi_cpu_activation_gradient);
}

typedef hd_status (*gated_kernel)(hd_stream *stream, const hdi_gated_args *args);

static hd_status gate(hd_stream *stream, const hdi_gated_args *args, gated_kernel kernel)
{
    if (args->dtype == HD_DTYPE_F32) return kernel(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "gated activation", args->dtype));
    const int64_t elements = args->rows * args->columns;
    hdi_gated_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.x = widen(&c, args->dtype, args->x, 2 * elements);
    wide.gradient = widen(&c, args->dtype, args->gradient, elements);
    wide.out = target(&c, args->dtype, args->out, elements);
    wide.x_gradient = target(&c, args->dtype, args->x_gradient, 2 * elements);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(kernel(stream, &wide));
    narrow(args->dtype, wide.out, 1, elements, elements, args->out);
    narrow(args->dtype, wide.x_gradient, 2, elements, elements, args->x_gradient);
    return HD_OK;
}

hd_status hdi_cpu_any_gated(hd_stream *stream, const hdi_gated_args *args)
{
    return gate(stream, args, hdi_cpu_gated);
}

hd_status hdi_cpu_any_gated_gradient(hd_stream *stream, const hdi_gated_args *args)
{
    return gate(stream, args, hdi_cpu_gated_gradient);
}

hd_status hdi_cpu_any_rope(hd_stream *stream, const hdi_rope_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_rope(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "rope", args->dtype));
    const int64_t columns = args->heads * args->head_dim;
    const int64_t elements = span(args->rows, columns, args->x_stride);
    hdi_rope_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.x = widen(&c, args->dtype, args->x, elements);
    wide.out = target(&c, args->dtype, args->out, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_rope(stream, &wide));
    narrow(args->dtype, wide.out, args->rows, columns, args->x_stride, args->out);
    return HD_OK;
}

typedef hd_status (*attention_kernel)(hd_stream *stream, const hdi_attention_args *args);

static hd_status attend(hd_stream *stream, const hdi_attention_args *args, bool backward,
                        attention_kernel kernel)
{
    if (args->dtype == HD_DTYPE_F32) return kernel(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "attention", args->dtype));
    const hd_dtype dtype = args->dtype;
    const int64_t rows = args->batch * args->tokens, key_rows = args->batch * args->kv_tokens;
    const int64_t columns = args->heads * args->head_dim;
    const int64_t key_columns = args->kv_heads * args->head_dim;
    const int64_t q = span(rows, columns, args->q_stride),
                  out = span(rows, columns, args->out_stride);
    const int64_t k = span(key_rows, key_columns, args->k_stride);
    const int64_t v = span(key_rows, key_columns, args->v_stride);
    hdi_attention_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.q = widen(&c, dtype, args->q, q);
    wide.k = widen(&c, dtype, args->k, k);
    wide.v = widen(&c, dtype, args->v, v);
    wide.out = target(&c, dtype, args->out, out);
    if (backward) {
        wide.out_gradient = widen(&c, dtype, args->out_gradient, out);
        wide.q_gradient = target(&c, dtype, args->q_gradient, q);
        wide.k_gradient = target(&c, dtype, args->k_gradient, k);
        wide.v_gradient = target(&c, dtype, args->v_gradient, v);
    }
    HD_RETURN_IF_ERROR(ready(&c));
    if (backward) hdi_cpu_widen(dtype, args->out, out, wide.out);
    HD_RETURN_IF_ERROR(kernel(stream, &wide));
    if (!backward) {
        narrow(dtype, wide.out, rows, columns, args->out_stride, args->out);
        return HD_OK;
    }
    narrow(dtype, wide.q_gradient, rows, columns, args->q_stride, args->q_gradient);
    narrow(dtype, wide.k_gradient, key_rows, key_columns, args->k_stride, args->k_gradient);
    narrow(dtype, wide.v_gradient, key_rows, key_columns, args->v_stride, args->v_gradient);
    return HD_OK;
}

hd_status hdi_cpu_any_attention(hd_stream *stream, const hdi_attention_args *args)
{
    return attend(stream, args, false, hdi_cpu_attention);
}

hd_status hdi_cpu_any_attention_gradient(hd_stream *stream, const hdi_attention_args *args)
{
    return attend(stream, args, true, hdi_cpu_attention_gradient);
}

hd_status hdi_cpu_any_attention_cached(hd_stream *stream, const hdi_attention_cached_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_attention_cached(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "cached attention", args->dtype));
    const hd_dtype dtype = args->dtype;
    const int64_t rows = args->tokens, columns = args->heads * args->head_dim;
    const int64_t key_columns = args->kv_heads * args->head_dim;
    const int64_t cache = args->capacity * key_columns;
    hdi_attention_cached_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.q = widen(&c, dtype, args->q, span(rows, columns, args->q_stride));
    wide.k = widen(&c, dtype, args->k, span(rows, key_columns, args->k_stride));
    wide.v = widen(&c, dtype, args->v, span(rows, key_columns, args->v_stride));
    wide.k_cache = target(&c, dtype, args->k_cache, cache);
    wide.v_cache = target(&c, dtype, args->v_cache, cache);
    wide.out = target(&c, dtype, args->out, span(rows, columns, args->out_stride));
    HD_RETURN_IF_ERROR(ready(&c));
    hdi_cpu_widen(dtype, args->k_cache, cache, wide.k_cache);
    hdi_cpu_widen(dtype, args->v_cache, cache, wide.v_cache);
    HD_RETURN_IF_ERROR(hdi_cpu_attention_cached(stream, &wide));
    narrow(dtype, wide.k_cache, 1, cache, cache, args->k_cache);
    narrow(dtype, wide.v_cache, 1, cache, cache, args->v_cache);
    narrow(dtype, wide.out, rows, columns, args->out_stride, args->out);
    return HD_OK;
}

hd_status hdi_cpu_any_cross_entropy(hd_stream *stream, const hdi_cross_entropy_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_cross_entropy(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "cross_entropy", args->dtype));
    const int64_t elements = span(args->rows, args->classes, args->logits_stride);
    hdi_cross_entropy_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.logits = widen(&c, args->dtype, args->logits, elements);
    wide.gradient = target(&c, args->dtype, args->gradient, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_cross_entropy(stream, &wide));
    narrow(args->dtype, wide.gradient, args->rows, args->classes, args->logits_stride,
           args->gradient);
    return HD_OK;
}

hd_status hdi_cpu_any_cross_entropy_part(hd_stream *stream, const hdi_cross_entropy_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_cross_entropy_part(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "cross_entropy_part", args->dtype));
    hdi_cross_entropy_args wide = *args;
    wide.dtype = HD_DTYPE_F32;
    wide.logits =
        widen(&c, args->dtype, args->logits, span(args->rows, args->classes, args->logits_stride));
    HD_RETURN_IF_ERROR(ready(&c));
    return hdi_cpu_cross_entropy_part(stream, &wide);
}

hd_status hdi_cpu_any_add(hd_stream *stream, hd_dtype dtype, int64_t elements, const void *x,
                          const void *y, void *out)
{
    if (dtype == HD_DTYPE_F32) return hdi_cpu_add(stream, dtype, elements, x, y, out);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "add", dtype));
    const float *wide_x = widen(&c, dtype, x, elements), *wide_y = widen(&c, dtype, y, elements);
    float *sum = target(&c, dtype, out, elements);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_add(stream, HD_DTYPE_F32, elements, wide_x, wide_y, sum));
    narrow(dtype, sum, 1, elements, elements, out);
    return HD_OK;
}

hd_status hdi_cpu_any_convert(hd_stream *stream, hd_dtype from, const void *x, hd_dtype to,
                              void *out, int64_t elements)
{
    if (from == to && hdi_is_half(from)) {
        memmove(out, x, (size_t)elements * sizeof(uint16_t));
        return HD_OK;
    }
    if (hdi_is_half(from) && hdi_is_half(to)) {
        for (int64_t i = 0; i < elements; i++)
            ((uint16_t *)out)[i] =
                hdi_half_from_float(to, hdi_half_to_float(from, ((const uint16_t *)x)[i]));
        return HD_OK;
    }
    if (hdi_is_half(from) && to == HD_DTYPE_F32) {
        hdi_cpu_widen(from, x, elements, out);
        return HD_OK;
    }
    if (from == HD_DTYPE_F32 && hdi_is_half(to)) {
        narrow(to, x, 1, elements, elements, out);
        return HD_OK;
    }
    return hdi_cpu_convert(stream, from, x, to, out, elements);
}

hd_status hdi_cpu_any_fill_normal(hd_stream *stream, hd_dtype dtype, void *out, int64_t elements,
                                  uint64_t seed, uint64_t stream_number, int64_t first, float std)
{
    enum { PIECE = 4096 };
    if (!hdi_is_half(dtype))
        return hdi_cpu_fill_normal(stream, dtype, out, elements, seed, stream_number, first, std);
    float values[PIECE];
    for (int64_t done = 0; done < elements; done += PIECE) {
        const int64_t count = hdi_cpu_min(PIECE, elements - done);
        HD_RETURN_IF_ERROR(hdi_cpu_fill_normal(stream, HD_DTYPE_F32, values, count, seed,
                                               stream_number, first + done, std));
        narrow(dtype, values, 1, count, count, (uint16_t *)out + done);
    }
    return HD_OK;
}
