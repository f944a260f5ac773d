/* What the kernels share: element types, 16-byte accesses, sums in a fixed order, dispatch. All
 * arithmetic is fp32; the element type is only how numbers are stored. */
#ifndef HDI_BACKEND_CUDA_COMMON_CUH
#define HDI_BACKEND_CUDA_COMMON_CUH

#include <cfloat>
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "backend/cuda/cuda.h"

using hdi_half = __half;
using hdi_bfloat = __nv_bfloat16;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

/* Elements in 16 bytes. */
template <typename T> constexpr int kLanes = 16 / (int)sizeof(T);

__device__ inline float to_float(float x)
{
    return x;
}
__device__ inline float to_float(hdi_half x)
{
    return __half2float(x);
}
__device__ inline float to_float(hdi_bfloat x)
{
    return __bfloat162float(x);
}

template <typename T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x)
{
    return x;
}
template <> __device__ inline hdi_half from_float<hdi_half>(float x)
{
    return __float2half_rn(x);
}
template <> __device__ inline hdi_bfloat from_float<hdi_bfloat>(float x)
{
    return __float2bfloat16_rn(x);
}

/* x as it reads back after being stored. */
template <typename T> __device__ inline float rounded(float x)
{
    return to_float(from_float<T>(x));
}

/* exp and 1 / x: the hardware's approximations where the result is rounded to 16 bits anyway. */
template <typename T> __device__ inline float exponential(float x)
{
    return sizeof(T) == sizeof(float) ? expf(x) : __expf(x);
}
template <typename T> __device__ inline float reciprocal(float x)
{
    return sizeof(T) == sizeof(float) ? 1.0f / x : __fdividef(1.0f, x);
}

template <typename T> __device__ inline void unpack(uint4 bits, float (&out)[kLanes<T>])
{
    const T *elements = reinterpret_cast<const T *>(&bits);
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++)
        out[i] = to_float(elements[i]);
}

template <typename T> __device__ inline uint4 pack(const float (&x)[kLanes<T>])
{
    uint4 bits;
    T *elements = reinterpret_cast<T *>(&bits);
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++)
        elements[i] = from_float<T>(x[i]);
    return bits;
}

/* The kLanes elements at p, of which `left` exist (the others read as 0, none if left <= 0). One
 * access if `aligned` says that p is at a multiple of 16 bytes. */
template <typename T>
__device__ inline void load_part(const T *p, int64_t left, bool aligned, float (&out)[kLanes<T>])
{
    if (aligned && left >= kLanes<T>) {
        unpack<T>(*reinterpret_cast<const uint4 *>(p), out);
        return;
    }
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++)
        out[i] = i < left ? to_float(p[i]) : 0.0f;
}

/* The same for what is read once: it need not stay in a cache. */
template <typename T>
__device__ inline void stream_part(const T *p, int64_t left, bool aligned, float (&out)[kLanes<T>])
{
    if (aligned && left >= kLanes<T>)
        unpack<T>(__ldcs(reinterpret_cast<const uint4 *>(p)), out);
    else
        load_part(p, left, false, out);
}

/* The same, still packed: several of these wait for memory together, whereas a load that is unpacked
 * at once, behind a branch, makes the next one wait. kAligned also says that `left` is at least kLanes
 * or at most 0; kOnce, that it need not stay in a cache. */
template <typename T, bool kAligned, bool kOnce = false>
__device__ inline uint4 load_bits(const T *p, int64_t left)
{
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (kAligned) {
        const uint4 *whole = reinterpret_cast<const uint4 *>(p);
        return left <= 0 ? bits : kOnce ? __ldcs(whole) : *whole;
    }
    T *elements = reinterpret_cast<T *>(&bits);
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++)
        if (i < left) elements[i] = p[i];
    return bits;
}

/* Adds the parts at row(begin), row(begin + step), ... before `end` to `sum`, in this order. */
template <typename T, bool kAligned, typename Row>
__device__ inline void add_parts(int64_t begin, int64_t end, int64_t step, int64_t left, Row row,
                                 float (&sum)[kLanes<T>])
{
    constexpr int kAtOnce = 8;
    for (int64_t i = begin; i < end; i += kAtOnce * step) {
        uint4 bits[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; k++) {
            const int64_t at = i + k * step;
            bits[k] = at < end ? load_bits<T, kAligned>(row(at), left) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; k++) {
            float value[kLanes<T>];
            unpack<T>(bits[k], value);
#pragma unroll
            for (int lane = 0; lane < kLanes<T>; lane++)
                sum[lane] += value[lane];
        }
    }
}

template <typename T>
__device__ inline void store_part(T *p, int64_t left, bool aligned, const float (&x)[kLanes<T>])
{
    if (aligned && left >= kLanes<T>) {
        *reinterpret_cast<uint4 *>(p) = pack<T>(x);
        return;
    }
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++)
        if (i < left) p[i] = from_float<T>(x[i]);
}

/* Butterflies: every lane ends with the same bits. */
template <typename V> __device__ inline V warp_sum(V x)
{
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2)
        x += __shfl_xor_sync(kAllLanes, x, lane);
    return x;
}

__device__ inline float warp_max(float x)
{
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2)
        x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lane));
    return x;
}

/* For blocks of whole warps in x only; every thread of the block calls and gets the result. */
template <typename V> __device__ inline V block_sum(V x)
{
    __shared__ V parts[kWarp];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int warps = (int)blockDim.x / kWarp;
    x = warp_sum(x);
    __syncthreads(); /* the parts of an earlier call have been read */
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? parts[lane] : V(0));
}

__device__ inline float block_max(float x)
{
    __shared__ float parts[kWarp];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int warps = (int)blockDim.x / kWarp;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? parts[lane] : -FLT_MAX);
}

/* Leave the first bad value for synchronize. */
__device__ inline void report_fault(hdi_cuda_fault *fault, int kind, int32_t value, int64_t row,
                                    int64_t limit)
{
    if (atomicCAS(&fault->kind, 0, kind) != 0) return;
    fault->value = value;
    fault->row = row;
    fault->limit = limit;
    __threadfence_system();
}

inline bool is_aligned(const void *pointer)
{
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <typename... Pointers> bool are_aligned(Pointers... pointers)
{
    return (is_aligned(pointers) && ...);
}

inline unsigned block_count(int64_t items, int64_t per_block)
{
    return (unsigned)hdi_ceil_div(items, per_block);
}

/* Whether the kernel queued last could start. */
inline hd_status launched(const char *what)
{
    return hdi_cuda_status(cudaGetLastError(), what);
}

template <typename T> struct type_tag {
    using type = T;
};

/* call(type_tag<T>()) for the type that stores `dtype`. */
template <typename Call> hd_status with_type(hd_dtype dtype, const char *what, Call &&call)
{
    switch (dtype) {
    case HD_DTYPE_F32: return call(type_tag<float>());
    case HD_DTYPE_F16: return call(type_tag<hdi_half>());
    case HD_DTYPE_BF16: return call(type_tag<hdi_bfloat>());
    default:
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "%s: dtype is %s, the CUDA backend has F32, F16, BF16", what,
                         hd_dtype_name(dtype));
    }
}

#endif
