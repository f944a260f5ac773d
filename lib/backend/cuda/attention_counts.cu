/* Zeros for the rows of sequences that have fewer tokens than places. */
#include "backend/cuda/attention.h"
#include "backend/cuda/attention_tile.cuh"

namespace
{

constexpr int kWarps = 8; /* of a block: rows at a time */

template <typename T>
__global__ void zero_row(attention_problem a, int64_t rows, T *x, int64_t stride, int64_t columns)
{
    const int64_t index = (int64_t)blockIdx.x * kWarps + threadIdx.y;
    if (index >= rows) return;
    const int64_t sequence = index / a.tokens, token = index - sequence * a.tokens;
    if (token < a.counts[sequence]) return;
    const row_run run = query_rows(a, sequence);
    T *row = x + (run.first + token * run.step) * stride;
    for (int64_t c = threadIdx.x; c < columns; c += kWarp)
        row[c] = from_float<T>(0.0f);
}

} // namespace

extern "C" hd_status hdi_cuda_zero_uncounted(hd_stream *stream, const hdi_attention_args *args,
                                             void *x, int64_t stride, int64_t columns)
{
    const attention_problem problem = problem_of(args);
    const int64_t rows = args->batch * args->tokens;
    return with_type(args->dtype, "attention", [&](auto tag) {
        using T = typename decltype(tag)::type;
        zero_row<T><<<block_count(rows, kWarps), dim3(kWarp, kWarps), 0, stream->handle>>>(
            problem, rows, (T *)x, stride, columns);
        return launched("attention: rows without a token");
    });
}
