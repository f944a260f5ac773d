/* F16 and BF16, as half.c has them: query-key-value streams and attention across. */
#include "backend/cpu/half_call.h"

static hdi_joint_qkv_args widen_stream(call *c, const hdi_joint_qkv_args *args)
{
    const hd_dtype dtype = args->dtype;
    const int64_t columns = 3 * args->heads * args->head_dim;
    hdi_joint_qkv_args wide = *args; /* with its dtype: what is rounded to between the steps */
    wide.qkv = widen(c, dtype, args->qkv, args->sequences * args->tokens * columns);
    wide.query_norm = widen(c, dtype, args->query_norm, args->head_dim);
    wide.key_norm = widen(c, dtype, args->key_norm, args->head_dim);
    return wide;
}

hd_status hdi_cpu_any_joint_qkv(hd_stream *stream, const hdi_joint_qkv_args *args)
{
    if (args->dtype == HD_DTYPE_F32) return hdi_cpu_joint_qkv(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "joint qkv", args->dtype));
    const int64_t columns = 3 * args->heads * args->head_dim;
    hdi_joint_qkv_args wide = widen_stream(&c, args);
    wide.out = target(&c, args->dtype, args->out, args->sequences * args->out_tokens * columns);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_joint_qkv(stream, &wide));
    for (int64_t s = 0; s < args->sequences; s++) { /* other rows are another stream's */
        const int64_t at = (s * args->out_tokens + args->first) * columns;
        narrow(args->dtype, (const float *)wide.out + at, args->tokens, columns, columns,
               (uint16_t *)args->out + at);
    }
    return HD_OK;
}

hd_status hdi_cpu_any_joint_qkv_gradient(hd_stream *stream, const hdi_joint_qkv_gradient_args *args)
{
    const hdi_joint_qkv_args *forward = &args->forward;
    if (forward->dtype == HD_DTYPE_F32) return hdi_cpu_joint_qkv_gradient(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "joint qkv gradient", forward->dtype));
    const hd_dtype dtype = forward->dtype;
    const int64_t columns = 3 * forward->heads * forward->head_dim;
    const int64_t rows = forward->sequences * forward->tokens;
    hdi_joint_qkv_gradient_args wide = *args;
    wide.forward = widen_stream(&c, forward);
    wide.gradient =
        widen(&c, dtype, args->gradient, forward->sequences * forward->out_tokens * columns);
    wide.qkv_gradient = target(&c, dtype, args->qkv_gradient, rows * columns);
    HD_RETURN_IF_ERROR(ready(&c));
    HD_RETURN_IF_ERROR(hdi_cpu_joint_qkv_gradient(stream, &wide));
    narrow(dtype, wide.qkv_gradient, rows, columns, columns, args->qkv_gradient);
    return HD_OK;
}

typedef hd_status (*cross_kernel)(hd_stream *stream, const hdi_cross_attention_args *args);

static hd_status attend(hd_stream *stream, const hdi_cross_attention_args *args, bool backward,
                        cross_kernel kernel)
{
    if (args->dtype == HD_DTYPE_F32) return kernel(stream, args);
    call c;
    HD_RETURN_IF_ERROR(begin(&c, stream, "cross attention", args->dtype));
    const hd_dtype dtype = args->dtype;
    const int64_t rows = args->sequences * args->tokens, columns = args->heads * args->head_dim;
    const int64_t q = span(rows, columns, args->q_stride),
                  out = span(rows, columns, args->out_stride);
    const int64_t k = span(args->kv_rows, columns, args->k_stride);
    const int64_t v = span(args->kv_rows, columns, args->v_stride);
    hdi_cross_attention_args wide = *args;
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
    narrow(dtype, wide.k_gradient, args->kv_rows, columns, args->k_stride, args->k_gradient);
    narrow(dtype, wide.v_gradient, args->kv_rows, columns, args->v_stride, args->v_gradient);
    return HD_OK;
}

hd_status hdi_cpu_any_cross_attention(hd_stream *stream, const hdi_cross_attention_args *args)
{
    return attend(stream, args, false, hdi_cpu_cross_attention);
}

hd_status hdi_cpu_any_cross_attention_gradient(hd_stream *stream,
                                               const hdi_cross_attention_args *args)
{
    return attend(stream, args, true, hdi_cpu_cross_attention_gradient);
}
