/* Rows of which each sequence has a counted number: their mean, and counts of joined sequences. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kThreads = 256;

__global__ void mean_of_rows(hdi_mean_rows_args a)
{
    const int64_t index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (index >= a.sequences * a.columns) return;
    const int64_t s = index / a.columns, c = index % a.columns;
    const int64_t count = a.counts ? a.counts[s] : a.tokens;
    const float *x = a.x + s * a.tokens * a.columns + c;
    double sum = 0;
    for (int64_t r = 0; r < count && r < a.tokens; r++)
        sum += (double)x[r * a.columns];
    a.out[index] = (float)(count > 0 ? sum / (double)count : 0);
}

__global__ void add_to_counts(hdi_raise_counts_args a)
{
    const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (i >= a.elements) return;
    const int64_t behind = a.counts[i] - a.first;
    a.out[i] = (int32_t)(a.more + (behind < 0 ? 0 : behind < a.most ? behind : a.most));
}

} // namespace

extern "C" hd_status hdi_cuda_mean_rows(hd_stream *stream, const hdi_mean_rows_args *args)
{
    const int64_t elements = args->sequences * args->columns;
    if (elements <= 0) return HD_OK;
    mean_of_rows<<<block_count(elements, kThreads), kThreads, 0, stream->handle>>>(*args);
    return launched("mean_rows");
}

extern "C" hd_status hdi_cuda_raise_counts(hd_stream *stream, const hdi_raise_counts_args *args)
{
    if (args->elements <= 0) return HD_OK;
    add_to_counts<<<block_count(args->elements, kThreads), kThreads, 0, stream->handle>>>(*args);
    return launched("raise_counts");
}
