/* GELU and SiLU, alone and as gates, forward and backward. A thread owns 16 bytes of each tensor and
 * reads them before it writes, so outputs may lie on inputs. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kThreads = 256;
constexpr float kSteepest = 80.0f; /* exp of more than this could overflow; 1 + exp(80) is enough */

template <typename T> __device__ float exp_minus(float x)
{
    return exponential<T>(fminf(-x, kSteepest));
}

template <typename T> __device__ float sigmoid(float x)
{
    return reciprocal<T>(1.0f + exp_minus<T>(x));
}

/* 0.5 * (1 + tanh(u)) = sigmoid(2u), u = sqrt(2 / pi) * (x + 0.044715 x^3). */
__device__ inline float twice_tanh_argument(float x)
{
    return x * (0.0713548163f * x * x + 1.59576912f);
}

template <typename T> __device__ float activate(hdi_activation kind, float x)
{
    switch (kind) {
    case HDI_GELU_ERF: return 0.5f * x * (1.0f + erff(x * 0.707106781f));
    case HDI_GELU_TANH: return x * sigmoid<T>(twice_tanh_argument(x));
    default: return x * sigmoid<T>(x);
    }
}

template <typename T> __device__ float slope(hdi_activation kind, float x)
{
    if (kind == HDI_GELU_ERF) {
        const float cdf = 0.5f * (1.0f + erff(x * 0.707106781f));
        return cdf + x * 0.398942280f * exponential<T>(-0.5f * x * x);
    }
    const bool tanh_form = kind == HDI_GELU_TANH;
    const float e = exp_minus<T>(tanh_form ? twice_tanh_argument(x) : x);
    const float s = reciprocal<T>(1.0f + e);
    const float inner = tanh_form ? 0.214064449f * x * x + 1.59576912f : 1.0f;
    return s + x * inner * s * (e * s); /* e * s = 1 - s */
}

template <typename T, bool kGradient>
__global__ void activate_part(hdi_activation_args a, bool aligned)
{
    const int64_t first = ((int64_t)blockIdx.x * kThreads + threadIdx.x) * kLanes<T>;
    const int64_t left = a.elements - first;
    if (left <= 0) return;
    float x[kLanes<T>], gradient[kLanes<T>];
    stream_part((const T *)a.x + first, left, aligned, x);
    if (kGradient) stream_part((const T *)a.gradient + first, left, aligned, gradient);
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++)
        x[i] = kGradient ? gradient[i] * slope<T>(a.kind, x[i]) : activate<T>(a.kind, x[i]);
    store_part((T *)a.out + first, left, aligned, x);
}

/* A thread owns a part of one row: `parts` of them make a row. */
template <typename T, bool kGradient>
__global__ void gate_part(hdi_gated_args a, int64_t parts, bool aligned)
{
    const int64_t index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    const int64_t row = index / parts, column = index % parts * kLanes<T>;
    const int64_t left = a.columns - column;
    if (row >= a.rows) return;
    const T *x = (const T *)a.x + 2 * row * a.columns + column;
    float gate[kLanes<T>], up[kLanes<T>], gradient[kLanes<T>];
    stream_part(x, left, aligned, gate);
    stream_part(x + a.columns, left, aligned, up);
    if (!kGradient) {
#pragma unroll
        for (int i = 0; i < kLanes<T>; i++)
            gate[i] = activate<T>(a.kind, gate[i]) * up[i];
        store_part((T *)a.out + row * a.columns + column, left, aligned, gate);
        return;
    }
    stream_part((const T *)a.gradient + row * a.columns + column, left, aligned, gradient);
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++) {
        const float value = activate<T>(a.kind, gate[i]);
        gate[i] = gradient[i] * slope<T>(a.kind, gate[i]) * up[i];
        up[i] = gradient[i] * value;
    }
    T *out = (T *)a.x_gradient + 2 * row * a.columns + column;
    store_part(out, left, aligned, gate);
    store_part(out + a.columns, left, aligned, up);
}

template <bool kGradient>
hd_status run_activation(hd_stream *stream, const hdi_activation_args *args, const char *what)
{
    if (args->elements <= 0) return HD_OK;
    const bool aligned =
        are_aligned(args->x, args->out) && (!kGradient || is_aligned(args->gradient));
    return with_type(args->dtype, what, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const unsigned blocks = block_count(args->elements, kThreads * kLanes<T>);
        activate_part<T, kGradient><<<blocks, kThreads, 0, stream->handle>>>(*args, aligned);
        return launched(what);
    });
}

template <bool kGradient>
hd_status run_gated(hd_stream *stream, const hdi_gated_args *args, const char *what)
{
    if (args->rows <= 0 || args->columns <= 0) return HD_OK;
    return with_type(args->dtype, what, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const int64_t parts = hdi_ceil_div(args->columns, kLanes<T>);
        const bool pointers = kGradient ? are_aligned(args->x, args->gradient, args->x_gradient)
                                        : are_aligned(args->x, args->out);
        const bool aligned = pointers && args->columns % kLanes<T> == 0;
        gate_part<T, kGradient>
            <<<block_count(args->rows * parts, kThreads), kThreads, 0, stream->handle>>>(
                *args, parts, aligned);
        return launched(what);
    });
}

} // namespace

extern "C" hd_status hdi_cuda_activation(hd_stream *stream, const hdi_activation_args *args)
{
    return run_activation<false>(stream, args, "activation");
}

extern "C" hd_status hdi_cuda_activation_gradient(hd_stream *stream,
                                                  const hdi_activation_args *args)
{
    return run_activation<true>(stream, args, "activation gradient");
}

extern "C" hd_status hdi_cuda_gated(hd_stream *stream, const hdi_gated_args *args)
{
    return run_gated<false>(stream, args, "gated activation");
}

extern "C" hd_status hdi_cuda_gated_gradient(hd_stream *stream, const hdi_gated_args *args)
{
    return run_gated<true>(stream, args, "gated activation gradient");
}
