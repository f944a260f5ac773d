/* Activations of 8 bits: a warp has a block of 128 elements, a lane four of them. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kWarps = 8, kEach = HDI_QUANTIZE_ELEMENTS / kWarp;
constexpr float kMost = 127.0f;

__device__ int64_t my_block()
{
    return (int64_t)blockIdx.x * kWarps + threadIdx.y;
}

template <typename T>
__global__ void quantize_block_per_warp(const T *x, int64_t elements, int8_t *codes, float *scales)
{
    const int64_t block = my_block(), first = block * HDI_QUANTIZE_ELEMENTS;
    if (first >= elements) return; /* the whole warp leaves, so the shuffles below stay full */
    float values[kEach], largest = 0.0f;
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kEach; i++) {
        const int64_t at = first + i * kWarp + threadIdx.x;
        values[i] = at < elements ? to_float(x[at]) : 0.0f;
        finite = finite && isfinite(values[i]);
        largest = fmaxf(largest, fabsf(values[i]));
    }
    for (int lane = kWarp / 2; lane > 0; lane /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, lane));
    finite = __all_sync(kAllLanes, finite);
    if (largest < 0x1p-119f) largest = 0.0f;
    if (threadIdx.x == 0) scales[block] = finite ? __fdiv_rn(largest, kMost) : nanf("");
    const float inverse = largest > 0.0f ? __fdiv_rn(kMost, largest) : 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; i++) {
        const int64_t at = first + i * kWarp + threadIdx.x;
        const float code = finite ? rintf(__fmul_rn(values[i], inverse)) : 0.0f;
        if (at < elements) codes[at] = (int8_t)fminf(fmaxf(code, -kMost), kMost);
    }
}

template <typename T>
__global__ void dequantize_block_per_warp(const int8_t *codes, const float *scales,
                                          int64_t elements, T *x)
{
    const int64_t block = my_block(), first = block * HDI_QUANTIZE_ELEMENTS;
    if (first >= elements) return;
    const float scale = scales[block];
#pragma unroll
    for (int i = 0; i < kEach; i++) {
        const int64_t at = first + i * kWarp + threadIdx.x;
        if (at < elements) x[at] = from_float<T>(__fmul_rn((float)codes[at], scale));
    }
}

unsigned groups(int64_t elements)
{
    return (unsigned)hdi_ceil_div(elements, (int64_t)kWarps * HDI_QUANTIZE_ELEMENTS);
}

} // namespace

extern "C" hd_status hdi_cuda_quantize(hd_stream *stream, const hdi_quantize_args *args)
{
    if (args->elements <= 0) return HD_OK;
    return with_type(args->dtype, "quantize", [&](auto tag) {
        using T = typename decltype(tag)::type;
        quantize_block_per_warp<<<groups(args->elements), dim3(kWarp, kWarps), 0, stream->handle>>>(
            (const T *)args->x, args->elements, args->codes, args->scales);
        return launched("quantize");
    });
}

extern "C" hd_status hdi_cuda_dequantize(hd_stream *stream, const hdi_quantize_args *args)
{
    if (args->elements <= 0) return HD_OK;
    return with_type(args->dtype, "dequantize", [&](auto tag) {
        using T = typename decltype(tag)::type;
        dequantize_block_per_warp<<<groups(args->elements), dim3(kWarp, kWarps), 0,
                                    stream->handle>>>(args->codes, args->scales, args->elements,
                                                      (T *)args->x);
        return launched("dequantize");
    });
}
