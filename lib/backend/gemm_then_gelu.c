/* GELU on a product as two calls, for backends and shapes that do not have it as one. */
#include "backend/backend.h"
#include "core/error.h"

hdi_gemm_args hdi_gemm_before_gelu(const hdi_gemm_args *args)
{
    hdi_gemm_args plain = *args;
    if (args->gelu == HDI_GEMM_GELU) plain.out = args->pre;
    plain.gelu = HDI_GEMM_PLAIN;
    plain.pre = NULL;
    return plain;
}

hd_status hdi_gemm_then_gelu(const hd_backend *backend, hd_stream *stream,
                             const hdi_gemm_args *args)
{
    const hdi_gemm_args product = hdi_gemm_before_gelu(args);
    const bool gradient = args->gelu == HDI_GEMM_GELU_GRADIENT;
    const hdi_activation_args gelu = {.kind = HDI_GELU_TANH,
                                      .dtype = args->dtype,
                                      .elements = args->rows * args->columns,
                                      .x = args->pre,
                                      .gradient = gradient ? args->out : NULL,
                                      .out = args->out};
    HD_RETURN_IF_ERROR(backend->gemm(stream, &product));
    return gradient ? backend->activation_gradient(stream, &gelu)
                    : backend->activation(stream, &gelu);
}
