/* Rows held in registers: a thread has kVectors vectors of 16 bytes of a row, and threads next to each
 * other have vectors next to each other. */
#ifndef HDI_BACKEND_CUDA_ROW_CUH
#define HDI_BACKEND_CUDA_ROW_CUH

#include "backend/cuda/common.cuh"

/* The first column of a thread's vector. */
template <typename T> __device__ inline int64_t column_of(int vector)
{
    return ((int64_t)vector * blockDim.x + threadIdx.x) * kLanes<T>;
}

/* A thread's part of the row at `row + first`, packed. kOnce: it need not stay in a cache. */
template <typename T, int kVectors, bool kAligned, bool kOnce = true>
__device__ inline void stream_row(const void *row, int64_t first, int64_t columns,
                                  uint4 (&out)[kVectors])
{
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
        const int64_t column = column_of<T>(v);
        out[v] = load_bits<T, kAligned, kOnce>((const T *)row + first + column, columns - column);
    }
}

/* What was unpacked is unpacked again, not kept: registers are what limits a gradient. */
__device__ inline void forget(uint4 &bits)
{
    asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
}

#endif
