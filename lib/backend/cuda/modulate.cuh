/* What modulation and its gradient share: how a row is split over threads, sums over a block with one
 * barrier, and which row of a table a group uses. */
#ifndef HDI_BACKEND_CUDA_MODULATE_CUH
#define HDI_BACKEND_CUDA_MODULATE_CUH

#include "backend/cuda/row.cuh"

constexpr int kWidestRow = 512; /* threads */

/* The row of a table of `entries` that a row of x uses. */
__device__ inline int64_t entry_of(const int32_t *index, int64_t row, int64_t rows_per_group,
                                   int64_t entries, hdi_cuda_fault *fault)
{
    const int64_t group = (uint32_t)row / (uint32_t)rows_per_group;
    if (!index) return group;
    const int32_t entry = index[group];
    if (entry >= 0 && entry < entries) return entry;
    if (threadIdx.x == 0) report_fault(fault, HDI_FAULT_MODULATION, entry, group, entries);
    return 0;
}

/* The sums of x[i] over the block, for every thread. The caller has `parts` to itself until another
 * barrier, so that this takes only one. Blocks are whole warps in x. */
template <int kSums>
__device__ inline void block_sums(float (&x)[kSums], float (&parts)[kSums][kWarp])
{
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int warps = (int)blockDim.x / kWarp;
#pragma unroll
    for (int i = 0; i < kSums; i++) {
        x[i] = warp_sum(x[i]);
        if (lane == 0) parts[i][warp] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSums; i++)
        x[i] = warp_sum(lane < warps ? parts[i][lane] : 0.0f);
}

/* Threads of a row and vectors that each holds. */
struct row_split {
    unsigned threads;
    int vectors;
};

template <typename T> hd_status split_row(const char *what, int64_t columns, row_split *out)
{
    const int64_t vectors = hdi_ceil_div(columns, kLanes<T>);
    out->vectors = vectors <= kWidestRow / 2 ? 1 : vectors <= 2 * kWidestRow ? 2 : 4;
    const int64_t threads = hdi_round_up(hdi_ceil_div(vectors, out->vectors), kWarp);
    out->threads = (unsigned)threads;
    if (threads <= kWidestRow) return HD_OK;
    return hdi_error(HD_ERROR_UNSUPPORTED, "%s: rows have %lld columns, want at most %d", what,
                     (long long)columns, 4 * kWidestRow * kLanes<T>);
}

/* call(vectors, aligned) with both as types. Alignment changes how rows are read, never the order of
 * a sum. */
template <int kValue> struct number {
    static constexpr int value = kValue;
};

template <typename Call> hd_status with_row(row_split row, bool aligned, Call &&call)
{
    switch (row.vectors) {
    case 1: return aligned ? call(number<1>(), number<1>()) : call(number<1>(), number<0>());
    case 2: return aligned ? call(number<2>(), number<1>()) : call(number<2>(), number<0>());
    default: return aligned ? call(number<4>(), number<1>()) : call(number<4>(), number<0>());
    }
}

#endif
